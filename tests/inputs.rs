//! How what frames say becomes the input of ticks, and what inputs may name.

use std::time::Duration;

use bevy::ecs::entity::MapEntities;
use bevy::prelude::*;
use bevy_tandem::client::ClientConfig;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Control {
    run: i8,
    shoots: bool,
    jumps: bool,
    turn: i32,
}

/// What the server has simulated with.
#[derive(Resource, Default)]
struct Seen {
    ticks: u32,
    running: u32,
    shooting: u32,
    jumps: u32,
    turn: i32,
}

/// What the client's player did.
#[derive(Resource, Default)]
struct Done {
    frame: u32,
    jumps: u32,
    turn: i32,
}

fn game(app: &mut App) {
    app.add_input::<Control>()
        .accumulate(|tick, frame| {
            tick.run = frame.run;
            tick.shoots |= frame.shoots;
            tick.jumps |= frame.jumps;
            if frame.is_new() {
                tick.turn += frame.turn;
            }
        })
        .tap(|control| &mut control.jumps);
    app.init_resource::<Seen>();
    app.add_systems(
        FixedUpdate,
        |inputs: Query<&Input<Control>, With<Simulated>>, mut seen: ResMut<Seen>| {
            for input in &inputs {
                seen.ticks += 1;
                seen.running += u32::from(input.run == 1);
                seen.shooting += u32::from(input.shoots);
                seen.jumps += u32::from(input.jumps);
                seen.turn += input.turn;
            }
        },
    );
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity)));
    });
}

fn clean() -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(30),
        ..default()
    }
}

fn named(name: &str) -> ClientConfig {
    ClientConfig {
        name: name.into(),
        ..default()
    }
}

/// Plays frame by frame: jumps every 50 frames, and turns a little in each.
fn playing(app: &mut App) {
    game(app);
    app.init_resource::<Done>().add_systems(
        PreUpdate,
        |mut done: ResMut<Done>, mut input: ResMut<LocalInput<Control>>, is: Res<Connection>| {
            let plays = is.state() == ConnectionState::Connected;
            done.frame += 1;
            let jumps = plays && done.frame.is_multiple_of(50) && done.frame > 500;
            done.jumps += u32::from(jumps);
            input.0 = Control {
                run: 1,
                jumps,
                ..default()
            };
            if plays && done.frame > 500 {
                input.turn = 3;
                done.turn += 3;
            }
        },
    );
}

#[test]
fn what_is_tapped_counts_once_and_what_is_held_in_each_tick_at_any_frame_rate() {
    for fps in [20.0, 47.0, 60.0, 144.0, 240.0, 500.0] {
        let mut net = TestNet::new(game, clean());
        let ada = net.join_with(playing, named("Ada"));
        net.set_frame_rate(ada, fps);
        // 500 frames, and some more.
        net.run(Ticks((520.0 / fps * 60.0) as u32 + 120));
        *net.server.world_mut().resource_mut::<Seen>() = Seen::default();
        let before = {
            let done = net.client(ada).world().resource::<Done>();
            (done.jumps, done.turn)
        };
        net.run(Ticks(1_800));
        let done = net.client(ada).world().resource::<Done>();
        let (jumps, turn) = (done.jumps - before.0, done.turn - before.1);
        let seen = net.server.world().resource::<Seen>();
        assert!(
            jumps >= 10,
            "{fps} fps: {jumps} jumps are too few for a test"
        );
        assert!(
            seen.jumps.abs_diff(jumps) <= 1,
            "{fps} fps: {} jumps of {jumps}",
            seen.jumps
        );
        let late = (turn - seen.turn).abs();
        assert!(late <= 120, "{fps} fps: turned by {} of {turn}", seen.turn);
        assert!(
            seen.running >= seen.ticks - 2,
            "{fps} fps: ran in {} of {} ticks",
            seen.running,
            seen.ticks
        );
    }
}

#[test]
fn a_key_that_is_down_in_one_frame_between_two_ticks_counts() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join("Ada");
    net.set_frame_rate(ada, 240.0);
    net.run(Ticks(120));
    let app = net.client(ada);
    for shot in 1..=20 {
        // Not all four frames of the tick have the same luck.
        for frame in 0..41 {
            app.world_mut().resource_mut::<LocalInput<Control>>().shoots = frame == 0;
            app.update();
        }
        let shooting = app.world().resource::<Seen>().shooting;
        assert_eq!(shooting, shot, "each press is a tick of fire");
    }
}

#[test]
fn what_the_game_writes_for_a_tick_is_for_that_tick_alone() {
    fn writing(app: &mut App) {
        game(app);
        app.add_systems(
            FixedPreUpdate,
            (|tick: Res<CurrentTick>, mut input: ResMut<LocalInput<Control>>| {
                input.jumps = tick.0.0.is_multiple_of(10);
                input.shoots = input.jumps;
            })
            .before(TandemSystems::Sample),
        );
    }
    for fps in [20.0, 60.0, 240.0] {
        let mut net = TestNet::new(game, clean());
        let ada = net.join_with(writing, named("Ada"));
        net.set_frame_rate(ada, fps);
        net.run(Ticks(300));
        *net.server.world_mut().resource_mut::<Seen>() = Seen::default();
        net.run(Ticks(600));
        let seen = net.server.world().resource::<Seen>();
        assert_eq!((seen.jumps, seen.shooting), (60, 60), "{fps} fps");
    }
}

