//! What the server's world becomes on clients.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Health(u8);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Target(#[entities] Entity);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inventory(Vec<u8>);

fn game(app: &mut App) {
    app.replicate::<Health>();
    app.replicate::<Target>();
    app.replicate::<Inventory>();
    app.replicate::<Transform>()
        .quantize(TransformCodec::default());
}

fn copies<C: Component + Clone>(net: &mut TestNet, client: TestClientId) -> Vec<(Entity, C)> {
    let world = net.client(client).world_mut();
    let mut query = world.query_filtered::<(Entity, &C), With<Replicated>>();
    query
        .iter(world)
        .map(|(entity, value)| (entity, value.clone()))
        .collect()
}

#[test]
fn entities_appear_change_and_disappear_on_clients() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(10));
    let entity = net.server.world_mut().spawn((Replicated, Health(7))).id();
    net.run(Ticks(10));
    assert_eq!(copies::<Health>(&mut net, ada)[0].1, Health(7), "spawned");

    net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 3;
    net.run(Ticks(10));
    let (copy, health) = copies::<Health>(&mut net, ada)[0].clone();
    assert_eq!(health, Health(3), "changed");

    net.server
        .world_mut()
        .entity_mut(entity)
        .insert(Transform::from_xyz(1.0, 2.0, 3.0));
    net.server.world_mut().entity_mut(entity).remove::<Health>();
    net.run(Ticks(10));
    let copy_ref = net.client(ada).world().entity(copy);
    assert!(copy_ref.get::<Health>().is_none(), "removed");
    assert_eq!(
        copy_ref.get::<Transform>().unwrap().translation,
        Vec3::new(1.0, 2.0, 3.0)
    );

    net.server.world_mut().despawn(entity);
    net.run(Ticks(30));
    assert!(
        net.client(ada).world().get_entity(copy).is_err(),
        "despawned"
    );
}

#[test]
fn removing_the_marker_removes_the_copy() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    let entity = net.server.world_mut().spawn((Replicated, Health(7))).id();
    net.run(Ticks(10));
    assert_eq!(copies::<Health>(&mut net, ada).len(), 1);
    net.server
        .world_mut()
        .entity_mut(entity)
        .remove::<Replicated>();
    net.run(Ticks(30));
    assert_eq!(copies::<Health>(&mut net, ada).len(), 0, "the copy goes");
    assert!(
        net.server.world().get_entity(entity).is_ok(),
        "the original stays"
    );
}

#[test]
fn entities_in_components_are_mapped_whatever_comes_first() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(10));
    let world = net.server.world_mut();
    let target = world.spawn_empty().id();
    let hunter = world.spawn((Replicated, Health(1), Target(target))).id();
    net.run(Ticks(10));
    assert_eq!(
        copies::<Target>(&mut net, ada)[0].1.0,
        Entity::PLACEHOLDER,
        "not replicated yet"
    );
    // Becomes known later than the component that names it.
    net.server
        .world_mut()
        .entity_mut(target)
        .insert((Replicated, Health(2)));
    net.server
        .world_mut()
        .get_mut::<Target>(hunter)
        .unwrap()
        .set_changed();
    net.run(Ticks(10));
    let named = copies::<Target>(&mut net, ada)[0].1.0;
    assert_eq!(
        net.client(ada).world().get::<Health>(named),
        Some(&Health(2))
    );
}

#[test]
fn hierarchies_are_replicated() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    let world = net.server.world_mut();
    let parent = world.spawn((Replicated, Health(1))).id();
    let child = world.spawn((Replicated, Health(2), ChildOf(parent))).id();
    net.run(Ticks(10));
    let find = |net: &mut TestNet, health| {
        copies::<Health>(net, ada)
            .into_iter()
            .find(|(_, other)| *other == health)
            .unwrap()
            .0
    };
    let (parent_copy, child_copy) = (find(&mut net, Health(1)), find(&mut net, Health(2)));
    assert_eq!(
        net.client(ada)
            .world()
            .get::<ChildOf>(child_copy)
            .unwrap()
            .parent(),
        parent_copy
    );
    net.server.world_mut().entity_mut(child).remove::<ChildOf>();
    net.run(Ticks(10));
    assert!(
        net.client(ada).world().get::<ChildOf>(child_copy).is_none(),
        "let go"
    );
}

