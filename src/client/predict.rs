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
use bevy::platform::collections::HashMap;
use bevy::prelude::*;
use smallvec::SmallVec;

use super::copies::{self, Finder, Mirrored};
use super::early::{self, EarlyCopies};
use super::mirror::Mirror;
use super::smooth;
use super::stats::ClientStats;
use crate::protocol::layout::{ComponentId, NetId};
use crate::registry::{ComponentRule, Registry, Scratch};
use crate::replication::{Predicted, Simulated};
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
        .init_resource::<Simulating>()
        .add_systems(FixedFirst, |mut simulating: ResMut<Simulating>| {
            simulating.0 = true;
        })
        .add_systems(FixedLast, |mut simulating: ResMut<Simulating>| {
            simulating.0 = false;
        })
        .add_observer(note_despawn)
        .add_observer(note_parent::<Insert>)
        .add_observer(note_parent::<Remove>);
        early::install(app);
    }
}

/// [`PredictionPlugin`], at run time.
#[derive(Resource)]
pub(super) struct PredictionSettings {
    pub max_rollback: Ticks,
    pub smoothing: Duration,
    pub snap_distance: f32,
}

/// Whether a tick is being simulated, for the first time or again.
#[derive(Resource, Default)]
pub(super) struct Simulating(bool);

/// A copy that the simulation despawns, and what hangs on it, comes back if the server says otherwise. What the rest of
/// the game despawns does not, unless it is predicted.
fn note_despawn(
    removed: On<Remove, Mirrored>,
    simulating: Res<Simulating>,
    tick: Res<CurrentTick>,
    mirror: Option<ResMut<Mirror>>,
) {
    let Some(mut mirror) = mirror.filter(|_| simulating.0) else {
        return;
    };
    let mirror = &mut *mirror;
    if let Some(net) = mirror.net_id(removed.entity)
        && let Some(local) = mirror.locals.get_mut(&net)
    {
        local.gone_since = Some(tick.0);
        mirror.despawned.insert(net);
    }
}

