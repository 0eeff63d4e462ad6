//! Joining, leaving, being refused, and what hostile peers can do about it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bevy::prelude::*;
use bevy_tandem::client::{ClientConfig, ReconnectSettings};
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::acks::{AckTracker, Header};
use bevy_tandem::protocol::backoff::BackoffSettings;
use bevy_tandem::protocol::handshake::{Hello, Intent, WIRE_VERSION};
use bevy_tandem::server::{ListenAddresses, ServerConfig, ServerStats};
use bevy_tandem::session::Ban;
use bevy_tandem::testing::{TestClientId, TestNet};
use bevy_tandem::transport::udp::token::ConnectToken;
use bevy_tandem::transport::udp::{Auth, ClientAuth, UdpClient, UdpServer, token};
use bevy_tandem::transport::ws::{WsClient, WsClientConfig, WsServerConfig};
use bevy_tandem::transport::{
    ClientLinkState, ClientTransport, Delivery, LocalClient, LocalServer, TransportKind,
    TransportStats, UdpClientConfig, UdpServerConfig,
};
use bevy_tandem::wire::serial;
use renet::{ChannelConfig, ConnectionConfig, RenetClient, SendType};
use serde::{Deserialize, Serialize};

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u8);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Armour(u8);

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Steer(i8);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Chat(String);

/// What an app was told.
#[derive(Resource, Default)]
struct Log {
    joined: Vec<String>,
    left: Vec<DisconnectReason>,
    connected: usize,
    disconnected: Vec<DisconnectReason>,
}

fn game(app: &mut App) {
    app.add_input::<Steer>();
    app.replicate::<Health>();
    app.protocol().add_message::<Chat>(Channel::ReliableOrdered);
    app.add_plugins(log);
}

fn log(app: &mut App) {
    app.init_resource::<Log>()
        .add_observer(
            |joined: On<SessionJoined>,
             sessions: Query<&Session>,
             mut log: ResMut<Log>,
             mut commands: Commands| {
                let name = sessions.get(joined.entity).unwrap().name.clone();
                log.joined.push(name);
                commands.spawn((Replicated, OwnedBy(joined.entity), Health(100)));
            },
        )
        .add_observer(|left: On<SessionLeft>, mut log: ResMut<Log>| {
            log.left.push(left.reason.clone());
        })
        .add_observer(|_: On<Connected>, mut log: ResMut<Log>| log.connected += 1)
        .add_observer(|ended: On<Disconnected>, mut log: ResMut<Log>| {
            log.disconnected.push(ended.reason.clone());
        });
}

fn server_log(net: &TestNet) -> &Log {
    net.server.world().resource()
}

fn client_log(net: &mut TestNet, client: TestClientId) -> &Log {
    net.client(client).world().resource()
}

fn is_connected(net: &mut TestNet, client: TestClientId) -> bool {
    let connection = net.client(client).world().resource::<Connection>();
    connection.state() == ConnectionState::Connected
}

/// Why a client is not connected, if its connection has ended.
fn end_reason(net: &mut TestNet, client: TestClientId) -> Option<DisconnectReason> {
    let connection = net.client(client).world().resource::<Connection>();
    connection.reason().cloned()
}

fn count<C: Component>(app: &mut App) -> usize {
    let world = app.world_mut();
    world.query::<&C>().iter(world).count()
}

fn named(name: &str) -> ClientConfig {
    ClientConfig {
        name: name.into(),
        ..default()
    }
}

#[test]
fn joining_is_told_once_on_both_sides() {
    let mut net = TestNet::new(game, LinkConditions::awful().with_seed(4));
    let ada = net.join("Ada");
    net.run(Ticks(300));
    assert_eq!(server_log(&net).joined, ["Ada"]);
    assert_eq!(client_log(&mut net, ada).connected, 1);
    assert!(is_connected(&mut net, ada));
    let session = net.session(ada).unwrap();
    let owned = net.server.world().get::<Owns>(session).unwrap();
    assert_eq!(owned.iter().count(), 1, "what the observer spawned");
    let mut query = net.client(ada).world_mut().query::<(&Health, &Owned)>();
    assert_eq!(query.iter(net.client(ada).world()).count(), 1);
}

fn refusal(other_game: fn(&mut App)) -> DisconnectReason {
    let mut net = TestNet::new(game, LinkConditions::wifi().with_seed(2));
    let ada = net.join_with(other_game, named("Ada"));
    let bob = net.join("Bob");
    net.run(Ticks(120));
    assert_eq!(server_log(&net).joined, ["Bob"], "others get in");
    assert!(is_connected(&mut net, bob));
    assert_eq!(client_log(&mut net, ada).connected, 0);
    let told = client_log(&mut net, ada).disconnected.clone();
    assert_eq!(told.len(), 1, "told once");
    assert_eq!(end_reason(&mut net, ada).as_ref(), told.first());
    told[0].clone()
}

