//! Players, as the server sees them.

use std::fmt;

use bevy::prelude::*;
use serde::{Deserialize, Serialize};

use crate::protocol::handshake::DisconnectReason;

/// The number of a session, the same on server and clients. Never given out twice by one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u32);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A player's presence: an entity on the server.
#[derive(Component, Clone, Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// What the player calls themselves: 1 to 32 characters, no control characters. Not unique.
    pub name: String,
}

/// A player has joined: the place to spawn what they steer.
#[derive(EntityEvent, Clone, Copy, Debug)]
pub struct SessionJoined {
    /// The session.
    pub entity: Entity,
}

/// A player has left. The session entity and all that it [owns](crate::replication::Owns) are despawned after this.
#[derive(EntityEvent, Clone, Debug)]
pub struct SessionLeft {
    /// The session.
    pub entity: Entity,
    /// Why.
    pub reason: DisconnectReason,
}

/// Makes the server end a session.
#[derive(Event, Clone, Debug)]
pub struct Kick {
    /// Whom.
    pub session: Entity,
    /// Shown to the player.
    pub reason: String,
}
