//! Entities that this client spawns before the server does: a player's own shots, say.
//!
//! Both sides spawn them with the same [`SpawnKey`]. When the server's entity comes, the early copy becomes its copy. In
//! a replay the game's systems spawn it once more: what they spawn is poured into the copy that is there already, so
//! that it stays one entity whatever is corrected.

use bevy::ecs::bundle::BundleWriter;
use bevy::ecs::entity::{Entities, EntityHashMap, EntityHashSet};
use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;

use super::component;
use super::copies::{self, Mirrored};
use super::mirror::Mirror;
use super::predict::{History, MAX_HISTORY};
use super::types::ClientTypes;
use crate::registry::{ComponentRule, Scratch};
use crate::replication::{Predicted, Simulated, SpawnKey};
use crate::schedule::{CurrentTick, Replaying};
use crate::tick::Tick;

pub(super) fn install(app: &mut App) {
    app.init_resource::<EarlyCopies>()
        .add_observer(notice_early_copy);
}

/// Entities that this client has spawned before the server did.
#[derive(Resource, Default)]
pub(super) struct EarlyCopies {
    by_key: HashMap<SpawnKey, EarlyCopy>,
    spawned_again: HashSet<SpawnKey>,
    /// What a replay has spawned again, by the copies that it was poured into.
    poured: EntityHashMap<Entity>,
    /// Those of the tick, emptied, that have to go at its end: what is spawned with them may name them until then.
    husks: Vec<Entity>,
}

#[derive(Clone, Copy)]
struct EarlyCopy {
    entity: Entity,
    /// The server's entity has come.
    is_claimed: bool,
}

/// What is done with a component of early copies.
#[derive(Clone, Copy)]
pub(crate) struct EarlyFns {
    begin: fn(&mut EntityWorldMut, Tick),
    /// Moves the component from an entity that a replay has spawned to the copy that is there: in place if that has it,
    /// else with what is inserted together.
    pour: fn(&mut World, from: Entity, to: Entity, Tick, &mut Poured),
    /// Lets the component, and its history, name copies instead of what was poured into them.
    rename: fn(&mut World, Entity, &EntityHashMap<Entity>),
}

/// What is left to be done when an entity is poured into another.
#[derive(Default)]
struct Poured {
    inserted: Vec<Box<dyn FnOnce(&World, &mut BundleWriter)>>,
    removed: Vec<fn(&mut EntityWorldMut)>,
}

impl EarlyFns {
    pub const fn of<C: Component + Clone>() -> Self {
        Self {
            begin: |entity, tick| {
                if entity.contains::<C>() && !entity.contains::<History<C>>() {
                    entity.insert(History::<C>::new(tick));
                }
            },
            pour: pour::<C>,
            rename: rename::<C>,
        }
    }
}

fn pour<C: Component + Clone>(
    world: &mut World,
    from: Entity,
    to: Entity,
    tick: Tick,
    poured: &mut Poured,
) {
    let value = world
        .get_entity_mut(from)
        .ok()
        .and_then(|mut entity| entity.take::<C>());
    let Some(mut value) = value else {
        if world.get::<C>(to).is_some() {
            poured.removed.push(|entity| {
                entity.remove::<(C, History<C>)>();
            });
        }
        return;
    };
    C::map_entities(&mut value, &mut world.resource_mut::<EarlyCopies>().poured);
    let rule = world.resource::<ComponentRule<C>>();
    let (set, is_predicted) = (rule.setter(), rule.predicted);
    let current = world.get::<C>(to);
    let is_there = current.is_some();
    let is_same =
        current.is_some_and(|current| rule.is_same(current, &value, &mut Scratch::default()));
    if let Ok(mut to) = world.get_entity_mut(to) {
        if is_predicted {
            to.insert(History::<C>::new(tick));
        }
        if is_there {
            if !is_same {
                set(&mut to, value);
            }
            return;
        }
    }
    poured.inserted.push(Box::new(move |world, out| {
        component::push(world, value, out);
    }));
}

fn rename<C: Component + Clone>(world: &mut World, entity: Entity, names: &EntityHashMap<Entity>) {
    let Some(value) = world.get::<C>(entity) else {
        return;
    };
    let mut renamed = value.clone();
    C::map_entities(&mut renamed, &mut names.clone());
    let rule = world.resource::<ComponentRule<C>>();
    if rule.is_same(value, &renamed, &mut Scratch::default()) {
        return;
    }
    let set = rule.setter();
    if let Ok(mut entity) = world.get_entity_mut(entity) {
        set(&mut entity, renamed);
        if let Some(mut history) = entity.get_mut::<History<C>>() {
            for value in history.values_mut() {
                C::map_entities(value, &mut names.clone());
            }
        }
    }
}

impl EarlyCopies {
    /// Begins a replay; returns the copies that the server has not confirmed, which begin again when they are spawned.
    pub fn begin_replay(&mut self) -> EntityHashSet {
        self.spawned_again.clear();
        self.poured.clear();
        let copies = self.by_key.values();
        copies
            .filter(|copy| !copy.is_claimed)
            .map(|copy| copy.entity)
            .collect()
    }
}

