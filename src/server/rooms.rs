//! Which partition of the archive a room is, and who sees it.

use bevy::ecs::world::DeferredWorld;
use bevy::platform::collections::HashSet;
use bevy::prelude::*;

use super::collect::{NetEntity, Pending};
use super::send::Outgoing;
use crate::hierarchy::ancestors;
use crate::protocol::archive::{Archive, PartitionId};
use crate::rooms::{InRoom, Room, RoomMembers};
use crate::tick::Tick;

/// Keeps the archive's partitions in step with rooms.
pub(super) struct RoomPlugin;

impl Plugin for RoomPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<ClosedRooms>()
            .add_observer(open)
            .add_observer(close)
            .add_observer(note_move::<Insert, InRoom>)
            .add_observer(note_move::<Remove, InRoom>)
            .add_observer(note_move::<Insert, ChildOf>)
            .add_observer(note_move::<Remove, ChildOf>);
    }
}

/// The archive's name for a room. Made when its first member has to be placed. A clone of the room is another.
#[derive(Component, Clone, Copy)]
#[component(clone_behavior = Ignore)]
struct RoomPartition(PartitionId);

/// Partitions of rooms that are gone.
#[derive(Resource, Default)]
struct ClosedRooms(Vec<PartitionId>);

fn open(added: On<Add, RoomMembers>, mut commands: Commands) {
    commands.entity(added.entity).try_insert_if_new(Room);
}

fn close(removed: On<Remove, Room>, mut world: DeferredWorld) {
    let room = removed.entity;
    if let Some(&RoomPartition(partition)) = world.get(room) {
        world.resource_mut::<ClosedRooms>().0.push(partition);
        world
            .commands()
            .entity(room)
            .try_remove::<(RoomPartition, RoomMembers)>();
    }
}

fn note_move<E: EntityEvent, C: Component>(event: On<E, C>, mut pending: ResMut<Pending>) {
    pending.moved.push(event.event_target());
}

/// The room an entity is in: its own, or that of the nearest ancestor which has one.
fn room_of(world: &World, entity: Entity) -> Option<Entity> {
    let mut nearest_first = std::iter::once(entity).chain(ancestors(world, entity));
    nearest_first.find_map(|at| Some(world.get::<InRoom>(at)?.0))
}

/// The partition that an entity belongs in.
pub(super) fn place(world: &mut World, archive: &mut Archive, entity: Entity) -> PartitionId {
    let Some(room) = room_of(world, entity) else {
        return PartitionId::GLOBAL;
    };
    if let Some(partition) = world.get::<RoomPartition>(room) {
        return partition.0;
    }
    let partition = archive.add_partition();
    world.entity_mut(room).insert(RoomPartition(partition));
    partition
}

/// Moves entities, and what sessions see, to where they are now.
pub(super) fn apply_moves(world: &mut World, archive: &mut Archive, tick: Tick, moved: &[Entity]) {
    // Entities first: a session that moves with its own entity then finds it in the new room.
    let mut queue = moved.to_vec();
    let mut seen = HashSet::new();
    let mut sessions = Vec::new();
    while let Some(entity) = queue.pop() {
        if world.get_entity(entity).is_err() || !seen.insert(entity) {
            continue;
        }
        if let Some(&NetEntity(net)) = world.get::<NetEntity>(entity) {
            let partition = place(world, archive, entity);
            archive.move_to(tick, net, partition);
        }
        if world.get::<Outgoing>(entity).is_some() {
            sessions.push(entity);
        }
        if let Some(children) = world.get::<Children>(entity) {
            queue.extend(children.iter());
        }
    }
    for session in sessions {
        show_room(world, archive, tick, session);
    }
    for partition in std::mem::take(&mut world.resource_mut::<ClosedRooms>().0) {
        archive.remove_partition(tick, partition);
    }
}

/// Lets a session see the room that it is in, and what is in no room.
pub(super) fn show_room(world: &mut World, archive: &mut Archive, tick: Tick, session: Entity) {
    let partitions = match place(world, archive, session) {
        PartitionId::GLOBAL => vec![PartitionId::GLOBAL],
        room => vec![PartitionId::GLOBAL, room],
    };
    if let Some(mut outgoing) = world.get_mut::<Outgoing>(session) {
        outgoing.view.set_partitions(archive, tick, &partitions);
    }
}
