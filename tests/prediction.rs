//! Prediction, reconciliation and the inputs behind them.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Steer(i8);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Boost {
    ticks: u8,
}

fn game(app: &mut App) {
    app.add_input::<Steer>()
        .validate(|steer| steer.0 = steer.0.clamp(-1, 1));
    app.replicate::<Transform>()
        .quantize(TransformCodec::flat(1024.0, 1.0 / 256.0))
        .predict()
        .interpolate();
    app.replicate::<Boost>().predict();
    app.add_systems(FixedUpdate, steer);
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity), Transform::default()));
    });
}

fn steer(
    mut ships: Query<(Entity, &Input<Steer>, &mut Transform, Option<&mut Boost>), With<Simulated>>,
    time: Res<Time>,
    mut commands: Commands,
) {
    for (entity, input, mut transform, boost) in &mut ships {
        let mut speed = 6.0;
        if let Some(mut boost) = boost {
            speed *= 2.0;
            boost.ticks = boost.ticks.saturating_sub(1);
            if boost.ticks == 0 {
                commands.entity(entity).remove::<Boost>();
            }
        }
        transform.translation.x += f32::from(input.0.0) * speed * time.delta_secs();
    }
}

fn bad_link(seed: u64) -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(75),
        jitter: Duration::from_millis(20),
        loss: 0.05,
        seed,
        ..default()
    }
}

/// Plays for some ticks, turning round now and then.
fn wander(net: &mut TestNet, client: TestClientId, ticks: u32) {
    for tick in 0..ticks {
        let direction = [1, 0, -1, 1, -1][(tick as usize / 23) % 5];
        net.client(client)
            .world_mut()
            .resource_mut::<LocalInput<Steer>>()
            .0 = Steer(direction);
        net.run(Ticks(1));
    }
}

fn stats(net: &mut TestNet, client: TestClientId) -> ClientStats {
    net.client(client).world().resource::<ClientStats>().clone()
}

fn own_x(net: &mut TestNet, client: TestClientId) -> f32 {
    let world = net.client(client).world_mut();
    let mut own = world.query_filtered::<&Transform, With<Owned>>();
    own.single(world).unwrap().translation.x
}

fn server_x(net: &mut TestNet) -> f32 {
    let world = net.server.world_mut();
    let mut ships = world.query_filtered::<&Transform, With<Replicated>>();
    ships.single(world).unwrap().translation.x
}

#[test]
fn deterministic_code_is_never_corrected_on_a_clean_link() {
    let link = LinkConditions {
        latency: Duration::from_millis(40),
        ..default()
    };
    let mut net = TestNet::new(game, link);
    let ada = net.join("ada");
    net.run(Ticks(60));
    wander(&mut net, ada, 600);
    let stats = stats(&mut net, ada);
    assert!(stats.snapshots > 250, "{stats:?}");
    assert_eq!(stats.reconciliations, 0, "{stats:?}");
    assert_eq!(
        (stats.snaps, stats.clock_snaps, stats.inputs_late),
        (0, 0, 0)
    );
    assert!(
        stats.prediction_error.max() < 0.01,
        "{:?}",
        stats.prediction_error.max()
    );
}

#[test]
fn a_bad_link_costs_few_late_inputs_and_no_snaps() {
    let mut net = TestNet::new(game, bad_link(11));
    let ada = net.join("ada");
    net.run(Ticks(180));
    let before = stats(&mut net, ada);
    wander(&mut net, ada, 1_800);
    let after = stats(&mut net, ada);
    let late = (after.inputs_late - before.inputs_late) as f32 / 1_800.0;
    assert!(late <= 0.01, "late inputs: {late}");
    assert_eq!(after.snaps - before.snaps, 0);
    assert_eq!(after.clock_snaps - before.clock_snaps, 0);
    let starved = (after.starved_frames - before.starved_frames) as f32
        / (after.frames - before.frames) as f32;
    assert!(starved <= 0.01, "starved frames: {starved}");
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(0);
    net.run(Ticks(120));
    let (own, server) = (own_x(&mut net, ada), server_x(&mut net));
    assert!(
        (own - server).abs() < 0.02,
        "settles where the server is: {own} {server}"
    );
}

#[test]
fn inputs_are_used_in_exactly_their_tick() {
    let link = LinkConditions {
        latency: Duration::from_millis(50),
        ..default()
    };
    let mut net = TestNet::new(game, link);
    let ada = net.join("ada");
    net.run(Ticks(60));
    let before = server_x(&mut net);
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(1);
    net.run(Ticks(30));
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(0);
    net.run(Ticks(60));
    let moved = server_x(&mut net) - before;
    assert!((moved - 3.0).abs() < 1e-3, "30 ticks of 0.1 units: {moved}");
}

#[test]
fn the_server_clamps_inputs() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(60));
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(100);
    let before = server_x(&mut net);
    net.run(Ticks(60));
    assert!(server_x(&mut net) - before < 6.1, "no faster than others");
}

