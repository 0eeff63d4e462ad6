//! Netcode, and whole servers and clients above it, over wires that lose, delay, double, reorder and damage datagrams.
//! Handshakes, keep-alives and farewells meet that too. No sockets, no clocks: the same seed gives the same run.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bevy::prelude::*;
use serde::{Deserialize, Serialize};

use super::client::ClientEnd;
use super::shards::{Output, Shards, ShardsConfig};
use super::token::{self, TokenBuilder};
use super::*;
use crate::client::{ReconnectSettings, ResumeFinished, ResumeOutcome};
use crate::histogram::Histogram;
use crate::prelude::*;
use crate::protocol::backoff::BackoffSettings;
use crate::protocol::handshake::DisconnectReason;
use crate::testing::{TestClientId, TestNet};
use crate::transport::conditioner::Wire;
use crate::transport::filter::netcode;
use crate::transport::{
    Arrival, ClientLinkState, ClientTransport, CloseReason, LinkEvent, LinkId, Rejected,
    ServerTransport, TransportKind, TransportStats,
};

const KEY: [u8; 32] = [9; 32];
const TICK: Duration = Duration::from_nanos(16_666_667);
const STEP: Duration = Duration::from_millis(4);
const SWEEP: Duration = Duration::from_millis(100);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn server_addr() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 5_000))
}

/// A mobile link on a bad day, with so much loss, and noise on the wire.
fn noisy(loss: f32) -> LinkConditions {
    LinkConditions {
        latency: ms(75),
        jitter: ms(20),
        loss,
        duplication: 0.05,
        reordering: 0.05,
        seed: 7,
        ..Default::default()
    }
}

/// Share of datagrams with a flipped bit: far more than any network delivers.
const NOISE: f32 = 0.02;

/// A server, and wires to it.
struct Ether {
    now: Duration,
    swept_at: Duration,
    conditions: LinkConditions,
    noise: f32,
    shards: Shards,
    out: Output,
    events: Vec<LinkEvent>,
    ends: BTreeMap<SocketAddr, Ends>,
    opened: u64,
    /// What the server has sent, as it left.
    sent: HashMap<SocketAddr, Vec<Vec<u8>>>,
    records: bool,
}

struct Ends {
    up: Wire,
    down: Wire,
    inbox: VecDeque<(Duration, Vec<u8>)>,
}

impl Ether {
    fn new(conditions: LinkConditions, noise: f32, max_sessions: usize) -> Self {
        let shards = Shards::new(ShardsConfig {
            transport_index: 1,
            protocol_id: DEFAULT_PROTOCOL_ID,
            private_key: Some(KEY),
            public_addresses: vec![server_addr()],
            max_sessions,
            client_timeout: Duration::from_secs(5),
            max_datagrams_per_s: 400.0,
            unix_time_at_start: token::unix_time(),
        });
        Self {
            now: Duration::ZERO,
            swept_at: Duration::ZERO,
            conditions,
            noise,
            shards,
            out: Output {
                room: usize::MAX,
                ..Output::default()
            },
            events: Vec::new(),
            ends: BTreeMap::new(),
            opened: 0,
            sent: HashMap::new(),
            records: false,
        }
    }

    /// A new client's address, and its wires.
    fn open(&mut self, player: u32) -> SocketAddr {
        let ip = (0x0a00_0000 + player).to_be_bytes();
        let addr = SocketAddr::from((ip, 1_024 + (self.opened % 60_000) as u16));
        let wire = |stream| Wire::new(self.conditions.clone(), self.noise, stream);
        let ends = Ends {
            up: wire(2 * self.opened),
            down: wire(2 * self.opened + 1),
            inbox: VecDeque::new(),
        };
        self.opened += 1;
        self.ends.insert(addr, ends);
        addr
    }

    fn send_up(&mut self, from: SocketAddr, datagram: &[u8]) {
        if let Some(ends) = self.ends.get_mut(&from) {
            ends.up.push(self.now, datagram.to_vec());
        }
    }

    fn take_out(&mut self) {
        self.events.append(&mut self.out.events);
        for (to, packet) in self.out.packets.iter() {
            if self.records {
                self.sent.entry(to).or_default().push(packet.to_vec());
            }
            if let Some(ends) = self.ends.get_mut(&to) {
                ends.down.push(self.now, packet.to_vec());
            }
        }
        self.out.packets.clear();
    }

