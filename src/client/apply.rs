//! From snapshots to the client's world.
//!
//! A snapshot is taken in two steps. First it is read, while nothing of the game runs, and becomes a plan: which copies
//! come, change and go, and in what order. Then the plan is carried out, with the client's own state in the world, since
//! observers of the game run in between.

use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;

use super::component;
use super::connection::connected;
use super::copies::{self, Update};
use super::early;
use super::link::Link;
use super::mirror::Mirror;
use super::predict;
use super::stats::ClientStats;
use super::types::ClientTypes;
use crate::protocol::layout::NetId;
use crate::protocol::replica::{Change, SnapshotError, Taken};
use crate::registry::{ComponentRule, Registry};
use crate::replication::SpawnKey;
use crate::schedule::{CurrentTick, TandemSystems};
use crate::tick::{Tick, Ticks};

/// Applies snapshots to the world.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplicationPlugin;

impl Plugin for ReplicationPlugin {
    fn build(&self, app: &mut App) {
        app.add_systems(
            PreUpdate,
            apply_snapshots
                .in_set(TandemSystems::Apply)
                .run_if(connected),
        );
    }

    fn finish(&self, app: &mut App) {
        let layouts = Registry::freeze(app);
        component::register(app.world_mut());
        let mirror = Mirror::new(app.world_mut(), layouts);
        app.insert_resource(mirror);
        for fns in ClientTypes::of(app).components.clone().iter() {
            (fns.install)(app);
        }
    }
}

pub(crate) fn install<C: Component + Clone>(app: &mut App) {
    let rule = app.world().resource::<ComponentRule<C>>();
    let install_interpolation = rule.interpolation.as_ref().map(|rule| rule.install);
    if rule.predicted {
        predict::install::<C>(app);
    }
    if let Some(install) = install_interpolation {
        install(app);
    }
}

/// Takes every snapshot that came, and brings the world up to date.
pub(super) fn apply_snapshots(world: &mut World) {
    let mut link = world.resource_mut::<Link>();
    let snapshots = std::mem::take(&mut link.snapshots);
    let values = std::mem::take(&mut link.values);
    for value in values {
        let mirror = &mut *world.resource_mut::<Mirror>();
        mirror.replica.handle_apart(value, &mut mirror.changes);
        let tick = mirror.replica.newest().unwrap_or(mirror.anchor);
        carry_out(world, tick);
    }
    for (seq, snapshot) in snapshots {
        let mirror = &mut *world.resource_mut::<Mirror>();
        let (replica, changes) = (&mut mirror.replica, &mut mirror.changes);
        match replica.handle_snapshot(mirror.anchor, &snapshot, changes) {
            Ok(taken) => {
                carry_out(world, taken.header.tick);
                take_note(world, taken);
            }
            Err(error) => {
                world.resource_mut::<ClientStats>().snapshots_dropped += 1;
                // What is not taken must not be built upon.
                if let Some(mut link) = world.get_resource_mut::<Link>() {
                    link.peer.acks.withhold(seq);
                }
                if !matches!(error, SnapshotError::Stale | SnapshotError::GivenUp) {
                    debug!("a snapshot is not taken: {error}");
                }
            }
        }
    }
    predict::reconcile(world);
    copies::despawn_due(world);
}

/// Tells clocks and statistics of a snapshot.
fn take_note(world: &mut World, Taken { header, complete }: Taken) {
    if complete {
        despawn_unconfirmed(world, header.tick);
    }
    if !world.contains_resource::<Link>() {
        return; // an observer has left
    }
    let now = world.resource::<Time<Real>>().elapsed();
    world.resource_scope(|world, mut link: Mut<Link>| {
        let goes_on = |still: Tick| header.tick.is_newer_than(still);
        link.standstill = link.standstill.filter(|&still| !goes_on(still));
        let rtt = link.peer.acks.rtt().unwrap_or_default();
        let jitter = link.peer.acks.jitter().unwrap_or_default();
        link.timeline.set_send_interval(Ticks(
            header
                .tick
                .distance_from(header.previous)
                .clamp(1, 60)
                .cast_unsigned(),
        ));
        match link.standstill {
            Some(_) => link.timeline.handle_snapshot_in_standstill(header.tick),
            None => link
                .timeline
                .handle_snapshot(now, header.tick, header.previous),
        }
        let mut stats = world.resource_mut::<ClientStats>();
        stats.snapshots += 1;
        let (mut margin, mut newest) = (None, None);
        if let Some(inputs) = header.inputs {
            (margin, newest) = (inputs.margin, Some(inputs.newest));
            stats.count_late(inputs.late);
            if let Some(margin) = inputs.margin {
                stats.input_margin = f32::from(margin);
            }
        }
        if let Some(newest) = newest {
            world
                .resource_mut::<super::inputs::SentInputs>()
                .history
                .handle_ack(newest);
        }
        if link.is_synchronised {
            if link.standstill.is_none() {
                link.clock
                    .handle_snapshot(now, header.tick, margin, newest, rtt, jitter);
            }
        } else {
            world.resource_mut::<CurrentTick>().0 = link.clock.start(header.tick, rtt, jitter);
            link.is_synchronised = true;
        }
    });
}

/// The server has told everything that there is, so what it did not mention is gone.
fn despawn_unconfirmed(world: &mut World, tick: Tick) {
    let mut mirror = world.resource_mut::<Mirror>();
    if mirror.unconfirmed.is_empty() {
        return;
    }
    for net in std::mem::take(&mut mirror.unconfirmed) {
        copies::leave(world, net, tick);
    }
    copies::despawn_all_leaving(world);
}

