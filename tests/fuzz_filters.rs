//! Random and slightly wrong datagrams through the filters, and what passes into the real crates.
//!
//! A panic is the failure. `FUZZ_ITERATIONS` sets the number of datagrams over all tests (default
//! 200,000):
//!
//!     FUZZ_ITERATIONS=10000000 cargo test --release --test fuzz_filters

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bevy_tandem::transport::filter::netcode::{self, Sender};
use bevy_tandem::transport::filter::{RenetFilter, RenetRejection};
use bevy_tandem::transport::{
    LinkEvent, MAX_PAYLOAD_BYTES, ServerTransport, UdpServer, UdpServerConfig, udp,
};
use fastrand::Rng;
use renet::{ConnectionConfig, RenetClient};
use renetcode::{
    ClientAuthentication, ConnectToken, NetcodeClient, NetcodeServer, ServerAuthentication,
    ServerConfig, ServerResult,
};

const FRAME: Duration = Duration::from_millis(16);

/// This test's share of the datagrams.
fn iterations() -> u64 {
    let total = std::env::var("FUZZ_ITERATIONS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(200_000);
    total / 4
}

/// Tells which iteration panicked.
struct Progress(u64);

impl Drop for Progress {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("panicked at iteration {}", self.0);
        }
    }
}

fn random_bytes(rng: &mut Rng, max_len: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.usize(0..=max_len)];
    rng.fill(&mut bytes);
    bytes
}

/// A few small changes, or none.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.usize(0..4) {
        let len = bytes.len();
        match rng.u8(0..7) {
            0 if len > 0 => bytes[rng.usize(0..len)] ^= 1 << rng.u8(0..8),
            1 if len > 0 => bytes[rng.usize(0..len)] = rng.u8(..),
            2 if len > 0 => {
                bytes[rng.usize(0..len)] =
                    [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff][rng.usize(0..8)];
            }
            3 => bytes.truncate(rng.usize(0..=len)),
            4 => bytes.extend(random_bytes(rng, 20)),
            5 if len > 0 => bytes[0] = rng.u8(..),
            6 if len > 1 => {
                let from = rng.usize(0..len);
                let to = rng.usize(0..len);
                bytes.swap(from, to);
            }
            _ => {}
        }
    }
}

/// A real netcode server with a client that is connected and one that is about to be.
struct Netcode {
    server: NetcodeServer,
    connected: NetcodeClient,
    pending: NetcodeClient,
    from_client: Vec<Vec<u8>>,
    from_server: Vec<Vec<u8>>,
}

const PROTOCOL: u64 = 1;

fn client_addr(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 4000))
}

impl Netcode {
    fn new() -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], 5000));
        let mut server = NetcodeServer::new(ServerConfig {
            current_time: Duration::ZERO,
            max_clients: 8,
            protocol_id: PROTOCOL,
            public_addresses: vec![addr],
            authentication: ServerAuthentication::Unsecure,
        });
        let client = |client_id| {
            let connect_token = ConnectToken::generate(
                Duration::ZERO,
                PROTOCOL,
                1 << 30,
                client_id,
                -1,
                vec![addr],
                None,
                &[0; 32],
            )
            .expect("a token");
            NetcodeClient::new(
                Duration::ZERO,
                ClientAuthentication::Secure { connect_token },
            )
            .expect("a good token")
        };
        let (mut connected, mut pending) = (client(1), client(2));
        let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
        let mut exchange = |client: &mut NetcodeClient, from| {
            let (packet, _) = client
                .update(Duration::from_secs(1))
                .expect("something to say");
            let mut packet = packet.to_vec();
            from_client.push(packet.clone());
            match server.process_packet(from, &mut packet) {
                ServerResult::PacketToSend { payload, .. }
                | ServerResult::ClientConnected { payload, .. } => {
                    from_server.push(payload.to_vec());
                    client.process_packet(payload);
                }
                other => panic!("the handshake goes on, and not {other:?}"),
            }
        };
        exchange(&mut connected, client_addr(1));
        exchange(&mut connected, client_addr(1));
        exchange(&mut pending, client_addr(2));
        let mut this = Self {
            server,
            connected,
            pending,
            from_client,
            from_server,
        };
        assert!(
            this.connected.is_connected() && this.pending.is_connecting(),
            "as meant"
        );
        for len in [1, 20, 300, MAX_PAYLOAD_BYTES] {
            let (_, packet) = this
                .connected
                .generate_payload_packet(&vec![7; len])
                .expect("connected");
            this.from_client.push(packet.to_vec());
            let (_, packet) = this
                .server
                .generate_payload_packet(1, &vec![7; len])
                .expect("connected");
            this.from_server.push(packet.to_vec());
        }
        this
    }

    fn datagram(rng: &mut Rng, samples: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = match rng.u8(0..4) {
            0 => random_bytes(rng, 1_400),
            // Well-formed but for the encryption.
            1 => {
                let (kind, sequence_bytes) = (rng.u8(0..8), rng.u8(0..10));
                let body = [0, 8, 308, rng.usize(0..1_300)][rng.usize(0..4)];
                let mut bytes = vec![0xff; 1 + usize::from(sequence_bytes) + body + 16];
                if rng.bool() {
                    rng.fill(&mut bytes);
                }
                bytes[0] = sequence_bytes << 4 | kind;
                bytes
            }
            _ => samples[rng.usize(0..samples.len())].clone(),
        };
        mutate(rng, &mut bytes);
        bytes
    }
}

