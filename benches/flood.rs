//! Floods of several kinds against a server of the arena on which 32 healthy bots play, half of them over UDP and half
//! over WebSocket.
//!
//!     cargo bench --bench flood [-- --clients N --seconds S --only K]
//!
//! Server, bots and flooder are processes of their own; the flooder gives way to the others (`nice 19`), since the
//! attackers of a real server do not run on it. So on a machine with few cores, what limits the flood is what the others
//! leave. On loopback, nobody is limited by address: it is as if each connection of the attackers came from another one.
//!
//! For each flood: how much came, the server's p99 tick beside that of the calm just before, its processor time and memory,
//! the lines in its log, whether the healthy clients noticed, and how long others took meanwhile to join, and to resume
//! after their link was cut: one over UDP, and one over WebSocket.
//!
//! The last three are by clients that say hello as they should, and then send full datagrams: 100 times as many as
//! transports let through, if the flooder's share of the processors allows. Each has at least 38 messages of inputs or 15
//! others, so that what is let through is also 100 times what a session may send. Who is disconnected or banned connects
//! again, from another address, with the same account. What is counted is what the system took, and a server does not read all that comes over a
//! WebSocket. Each of them has an account, so that whoever offends a third time is banned, and knocks in vain from then on.
#![allow(unsafe_code, reason = "lets the flood go last")]

// The arena's modules bring their tests along, which come to nothing here.
#[allow(unused_imports)]
#[path = "../examples/arena/game.rs"]
mod arena_game;
#[allow(dead_code, unused_imports)]
#[path = "../examples/support/args.rs"]
mod args;
#[path = "../examples/arena/brain.rs"]
mod brain;
#[allow(unused_imports)]
#[path = "../examples/arena/crowd.rs"]
mod crowd;
#[path = "../examples/arena/host.rs"]
mod host;
#[allow(unused_imports)]
#[path = "../examples/arena/ledger.rs"]
mod ledger;
#[allow(unused_imports)]
#[path = "../examples/arena/map.rs"]
mod map;
#[path = "support/raw.rs"]
mod raw;
mod support;
#[path = "support/arena.rs"]
mod support_arena;

/// The arena's, and a message that may be lost, of which it has none.
mod game {
    use bevy::prelude::*;
    use bevy_tandem::prelude::*;
    use serde::{Deserialize, Serialize};

    pub use crate::arena_game::*;

    #[derive(Clone, Copy, Debug, Serialize, Deserialize)]
    pub struct Shout {
        pub number: u32,
    }

    pub fn game(app: &mut App) {
        crate::arena_game::game(app);
        app.protocol().add_message::<Shout>(Channel::Unreliable);
    }
}

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::ops::AddAssign;
use std::thread;
use std::time::{Duration, Instant};

use bevy::prelude::*;
use bevy_tandem::client::ResumeFinished;
use bevy_tandem::prelude::*;
use bevy_tandem::transport::udp::UdpClientConfig;
use bevy_tandem::transport::ws::frame::{Credentials, SUBPROTOCOL, encode_auth};
use bevy_tandem::transport::ws::{DEFAULT_PROTOCOL_ID, WsClientConfig};
use serde_json::json;

use ledger::{Ledger, LedgerPlugin, UNDER_WAY};
use raw::{Burden, RawClient, Target, Way, attacker, connect_tcp, netcode_client};
use support::{Child, Options, Verdict, allow_many_files, commands, reply, role};
use support_arena::{Arena, ArenaReport, be_bots, be_server, bots_report, start_bots};

/// Connections that a flood keeps open at a time: more than a server lets one address have.
const CONNECTIONS: usize = 400;
/// Clients that send too much, over each transport.
const RUDE_CLIENTS: usize = 4;
/// What each of them sends: 100 times the 400 that transports let through.
const RUDE_DATAGRAMS_PER_S: f64 = 40_000.0;
/// Datagrams that they send at most between two looks at what has come: as many as fit one message of a WebSocket.
const RUDE_BURST: usize = 40;
/// The places of messages among those that are registered.
const PING: u16 = 1;
const SHOUT: u16 = 3;
const MIB: f64 = 1_048_576.0;
const PAUSE: Duration = Duration::from_secs(2);
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / 60);
/// Within so long one joins or comes back, whatever happens.
const PATIENCE: Duration = Duration::from_secs(20);

