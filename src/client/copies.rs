//! Changes to copies: how they come to be, change, move, and go.
//!
//! Each step first looks at what has to be done, with nothing of the game running, and then does it in as few moves as
//! there can be, since observers and hooks of the game run in between. They may despawn a copy, change it or leave the
//! server; so every step looks again whether the copy is still there.

use bevy::ecs::bundle::BundleWriter;
use bevy::ecs::component::ComponentId as BevyId;
use bevy::ecs::entity::EntityHashSet;
use bevy::platform::collections::HashSet;
use bevy::prelude::*;
use smallvec::SmallVec;

use super::component::{Arrival, Finder, insert, push};
use super::interpolate::Playhead;
use super::mirror::{ComponentSet, Event, Leaving, Local, Mirror, Role, Scheduled};
use super::predict;
use super::types::ClientTypes;
use crate::hierarchy::ancestors;
use crate::protocol::interpolation::Playback;
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::replica::ReplicaEntity;
use crate::registry::{ComponentRule, Registry};
use crate::replication::{Interpolated, Owned, Owner, Predicted, Replicated, Simulated};
use crate::schedule::CurrentTick;
use crate::session::SessionId;
use crate::tick::Tick;

/// An entity that stands for one of the server's.
#[derive(Component)]
pub(super) struct Mirrored;

/// What a snapshot says of one entity.
#[derive(Debug)]
pub(super) struct Update {
    pub net: NetId,
    /// Owner or prediction role may be others.
    pub meta: bool,
    /// It is told whole, to a copy that may have anything.
    pub is_anew: bool,
    pub removed: SmallVec<[ComponentId; 4]>,
    pub set: SmallVec<[ComponentId; 8]>,
}

impl Update {
    pub fn new(net: NetId) -> Self {
        Self {
            net,
            meta: false,
            is_anew: false,
            removed: SmallVec::new(),
            set: SmallVec::new(),
        }
    }

    /// Everything that the server says of an entity, for a copy that may have anything.
    pub fn whole(mirror: &Mirror, net: NetId) -> Self {
        let told = mirror.locals.get(&net).map(|local| local.told);
        let entity = mirror.replica.entity(net);
        let is_kept = |id| entity.is_some_and(|entity| entity.has(id));
        let values = entity.into_iter().flat_map(ReplicaEntity::values);
        Self {
            net,
            meta: true,
            is_anew: true,
            removed: told
                .unwrap_or_default()
                .iter()
                .filter(|id| !is_kept(*id))
                .collect(),
            set: values.map(|(id, _)| id).collect(),
        }
    }
}

