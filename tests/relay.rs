//! The relay that other tests and `cargo proxy` break connections with.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use support::relay::{Relay, Route};
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
        let (client, server) = (udp(), udp());
        let route = Route {
            listen: LOOPBACK,
            server: server.local_addr().expect("bound"),
        };
        let relay = Relay::start(Some(route), None).expect("free ports");
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
    net.relay.set_hole(true);
    assert_eq!(net.say(2), None, "to the server");
    assert_eq!(net.answer(from, 3), None, "from the server");
    net.relay.set_hole(false);
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

/// Both ends of a connection through a relay.
fn tcp() -> (Relay, TcpStream, TcpStream) {
    let listener = TcpListener::bind(LOOPBACK).expect("a free port");
    let route = Route {
        listen: LOOPBACK,
        server: listener.local_addr().expect("bound"),
    };
    let relay = Relay::start(None, Some(route)).expect("free ports");
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

    relay.set_hole(true);
    client
        .write_all(b"during")
        .expect("open, as far as anybody knows");
    server.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let error = server.read(&mut [0; 8]).expect_err("nothing arrives");
    assert!(matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut
    ));

    relay.set_hole(false);
    server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client.write_all(b" after").expect("open");
    assert_eq!(read(&mut server, 12), b"during after");
}

#[test]
fn a_hole_holds_little_of_what_is_sent_into_it() {
    let (relay, mut client, mut server) = tcp();
    client.write_all(b"x").expect("open");
    read(&mut server, 1);
    relay.set_hole(true);
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