/// A kind of flood. Returns how much was sent.
type Flood = fn(Target, Instant) -> String;

const FLOODS: [(&str, Flood); 8] = [
    ("junk datagrams", junk),
    ("netcode requests without a second step", half_netcode),
    ("half-open TCP connections", half_open_tcp),
    ("WebSocket handshakes without a second step", half_websocket),
    ("oversized WebSocket frames", oversized_frames),
    ("clients with 100 times the allowed inputs", rude_inputs),
    (
        "clients with 100 times the allowed unreliable messages",
        rude_unreliable,
    ),
    (
        "clients with 100 times the allowed reliable messages",
        rude_reliable,
    ),
];

fn main() {
    allow_many_files();
    match role() {
        Some((role, args)) if role == "server" => be_server(&args),
        Some((role, args)) if role == "bots" => be_bots(&args),
        Some((_, args)) => be_flooder(&args),
        None => run(&Options::get()),
    }
}

fn run(options: &Options) {
    let clients = options.number("--clients", 32, 4);
    let length = Duration::from_secs(options.number("--seconds", 30, 2));
    let mut verdict = Verdict::default();
    let mut server = Arena::start(Some(10));
    let mut bots = start_bots(&server, clients, "mixed");
    let mut flooder = Child::start("flooder", &[server.udp.to_string(), server.ws.to_string()]);
    let mut visitors = Visitors::default();
    visitors.join(&server);
    let deadline = Instant::now() + Duration::from_secs(60);
    while bots_report(&mut bots).connected < clients as u64 {
        assert!(Instant::now() < deadline, "the bots do not connect");
        visitors.play(Duration::from_millis(200));
    }

    println!(
        "| flood | sent | rejected by the server | p99 tick in the calm before, in the flood | | worst | server CPU | memory before, \
         after | log lines | snapshots/s of a healthy client | their disconnects | limits: disconnects, bans | \
         to join: UDP, WebSocket | to resume |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    let only = options.number("--only", 0, 0);
    for (at, (name, _)) in FLOODS.iter().enumerate() {
        if only != 0 && only != at as u64 + 1 {
            continue;
        }
        visitors.play(PAUSE);
        server.report();
        let end = Instant::now() + length;
        visitors.watch(&mut server, length, || {
            (Instant::now() >= end).then_some(())
        });
        let calm = server.report();
        visitors.send_newcomers_away(&mut verdict);
        server.report();
        let bots_before = bots_report(&mut bots);
        let lost_links = visitors.disconnects();
        let started = Instant::now();
        let line: (usize, u64) = (at, length.as_millis() as u64);
        flooder.say(&json!(line).to_string());
        let Watch {
            told: sent,
            joined,
            resumed,
            peak_bytes: peak,
        } = visitors.watch(&mut server, length, || flooder.overhear());
        let seconds = started.elapsed().as_secs_f64();
        let flood = server.report();
        let bots_after = bots_report(&mut bots);
        let disconnects = bots_after.disconnects - bots_before.disconnects
            + (visitors.disconnects() - lost_links);
        let log_lines = flood.log_lines - calm.log_lines;
        let limits = |of: &str| {
            let count = |report: &ArenaReport| report.whole["limits"][of].as_u64().unwrap_or(0);
            count(&flood) - count(&calm)
        };
        println!(
            "| {name} | {sent} | {} | {:.2}, {:.2} ms | {:+.0} % | {:.2}, {:.2} ms | {:.0} % | {:.1}, {:.1} MiB | {log_lines} | {:.1} | \
             {disconnects} | {}, {} | {} | {} |",
            rejected(&flood) - rejected(&calm),
            calm.tick_p99_ms,
            flood.tick_p99_ms,
            (flood.tick_p99_ms / calm.tick_p99_ms - 1.0) * 100.0,
            calm.tick_max_ms,
            flood.tick_max_ms,
            flood.cpu_s / seconds * 100.0,
            calm.rss_bytes / MIB,
            flood.rss_bytes / MIB,
            (bots_after.snapshots - bots_before.snapshots) as f64 / clients as f64 / seconds,
            limits("disconnects"),
            limits("bans"),
            in_ms(&joined),
            in_ms(&resumed),
        );
        verdict.expect_p99(name, calm.tick_p99_ms, flood.tick_p99_ms);
        verdict.demand(
            disconnects == 0,
            &format!("{name}: {disconnects} healthy clients were disconnected"),
        );
        let grown = (peak.max(flood.rss_bytes) - calm.rss_bytes) / MIB;
        verdict.demand(
            grown <= 32.0,
            &format!("{name}: memory grew by {grown:.1} MiB"),
        );
        verdict.demand(
            log_lines <= 100,
            &format!("{name}: {log_lines} lines in the log"),
        );
        let all = joined.iter().chain(&resumed);
        verdict.demand(
            all.clone().all(Option::is_some),
            &format!("{name}: not everybody could join and resume"),
        );
        visitors.send_newcomers_away(&mut verdict);
    }
    visitors.play(UNDER_WAY);
    let last = server.report();
    let bots_last = bots_report(&mut bots);
    println!(
        "limits broken: {}; healthy clients: {} disconnects, {} links resumed; of their reliable messages, {} lost, {} \
         duplicated, {} reordered",
        last.whole["limits"],
        bots_last.disconnects,
        bots_last.resumed,
        bots_last.lost,
        bots_last.duplicated,
        bots_last.reordered
    );
    let astray = bots_last.astray() + visitors.astray();
    verdict.demand(
        astray == 0,
        &format!("{astray} reliable messages of healthy clients went astray"),
    );
    server.process.say("quit");
    verdict.conclude(options);
}

fn in_ms(durations: &[Option<Duration>]) -> String {
    let in_ms = |it: &Option<Duration>| it.map_or("never".into(), |it| it.as_millis().to_string());
    let all: Vec<String> = durations.iter().map(in_ms).collect();
    all.join(", ") + " ms"
}

/// Healthy clients of this process, in pairs of one over UDP and one over WebSocket: the first stay, and others come for
/// the length of a flood.
#[derive(Default)]
struct Visitors(Vec<App>);

/// What became of a visitor.
#[derive(Resource, Default)]
struct Fate {
    disconnects: u64,
    /// How long the last resume took.
    resumed: Option<Duration>,
}

/// What happened meanwhile.
struct Watch<T> {
    told: T,
    /// How long it took the newcomers to join, and the others to resume.
    joined: [Option<Duration>; 2],
    resumed: [Option<Duration>; 2],
    /// The most memory that the server had.
    peak_bytes: f64,
}

impl Visitors {
    /// Runs them for so long.
    fn play(&mut self, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.frame();
        }
    }

    fn frame(&mut self) {
        self.0.iter_mut().for_each(App::update);
        thread::sleep(FRAME);
    }

    /// Two join and two come back, as much in a calm as in a flood, so that these differ in nothing else. Goes on until
    /// `over` tells something.
    fn watch<T>(
        &mut self,
        server: &mut Arena,
        length: Duration,
        mut over: impl FnMut() -> Option<T>,
    ) -> Watch<T> {
        let mut peak_bytes: f64 = 0.0;
        self.play(length / 4);
        let joined = self.join(server);
        let resumed = self.cut();
        loop {
            if let Some(told) = over() {
                return Watch {
                    told,
                    joined,
                    resumed,
                    peak_bytes,
                };
            }
            self.play(Duration::from_millis(500));
            peak_bytes = server.peek().rss_bytes.max(peak_bytes);
        }
    }

    /// Two more join. Returns how long each took, if they are in.
    fn join(&mut self, server: &Arena) -> [Option<Duration>; 2] {
        let first = self.0.len();
        let over_udp = ClientConfig {
            udp: Some(UdpClientConfig::insecure(server.udp).auth),
            ..default()
        };
        let over_websocket = ClientConfig {
            websocket: Some(WsClientConfig::new(format!("ws://{}", server.ws))),
            ..default()
        };
        self.0.extend([over_udp, over_websocket].map(visitor));
        self.await_pair(first, |app, since| {
            let connection = app.world().resource::<Connection>();
            (connection.state() == ConnectionState::Connected).then(|| since.elapsed())
        })
    }

    /// Cuts the links of the first two. Returns how long each took to come back, if they have.
    fn cut(&mut self) -> [Option<Duration>; 2] {
        for app in &mut self.0[..2] {
            app.world_mut().resource_mut::<Fate>().resumed = None;
            app.world_mut().cut_link();
        }
        self.await_pair(0, |app, _| app.world().resource::<Fate>().resumed)
    }

    /// Runs all until two of them are done.
    fn await_pair(
        &mut self,
        first: usize,
        done: impl Fn(&App, Instant) -> Option<Duration>,
    ) -> [Option<Duration>; 2] {
        let started = Instant::now();
        let mut took = [None; 2];
        while took.contains(&None) && started.elapsed() < PATIENCE {
            self.frame();
            for (took, app) in took.iter_mut().zip(&self.0[first..]) {
                *took = took.or_else(|| done(app, started));
            }
        }
        took
    }

    /// All but the first two leave.
    fn send_newcomers_away(&mut self, verdict: &mut Verdict) {
        self.0[2..]
            .iter_mut()
            .for_each(|app| app.world_mut().resource_mut::<Ledger>().is_closed = true);
        self.play(UNDER_WAY);
        let newcomers = Self(self.0.split_off(2));
        let astray = newcomers.astray();
        verdict.demand(
            astray == 0,
            &format!("{astray} reliable messages of newcomers went astray"),
        );
        for mut app in newcomers.0 {
            app.world_mut().trigger(Disconnect);
            app.update();
        }
    }

    fn disconnects(&self) -> u64 {
        let of = |app: &App| app.world().resource::<Fate>().disconnects;
        self.0.iter().map(of).sum()
    }

    /// Reliable messages that did not come once and in order.
    fn astray(&self) -> u64 {
        let of = |app: &App| {
            let ledger = app.world().resource::<Ledger>();
            let now = app.world().resource::<Time<Real>>().elapsed();
            ledger.lost(now) + ledger.duplicated + ledger.reordered
        };
        self.0.iter().map(of).sum()
    }
}

