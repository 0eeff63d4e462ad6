//! Whom copies hang below.

use bevy::prelude::*;

use crate::client::mirror::{Mirror, Role};
use crate::client::predict;
use crate::hierarchy::ancestors;
use crate::protocol::layout::NetId;
use crate::registry::ComponentRule;

/// The entity that the server says is an entity's parent.
pub(in crate::client) fn parent_of(world: &World, net: NetId) -> Option<NetId> {
    let mirror = world.resource::<Mirror>();
    let value = mirror.replica.entity(net)?.value(mirror.child_of())?;
    let mut parent = None;
    let rule = world.resource::<ComponentRule<ChildOf>>();
    rule.load(value, &|_| None, &mut |net| parent = Some(net));
    parent
}

/// Gives a copy the parent that the server says it has. Where that is not here, it has none; a parent that the game has
/// given it stays.
pub(in crate::client) fn reparent(world: &mut World, net: NetId, parent: Option<NetId>) {
    // Those that are about to leave are still drawn: they move, and others move below them.
    let mirror = &mut *world.resource_mut::<Mirror>();
    let leaving = || mirror.leaving.get(&net).map(|leaving| leaving.local);
    let Some(local) = mirror.locals.get(&net).copied().or_else(leaving) else {
        return;
    };
    let target = parent.and_then(|parent| mirror.entity(parent));
    let target = target.filter(|parent| world.get_entity(*parent).is_ok());
    let mirror = &mut *world.resource_mut::<Mirror>();
    if let Some(local) = mirror.locals.get_mut(&net) {
        local.parent = target;
    } else if let Some(leaving) = mirror.leaving.get_mut(&net) {
        leaving.local.parent = target;
    }
    let current = world.get::<ChildOf>(local.entity).map(ChildOf::parent);
    if current == target {
        return;
    }
    match target {
        Some(target) => {
            break_cycle(world, local.entity, target);
            if let Ok(mut entity) = world.get_entity_mut(local.entity) {
                entity.insert(ChildOf(target));
            }
        }
        None if current == local.parent => {
            if let Ok(mut entity) = world.get_entity_mut(local.entity) {
                entity.remove::<ChildOf>();
            }
        }
        None => {}
    }
    if local.role == Role::Predicted {
        // It is in another space now: nothing of before can be drawn there.
        predict::forget_drawn(world, local.entity);
    }
}

/// Gives a copy the server's parent, whatever this client's simulation has given it.
pub(in crate::client) fn put_back(world: &mut World, net: NetId) {
    let parent = parent_of(world, net);
    let mirror = world.resource::<Mirror>();
    let entity = mirror.locals.get(&net).map(|local| local.entity);
    let current = entity.and_then(|entity| world.get::<ChildOf>(entity));
    let current = current.map(ChildOf::parent);
    if let Some(local) = world.resource_mut::<Mirror>().locals.get_mut(&net) {
        local.parent = current;
    }
    reparent(world, net, parent);
}

/// Takes off what leads from `entity` down to `target`, which is to be its parent.
fn break_cycle(world: &mut World, entity: Entity, target: Entity) {
    let below = std::iter::once(target)
        .chain(ancestors(world, target))
        .find(|at| world.get::<ChildOf>(*at).map(ChildOf::parent) == Some(entity));
    if let Some(below) = below {
        take_off(world, below);
    }
}

/// Takes the parent from a copy, or from whatever a game has put between two.
pub(super) fn take_off(world: &mut World, child: Entity) {
    let mut mirror = world.resource_mut::<Mirror>();
    if let Some(net) = mirror.net_id(child)
        && let Some(local) = mirror.locals.get_mut(&net)
    {
        local.parent = None;
    }
    if let Ok(mut child) = world.get_entity_mut(child) {
        child.remove::<ChildOf>();
    }
}
