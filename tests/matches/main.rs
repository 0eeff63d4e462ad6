//! Small matches: time, messages and sessions as games use them. What they do to copies is in `copies`.
//!
//! Many of these are kinds of faults that users of other netcode libraries have met.

#[path = "../copies/game.rs"]
#[allow(dead_code)]
mod game;
mod messages;
mod sessions;
#[path = "../copies/ships.rs"]
#[allow(dead_code)]
mod ships;
#[cfg(feature = "websocket")]
mod sockets;
#[path = "../support/mod.rs"]
mod support;
mod time;
