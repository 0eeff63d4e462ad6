//! From snapshots to the client's world.

use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;

use super::connection::connected;
use super::interpolate::{self, Playhead};
use super::link::Link;
use super::predict::{self, PredictionFns};
use super::stats::ClientStats;
use crate::protocol::layout::{ComponentId, Layouts, Meta, NetId, PredictedBy};
use crate::protocol::replica::{Change, Replica, ReplicaEntity, SnapshotError, Taken, ValueRef};
use crate::registry::{ComponentRule, Registry};
use crate::replication::{Interpolated, Owned, Owner, Predicted, Replicated, Simulated, SpawnKey};
use crate::schedule::{CurrentTick, TandemSystems};
use crate::session::SessionId;
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
        app.insert_resource(Mirror::new(layouts));
        for entry in app.world().resource::<Registry>().components.clone().iter() {
            (entry.install_client)(app);
        }
    }
}

/// What the client knows of the server's world, and which of its own entities stand for it.
#[derive(Resource)]
pub(crate) struct Mirror {
    layouts: Layouts,
    replica: Replica,
    session: SessionId,
    anchor: Tick,
    locals: HashMap<NetId, Local>,
    nets: HashMap<Entity, NetId>,
    /// Those of [`Self::locals`] that are predicted.
    predicted: HashSet<NetId>,
    /// Components that name an entity which is not here yet, by that entity.
    waiting: HashMap<NetId, HashSet<(NetId, ComponentId)>>,
    /// Copies that stay until playback reaches the tick in which they went.
    leaving: Vec<(Tick, Entity)>,
    previous_snapshot: Option<Tick>,
    /// Copies from before the link was lost, of which the server has not spoken since.
    unconfirmed: HashSet<NetId>,
    /// A snapshot could not be used, though it was acknowledged: the client must be told everything again.
    needs_resync: bool,
    changes: Vec<Change>,
}

/// The entity that stands for one of the server's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    pub entity: Entity,
    pub role: Role,
    /// The newest tick of the server's for which the prediction was compared.
    pub checked: Option<Tick>,
    /// This client had spawned it before the server did, and goes on predicting it.
    pub is_early: bool,
    /// Its prediction has still to be brought from the server's past to the client's present.
    pub is_fresh: bool,
    /// Since when this client's own simulation has despawned it, at the latest.
    pub gone_since: Option<Tick>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Predicted,
    Interpolated,
}

/// An entity that stands for one of the server's.
#[derive(Component)]
pub(super) struct Mirrored;

/// A value that came for an entity.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub entity: Entity,
    pub role: Role,
    pub tick: Tick,
    /// Until when the value before is known to have held.
    pub held: Tick,
}

impl Mirror {
    fn new(layouts: Layouts) -> Self {
        Self {
            replica: Replica::new(layouts.clone(), 0),
            layouts,
            session: SessionId(0),
            anchor: Tick(0),
            locals: HashMap::default(),
            nets: HashMap::default(),
            predicted: HashSet::default(),
            waiting: HashMap::default(),
            leaving: Vec::new(),
            previous_snapshot: None,
            unconfirmed: HashSet::default(),
            needs_resync: false,
            changes: Vec::new(),
        }
    }

    /// Starts with nothing, as `session`.
    pub fn begin(world: &mut World, session: SessionId, anchor: Tick, max_entities: usize) {
        Self::end(world);
        let mut mirror = world.resource_mut::<Self>();
        mirror.replica = Replica::new(mirror.layouts.clone(), max_entities);
        mirror.session = session;
        mirror.anchor = anchor;
    }

    /// Lets predicted copies stand still: there is no link, and so nothing that would correct them.
    pub fn freeze(world: &mut World) {
        let Some(mirror) = world.get_resource::<Self>() else {
            return;
        };
        let predicted: Vec<_> = mirror.predicted().map(|(_, local)| local.entity).collect();
        for entity in predicted {
            if let Ok(mut entity) = world.get_entity_mut(entity) {
                entity.remove::<Simulated>();
            }
        }
        predict::forget_early_copies(world);
    }

    /// Goes on over a new link: the server tells everything anew, and what it still has keeps its entity.
    pub fn resume(world: &mut World, anchor: Tick, max_entities: usize) {
        let mut mirror = world.resource_mut::<Self>();
        mirror.replica = Replica::new(mirror.layouts.clone(), max_entities);
        mirror.anchor = anchor;
        mirror.previous_snapshot = None;
        mirror.needs_resync = false;
        mirror.waiting.clear();
        mirror.unconfirmed = mirror.locals.keys().copied().collect();
        for (_, entity) in std::mem::take(&mut mirror.leaving) {
            world.try_despawn(entity).ok();
        }
    }

