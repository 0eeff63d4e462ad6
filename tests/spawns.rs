//! Predicted spawns and despawns, and who predicts what.

use std::collections::HashMap;
use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Control {
    steer: i8,
    fires: bool,
}

/// Not interpolated, so not smoothed: what the test sees is what was simulated.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Place(f32);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ship;

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Bullet {
    ticks_left: u16,
}

/// Bounces between two walls.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ball {
    speed: f32,
}

/// Inserted by firing, removed by time: slows the ship down.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Recoil {
    ticks_left: u8,
}

/// Where bullets end, and guns that do not fire: one side may know what the other does not.
#[derive(Resource)]
struct Wall(f32);

#[derive(Resource)]
struct Jammed;

const LIFE_TICKS: u16 = 100;

fn game(app: &mut App) {
    app.add_input::<Control>();
    app.replicate::<Place>().predict();
    app.replicate::<Ship>();
    app.replicate::<Bullet>().predict();
    app.replicate::<Ball>().predict();
    app.replicate::<Recoil>().predict();
    app.add_systems(FixedUpdate, (steer, bounce, fly, fire).chain());
    app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
        commands.spawn((Replicated, OwnedBy(joined.entity), Ship, Place(0.0)));
    });
}

fn steer(
    mut ships: Query<
        (Entity, &Input<Control>, &mut Place, Option<&mut Recoil>),
        (With<Ship>, With<Simulated>),
    >,
    mut commands: Commands,
) {
    for (entity, input, mut place, recoil) in &mut ships {
        let mut step = 0.125;
        if let Some(mut recoil) = recoil {
            step = 0.0625;
            recoil.ticks_left -= 1;
            if recoil.ticks_left == 0 {
                commands.entity(entity).remove::<Recoil>();
            }
        }
        place.0 += f32::from(input.steer) * step;
    }
}

fn bounce(mut balls: Query<(&mut Ball, &mut Place), With<Simulated>>) {
    for (mut ball, mut place) in &mut balls {
        if place.0.abs() > 10.0 {
            ball.speed = ball.speed.abs() * -place.0.signum();
        }
        place.0 += ball.speed;
    }
}

fn fly(
    mut bullets: Query<(Entity, &mut Bullet, &mut Place), With<Simulated>>,
    wall: Option<Res<Wall>>,
    mut commands: Commands,
) {
    for (entity, mut bullet, mut place) in &mut bullets {
        place.0 += 0.25;
        bullet.ticks_left -= 1;
        let is_stopped = wall.as_ref().is_some_and(|wall| place.0 > wall.0);
        if bullet.ticks_left == 0 || is_stopped {
            commands.entity(entity).despawn();
        }
    }
}

fn fire(
    ships: Query<(Entity, &Input<Control>, &Place, &Owner), (With<Ship>, With<Simulated>)>,
    tick: Res<CurrentTick>,
    jammed: Option<Res<Jammed>>,
    mut commands: Commands,
) {
    for (entity, input, place, owner) in &ships {
        if input.fires && jammed.is_none() {
            commands.spawn((
                Replicated,
                SpawnKey::new(owner.0.0, tick.0, 0),
                Bullet {
                    ticks_left: LIFE_TICKS,
                },
                Place(place.0 + 1.0),
            ));
            commands.entity(entity).insert(Recoil { ticks_left: 20 });
        }
    }
}

fn link(latency_ms: u64) -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(latency_ms),
        ..default()
    }
}

fn control(net: &mut TestNet, client: TestClientId, steer: i8, fires: bool) {
    let mut local = net
        .client(client)
        .world_mut()
        .resource_mut::<LocalInput<Control>>();
    local.0 = Control { steer, fires };
}

/// Fires one shot, and runs the tick.
fn shoot(net: &mut TestNet, client: TestClientId, steer: i8) {
    control(net, client, steer, true);
    net.run(Ticks(1));
    control(net, client, steer, false);
}

fn places<F: bevy::ecs::query::QueryFilter>(app: &mut App) -> Vec<(Entity, f32)> {
    let world = app.world_mut();
    let mut query = world.query_filtered::<(Entity, &Place), F>();
    query
        .iter(world)
        .map(|(entity, place)| (entity, place.0))
        .collect()
}

