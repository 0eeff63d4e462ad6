//! Connections and sessions end, begin and break at the worst moments: the game asks for it from observers, systems and
//! replayed ticks, while snapshots are applied, while another end is under way, twice.

use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::client::{
    ClientConfig, ConnectionChanged, ReconnectSettings, ResumeFinished, ServerClosing,
};
use bevy_tandem::headless::ShutdownRequested;
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::backoff::{BackoffSettings, Jitter};
use bevy_tandem::server::{LinkStats, LinkedOver};
use bevy_tandem::session::{Away, Ban, SessionAway, SessionReturned};
use bevy_tandem::testing::{TestClientId, TestNet};
use bevy_tandem::transport::{ClientTransport, Conditioned, LocalConnector};
use serde::{Deserialize, Serialize};

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u32);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Place(f32);

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Steer(i8);

#[derive(Resource, Default)]
struct Log {
    joined: usize,
    left: Vec<DisconnectReason>,
    disconnected: Vec<DisconnectReason>,
}

fn game(app: &mut App) {
    app.add_input::<Steer>();
    app.replicate::<Health>();
    app.replicate::<Place>().predict();
    app.add_systems(FixedUpdate, steer)
        .init_resource::<Log>()
        .add_observer(
            |joined: On<SessionJoined>, mut log: ResMut<Log>, mut commands: Commands| {
                log.joined += 1;
                commands.spawn((Replicated, OwnedBy(joined.entity), Place(0.0)));
            },
        )
        .add_observer(|left: On<SessionLeft>, mut log: ResMut<Log>| {
            log.left.push(left.reason.clone());
        })
        .add_observer(|ended: On<Disconnected>, mut log: ResMut<Log>| {
            log.disconnected.push(ended.reason.clone());
        });
}

fn steer(mut ships: Query<(&Input<Steer>, &mut Place), With<Simulated>>) {
    for (steer, mut place) in &mut ships {
        place.0 += f32::from(steer.0.0) * 0.125;
    }
}

fn clean() -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(30),
        ..default()
    }
}

fn count<C: Component>(app: &mut App) -> usize {
    let world = app.world_mut();
    world.query::<&C>().iter(world).count()
}

fn state(net: &mut TestNet, client: TestClientId) -> ConnectionState {
    net.client(client).world().resource::<Connection>().state()
}

fn ends(net: &mut TestNet, client: TestClientId) -> Vec<DisconnectReason> {
    net.client(client)
        .world()
        .resource::<Log>()
        .disconnected
        .clone()
}

fn named(name: &str) -> ClientConfig {
    ClientConfig {
        name: name.into(),
        // Back at once.
        reconnect: ReconnectSettings {
            backoff: BackoffSettings {
                initial: Duration::from_millis(50),
                ..default()
            },
            ..default()
        },
        ..default()
    }
}

/// What the game does the next time that a moment comes, so many times in a row.
#[derive(Resource)]
struct Plan {
    act: fn(&mut Commands),
    times: u32,
    is_due: bool,
}

fn act(plan: &mut Plan, commands: &mut Commands) {
    if std::mem::take(&mut plan.is_due) {
        for _ in 0..plan.times {
            (plan.act)(commands);
        }
    }
}

/// Moments of a client, each an app's plugin.
const MOMENTS: [(&str, fn(&mut App)); 14] = [
    ("a component comes", at::<Add, Health>),
    ("a component is written", at::<Insert, Health>),
    ("a copy goes", at::<Remove, Replicated>),
    ("a copy is despawned", at::<Despawn, Health>),
    ("an entity is predicted", at::<Add, Predicted>),
    ("the connection changes", on::<ConnectionChanged>),
    ("it is connected", on::<Connected>),
    ("it is disconnected", on::<Disconnected>),
    ("a tick is replayed", |app| {
        app.add_systems(
            FixedUpdate,
            (|mut plan: ResMut<Plan>, mut commands: Commands| act(&mut plan, &mut commands))
                .run_if(replaying),
        );
    }),
    ("PreUpdate", |app| in_schedule(app, PreUpdate)),
    ("FixedUpdate", |app| in_schedule(app, FixedUpdate)),
    ("Update", |app| in_schedule(app, Update)),
    ("PostUpdate", |app| in_schedule(app, PostUpdate)),
    ("Last", |app| in_schedule(app, Last)),
];

