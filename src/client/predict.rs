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
use bevy::ecs::entity_disabling::DefaultQueryFilters;
use bevy::platform::collections::HashMap;
use bevy::prelude::*;
use smallvec::SmallVec;

use super::component::{self, Finder};
use super::copies::{self, Mirrored};
use super::early::{self, EarlyCopies};
use super::mirror::Mirror;
use super::smooth;
use super::stats::ClientStats;
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::replica::ReplicaEntity;
use crate::registry::{ComponentRule, Scratch};
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
    let Some(mut mirror) = mirror else { return };
    if let Some(net) = mirror.net_id(removed.entity) {
        mirror.note_despawn(net, tick.0, simulating.0);
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

    /// Forgets all, and begins with the value of a tick.
    fn begin(&mut self, tick: Tick, value: Option<C>) {
        self.values.clear();
        self.values.push_back(value);
        self.start = tick;
        self.is_inserted = false;
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
    /// Compares it on all copies that are not known to be wrong.
    compare: for<'w> fn(&'w World, ComponentId, &mut [Check<'w>], &mut Comparing),
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

/// A copy whose predictions are compared with what the server says.
pub(super) struct Check<'w> {
    net: NetId,
    entity: Entity,
    known: &'w ReplicaEntity,
    /// The tick of which that is known.
    tick: Tick,
    /// It was not predicted yet.
    is_fresh: bool,
    is_wrong: bool,
}

/// What comparing needs, and finds.
#[derive(Default)]
pub(super) struct Comparing {
    scratch: Scratch,
    /// Distances in units, where components have such.
    errors: Vec<f32>,
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
                let rule = world.resource::<ComponentRule<C>>();
                if let Stated::Is(value) = state_of(world, rule, confirmed) {
                    let history = History::begun(confirmed.tick, value.clone());
                    component::push(world, history, out);
                    component::push(world, value, out);
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

fn state_of<C: Component + Clone>(
    world: &World,
    rule: &ComponentRule<C>,
    confirmed: &Confirmed,
) -> Stated<C> {
    let mirror = world.resource::<Mirror>();
    let Some(entity) = mirror.replica.entity(confirmed.net) else {
        return Stated::Absent;
    };
    match entity.value(confirmed.component) {
        Some(value) => {
            let value = component::load_by(rule, value, &Finder::new(mirror));
            value.map_or(Stated::Unknown, Stated::Is)
        }
        None if entity.has(confirmed.component) => Stated::Unknown,
        None => Stated::Absent,
    }
}

fn compare<'w, C: Component + Clone>(
    world: &'w World,
    component: ComponentId,
    checks: &mut [Check<'w>],
    comparing: &mut Comparing,
) {
    let rule = world.resource::<ComponentRule<C>>();
    let finder = Finder::new(world.resource::<Mirror>());
    for check in checks.iter_mut().filter(|check| !check.is_fresh) {
        let stated = check.known.value(component);
        let predicted = match world.get::<History<C>>(check.entity) {
            Some(history) => history.at(check.tick),
            None => Some(None),
        };
        let (is_wrong, error) = match (stated, predicted) {
            // Not known any more.
            (_, None) => (false, None),
            (Some(stated), Some(Some(predicted))) => {
                match component::load_by(rule, stated, &finder) {
                    Some(value) => (
                        rule.is_wrong(stated, &value, predicted, &mut comparing.scratch),
                        rule.blend_fns()
                            .map(|blend| (blend.distance)(&value, predicted)),
                    ),
                    None => (false, None),
                }
            }
            (Some(_), Some(None)) => (true, None),
            // Its value may still be on its way.
            (None, Some(Some(_))) => (!check.known.has(component), None),
            (None, Some(None)) => (false, None),
        };
        if is_wrong {
            debug!(
                "`{}` of {}: the prediction for tick {} was wrong, by {error:?} units",
                std::any::type_name::<C>(),
                check.entity,
                check.tick,
            );
        }
        check.is_wrong |= is_wrong;
        comparing.errors.extend(error);
    }
}

fn adopt<C: Component + Clone>(world: &mut World, confirmed: &Confirmed) -> Adoption {
    let rule = world.resource::<ComponentRule<C>>();
    let state = state_of(world, rule, confirmed);
    let set = rule.setter();
    let Ok(mut entity) = world.get_entity_mut(confirmed.entity) else {
        return Adoption::Done;
    };
    match state {
        Stated::Is(value) if entity.contains::<C>() => {
            match entity.get_mut::<History<C>>() {
                Some(mut history) => history.begin(confirmed.tick, Some(value.clone())),
                None => {
                    entity.insert(History::begun(confirmed.tick, value.clone()));
                }
            }
            set(&mut entity, value);
            Adoption::Done
        }
        Stated::Is(_) => Adoption::Insert,
        Stated::Absent => {
            let mut history = entity.get_mut::<History<C>>();
            if let Some(history) = &mut history {
                history.begin(confirmed.tick, None);
            }
            match history.is_some() && entity.contains::<C>() {
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
    revive(world);
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
        for (&entity, &(net, _)) in &mistakes.copies {
            adopt_all(world, entries, net, entity, now);
        }
        world.resource_mut::<ClientStats>().snaps += u64::from(mistakes.is_real && distance > 0);
        return;
    }
    replay(world, entries, mistakes.since, now, &mistakes.copies);
    let mut stats = world.resource_mut::<ClientStats>();
    stats.reconciliations += u64::from(mistakes.is_real);
    stats.replayed_ticks += distance.unsigned_abs() as u64;
}

/// Brings back what this client's simulation has despawned and the server's has not.
fn revive(world: &mut World) {
    let mirror = world.resource::<Mirror>();
    if mirror.despawned.is_empty() {
        return;
    }
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
    if mirror.moved.is_empty() {
        return;
    }
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
    /// Which copies, and of which tick their state is known.
    copies: HashMap<Entity, (NetId, Tick)>,
    /// Whether a prediction was wrong, rather than not made yet.
    is_real: bool,
}

fn find_mistakes(
    world: &mut World,
    entries: &[(ComponentId, PredictionFns)],
    now: Tick,
) -> Option<Mistakes> {
    let mut comparing = Comparing::default();
    let Due { mut checks, hidden } = due_checks(world, now);
    for (component, fns) in entries {
        (fns.compare)(world, *component, &mut checks, &mut comparing);
    }
    let wrong = checks.iter().filter(|check| check.is_wrong);
    let since = wrong.clone().map(|check| check.tick).reduce(Tick::earliest);
    let mistakes = since.map(|since| Mistakes {
        since,
        is_real: wrong.clone().any(|check| !check.is_fresh),
        copies: wrong
            .map(|check| (check.entity, (check.net, check.tick)))
            .collect(),
    });
    let checked: Vec<_> = checks.iter().map(|check| (check.net, check.tick)).collect();
    let mut mirror = world.resource_mut::<Mirror>();
    for (net, tick) in checked {
        mirror.note_checked(net, tick);
    }
    for (net, entity, tick) in hidden {
        follow(world, entries, net, entity, tick);
    }
    let mut stats = world.resource_mut::<ClientStats>();
    for error in comparing.errors {
        stats.prediction_error.record(f64::from(error));
    }
    mistakes
}

/// A predicted copy that queries do not see is not simulated: it is as the server says, and brought to the present when
/// it is seen again.
fn follow(
    world: &mut World,
    entries: &[(ComponentId, PredictionFns)],
    net: NetId,
    entity: Entity,
    tick: Tick,
) {
    adopt_all(world, entries, net, entity, tick);
    if let Some(local) = world.resource_mut::<Mirror>().locals.get_mut(&net) {
        local.checked = Some(tick);
        local.is_fresh = true;
    }
}

/// Predicted copies of which something was heard since they were last compared.
struct Due<'w> {
    checks: Vec<Check<'w>>,
    /// Those that default query filters hide.
    hidden: Vec<(NetId, Entity, Tick)>,
}

fn due_checks(world: &World, now: Tick) -> Due<'_> {
    let mirror = world.resource::<Mirror>();
    let filters = world.get_resource::<DefaultQueryFilters>();
    let hiding: SmallVec<[_; 2]> = filters
        .into_iter()
        .flat_map(DefaultQueryFilters::disabling_ids)
        .collect();
    // Most copies are like the one before.
    let mut before = None;
    let mut is_hidden = |entity| {
        let entity: Result<EntityRef, _> = world.get_entity(entity);
        let Ok(entity) = entity else { return false };
        let archetype = entity.archetype();
        match before {
            Some((id, is_hidden)) if id == archetype.id() => is_hidden,
            _ => {
                let is_hidden = hiding.iter().any(|id| archetype.contains(*id));
                before = Some((archetype.id(), is_hidden));
                is_hidden
            }
        }
    };
    let mut hidden = Vec::new();
    let mut checks = Vec::with_capacity(mirror.predicted.len());
    for (net, local) in mirror.predicted() {
        let Some((known, tick)) = mirror.replica.known(net) else {
            continue;
        };
        // What is not there (any more) is no mistake until the server contradicts: see `revive`.
        let is_known = local.checked == Some(tick);
        if local.gone_since.is_some() || (is_known && !local.is_fresh) {
            continue;
        }
        if is_hidden(local.entity) {
            if !is_known {
                hidden.push((net, local.entity, tick));
            }
            continue;
        }
        checks.push(Check {
            net,
            entity: local.entity,
            known,
            tick,
            is_fresh: local.is_fresh,
            is_wrong: local.is_fresh || tick.is_newer_than(now),
        });
    }
    Due { checks, hidden }
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
        component::insert(world, entity, |world, out| {
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
    wrong: &HashMap<Entity, (NetId, Tick)>,
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
    wrong: &HashMap<Entity, (NetId, Tick)>,
) -> Vec<(Tick, Entity)> {
    let mut unborn = Vec::new();
    let mut scratch = Scratch::default();
    for &entity in entities {
        if let Ok(mut entity) = world.get_entity_mut(entity) {
            for (_, fns) in entries {
                (fns.before_replay)(&mut entity);
            }
        }
        // What came for a later tick than others is compared again with the next snapshot.
        let is_known = |&&(_, tick): &&(NetId, Tick)| tick == since;
        if let Some(&(net, _)) = wrong.get(&entity).filter(is_known) {
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
