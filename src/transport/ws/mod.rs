//! Links over WebSocket, for browsers and for networks that block UDP.
//!
//! A WebSocket is a stream: what is sent arrives, once and in order, or the link ends. So a lost packet delays what
//! comes after it, and nothing has to be sent twice.

#[cfg(target_family = "wasm")]
mod config;
pub mod frame;
#[cfg(target_family = "wasm")]
mod web;

#[cfg(target_family = "wasm")]
pub use config::{DEFAULT_PROTOCOL_ID, MAX_WAITING_BYTES, WsAuth, WsClientConfig};
#[cfg(target_family = "wasm")]
pub use web::{WsClient, WsConnectError};
