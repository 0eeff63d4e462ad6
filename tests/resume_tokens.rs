//! Resume tokens at a whole server: replayed, forged, of another server, of an ended session, or stolen.
//!
//! A thief listens on the player's link, which is not encrypted here, and says what was heard in words of their own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::client::ClientConfig;
use bevy_tandem::identity::{Identity, IdentityError};
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::acks::{AckTracker, Header};
use bevy_tandem::protocol::handshake::{Control, Hello, Intent, ResumeRejection};
use bevy_tandem::protocol::reliable::Taken;
use bevy_tandem::protocol::resume::ResumeToken;
use bevy_tandem::session::{Away, SessionReturned};
use bevy_tandem::testing::{TestClientId, TestNet};
use bevy_tandem::transport::{
    ClientLinkState, ClientTransport, LocalClient, TransportKind, TransportStats,
};
use bevy_tandem::wire::serial;
use renet::{ChannelConfig, ConnectionConfig, RenetClient, SendType};
use serde::{Deserialize, Serialize};

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Numbered(u32);

/// What an app was told.
#[derive(Resource, Default)]
struct Log {
    returned: usize,
    left: usize,
    heard: Vec<u32>,
}

fn game(app: &mut App) {
    app.replicate::<Health>();
    app.protocol()
        .add_message::<Numbered>(Channel::ReliableOrdered);
    app.init_resource::<Log>()
        .add_observer(|_: On<SessionReturned>, mut log: ResMut<Log>| log.returned += 1)
        .add_observer(|_: On<SessionLeft>, mut log: ResMut<Log>| log.left += 1)
        .add_systems(
            Update,
            |heard: Option<MessageReader<FromServer<Numbered>>>, mut log: ResMut<Log>| {
                let heard = heard.into_iter();
                heard.for_each(|mut heard| log.heard.extend(heard.read().map(|it| it.0.0)));
            },
        );
}

/// What a thief has heard.
#[derive(Default)]
struct Loot {
    hellos: Vec<Hello>,
    tokens: Vec<ResumeToken>,
}

const RENET: u8 = 2;
const GOODBYE: u8 = 3;
const CONTROL_CHANNEL: u8 = 0;

fn renet() -> RenetClient {
    let resend_time = Duration::from_millis(200);
    let channels: Vec<_> = (0..4)
        .map(|channel_id| ChannelConfig {
            channel_id,
            max_memory_usage_bytes: 1 << 20,
            send_type: match channel_id {
                3 => SendType::Unreliable,
                2 => SendType::ReliableUnordered { resend_time },
                _ => SendType::ReliableOrdered { resend_time },
            },
        })
        .collect();
    let mut renet = RenetClient::new(ConnectionConfig {
        available_bytes_per_tick: 60_000,
        server_channels_config: channels.clone(),
        client_channels_config: channels,
    });
    renet.set_connected();
    renet
}

/// The chunks of a datagram, each with its kind.
fn chunks(datagram: &[u8]) -> Vec<(u8, &[u8])> {
    let mut chunks = Vec::new();
    let mut rest = Header::decode(datagram).map_or(&[][..], |(_, rest)| rest);
    while let Some((&[kind, low, high], tail)) = rest.split_first_chunk() {
        let (body, tail) = tail.split_at(u16::from_le_bytes([low, high]).into());
        chunks.push((kind, body));
        rest = tail;
    }
    chunks
}

/// Reads one direction of a link.
struct Reader(RenetClient);

impl Reader {
    /// What a datagram completes on the connection's own channel.
    fn read(&mut self, datagram: &[u8]) -> Vec<bytes::Bytes> {
        for (kind, body) in chunks(datagram) {
            if kind == RENET {
                self.0.process_packet(body);
            }
        }
        std::iter::from_fn(|| self.0.receive_message(CONTROL_CHANNEL)).collect()
    }
}

/// A link on which somebody listens.
struct Overheard {
    link: LocalClient,
    loot: Arc<Mutex<Loot>>,
    up: Reader,
    down: Reader,
}

