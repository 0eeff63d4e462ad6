//! Parents and children.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;

use crate::game::*;

#[test]
fn what_is_dropped_by_who_dies_stays() {
    for seed in 0..6 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let carrier = spawn(&mut net, Tag(1));
        let item = spawn(&mut net, (Tag(2), ChildOf(carrier)));
        net.run(Ticks(120));
        assert!(value::<ChildOf>(&mut net, ada, 2).is_some());
        net.server.world_mut().entity_mut(item).remove::<ChildOf>();
        net.server.world_mut().despawn(carrier);
        net.run(Ticks(120));
        assert_eq!(copy(&mut net, ada, 1), None);
        assert!(copy(&mut net, ada, 2).is_some(), "seed {seed}: the item");
    }
}

#[test]
fn what_is_dropped_by_a_predicted_player_who_dies_stays() {
    for seed in 0..6 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let session = net.session(ada).unwrap();
        let carrier = spawn(&mut net, (Tag(1), OwnedBy(session)));
        let item = spawn(&mut net, (Tag(2), ChildOf(carrier)));
        net.run(Ticks(120));
        assert!(value::<ChildOf>(&mut net, ada, 2).is_some());
        net.server.world_mut().entity_mut(item).remove::<ChildOf>();
        net.server.world_mut().despawn(carrier);
        net.run(Ticks(120));
        assert_eq!(copy(&mut net, ada, 1), None);
        assert!(copy(&mut net, ada, 2).is_some(), "seed {seed}: the item");
    }
}

#[test]
fn what_is_dropped_in_a_crowd_on_a_full_link_stays() {
    fn busy(app: &mut App) {
        game(app);
        app.add_systems(
            FixedUpdate,
            |mut all: Query<&mut Health, With<Simulated>>| {
                for mut health in &mut all {
                    health.0 = health.0.wrapping_add(1);
                }
            },
        );
    }
    for seed in 0..6 {
        let (mut net, ada) = with_ada(busy, lossy(seed));
        for n in 0..1_500 {
            spawn(&mut net, (Tag(100 + n), Health(n)));
        }
        let mut items = Vec::new();
        for n in 0..20 {
            let carrier = spawn(&mut net, (Tag(2 * n), Health(0)));
            let item = spawn(&mut net, (Tag(2 * n + 1), Health(0), ChildOf(carrier)));
            items.push((carrier, item));
        }
        net.run(Ticks(600));
        let known = (0..40)
            .filter(|n| copy(&mut net, ada, *n).is_some())
            .count();
        assert_eq!(
            known, 40,
            "seed {seed}: all are there, and children of theirs"
        );
        for (carrier, item) in items {
            net.server.world_mut().entity_mut(item).remove::<ChildOf>();
            net.server.world_mut().despawn(carrier);
            net.run(Ticks(7));
        }
        net.run(Ticks(300));
        let left: Vec<_> = (0..40)
            .filter(|n| copy(&mut net, ada, *n).is_some())
            .collect();
        let items: Vec<_> = (0..20).map(|n| 2 * n + 1).collect();
        assert_eq!(left, items, "seed {seed}");
    }
}

#[test]
fn a_new_parent_that_is_not_replicated_is_no_parent() {
    let (mut net, ada) = with_ada(game, clean());
    let parent = spawn(&mut net, Tag(1));
    let child = spawn(&mut net, (Tag(2), ChildOf(parent)));
    net.run(Ticks(60));
    assert!(value::<ChildOf>(&mut net, ada, 2).is_some());
    let hidden = net.server.world_mut().spawn_empty().id();
    net.server
        .world_mut()
        .entity_mut(child)
        .insert(ChildOf(hidden));
    net.run(Ticks(60));
    assert_eq!(value::<ChildOf>(&mut net, ada, 2), None, "of no copy");
}

#[test]
fn a_child_in_view_outlives_a_parent_that_leaves_the_view() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.entity_mut(session).insert(InRoom(red));
    let parent = spawn(&mut net, (Tag(1), InRoom(red)));
    let child = spawn(&mut net, (Tag(2), Health(1), InRoom(red), ChildOf(parent)));
    net.run(Ticks(60));
    let seen = copy(&mut net, ada, 1).unwrap();
    assert_eq!(value::<ChildOf>(&mut net, ada, 2), Some(ChildOf(seen)));
    net.server
        .world_mut()
        .entity_mut(parent)
        .insert(InRoom(blue));
    net.run(Ticks(60));
    net.server.world_mut().get_mut::<Health>(child).unwrap().0 = 2;
    net.run(Ticks(60));
    assert_eq!(copy(&mut net, ada, 1), None);
    assert_eq!(
        value::<Health>(&mut net, ada, 2),
        Some(Health(2)),
        "still there"
    );
    net.server
        .world_mut()
        .entity_mut(parent)
        .insert(InRoom(red));
    net.run(Ticks(60));
    let again = copy(&mut net, ada, 1).unwrap();
    assert_eq!(value::<ChildOf>(&mut net, ada, 2), Some(ChildOf(again)));
}

#[test]
fn what_was_dropped_while_a_client_was_away_is_there_when_it_is_back() {
    let (mut net, ada) = with_ada(game, clean());
    let carrier = spawn(&mut net, Tag(1));
    let item = spawn(&mut net, (Tag(2), ChildOf(carrier)));
    net.run(Ticks(60));
    net.cut(ada);
    net.run(Ticks(10));
    net.server.world_mut().entity_mut(item).remove::<ChildOf>();
    net.server.world_mut().despawn(carrier);
    net.run(Ticks(600));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(copy(&mut net, ada, 1), None);
    assert!(copy(&mut net, ada, 2).is_some());
}

#[test]
fn grandchildren_may_swap_places() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let a = spawn(&mut net, Tag(1));
        let b = spawn(&mut net, (Tag(2), ChildOf(a)));
        let c = spawn(&mut net, (Tag(3), ChildOf(b)));
        net.run(Ticks(120));
        // c - b - a, in one tick.
        let world = net.server.world_mut();
        world.entity_mut(c).remove::<ChildOf>();
        world.entity_mut(b).insert(ChildOf(c));
        world.entity_mut(a).insert(ChildOf(b));
        net.run(Ticks(180));
        let copies: Vec<_> = (1..4).map(|n| copy(&mut net, ada, n).unwrap()).collect();
        assert_eq!(value::<ChildOf>(&mut net, ada, 3), None);
        assert_eq!(value::<ChildOf>(&mut net, ada, 2), Some(ChildOf(copies[2])));
        assert_eq!(value::<ChildOf>(&mut net, ada, 1), Some(ChildOf(copies[1])));
    }
}