fn bullets(app: &mut App) -> Vec<(Entity, f32)> {
    places::<With<Bullet>>(app)
}

fn tick(app: &App) -> Tick {
    app.world().resource::<CurrentTick>().0
}

fn stats(net: &mut TestNet, client: TestClientId) -> ClientStats {
    net.client(client).world().resource::<ClientStats>().clone()
}

#[test]
fn the_early_copy_becomes_the_servers_entity_without_a_flicker() {
    let mut net = TestNet::new(game, link(60));
    let ada = net.join("Ada");
    let bob = net.join("Bob");
    net.run(Ticks(120));
    let before = stats(&mut net, ada);
    shoot(&mut net, ada, 1);
    let (copy, mut last) = bullets(net.client(ada))[0];
    let mut last_tick = tick(net.client(ada));
    for frame in 2..u32::from(LIFE_TICKS) - 5 {
        net.run(Ticks(1));
        let now = bullets(net.client(ada));
        assert_eq!(now.len(), 1, "frame {frame}: one, all the time");
        assert_eq!(now[0].0, copy, "frame {frame}: the same");
        // The clock may be stretched, so not every frame has one tick.
        let ticks = tick(net.client(ada)).distance_from(last_tick);
        let moved = now[0].1 - last;
        assert_eq!(moved, ticks as f32 * 0.25, "frame {frame}: no jumps");
        last = now[0].1;
        last_tick = tick(net.client(ada));
        let copy = net.client(ada).world().entity(copy);
        assert!(copy.contains::<Predicted>() && copy.contains::<Simulated>());
    }
    assert_eq!(bullets(&mut net.server).len(), 1);
    assert_eq!(bullets(net.client(bob)).len(), 1, "others see it, too");
    net.run(Ticks(10));
    for _ in 0..60 {
        net.run(Ticks(1));
        assert_eq!(bullets(net.client(ada)), [], "and it does not come back");
    }
    assert_eq!(bullets(&mut net.server), []);
    assert_eq!(bullets(net.client(bob)), []);
    let after = stats(&mut net, ada);
    assert_eq!(after.reconciliations, before.reconciliations, "{after:?}");
}

#[test]
fn an_early_copy_may_end_before_the_servers_entity_arrives() {
    fn short(app: &mut App) {
        game(app);
        app.insert_resource(Wall(2.5));
    }
    let mut net = TestNet::new(short, link(120));
    let ada = net.join("Ada");
    net.run(Ticks(120));
    let before = stats(&mut net, ada).reconciliations;
    shoot(&mut net, ada, 0);
    let mut seen = 0;
    let mut seen_on_server = 0;
    for _ in 0..80 {
        net.run(Ticks(1));
        seen += bullets(net.client(ada)).len();
        seen_on_server += bullets(&mut net.server).len();
    }
    assert_eq!(seen_on_server, 7, "1.0 to 2.5 in quarters");
    assert_eq!(seen, 6, "no ghost when the server tells of it");
    assert_eq!(stats(&mut net, ada).reconciliations, before);
}

#[test]
fn a_spawn_that_the_server_refuses_is_taken_back() {
    let mut net = TestNet::new(game, link(60));
    let ada = net.join("Ada");
    net.run(Ticks(120));
    net.server.insert_resource(Jammed);
    shoot(&mut net, ada, 0);
    assert_eq!(bullets(net.client(ada)).len(), 1, "shown at once");
    net.run(Ticks(20));
    assert_eq!(bullets(net.client(ada)).len(), 0);
    let mut recoils = net.client(ada).world_mut().query::<&Recoil>();
    assert_eq!(
        recoils.iter(net.client(ada).world()).count(),
        0,
        "and so is what the shot did"
    );
    net.server.world_mut().remove_resource::<Jammed>();
    shoot(&mut net, ada, 0);
    net.run(Ticks(40));
    assert_eq!(bullets(net.client(ada)).len(), 1, "the next one stays");
}

