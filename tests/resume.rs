//! Sessions outlive their links: what is kept, what is told, and who may come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bevy::prelude::*;
use bevy::time::TimeUpdateStrategy;
use bevy_tandem::client::{
    ClientConfig, ConnectionChanged, Connector, ReconnectScheduled, ReconnectSettings,
    ResumeFinished, ResumeOutcome,
};
use bevy_tandem::identity::{Identity, IdentityError};
use bevy_tandem::message::{Delivered, Undeliverable};
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::backoff::BackoffSettings;
use bevy_tandem::protocol::handshake::ResumeRejection;
use bevy_tandem::protocol::reliable::{OutboxLimits, WhenFull};
use bevy_tandem::session::{Away, SessionAway, SessionReturned};
use bevy_tandem::testing::{TestClientId, TestNet};
use bevy_tandem::transport::{
    ClientLinkState, ClientTransport, CloseReason, TransportKind, TransportStats,
};
use serde::{Deserialize, Serialize};

/// Something replicated.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u32);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Shield(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Numbered(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Loose(u32);

/// What an app was told.
#[derive(Resource, Default)]
struct Log {
    joined: usize,
    away: Vec<DisconnectReason>,
    returned: Vec<u64>,
    left: Vec<DisconnectReason>,
    connected: usize,
    disconnected: Vec<DisconnectReason>,
    outcomes: Vec<ResumeOutcome>,
    attempts: Vec<(u32, Duration)>,
    changes: Vec<(ConnectionState, ConnectionState)>,
    numbered: Vec<u32>,
    loose: Vec<u32>,
    delivered: Vec<u32>,
    undeliverable: Vec<u32>,
}

fn game(app: &mut App) {
    app.replicate::<Health>();
    app.replicate::<Shield>();
    app.protocol()
        .add_message::<Numbered>(Channel::ReliableOrdered)
        .receipts()
        .add_message::<Loose>(Channel::ReliableUnordered);
    app.init_resource::<Log>()
        .add_observer(
            |joined: On<SessionJoined>, mut log: ResMut<Log>, mut commands: Commands| {
                log.joined += 1;
                commands.spawn((Replicated, OwnedBy(joined.entity), Health(100)));
            },
        )
        .add_observer(|away: On<SessionAway>, mut log: ResMut<Log>| {
            log.away.push(away.reason.clone());
        })
        .add_observer(|back: On<SessionReturned>, mut log: ResMut<Log>| {
            log.returned.push(back.lost);
        })
        .add_observer(|left: On<SessionLeft>, mut log: ResMut<Log>| {
            log.left.push(left.reason.clone());
        })
        .add_observer(|_: On<Connected>, mut log: ResMut<Log>| log.connected += 1)
        .add_observer(|ended: On<Disconnected>, mut log: ResMut<Log>| {
            log.disconnected.push(ended.reason.clone());
        })
        .add_observer(|done: On<ResumeFinished>, mut log: ResMut<Log>| {
            log.outcomes.push(done.outcome);
        })
        .add_observer(|next: On<ReconnectScheduled>, mut log: ResMut<Log>| {
            log.attempts.push((next.attempt, next.delay));
        })
        .add_observer(|change: On<ConnectionChanged>, mut log: ResMut<Log>| {
            log.changes.push((change.from, change.to));
        })
        .add_systems(Update, listen);
}

fn listen(
    mut log: ResMut<Log>,
    from_server: Option<MessageReader<FromServer<Numbered>>>,
    from_client: Option<MessageReader<FromClient<Numbered>>>,
    loose: Option<MessageReader<FromServer<Loose>>>,
    mut delivered: MessageReader<Delivered<Numbered>>,
    mut undeliverable: MessageReader<Undeliverable<Numbered>>,
) {
    if let Some(mut messages) = from_server {
        log.numbered.extend(messages.read().map(|it| it.0.0));
    }
    if let Some(mut messages) = from_client {
        log.numbered.extend(messages.read().map(|it| it.message.0));
    }
    if let Some(mut messages) = loose {
        log.loose.extend(messages.read().map(|it| it.0.0));
    }
    log.delivered
        .extend(delivered.read().map(|it| it.message.0));
    log.undeliverable
        .extend(undeliverable.read().map(|it| it.message.0));
}

