//! The protocol core: plain Rust without systems, sockets, clocks or global randomness.
//!
//! Bytes and time come in as arguments; nothing here sleeps or reads a clock.

pub mod acks;
pub mod clock;
pub mod input;
pub mod interpolation;
