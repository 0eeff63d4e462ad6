//! Prediction and reconciliation.
//!
//! Predicted entities are simulated ahead of the server by the same systems that it runs. What they were in recent
//! ticks is kept; when a snapshot says what the server made of one of those ticks and it differs, they are set back
//! to that tick and the ticks since are simulated again, with the inputs that were used then.
//!
//! Each entity is compared on its own as soon as it is heard of, so loss delays only what was lost. Nothing is ever
//! refused: state too old to be replayed from is adopted as it is.

use std::collections::VecDeque;
use std::time::Duration;

use bevy::app::FixedMain;
use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;

use super::apply::{self, Local, Mirror, Mirrored};
use super::interpolate::Buffer;
use super::smooth;
use super::stats::ClientStats;
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::replica::ValueRef;
use crate::registry::{ComponentRule, Registry};
use crate::replication::{Predicted, Simulated, SpawnKey};
use crate::schedule::{CurrentTick, Replaying};
use crate::tick::{Tick, Ticks};

/// Predicts, and corrects.
#[derive(Clone, Copy, Debug)]
pub struct PredictionPlugin {
    /// How many ticks may be replayed. Default 60: a second, which covers round trips of 900 ms; at most 64, which is
    /// how many inputs are remembered. State that is older is adopted, and what is seen jumps.
    pub max_rollback: Ticks,
    /// Time in which two thirds of a correction are hidden. Default 100 ms: gone before one looks twice.
    pub smoothing: Duration,
    /// Corrections above this many units are not hidden: what is seen jumps. Default 5.
    pub snap_distance: f32,
}

impl Default for PredictionPlugin {
    fn default() -> Self {
        Self {
            max_rollback: Ticks(60),
            smoothing: Duration::from_millis(100),
            snap_distance: 5.0,
        }
    }
}

impl Plugin for PredictionPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(PredictionSettings {
            max_rollback: self.max_rollback,
            smoothing: self.smoothing,
            snap_distance: self.snap_distance,
        })
        .init_resource::<EarlyCopies>()
        .add_observer(notice_early_copy);
    }
}

/// [`PredictionPlugin`], at run time.
#[derive(Resource)]
pub(super) struct PredictionSettings {
    pub max_rollback: Ticks,
    pub smoothing: Duration,
    pub snap_distance: f32,
}

/// What a component was in recent ticks; `None` where the entity did not have it.
#[derive(Component)]
pub(super) struct History<C: Send + Sync + 'static> {
    start: Tick,
    values: VecDeque<Option<C>>,
    /// The entity is known not to have had it before `start`: this client's simulation inserted it.
    is_inserted: bool,
}

/// Twice the longest replay, since the newest ticks are ahead of what comes from the server.
const MAX_HISTORY: usize = 128;

impl<C: Clone + Send + Sync + 'static> History<C> {
    fn new(start: Tick) -> Self {
        Self {
            start,
            values: VecDeque::new(),
            is_inserted: false,
        }
    }

    fn inserted(tick: Tick, value: C) -> Self {
        Self {
            start: tick,
            values: VecDeque::from([Some(value)]),
            is_inserted: true,
        }
    }

    /// The value at the end of a tick; the outer `None` when that is not known.
    pub fn at(&self, tick: Tick) -> Option<Option<&C>> {
        match usize::try_from(tick.distance_from(self.start)) {
            Ok(index) => self.values.get(index).map(Option::as_ref),
            Err(_) => self.is_inserted.then_some(None),
        }
    }

    /// Sets the value of a tick, and forgets those after it.
    fn record(&mut self, tick: Tick, value: Option<C>) {
        match usize::try_from(tick.distance_from(self.start)) {
            Ok(index) if index <= self.values.len() => self.values.truncate(index),
            // The clock was set: what was before is not connected to this.
            _ => *self = Self::new(tick),
        }
        self.values.push_back(value);
        if self.values.len() > MAX_HISTORY {
            self.values.pop_front();
            self.start += Ticks(1);
            self.is_inserted = false;
        }
    }
}

