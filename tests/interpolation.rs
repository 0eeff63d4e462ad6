//! What is drawn of entities that others control.

use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

/// The server's tick, interpolated: tells which moment a client draws.
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Moment(f64);

impl Blend for Moment {
    fn blend(&self, to: &Self, t: f32) -> Self {
        Self(self.0 + (to.0 - self.0) * f64::from(t))
    }
    fn separation(&self, to: &Self) -> f32 {
        (to.0 - self.0).abs() as f32
    }
    fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
        Self(self.0 + (from.0 - to.0) * f64::from(weight))
    }
}

/// On a straight line from value to value.
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Straight(Vec2);

/// On curves that follow [`Speed`].
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Curved(Vec2);

/// Jumps further than 3 units are teleports.
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Jumping(Vec2);

macro_rules! blend_as_vector {
    ($($component:ty),*) => {$(
        impl Blend for $component {
            fn blend(&self, to: &Self, t: f32) -> Self {
                Self(self.0.blend(&to.0, t))
            }
            fn separation(&self, to: &Self) -> f32 {
                self.0.separation(&to.0)
            }
            fn offset(&self, from: &Self, to: &Self, weight: f32) -> Self {
                Self(self.0.offset(&from.0, &to.0, weight))
            }
        }
    )*};
}

blend_as_vector!(Straight, Curved, Jumping);

#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Speed(Vec2);

#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Mode(u32);

/// Names the only entity of a kind.
#[derive(Component, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Marked;

fn game(app: &mut App) {
    app.replicate::<Moment>().interpolate();
    app.replicate::<Straight>().interpolate();
    app.replicate::<Curved>()
        .interpolate_hermite::<Speed>(|at, speed, seconds| Curved(at.0 + speed.0 * seconds));
    app.replicate::<Speed>().interpolate_step();
    app.replicate::<Jumping>()
        .interpolate()
        .teleport_distance(3.0);
    app.replicate::<Mode>().interpolate_step();
    app.replicate::<Marked>();
    app.add_systems(FixedUpdate, (note_moment, circle));
}

fn note_moment(mut moments: Query<&mut Moment, With<Simulated>>, tick: Res<CurrentTick>) {
    for mut moment in &mut moments {
        moment.0 = f64::from(tick.0.0);
    }
}

const TICKS_PER_SECOND: f64 = 60.0;

/// Twice around a circle of 5 units in 2π seconds.
fn path(tick: f64) -> Vec2 {
    Vec2::from_angle((tick / TICKS_PER_SECOND * 2.0) as f32) * 5.0
}

fn speed(tick: f64) -> Vec2 {
    path(tick).perp() * 2.0
}

fn mode(tick: f64) -> u32 {
    (tick / 20.0) as u32
}