#[test]
fn a_replay_across_a_spawn_keeps_one_in_the_right_place() {
    for delay in 0..4 {
        let mut net = TestNet::new(game, link(60));
        let ada = net.join("Ada");
        net.run(Ticks(120));
        // The server moves the ship; the client hears of it only after it has fired.
        let world = net.server.world_mut();
        let mut ships = world.query_filtered::<&mut Place, With<Ship>>();
        ships.single_mut(world).unwrap().0 += 5.0;
        net.run(Ticks(delay));
        let before = stats(&mut net, ada).reconciliations;
        shoot(&mut net, ada, 1);
        let (copy, mistaken) = bullets(net.client(ada))[0];
        assert!(mistaken < 3.0, "fired from where the client thought it was");
        let (mut shown, mut real) = (HashMap::new(), HashMap::new());
        let mut is_corrected = false;
        for frame in 0..60 {
            net.run(Ticks(1));
            let now = bullets(net.client(ada));
            assert_eq!(now.len(), 1, "delay {delay}, frame {frame}");
            assert_eq!(now[0].0, copy, "delay {delay}, frame {frame}");
            is_corrected |= stats(&mut net, ada).reconciliations > before;
            if is_corrected {
                shown.insert(tick(net.client(ada)), now[0].1);
            }
            if let Some(bullet) = bullets(&mut net.server).first() {
                real.insert(tick(&net.server), bullet.1);
            }
        }
        assert!(shown.len() > 45, "corrected soon: {}", shown.len());
        let compared: Vec<_> = shown
            .iter()
            .filter_map(|(tick, shown)| Some((*shown, *real.get(tick)?)))
            .collect();
        assert!(compared.len() > 30, "{}", compared.len());
        for (shown, real) in compared {
            assert_eq!(shown, real, "delay {delay}: right since the correction");
        }
        let reconciliations = stats(&mut net, ada).reconciliations - before;
        assert_eq!(reconciliations, 1, "delay {delay}: one correction suffices");
    }
}

#[test]
fn loss_and_late_inputs_leave_nothing_behind() {
    for seed in 0..4 {
        let conditions = LinkConditions {
            loss: 0.2,
            reordering: 0.1,
            duplication: 0.05,
            jitter: Duration::from_millis(30),
            seed,
            ..link(80)
        };
        let mut net = TestNet::new(game, conditions);
        let (ada, bob) = (net.join("Ada"), net.join("Bob"));
        net.run(Ticks(240));
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut most = 0;
        for n in 0..1_200 {
            for client in [ada, bob] {
                control(&mut net, client, rng.i8(-1..2), n % 13 == 0);
            }
            net.run(Ticks(1));
            let world = net.client(ada).world_mut();
            let mut keys: Vec<_> = world
                .query_filtered::<&SpawnKey, With<Predicted>>()
                .iter(world)
                .map(|key| (key.tick.0, key.source))
                .collect();
            let count = keys.len();
            most = most.max(count);
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), count, "seed {seed}: no shot twice");
        }
        assert!(most > 3, "many at a time: {most}");
        for client in [ada, bob] {
            control(&mut net, client, 0, false);
        }
        net.run(Ticks(u32::from(LIFE_TICKS) + 300));
        for client in [ada, bob] {
            assert_eq!(bullets(net.client(client)), [], "seed {seed}: all gone");
            let mut seen: Vec<_> = places::<With<Ship>>(net.client(client))
                .into_iter()
                .map(|(_, place)| place)
                .collect();
            let mut real: Vec<_> = places::<With<Ship>>(&mut net.server)
                .into_iter()
                .map(|(_, place)| place)
                .collect();
            seen.sort_unstable_by(f32::total_cmp);
            real.sort_unstable_by(f32::total_cmp);
            assert_eq!(seen, real, "seed {seed}: ships are where they are");
        }
        assert_eq!(bullets(&mut net.server), []);
    }
}

#[test]
fn what_only_the_client_has_despawned_comes_back() {
    let mut net = TestNet::new(game, link(60));
    let ada = net.join("Ada");
    net.run(Ticks(120));
    net.client(ada).insert_resource(Wall(6.0));
    shoot(&mut net, ada, 0);
    net.run(Ticks(22));
    assert_eq!(bullets(net.client(ada)), [], "it hit the client's wall");
    net.client(ada).world_mut().remove_resource::<Wall>();
    net.run(Ticks(30));
    let (shown, real) = (bullets(net.client(ada)), bullets(&mut net.server));
    assert_eq!((shown.len(), real.len()), (1, 1), "the server knows none");
    assert!(shown[0].1 > 6.0);
    net.run(Ticks(100));
    assert_eq!(bullets(net.client(ada)), []);
}

