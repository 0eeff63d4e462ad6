//! From the server's world to the archive: what changed, once per snapshot, quantised once for all clients.

use bevy::ecs::system::SystemParam;
use bevy::prelude::*;

use super::rooms;
use super::send::is_send_tick;
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
enum CollectSystems {
    /// What was marked or despawned, entered or left.
    Entities,
    /// What changed in them.
    Components,
}

impl Plugin for ReplicationPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Pending>()
            .configure_sets(
                PostUpdate,
                (CollectSystems::Entities, CollectSystems::Components)
                    .chain()
                    .in_set(TandemSystems::Collect)
                    .run_if(is_send_tick),
            )
            .add_systems(PostUpdate, apply_pending.in_set(CollectSystems::Entities))
            .add_observer(admit)
            .add_observer(retire)
            .add_observer(note_meta::<Insert, OwnedBy>)
            .add_observer(note_meta::<Remove, OwnedBy>)
            .add_observer(note_meta::<Insert, PredictedBy>)
            .add_observer(note_meta::<Remove, PredictedBy>)
            .add_observer(note_meta::<Insert, Priority>)
            .add_observer(name_owner)
            .add_observer(forget_owner);
    }

    fn finish(&self, app: &mut App) {
        let layouts = Registry::freeze(app);
        app.insert_resource(Replication {
            archive: Archive::new(layouts),
            entities: Vec::new(),
        });
        for entry in app.world().resource::<Registry>().components.clone().iter() {
            (entry.install_server)(app);
        }
    }
}

/// What is replicated, in the protocol's terms.
#[derive(Resource)]
pub(crate) struct Replication {
    pub archive: Archive,
    /// By the indices of their ids.
    entities: Vec<Option<(NetId, Entity)>>,
}

impl Replication {
    /// The entity that clients know by this id.
    pub fn entity(&self, net: NetId) -> Option<Entity> {
        let (known, entity) = (*self.entities.get(net.index() as usize)?)?;
        (known == net).then_some(entity)
    }
}

/// The id by which both sides know this entity.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetEntity(pub NetId);

/// What happened to entities since the last collection. Changes of values are found by change detection instead.
#[derive(Resource, Default)]
pub(crate) struct Pending {
    admitted: Vec<Entity>,
    retired: Vec<NetId>,
    removed: Vec<(NetId, ComponentId)>,
    meta: Vec<Entity>,
    /// Entities and sessions whose room may be another.
    pub moved: Vec<Entity>,
}

/// Looks up network ids of entities.
#[derive(SystemParam)]
pub(crate) struct NetIds<'w, 's> {
    ids: Query<'w, 's, &'static NetEntity>,
}

impl NetIds<'_, '_> {
    pub fn get(&self, entity: Entity) -> Option<NetId> {
        self.ids.get(entity).ok().map(|net| net.0)
    }
}

/// Server-side work on one component type.
#[derive(Clone, Copy)]
pub(crate) struct ComponentFns {
    /// Stores the component's value, if the entity has it.
    capture: fn(&World, Entity, NetId, &mut Archive, &mut Vec<u8>),
}

impl ComponentFns {
    pub const fn of<C: Component + Clone>() -> Self {
        Self {
            capture: capture::<C>,
        }
    }
}

fn capture<C: Component + Clone>(
    world: &World,
    entity: Entity,
    net: NetId,
    archive: &mut Archive,
    scratch: &mut Vec<u8>,
) {
    if let Some(value) = world.get::<C>(entity) {
        let nets = |entity| world.get::<NetEntity>(entity).map(|net| net.0);
        let tick = world.resource::<CurrentTick>().0;
        world
            .resource::<ComponentRule<C>>()
            .store(archive, tick, net, value, &nets, scratch);
    }
}

pub(crate) fn install<C: Component + Clone>(app: &mut App) {
    app.add_systems(
        PostUpdate,
        collect_changes::<C>.in_set(CollectSystems::Components),
    )
    .add_observer(note_removal::<C>);
}

