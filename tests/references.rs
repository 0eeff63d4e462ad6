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
