//! Players, as the server sees them.
//!
//! A session outlives its connection. When a link dies, the session is [away](Away): its entities, its room and its
//! messages stay, for [`resume_window`](crate::server::ServerConfig::resume_window). A client that comes back within
//! that time, over whatever link, goes on where it was.

use std::time::Duration;

use bevy::prelude::*;

use crate::protocol::handshake::DisconnectReason;
pub use crate::protocol::layout::SessionId;

/// A player's presence: an entity on the server.
///
/// A game that despawns it, or takes this component off, ends the session for its client at once, which is told so as by a
/// [`Kick`]. [`SessionLeft`] comes in that case while the entity is still there to be looked at.
#[derive(Component, Clone, Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// What the player calls themselves: 1 to 32 visible characters. Not unique.
    pub name: String,
    /// Operating system and architecture of the client, or `browser`, as it says.
    pub platform: String,
}

/// On a session without a link: its client has lost the connection and may come back.
#[derive(Component, Clone, Debug)]
pub struct Away {
    /// Since when, in the app's real time.
    pub since: Duration,
    /// How the link ended.
    pub reason: DisconnectReason,
}

/// A player has joined: the place to spawn what they steer.
#[derive(EntityEvent, Clone, Copy, Debug)]
pub struct SessionJoined {
    /// The session.
    pub entity: Entity,
}

/// A session has lost its link. It stays until its client is back or the resume window is over.
#[derive(EntityEvent, Clone, Debug)]
pub struct SessionAway {
    /// The session.
    pub entity: Entity,
    /// How the link ended.
    pub reason: DisconnectReason,
}

/// A session's client is back, over a new link.
#[derive(EntityEvent, Clone, Copy, Debug)]
pub struct SessionReturned {
    /// The session.
    pub entity: Entity,
    /// Messages to the client that are lost, because it was away for longer than they could be kept.
    pub lost: u64,
}

/// A player has left. The session entity and all that it [owns](crate::replication::Owns) are despawned after this, and
/// after the commands of those who observe it: what is [owned by](crate::replication::OwnedBy) somebody else then, or by
/// nobody, stays.
#[derive(EntityEvent, Clone, Debug)]
pub struct SessionLeft {
    /// The session.
    pub entity: Entity,
    /// Why.
    pub reason: DisconnectReason,
}

/// Makes the server end a session: for the game at once. Its client still gets the reliable messages that were written to
/// it before, in the same frame too, and then the reason. For that, its link stays for a round trip or two: for 10 s at most,
/// and for 2 s if nothing comes through.
#[derive(Event, Clone, Debug)]
pub struct Kick {
    /// Whom.
    pub session: Entity,
    /// Shown to the player: the first [`MAX_REASON_BYTES`](crate::protocol::handshake::MAX_REASON_BYTES) of it.
    pub reason: String,
}

/// Makes the server end a session and refuse its player for a time: by who they are, if that is
/// [verified](crate::identity::Identity::verified), and by address.
#[derive(Event, Clone, Debug)]
pub struct Ban {
    /// Whom.
    pub session: Entity,
    /// Shown to the player, now and when they try again: the first
    /// [`MAX_REASON_BYTES`](crate::protocol::handshake::MAX_REASON_BYTES) of it.
    pub reason: String,
    /// For how long.
    pub duration: Duration,
}

/// The app will stop shortly: a signal arrived, or its time is up. Servers let nobody in from here on, and tell their
/// clients how long they stay.
#[derive(Event, Clone, Copy, Debug)]
pub struct ShutdownRequested {
    /// For how long the app still runs.
    pub grace: Duration,
}
