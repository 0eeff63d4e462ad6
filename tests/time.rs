//! Clocks that stand still, run slowly, drift, or belong to an app that draws a frame a second.

use std::time::Duration;

use bevy::prelude::*;
use bevy::time::TimeUpdateStrategy;
use bevy_tandem::client::ClientConfig;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Steer(i8);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct At(f32);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ship;

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tag(u32);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note(u32);

/// What was said to this app.
#[derive(Resource, Default)]
struct Heard(Vec<u32>);

fn game(app: &mut App) {
    app.add_input::<Steer>();
    app.replicate::<At>().predict();
    app.replicate::<Ship>();
    app.replicate::<Tag>();
    app.protocol().add_message::<Note>(Channel::ReliableOrdered);
    app.init_resource::<Heard>();
    app.add_systems(
        FixedUpdate,
        |mut ships: Query<(&Input<Steer>, &mut At), (With<Ship>, With<Simulated>)>| {
            for (steer, mut at) in &mut ships {
                at.0 += f32::from(steer.0.0) * 0.125;
            }
        },
    );
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity), Ship, At(0.0)));
    });
}

fn hearing(app: &mut App) {
    game(app);
    app.add_systems(
        Update,
        |mut notes: MessageReader<FromServer<Note>>, mut heard: ResMut<Heard>| {
            heard.0.extend(notes.read().map(|note| note.0.0));
        },
    );
}

fn serving(app: &mut App) {
    game(app);
    app.add_systems(
        Update,
        |mut notes: MessageReader<FromClient<Note>>, mut heard: ResMut<Heard>| {
            heard.0.extend(notes.read().map(|note| note.message.0));
        },
    );
}

fn clean() -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(30),
        ..default()
    }
}

fn rough(seed: u64) -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(60),
        jitter: Duration::from_millis(15),
        loss: 0.05,
        seed,
        ..default()
    }
}

fn named(name: &str) -> ClientConfig {
    ClientConfig {
        name: name.into(),
        ..default()
    }
}

fn with_ada(link: LinkConditions) -> (TestNet, TestClientId) {
    let mut net = TestNet::new(serving, link);
    let ada = net.join_with(hearing, named("Ada"));
    net.run(Ticks(120));
    (net, ada)
}

fn pause(net: &mut TestNet, pauses: bool) {
    let mut time = net.server.world_mut().resource_mut::<Time<Virtual>>();
    if pauses { time.pause() } else { time.unpause() }
}

fn steer(net: &mut TestNet, client: TestClientId, steer: i8) {
    net.client(client).insert_resource(LocalInput(Steer(steer)));
}

fn state(net: &mut TestNet, client: TestClientId) -> ConnectionState {
    net.client(client).world().resource::<Connection>().state()
}

fn stats(net: &mut TestNet, client: TestClientId) -> ClientStats {
    net.client(client).world().resource::<ClientStats>().clone()
}

fn tick(app: &App) -> Tick {
    app.world().resource::<CurrentTick>().0
}

fn tags(app: &mut App) -> Vec<u32> {
    let world = app.world_mut();
    let mut tags: Vec<_> = world.query::<&Tag>().iter(world).map(|tag| tag.0).collect();
    tags.sort_unstable();
    tags
}

fn place(app: &mut App) -> f32 {
    let world = app.world_mut();
    let mut ships = world.query_filtered::<&At, With<Ship>>();
    ships.single(world).unwrap().0
}

fn sessions(net: &mut TestNet) -> usize {
    let world = net.server.world_mut();
    world.query::<&Session>().iter(world).count()
}

/// Steers for a second: the server moves the ship by that, and the client is where it is.
fn steering_works(net: &mut TestNet, client: TestClientId) {
    let before = place(&mut net.server);
    steer(net, client, 1);
    net.run(Ticks(60));
    steer(net, client, 0);
    net.run(Ticks(60));
    let moved = place(&mut net.server) - before;
    assert!((moved - 7.5).abs() < 1.0, "moved by {moved}");
    assert_eq!(place(net.client(client)), place(&mut net.server));
}