#[test]
fn different_registrations_are_refused_by_name() {
    fn other_type(app: &mut App) {
        app.add_input::<Steer>();
        app.replicate::<Armour>();
        app.protocol().add_message::<Chat>(Channel::ReliableOrdered);
        app.add_plugins(log);
    }
    let text = refusal(other_type).to_string();
    assert!(
        text.contains("server has `component Health`")
            && text.contains("client has `component Armour`"),
        "{text}"
    );

    fn one_less(app: &mut App) {
        app.add_input::<Steer>();
        app.replicate::<Health>();
        app.add_plugins(log);
    }
    let text = refusal(one_less).to_string();
    assert!(
        text.contains("Chat") && text.contains("client has nothing"),
        "{text}"
    );

    fn other_order_and_channel(app: &mut App) {
        app.replicate::<Health>();
        app.protocol().add_message::<Chat>(Channel::Unreliable);
        app.add_input::<Steer>();
        app.add_plugins(log);
    }
    let text = refusal(other_order_and_channel).to_string();
    assert!(
        text.contains("Chat on ReliableOrdered") && text.contains("Chat on Unreliable"),
        "{text}"
    );

    fn other_rules(app: &mut App) {
        app.add_input::<Steer>();
        app.replicate::<Health>().predict();
        app.protocol().add_message::<Chat>(Channel::ReliableOrdered);
        app.add_plugins(log);
    }
    let text = refusal(other_rules).to_string();
    assert!(text.contains("Health, predicted"), "{text}");
}

#[test]
fn names_that_do_not_fit_are_refused() {
    for name in ["", "  ", "a\nb", &"x".repeat(33), &"x".repeat(3_000)] {
        let mut net = TestNet::new(game, LinkConditions::default());
        let ada = net.join(name);
        net.run(Ticks(60));
        let reason = end_reason(&mut net, ada);
        assert!(
            matches!(reason, Some(DisconnectReason::InvalidName(_))),
            "{name:?}: {reason:?}"
        );
        assert!(server_log(&net).joined.is_empty());
    }
}

#[test]
fn a_full_server_refuses_until_somebody_leaves() {
    let config = ServerConfig {
        max_sessions: 1,
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let ada = net.join("Ada");
    net.run(Ticks(20));
    let bob = net.join("Bob");
    net.run(Ticks(20));
    assert_eq!(
        end_reason(&mut net, bob),
        Some(DisconnectReason::ServerFull)
    );
    assert!(is_connected(&mut net, ada), "the first stays");
    net.client(ada).world_mut().trigger(Disconnect);
    net.run(Ticks(20));
    net.connect(bob);
    net.run(Ticks(20));
    assert!(is_connected(&mut net, bob), "there is room now");
    assert_eq!(server_log(&net).joined, ["Ada", "Bob"]);
}

#[test]
fn who_is_kicked_reads_why() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(3));
    let (ada, bob) = (net.join("Ada"), net.join("Bob"));
    net.run(Ticks(120));
    assert_eq!(count::<Health>(net.client(bob)), 2);
    let session = net.session(ada).unwrap();
    net.server.world_mut().trigger(Kick {
        session,
        reason: "too loud".into(),
    });
    net.run(Ticks(60));
    let kicked = DisconnectReason::Kicked("too loud".into());
    assert_eq!(end_reason(&mut net, ada), Some(kicked.clone()));
    assert_eq!(server_log(&net).left, [kicked]);
    assert!(net.server.world().get_entity(session).is_err());
    assert_eq!(count::<Health>(&mut net.server), 1, "what Ada owned");
    assert_eq!(count::<Health>(net.client(bob)), 1, "and Bob's copy of it");
    assert!(is_connected(&mut net, bob));
}

#[test]
fn the_game_may_kick_while_somebody_joins() {
    fn bouncer(app: &mut App) {
        game(app);
        app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
            commands.trigger(Kick {
                session: joined.entity,
                reason: "not today".into(),
            });
        });
    }
    let mut net = TestNet::new(bouncer, LinkConditions::default());
    let ada = net.join("Ada");
    net.run(Ticks(20));
    assert_eq!(
        end_reason(&mut net, ada),
        Some(DisconnectReason::Kicked("not today".into()))
    );
    assert_eq!(count::<Session>(&mut net.server), 0);
}

#[test]
fn the_client_may_leave_as_soon_as_it_is_in() {
    fn shy(app: &mut App) {
        game(app);
        app.add_observer(|_: On<Connected>, mut commands: Commands| commands.trigger(Disconnect));
    }
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join_with(shy, named("Ada"));
    net.run(Ticks(20));
    assert_eq!(
        end_reason(&mut net, ada),
        Some(DisconnectReason::ClientLeft)
    );
    assert_eq!(server_log(&net).left, [DisconnectReason::ClientLeft]);
}

#[test]
fn a_client_that_leaves_takes_what_it_owns_along() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(8));
    let (ada, bob) = (net.join("Ada"), net.join("Bob"));
    net.run(Ticks(120));
    net.client(ada).world_mut().trigger(Disconnect);
    net.run(Ticks(1));
    assert_eq!(
        client_log(&mut net, ada).disconnected,
        [DisconnectReason::ClientLeft]
    );
    assert_eq!(count::<Health>(net.client(ada)), 0, "its copies go at once");
    net.run(Ticks(60));
    assert_eq!(server_log(&net).left, [DisconnectReason::ClientLeft]);
    assert_eq!(count::<Health>(&mut net.server), 1);
    assert_eq!(count::<Health>(net.client(bob)), 1);
}