/// Makes the entities that were [entered](Mirror::enter), each whole: with all its components at once.
///
/// All are there before any has components: observers of one may go to those that it names.
pub(super) fn spawn_all(world: &mut World, nets: &[NetId], tick: Tick) {
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

fn spawn(world: &mut World, net: NetId, tick: Tick) {
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

/// The entity that the server says is an entity's parent.
pub(super) fn parent_of(world: &World, net: NetId) -> Option<NetId> {
    let mirror = world.resource::<Mirror>();
    let value = mirror.replica.entity(net)?.value(mirror.child_of())?;
    let mut parent = None;
    let rule = world.resource::<ComponentRule<ChildOf>>();
    rule.load(value, &|_| None, &mut |net| parent = Some(net));
    parent
}

/// What an update does to a copy.
#[derive(Default)]
struct Orders {
    changed: SmallVec<[ComponentId; 8]>,
    /// To be drawn later; whether something moves there from the value before.
    sampled: SmallVec<[(ComponentId, bool); 4]>,
    removed: SmallVec<[ComponentId; 4]>,
    inserted: SmallVec<[ComponentId; 4]>,
    /// Predicted, and so compared later. Listed only for the entities that they may name.
    compared: SmallVec<[ComponentId; 4]>,
    parent: Option<Option<NetId>>,
}

/// Brings a copy up to date: its role, then values in place, then what is removed, then what is inserted, all at once,
/// then its parent.
pub(super) fn update(world: &mut World, update: &Update, tick: Tick) {
    let net = update.net;
    let mut whole = None;
    if update.is_anew {
        start_over(world, net);
    } else if update.meta
        && let Some(local) = world.resource_mut::<Mirror>().locals.get_mut(&net)
    {
        // The server has made something else of what this client had spawned.
        local.is_early = false;
    }
    if update.meta && set_role(world, net) && !update.is_anew {
        // What was drawn, or predicted, is not any more.
        start_over(world, net);
        whole = Some(Update::whole(world.resource::<Mirror>(), net));
    }
    let update = whole.as_ref().unwrap_or(update);
    let Some(&local) = world.resource::<Mirror>().locals.get(&net) else {
        return;
    };
    if world.get_entity(local.entity).is_err() {
        return;
    }
    let orders = give_orders(world, update, &local, tick);
    let types = world.resource::<ClientTypes>().components.clone();
    let fns = |id: ComponentId| &types[usize::from(id.0)];
    let at = |component| Arrival {
        net,
        component,
        entity: local.entity,
        tick,
    };
    let mut named: SmallVec<[(ComponentId, SmallVec<[NetId; 2]>); 8]> = SmallVec::new();
    for &id in &orders.changed {
        named.push((id, (fns(id).change)(world, at(id), update.is_anew)));
    }
    for &(id, is_cut) in &orders.sampled {
        named.push((id, (fns(id).sample)(world, at(id), is_cut)));
    }
    for &id in &orders.compared {
        named.push((id, (fns(id).names)(world, at(id))));
    }
    remove(world, local.entity, &orders.removed);
    if !orders.inserted.is_empty() {
        insert(world, local.entity, |world, out| {
            let mirror = world.resource::<Mirror>();
            for &id in &orders.inserted {
                let Some(value) = mirror.replica.entity(net).and_then(|it| it.value(id)) else {
                    continue;
                };
                let finder = Finder::new(mirror);
                let is_predicted = local.role == Role::Predicted && mirror.kind(id).predicted;
                let since = is_predicted.then_some(tick);
                (fns(id).assemble)(world, value, &finder, since, out);
                named.push((id, finder.take_asked()));
            }
        });
    }
    let mirror = &mut *world.resource_mut::<Mirror>();
    for (id, names) in named {
        mirror.note_names(net, id, names);
    }
    let is_predicted = |id: &ComponentId| mirror.kind(*id).predicted;
    let is_begun = local.role == Role::Predicted && orders.inserted.iter().any(is_predicted);
    if let Some(local) = mirror.locals.get_mut(&net) {
        local.is_fresh |= is_begun;
    }
    if let Some(parent) = orders.parent {
        reparent(world, net, parent);
    }
}

/// Sorts what an update says by how it is done, and schedules what waits for what is drawn.
fn give_orders(world: &mut World, update: &Update, local: &Local, tick: Tick) -> Orders {
    let has_timeline = world.contains_resource::<Playhead>();
    let mirror = world.resource::<Mirror>();
    let child_of = mirror.child_of();
    let is_reparented = update.set.contains(&child_of) || update.removed.contains(&child_of);
    let parent = is_reparented.then(|| parent_of(world, update.net));
    let present = present(world, mirror, local.entity, &update.set);
    let required = required(world, mirror, local.role, &update.set, present);
    let mut mirror = world.resource_mut::<Mirror>();
    let mut sorting = Sorting {
        mirror: &mut mirror,
        net: update.net,
        tick,
        role: local.role,
        is_drawn_later: local.role == Role::Interpolated && !update.is_anew && has_timeline,
        told: local.told,
        orders: Orders::default(),
    };
    if let Some(parent) = parent {
        sorting.sort_parent(parent);
    }
    for &id in update.removed.iter().filter(|id| **id != child_of) {
        sorting.sort_removal(id);
    }
    for &id in update.set.iter().filter(|id| **id != child_of) {
        let has = present.contains(id);
        sorting.sort_value(id, has, required.contains(id), is_reparented);
    }
    let Sorting { told, orders, .. } = sorting;
    if let Some(local) = mirror.locals.get_mut(&update.net) {
        local.told = told;
    }
    orders
}

/// Which of these components a copy has.
fn present(world: &World, mirror: &Mirror, entity: Entity, ids: &[ComponentId]) -> ComponentSet {
    let mut present = ComponentSet::default();
    if let Ok(entity) = world.get_entity(entity) {
        for &id in ids {
            present.set(id, entity.contains_id(mirror.kind(id).id));
        }
    }
    present
}

/// Which of these components come now because a plain one that comes with them requires them: inserted later, they would
/// have a default value until then.
fn required(
    world: &World,
    mirror: &Mirror,
    role: Role,
    ids: &[ComponentId],
    present: ComponentSet,
) -> ComponentSet {
    let mut required = ComponentSet::default();
    let absent = ids.iter().filter(|id| !present.contains(**id));
    if absent.clone().nth(1).is_none() {
        return required;
    }
    let is_plain = |id: &&ComponentId| {
        let kind = mirror.kind(**id);
        match role {
            Role::Predicted => !kind.predicted,
            Role::Interpolated => !kind.interpolated,
        }
    };
    for &id in absent.clone().filter(is_plain) {
        let Some(info) = world.components().get_info(mirror.kind(id).id) else {
            continue;
        };
        for &other in absent.clone().filter(|other| !is_plain(other)) {
            let wanted = mirror.kind(other).id;
            if info.required_components().iter_ids().any(|it| it == wanted) {
                required.set(other, true);
            }
        }
    }
    required
}

/// The orders for one copy, while they are made up.
struct Sorting<'a> {
    mirror: &'a mut Mirror,
    net: NetId,
    tick: Tick,
    role: Role,
    /// What is interpolated waits until it is drawn.
    is_drawn_later: bool,
    told: ComponentSet,
    orders: Orders,
}

impl Sorting<'_> {
    fn schedule(&mut self, event: Event) {
        let (tick, net) = (self.tick, self.net);
        self.mirror.scheduled.push(Scheduled { tick, net, event });
    }

    fn sort_parent(&mut self, parent: Option<NetId>) {
        let child_of = self.mirror.child_of();
        let names = parent.into_iter().collect();
        self.mirror.note_names(self.net, child_of, names);
        self.told.set(child_of, parent.is_some());
        match self.is_drawn_later {
            true => self.schedule(Event::Parent(parent)),
            false => self.orders.parent = Some(parent),
        }
    }

    fn sort_removal(&mut self, id: ComponentId) {
        let kind = self.mirror.kind(id);
        let was_told = self.told.contains(id);
        self.told.set(id, false);
        self.mirror.note_names(self.net, id, SmallVec::new());
        // A predicted component is taken away by reconciliation, if the prediction did not do it already.
        let is_predicted = self.role == Role::Predicted && kind.predicted;
        if is_predicted || !was_told {
            return;
        }
        match self.is_drawn_later && kind.interpolated {
            true => self.schedule(Event::Remove(id)),
            false => self.orders.removed.push(id),
        }
    }

    fn sort_value(&mut self, id: ComponentId, has: bool, is_required: bool, is_reparented: bool) {
        let kind = self.mirror.kind(id);
        let was_told = self.told.contains(id);
        self.told.set(id, true);
        if is_required {
            self.orders.inserted.push(id);
        } else if self.role == Role::Predicted && kind.predicted {
            if kind.may_name {
                self.orders.compared.push(id);
            }
        } else if self.is_drawn_later && kind.interpolated {
            let insertion = Event::Insert(id);
            let is_there = was_told && (has || self.mirror.is_scheduled(self.net, insertion));
            self.orders.sampled.push((id, is_reparented || !is_there));
            if !is_there {
                self.schedule(insertion);
            }
        } else if has && !self.orders.removed.contains(&id) {
            self.orders.changed.push(id);
        } else {
            self.orders.inserted.push(id);
        }
    }
}

