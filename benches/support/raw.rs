//! Clients below the plugin: they speak the protocol, and keep to none of what the plugin keeps to.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::acks::{AckTracker, Header};
use bevy_tandem::protocol::handshake::{Control, Hello, Intent, WIRE_VERSION, fingerprint};
use bevy_tandem::protocol::input::{EncodeLimits, InputHistory};
use bevy_tandem::transport::ws::DEFAULT_PROTOCOL_ID;
use bevy_tandem::transport::ws::frame::{
    self, Batch, Credentials, MAGIC, SUBPROTOCOL, encode_auth,
};
use bevy_tandem::wire::serial;
use bytes::Bytes;
use renet::{ChannelConfig, ConnectionConfig, RenetClient, SendType};
use renetcode::{ClientAuthentication, NetcodeClient};
use tokio_tungstenite::tungstenite::client::{IntoClientRequest, client_with_config};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

/// Until a server that does not answer is asked again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Datagrams are filled up to this.
const FULL_DATAGRAM_BYTES: usize = 1_100;
/// As in a client's own outbox.
const UNACKNOWLEDGED_BYTES: usize = 96 << 10;

/// What `bevy_tandem` calls things on the wire.
const INPUTS: u8 = 1;
const RENET: u8 = 2;
const GOODBYE: u8 = 3;
const MESSAGE: u8 = 4;
const CONTROL_CHANNEL: u8 = 0;

/// Where servers listen.
#[derive(Clone, Copy)]
pub struct Target {
    pub udp: SocketAddr,
    pub ws: SocketAddr,
}

/// How to get there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Udp,
    WebSocket,
}

/// What a client sends.
#[derive(Clone, Copy, Debug)]
pub enum Burden {
    Inputs,
    /// Messages of a type, as it is numbered, with a number in each.
    Messages {
        channel: Channel,
        id: u16,
    },
}

/// One end of a link, and as much of a client as it takes to be let in.
pub struct RawClient {
    wire: Wire,
    acks: AckTracker,
    /// Over UDP, messages travel in renet's packets.
    renet: RenetClient,
    opened: Instant,
    stepped: Instant,
    hello: Option<Vec<u8>>,
    /// The server's tick when it let the client in, and when that was.
    welcome: Option<(Tick, Instant)>,
    /// What the server has registered, if it lets nobody in who has not.
    registrations: Option<Vec<String>>,
    is_over: bool,
    next_number: u32,
    inputs: InputHistory,
    /// Datagrams without their headers.
    prepared: Vec<Vec<u8>>,
    /// Datagrams that the system has taken.
    pub written: u64,
}

enum Wire {
    Udp {
        netcode: Box<NetcodeClient>,
        socket: UdpSocket,
    },
    WebSocket {
        socket: Box<WebSocket<TcpStream>>,
        /// Datagrams of a message of which the system has not taken all.
        unwritten: u64,
        is_broken: bool,
    },
}

impl RawClient {
    /// Begins to connect. Says hello as soon as that is possible.
    pub fn open(target: Target, way: Way, fingerprint: u64, account: &str) -> io::Result<Self> {
        let wire = match way {
            Way::Udp => open_udp(target.udp)?,
            Way::WebSocket => open_websocket(target.ws)?,
        };
        let hello = Hello {
            wire_version: WIRE_VERSION,
            fingerprint,
            name: "Mallory".into(),
            game_version: String::new(),
            platform: "benchmark".into(),
            credentials: account.into(),
            intent: Intent::Join,
        };
        let mut bytes = Vec::new();
        serial::encode(&hello, &mut bytes).map_err(io::Error::other)?;
        Ok(Self {
            wire,
            acks: AckTracker::new(),
            renet: renet(),
            opened: Instant::now(),
            stepped: Instant::now(),
            hello: Some(bytes),
            welcome: None,
            registrations: None,
            is_over: false,
            next_number: 0,
            inputs: InputHistory::new(),
            prepared: Vec::new(),
            written: 0,
        })
    }

