//! Links of well-behaved clients.

use std::net::TcpListener;

use super::raw::{Frame, Raw};
use super::*;
use crate::transport::{
    Delivery, LinkPace, MAX_PAYLOAD_BYTES, MAX_STREAM_DATAGRAM_BYTES, SharedBytes, TransportKind,
};

fn numbered(range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range.map(|number| number.to_le_bytes().to_vec()).collect()
}

#[test]
fn datagrams_pass_both_ways_in_order() {
    let mut net = Net::new(config());
    let (client, link) = net.joined(WsClientConfig {
        auth: WsAuth::Insecure {
            client_id: Some(42),
        },
        ..net.client_config()
    });
    let peer = net.opened()[0].1.clone();
    assert_eq!(peer.client_id, 42, "the client's claim");
    assert!(!peer.secure, "and no more than a claim");
    assert_eq!(
        (peer.kind, peer.delivery),
        (TransportKind::WebSocket, Delivery::Stream)
    );
    assert!(peer.addr.is_some_and(|addr| addr.ip().is_loopback()));

    let expected = numbered(0..200);
    for (number, datagram) in expected.iter().enumerate() {
        net.send(link, datagram);
        let now = net.now();
        net.clients[client].send(now, datagram);
        if number % 7 == 0 {
            net.step();
        }
    }
    net.until("all arrive", |net| {
        net.datagrams[client].len() == 200 && net.received(link).len() == 200
    });
    assert_eq!(net.datagrams[client], expected);
    assert_eq!(net.received(link), expected);
    let (server, client) = (net.server.stats(), net.clients[client].stats());
    assert_eq!((server.datagrams_in, server.datagrams_out), (200, 200));
    assert_eq!((client.datagrams_in, client.datagrams_out), (200, 200));
    assert!(server.bytes_out >= 200 * 5 && client.bytes_in >= 200 * 5);
}

#[test]
fn large_datagrams_pass_whole_and_compressed() {
    let mut net = Net::new(config());
    let (client, link) = net.joined(net.client_config());
    let mut random = fastrand::Rng::with_seed(3);
    let noise: Vec<u8> = core::iter::repeat_with(|| random.u8(..))
        .take(MAX_STREAM_DATAGRAM_BYTES)
        .collect();
    for datagram in [vec![7; MAX_STREAM_DATAGRAM_BYTES], noise] {
        net.send(link, &datagram);
        net.until("it arrives", |net| !net.datagrams[client].is_empty());
        assert!(net.datagrams[client].pop() == Some(datagram), "as it was");
    }
    let bytes_out = net.server.stats().bytes_out as usize;
    assert!(
        (MAX_STREAM_DATAGRAM_BYTES..MAX_STREAM_DATAGRAM_BYTES + 20_000).contains(&bytes_out),
        "one of them was compressed: {bytes_out}"
    );

    let now = net.now();
    net.clients[client].send(now, &[5; MAX_PAYLOAD_BYTES]);
    net.until("it arrives", |net| !net.received(link).is_empty());
    net.clients[client].send(now, &[5; MAX_PAYLOAD_BYTES + 1]);
    net.send(link, &vec![7; MAX_STREAM_DATAGRAM_BYTES + 1]);
    net.send(link, &[]);
    assert_eq!(net.clients[client].stats().rejected.unsendable, 1);
    assert_eq!(net.server.stats().rejected.unsendable, 2, "too long, empty");
}

#[test]
fn a_frame_is_one_message_of_at_most_max_batch_datagrams() {
    let mut net = Net::new(config());
    let mut raw = Raw::open(net.addr(), "");
    net.until("the link opens", |net| !net.opened().is_empty());
    let link = net.opened()[0].0;
    let pace = LinkPace {
        max_batch: 8,
        compress_above: usize::MAX,
        ..LinkPace::BALANCED
    };
    net.server.set_pace(link, pace);
    for number in 0..20 {
        net.send(link, &[number]);
    }
    net.step();
    let batch = |numbers: std::ops::Range<u8>| {
        let datagrams = numbers.flat_map(|number| [1, number]);
        Frame(2, core::iter::once(0).chain(datagrams).collect())
    };
    for expected in [batch(0..8), batch(8..16), batch(16..20)] {
        assert_eq!(raw.read_frame().expect("a message"), expected);
    }
}

