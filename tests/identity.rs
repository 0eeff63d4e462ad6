//! Credentials and connect tokens that are replayed, expired, forged, made with another key or for someone else.

use std::net::{SocketAddr, UdpSocket};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bevy_tandem::identity::{
    DEFAULT_LEEWAY, Distrust, Identity, IdentityError, JwtKeyError, JwtVerifier,
    MAX_CREDENTIALS_BYTES, Verifier,
};
use bevy_tandem::transport::udp::token::{ConnectToken, TokenBuilder};
use bevy_tandem::transport::udp::{Auth, DEFAULT_PROTOCOL_ID};
use bevy_tandem::transport::{
    ClientTransport, LinkEvent, ServerTransport, UdpClient, UdpClientConfig, UdpServer,
    UdpServerConfig,
};
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://login.example";
const AUDIENCE: &str = "arena";
const SECRET: &[u8] = b"correct horse battery staple, and then some";

/// One algorithm: what the back end signs with, and what the server checks with.
struct Scheme {
    algorithm: Algorithm,
    key: EncodingKey,
    verifier: JwtVerifier,
}

const RSA: &[u8] = include_bytes!("keys/rsa.pem");
const RSA_PUBLIC: &[u8] = include_bytes!("keys/rsa.pub.pem");
const P256: &[u8] = include_bytes!("keys/p256.pem");
const P256_PUBLIC: &[u8] = include_bytes!("keys/p256.pub.pem");
const ED25519: &[u8] = include_bytes!("keys/ed25519.pem");
const ED25519_PUBLIC: &[u8] = include_bytes!("keys/ed25519.pub.pem");

static SCHEMES: LazyLock<[Scheme; 4]> = LazyLock::new(|| {
    let scheme = |algorithm, key, verifier: Result<JwtVerifier, JwtKeyError>| Scheme {
        algorithm,
        key,
        verifier: verifier.expect("a good key"),
    };
    [
        scheme(
            Algorithm::HS256,
            EncodingKey::from_secret(SECRET),
            JwtVerifier::hs256(SECRET, ISSUER, AUDIENCE),
        ),
        scheme(
            Algorithm::RS256,
            EncodingKey::from_rsa_pem(RSA).expect("a key"),
            JwtVerifier::rs256(RSA_PUBLIC, ISSUER, AUDIENCE),
        ),
        scheme(
            Algorithm::ES256,
            EncodingKey::from_ec_pem(P256).expect("a key"),
            JwtVerifier::es256(P256_PUBLIC, ISSUER, AUDIENCE),
        ),
        scheme(
            Algorithm::EdDSA,
            EncodingKey::from_ed_pem(ED25519).expect("a key"),
            JwtVerifier::eddsa(ED25519_PUBLIC, ISSUER, AUDIENCE),
        ),
    ]
});

impl Scheme {
    fn header(&self) -> Value {
        json!({ "typ": "JWT", "alg": self.algorithm })
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&self.header(), claims)
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        sign(
            header,
            claims.to_string().as_bytes(),
            &self.key,
            self.algorithm,
        )
    }

    fn verify(&self, token: &str) -> Result<Identity, IdentityError> {
        self.verifier.verify(token.as_bytes(), NOW)
    }
}

fn sign(header: &Value, claims: &[u8], key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!(
        "{}.{}",
        BASE64.encode(header.to_string()),
        BASE64.encode(claims)
    );
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).expect("a signature");
    format!("{message}.{signature}")
}

/// What a good token says.
fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": NOW + 300 })
}

/// The same, with some claims replaced, or removed by `null`.
fn claims_with(changes: Value) -> Value {
    let mut claims = claims();
    let (Value::Object(claims_map), Value::Object(changes)) = (&mut claims, changes) else {
        panic!("objects")
    };
    for (name, value) in changes {
        if value.is_null() {
            claims_map.remove(&name);
        } else {
            claims_map.insert(name, value);
        }
    }
    claims
}

fn hs256() -> &'static Scheme {
    &SCHEMES[0]
}

/// What comes of a token with these changes, signed as it should be.
fn outcome(changes: Value) -> Result<Identity, IdentityError> {
    hs256().verify(&hs256().token(&claims_with(changes)))
}