fn at<E: EntityEvent, C: Component>(app: &mut App) {
    app.add_observer(
        |_: On<E, C>, mut plan: ResMut<Plan>, mut commands: Commands| {
            act(&mut plan, &mut commands);
        },
    );
}

fn on<E: Event>(app: &mut App) {
    app.add_observer(|_: On<E>, mut plan: ResMut<Plan>, mut commands: Commands| {
        act(&mut plan, &mut commands);
    });
}

fn in_schedule(app: &mut App, schedule: impl bevy::ecs::schedule::ScheduleLabel) {
    app.add_systems(
        schedule,
        |mut plan: ResMut<Plan>, mut commands: Commands| {
            act(&mut plan, &mut commands);
        },
    );
}

/// A match in which everything happens that is a moment. The client acts the first time that one comes after so many ticks.
fn eventful(
    moment: fn(&mut App),
    when: u32,
    times: u32,
    act: fn(&mut Commands),
) -> (TestNet, TestClientId) {
    let mut net = TestNet::new(game, clean());
    let ada = net.join_with(game, named("Ada"));
    let connector = net.connector().clone();
    let is_due = when == 0;
    let app = net.client(ada);
    app.insert_resource(Plan { act, times, is_due })
        .insert_resource(Road(connector));
    moment(app);
    for tick in 0..600 {
        match tick {
            120 if when == 120 => net.client(ada).world_mut().resource_mut::<Plan>().is_due = true,
            // So that there are an end and a beginning to hear of.
            400 => net.client(ada).world_mut().trigger(Disconnect),
            420 => net.connect(ada),
            _ => {}
        }
        happen(&mut net, tick);
        net.run(Ticks(1));
        if tick >= when && !net.client(ada).world().resource::<Plan>().is_due {
            return (net, ada);
        }
    }
    panic!("the moment does not come");
}

/// Things come and go, and predictions are wrong.
fn happen(net: &mut TestNet, tick: u32) {
    let world = net.server.world_mut();
    let parent = world.spawn((Replicated, Health(tick))).id();
    world.spawn((Replicated, Health(tick), ChildOf(parent)));
    let mut healths = world.query::<(Entity, &Health)>();
    let old: Vec<_> = healths
        .iter(world)
        .filter(|(_, health)| health.0 + 20 < tick)
        .map(|(entity, _)| entity)
        .collect();
    for entity in old {
        world.try_despawn(entity).ok();
    }
    if tick.is_multiple_of(7) {
        let mut places = world.query::<&mut Place>();
        for mut place in places.iter_mut(world) {
            place.0 += 5.0;
        }
    }
}

/// Where to connect to.
#[derive(Resource, Clone)]
struct Road(LocalConnector);

fn connect_again(world: &mut World) {
    let Road(connector) = world.resource::<Road>().clone();
    world.connect_with(move |_: Option<&[u8]>| {
        let link = Conditioned::new(connector.connect(), clean());
        Ok(Box::new(link) as Box<dyn ClientTransport>)
    });
}

fn works(net: &mut TestNet, client: TestClientId) {
    for tick in 0..60 {
        happen(net, 10_000 + tick);
        net.run(Ticks(1));
    }
    let world = net.server.world_mut();
    let mut healths = world.query_filtered::<Entity, With<Health>>();
    let all: Vec<_> = healths.iter(world).collect();
    for entity in all {
        world.try_despawn(entity).ok();
    }
    world.spawn((Replicated, Health(1)));
    net.run(Ticks(120));
    assert_eq!(state(net, client), ConnectionState::Connected);
    assert_eq!(count::<Health>(net.client(client)), 1);
    assert_eq!(count::<Place>(net.client(client)), 1);
    assert_eq!(count::<Replicated>(net.client(client)), 2);
    assert_eq!(count::<Session>(&mut net.server), 1);
}