/// A parent that the simulation gives a copy, or takes from it, is a prediction: the server has the last word.
fn note_parent<E: EntityEvent>(
    event: On<E, ChildOf>,
    simulating: Res<Simulating>,
    tick: Res<CurrentTick>,
    mirror: Option<ResMut<Mirror>>,
) {
    if let Some(mut mirror) = mirror.filter(|_| simulating.0)
        && let Some(net) = mirror.net_id(event.event_target())
    {
        mirror.moved.insert(net, tick.0);
    }
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
pub(super) const MAX_HISTORY: usize = 128;

impl<C: Clone + Send + Sync + 'static> History<C> {
    pub fn new(start: Tick) -> Self {
        Self {
            start,
            values: VecDeque::new(),
            is_inserted: false,
        }
    }

    /// Of a component that the server says to have been this in a tick.
    pub fn begun(tick: Tick, value: C) -> Self {
        let mut history = Self::new(tick);
        history.record(tick, Some(value));
        history
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

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut C> {
        self.values.iter_mut().flatten()
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
    compare: fn(&World, &Confirmed, &mut Scratch) -> Comparison,
    /// Sets the component to what the server says it was, if the copy has it, and begins its history there; else says
    /// what has to be done together with others.
    adopt: fn(&mut World, &Confirmed) -> Adoption,
    /// Adds the component, with a history, to what is inserted together.
    assemble: fn(&World, &Confirmed, &mut bevy::ecs::bundle::BundleWriter),
    remove: fn(&mut EntityWorldMut),
    /// Sets the component to what it was predicted to be.
    rewind: fn(&mut World, Entity, Tick, &mut Scratch),
    /// The first tick that is known; `None` when that does not tell when the entity came to be.
    start: fn(&World, Entity) -> Option<Tick>,
    pub(super) early: early::EarlyFns,
    pub(super) forget: fn(&mut EntityWorldMut),
    forget_drawn: fn(&mut EntityWorldMut),
    before_replay: fn(&mut EntityWorldMut),
    after_replay: fn(&mut World, Entity),
}

/// A component of a copy, and the tick of which the server's state is known.
#[derive(Clone, Copy)]
pub(super) struct Confirmed {
    net: NetId,
    component: ComponentId,
    entity: Entity,
    tick: Tick,
}

/// How a prediction compares with what the server says.
struct Comparison {
    is_wrong: bool,
    /// Distance in units, where the component has one.
    error: Option<f32>,
}

/// What is left to be done for a component whose state is taken over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Adoption {
    Done,
    Insert,
    Remove,
}

impl PredictionFns {
    pub const fn of<C: Component + Clone>() -> Self {
        Self {
            compare: compare::<C>,
            adopt: adopt::<C>,
            assemble: |world, confirmed, out| {
                if let Stated::Is(value) = state_of::<C>(world, confirmed) {
                    let history = History::begun(confirmed.tick, value.clone());
                    copies::push(world, history, out);
                    copies::push(world, value, out);
                }
            },
            remove: |entity| {
                entity.remove::<C>();
            },
            rewind: rewind::<C>,
            start: |world, entity| {
                let history = world.get::<History<C>>(entity)?;
                (!history.is_inserted).then_some(history.start)
            },
            early: early::EarlyFns::of::<C>(),
            forget: |entity| {
                entity.remove::<(History<C>, smooth::Smoothed<C>)>();
            },
            forget_drawn: smooth::forget::<C>,
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

/// What the server says of a component.
enum Stated<C> {
    Is(C),
    Absent,
    /// Its value is still on its way, or cannot be read.
    Unknown,
}

fn state_of<C: Component + Clone>(world: &World, confirmed: &Confirmed) -> Stated<C> {
    let mirror = world.resource::<Mirror>();
    let Some(entity) = mirror.replica.entity(confirmed.net) else {
        return Stated::Absent;
    };
    match entity.value(confirmed.component) {
        Some(value) => {
            copies::load(world, value, &Finder::new(mirror)).map_or(Stated::Unknown, Stated::Is)
        }
        None if entity.has(confirmed.component) => Stated::Unknown,
        None => Stated::Absent,
    }
}

fn compare<C: Component + Clone>(
    world: &World,
    confirmed: &Confirmed,
    scratch: &mut Scratch,
) -> Comparison {
    let verdict = |is_wrong| Comparison {
        is_wrong,
        error: None,
    };
    let state = state_of::<C>(world, confirmed);
    let Some(history) = world.get::<History<C>>(confirmed.entity) else {
        return verdict(matches!(state, Stated::Is(_)));
    };
    let Some(predicted) = history.at(confirmed.tick) else {
        return verdict(false);
    };
    match (state, predicted) {
        (Stated::Unknown, _) | (Stated::Absent, None) => verdict(false),
        (Stated::Is(value), Some(predicted)) => {
            let mirror = world.resource::<Mirror>();
            let entity = mirror.replica.entity(confirmed.net);
            let Some(raw) = entity.and_then(|entity| entity.value(confirmed.component)) else {
                return verdict(false);
            };
            let rule = world.resource::<ComponentRule<C>>();
            Comparison {
                is_wrong: rule.is_wrong(raw, &value, predicted, scratch),
                error: rule
                    .blend_fns()
                    .map(|blend| (blend.distance)(&value, predicted)),
            }
        }
        _ => verdict(true),
    }
}

fn adopt<C: Component + Clone>(world: &mut World, confirmed: &Confirmed) -> Adoption {
    let state = state_of::<C>(world, confirmed);
    let set = world.resource::<ComponentRule<C>>().setter();
    let Ok(mut entity) = world.get_entity_mut(confirmed.entity) else {
        return Adoption::Done;
    };
    match state {
        Stated::Is(value) if entity.contains::<C>() => {
            entity.insert(History::begun(confirmed.tick, value.clone()));
            set(&mut entity, value);
            Adoption::Done
        }
        Stated::Is(_) => Adoption::Insert,
        Stated::Absent => {
            let is_known = entity.contains::<History<C>>();
            if is_known {
                let mut adopted = History::<C>::new(confirmed.tick);
                adopted.record(confirmed.tick, None);
                entity.insert(adopted);
            }
            match is_known && entity.contains::<C>() {
                true => Adoption::Remove,
                false => Adoption::Done,
            }
        }
        // It keeps its predicted value until it is known.
        Stated::Unknown => {
            rewind::<C>(
                world,
                confirmed.entity,
                confirmed.tick,
                &mut Scratch::default(),
            );
            Adoption::Done
        }
    }
}

fn rewind<C: Component + Clone>(
    world: &mut World,
    entity: Entity,
    tick: Tick,
    scratch: &mut Scratch,
) {
    let rule = world.resource::<ComponentRule<C>>();
    let Some(history) = world.get::<History<C>>(entity) else {
        return;
    };
    let Some(was) = history.at(tick) else { return };
    match (world.get::<C>(entity), was) {
        (Some(is), Some(was)) if rule.is_same(is, was, scratch) => {}
        (None, None) => {}
        (_, Some(was)) => {
            let (set, was) = (rule.setter(), was.clone());
            if let Ok(mut entity) = world.get_entity_mut(entity) {
                set(&mut entity, was);
            }
        }
        (Some(_), None) => {
            if let Ok(mut entity) = world.get_entity_mut(entity) {
                entity.remove::<C>();
            }
        }
    }
}

/// Compares predictions with what the server says, and replays where they were wrong.
pub(super) fn reconcile(world: &mut World) {
    let entries = world.resource::<Mirror>().predictions();
    if entries.is_empty() {
        return;
    }
    let now = world.resource::<CurrentTick>().0;
    revive(world, now);
    put_back_parents(world);
    if let Some(mistakes) = find_mistakes(world, &entries, now) {
        correct(world, &entries, &mistakes, now);
    }
    early::expire(world);
}

fn correct(
    world: &mut World,
    entries: &[(ComponentId, PredictionFns)],
    mistakes: &Mistakes,
    now: Tick,
) {
    let distance = now.distance_from(mistakes.since);
    let max_rollback = world.resource::<PredictionSettings>().max_rollback;
    if distance < 0 || distance > max_rollback.0.cast_signed() {
        // Too far back to replay, or ahead of this client, whose clock is being set: take it as it is.
        for &(net, entity) in &mistakes.entities {
            adopt_all(world, entries, net, entity, now);
        }
        world.resource_mut::<ClientStats>().snaps += u64::from(mistakes.is_real && distance > 0);
        return;
    }
    let wrong: HashMap<_, _> = mistakes
        .entities
        .iter()
        .map(|&(net, entity)| (entity, net))
        .collect();
    replay(world, entries, mistakes.since, now, &wrong);
    let mut stats = world.resource_mut::<ClientStats>();
    stats.reconciliations += u64::from(mistakes.is_real);
    stats.replayed_ticks += distance.unsigned_abs() as u64;
}

/// Brings back what this client's simulation has despawned and the server's has not.
fn revive(world: &mut World, now: Tick) {
    world.resource_scope(|world, mut mirror: Mut<Mirror>| {
        let mirror = &mut *mirror;
        for net in &mirror.predicted {
            if let Some(local) = mirror.locals.get_mut(net)
                && world.get_entity(local.entity).is_err()
            {
                local.gone_since.get_or_insert(now);
                mirror.despawned.insert(*net);
            }
        }
    });
    let mirror = world.resource::<Mirror>();
    let mistaken: Vec<_> = mirror
        .despawned
        .iter()
        .copied()
        .filter(|net| {
            let gone_since = mirror.locals.get(net).and_then(|local| local.gone_since);
            let confirmed = mirror.replica.confirmed(*net);
            gone_since
                .zip(confirmed)
                .is_some_and(|(gone, confirmed)| confirmed.is_newer_than(gone))
        })
        .collect();
    if !mistaken.is_empty() {
        copies::respawn(world, mistaken);
    }
}

/// Gives copies the server's parents again where this client's simulation has given them others.
fn put_back_parents(world: &mut World) {
    let mirror = &mut *world.resource_mut::<Mirror>();
    let replica = &mirror.replica;
    let judged = mirror.moved.extract_if(|net, moved| {
        let confirmed = replica.confirmed(*net);
        confirmed.is_none_or(|confirmed| confirmed.is_newer_than(*moved))
    });
    let mut judged: Vec<_> = judged.map(|(net, _)| net).collect();
    judged.sort_unstable();
    for net in judged {
        // One that is scheduled is set when it is due.
        if !world.resource::<Mirror>().is_to_move(net) {
            copies::put_back(world, net);
        }
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
    entries: &[(ComponentId, PredictionFns)],
    now: Tick,
) -> Option<Mistakes> {
    let mut mistakes: Option<Mistakes> = None;
    let mut errors = Vec::new();
    let mut checked = Vec::new();
    let mut scratch = Scratch::default();
    let mirror = world.resource::<Mirror>();
    for (net, local) in mirror.predicted() {
        let Some(tick) = mirror.replica().confirmed(net) else {
            continue;
        };
        // What is not there (any more) is no mistake until the server contradicts: see `revive`.
        if local.checked == Some(tick) || local.gone_since.is_some() {
            continue;
        }
        checked.push((net, tick));
        let mut is_wrong = local.is_fresh || tick.is_newer_than(now);
        if !is_wrong {
            for &(component, fns) in entries {
                let entity = local.entity;
                let confirmed = Confirmed {
                    net,
                    component,
                    entity,
                    tick,
                };
                let comparison = (fns.compare)(world, &confirmed, &mut scratch);
                if comparison.is_wrong {
                    debug!(
                        "{} of {entity}: the prediction for tick {tick} was wrong, by {:?} units",
                        world.resource::<Registry>().components[usize::from(component.0)].name,
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
                since: tick,
                entities: Vec::new(),
                is_real,
            });
            found.since = found.since.earliest(tick);
            found.is_real |= is_real;
            found.entities.push((net, local.entity));
        }
    }
    let mut mirror = world.resource_mut::<Mirror>();
    for (net, tick) in checked {
        mirror.note_checked(net, tick);
    }
    let mut stats = world.resource_mut::<ClientStats>();
    for error in errors {
        stats.prediction_error.record(f64::from(error));
    }
    mistakes
}

/// Makes of a copy what the server says it was: values in place, then what is removed, then what is inserted, together.
fn adopt_all(
    world: &mut World,
    entries: &[(ComponentId, PredictionFns)],
    net: NetId,
    entity: Entity,
    tick: Tick,
) {
    let at = |component| Confirmed {
        net,
        component,
        entity,
        tick,
    };
    let mut left: SmallVec<[(ComponentId, PredictionFns, Adoption); 4]> = SmallVec::new();
    for &(id, fns) in entries {
        let adoption = (fns.adopt)(world, &at(id));
        if adoption != Adoption::Done {
            left.push((id, fns, adoption));
        }
    }
    let of_kind = |kind| left.iter().filter(move |(.., adoption)| *adoption == kind);
    for (_, fns, _) in of_kind(Adoption::Remove) {
        if let Ok(mut entity) = world.get_entity_mut(entity) {
            (fns.remove)(&mut entity);
        }
    }
    if of_kind(Adoption::Insert).next().is_some() {
        copies::insert(world, entity, |world, out| {
            for (id, fns, _) in of_kind(Adoption::Insert) {
                (fns.assemble)(world, &at(*id), out);
            }
        });
    }
}

/// Sets everything that is predicted back to the end of tick `since`, and simulates up to `now` again.
fn replay(
    world: &mut World,
    entries: &[(ComponentId, PredictionFns)],
    since: Tick,
    now: Tick,
    wrong: &HashMap<Entity, NetId>,
) {
    let mut predicted = world.query_filtered::<Entity, With<Predicted>>();
    let entities: Vec<_> = predicted.iter(world).collect();
    let mut unborn = go_back(world, entries, &entities, since, wrong);
    let unclaimed = world.resource_mut::<EarlyCopies>().begin_replay();

    world.resource_mut::<Replaying>().0 = true;
    world.resource_mut::<CurrentTick>().0 = since;
    world.schedule_scope(FixedMain, |world, schedule| {
        while world.resource::<CurrentTick>().0 != now {
            schedule.run(world);
            early::end_tick(world);
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

    early::end_replay(world, since, &entities);
    for entity in entities {
        for (_, fns) in entries {
            (fns.after_replay)(world, entity);
        }
    }
}

/// Sets predicted entities back to the end of tick `since`: those that were `wrong` to what the server says. Returns what
/// came to be after that, and when: it takes part from then on. Early copies do so when they are spawned again.
fn go_back(
    world: &mut World,
    entries: &[(ComponentId, PredictionFns)],
    entities: &[Entity],
    since: Tick,
    wrong: &HashMap<Entity, NetId>,
) -> Vec<(Tick, Entity)> {
    let mut unborn = Vec::new();
    let mut scratch = Scratch::default();
    for &entity in entities {
        if let Ok(mut entity) = world.get_entity_mut(entity) {
            for (_, fns) in entries {
                (fns.before_replay)(&mut entity);
            }
        }
        let wrong = wrong.get(&entity).copied();
        let is_known = |net| world.resource::<Mirror>().replica().confirmed(net) == Some(since);
        // What came for a later tick than others is compared again with the next snapshot.
        if let Some(net) = wrong.filter(|net| is_known(*net)) {
            adopt_all(world, entries, net, entity, since);
            continue;
        }
        let starts = entries
            .iter()
            .filter_map(|(_, fns)| (fns.start)(world, entity));
        let start = starts.reduce(Tick::earliest);
        if let Some(start) = start.filter(|start| start.is_newer_than(since))
            && let Ok(mut unborn_now) = world.get_entity_mut(entity)
        {
            unborn.push((start, entity));
            unborn_now.remove::<Simulated>();
        }
        for (_, fns) in entries {
            (fns.rewind)(world, entity, since, &mut scratch);
        }
    }
    unborn
}

/// What is drawn of a copy is what is simulated, until the next tick.
pub(super) fn forget_drawn(world: &mut World, entity: Entity) {
    let entries = world.resource::<Mirror>().predictions();
    if let Ok(mut entity) = world.get_entity_mut(entity) {
        for (_, fns) in entries.iter() {
            (fns.forget_drawn)(&mut entity);
        }
    }
}
