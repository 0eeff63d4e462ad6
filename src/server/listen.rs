//! Opens the listeners that the configuration names.

use bevy::prelude::*;

use super::ServerConfig;
use super::links::Links;
use crate::transport::udp::{Auth, UdpServer, UdpServerConfig};
#[cfg(feature = "websocket")]
use crate::transport::ws::{WsServer, WsServerConfig};
use crate::transport::{ConditionedServer, ServerTransport};

/// Lets clients in by UDP and by WebSocket.
pub(super) struct Listeners {
    pub config: ServerConfig,
}

impl Plugin for Listeners {
    fn build(&self, app: &mut App) {
        #[cfg(feature = "websocket")]
        let websocket = self.config.websocket.is_some();
        #[cfg(not(feature = "websocket"))]
        let websocket = false;
        if matches!(self.config.auth, Auth::Insecure)
            && self.config.verifier.is_none()
            && (self.config.udp.is_some() || websocket)
        {
            // Not before there is a log to be loud in.
            app.add_systems(Startup, || {
                warn!(
                    "this server has no authentication: it takes players for whoever they say they are, which is for \
                     development only (`ServerConfig::auth`, `ServerConfig::verifier`)"
                );
            });
        }
        if let Some(addr) = self.config.udp {
            self.add(app, |transport_index| {
                let config = UdpServerConfig {
                    transport_index,
                    auth: self.config.auth.clone(),
                    insecure_anywhere: self.config.insecure_anywhere,
                    public_addresses: self.config.public_addresses.clone(),
                    max_sessions: links_for(self.config.max_sessions),
                    client_timeout: self.config.client_timeout,
                    ..UdpServerConfig::new(addr)
                };
                UdpServer::bind(config).unwrap_or_else(|error| panic!("{error}"))
            });
        }
        #[cfg(feature = "websocket")]
        if let Some(config) = self.config.websocket.clone() {
            let mut public_addresses = self.config.public_addresses.clone();
            if public_addresses.is_empty() {
                // Connect tokens may be made for either.
                public_addresses.extend(self.config.udp);
                public_addresses.push(config.addr);
            }
            self.add(app, |transport_index| {
                let config = WsServerConfig {
                    transport_index,
                    auth: self.config.auth.clone(),
                    insecure_anywhere: self.config.insecure_anywhere,
                    public_addresses,
                    max_sessions: links_for(self.config.max_sessions),
                    ..config
                };
                WsServer::bind(config).unwrap_or_else(|error| panic!("{error}"))
            });
        }
    }
}

impl Listeners {
    fn add<T: ServerTransport>(&self, app: &mut App, bind: impl FnOnce(u8) -> T) {
        match self.config.conditions.clone() {
            Some(conditions) => {
                app.add_transport(|index| ConditionedServer::new(bind(index), conditions));
            }
            None => app.add_transport(bind),
        }
    }
}

/// More than there are sessions: some links are of clients who have yet to say hello, or are about to be sent away.
fn links_for(max_sessions: usize) -> usize {
    max_sessions.saturating_add((max_sessions / 8).max(16))
}

/// Adds transports to a server app.
pub trait ServerApp {
    /// Lets clients in through a further transport, which is made with the index that is to be part of its links' ids.
    fn add_transport<T: ServerTransport>(&mut self, make: impl FnOnce(u8) -> T);
}

impl ServerApp for App {
    fn add_transport<T: ServerTransport>(&mut self, make: impl FnOnce(u8) -> T) {
        self.world_mut().get_resource_or_init::<Links>().add(make);
    }
}
