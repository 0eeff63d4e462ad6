//! What a client may send, what happens when it sends more, and what it is sent when its link is bad.

use std::sync::Arc;
use std::time::Duration;

use bevy::diagnostic::{DiagnosticPath, DiagnosticsStore};
use bevy::prelude::*;
use bevy_tandem::client::{ClientConfig, ConnectOver, LimitWarning, ServerClosing};
use bevy_tandem::diagnostics::{self, DiagnosticsPlugin};
use bevy_tandem::headless::ShutdownRequested;
use bevy_tandem::identity::Identity;
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::acks::Header;
use bevy_tandem::protocol::limits::{Answer, Exceeded, Ladder, SessionLimits};
use bevy_tandem::protocol::pacing::{PacingReason, PacingSettings};
use bevy_tandem::server::{LimitBroken, LimitSettings, Pacing, PacingChanged, PacingStats};
use bevy_tandem::session::Ban;
use bevy_tandem::testing::{TestClientId, TestNet};
use bevy_tandem::transport::{
    ClientLinkState, ClientTransport, LocalClient, TransportKind, TransportStats,
};
use serde::{Deserialize, Serialize};

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Chat(u32);

#[derive(Resource, Default)]
struct Log {
    orders: Vec<u32>,
    chats: Vec<u32>,
    broken: Vec<Answer>,
    warnings: Vec<String>,
    pacing: Vec<(usize, usize, PacingReason)>,
    closing: Vec<Duration>,
    disconnected: Vec<DisconnectReason>,
}

fn game(app: &mut App) {
    app.replicate::<Health>();
    app.protocol()
        .add_message::<Order>(Channel::ReliableOrdered)
        .add_message::<Chat>(Channel::ReliableOrdered)
        .chat();
    app.init_resource::<Log>()
        .add_observer(|broken: On<LimitBroken>, mut log: ResMut<Log>| {
            log.broken.push(broken.answer);
        })
        .add_observer(|warning: On<LimitWarning>, mut log: ResMut<Log>| {
            log.warnings.push(warning.limit.clone());
        })
        .add_observer(|pacing: On<PacingChanged>, mut log: ResMut<Log>| {
            log.pacing.push((pacing.from, pacing.to, pacing.reason));
        })
        .add_observer(|closing: On<ServerClosing>, mut log: ResMut<Log>| {
            log.closing.push(closing.within);
        })
        .add_observer(|ended: On<Disconnected>, mut log: ResMut<Log>| {
            log.disconnected.push(ended.reason.clone());
        })
        .add_systems(Update, listen)
        .add_plugins(DiagnosticsPlugin);
}

fn listen(
    mut log: ResMut<Log>,
    orders: Option<MessageReader<FromClient<Order>>>,
    chats: Option<MessageReader<FromClient<Chat>>>,
) {
    if let Some(mut orders) = orders {
        log.orders.extend(orders.read().map(|it| it.message.0));
    }
    if let Some(mut chats) = chats {
        log.chats.extend(chats.read().map(|it| it.message.0));
    }
}

fn server_log(net: &TestNet) -> &Log {
    net.server.world().resource()
}

fn client_log(net: &mut TestNet, client: TestClientId) -> &Log {
    net.client(client).world().resource()
}

fn order(net: &mut TestNet, client: TestClientId, number: u32) {
    let world = net.client(client).world_mut();
    world.write_message(ToServer(Order(number)));
}

fn measured(app: &App, path: &DiagnosticPath) -> Option<f64> {
    let store = app.world().resource::<DiagnosticsStore>();
    store.get(path)?.average()
}

#[test]
fn an_honest_client_never_meets_a_limit() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(2));
    let ada = net.join("Ada");
    net.run(Ticks(120));
    for number in 0..600 {
        if number % 6 == 0 {
            order(&mut net, ada, number);
        }
        net.run(Ticks(1));
    }
    net.run(Ticks(120));
    let stats = net.server.world().resource::<ServerStats>();
    assert_eq!(stats.limits, Default::default());
    assert_eq!(server_log(&net).orders.len(), 100);
}

