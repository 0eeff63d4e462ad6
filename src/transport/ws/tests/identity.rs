//! Who may connect, and from where.

use super::raw::{Raw, UPGRADE};
use super::*;
use crate::transport::udp::Auth;
use crate::transport::udp::token::{self, TokenBuilder};

const KEY: [u8; 32] = [7; 32];

fn secure() -> Net {
    Net::new(WsServerConfig {
        auth: Auth::Secure { private_key: KEY },
        ..config()
    })
}

impl Net {
    fn with_token(&self, token: &token::ConnectToken) -> WsClientConfig {
        WsClientConfig {
            auth: token.into(),
            ..self.client_config()
        }
    }

    fn token(&self) -> TokenBuilder {
        TokenBuilder::new(42, vec![self.addr()])
    }
}

fn refused(reason: &CloseReason, why: &str) {
    assert!(
        matches!(reason, CloseReason::Refused(text) if text.contains(why)),
        "{reason:?}"
    );
}

#[test]
fn the_back_end_says_who_comes() {
    let mut net = secure();
    let token = net
        .token()
        .user_data([9; 256])
        .issue(&KEY)
        .expect("a token");
    net.joined(net.with_token(&token));
    let peer = &net.opened()[0].1;
    assert!(peer.secure);
    assert_eq!(peer.client_id, 42);
    assert_eq!(peer.user_data.as_deref(), Some(&[9; 256]));
}

#[test]
fn a_token_that_has_expired_is_refused() {
    let mut net = secure();
    let token = net
        .token()
        .valid_for(Duration::from_secs(1))
        .issue(&KEY)
        .expect("a token");
    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(
        net.refusal(net.with_token(&token)),
        CloseReason::TokenExpired
    );
}

#[test]
fn a_token_of_another_key_is_refused() {
    let mut net = secure();
    let token = net.token().issue(&[8; 32]).expect("a token");
    let reason = net.refusal(net.with_token(&token));
    refused(&reason, "not made with this server's key");
}

#[test]
fn a_token_for_another_server_is_refused() {
    let mut net = secure();
    let elsewhere = SocketAddr::from(([203, 0, 113, 5], 5000));
    let token = TokenBuilder::new(42, vec![elsewhere]);
    let token = token.issue(&KEY).expect("a token");
    let reason = net.refusal(net.with_token(&token));
    refused(&reason, "for other servers");
}

#[test]
fn a_token_that_was_altered_is_refused() {
    let mut net = secure();
    let token = net.token().issue(&KEY).expect("a token");
    let mut bytes = token::to_bytes(&token);
    bytes[100] ^= 1;
    let reason = net.refusal(WsClientConfig {
        auth: WsAuth::Token(bytes),
        ..net.client_config()
    });
    refused(&reason, "altered");
    net.joined(net.with_token(&token)); // the real one still opens a link
}

#[test]
fn claims_and_tokens_are_taken_only_where_they_belong() {
    let mut net = secure();
    let reason = net.refusal(net.client_config());
    refused(&reason, "wants a connect token");
    let token = net.token().issue(&KEY).expect("a token");
    let mut insecure = Net::new(config());
    let reason = insecure.refusal(insecure.with_token(&token));
    refused(&reason, "takes no tokens");
}

#[test]
fn a_full_server_says_so() {
    let mut net = Net::new(WsServerConfig {
        max_sessions: 1,
        ..config()
    });
    let (client, link) = net.joined(net.client_config());
    assert_eq!(net.refusal(net.client_config()), CloseReason::Denied);
    net.clients[client].close();
    net.until("there is room again", |net| net.closed(link).is_some());
    // The place is free when the connection is, a moment later.
    let end = Instant::now() + PATIENCE;
    loop {
        let again = net.join(net.client_config());
        net.until("it hears", |net| {
            *net.clients[again].state() != ClientLinkState::Connecting
        });
        if net.clients[again].state().is_connected() {
            break;
        }
        assert!(Instant::now() < end, "there is room again");
    }
}

#[test]
fn without_authentication_it_stays_on_this_machine() {
    let anywhere = WsServerConfig::new(SocketAddr::from(([0, 0, 0, 0], 0)));
    let error = WsServer::bind(anywhere.clone()).err().expect("refused");
    assert!(matches!(error, WsBindError::Insecure(_)));
    assert!(error.to_string().contains("insecure_anywhere"), "{error}");
    WsServer::bind(WsServerConfig {
        insecure_anywhere: true,
        ..anywhere.clone()
    })
    .expect("if one insists");
    let nowhere = WsServerConfig {
        auth: Auth::Secure { private_key: KEY },
        ..anywhere
    };
    assert!(matches!(
        WsServer::bind(nowhere).err(),
        Some(WsBindError::NoPublicAddress(_))
    ));
}

#[test]
fn proxies_count_only_if_they_are_trusted() {
    let header = "X-Forwarded-For: 198.51.100.1, 203.0.113.9\r\n";
    for (trusted, expected) in [
        (vec![], "127.0.0.1"),
        (vec!["10.0.0.0/8"], "127.0.0.1"),
        (vec!["127.0.0.0/8"], "203.0.113.9"),
        (vec!["127.0.0.1", "203.0.113.9"], "198.51.100.1"),
    ] {
        let mut net = Net::new(WsServerConfig {
            trusted_proxies: trusted
                .iter()
                .map(|prefix| prefix.parse().expect("a prefix"))
                .collect(),
            ..config()
        });
        let _raw = Raw::open(net.addr(), header);
        net.until("the link opens", |net| !net.opened().is_empty());
        let addr = net.opened()[0].1.addr.expect("an address");
        assert_eq!(addr.ip().to_string(), expected, "trusting {trusted:?}");
    }
}

#[test]
fn no_address_takes_all_places() {
    let net = Net::new(WsServerConfig {
        trusted_proxies: vec!["127.0.0.1".parse().expect("an address")],
        max_links_per_address: 2,
        max_handshakes_per_address: 2,
        ..config()
    });
    let [greedy, other] = [1, 2].map(|last| format!("X-Forwarded-For: 203.0.113.{last}\r\n"));
    let _open = [(); 2].map(|()| Raw::open(net.addr(), &greedy));
    let mut third = Raw::upgraded(net.addr(), &greedy);
    third.say_hello();
    assert_eq!(third.read_close_code(), Some(frame::close_code::TRY_AGAIN));
    drop(third);

    // Those that are no link yet, likewise.
    let _half = [(); 2].map(|()| Raw::upgraded(net.addr(), &other));
    let answer = Raw::connect(net.addr()).request(&format!("{UPGRADE}{other}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    Raw::open(net.addr(), "X-Forwarded-For: 203.0.113.3\r\n");
}
