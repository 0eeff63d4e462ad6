//! Makes the links that the configuration names, and those that games bring along.

use bevy::prelude::*;

use super::ClientConfig;
use super::orders::{self, Order};
use super::reconnect::Connector;
#[cfg(not(target_family = "wasm"))]
use crate::transport::udp::{ClientAuth, UdpClient, UdpClientConfig, token};
#[cfg(feature = "websocket")]
use crate::transport::ws::{WsAuth, WsClient, WsClientConfig};
use crate::transport::{ClientTransport, Conditioned, LinkConditions};

/// Opens the link that the configuration names.
pub(super) struct ConfiguredLink {
    pub config: ClientConfig,
}

impl Plugin for ConfiguredLink {
    fn build(&self, app: &mut App) {
        #[cfg(feature = "websocket")]
        if let Some(config) = self.config.websocket.clone() {
            app.connect_with(self.over_websocket(config));
            return;
        }
        #[cfg(not(target_family = "wasm"))]
        if let Some(auth) = self.config.udp.clone() {
            app.connect_with(self.over_udp(auth));
        }
        #[cfg(all(target_family = "wasm", not(feature = "websocket")))]
        let _ = app;
    }
}

impl ConfiguredLink {
    #[cfg(feature = "websocket")]
    fn over_websocket(&self, config: WsClientConfig) -> impl Connector {
        let config = WsClientConfig {
            connect_timeout: self.config.connect_timeout,
            timeout: self.config.websocket_timeout,
            ..config
        };
        let conditions = self.config.conditions.clone();
        move |token: Option<&[u8]>| {
            let mut config = config.clone();
            if let Some(token) = token {
                config.auth = WsAuth::Token(token.to_vec());
            }
            let client = WsClient::connect(config).map_err(|error| error.to_string())?;
            Ok(conditioned(client, conditions.clone()))
        }
    }

    #[cfg(not(target_family = "wasm"))]
    fn over_udp(&self, auth: ClientAuth) -> impl Connector {
        let config = UdpClientConfig {
            connect_timeout: self.config.connect_timeout,
            timeout: self.config.timeout,
            ..UdpClientConfig::new(auth)
        };
        let conditions = self.config.conditions.clone();
        move |token: Option<&[u8]>| {
            let mut config = config.clone();
            if let Some(token) = token {
                let token = token::from_bytes(token).map_err(|error| error.to_string())?;
                config.auth = ClientAuth::Token(Box::new(token));
            }
            let client = UdpClient::connect(config).map_err(|error| error.to_string())?;
            Ok(conditioned(client, conditions.clone()))
        }
    }
}

fn conditioned(
    transport: impl ClientTransport,
    conditions: Option<LinkConditions>,
) -> Box<dyn ClientTransport> {
    match conditions {
        Some(conditions) => Box::new(Conditioned::new(transport, conditions)),
        None => Box::new(transport),
    }
}

/// Connects a client over a transport. Implemented for [`App`] and, to connect while it runs, for [`World`].
///
/// May be called at any time, also by commands of observers while another connection ends or snapshots are applied. What
/// ends a connection takes effect at the end of the frame, like [`Disconnect`](super::Disconnect).
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
        orders::give(self, Order::Connect(Box::new(transport), None));
    }

    fn connect_with(&mut self, mut connector: impl Connector) {
        match connector.connect(None) {
            Ok(transport) => {
                let connector = Box::new(connector);
                orders::give(self, Order::Connect(transport, Some(connector)));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn resume_over(&mut self, transport: impl ClientTransport) {
        orders::give(self, Order::Resume(Box::new(transport)));
    }

    fn cut_link(&mut self) {
        orders::give(self, Order::Cut);
    }
}
