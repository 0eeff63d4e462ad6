//! What a snapshot changes on a copy.

use bevy::ecs::component::ComponentId as BevyId;
use bevy::platform::collections::HashSet;
use bevy::prelude::*;
use smallvec::SmallVec;

use super::parents::{parent_of, reparent};
use super::role::set_role;
use crate::client::component::{Arrival, Finder, insert};
use crate::client::interpolate::Playhead;
use crate::client::mirror::{ComponentSet, Event, Local, Mirror, Role, Scheduled};
use crate::client::types::ClientTypes;
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::replica::ReplicaEntity;
use crate::tick::Tick;

/// What a snapshot says of one entity.
#[derive(Debug)]
pub(in crate::client) struct Update {
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
pub(in crate::client) fn update(world: &mut World, update: &Update, tick: Tick) {
    if is_only_compared(world.resource::<Mirror>(), update) {
        return;
    }
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
    named.extend(insert_all(world, net, &local, &orders.inserted, tick));
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

/// Whether all that is told are new values of predicted components: reconciliation looks at them.
fn is_only_compared(mirror: &Mirror, update: &Update) -> bool {
    if update.meta || update.is_anew || !update.removed.is_empty() {
        return false;
    }
    let local = mirror.locals.get(&update.net);
    local.is_some_and(|local| {
        local.role == Role::Predicted
            && update.set.iter().all(|&id| {
                let kind = mirror.kind(id);
                kind.predicted && !kind.may_name && local.told.contains(id)
            })
    })
}

/// Inserts components together; says which entities they name.
fn insert_all(
    world: &mut World,
    net: NetId,
    local: &Local,
    components: &[ComponentId],
    tick: Tick,
) -> SmallVec<[(ComponentId, SmallVec<[NetId; 2]>); 4]> {
    let mut named = SmallVec::new();
    if components.is_empty() {
        return named;
    }
    insert(world, local.entity, |world, out| {
        let mirror = world.resource::<Mirror>();
        let types = &world.resource::<ClientTypes>().components;
        for &id in components {
            let Some(value) = mirror.replica.entity(net).and_then(|it| it.value(id)) else {
                continue;
            };
            let finder = Finder::new(mirror);
            let is_predicted = local.role == Role::Predicted && mirror.kind(id).predicted;
            let since = is_predicted.then_some(tick);
            (types[usize::from(id.0)].assemble)(world, value, &finder, since, out);
            named.push((id, finder.take_asked()));
        }
    });
    named
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
pub(super) fn remove(world: &mut World, entity: Entity, components: &[ComponentId]) {
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

/// Tells those components again that name entities which are here now.
pub(in crate::client) fn retell_names(world: &mut World, spawned: &[NetId], tick: Tick) {
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