#[test]
fn an_app_that_exits_says_goodbye() {
    let mut net = TestNet::new(game, LinkConditions::wifi().with_seed(8));
    let (ada, bob) = (net.join("Ada"), net.join("Bob"));
    net.run(Ticks(60));
    net.client(ada).world_mut().write_message(AppExit::Success);
    net.run(Ticks(20));
    assert_eq!(server_log(&net).left, [DisconnectReason::ClientLeft]);
    net.server.world_mut().write_message(AppExit::Success);
    net.run(Ticks(20));
    assert_eq!(
        end_reason(&mut net, bob),
        Some(DisconnectReason::ServerShutdown)
    );
    assert_eq!(
        server_log(&net).left[1],
        DisconnectReason::ServerShutdown,
        "the server's game hears of it too"
    );
    assert_eq!(count::<Health>(net.client(bob)), 0);
}

#[test]
fn a_client_that_crashes_times_out() {
    let config = ServerConfig {
        client_timeout: Duration::from_secs(2),
        resume_window: Duration::ZERO,
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let (ada, bob) = (net.join("Ada"), net.join("Bob"));
    net.run(Ticks(60));
    net.pause(ada, true);
    net.run(Ticks(110));
    assert!(server_log(&net).left.is_empty(), "not before its time");
    net.run(Ticks(20));
    assert_eq!(server_log(&net).left, [DisconnectReason::TimedOut]);
    net.run(Ticks(30));
    assert_eq!(count::<Health>(net.client(bob)), 1, "what Ada owned goes");
    assert!(is_connected(&mut net, bob));
}

#[test]
fn a_network_that_fails_times_out_on_both_sides() {
    let config = ServerConfig {
        resume_window: Duration::ZERO,
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let ada = net.join_with(
        game,
        ClientConfig {
            timeout: Duration::from_secs(3),
            reconnect: ReconnectSettings {
                enabled: false,
                ..default()
            },
            ..named("Ada")
        },
    );
    net.run(Ticks(60));
    net.connector().set_conditions(LinkConditions::blackhole());
    net.run(Ticks(170));
    assert!(is_connected(&mut net, ada), "not before its time");
    net.run(Ticks(20));
    assert_eq!(
        client_log(&mut net, ada).disconnected,
        [DisconnectReason::TimedOut]
    );
    assert_eq!(count::<Health>(net.client(ada)), 0);
    net.run(Ticks(150));
    assert_eq!(server_log(&net).left, [DisconnectReason::TimedOut]);
}

#[test]
fn connecting_to_nobody_times_out() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join_with(
        game,
        ClientConfig {
            connect_timeout: Duration::from_secs(2),
            ..named("Ada")
        },
    );
    let nobody = LocalServer::new().connector().connect();
    net.connect_over(ada, nobody);
    net.run(Ticks(110));
    assert_eq!(end_reason(&mut net, ada), None, "still trying");
    net.run(Ticks(20));
    assert_eq!(
        end_reason(&mut net, ada),
        Some(DisconnectReason::ConnectTimedOut)
    );
}

#[test]
fn a_client_may_come_back_and_gets_everything_again() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(12));
    for n in 0..40 {
        net.server.world_mut().spawn((Replicated, Health(n)));
    }
    let ada = net.join("Ada");
    net.run(Ticks(120));
    for round in 1..4 {
        assert_eq!(count::<Health>(net.client(ada)), 41, "round {round}");
        let stats = net.client(ada).world().resource::<ClientStats>().clone();
        assert!(stats.snapshots > 20 && stats.clock_snaps == 0, "{stats:?}");
        if round % 2 == 0 {
            net.client(ada).world_mut().trigger(Disconnect);
            net.run(Ticks(3));
            assert_eq!(count::<Health>(net.client(ada)), 0);
        }
        // Connecting while connected ends the connection that there was.
        net.connect(ada);
        net.run(Ticks(150));
        assert!(is_connected(&mut net, ada));
        assert_eq!(server_log(&net).joined.len(), round + 1);
        assert_eq!(count::<Session>(&mut net.server), 1);
    }
    assert_eq!(count::<Replicated>(net.client(ada)), 41, "and nothing else");
}

#[test]
fn inputs_work_after_coming_back() {
    #[derive(Resource, Default)]
    struct Steered(Vec<i8>);
    fn steered_game(app: &mut App) {
        game(app);
        app.init_resource::<Steered>().add_systems(
            FixedUpdate,
            |inputs: Query<&Input<Steer>>, mut steered: ResMut<Steered>| {
                steered.0.extend(inputs.iter().map(|input| input.0.0));
            },
        );
    }
    let mut net = TestNet::new(steered_game, LinkConditions::wifi().with_seed(1));
    let ada = net.join("Ada");
    for round in 1..4 {
        net.run(Ticks(120));
        net.client(ada)
            .world_mut()
            .resource_mut::<LocalInput<Steer>>()
            .0
            .0 = round;
        net.run(Ticks(60));
        let steered = &net.server.world().resource::<Steered>().0;
        assert_eq!(steered.last(), Some(&round));
        let stats = net.client(ada).world().resource::<ClientStats>();
        assert!(
            stats.inputs_sent > 100 && stats.inputs_late < 5,
            "{stats:?}"
        );
        net.connect(ada);
    }
}

// Hostile peers.