    /// What the server wants to hear in a hello: it tells who has registered other things what it has registered.
    pub fn ask_fingerprint(target: Target) -> io::Result<u64> {
        let mut client = Self::open(target, Way::WebSocket, 0, "")?;
        while client.step() {
            if let Some(registrations) = &client.registrations {
                return Ok(fingerprint(registrations.iter().map(String::as_str)));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(ErrorKind::TimedOut.into())
    }

    /// How long ago the server has let it in.
    pub fn time_in(&self) -> Option<Duration> {
        self.welcome.map(|(_, since)| since.elapsed())
    }

    /// Takes in what has come. Returns whether the link is still of use.
    pub fn step(&mut self) -> bool {
        let delta = self.stepped.elapsed();
        self.stepped += delta;
        self.renet.update(delta);
        for datagram in self.wire.receive(delta) {
            if self.take_datagram(&datagram).is_none() {
                self.is_over = true;
            }
        }
        if self.wire.is_open()
            && let Some(hello) = self.hello.take()
        {
            self.say_hello(hello);
        }
        self.written += self.wire.finish_writing();
        let is_ignored = self.welcome.is_none() && self.opened.elapsed() > PATIENCE;
        self.is_over |= self.wire.is_over() || is_ignored;
        !self.is_over
    }

    fn say_hello(&mut self, hello: Vec<u8>) {
        if let Wire::WebSocket { .. } = self.wire {
            let message = [&[CONTROL_CHANNEL], &hello[..]].concat();
            self.send([chunk(MESSAGE, &message)].iter());
        } else {
            self.renet.send_message(CONTROL_CHANNEL, hello);
            let packets = self.take_packets();
            self.send(packets.iter());
        }
    }

    fn take_datagram(&mut self, datagram: &[u8]) -> Option<()> {
        let (header, mut rest) = Header::decode(datagram)?;
        self.acks
            .handle_header(self.opened.elapsed(), header, |_| ());
        while let Some((&[kind, low, high], tail)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let (body, tail) = tail.split_at_checked(length)?;
            rest = tail;
            match (kind, body.split_first()) {
                (RENET, _) => self.renet.process_packet(body),
                (MESSAGE, Some((&CONTROL_CHANNEL, body))) => self.take_control(body)?,
                (GOODBYE, _) => return None,
                _ => {}
            }
        }
        while let Some(control) = self.renet.receive_message(CONTROL_CHANNEL) {
            self.take_control(&control)?;
        }
        // What is for the game is of no interest.
        (1..=3).for_each(|channel| while self.renet.receive_message(channel).is_some() {});
        Some(())
    }

    fn take_control(&mut self, control: &[u8]) -> Option<()> {
        match serial::decode(control).ok()? {
            Control::Welcome { tick, .. } => self.welcome = Some((tick, Instant::now())),
            Control::Mismatch { registrations, .. } => self.registrations = Some(registrations),
            _ => {}
        }
        Some(())
    }

    /// Sends so many full datagrams, as far as the system takes them.
    pub fn burden(&mut self, burden: Burden, datagrams: usize) {
        let Some((tick, since)) = self.welcome else {
            return;
        };
        if self.is_held_up() {
            return;
        }
        let is_stream = self.wire.is_stream();
        match burden {
            Burden::Inputs => {
                let tick = tick + Ticks((since.elapsed().as_secs_f64() * 60.0) as u32 + 3);
                self.prepared = vec![self.inputs_of(tick)];
            }
            // A stream has all of them in their order, each once.
            Burden::Messages { channel, id } if is_stream && channel != Channel::Unreliable => {
                self.prepared = self.message_chunks(channel, id, datagrams);
            }
            Burden::Messages { .. } if !self.prepared.is_empty() => {}
            Burden::Messages { channel, id } if is_stream => {
                self.prepared = self.message_chunks(channel, id, 1);
            }
            // What is reliable is sent again and again, as what the server has not taken.
            Burden::Messages { channel, id } => {
                self.prepared = self.message_packets(channel, id, datagrams);
            }
        }
        let prepared = std::mem::take(&mut self.prepared);
        self.send(prepared.iter().cycle().take(datagrams));
        self.prepared = prepared;
    }

    /// As many chunks of inputs as fit a datagram, each with those of several ticks, as honest ones have.
    fn inputs_of(&mut self, tick: Tick) -> Vec<u8> {
        if self.inputs.newest() != Some(tick) {
            let pilot = [tick.0 as u8 & 31, (tick.0 >> 2) as u8];
            let _ = self.inputs.push(tick, &pilot);
        }
        let mut message = Vec::new();
        let limits = EncodeLimits {
            max_inputs: 8,
            ..default()
        };
        self.inputs.encode(&mut message, limits);
        full_datagram(|| chunk(INPUTS, &message))
    }

    fn message_chunks(&mut self, channel: Channel, id: u16, datagrams: usize) -> Vec<Vec<u8>> {
        let mut message = || {
            let message = self.message(channel, id);
            chunk(MESSAGE, &[&[channel_id(channel)], &message[..]].concat())
        };
        (0..datagrams)
            .map(|_| full_datagram(&mut message))
            .collect()
    }

    fn message_packets(&mut self, channel: Channel, id: u16, datagrams: usize) -> Vec<Vec<u8>> {
        let to = channel_id(channel);
        let mut room = datagrams * FULL_DATAGRAM_BYTES;
        while room > 0 && self.renet.can_send_message(to, FULL_DATAGRAM_BYTES) {
            let message = self.message(channel, id);
            room = room.saturating_sub(message.len() + 2);
            self.renet.send_message(to, message);
        }
        self.take_packets()
    }

    /// A message as it travels: its number if it has one, its type, and what it says.
    fn message(&mut self, channel: Channel, id: u16) -> Vec<u8> {
        let number = self.next_number;
        self.next_number += 1;
        let mut bytes = Vec::new();
        let encoded = match channel {
            Channel::Unreliable => serial::encode(&(id, number), &mut bytes),
            _ => serial::encode(&(number, id, number), &mut bytes),
        };
        encoded.expect("three numbers can be encoded");
        bytes
    }

    fn take_packets(&mut self) -> Vec<Vec<u8>> {
        let packets = self.renet.get_packets_to_send();
        packets.iter().map(|packet| chunk(RENET, packet)).collect()
    }

    fn send<'a>(&mut self, datagrams: impl Iterator<Item = &'a Vec<u8>>) {
        let now = self.opened.elapsed();
        let with_header = |chunks: &Vec<u8>| {
            let header = self.acks.next_header(now).encode();
            [&header[..], chunks].concat()
        };
        self.written += self.wire.send(datagrams.map(with_header));
    }

    /// Whether the system takes no more at present: the server reads more slowly.
    pub fn is_held_up(&self) -> bool {
        matches!(self.wire, Wire::WebSocket { unwritten: 1.., .. })
    }

    /// Leaves as players do.
    pub fn leave(mut self) {
        self.send([chunk(GOODBYE, &[])].iter());
    }
}

fn full_datagram(mut chunk: impl FnMut() -> Vec<u8>) -> Vec<u8> {
    let mut chunks = chunk();
    while chunks.len() < FULL_DATAGRAM_BYTES - 50 {
        chunks.extend(chunk());
    }
    chunks
}

fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("less than a datagram");
    [&[kind], &length.to_le_bytes()[..], body].concat()
}