    fn run_until(&mut self, end: Duration) {
        while self.now < end {
            self.now = (self.now + STEP).min(end);
            let now = self.now;
            for (from, ends) in &mut self.ends {
                while let Some(mut datagram) = ends.up.pop_due(now) {
                    self.shards
                        .handle_datagram(now, *from, &mut datagram, &mut self.out);
                }
                while let Some(due) = ends.down.next_due().filter(|due| *due <= now) {
                    ends.inbox
                        .extend(ends.down.pop_due(now).map(|it| (due, it)));
                }
            }
            if now >= self.swept_at + SWEEP {
                self.swept_at = now;
                self.shards.handle_timeouts(now, &mut self.out);
            }
            self.take_out();
        }
    }
}

fn token(client_id: u64) -> ClientAuth {
    let token = TokenBuilder::new(client_id, vec![server_addr()])
        .valid_for(Duration::from_secs(300))
        .issue(&KEY);
    ClientAuth::Token(Box::new(token.expect("a token")))
}

/// A client that only connects, and what it has heard.
struct Joiner {
    addr: SocketAddr,
    end: ClientEnd,
    began_at: Duration,
    in_at: Option<Duration>,
}

impl Joiner {
    fn new(ether: &mut Ether, id: u64) -> Self {
        let config = UdpClientConfig::new(token(id));
        Self {
            addr: ether.open(id as u32),
            end: ClientEnd::new(config, token::unix_time()).expect("a good token"),
            began_at: ether.now,
            in_at: None,
        }
    }

    fn step(&mut self, ether: &mut Ether, elapsed: Duration) -> Vec<Vec<u8>> {
        let addr = self.addr;
        self.end
            .advance(elapsed, |packet| ether.send_up(addr, packet));
        let inbox = std::mem::take(&mut ether.ends.get_mut(&addr).expect("open").inbox);
        let mut heard = Vec::new();
        for (_, mut datagram) in inbox {
            let payload = self.end.take_in(&mut datagram, &mut Rejected::default());
            heard.extend(payload.map(<[u8]>::to_vec));
        }
        self.end.judge(|packet| ether.send_up(addr, packet));
        heard
    }
}

#[test]
fn a_thousand_joins_at_a_fifth_loss_all_get_in() {
    let mut ether = Ether::new(noisy(0.2), NOISE, 10_000);
    let mut joiners: Vec<Joiner> = Vec::new();
    let mut links = HashMap::new();
    for frame in 0u32.. {
        // One begins with each frame.
        if joiners.len() < 1_000 {
            let joiner = Joiner::new(&mut ether, joiners.len() as u64);
            joiners.push(joiner);
        }
        ether.run_until(TICK * (frame + 1));
        for joiner in &mut joiners {
            joiner.step(&mut ether, TICK);
        }
        for event in ether.events.drain(..) {
            match event {
                LinkEvent::Opened { peer, link } => {
                    links.insert(link, peer.client_id);
                    let joiner = &mut joiners[peer.client_id as usize];
                    assert!(joiner.in_at.is_none(), "a link opens once");
                    joiner.in_at = Some(ether.now);
                }
                LinkEvent::Datagram { .. } => {}
                LinkEvent::Closed { reason, .. } => panic!("nobody leaves: {reason}"),
            }
        }
        if links.len() == 1_000 || ether.now > Duration::from_secs(60) {
            break;
        }
    }
    let mut took = Histogram::default();
    for joiner in &joiners {
        assert!(joiner.end.state.is_connected(), "{}", joiner.addr);
        let in_at = joiner.in_at.expect("the server knows it too");
        took.record((in_at - joiner.began_at).as_secs_f64() * 1e3);
    }
    let (p50, p99, max) = (took.quantile(0.5), took.quantile(0.99), took.max());
    println!("1,000 joins at 20 % loss: p50 {p50:.0} ms, p99 {p99:.0} ms, max {max:.0} ms");
    assert!(p99 <= 2_500.0, "p99 is {p99} ms");
    assert!(max <= 5_000.0, "the slowest took {max} ms");
}