/// A client's link whose owner can slip in datagrams of their own.
struct Hostile {
    link: LocalClient,
    /// Chunks, without a header, that are sent with the next flush.
    injected: Arc<Mutex<Vec<Vec<u8>>>>,
    last: Option<Header>,
}

impl ClientTransport for Hostile {
    fn state(&self) -> &ClientLinkState {
        self.link.state()
    }
    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        self.link.receive(now, datagrams);
    }
    fn send(&mut self, now: Duration, datagram: &[u8]) {
        self.last = Header::decode(datagram).map(|(header, _)| header);
        self.link.send(now, datagram);
    }
    fn flush(&mut self, now: Duration) {
        if let Some(last) = &mut self.last {
            for chunks in self.injected.lock().unwrap().drain(..) {
                last.seq = last.seq.wrapping_add(1);
                let datagram = [&last.encode()[..], &chunks].concat();
                self.link.send(now, &datagram);
            }
        }
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

fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_le_bytes();
    [&[kind], &length[..], body].concat()
}

const SNAPSHOT: u8 = 0;
const INPUTS: u8 = 1;
const RENET: u8 = 2;

/// What a client of ours would have renet send, for messages of our choice.
fn renet_packets(channel: u8, message: Vec<u8>) -> Vec<Vec<u8>> {
    let channels = (0..4)
        .map(|channel_id| ChannelConfig {
            channel_id,
            max_memory_usage_bytes: 64 << 10,
            send_type: match channel_id {
                3 => SendType::Unreliable,
                2 => SendType::ReliableUnordered {
                    resend_time: Duration::from_millis(200),
                },
                _ => SendType::ReliableOrdered {
                    resend_time: Duration::from_millis(200),
                },
            },
        })
        .collect::<Vec<_>>();
    let mut renet = RenetClient::new(ConnectionConfig {
        available_bytes_per_tick: 60_000,
        server_channels_config: channels.clone(),
        client_channels_config: channels,
    });
    renet.set_connected();
    renet.send_message(channel, message);
    renet.get_packets_to_send()
}

#[test]
fn a_session_that_breaks_the_protocol_ends_and_no_other() {
    let unknown_message = renet_packets(3, vec![251, 0xff, 0xff]);
    let malformed_message = renet_packets(1, vec![0, 200, b'x']);
    let bad_chunks: Vec<(&str, Vec<u8>)> = vec![
        ("a snapshot", chunk(SNAPSHOT, &[0; 40])),
        ("an unknown kind", chunk(9, b"?")),
        ("longer than its datagram", vec![INPUTS, 0xff, 0xff, 1, 2]),
        ("malformed inputs", chunk(INPUTS, &[0xff; 9])),
        ("no inputs at all", chunk(INPUTS, &[])),
        ("an unknown message", chunk(RENET, &unknown_message[0])),
        ("a malformed message", chunk(RENET, &malformed_message[0])),
    ];
    let mut net = TestNet::new(game, LinkConditions::default());
    let bob = net.join("Bob");
    for (what, bad) in bad_chunks {
        let mallory = net.join("Mallory");
        let injected = Arc::new(Mutex::new(Vec::new()));
        let link = Hostile {
            link: net.connector().connect(),
            injected: injected.clone(),
            last: None,
        };
        net.connect_over(mallory, link);
        net.run(Ticks(30));
        assert!(is_connected(&mut net, mallory), "{what}");
        injected.lock().unwrap().push(bad);
        net.run(Ticks(30));
        let reason = end_reason(&mut net, mallory);
        assert!(
            matches!(reason, Some(DisconnectReason::ProtocolViolation(_))),
            "{what}: {reason:?}"
        );
        assert!(is_connected(&mut net, bob), "{what}");
        assert_eq!(count::<Session>(&mut net.server), 1, "{what}");
    }
}

#[test]
fn junk_within_a_session_never_panics_or_reaches_others() {
    let mut rng = fastrand::Rng::with_seed(77);
    let mut net = TestNet::new(game, LinkConditions::default());
    let bob = net.join("Bob");
    let mallory = net.join("Mallory");
    let injected = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..300 {
        if !is_connected(&mut net, mallory) {
            let link = Hostile {
                link: net.connector().connect(),
                injected: injected.clone(),
                last: None,
            };
            net.connect_over(mallory, link);
            net.run(Ticks(12));
            injected.lock().unwrap().clear();
        }
        let body: Vec<u8> = (0..rng.usize(0..200)).map(|_| rng.u8(..)).collect();
        let junk = match rng.u8(0..3) {
            0 => body,
            1 => chunk(rng.u8(0..5), &body),
            _ => [chunk(RENET, &body), chunk(INPUTS, &body)].concat(),
        };
        injected.lock().unwrap().push(junk);
        net.run(Ticks(3));
    }
    assert!(is_connected(&mut net, bob));
    assert_eq!(client_log(&mut net, bob).connected, 1);
}

/// A bare link, without an app.
struct RawClient {
    link: LocalClient,
    now: Duration,
    acks: AckTracker,
}

impl RawClient {
    fn open(net: &mut TestNet) -> Self {
        let mut raw = Self {
            link: net.connector().connect(),
            now: Duration::ZERO,
            acks: AckTracker::new(),
        };
        for _ in 0..10 {
            raw.step(net);
        }
        assert!(raw.link.state().is_connected());
        raw
    }