#[test]
fn components_that_the_simulation_inserts_are_predicted_from_then_on() {
    let mut net = TestNet::new(game, link(60));
    let ada = net.join("Ada");
    net.run(Ticks(120));
    let before = stats(&mut net, ada).reconciliations;
    for _ in 0..5 {
        shoot(&mut net, ada, 1);
        net.run(Ticks(47));
    }
    assert_eq!(
        stats(&mut net, ada).reconciliations,
        before,
        "both sides insert and remove it in the same ticks"
    );
}

/// Has a ship fire its first shot, moves something on the server so that the client replays from before that, and
/// compares what the ship then has in each tick on the client with what it had on the server.
fn compare_after_a_replay<C: Component + Clone + PartialEq + std::fmt::Debug>(
    net: &mut TestNet,
    client: TestClientId,
    moved: Entity,
) {
    let before = stats(net, client).reconciliations;
    shoot(net, client, 1);
    net.server.world_mut().get_mut::<Place>(moved).unwrap().0 -= 3.0;
    let value = |app: &mut App| {
        let world = app.world_mut();
        let mut ships = world.query_filtered::<Option<&C>, With<Ship>>();
        ships.single(world).unwrap().cloned()
    };
    let (mut shown, mut real) = (HashMap::new(), HashMap::new());
    for _ in 0..80 {
        net.run(Ticks(1));
        if stats(net, client).reconciliations > before {
            let app = net.client(client);
            shown.insert(tick(app), value(app));
        }
        real.insert(tick(&net.server), value(&mut net.server));
    }
    let mut compared = 0;
    for (tick, shown) in &shown {
        if let Some(real) = real.get(tick) {
            assert_eq!(shown, real, "tick {tick}");
            compared += 1;
        }
    }
    assert!(compared > 40, "{compared}");
    assert_eq!(stats(net, client).reconciliations, before + 1);
}

#[test]
fn a_replay_from_before_an_insertion_begins_without_the_component() {
    for is_ship_moved in [true, false] {
        let mut net = TestNet::new(game, link(60));
        let ada = net.join("Ada");
        let ball = Ball { speed: 0.0 };
        let ball = net
            .server
            .world_mut()
            .spawn((Replicated, PredictedBy::Everyone, ball, Place(0.0)))
            .id();
        net.run(Ticks(120));
        let ship = places::<With<Ship>>(&mut net.server)[0].0;
        let moved = if is_ship_moved { ship } else { ball };
        compare_after_a_replay::<Place>(&mut net, ada, moved);
    }
}

#[test]
fn what_does_not_exist_yet_takes_no_part_in_a_replay() {
    /// Grows by the number of bullets in every tick.
    #[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Heat(usize);
    fn hot(app: &mut App) {
        game(app);
        app.replicate::<Heat>().predict();
        app.add_systems(
            FixedUpdate,
            (|mut ships: Query<&mut Heat, With<Simulated>>,
              bullets: Query<(), (With<Bullet>, With<Simulated>)>| {
                for mut heat in &mut ships {
                    heat.0 += bullets.iter().count();
                }
            })
            .after(fire),
        );
    }
    let mut net = TestNet::new(hot, link(60));
    let ada = net.join("Ada");
    net.run(Ticks(60));
    let ship = places::<With<Ship>>(&mut net.server)[0].0;
    net.server.world_mut().entity_mut(ship).insert(Heat(0));
    net.run(Ticks(60));
    compare_after_a_replay::<Heat>(&mut net, ada, ship);
}