#[test]
fn nothing_but_keep_alives_goes_to_a_client_before_it_was_heard() {
    let mut ether = Ether::new(LinkConditions::default(), 0.0, 10);
    ether.records = true;
    let mut joiner = Joiner::new(&mut ether, 1);
    // It is let in, and hears nothing of that.
    for _ in 0..4 {
        ether.run_until(ether.now + TICK);
        joiner.step(&mut ether, TICK);
        if joiner.end.state.is_connected() {
            break;
        }
    }
    assert!(joiner.end.state.is_connected(), "at once on a perfect wire");
    // What it says is lost.
    let deaf = ether.ends.get_mut(&joiner.addr).expect("open");
    deaf.up = Wire::new(LinkConditions::blackhole(), 0.0, 0);
    ether.sent.clear();
    ether.run_until(ether.now + Duration::from_secs(2));
    assert!(ether.events.is_empty(), "nor does the app hear of the link");
    let sent = &ether.sent[&joiner.addr];
    assert!(sent.len() >= 18, "{} keep-alives, 10 a second", sent.len());
    assert!(sent.iter().all(|packet| packet[0] & 0xf == 4), "only those");
}

#[test]
fn the_first_keep_alive_reads_as_the_standard_says() {
    let mut ether = Ether::new(LinkConditions::default(), 0.0, 10);
    ether.records = true;
    let mut joiner = Joiner::new(&mut ether, 1);
    while !joiner.end.state.is_connected() {
        ether.run_until(ether.now + TICK);
        joiner.step(&mut ether, TICK);
        assert!(ether.now < Duration::from_secs(1), "it gets in");
    }
    let sent = &ether.sent[&joiner.addr];
    let first = sent
        .iter()
        .find(|packet| packet[0] & 0xf == 4)
        .expect("a keep-alive");
    // "The high 4 bits contain the number of bytes for the sequence number in the range [1,8]", then the number, eight
    // bytes of data and sixteen that authenticate them.
    let sequence_bytes = usize::from(first[0] >> 4);
    assert!((1..=8).contains(&sequence_bytes), "{sequence_bytes}");
    assert_eq!(first.len(), 1 + sequence_bytes + 8 + 16);
}

#[test]
fn no_two_packets_to_a_client_share_a_number() {
    // Challenges are numbered for all clients together, and with the same keys.
    let mut ether = Ether::new(noisy(0.2), 0.0, 100);
    ether.records = true;
    let mut joiners: Vec<_> = (0..40).map(|id| Joiner::new(&mut ether, id)).collect();
    let mut links: Vec<LinkId> = Vec::new();
    for frame in 0..600 {
        ether.run_until(TICK * (frame + 1));
        for joiner in &mut joiners {
            joiner.step(&mut ether, TICK);
        }
        links.extend(ether.events.drain(..).filter_map(|event| match event {
            LinkEvent::Opened { link, .. } => Some(link),
            _ => None,
        }));
        for &link in &links {
            let now = ether.now;
            ether.shards.send(now, link, b"snapshot", &mut ether.out);
        }
        ether.take_out();
    }
    assert_eq!(links.len(), 40, "all are in");
    for (to, packets) in &ether.sent {
        let mut seen = HashSet::new();
        for packet in packets {
            let (sequence, _) = netcode::sequence(packet).expect("encrypted");
            assert!(seen.insert(sequence), "{to} got two with number {sequence}");
        }
    }
}

#[test]
fn noise_in_a_repeated_request_does_not_end_the_handshake() {
    let mut ether = Ether::new(LinkConditions::default(), 0.0, 10);
    let mut joiner = Joiner::new(&mut ether, 1);
    let mut request = Vec::new();
    joiner.end.advance(TICK, |packet| request = packet.to_vec());
    ether.send_up(joiner.addr, &request);
    ether.run_until(ether.now + TICK);
    // A copy arrives with another token's tag.
    *request.last_mut().expect("1,078 bytes") ^= 1;
    ether.send_up(joiner.addr, &request);
    ether.run_until(ether.now + TICK);
    for _ in 0..20 {
        joiner.step(&mut ether, TICK);
        ether.run_until(ether.now + TICK);
    }
    assert!(joiner.end.state.is_connected());
}

#[test]
fn a_full_server_is_heard_to_be_full_whatever_is_lost() {
    let mut ether = Ether::new(noisy(0.4), NOISE, 5);
    let mut joiners: Vec<_> = (0..40).map(|id| Joiner::new(&mut ether, id)).collect();
    for frame in 0..540 {
        ether.run_until(TICK * (frame + 1));
        for joiner in &mut joiners {
            joiner.step(&mut ether, TICK);
        }
    }
    let denied = joiners
        .iter()
        .filter(|it| it.end.state.close_reason() == Some(&CloseReason::Denied));
    let connected = joiners.iter().filter(|it| it.end.state.is_connected());
    assert_eq!((connected.count(), denied.count()), (5, 35));
}

