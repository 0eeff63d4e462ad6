//! The relay that other tests and `cargo proxy` break connections with.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use bevy_tandem::prelude::LinkConditions;
use support::relay::{Hole, Relay, RelayConditions, Route, Stalls};
use support::{PATIENCE, wait_for};

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Long enough to see that nothing comes.
const SILENCE: Duration = Duration::from_millis(150);

fn udp() -> UdpSocket {
    let socket = UdpSocket::bind(LOOPBACK).expect("a free port");
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    socket
}

/// A client, a server, and a relay between them.
struct Udp {
    relay: Relay,
    client: UdpSocket,
    server: UdpSocket,
}

impl Udp {
    fn new() -> Self {
        Self::with(RelayConditions::default())
    }

    fn with(conditions: RelayConditions) -> Self {
        let (client, server) = (udp(), udp());
        let route = Route {
            listen: LOOPBACK,
            server: server.local_addr().expect("bound"),
        };
        let relay = Relay::start_with(Some(route), None, conditions).expect("free ports");
        client
            .connect(relay.udp_addr().expect("udp"))
            .expect("loopback");
        Self {
            relay,
            client,
            server,
        }
    }

    /// What the server gets of a datagram, and from whom it comes.
    fn say(&self, what: u8) -> Option<(u8, SocketAddr)> {
        self.client.send(&[what]).expect("loopback");
        let mut buffer = [0; 4];
        let (length, from) = self.server.recv_from(&mut buffer).ok()?;
        assert_eq!(length, 1, "datagrams keep their length");
        Some((buffer[0], from))
    }

    /// Says it until the server gets it.
    fn say_until_heard(&self, what: u8) -> SocketAddr {
        wait_for("a datagram", || {
            self.say(what).filter(|&(got, _)| got == what)
        })
        .1
    }

    /// What the client gets of the server's answer.
    fn answer(&self, to: SocketAddr, what: u8) -> Option<u8> {
        self.server.send_to(&[what], to).expect("loopback");
        let mut buffer = [0; 4];
        self.client.recv(&mut buffer).ok().map(|_| buffer[0])
    }
}

#[test]
fn datagrams_pass_both_ways() {
    let net = Udp::new();
    let from = net.say_until_heard(1);
    assert_ne!(
        from,
        net.client.local_addr().expect("bound"),
        "as the relay's"
    );
    wait_for("an answer", || net.answer(from, 2).filter(|&got| got == 2));
}

#[test]
fn in_a_hole_datagrams_vanish_both_ways_and_later_pass_again() {
    let net = Udp::new();
    let from = net.say_until_heard(1);
    net.relay.set_hole(Hole::Both);
    assert_eq!(net.say(2), None, "to the server");
    assert_eq!(net.answer(from, 3), None, "from the server");
    net.relay.set_hole(Hole::None);
    assert_eq!(net.say_until_heard(4), from, "from the same port as before");
    assert!(net.relay.stats().dropped >= 2, "counted");
}

#[test]
fn a_rebound_client_comes_from_another_port_and_its_old_one_is_dead() {
    let net = Udp::new();
    let before = net.say_until_heard(1);
    net.relay.rebind();
    let after = net.say_until_heard(2);
    assert_ne!(before, after);
    wait_for("an answer", || net.answer(after, 3).filter(|&got| got == 3));
    assert_eq!(net.answer(before, 4), None, "sent to where the client was");
}

#[test]
fn what_is_lost_damaged_or_doubled_is_so_both_ways() {
    let conditions = |link, corruption| RelayConditions {
        link,
        corruption,
        stalls: None,
    };
    let lost = Udp::with(conditions(LinkConditions::blackhole(), 0.0));
    assert_eq!(lost.say(1), None);
    assert!(lost.relay.stats().dropped >= 1, "counted");

    let damaged = Udp::with(conditions(LinkConditions::default(), 1.0));
    let (got, from) = wait_for("a datagram", || damaged.say(0));
    assert_eq!(got.count_ones(), 1, "one bit is flipped");
    let got = wait_for("an answer", || damaged.answer(from, 0));
    assert_eq!(got.count_ones(), 1, "and on the way back");

    let twice = LinkConditions {
        duplication: 1.0,
        ..LinkConditions::default()
    };
    let doubled = Udp::with(conditions(twice, 0.0));
    doubled.say_until_heard(7);
    let mut buffer = [0; 4];
    let (length, _) = doubled.server.recv_from(&mut buffer).expect("a second one");
    assert_eq!(buffer[..length], [7]);
}