#[test]
fn what_everyone_predicts_is_the_same_everywhere() {
    let mut net = TestNet::new(game, link(50));
    let clients = [net.join("Ada"), net.join("Bob")];
    let ball = Ball { speed: 0.125 };
    let ball = net
        .server
        .world_mut()
        .spawn((Replicated, PredictedBy::Everyone, ball, Place(0.0)))
        .id();
    net.run(Ticks(120));
    let before = clients.map(|client| stats(&mut net, client).reconciliations);
    let run_and_compare = |net: &mut TestNet, settled_after: u32| {
        let mut real = HashMap::new();
        let mut shown = [HashMap::new(), HashMap::new()];
        for frame in 0..240 {
            net.run(Ticks(1));
            real.insert(
                tick(&net.server),
                places::<With<Ball>>(&mut net.server)[0].1,
            );
            for (client, shown) in clients.into_iter().zip(&mut shown) {
                let app = net.client(client);
                let copies = places::<(With<Ball>, With<Predicted>)>(app);
                assert_eq!(copies.len(), 1);
                if frame > settled_after {
                    shown.insert(tick(app), copies[0].1);
                }
            }
        }
        for shown in &shown {
            let pairs = shown
                .iter()
                .filter_map(|(tick, x)| Some((x, real.get(tick)?)));
            assert!(pairs.clone().count() > 150);
            assert!(pairs.clone().all(|(shown, real)| shown == real));
        }
    };
    run_and_compare(&mut net, 0);
    let after = clients.map(|client| stats(&mut net, client).reconciliations);
    assert_eq!(before, after, "a ball that nobody touches");
    net.server.world_mut().get_mut::<Ball>(ball).unwrap().speed = -0.25;
    run_and_compare(&mut net, 20);
}

#[test]
fn prediction_follows_ownership() {
    let mut net = TestNet::new(game, link(50));
    let (ada, bob) = (net.join("Ada"), net.join("Bob"));
    net.run(Ticks(120));
    let sessions = [net.session(ada).unwrap(), net.session(bob).unwrap()];
    // One ship, which they take turns with.
    for ship in places::<With<Ship>>(&mut net.server) {
        net.server.world_mut().despawn(ship.0);
    }
    let ship = net
        .server
        .world_mut()
        .spawn((Replicated, Ship, Place(0.0)))
        .id();
    net.run(Ticks(60));
    let roles = |net: &mut TestNet, client| {
        let world = net.client(client).world_mut();
        let mut ships = world.query_filtered::<(
            Has<Owned>,
            Has<Predicted>,
            Has<Simulated>,
            Has<Interpolated>,
            Has<Input<Control>>,
        ), With<Ship>>();
        ships.single(world).unwrap()
    };
    const STEERS: (bool, bool, bool, bool, bool) = (true, true, true, false, true);
    const WATCHES: (bool, bool, bool, bool, bool) = (false, false, false, true, false);
    assert_eq!(roles(&mut net, ada), WATCHES);
    control(&mut net, ada, 1, false);
    control(&mut net, bob, -1, false);
    for (turn, expected) in [
        (Some(0), [STEERS, WATCHES]),
        (Some(1), [WATCHES, STEERS]),
        (Some(0), [STEERS, WATCHES]),
        (None, [WATCHES, WATCHES]),
        (Some(1), [WATCHES, STEERS]),
    ] {
        let before = places::<With<Ship>>(&mut net.server)[0].1;
        let mut ship = net.server.world_mut().entity_mut(ship);
        match turn {
            Some(turn) => ship.insert(OwnedBy(sessions[turn])),
            None => ship.remove::<OwnedBy>(),
        };
        net.run(Ticks(60));
        assert_eq!(roles(&mut net, ada), expected[0], "{turn:?}");
        assert_eq!(roles(&mut net, bob), expected[1], "{turn:?}");
        let now = places::<With<Ship>>(&mut net.server)[0].1;
        let direction = [1.0, -1.0, 0.0][turn.unwrap_or(2)];
        assert!(
            (now - before - direction * 7.5).abs() < 1.0,
            "{turn:?}: from {before} to {now}"
        );
        // Whoever steers is ahead of the server by the way there and back, in ticks.
        for (client, turns) in [(ada, Some(0)), (bob, Some(1))] {
            let shown = places::<With<Ship>>(net.client(client))[0].1;
            let ahead = (shown - now) * direction;
            if turn == turns {
                assert!((0.0..2.0).contains(&ahead), "{turn:?}: {ahead}");
            } else {
                assert!((-1.5..0.01).contains(&ahead), "{turn:?}: {ahead}");
            }
        }
    }
    control(&mut net, ada, 0, false);
    control(&mut net, bob, 0, false);
    net.run(Ticks(60));
    let real = places::<With<Ship>>(&mut net.server)[0].1;
    for client in [ada, bob] {
        assert_eq!(places::<With<Ship>>(net.client(client))[0].1, real);
    }
}
