//! From the server's world to the archive: what changed, once per snapshot, quantised once for all clients.
//!
//! Ids are given out as soon as an entity is marked, so that whatever names it in the same frame names it right. All
//! else waits for the collection at the end of a frame with snapshots.
//!
//! An entity that is hidden from ordinary queries (`Disabled`, or another of Bevy's default query filters) is replicated
//! like any other: its copies stay, and follow what happens to it.

use std::cell::RefCell;

use bevy::ecs::entity::EntityHashMap;
use bevy::ecs::entity_disabling::DefaultQueryFilters;
use bevy::ecs::query::{FilteredAccess, QueryBuilder, QueryData, QueryFilter};
use bevy::ecs::system::{ParamBuilder, QueryParamBuilder, SystemParam, SystemParamBuilder};
use bevy::platform::collections::{HashMap, HashSet};
use bevy::prelude::*;
use smallvec::SmallVec;

use super::rooms;
use super::send::is_send_tick;
use super::types::ServerTypes;
use crate::protocol::archive::Archive;
use crate::protocol::layout::{ComponentId, Meta, NetId};
use crate::registry::{ComponentRule, Registry};
use crate::replication::{OwnedBy, Owner, PredictedBy, Priority, Replicated, Simulated};
use crate::schedule::{CurrentTick, TandemSystems};
use crate::session::Session;

/// Collects what changed for replication.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplicationPlugin;

/// The order within [`TandemSystems::Collect`].
#[derive(SystemSet, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum CollectSystems {
    /// What was marked or despawned, entered or left.
    Entities,
    /// What changed in them.
    Components,
}

impl Plugin for ReplicationPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Pending>()
            .init_resource::<Nets>()
            .configure_sets(
                PostUpdate,
                (CollectSystems::Entities, CollectSystems::Components)
                    .chain()
                    .in_set(TandemSystems::Collect)
                    .run_if(is_send_tick),
            )
            .add_systems(PostUpdate, apply_pending.in_set(CollectSystems::Entities))
            .add_systems(PostUpdate, forget_former.after(TandemSystems::Collect))
            .add_observer(admit)
            .add_observer(retire)
            .add_observer(note_meta::<Insert, OwnedBy>)
            .add_observer(note_meta::<Remove, OwnedBy>)
            .add_observer(note_meta::<Remove, PredictedBy>)
            .add_observer(note_meta::<Remove, Priority>)
            .add_observer(name_owner::<Insert>)
            .add_observer(name_owner::<Remove>);
    }

    fn finish(&self, app: &mut App) {
        let layouts = Registry::freeze(app);
        app.insert_resource(Replication {
            archive: Archive::new(layouts),
            entities: Vec::new(),
            references: References::default(),
        });
        let settings = (ParamBuilder, QueryParamBuilder::new(see_all))
            .build_state(app.world_mut())
            .build_system(note_settings);
        app.add_systems(
            PostUpdate,
            settings
                .in_set(CollectSystems::Entities)
                .before(apply_pending),
        );
        for fns in ServerTypes::of(app).components.clone().iter() {
            (fns.install)(app);
        }
    }
}

/// Makes a query find also what default query filters hide: `Disabled`, and what games register beside it.
fn see_all<D: QueryData, F: QueryFilter>(builder: &mut QueryBuilder<D, F>) {
    let hiding: Vec<_> = builder
        .world()
        .get_resource::<DefaultQueryFilters>()
        .map(|filters| filters.disabling_ids().collect())
        .unwrap_or_default();
    for id in hiding {
        // As `Allow` does it: a query that asks whether there is such a component is not filtered by it.
        let mut access = FilteredAccess::matches_everything();
        access.access_mut().add_archetypal(id);
        builder.extend_access(access);
    }
}

/// What is replicated, in the protocol's terms.
#[derive(Resource)]
pub(crate) struct Replication {
    pub archive: Archive,
    /// By the indices of their ids.
    entities: Vec<Option<(NetId, Entity)>>,
    references: References,
}

impl Replication {
    /// The entity that has this id. Those that are gone are forgotten at once, unless the world is being collected.
    pub fn entity(&self, net: NetId) -> Option<Entity> {
        let (known, entity) = (*self.entities.get(net.index() as usize)?)?;
        (known == net).then_some(entity)
    }

    /// Gives an entity an id, before it is in the archive.
    fn name(&mut self, entity: Entity) -> NetId {
        let net = self.archive.reserve();
        let index = net.index() as usize;
        self.entities
            .resize(self.entities.len().max(index + 1), None);
        self.entities[index] = Some((net, entity));
        net
    }