#[test]
fn good_tokens_of_each_algorithm_say_who_the_player_is() {
    for scheme in &*SCHEMES {
        let identity = scheme.verify(&scheme.token(&claims()));
        let identity = identity.unwrap_or_else(|error| panic!("{:?}: {error:?}", scheme.algorithm));
        assert_eq!(
            identity,
            Identity {
                expires: Some(NOW + 300),
                ..Identity::verified(ISSUER, "ada")
            },
            "{:?}",
            scheme.algorithm
        );
    }
}

#[test]
fn a_name_is_taken_over_if_players_may_be_called_that() {
    let name = |name: Value| outcome(json!({ "name": name })).expect("it is good").name;
    assert_eq!(name(json!("Ada Lovelace")).as_deref(), Some("Ada Lovelace"));
    for no_name in [
        json!(""),
        json!("a\u{0}b"),
        json!("x".repeat(100)),
        json!(7),
    ] {
        assert_eq!(
            name(no_name.clone()),
            None,
            "{no_name} is no reason to stay out"
        );
    }
}

#[test]
fn an_expired_jwt_is_refused() {
    let leeway = DEFAULT_LEEWAY.as_secs();
    assert!(
        outcome(json!({ "exp": NOW - leeway + 1 })).is_ok(),
        "clocks differ"
    );
    for exp in [json!(NOW - leeway), json!(NOW as f64 - 30.5), json!(0)] {
        assert_eq!(
            outcome(json!({ "exp": exp })),
            Err(IdentityError::Expired),
            "{exp}"
        );
    }
    let strict = hs256().verifier.clone().with_leeway(Duration::ZERO);
    let token = hs256().token(&claims());
    assert!(
        strict.verify(token.as_bytes(), NOW + 299).is_ok(),
        "the last second"
    );
    assert_eq!(
        strict.verify(token.as_bytes(), NOW + 300),
        Err(IdentityError::Expired),
        "and no more"
    );
}

#[test]
fn a_jwt_that_does_not_expire_is_refused() {
    for exp in [Value::Null, json!("tomorrow"), json!(true), json!(-1)] {
        assert_eq!(
            outcome(json!({ "exp": exp })),
            Err(IdentityError::Untrusted(Distrust::Expiry)),
            "{exp}"
        );
    }
}

#[test]
fn a_jwt_for_later_is_refused() {
    let leeway = DEFAULT_LEEWAY.as_secs();
    assert!(
        outcome(json!({ "nbf": NOW + leeway })).is_ok(),
        "clocks differ"
    );
    assert_eq!(
        outcome(json!({ "nbf": NOW + leeway + 1 })),
        Err(IdentityError::NotYetValid)
    );
    assert_eq!(
        outcome(json!({ "nbf": "soon" })),
        Err(IdentityError::Malformed),
        "a condition that cannot be understood is not met"
    );
}

#[test]
fn a_jwt_for_another_audience_is_refused() {
    let wrong = Err(IdentityError::Untrusted(Distrust::Audience));
    for audience in [
        Value::Null,
        json!("forum"),
        json!(["forum", "shop"]),
        json!([]),
        json!(7),
    ] {
        assert_eq!(outcome(json!({ "aud": audience })), wrong, "{audience}");
    }
    assert!(
        outcome(json!({ "aud": ["forum", AUDIENCE] })).is_ok(),
        "one of several"
    );
}

#[test]
fn a_jwt_of_another_issuer_is_refused() {
    let wrong = Err(IdentityError::Untrusted(Distrust::Issuer));
    for issuer in [Value::Null, json!("https://elsewhere.example"), json!(7)] {
        assert_eq!(outcome(json!({ "iss": issuer })), wrong, "{issuer}");
    }
    assert!(
        outcome(json!({ "iss": [ISSUER] })).is_err(),
        "there is one issuer"
    );
}

