//! How copies come to be.

use bevy::ecs::bundle::BundleWriter;
use bevy::prelude::*;
use smallvec::SmallVec;

use super::update::{Update, retell_names, update};
use super::{Mirrored, parent_of};
use crate::client::component::{Finder, insert, push};
use crate::client::mirror::{Mirror, Role};
use crate::client::types::ClientTypes;
use crate::protocol::layout::{ComponentId, NetId};
use crate::replication::{Interpolated, Owned, Owner, Predicted, Replicated, Simulated};
use crate::schedule::CurrentTick;
use crate::session::SessionId;
use crate::tick::Tick;

/// Makes the entities that were [entered](Mirror::enter), each whole: with all its components at once.
///
/// All are there before any has components: observers of one may go to those that it names.
pub(in crate::client) fn spawn_all(world: &mut World, nets: &[NetId], tick: Tick) {
    for net in nets {
        let local = world.resource::<Mirror>().locals.get(net).copied();
        if let Some(local) = local.filter(|local| !local.is_early) {
            world.spawn_empty_at(local.entity).ok();
        }
    }
    for &net in nets {
        spawn(world, net, tick);
    }
}

pub(super) fn spawn(world: &mut World, net: NetId, tick: Tick) {
    let Some(&local) = world.resource::<Mirror>().locals.get(&net) else {
        return;
    };
    if local.is_early {
        let Ok(mut entity) = world.get_entity_mut(local.entity) else {
            // It has come to its end here already, ahead of the server's.
            let now = world.resource::<CurrentTick>().0;
            let mut mirror = world.resource_mut::<Mirror>();
            return mirror.note_despawn(net, now, true);
        };
        entity.insert(Mirrored);
        let whole = Update::whole(world.resource::<Mirror>(), net);
        return update(world, &whole, tick);
    }
    if world.get_entity(local.entity).is_err() {
        // An observer of another copy has despawned it.
        let now = world.resource::<CurrentTick>().0;
        let mut mirror = world.resource_mut::<Mirror>();
        return mirror.note_despawn(net, now, false);
    }
    let mut named = Vec::new();
    let mut parent = None;
    insert(world, local.entity, |world, out| {
        assemble_role(world, net, local.role, out);
        parent = assemble_values(world, net, local.role, tick, out, &mut named);
    });
    // Observers have run meanwhile: it may have gone already.
    let mut mirror = world.resource_mut::<Mirror>();
    let Some(entered) = mirror.locals.get_mut(&net) else {
        return;
    };
    entered.parent = parent;
    for (component, _) in &named {
        entered.told.set(*component, true);
    }
    for (component, names) in named {
        mirror.note_names(net, component, names);
    }
}

/// The components that tell what a copy is to this client.
fn assemble_role(world: &World, net: NetId, role: Role, out: &mut BundleWriter) {
    let mirror = world.resource::<Mirror>();
    let meta = mirror.replica.entity(net).map(|entity| entity.meta);
    let meta = meta.unwrap_or_default();
    push(world, Replicated, out);
    push(world, Mirrored, out);
    if let Some(owner) = meta.owner {
        push(world, Owner(SessionId(owner)), out);
    }
    if mirror.is_own(meta) {
        push(world, Owned, out);
        for input in world.resource::<ClientTypes>().inputs.iter() {
            (input.assemble_default)(world, out);
        }
    }
    match role {
        Role::Predicted => {
            push(world, Predicted, out);
            push(world, Simulated, out);
        }
        Role::Interpolated => push(world, Interpolated, out),
    }
}

/// All values of an entity; says what its parent is.
fn assemble_values(
    world: &World,
    net: NetId,
    role: Role,
    tick: Tick,
    out: &mut BundleWriter,
    named: &mut Vec<(ComponentId, SmallVec<[NetId; 2]>)>,
) -> Option<Entity> {
    let mirror = world.resource::<Mirror>();
    let fns = &world.resource::<ClientTypes>().components;
    let entity = mirror.replica.entity(net)?;
    let mut parent = None;
    for (id, value) in entity.values() {
        if id == mirror.child_of() {
            let parent_net = parent_of(world, net);
            let local = parent_net.and_then(|parent| mirror.locals.get(&parent));
            parent = local
                .map(|local| local.entity)
                .filter(|parent| world.get_entity(*parent).is_ok());
            if let Some(parent) = parent {
                push(world, ChildOf(parent), out);
            }
            named.push((id, parent_net.into_iter().collect()));
            continue;
        }
        let is_predicted = role == Role::Predicted && mirror.kind(id).predicted;
        let finder = Finder::new(mirror);
        let since = is_predicted.then_some(tick);
        (fns[usize::from(id.0)].assemble)(world, value, &finder, since, out);
        named.push((id, finder.take_asked()));
    }
    parent
}

/// Makes copies that were lost anew: parents first.
pub(in crate::client) fn respawn(world: &mut World, nets: Vec<NetId>) {
    let mut mirror = world.resource_mut::<Mirror>();
    let tick = mirror.replica.newest().unwrap_or(mirror.anchor);
    for &net in &nets {
        if let Some(local) = mirror.leave(net) {
            mirror.nets.remove(&local.entity);
            mirror.unschedule(net);
        }
    }
    let order = parents_first(world, nets);
    let entities = world.entity_allocator_mut();
    let entities: Vec<_> = order.iter().map(|_| entities.alloc()).collect();
    let mut mirror = world.resource_mut::<Mirror>();
    for (&net, &entity) in order.iter().zip(&entities) {
        mirror.enter(net, entity, false);
    }
    spawn_all(world, &order, tick);
    retell_names(world, &order, tick);
}

/// Puts parents before their children.
pub(in crate::client) fn parents_first(world: &World, mut nets: Vec<NetId>) -> Vec<NetId> {
    if nets.len() < 2 {
        return nets;
    }
    nets.sort_unstable();
    let mut order = Vec::with_capacity(nets.len());
    let mut waiting: std::collections::BTreeSet<_> = nets.iter().copied().collect();
    let mut chain = Vec::new();
    for net in nets {
        let mut at = Some(net);
        while let Some(next) = at.filter(|next| waiting.remove(next)) {
            chain.push(next);
            at = parent_of(world, next);
        }
        order.extend(chain.drain(..).rev());
    }
    order
}
