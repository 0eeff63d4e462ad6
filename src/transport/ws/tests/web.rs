//! The same port by HTTP, and TLS.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::raw::Raw;
use super::*;

/// Whether a header begins with, or has, this: names of fields may be written in any way.
fn has(header: &str, what: &str) -> bool {
    header.to_lowercase().contains(&what.to_lowercase())
}

/// Everything that the server answers to a request without a body.
fn get(addr: SocketAddr, line: &str, headers: &str) -> (String, Vec<u8>) {
    let mut raw = Raw::connect(addr);
    let header = raw.request(&format!("{line} HTTP/1.1\r\nHost: here\r\n{headers}\r\n"));
    let mut body = Vec::new();
    raw.0.read_to_end(&mut body).expect("the body");
    (header, body)
}

#[test]
fn a_browser_build_is_served_from_the_same_port() {
    let folder = Folder::new("files");
    folder.write("index.html", "<!doctype html>");
    folder.write("game.wasm", b"\0asm plain");
    folder.write("game.wasm.gz", b"gzipped");
    folder.write("game.wasm.br", b"brotli");
    folder.write("game.js", "play()");
    let mut net = Net::new(WsServerConfig {
        web: Some(folder.0.clone()),
        ..config()
    });
    let addr = net.addr();

    let (header, body) = get(addr, "GET /", "");
    assert!(header.starts_with("HTTP/1.1 200"), "{header}");
    assert!(has(&header, "content-type: text/html"), "{header}");
    assert!(has(&header, "cache-control: no-cache"), "{header}");
    assert_eq!(body, b"<!doctype html>");
    for (accept, expected) in [
        ("", &b"\0asm plain"[..]),
        ("Accept-Encoding: gzip\r\n", b"gzipped"),
        ("Accept-Encoding: gzip, deflate, br\r\n", b"brotli"),
    ] {
        let (header, body) = get(addr, "GET /game.wasm", accept);
        assert!(has(&header, "content-type: application/wasm"), "{header}");
        assert_eq!(body, expected, "{accept}");
    }
    let (header, _) = get(addr, "GET /game.js", "");
    assert!(has(&header, "javascript"), "{header}");
    let (header, _) = get(addr, "HEAD /game.js", "");
    assert!(has(&header, "content-length: 6"), "{header}");
    let since = header
        .lines()
        .find(|line| has(line, "last-modified: "))
        .expect("a date")[15..]
        .to_owned();
    let since = format!("If-Modified-Since: {since}\r\n");
    let (header, body) = get(addr, "GET /game.js", &since);
    assert!(
        header.starts_with("HTTP/1.1 304") && body.is_empty(),
        "{header}"
    );
    let (header, body) = get(addr, "GET /missing.js", "");
    assert!(
        header.starts_with("HTTP/1.1 404") && !body.is_empty(),
        "{header}"
    );
    let (header, _) = get(addr, "POST /game.js", "");
    assert!(header.starts_with("HTTP/1.1 405"), "{header}");
    net.joined(net.client_config());
}

#[test]
fn nothing_outside_the_folder_is_served() {
    let folder = Folder::new("outside");
    folder.write("secret.txt", "secret");
    let web = folder.0.join("web");
    std::fs::create_dir_all(&web).expect("a folder");
    let net = Net::new(WsServerConfig {
        web: Some(web),
        ..config()
    });
    for path in [
        "/../secret.txt",
        "/./../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "//../secret.txt",
        "/..%5csecret.txt",
        "/..%00/secret.txt",
        &format!("/{}", folder.0.join("secret.txt").display()),
        &format!("//{}", folder.0.join("secret.txt").display()),
    ] {
        let (header, body) = get(net.addr(), &format!("GET {path}"), "");
        assert!(
            header.starts_with("HTTP/1.1 4") && body != b"secret",
            "{path}: {header}"
        );
    }
}

#[test]
fn a_server_without_files_says_what_it_is() {
    let mut net = Net::new(config());
    let (header, body) = get(net.addr(), "GET /", "");
    assert!(header.starts_with("HTTP/1.1 426"), "{header}");
    assert!(String::from_utf8_lossy(&body).contains("game server"));
    let (header, _) = get(net.addr(), "GET /favicon.ico", "");
    assert!(header.starts_with("HTTP/1.1 404"), "{header}");
    let (header, body) = get(net.addr(), "GET /healthz", "");
    assert!(
        header.starts_with("HTTP/1.1 200") && body == b"ok\n",
        "{header}"
    );
    net.server.stop_accepting();
    let (header, _) = get(net.addr(), "GET /healthz", "");
    assert!(header.starts_with("HTTP/1.1 503"), "{header}");

    let no_folder = WsServer::bind(WsServerConfig {
        web: Some("/nowhere/at/all".into()),
        ..config()
    });
    assert!(matches!(no_folder.err(), Some(WsBindError::NoFolder(_))));
}

