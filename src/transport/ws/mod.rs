//! Links over WebSocket, for browsers and for networks that block UDP.
//!
//! A WebSocket is a stream: what is sent arrives, once and in order, or the link ends. So a lost packet delays what
//! comes after it, nothing has to be sent twice, and what a peer does not read waits: on the server, within bounds.
//!
//! - [`WsServer`] has threads of its own (tokio) and one task for each link. The same port can serve a browser build by
//!   HTTP, and do TLS. All that a link sends in a frame is one message; messages keep the link's
//!   [pace](super::LinkPace), and larger ones are deflated, what many links get only once.
//! - [`WsClient`] is the end outside browsers. All clients of a process share one thread: bots run by the hundred.
//! - [`frame`] is what travels.
//!
//! A client that does not read is *congested*. It gets nothing that would be outdated by the time it can be read, and
//! after a while it is dropped. The system's buffers are kept small, so that this shows early.

#[cfg(not(target_family = "wasm"))]
mod budget;
#[cfg(not(target_family = "wasm"))]
mod client;
mod config;
pub mod frame;
#[cfg(not(target_family = "wasm"))]
mod gate;
#[cfg(not(target_family = "wasm"))]
mod http;
#[cfg(not(target_family = "wasm"))]
mod link;
#[cfg(not(target_family = "wasm"))]
mod outbox;
#[cfg(not(target_family = "wasm"))]
mod proxy;
#[cfg(not(target_family = "wasm"))]
mod server;
#[cfg(not(target_family = "wasm"))]
mod socket;
#[cfg(not(target_family = "wasm"))]
mod stats;
#[cfg(all(test, not(target_family = "wasm")))]
mod tests;
#[cfg(not(target_family = "wasm"))]
mod tls;
#[cfg(target_family = "wasm")]
mod web;

pub use config::{DEFAULT_PROTOCOL_ID, MAX_WAITING_BYTES, WsAuth, WsClientConfig};

#[cfg(target_family = "wasm")]
pub use web::{WsClient, WsConnectError};
#[cfg(not(target_family = "wasm"))]
pub use {
    client::{WsClient, WsConnectError},
    proxy::{IpPrefix, IpPrefixError},
    server::{WsBindError, WsServer, WsServerConfig},
    tls::{TlsError, TlsFiles},
};
