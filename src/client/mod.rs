//! The client: thin plugins around the protocol core, one per capability.

#[cfg(not(target_family = "wasm"))]
use std::net::ToSocketAddrs;
use std::time::Duration;

use bevy::app::PluginGroupBuilder;
use bevy::prelude::*;

use crate::schedule::TickPlugin;
#[cfg(not(target_family = "wasm"))]
use crate::transport::udp::{ClientAuth, UdpClient, UdpClientConfig};
use crate::transport::{ClientTransport, Conditioned, LinkConditions};

pub(crate) mod apply;
mod connection;
mod inputs;
pub(crate) mod interpolate;
pub(crate) mod messages;
mod predict;
mod smooth;
mod stats;

pub use apply::ReplicationPlugin;
pub use connection::{
    Connected, Connection, ConnectionPlugin, ConnectionState, Disconnect, Disconnected, connected,
};
pub use inputs::InputPlugin;
pub use interpolate::InterpolationPlugin;
pub use messages::MessagePlugin;
pub use predict::PredictionPlugin;
pub use stats::ClientStats;

/// What a client can be told. Every field has a default.
#[derive(Clone)]
pub struct ClientConfig {
    /// Whom to connect to over UDP, and as whom; nobody by default.
    #[cfg(not(target_family = "wasm"))]
    pub udp: Option<ClientAuth>,
    /// What the player is called. Default: "Player".
    pub name: String,
    /// Give up connecting after this. Default 10 s.
    pub connect_timeout: Duration,
    /// A server of which nothing is heard for this long is gone. Default 5 s.
    pub timeout: Duration,
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
            name: "Player".into(),
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            conditions: None,
            max_entities: 1 << 18,
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
    #[cfg(not(target_family = "wasm"))]
    /// A client that connects at once, to a host name or address with a port.
    ///
    /// # Panics
    ///
    /// When `address` cannot be resolved; resolve it yourself and use [`Self::with_config`] to handle that.
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
            .add(Connector { config })
    }
}

/// Opens the UDP link that the configuration names.
struct Connector {
    config: ClientConfig,
}

impl Plugin for Connector {
    fn build(&self, app: &mut App) {
        let Some(auth) = self.config.udp.clone() else {
            return;
        };
        let config = UdpClientConfig {
            connect_timeout: self.config.connect_timeout,
            timeout: self.config.timeout,
            ..UdpClientConfig::new(auth)
        };
        match UdpClient::connect(config) {
            Ok(client) => match self.config.conditions.clone() {
                Some(conditions) => app.connect_over(Conditioned::new(client, conditions)),
                None => app.connect_over(client),
            },
            Err(error) => panic!("{error}"),
        }
    }
}

/// Connects a client over a transport. Implemented for [`App`] and, to connect while it runs, for [`World`].
pub trait ConnectOver {
    /// Begins to connect over `transport`; a connection that there was is closed.
    fn connect_over(&mut self, transport: impl ClientTransport);
}

impl ConnectOver for App {
    fn connect_over(&mut self, transport: impl ClientTransport) {
        self.world_mut().connect_over(transport);
    }
}

impl ConnectOver for World {
    fn connect_over(&mut self, transport: impl ClientTransport) {
        connection::connect(self, Box::new(transport));
    }
}