#[test]
fn what_is_delayed_takes_that_long_each_way() {
    let latency = Duration::from_millis(60);
    let link = LinkConditions {
        latency,
        ..LinkConditions::default()
    };
    let conditions = RelayConditions {
        link,
        ..RelayConditions::default()
    };
    let net = Udp::with(conditions.clone());
    let began = Instant::now();
    let from = net.say_until_heard(1);
    assert!(began.elapsed() >= latency, "to the server");
    let began = Instant::now();
    wait_for("an answer", || net.answer(from, 2));
    assert!(began.elapsed() >= latency, "and back");

    let (_relay, mut client, mut server) = tcp_with(conditions);
    let began = Instant::now();
    client.write_all(b"ping").expect("open");
    assert_eq!(read(&mut server, 4), b"ping");
    assert!(began.elapsed() >= latency, "over TCP, too");
    server.write_all(b"pong").expect("open");
    assert_eq!(read(&mut client, 4), b"pong");
    assert!(began.elapsed() >= 2 * latency);
    drop(client);
    assert_eq!(server.read(&mut [0; 4]).expect("a clean end"), 0);
}

#[test]
fn a_stalled_connection_stands_still_and_then_loses_nothing() {
    let ms = Duration::from_millis;
    let stalls = Stalls {
        every: ms(100),
        length: ms(40),
    };
    let left = |age, phase| stalls.left(ms(age), ms(phase)).as_millis();
    assert_eq!([left(9, 10), left(10, 10), left(40, 10)], [0, 40, 10]);
    assert_eq!([left(50, 10), left(110, 10), left(130, 10)], [0, 40, 20]);

    // It stands still nearly always.
    let conditions = RelayConditions {
        stalls: Some(Stalls {
            every: ms(60),
            length: ms(50),
        }),
        ..RelayConditions::default()
    };
    let (_relay, mut client, mut server) = tcp_with(conditions);
    let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let reader = thread::spawn(move || read(&mut server, 100_000));
    client.write_all(&sent).expect("open");
    assert_eq!(reader.join().expect("no panic"), sent);
}

/// Both ends of a connection through a relay.
fn tcp() -> (Relay, TcpStream, TcpStream) {
    tcp_with(RelayConditions::default())
}

fn tcp_with(conditions: RelayConditions) -> (Relay, TcpStream, TcpStream) {
    let listener = TcpListener::bind(LOOPBACK).expect("a free port");
    let route = Route {
        listen: LOOPBACK,
        server: listener.local_addr().expect("bound"),
    };
    let relay = Relay::start_with(None, Some(route), conditions).expect("free ports");
    let client = TcpStream::connect(relay.tcp_addr().expect("tcp")).expect("listening");
    let (server, _) = listener.accept().expect("a connection");
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    }
    (relay, client, server)
}

fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("the bytes");
    bytes
}

#[test]
fn connections_pass_both_ways_and_end_for_both() {
    let (_relay, mut client, mut server) = tcp();
    client.write_all(b"ping").expect("open");
    assert_eq!(read(&mut server, 4), b"ping");
    server.write_all(b"pong").expect("open");
    assert_eq!(read(&mut client, 4), b"pong");
    drop(client);
    assert_eq!(server.read(&mut [0; 4]).expect("a clean end"), 0);
}

#[test]
fn in_a_hole_a_connection_stays_open_and_later_loses_nothing() {
    let (relay, mut client, mut server) = tcp();
    client.write_all(b"before").expect("open");
    assert_eq!(read(&mut server, 6), b"before");

    relay.set_hole(Hole::Both);
    client
        .write_all(b"during")
        .expect("open, as far as anybody knows");
    server.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let error = server.read(&mut [0; 8]).expect_err("nothing arrives");
    assert!(matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));

    relay.set_hole(Hole::None);
    server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client.write_all(b" after").expect("open");
    assert_eq!(read(&mut server, 12), b"during after");
}

#[test]
fn a_hole_from_the_server_lets_clients_be_heard() {
    let (relay, mut client, mut server) = tcp();
    relay.set_hole(Hole::FromServer);
    client.write_all(b"up").expect("open");
    assert_eq!(read(&mut server, 2), b"up");
    server.write_all(b"down").expect("open, as far as it knows");
    client.set_read_timeout(Some(SILENCE)).expect("a timeout");
    client.read(&mut [0; 8]).expect_err("nothing arrives");
    relay.set_hole(Hole::None);
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert_eq!(read(&mut client, 4), b"down");
}

#[test]
fn a_hole_holds_little_of_what_is_sent_into_it() {
    let (relay, mut client, mut server) = tcp();
    client.write_all(b"x").expect("open");
    read(&mut server, 1);
    relay.set_hole(Hole::Both);
    client.set_nonblocking(true).expect("a mode");
    let (mut sent, mut stuck) = (0, 0);
    while stuck < 20 && sent < 64 << 20 {
        match client.write(&[7; 1 << 16]) {
            Ok(length) => (sent, stuck) = (sent + length, 0),
            Err(_) => {
                stuck += 1;
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
    // Most of it in the client's own buffer, which the system lets grow to some megabytes.
    assert!(sent < 16 << 20, "{sent} bytes fit into a hole");
}

#[test]
fn a_cut_resets_both_sides() {
    let (relay, mut client, mut server) = tcp();
    client.write_all(b"x").expect("open");
    read(&mut server, 1);
    relay.cut();
    for stream in [&mut client, &mut server] {
        let error = stream.read(&mut [0; 4]).expect_err("no clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(relay.stats().cut, 1);
}
