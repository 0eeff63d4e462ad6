//! What is done with a component of a copy, without naming its type, and how several are inserted together.
#![allow(
    unsafe_code,
    reason = "components of types that are not named are laid out for insertion"
)]

use std::cell::RefCell;

use bevy::ecs::bundle::{BundleScratch, BundleWriter};
use bevy::ecs::component::ComponentId as BevyId;
use bevy::platform::cell::SyncCell;
use bevy::prelude::*;
use bevy::ptr::OwningPtr;
use smallvec::SmallVec;

use super::apply;
use super::copies::Mirrored;
use super::interpolate;
use super::mirror::Mirror;
use super::predict::{self, PredictionFns};
use crate::protocol::interpolation::Playback;
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::replica::{ReplicaEntity, ValueRef};
use crate::registry::{ComponentRule, Scratch};
use crate::replication::{Interpolated, Owned, Owner, Predicted, Replicated, Simulated};
use crate::tick::Tick;

/// Memory in which components that are inserted together are laid out.
#[derive(Resource)]
pub(super) struct Assembly(SyncCell<BundleScratch>);

impl Default for Assembly {
    fn default() -> Self {
        Self(SyncCell::new(BundleScratch::default()))
    }
}

/// Makes the components known that every copy may have.
pub(super) fn register(world: &mut World) {
    world.init_resource::<Assembly>();
    world.register_component::<Mirrored>();
    world.register_component::<Replicated>();
    world.register_component::<Owner>();
    world.register_component::<Owned>();
    world.register_component::<Predicted>();
    world.register_component::<Simulated>();
    world.register_component::<Interpolated>();
    world.register_component::<ChildOf>();
}

/// Adds a component to those that are inserted together. Its type has to be registered.
pub(crate) fn push<C: Component>(world: &World, component: C, out: &mut BundleWriter) {
    let Some(id) = world.component_id::<C>() else {
        debug_assert!(
            false,
            "every component of a copy is registered with the plugins"
        );
        return;
    };
    let layout = std::alloc::Layout::new::<C>();
    OwningPtr::make(component, |ptr| {
        // SAFETY: `ptr` is a `C`, whose id in this world and whose layout these are. Whoever has begun the writer writes
        // it to an entity of this world.
        unsafe { out.push_component_by_id(id, ptr, layout) }
    });
}

/// Inserts together what `fill` adds.
pub(super) fn insert(
    world: &mut World,
    entity: Entity,
    fill: impl FnOnce(&World, &mut BundleWriter),
) {
    let mut scratch = std::mem::take(world.resource_mut::<Assembly>().0.get());
    let mut out = scratch.writer();
    if world.get_entity(entity).is_ok() {
        fill(world, &mut out);
    }
    if !out.is_empty()
        && let Ok(mut entity) = world.get_entity_mut(entity)
    {
        // SAFETY: all components were added by `push`, for this world.
        unsafe { out.write(&mut entity) }
    }
    *world.resource_mut::<Assembly>().0.get() = scratch;
}

/// Finds the copies that values name, and remembers which were asked for.
pub(crate) struct Finder<'a> {
    mirror: &'a Mirror,
    asked: RefCell<SmallVec<[NetId; 2]>>,
}

impl<'a> Finder<'a> {
    pub fn new(mirror: &'a Mirror) -> Self {
        Self {
            mirror,
            asked: RefCell::default(),
        }
    }

    fn find(&self, net: NetId) -> Option<Entity> {
        self.asked.borrow_mut().push(net);
        self.mirror.entity(net)
    }

    pub fn take_asked(&self) -> SmallVec<[NetId; 2]> {
        std::mem::take(&mut *self.asked.borrow_mut())
    }
}

/// Makes a component of a value that came.
fn load<C: Component + Clone>(world: &World, value: ValueRef, finder: &Finder) -> Option<C> {
    load_by(world.resource::<ComponentRule<C>>(), value, finder)
}

pub(super) fn load_by<C: Component + Clone>(
    rule: &ComponentRule<C>,
    value: ValueRef,
    finder: &Finder,
) -> Option<C> {
    rule.load(value, &|net| finder.find(net), &mut |_| {})
}

/// A component of a copy, and what came for it.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub(super) net: NetId,
    pub(super) component: ComponentId,
    pub(super) entity: Entity,
    pub(super) tick: Tick,
}