#[test]
fn what_many_links_get_is_deflated_once_and_the_same_for_all() {
    let mut net = Net::new(config());
    let mut raws: Vec<_> = (0..3).map(|_| Raw::open(net.addr(), "")).collect();
    let (client, last) = net.joined(net.client_config());
    net.until("the links open", |net| net.opened().len() == 4);
    let shared = SharedBytes::new([b"state ".repeat(600), vec![1, 2, 3]].concat());
    for (link, _) in net.opened() {
        let now = net.now();
        net.server.send(now, link, b"before");
        net.server.send_shared(now, link, b"head", &shared);
        net.server.send(now, link, b"after");
    }
    net.until("it arrives", |net| net.datagrams[client].len() == 3);
    assert_eq!(
        net.datagrams[client],
        [
            b"before".to_vec(),
            [b"head", &shared.bytes()[..]].concat(),
            b"after".to_vec()
        ],
        "in its place"
    );
    let deflated = shared
        .deflated_with(|_| panic!("it is deflated already"))
        .expect("it shrinks")
        .clone();
    for raw in &mut raws {
        let frames = [(); 3].map(|()| raw.read_frame().expect("a message").1);
        assert_eq!(frames[0], b"\0\x06before");
        assert_eq!(frames[1][..8], *b"\x02\x04\0head\x01");
        assert_eq!(frames[1][8..], deflated, "the very bytes");
    }
    assert!(net.closed(last).is_none());
}

#[test]
fn what_was_sent_before_a_close_arrives() {
    let mut net = Net::new(config());
    let (client, link) = net.joined(net.client_config());
    let expected = numbered(0..3_000);
    for datagram in &expected {
        net.send(link, datagram);
    }
    net.server.close(link);
    net.send(link, b"too late");
    net.until("the client hears of it", |net| net.reason(client).is_some());
    assert_eq!(net.datagrams[client], expected);
    assert_eq!(net.reason(client), Some(CloseReason::ByPeer));
    assert_eq!(net.closed(link), Some(CloseReason::ByUs));
    assert_eq!(net.server.stats().rejected.unsendable, 1);

    let (client, link) = net.joined(net.client_config());
    let now = net.now();
    for datagram in &expected[..300] {
        net.clients[client].send(now, datagram);
    }
    net.clients[client].close();
    net.until("the server hears of it", |net| net.closed(link).is_some());
    assert_eq!(net.received(link), expected[..300]);
    assert_eq!(net.closed(link), Some(CloseReason::ByPeer));
}

#[test]
fn a_client_that_vanishes_has_not_said_goodbye() {
    let mut net = Net::new(config());
    let (client, link) = net.joined(net.client_config());
    net.clients[client].vanish();
    net.until("the server notices", |net| net.closed(link).is_some());
    assert!(
        matches!(net.closed(link), Some(CloseReason::Transport(why)) if why.contains("broke off")),
        "{:?}",
        net.closed(link)
    );
}

#[test]
fn many_clients_come_and_go() {
    let mut net = Net::new(config());
    for round in 1..=3 {
        for _ in 0..60 {
            net.join(net.client_config());
        }
        net.until("all links open", |net| net.opened().len() == 60 * round);
        net.until("on both sides", |net| {
            net.clients
                .iter()
                .all(|client| client.state().is_connected())
        });
        for (number, client) in net.clients.iter_mut().enumerate() {
            match number % 3 {
                0 => client.vanish(),
                _ => client.close(),
            }
        }
        net.until("all links close", |net| {
            net.opened()
                .iter()
                .all(|(link, _)| net.closed(*link).is_some())
        });
        net.clients.clear();
        net.datagrams.clear();
    }
    assert_eq!(net.server.stats().rejected.total(), 0);
}