#[test]
fn no_datagram_stops_a_netcode_server() {
    let mut rng = Rng::with_seed(1);
    let mut net = Netcode::new();
    let (mut progress, mut passed) = (Progress(0), 0_u64);
    for iteration in 0..iterations() {
        progress.0 = iteration;
        let mut datagram = match rng.u8(0..16) {
            // A new payload of the real client's, perhaps altered.
            0 => {
                let payload = random_bytes(&mut rng, MAX_PAYLOAD_BYTES);
                let (_, packet) = net
                    .connected
                    .generate_payload_packet(&payload)
                    .expect("connected");
                let mut packet = packet.to_vec();
                if rng.bool() {
                    mutate(&mut rng, &mut packet);
                }
                packet
            }
            _ => Netcode::datagram(&mut rng, &net.from_client),
        };
        let (from, sender) = match rng.u8(0..3) {
            0 => (client_addr(3), Sender::Stranger),
            1 => (client_addr(2), Sender::Pending),
            _ => (client_addr(1), Sender::Connected),
        };
        if netcode::from_client(&datagram, sender) {
            passed += 1;
            let _ = net.server.process_packet(from, &mut datagram);
        }
        if iteration % 1_000 == 0 {
            net.server.update(FRAME);
        }
        // A recorded request makes a stranger a pending one, and a handshake can succeed.
        if iteration % 20_000 == 19_999 || !net.server.is_client_connected(1) {
            net = Netcode::new();
        }
    }
    println!("server: {passed} of {} passed the filter", iterations());
    assert!(
        passed > iterations() / 20,
        "enough of them get as far as renetcode: {passed}"
    );
}

#[test]
fn no_datagram_stops_a_netcode_client() {
    let mut rng = Rng::with_seed(2);
    let mut net = Netcode::new();
    let (mut progress, mut passed) = (Progress(0), 0_u64);
    for iteration in 0..iterations() {
        progress.0 = iteration;
        let mut datagram = match rng.u8(0..16) {
            0 => {
                let payload = random_bytes(&mut rng, MAX_PAYLOAD_BYTES);
                let (_, packet) = net
                    .server
                    .generate_payload_packet(1, &payload)
                    .expect("connected");
                packet.to_vec()
            }
            _ => Netcode::datagram(&mut rng, &net.from_server),
        };
        if netcode::from_server(&datagram) {
            passed += 1;
            let client = if rng.bool() {
                &mut net.connected
            } else {
                &mut net.pending
            };
            client.process_packet(&mut datagram);
            let _ = client.update(Duration::from_micros(10));
        }
        if iteration % 20_000 == 19_999
            || net.connected.is_disconnected()
            || net.pending.is_disconnected()
        {
            net = Netcode::new();
        }
    }
    println!("client: {passed} of {} passed the filter", iterations());
    assert!(
        passed > iterations() / 20,
        "enough of them get as far as renetcode: {passed}"
    );
}

/// Makes packets that are near to what renet makes.
struct RenetPackets {
    rng: Rng,
    /// Where message ids and sequences hover, so that packets meet.
    around: u64,
    samples: Vec<Vec<u8>>,
}