    fn forget(&mut self, tick: crate::tick::Tick, net: NetId) {
        self.archive.despawn(tick, net);
        self.references.forget(net);
        self.forget_entity(net);
    }

    fn forget_entity(&mut self, net: NetId) {
        if let Some(slot) = self.entities.get_mut(net.index() as usize)
            && slot.is_some_and(|(known, _)| known == net)
        {
            *slot = None;
        }
    }
}

/// Which components name an entity: they are told again when it comes by an id, or by another.
#[derive(Debug, Default)]
struct References {
    holders: EntityHashMap<HashSet<(NetId, ComponentId)>>,
    /// For each holder, its components that name entities.
    named: HashMap<NetId, SmallVec<[(ComponentId, Names); 1]>>,
}

type Names = SmallVec<[Entity; 1]>;

impl References {
    /// A component now names these.
    fn set(&mut self, net: NetId, component: ComponentId, names: &[Entity]) {
        let before = self.named.get(&net).and_then(|of| {
            let names = of.iter().find(|(id, _)| *id == component);
            names.map(|(_, names)| names.clone())
        });
        if before.as_deref().unwrap_or_default() == names {
            return;
        }
        for name in before.unwrap_or_default() {
            self.release(name, (net, component));
        }
        let of = self.named.entry(net).or_default();
        of.retain(|(id, _)| *id != component);
        if !names.is_empty() {
            of.push((component, names.into()));
        } else if of.is_empty() {
            self.named.remove(&net);
        }
        for &name in names {
            let holders = self.holders.entry(name).or_default();
            holders.insert((net, component));
        }
    }

    /// A holder is gone.
    fn forget(&mut self, net: NetId) {
        for (component, names) in self.named.remove(&net).unwrap_or_default() {
            for name in names {
                self.release(name, (net, component));
            }
        }
    }

    fn release(&mut self, name: Entity, holder: (NetId, ComponentId)) {
        if let Some(holders) = self.holders.get_mut(&name) {
            holders.remove(&holder);
            if holders.is_empty() {
                self.holders.remove(&name);
            }
        }
    }
}

/// The id by which both sides know this entity. A clone of the entity is another.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
#[component(clone_behavior = Ignore)]
pub(crate) struct NetEntity(pub NetId);

/// The ids of this app's entities.
#[derive(Resource, Default)]
pub(crate) struct Nets {
    current: EntityHashMap<NetId>,
    /// Ids that entities have lost since messages were last collected. Those may still name them.
    former: EntityHashMap<NetId>,
}

impl Nets {
    /// The id of an entity that is replicated.
    pub fn current(&self, entity: Entity) -> Option<NetId> {
        self.current.get(&entity).copied()
    }
}

/// The entity that has this id, unless it was despawned, or is replicated no more, since the last collection.
pub(crate) fn living(world: &World, net: NetId) -> Option<Entity> {
    let entity = world.resource::<Replication>().entity(net)?;
    (world.resource::<Nets>().current(entity) == Some(net)).then_some(entity)
}

/// What happened to entities since the last collection. Changes of values are found by change detection instead.
#[derive(Resource, Default)]
pub(crate) struct Pending {
    admitted: Vec<Entity>,
    retired: Vec<(Entity, NetId)>,
    removed: Vec<(NetId, ComponentId)>,
    meta: Vec<Entity>,
    /// Entities and sessions whose room may be another.
    pub moved: Vec<Entity>,
}

/// Looks up network ids for messages: of entities that are replicated, also since this frame, and of those that are no
/// more since this frame.
#[derive(SystemParam)]
pub(crate) struct NetIds<'w> {
    nets: Res<'w, Nets>,
}

impl NetIds<'_> {
    pub fn get(&self, entity: Entity) -> Option<NetId> {
        let former = || self.nets.former.get(&entity).copied();
        self.nets.current(entity).or_else(former)
    }
}

/// Runs after every collection of messages.
fn forget_former(mut nets: ResMut<Nets>) {
    if !nets.former.is_empty() {
        nets.former.clear();
    }
}

/// Server-side work on one component type.
#[derive(Clone, Copy)]
pub(crate) struct CaptureFns {
    install: fn(&mut App),
    /// Stores the component's value, if the entity has it.
    capture: fn(&World, Entity, NetId, &mut Replication, &mut Vec<u8>),
}

impl CaptureFns {
    pub const fn of<C: Component + Clone>() -> Self {
        Self {
            install: install::<C>,
            capture: capture::<C>,
        }
    }
}