/// Prediction of one component type.
#[derive(Clone, Copy)]
pub(crate) struct PredictionFns {
    compare: fn(&World, Entity, Tick, Option<ValueRef>, &HashMap<NetId, Local>) -> Comparison,
    /// Sets the component, and its history, to what the server says it was.
    adopt: fn(&mut World, Entity, Tick, Option<ValueRef>, &HashMap<NetId, Local>),
    /// Sets the component to what it was predicted to be.
    rewind: fn(&mut World, Entity, Tick),
    /// The first tick that is known; `None` when that does not tell when the entity came to be.
    start: fn(&World, Entity) -> Option<Tick>,
    begin_here: fn(&mut EntityWorldMut, Tick),
    /// Moves the component from an entity that a replay has spawned to the one that it had spawned before.
    begin_again: fn(&mut World, from: Entity, to: Entity, Tick),
    forget: fn(&mut EntityWorldMut),
    before_replay: fn(&mut EntityWorldMut),
    after_replay: fn(&mut World, Entity),
}

/// How a prediction compares with what the server says.
struct Comparison {
    is_wrong: bool,
    /// Distance in units, where the component has one.
    error: Option<f32>,
}

impl PredictionFns {
    pub const fn of<C: Component + Clone>() -> Self {
        Self {
            compare: compare::<C>,
            adopt: adopt::<C>,
            rewind: rewind::<C>,
            start: |world, entity| {
                let history = world.get::<History<C>>(entity)?;
                (!history.is_inserted).then_some(history.start)
            },
            begin_here: |entity, tick| {
                if entity.contains::<C>() && !entity.contains::<History<C>>() {
                    entity.insert(History::<C>::new(tick));
                }
            },
            begin_again: begin_again::<C>,
            forget: |entity| {
                entity.remove::<(History<C>, smooth::Smoothed<C>, Buffer<C>)>();
            },
            before_replay: smooth::before_replay::<C>,
            after_replay: smooth::after_replay::<C>,
        }
    }
}

pub(super) fn install<C: Component + Clone>(app: &mut App) {
    app.add_systems(FixedLast, record::<C>);
}

/// Keeps what the tick made of predicted components.
fn record<C: Component + Clone>(
    mut predicted: Query<(Entity, Option<&C>, Option<&mut History<C>>), With<Predicted>>,
    rule: Res<ComponentRule<C>>,
    tick: Res<CurrentTick>,
    replaying: Res<Replaying>,
    mut commands: Commands,
) {
    for (entity, value, history) in &mut predicted {
        let age = history
            .as_ref()
            .map(|history| tick.0.distance_from(history.start));
        let (Some(mut history), Some(age)) = (history, age) else {
            if let Some(value) = value {
                commands
                    .entity(entity)
                    .try_insert(History::inserted(tick.0, value.clone()));
            }
            continue;
        };
        if replaying.0 && history.is_inserted && age <= 0 {
            // The replay may insert it earlier than it was before, or later.
            match value {
                Some(value) => *history = History::inserted(tick.0, value.clone()),
                None if age == 0 => history.record(tick.0, None),
                None => {}
            }
            continue;
        }
        if replaying.0 && age < 0 {
            // The replay has not come to the tick in which this came to be.
            continue;
        }
        if replaying.0 && age == 0 && !history.values.is_empty() {
            history.values.truncate(1);
            if let Some(Some(first)) = history.values.front().cloned() {
                let set = rule.setter();
                commands.entity(entity).queue_handled(
                    move |mut entity: EntityWorldMut| set(&mut entity, first),
                    bevy::ecs::error::ignore,
                );
            }
            continue;
        }
        history.record(tick.0, value.cloned());
    }
}

/// The first value of a predicted component.
pub(super) fn begin<C: Component + Clone>(
    entity: &mut EntityWorldMut,
    tick: Tick,
    value: C,
    set: fn(&mut EntityWorldMut, C),
) {
    let mut history = History::new(tick);
    history.record(tick, Some(value.clone()));
    set(entity, value);
    entity.insert(history);
}