fn server_log(net: &TestNet) -> &Log {
    net.server.world().resource()
}

fn client_log(net: &mut TestNet, client: TestClientId) -> &Log {
    net.client(client).world().resource()
}

fn state(net: &mut TestNet, client: TestClientId) -> ConnectionState {
    net.client(client).world().resource::<Connection>().state()
}

fn say(net: &mut TestNet, client: TestClientId, number: u32) {
    let world = net.client(client).world_mut();
    world.write_message(ToServer(Numbered(number)));
}

fn tell(net: &mut TestNet, session: Entity, number: u32) {
    let to = Target::Session(session);
    let world = net.server.world_mut();
    world.write_message(ToClients {
        to,
        message: Numbered(number),
    });
    world.write_message(ToClients {
        to,
        message: Loose(number),
    });
}

/// The client's copies: their entities with what they have.
fn copies(net: &mut TestNet, client: TestClientId) -> Vec<(Entity, Option<u32>, Option<u32>)> {
    let world = net.client(client).world_mut();
    let mut copies =
        world.query_filtered::<(Entity, Option<&Health>, Option<&Shield>), With<Replicated>>();
    let mut all: Vec<_> = copies
        .iter(world)
        .map(|(entity, health, shield)| (entity, health.map(|it| it.0), shield.map(|it| it.0)))
        .collect();
    all.sort();
    all
}

fn joined(conditions: LinkConditions) -> (TestNet, TestClientId, Entity) {
    joined_with(conditions, ServerConfig::default())
}

fn joined_with(
    conditions: LinkConditions,
    config: ServerConfig,
) -> (TestNet, TestClientId, Entity) {
    let mut net = TestNet::with_config(game, conditions, config);
    let ada = net.join("Ada");
    net.run(Ticks(180));
    let session = net.session(ada).expect("Ada is in");
    (net, ada, session)
}

/// Ticks in which a lost link is found out, the first attempt is made, and the world is told anew.
const COMING_BACK: Ticks = Ticks(60 * 6);

#[test]
fn every_reliable_message_arrives_once_and_in_order_over_many_cuts() {
    let (mut net, ada, session) = joined(LinkConditions::mobile().with_seed(5));
    let mut rng = fastrand::Rng::with_seed(3);
    let mut number = 0;
    for _ in 0..12 {
        for _ in 0..rng.u32(1..400) {
            if rng.bool() {
                say(&mut net, ada, number);
                tell(&mut net, session, number);
                number += 1;
            }
            net.run(Ticks(1));
        }
        net.cut(ada);
    }
    net.run(Ticks(60 * 20));
    let all: Vec<_> = (0..number).collect();
    assert_eq!(server_log(&net).numbered, all, "to the server");
    assert_eq!(client_log(&mut net, ada).numbered, all, "to the client");
    let mut loose = client_log(&mut net, ada).loose.clone();
    loose.sort_unstable();
    assert_eq!(loose, all, "in whichever order");
    // Some cuts hit a client that was not back yet.
    let outcomes = &client_log(&mut net, ada).outcomes;
    assert!(outcomes.len() >= 5, "{outcomes:?}");
    assert!(outcomes.iter().all(|it| *it == ResumeOutcome::Resumed));
}

