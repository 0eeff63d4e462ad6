//! What becomes of components and entities that come, change and go.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;

use crate::game::*;

#[test]
fn a_component_removed_and_inserted_in_one_tick_has_the_new_value() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let entity = spawn(&mut net, (Tag(1), Health(1)));
        net.run(Ticks(60));
        let mut at = net.server.world_mut().entity_mut(entity);
        at.remove::<Health>();
        at.insert(Health(2));
        net.run(Ticks(120));
        assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(2)));
        // And inserted, then removed.
        let mut at = net.server.world_mut().entity_mut(entity);
        at.insert(Health(3));
        at.remove::<Health>();
        net.run(Ticks(120));
        assert_eq!(value::<Health>(&mut net, ada, 1), None);
    }
}

#[test]
fn an_interpolated_component_that_went_while_it_moved_comes_back_with_its_new_value() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Place(0.0)));
    net.run(Ticks(30));
    for n in 1..=30 {
        net.server.world_mut().get_mut::<Place>(entity).unwrap().0 = n as f32;
        net.run(Ticks(1));
    }
    net.server.world_mut().entity_mut(entity).remove::<Place>();
    net.run(Ticks(60));
    assert_eq!(value::<Place>(&mut net, ada, 1), None);
    net.server
        .world_mut()
        .entity_mut(entity)
        .insert(Place(100.0));
    net.run(Ticks(120));
    assert_eq!(value::<Place>(&mut net, ada, 1), Some(Place(100.0)));
}

#[test]
fn an_interpolated_component_replaced_in_one_tick_while_it_moves_settles() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Place(0.0)));
    net.run(Ticks(30));
    for n in 1..=30 {
        net.server.world_mut().get_mut::<Place>(entity).unwrap().0 = n as f32;
        net.run(Ticks(1));
    }
    let mut at = net.server.world_mut().entity_mut(entity);
    at.remove::<Place>();
    at.insert(Place(100.0));
    net.run(Ticks(120));
    assert_eq!(value::<Place>(&mut net, ada, 1), Some(Place(100.0)));
}

#[test]
fn what_comes_and_goes_within_a_tick_leaves_nothing() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        for n in 0..20 {
            let entity = spawn(&mut net, (Tag(1), Health(n)));
            net.server.world_mut().despawn(entity);
            net.run(Ticks(1));
        }
        net.run(Ticks(120));
        assert_eq!(copy(&mut net, ada, 1), None);
    }
}

#[test]
fn despawn_and_respawn_in_one_tick_leaves_one_with_the_new_values() {
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let mut entity = spawn(&mut net, (Tag(1), Health(0)));
        for n in 1..30 {
            net.server.world_mut().despawn(entity);
            entity = spawn(&mut net, (Tag(1), Health(n)));
            net.run(Ticks(n % 5));
        }
        net.run(Ticks(180));
        assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(29)));
    }
}

#[test]
fn a_change_in_the_frame_of_the_spawn_is_not_lost() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 2;
    net.run(Ticks(1));
    net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 3;
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(3)));
}

#[test]
fn what_was_there_before_anybody_joined_is_told_empty_entities_too() {
    let mut net = TestNet::new(game, clean());
    spawn(&mut net, ());
    let gone = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    net.server.world_mut().entity_mut(gone).remove::<Health>();
    net.run(Ticks(60));
    let ada = net.join("Ada");
    net.run(Ticks(60));
    let world = net.client(ada).world_mut();
    let count = world.query::<&Replicated>().iter(world).count();
    assert_eq!(count, 2);
    assert_eq!(value::<Health>(&mut net, ada, 1), None, "removed before");
}

#[test]
fn a_crowd_that_is_there_for_one_tick_is_gone_afterwards() {
    for seed in 0..2 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let crowd: Vec<_> = (0..3_000)
            .map(|n| spawn(&mut net, (Tag(n), Health(n))))
            .collect();
        net.run(Ticks(3));
        for entity in &crowd[10..] {
            net.server.world_mut().despawn(*entity);
        }
        net.run(Ticks(300));
        let world = net.client(ada).world_mut();
        let mut left: Vec<_> = world.query::<&Tag>().iter(world).map(|tag| tag.0).collect();
        left.sort_unstable();
        assert_eq!(left, (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn the_marker_taken_and_given_back_in_one_tick_leaves_one_live_copy() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    let mut at = net.server.world_mut().entity_mut(entity);
    at.remove::<Replicated>();
    at.insert(Replicated);
    net.run(Ticks(60));
    net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 2;
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(2)));
    assert!(net.server.world().get::<Simulated>(entity).is_some());
}