fn begin_again<C: Component + Clone>(world: &mut World, from: Entity, to: Entity, tick: Tick) {
    let value = world
        .get_entity_mut(from)
        .ok()
        .and_then(|mut entity| entity.take::<C>());
    let Ok(mut entity) = world.get_entity_mut(to) else {
        return;
    };
    match value {
        Some(value) => entity.insert((value, History::<C>::new(tick))),
        None => entity.remove::<(C, History<C>)>(),
    };
}

fn compare<C: Component + Clone>(
    world: &World,
    entity: Entity,
    tick: Tick,
    confirmed: Option<ValueRef>,
    locals: &HashMap<NetId, Local>,
) -> Comparison {
    let agrees = Comparison {
        is_wrong: false,
        error: None,
    };
    let differs = Comparison {
        is_wrong: true,
        error: None,
    };
    let Some(history) = world.get::<History<C>>(entity) else {
        return if confirmed.is_some() { differs } else { agrees };
    };
    let Some(predicted) = history.at(tick) else {
        return agrees;
    };
    let rule = world.resource::<ComponentRule<C>>();
    match (confirmed, predicted) {
        (None, None) => agrees,
        (Some(confirmed), Some(predicted)) => {
            let find = |net: NetId| locals.get(&net).map(|local| local.entity);
            let Some(value) = rule.load(confirmed, &find, &mut |_| {}) else {
                return agrees;
            };
            Comparison {
                is_wrong: rule.is_wrong(confirmed, &value, predicted),
                error: rule
                    .blend_fns()
                    .map(|blend| (blend.distance)(&value, predicted)),
            }
        }
        _ => differs,
    }
}

fn adopt<C: Component + Clone>(
    world: &mut World,
    entity: Entity,
    tick: Tick,
    confirmed: Option<ValueRef>,
    locals: &HashMap<NetId, Local>,
) {
    let rule = world.resource::<ComponentRule<C>>();
    let set = rule.setter();
    let find = |net: NetId| locals.get(&net).map(|local| local.entity);
    let value = confirmed.and_then(|confirmed| rule.load(confirmed, &find, &mut |_| {}));
    let Ok(mut entity) = world.get_entity_mut(entity) else {
        return;
    };
    let history = entity.get_mut::<History<C>>();
    if history.is_none() && value.is_none() {
        return;
    }
    let mut adopted = History::new(tick);
    adopted.record(tick, value.clone());
    entity.insert(adopted);
    match value {
        Some(value) => set(&mut entity, value),
        None => {
            entity.remove::<C>();
        }
    }
}

fn rewind<C: Component + Clone>(world: &mut World, entity: Entity, tick: Tick) {
    let set = world.resource::<ComponentRule<C>>().setter();
    let Ok(mut entity) = world.get_entity_mut(entity) else {
        return;
    };
    let Some(history) = entity.get::<History<C>>() else {
        return;
    };
    match history.at(tick).map(Option::<&C>::cloned) {
        Some(Some(value)) => set(&mut entity, value),
        Some(None) => {
            entity.remove::<C>();
        }
        None => {}
    }
}