fn visitor(config: ClientConfig) -> App {
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        TandemClientPlugins::with_config(config).named("Visitor"),
        game::game,
        LedgerPlugin,
    ))
    .init_resource::<Fate>()
    .add_observer(|end: On<Disconnected>, mut fate: ResMut<Fate>| {
        fate.disconnects += u64::from(end.reason != DisconnectReason::ClientLeft);
    })
    .add_observer(|done: On<ResumeFinished>, mut fate: ResMut<Fate>| {
        fate.resumed = Some(done.took);
    });
    app.finish();
    app.cleanup();
    app
}

/// Datagrams and connections that a server turned away since its start.
fn rejected(report: &ArenaReport) -> u64 {
    let of = |name: &str| report.whole["transports"][name]["datagrams_rejected"].as_u64();
    of("udp").unwrap_or(0) + of("websocket").unwrap_or(0)
}

/// The role `flooder`: does one flood for each line with its number and length in milliseconds.
fn be_flooder(args: &[String]) {
    // SAFETY: takes and returns plain numbers.
    unsafe { libc::nice(19) };
    let target = Target {
        udp: args[0].parse().expect("an address"),
        ws: args[1].parse().expect("an address"),
    };
    let commands = commands();
    while let Ok(line) = commands.recv() {
        let (flood, millis): (usize, u64) = serde_json::from_str(&line).expect("two numbers");
        let end = Instant::now() + Duration::from_millis(millis);
        reply(&FLOODS[flood].1(target, end));
    }
}

