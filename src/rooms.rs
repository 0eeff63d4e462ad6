//! Rooms: groups of sessions and entities that see each other, and nobody else.

use bevy::prelude::*;

/// A room: an entity of the server that sessions and entities are [in](InRoom).
///
/// A session sees the entities of its room, and those of no room. When the room entity is despawned, its sessions and
/// entities are in no room.
#[derive(Component, Clone, Copy, Debug, Default)]
pub struct Room;

/// The room that a session or an entity is in.
///
/// Without it, a session sees only what is in no room, and an entity is seen by all. Children without a room of their
/// own are where their parent is.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
#[relationship(relationship_target = RoomMembers)]
pub struct InRoom(#[entities] pub Entity);

/// The sessions and entities in a room.
#[derive(Component, Debug, Default)]
#[relationship_target(relationship = InRoom)]
pub struct RoomMembers(Vec<Entity>);