/// Writes a self-signed certificate, which is its own authority, and its key.
fn write_certificate(folder: &Folder, name: &str) -> TlsFiles {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()])
        .expect("a certificate");
    TlsFiles {
        cert: folder.write(&format!("{name}.pem"), made.cert.pem()),
        key: folder.write(&format!("{name}.key"), made.signing_key.serialize_pem()),
    }
}

fn copy(files: &TlsFiles, to: &TlsFiles) {
    std::fs::copy(&files.cert, &to.cert).expect("a copy");
    std::fs::copy(&files.key, &to.key).expect("a copy");
}

impl Net {
    fn trusting(&self, ca: Option<&Path>) -> WsClientConfig {
        WsClientConfig {
            ca: ca.map(PathBuf::from),
            ..WsClientConfig::new(format!("wss://localhost:{}", self.addr().port()))
        }
    }

    /// Whether a client that trusts this certificate gets in.
    fn is_trusted_by(&mut self, ca: &Path) -> bool {
        let client = self.join(self.trusting(Some(ca)));
        self.until("it is settled", |net| {
            *net.clients[client].state() != ClientLinkState::Connecting
        });
        self.clients[client].state().is_connected()
    }
}

#[test]
fn datagrams_pass_both_ways_through_tls() {
    let folder = Folder::new("tls");
    let files = write_certificate(&folder, "own");
    let mut net = Net::new(WsServerConfig {
        tls: Some(files.clone()),
        ..config()
    });
    let (client, link) = net.joined(net.trusting(Some(&files.cert)));
    let large = vec![5; 300_000];
    net.send(link, &large);
    let now = net.now();
    net.clients[client].send(now, b"up");
    net.until("both arrive", |net| {
        net.datagrams[client].len() == 1 && net.received(link).len() == 1
    });
    assert!(net.datagrams[client][0] == large);

    let numeric = WsClientConfig {
        ca: Some(files.cert.clone()),
        ..WsClientConfig::new(format!("wss://127.0.0.1:{}", net.addr().port()))
    };
    net.joined(numeric);
    net.clients[client].close();
    net.until("it is closed", |net| net.closed(link).is_some());
    assert_eq!(net.closed(link), Some(CloseReason::ByPeer));
}

#[test]
fn certificates_that_are_not_trusted_are_refused() {
    let folder = Folder::new("trust");
    let files = write_certificate(&folder, "own");
    let other = write_certificate(&folder, "other");
    let mut net = Net::new(WsServerConfig {
        tls: Some(files),
        ..config()
    });
    for ca in [None, Some(&*other.cert)] {
        let reason = net.refusal(net.trusting(ca));
        assert!(
            matches!(&reason, CloseReason::Transport(why) if why.contains("TLS with localhost failed")),
            "{reason:?}"
        );
    }
    let reason = net.refusal(net.client_config());
    assert!(
        matches!(reason, CloseReason::Transport(_)),
        "nor without TLS: {reason:?}"
    );
}

#[test]
fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let folder = Folder::new("renewal");
    let used = write_certificate(&folder, "used");
    let old = folder.write("old.pem", std::fs::read(&used.cert).expect("the first one"));
    let new = write_certificate(&folder, "new");
    let mut net = Net::new(WsServerConfig {
        tls: Some(used.clone()),
        ..config()
    });
    assert!(net.is_trusted_by(&old), "the first one");
    let (client, link) = net.joined(net.trusting(Some(&old)));

    folder.write("used.pem", "-----BEGIN CERTIFICATE-----\nnonsense");
    std::thread::sleep(tls::RELOAD_INTERVAL + Duration::from_millis(500));
    assert!(net.is_trusted_by(&old), "the first one stays");

    copy(&new, &used);
    let end = Instant::now() + PATIENCE;
    while !net.is_trusted_by(&new.cert) {
        assert!(Instant::now() < end, "the new one is used");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!net.is_trusted_by(&old), "and the first one is not");
    net.send(link, b"still here");
    net.until("links go on", |net| {
        net.datagrams[client] == [b"still here"]
    });
}

#[test]
fn certificates_that_cannot_be_used_are_refused_with_a_reason() {
    let folder = Folder::new("unusable");
    let (first, second) = (
        write_certificate(&folder, "a"),
        write_certificate(&folder, "b"),
    );
    let empty = folder.write("empty.pem", "");
    for (cert, key, why) in [
        (
            &first.cert,
            &second.key,
            "give a key and the certificate made for it",
        ),
        (&empty, &first.key, "no `BEGIN CERTIFICATE`"),
        (&first.cert, &empty, "private key"),
        (&folder.0.join("missing.pem"), &first.key, "missing.pem"),
    ] {
        let error = WsServer::bind(WsServerConfig {
            tls: Some(TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
            }),
            ..config()
        })
        .err()
        .expect("refused");
        assert!(error.to_string().contains(why), "{error}");
    }
    let error = WsClient::connect(WsClientConfig {
        ca: Some(empty),
        ..WsClientConfig::new("wss://localhost")
    })
    .err()
    .expect("refused");
    assert!(matches!(error, WsConnectError::Tls(_)), "{error}");
}