#[test]
fn a_disconnect_at_any_moment_ends_the_connection_and_leaves_no_copies() {
    for (name, moment) in MOMENTS {
        for (when, times) in [(0, 1), (120, 1), (120, 3)] {
            let (mut net, ada) =
                eventful(moment, when, times, |commands| commands.trigger(Disconnect));
            net.run(Ticks(2));
            let at = format!("{name}, {times} times from {when}");
            assert_eq!(state(&mut net, ada), ConnectionState::Disconnected, "{at}");
            let ends = ends(&mut net, ada);
            let expected = match ends.len() {
                // It had left before, so that it could be connected now.
                2 if ["it is connected", "an entity is predicted"].contains(&name) => 2,
                _ => 1,
            };
            assert_eq!(ends, vec![DisconnectReason::ClientLeft; expected], "{at}");
            assert_eq!(count::<Replicated>(net.client(ada)), 0, "{at}");
            assert_eq!(count::<Health>(net.client(ada)), 0, "{at}");
            net.run(Ticks(120));
            assert_eq!(count::<Session>(&mut net.server), 0, "{at}");
            net.connect(ada);
            net.run(Ticks(120));
            works(&mut net, ada);
        }
    }
}

#[test]
fn connecting_at_any_moment_leaves_one_session() {
    for (name, moment) in MOMENTS {
        for (when, times) in [(0, 1), (120, 1), (120, 2)] {
            let (mut net, ada) = eventful(moment, when, times, |commands| {
                commands.queue(connect_again);
            });
            net.run(Ticks(240));
            println!("{name}, {times} times from {when}");
            works(&mut net, ada);
        }
    }
}

#[test]
fn connecting_in_the_frame_of_a_disconnect_begins_anew_and_the_reverse_ends() {
    for (name, moment) in MOMENTS {
        let (mut net, ada) = eventful(moment, 120, 1, |commands| {
            commands.trigger(Disconnect);
            commands.queue(connect_again);
        });
        net.run(Ticks(240));
        println!("{name}");
        works(&mut net, ada);
        let (mut net, ada) = eventful(moment, 120, 1, |commands| {
            commands.queue(connect_again);
            commands.trigger(Disconnect);
        });
        net.run(Ticks(120));
        assert_eq!(
            state(&mut net, ada),
            ConnectionState::Disconnected,
            "{name}"
        );
        assert_eq!(count::<Replicated>(net.client(ada)), 0, "{name}");
        assert_eq!(count::<Session>(&mut net.server), 0, "{name}");
    }
}

#[test]
fn a_link_cut_at_any_moment_is_replaced_and_all_copies_are_right() {
    for (name, moment) in MOMENTS {
        if name == "it is disconnected" {
            continue;
        }
        for (when, times) in [(0, 1), (120, 1), (120, 2)] {
            let (mut net, ada) = eventful(moment, when, times, |commands| {
                commands.queue(|world: &mut World| world.cut_link());
            });
            net.run(Ticks(240));
            println!("{name}, {times} times from {when}");
            if state(&mut net, ada) != ConnectionState::Connected {
                // Cut on its way to its first session, or after its last, it had nothing to come back to.
                assert_ne!(state(&mut net, ada), ConnectionState::Connecting);
                assert_eq!(count::<Replicated>(net.client(ada)), 0);
                net.connect(ada);
                net.run(Ticks(120));
            }
            works(&mut net, ada);
        }
    }
}

