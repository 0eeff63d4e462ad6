//! What default query filters hide: disabled entities.

use bevy::ecs::entity_disabling::Disabled;
use bevy::prelude::*;
use bevy_tandem::prelude::*;
use bevy_tandem::testing::TestNet;

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