#[test]
fn a_paused_server_keeps_its_players_and_goes_on_with_them_at_once() {
    for link in [clean(), rough(1), rough(2)] {
        let (mut net, ada) = with_ada(link);
        for frames in [10, 30, 240, 1_200] {
            let snaps = stats(&mut net, ada).clock_snaps;
            pause(&mut net, true);
            for _ in 0..frames {
                net.run(Ticks(1));
                assert_eq!(state(&mut net, ada), ConnectionState::Connected, "{frames}");
            }
            let (here, there) = (tick(net.client(ada)), tick(&net.server));
            let ahead = here.distance_from(there);
            assert!(
                (0..40).contains(&ahead),
                "{ahead} ticks ahead after {frames} frames"
            );
            pause(&mut net, false);
            net.run(Ticks(20));
            steering_works(&mut net, ada);
            assert_eq!(stats(&mut net, ada).clock_snaps, snaps, "{frames} frames");
        }
        assert_eq!(sessions(&mut net), 1);
    }
}

#[test]
fn a_pause_in_which_nothing_happens_takes_no_tick() {
    let (mut net, ada) = with_ada(clean());
    pause(&mut net, true);
    net.run(Ticks(60));
    let stood_at = tick(&net.server);
    net.run(Ticks(600));
    assert_eq!(tick(&net.server), stood_at);
    let client = tick(net.client(ada));
    net.run(Ticks(60));
    assert_eq!(tick(net.client(ada)), client, "and the client waits");
}

#[test]
fn messages_go_both_ways_while_the_server_is_paused() {
    let (mut net, ada) = with_ada(rough(3));
    pause(&mut net, true);
    net.run(Ticks(400));
    for n in 1..=10 {
        net.server.world_mut().write_message(ToClients {
            to: Target::All,
            message: Note(n),
        });
        net.client(ada)
            .world_mut()
            .write_message(ToServer(Note(100 + n)));
        net.run(Ticks(5));
    }
    net.run(Ticks(60));
    let said: Vec<_> = (1..=10).collect();
    assert_eq!(net.client(ada).world().resource::<Heard>().0, said);
    let said: Vec<_> = (101..=110).collect();
    assert_eq!(net.server.world().resource::<Heard>().0, said);
}

#[test]
fn who_joins_a_paused_server_is_let_in_and_gets_the_world_as_it_is() {
    for link in [clean(), rough(4)] {
        let (mut net, ada) = with_ada(link);
        // More than one snapshot holds.
        for n in 0..1_000 {
            net.server.world_mut().spawn((Replicated, Tag(n)));
        }
        net.run(Ticks(2));
        pause(&mut net, true);
        net.run(Ticks(400));
        let all: Vec<_> = (0..1_000).collect();
        assert_eq!(tags(net.client(ada)), all, "what was on its way arrives");
        let bob = net.join_with(hearing, named("Bob"));
        net.run(Ticks(600));
        assert_eq!(state(&mut net, bob), ConnectionState::Connected);
        assert_eq!(tags(net.client(bob)), all);
        assert_eq!(sessions(&mut net), 2);
        pause(&mut net, false);
        net.run(Ticks(30));
        steer(&mut net, bob, 1);
        net.run(Ticks(60));
        let world = net.server.world_mut();
        let moved: Vec<_> = world.query::<&At>().iter(world).map(|at| at.0).collect();
        assert!(moved.iter().any(|&at| at > 4.0), "Bob steers: {moved:?}");
    }
}

#[test]
fn what_the_game_changes_while_it_is_paused_reaches_clients() {
    for link in [clean(), rough(5)] {
        let (mut net, ada) = with_ada(link);
        let first = net.server.world_mut().spawn((Replicated, Tag(1))).id();
        let second = net.server.world_mut().spawn((Replicated, Tag(2))).id();
        net.run(Ticks(60));
        pause(&mut net, true);
        net.run(Ticks(120));
        net.server.world_mut().despawn(first);
        net.run(Ticks(120));
        assert_eq!(tags(net.client(ada)), [2], "a despawn");
        net.server.world_mut().entity_mut(second).insert(Tag(3));
        net.run(Ticks(60));
        assert_eq!(tags(net.client(ada)), [3], "a change");
        net.server.world_mut().spawn((Replicated, Tag(4)));
        net.run(Ticks(60));
        assert_eq!(tags(net.client(ada)), [3, 4], "a spawn");
        let room = net.server.world_mut().spawn(Room).id();
        net.server
            .world_mut()
            .entity_mut(second)
            .insert(InRoom(room));
        net.run(Ticks(120));
        assert_eq!(
            tags(net.client(ada)),
            [4],
            "a room that the client is not in"
        );
        let session = net.session(ada).unwrap();
        net.server
            .world_mut()
            .entity_mut(session)
            .insert(InRoom(room));
        net.run(Ticks(120));
        assert_eq!(tags(net.client(ada)), [3, 4], "and now it is");
        pause(&mut net, false);
        net.run(Ticks(60));
        assert_eq!(tags(net.client(ada)), [3, 4]);
        steering_works(&mut net, ada);
    }
}