    fn step(&mut self, net: &mut TestNet) {
        net.run(Ticks(1));
        self.link.receive(self.now, &mut Vec::new());
        self.link.flush(self.now);
    }

    fn send(&mut self, chunks: &[u8]) {
        let header = self.acks.next_header(self.now).encode();
        let datagram = [&header[..], chunks].concat();
        self.link.send(self.now, &datagram);
        self.link.flush(self.now);
    }
}

#[test]
fn junk_before_the_hello_ends_that_link_alone() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let bob = net.join("Bob");
    net.run(Ticks(20));
    let mut rng = fastrand::Rng::with_seed(5);
    let mut raw = RawClient::open(&mut net);
    raw.link.send(Duration::ZERO, b"short");
    for _ in 0..5 {
        raw.step(&mut net);
    }
    assert!(
        raw.link.state().close_reason().is_some(),
        "no header: {:?}",
        raw.link.state()
    );
    for _ in 0..40 {
        let mut raw = RawClient::open(&mut net);
        for _ in 0..10 {
            let junk: Vec<u8> = (0..rng.usize(0..1_200)).map(|_| rng.u8(..)).collect();
            raw.send(&junk);
            raw.step(&mut net);
        }
    }
    assert!(is_connected(&mut net, bob));
    assert_eq!(server_log(&net).joined, ["Bob"]);
}

#[test]
fn who_never_says_hello_is_shown_the_door() {
    let config = ServerConfig {
        hello_timeout: Duration::from_secs(1),
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let mut raw = RawClient::open(&mut net);
    for _ in 0..40 {
        raw.step(&mut net);
        raw.send(&[]);
    }
    assert!(raw.link.state().is_connected(), "not before its time");
    for _ in 0..30 {
        raw.step(&mut net);
    }
    assert!(!raw.link.state().is_connected(), "whatever it talks about");
}

#[test]
fn hostile_hellos_are_refused() {
    let honest = Hello {
        wire_version: WIRE_VERSION,
        fingerprint: 1,
        name: "Mallory".into(),
        game_version: String::new(),
        platform: "linux".into(),
        credentials: Vec::new(),
        intent: Intent::Join,
    };
    let mut encoded = Vec::new();
    serial::encode(&honest, &mut encoded).unwrap();
    let without_name = &encoded[..encoded.len() - honest.name.len() - 1];
    let hellos = [
        // A name of 2^64 - 1 bytes.
        [without_name, &[253], &[0xff; 8]].concat(),
        [without_name, &[252], &[0xff; 4]].concat(),
        encoded.clone(),
        encoded[..3].to_vec(),
        Vec::new(),
        vec![0xff; 900],
    ];
    let mut net = TestNet::new(game, LinkConditions::default());
    let bob = net.join("Bob");
    net.run(Ticks(20));
    for hello in hellos {
        let mut raw = RawClient::open(&mut net);
        for packet in renet_packets(0, hello) {
            raw.send(&chunk(RENET, &packet));
        }
        for _ in 0..400 {
            raw.step(&mut net);
        }
        assert!(!raw.link.state().is_connected());
    }
    assert_eq!(server_log(&net).joined, ["Bob"]);
    assert!(is_connected(&mut net, bob));
}

// Over the real network of this machine, in real time.

const LOOPBACK: &str = "127.0.0.1:0";

fn ready(mut app: App) -> App {
    app.finish();
    app.cleanup();
    app
}

fn udp_server(auth: Auth) -> (App, SocketAddr) {
    let mut app = App::new();
    let config = ServerConfig {
        udp: Some(LOOPBACK.parse().unwrap()),
        auth,
        ..default()
    };
    app.add_plugins((
        MinimalPlugins,
        TandemServerPlugins::with_config(config),
        game,
    ));
    let app = ready(app);
    let address = app.world().resource::<ListenAddresses>().0[0];
    (app, address)
}

fn udp_client(config: ClientConfig) -> App {
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        TandemClientPlugins::with_config(config),
        game,
    ));
    ready(app)
}