fn circle(
    mut movers: Query<
        (
            Option<&mut Straight>,
            Option<&mut Curved>,
            Option<&mut Speed>,
            Option<&mut Mode>,
        ),
        (With<Moment>, With<Simulated>),
    >,
    tick: Res<CurrentTick>,
) {
    let tick = f64::from(tick.0.0);
    for (straight, curved, velocity, shown) in &mut movers {
        if let Some(mut straight) = straight {
            straight.0 = path(tick);
        }
        if let Some(mut curved) = curved {
            curved.0 = path(tick);
        }
        if let Some(mut velocity) = velocity {
            velocity.0 = speed(tick);
        }
        if let Some(mut shown) = shown {
            shown.set_if_neq(Mode(mode(tick)));
        }
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

/// A server, and a client that has been in for five seconds.
fn start(conditions: LinkConditions) -> (TestNet, TestClientId) {
    let mut net = TestNet::new(game, conditions);
    net.server.world_mut().spawn((Replicated, Moment(0.0)));
    let ada = net.join("Ada");
    net.run(Ticks(300));
    (net, ada)
}

/// The only component of its type, as a client shows it.
fn shown<C: Component + Copy>(net: &mut TestNet, client: TestClientId) -> C {
    let world = net.client(client).world_mut();
    let mut query = world.query::<&C>();
    *query.single(world).expect("there is one")
}

fn server_tick(net: &TestNet) -> f64 {
    f64::from(net.server.world().resource::<CurrentTick>().0.0)
}

fn change<C: Component<Mutability = bevy::ecs::component::Mutable>>(net: &mut TestNet, value: C) {
    let world = net.server.world_mut();
    let mut query = world.query::<&mut C>();
    *query.single_mut(world).expect("there is one") = value;
}

/// The share of values that are at most this.
fn share_up_to(values: &[f32], most: f32) -> f32 {
    values.iter().filter(|value| **value <= most).count() as f32 / values.len() as f32
}

#[test]
fn what_is_drawn_follows_the_servers_path() {
    for (seed, frames_per_second) in [(1, 60.0), (2, 144.0), (3, 30.0)] {
        let mut net = TestNet::new(game, bad_link(seed));
        net.server.world_mut().spawn((
            Replicated,
            Moment(0.0),
            Straight(Vec2::ZERO),
            Curved(Vec2::ZERO),
            Speed(Vec2::ZERO),
            Mode(0),
        ));
        let ada = net.join("Ada");
        net.set_frame_rate(ada, frames_per_second);
        net.run(Ticks(300));
        let (mut straight, mut curved, mut modes) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = 0.0;
        for _ in 0..1_800 {
            net.run(Ticks(1));
            let Moment(moment) = shown(&mut net, ada);
            assert!(
                moment >= last,
                "time does not run backwards: {last} {moment}"
            );
            last = moment;
            assert!(
                (server_tick(&net) - 30.0..server_tick(&net)).contains(&moment),
                "some 75 ms of way and 100 ms of delay ago"
            );
            let real = path(moment);
            straight.push(shown::<Straight>(&mut net, ada).0.distance(real));
            curved.push(shown::<Curved>(&mut net, ada).0.distance(real));
            let Mode(shown) = shown(&mut net, ada);
            let late = mode(moment) - shown.min(mode(moment));
            assert!(shown <= mode(moment), "not before its time");
            modes.push(late as f32);
        }
        // Between two snapshots, 33 ms apart, a chord of this circle is within 0.003 units of it; 0.05 with two lost.
        let close = share_up_to(&straight, 0.004);
        assert!(close > 0.85, "lines: {close}");
        assert!(share_up_to(&straight, 0.05) > 0.99);
        let close = share_up_to(&curved, 0.0002);
        assert!(close > 0.85, "curves: {close}");
        assert!(share_up_to(&curved, 0.05) > 0.99);
        for (what, errors) in [("lines", &straight), ("curves", &curved)] {
            let worst = errors.iter().copied().fold(0.0, f32::max);
            assert!(worst < 0.6, "{what}: never far: {worst}");
        }
        let late = 1.0 - share_up_to(&modes, 0.0);
        assert!(late < 0.15, "steps happen in their snapshot: {late}");
    }
}

#[test]
fn what_stood_still_does_not_creep_before_it_moves() {
    let (mut net, ada) = start(bad_link(4));
    net.server
        .world_mut()
        .spawn((Replicated, Straight(Vec2::ZERO)));
    net.run(Ticks(240));
    for round in 1..=10 {
        let from = Vec2::X * (round - 1) as f32;
        let to = Vec2::X * round as f32;
        let left_at = server_tick(&net);
        change(&mut net, Straight(to));
        for _ in 0..60 {
            net.run(Ticks(1));
            let Moment(moment) = shown(&mut net, ada);
            let Straight(at) = shown(&mut net, ada);
            // Were a snapshot lost right before, it may have left any time since the one before that.
            if moment < left_at - 6.0 {
                assert_eq!(at, from, "round {round}: not yet");
            }
            if moment > left_at + 8.0 {
                assert_eq!(at, to, "round {round}: there, exactly");
            }
        }
        net.run(Ticks(90));
    }
}

#[test]
fn what_stops_settles_exactly_and_costs_nothing_more() {
    for seed in 0..5 {
        let (mut net, ada) = start(bad_link(seed));
        net.server.world_mut().spawn((
            Replicated,
            Straight(Vec2::ZERO),
            Curved(Vec2::ZERO),
            Speed(Vec2::X),
        ));
        let mut at = Vec2::ZERO;
        for n in 0..100 {
            at = Vec2::new(n as f32 * 0.3, (n as f32 * 0.1).sin());
            change(&mut net, Straight(at));
            change(&mut net, Curved(at));
            net.run(Ticks(1));
        }
        net.run(Ticks(120));
        assert_eq!(shown::<Straight>(&mut net, ada), Straight(at));
        assert_eq!(shown::<Curved>(&mut net, ada), Curved(at));
        let changed = |net: &mut TestNet| {
            let world = net.client(ada).world_mut();
            let mut query = world.query::<(Ref<Straight>, Ref<Curved>)>();
            let (straight, curved) = query.single(world).unwrap();
            (straight.last_changed(), curved.last_changed())
        };
        let before = changed(&mut net);
        net.run(Ticks(60));
        assert_eq!(changed(&mut net), before, "not written to any more");
    }
}

#[test]
fn teleports_are_not_drawn_through() {
    let (mut net, ada) = start(bad_link(6));
    net.server
        .world_mut()
        .spawn((Replicated, Jumping(Vec2::ZERO)));
    net.run(Ticks(60));
    let mut x = 0.0;
    for round in 0..12 {
        for _ in 0..20 {
            // Moving, so that there is something to be drawn between.
            x += 0.05;
            change(&mut net, Jumping(Vec2::X * x));
            net.run(Ticks(1));
            let Jumping(at) = shown(&mut net, ada);
            let within = at.x.rem_euclid(100.0);
            assert!(
                !(12.5..99.0).contains(&within),
                "round {round}: nobody was at {at}"
            );
        }
        x += 99.0;
    }
    net.run(Ticks(60));
    assert_eq!(shown::<Jumping>(&mut net, ada).0.x, x - 99.0);
}

#[test]
fn what_is_despawned_stays_until_its_end_is_drawn() {
    let (mut net, ada) = start(bad_link(7));
    for _ in 0..10 {
        let entity = net.server.world_mut().spawn((Replicated, Marked)).id();
        net.run(Ticks(60));
        let ended_at = server_tick(&net);
        net.server.world_mut().despawn(entity);
        for _ in 0..60 {
            net.run(Ticks(1));
            let Moment(moment) = shown(&mut net, ada);
            let world = net.client(ada).world_mut();
            let count = world.query::<&Marked>().iter(world).count();
            if moment < ended_at {
                assert_eq!(count, 1, "still there at {moment} of {ended_at}");
            }
            if moment > ended_at + 10.0 {
                assert_eq!(count, 0, "gone at {moment} of {ended_at}");
            }
        }
    }
}

#[test]
fn extrapolation_is_bounded() {
    let (mut net, ada) = start(LinkConditions {
        latency: Duration::from_millis(30),
        ..default()
    });
    net.server
        .world_mut()
        .spawn((Replicated, Straight(Vec2::ZERO)));
    let mut n = 0;
    let mut advance = |net: &mut TestNet, ticks: u32| {
        for _ in 0..ticks {
            n += 1;
            change(net, Straight(Vec2::X * 0.1 * n as f32));
            net.run(Ticks(1));
        }
        0.1 * n as f32
    };
    let last = advance(&mut net, 120);
    net.connector().set_conditions(LinkConditions::blackhole());
    let mut furthest = 0.0_f32;
    for _ in 0..120 {
        advance(&mut net, 1);
        furthest = furthest.max(shown::<Straight>(&mut net, ada).0.x);
    }
    // A quarter of a second of six units a second, after the last one that arrived.
    assert!(
        (last..last + 1.6).contains(&furthest),
        "from {last}: {furthest}"
    );
    net.connector().set_conditions(LinkConditions::default());
    let now = advance(&mut net, 120);
    let Straight(at) = shown(&mut net, ada);
    assert!(
        (0.0..1.5).contains(&(now - at.x)),
        "back on the way: {at} of {now}"
    );
}

#[test]
fn an_entity_is_drawn_from_its_first_snapshot_on() {
    let (mut net, ada) = start(bad_link(8));
    for n in 1..20 {
        let entity = net
            .server
            .world_mut()
            .spawn((Replicated, Marked, Straight(Vec2::splat(n as f32))))
            .id();
        for _ in 0..30 {
            net.run(Ticks(1));
            let world = net.client(ada).world_mut();
            let mut query = world.query_filtered::<Option<&Straight>, With<Marked>>();
            for straight in query.iter(world) {
                assert!(straight.is_some(), "with all its components at once");
            }
        }
        assert_eq!(
            shown::<Straight>(&mut net, ada),
            Straight(Vec2::splat(n as f32))
        );
        net.server.world_mut().despawn(entity);
        net.run(Ticks(60));
    }
}

#[test]
fn entities_that_a_byte_budget_leaves_out_of_some_snapshots_move_smoothly() {
    // So little that each of the movers is in every fourth snapshot or so.
    let config = ServerConfig {
        max_snapshot_bytes: 200,
        ..default()
    };
    let link = LinkConditions {
        latency: Duration::from_millis(30),
        ..default()
    };
    let mut net = TestNet::with_config(game, link, config);
    let ada = net.join("Ada");
    let world = net.server.world_mut();
    for _ in 0..40 {
        world.spawn((Replicated, Moment(0.0)));
    }
    net.run(Ticks(300));
    let moments = |net: &mut TestNet| -> Vec<(Entity, f64)> {
        let world = net.client(ada).world_mut();
        let mut moments = world.query::<(Entity, &Moment)>();
        let moments = moments.iter(world);
        moments.map(|(entity, moment)| (entity, moment.0)).collect()
    };
    let mut before = moments(&mut net);
    assert_eq!(before.len(), 40);
    let (mut stood, mut frames) = (0, 0);
    for _ in 0..300 {
        net.run(Ticks(1));
        let now = moments(&mut net);
        for ((_, before), (_, now)) in before.iter().zip(&now) {
            frames += 1;
            stood += u32::from(now == before);
            // The last known speed goes on, and is wrong by a little; but nothing catches up in leaps.
            assert!((-2.0..=4.0).contains(&(now - before)), "{before} to {now}");
        }
        before = now;
    }
    assert!(
        stood * 10 < frames,
        "stood still in {stood} of {frames} frames"
    );
}
