//! Host mode: a player in the server's app, and one who joins from elsewhere.

use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::client::ClientConfig;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Steer(i8);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Place(f32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Chat(String);

#[derive(Resource, Default)]
struct Log {
    joined: Vec<String>,
    left: Vec<DisconnectReason>,
    connected: usize,
    disconnected: Vec<DisconnectReason>,
}

/// The same on the host and on a client.
fn game(app: &mut App) {
    app.add_input::<Steer>()
        .validate(|steer| steer.0 = steer.0.clamp(-1, 1));
    app.replicate::<Place>().predict();
    app.protocol().add_message::<Chat>(Channel::ReliableOrdered);
    app.add_systems(FixedUpdate, steer)
        .init_resource::<Log>()
        .add_observer(enter)
        .add_observer(|left: On<SessionLeft>, mut log: ResMut<Log>| {
            log.left.push(left.reason.clone());
        })
        .add_observer(|_: On<Connected>, mut log: ResMut<Log>| log.connected += 1)
        .add_observer(|ended: On<Disconnected>, mut log: ResMut<Log>| {
            log.disconnected.push(ended.reason.clone());
        });
}

fn enter(
    joined: On<SessionJoined>,
    sessions: Query<&Session>,
    mut log: ResMut<Log>,
    mut commands: Commands,
) {
    log.joined
        .push(sessions.get(joined.entity).unwrap().name.clone());
    commands.spawn((Replicated, OwnedBy(joined.entity), Place(0.0)));
}

fn steer(mut ships: Query<(&Input<Steer>, &mut Place), With<Simulated>>) {
    for (input, mut place) in &mut ships {
        place.0 += f32::from(input.0.0) * 0.125;
    }
}

fn host_game(app: &mut App) {
    game(app);
    app.add_plugins(HostPlugin { name: "Ada".into() });
}

fn match_with_one_guest() -> (TestNet, TestClientId) {
    let link = LinkConditions {
        latency: Duration::from_millis(30),
        ..default()
    };
    let mut net = TestNet::new(host_game, link);
    let bob = net.join_with(
        game,
        ClientConfig {
            name: "Bob".into(),
            ..default()
        },
    );
    net.run(Ticks(60));
    (net, bob)
}

fn own_place(app: &mut App) -> f32 {
    let world = app.world_mut();
    let mut own = world.query_filtered::<&Place, With<Owned>>();
    own.single(world).expect("a player owns one ship").0
}

fn other_place(app: &mut App) -> f32 {
    let world = app.world_mut();
    let mut others = world.query_filtered::<&Place, Without<Owned>>();
    others.single(world).expect("and sees one other").0
}

fn host_session(net: &mut TestNet) -> Entity {
    let world = net.server.world_mut();
    let mut sessions = world.query::<(Entity, &Session)>();
    let found = sessions
        .iter(world)
        .find(|(_, session)| session.name == "Ada");
    found.unwrap().0
}

#[test]
fn the_host_joins_like_everybody_and_needs_no_link() {
    let (mut net, bob) = match_with_one_guest();
    let log = net.server.world().resource::<Log>();
    assert_eq!(log.joined, ["Ada", "Bob"]);
    assert_eq!(log.connected, 1);
    let id = net.server.world().resource::<Connection>().session();
    let session = host_session(&mut net);
    let known_as = net.server.world().get::<Session>(session).unwrap().id;
    assert_eq!(id, Some(known_as));
    assert_eq!(net.server.world().resource::<ServerStats>().sessions, 1);
    assert_eq!(net.client(bob).world().resource::<Log>().connected, 1);

    let mut alone = TestNet::new(host_game, LinkConditions::default());
    alone.run(Ticks(120));
    let stats = alone.server.world().resource::<ServerStats>();
    assert_eq!(stats.transport.datagrams_out, 0, "nothing is sent for it");
    own_place(&mut alone.server);
}

#[test]
fn both_players_steer_what_they_own() {
    let (mut net, bob) = match_with_one_guest();
    net.server.world_mut().resource_mut::<LocalInput<Steer>>().0 = Steer(1);
    net.client(bob)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(-1);
    net.run(Ticks(60));
    assert_eq!(own_place(&mut net.server), 60.0 * 0.125, "in every tick");
    let before = own_place(&mut net.server);
    net.server.world_mut().resource_mut::<LocalInput<Steer>>().0 = Steer(100);
    net.run(Ticks(10));
    let moved = own_place(&mut net.server) - before;
    assert_eq!(moved, 10.0 * 0.125, "inputs are checked like anybody's");
    net.server.world_mut().resource_mut::<LocalInput<Steer>>().0 = Steer(0);
    net.client(bob)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(0);
    net.run(Ticks(60));
    assert!(other_place(&mut net.server) < -6.0);
    assert_eq!(other_place(&mut net.server), own_place(net.client(bob)));
    assert_eq!(own_place(&mut net.server), other_place(net.client(bob)));
    let stats = net.client(bob).world().resource::<ClientStats>();
    assert_eq!(stats.reconciliations, 0);
}

#[test]
fn messages_reach_the_host_and_come_from_it() {
    let (mut net, bob) = match_with_one_guest();
    let host = host_session(&mut net);
    let guest = net.session(bob).unwrap();
    let room = net.server.world_mut().spawn(Room).id();
    net.server.world_mut().entity_mut(host).insert(InRoom(room));
    net.run(Ticks(2));

    net.server
        .world_mut()
        .write_message(ToServer(Chat("from the host".into())));
    net.client(bob)
        .world_mut()
        .write_message(ToServer(Chat("from the guest".into())));
    let mut received = Vec::new();
    for _ in 0..20 {
        net.run(Ticks(1));
        let mut messages = net
            .server
            .world_mut()
            .resource_mut::<Messages<FromClient<Chat>>>();
        received.extend(messages.drain());
    }
    let from = |session, text: &str| FromClient {
        session,
        message: Chat(text.into()),
    };
    assert_eq!(
        received,
        [from(host, "from the host"), from(guest, "from the guest")]
    );

    let cases = [
        (Target::All, [true, true]),
        (Target::Session(host), [true, false]),
        (Target::Session(guest), [false, true]),
        (Target::AllExcept(host), [false, true]),
        (Target::AllExcept(guest), [true, false]),
        (Target::Room(room), [true, false]),
    ];
    for (to, meant) in cases {
        net.server.world_mut().write_message(ToClients {
            to,
            message: Chat("hear".into()),
        });
        let mut heard = [0, 0];
        for _ in 0..20 {
            net.run(Ticks(1));
            for (app, heard) in [0, 1].into_iter().zip(&mut heard) {
                let app = if app == 0 {
                    &mut net.server
                } else {
                    net.client(bob)
                };
                let mut messages = app.world_mut().resource_mut::<Messages<FromServer<Chat>>>();
                *heard += messages.drain().count();
            }
        }
        assert_eq!(heard, meant.map(usize::from), "{to:?}");
    }
}

#[test]
fn ownership_may_change_between_host_and_guest() {
    let (mut net, bob) = match_with_one_guest();
    let (host, guest) = (host_session(&mut net), net.session(bob).unwrap());
    let world = net.server.world_mut();
    let mut owned = world.query::<(Entity, &OwnedBy)>();
    let of = |owner: Entity, world: &World, owned: &mut QueryState<(Entity, &OwnedBy)>| {
        let mut found = owned.iter(world).filter(|(_, by)| by.0 == owner);
        found.next().unwrap().0
    };
    let (hosts, guests) = (of(host, world, &mut owned), of(guest, world, &mut owned));
    world.entity_mut(hosts).insert(OwnedBy(guest));
    world.entity_mut(guests).insert(OwnedBy(host));
    net.run(Ticks(20));
    let world = net.server.world();
    assert!(world.get::<Owned>(guests).is_some() && world.get::<Owned>(hosts).is_none());
    net.server.world_mut().resource_mut::<LocalInput<Steer>>().0 = Steer(1);
    net.run(Ticks(20));
    assert_eq!(net.server.world().get::<Place>(guests).unwrap().0, 2.5);
    net.server
        .world_mut()
        .entity_mut(guests)
        .remove::<OwnedBy>();
    net.run(Ticks(2));
    assert!(net.server.world().get::<Owned>(guests).is_none());
}

#[test]
fn the_host_leaves_cleanly() {
    let (mut net, bob) = match_with_one_guest();
    net.server.world_mut().write_message(AppExit::Success);
    net.run(Ticks(30));
    let log = net.server.world().resource::<Log>();
    let shutdown = DisconnectReason::ServerShutdown;
    assert_eq!(log.left, [shutdown.clone(), shutdown.clone()]);
    assert_eq!(log.disconnected, std::slice::from_ref(&shutdown));
    let guest_log = net.client(bob).world().resource::<Log>();
    assert_eq!(guest_log.disconnected, [shutdown]);
    let world = net.server.world_mut();
    assert_eq!(world.query::<&Place>().iter(world).count(), 0);
}

#[test]
fn the_host_player_may_leave_while_the_match_goes_on() {
    for is_kicked in [false, true] {
        let (mut net, bob) = match_with_one_guest();
        let session = host_session(&mut net);
        let reason = if is_kicked {
            net.server.world_mut().trigger(Kick {
                session,
                reason: "idle".into(),
            });
            DisconnectReason::Kicked("idle".into())
        } else {
            net.server.world_mut().trigger(Disconnect);
            DisconnectReason::ClientLeft
        };
        net.run(Ticks(30));
        let left = &net.server.world().resource::<Log>().left;
        assert_eq!(left, std::slice::from_ref(&reason));
        let connection = net.server.world().resource::<Connection>();
        assert_eq!(connection.state(), ConnectionState::Disconnected);
        assert_eq!(connection.reason(), Some(&reason));
        let world = net.client(bob).world_mut();
        assert_eq!(world.query::<&Place>().iter(world).count(), 1);
        assert!(net.session(bob).is_some(), "the guest plays on");
    }
}

#[test]
fn a_name_that_does_not_fit_is_replaced() {
    fn nameless(app: &mut App) {
        game(app);
        app.add_plugins(HostPlugin { name: "\n".into() });
    }
    let mut net = TestNet::new(nameless, LinkConditions::default());
    net.run(Ticks(2));
    assert_eq!(net.server.world().resource::<Log>().joined, ["Host"]);
}