/// Compares predictions with what the server says, and replays where they were wrong.
pub(super) fn reconcile(world: &mut World, mirror: &mut Mirror) {
    let entries: Vec<(ComponentId, PredictionFns)> = {
        let components = &world.resource::<Registry>().components;
        let entries = components.iter().enumerate();
        let predicted = entries.filter(|(_, entry)| (entry.is_predicted)(world));
        predicted
            .map(|(id, entry)| (ComponentId(id as u8), entry.client.predict))
            .collect()
    };
    if entries.is_empty() {
        return;
    }
    let now = world.resource::<CurrentTick>().0;
    revive(world, mirror, now);
    let Some(mistakes) = find_mistakes(world, mirror, &entries, now) else {
        expire_early_copies(world, mirror);
        return;
    };
    let distance = now.distance_from(mistakes.since);
    let max_rollback = world.resource::<PredictionSettings>().max_rollback;
    if distance < 0 || distance > max_rollback.0.cast_signed() {
        // Too far back to replay, or ahead of this client, whose clock is being set: take it as it is.
        for &(net, entity) in &mistakes.entities {
            adopt_all(world, mirror, &entries, net, entity, now);
        }
        world.resource_mut::<ClientStats>().snaps += u64::from(mistakes.is_real && distance > 0);
    } else {
        let wrong: HashMap<_, _> = mistakes
            .entities
            .iter()
            .map(|&(net, entity)| (entity, net))
            .collect();
        replay(world, mirror, &entries, mistakes.since, now, &wrong);
        let mut stats = world.resource_mut::<ClientStats>();
        stats.reconciliations += u64::from(mistakes.is_real);
        stats.replayed_ticks += distance.unsigned_abs() as u64;
    }
    expire_early_copies(world, mirror);
}

/// Brings back what this client's simulation has despawned and the server's has not.
fn revive(world: &mut World, mirror: &mut Mirror, now: Tick) {
    let mut mistaken = Vec::new();
    mirror.predicted_mut(|net, local, replica| {
        if world.get_entity(local.entity).is_ok() {
            return;
        }
        let gone_since = *local.gone_since.get_or_insert(now);
        let confirmed = replica.confirmed(net);
        if confirmed.is_some_and(|confirmed| confirmed.is_newer_than(gone_since)) {
            mistaken.push(net);
        }
    });
    for net in mistaken {
        apply::respawn(world, mirror, net);
    }
}

/// What has to be corrected.
struct Mistakes {
    /// The earliest tick from which something has to be replayed.
    since: Tick,
    entities: Vec<(NetId, Entity)>,
    /// Whether a prediction was wrong, rather than not made yet.
    is_real: bool,
}

fn find_mistakes(
    world: &mut World,
    mirror: &mut Mirror,
    entries: &[(ComponentId, PredictionFns)],
    now: Tick,
) -> Option<Mistakes> {
    let mut mistakes: Option<Mistakes> = None;
    let mut errors = Vec::new();
    let mut checked = Vec::new();
    for (net, local) in mirror.predicted() {
        let Some(confirmed) = mirror.replica().confirmed(net) else {
            continue;
        };
        // What is not there (any more) is no mistake until the server contradicts: see `revive`.
        if local.checked == Some(confirmed) || local.gone_since.is_some() {
            continue;
        }
        checked.push((net, confirmed));
        let mut is_wrong = local.is_fresh || confirmed.is_newer_than(now);
        if !is_wrong {
            let entity = mirror.replica().entity(net);
            for (id, fns) in entries {
                let value = entity.and_then(|entity| entity.value(*id));
                let comparison =
                    (fns.compare)(world, local.entity, confirmed, value, mirror.locals());
                if comparison.is_wrong {
                    debug!(
                        "{} of {}: the prediction for tick {confirmed} was wrong, by {:?} units",
                        world.resource::<Registry>().components[usize::from(id.0)].name,
                        local.entity,
                        comparison.error,
                    );
                }
                is_wrong |= comparison.is_wrong;
                errors.extend(comparison.error);
            }
        }
        if is_wrong {
            let is_real = !local.is_fresh;
            let found = mistakes.get_or_insert(Mistakes {
                since: confirmed,
                entities: Vec::new(),
                is_real,
            });
            found.since = found.since.earliest(confirmed);
            found.is_real |= is_real;
            found.entities.push((net, local.entity));
        }
    }
    for (net, confirmed) in checked {
        mirror.note_checked(net, confirmed);
    }
    let mut stats = world.resource_mut::<ClientStats>();
    for error in errors {
        stats.prediction_error.record(f64::from(error));
    }
    mistakes
}

fn adopt_all(
    world: &mut World,
    mirror: &Mirror,
    entries: &[(ComponentId, PredictionFns)],
    net: NetId,
    entity: Entity,
    tick: Tick,
) {
    for (id, fns) in entries {
        let value = mirror
            .replica()
            .entity(net)
            .and_then(|entity| entity.value(*id));
        (fns.adopt)(world, entity, tick, value, mirror.locals());
    }
}

