//! Links over WebSocket, for browsers and for networks that block UDP.
//!
//! A WebSocket is a stream: what is sent arrives, once and in order, or the link ends. So a lost packet delays what
//! comes after it, and nothing has to be sent twice.

pub mod frame;
