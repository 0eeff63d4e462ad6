//! Peers that say what they may not, or too little.

use super::raw::{Raw, UPGRADE};
use super::*;
use frame::close_code;

#[test]
fn what_clients_may_not_send_ends_their_link_and_no_other() {
    let mut net = Net::new(config());
    let (healthy, healthy_link) = net.joined(net.client_config());
    let long = vec![0; 2_000];
    let cases: [(&str, &dyn Fn(&mut Raw), u16); 9] = [
        (
            "a text message",
            &|raw| raw.send(1, b"hello"),
            close_code::UNSUPPORTED,
        ),
        (
            "text that is none",
            &|raw| raw.send(1, &[0xff, 0xfe]),
            close_code::INVALID,
        ),
        (
            "unknown flags",
            &|raw| raw.send(2, &[0x40, 1, 1]),
            close_code::PROTOCOL,
        ),
        (
            "a length beyond the message",
            &|raw| raw.send(2, &[0, 9, 1]),
            close_code::INVALID,
        ),
        (
            "a datagram that is too long",
            &|raw| raw.send(2, &[&[0, 0xce, 0x0f][..], &long].concat()),
            close_code::TOO_BIG,
        ),
        (
            "a frame that is too long",
            &|raw| raw.write(&[0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            close_code::TOO_BIG,
        ),
        (
            "unmasked bytes",
            &|raw| raw.write(&[0x82, 2, 0, 0]),
            close_code::PROTOCOL,
        ),
        (
            "an unknown opcode",
            &|raw| raw.send(3, &[]),
            close_code::PROTOCOL,
        ),
        (
            "a fragmented ping",
            &|raw| raw.write(&[0x09, 0x80, 0, 0, 0, 0]),
            close_code::PROTOCOL,
        ),
    ];
    let count = cases.len();
    for (number, (what, send, code)) in cases.into_iter().enumerate() {
        let mut raw = Raw::open(net.addr(), "");
        // Of a link that closes before it is known, the app hears nothing.
        net.until(what, |net| net.opened().len() == number + 2);
        send(&mut raw);
        let link = net.opened()[number + 1].0;
        net.until(what, |net| net.closed(link).is_some());
        assert!(
            matches!(net.closed(link), Some(CloseReason::Transport(_))),
            "{what}: {:?}",
            net.closed(link)
        );
        assert_eq!(raw.read_close_code(), Some(code), "{what}");
    }
    assert_eq!(net.server.stats().rejected.malformed, count as u64);
    net.send(healthy_link, b"all is well");
    net.until("the other lives", |net| {
        net.datagrams[healthy] == [b"all is well"]
    });
}

#[test]
fn who_says_nothing_is_gone_in_time_and_makes_room() {
    let mut net = Net::new(WsServerConfig {
        max_handshakes: 3,
        handshake_timeout: Duration::from_millis(300),
        auth_timeout: Duration::from_millis(300),
        ..config()
    });
    // Nothing, half a request, and no first message: each at its place.
    let mut silent = Raw::connect(net.addr());
    let mut half = Raw::connect(net.addr());
    half.write(&UPGRADE.as_bytes()[..60]);
    let mut nameless = Raw::upgraded(net.addr(), "");
    let mut beyond = Raw::connect(net.addr());
    assert_eq!(
        beyond.read_close_code(),
        None,
        "closed at once: there is no place"
    );
    assert_eq!(silent.read_close_code(), None, "closed");
    let _ = half.read_close_code();
    assert_eq!(nameless.read_close_code(), Some(close_code::TRY_AGAIN));
    assert!(net.opened().is_empty());
    net.joined(net.client_config());
    assert_eq!(net.server.stats().rejected.handshake, 4);
}

#[test]
fn first_messages_that_say_nothing_are_refused() {
    let net = Net::new(config());
    for (what, opcode, message) in [
        ("text", 1, &b"hello"[..]),
        ("nothing", 2, b""),
        ("something else", 2, b"TND9 and more"),
        ("too much", 2, &[b'x'; 3_000]),
    ] {
        let mut raw = Raw::upgraded(net.addr(), "");
        raw.send(opcode, message);
        let code = raw.read_close_code();
        assert_eq!(code, Some(close_code::REFUSED), "{what}");
    }
    assert_eq!(net.server.stats().rejected.handshake, 4);
}

#[test]
fn requests_that_are_none_are_refused() {
    let mut net = Net::new(config());
    let no_version = UPGRADE.replace("Sec-WebSocket-Version: 13\r\n", "");
    let other = UPGRADE.replace("tandem.1", "tandem.999");
    let header = "x".repeat(20_000);
    for (what, request, answer) in [
        (
            "another subprotocol",
            format!("{other}\r\n"),
            "HTTP/1.1 400",
        ),
        ("no version", format!("{no_version}\r\n"), "HTTP/1.1 400"),
        ("no HTTP", "\x16\x03\x01\x02\r\n\r\n".into(), "HTTP/1.1 400"),
        (
            "an endless header",
            format!("GET / HTTP/1.1\r\nx: {header}\r\n\r\n"),
            "HTTP/1.1 431",
        ),
    ] {
        let got = Raw::connect(net.addr()).request(&request);
        assert!(got.starts_with(answer), "{what}: {got}");
    }
    net.joined(net.client_config());
}

#[test]
fn pages_of_other_origins_may_not_connect() {
    let net = Net::new(WsServerConfig {
        allowed_origins: Some(vec!["https://game.example.org".into()]),
        ..config()
    });
    let mut foreign = Raw::connect(net.addr());
    let answer = foreign.request(&format!("{UPGRADE}Origin: https://evil.example\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    Raw::open(net.addr(), "Origin: https://game.example.org\r\n");
    Raw::open(net.addr(), "");
}

#[test]
fn a_flood_of_pings_makes_no_queue() {
    let mut net = Net::new(WsServerConfig {
        max_datagrams_per_s: 1_000_000,
        max_bytes_per_s: u32::MAX,
        ..config()
    });
    let mut raw = Raw::open(net.addr(), "");
    net.until("the link opens", |net| !net.opened().is_empty());
    let link = net.opened()[0].0;
    let ping = [&[0x89, 0x80 | 125, 0, 0, 0, 0][..], &[7; 125]].concat();
    let pings = ping.repeat(100);
    raw.0.set_nonblocking(true).expect("a socket");
    let mut sent = 0;
    // It asks, and never reads the answers.
    for _ in 0..3_000 {
        sent += std::io::Write::write(&mut raw.0, &pings).unwrap_or(0);
        if sent % 5 == 0 {
            net.step();
        }
    }
    assert!(sent > 1 << 20, "{sent} bytes of pings");
    assert!(
        net.server.queued_bytes(link) <= 20 << 10,
        "{} bytes wait",
        net.server.queued_bytes(link)
    );
}