/// The server's end of the ether. Each `receive` is a tick.
struct EtherServer(Arc<Mutex<Ether>>);

/// A client's end.
struct EtherClient {
    ether: Arc<Mutex<Ether>>,
    addr: SocketAddr,
    end: ClientEnd,
    seen: Duration,
}

fn lock(ether: &Mutex<Ether>) -> MutexGuard<'_, Ether> {
    ether.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ServerTransport for EtherServer {
    fn receive(&mut self, _now: Duration, events: &mut Vec<LinkEvent>) {
        let mut ether = lock(&self.0);
        let end = ether.now + TICK;
        ether.run_until(end);
        events.append(&mut ether.events);
    }

    fn clock(&self, _now: Duration) -> Duration {
        lock(&self.0).now
    }

    fn send(&mut self, _now: Duration, link: LinkId, datagram: &[u8]) {
        let ether = &mut *lock(&self.0);
        ether.shards.send(ether.now, link, datagram, &mut ether.out);
        ether.take_out();
    }

    fn flush(&mut self, _now: Duration) {}

    fn close(&mut self, link: LinkId) {
        let ether = &mut *lock(&self.0);
        ether.shards.close(link, CloseReason::ByUs, &mut ether.out);
        ether.take_out();
    }

    fn kind(&self) -> TransportKind {
        TransportKind::Udp
    }

    fn stop_accepting(&mut self) {
        lock(&self.0).shards.stop_accepting();
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        Some(server_addr())
    }

    fn stats(&self) -> TransportStats {
        lock(&self.0).shards.stats
    }

    fn shutdown(&mut self) {
        let ether = &mut *lock(&self.0);
        ether.shards.close_all(&mut ether.out);
        ether.take_out();
    }
}

impl ClientTransport for EtherClient {
    fn state(&self) -> &ClientLinkState {
        &self.end.state
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        let mut arrivals = Vec::new();
        self.receive_timed(now, &mut arrivals);
        datagrams.extend(arrivals.into_iter().map(|it| it.bytes));
    }

    fn receive_timed(&mut self, _now: Duration, datagrams: &mut Vec<Arrival>) {
        let ether = &mut *lock(&self.ether);
        let elapsed = ether.now - self.seen;
        self.seen = ether.now;
        let addr = self.addr;
        self.end
            .advance(elapsed, |packet| ether.send_up(addr, packet));
        let inbox = std::mem::take(&mut ether.ends.get_mut(&addr).expect("open").inbox);
        for (at, mut datagram) in inbox {
            let payload = self.end.take_in(&mut datagram, &mut Rejected::default());
            datagrams.extend(payload.map(|payload| Arrival {
                at,
                bytes: payload.to_vec(),
            }));
        }
        self.end.judge(|packet| ether.send_up(addr, packet));
    }

    fn clock(&self, _now: Duration) -> Duration {
        lock(&self.ether).now
    }

    fn send(&mut self, _now: Duration, datagram: &[u8]) {
        if let Some(packet) = self.end.seal(datagram) {
            lock(&self.ether).send_up(self.addr, packet);
        }
    }

    fn flush(&mut self, _now: Duration) {}

    fn kind(&self) -> TransportKind {
        TransportKind::Udp
    }

    fn vanish(&mut self) {
        self.end.vanish();
    }

