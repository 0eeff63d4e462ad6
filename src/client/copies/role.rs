//! What a copy is to this client: whose, and predicted or interpolated.

use bevy::prelude::*;

use crate::client::mirror::{Mirror, Role};
use crate::protocol::layout::NetId;
use crate::registry::Registry;
use crate::replication::{Interpolated, Owned, Owner, Predicted, Simulated};
use crate::session::SessionId;

/// Marks an entity as what it is to this client; says whether its role is another.
pub(super) fn set_role(world: &mut World, net: NetId) -> bool {
    let mut mirror = world.resource_mut::<Mirror>();
    let Some(meta) = mirror.replica.entity(net).map(|entity| entity.meta) else {
        return false;
    };
    let (wanted, is_own) = (mirror.role_of(meta), mirror.is_own(meta));
    let Some(local) = mirror.locals.get_mut(&net) else {
        return false;
    };
    let role = if local.is_early {
        Role::Predicted
    } else {
        wanted
    };
    let is_other = local.role != role;
    local.role = role;
    let entity = local.entity;
    mirror.set_predicted(net, role);
    set_owner(
        world,
        entity,
        meta.owner.map(|owner| Owner(SessionId(owner))),
    );
    set_owned(world, entity, is_own);
    mark(world, entity, role);
    is_other
}

/// Does something to an entity that is still there: observers of what came before may have despawned it.
fn with_entity(world: &mut World, entity: Entity, act: impl FnOnce(&mut EntityWorldMut)) {
    if let Ok(mut entity) = world.get_entity_mut(entity) {
        act(&mut entity);
    }
}

fn set_owner(world: &mut World, entity: Entity, owner: Option<Owner>) {
    with_entity(world, entity, |entity| match owner {
        Some(owner) if entity.get() != Some(&owner) => {
            entity.insert(owner);
        }
        None if entity.contains::<Owner>() => {
            entity.remove::<Owner>();
        }
        _ => {}
    });
}

fn set_owned(world: &mut World, entity: Entity, is_own: bool) {
    if world.get::<Owned>(entity).is_some() == is_own {
        return;
    }
    let inputs = world.resource::<Registry>().inputs.clone();
    for input in inputs.iter() {
        let set = match is_own {
            true => input.insert_default,
            false => input.remove,
        };
        with_entity(world, entity, set);
    }
    with_entity(world, entity, |entity| {
        match is_own {
            true => entity.insert(Owned),
            false => entity.remove::<Owned>(),
        };
    });
}

fn mark(world: &mut World, entity: Entity, role: Role) {
    let is_predicted = role == Role::Predicted;
    with_entity(world, entity, |entity| {
        if is_predicted && entity.contains::<Interpolated>() {
            entity.remove::<Interpolated>();
        } else if !is_predicted && entity.contains::<Predicted>() {
            entity.remove::<(Predicted, Simulated)>();
        }
    });
    with_entity(world, entity, |entity| {
        let is_simulated = entity.contains::<Predicted>() && entity.contains::<Simulated>();
        if is_predicted && !is_simulated {
            entity.insert((Predicted, Simulated));
        } else if !is_predicted && !entity.contains::<Interpolated>() {
            entity.insert(Interpolated);
        }
    });
}
