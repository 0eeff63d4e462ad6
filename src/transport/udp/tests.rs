//! Smoke tests over real sockets on the loopback interface, in real time.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::*;
use crate::transport::{
    ClientLinkState, ClientTransport, CloseReason, LinkEvent, LinkId, ServerTransport,
};

/// More than any of these needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

struct Net {
    server: UdpServer,
    clients: Vec<UdpClient>,
    started_at: Instant,
    events: Vec<LinkEvent>,
    /// What each client received.
    datagrams: Vec<Vec<Vec<u8>>>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Net {
    fn new(config: UdpServerConfig) -> Self {
        let server = UdpServer::bind(config).expect("a free port");
        Self {
            server,
            clients: Vec::new(),
            started_at: Instant::now(),
            events: Vec::new(),
            datagrams: Vec::new(),
        }
    }

    fn insecure() -> Self {
        Self::new(UdpServerConfig::new(loopback()))
    }

    fn addr(&self) -> SocketAddr {
        self.server.local_addr().expect("UDP has an address")
    }

    fn join(&mut self, config: UdpClientConfig) -> usize {
        self.clients
            .push(UdpClient::connect(config).expect("a socket"));
        self.datagrams.push(Vec::new());
        self.clients.len() - 1
    }

    fn step(&mut self) {
        let now = self.started_at.elapsed();
        self.server.receive(now, &mut self.events);
        for (client, datagrams) in self.clients.iter_mut().zip(&mut self.datagrams) {
            client.receive(now, datagrams);
            client.flush(now);
        }
        self.server.flush(now);
        std::thread::sleep(Duration::from_millis(1));
    }

    /// Steps until it is so.
    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < end,
                "{what}; {:?} {:?}",
                self.server.stats(),
                self.reasons()
            );
            self.step();
        }
    }

    fn joined(&mut self, config: UdpClientConfig) -> usize {
        let client = self.join(config);
        self.until("the client connects", |net| {
            net.clients[client].state().is_connected()
        });
        client
    }

    fn links(&self) -> Vec<LinkId> {
        let opened = |event: &LinkEvent| match event {
            LinkEvent::Opened { link, .. } => Some(*link),
            _ => None,
        };
        self.events.iter().filter_map(opened).collect()
    }

    fn reasons(&self) -> Vec<&CloseReason> {
        self.events
            .iter()
            .filter_map(|event| match event {
                LinkEvent::Closed { reason, .. } => Some(reason),
                _ => None,
            })
            .collect()
    }

    fn received(&self, wanted: &[u8]) -> bool {
        self.events
            .iter()
            .any(|event| matches!(event, LinkEvent::Datagram { bytes, .. } if bytes == wanted))
    }

    /// Client and server hear each other.
    fn assert_exchange(&mut self, client: usize, link: LinkId) {
        let now = self.started_at.elapsed();
        let up = format!("up {link}").into_bytes();
        let down = format!("down {link}").into_bytes();
        self.clients[client].send(now, &up);
        self.server.send(now, link, &down);
        self.until("datagrams arrive both ways", |net| {
            net.received(&up) && net.datagrams[client].contains(&down)
        });
    }
}

#[test]
fn an_insecure_client_connects_and_talks() {
    let mut net = Net::insecure();
    let client = net.joined(UdpClientConfig::insecure(net.addr()));
    net.until("the server hears of it", |net| !net.links().is_empty());
    let link = net.links()[0];
    net.assert_exchange(client, link);

    let LinkEvent::Opened { peer, .. } = &net.events[0] else {
        panic!("opens first")
    };
    assert_eq!(
        peer.client_id,
        net.clients[client].client_id(),
        "both know who it is"
    );
    assert_eq!(
        peer.addr,
        net.clients[client]
            .local_addr()
            .map(|addr| SocketAddr::from(([127, 0, 0, 1], addr.port()))),
        "and where"
    );
    assert!(!peer.secure, "but nobody vouches for it");
}