#[test]
fn a_flood_is_dropped_then_warned_of_then_ended_and_nobody_else_notices() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let (ada, mallory) = (net.join("Ada"), net.join("Mallory"));
    net.run(Ticks(60));
    for number in 0..800 {
        order(&mut net, ada, number);
        for _ in 0..100 {
            order(&mut net, mallory, number);
        }
        net.run(Ticks(6));
    }
    assert!(!client_log(&mut net, mallory).warnings.is_empty());
    let reason = client_log(&mut net, mallory).disconnected.last().cloned();
    assert!(
        matches!(reason, Some(DisconnectReason::LimitExceeded(_))),
        "{reason:?}"
    );
    let (last, before) = server_log(&net).broken.split_last().unwrap();
    assert_eq!(*last, Answer::Disconnect);
    assert!(!before.is_empty() && before.iter().all(|it| *it == Answer::Warn));
    let stats = net.server.world().resource::<ServerStats>();
    assert!(stats.limits.drops > 50, "{:?}", stats.limits);
    let taken = server_log(&net).orders.len();
    assert!(taken < 800 + 60 * 90, "within the allowed rate: {taken}");
    assert_eq!(client_log(&mut net, ada).disconnected, []);
    assert!(net.session(ada).is_some());
}

#[test]
fn an_honest_burst_is_delayed_and_nothing_of_it_is_lost() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(8));
    let ada = net.join("Ada");
    net.run(Ticks(120));
    for number in 0..500 {
        order(&mut net, ada, number);
    }
    net.run(Ticks(60 * 12));
    assert_eq!(server_log(&net).orders, (0..500).collect::<Vec<_>>());
    assert_eq!(client_log(&mut net, ada).disconnected, []);
}

/// How many messages of a flood a server takes from a client that has come back so often, though it had nothing to say.
fn taken_after_resumes(times: usize) -> usize {
    let mut net = TestNet::new(game, LinkConditions::default());
    let mallory = net.join("Mallory");
    net.run(Ticks(60));
    for _ in 0..times {
        let link = net.connector().connect();
        net.client(mallory).resume_over(link);
        net.run(Ticks(10));
    }
    assert_eq!(
        net.server.world().resource::<ServerStats>().resumed,
        times as u64
    );
    for number in 0..60 * 10 {
        for _ in 0..20 {
            order(&mut net, mallory, number);
        }
        net.run(Ticks(1));
    }
    server_log(&net).orders.len()
}

/// Says everything with messages in it 400 times, each time as if it were new.
struct Parrot {
    inner: LocalClient,
    next_seq: u16,
}

impl ClientTransport for Parrot {
    fn state(&self) -> &ClientLinkState {
        self.inner.state()
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        self.inner.receive(now, datagrams);
    }

    fn send(&mut self, now: Duration, datagram: &[u8]) {
        /// What a packet of messages is called on the wire.
        const RENET: u8 = 2;
        let (header, chunks) = Header::decode(datagram).expect("a datagram of ours");
        let times = if chunks.first() == Some(&RENET) {
            400
        } else {
            1
        };
        for _ in 0..times {
            let seq = self.next_seq;
            self.next_seq = seq.wrapping_add(1);
            let header = Header { seq, ..header }.encode();
            self.inner.send(now, &[&header, chunks].concat());
        }
    }

    fn flush(&mut self, now: Duration) {
        self.inner.flush(now);
    }

    fn kind(&self) -> TransportKind {
        self.inner.kind()
    }

    fn vanish(&mut self) {
        self.inner.vanish();
    }

    fn close(&mut self) {
        self.inner.close();
    }

    fn stats(&self) -> TransportStats {
        self.inner.stats()
    }
}

#[test]
fn who_sends_the_same_messages_again_and_again_is_sent_away() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let polly = net.join("Polly");
    let parrot = Parrot {
        inner: net.connector().connect(),
        next_seq: 0,
    };
    net.connect_over(polly, parrot);
    net.run(Ticks(60));
    assert!(net.session(polly).is_some(), "saying hello often is no sin");
    for number in 0..50 {
        (0..5).for_each(|_| order(&mut net, polly, number));
        net.run(Ticks(6));
    }
    let reason = client_log(&mut net, polly).disconnected.last().cloned();
    assert_eq!(
        reason,
        Some(DisconnectReason::LimitExceeded(
            Exceeded::Repeats.to_string()
        ))
    );
}