/// Client-side work on one component type.
#[derive(Clone, Copy)]
pub(crate) struct CopyFns {
    pub(super) install: fn(&mut App),
    /// Makes the component known to the world, and says by what id it knows it.
    pub(super) id: fn(&mut World) -> BevyId,
    /// Adds it to what is inserted together: with its history from a tick on, where it is predicted.
    pub(super) assemble: fn(&World, ValueRef, &Finder, since: Option<Tick>, &mut BundleWriter),
    /// Sets it in place; `only_if_other` to what it is not already. Says which entities it names.
    pub(super) change: fn(&mut World, Arrival, only_if_other: bool) -> SmallVec<[NetId; 2]>,
    /// Keeps the value for when it is drawn.
    pub(super) sample: fn(&mut World, Arrival, is_cut: bool) -> SmallVec<[NetId; 2]>,
    /// Which entities it names.
    pub(super) names: fn(&World, Arrival) -> SmallVec<[NetId; 2]>,
    /// Adds the value that is drawn to what is inserted together.
    pub(super) assemble_drawn: fn(&World, Entity, &Playback, &mut BundleWriter),
    pub(super) forget_samples: fn(&mut EntityWorldMut),
    /// Forgets the values from before the last cut.
    pub(super) skip_samples: fn(&mut EntityWorldMut),
    pub(super) predict: PredictionFns,
}

impl CopyFns {
    pub const fn of<C: Component + Clone>() -> Self {
        Self {
            install: apply::install::<C>,
            id: |world| {
                world.register_component::<predict::History<C>>();
                world.register_component::<C>()
            },
            assemble: |world, value, finder, since, out| {
                let Some(value) = load::<C>(world, value, finder) else {
                    return;
                };
                if let Some(tick) = since {
                    push(world, predict::History::begun(tick, value.clone()), out);
                }
                push(world, value, out);
            },
            change: change::<C>,
            sample: sample::<C>,
            names: |world, arrival| {
                let loaded = load_newest::<C>(world, arrival);
                loaded.map(|(_, names)| names).unwrap_or_default()
            },
            assemble_drawn: interpolate::assemble_drawn::<C>,
            forget_samples: |entity| {
                entity.remove::<interpolate::Buffer<C>>();
            },
            skip_samples: interpolate::skip_to_cut::<C>,
            predict: PredictionFns::of::<C>(),
        }
    }
}

/// The newest value of a component, and the entities that it names.
fn load_newest<C: Component + Clone>(
    world: &World,
    arrival: Arrival,
) -> Option<(C, SmallVec<[NetId; 2]>)> {
    let mirror = world.resource::<Mirror>();
    let value = mirror
        .replica
        .entity(arrival.net)?
        .value(arrival.component)?;
    let finder = Finder::new(mirror);
    let component = load(world, value, &finder)?;
    Some((component, finder.take_asked()))
}

fn change<C: Component + Clone>(
    world: &mut World,
    arrival: Arrival,
    only_if_other: bool,
) -> SmallVec<[NetId; 2]> {
    let Some((value, names)) = load_newest::<C>(world, arrival) else {
        return SmallVec::new();
    };
    let rule = world.resource::<ComponentRule<C>>();
    let is_same = |current| rule.is_same(current, &value, &mut Scratch::default());
    let is_needless = only_if_other && world.get::<C>(arrival.entity).is_some_and(is_same);
    let set = rule.setter();
    if !is_needless && let Ok(mut entity) = world.get_entity_mut(arrival.entity) {
        set(&mut entity, value);
    }
    names
}

fn sample<C: Component + Clone>(
    world: &mut World,
    arrival: Arrival,
    is_cut: bool,
) -> SmallVec<[NetId; 2]> {
    let Some((value, names)) = load_newest::<C>(world, arrival) else {
        return SmallVec::new();
    };
    let replica = &world.resource::<Mirror>().replica;
    let held = replica
        .entity(arrival.net)
        .map_or(arrival.tick, ReplicaEntity::held);
    if let Ok(mut entity) = world.get_entity_mut(arrival.entity) {
        interpolate::push(&mut entity, arrival.tick, held, value, is_cut);
    }
    names
}