impl RenetPackets {
    /// From packets that a real peer sends: small and large messages, and acks of some.
    fn new(seed: u64) -> Self {
        let mut peers = [
            RenetClient::new(ConnectionConfig::default()),
            RenetClient::new(ConnectionConfig::default()),
        ];
        let mut samples = Vec::new();
        for round in 0..6 {
            for channel in 0..3_u8 {
                for len in [1, 40, 1_200, 5_000] {
                    peers[0].send_message(channel, vec![round; len]);
                }
            }
            for end in 0..2 {
                for (index, packet) in peers[end].get_packets_to_send().into_iter().enumerate() {
                    if index % 3 > 0 {
                        peers[1 - end].process_packet(&packet);
                    }
                    samples.push(packet);
                }
                peers[end].update(FRAME * 10);
            }
        }
        Self {
            rng: Rng::with_seed(seed),
            around: 0,
            samples,
        }
    }

    fn next(&mut self) -> Vec<u8> {
        if self.rng.u8(..) == 0 {
            self.around += self.rng.u64(0..40);
        }
        match self.rng.u8(0..8) {
            0 => random_bytes(&mut self.rng, 100),
            1 | 2 => {
                let mut packet = self.samples[self.rng.usize(0..self.samples.len())].clone();
                mutate(&mut self.rng, &mut packet);
                packet
            }
            3 => {
                let mut packet = self.made_up();
                mutate(&mut self.rng, &mut packet);
                packet
            }
            _ => self.made_up(),
        }
    }

    fn made_up(&mut self) -> Vec<u8> {
        let kind = self.rng.u8(0..5);
        let mut packet = vec![kind];
        self.varint_around(&mut packet, 200);
        if kind == 4 {
            return self.acks(packet);
        }
        // Usually the channel of that kind.
        let channel = match (kind, self.rng.u8(..)) {
            (_, 0) => self.rng.u8(..),
            (1 | 3, _) => 0,
            _ => self.rng.u8(1..3),
        };
        packet.push(channel);
        match kind {
            0 | 1 => {
                let messages =
                    [0, 1, self.rng.u16(0..30), self.rng.u16(0..700)][self.rng.usize(0..4)];
                packet.extend_from_slice(&messages.to_be_bytes());
                for _ in 0..messages {
                    if kind == 0 {
                        self.varint_around(&mut packet, 100);
                    }
                    let message = random_bytes(&mut self.rng, if messages > 30 { 1 } else { 40 });
                    varint(&mut packet, message.len() as u64);
                    packet.extend(message);
                }
            }
            _ => {
                self.varint_around(&mut packet, 8);
                let count = self.edge_or(1, 5);
                let index = self.edge_or(0, count.clamp(1, 5));
                let bytes = match self.rng.u8(0..8) {
                    0 => self.rng.usize(0..1_300),
                    _ if index + 1 == count => self.rng.usize(1..=1_200),
                    _ => 1_200,
                };
                [index, count, bytes as u64]
                    .into_iter()
                    .for_each(|value| varint(&mut packet, value));
                packet.resize(packet.len() + bytes, 1);
            }
        }
        packet
    }

    fn acks(&mut self, mut packet: Vec<u8>) -> Vec<u8> {
        self.varint_around(&mut packet, 50);
        let length = self.edge_or(0, 20);
        varint(&mut packet, length);
        let ranges = self.edge_or(0, 6);
        varint(&mut packet, ranges);
        for _ in 0..ranges.min(20) * 2 {
            let value = self.edge_or(0, 4);
            varint(&mut packet, value);
        }
        packet
    }

    /// Usually small, sometimes an extreme.
    fn edge_or(&mut self, from: u64, to: u64) -> u64 {
        match self.rng.u8(0..32) {
            0 => [
                0,
                63,
                64,
                1 << 14,
                1_000_000,
                1_000_001,
                1 << 32,
                u64::MAX >> 2,
            ][self.rng.usize(0..8)],
            _ => self.rng.u64(from..=to),
        }
    }

    fn varint_around(&mut self, packet: &mut Vec<u8>, spread: u64) {
        let value = match self.rng.u8(..) {
            0 => [0, u64::MAX >> 2, (u64::MAX >> 2) - 1, self.around + 2_000][self.rng.usize(0..4)],
            _ => self.around + self.rng.u64(0..spread),
        };
        varint(packet, value);
    }
}

/// QUIC's, as short as possible.
fn varint(packet: &mut Vec<u8>, value: u64) {
    match value {
        0..0x40 => packet.push(value as u8),
        0x40..0x4000 => packet.extend_from_slice(&(value as u16 | 1 << 14).to_be_bytes()),
        0x4000..0x4000_0000 => packet.extend_from_slice(&(value as u32 | 2 << 30).to_be_bytes()),
        _ => packet.extend_from_slice(&(value | 3 << 62).to_be_bytes()),
    }
}

