//! The client: thin plugins around the protocol core, one per capability.

#[cfg(not(target_family = "wasm"))]
use std::net::ToSocketAddrs;
use std::time::Duration;

use bevy::app::PluginGroupBuilder;
use bevy::prelude::*;

use crate::protocol::reliable::OutboxLimits;
use crate::schedule::TickPlugin;
#[cfg(not(target_family = "wasm"))]
use crate::transport::udp::{ClientAuth, UdpClient, UdpClientConfig, token};
#[cfg(target_family = "wasm")]
use crate::transport::ws::{WsAuth, WsClient, WsClientConfig};
use crate::transport::{ClientTransport, Conditioned, LinkConditions, TransportKind};

pub(crate) mod apply;
pub(crate) mod connection;
mod inputs;
pub(crate) mod interpolate;
mod link;
pub(crate) mod messages;
mod predict;
mod reconnect;
mod smooth;
mod stats;

pub use apply::ReplicationPlugin;
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
    /// Whom to connect to over WebSocket, and as whom; nobody by default.
    #[cfg(target_family = "wasm")]
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
    /// Without inputs to send, something is sent this often, so that acknowledgements arrive and the server hears that
    /// the client is there. Default 100 ms.
    pub heartbeat: Duration,
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
            #[cfg(target_family = "wasm")]
            websocket: None,
            name: "Player".into(),
            game_version: String::new(),
            credentials: Vec::new(),
            reconnect: ReconnectSettings::default(),
            outbox: OutboxLimits::CLIENT,
            heartbeat: Duration::from_millis(100),
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            websocket_timeout: Duration::from_secs(15),
            conditions: None,
            max_entities: 1 << 18,
        }
    }
}

impl ClientConfig {
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
    /// A client that connects at once, to `ws://host:port/` or `wss://host/`.
    #[cfg(target_family = "wasm")]
    pub fn connect(url: &str) -> Self {
        Self::with_config(ClientConfig {
            websocket: Some(WsClientConfig::new(url)),
            ..default()
        })
    }

    /// A client that connects at once, to a host name or address with a port.
    ///
    /// # Panics
    ///
    /// When `address` cannot be resolved; resolve it yourself and use [`Self::with_config`] to handle that.
    #[cfg(not(target_family = "wasm"))]
    pub fn connect(address: &str) -> Self {
        let server = address
            .to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next());
        let server = server.unwrap_or_else(|| {
            panic!("`{address}` is not an address that can be found; write it as 127.0.0.1:5000")
        });
        Self::with_config(ClientConfig {
            udp: Some(UdpClientConfig::insecure(server).auth),
            ..default()
        })
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
            .add(ConfiguredLink { config })
    }
}

/// Opens the link that the configuration names.
struct ConfiguredLink {
    config: ClientConfig,
}

impl Plugin for ConfiguredLink {
    #[cfg(target_family = "wasm")]
    fn build(&self, app: &mut App) {
        let Some(config) = self.config.websocket.clone() else {
            return;
        };
        let config = WsClientConfig {
            connect_timeout: self.config.connect_timeout,
            ..config
        };
        let conditions = self.config.conditions.clone();
        app.connect_with(move |token: Option<&[u8]>| {
            let mut config = config.clone();
            if let Some(token) = token {
                config.auth = WsAuth::Token(token.to_vec());
            }
            let client = WsClient::connect(config).map_err(|error| error.to_string())?;
            let transport: Box<dyn ClientTransport> = match conditions.clone() {
                Some(conditions) => Box::new(Conditioned::new(client, conditions)),
                None => Box::new(client),
            };
            Ok(transport)
        });
    }

    #[cfg(not(target_family = "wasm"))]
    fn build(&self, app: &mut App) {
        let Some(auth) = self.config.udp.clone() else {
            return;
        };
        let config = UdpClientConfig {
            connect_timeout: self.config.connect_timeout,
            timeout: self.config.timeout,
            ..UdpClientConfig::new(auth)
        };
        let conditions = self.config.conditions.clone();
        app.connect_with(move |token: Option<&[u8]>| {
            let mut config = config.clone();
            if let Some(token) = token {
                let token = token::from_bytes(token).map_err(|error| error.to_string())?;
                config.auth = ClientAuth::Token(Box::new(token));
            }
            let client = UdpClient::connect(config).map_err(|error| error.to_string())?;
            let transport: Box<dyn ClientTransport> = match conditions.clone() {
                Some(conditions) => Box::new(Conditioned::new(client, conditions)),
                None => Box::new(client),
            };
            Ok(transport)
        });
    }
}

/// Connects a client over a transport. Implemented for [`App`] and, to connect while it runs, for [`World`].
pub trait ConnectOver {
    /// Begins to connect over `transport`; a connection that there was is closed.
    ///
    /// There is no way back from a lost link, unless the game [resumes](Self::resume_over) over another.
    fn connect_over(&mut self, transport: impl ClientTransport);

    /// Begins to connect over a link that `connector` makes, and later comes back over others.
    ///
    /// # Panics
    ///
    /// When the connector cannot make the first link.
    fn connect_with(&mut self, connector: impl Connector);

    /// Goes on with the session over `transport`, without waiting for the link that it has to fail.
    fn resume_over(&mut self, transport: impl ClientTransport);

    /// Lets the link go without a word, as when the network fails. The client then comes back.
    fn cut_link(&mut self);
}

impl ConnectOver for App {
    fn connect_over(&mut self, transport: impl ClientTransport) {
        self.world_mut().connect_over(transport);
    }

    fn connect_with(&mut self, connector: impl Connector) {
        self.world_mut().connect_with(connector);
    }

    fn resume_over(&mut self, transport: impl ClientTransport) {
        self.world_mut().resume_over(transport);
    }

    fn cut_link(&mut self) {
        self.world_mut().cut_link();
    }
}

impl ConnectOver for World {
    fn connect_over(&mut self, transport: impl ClientTransport) {
        link::connect(self, Box::new(transport));
    }

    fn connect_with(&mut self, connector: impl Connector) {
        reconnect::connect_with(self, Box::new(connector));
    }

    fn resume_over(&mut self, transport: impl ClientTransport) {
        reconnect::resume_over(self, Box::new(transport));
    }

    fn cut_link(&mut self) {
        link::cut(self);
    }
}