#[test]
fn a_session_keeps_its_entities_on_both_sides() {
    let (mut net, ada, session) = joined(LinkConditions::wifi().with_seed(1));
    let before = copies(&mut net, ada);
    assert_eq!(before.len(), 1);
    let ship = before[0].0;
    net.cut(ada);
    net.run(COMING_BACK);
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(net.session(ada), Some(session), "the same entity");
    assert_eq!(copies(&mut net, ada), before, "nothing was spawned anew");
    assert!(net.client(ada).world().get::<Owned>(ship).is_some());
    let log = server_log(&net);
    assert_eq!((log.joined, log.returned.len(), log.left.len()), (1, 1, 0));
    let log = client_log(&mut net, ada);
    assert_eq!((log.connected, log.disconnected.len()), (1, 0));
}

#[test]
fn the_world_is_as_it_is_now_after_a_resume() {
    let (mut net, ada, _) = joined(LinkConditions::default());
    let world = net.server.world_mut();
    let kept = world.spawn((Replicated, Health(1), Shield(1))).id();
    let gone = world.spawn((Replicated, Health(2))).id();
    net.run(Ticks(30));
    let before = copies(&mut net, ada);
    assert_eq!(before.len(), 3);
    let find = |of: &[(Entity, Option<u32>, Option<u32>)], health| {
        let found = of.iter().find(|it| it.1 == Some(health));
        found.map(|it| it.0)
    };

    net.cut(ada);
    net.run(Ticks(20));
    let world = net.server.world_mut();
    world.despawn(gone);
    world.entity_mut(kept).remove::<Shield>().insert(Health(10));
    // New ones, which must not be taken for those that went.
    for health in 20..25 {
        world.spawn((Replicated, Health(health)));
    }
    net.run(COMING_BACK);
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    let after = copies(&mut net, ada);
    assert_eq!(after.len(), 7);
    assert_eq!(find(&after, 10), find(&before, 1), "the copy is the same");
    assert!(after.iter().all(|it| it.2.is_none()), "no shield is left");
    let old_copy = find(&before, 2).unwrap();
    assert!(after.iter().all(|it| it.0 != old_copy), "what went is gone");
}

#[test]
fn a_copy_is_never_taken_for_another_entity_after_an_absence() {
    let (mut net, ada, _) = joined(LinkConditions::default());
    let world = net.server.world_mut();
    let old = world.spawn((Replicated, Health(7), Shield(7))).id();
    net.run(Ticks(30));
    let copy = copies(&mut net, ada)
        .iter()
        .find(|it| it.1 == Some(7))
        .unwrap()
        .0;
    net.cut(ada);
    net.run(Ticks(10));
    net.server.world_mut().despawn(old);
    net.run(Ticks(10));
    for health in 0..50 {
        net.server.world_mut().spawn((Replicated, Health(health)));
        net.run(Ticks(1));
    }
    net.run(COMING_BACK);
    assert!(net.client(ada).world().get_entity(copy).is_err());
}

#[test]
fn nor_before_the_client_has_been_told_everything() {
    let (mut net, ada, _) = joined(LinkConditions::default());
    // More than a snapshot holds.
    let world = net.server.world_mut();
    world.spawn_batch((0..1_000).map(|n| (Replicated, Health(1_000 + n), Shield(n))));
    let old = world.spawn((Replicated, Health(7), Shield(7))).id();
    net.run(Ticks(120));
    let copy = copies(&mut net, ada)
        .iter()
        .find(|it| it.1 == Some(7))
        .unwrap()
        .0;
    net.cut(ada);
    net.run(Ticks(10));
    net.server.world_mut().despawn(old);
    while server_log(&net).returned.is_empty() {
        net.run(Ticks(1));
    }
    for health in 0..50 {
        net.server.world_mut().spawn((Replicated, Health(health)));
        net.run(Ticks(1));
    }
    net.run(COMING_BACK);
    assert!(net.client(ada).world().get_entity(copy).is_err());
}

