//! The client: thin plugins around the protocol core, one per capability.

#[cfg(not(target_family = "wasm"))]
use std::net::ToSocketAddrs;
use std::time::Duration;

use bevy::app::PluginGroupBuilder;
use bevy::prelude::*;

use crate::protocol::reliable::{OutboxLimits, WhenFull};
use crate::schedule::TickPlugin;
#[cfg(not(target_family = "wasm"))]
use crate::transport::udp::{ClientAuth, UdpClientConfig};
#[cfg(feature = "websocket")]
use crate::transport::ws::WsClientConfig;
use crate::transport::{LinkConditions, TransportKind};

pub(crate) mod apply;
mod arrivals;
pub(crate) mod component;
mod connect;
pub(crate) mod connection;
mod copies;
mod early;
mod farewell;
mod inputs;
pub(crate) mod interpolate;
mod link;
pub(crate) mod messages;
pub(crate) mod mirror;
mod orders;
mod predict;
mod reconnect;
pub(crate) mod sampling;
mod smooth;
mod stats;
pub(crate) mod types;

pub use apply::ReplicationPlugin;
pub use connect::ConnectOver;
pub use connection::{
    Connected, Connection, ConnectionChanged, ConnectionPlugin, ConnectionState, Disconnect,
    Disconnected, LimitWarning, ServerClosing, connected, reconnecting,
};
pub use inputs::InputPlugin;
pub use interpolate::InterpolationPlugin;
pub use messages::MessagePlugin;
pub use predict::PredictionPlugin;
pub use reconnect::{
    Connector, ReconnectScheduled, ReconnectSettings, ResumeFinished, ResumeOutcome,
};
pub use stats::ClientStats;

/// What a client can be told. Every field has a default.
#[derive(Clone)]
pub struct ClientConfig {
    /// Whom to connect to over UDP, and as whom; nobody by default.
    #[cfg(not(target_family = "wasm"))]
    pub udp: Option<ClientAuth>,
    /// Whom to connect to over WebSocket, and as whom; nobody by default. If there is one, UDP is not tried. Of its
    /// timeouts, those below count.
    #[cfg(feature = "websocket")]
    pub websocket: Option<WsClientConfig>,
    /// What the player is called: 1 to 32 visible characters. Default: "Player".
    pub name: String,
    /// Version of the game, at most 64 characters: the server lets in only its own. Default: empty.
    pub game_version: String,
    /// What shows the server who this is, if it asks: a JSON Web Token, say. At most
    /// [`MAX_CREDENTIALS_BYTES`](crate::protocol::handshake::MAX_CREDENTIALS_BYTES). Default: none.
    pub credentials: Vec<u8>,
    /// How to come back when the link is lost.
    pub reconnect: ReconnectSettings,
    /// How many messages wait for the server to take them. Default: [`OutboxLimits::CLIENT`], 1,000 messages of 1 MiB.
    pub outbox: OutboxLimits,
    /// What happens when more wait. Default: a further one is [refused](crate::message::Undeliverable).
    pub when_full: WhenFull,
    /// Without inputs to send, something is sent this often, so that acknowledgements arrive and the server hears that
    /// the client is there. Default 100 ms.
    pub heartbeat: Duration,
    /// The same over WebSocket. Default 100 ms.
    pub websocket_heartbeat: Duration,
    /// Give up connecting after this. Default 10 s.
    pub connect_timeout: Duration,
    /// A server of which nothing is heard for this long is gone. Default 5 s.
    pub timeout: Duration,
    /// The same over WebSocket. Default 15 s: TCP makes up for losses, and needs its time.
    pub websocket_timeout: Duration,
    /// Makes the link worse than it is, in both directions, for trying out.
    pub conditions: Option<LinkConditions>,
    /// Most entities that a server may make this client hold. Default 262,144: bounds memory, and is beyond what can
    /// be drawn.
    pub max_entities: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            #[cfg(not(target_family = "wasm"))]
            udp: None,
            #[cfg(feature = "websocket")]
            websocket: None,
            name: "Player".into(),
            game_version: String::new(),
            credentials: Vec::new(),
            reconnect: ReconnectSettings::default(),
            outbox: OutboxLimits::CLIENT,
            when_full: WhenFull::Refuse,
            heartbeat: Duration::from_millis(100),
            websocket_heartbeat: Duration::from_millis(100),
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            websocket_timeout: Duration::from_secs(15),
            conditions: None,
            max_entities: 1 << 18,
        }
    }
}

