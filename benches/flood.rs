//! Floods of several kinds against a server of the arena on which 32 healthy bots play, half of them over UDP and half
//! over WebSocket.
//!
//!     cargo bench --bench flood [-- --clients N --seconds S]
//!
//! Server, bots and flooder are processes of their own; the flooder gives way to the others (`nice 19`), since the
//! attackers of a real server do not run on it. So on a machine with few cores, what limits the flood is what the others
//! leave.
//!
//! For each flood: how much came, the server's p99 tick beside that of the calm just before, its processor time and memory,
//! the lines in its log, and whether the healthy clients noticed.

// The arena's modules bring their tests along, which come to nothing here.
#[path = "../examples/arena/brain.rs"]
mod brain;
#[allow(unused_imports)]
#[path = "../examples/arena/crowd.rs"]
mod crowd;
#[allow(unused_imports)]
#[path = "../examples/arena/game.rs"]
mod game;
#[path = "../examples/arena/host.rs"]
mod host;
#[allow(unused_imports)]
#[path = "../examples/arena/ledger.rs"]
mod ledger;
#[allow(unused_imports)]
#[path = "../examples/arena/map.rs"]
mod map;
mod support;
#[path = "support/arena.rs"]
mod support_arena;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::transport::udp::UdpClientConfig;
use bevy_tandem::transport::ws::DEFAULT_PROTOCOL_ID;
use bevy_tandem::transport::ws::frame::{Credentials, SUBPROTOCOL, encode_auth};
use renetcode::{ClientAuthentication, NetcodeClient};
use serde_json::json;

use game::Ping;
use support::{Child, Options, allow_many_files, commands, reply, role};
use support_arena::{Arena, be_bots, be_server, bots_report, start_bots};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Connections that a flood keeps open at a time: more than a server lets one address have.
const CONNECTIONS: usize = 400;
const PAUSE: Duration = Duration::from_secs(2);

/// A kind of flood. Returns how much was sent, in its own unit.
type Flood = fn(&Target, Instant) -> u64;

const FLOODS: [(&str, &str, Flood); 6] = [
    ("junk datagrams", "datagrams", junk),
    (
        "netcode requests without a second step",
        "requests",
        half_netcode,
    ),
    ("half-open TCP connections", "connections", half_open_tcp),
    (
        "WebSocket handshakes without a second step",
        "handshakes",
        half_websocket,
    ),
    ("oversized WebSocket frames", "frames", oversized_frames),
    // The last, since those who do this are banned, and everybody here has one address.
    (
        "valid clients at 100 times the allowed rate",
        "messages",
        chatter,
    ),
];

#[derive(Clone, Copy)]
struct Target {
    udp: SocketAddr,
    ws: SocketAddr,
}

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
    let length = Duration::from_secs(options.number("--seconds", 15, 2));
    let mut server = Arena::start(Some(10));
    let mut bots = start_bots(&server, clients, "mixed");
    let mut flooder = Child::start("flooder", &[server.udp.to_string(), server.ws.to_string()]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while bots_report(&mut bots).connected < clients as u64 {
        assert!(Instant::now() < deadline, "the bots do not connect");
        thread::sleep(Duration::from_millis(200));
    }

    println!(
        "| flood | sent | rejected by the server | p99 tick in the calm before, in the flood | | server CPU | memory before, \
         after | log lines | snapshots/s of a healthy client | their disconnects |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    for (at, (name, unit, _)) in FLOODS.iter().enumerate() {
        thread::sleep(PAUSE);
        server.report();
        thread::sleep(length);
        let calm = server.report();
        let bots_before = bots_report(&mut bots);
        let started = Instant::now();
        let line: (usize, u64) = (at, length.as_millis() as u64);
        let sent = flooder.ask(&json!(line).to_string()).as_u64().unwrap_or(0);
        let seconds = started.elapsed().as_secs_f64();
        let flood = server.report();
        let bots_after = bots_report(&mut bots);
        println!(
            "| {name} | {sent} {unit} | {} | {:.2}, {:.2} ms | {:+.0} % | {:.0} % | {:.1}, {:.1} MiB | {} | {:.1} | {} |",
            rejected(&flood) - rejected(&calm),
            calm.tick_p99_ms,
            flood.tick_p99_ms,
            (flood.tick_p99_ms / calm.tick_p99_ms - 1.0) * 100.0,
            flood.cpu_s / seconds * 100.0,
            calm.rss_bytes / 1048576.0,
            flood.rss_bytes / 1048576.0,
            flood.log_lines - calm.log_lines,
            (bots_after.snapshots - bots_before.snapshots) as f64 / clients as f64 / seconds,
            bots_after.disconnects - bots_before.disconnects,
        );
    }
    let last = server.report();
    let bots_last = bots_report(&mut bots);
    println!(
        "limits broken: {}; healthy clients: {} disconnects, {} links resumed, {} reliable messages lost",
        last.whole["limits"], bots_last.disconnects, bots_last.resumed, bots_last.lost
    );
    server.process.say("quit");
}

