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
