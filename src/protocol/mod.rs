//! The protocol core: plain Rust without systems, sockets, clocks or global randomness.
//!
//! Bytes and time come in as arguments; nothing here sleeps or reads a clock.

pub mod acks;
pub mod archive;
pub mod backoff;
pub mod clock;
mod draft;
pub mod handshake;
pub mod input;
pub mod interpolation;
pub mod layout;
pub mod limits;
pub mod names;
pub mod pacing;
pub mod reliable;
pub mod replica;
pub mod resume;
pub mod snapshot;
pub mod view;