fn capture<C: Component + Clone>(
    world: &World,
    entity: Entity,
    net: NetId,
    replication: &mut Replication,
    scratch: &mut Vec<u8>,
) {
    if let Some(value) = world.get::<C>(entity) {
        let tick = world.resource::<CurrentTick>();
        let rule = world.resource::<ComponentRule<C>>();
        let nets = world.resource::<Nets>();
        store(rule, tick, nets, replication, net, value, scratch);
    }
}

/// Hands a value to the archive, and remembers whom it names.
fn store<C: Component + Clone>(
    rule: &ComponentRule<C>,
    tick: &CurrentTick,
    nets: &Nets,
    replication: &mut Replication,
    net: NetId,
    value: &C,
    scratch: &mut Vec<u8>,
) {
    let named = RefCell::new(Names::new());
    let find = |entity| {
        if entity != Entity::PLACEHOLDER {
            named.borrow_mut().push(entity);
        }
        nets.current(entity)
    };
    rule.store(&mut replication.archive, tick.0, net, value, &find, scratch);
    replication.references.set(net, rule.id, &named.borrow());
}

fn install<C: Component + Clone>(app: &mut App) {
    let collect = (
        ParamBuilder,
        ParamBuilder,
        ParamBuilder,
        ParamBuilder,
        QueryParamBuilder::new(see_all),
        ParamBuilder,
    )
        .build_state(app.world_mut())
        .build_system(collect_changes::<C>);
    app.add_systems(PostUpdate, collect.in_set(CollectSystems::Components))
        .add_observer(note_removal::<C>);
}

/// Hands every changed value to the archive. Bevy's change detection finds them; nothing else looks at idle entities.
fn collect_changes<C: Component + Clone>(
    rule: Res<ComponentRule<C>>,
    tick: Res<CurrentTick>,
    nets: Res<Nets>,
    mut replication: ResMut<Replication>,
    changed: Query<(&C, &NetEntity), Changed<C>>,
    mut scratch: Local<Vec<u8>>,
) {
    for (value, net) in &changed {
        store(
            &rule,
            &tick,
            &nets,
            &mut replication,
            net.0,
            value,
            &mut scratch,
        );
    }
}

fn admit(
    added: On<Add, Replicated>,
    replication: Option<ResMut<Replication>>,
    mut nets: ResMut<Nets>,
    mut pending: ResMut<Pending>,
    mut commands: Commands,
) {
    let entity = added.entity;
    pending.admitted.push(entity);
    // While plugins are still built, or the world is being collected, the id has to wait for the next collection.
    if let Some(mut replication) = replication {
        let net = replication.name(entity);
        nets.current.insert(entity, net);
    }
    commands.queue(move |world: &mut World| mark(world, entity));
}

fn retire(
    removed: On<Remove, Replicated>,
    replication: Option<ResMut<Replication>>,
    mut nets: ResMut<Nets>,
    mut pending: ResMut<Pending>,
    mut commands: Commands,
) {
    let entity = removed.entity;
    if let Some(net) = nets.current.remove(&entity) {
        nets.former.insert(entity, net);
        pending.retired.push((entity, net));
        if let Some(mut replication) = replication {
            replication.forget_entity(net);
        }
        commands.queue(move |world: &mut World| mark(world, entity));
    }
}

/// Gives an entity what replicated ones have, or takes it. By the state of things when this is reached: a command before
/// it may have taken the marker, or given it back.
fn mark(world: &mut World, entity: Entity) {
    let net = world.resource::<Nets>().current(entity).map(NetEntity);
    let Ok(mut entity) = world.get_entity_mut(entity) else {
        return;
    };
    if !entity.contains::<Replicated>() {
        entity.remove::<(NetEntity, Simulated)>();
    } else if let Some(net) = net.filter(|net| entity.get() != Some(net)) {
        entity.insert((net, Simulated));
    } else {
        entity.insert_if_new(Simulated);
    }
}

fn note_removal<C: Component + Clone>(
    removed: On<Remove, C>,
    rule: Res<ComponentRule<C>>,
    nets: Res<Nets>,
    mut pending: ResMut<Pending>,
) {
    if let Some(net) = nets.current(removed.entity) {
        pending.removed.push((net, rule.id));
    }
}

fn note_meta<E: EntityEvent, C: Component>(
    event: On<E, C>,
    nets: Res<Nets>,
    mut pending: ResMut<Pending>,
) {
    let entity = event.event_target();
    if nets.current(entity).is_some() {
        pending.meta.push(entity);
    }
}

/// Settings may be changed in place, which no observer sees.
fn note_settings(
    mut pending: ResMut<Pending>,
    changed: Query<
        Entity,
        (
            With<NetEntity>,
            Or<(Changed<PredictedBy>, Changed<Priority>)>,
        ),
    >,
) {
    pending.meta.extend(&changed);
}