#[test]
fn large_components_arrive_whole() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(3));
    let ada = net.join("ada");
    let large: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
    let entity = net
        .server
        .world_mut()
        .spawn((Replicated, Inventory(large.clone())))
        .id();
    net.run(Ticks(240));
    assert_eq!(copies::<Inventory>(&mut net, ada)[0].1.0, large);
    net.server
        .world_mut()
        .get_mut::<Inventory>(entity)
        .unwrap()
        .0[5] = 99;
    net.run(Ticks(240));
    assert_eq!(copies::<Inventory>(&mut net, ada)[0].1.0[5], 99);
}

#[test]
fn a_joining_client_gets_a_large_world_in_pieces() {
    let mut net = TestNet::new(game, LinkConditions::mobile().with_seed(5));
    for n in 0..2_000 {
        let transform = Transform::from_xyz(n as f32, 0.0, 0.0);
        net.server.world_mut().spawn((Replicated, transform));
    }
    let ada = net.join("ada");
    net.run(Ticks(600));
    assert_eq!(copies::<Transform>(&mut net, ada).len(), 2_000);
}

#[test]
fn a_session_sees_its_room_and_what_is_in_no_room() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(10));
    let session = net.session(ada).unwrap();
    let world = net.server.world_mut();
    let (red, blue) = (world.spawn(Room).id(), world.spawn(Room).id());
    world.spawn((Replicated, Health(0)));
    let in_red = world.spawn((Replicated, Health(1), InRoom(red))).id();
    world.spawn((Replicated, Health(2), InRoom(blue)));
    world.spawn((Replicated, Health(3), ChildOf(in_red)));
    let seen = |net: &mut TestNet| {
        let mut seen: Vec<_> = copies::<Health>(net, ada)
            .into_iter()
            .map(|(_, health)| health.0)
            .collect();
        seen.sort_unstable();
        seen
    };
    net.run(Ticks(30));
    assert_eq!(seen(&mut net), [0], "in no room");
    net.server
        .world_mut()
        .entity_mut(session)
        .insert(InRoom(red));
    net.run(Ticks(30));
    assert_eq!(
        seen(&mut net),
        [0, 1, 3],
        "in the red room, with its children"
    );
    net.server
        .world_mut()
        .entity_mut(session)
        .insert(InRoom(blue));
    net.run(Ticks(30));
    assert_eq!(seen(&mut net), [0, 2], "in the blue room");
    net.server
        .world_mut()
        .entity_mut(in_red)
        .insert(InRoom(blue));
    net.run(Ticks(30));
    assert_eq!(seen(&mut net), [0, 1, 2, 3], "the entity has followed");
    net.server.world_mut().despawn(blue);
    net.run(Ticks(30));
    assert_eq!(
        seen(&mut net),
        [0, 1, 2, 3],
        "a closed room lets everything out"
    );
}

/// A filter of the game's own, like Bevy's `Disabled`.
#[derive(Component, Default)]
struct Pooled;

fn game_with_pool(app: &mut App) {
    game(app);
    app.init_resource::<Seen>();
    app.world_mut().register_disabling_component::<Pooled>();
    app.add_observer(
        |added: On<Insert, Health>, values: Query<&Health>, mut seen: ResMut<Seen>| {
            let value = values.get(added.entity).map(|value| value.0);
            seen.0.push(value.ok());
        },
    )
    .add_observer(|_: On<Remove, Health>, mut seen: ResMut<Seen>| seen.0.push(None));
}

/// The values of health that were inserted, and `None` where one was removed.
#[derive(Resource, Default)]
struct Seen(Vec<Option<u8>>);