/// Updates the apps until something is so, for at most five seconds.
fn wait_until(what: &str, apps: &mut [&mut App], is_so: impl Fn(&mut [&mut App]) -> bool) {
    let start = Instant::now();
    while !is_so(apps) {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        for app in apps.iter_mut() {
            app.update();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn state(app: &App) -> ConnectionState {
    app.world().resource::<Connection>().state()
}

fn reason(app: &App) -> Option<&DisconnectReason> {
    app.world().resource::<Connection>().reason()
}

fn is_in(app: &App) -> bool {
    state(app) == ConnectionState::Connected
}

#[test]
fn udp_carries_a_session_from_start_to_end() {
    let (mut server, address) = udp_server(Auth::Insecure);
    let mut app = App::new();
    let plugins = TandemClientPlugins::connect(&address.to_string()).named("Ada");
    app.add_plugins((MinimalPlugins, plugins, game));
    let mut client = ready(app);
    let mut apps = [&mut server, &mut client];
    wait_until("gets in", &mut apps, |apps| is_in(apps[1]));
    wait_until("sees what it owns", &mut apps, |apps| {
        count::<Owned>(apps[1]) == 1
    });
    let stats = server.world().resource::<ServerStats>();
    assert_eq!((stats.sessions, stats.sessions_peak), (1, 1));
    assert!(stats.transport.bytes_in > 0 && stats.transport.bytes_out > 0);
    let mut addresses = server
        .world_mut()
        .query::<&bevy_tandem::server::ClientAddress>();
    let client_address = addresses.single(server.world()).unwrap().0;
    assert_eq!(client_address.ip(), address.ip());

    server.world_mut().write_message(AppExit::Success);
    wait_until("is told", &mut [&mut server, &mut client], |apps| {
        reason(apps[1]) == Some(&DisconnectReason::ServerShutdown)
    });
    assert_eq!(state(&client), ConnectionState::Disconnected);
    assert_eq!(server.world().resource::<Log>().left.len(), 1);
}

#[test]
fn tokens_let_in_whom_the_back_end_vouches_for() {
    let private_key = [7; 32];
    let (mut server, address) = udp_server(Auth::Secure { private_key });
    let client = |key: &[u8; 32], id: u64| {
        let token = token::TokenBuilder::new(id, vec![address])
            .issue(key)
            .unwrap();
        udp_client(ClientConfig {
            udp: Some(ClientAuth::Token(Box::new(token))),
            connect_timeout: Duration::from_secs(1),
            ..named("Ada")
        })
    };
    let (mut honest, mut forger) = (client(&private_key, 1), client(&[8; 32], 2));
    // Nor does a client get in that brings none.
    let insecure = UdpClientConfig::insecure(address).auth;
    let mut stranger = udp_client(ClientConfig {
        udp: Some(insecure),
        connect_timeout: Duration::from_secs(1),
        ..named("Eve")
    });
    let mut apps = [&mut server, &mut honest, &mut forger, &mut stranger];
    wait_until("gets in", &mut apps, |apps| is_in(apps[1]));
    wait_until("are refused", &mut apps, |apps| {
        let is_refused = |app: &App| state(app) == ConnectionState::Failed;
        is_refused(apps[2]) && is_refused(apps[3])
    });
    assert_eq!(server.world().resource::<Log>().joined, ["Ada"]);
    assert!(is_in(&honest));
}

#[test]
fn a_connect_token_used_over_one_transport_is_refused_over_another() {
    let private_key = [7; 32];
    let (mut server, addresses) = secure_server(private_key);
    let issue = |id| {
        token::TokenBuilder::new(id, addresses.clone())
            .issue(&private_key)
            .unwrap()
    };
    let over_udp = |token: &ConnectToken| {
        udp_client(ClientConfig {
            udp: Some(ClientAuth::Token(Box::new(token.clone()))),
            ..named("Ada")
        })
    };
    let over_websocket = |token: &ConnectToken| {
        udp_client(ClientConfig {
            websocket: Some(WsClientConfig {
                auth: token.into(),
                ..WsClientConfig::new(format!("ws://{}/", addresses[1]))
            }),
            ..named("Eve")
        })
    };
    let is_refused = |app: &App| matches!(reason(app), Some(DisconnectReason::Unauthorised(why)) if why.contains("used before"));

    let (first, second) = (issue(1), issue(2));
    let (mut ada, mut bob) = (over_udp(&first), over_websocket(&second));
    wait_until("get in", &mut [&mut server, &mut ada, &mut bob], |apps| {
        is_in(apps[1]) && is_in(apps[2])
    });
    let (mut eve, mut mallory) = (over_websocket(&first), over_udp(&second));
    let mut apps = [&mut server, &mut ada, &mut bob, &mut eve, &mut mallory];
    wait_until("are refused", &mut apps, |apps| {
        is_refused(apps[3]) && is_refused(apps[4])
    });
    assert!(is_in(&ada) && is_in(&bob));
    assert_eq!(server.world().resource::<Log>().joined.len(), 2);
}

/// A server with a key, and where it listens by UDP and by WebSocket.
fn secure_server(private_key: [u8; 32]) -> (App, Vec<SocketAddr>) {
    let mut app = App::new();
    let config = ServerConfig {
        udp: Some(LOOPBACK.parse().unwrap()),
        websocket: Some(WsServerConfig::new(LOOPBACK.parse().unwrap())),
        auth: Auth::Secure { private_key },
        ..default()
    };
    app.add_plugins((
        MinimalPlugins,
        TandemServerPlugins::with_config(config),
        game,
    ));
    let server = ready(app);
    let addresses = server.world().resource::<ListenAddresses>().0.clone();
    (server, addresses)
}

#[test]
fn a_token_for_the_next_link_makes_nobody_a_stranger() {
    let private_key = [7; 32];
    let (mut server, addresses) = secure_server(private_key);
    let first = token::TokenBuilder::new(7, addresses)
        .issue(&private_key)
        .unwrap();
    let next: Arc<Mutex<Option<Vec<u8>>>> = default();
    let kept = next.clone();
    let mut mallory = udp_client(named("Mallory"));
    mallory.connect_with(move |token: Option<&[u8]>| {
        if let Some(token) = token {
            // Kept for later.
            *kept.lock().unwrap() = Some(token.to_vec());
            return Err("not now".into());
        }
        let client = UdpClient::connect(UdpClientConfig::with_token(first.clone()));
        let client = client.map_err(|error| error.to_string())?;
        Ok(Box::new(client) as Box<dyn ClientTransport>)
    });
    wait_until("gets in", &mut [&mut server, &mut mallory], |apps| {
        is_in(apps[1]) && count::<Health>(apps[1]) == 1
    });
    mallory.cut_link();
    wait_until("has it", &mut [&mut server, &mut mallory], |_| {
        next.lock().unwrap().is_some()
    });
    let session = {
        let world = server.world_mut();
        let mut sessions = world.query_filtered::<Entity, With<Session>>();
        sessions.single(world).unwrap()
    };
    server.world_mut().trigger(Ban {
        session,
        reason: "cheating".into(),
        duration: Duration::from_secs(60),
    });
    wait_until("is banned", &mut [&mut server], |apps| {
        !apps[0].world().resource::<Log>().left.is_empty()
    });

    let next = token::from_bytes(next.lock().unwrap().as_ref().unwrap()).unwrap();
    let mut again = udp_client(ClientConfig {
        udp: Some(ClientAuth::Token(Box::new(next))),
        ..named("Somebody")
    });
    wait_until(
        "is refused",
        &mut [&mut server, &mut again],
        |apps| matches!(reason(apps[1]), Some(DisconnectReason::Unauthorised(why)) if why.contains("has ended")),
    );
    assert_eq!(server.world().resource::<Log>().joined, ["Mallory"]);
}

#[test]
fn who_missed_the_answer_comes_back_with_another_token() {
    let private_key = [7; 32];
    for over_udp in [true, false] {
        let (mut server, addresses) = secure_server(private_key);
        let first = token::TokenBuilder::new(7, addresses.clone())
            .issue(&private_key)
            .unwrap();
        let mut attempts = Vec::new();
        let seen: Arc<Mutex<Vec<Vec<u8>>>> = default();
        let log = seen.clone();
        let config = ClientConfig {
            reconnect: ReconnectSettings {
                backoff: BackoffSettings {
                    initial: Duration::from_millis(50),
                    attempts: 100,
                    ..default()
                },
                attempt_timeout: Duration::from_millis(700),
                ..default()
            },
            ..named("Ada")
        };
        let mut ada = udp_client(config);
        ada.connect_with(move |token: Option<&[u8]>| {
            attempts.push(token.map(<[u8]>::to_vec));
            log.lock().unwrap().extend(token.map(<[u8]>::to_vec));
            let token = match token {
                None => first.clone(),
                Some(token) => token::from_bytes(token).map_err(|error| error.to_string())?,
            };
            let link: Box<dyn ClientTransport> = if over_udp {
                let config = UdpClientConfig::with_token(token);
                Box::new(UdpClient::connect(config).map_err(|error| error.to_string())?)
            } else {
                let config = WsClientConfig {
                    auth: (&token).into(),
                    ..WsClientConfig::new(format!("ws://{}/", addresses[1]))
                };
                Box::new(WsClient::connect(config).map_err(|error| error.to_string())?)
            };
            Ok(match attempts.len() {
                // The first that comes back is heard, but not answered.
                2 => Box::new(Deaf(link)),
                _ => link,
            })
        });
        wait_until("gets in", &mut [&mut server, &mut ada], |apps| {
            is_in(apps[1]) && count::<Health>(apps[1]) == 1
        });
        ada.cut_link();
        wait_until("comes back", &mut [&mut server, &mut ada], |apps| {
            apps[0].world().resource::<ServerStats>().resumed == 2 && is_in(apps[1])
        });
        let seen = seen.lock().unwrap();
        assert!(seen.len() == 2 && seen[0] != seen[1], "with another token");
        assert_eq!(server.world().resource::<Log>().joined, ["Ada"]);
        assert_eq!(ada.world().resource::<Log>().disconnected, []);
    }
}

/// A link that opens, and then lets nothing through to the client.
struct Deaf(Box<dyn ClientTransport>);

impl ClientTransport for Deaf {
    fn state(&self) -> &ClientLinkState {
        self.0.state()
    }
    fn receive(&mut self, now: Duration, _: &mut Vec<Vec<u8>>) {
        self.0.receive(now, &mut Vec::new());
    }
    fn send(&mut self, now: Duration, datagram: &[u8]) {
        self.0.send(now, datagram);
    }
    fn flush(&mut self, now: Duration) {
        self.0.flush(now);
    }
    fn kind(&self) -> TransportKind {
        self.0.kind()
    }
    fn delivery(&self) -> Delivery {
        self.0.delivery()
    }
    fn vanish(&mut self) {
        self.0.vanish();
    }
    fn close(&mut self) {
        self.0.close();
    }
    fn stats(&self) -> TransportStats {
        self.0.stats()
    }
}

#[derive(Component, Clone, Serialize, Deserialize)]
struct Scroll(Vec<u8>);

/// Lengths of messages.
#[derive(Resource, Default)]
struct Heard(Vec<usize>);

/// What everybody who joins is sent.
const LARGE_MESSAGES: [usize; 4] = [900_000, 1, 300_000, 900_000];

fn library(app: &mut App) {
    app.replicate::<Scroll>();
    app.add_plugins(game).init_resource::<Heard>().add_systems(
        Update,
        |chat: Option<MessageReader<FromServer<Chat>>>, mut heard: ResMut<Heard>| {
            if let Some(mut chat) = chat {
                heard.0.extend(chat.read().map(|chat| chat.0.0.len()));
            }
        },
    );
}

/// A server that sends [`LARGE_MESSAGES`] over WebSocket, and a client.
fn library_over_websocket() -> (App, App) {
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        TandemServerPlugins::with_config(ServerConfig {
            websocket: Some(WsServerConfig::new(LOOPBACK.parse().unwrap())),
            ..default()
        }),
        library,
    ))
    .add_observer(
        |_: On<SessionJoined>, mut chat: MessageWriter<ToClients<Chat>>| {
            chat.write_batch(LARGE_MESSAGES.map(|length| ToClients {
                to: Target::All,
                message: Chat("a".repeat(length)),
            }));
        },
    );
    let server = ready(app);
    let address = server.world().resource::<ListenAddresses>().0[0];
    let mut app = App::new();
    let config = ClientConfig {
        websocket: Some(WsClientConfig::new(format!("ws://{address}/"))),
        ..named("Ada")
    };
    app.add_plugins((
        MinimalPlugins,
        TandemClientPlugins::with_config(config),
        library,
    ));
    (server, ready(app))
}

#[test]
fn what_is_large_arrives_over_websocket() {
    const SCROLLS: usize = 300;
    let (mut server, mut ada) = library_over_websocket();
    for n in 0..SCROLLS {
        let scroll = Scroll(vec![n as u8; 5_000]);
        server.world_mut().spawn((Replicated, scroll));
    }
    wait_until("has all", &mut [&mut server, &mut ada], |apps| {
        apps[1].world().resource::<Heard>().0.len() >= LARGE_MESSAGES.len()
            && count::<Scroll>(apps[1]) == SCROLLS
    });
    assert_eq!(
        ada.world().resource::<Heard>().0,
        LARGE_MESSAGES,
        "once, and in order"
    );
    assert_eq!(
        server.world().resource::<ServerStats>().resumed,
        0,
        "over one link"
    );
    assert!(is_in(&ada));
}

#[test]
fn what_is_large_and_written_before_a_kick_arrives_over_websocket() {
    let (mut server, mut ada) = library_over_websocket();
    server.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.trigger(Kick {
            session: joined.entity,
            reason: "closing time".into(),
        });
    });
    wait_until("has read why", &mut [&mut server, &mut ada], |apps| {
        reason(apps[1]) == Some(&DisconnectReason::Kicked("closing time".into()))
    });
    assert_eq!(ada.world().resource::<Heard>().0, LARGE_MESSAGES);
}