/// Removes components from a copy, all at once.
fn remove(world: &mut World, entity: Entity, components: &[ComponentId]) {
    if components.is_empty() {
        return;
    }
    let mirror = world.resource::<Mirror>();
    let ids: SmallVec<[BevyId; 4]> = components.iter().map(|id| mirror.kind(*id).id).collect();
    if let Ok(mut entity) = world.get_entity_mut(entity) {
        entity.remove_by_ids(&ids);
    }
}

/// Forgets what was drawn and predicted of a copy.
fn start_over(world: &mut World, net: NetId) {
    let mut mirror = world.resource_mut::<Mirror>();
    mirror.unschedule(net);
    let Some(local) = mirror.locals.get_mut(&net) else {
        return;
    };
    let is_known = !local.is_early;
    local.checked = None;
    local.is_fresh |= is_known;
    let entity = local.entity;
    if world.get_entity(entity).is_err() {
        return; // despawned by the simulation, and brought back if the server says otherwise
    }
    if let Some(local) = world.resource_mut::<Mirror>().locals.get_mut(&net) {
        local.gone_since = None;
    }
    if is_known {
        forget(world, entity);
    }
}

/// Values that were kept to be drawn or compared are so no more.
fn forget(world: &mut World, entity: Entity) {
    let types = world.resource::<ClientTypes>().components.clone();
    if let Ok(mut entity) = world.get_entity_mut(entity) {
        for fns in types.iter() {
            (fns.predict.forget)(&mut entity);
            (fns.forget_samples)(&mut entity);
        }
    }
}