fn disabled_entities_follow<D: Component + Default>() {
    let mut net = TestNet::new(game_with_pool, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(10));
    let world = net.server.world_mut();
    let changed = world.spawn((Replicated, Health(1))).id();
    let stripped = world.spawn((Replicated, Health(2), Inventory(vec![]))).id();
    let unmarked = world.spawn((Replicated, Health(3))).id();
    let despawned = world.spawn((Replicated, Health(4))).id();
    net.run(Ticks(30));
    let world = net.server.world_mut();
    for entity in [changed, stripped, unmarked, despawned] {
        world.entity_mut(entity).insert(D::default());
    }
    net.run(Ticks(10));
    assert_eq!(
        copies::<Health>(&mut net, ada).len(),
        4,
        "they stay as they are"
    );
    let world = net.server.world_mut();
    world.get_mut::<Health>(changed).unwrap().0 = 9;
    world.entity_mut(changed).insert(Inventory(vec![1]));
    world.entity_mut(stripped).remove::<Health>();
    world.entity_mut(unmarked).remove::<Replicated>();
    world.despawn(despawned);
    world.spawn((Replicated, Health(5), D::default()));
    net.run(Ticks(30));
    let mut health: Vec<_> = copies::<Health>(&mut net, ada)
        .into_iter()
        .map(|(_, health)| health.0)
        .collect();
    health.sort_unstable();
    assert_eq!(health, [5, 9]);
    assert_eq!(copies::<Inventory>(&mut net, ada).len(), 2);
    assert_eq!(copies::<Replicated>(&mut net, ada).len(), 3);
}

#[test]
fn what_happens_to_disabled_entities_reaches_clients() {
    disabled_entities_follow::<bevy::ecs::entity_disabling::Disabled>();
}

#[test]
fn what_happens_to_entities_that_a_filter_of_the_game_hides_reaches_clients() {
    disabled_entities_follow::<Pooled>();
}

#[test]
fn a_component_removed_and_inserted_again_is_both_for_a_client_once() {
    for seed in 0..8 {
        let conditions = LinkConditions {
            loss: 0.2,
            ..LinkConditions::mobile().with_seed(seed)
        };
        let mut net = TestNet::new(game_with_pool, conditions);
        let ada = net.join("ada");
        net.run(Ticks(90));
        let entity = net.server.world_mut().spawn((Replicated, Health(1))).id();
        net.run(Ticks(90));
        for value in [1, 2] {
            let mut at = net.server.world_mut().entity_mut(entity);
            at.remove::<Health>();
            at.insert(Health(value));
            net.run(Ticks(90));
        }
        // In place, and over an existing value: neither is a removal.
        net.server.world_mut().get_mut::<Health>(entity).unwrap().0 = 3;
        net.run(Ticks(90));
        net.server.world_mut().entity_mut(entity).insert(Health(4));
        net.run(Ticks(90));
        let seen = &net.client(ada).world().resource::<Seen>().0;
        let removals = seen.iter().filter(|seen| seen.is_none()).count();
        assert_eq!(removals, 2, "seed {seed}: {seen:?}");
        assert_eq!(
            seen[..5],
            [Some(1), None, Some(1), None, Some(2)],
            "seed {seed}"
        );
        assert_eq!(copies::<Health>(&mut net, ada)[0].1, Health(4));
    }
}

#[test]
fn settings_that_are_changed_in_place_take_effect() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(10));
    let entity = net
        .server
        .world_mut()
        .spawn((Replicated, Health(1), PredictedBy::Owner))
        .id();
    net.run(Ticks(30));
    let copy = copies::<Health>(&mut net, ada)[0].0;
    assert!(net.client(ada).world().get::<Predicted>(copy).is_none());
    *net.server
        .world_mut()
        .get_mut::<PredictedBy>(entity)
        .unwrap() = PredictedBy::Everyone;
    net.run(Ticks(30));
    assert!(net.client(ada).world().get::<Predicted>(copy).is_some());
    net.server
        .world_mut()
        .entity_mut(entity)
        .remove::<PredictedBy>();
    net.run(Ticks(30));
    assert!(net.client(ada).world().get::<Predicted>(copy).is_none());
}