#[test]
fn what_was_pressed_before_the_player_was_in_or_while_the_game_was_paused_is_over() {
    let mut net = TestNet::new(game, clean());
    let ada = net.join("Ada");
    let press = |net: &mut TestNet, is_down| {
        let world = net.client(ada).world_mut();
        world.resource_mut::<LocalInput<Control>>().jumps = is_down;
    };
    press(&mut net, true);
    net.run(Ticks(1));
    press(&mut net, false);
    net.run(Ticks(120));
    assert_eq!(net.server.world().resource::<Seen>().jumps, 0);
    let pause = |net: &mut TestNet, pauses| {
        let mut time = net.client(ada).world_mut().resource_mut::<Time<Virtual>>();
        if pauses { time.pause() } else { time.unpause() }
    };
    pause(&mut net, true);
    press(&mut net, true);
    net.run(Ticks(5));
    press(&mut net, false);
    net.run(Ticks(5));
    pause(&mut net, false);
    net.run(Ticks(120));
    assert_eq!(net.server.world().resource::<Seen>().jumps, 0);
    press(&mut net, true);
    net.run(Ticks(1));
    press(&mut net, false);
    net.run(Ticks(60));
    assert_eq!(
        net.server.world().resource::<Seen>().jumps,
        1,
        "and now it counts"
    );
}

// ---- entities ----

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tag(u32);

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, MapEntities)]
struct Attack {
    #[entities]
    target: Option<Entity>,
}

/// Each target that was simulated with, once.
#[derive(Resource, Default)]
struct Targets(Vec<Option<Entity>>);

fn hunt(app: &mut App) {
    app.add_mapped_input::<Attack>();
    app.replicate::<Tag>();
    app.init_resource::<Targets>();
    app.add_systems(
        FixedUpdate,
        |inputs: Query<&Input<Attack>, With<Simulated>>, mut targets: ResMut<Targets>| {
            for input in &inputs {
                if targets.0.last() != Some(&input.target) {
                    targets.0.push(input.target);
                }
            }
        },
    );
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity), Tag(0)));
    });
}

fn copy(net: &mut TestNet, client: TestClientId, tag: u32) -> Entity {
    let world = net.client(client).world_mut();
    let mut tags = world.query::<(Entity, &Tag)>();
    let found = tags.iter(world).find(|(_, it)| it.0 == tag);
    found.expect("there is a copy").0
}

fn attack(net: &mut TestNet, client: TestClientId, target: Entity) {
    let target = Some(target);
    net.client(client)
        .insert_resource(LocalInput(Attack { target }));
}

#[test]
fn a_target_in_an_input_is_each_sides_own() {
    let mut net = TestNet::new(hunt, clean());
    // Entities have other numbers on the client.
    let wolves: Vec<_> = (1..=5)
        .map(|n| net.server.world_mut().spawn((Replicated, Tag(n))).id())
        .collect();
    let ada = net.join("Ada");
    net.client(ada).world_mut().spawn_empty();
    net.run(Ticks(120));
    for (n, &wolf) in (1..).zip(&wolves) {
        let own = copy(&mut net, ada, n);
        attack(&mut net, ada, own);
        net.run(Ticks(30));
        let seen = &net.server.world().resource::<Targets>().0;
        assert_eq!(seen.last(), Some(&Some(wolf)), "the server's wolf {n}");
        let seen = &net.client(ada).world().resource::<Targets>().0;
        assert_eq!(seen.last(), Some(&Some(own)), "the client's wolf {n}");
    }
}

#[test]
fn replays_use_the_targets_that_were_used_before() {
    let mut net = TestNet::new(hunt, clean());
    let wolf = net.server.world_mut().spawn((Replicated, Tag(1))).id();
    let ada = net.join("Ada");
    net.run(Ticks(120));
    let own = copy(&mut net, ada, 1);
    attack(&mut net, ada, own);
    net.run(Ticks(60));
    net.client(ada)
        .world_mut()
        .resource_mut::<Targets>()
        .0
        .clear();
    // Only what is corrected is replayed: the clock of a client that stood still is set, and it starts over.
    net.pause(ada, true);
    net.run(Ticks(60));
    net.pause(ada, false);
    net.run(Ticks(120));
    let seen = &net.client(ada).world().resource::<Targets>().0;
    assert_eq!(*seen, [Some(own)]);
    let seen = &net.server.world().resource::<Targets>().0;
    assert_eq!(seen.last(), Some(&Some(wolf)));
}

#[test]
fn a_target_that_the_server_does_not_have_is_nobody_and_never_a_stranger() {
    let mut net = TestNet::new(hunt, clean());
    let wolf = net.server.world_mut().spawn((Replicated, Tag(1))).id();
    let ada = net.join("Ada");
    net.run(Ticks(120));
    let local = net.client(ada).world_mut().spawn_empty().id();
    attack(&mut net, ada, local);
    net.run(Ticks(30));
    let nobody = Some(Entity::PLACEHOLDER);
    let last = |net: &TestNet| net.server.world().resource::<Targets>().0.last().copied();
    assert_eq!(last(&net), Some(nobody), "the client's own affair");
    let own = copy(&mut net, ada, 1);
    attack(&mut net, ada, own);
    net.run(Ticks(30));
    assert_eq!(last(&net), Some(Some(wolf)));
    net.server.world_mut().despawn(wolf);
    // Others take its place at once, and the client goes on attacking what it still sees, and then what it saw.
    for n in 2..30 {
        net.server.world_mut().spawn((Replicated, Tag(n)));
        net.run(Ticks(2));
        assert_eq!(last(&net), Some(nobody), "after {n}");
    }
}

#[test]
#[should_panic(expected = "register it with `add_mapped_input`")]
fn a_plain_input_that_names_an_entity_is_refused_at_registration() {
    #[derive(Clone, Default, Serialize, Deserialize)]
    enum Order {
        #[default]
        Wait,
        Attack(Option<Entity>),
    }
    App::new().add_input::<Order>();
}