#[test]
fn going_on_over_another_link_works_at_any_moment() {
    for (name, moment) in MOMENTS {
        if name == "it is disconnected" {
            continue;
        }
        let when = match name {
            "it is connected" | "the connection changes" | "an entity is predicted" => 0,
            _ => 120,
        };
        let (mut net, ada) = eventful(moment, when, 2, |commands| {
            commands.queue(|world: &mut World| {
                let Road(connector) = world.resource::<Road>().clone();
                world.resume_over(Conditioned::new(connector.connect(), clean()));
            });
        });
        net.run(Ticks(240));
        println!("{name}");
        works(&mut net, ada);
        let joined = net.server.world().resource::<Log>().joined;
        assert_eq!(joined, 1, "{name}: the session goes on");
    }
}

#[test]
fn an_observer_that_answers_every_end_with_a_connect_does_not_hold_up_the_frame() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join_with(game, named("Ada"));
    let connector = net.connector().clone();
    net.client(ada)
        .insert_resource(Road(connector))
        .add_observer(|_: On<Disconnected>, mut commands: Commands| {
            commands.queue(connect_again);
        })
        .add_observer(|changed: On<ConnectionChanged>, mut commands: Commands| {
            if changed.to == ConnectionState::Connecting {
                commands.trigger(Disconnect);
            }
        });
    net.run(Ticks(120));
    assert!(ends(&mut net, ada).len() < 121);
}

// ---- what is told before what goes ----

#[derive(Component)]
struct Camera;

fn camera_game(app: &mut App) {
    game(app);
    app.add_observer(
        |_: On<Disconnected>, cameras: Query<Entity, With<Camera>>, mut commands: Commands| {
            for camera in &cameras {
                commands.entity(camera).remove::<ChildOf>();
            }
        },
    );
}

#[test]
fn a_camera_is_taken_off_before_the_copies_go_however_the_session_ends() {
    let ends: [fn(&mut TestNet, TestClientId); 5] = [
        |net, ada| net.client(ada).world_mut().trigger(Disconnect),
        |net, ada| {
            let session = net.session(ada).unwrap();
            let reason = "enough".into();
            net.server.world_mut().trigger(Kick { session, reason });
        },
        |net, ada| {
            let session = net.session(ada).unwrap();
            net.server.world_mut().despawn(session);
        },
        |net, _| {
            net.server.world_mut().write_message(AppExit::Success);
        },
        |net, ada| net.connect(ada),
    ];
    for (n, end) in ends.into_iter().enumerate() {
        let mut net = TestNet::new(game, clean());
        let ada = net.join_with(camera_game, named("Ada"));
        net.run(Ticks(120));
        let world = net.client(ada).world_mut();
        let ship = world
            .query_filtered::<Entity, With<Owned>>()
            .single(world)
            .unwrap();
        let camera = world.spawn((Camera, ChildOf(ship))).id();
        end(&mut net, ada);
        net.run(Ticks(20));
        let world = net.client(ada).world();
        assert!(world.get_entity(ship).is_err(), "{n}");
        assert!(world.get_entity(camera).is_ok(), "{n}");
        assert!(world.get::<ChildOf>(camera).is_none(), "{n}");
    }
}

/// Ends of a session, for the server's game.
const SERVER_ENDS: [(&str, fn(&mut TestNet, TestClientId, Entity)); 5] = [
    ("kicked", |net, _, session| {
        let reason = "enough".into();
        net.server.world_mut().trigger(Kick { session, reason });
    }),
    ("banned", |net, _, session| {
        net.server.world_mut().trigger(Ban {
            session,
            reason: "enough".into(),
            duration: Duration::from_secs(1),
        });
    }),
    ("left", |net, ada, _| {
        net.client(ada).world_mut().trigger(Disconnect);
    }),
    ("despawned", |net, _, session| {
        net.server.world_mut().despawn(session);
    }),
    ("shut down", |net, _, _| {
        net.server.world_mut().write_message(AppExit::Success);
    }),
];