#[test]
fn a_jwt_of_another_key_is_refused() {
    let wrong = Err(IdentityError::Untrusted(Distrust::Signature));
    let other_secret = EncodingKey::from_secret(b"another horse, another battery, another staple");
    let forged = sign(
        &hs256().header(),
        claims().to_string().as_bytes(),
        &other_secret,
        Algorithm::HS256,
    );
    assert_eq!(hs256().verify(&forged), wrong);

    // The signature of other claims.
    for scheme in &*SCHEMES {
        let token = scheme.token(&claims());
        let other = scheme.token(&claims_with(json!({ "sub": "bob" })));
        let (message, _) = other.rsplit_once('.').expect("three parts");
        let (_, signature) = token.rsplit_once('.').expect("three parts");
        assert_eq!(
            scheme.verify(&format!("{message}.{signature}")),
            wrong,
            "{:?}",
            scheme.algorithm
        );
        assert!(
            scheme.verify(&format!("{message}.")).is_err(),
            "{:?} without a signature",
            scheme.algorithm
        );
    }
}

#[test]
fn alg_none_is_refused() {
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let header = json!({ "typ": "JWT", "alg": none });
        let message = format!(
            "{}.{}",
            BASE64.encode(header.to_string()),
            BASE64.encode(claims().to_string())
        );
        let signed = hs256().sign(&header, &claims());
        for token in [format!("{message}."), message, signed] {
            for scheme in &*SCHEMES {
                assert_eq!(
                    scheme.verify(&token),
                    Err(IdentityError::Malformed),
                    "{:?} does not take {none}",
                    scheme.algorithm
                );
            }
        }
    }
}

#[test]
fn hs256_with_the_public_key_as_secret_is_refused() {
    // Everybody knows the public key. A verifier that believed the header would take it for a shared secret.
    let der = |pem: &[u8]| {
        let text = std::str::from_utf8(pem).expect("text");
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        base64::engine::general_purpose::STANDARD
            .decode(body)
            .expect("DER")
    };
    for (scheme, public) in SCHEMES[1..]
        .iter()
        .zip([RSA_PUBLIC, P256_PUBLIC, ED25519_PUBLIC])
    {
        for secret in [public.to_vec(), public.trim_ascii().to_vec(), der(public)] {
            let forged = sign(
                &json!({ "typ": "JWT", "alg": "HS256" }),
                claims().to_string().as_bytes(),
                &EncodingKey::from_secret(&secret),
                Algorithm::HS256,
            );
            assert_eq!(
                scheme.verify(&forged),
                Err(IdentityError::Untrusted(Distrust::Algorithm)),
                "{:?}",
                scheme.algorithm
            );
        }
    }
}

#[test]
fn a_jwt_of_another_algorithm_is_refused() {
    for scheme in &*SCHEMES {
        for other in &*SCHEMES {
            if other.algorithm == scheme.algorithm {
                continue;
            }
            assert_eq!(
                scheme.verify(&other.token(&claims())),
                Err(IdentityError::Untrusted(Distrust::Algorithm)),
                "{:?} does not take {:?}",
                scheme.algorithm,
                other.algorithm
            );
            // Nor what only pretends to be of the right one.
            assert_eq!(
                scheme.verify(&other.sign(&scheme.header(), &claims())),
                Err(IdentityError::Untrusted(Distrust::Signature)),
                "{:?} sees through {:?}",
                scheme.algorithm,
                other.algorithm
            );
        }
    }
    // The same key, and a longer digest: still not what was agreed upon.
    let hs512 = sign(
        &json!({ "alg": "HS512" }),
        claims().to_string().as_bytes(),
        &EncodingKey::from_secret(SECRET),
        Algorithm::HS512,
    );
    assert_eq!(
        hs256().verify(&hs512),
        Err(IdentityError::Untrusted(Distrust::Algorithm))
    );
}

#[test]
fn keys_that_a_jwt_brings_along_are_not_used() {
    // Its author's public key, where some libraries have looked for one.
    let jwk = json!({ "kty": "oct", "k": BASE64.encode(b"0123456789abcdef0123456789abcdef") });
    let header = json!({ "alg": "HS256", "jwk": jwk, "jku": "https://evil.example", "kid": "../../dev/null" });
    let forged = sign(
        &header,
        claims().to_string().as_bytes(),
        &EncodingKey::from_secret(b"0123456789abcdef0123456789abcdef"),
        Algorithm::HS256,
    );
    assert_eq!(
        hs256().verify(&forged),
        Err(IdentityError::Untrusted(Distrust::Signature))
    );
}

#[test]
fn a_jwt_that_demands_an_unknown_extension_is_refused() {
    let header = json!({ "alg": "HS256", "crit": ["b64"], "b64": true });
    assert_eq!(
        hs256().verify(&hs256().sign(&header, &claims())),
        Err(IdentityError::Untrusted(Distrust::Extension))
    );
}