/// Sets everything that is predicted back to the end of tick `since`, and simulates up to `now` again.
fn replay(
    world: &mut World,
    mirror: &Mirror,
    entries: &[(ComponentId, PredictionFns)],
    since: Tick,
    now: Tick,
    wrong: &HashMap<Entity, NetId>,
) {
    let mut predicted = world.query_filtered::<Entity, With<Predicted>>();
    let entities: Vec<_> = predicted.iter(world).collect();
    // What came to be after `since` takes part from then on. Early copies do so when they are spawned again.
    let mut unborn = Vec::new();
    for &entity in &entities {
        if let Ok(mut entity) = world.get_entity_mut(entity) {
            for (_, fns) in entries {
                (fns.before_replay)(&mut entity);
            }
        }
        match wrong.get(&entity) {
            // What came for a later tick than others is compared again with the next snapshot.
            Some(&net) if mirror.replica().confirmed(net) == Some(since) => {
                adopt_all(world, mirror, entries, net, entity, since);
            }
            _ => {
                let starts = entries
                    .iter()
                    .filter_map(|(_, fns)| (fns.start)(world, entity));
                let start = starts.reduce(Tick::earliest);
                if let Some(start) = start.filter(|start| start.is_newer_than(since)) {
                    unborn.push((start, entity));
                    world.entity_mut(entity).remove::<Simulated>();
                }
                for (_, fns) in entries {
                    (fns.rewind)(world, entity, since);
                }
            }
        }
    }
    let unclaimed = world.resource::<EarlyCopies>().unclaimed();

    world.resource_mut::<EarlyCopies>().spawned_again.clear();
    world.resource_mut::<Replaying>().0 = true;
    world.resource_mut::<CurrentTick>().0 = since;
    world.schedule_scope(FixedMain, |world, schedule| {
        while world.resource::<CurrentTick>().0 != now {
            schedule.run(world);
            let reached = world.resource::<CurrentTick>().0;
            unborn.retain(|&(start, entity)| {
                let is_born = !start.is_newer_than(reached);
                if is_born
                    && !unclaimed.contains(&entity)
                    && let Ok(mut entity) = world.get_entity_mut(entity)
                {
                    entity.insert(Simulated);
                }
                !is_born
            });
        }
    });
    world.resource_mut::<Replaying>().0 = false;
    let generic = world.resource::<Time<Virtual>>().as_generic();
    *world.resource_mut::<Time>() = generic;

    withdraw_early_copies(world, since);
    for entity in entities {
        for (_, fns) in entries {
            (fns.after_replay)(world, entity);
        }
    }
}

/// A role has changed: history and drawing begin anew.
pub(super) fn forget(world: &mut World, entity: Entity) {
    let entries: Vec<_> = world
        .resource::<Registry>()
        .components
        .iter()
        .map(|entry| entry.client.predict)
        .collect();
    if let Ok(mut entity) = world.get_entity_mut(entity) {
        for fns in entries {
            (fns.forget)(&mut entity);
        }
    }
}

/// Entities that this client has spawned before the server did.
#[derive(Resource, Default)]
pub(super) struct EarlyCopies {
    by_key: HashMap<SpawnKey, EarlyCopy>,
    spawned_again: HashSet<SpawnKey>,
}

impl EarlyCopies {
    fn unclaimed(&self) -> HashSet<Entity> {
        let copies = self.by_key.values();
        copies
            .filter(|copy| !copy.is_claimed)
            .map(|copy| copy.entity)
            .collect()
    }
}

#[derive(Clone, Copy)]
struct EarlyCopy {
    entity: Entity,
    /// The server's entity has come.
    is_claimed: bool,
}

