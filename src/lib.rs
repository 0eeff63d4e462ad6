//! Multiplayer for Bevy: a plugin that keeps a server's world and its clients' worlds in tandem.

pub mod protocol;
pub mod tick;
pub mod transport;
pub mod wire;