/// What snapshots have changed, in the order in which it is done.
#[derive(Default)]
struct Plan {
    /// Parents first.
    spawned: Vec<NetId>,
    /// Their copies were about to leave, and stay: who came meanwhile and names them does not know yet.
    returned: Vec<NetId>,
    updates: Vec<Update>,
    gone: Vec<NetId>,
}

/// Does what the mirror's changes say.
fn carry_out(world: &mut World, tick: Tick) {
    let mirror = world.resource::<Mirror>();
    if mirror.changes.is_empty() && mirror.held.is_empty() {
        return;
    }
    let plan = plan(world, tick);
    copies::spawn_all(world, &plan.spawned, tick);
    for update in &plan.updates {
        copies::update(world, update, tick);
    }
    copies::retell_names(world, &plan.spawned, tick);
    copies::retell_names(world, &plan.returned, tick);
    for &net in &plan.gone {
        copies::leave(world, net, tick);
    }
}

/// Sorts changes by entity, and gives those that come entities of their own: so all can name each other.
fn plan(world: &mut World, tick: Tick) -> Plan {
    let mirror = &mut *world.resource_mut::<Mirror>();
    let mut plan = Plan::default();
    let mut fresh = std::mem::take(&mut mirror.held);
    let mut whole = None;
    let changes = std::mem::take(&mut mirror.changes);
    for &change in &changes {
        match change {
            Change::StartedOver => {
                fresh.clear();
                mirror.doubt_everything();
            }
            Change::Spawned(net) => {
                whole = Some(net);
                if mirror.leaving.contains_key(&net) {
                    plan.returned.push(net);
                }
                match find_again(mirror, net) {
                    true => plan.updates.push(Update::whole(mirror, net)),
                    false => fresh.push((net, tick)),
                }
            }
            // Told as a whole.
            Change::MetaChanged(net) | Change::Set(net, _) | Change::Removed(net, _)
                if whole == Some(net) => {}
            Change::MetaChanged(net) => update_of(&mut plan.updates, net).meta = true,
            Change::Set(net, id) => update_of(&mut plan.updates, net).set.push(id),
            Change::Removed(net, id) => update_of(&mut plan.updates, net).removed.push(id),
            Change::Despawned(net) => {
                fresh.retain(|&(held, _)| held != net);
                plan.gone.push(net);
            }
        }
    }
    mirror.changes = changes;
    mirror.changes.clear();
    plan.spawned = enter(world, fresh, tick);
    plan
}

/// The update of an entity. What a snapshot says of one comes in a row.
fn update_of(updates: &mut Vec<Update>, net: NetId) -> &mut Update {
    if updates.last().is_none_or(|last| last.net != net) {
        updates.push(Update::new(net));
    }
    updates
        .last_mut()
        .expect("one was pushed if there was none")
}

/// Whether an entity that the server tells as new has a copy still: from before everything was told anew, or since it
/// was gone for so short that nobody has seen it.
fn find_again(mirror: &mut Mirror, net: NetId) -> bool {
    if let Some(leaving) = mirror.leaving.remove(&net) {
        mirror.locals.insert(net, leaving.local);
        mirror.set_predicted(net, leaving.local.role);
    } else if !mirror.unconfirmed.remove(&net) {
        return false;
    }
    mirror.unschedule(net);
    if let Some(local) = mirror.locals.get_mut(&net) {
        local.is_early = false;
        local.is_fresh = true;
    }
    true
}

/// How long an entity waits for a parent that may still come, in ticks.
const LONGEST_WAIT: i32 = 60;

/// Lets those in whose parents are here, or not to be expected: a child that is shown before its parent would be shown in
/// the wrong place. Parents come first.
fn enter(world: &mut World, fresh: Vec<(NetId, Tick)>, tick: Tick) -> Vec<NetId> {
    if fresh.is_empty() {
        return Vec::new();
    }
    let since: HashMap<_, _> = fresh.iter().copied().collect();
    let order = copies::parents_first(world, since.keys().copied().collect());
    let mut entering = HashSet::with_capacity(order.len());
    let mut held = Vec::new();
    let mut entered = Vec::with_capacity(order.len());
    for net in order {
        let mirror = world.resource::<Mirror>();
        let parent = copies::parent_of(world, net);
        let may_come = |parent: NetId| {
            !entering.contains(&parent)
                && !mirror.locals.contains_key(&parent)
                && !mirror.is_complete_at(since[&net])
                && tick.distance_from(since[&net]) < LONGEST_WAIT
        };
        if parent.is_some_and(may_come) {
            held.push((net, since[&net]));
            continue;
        }
        entering.insert(net);
        entered.push(net);
        let early = early_copy(world, net);
        let entity = early.unwrap_or_else(|| world.entity_allocator_mut().alloc());
        world
            .resource_mut::<Mirror>()
            .enter(net, entity, early.is_some());
    }
    world.resource_mut::<Mirror>().held = held;
    entered
}

/// The entity that this client has spawned for it already.
fn early_copy(world: &mut World, net: NetId) -> Option<Entity> {
    let mirror = world.resource::<Mirror>();
    let value = mirror.replica.entity(net)?.value(mirror.spawn_key())?;
    let rule = world.resource::<ComponentRule<SpawnKey>>();
    let key = rule.load(value, &|_| None, &mut |_| {})?;
    early::claim(world, key)
}
