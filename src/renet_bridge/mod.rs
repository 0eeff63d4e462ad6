//! Links over the `RenetServer` and `RenetClient` that a game already has, with whatever transport is under them:
//! netcode, Steam, one of its own.
//!
//! For games that use [`bevy_renet`] and want to keep it: for its relays, or for messages they send already.
//! All of bevy_tandem then travels over one unreliable channel of theirs. The other channels go on as before.
//!
//! ```no_run
//! use bevy::prelude::*;
//! use bevy_renet::renet::{ConnectionConfig, DefaultChannel};
//! use bevy_renet::{RenetClientPlugin, RenetServer, RenetServerPlugin};
//! use bevy_tandem::prelude::*;
//! use bevy_tandem::renet_bridge::{self, RenetBridgeClientPlugin, RenetBridgeServerPlugin};
//!
//! /// A number that none of the game's own channels has.
//! const TANDEM_CHANNEL: u8 = 9;
//!
//! /// The same on both sides, as ever with renet.
//! fn connection_config() -> ConnectionConfig {
//!     let mut channels = DefaultChannel::config();
//!     channels.push(renet_bridge::channel_config(TANDEM_CHANNEL));
//!     ConnectionConfig {
//!         server_channels_config: channels.clone(),
//!         client_channels_config: channels,
//!         ..default()
//!     }
//! }
//!
//! # fn game(_: &mut App) {}
//! fn server(app: &mut App) {
//!     app.insert_resource(RenetServer::new(connection_config()))
//!         .add_plugins(RenetServerPlugin) // and the plugin and resource of a transport
//!         .add_plugins((TandemServerPlugins::default(), RenetBridgeServerPlugin::new(TANDEM_CHANNEL), game));
//! }
//!
//! fn client(app: &mut App) {
//!     app.add_plugins(RenetClientPlugin) // likewise; the game inserts a `RenetClient` when it likes
//!         .add_plugins((TandemClientPlugins::default(), RenetBridgeClientPlugin::new(TANDEM_CHANNEL), game));
//! }
//! ```
//!
//! **One connection, one link.** Where renet connects, a link opens; where one ends, so does the other. So a client that
//! is kicked, or says no hello, is disconnected from renet, too, after its last word has been sent; and
//! [`Disconnect`](crate::client::Disconnect) ends the client's renet connection.
//!
//! **Coming back.** A `RenetClient` that is disconnected stays so. When the game inserts a new one (with a new transport),
//! the session goes on over it. Until then the client is
//! [`Reconnecting`](crate::client::ConnectionState::Reconnecting), and
//! [`ReconnectScheduled`](crate::client::ReconnectScheduled) says when a new one is expected.
//!
//! **Order.** Datagrams are taken over after `RenetReceive` and handed on before `RenetSend`. A transport of the game's
//! own should run in these sets.
//!
//! **What renet does not do.** It puts no bounds on what a connected peer sends it, and one that sends it a malformed
//! slice can crash it. The transports of this crate [filter](super::filter) such things; here renet gets everything
//! first.
//!
//! **Leaving at once.** A server's renet forgets what it has not read of a client when that disconnects. So a client that
//! leaves is disconnected only 0.2 s after its farewell. An app that exits does not wait, and netcode's transport then
//! disconnects: the server finds the link lost and keeps the session for a while. To leave for good, trigger
//! [`Disconnect`](crate::client::Disconnect) and exit when the `RenetClient` is disconnected. Likewise the clients of a
//! server that exits take their links for lost, and try to come back.
//!
//! # Panics
//!
//! renet panics when the channel is in neither list of its configuration.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bevy_renet::renet::{ChannelConfig, ClientId, DisconnectReason, SendType};

use crate::transport::{CloseReason, MAX_PAYLOAD_BYTES, TransportKind};

mod client;
mod server;

pub use client::RenetBridgeClientPlugin;
pub use server::RenetBridgeServerPlugin;

/// What sessions over such links are [linked over](crate::server::LinkedOver).
pub const RENET_LINK: TransportKind = TransportKind::Other("renet");

/// What the channel may hold for one client, and from one until the next frame. A full snapshot takes 1.2 kB, and what
/// renet sends at a time is bounded by `available_bytes_per_tick`, 60 kB unless told.
const CHANNEL_BYTES: usize = 256 << 10;

/// From a farewell to the end of the connection: some frames of the other side. A disconnection that arrives in the same
/// frame as what was said before it would make renet forget that.
const FAREWELL_TIME: Duration = Duration::from_millis(200);

/// The channel that the bridge needs, for both lists of a renet `ConnectionConfig`: unreliable, with room for 256 KiB.
///
/// Last in the lists, it leaves precedence to the game's own channels; first, it takes it.
pub fn channel_config(channel: impl Into<u8>) -> ChannelConfig {
    ChannelConfig {
        channel_id: channel.into(),
        max_memory_usage_bytes: CHANNEL_BYTES,
        send_type: SendType::Unreliable,
    }
}

/// What a game knows of a client of its `RenetServer`, beside the id. See [`RenetBridgeServerPlugin::describe`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenetPeer {
    /// Where it is, for limits by address and bans. Default: not known.
    pub addr: Option<SocketAddr>,
    /// Whether the transport vouches for the client id, as Steam does, and netcode with tokens from a back end. Default:
    /// no, so the session's [`Identity`](crate::identity::Identity) is not verified.
    pub secure: bool,
    /// Data of the back end's, as netcode's tokens have. Default: none.
    pub user_data: Option<Box<[u8; 256]>>,
}

/// A function that finds it out.
pub type DescribePeer = fn(&bevy::prelude::World, ClientId) -> RenetPeer;

/// Whether the bridge takes such a datagram.
fn is_sendable(datagram: &[u8]) -> bool {
    (1..=MAX_PAYLOAD_BYTES).contains(&datagram.len())
}

/// What a link's end looks like to whom renet tells of it.
fn close_reason(reason: DisconnectReason, ours: DisconnectReason) -> CloseReason {
    match reason {
        _ if reason == ours => CloseReason::ByUs,
        DisconnectReason::DisconnectedByClient | DisconnectReason::DisconnectedByServer => {
            CloseReason::ByPeer
        }
        other => CloseReason::Transport(format!("renet: {other}")),
    }
}

/// What another thread left behind when it panicked is as good as any: datagrams can be lost.
fn lock<T>(shared: &Arc<Mutex<T>>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
