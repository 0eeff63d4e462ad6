//! Who sees what: rooms, views, and copies that come back.

use std::collections::HashMap;

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;

use crate::game::*;

#[test]
fn what_is_below_an_entity_in_a_room_is_in_it_even_if_that_is_not_replicated() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.entity_mut(session).insert(InRoom(red));
    let level = world.spawn(InRoom(red)).id();
    let wing = world.spawn(ChildOf(level)).id();
    spawn(&mut net, (Tag(1), ChildOf(wing)));
    net.run(Ticks(60));
    assert!(copy(&mut net, ada, 1).is_some());
    net.server
        .world_mut()
        .entity_mut(level)
        .insert(InRoom(blue));
    net.run(Ticks(60));
    assert_eq!(copy(&mut net, ada, 1), None);
    net.server.world_mut().entity_mut(level).insert(InRoom(red));
    net.run(Ticks(60));
    assert!(copy(&mut net, ada, 1).is_some());
}

#[test]
fn an_entity_that_comes_and_goes_is_never_there_twice() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.entity_mut(session).insert(InRoom(red));
    let entity = spawn(&mut net, (Tag(1), InRoom(red)));
    net.run(Ticks(60));
    let mut most = 0;
    for n in 0..60 {
        let room = if n % 6 < 3 { blue } else { red };
        net.server
            .world_mut()
            .entity_mut(entity)
            .insert(InRoom(room));
        net.run(Ticks(1));
        most = most.max(tagged(net.client(ada), 1).len());
    }
    assert_eq!(most, 1, "copies at a time");
}

#[test]
fn visibility_toggled_under_loss_ends_as_it_is() {
    for seed in 0..8 {
        let (mut net, ada) = with_ada(game, lossy(seed));
        let session = net.session(ada).unwrap();
        let world = net.server.world_mut();
        let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
        world.entity_mut(session).insert(InRoom(red));
        let entities: Vec<_> = (0..20)
            .map(|n| spawn(&mut net, (Tag(n), Health(0), InRoom(red))))
            .collect();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut rooms = HashMap::new();
        for n in 0..300 {
            let index = rng.usize(0..20);
            let room = if rng.bool() { red } else { blue };
            let world = net.server.world_mut();
            world.entity_mut(entities[index]).insert(InRoom(room));
            world.get_mut::<Health>(entities[index]).unwrap().0 = n;
            rooms.insert(index, room);
            if rng.u8(0..10) == 0 {
                let room = if rng.bool() { red } else { blue };
                world.entity_mut(session).insert(InRoom(room));
            }
            net.run(Ticks(rng.u32(0..3)));
        }
        net.server
            .world_mut()
            .entity_mut(session)
            .insert(InRoom(red));
        net.run(Ticks(240));
        for (index, entity) in entities.iter().enumerate() {
            let is_seen = rooms.get(&index).is_none_or(|room| *room == red);
            let health = net.server.world().get::<Health>(*entity).cloned();
            let expected = if is_seen { health } else { None };
            assert_eq!(
                value::<Health>(&mut net, ada, index as u32),
                expected,
                "seed {seed}, {index}"
            );
        }
    }
}

#[test]
fn a_room_change_while_a_client_joins_shows_the_last_room() {
    fn rooms(app: &mut App) {
        game(app);
        app.add_observer(|joined: On<SessionJoined>, mut commands: Commands| {
            let (red, blue) = (commands.spawn(Room).id(), commands.spawn(Room).id());
            commands.spawn((Replicated, Tag(1), InRoom(red)));
            commands.spawn((Replicated, Tag(2), InRoom(blue)));
            commands.entity(joined.entity).insert(InRoom(red));
            commands.entity(joined.entity).insert(InRoom(blue));
        });
    }
    for seed in 0..4 {
        let (mut net, ada) = with_ada(rooms, lossy(seed));
        net.run(Ticks(120));
        assert_eq!(copy(&mut net, ada, 1), None);
        assert!(copy(&mut net, ada, 2).is_some());
    }
}