/// Random bytes of all lengths, as fast as the system takes them, from several ports.
fn junk(target: Target, end: Instant) -> String {
    let sockets: Vec<_> = (0..64).map(|_| udp()).collect();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut noise = vec![0; 1 << 16];
    rng.fill(&mut noise);
    let mut sent = 0;
    while Instant::now() < end {
        for socket in &sockets {
            let length = rng.usize(1..1_400);
            let from = rng.usize(..noise.len() - length);
            sent += u64::from(
                socket
                    .send_to(&noise[from..from + length], target.udp)
                    .is_ok(),
            );
        }
    }
    format!("{sent} datagrams")
}

/// Valid requests to connect, each of another client, whose challenge nobody answers.
fn half_netcode(target: Target, end: Instant) -> String {
    let sockets: Vec<_> = (0..256).map(|_| udp()).collect();
    let requests: Vec<Vec<u8>> = (0..4_096)
        .filter_map(|client_id| {
            let mut client = netcode_client(target.udp, 1 << 40 | client_id).ok()?;
            let (packet, _) = client.update(Duration::ZERO)?;
            Some(packet.to_vec())
        })
        .collect();
    let mut sent = 0;
    while Instant::now() < end {
        for (request, socket) in requests.iter().zip(sockets.iter().cycle()) {
            sent += u64::from(socket.send_to(request, target.udp).is_ok());
        }
    }
    format!("{sent} requests")
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind(attacker()).expect("a free port");
    socket.set_nonblocking(true).expect("a mode");
    socket
}

