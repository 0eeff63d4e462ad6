//! Whom components, messages and parents name, whatever has happened to those meanwhile.

use std::time::Duration;

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use serde::{Deserialize, Serialize};

/// Tells entities apart.
#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Tag(u32);

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Aim(#[entities] Entity);

/// Somebody was hit, and whom the sender means by that.
#[derive(
    Message, Clone, Debug, PartialEq, Serialize, Deserialize, bevy::ecs::entity::MapEntities,
)]
struct Hit {
    #[entities]
    who: Entity,
    tag: u32,
}

/// What each side was told, in its own entities.
#[derive(Resource, Default)]
struct Heard(Vec<(Entity, Option<u32>, u32)>);

fn game(app: &mut App) {
    app.replicate::<Tag>();
    app.replicate::<Aim>();
    app.protocol()
        .add_mapped_message::<Hit>(Channel::ReliableOrdered);
    app.init_resource::<Heard>().add_systems(
        PreUpdate,
        (hear_server, hear_clients).after(TandemSystems::Apply),
    );
}

fn hear_server(
    messages: Option<MessageReader<FromServer<Hit>>>,
    tags: Query<&Tag>,
    mut heard: ResMut<Heard>,
) {
    for FromServer(hit) in messages
        .into_iter()
        .flat_map(|mut messages| messages.read().cloned().collect::<Vec<_>>())
    {
        let named = tags.get(hit.who).ok().map(|tag| tag.0);
        heard.0.push((hit.who, named, hit.tag));
    }
}

fn hear_clients(
    messages: Option<MessageReader<FromClient<Hit>>>,
    tags: Query<&Tag>,
    mut heard: ResMut<Heard>,
) {
    for hit in messages
        .into_iter()
        .flat_map(|mut messages| messages.read().cloned().collect::<Vec<_>>())
    {
        let named = tags.get(hit.message.who).ok().map(|tag| tag.0);
        heard.0.push((hit.message.who, named, hit.message.tag));
    }
}

fn lossy(seed: u64) -> LinkConditions {
    LinkConditions {
        latency: Duration::from_millis(40),
        jitter: Duration::from_millis(15),
        loss: 0.2,
        seed,
        ..default()
    }
}

fn spawn(net: &mut TestNet, bundle: impl Bundle) -> Entity {
    net.server.world_mut().spawn((Replicated, bundle)).id()
}

fn copy(net: &mut TestNet, client: TestClientId, tag: u32) -> Option<Entity> {
    let world = net.client(client).world_mut();
    let mut query = world.query_filtered::<(Entity, &Tag), With<Replicated>>();
    query
        .iter(world)
        .find(|(_, other)| other.0 == tag)
        .map(|(entity, _)| entity)
}

fn aim(net: &mut TestNet, client: TestClientId, tag: u32) -> Option<Entity> {
    let copy = copy(net, client, tag)?;
    net.client(client).world().get::<Aim>(copy).map(|aim| aim.0)
}

#[test]
fn a_reference_to_what_is_gone_names_no_stranger() {
    let mut net = TestNet::new(game, LinkConditions::default());
    net.join("ada");
    net.run(Ticks(30));
    let target = spawn(&mut net, Tag(2));
    spawn(&mut net, (Tag(1), Aim(target)));
    net.run(Ticks(60));
    net.server.world_mut().despawn(target);
    net.run(Ticks(120));
    for tag in 3..20 {
        spawn(&mut net, Tag(tag));
    }
    net.run(Ticks(30));
    let bob = net.join("bob");
    net.run(Ticks(90));
    assert!(copy(&mut net, bob, 19).is_some());
    assert_eq!(aim(&mut net, bob, 1), Some(Entity::PLACEHOLDER));
}

#[test]
fn messages_that_are_still_being_resent_name_no_strangers() {
    for seed in 0..4 {
        let mut net = TestNet::new(game, lossy(seed));
        let ada = net.join("ada");
        net.run(Ticks(120));
        let mut last: Option<Entity> = None;
        for tag in 0..600 {
            // Whoever is hit dies in the next tick, and others come.
            if let Some(last) = last.take() {
                net.server.world_mut().despawn(last);
            }
            let who = spawn(&mut net, Tag(tag));
            net.server.world_mut().write_message(ToClients {
                to: bevy_tandem::message::Target::All,
                message: Hit { who, tag },
            });
            last = Some(who);
            net.run(Ticks(1 + tag % 3));
        }
        net.run(Ticks(120));
        let heard = &net.client(ada).world().resource::<Heard>().0;
        assert_eq!(heard.len(), 600, "seed {seed}");
        for (who, named, meant) in heard {
            assert!(
                *who == Entity::PLACEHOLDER || named.is_none_or(|named| named == *meant),
                "seed {seed}: {meant} was meant, not {named:?}"
            );
        }
    }
}

