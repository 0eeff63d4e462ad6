//! What default query filters hide: disabled entities.

use bevy::ecs::entity_disabling::Disabled;
use bevy::prelude::*;
use bevy_tandem::prelude::*;

use crate::game::*;

#[test]
fn what_changes_while_an_entity_is_disabled_is_told_when_it_is_enabled() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    net.server.world_mut().entity_mut(entity).insert(Disabled);
    net.run(Ticks(10));
    net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 2;
    net.run(Ticks(10));
    net.server
        .world_mut()
        .entity_mut(entity)
        .remove::<Disabled>();
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(2)));
}

#[test]
fn a_disabled_entity_that_is_despawned_goes() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    net.server.world_mut().entity_mut(entity).insert(Disabled);
    net.run(Ticks(10));
    net.server.world_mut().despawn(entity);
    net.run(Ticks(120));
    assert_eq!(copy(&mut net, ada, 1), None);
}

#[test]
fn what_is_removed_while_an_entity_is_disabled_goes() {
    for seed in 0..3 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let entity = spawn(
            &mut net,
            (Tag(1), Health(1), Place(1.0), Aim(Entity::PLACEHOLDER)),
        );
        net.run(Ticks(90));
        on_server(&mut net, entity).insert(Disabled);
        net.run(Ticks(10));
        on_server(&mut net, entity).remove::<(Health, Place)>();
        net.run(Ticks(10));
        on_server(&mut net, entity)
            .insert(Mode(4))
            .remove::<Disabled>();
        net.run(Ticks(120));
        assert!(copy(&mut net, ada, 1).is_some());
        assert_eq!(value::<Health>(&mut net, ada, 1), None);
        assert_eq!(value::<Place>(&mut net, ada, 1), None);
        assert_eq!(value::<Mode>(&mut net, ada, 1), Some(Mode(4)));
    }
}

#[test]
fn a_disabled_entity_that_is_no_longer_replicated_goes() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    net.run(Ticks(60));
    on_server(&mut net, entity).insert(Disabled);
    net.run(Ticks(10));
    on_server(&mut net, entity).remove::<Replicated>();
    net.run(Ticks(120));
    assert_eq!(copy(&mut net, ada, 1), None);
}

#[test]
fn what_is_disabled_from_the_start_is_right_when_it_is_enabled() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1), Disabled));
    net.run(Ticks(60));
    change::<Health>(&mut net, entity, |health| health.0 = 2);
    net.run(Ticks(10));
    on_server(&mut net, entity).remove::<Disabled>();
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(2)));
    change::<Health>(&mut net, entity, |health| health.0 = 3);
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(3)));
}

/// A filter of the game's own.
#[derive(Component)]
struct Asleep;

#[test]
fn a_games_own_default_filter_hides_nothing_either() {
    fn sleepy(app: &mut App) {
        app.world_mut().register_disabling_component::<Asleep>();
        game(app);
    }
    let (mut net, ada) = with_ada(sleepy, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1)));
    let target = spawn(&mut net, Tag(3));
    let other = spawn(&mut net, (Tag(2), Health(1)));
    net.run(Ticks(60));
    on_server(&mut net, entity).insert(Asleep);
    on_server(&mut net, other).insert(Asleep);
    on_server(&mut net, target).insert(Asleep);
    net.run(Ticks(10));
    change::<Health>(&mut net, entity, |health| health.0 = 2);
    on_server(&mut net, entity).insert(Aim(target));
    on_server(&mut net, other).despawn();
    net.run(Ticks(60));
    on_server(&mut net, entity).remove::<Asleep>();
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(2)));
    assert_eq!(copy(&mut net, ada, 2), None);
    let target = copy(&mut net, ada, 3).unwrap();
    assert_eq!(value::<Aim>(&mut net, ada, 1), Some(Aim(target)));
}

#[test]
fn a_disabled_entity_moves_to_another_room_as_any() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let (red, blue) = two_rooms(&mut net, session);
    let entity = spawn(&mut net, (Tag(1), InRoom(red)));
    let child = spawn(&mut net, (Tag(2), ChildOf(entity)));
    net.run(Ticks(60));
    on_server(&mut net, entity).insert(Disabled);
    on_server(&mut net, child).insert(Disabled);
    net.run(Ticks(10));
    on_server(&mut net, entity).insert(InRoom(blue));
    net.run(Ticks(60));
    assert_eq!(copy(&mut net, ada, 1), None);
    assert_eq!(copy(&mut net, ada, 2), None);
}

#[test]
fn a_copy_that_its_client_disables_is_up_to_date_when_it_is_enabled() {
    let (mut net, ada) = with_ada(game, clean());
    let entity = spawn(&mut net, (Tag(1), Health(1), Place(1.0), Mode(1)));
    let gone = spawn(&mut net, (Tag(2), Place(1.0)));
    net.run(Ticks(60));
    for tag in [1, 2] {
        let seen = copy(&mut net, ada, tag).unwrap();
        net.client(ada)
            .world_mut()
            .entity_mut(seen)
            .insert(Disabled);
    }
    for n in 0..30 {
        change::<Place>(&mut net, entity, |place| place.0 = n as f32);
        change::<Health>(&mut net, entity, |health| health.0 = n);
        net.run(Ticks(1));
    }
    on_server(&mut net, entity).remove::<Mode>();
    on_server(&mut net, gone).despawn();
    net.run(Ticks(60));
    let world = net.client(ada).world_mut();
    let disabled: Vec<_> = world
        .query_filtered::<Entity, (With<Replicated>, With<Disabled>)>()
        .iter(world)
        .collect();
    assert_eq!(disabled.len(), 1, "the other is gone");
    world.entity_mut(disabled[0]).remove::<Disabled>();
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(29)));
    assert_eq!(value::<Place>(&mut net, ada, 1), Some(Place(29.0)));
    assert_eq!(value::<Mode>(&mut net, ada, 1), None);
}
