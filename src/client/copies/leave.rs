//! How copies go.

use bevy::ecs::entity::EntityHashSet;
use bevy::prelude::*;

use super::parents::{parent_of, reparent, take_off};
use crate::client::interpolate::Playhead;
use crate::client::mirror::{Event, Leaving, Mirror, Role};
use crate::client::types::ClientTypes;
use crate::protocol::layout::NetId;
use crate::tick::Tick;

/// The server has taken an entity away: its copy goes when what is drawn is there.
pub(in crate::client) fn leave(world: &mut World, net: NetId, tick: Tick) {
    let mut mirror = world.resource_mut::<Mirror>();
    mirror.held.retain(|&(held, _)| held != net);
    let Some(local) = mirror.leave(net) else {
        return;
    };
    if world.get_entity(local.entity).is_err() {
        let mut mirror = world.resource_mut::<Mirror>();
        mirror.nets.remove(&local.entity);
        mirror.unschedule(net);
        return;
    }
    let leaving = Leaving { local, tick };
    world.resource_mut::<Mirror>().leaving.insert(net, leaving);
}

/// Despawns the copies whose time has come.
pub(in crate::client) fn despawn_due(world: &mut World) {
    let mirror = world.resource::<Mirror>();
    if mirror.leaving.is_empty() {
        return;
    }
    let leaving = mirror.leaving.iter();
    let due: Vec<_> = leaving
        .filter(|(net, leaving)| is_due(world, **net, leaving))
        .map(|(net, _)| *net)
        .collect();
    despawn_leaving(world, due);
}

/// Despawns the copies that are about to leave, without waiting for what is drawn.
pub(in crate::client) fn despawn_all_leaving(world: &mut World) {
    let leaving = world.resource::<Mirror>().leaving.keys().copied().collect();
    despawn_leaving(world, leaving);
}

fn despawn_leaving(world: &mut World, mut nets: Vec<NetId>) {
    nets.sort_unstable();
    let mut mirror = world.resource_mut::<Mirror>();
    let mut entities = Vec::with_capacity(nets.len());
    for net in nets {
        if let Some(leaving) = mirror.leaving.remove(&net) {
            mirror.unschedule(net);
            mirror.nets.remove(&leaving.local.entity);
            entities.push(leaving.local.entity);
        }
    }
    for entity in entities {
        despawn(world, entity);
    }
}

fn is_due(world: &World, net: NetId, leaving: &Leaving) -> bool {
    if leaving.local.role == Role::Interpolated
        && let Some(playhead) = world.get_resource::<Playhead>()
        && playhead
            .0
            .is_none_or(|at| leaving.tick.is_newer_than(at.tick))
    {
        return false;
    }
    // What hangs on it may have been taken off when it went. That is shown first, also where it is told later.
    let mirror = world.resource::<Mirror>();
    let children = world.get::<Children>(leaving.local.entity);
    children.into_iter().flatten().all(|child| {
        let Some(child) = mirror
            .net_id(*child)
            .filter(|child| mirror.locals.contains_key(child))
        else {
            return true;
        };
        parent_of(world, child) != Some(net)
            || mirror
                .replica
                .confirmed(child)
                .is_none_or(|confirmed| !leaving.tick.is_newer_than(confirmed))
    })
}

/// Despawns an entity, but none of the copies below it: they live as long as the server's.
pub(in crate::client) fn despawn(world: &mut World, entity: Entity) {
    let mirror = world.resource::<Mirror>();
    let mut copies = Vec::new();
    let mut below = vec![entity];
    let mut seen = EntityHashSet::default();
    while let Some(at) = below.pop() {
        for &child in world.get::<Children>(at).into_iter().flatten() {
            match mirror.nets.contains_key(&child) {
                true => copies.push(child),
                // A game may have hung some below one another.
                false if seen.insert(child) => below.push(child),
                false => {}
            }
        }
    }
    for copy in copies {
        take_off(world, copy);
        let net = world.resource::<Mirror>().net_id(copy);
        if let Some(net) = net {
            move_now(world, net);
        }
    }
    world.try_despawn(entity).ok();
}

/// A copy has lost its parent ahead of time: what waits for what is drawn to give it another place happens at once.
fn move_now(world: &mut World, net: NetId) {
    let mut mirror = world.resource_mut::<Mirror>();
    let mut parent = None;
    mirror.scheduled.retain(|scheduled| match scheduled.event {
        Event::Parent(to) if scheduled.net == net => {
            parent = Some(to);
            false
        }
        _ => true,
    });
    let Some(parent) = parent else { return };
    let local = mirror.locals.get(&net).copied();
    let types = world.resource::<ClientTypes>().components.clone();
    if let Some(local) = local
        && let Ok(mut entity) = world.get_entity_mut(local.entity)
    {
        for fns in types.iter() {
            (fns.skip_samples)(&mut entity);
        }
    }
    reparent(world, net, parent);
}