/// Makes a spawned entity with a key an early copy; one that is there already is kept instead.
///
/// In a replay, that one begins again as the new one is, unless the server's entity has come: what that was in the
/// ticks that the server tells of is not predicted any more.
fn notice_early_copy(
    added: On<Add, SpawnKey>,
    keys: Query<&SpawnKey, Without<Mirrored>>,
    entities: &Entities,
    mut copies: ResMut<EarlyCopies>,
    tick: Res<CurrentTick>,
    replaying: Res<Replaying>,
    mut commands: Commands,
) {
    let Ok(&key) = keys.get(added.entity) else {
        return;
    };
    let (new, now) = (added.entity, tick.0);
    if replaying.0 {
        copies.spawned_again.insert(key);
    }
    let kept = copies.by_key.get(&key).copied();
    // One that is gone already is spawned again by the replay, and ends again.
    let kept = kept
        .filter(|kept| kept.is_claimed || !replaying.0 || entities.contains_spawned(kept.entity));
    if let Some(kept) = kept.filter(|kept| kept.entity != new) {
        copies.poured.insert(new, kept.entity);
        copies.husks.push(new);
        let is_replaying = replaying.0;
        let begins_again = is_replaying && !kept.is_claimed;
        commands.queue(move |world: &mut World| {
            if begins_again {
                pour_all(world, new, kept.entity, now);
            }
            // What is spawned with it may still be put below it.
            if let Ok(mut husk) = world.get_entity_mut(new) {
                husk.clear();
            }
            if !is_replaying {
                end_tick(world);
            }
        });
        return;
    }
    let copy = EarlyCopy {
        entity: new,
        is_claimed: false,
    };
    copies.by_key.insert(key, copy);
    commands.queue(move |world: &mut World| {
        let types = world.resource::<ClientTypes>().components.clone();
        // A command before this one may have despawned it, and observers of what is inserted may.
        if let Ok(mut entity) = world.get_entity_mut(new) {
            entity.insert((Predicted, Simulated));
        }
        if let Ok(mut entity) = world.get_entity_mut(new) {
            for fns in types.iter() {
                (fns.predict.early.begin)(&mut entity, now);
            }
        }
    });
}

fn pour_all(world: &mut World, from: Entity, to: Entity, tick: Tick) {
    let types = world.resource::<ClientTypes>().components.clone();
    let mut poured = Poured::default();
    for fns in types.iter() {
        (fns.predict.early.pour)(world, from, to, tick, &mut poured);
    }
    for remove in poured.removed {
        // Observers of what was removed before may have despawned it.
        if let Ok(mut to) = world.get_entity_mut(to) {
            remove(&mut to);
        }
    }
    component::insert(world, to, |world, out| {
        component::push(world, Simulated, out);
        for insert in poured.inserted {
            insert(world, out);
        }
    });
}

/// Removes what a replayed tick has spawned once more. What hangs on it goes over to the copies that stay.
pub(super) fn end_tick(world: &mut World) {
    let husks = std::mem::take(&mut world.resource_mut::<EarlyCopies>().husks);
    for husk in husks {
        let children: Vec<_> = world
            .get::<Children>(husk)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let kept = world.resource::<EarlyCopies>().poured.get(&husk).copied();
        for child in children {
            let is_predicted = world.get::<Predicted>(child).is_some();
            if let Some(kept) = kept.filter(|_| is_predicted)
                && let Ok(mut child) = world.get_entity_mut(child)
            {
                child.insert(ChildOf(kept));
            }
        }
        copies::despawn(world, husk);
    }
}

/// A replay is over: what names entities that it has spawned once more names the copies that stayed, and copies that it
/// did not spawn again are removed, since they came of a wrong prediction.
pub(super) fn end_replay(world: &mut World, since: Tick, entities: &[Entity]) {
    let poured = std::mem::take(&mut world.resource_mut::<EarlyCopies>().poured);
    if !poured.is_empty() {
        let predictions = world.resource::<Mirror>().predictions();
        for &entity in entities {
            for (_, fns) in predictions.iter() {
                (fns.early.rename)(world, entity, &poured);
            }
        }
    }
    let mut withdrawn = Vec::new();
    let EarlyCopies {
        by_key,
        spawned_again,
        ..
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
        copies::despawn(world, entity);
    }
}

/// The early copy of an entity that has now come from the server.
pub(super) fn claim(world: &mut World, key: SpawnKey) -> Option<Entity> {
    let copies = world.get_resource_mut::<EarlyCopies>()?.into_inner();
    let copy = copies.by_key.get_mut(&key)?;
    if copy.is_claimed {
        return None;
    }
    copy.is_claimed = true;
    // It may have come to its end here already; the server's will, too.
    Some(copy.entity)
}

/// Removes copies of entities that the server should have spawned by now and has not, and forgets old keys.
pub(super) fn expire(world: &mut World) {
    let Some(complete) = world.resource::<Mirror>().replica().newest_complete() else {
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
        copies::despawn(world, entity);
    }
}

/// The link has ended: what the server has not confirmed is gone. What it has is a copy like any other.
pub(super) fn forget_all(world: &mut World) {
    let Some(mut early) = world.get_resource_mut::<EarlyCopies>() else {
        return;
    };
    let early = std::mem::take(&mut *early);
    for copy in early.by_key.into_values().filter(|copy| !copy.is_claimed) {
        copies::despawn(world, copy.entity);
    }
}