#[test]
fn a_client_with_a_token_connects_and_shows_its_data() {
    let private_key = token::generate_private_key();
    let mut net = Net::new(UdpServerConfig {
        auth: Auth::Secure { private_key },
        ..UdpServerConfig::new(loopback())
    });
    let token = token::TokenBuilder::new(42, vec![net.addr()])
        .user_data([7; 256])
        .issue(&private_key)
        .expect("a token");
    let client = net.joined(UdpClientConfig::with_token(token));
    net.until("the server hears of it", |net| !net.links().is_empty());
    let LinkEvent::Opened { link, peer } = &net.events[0] else {
        panic!("opens first")
    };
    assert_eq!(
        (peer.client_id, peer.secure),
        (42, true),
        "who the back end said"
    );
    assert_eq!(
        peer.user_data.as_deref(),
        Some(&[7; 256]),
        "with what it said"
    );
    let link = *link;
    net.assert_exchange(client, link);
}

#[test]
fn wrong_keys_and_no_keys_do_not_connect() {
    let auth = Auth::Secure {
        private_key: [1; 32],
    };
    let mut net = Net::new(UdpServerConfig {
        auth,
        ..UdpServerConfig::new(loopback())
    });
    let forged = token::TokenBuilder::new(42, vec![net.addr()])
        .issue(&[2; 32])
        .expect("a token");
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let brief = |config| UdpClientConfig {
        connect_timeout: Duration::from_millis(600),
        ..config
    };
    net.join(brief(UdpClientConfig::with_token(forged)));
    net.join(brief(UdpClientConfig::insecure(net.addr())));
    net.until("they give up", |net| {
        net.clients
            .iter()
            .all(|client| client.state().close_reason().is_some())
    });
    for client in &net.clients {
        assert_eq!(
            client.state().close_reason(),
            Some(&CloseReason::ConnectTimedOut),
            "the server is silent"
        );
    }
    assert!(net.events.is_empty(), "and the app knows nothing");

    // A genuine token, but for another server: let the request through and it is still refused.
    let mut other = token::TokenBuilder::new(42, vec![elsewhere])
        .issue(&[1; 32])
        .expect("a token");
    other.server_addresses[0] = Some(net.addr());
    let client = net.join(brief(UdpClientConfig::with_token(other)));
    net.until("it gives up", |net| {
        net.clients[client].state().close_reason().is_some()
    });
    assert!(
        net.links().is_empty(),
        "a token is for the servers it names"
    );
}

#[test]
fn two_hundred_clients_connect_and_talk() {
    let mut net = Net::insecure();
    for _ in 0..200 {
        net.join(UdpClientConfig::insecure(net.addr()));
    }
    net.until("all connect", |net| net.links().len() == 200);
    let now = net.started_at.elapsed();
    for link in net.links() {
        net.server.send(now, link, b"welcome");
    }
    for (n, client) in net.clients.iter_mut().enumerate() {
        if client.state().is_connected() {
            client.send(now, format!("from {n}").as_bytes());
        }
    }
    net.until("all hear the server", |net| {
        net.datagrams.iter().all(|datagrams| !datagrams.is_empty())
    });
    let mut clients: Vec<u64> = net.clients.iter().map(UdpClient::client_id).collect();
    clients.sort_unstable();
    clients.dedup();
    assert_eq!(clients.len(), 200, "random ids differ");
}

#[test]
fn closing_says_why_on_both_sides() {
    let mut net = Net::insecure();
    let (leaves, kicked) = (
        net.joined(UdpClientConfig::insecure(net.addr())),
        net.joined(UdpClientConfig::insecure(net.addr())),
    );
    net.until("both are known", |net| net.links().len() == 2);

    net.clients[leaves].close();
    net.until("the server hears the farewell", |net| {
        net.reasons() == [&CloseReason::ByPeer]
    });
    assert_eq!(
        net.clients[leaves].state().close_reason(),
        Some(&CloseReason::ByUs),
        "its own doing"
    );

    let now = net.started_at.elapsed();
    let link = net.links()[1];
    net.server.send(now, link, b"you are banned");
    net.server.close(link);
    net.until("the client hears of it", |net| {
        net.clients[kicked].state().close_reason().is_some()
    });
    assert_eq!(
        net.clients[kicked].state().close_reason(),
        Some(&CloseReason::ByPeer),
        "the server's doing"
    );
    assert_eq!(
        net.datagrams[kicked],
        [b"you are banned"],
        "after the last word"
    );
    assert_eq!(
        net.reasons(),
        [&CloseReason::ByPeer, &CloseReason::ByUs],
        "the server knows, too"
    );
}