#[test]
fn a_jwt_without_a_proper_subject_is_refused() {
    let wrong = Err(IdentityError::Untrusted(Distrust::Subject));
    for subject in [
        Value::Null,
        json!(7),
        json!(""),
        json!(" ada"),
        json!("a\nb"),
        json!("a\u{202e}b"),
        json!("ad\u{200b}a"),
        json!("x".repeat(129)),
    ] {
        assert_eq!(outcome(json!({ "sub": subject })), wrong, "{subject}");
    }
    for subject in ["x".repeat(128), "auth0|5f7c8ec7".into(), "Žofie".into()] {
        let identity = outcome(json!({ "sub": subject })).expect("it is good");
        assert_eq!(identity.subject, subject);
    }
}

#[test]
fn a_jwt_that_says_something_twice_is_refused() {
    // Two readers of the same token could see different things.
    let twice = format!(
        r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"bob","exp":1,"exp":{},"sub":"ada"}}"#,
        NOW + 300
    );
    let token = sign(
        &hs256().header(),
        twice.as_bytes(),
        &EncodingKey::from_secret(SECRET),
        Algorithm::HS256,
    );
    assert_eq!(hs256().verify(&token), Err(IdentityError::Malformed));
}

#[test]
fn oversized_and_missing_credentials_are_refused() {
    let token = hs256().token(&claims_with(json!({ "padding": "x".repeat(1_000) })));
    assert!(token.len() > MAX_CREDENTIALS_BYTES);
    assert_eq!(hs256().verify(&token), Err(IdentityError::TooLong));
    assert_eq!(hs256().verify(""), Err(IdentityError::Missing));
}

#[test]
fn a_jwt_of_the_longest_kind_fits() {
    let claims = claims_with(json!({ "sub": "x".repeat(64), "name": "x".repeat(32), "nbf": NOW }));
    let token = SCHEMES[1].token(&claims);
    assert!(
        token.len() <= MAX_CREDENTIALS_BYTES,
        "RSA signatures are long: {} bytes",
        token.len()
    );
    assert!(SCHEMES[1].verify(&token).is_ok());
}

#[test]
fn unfit_keys_are_named_when_the_server_starts() {
    use JwtKeyError as Error;
    let hs256 = |secret: &[u8]| JwtVerifier::hs256(secret, ISSUER, AUDIENCE).err();
    assert_eq!(hs256(b"hunter2"), Some(Error::ShortSecret(7)));
    assert_eq!(
        hs256(RSA_PUBLIC),
        Some(Error::PemAsSecret),
        "not a secret at all"
    );

    let small: &[u8] = include_bytes!("keys/rsa1024.pub.pem");
    assert_eq!(
        JwtVerifier::rs256(small, ISSUER, AUDIENCE).err(),
        Some(Error::WeakRsaKey(1_024))
    );
    let p384: &[u8] = include_bytes!("keys/p384.pub.pem");
    let truncated = &ED25519_PUBLIC[..60];
    // A short Ed25519 key in an otherwise proper envelope.
    let short =
        b"-----BEGIN PUBLIC KEY-----\nMBIwBQYDK2VwAwkAAQIDBAUGBwg=\n-----END PUBLIC KEY-----\n";
    type Make = fn(&[u8], &str, &str) -> Result<JwtVerifier, Error>;
    for (make, key) in [
        (JwtVerifier::rs256 as Make, RSA),
        (JwtVerifier::rs256, P256_PUBLIC),
        (JwtVerifier::es256, P256),
        (JwtVerifier::es256, p384),
        (JwtVerifier::es256, RSA_PUBLIC),
        (JwtVerifier::eddsa, ED25519),
        (JwtVerifier::eddsa, truncated),
        (JwtVerifier::eddsa, short),
        (JwtVerifier::eddsa, b"no key"),
    ] {
        let error = make(key, ISSUER, AUDIENCE).err();
        assert!(
            matches!(error, Some(Error::NotAPublicKey { .. })),
            "{}: {error:?}",
            String::from_utf8_lossy(key)
        );
    }
    for (issuer, audience) in [("", AUDIENCE), (ISSUER, "")] {
        assert_eq!(
            JwtVerifier::hs256(SECRET, issuer, audience).err(),
            Some(Error::NobodyNamed)
        );
    }
}