#[test]
fn a_client_comes_back_before_the_server_has_noticed() {
    let (mut net, ada, session) = joined(LinkConditions::default());
    // Wi-Fi to mobile: another link, while the first still looks alive.
    let link = net.connector().connect();
    net.client(ada).resume_over(link);
    net.run(Ticks(60));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(net.session(ada), Some(session));
    assert_eq!(server_log(&net).away, [], "it was never without a link");
    assert_eq!(server_log(&net).returned, [0]);
    tell(&mut net, session, 1);
    say(&mut net, ada, 2);
    net.run(Ticks(60 * 8));
    assert_eq!(client_log(&mut net, ada).numbered, [1]);
    assert_eq!(server_log(&net).numbered, [2]);
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
}

#[test]
fn a_silent_link_makes_the_session_away_until_its_client_returns() {
    let (mut net, ada, session) = joined(LinkConditions::default());
    net.pause(ada, true);
    net.run(Ticks(60 * 6));
    assert_eq!(server_log(&net).away, [DisconnectReason::TimedOut]);
    assert!(net.server.world().get::<Away>(session).is_some());
    assert_eq!(server_log(&net).left, []);
    for number in 0..30 {
        tell(&mut net, session, number);
    }
    net.pause(ada, false);
    net.run(COMING_BACK);
    assert_eq!(server_log(&net).returned, [0]);
    assert!(net.server.world().get::<Away>(session).is_none());
    let all: Vec<_> = (0..30).collect();
    assert_eq!(client_log(&mut net, ada).numbered, all);
}

#[test]
fn what_could_not_be_kept_is_counted_and_the_rest_arrives() {
    let config = ServerConfig {
        outbox: OutboxLimits {
            max_messages: 20,
            ..OutboxLimits::SERVER
        },
        ..default()
    };
    let (mut net, ada, session) = joined_with(LinkConditions::default(), config);
    net.pause(ada, true);
    net.run(Ticks(60 * 6));
    for number in 0..50 {
        // Ten of each kind can be kept.
        tell(&mut net, session, number);
        net.run(Ticks(1));
    }
    net.pause(ada, false);
    net.run(COMING_BACK);
    let log = client_log(&mut net, ada);
    assert_eq!(log.outcomes, [ResumeOutcome::Resynced { lost: 80 }]);
    assert_eq!(log.numbered, (40..50).collect::<Vec<_>>());
    assert_eq!(log.loose, (40..50).collect::<Vec<_>>());
    tell(&mut net, session, 50);
    net.run(Ticks(30));
    assert_eq!(client_log(&mut net, ada).numbered.last(), Some(&50));
    assert_eq!(server_log(&net).returned, [80]);
}

#[test]
fn a_session_ends_when_nobody_comes_back_in_time() {
    let config = ServerConfig {
        resume_window: Duration::from_secs(20),
        ..default()
    };
    let (mut net, ada, session) = joined_with(LinkConditions::default(), config);
    net.pause(ada, true);
    net.run(Ticks(60 * 20));
    assert!(net.server.world().get_entity(session).is_ok());
    net.run(Ticks(60 * 7));
    assert!(net.server.world().get_entity(session).is_err());
    assert_eq!(server_log(&net).left, [DisconnectReason::TimedOut]);

    net.pause(ada, false);
    net.run(COMING_BACK);
    assert_eq!(state(&mut net, ada), ConnectionState::Failed);
    let log = client_log(&mut net, ada);
    let expired = ResumeRejection::Expired;
    assert_eq!(log.outcomes, [ResumeOutcome::Rejected(expired)]);
    assert_eq!(
        log.disconnected,
        [DisconnectReason::ResumeRejected(expired)]
    );
    assert_eq!(copies(&mut net, ada), [], "the copies are gone");
    // And it can join anew.
    net.connect(ada);
    net.run(Ticks(30));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
}

#[test]
fn a_window_of_zero_ends_sessions_with_their_links() {
    let config = ServerConfig {
        resume_window: Duration::ZERO,
        ..default()
    };
    let (mut net, ada, _) = joined_with(LinkConditions::default(), config);
    net.pause(ada, true);
    net.run(Ticks(60 * 6));
    assert_eq!(server_log(&net).left, [DisconnectReason::TimedOut]);
}