/// Makes a spawned entity with a key an early copy; one that is there already is kept instead.
///
/// In a replay, that one begins again as the new one is, unless the server's entity has come: what that was in the
/// ticks that the server tells of is not predicted any more.
fn notice_early_copy(
    added: On<Add, SpawnKey>,
    keys: Query<&SpawnKey, Without<Mirrored>>,
    entities: Query<()>,
    mut copies: ResMut<EarlyCopies>,
    registry: Res<Registry>,
    tick: Res<CurrentTick>,
    replaying: Res<Replaying>,
    mut commands: Commands,
) {
    let Ok(&key) = keys.get(added.entity) else {
        return;
    };
    let fns: Vec<_> = registry
        .components
        .iter()
        .map(|entry| entry.client.predict)
        .collect();
    let now = tick.0;
    if replaying.0 {
        copies.spawned_again.insert(key);
    }
    let kept = copies.by_key.get(&key).copied();
    // One that is gone already is spawned again by the replay, and ends again.
    let kept =
        kept.filter(|kept| kept.is_claimed || !replaying.0 || entities.contains(kept.entity));
    if let Some(kept) = kept {
        let new = added.entity;
        let begins_again = replaying.0 && !kept.is_claimed;
        commands.queue(move |world: &mut World| {
            if begins_again {
                for fns in fns {
                    (fns.begin_again)(world, new, kept.entity, now);
                }
                if let Ok(mut kept) = world.get_entity_mut(kept.entity) {
                    kept.insert(Simulated);
                }
            }
            world.try_despawn(new).ok();
        });
        return;
    }
    copies.by_key.insert(
        key,
        EarlyCopy {
            entity: added.entity,
            is_claimed: false,
        },
    );
    commands
        .entity(added.entity)
        .insert((Predicted, Simulated))
        .queue(move |mut entity: EntityWorldMut| {
            for fns in fns {
                (fns.begin_here)(&mut entity, now);
            }
        });
}

/// The early copy of an entity that has now come from the server.
pub(super) fn claim_early_copy(world: &mut World, key: SpawnKey) -> Option<Entity> {
    let copy = world
        .get_resource_mut::<EarlyCopies>()?
        .into_inner()
        .by_key
        .get_mut(&key)?;
    if copy.is_claimed {
        return None;
    }
    copy.is_claimed = true;
    // It may have come to its end here already; the server's will, too.
    Some(copy.entity)
}

/// Removes copies of entities that the server should have spawned by now and has not, and forgets old keys.
fn expire_early_copies(world: &mut World, mirror: &Mirror) {
    let Some(complete) = mirror.replica().newest_complete() else {
        return;
    };
    let now = world.resource::<CurrentTick>().0;
    let mut refuted = Vec::new();
    world
        .resource_mut::<EarlyCopies>()
        .by_key
        .retain(|key, copy| {
            let is_old = now.distance_from(key.tick) >= MAX_HISTORY as i32;
            if !copy.is_claimed && (is_old || !key.tick.is_newer_than(complete)) {
                refuted.push(copy.entity);
                return false;
            }
            !is_old
        });
    for entity in refuted {
        world.try_despawn(entity).ok();
    }
}

/// Removes copies that a replay did not spawn again: they came of a wrong prediction.
fn withdraw_early_copies(world: &mut World, since: Tick) {
    let mut withdrawn = Vec::new();
    let EarlyCopies {
        by_key,
        spawned_again,
    } = &mut *world.resource_mut::<EarlyCopies>();
    by_key.retain(|key, copy| {
        let is_wrong =
            !copy.is_claimed && key.tick.is_newer_than(since) && !spawned_again.contains(key);
        if is_wrong {
            withdrawn.push(copy.entity);
        }
        !is_wrong
    });
    for entity in withdrawn {
        world.try_despawn(entity).ok();
    }
}

/// The connection has ended.
pub(super) fn forget_early_copies(world: &mut World) {
    let Some(mut copies) = world.get_resource_mut::<EarlyCopies>() else {
        return;
    };
    let copies = std::mem::take(&mut *copies);
    for copy in copies.by_key.into_values() {
        world.try_despawn(copy.entity).ok();
    }
}