/// Keeps many connections, and lets `begin` say something on each new one. One that the server has closed is replaced.
fn keep_open(
    target: Target,
    end: Instant,
    begin: impl Fn(&mut TcpStream, &mut fastrand::Rng) -> io::Result<()>,
) -> u64 {
    let mut rng = fastrand::Rng::with_seed(2);
    let mut open: Vec<TcpStream> = Vec::new();
    let mut begun = 0;
    while Instant::now() < end {
        open.retain_mut(is_open);
        if open.len() >= CONNECTIONS {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        let Ok(mut stream) = connect_tcp(target.ws) else {
            continue;
        };
        begun += 1;
        if begin(&mut stream, &mut rng).is_ok() && stream.set_nonblocking(true).is_ok() {
            open.push(stream);
        }
    }
    begun
}

fn is_open(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 256]) {
        Ok(length) => length > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn half_open_tcp(target: Target, end: Instant) -> String {
    let begun = keep_open(target, end, |_, _| Ok(()));
    format!("{begun} connections")
}

fn half_websocket(target: Target, end: Instant) -> String {
    let begun = keep_open(target, end, |stream, _| upgrade(stream));
    format!("{begun} handshakes")
}

/// Links that open as they should, and then announce more than anybody may send.
fn oversized_frames(target: Target, end: Instant) -> String {
    let begun = keep_open(target, end, |stream, rng| {
        upgrade(stream)?;
        let credentials = Credentials::Claim {
            client_id: rng.u64(..),
        };
        send_frame(
            stream,
            &encode_auth(DEFAULT_PROTOCOL_ID, &credentials),
            None,
        )?;
        // Sometimes a length alone, and sometimes as much as the server lets through of a megabyte.
        let claimed = if rng.bool() { 1 << 40 } else { 1 << 20 };
        send_frame(stream, &[7; 1 << 16], Some(claimed))
    });
    format!("{begun} frames")
}

/// Asks for a WebSocket, and reads the answer.
fn upgrade(stream: &mut TcpStream) -> io::Result<()> {
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n",
        stream.peer_addr()?
    )?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    if answer.starts_with(b"HTTP/1.1 101") {
        Ok(())
    } else {
        Err(ErrorKind::ConnectionRefused.into())
    }
}

