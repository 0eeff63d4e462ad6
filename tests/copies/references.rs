//! Components that name entities.

use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;
use serde::{Deserialize, Serialize};

use crate::game::*;

#[test]
fn a_reference_to_what_is_replicated_later_is_mapped_then() {
    let (mut net, ada) = with_ada(game, clean());
    let target = net.server.world_mut().spawn(Tag(2)).id();
    spawn(&mut net, (Tag(1), Aim(target)));
    net.run(Ticks(30));
    net.server.world_mut().entity_mut(target).insert(Replicated);
    net.run(Ticks(60));
    let target = copy(&mut net, ada, 2).unwrap();
    assert_eq!(value::<Aim>(&mut net, ada, 1), Some(Aim(target)));
}

#[test]
fn a_reference_to_what_is_gone_names_no_stranger() {
    let (mut net, _) = with_ada(game, clean());
    let target = spawn(&mut net, Tag(2));
    spawn(&mut net, (Tag(1), Aim(target)));
    net.run(Ticks(60));
    net.server.world_mut().despawn(target);
    net.run(Ticks(120));
    spawn(&mut net, Tag(3));
    net.run(Ticks(30));
    let bob = net.join("Bob");
    net.run(Ticks(90));
    let stranger = copy(&mut net, bob, 3).unwrap();
    let aim = value::<Aim>(&mut net, bob, 1).unwrap().0;
    assert_ne!(aim, stranger, "aims at what was never aimed at");
}

#[derive(Component, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Party {
    #[entities]
    members: Vec<Entity>,
    #[entities]
    leader: Option<Entity>,
}

#[test]
fn lists_and_options_of_entities_are_mapped_whatever_comes_first() {
    fn game_with_party(app: &mut App) {
        game(app);
        app.replicate::<Party>();
    }
    for seed in 0..4 {
        let (mut net, ada) = with_ada(game_with_party, lossy(seed));
        let world = net.server.world_mut();
        let party = world.spawn((Replicated, Tag(0))).id();
        let members: Vec<_> = (1..40)
            .map(|n| world.spawn((Replicated, Tag(n))).id())
            .collect();
        let leader = members.last().copied();
        world.entity_mut(party).insert(Party { members, leader });
        net.run(Ticks(180));
        let seen = value::<Party>(&mut net, ada, 0).unwrap();
        let tags: Vec<_> = seen
            .members
            .iter()
            .map(|member| net.client(ada).world().get::<Tag>(*member).unwrap().0)
            .collect();
        assert_eq!(tags, (1..40).collect::<Vec<_>>());
        assert_eq!(seen.leader, seen.members.last().copied());
    }
}