#[test]
fn keys_stay_out_of_logs() {
    for scheme in &*SCHEMES {
        let shown = format!("{:?}", scheme.verifier);
        assert!(
            shown.contains(ISSUER) && !shown.contains("horse"),
            "{shown}"
        );
        assert!(!shown.contains("key"), "{shown}");
    }
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..1_000)) {
        for scheme in &*SCHEMES {
            prop_assert!(scheme.verifier.verify(&bytes, NOW).is_err());
        }
    }

    #[test]
    fn garbage_between_dots_is_refused_without_a_panic(
        header in "[ -~]{0,60}",
        claims in "[ -~]{0,120}",
        signature in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let token = [header.as_bytes(), claims.as_bytes(), &signature].map(|part| BASE64.encode(part)).join(".");
        for scheme in &*SCHEMES {
            prop_assert!(scheme.verify(&token).is_err());
        }
    }

    /// Signed by the back end, and nonsense all the same.
    #[test]
    fn signed_garbage_is_no_identity(claims in "[ -~]{0,200}") {
        let token = sign(&hs256().header(), claims.as_bytes(), &hs256().key, Algorithm::HS256);
        prop_assert!(hs256().verify(&token).is_err());
    }

    #[test]
    fn an_altered_jwt_is_refused(which in 0..4_usize, at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let scheme = &SCHEMES[which];
        let mut token = scheme.token(&claims()).into_bytes();
        let at = at.index(token.len());
        token[at] ^= flip;
        prop_assert!(scheme.verifier.verify(&token, NOW).is_err(), "byte {at}");
    }
}

// Connect tokens, at a real socket. `udp::token` and `udp::shards` have the same without one.

const KEY: [u8; 32] = [3; 32];

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A server that knows [`KEY`], and what it does with requests to connect.
struct Door {
    server: UdpServer,
    addr: SocketAddr,
}

impl Door {
    fn new() -> Self {
        let config = UdpServerConfig {
            auth: Auth::Secure { private_key: KEY },
            ..UdpServerConfig::new(loopback())
        };
        let server = UdpServer::bind(config).expect("a free port");
        let addr = server.local_addr().expect("UDP has an address");
        Self { server, addr }
    }

    /// A token for this server, unlike any other.
    fn token(&self) -> ConnectToken {
        TokenBuilder::new(random_id(), vec![self.addr])
            .issue(&KEY)
            .expect("a token")
    }

    /// Whether the server answers this request.
    ///
    /// It handles requests in their order, so once it has answered a good one that came after, it will not answer this
    /// one any more.
    fn answers(&self, request: &[u8], from: &UdpSocket) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        let next = UdpSocket::bind(loopback()).expect("a port");
        for socket in [from, &next] {
            socket.set_nonblocking(true).expect("a socket");
        }
        from.send_to(request, self.addr).expect("loopback takes it");
        let good = ask(&self.token());
        let mut buffer = [0; 2_048];
        loop {
            next.send_to(&good, self.addr).expect("loopback takes it");
            std::thread::sleep(Duration::from_millis(20));
            if next.recv(&mut buffer).is_ok() {
                return from.recv(&mut buffer).is_ok();
            }
            assert!(Instant::now() < end, "a good request is answered");
        }
    }
}

fn random_id() -> u64 {
    fastrand::u64(..)
}

fn socket() -> UdpSocket {
    UdpSocket::bind(loopback()).expect("a port")
}

/// A request to connect, as netcode's client sends it.
fn ask(token: &ConnectToken) -> Vec<u8> {
    let mut request = vec![0];
    request.extend_from_slice(&token.version_info);
    request.extend_from_slice(&token.protocol_id.to_le_bytes());
    request.extend_from_slice(&token.expire_timestamp.to_le_bytes());
    request.extend_from_slice(&token.xnonce);
    request.extend_from_slice(&token.private_data);
    request
}

fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
}

#[test]
fn a_good_connect_token_is_answered() {
    let door = Door::new();
    assert!(door.answers(&ask(&door.token()), &socket()));
}