impl ClientTransport for Overheard {
    fn state(&self) -> &ClientLinkState {
        self.link.state()
    }
    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        let known = datagrams.len();
        self.link.receive(now, datagrams);
        for message in datagrams[known..].iter().flat_map(|it| self.down.read(it)) {
            if let Ok(Control::Welcome { token, .. }) = serial::decode(&message) {
                self.loot.lock().unwrap().tokens.push(token);
            }
        }
    }
    fn send(&mut self, now: Duration, datagram: &[u8]) {
        for message in self.up.read(datagram) {
            if let Ok(hello) = serial::decode(&message) {
                self.loot.lock().unwrap().hellos.push(hello);
            }
        }
        self.link.send(now, datagram);
    }
    fn flush(&mut self, now: Duration) {
        self.link.flush(now);
    }
    fn kind(&self) -> TransportKind {
        self.link.kind()
    }
    fn vanish(&mut self) {
        self.link.vanish();
    }
    fn close(&mut self) {
        self.link.close();
    }
    fn stats(&self) -> TransportStats {
        self.link.stats()
    }
}

/// Lets Ada join over links on which somebody listens.
fn join_overheard(net: &mut TestNet, credentials: &[u8]) -> (TestClientId, Arc<Mutex<Loot>>) {
    let config = ClientConfig {
        name: "Ada".into(),
        credentials: credentials.into(),
        ..default()
    };
    let ada = net.join_with(game, config);
    let loot = Arc::<Mutex<Loot>>::default();
    let (connector, shared) = (net.connector().clone(), loot.clone());
    net.client(ada).connect_with(move |_: Option<&[u8]>| {
        Ok(Box::new(Overheard {
            link: connector.connect(),
            loot: shared.clone(),
            up: Reader(renet()),
            down: Reader(renet()),
        }) as Box<dyn ClientTransport>)
    });
    net.run(Ticks(60));
    assert!(net.session(ada).is_some(), "Ada is in");
    (ada, loot)
}

fn newest_token(loot: &Mutex<Loot>) -> ResumeToken {
    loot.lock().unwrap().tokens.last().unwrap().clone()
}

/// What Ada said when she joined, but with a wish to resume.
fn with_token(loot: &Mutex<Loot>, token: &ResumeToken) -> Hello {
    let taken = Taken::default();
    Hello {
        intent: Intent::Resume {
            token: token.clone(),
            taken,
        },
        ..loot.lock().unwrap().hellos[0].clone()
    }
}

/// Says a hello over a link of its own, which then falls silent, and returns the new token or why there is none.
fn say(net: &mut TestNet, hello: &Hello) -> Result<ResumeToken, DisconnectReason> {
    let mut link = net.connector().connect();
    let (mut acks, mut speaker, mut reader) = (AckTracker::new(), renet(), Reader(renet()));
    let mut bytes = Vec::new();
    serial::encode(hello, &mut bytes).unwrap();
    speaker.send_message(CONTROL_CHANNEL, bytes);
    let mut unsent = speaker.get_packets_to_send();
    for tick in 0..60 {
        let now = Duration::from_millis(16) * tick;
        let mut datagrams = Vec::new();
        link.receive(now, &mut datagrams);
        for datagram in &datagrams {
            for (kind, body) in chunks(datagram) {
                if kind == GOODBYE {
                    return Err(serial::decode(body).unwrap());
                }
            }
            for message in reader.read(datagram) {
                if let Ok(Control::Welcome { token, .. }) = serial::decode(&message) {
                    link.vanish();
                    return Ok(token);
                }
            }
        }
        if link.state().is_connected() {
            for packet in unsent.drain(..) {
                let header = acks.next_header(now).encode();
                let length = (packet.len() as u16).to_le_bytes();
                link.send(now, &[&header[..], &[RENET], &length, &packet].concat());
            }
        }
        link.flush(now);
        net.run(Ticks(1));
    }
    panic!("the server does not answer");
}

fn rejected(why: ResumeRejection) -> Result<ResumeToken, DisconnectReason> {
    Err(DisconnectReason::ResumeRejected(why))
}