#[test]
fn a_ship_is_handed_over_before_what_its_session_owns_goes() {
    fn keeping(app: &mut App) {
        game(app);
        app.add_observer(
            |left: On<SessionLeft>,
             owns: Query<&Owns>,
             sessions: Query<(Entity, &Session)>,
             mut commands: Commands| {
                let owned = owns.get(left.entity).expect("it is still there");
                assert!(sessions.contains(left.entity), "and its components");
                let heir = sessions.iter().find(|(session, _)| *session != left.entity);
                for (n, entity) in owned.iter().enumerate() {
                    match (n, heir) {
                        (0, _) => drop(commands.entity(entity).remove::<OwnedBy>()),
                        (1, Some((heir, _))) => {
                            commands.entity(entity).insert(OwnedBy(heir));
                        }
                        _ => {}
                    }
                }
            },
        );
    }
    for (name, end) in SERVER_ENDS {
        let mut net = TestNet::new(keeping, clean());
        let (ada, bob) = (net.join_with(game, named("Ada")), net.join("Bob"));
        net.run(Ticks(120));
        let (session, heir) = (net.session(ada).unwrap(), net.session(bob).unwrap());
        let world = net.server.world_mut();
        let ship = world.get::<Owns>(session).unwrap().iter().next().unwrap();
        let given = world.spawn((Replicated, OwnedBy(session), Health(1))).id();
        let lost = world.spawn((Replicated, OwnedBy(session), Health(2))).id();
        net.run(Ticks(30));
        end(&mut net, ada, session);
        net.run(Ticks(30));
        let world = net.server.world();
        assert!(world.get_entity(session).is_err(), "{name}");
        assert!(world.get_entity(ship).is_ok(), "{name}: nobody's now");
        assert!(world.get::<OwnedBy>(ship).is_none(), "{name}");
        assert!(world.get_entity(lost).is_err(), "{name}");
        if name != "shut down" {
            assert_eq!(world.get::<OwnedBy>(given), Some(&OwnedBy(heir)), "{name}");
            assert_eq!(count::<Health>(net.client(bob)), 1, "{name}");
            assert_eq!(count::<Place>(net.client(bob)), 2, "{name}");
        }
        assert_eq!(
            net.server.world().resource::<Log>().left.len(),
            if name == "shut down" { 2 } else { 1 }
        );
    }
}

#[test]
fn kick_ban_despawn_and_leave_in_one_frame_end_a_session_once() {
    for order in 0..4 {
        let mut net = TestNet::new(game, clean());
        let ada = net.join_with(game, named("Ada"));
        net.run(Ticks(120));
        let session = net.session(ada).unwrap();
        for n in 0..4 {
            let (_, end) = SERVER_ENDS[(order + n) % 4];
            end(&mut net, ada, session);
        }
        net.run(Ticks(120));
        assert_eq!(count::<Session>(&mut net.server), 0, "{order}");
        assert_eq!(
            net.server.world().resource::<Log>().left.len(),
            1,
            "{order}"
        );
        assert_eq!(ends(&mut net, ada).len(), 1, "{order}");
        assert_eq!(count::<Replicated>(net.client(ada)), 0, "{order}");
    }
}

// ---- sessions that the game ends where it is told of them ----

/// A server that soon finds out that a link is dead.
fn attentive() -> ServerConfig {
    ServerConfig {
        client_timeout: Duration::from_millis(300),
        ..default()
    }
}

/// A client that takes a second to come back.
fn slow(name: &str) -> ClientConfig {
    let backoff = BackoffSettings {
        initial: Duration::from_secs(1),
        jitter: Jitter::None,
        ..default()
    };
    let reconnect = ReconnectSettings {
        backoff,
        ..default()
    };
    ClientConfig {
        reconnect,
        ..named(name)
    }
}

/// Moments of a server at which it hears of a session.
const SESSION_MOMENTS: [(&str, fn(&mut App)); 10] = [
    ("is added", session_at::<Add, Session>),
    ("has a link", session_at::<Insert, LinkedOver>),
    ("has link statistics", session_at::<Insert, LinkStats>),
    ("has joined", told::<SessionJoined>),
    ("is away", told::<SessionAway>),
    ("is marked as away", session_at::<Add, Away>),
    ("is not away any more", session_at::<Remove, Away>),
    ("has lost its link", session_at::<Remove, LinkedOver>),
    ("is back", told::<SessionReturned>),
    ("has left", told::<SessionLeft>),
];