    /// Removes all copies.
    pub fn end(world: &mut World) {
        let Some(mut mirror) = world.get_resource_mut::<Self>() else {
            return;
        };
        let emptied = Self::new(mirror.layouts.clone());
        let before = std::mem::replace(&mut *mirror, emptied);
        let leaving = before.leaving.into_iter().map(|(_, entity)| entity);
        for entity in before
            .locals
            .into_values()
            .map(|local| local.entity)
            .chain(leaving)
        {
            world.try_despawn(entity).ok();
        }
        predict::forget_early_copies(world);
    }

    /// The entity that stands for one of the server's.
    pub fn entity(&self, net: NetId) -> Option<Entity> {
        self.locals.get(&net).map(|local| local.entity)
    }

    /// The server's name for an entity.
    pub fn net_id(&self, entity: Entity) -> Option<NetId> {
        self.nets.get(&entity).copied()
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    pub fn locals(&self) -> &HashMap<NetId, Local> {
        &self.locals
    }

    /// The predicted ones.
    pub fn predicted(&self) -> impl Iterator<Item = (NetId, &Local)> {
        self.predicted
            .iter()
            .filter_map(|&net| Some((net, self.locals.get(&net)?)))
    }

    /// A prediction was compared with the server's state of this tick.
    pub fn note_checked(&mut self, net: NetId, tick: Tick) {
        if let Some(local) = self.locals.get_mut(&net) {
            local.checked = Some(tick);
            local.is_fresh = false;
        }
    }

    /// The predicted ones, to be changed, and what the server says of them.
    pub fn predicted_mut(&mut self, mut visit: impl FnMut(NetId, &mut Local, &Replica)) {
        for &net in &self.predicted {
            if let Some(local) = self.locals.get_mut(&net) {
                visit(net, local, &self.replica);
            }
        }
    }

    /// The clock has jumped: what was predicted belongs to other ticks.
    pub fn start_predictions_over(&mut self) {
        for local in self
            .locals
            .values_mut()
            .filter(|local| local.role == Role::Predicted)
        {
            local.is_fresh = true;
            local.checked = None;
        }
    }

    /// Whether snapshots have become unusable. Says so once.
    pub fn wants_resync(&mut self) -> bool {
        std::mem::take(&mut self.needs_resync)
    }

    fn role_of(&self, meta: Meta) -> Role {
        match meta.predicted_by {
            PredictedBy::Owner if meta.owner == Some(self.session.0) => Role::Predicted,
            PredictedBy::Everyone => Role::Predicted,
            _ => Role::Interpolated,
        }
    }
}

/// Client-side work on one component type.
#[derive(Clone, Copy)]
pub(crate) struct ComponentFns {
    receive: fn(&mut World, Arrival, ValueRef, &HashMap<NetId, Local>, &mut Vec<NetId>),
    remove: fn(&mut EntityWorldMut),
    pub(super) predict: PredictionFns,
}

impl ComponentFns {
    pub const fn of<C: Component + Clone>() -> Self {
        Self {
            receive: receive::<C>,
            remove: |entity| {
                entity.remove::<C>();
            },
            predict: PredictionFns::of::<C>(),
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

/// Puts a value that came where it belongs.
fn receive<C: Component + Clone>(
    world: &mut World,
    arrival: Arrival,
    value: ValueRef,
    locals: &HashMap<NetId, Local>,
    unknown: &mut Vec<NetId>,
) {
    let rule = world.resource::<ComponentRule<C>>();
    let find = |net: NetId| locals.get(&net).map(|local| local.entity);
    let Some(value) = rule.load(value, &find, &mut |net| unknown.push(net)) else {
        return;
    };
    let (is_predicted, is_interpolated, set) =
        (rule.predicted, rule.interpolation.is_some(), rule.setter());
    let Ok(mut entity) = world.get_entity_mut(arrival.entity) else {
        return;
    };
    match arrival.role {
        // Compared with the prediction later, unless there is none yet.
        Role::Predicted if is_predicted => {
            if !entity.contains::<predict::History<C>>() {
                predict::begin(&mut entity, arrival.tick, value, set);
            }
        }
        Role::Interpolated if is_interpolated && entity.contains::<C>() => {
            interpolate::push(&mut entity, arrival.tick, arrival.held, value);
        }
        _ => set(&mut entity, value),
    }
}

/// Takes every snapshot that came, and brings the world up to date.
fn apply_snapshots(world: &mut World) {
    world.resource_scope(|world, mut mirror: Mut<Mirror>| {
        let (snapshots, values) = {
            let mut link = world.resource_mut::<Link>();
            (
                std::mem::take(&mut link.snapshots),
                std::mem::take(&mut link.values),
            )
        };
        for value in values {
            let mut changes = std::mem::take(&mut mirror.changes);
            mirror.replica.handle_apart(value, &mut changes);
            let tick = mirror.replica.newest().unwrap_or(mirror.anchor);
            apply_changes(world, &mut mirror, &changes, tick);
            changes.clear();
            mirror.changes = changes;
        }
        for snapshot in snapshots {
            let mut changes = std::mem::take(&mut mirror.changes);
            let anchor = mirror.anchor;
            let outcome = mirror
                .replica
                .handle_snapshot(anchor, &snapshot, &mut changes);
            let tick = match &outcome {
                Ok(taken) => taken.header.tick,
                Err(_) => mirror.replica.newest().unwrap_or(anchor),
            };
            apply_changes(world, &mut mirror, &changes, tick);
            changes.clear();
            mirror.changes = changes;
            match outcome {
                Ok(taken) => take_note(world, &mut mirror, taken),
                Err(error) => {
                    world.resource_mut::<ClientStats>().snapshots_dropped += 1;
                    if error != SnapshotError::Stale {
                        debug!("a snapshot is not taken: {error}");
                        mirror.needs_resync = true;
                    }
                }
            }
        }
        predict::reconcile(world, &mut mirror);
    });
}

/// Tells clocks and statistics of a snapshot.
fn take_note(world: &mut World, mirror: &mut Mirror, Taken { header, complete }: Taken) {
    mirror.previous_snapshot = Some(header.tick);
    if complete {
        despawn_unconfirmed(world, mirror);
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
fn despawn_unconfirmed(world: &mut World, mirror: &mut Mirror) {
    for net in std::mem::take(&mut mirror.unconfirmed) {
        if let Some(local) = mirror.locals.remove(&net) {
            mirror.nets.remove(&local.entity);
            mirror.predicted.remove(&net);
            world.try_despawn(local.entity).ok();
        }
    }
}

fn apply_changes(world: &mut World, mirror: &mut Mirror, changes: &[Change], tick: Tick) {
    let entries = world.resource::<Registry>().components.clone();
    let mut unknown = Vec::new();
    let held = mirror.previous_snapshot.unwrap_or(tick);
    for &change in changes {
        match change {
            Change::Spawned(net) if mirror.unconfirmed.remove(&net) => {
                find_again(world, mirror, net, tick);
            }
            Change::Spawned(net) => spawn(world, mirror, net, tick),
            Change::MetaChanged(net) => set_role(world, mirror, net, tick),
            Change::Set(net, component) => {
                let Some(&local) = mirror.locals.get(&net) else {
                    continue;
                };
                let Some(value) = mirror
                    .replica
                    .entity(net)
                    .and_then(|entity| entity.value(component))
                else {
                    continue;
                };
                let arrival = Arrival {
                    entity: local.entity,
                    role: local.role,
                    tick,
                    held,
                };
                let entry = &entries[usize::from(component.0)];
                (entry.client.receive)(world, arrival, value, &mirror.locals, &mut unknown);
                for missing in unknown.drain(..) {
                    mirror
                        .waiting
                        .entry(missing)
                        .or_default()
                        .insert((net, component));
                }
            }
            Change::Removed(net, component) => {
                let Some(local) = mirror.locals.get(&net) else {
                    continue;
                };
                let entry = &entries[usize::from(component.0)];
                // A predicted component is taken away by reconciliation, if the prediction did not do it already.
                let is_predicted = local.role == Role::Predicted && (entry.is_predicted)(world);
                if !is_predicted && let Ok(mut entity) = world.get_entity_mut(local.entity) {
                    (entry.client.remove)(&mut entity);
                }
            }
            Change::Despawned(net) => {
                let Some(local) = mirror.locals.remove(&net) else {
                    continue;
                };
                mirror.nets.remove(&local.entity);
                mirror.predicted.remove(&net);
                match local.role {
                    Role::Interpolated => mirror.leaving.push((tick, local.entity)),
                    Role::Predicted => {
                        world.try_despawn(local.entity).ok();
                    }
                }
            }
        }
    }
}

/// Makes the entity that stands for one of the server's, or finds the early copy that was spawned for it.
fn spawn(world: &mut World, mirror: &mut Mirror, net: NetId, tick: Tick) {
    let key = mirror.replica.entity(net).and_then(|entity| {
        let rule = world.resource::<ComponentRule<SpawnKey>>();
        rule.load(entity.value(rule.id)?, &|_| None, &mut |_| {})
    });
    let early = key.and_then(|key| predict::claim_early_copy(world, key));
    let entity = early.unwrap_or_else(|| world.spawn((Replicated, Mirrored)).id());
    let meta = mirror
        .replica
        .entity(net)
        .map(|entity| entity.meta)
        .unwrap_or_default();
    let local = Local {
        entity,
        role: if early.is_some() {
            Role::Predicted
        } else {
            mirror.role_of(meta)
        },
        checked: None,
        is_early: early.is_some(),
        // An early copy is in the client's present already.
        is_fresh: early.is_none(),
        gone_since: None,
    };
    mirror.locals.insert(net, local);
    mirror.nets.insert(entity, net);
    set_role(world, mirror, net, tick);
    // Components that were waiting for this one can name it now.
    let Some(waiting) = mirror.waiting.remove(&net) else {
        return;
    };
    let retold: Vec<_> = waiting
        .into_iter()
        .filter(|(other, _)| mirror.locals.contains_key(other))
        .map(|(other, component)| Change::Set(other, component))
        .collect();
    apply_changes(world, mirror, &retold, tick);
}

/// An entity from before the link was lost is still there.
fn find_again(world: &mut World, mirror: &mut Mirror, net: NetId, tick: Tick) {
    let Some(local) = mirror.locals.get_mut(&net) else {
        return;
    };
    local.checked = None;
    local.is_fresh = true;
    local.is_early = false;
    local.gone_since = None;
    let entity = local.entity;
    if world.get_entity(entity).is_err() {
        // The game has despawned its copy meanwhile.
        respawn(world, mirror, net);
        return;
    }
    predict::forget(world, entity);
    // What it has lost while nobody could tell this client.
    let kept = mirror.replica.entity(net);
    let removed: Vec<_> = world
        .resource::<Registry>()
        .components
        .iter()
        .enumerate()
        .filter(|(index, _)| {
            let id = ComponentId(*index as u8);
            kept.is_none_or(|kept| !kept.has(id))
        })
        .map(|(_, entry)| entry.client.remove)
        .collect();
    if let Ok(mut entity) = world.get_entity_mut(entity) {
        for remove in removed {
            remove(&mut entity);
        }
    }
    set_role(world, mirror, net, tick);
}

/// Makes the entity that stands for one of the server's anew, and tells it all its values.
pub(super) fn respawn(world: &mut World, mirror: &mut Mirror, net: NetId) {
    let tick = mirror.replica.newest().unwrap_or(mirror.anchor);
    if let Some(local) = mirror.locals.remove(&net) {
        mirror.nets.remove(&local.entity);
    }
    spawn(world, mirror, net, tick);
    retell(world, mirror, net, tick);
}

/// Applies all values of an entity again.
fn retell(world: &mut World, mirror: &mut Mirror, net: NetId, tick: Tick) {
    let values = mirror
        .replica
        .entity(net)
        .into_iter()
        .flat_map(ReplicaEntity::values);
    let retold: Vec<_> = values
        .map(|(component, _)| Change::Set(net, component))
        .collect();
    apply_changes(world, mirror, &retold, tick);
}

/// Marks an entity as what it is to this client.
fn set_role(world: &mut World, mirror: &mut Mirror, net: NetId, tick: Tick) {
    let Some(meta) = mirror.replica.entity(net).map(|entity| entity.meta) else {
        return;
    };
    let wanted = mirror.role_of(meta);
    let is_owned = meta.owner == Some(mirror.session.0);
    let Some(local) = mirror.locals.get_mut(&net) else {
        return;
    };
    let role = if local.is_early {
        Role::Predicted
    } else {
        wanted
    };
    match role {
        Role::Predicted => mirror.predicted.insert(net),
        Role::Interpolated => mirror.predicted.remove(&net),
    };
    let inputs = world.resource::<Registry>().inputs.clone();
    let Ok(mut entity) = world.get_entity_mut(local.entity) else {
        return;
    };
    match meta.owner {
        Some(owner) => entity.insert(Owner(SessionId(owner))),
        None => entity.remove::<Owner>(),
    };
    if is_owned {
        for input in inputs.iter() {
            (input.insert_default)(&mut entity);
        }
        entity.insert(Owned);
    } else if entity.contains::<Owned>() {
        for input in inputs.iter() {
            (input.remove)(&mut entity);
        }
        entity.remove::<Owned>();
    }
    match role {
        Role::Predicted => {
            entity
                .remove::<Interpolated>()
                .insert((Predicted, Simulated));
        }
        Role::Interpolated => {
            entity
                .remove::<(Predicted, Simulated)>()
                .insert(Interpolated);
        }
    }
    if local.role != role {
        local.role = role;
        local.checked = None;
        local.is_fresh = true;
        let entity = local.entity;
        predict::forget(world, entity);
        retell(world, mirror, net, tick);
    }
}

/// Despawns copies once playback has shown their end.
pub(super) fn despawn_leaving(
    mut mirror: ResMut<Mirror>,
    playhead: Res<Playhead>,
    mut commands: Commands,
) {
    let Some(playback) = playhead.0 else { return };
    mirror.leaving.retain(|&(tick, entity)| {
        let is_over = !tick.is_newer_than(playback.tick);
        if is_over {
            commands.entity(entity).try_despawn();
        }
        !is_over
    });
}