#[test]
fn an_app_that_stood_still_does_not_blame_the_server() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let config = ClientConfig {
        timeout: Duration::from_secs(1),
        ..default()
    };
    let ada = net.join_with(game, config);
    net.run(Ticks(60));
    net.pause(ada, true);
    net.run(Ticks(120));
    // As in a browser's tab that comes back: the first frame takes in what has come, and the second learns how late it is.
    for late in [Duration::ZERO, Duration::from_secs(2)] {
        let app = net.client(ada);
        app.insert_resource(TimeUpdateStrategy::ManualDuration(late));
        app.update();
    }
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
}

#[test]
fn credentials_that_expire_end_no_session_and_begin_none() {
    let is_over = Arc::new(AtomicBool::new(false));
    let clock = is_over.clone();
    let verifier = move |credentials: &[u8], now: u64| match clock.load(Ordering::Relaxed) {
        true if now >= 1_000 => Err(IdentityError::Expired),
        _ => Ok(Identity {
            expires: Some(1_000),
            ..Identity::verified("test", String::from_utf8_lossy(credentials))
        }),
    };
    let config = ServerConfig {
        verifier: Some(Arc::new(verifier)),
        ..default()
    };
    let (mut net, ada, session) = joined_with(LinkConditions::default(), config);
    is_over.store(true, Ordering::Relaxed);
    net.cut(ada);
    net.run(COMING_BACK);
    assert_eq!(client_log(&mut net, ada).outcomes, [ResumeOutcome::Resumed]);
    assert_eq!(net.session(ada), Some(session));

    let late = net.join("Late");
    net.run(Ticks(180));
    assert!(
        matches!(
            &client_log(&mut net, late).disconnected[..],
            [DisconnectReason::Unauthorised(why)] if why.contains("expired")
        ),
        "{:?}",
        client_log(&mut net, late).disconnected
    );
    assert_eq!(server_log(&net).joined, 1);
}

#[test]
fn attempts_are_announced_with_growing_pauses_until_none_is_left() {
    struct Unreachable;
    impl Connector for Unreachable {
        fn connect(&mut self, _: Option<&[u8]>) -> Result<Box<dyn ClientTransport>, String> {
            Err("the network is down".into())
        }
    }
    let mut net = TestNet::new(game, LinkConditions::default());
    let config = ClientConfig {
        name: "Ada".into(),
        reconnect: ReconnectSettings {
            backoff: BackoffSettings {
                attempts: 4,
                ..default()
            },
            ..default()
        },
        ..default()
    };
    let ada = net.join_with(game, config);
    let connector = net.connector().clone();
    let mut first = Some(connector.connect());
    net.client(ada)
        .connect_with(move |token: Option<&[u8]>| match first.take() {
            Some(link) => Ok(Box::new(link) as Box<dyn ClientTransport>),
            None => Unreachable.connect(token),
        });
    net.run(Ticks(60));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    net.cut(ada);
    assert_eq!(state(&mut net, ada), ConnectionState::Reconnecting);
    net.run(Ticks(60 * 40));
    let log = client_log(&mut net, ada);
    let numbers: Vec<_> = log.attempts.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    let second = Duration::from_secs(1);
    for (number, delay) in &log.attempts {
        let most = second * (1 << (number - 1));
        assert!(*delay <= most, "attempt {number} after {delay:?}");
    }
    assert!(log.attempts[3].1 > Duration::ZERO);
    let last = DisconnectReason::Link("the network is down".into());
    assert_eq!(log.disconnected.last(), Some(&last));
    use ConnectionState as State;
    assert_eq!(
        log.changes[log.changes.len() - 2..],
        [
            (State::Connected, State::Reconnecting),
            (State::Reconnecting, State::Failed)
        ]
    );
}

/// A link that a server turns away.
struct TurnedAway(ClientLinkState);