#[test]
fn what_clients_say_of_the_dead_names_no_strangers() {
    for seed in 0..4 {
        let mut net = TestNet::new(game, lossy(seed));
        let ada = net.join("ada");
        net.run(Ticks(120));
        let mut alive = Vec::new();
        let mut meant_alive = 0;
        for tag in 0..600 {
            alive.push((spawn(&mut net, Tag(tag)), tag));
            if alive.len() > 4 {
                net.server.world_mut().despawn(alive.remove(0).0);
            }
            let world = net.client(ada).world_mut();
            let mut copies = world.query_filtered::<(Entity, &Tag), With<Replicated>>();
            let oldest = copies.iter(world).min_by_key(|(_, tag)| tag.0);
            if let Some((who, tag)) = oldest.map(|(who, tag)| (who, tag.0)) {
                world.write_message(ToServer(Hit { who, tag }));
                meant_alive += 1;
            }
            net.run(Ticks(1 + tag % 3));
        }
        net.run(Ticks(120));
        let heard = &net.server.world().resource::<Heard>().0;
        assert_eq!(heard.len(), meant_alive, "seed {seed}");
        for (who, named, meant) in heard {
            match named {
                Some(named) => assert_eq!(named, meant, "seed {seed}"),
                None => assert_eq!(
                    *who,
                    Entity::PLACEHOLDER,
                    "seed {seed}: nobody, not a dead one"
                ),
            }
        }
    }
}

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Party {
    #[entities]
    members: Vec<Entity>,
    #[entities]
    leader: Option<Entity>,
}

fn game_with_party(app: &mut App) {
    game(app);
    app.replicate::<Party>();
}

fn get<C: Component + Clone>(net: &mut TestNet, client: TestClientId, tag: u32) -> Option<C> {
    let copy = copy(net, client, tag)?;
    net.client(client).world().get::<C>(copy).cloned()
}

#[test]
fn a_reference_to_what_is_replicated_later_is_told_then() {
    for seed in 0..4 {
        let mut net = TestNet::new(game_with_party, lossy(seed));
        let ada = net.join("ada");
        net.run(Ticks(60));
        let world = net.server.world_mut();
        let later: Vec<_> = (10..14).map(|tag| world.spawn(Tag(tag)).id()).collect();
        spawn(&mut net, (Tag(1), Aim(later[0])));
        spawn(
            &mut net,
            (
                Tag(2),
                Party {
                    members: later.clone(),
                    leader: Some(later[3]),
                },
            ),
        );
        spawn(&mut net, (Tag(3), ChildOf(later[1])));
        net.run(Ticks(60));
        assert_eq!(aim(&mut net, ada, 1), Some(Entity::PLACEHOLDER));
        assert_eq!(get::<ChildOf>(&mut net, ada, 3), None);
        for &entity in &later {
            net.server.world_mut().entity_mut(entity).insert(Replicated);
            net.run(Ticks(7));
        }
        net.run(Ticks(120));
        let copies: Vec<_> = (10..14)
            .map(|tag| copy(&mut net, ada, tag).unwrap())
            .collect();
        assert_eq!(aim(&mut net, ada, 1), Some(copies[0]), "seed {seed}");
        let party = get::<Party>(&mut net, ada, 2).unwrap();
        assert_eq!(party.members, copies, "seed {seed}");
        assert_eq!(party.leader, Some(copies[3]), "seed {seed}");
        let parent = get::<ChildOf>(&mut net, ada, 3);
        assert_eq!(parent, Some(ChildOf(copies[1])), "seed {seed}");
    }
}

#[test]
fn all_who_name_an_entity_are_told_again_when_its_marker_is_given_back() {
    for pause in [0, 1, 60] {
        let mut net = TestNet::new(game_with_party, LinkConditions::default());
        let ada = net.join("ada");
        net.run(Ticks(60));
        let target = spawn(&mut net, Tag(1));
        spawn(&mut net, (Tag(2), Aim(target)));
        spawn(&mut net, (Tag(3), ChildOf(target)));
        net.run(Ticks(60));
        net.server
            .world_mut()
            .entity_mut(target)
            .remove::<Replicated>();
        net.run(Ticks(pause));
        if pause > 30 {
            assert_eq!(aim(&mut net, ada, 2), Some(Entity::PLACEHOLDER));
            assert_eq!(get::<ChildOf>(&mut net, ada, 3), None);
        }
        net.server.world_mut().entity_mut(target).insert(Replicated);
        net.run(Ticks(90));
        let target = copy(&mut net, ada, 1).unwrap();
        assert_eq!(aim(&mut net, ada, 2), Some(target), "after {pause} ticks");
        assert!(copy(&mut net, ada, 3).is_some(), "after {pause} ticks");
        let parent = get::<ChildOf>(&mut net, ada, 3);
        assert_eq!(parent, Some(ChildOf(target)), "after {pause} ticks");
    }
}