/// Marks an entity as what it is to this client; says whether its role is another.
fn set_role(world: &mut World, net: NetId) -> bool {
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

/// Gives a copy the parent that the server says it has. Where that is not here, it has none; a parent that the game has
/// given it stays.
pub(super) fn reparent(world: &mut World, net: NetId, parent: Option<NetId>) {
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
pub(super) fn put_back(world: &mut World, net: NetId) {
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
fn take_off(world: &mut World, child: Entity) {
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

/// The server has taken an entity away: its copy goes when what is drawn is there.
pub(super) fn leave(world: &mut World, net: NetId, tick: Tick) {
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
pub(super) fn despawn_due(world: &mut World) {
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
pub(super) fn despawn_all_leaving(world: &mut World) {
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
pub(super) fn despawn(world: &mut World, entity: Entity) {
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

/// Makes copies that were lost anew: parents first.
pub(super) fn respawn(world: &mut World, nets: Vec<NetId>) {
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
pub(super) fn parents_first(world: &World, mut nets: Vec<NetId>) -> Vec<NetId> {
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

/// Tells those components again that name entities which are here now.
pub(super) fn retell_names(world: &mut World, spawned: &[NetId], tick: Tick) {
    let mut retold = Vec::new();
    let references = &world.resource::<Mirror>().references;
    for &target in spawned {
        let holders = references.of(target).into_iter();
        retold.extend(holders.map(|(holder, component)| (holder, component, target)));
    }
    if retold.is_empty() {
        return;
    }
    // Those that came with it could name it from the beginning.
    let spawned: HashSet<_> = spawned.iter().copied().collect();
    for (holder, component, target) in retold {
        if !spawned.contains(&holder) {
            retell(world, holder, component, target, tick);
        }
    }
}

fn retell(world: &mut World, holder: NetId, component: ComponentId, target: NetId, tick: Tick) {
    let mut mirror = world.resource_mut::<Mirror>();
    if component == mirror.child_of() {
        // One that is scheduled finds its parent when it is due.
        if !mirror.is_to_move(holder) {
            reparent(world, holder, Some(target));
        }
        return;
    }
    if mirror.kind(component).predicted
        && let Some(local) = mirror.locals.get_mut(&holder)
        && local.role == Role::Predicted
    {
        local.checked = None;
        return;
    }
    let mut again = Update::new(holder);
    again.set.push(component);
    update(world, &again, tick);
}

/// How long a change of parent waits for a parent that may still come, in ticks.
const LONGEST_WAIT: i32 = 60;

/// Does what was scheduled up to the moment that is drawn.
pub(super) fn play(world: &mut World) {
    let Some(playback) = world.resource::<Playhead>().0 else {
        return;
    };
    let mut due = Vec::new();
    let mirror = &mut *world.resource_mut::<Mirror>();
    if mirror.scheduled.is_empty() {
        return;
    }
    let all = std::mem::take(&mut mirror.scheduled);
    for (index, &scheduled) in all.iter().enumerate() {
        let may_come = |parent: NetId| {
            !mirror.locals.contains_key(&parent)
                && !mirror.is_complete_at(scheduled.tick)
                && playback.tick.distance_from(scheduled.tick) < LONGEST_WAIT
        };
        let is_later = scheduled.tick.is_newer_than(playback.tick);
        let waits = matches!(scheduled.event, Event::Parent(Some(parent)) if may_come(parent));
        if waits && !is_later {
            // It has another parent by now: this one must not come after that.
            let is_overtaken = |later: &Scheduled| {
                later.net == scheduled.net
                    && matches!(later.event, Event::Parent(_))
                    && !later.tick.is_newer_than(playback.tick)
            };
            if all[index + 1..].iter().any(is_overtaken) {
                continue;
            }
        }
        match waits || is_later {
            true => mirror.scheduled.push(scheduled),
            false => due.push(scheduled),
        }
    }
    due.sort_by_key(|scheduled| scheduled.net);
    for events in due.chunk_by(|a, b| a.net == b.net) {
        play_events(world, events, &playback);
    }
}

/// Does what is due of one copy.
fn play_events(world: &mut World, events: &[Scheduled], playback: &Playback) {
    let net = events[0].net;
    let Some(entity) = world.resource::<Mirror>().entity(net) else {
        return;
    };
    let mut removed: SmallVec<[ComponentId; 4]> = SmallVec::new();
    let mut inserted: SmallVec<[ComponentId; 4]> = SmallVec::new();
    let mut parent = None;
    for scheduled in events {
        match scheduled.event {
            // Several may be due at once, after a slow frame. Each component is named once: Bevy panics otherwise.
            Event::Insert(id) if inserted.contains(&id) => {}
            Event::Insert(id) => inserted.push(id),
            Event::Remove(id) => {
                inserted.retain(|inserted| *inserted != id);
                if !removed.contains(&id) {
                    removed.push(id);
                }
            }
            Event::Parent(to) => parent = Some(to),
        }
    }
    let types = world.resource::<ClientTypes>().components.clone();
    let fns = |id: ComponentId| &types[usize::from(id.0)];
    remove(world, entity, &removed);
    for &id in removed.iter().filter(|id| !inserted.contains(id)) {
        let is_back = world
            .resource::<Mirror>()
            .is_scheduled(net, Event::Insert(id));
        if !is_back && let Ok(mut entity) = world.get_entity_mut(entity) {
            (fns(id).forget_samples)(&mut entity);
        }
    }
    if !inserted.is_empty() {
        insert(world, entity, |world, out| {
            for &id in &inserted {
                (fns(id).assemble_drawn)(world, entity, playback, out);
            }
        });
    }
    if let Some(parent) = parent {
        reparent(world, net, parent);
    }
}