impl TurnedAway {
    fn because(reason: CloseReason) -> Box<dyn ClientTransport> {
        Box::new(Self(ClientLinkState::Closed(reason)))
    }
}

impl ClientTransport for TurnedAway {
    fn state(&self) -> &ClientLinkState {
        &self.0
    }
    fn receive(&mut self, _: Duration, _: &mut Vec<Vec<u8>>) {}
    fn send(&mut self, _: Duration, _: &[u8]) {}
    fn flush(&mut self, _: Duration) {}
    fn kind(&self) -> TransportKind {
        TransportKind::Local
    }
    fn vanish(&mut self) {}
    fn close(&mut self) {}
    fn stats(&self) -> TransportStats {
        TransportStats::default()
    }
}

#[test]
fn a_server_that_has_no_room_yet_is_asked_again() {
    for (why, comes_back) in [
        (CloseReason::Denied, true),
        (
            CloseReason::NotReady("a proxy's server restarts".into()),
            true,
        ),
        (CloseReason::Refused("wrong key".into()), false),
    ] {
        let mut net = TestNet::new(game, LinkConditions::default());
        let config = ClientConfig {
            name: "Ada".into(),
            ..default()
        };
        let ada = net.join_with(game, config);
        let connector = net.connector().clone();
        let mut attempts = 0;
        let reason = why.clone();
        net.client(ada).connect_with(move |_: Option<&[u8]>| {
            attempts += 1;
            Ok(match attempts {
                2 | 3 => TurnedAway::because(reason.clone()),
                _ => Box::new(connector.connect()),
            })
        });
        net.run(Ticks(60));
        net.cut(ada);
        net.run(Ticks(60 * 10));
        let log = client_log(&mut net, ada);
        if comes_back {
            assert_eq!(log.attempts.len(), 3, "{why}");
            assert_eq!(log.outcomes, [ResumeOutcome::Resumed], "{why}");
        } else {
            assert_eq!(log.attempts.len(), 1, "{why}");
            assert_eq!(state(&mut net, ada), ConnectionState::Failed, "{why}");
        }
    }
}

#[test]
fn who_joins_asks_a_server_that_is_not_ready_again() {
    let restarts = CloseReason::NotReady("it restarts".into());
    for (why, joins) in [
        (restarts, true),
        // Whoever joins a full server is told so, and may choose another.
        (CloseReason::Denied, false),
        // Nor does a wrong address become right.
        (CloseReason::Transport("nobody is there".into()), false),
    ] {
        let mut net = TestNet::new(game, LinkConditions::default());
        let config = ClientConfig {
            name: "Ada".into(),
            ..default()
        };
        let ada = net.join_with(game, config);
        let connector = net.connector().clone();
        let mut attempts = 0;
        let reason = why.clone();
        net.client(ada).connect_with(move |_: Option<&[u8]>| {
            attempts += 1;
            Ok(match attempts {
                1 | 2 => TurnedAway::because(reason.clone()),
                _ => Box::new(connector.connect()),
            })
        });
        net.run(Ticks(5));
        if !joins {
            assert_eq!(state(&mut net, ada), ConnectionState::Failed, "{why}");
            assert_eq!(client_log(&mut net, ada).attempts.len(), 0, "{why}");
            continue;
        }
        assert_eq!(state(&mut net, ada), ConnectionState::Connecting);
        let connection = net.client(ada).world().resource::<Connection>();
        assert_eq!(connection.attempt(), 1);
        assert_eq!(
            connection.reason(),
            Some(&DisconnectReason::NotReady("it restarts".into()))
        );
        net.run(Ticks(60 * 5));
        assert_eq!(state(&mut net, ada), ConnectionState::Connected);
        let log = client_log(&mut net, ada);
        assert_eq!(log.attempts.len(), 2);
        // It has joined, and not come back.
        assert!(log.outcomes.is_empty());

        // Whoever does not want to wait can leave.
        net.client(ada).connect_with(|_: Option<&[u8]>| {
            let restarts = CloseReason::NotReady("it restarts".into());
            Ok(TurnedAway::because(restarts))
        });
        net.run(Ticks(5));
        assert_eq!(state(&mut net, ada), ConnectionState::Connecting);
        net.client(ada).world_mut().trigger(Disconnect);
        net.run(Ticks(60 * 5));
        assert_eq!(state(&mut net, ada), ConnectionState::Disconnected);
    }
}