#[test]
fn a_parent_that_is_not_replicated_is_no_parent_on_clients() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(60));
    let parent = spawn(&mut net, Tag(1));
    let child = spawn(&mut net, (Tag(2), ChildOf(parent)));
    net.run(Ticks(60));
    assert!(get::<ChildOf>(&mut net, ada, 2).is_some());
    let world = net.server.world_mut();
    let hidden = world.spawn_empty().id();
    world.entity_mut(child).insert(ChildOf(hidden));
    net.run(Ticks(60));
    assert_eq!(get::<ChildOf>(&mut net, ada, 2), None);
    let bob = net.join("bob");
    net.run(Ticks(60));
    assert_eq!(get::<ChildOf>(&mut net, bob, 2), None);
    net.server
        .world_mut()
        .entity_mut(child)
        .insert(ChildOf(parent));
    net.run(Ticks(60));
    for client in [ada, bob] {
        let parent = copy(&mut net, client, 1).unwrap();
        assert_eq!(get(&mut net, client, 2), Some(ChildOf(parent)));
    }
}

#[test]
fn messages_name_what_was_marked_or_despawned_in_the_same_frame() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(60));
    let hit = |who, tag| ToClients {
        to: bevy_tandem::message::Target::All,
        message: Hit { who, tag },
    };
    let mut spawned = Vec::new();
    for tag in 0..20 {
        let who = spawn(&mut net, Tag(tag));
        net.server.world_mut().write_message(hit(who, tag));
        spawned.push(who);
        net.run(Ticks(1));
    }
    net.run(Ticks(60));
    let heard = std::mem::take(&mut net.client(ada).world_mut().resource_mut::<Heard>().0);
    assert_eq!(heard.len(), 20);
    for (who, _, meant) in &heard {
        // It may have come before its entity, and then names nobody.
        let copy = copy(&mut net, ada, *meant).unwrap();
        assert!(*who == copy || *who == Entity::PLACEHOLDER);
    }
    for (tag, who) in (0..).zip(spawned) {
        net.server.world_mut().write_message(hit(who, tag));
        net.server.world_mut().despawn(who);
        net.run(Ticks(1));
    }
    net.run(Ticks(60));
    let heard = &net.client(ada).world().resource::<Heard>().0;
    assert_eq!(heard.len(), 20);
    for (_, named, meant) in heard {
        assert!(named.is_none_or(|named| named == *meant));
    }
    assert!(
        heard.iter().any(|(_, named, _)| named.is_some()),
        "messages come before despawns are applied, some of them"
    );
}

#[test]
fn references_to_disabled_entities_name_them() {
    let mut net = TestNet::new(game, LinkConditions::default());
    let ada = net.join("ada");
    net.run(Ticks(60));
    let target = spawn(&mut net, (Tag(1), bevy::ecs::entity_disabling::Disabled));
    spawn(&mut net, (Tag(2), Aim(target)));
    net.run(Ticks(60));
    let target = copy(&mut net, ada, 1).unwrap();
    assert_eq!(aim(&mut net, ada, 2), Some(target));
}

/// What a player points at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, bevy::ecs::entity::MapEntities)]
struct Pick(#[entities] Entity);

impl Default for Pick {
    fn default() -> Self {
        Self(Entity::PLACEHOLDER)
    }
}

/// Whom each tick's input named.
#[derive(Resource, Default)]
struct Picked(Vec<Entity>);

fn game_with_input(app: &mut App) {
    game(app);
    app.add_mapped_input::<Pick>();
    app.init_resource::<Picked>().add_systems(
        FixedUpdate,
        |inputs: Query<&Input<Pick>>, mut picked: ResMut<Picked>| {
            picked.0.extend(inputs.iter().map(|input| input.0.0));
        },
    );
}

#[test]
fn entities_in_inputs_are_each_sides_own_and_never_strangers() {
    let mut net = TestNet::new(game_with_input, lossy(1));
    let ada = net.join("ada");
    net.run(Ticks(120));
    let session = net.session(ada).unwrap();
    spawn(&mut net, (Tag(1), OwnedBy(session)));
    // Ids that differ between the sides.
    net.client(ada).world_mut().spawn_empty();
    let target = spawn(&mut net, Tag(2));
    net.run(Ticks(60));
    let picked = copy(&mut net, ada, 2).unwrap();
    net.client(ada)
        .world_mut()
        .resource_mut::<LocalInput<Pick>>()
        .0 = Pick(picked);
    net.run(Ticks(60));
    let on_server = net.server.world().resource::<Picked>().0.clone();
    let on_client = net.client(ada).world().resource::<Picked>().0.clone();
    for (seen, whom) in [(on_server, target), (on_client, picked)] {
        assert_eq!(seen.last(), Some(&whom));
        let is_known = |it: &Entity| *it == whom || *it == Entity::PLACEHOLDER;
        assert!(seen.iter().all(is_known));
    }
    net.server.world_mut().despawn(target);
    net.run(Ticks(10));
    for tag in 10..30 {
        spawn(&mut net, Tag(tag));
    }
    net.server.world_mut().resource_mut::<Picked>().0.clear();
    net.run(Ticks(60));
    let picked = &net.server.world().resource::<Picked>().0;
    assert!(picked.iter().all(|it| *it == Entity::PLACEHOLDER));
}
