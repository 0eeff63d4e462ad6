//! Links over UDP, by netcode 1.02 (`renetcode`): connect tokens, encryption, replay protection.
//!
//! `renetcode` brings the protocol for at most a thousand clients, found by walking through them.
//! [`UdpServer`] puts many small [`NetcodeServer`](renetcode::NetcodeServer)s behind one socket and
//! finds the right one by hash maps of its own, see `shards`. Two threads do the work, so that
//! the kernel's buffer is emptied while the app is busy, and encryption costs no frame time.
//! [`UdpClient`] needs no thread: bots run by the hundred.
//!
//! Every datagram passes a [filter](super::filter) before `renetcode` sees it.

mod client;
mod server;
mod shards;
mod socket;
mod standard;
#[cfg(test)]
mod tests;
pub mod token;
#[cfg(test)]
mod wire_tests;

pub use client::{ClientAuth, ConnectError, UdpClient, UdpClientConfig};
pub use server::{Auth, BindError, UdpServer, UdpServerConfig};

/// What clients and servers assume unless told: `b"tandem_1"`.
///
/// Give each game, and each incompatible version of it, an id of its own.
pub const DEFAULT_PROTOCOL_ID: u64 = u64::from_be_bytes(*b"tandem_1");

/// How often a farewell is sent, since nobody confirms it: as in netcode's reference.
const FAREWELLS: usize = 10;

/// `renetcode` takes the time in steps. One long step, after the process was suspended or busy,
/// would time everyone out before what they sent meanwhile is read, so steps are cut to this.
const MAX_TIME_STEP: core::time::Duration = core::time::Duration::from_secs(1);
