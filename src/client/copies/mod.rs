//! Changes to copies: how they come to be, change, move, and go.
//!
//! Each step first looks at what has to be done, with nothing of the game running, and then does it in as few moves as
//! there can be, since observers and hooks of the game run in between. They may despawn a copy, change it or leave the
//! server; so every step looks again whether the copy is still there.

mod leave;
mod parents;
mod play;
mod role;
mod spawn;
mod update;

use bevy::prelude::*;

pub(super) use leave::{despawn, despawn_all_leaving, despawn_due, leave};
pub(super) use parents::{parent_of, put_back};
pub(super) use play::play;
pub(super) use spawn::{parents_first, respawn, spawn_all};
pub(super) use update::{Update, retell_names, update};

/// An entity that stands for one of the server's.
#[derive(Component)]
pub(super) struct Mirrored;