/// Sends two crowds over a narrow link; says how many of the first are there before any of the second.
fn first_of_two_crowds(prepare: fn(&mut World, &[Entity], &[Entity])) -> (usize, usize) {
    let config = ServerConfig {
        max_snapshot_bytes: 120,
        ..default()
    };
    let mut net = TestNet::with_config(game, LinkConditions::default(), config);
    let world = net.server.world_mut();
    let crowd = |world: &mut World, health| -> Vec<Entity> {
        (0..200)
            .map(|_| {
                world
                    .spawn((Replicated, Health(health), Priority(1.0)))
                    .id()
            })
            .collect()
    };
    let (first, second) = (crowd(world, 1), crowd(world, 2));
    net.run(Ticks(10));
    prepare(net.server.world_mut(), &first, &second);
    net.run(Ticks(4));
    let ada = net.join("ada");
    while copies::<Health>(&mut net, ada).len() < 50 {
        net.run(Ticks(1));
    }
    let seen = copies::<Health>(&mut net, ada);
    let count = |health| seen.iter().filter(|(_, it)| it.0 == health).count();
    (count(1), count(2))
}

#[test]
fn priorities_changed_in_place_or_removed_take_effect() {
    let (first, second) = first_of_two_crowds(|world, _, second| {
        for &entity in second {
            world.get_mut::<Priority>(entity).unwrap().0 = 10.0;
        }
    });
    assert!(first == 0 && second >= 50, "{first} and {second}");
    let (first, second) = first_of_two_crowds(|world, first, second| {
        for &entity in first {
            world.get_mut::<Priority>(entity).unwrap().0 = 0.1;
        }
        for &entity in second {
            world.entity_mut(entity).remove::<Priority>();
        }
    });
    assert!(first == 0 && second >= 50, "{first} and {second}");
}

#[test]
fn a_client_that_has_refused_snapshots_ends_with_exactly_the_servers_world() {
    for seed in 0..4 {
        let conditions = LinkConditions {
            loss: 0.2,
            ..LinkConditions::mobile().with_seed(seed)
        };
        let mut net = TestNet::new(game, conditions);
        let config = ClientConfig {
            name: "ada".into(),
            max_entities: 20,
            ..default()
        };
        let ada = net.join_with(game, config);
        net.run(Ticks(90));
        let world = net.server.world_mut();
        let kept: Vec<_> = (0..10)
            .map(|n| world.spawn((Replicated, Health(n))).id())
            .collect();
        net.run(Ticks(90));
        assert_eq!(copies::<Health>(&mut net, ada).len(), 10);
        let before = copies::<Health>(&mut net, ada);

        // More than it takes, while others go and change.
        let world = net.server.world_mut();
        let crowd: Vec<_> = (0..20)
            .map(|n| world.spawn((Replicated, Health(100 + n))).id())
            .collect();
        world.despawn(kept[0]);
        world.get_mut::<Health>(kept[1]).unwrap().0 = 50;
        net.run(Ticks(300));
        let seen = copies::<Health>(&mut net, ada);
        assert!(
            seen.len() <= 20,
            "seed {seed}: it holds no more than it said"
        );
        let world = net.server.world_mut();
        for entity in crowd {
            world.despawn(entity);
        }
        world.entity_mut(kept[2]).remove::<Health>();
        net.run(Ticks(600));
        let mut seen: Vec<_> = copies::<Health>(&mut net, ada);
        seen.sort_by_key(|(_, health)| health.0);
        let values: Vec<_> = seen.iter().map(|(_, health)| health.0).collect();
        assert_eq!(values, [3, 4, 5, 6, 7, 8, 9, 50], "seed {seed}");
        assert_eq!(copies::<Replicated>(&mut net, ada).len(), 9, "seed {seed}");
        for (copy, health) in seen {
            let was = before.iter().find(|(_, before)| before.0 == health.0);
            assert!(
                was.is_none_or(|(entity, _)| *entity == copy),
                "seed {seed}: copies stay the same"
            );
        }
    }
}