#[test]
fn a_server_that_stops_accepting_keeps_its_links() {
    let mut net = Net::new(config());
    let (client, link) = net.joined(net.client_config());
    net.server.stop_accepting();
    let reason = net.refusal(net.client_config());
    assert!(
        matches!(&reason, CloseReason::NotReady(why) if why.contains("shuts down")),
        "{reason:?}"
    );
    net.send(link, b"still here");
    net.until("it arrives", |net| net.datagrams[client] == [b"still here"]);
}

#[test]
fn shutdown_tells_all_links_and_frees_the_port() {
    let mut net = Net::new(config());
    let (client, link) = net.joined(net.client_config());
    let _stuck = Raw::open(net.addr(), "");
    let addr = net.addr();
    net.send(link, b"last words");
    let began = Instant::now();
    net.server.shutdown();
    assert!(began.elapsed() < Duration::from_secs(5), "in bounded time");
    net.until("the client hears of it", |net| net.reason(client).is_some());
    assert_eq!(net.datagrams[client], [b"last words"]);
    assert_eq!(net.reason(client), Some(CloseReason::ByPeer));
    assert_eq!(net.closed(link), Some(CloseReason::ByUs));
    WsServer::bind(WsServerConfig::new(addr)).expect("the port is free");
}

#[test]
fn a_server_can_be_dropped_where_an_async_app_runs() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        drop(WsServer::bind(config()).expect("a free port"));
    });
}

#[test]
fn a_client_says_why_it_does_not_connect() {
    let mut net = Net::new(config());
    let nobody = TcpListener::bind(loopback()).expect("a free port");
    let free = nobody.local_addr().expect("an address");
    let silent = TcpListener::bind(loopback()).expect("a free port");
    let silent = (silent.local_addr().expect("an address"), silent);
    drop(nobody);

    let reason = net.refusal(WsClientConfig::new(format!("ws://{free}")));
    assert!(
        matches!(&reason, CloseReason::Transport(why) if why.contains("that the server runs")),
        "{reason:?}"
    );
    let reason = net.refusal(WsClientConfig {
        connect_timeout: Duration::from_millis(100),
        ..WsClientConfig::new(format!("ws://{}", silent.0))
    });
    assert_eq!(reason, CloseReason::ConnectTimedOut);
    let reason = net.refusal(WsClientConfig {
        protocol_id: 1,
        ..net.client_config()
    });
    assert!(
        matches!(&reason, CloseReason::Refused(why) if why.contains("another version")),
        "{reason:?}"
    );
}

#[test]
fn silence_ends_a_link_on_both_sides() {
    let mut net = Net::new(WsServerConfig {
        ping_interval: Duration::from_millis(100),
        client_timeout: Duration::from_millis(500),
        ..config()
    });
    // This one answers pings, and so stays.
    let (client, _) = net.joined(net.client_config());
    let mut raw = Raw::open(net.addr(), "");
    net.until("the link opens", |net| net.opened().len() == 2);
    let link = net.opened()[1].0;
    net.until("it is over", |net| net.closed(link).is_some());
    assert_eq!(net.closed(link), Some(CloseReason::TimedOut));
    assert_eq!(
        raw.read_frame().expect("a frame").0,
        9,
        "it was asked first"
    );
    assert_eq!(raw.read_close_code(), Some(frame::close_code::TIMED_OUT));
    assert!(
        net.clients[client].state().is_connected(),
        "the other lives"
    );

    // A server that says nothing: its system accepts, and that is all.
    let mut patient = Net::new(config());
    let (client, _) = patient.joined(WsClientConfig {
        timeout: Duration::from_millis(300),
        ..patient.client_config()
    });
    for _ in 0..50 {
        patient.step();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        patient.clients[client].state().is_connected(),
        "its pings are answered, so it stays as well"
    );
}
