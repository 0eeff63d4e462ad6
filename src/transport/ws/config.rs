//! How a client connects: the same in a browser and outside.

use core::fmt;
use core::time::Duration;
use std::path::PathBuf;

use super::frame::Credentials;
use crate::transport::LinkPace;

/// Which game, and which version of it, where nothing else is said: the same as for UDP.
pub const DEFAULT_PROTOCOL_ID: u64 = u64::from_be_bytes(*b"tandem_1");

/// Bytes of messages that may wait on a client for its app. Then the link is closed: an app that has not looked for so
/// long (at 30 kB/s, two minutes) needs the newest state and not this.
pub const MAX_WAITING_BYTES: usize = 4 << 20;

/// Who a client says it is.
#[derive(Clone, PartialEq, Eq)]
pub enum WsAuth {
    /// Nobody that the server knows, for servers with `Auth::Insecure`.
    Insecure {
        /// A number of one's own choice. `None` for a random one.
        client_id: Option<u64>,
    },
    /// A player with a connect token of the back end, as `transport::udp::token::to_bytes` writes it. It opens one link.
    ///
    /// Who reads it on the way can use it first, so beyond a trusted network it belongs on `wss://` alone.
    Token(Vec<u8>),
}

impl WsAuth {
    pub(super) fn credentials(&self) -> Credentials {
        match self {
            Self::Insecure { client_id } => Credentials::Claim {
                client_id: client_id.unwrap_or_else(|| fastrand::u64(..)),
            },
            Self::Token(token) => Credentials::Token(token.clone()),
        }
    }
}

#[cfg(not(target_family = "wasm"))]
impl From<&crate::transport::udp::token::ConnectToken> for WsAuth {
    fn from(token: &crate::transport::udp::token::ConnectToken) -> Self {
        Self::Token(crate::transport::udp::token::to_bytes(token))
    }
}

impl fmt::Debug for WsAuth {
    /// Keeps the token out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insecure { client_id } => f
                .debug_struct("Insecure")
                .field("client_id", client_id)
                .finish(),
            Self::Token(_) => f.write_str("Token"),
        }
    }
}

/// How a `WsClient` connects.
#[derive(Clone, Debug)]
pub struct WsClientConfig {
    /// The server: `ws://host[:port][/path]`, or `wss://` with TLS.
    pub url: String,
    /// Who this is. Default: [`WsAuth::Insecure`] with a random id.
    pub auth: WsAuth,
    /// Which game, and which version of it: must be the server's. Default: [`DEFAULT_PROTOCOL_ID`].
    pub protocol_id: u64,
    /// A PEM file with certificates to trust beside those that browsers trust: of a company, or the server's own while
    /// testing. A browser ignores it, and asks its user. Default: none.
    pub ca: Option<PathBuf>,
    /// Until when the link must be open: name, TCP, TLS, WebSocket and the server's answer together. Default: 10 s.
    pub connect_timeout: Duration,
    /// Silence after which the link is closed, to within a second. Default: 15 s, three pings of the server's. A browser
    /// answers pings by itself and leaves this to the server.
    pub timeout: Duration,
    /// Silence after which the server is pinged. Default: 5 s. A browser pings nobody.
    pub ping_interval: Duration,
    /// How datagrams are gathered and compressed. Default: [`LinkPace::REALTIME`], since a client sends little, and its
    /// inputs are late soon.
    pub pace: LinkPace,
}

impl WsClientConfig {
    /// Connects there, with the defaults.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            auth: WsAuth::Insecure { client_id: None },
            protocol_id: DEFAULT_PROTOCOL_ID,
            ca: None,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(5),
            pace: LinkPace::REALTIME,
        }
    }
}