fn fuzz_renet(name: &str, seed: u64, new_filter: impl Fn() -> RenetFilter) {
    let new_renet = || {
        let mut renet = RenetClient::new(ConnectionConfig::default());
        renet.set_connected();
        renet
    };
    let mut packets = RenetPackets::new(seed);
    let (mut renet, mut filter) = (new_renet(), new_filter());
    let (mut progress, mut passed, mut connections, mut messages) =
        (Progress(0), 0_u64, 1_u64, 0_u64);
    for iteration in 0..iterations() {
        progress.0 = iteration;
        match filter.check(&packets.next()) {
            Ok(packet) => {
                passed += 1;
                renet.process_packet(&packet);
            }
            Err(RenetRejection::Malformed) => {}
            Err(why) => assert!(!why.to_string().is_empty(), "every reason has words"),
        }
        // A frame: what arrived is read, something is said, acks go out.
        if iteration % 16 == 0 {
            for channel in 0..3_u8 {
                while renet.receive_message(channel).is_some() {
                    messages += 1;
                }
                if iteration % 64 == 0 && renet.can_send_message(channel, 3_000) {
                    renet.send_message(channel, vec![1; packets.rng.usize(0..3_000)]);
                }
            }
            renet.update(FRAME);
            renet.get_packets_to_send();
        }
        if renet.is_disconnected() || iteration % 50_000 == 49_999 {
            (renet, filter) = (new_renet(), new_filter());
            packets.around = 0;
            connections += 1;
        }
    }
    println!(
        "{name}: {passed} of {} passed the filter, {messages} messages, {connections} connections",
        iterations()
    );
    assert!(
        passed > iterations() / 20,
        "enough of them get as far as renet: {passed}"
    );
    assert!(messages > 0, "and mean something to it");
}

#[test]
fn no_packet_of_a_client_stops_renet() {
    fuzz_renet("renet from client", 3, RenetFilter::from_client);
}

#[test]
fn no_packet_of_a_server_stops_renet() {
    fuzz_renet("renet from server", 4, || RenetFilter::from_server(100_000));
}

/// Counts errors that reach the app's log, from the server's threads and from others.
struct ErrorCounter;

static OUR_ERRORS: AtomicUsize = AtomicUsize::new(0);
static OTHER_ERRORS: AtomicUsize = AtomicUsize::new(0);

impl tracing::Subscriber for ErrorCounter {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        let ours = std::thread::current()
            .name()
            .is_some_and(|name| name.starts_with("tandem-udp"));
        let errors = if ours { &OUR_ERRORS } else { &OTHER_ERRORS };
        errors.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_stranger_cannot_write_to_the_log() {
    // As Bevy's `LogPlugin` does.
    tracing_log::LogTracer::init().expect("nobody else logs in this process");
    let counter = tracing::Dispatch::new(ErrorCounter);
    tracing::dispatcher::set_global_default(counter).expect("nobody else logs in this process");

    let server_addr = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut server = UdpServer::bind(UdpServerConfig::new(server_addr)).expect("a free port");
    let server_addr = server.local_addr().expect("UDP has an address");
    // A request that looks right until it is decrypted, which is when `renetcode` complains.
    let token = udp::token::TokenBuilder::new(1, vec![server_addr])
        .issue(&[66; 32])
        .expect("a token");
    let mut stranger = NetcodeClient::new(
        Duration::ZERO,
        ClientAuthentication::Secure {
            connect_token: token,
        },
    )
    .expect("a good token");
    let request = stranger.update(FRAME).expect("a request").0.to_vec();

    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a free port");
    let end = Instant::now() + Duration::from_secs(5);
    let mut events: Vec<LinkEvent> = Vec::new();
    while server.stats().rejected.handshake < 10 {
        assert!(
            Instant::now() < end,
            "the requests arrive: {:?}",
            server.stats()
        );
        socket
            .send_to(&request, server_addr)
            .expect("loopback takes it");
        server.receive(FRAME, &mut events);
        std::thread::sleep(Duration::from_millis(1));
    }
    server.shutdown();
    assert_eq!(
        OUR_ERRORS.load(Ordering::Relaxed),
        0,
        "our threads are silent"
    );
    assert!(events.is_empty(), "and nobody got in");

    let mut net = Netcode::new();
    net.connected.process_packet(&mut [0x15; 40]);
    assert!(
        OTHER_ERRORS.load(Ordering::Relaxed) > 0,
        "while renetcode by itself is not"
    );
}