#[derive(Resource)]
struct Deed(fn(Entity, &mut Commands));

fn session_at<E: EntityEvent, C: Component>(app: &mut App) {
    app.add_observer(
        |event: On<E, C>, deed: Option<Res<Deed>>, mut commands: Commands| {
            if let Some(deed) = deed {
                (deed.0)(event.event_target(), &mut commands);
            }
        },
    );
}

fn told<E: EntityEvent>(app: &mut App) {
    app.add_observer(
        |event: On<E>, deed: Option<Res<Deed>>, mut commands: Commands| {
            if let Some(deed) = deed {
                (deed.0)(event.event_target(), &mut commands);
            }
        },
    );
}

const DEEDS: [(&str, fn(Entity, &mut Commands)); 5] = [
    ("despawn", |session, commands| {
        commands.entity(session).try_despawn();
    }),
    ("kick", |session, commands| {
        let reason = "no".into();
        commands.trigger(Kick { session, reason });
    }),
    ("ban", |session, commands| {
        commands.trigger(Ban {
            session,
            reason: "no".into(),
            duration: Duration::from_millis(1),
        });
    }),
    ("take the component off", |session, commands| {
        commands.entity(session).try_remove::<Session>();
    }),
    ("everything", |session, commands| {
        let room = commands.spawn(Room).id();
        commands.entity(session).try_insert(InRoom(room));
        let reason = "no".into();
        commands.trigger(Kick { session, reason });
        commands.entity(room).despawn();
        commands.entity(session).try_despawn();
    }),
];

#[test]
fn a_session_that_the_game_ends_at_any_moment_frees_its_slot_and_ends_for_its_client() {
    for (moment, install) in SESSION_MOMENTS {
        for (deed, doing) in DEEDS {
            let at = format!("{deed} what {moment}");
            let config = ServerConfig {
                max_sessions: 1,
                ..attentive()
            };
            let mut net = TestNet::with_config(game, clean(), config);
            install(&mut net.server);
            net.server.insert_resource(Deed(doing));
            let ada = net.join_with(game, slow("Ada"));
            net.run(Ticks(60));
            net.cut(ada);
            net.run(Ticks(120));
            net.client(ada).world_mut().trigger(Disconnect);
            net.run(Ticks(120));
            assert_eq!(count::<Session>(&mut net.server), 0, "{at}");
            if deed != "take the component off" {
                assert_eq!(count::<Replicated>(&mut net.server), 0, "{at}");
            }
            let left = net.server.world().resource::<Log>().left.len();
            assert_eq!(left, 1, "{at}");
            assert_ne!(state(&mut net, ada), ConnectionState::Connected, "{at}");
            assert_eq!(count::<Replicated>(net.client(ada)), 0, "{at}");
            net.server.world_mut().remove_resource::<Deed>();
            let bob = net.join("Bob");
            net.run(Ticks(120));
            assert_eq!(state(&mut net, bob), ConnectionState::Connected, "{at}");
        }
    }
}

#[test]
fn a_client_whose_session_the_game_despawns_is_told_at_once() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join_with(game, named("Ada"));
    net.run(Ticks(120));
    let session = net.session(ada).unwrap();
    net.server.world_mut().despawn(session);
    net.run(Ticks(6));
    assert_eq!(state(&mut net, ada), ConnectionState::Disconnected);
    let told = ends(&mut net, ada);
    assert!(
        matches!(&told[..], [DisconnectReason::Kicked(_)]),
        "{told:?}"
    );
    assert_eq!(net.server.world().resource::<Log>().left, told);
    assert_eq!(count::<Replicated>(&mut net.server), 0, "what it owned");
}