    fn close(&mut self) {
        let ether = &mut *lock(&self.ether);
        let addr = self.addr;
        self.end.close(|packet| ether.send_up(addr, packet));
    }

    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Numbered(u32);

/// What an app was told.
#[derive(Resource, Default)]
struct Log {
    heard: Vec<u32>,
    ends: Vec<DisconnectReason>,
    resumed_ms: Vec<f64>,
}

fn game(app: &mut App) {
    app.protocol()
        .add_message::<Numbered>(Channel::ReliableOrdered);
    app.init_resource::<Log>()
        .add_observer(|end: On<Disconnected>, mut log: ResMut<Log>| {
            // The link that `TestNet` has begun is left for one over the ether.
            if end.reason != DisconnectReason::ClientLeft {
                log.ends.push(end.reason.clone());
            }
        })
        .add_observer(|end: On<SessionLeft>, mut log: ResMut<Log>| {
            log.ends.push(end.reason.clone());
        })
        .add_observer(|end: On<ResumeFinished>, mut log: ResMut<Log>| {
            assert_eq!(end.outcome, ResumeOutcome::Resumed);
            log.resumed_ms.push(end.took.as_secs_f64() * 1e3);
        })
        .add_systems(
            Update,
            |heard: Option<MessageReader<FromServer<Numbered>>>, mut log: ResMut<Log>| {
                let heard = heard.into_iter();
                heard.for_each(|mut heard| log.heard.extend(heard.read().map(|it| it.0.0)));
            },
        );
}

/// A server and clients over the ether.
struct Match {
    net: TestNet,
    ether: Arc<Mutex<Ether>>,
    clients: Vec<TestClientId>,
}

impl Match {
    fn new(conditions: LinkConditions) -> Self {
        // Clients wait at random before they come back.
        fastrand::seed(7);
        let config = ServerConfig {
            auth: Auth::Secure { private_key: KEY },
            public_addresses: vec![server_addr()],
            ..default()
        };
        let mut net = TestNet::with_config(game, LinkConditions::default(), config);
        let ether = Arc::new(Mutex::new(Ether::new(conditions, NOISE, 10_000)));
        let end = EtherServer(ether.clone());
        net.server.add_transport(|index| {
            assert_eq!(index, 1, "as the ether's links say");
            end
        });
        Self {
            net,
            ether,
            clients: Vec::new(),
        }
    }

    /// Lets one more join, without waiting for it.
    fn join(&mut self) -> TestClientId {
        let player = self.clients.len();
        let config = ClientConfig {
            name: format!("player {player}"),
            reconnect: ReconnectSettings {
                backoff: BackoffSettings {
                    attempts: 20,
                    ..default()
                },
                ..default()
            },
            ..default()
        };
        let client = self.net.join_with(game, config);
        let ether = self.ether.clone();
        let connector = move |next: Option<&[u8]>| {
            let auth = match next {
                Some(next) => ClientAuth::Token(Box::new(
                    token::from_bytes(next).map_err(|error| error.to_string())?,
                )),
                None => token(player as u64),
            };
            let end = ClientEnd::new(UdpClientConfig::new(auth), token::unix_time())
                .map_err(|error| error.to_string())?;
            let mut locked = lock(&ether);
            Ok(Box::new(EtherClient {
                addr: locked.open(player as u32),
                seen: locked.now,
                ether: ether.clone(),
                end,
            }) as Box<dyn ClientTransport>)
        };
        self.net.client(client).connect_with(connector);
        self.clients.push(client);
        client
    }

    fn state(&mut self, client: TestClientId) -> ConnectionState {
        let world = self.net.client(client).world();
        world.resource::<Connection>().state()
    }

    fn is_in(&mut self, client: TestClientId) -> bool {
        self.state(client) == ConnectionState::Connected
    }

    fn log(&mut self, client: TestClientId) -> &Log {
        self.net.client(client).world().resource()
    }

    /// So many join, one in each tick. How long each took until it was welcome, in milliseconds.
    fn join_all(&mut self, count: usize) -> Histogram {
        let mut waiting: Vec<(TestClientId, u32)> = Vec::new();
        let (mut begun, mut took) = (0, Histogram::default());
        for tick in 0u32.. {
            if begun < count {
                waiting.push((self.join(), tick));
                begun += 1;
            }
            self.net.run(Ticks(1));
            waiting.retain(|&(client, since)| {
                let is_in = self.is_in(client);
                if is_in {
                    took.record(f64::from(tick - since) * TICK.as_secs_f64() * 1e3);
                }
                !is_in
            });
            if begun == count && waiting.is_empty() {
                break;
            }
            assert!(tick < 60 * 60, "{} never get in", waiting.len());
        }
        took
    }