#[test]
fn silence_ends_a_link_on_both_sides() {
    let client_timeout = Duration::from_millis(700);
    let mut net = Net::new(UdpServerConfig {
        client_timeout,
        ..UdpServerConfig::new(loopback())
    });
    let timeout = Duration::from_millis(700);
    let config = UdpClientConfig {
        timeout,
        ..UdpClientConfig::insecure(net.addr())
    };
    let client = net.joined(config);
    net.until("the server hears of it", |net| !net.links().is_empty());

    // Nobody calls the client any more: it sends nothing.
    let frozen = net.clients.swap_remove(client);
    net.datagrams.clear();
    net.until("the server notices", |net| {
        net.reasons() == [&CloseReason::TimedOut]
    });

    // The other way around: a client whose server is gone without a farewell.
    let mut client = frozen;
    client.receive(net.started_at.elapsed(), &mut Vec::new());
    assert_eq!(
        client.state().close_reason(),
        Some(&CloseReason::ByPeer),
        "the server had told it"
    );
    let nobody = UdpSocket::bind(loopback()).expect("a free port");
    let connect_timeout = Duration::from_millis(300);
    let addr = nobody.local_addr().expect("bound");
    let client = net.join(UdpClientConfig {
        connect_timeout,
        ..UdpClientConfig::insecure(addr)
    });
    net.until("it gives up", |net| {
        net.clients[client].state().close_reason().is_some()
    });
    assert_eq!(
        net.clients[client].state().close_reason(),
        Some(&CloseReason::ConnectTimedOut),
        "nobody answered"
    );
}

#[test]
fn a_client_whose_server_vanishes_times_out() {
    let mut net = Net::insecure();
    let timeout = Duration::from_millis(600);
    let client = net.joined(UdpClientConfig {
        timeout,
        ..UdpClientConfig::insecure(net.addr())
    });
    // A server that is cut off: its farewell goes nowhere, as the client's socket is switched for
    // one that nobody sends to.
    net.clients[client].cut_off();
    net.until("it notices", |net| {
        net.clients[client].state().close_reason().is_some()
    });
    assert_eq!(
        net.clients[client].state().close_reason(),
        Some(&CloseReason::TimedOut),
        "by the silence"
    );
}

#[test]
fn a_client_tries_the_addresses_of_its_token_in_turn() {
    let private_key = token::generate_private_key();
    let mut net = Net::new(UdpServerConfig {
        auth: Auth::Secure { private_key },
        ..UdpServerConfig::new(loopback())
    });
    let silent = UdpSocket::bind(loopback())
        .and_then(|socket| Ok((socket.local_addr()?, socket)))
        .expect("a free port");
    let token = token::TokenBuilder::new(1, vec![silent.0, net.addr()])
        .issue(&private_key)
        .expect("a token");
    let connect_timeout = Duration::from_millis(300);
    net.joined(UdpClientConfig {
        connect_timeout,
        ..UdpClientConfig::with_token(token)
    });
}

#[test]
fn a_port_in_use_is_named() {
    let net = Net::insecure();
    let error = UdpServer::bind(UdpServerConfig::new(net.addr()))
        .err()
        .expect("it is in use");
    assert!(
        matches!(error, BindError::InUse(addr) if addr == net.addr()),
        "the kind tells"
    );
    let message = error.to_string();
    assert!(
        message.contains(&net.addr().port().to_string()),
        "and so does the message: {message}"
    );
}

#[test]
fn secure_servers_need_to_know_their_address() {
    let auth = Auth::Secure {
        private_key: [1; 32],
    };
    let config = UdpServerConfig {
        auth,
        ..UdpServerConfig::new(SocketAddr::from(([0, 0, 0, 0], 0)))
    };
    assert!(
        matches!(UdpServer::bind(config), Err(BindError::NoPublicAddress(_))),
        "0.0.0.0 is in no token"
    );
}

#[test]
fn insecure_servers_listen_on_loopback_only_unless_forced() {
    let config = |addr: &str| UdpServerConfig::new(addr.parse().expect("an address"));
    for addr in ["0.0.0.0:0", "[::]:0", "203.0.113.5:0", "[::ffff:0.0.0.0]:0"] {
        let error = UdpServer::bind(config(addr)).err().expect("refused");
        assert!(matches!(error, BindError::Insecure(_)), "{addr}: {error}");
        let message = error.to_string();
        for way_out in ["Auth::Secure", "127.0.0.1", "insecure_anywhere"] {
            assert!(message.contains(way_out), "{way_out} is named: {message}");
        }
    }
    assert!(
        UdpServer::bind(config("127.0.0.1:0")).is_ok(),
        "for this machine alone"
    );
    let forced = UdpServerConfig {
        insecure_anywhere: true,
        ..config("0.0.0.0:0")
    };
    assert!(UdpServer::bind(forced).is_ok(), "who insists, may");
    let secure = UdpServerConfig {
        auth: Auth::Secure {
            private_key: [1; 32],
        },
        public_addresses: vec![loopback()],
        ..config("0.0.0.0:0")
    };
    assert!(UdpServer::bind(secure).is_ok(), "with tokens, anywhere");
}