fn channel_id(channel: Channel) -> u8 {
    match channel {
        Channel::ReliableOrdered => 1,
        Channel::ReliableUnordered => 2,
        Channel::Unreliable => 3,
    }
}

/// As a client of ours has it.
fn renet() -> RenetClient {
    let channels = |max_memory_usage_bytes| -> Vec<_> {
        let resend_time = Duration::from_millis(200);
        (0..4)
            .map(|channel_id| ChannelConfig {
                channel_id,
                max_memory_usage_bytes,
                send_type: match channel_id {
                    3 => SendType::Unreliable,
                    2 => SendType::ReliableUnordered { resend_time },
                    _ => SendType::ReliableOrdered { resend_time },
                },
            })
            .collect()
    };
    let mut renet = RenetClient::new(ConnectionConfig {
        available_bytes_per_tick: UNACKNOWLEDGED_BYTES as u64,
        server_channels_config: channels(10 << 20),
        client_channels_config: channels(UNACKNOWLEDGED_BYTES),
    });
    renet.set_connected();
    renet
}

fn open_udp(server: SocketAddr) -> io::Result<Wire> {
    let socket = UdpSocket::bind(attacker())?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    let netcode = netcode_client(server, fastrand::u64(..)).map_err(io::Error::other)?;
    Ok(Wire::Udp {
        netcode: Box::new(netcode),
        socket,
    })
}

/// A client of netcode who has yet to send its request.
pub fn netcode_client(
    server_addr: SocketAddr,
    client_id: u64,
) -> Result<NetcodeClient, renetcode::NetcodeError> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let authentication = ClientAuthentication::Unsecure {
        protocol_id: DEFAULT_PROTOCOL_ID,
        client_id,
        server_addr,
        user_data: None,
    };
    NetcodeClient::new(now, authentication)
}

/// An address of an attacker's: any but the one that healthy clients have, since attackers have many, and who is banned
/// comes again from another. All of 127.0.0.0/8 leads to this machine.
pub fn attacker() -> SocketAddr {
    let address = Ipv4Addr::new(127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..));
    SocketAddr::new(address.into(), 0)
}