    fn run_until(&mut self, what: &str, seconds: u32, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..seconds * 60 {
            if done(self) {
                return;
            }
            self.net.run(Ticks(1));
        }
        panic!("{what}: not within {seconds} s");
    }
}

#[test]
fn players_are_welcome_within_three_seconds_at_a_tenth_loss() {
    let mut all = Match::new(noisy(0.1));
    let took = all.join_all(200);
    let (p50, p99) = (took.quantile(0.5), took.quantile(0.99));
    println!(
        "200 welcomes at 10 % loss: p50 {p50:.0} ms, p99 {p99:.0} ms, max {:.0} ms",
        took.max()
    );
    assert!(took.max() <= 3_000.0, "the slowest took {} ms", took.max());
}

#[test]
fn players_are_welcome_at_a_fifth_loss() {
    let mut all = Match::new(noisy(0.2));
    let took = all.join_all(100);
    let p99 = took.quantile(0.99);
    println!(
        "100 welcomes at 20 % loss: p99 {p99:.0} ms, max {:.0} ms",
        took.max()
    );
    assert!(took.max() <= 5_000.0, "the slowest took {} ms", took.max());
}

#[test]
fn cut_links_come_back_within_three_seconds_and_lose_nothing() {
    let mut all = Match::new(noisy(0.05));
    all.join_all(40);
    let clients = all.clients.clone();
    let mut said = 0;
    for round in 0..5 {
        for &client in &clients {
            all.net.cut(client);
        }
        for _ in 0..10 {
            all.net.server.world_mut().write_message(ToClients {
                to: Target::All,
                message: Numbered(said),
            });
            said += 1;
            all.net.run(Ticks(6));
        }
        all.run_until("all are back", 30, |all| {
            clients
                .iter()
                .all(|&client| all.is_in(client) && all.log(client).resumed_ms.len() > round)
        });
    }
    all.net.run(Ticks(300));
    let mut took = Histogram::default();
    for client in clients {
        let log = all.log(client);
        assert_eq!(
            log.heard,
            (0..said).collect::<Vec<_>>(),
            "all, once, in order"
        );
        assert!(log.ends.is_empty(), "{:?}", log.ends);
        log.resumed_ms.iter().for_each(|&ms| took.record(ms));
    }
    println!(
        "200 resumes at 5 % loss: p50 {:.0} ms, p99 {:.0} ms",
        took.quantile(0.5),
        took.quantile(0.99)
    );
    assert_eq!(took.count(), 200);
    assert!(
        took.quantile(0.99) <= 3_000.0,
        "p99 is {} ms",
        took.quantile(0.99)
    );
}

#[test]
fn kicks_are_heard_with_their_reason_and_after_the_last_message() {
    let mut all = Match::new(noisy(0.1));
    all.join_all(40);
    let clients = all.clients.clone();
    for &client in &clients {
        let session = all.net.session(client).expect("in");
        let world = all.net.server.world_mut();
        world.write_message(ToClients {
            to: Target::Session(session),
            message: Numbered(7),
        });
        world.trigger(Kick {
            session,
            reason: "cheating".into(),
        });
    }
    all.run_until("all are out", 20, |all| {
        clients
            .iter()
            .all(|&client| !all.log(client).ends.is_empty())
    });
    for client in clients {
        let log = all.log(client);
        assert_eq!(log.ends, [DisconnectReason::Kicked("cheating".into())]);
        assert_eq!(log.heard, [7]);
    }
}

#[test]
fn who_leaves_is_gone_at_once_whatever_is_lost() {
    let mut all = Match::new(noisy(0.2));
    all.join_all(40);
    for client in all.clients.clone() {
        all.net.client(client).world_mut().trigger(Disconnect);
    }
    all.net.run(Ticks(60));
    let log = all.net.server.world().resource::<Log>();
    assert_eq!(log.ends, vec![DisconnectReason::ClientLeft; 40]);
}

#[test]
fn a_server_that_goes_is_heard_to_go() {
    let mut all = Match::new(noisy(0.1));
    all.join_all(20);
    all.net
        .server
        .world_mut()
        .write_message(bevy::app::AppExit::Success);
    all.net.run(Ticks(60));
    for client in all.clients.clone() {
        assert_eq!(all.log(client).ends, [DisconnectReason::ServerShutdown]);
    }
}

#[test]
fn tokens_for_the_next_link_arrive_and_open_it_under_loss() {
    let mut all = Match::new(noisy(0.1));
    all.join_all(3);
    let clients = all.clients.clone();
    for round in 0..2 {
        // Longer than it takes until the next ones are sent.
        all.net.run(Ticks(62 * 60));
        for &client in &clients {
            all.net.cut(client);
        }
        all.run_until("all are back", 30, |all| {
            clients
                .iter()
                .all(|&client| all.is_in(client) && all.log(client).resumed_ms.len() > round)
        });
    }
    for client in clients {
        assert!(all.log(client).ends.is_empty());
    }
}