fn name_owner<E: EntityEvent>(event: On<E, OwnedBy>, mut commands: Commands) {
    let entity = event.event_target();
    commands.queue(move |world: &mut World| {
        // A command before this one may have handed it on.
        let owner = world.get::<OwnedBy>(entity);
        let session = owner.and_then(|owner| world.get::<Session>(owner.0));
        let owner = session.map(|session| Owner(session.id));
        let Ok(mut entity) = world.get_entity_mut(entity) else {
            return;
        };
        match owner {
            Some(owner) if entity.get() != Some(&owner) => drop(entity.insert(owner)),
            Some(_) => {}
            None => drop(entity.remove::<Owner>()),
        }
    });
}

/// Brings the archive up to date with what entered, left, or changed hands.
fn apply_pending(world: &mut World) {
    let pending = std::mem::take(&mut *world.resource_mut::<Pending>());
    let tick = world.resource::<CurrentTick>().0;
    world.resource_scope(|world, mut replication: Mut<Replication>| {
        // Entities whose ids are others than before.
        let mut renamed = Vec::new();
        for (entity, net) in pending.retired {
            replication.forget(tick, net);
            match world.get_entity(entity) {
                Ok(_) => renamed.push(entity),
                // What still names it names nobody, now and later.
                Err(_) => drop(replication.references.holders.remove(&entity)),
            }
        }
        for (net, component) in pending.removed {
            replication.archive.remove(tick, net, component);
            replication.references.set(net, component, &[]);
        }
        let mut admitted = Vec::new();
        for entity in pending.admitted {
            admitted.extend(enter(world, &mut replication, entity));
        }
        // Values come after all ids are known, so that entities in them are found.
        let types = world.resource::<ServerTypes>().components.clone();
        let mut scratch = Vec::new();
        for &(entity, net) in &admitted {
            for fns in types.iter() {
                (fns.capture)(world, entity, net, &mut replication, &mut scratch);
            }
        }
        renamed.extend(admitted.iter().map(|(entity, _)| *entity));
        tell_holders_again(world, &mut replication, &renamed);
        for entity in pending.meta {
            if let Some(net) = world.resource::<Nets>().current(entity) {
                let (meta, priority) = describe(world, entity);
                replication.archive.set_meta(tick, net, meta);
                replication.archive.set_priority(net, priority);
            }
        }
        rooms::apply_moves(world, &mut replication.archive, tick, &pending.moved);
    });
}

/// Puts an entity that was marked into the archive, unless it is there or is marked no more.
fn enter(
    world: &mut World,
    replication: &mut Replication,
    entity: Entity,
) -> Option<(Entity, NetId)> {
    let marked = world.get_entity(entity).ok()?;
    if !marked.contains::<Replicated>() {
        return None;
    }
    let tick = world.resource::<CurrentTick>().0;
    let known = world.resource::<Nets>().current(entity);
    let net = known.unwrap_or_else(|| {
        let net = replication.name(entity);
        world.resource_mut::<Nets>().current.insert(entity, net);
        net
    });
    if replication.archive.contains(net) {
        return None;
    }
    let (meta, priority) = describe(world, entity);
    let partition = rooms::place(world, &mut replication.archive, entity);
    replication
        .archive
        .spawn_as(net, tick, partition, meta, priority);
    if world.get::<NetEntity>(entity) != Some(&NetEntity(net)) {
        world.entity_mut(entity).insert(NetEntity(net));
    }
    Some((entity, net))
}

/// Components that name these entities name them differently from now on.
fn tell_holders_again(world: &World, replication: &mut Replication, renamed: &[Entity]) {
    let types = &world.resource::<ServerTypes>().components;
    let mut scratch = Vec::new();
    for entity in renamed {
        let Some(holders) = replication.references.holders.get(entity) else {
            continue;
        };
        let mut holders: Vec<_> = holders.iter().copied().collect();
        holders.sort_unstable();
        for (net, component) in holders {
            if let Some(holder) = replication.entity(net) {
                let fns = &types[usize::from(component.0)];
                (fns.capture)(world, holder, net, replication, &mut scratch);
            }
        }
    }
}

fn describe(world: &World, entity: Entity) -> (Meta, f32) {
    let owner = world
        .get::<OwnedBy>(entity)
        .and_then(|owner| world.get::<Session>(owner.0))
        .map(|session| session.id.0);
    let predicted_by = world
        .get::<PredictedBy>(entity)
        .copied()
        .unwrap_or_default();
    let priority = world.get::<Priority>(entity).copied().unwrap_or_default();
    (
        Meta {
            owner,
            predicted_by,
        },
        priority.0,
    )
}