#[test]
fn a_shutdown_may_be_asked_for_by_whoever_joins_or_leaves() {
    for (moment, install) in SESSION_MOMENTS {
        let mut net = TestNet::with_config(game, clean(), attentive());
        install(&mut net.server);
        net.server.insert_resource(Deed(|_, commands| {
            commands.trigger(ShutdownRequested {
                grace: Duration::from_secs(60),
            });
        }));
        let ada = net.join_with(game, slow("Ada"));
        #[derive(Resource, Default)]
        struct Closing(u32);
        net.client(ada)
            .init_resource::<Closing>()
            .add_observer(|_: On<ServerClosing>, mut closing: ResMut<Closing>| closing.0 += 1);
        net.run(Ticks(60));
        net.cut(ada);
        net.run(Ticks(120));
        if moment == "has left" {
            net.client(ada).world_mut().trigger(Disconnect);
            net.run(Ticks(30));
        }
        let bob = net.join("Bob");
        net.run(Ticks(60));
        assert_ne!(state(&mut net, bob), ConnectionState::Connected, "{moment}");
    }
}

#[test]
fn rooms_may_change_and_go_whenever_sessions_are_heard_of() {
    for (moment, install) in SESSION_MOMENTS {
        let mut net = TestNet::with_config(game, clean(), attentive());
        install(&mut net.server);
        net.server.insert_resource(Deed(|session, commands| {
            let (first, second) = (commands.spawn(Room).id(), commands.spawn_empty().id());
            commands.entity(session).try_insert(InRoom(first));
            commands.entity(session).try_insert(InRoom(second));
            commands.entity(first).despawn();
            commands.spawn((Replicated, Health(7), InRoom(second)));
        }));
        let ada = net.join_with(game, slow("Ada"));
        net.run(Ticks(60));
        net.cut(ada);
        net.run(Ticks(150));
        assert_eq!(state(&mut net, ada), ConnectionState::Connected, "{moment}");
        if moment == "has left" {
            continue;
        }
        assert_eq!(count::<Health>(net.client(ada)), 1, "{moment}");
        net.client(ada).world_mut().trigger(Disconnect);
        net.run(Ticks(60));
        assert_eq!(count::<Session>(&mut net.server), 0, "{moment}");
    }
}

#[test]
fn who_is_told_that_a_session_resumed_may_leave_at_once() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join_with(game, named("Ada"));
    net.client(ada)
        .add_observer(|_: On<ResumeFinished>, mut commands: Commands| {
            commands.trigger(Disconnect);
        });
    net.run(Ticks(60));
    net.cut(ada);
    net.run(Ticks(120));
    assert_eq!(ends(&mut net, ada), [DisconnectReason::ClientLeft]);
    assert_eq!(count::<Session>(&mut net.server), 0);
    assert_eq!(count::<Replicated>(net.client(ada)), 0);
}

// ---- the player of a listen server ----

fn host_game(app: &mut App) {
    game(app);
    app.add_plugins(HostPlugin { name: "Ada".into() });
}

#[test]
fn a_host_whose_session_the_game_despawns_is_told_and_may_keep_its_ship() {
    let mut net = TestNet::new(host_game, clean());
    net.server.add_observer(
        |left: On<SessionLeft>, owns: Query<&Owns>, mut commands: Commands| {
            for entity in owns.get(left.entity).unwrap().iter() {
                commands.entity(entity).remove::<OwnedBy>();
            }
        },
    );
    net.run(Ticks(10));
    let world = net.server.world_mut();
    let session = world
        .query_filtered::<Entity, With<Session>>()
        .single(world)
        .unwrap();
    world.despawn(session);
    net.run(Ticks(2));
    let world = net.server.world();
    let connection = world.resource::<Connection>();
    assert_eq!(connection.state(), ConnectionState::Disconnected);
    assert_eq!(world.resource::<Log>().left.len(), 1);
    assert_eq!(world.resource::<Log>().disconnected.len(), 1);
    assert_eq!(count::<Place>(&mut net.server), 1);
}