/// Ada's connection is up, and what the server says to her session reaches her.
fn assert_plays_on(net: &mut TestNet, ada: TestClientId, session: Entity) {
    assert_eq!(net.session(ada), Some(session), "the same session");
    let said = net.client(ada).world().resource::<Log>().heard.len() as u32;
    let to = Target::Session(session);
    let message = Numbered(said);
    net.server
        .world_mut()
        .write_message(ToClients { to, message });
    net.run(Ticks(10));
    let client = net.client(ada).world();
    let connection = client.resource::<Connection>();
    assert_eq!(connection.state(), ConnectionState::Connected);
    let all: Vec<_> = (0..=said).collect();
    assert_eq!(client.resource::<Log>().heard, all);
    assert_eq!(net.server.world().resource::<Log>().left, 0);
}

fn come_back(net: &mut TestNet, ada: TestClientId) {
    let returned = net.server.world().resource::<Log>().returned;
    net.cut(ada);
    net.run(Ticks(60 * 6));
    let now = net.server.world().resource::<Log>().returned;
    assert_eq!(now, returned + 1, "Ada is back");
}

#[test]
fn a_token_that_was_used_is_refused_once_its_successor_has_arrived() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let (ada, loot) = join_overheard(&mut net, b"");
    let session = net.session(ada).unwrap();
    let mut spent = Vec::new();
    for _ in 0..3 {
        spent.push(newest_token(&loot));
        come_back(&mut net, ada);
        for token in &spent {
            let answer = say(&mut net, &with_token(&loot, token));
            assert_eq!(answer, rejected(ResumeRejection::InvalidToken));
        }
        let stats = net.server.world().resource::<ServerStats>();
        assert_eq!(stats.resumed, spent.len() as u64);
    }
    assert_plays_on(&mut net, ada, session);

    // The same hello is good with the newest token, and with what Ada has taken since.
    let mut hello = with_token(&loot, &newest_token(&loot));
    if let Intent::Resume { taken, .. } = &mut hello.intent {
        taken.next[0] = 1;
    }
    assert!(say(&mut net, &hello).is_ok());
}

#[test]
fn a_token_stays_good_while_its_successor_may_be_lost() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let (ada, loot) = join_overheard(&mut net, b"");
    let session = net.session(ada).unwrap();
    let first = newest_token(&loot);
    // She does not answer for herself while links are made for her.
    net.pause(ada, true);
    let lost = say(&mut net, &with_token(&loot, &first)).unwrap();
    let newest = say(&mut net, &with_token(&loot, &first)).unwrap();
    assert_eq!(
        say(&mut net, &with_token(&loot, &lost)),
        rejected(ResumeRejection::InvalidToken),
        "void, as its owner has asked without it"
    );
    assert!(say(&mut net, &with_token(&loot, &newest)).is_ok());
    assert_eq!(
        say(&mut net, &with_token(&loot, &first)),
        rejected(ResumeRejection::InvalidToken),
        "its successor was used"
    );
    assert!(net.server.world().get_entity(session).is_ok());
}

#[test]
fn forged_tokens_are_refused_and_the_session_lives_on() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let (ada, loot) = join_overheard(&mut net, b"");
    let session = net.session(ada).unwrap();
    let mut refused = 0;
    for is_away in [false, true] {
        net.pause(ada, is_away);
        if is_away {
            net.run(Ticks(60 * 6));
            assert!(net.server.world().get::<Away>(session).is_some());
        }
        let good = newest_token(&loot);
        let flipped = (0..32).step_by(5).map(|at| {
            let mut secret = good.secret;
            secret[at] ^= 1 << (at % 8);
            secret
        });
        for secret in flipped.chain([[0; 32], [0xff; 32]]) {
            let forged = ResumeToken {
                secret,
                ..good.clone()
            };
            assert_eq!(
                say(&mut net, &with_token(&loot, &forged)),
                rejected(ResumeRejection::InvalidToken)
            );
            refused += 1;
        }
        let still_away = net.server.world().get::<Away>(session).is_some();
        assert_eq!(still_away, is_away, "as if nobody had asked");
    }
    let stats = net.server.world().resource::<ServerStats>();
    assert_eq!((stats.resumes_rejected, stats.resumed), (refused, 0));
    net.pause(ada, false);
    net.run(Ticks(60 * 6));
    assert_plays_on(&mut net, ada, session);
    come_back(&mut net, ada);
    assert_plays_on(&mut net, ada, session);
}