#[test]
fn connecting_over_udp_to_nobody_times_out() {
    // A port that was free a moment ago.
    let address = std::net::UdpSocket::bind(LOOPBACK)
        .unwrap()
        .local_addr()
        .unwrap();
    let mut client = udp_client(ClientConfig {
        udp: Some(UdpClientConfig::insecure(address).auth),
        connect_timeout: Duration::from_millis(600),
        ..named("Ada")
    });
    wait_until("gives up", &mut [&mut client], |apps| {
        reason(apps[0]) == Some(&DisconnectReason::ConnectTimedOut)
    });
    assert_eq!(state(&client), ConnectionState::Failed);
}

#[test]
fn one_server_takes_clients_of_several_transports() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let mut address = None;
    net.server.add_transport(|transport_index| {
        let udp = UdpServer::bind(UdpServerConfig {
            transport_index,
            ..UdpServerConfig::new(LOOPBACK.parse().unwrap())
        })
        .unwrap();
        address = bevy_tandem::transport::ServerTransport::local_addr(&udp);
        udp
    });
    let local = net.join("Local");
    let remote = net.join("Remote");
    let udp = UdpClient::connect(UdpClientConfig::insecure(address.unwrap())).unwrap();
    net.connect_over(remote, udp);
    let start = Instant::now();
    while count::<Health>(net.client(remote)) < 2 || count::<Health>(net.client(local)) < 2 {
        assert!(start.elapsed() < Duration::from_secs(5), "both get in");
        net.run(Ticks(1));
        std::thread::sleep(Duration::from_millis(5));
    }
    net.client(remote).world_mut().trigger(Disconnect);
    while count::<Health>(net.client(local)) > 1 {
        assert!(start.elapsed() < Duration::from_secs(10), "one leaves");
        net.run(Ticks(1));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(is_connected(&mut net, local));
}

#[test]
fn quantizers_with_equal_widths_and_other_ranges_are_refused() {
    fn coarse(app: &mut App) {
        app.replicate::<Transform>()
            .quantize(TransformCodec::flat(512.0, 1.0 / 4.0));
    }
    fn fine(app: &mut App) {
        app.replicate::<Transform>()
            .quantize(TransformCodec::flat(128.0, 1.0 / 16.0));
    }
    let mut net = TestNet::new(coarse, LinkConditions::default());
    let ada = net.join_with(fine, ClientConfig::default());
    net.run(Ticks(60));
    let reason = end_reason(&mut net, ada).expect("the client is refused");
    assert!(
        matches!(reason, DisconnectReason::ProtocolMismatch { .. }),
        "{reason}"
    );
}