#[test]
fn what_the_server_decides_is_taken_over_and_hidden() {
    let link = LinkConditions {
        latency: Duration::from_millis(60),
        ..default()
    };
    let mut net = TestNet::new(game, link);
    let ada = net.join("ada");
    net.run(Ticks(120));
    let world = net.server.world_mut();
    let mut ships = world.query_filtered::<&mut Transform, With<Replicated>>();
    ships.single_mut(world).unwrap().translation.x += 2.0;
    let mut largest_step = 0.0_f32;
    let mut before = own_x(&mut net, ada);
    for _ in 0..60 {
        net.run(Ticks(1));
        let now = own_x(&mut net, ada);
        largest_step = largest_step.max((now - before).abs());
        before = now;
    }
    assert!((before - 2.0).abs() < 0.02, "taken over: {before}");
    assert!(largest_step < 1.0, "not in one jump: {largest_step}");
    let stats = stats(&mut net, ada);
    assert!(stats.reconciliations >= 1 && stats.snaps == 0, "{stats:?}");
}

#[test]
fn inserted_and_removed_components_are_rolled_back() {
    let link = LinkConditions {
        latency: Duration::from_millis(60),
        ..default()
    };
    let mut net = TestNet::new(game, link);
    let ada = net.join("ada");
    net.run(Ticks(60));
    wander(&mut net, ada, 60);
    let world = net.server.world_mut();
    let ship = world
        .query_filtered::<Entity, With<Replicated>>()
        .single(world)
        .unwrap();
    world.entity_mut(ship).insert(Boost { ticks: 100 });
    wander(&mut net, ada, 40);
    let boosts = |net: &mut TestNet| {
        let world = net.client(ada).world_mut();
        world
            .query_filtered::<&Boost, With<Owned>>()
            .iter(world)
            .count()
    };
    assert_eq!(
        boosts(&mut net),
        1,
        "inserted by the server, predicted from then on"
    );
    let corrected = stats(&mut net, ada).reconciliations;
    wander(&mut net, ada, 120);
    assert_eq!(
        boosts(&mut net),
        0,
        "removed by the simulation of both sides"
    );
    assert_eq!(
        stats(&mut net, ada).reconciliations,
        corrected,
        "which agree on when"
    );
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(0);
    net.run(Ticks(60));
    let (own, server) = (own_x(&mut net, ada), server_x(&mut net));
    assert!((own - server).abs() < 0.02, "{own} {server}");
}

#[test]
fn state_too_old_to_be_replayed_from_is_adopted() {
    let link = LinkConditions {
        latency: Duration::from_millis(400),
        loss: 0.2,
        seed: 5,
        ..default()
    };
    let mut net = TestNet::new(game, link);
    let ada = net.join("ada");
    net.run(Ticks(300));
    wander(&mut net, ada, 900);
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(0);
    net.run(Ticks(300));
    let (own, server) = (own_x(&mut net, ada), server_x(&mut net));
    assert!((own - server).abs() < 0.02, "converges: {own} {server}");
    assert!(net.session(ada).is_some(), "nobody is dropped");
}

#[test]
fn frame_rates_below_and_above_the_tick_rate_work() {
    for frames_per_second in [20.0, 37.0, 144.0] {
        let mut net = TestNet::new(game, bad_link(3));
        let ada = net.join("ada");
        net.set_frame_rate(ada, frames_per_second);
        net.run(Ticks(180));
        let before = stats(&mut net, ada);
        wander(&mut net, ada, 900);
        let after = stats(&mut net, ada);
        let late = (after.inputs_late - before.inputs_late) as f32 / 900.0;
        assert!(late <= 0.02, "{frames_per_second}: late inputs {late}");
        assert_eq!(
            after.clock_snaps - before.clock_snaps,
            0,
            "{frames_per_second}"
        );
        assert_eq!(after.snaps - before.snaps, 0, "{frames_per_second}");
    }
}

#[test]
fn a_stall_of_either_side_is_survived() {
    let link = LinkConditions {
        latency: Duration::from_millis(50),
        ..default()
    };
    let mut net = TestNet::new(game, link);
    let ada = net.join("ada");
    net.run(Ticks(120));
    wander(&mut net, ada, 60);
    net.pause(ada, true);
    net.run(Ticks(270));
    net.pause(ada, false);
    wander(&mut net, ada, 240);
    let late = stats(&mut net, ada).inputs_late;
    wander(&mut net, ada, 240);
    assert!(
        stats(&mut net, ada).inputs_late - late < 5,
        "in step after the client's stall"
    );
    net.run_without_server(Ticks(270));
    wander(&mut net, ada, 240);
    let late = stats(&mut net, ada).inputs_late;
    wander(&mut net, ada, 240);
    assert!(
        stats(&mut net, ada).inputs_late - late < 5,
        "in step after the server's stall"
    );
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(0);
    net.run(Ticks(120));
    let (own, server) = (own_x(&mut net, ada), server_x(&mut net));
    assert!((own - server).abs() < 0.02, "{own} {server}");
}

#[test]
fn a_player_who_falls_silent_lets_go_of_the_keys() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(60));
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Steer>>()
        .0 = Steer(1);
    net.run(Ticks(10));
    net.pause(ada, true);
    net.run(Ticks(100));
    let stopped = server_x(&mut net);
    net.run(Ticks(60));
    assert_eq!(
        server_x(&mut net),
        stopped,
        "the last input is not repeated for ever"
    );
}