impl ClientConfig {
    /// How long a client may be silent over such a link.
    pub(crate) fn heartbeat_over(&self, kind: TransportKind) -> Duration {
        match kind {
            TransportKind::WebSocket => self.websocket_heartbeat,
            _ => self.heartbeat,
        }
    }

    /// How long a server may be silent over such a link.
    pub(crate) fn timeout_over(&self, kind: TransportKind) -> Duration {
        match kind {
            TransportKind::WebSocket => self.websocket_timeout,
            _ => self.timeout,
        }
    }
}

/// Makes an app a client.
///
/// ```no_run
/// # use bevy::prelude::*;
/// # use bevy_tandem::prelude::*;
/// # fn game(_: &mut App) {}
/// App::new()
///     .add_plugins((MinimalPlugins, TandemClientPlugins::connect("127.0.0.1:5000"), game))
///     .run();
/// ```
#[derive(Clone, Default)]
pub struct TandemClientPlugins {
    config: ClientConfig,
}

impl TandemClientPlugins {
    /// A client that connects at once: over UDP to a host name or address with a port (`127.0.0.1:5000`), or over
    /// WebSocket to a URL (`ws://127.0.0.1:5001/`, `wss://play.example.org/`). Browsers have only the latter.
    ///
    /// # Panics
    ///
    /// When a host name cannot be resolved, or there is nothing that could connect there; use [`Self::with_config`] to
    /// handle that.
    pub fn connect(address: &str) -> Self {
        #[cfg(feature = "websocket")]
        if address.starts_with("ws://") || address.starts_with("wss://") {
            return Self::with_config(ClientConfig {
                websocket: Some(WsClientConfig::new(address)),
                ..default()
            });
        }
        Self::with_config(Self::over_udp(address))
    }

    #[cfg(not(target_family = "wasm"))]
    fn over_udp(address: &str) -> ClientConfig {
        let server = address
            .to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next());
        let server = server.unwrap_or_else(|| {
            panic!("`{address}` is not an address that can be found; write it as 127.0.0.1:5000")
        });
        ClientConfig {
            udp: Some(UdpClientConfig::insecure(server).auth),
            ..default()
        }
    }

    #[cfg(target_family = "wasm")]
    fn over_udp(address: &str) -> ClientConfig {
        panic!(
            "browsers connect by WebSocket alone, so `{address}` must be written as ws://… or wss://…"
        )
    }

    /// A client with settings of its own.
    pub fn with_config(config: ClientConfig) -> Self {
        Self { config }
    }

    /// Sets the player's name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Makes the link worse than it is, in both directions.
    #[must_use]
    pub fn conditioned(mut self, conditions: LinkConditions) -> Self {
        self.config.conditions = Some(conditions);
        self
    }
}

impl PluginGroup for TandemClientPlugins {
    fn build(self) -> PluginGroupBuilder {
        let config = self.config;
        PluginGroupBuilder::start::<Self>()
            .add(TickPlugin::default())
            .add(ConnectionPlugin {
                config: config.clone(),
            })
            .add(ReplicationPlugin)
            .add(PredictionPlugin::default())
            .add(InterpolationPlugin)
            .add(InputPlugin)
            .add(MessagePlugin)
            .add(connect::ConfiguredLink { config })
    }
}