/// Hands every changed value to the archive. Bevy's change detection finds them; nothing else looks at idle entities.
fn collect_changes<C: Component + Clone>(
    rule: Res<ComponentRule<C>>,
    tick: Res<CurrentTick>,
    mut replication: ResMut<Replication>,
    changed: Query<(&C, &NetEntity), Changed<C>>,
    nets: NetIds,
    mut scratch: Local<Vec<u8>>,
) {
    for (value, net) in &changed {
        let nets = |entity| nets.get(entity);
        rule.store(
            &mut replication.archive,
            tick.0,
            net.0,
            value,
            &nets,
            &mut scratch,
        );
    }
}

fn admit(added: On<Add, Replicated>, mut pending: ResMut<Pending>, mut commands: Commands) {
    pending.admitted.push(added.entity);
    commands.entity(added.entity).try_insert(Simulated);
}

fn retire(
    removed: On<Remove, Replicated>,
    nets: NetIds,
    mut pending: ResMut<Pending>,
    mut commands: Commands,
) {
    if let Some(net) = nets.get(removed.entity) {
        pending.retired.push(net);
        commands
            .entity(removed.entity)
            .try_remove::<(NetEntity, Simulated)>();
    }
}

fn note_removal<C: Component + Clone>(
    removed: On<Remove, C>,
    rule: Res<ComponentRule<C>>,
    nets: NetIds,
    mut pending: ResMut<Pending>,
) {
    if let Some(net) = nets.get(removed.entity) {
        pending.removed.push((net, rule.id));
    }
}

fn note_meta<E: EntityEvent, C: Component>(
    event: On<E, C>,
    nets: NetIds,
    mut pending: ResMut<Pending>,
) {
    let entity = event.event_target();
    if nets.get(entity).is_some() {
        pending.meta.push(entity);
    }
}

fn name_owner(
    owned: On<Insert, OwnedBy>,
    owners: Query<&OwnedBy>,
    sessions: Query<&Session>,
    mut commands: Commands,
) {
    if let Ok(owner) = owners.get(owned.entity)
        && let Ok(session) = sessions.get(owner.0)
    {
        commands.entity(owned.entity).try_insert(Owner(session.id));
    }
}

fn forget_owner(disowned: On<Remove, OwnedBy>, mut commands: Commands) {
    commands.entity(disowned.entity).try_remove::<Owner>();
}

/// Brings the archive up to date with what entered, left, or changed hands.
fn apply_pending(world: &mut World) {
    let pending = std::mem::take(&mut *world.resource_mut::<Pending>());
    let tick = world.resource::<CurrentTick>().0;
    world.resource_scope(|world, mut replication: Mut<Replication>| {
        let Replication { archive, entities } = &mut *replication;
        for net in pending.retired {
            archive.despawn(tick, net);
            entities[net.index() as usize] = None;
        }
        let mut admitted = Vec::new();
        for entity in pending.admitted {
            let is_new = world.get_entity(entity).is_ok_and(|entity| {
                entity.contains::<Replicated>() && !entity.contains::<NetEntity>()
            });
            if !is_new {
                continue;
            }
            let (meta, priority) = describe(world, entity);
            let partition = rooms::place(world, archive, entity);
            let net = archive.spawn(tick, partition, meta, priority);
            let index = net.index() as usize;
            entities.resize(entities.len().max(index + 1), None);
            entities[index] = Some((net, entity));
            world.entity_mut(entity).insert(NetEntity(net));
            admitted.push((entity, net));
        }
        // Values come after all ids are known, so that entities in them are found.
        let entries = world.resource::<Registry>().components.clone();
        let mut scratch = Vec::new();
        for (entity, net) in admitted {
            for entry in entries.iter() {
                (entry.server.capture)(world, entity, net, archive, &mut scratch);
            }
        }
        for (net, component) in pending.removed {
            archive.remove(tick, net, component);
        }
        for entity in pending.meta {
            if let Some(&NetEntity(net)) = world.get::<NetEntity>(entity) {
                let (meta, priority) = describe(world, entity);
                archive.set_meta(tick, net, meta);
                archive.set_priority(net, priority);
            }
        }
        rooms::apply_moves(world, archive, tick, &pending.moved);
    });
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