#[test]
fn tokens_of_another_server_are_refused() {
    let [mut here, mut there, mut empty] =
        [(); 3].map(|()| TestNet::new(game, LinkConditions::default()));
    let (ada, loot) = join_overheard(&mut here, b"");
    let (bob, _) = join_overheard(&mut there, b"");
    let [in_use, unknown] = [&mut there, &mut empty].map(|net| {
        let hello = with_token(&loot, &newest_token(&loot));
        say(net, &hello)
    });
    // Both servers number their sessions from 0.
    assert_eq!(in_use, rejected(ResumeRejection::InvalidToken));
    assert_eq!(unknown, rejected(ResumeRejection::Expired));
    for (net, player) in [(&mut here, ada), (&mut there, bob)] {
        let session = net.session(player).unwrap();
        assert_plays_on(net, player, session);
        come_back(net, player);
    }
}

#[test]
fn tokens_of_ended_sessions_are_refused_as_expired() {
    const WINDOW: Duration = Duration::from_secs(10);
    type End = fn(&mut TestNet, TestClientId);
    let ends: [(&str, End); 3] = [
        ("kicked", |net, ada| {
            let session = net.session(ada).unwrap();
            let reason = "enough".into();
            net.server.world_mut().trigger(Kick { session, reason });
        }),
        ("left", |net, ada| {
            net.client(ada).world_mut().trigger(Disconnect);
        }),
        ("away for too long", |net, ada| {
            net.pause(ada, true);
            net.run(Ticks(60 * 16));
        }),
    ];
    for (how, end) in ends {
        let config = ServerConfig {
            resume_window: WINDOW,
            ..default()
        };
        let mut net = TestNet::with_config(game, LinkConditions::default(), config);
        let (ada, loot) = join_overheard(&mut net, b"");
        come_back(&mut net, ada);
        end(&mut net, ada);
        net.run(Ticks(10));
        assert_eq!(net.server.world().resource::<Log>().left, 1, "{how}");
        // Whoever comes next is not taken for the one who left.
        let bob = net.join("Bob");
        net.run(Ticks(30));
        assert!(net.session(bob).is_some());
        let tokens = loot.lock().unwrap().tokens.clone();
        assert_eq!(tokens.len(), 2);
        for token in &tokens {
            assert_eq!(
                say(&mut net, &with_token(&loot, token)),
                rejected(ResumeRejection::Expired),
                "{how}"
            );
        }
    }
}

#[test]
fn a_stolen_token_is_of_no_use_to_another_player() {
    let verifier = |credentials: &[u8], _now: u64| match credentials {
        b"" => Err(IdentityError::Missing),
        name => Ok(Identity::verified("test", String::from_utf8_lossy(name))),
    };
    let config = ServerConfig {
        verifier: Some(Arc::new(verifier)),
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let (ada, loot) = join_overheard(&mut net, b"ada");
    let session = net.session(ada).unwrap();
    let stolen = newest_token(&loot);
    let hello_as = |credentials: &[u8]| Hello {
        credentials: credentials.into(),
        ..with_token(&loot, &stolen)
    };
    for is_away in [false, true] {
        net.pause(ada, is_away);
        if is_away {
            net.run(Ticks(60 * 6));
            assert!(net.server.world().get::<Away>(session).is_some());
        }
        assert_eq!(
            say(&mut net, &hello_as(b"mallory")),
            rejected(ResumeRejection::OtherIdentity)
        );
        let nobody = say(&mut net, &hello_as(b""));
        assert!(
            matches!(nobody, Err(DisconnectReason::Unauthorised(_))),
            "{nobody:?}"
        );
    }
    net.pause(ada, false);
    net.run(Ticks(60 * 6));
    // Neither theft has spent it.
    assert_eq!(net.server.world().resource::<Log>().returned, 1);
    assert_plays_on(&mut net, ada, session);
    let identity = net.server.world().get::<Identity>(session).unwrap();
    assert_eq!(identity.subject, "ada");
    come_back(&mut net, ada);
    assert_plays_on(&mut net, ada, session);
}