#[test]
fn floods_of_junk_disturb_nobody() {
    let mut net = Net::insecure();
    let client = net.joined(UdpClientConfig::insecure(net.addr()));
    net.until("the server hears of it", |net| !net.links().is_empty());
    let link = net.links()[0];
    let stranger = UdpSocket::bind(loopback()).expect("a free port");
    let mut rng = fastrand::Rng::with_seed(5);
    for round in 0..20 {
        for _ in 0..200 {
            let mut junk = vec![0; rng.usize(0..1_200)];
            rng.fill(&mut junk);
            if let Some(prefix) = junk.first_mut().filter(|_| round % 2 == 0) {
                *prefix = 0x95;
            }
            stranger
                .send_to(&junk, net.addr())
                .expect("loopback takes it");
            // The client, too: half of it passes for the real thing until it is decrypted.
            net.clients[client].send_raw(&junk);
        }
        net.step();
    }
    std::thread::sleep(Duration::from_millis(1));
    net.until("the flood is over", |net| {
        net.server.stats().datagrams_in > 6_000
    });
    // The client spent the budget of its address; it gets a new one by and by.
    let end = Instant::now() + PATIENCE;
    while !net.received(b"still here") {
        assert!(
            Instant::now() < end,
            "the client is heard again; {:?}",
            net.server.stats()
        );
        let now = net.started_at.elapsed();
        net.clients[client].send(now, b"still here");
        net.step();
    }
    let rejected = net.server.stats().rejected;
    assert!(
        rejected.unknown > 1_000 && rejected.malformed > 100,
        "strangers and lies are counted: {rejected:?}"
    );
    assert!(
        net.reasons().is_empty() && net.clients[client].state().is_connected(),
        "the link is as it was"
    );
    net.assert_exchange(client, link);
}

#[test]
fn shutdown_is_prompt_and_tells_everyone() {
    let mut net = Net::insecure();
    for _ in 0..20 {
        net.join(UdpClientConfig::insecure(net.addr()));
    }
    net.until("all connect", |net| {
        net.clients
            .iter()
            .all(|client| client.state().is_connected())
    });
    let before = Instant::now();
    net.server.shutdown();
    assert!(
        before.elapsed() < Duration::from_secs(1),
        "took {:?}",
        before.elapsed()
    );
    net.until("all hear of it", |net| {
        net.clients
            .iter()
            .all(|client| client.state().close_reason().is_some())
    });
    let by_peer = ClientLinkState::Closed(CloseReason::ByPeer);
    assert!(
        net.clients.iter().all(|client| *client.state() == by_peer),
        "and know who did it"
    );
    assert_eq!(net.reasons().len(), 20, "every link that opened closes");
    let addr = net.addr();
    drop(net);
    assert!(
        UdpServer::bind(UdpServerConfig::new(addr)).is_ok(),
        "the port is free again"
    );
}

#[test]
fn one_socket_serves_both_internet_protocols() {
    let config = UdpServerConfig {
        insecure_anywhere: true,
        ..UdpServerConfig::new("[::]:0".parse().expect("an address"))
    };
    let Ok(server) = UdpServer::bind(config) else {
        return; // a machine without IPv6
    };
    let port = server.local_addr().expect("UDP has an address").port();
    let mut net = Net {
        server,
        ..Net::insecure()
    };
    for ip in ["127.0.0.1", "::1"] {
        let addr = SocketAddr::new(ip.parse().expect("an address"), port);
        if let Ok(client) = UdpClient::connect(UdpClientConfig::insecure(addr)) {
            net.clients.push(client);
            net.datagrams.push(Vec::new());
        }
    }
    net.until("all connect", |net| {
        net.clients
            .iter()
            .all(|client| client.state().is_connected())
    });
}