#[test]
fn a_replayed_connect_token_is_refused() {
    let door = Door::new();
    let request = ask(&door.token());
    let (player, thief) = (socket(), socket());
    assert!(door.answers(&request, &player), "the first time");
    assert!(!door.answers(&request, &thief), "from another socket");
    assert!(
        door.answers(&request, &player),
        "the answer may have been lost"
    );
}

#[test]
fn a_connect_token_of_a_finished_session_is_refused() {
    let mut door = Door::new();
    let token = door.token();
    let request = ask(&token);
    let mut client = UdpClient::connect(UdpClientConfig::with_token(token)).expect("a socket");
    let (mut events, started_at) = (Vec::new(), Instant::now());
    let mut step = |client: &mut UdpClient, is_done: fn(&LinkEvent) -> bool| {
        while !events.iter().any(is_done) {
            let now = started_at.elapsed();
            assert!(now < Duration::from_secs(10), "it works");
            client.receive(now, &mut Vec::new());
            client.flush(now);
            door.server.receive(now, &mut events);
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    step(&mut client, |event| {
        matches!(event, LinkEvent::Opened { .. })
    });
    let player = client.local_addr().expect("it is bound");
    client.close();
    step(&mut client, |event| {
        matches!(event, LinkEvent::Closed { .. })
    });
    drop(client);

    assert!(!door.answers(&request, &socket()), "from another socket");
    if let Ok(same) = UdpSocket::bind(SocketAddr::new(loopback().ip(), player.port())) {
        assert!(!door.answers(&request, &same), "nor from the same");
    }
}

#[test]
fn an_expired_connect_token_is_refused() {
    let door = Door::new();
    let issued_at = unix_time() - Duration::from_secs(60);
    let expired = |valid_s| {
        let addresses = vec![door.addr];
        ConnectToken::generate(
            issued_at,
            DEFAULT_PROTOCOL_ID,
            valid_s,
            1,
            -1,
            addresses,
            None,
            &KEY,
        )
        .expect("a token")
    };
    assert!(
        !door.answers(&ask(&expired(30)), &socket()),
        "half a minute ago"
    );
    assert!(
        door.answers(&ask(&expired(3_600)), &socket()),
        "but not for its age"
    );
    let prolonged = ConnectToken {
        expire_timestamp: unix_time().as_secs() + 30,
        ..expired(30)
    };
    assert!(
        !door.answers(&ask(&prolonged), &socket()),
        "nor prolonged by its owner"
    );
}

#[test]
fn a_forged_connect_token_is_refused() {
    let door = Door::new();
    let request = ask(&door.token());
    // Version, protocol id, expiry, nonce, and the private part from its first byte to its tag's last.
    for at in [1, 14, 22, 30, 54, 500, 1_061, 1_062, 1_077] {
        let mut forged = request.clone();
        forged[at] ^= 1;
        assert!(!door.answers(&forged, &socket()), "byte {at}");
    }
    assert!(door.answers(&request, &socket()), "the original is good");
}

#[test]
fn a_connect_token_of_another_key_is_refused() {
    let door = Door::new();
    let forged = TokenBuilder::new(1, vec![door.addr])
        .issue(&[4; 32])
        .expect("a token");
    assert!(!door.answers(&ask(&forged), &socket()));
}

#[test]
fn a_connect_token_for_another_server_is_refused() {
    let door = Door::new();
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let token = TokenBuilder::new(1, vec![elsewhere])
        .issue(&KEY)
        .expect("a token");
    assert!(!door.answers(&ask(&token), &socket()));
    let both = TokenBuilder::new(2, vec![elsewhere, door.addr])
        .issue(&KEY)
        .expect("a token");
    assert!(
        door.answers(&ask(&both), &socket()),
        "one of several is enough"
    );
}

#[test]
fn a_connect_token_for_another_game_is_refused() {
    let door = Door::new();
    let token = TokenBuilder::new(1, vec![door.addr])
        .protocol_id(DEFAULT_PROTOCOL_ID + 1)
        .issue(&KEY)
        .expect("a token");
    assert!(!door.answers(&ask(&token), &socket()));
    let relabelled = ConnectToken {
        protocol_id: DEFAULT_PROTOCOL_ID,
        ..token
    };
    assert!(
        !door.answers(&ask(&relabelled), &socket()),
        "whatever it says it is for"
    );
}