/// A binary frame, of which the header may claim another length.
fn send_frame(stream: &mut TcpStream, body: &[u8], claimed: Option<u64>) -> io::Result<()> {
    let length = claimed.unwrap_or(body.len() as u64);
    let mut frame = vec![0x82, 0x80 | 127];
    frame.extend(length.to_be_bytes());
    // Masked with zeros, which change nothing.
    frame.extend([0; 4]);
    frame.extend(body);
    stream.write_all(&frame)
}

fn rude_inputs(target: Target, end: Instant) -> String {
    be_rude(target, end, Burden::Inputs)
}

fn rude_unreliable(target: Target, end: Instant) -> String {
    let (channel, id) = (Channel::Unreliable, SHOUT);
    be_rude(target, end, Burden::Messages { channel, id })
}

fn rude_reliable(target: Target, end: Instant) -> String {
    let (channel, id) = (Channel::ReliableOrdered, PING);
    be_rude(target, end, Burden::Messages { channel, id })
}

/// Clients that are let in, and then send far too much. Counts what the system took to send.
fn be_rude(target: Target, end: Instant, burden: Burden) -> String {
    let fingerprint = match RawClient::ask_fingerprint(target) {
        Ok(fingerprint) => fingerprint,
        Err(error) => return format!("nothing: {error}"),
    };
    let started = Instant::now();
    let sent = [("UDP", Way::Udp), ("WebSocket", Way::WebSocket)].map(|(name, way)| {
        let clients = (0..RUDE_CLIENTS).map(|number| {
            let account = format!("{burden:?} over {name}, {number}");
            thread::spawn(move || be_one_rude(target, end, way, fingerprint, &account, burden))
        });
        (name, clients.collect::<Vec<_>>())
    });
    let told = sent.map(|(name, clients)| {
        let mut sum = Sent::default();
        for client in clients {
            sum += client.join().expect("no panic");
        }
        let allowed_while = |seconds: f64| sum.datagrams as f64 / (seconds * 400.0);
        format!(
            "{} datagrams over {} {name} links ({:.0} times, {:.0} while they were in)",
            sum.datagrams,
            sum.links,
            allowed_while(RUDE_CLIENTS as f64 * started.elapsed().as_secs_f64()),
            allowed_while(sum.time_in.as_secs_f64()),
        )
    });
    told.join(", ")
}

/// What a client sent.
#[derive(Default)]
struct Sent {
    datagrams: u64,
    /// Over how many links on which it was let in, one after the other, and for how long it was in.
    links: u64,
    time_in: Duration,
}

impl AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.links += other.links;
        self.time_in += other.time_in;
    }
}

fn be_one_rude(
    target: Target,
    end: Instant,
    way: Way,
    fingerprint: u64,
    account: &str,
    burden: Burden,
) -> Sent {
    let started = Instant::now();
    let mut sent = Sent::default();
    while Instant::now() < end {
        let Ok(mut client) = RawClient::open(target, way, fingerprint, account) else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        while client.step() && Instant::now() < end {
            // What it could not send while it connected, it makes up for.
            let due = started.elapsed().as_secs_f64() * RUDE_DATAGRAMS_PER_S;
            let due = (due as u64).saturating_sub(sent.datagrams + client.written) as usize;
            if client.time_in().is_none() || client.is_held_up() || due == 0 {
                thread::sleep(Duration::from_micros(500));
            } else {
                client.burden(burden, due.min(RUDE_BURST));
            }
        }
        sent += Sent {
            datagrams: client.written,
            links: u64::from(client.time_in().is_some()),
            time_in: client.time_in().unwrap_or_default(),
        };
        client.leave();
    }
    sent
}
