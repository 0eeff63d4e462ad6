//! Says which raw bytes may reach the crates that do the work.
//!
//! `renetcode` and `renet` trust some of what they are sent. A stranger who knows a client's
//! address can stop a server built on the first before anything is decrypted, and a player can
//! stop one built on the second after logging in. So every datagram passes a filter that knows
//! what the other side can legally say: [`netcode`] on the raw datagram, [`renet`] on the renet
//! packets inside it. The tests in each file show what the crate does with what its filter stops.

#[cfg(not(target_family = "wasm"))]
pub mod netcode;
pub mod renet;

#[cfg(not(target_family = "wasm"))]
pub use self::netcode::{ConnectionRequest, Sender};
pub use self::renet::{RenetFilter, RenetRejection};