#[test]
fn a_room_changed_while_a_client_is_away_is_the_one_it_comes_back_to() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.entity_mut(session).insert(InRoom(red));
    spawn(&mut net, (Tag(1), InRoom(red)));
    spawn(&mut net, (Tag(2), InRoom(blue)));
    net.run(Ticks(60));
    assert!(copy(&mut net, ada, 1).is_some());
    net.cut(ada);
    net.run(Ticks(5));
    net.server
        .world_mut()
        .entity_mut(session)
        .insert(InRoom(blue));
    net.run(Ticks(600));
    assert_eq!(state(&mut net, ada), ConnectionState::Connected);
    assert_eq!(copy(&mut net, ada, 1), None);
    assert!(copy(&mut net, ada, 2).is_some());
}

#[test]
fn a_copy_that_the_client_has_despawned_harms_nothing_and_comes_back_into_view() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.entity_mut(session).insert(InRoom(red));
    let entity = spawn(&mut net, (Tag(1), Place(0.0), Health(0), InRoom(red)));
    net.run(Ticks(60));
    let seen = copy(&mut net, ada, 1).unwrap();
    net.client(ada).world_mut().despawn(seen);
    for n in 0..30 {
        net.server.world_mut().get_mut::<Place>(entity).unwrap().0 = n as f32;
        net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = n;
        net.run(Ticks(1));
    }
    net.server
        .world_mut()
        .entity_mut(session)
        .insert(InRoom(blue));
    net.run(Ticks(60));
    net.server
        .world_mut()
        .entity_mut(session)
        .insert(InRoom(red));
    net.run(Ticks(60));
    assert_eq!(value::<Health>(&mut net, ada, 1), Some(Health(29)));
}

#[test]
fn a_session_below_a_parent_follows_it_from_room_to_room() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let rooms = [(); 2].map(|()| world.spawn(Room).id());
    let team = world.spawn(InRoom(rooms[0])).id();
    world.entity_mut(session).insert(ChildOf(team));
    for (tag, room) in (1..).zip(rooms) {
        spawn(&mut net, (Tag(tag), InRoom(room)));
    }
    net.run(Ticks(60));
    let sees = |net: &mut TestNet| [1, 2].map(|tag| copy(net, ada, tag).is_some());
    assert_eq!(sees(&mut net), [true, false]);
    on_server(&mut net, team).insert(InRoom(rooms[1]));
    net.run(Ticks(60));
    assert_eq!(sees(&mut net), [false, true]);
}

#[test]
fn a_clone_of_an_entity_is_another_and_so_is_that_of_a_room() {
    let (mut net, ada) = with_ada(game, clean());
    let session = net.session(ada).unwrap();
    let (red, blue) = two_rooms(&mut net, session);
    let original = spawn(&mut net, (Tag(1), Health(1), InRoom(red)));
    spawn(&mut net, (Tag(2), InRoom(blue)));
    net.run(Ticks(60));
    let ghost = on_server(&mut net, original).clone_and_spawn_with_opt_out(|builder| {
        builder.deny::<Replicated>();
    });
    change::<Health>(&mut net, ghost, |health| health.0 = 99);
    let third = on_server(&mut net, red).clone_and_spawn();
    spawn(&mut net, (Tag(3), InRoom(third)));
    net.run(Ticks(60));
    assert_eq!(value(&mut net, ada, 1), Some(Health(1)));
    assert_eq!(copy(&mut net, ada, 3), None, "another room");

    let twin = on_server(&mut net, original).clone_and_spawn();
    on_server(&mut net, twin).insert(Tag(4));
    net.run(Ticks(60));
    assert_eq!(value(&mut net, ada, 4), Some(Health(1)));
    change::<Health>(&mut net, twin, |health| health.0 = 5);
    net.run(Ticks(60));
    assert_eq!(value(&mut net, ada, 1), Some(Health(1)));
    assert_eq!(value(&mut net, ada, 4), Some(Health(5)));
}