#[test]
fn coming_back_often_allows_no_larger_flood_than_coming_back_once() {
    let (once, often) = (taken_after_resumes(1), taken_after_resumes(10));
    assert!(often <= once, "{often} after ten resumes, {once} after one");
}

#[test]
fn chat_has_tighter_limits_of_its_own() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("Ada");
    net.run(Ticks(60));
    for number in 0..40 {
        let world = net.client(ada).world_mut();
        world.write_message(ToServer(Chat(number)));
        world.write_message(ToServer(Order(number)));
        net.run(Ticks(3));
    }
    net.run(Ticks(10));
    let log = server_log(&net);
    assert_eq!(log.orders, (0..40).collect::<Vec<_>>());
    assert!((8..20).contains(&log.chats.len()), "{}", log.chats.len());
}

#[test]
fn who_goes_on_is_banned_for_a_time() {
    let config = ServerConfig {
        limits: LimitSettings {
            session: SessionLimits::default(),
            ladder: Ladder {
                warn_at: 3,
                disconnect_at: 6,
                ban_at_offence: 1,
                ban: Duration::from_secs(60),
                ..default()
            },
            ..default()
        },
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let mallory = net.join("Mallory");
    net.run(Ticks(60));
    for number in 0..300 {
        for _ in 0..100 {
            order(&mut net, mallory, number);
        }
        net.run(Ticks(2));
    }
    let reason = client_log(&mut net, mallory).disconnected.last().cloned();
    assert!(
        matches!(reason, Some(DisconnectReason::Banned { seconds: 60, .. })),
        "{reason:?}"
    );
    assert_eq!(net.server.world().resource::<ServerStats>().limits.bans, 1);
}

#[test]
fn who_comes_back_to_offend_again_is_banned() {
    let config = ServerConfig {
        verifier: Some(Arc::new(|credentials: &[u8], _: u64| {
            Ok(Identity::verified(
                "test",
                String::from_utf8_lossy(credentials),
            ))
        })),
        limits: LimitSettings {
            ladder: Ladder {
                warn_at: 3,
                disconnect_at: 6,
                ..default()
            },
            ..default()
        },
        ..default()
    };
    let called = |name: &str| ClientConfig {
        name: name.into(),
        credentials: name.as_bytes().to_vec(),
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let ada = net.join_with(game, called("Ada"));
    for offence in 1..=3 {
        let mallory = net.join_with(game, called("Mallory"));
        net.run(Ticks(60));
        assert!(net.session(mallory).is_some(), "{offence}");
        for number in 0..300 {
            for _ in 0..100 {
                order(&mut net, mallory, number);
            }
            net.run(Ticks(2));
        }
        net.run(Ticks(10));
        let reason = client_log(&mut net, mallory).disconnected.last().cloned();
        assert!(
            match reason {
                Some(DisconnectReason::LimitExceeded(_)) => offence < 3,
                Some(DisconnectReason::Banned { seconds: 300, .. }) => offence == 3,
                _ => false,
            },
            "{offence}: {reason:?}"
        );
    }
    let limits = |net: &TestNet| net.server.world().resource::<ServerStats>().limits;
    assert_eq!((limits(&net).disconnects, limits(&net).bans), (2, 1));
    assert_eq!(limits(&net).refused_links, 0);
    let mallory = net.join_with(game, called("Mallory"));
    // It is told a second later, so that it cannot ask hundreds of times a second.
    net.run(Ticks(50));
    assert_eq!(client_log(&mut net, mallory).disconnected, []);
    net.run(Ticks(30));
    let reason = client_log(&mut net, mallory).disconnected.last().cloned();
    assert!(
        matches!(reason, Some(DisconnectReason::Banned { .. })),
        "{reason:?}"
    );
    assert!(net.session(mallory).is_none());
    assert_eq!(limits(&net).refused_links, 1);
    assert!(net.session(ada).is_some());
}

#[test]
fn a_ban_is_told_with_its_reason() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("Ada");
    net.run(Ticks(60));
    let session = net.session(ada).unwrap();
    net.server.world_mut().trigger(Ban {
        session,
        reason: "cheating".into(),
        duration: Duration::from_secs(90),
    });
    net.run(Ticks(10));
    assert_eq!(
        client_log(&mut net, ada).disconnected,
        [DisconnectReason::Banned {
            reason: "cheating".into(),
            seconds: 90
        }]
    );
}

#[test]
fn a_bad_link_is_sent_less_and_a_good_one_all_again() {
    let config = ServerConfig {
        adaptive: Some(PacingSettings::default()),
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let mover = net.server.world_mut().spawn((Replicated, Health(0))).id();
    let ada = net.join("Ada");
    let snapshots = |net: &mut TestNet, seconds: u32| {
        let before = net.client(ada).world().resource::<ClientStats>().snapshots;
        for _ in 0..seconds * 60 {
            net.server.world_mut().get_mut::<Health>(mover).unwrap().0 += 1;
            net.run(Ticks(1));
        }
        let after = net.client(ada).world().resource::<ClientStats>().snapshots;
        (after - before) / u64::from(seconds)
    };
    snapshots(&mut net, 3);
    assert_eq!(snapshots(&mut net, 4), 30);
    net.connector().set_conditions(LinkConditions {
        loss: 0.4,
        ..default()
    });
    snapshots(&mut net, 20);
    let session = net.session(ada).unwrap();
    let pacing = *net.server.world().get::<Pacing>(session).unwrap();
    assert_eq!(pacing.grade, 3, "{:?}", server_log(&net).pacing);
    assert_eq!(server_log(&net).pacing[0].2, PacingReason::Loss);
    net.connector().set_conditions(LinkConditions::default());
    snapshots(&mut net, 1);
    assert!(snapshots(&mut net, 2) <= 11, "a third of the rate");
    snapshots(&mut net, 150);
    assert_eq!(snapshots(&mut net, 4), 30, "as good as before");
    let decisions = &net.server.world().resource::<PacingStats>().decisions;
    assert!(decisions[&PacingReason::Loss] >= 3);
    assert!(decisions[&PacingReason::Recovered] >= 3);
}

#[test]
fn diagnostics_tell_how_links_do() {
    let conditions = LinkConditions {
        latency: Duration::from_millis(50),
        loss: 0.1,
        ..default()
    };
    let mut net = TestNet::new(game, conditions);
    let ada = net.join("Ada");
    net.run(Ticks(60 * 10));
    let client = net.client(ada);
    let rtt = measured(client, &diagnostics::RTT_MS).unwrap();
    assert!((90.0..200.0).contains(&rtt), "{rtt} ms");
    assert!(measured(client, &diagnostics::LOSS_PERCENT).unwrap() > 1.0);
    assert!(measured(client, &diagnostics::BYTES_IN).unwrap() > 100.0);
    assert_eq!(measured(&net.server, &diagnostics::SESSIONS), Some(1.0));
    assert_eq!(measured(&net.server, &diagnostics::AWAY), Some(0.0));
    let rtt = measured(&net.server, &diagnostics::RTT_MS).unwrap();
    assert!((90.0..250.0).contains(&rtt), "{rtt} ms");
}

#[test]
fn a_server_that_goes_says_when_and_lets_nobody_in() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("Ada");
    net.run(Ticks(60));
    let grace = Duration::from_secs(2);
    net.server.world_mut().trigger(ShutdownRequested { grace });
    net.run(Ticks(10));
    assert_eq!(client_log(&mut net, ada).closing, [grace]);
    let bob = net.join("Bob");
    net.run(Ticks(60));
    assert!(net.session(bob).is_none());
    assert!(net.session(ada).is_some(), "who is in stays until then");
    net.server.world_mut().write_message(AppExit::Success);
    net.run(Ticks(5));
    assert_eq!(
        client_log(&mut net, ada).disconnected,
        [DisconnectReason::ServerShutdown]
    );
}