/// Datagrams and connections that a server turned away since its start.
fn rejected(report: &support_arena::ArenaReport) -> u64 {
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
        let sent = FLOODS[flood].2(&target, end);
        reply(&sent.to_string());
    }
}

/// Random bytes of all lengths, as fast as the system takes them, from several ports.
fn junk(target: &Target, end: Instant) -> u64 {
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
    sent
}

/// Valid requests to connect, each of another client, whose challenge nobody answers.
fn half_netcode(target: &Target, end: Instant) -> u64 {
    let sockets: Vec<_> = (0..256).map(|_| udp()).collect();
    let requests: Vec<Vec<u8>> = (0..4_096)
        .filter_map(|client_id| {
            let authentication = ClientAuthentication::Unsecure {
                protocol_id: DEFAULT_PROTOCOL_ID,
                client_id: 1 << 40 | client_id,
                server_addr: target.udp,
                user_data: None,
            };
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            let mut client = NetcodeClient::new(now, authentication).ok()?;
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
    sent
}

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind(LOOPBACK).expect("a free port");
    socket.set_nonblocking(true).expect("a mode");
    socket
}

/// Keeps many connections, and lets `begin` say something on each new one. One that the server has closed is replaced.
fn keep_open(
    target: &Target,
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
        let Ok(mut stream) = TcpStream::connect_timeout(&target.ws, Duration::from_millis(500))
        else {
            continue;
        };
        let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
        let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
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

fn half_open_tcp(target: &Target, end: Instant) -> u64 {
    keep_open(target, end, |_, _| Ok(()))
}

fn half_websocket(target: &Target, end: Instant) -> u64 {
    keep_open(target, end, |stream, _| upgrade(stream))
}

/// Links that open as they should, and then announce more than anybody may send.
fn oversized_frames(target: &Target, end: Instant) -> u64 {
    keep_open(target, end, |stream, rng| {
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
    })
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

/// Real clients that write a hundred times as many messages as they may: 6,000 a second each.
fn chatter(target: &Target, end: Instant) -> u64 {
    let mut apps: Vec<App> = (0..4)
        .map(|number| {
            let mut app = App::new();
            app.add_plugins((
                MinimalPlugins,
                TandemClientPlugins::with_config(ClientConfig {
                    udp: Some(UdpClientConfig::insecure(target.udp).auth),
                    name: format!("Chatter {number}"),
                    ..default()
                }),
                game::game,
            ));
            app.finish();
            app.cleanup();
            app
        })
        .collect();
    let mut sent = 0;
    while Instant::now() < end {
        for app in &mut apps {
            let world = app.world_mut();
            if world.resource::<Connection>().state() == ConnectionState::Connected {
                for number in 0..100 {
                    world.write_message(ToServer(Ping { number }));
                    sent += 1;
                }
            }
            app.update();
        }
        thread::sleep(Duration::from_millis(16));
    }
    sent
}
