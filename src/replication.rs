//! The components with which a game says what is replicated, to whom, and who simulates it.

use bevy::prelude::*;
use serde::{Deserialize, Serialize};

pub use crate::protocol::layout::PredictedBy;
use crate::tick::Tick;

/// An entity that clients have a copy of.
///
/// Put it on entities of the server; registered components, [`OwnedBy`], [`PredictedBy`] and `ChildOf` follow, as
/// long as the entity is [in view](crate::rooms::InRoom). Children are replicated when they are marked themselves.
/// Removing it, or despawning the entity, removes the copies. The copies carry it too.
///
/// An entity that Bevy's default query filters hide (`Disabled`, or a component that the game registers as such) is
/// replicated like any other: its copies stay, and follow what happens to it.
#[derive(Component, Clone, Copy, Debug, Default)]
pub struct Replicated;

/// An entity that this app advances now: every replicated entity on the server, predicted ones on a client.
///
/// Game systems in [`FixedUpdate`] ask for it, and so run unchanged on the server, on clients and in replays.
#[derive(Component, Clone, Copy, Debug, Default)]
pub struct Simulated;

/// The session whose player steers this entity, on the server.
///
/// Owned entities receive the session's [inputs](crate::input::Input), are predicted by its client unless
/// [`PredictedBy`] says otherwise, and are despawned with it.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
#[relationship(relationship_target = Owns)]
pub struct OwnedBy(#[entities] pub Entity);

/// The entities of a session; see [`OwnedBy`].
#[derive(Component, Debug, Default)]
#[relationship_target(relationship = OwnedBy, linked_spawn)]
pub struct Owns(Vec<Entity>);

/// On a client: an entity that the local player owns.
#[derive(Component, Clone, Copy, Debug, Default)]
pub struct Owned;

/// On a client: an entity that is simulated ahead of the server, and corrected where that was wrong.
#[derive(Component, Clone, Copy, Debug, Default)]
pub struct Predicted;

/// On a client: an entity that is shown slightly in the past, between two snapshots.
#[derive(Component, Clone, Copy, Debug, Default)]
pub struct Interpolated;

/// Weight of an entity against others when not everything fits a snapshot. 1 when absent. It may be changed at any time.
///
/// An entity's claim grows with its priority for every tick that it waits, so nothing starves.
#[derive(Component, Clone, Copy, Debug, PartialEq)]
pub struct Priority(pub f32);

impl Default for Priority {
    fn default() -> Self {
        Self(1.0)
    }
}

/// Names an entity that both sides spawn, so that a client's early copy and the server's entity become one.
///
/// A system in [`FixedUpdate`] that spawns (a shot, say) runs on the server and, for predicted shooters, on the client
/// as well, some ticks earlier in real time. With the same key on both, the client's copy is taken over by the
/// server's entity when that arrives; a copy that the server does not confirm is removed.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpawnKey {
    /// The tick in which it was spawned.
    pub tick: Tick,
    /// Tells apart what is spawned in the same tick: the spawning player's number, a counter, or both.
    pub source: u64,
}

impl SpawnKey {
    /// The key of the `n`th entity that `owner` spawns in `tick`.
    pub fn new(owner: u32, tick: Tick, n: u8) -> Self {
        Self {
            tick,
            source: u64::from(owner) << 8 | u64::from(n),
        }
    }
}

/// The number of the owning session, on both sides: see [`SessionId`](crate::session::SessionId).
///
/// Follows [`OwnedBy`] on the server and is set on every copy.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub crate::session::SessionId);