#[test]
fn states_run_systems_and_conditions() {
    #[derive(Resource, Default)]
    struct Seen(Vec<&'static str>, usize);
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join_with(
        |app| {
            game(app);
            app.init_resource::<Seen>()
                .add_systems(
                    OnEnter(ConnectionState::Connected),
                    |mut seen: ResMut<Seen>| {
                        seen.0.push("connected");
                    },
                )
                .add_systems(
                    OnEnter(ConnectionState::Reconnecting),
                    |mut seen: ResMut<Seen>| seen.0.push("reconnecting"),
                )
                .add_systems(
                    Update,
                    (|mut seen: ResMut<Seen>| seen.1 += 1)
                        .run_if(in_state(ConnectionState::Connected)),
                );
        },
        ClientConfig::default(),
    );
    net.run(Ticks(60));
    net.cut(ada);
    net.run(COMING_BACK);
    let seen = net.client(ada).world().resource::<Seen>();
    assert_eq!(seen.0, ["connected", "reconnecting", "connected"]);
    assert!(seen.1 > 60);
}

#[test]
fn nobody_comes_back_after_a_goodbye() {
    let (mut net, ada, session) = joined(LinkConditions::default());
    net.server.world_mut().trigger(Kick {
        session,
        reason: "enough".into(),
    });
    net.run(Ticks(60 * 5));
    assert_eq!(state(&mut net, ada), ConnectionState::Disconnected);
    assert_eq!(client_log(&mut net, ada).attempts, []);
    assert_eq!(server_log(&net).away, []);

    net.connect(ada);
    net.run(Ticks(30));
    net.client(ada).world_mut().trigger(Disconnect);
    net.run(Ticks(60));
    assert_eq!(state(&mut net, ada), ConnectionState::Disconnected);
    assert_eq!(server_log(&net).left.len(), 2);
    assert_eq!(server_log(&net).away, []);
}

#[test]
fn what_was_written_before_a_kick_still_arrives() {
    let (mut net, ada, session) = joined(LinkConditions::default());
    tell(&mut net, session, 1);
    net.server.world_mut().trigger(Kick {
        session,
        reason: "enough".into(),
    });
    net.run(Ticks(5));
    assert_eq!(client_log(&mut net, ada).numbered, [1]);
    assert_eq!(
        client_log(&mut net, ada).disconnected,
        [DisconnectReason::Kicked("enough".into())]
    );
}

#[test]
fn what_was_written_before_a_kick_arrives_over_a_lossy_link_too() {
    for seed in 0..20 {
        let conditions = LinkConditions {
            latency: Duration::from_millis(75),
            loss: 0.2,
            ..default()
        };
        let (mut net, ada, session) = joined(conditions.with_seed(seed));
        // Two messages each, and no more than may wait: which type is collected first is nobody's promise.
        let numbers: Vec<u32> = (0..450).collect();
        for &number in &numbers {
            tell(&mut net, session, number);
        }
        net.server.world_mut().trigger(Kick {
            session,
            reason: "enough".into(),
        });
        net.run(Ticks(2));
        assert_eq!(server_log(&net).left.len(), 1, "for the game it is gone");
        net.run(Ticks(60 * 3));
        let log = client_log(&mut net, ada);
        assert_eq!(log.numbered, numbers, "{seed}");
        assert_eq!(
            log.disconnected,
            [DisconnectReason::Kicked("enough".into())]
        );
    }
}

#[test]
fn what_was_written_before_a_kick_leaves_before_the_server_does() {
    // Whether or not snapshots are sent in that frame.
    for frame in 0..4 {
        let (mut net, ada, session) = joined(LinkConditions::default());
        net.run(Ticks(frame));
        tell(&mut net, session, 1);
        net.server.world_mut().trigger(Kick {
            session,
            reason: "enough".into(),
        });
        net.server.world_mut().write_message(AppExit::Success);
        net.run(Ticks(5));
        let log = client_log(&mut net, ada);
        assert_eq!(log.numbered, [1], "{frame}");
        assert_eq!(
            log.disconnected,
            [DisconnectReason::Kicked("enough".into())]
        );
    }
}

#[test]
fn who_does_not_take_the_last_messages_is_not_waited_for() {
    let (mut net, ada, session) = joined(LinkConditions::default());
    net.client(ada).world_mut().resource_mut::<Log>().numbered = vec![];
    net.pause(ada, true);
    tell(&mut net, session, 1);
    net.server.world_mut().trigger(Kick {
        session,
        reason: "enough".into(),
    });
    net.run(Ticks(60 * 3));
    net.pause(ada, false);
    net.run(Ticks(5));
    let log = client_log(&mut net, ada);
    assert_eq!(log.numbered, [1]);
    assert_eq!(
        log.disconnected,
        [DisconnectReason::Kicked("enough".into())],
        "it was told while it stood still"
    );
}

#[test]
fn receipts_tell_what_the_other_game_has_taken_once() {
    let (mut net, ada, session) = joined(LinkConditions::awful().with_seed(9));
    for number in 0..20 {
        tell(&mut net, session, number);
        say(&mut net, ada, 100 + number);
        net.run(Ticks(10));
    }
    net.cut(ada);
    net.run(Ticks(60 * 15));
    assert_eq!(server_log(&net).delivered, (0..20).collect::<Vec<_>>());
    let log = client_log(&mut net, ada);
    assert_eq!(log.delivered, (100..120).collect::<Vec<_>>());
}

#[test]
fn messages_beyond_the_queue_are_given_back() {
    let config = ServerConfig {
        outbox: OutboxLimits {
            max_messages: 10,
            ..OutboxLimits::SERVER
        },
        ..default()
    };
    let (mut net, _, session) = joined_with(LinkConditions::default(), config);
    for number in 0..20 {
        let to = Target::Session(session);
        let message = Numbered(number);
        net.server
            .world_mut()
            .write_message(ToClients { to, message });
    }
    net.run(Ticks(2));
    assert_eq!(server_log(&net).undeliverable, (10..20).collect::<Vec<_>>());
}

#[test]
fn messages_that_make_room_for_newer_ones_are_given_back() {
    let config = ServerConfig {
        outbox: OutboxLimits {
            max_messages: 10,
            ..OutboxLimits::SERVER
        },
        when_full: WhenFull::DropOldest,
        ..default()
    };
    let (mut net, ada, session) = joined_with(LinkConditions::default(), config);
    for number in 0..20 {
        let to = Target::Session(session);
        let message = Numbered(number);
        net.server
            .world_mut()
            .write_message(ToClients { to, message });
    }
    net.run(Ticks(60));
    assert_eq!(server_log(&net).undeliverable, (0..10).collect::<Vec<_>>());
    let taken = &client_log(&mut net, ada).numbered;
    assert_eq!(*taken, (10..20).collect::<Vec<_>>());
}

#[test]
fn what_a_client_says_while_it_is_cut_off_arrives_when_it_is_back() {
    let (mut net, ada, _) = joined(LinkConditions::default());
    net.cut(ada);
    for number in 0..10 {
        say(&mut net, ada, number);
        net.run(Ticks(1));
    }
    assert!(server_log(&net).numbered.is_empty());
    net.run(COMING_BACK);
    assert_eq!(server_log(&net).numbered, (0..10).collect::<Vec<_>>());
}