/// Connects from an [attacker's](attacker) address.
pub fn connect_tcp(server: SocketAddr) -> io::Result<TcpStream> {
    let patience = Duration::from_millis(500);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&attacker().into())?;
    socket.connect_timeout(&server.into(), patience)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn open_websocket(server: SocketAddr) -> io::Result<Wire> {
    let stream = connect_tcp(server)?;
    stream.set_nodelay(true)?;
    let mut request = format!("ws://{server}/")
        .into_client_request()
        .map_err(io::Error::other)?;
    let subprotocol = SUBPROTOCOL.parse().expect("letters and digits");
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", subprotocol);
    let config = WebSocketConfig::default().write_buffer_size(0);
    let (mut socket, _) = client_with_config(request, stream, Some(config))
        .map_err(|error| io::Error::other(error.to_string()))?;
    let claim = Credentials::Claim {
        client_id: fastrand::u64(..),
    };
    let auth = Bytes::from(encode_auth(DEFAULT_PROTOCOL_ID, &claim));
    socket
        .send(Message::Binary(auth))
        .map_err(io::Error::other)?;
    socket.get_mut().set_nonblocking(true)?;
    Ok(Wire::WebSocket {
        socket: Box::new(socket),
        unwritten: 0,
        is_broken: false,
    })
}

impl Wire {
    fn is_stream(&self) -> bool {
        matches!(self, Self::WebSocket { .. })
    }

    fn is_open(&self) -> bool {
        match self {
            Self::Udp { netcode, .. } => netcode.is_connected(),
            Self::WebSocket { .. } => true,
        }
    }

    fn is_over(&self) -> bool {
        match self {
            Self::Udp { netcode, .. } => netcode.is_disconnected(),
            Self::WebSocket { is_broken, .. } => *is_broken,
        }
    }

    fn receive(&mut self, delta: Duration) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        match self {
            Self::Udp { netcode, socket } => {
                let mut buffer = [0; 1_500];
                // Errors are complaints that nobody listens. Silence decides.
                while let Ok(length) = socket.recv(&mut buffer) {
                    let payload = netcode.process_packet(&mut buffer[..length]);
                    datagrams.extend(payload.map(<[u8]>::to_vec));
                }
                if let Some((packet, _)) = netcode.update(delta) {
                    let _ = socket.send(packet);
                }
            }
            Self::WebSocket {
                socket, is_broken, ..
            } => loop {
                match socket.read() {
                    Ok(Message::Binary(bytes)) if bytes[..] != MAGIC => {
                        let take = |head: &[u8], rest: &[u8]| datagrams.push([head, rest].concat());
                        *is_broken |=
                            frame::decode(&bytes, frame::Limits::FROM_SERVER, take).is_err();
                    }
                    Ok(_) => {}
                    Err(error) => {
                        *is_broken |= !would_block(&error);
                        break;
                    }
                }
            },
        }
        datagrams
    }

    /// Returns how many the system has taken.
    fn send(&mut self, datagrams: impl Iterator<Item = Vec<u8>>) -> u64 {
        match self {
            Self::Udp { netcode, socket } => datagrams
                .filter(|datagram| match netcode.generate_payload_packet(datagram) {
                    Ok((_, packet)) => socket.send(packet).is_ok(),
                    Err(_) => false,
                })
                .count() as u64,
            Self::WebSocket { unwritten: 1.., .. } => 0,
            Self::WebSocket {
                socket, unwritten, ..
            } => {
                let mut batch = Batch::default();
                datagrams.for_each(|datagram| batch.push(&datagram));
                if batch.is_empty() {
                    return 0;
                }
                *unwritten = batch.datagrams() as u64;
                // What the system does not take at once is kept, and an error that lasts comes again.
                let _ = socket.write(Message::Binary(batch.into_message(usize::MAX, 1)));
                self.finish_writing()
            }
        }
    }

    /// Tries again to write what is left. Returns how many datagrams the system has now taken.
    fn finish_writing(&mut self) -> u64 {
        let Self::WebSocket {
            socket,
            unwritten: unwritten @ 1..,
            is_broken,
        } = self
        else {
            return 0;
        };
        match socket.flush() {
            Ok(()) => std::mem::take(unwritten),
            Err(error) => {
                *is_broken |= !would_block(&error);
                0
            }
        }
    }
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == ErrorKind::WouldBlock)
}