#[test]
fn kicks_and_resumes_work_while_the_server_is_paused() {
    let (mut net, ada) = with_ada(rough(6));
    let bob = net.join_with(hearing, named("Bob"));
    net.run(Ticks(120));
    pause(&mut net, true);
    net.run(Ticks(60));
    net.cut(ada);
    net.run(Ticks(30));
    let gone = net.server.world_mut().spawn((Replicated, Tag(7))).id();
    net.run(Ticks(600));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(tags(net.client(ada)), [7]);
    net.server.world_mut().despawn(gone);
    net.run(Ticks(120));
    assert_eq!(tags(net.client(ada)), [0; 0]);
    let session = net.session(bob).unwrap();
    net.server.world_mut().trigger(Kick {
        session,
        reason: "enough".into(),
    });
    net.run(Ticks(120));
    assert_eq!(state(&mut net, bob), ConnectionState::Disconnected);
    assert_eq!(sessions(&mut net), 1);
    pause(&mut net, false);
    net.run(Ticks(60));
    steering_works(&mut net, ada);
}

#[test]
fn a_server_in_slow_motion_keeps_its_players() {
    for speed in [0.02, 0.1, 0.5, 2.0] {
        let (mut net, ada) = with_ada(clean());
        let set_speed = |net: &mut TestNet, speed| {
            let mut time = net.server.world_mut().resource_mut::<Time<Virtual>>();
            time.set_relative_speed(speed);
        };
        set_speed(&mut net, speed);
        net.run(Ticks(600));
        assert_eq!(state(&mut net, ada), ConnectionState::Connected, "{speed}");
        net.server.world_mut().write_message(ToClients {
            to: Target::All,
            message: Note(1),
        });
        net.run(Ticks(30));
        assert_eq!(
            net.client(ada).world().resource::<Heard>().0,
            [1],
            "{speed}"
        );
        set_speed(&mut net, 1.0);
        net.run(Ticks(120));
        steering_works(&mut net, ada);
    }
}

#[test]
fn silence_of_the_server_is_a_lost_link_and_the_session_goes_on() {
    let (mut net, ada) = with_ada(clean());
    let session = net.session(ada).unwrap();
    // The server's app stands still for longer than any timeout.
    net.run_without_server(Ticks(420));
    net.run(Ticks(600));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(net.session(ada), Some(session), "and it is the same");
    net.run(Ticks(120));
    steering_works(&mut net, ada);
}

#[test]
fn a_wall_clock_that_drifts_is_followed() {
    for link in [clean(), rough(7)] {
        for drift in [0.98, 0.995, 1.001, 1.005, 1.02] {
            let (mut net, ada) = with_ada(link.clone());
            let frame = Duration::from_secs_f64(drift / 60.0);
            net.client(ada)
                .insert_resource(TimeUpdateStrategy::ManualDuration(frame));
            net.run(Ticks(300));
            let before = stats(&mut net, ada);
            net.run(Ticks(1_800));
            let after = stats(&mut net, ada);
            assert_eq!(after.clock_snaps, before.clock_snaps, "{drift}");
            let late = after.inputs_late - before.inputs_late;
            assert!(late <= 18, "{drift}: {late} inputs of 1,800 late");
        }
    }
}

#[test]
fn a_client_at_a_frame_a_second_stays_and_steers_soon_after_it_has_sped_up() {
    for (link, fps) in [
        (clean(), 1.0),
        (rough(8), 1.0),
        (clean(), 2.0),
        (clean(), 5.0),
    ] {
        let (mut net, ada) = with_ada(link);
        net.set_frame_rate(ada, fps);
        net.run(Ticks(3_600));
        assert_eq!(state(&mut net, ada), ConnectionState::Connected);
        net.set_frame_rate(ada, 60.0);
        let mut waited = 0;
        loop {
            // What is steered for a quarter of a second comes through, nearly whole.
            let before = place(&mut net.server);
            steer(&mut net, ada, 1);
            net.run(Ticks(15));
            steer(&mut net, ada, 0);
            net.run(Ticks(15));
            let moved = (place(&mut net.server) - before) / 0.125;
            if (13.0..=17.0).contains(&moved) {
                break;
            }
            waited += 30;
            assert!(waited <= 120, "{fps} fps: no control after {waited} frames");
        }
        net.run(Ticks(60));
        steering_works(&mut net, ada);
        assert_eq!(sessions(&mut net), 1);
    }
}
