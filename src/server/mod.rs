//! The server: thin plugins around the protocol core, one per capability.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bevy::app::PluginGroupBuilder;
use bevy::prelude::*;
use smallvec::SmallVec;

use crate::identity::Verifier;
use crate::protocol::pacing::PacingSettings;
use crate::protocol::reliable::{OutboxLimits, WhenFull};
use crate::schedule::TickPlugin;
use crate::transport::udp::Auth;
#[cfg(feature = "websocket")]
use crate::transport::ws::WsServerConfig;
use crate::transport::{LinkConditions, TransportKind, TransportStats};

mod adapt;
pub(crate) mod collect;
mod departures;
mod farewell;
mod inputs;
mod limits;
mod links;
mod listen;
pub(crate) mod messages;
mod rooms;
mod send;
mod sessions;
mod tokens;
pub(crate) mod types;

pub use adapt::{AdaptPlugin, Pacing, PacingChanged, PacingStats};
pub use collect::ReplicationPlugin;
pub use inputs::InputPlugin;
pub use limits::{Doors, LimitBroken, LimitSettings};
pub use links::{ClientAddress, LinkStats, LinkedOver};
pub use listen::ServerApp;
pub use messages::MessagePlugin;
pub use send::SendPlugin;
pub use sessions::SessionPlugin;
pub use tokens::TokenData;

pub(crate) use departures::Departures;
pub(crate) use sessions::Sessions;

/// What a server can be told. Every field has a default.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen for UDP; nowhere by default.
    pub udp: Option<SocketAddr>,
    /// Where and how to listen for WebSocket; nowhere by default. Who may connect, from where, under which addresses and
    /// how many, is settled below for all transports.
    #[cfg(feature = "websocket")]
    pub websocket: Option<WsServerConfig>,
    /// Who may connect. By default everybody, unencrypted by any secret: for development, on this machine alone.
    pub auth: Auth,
    /// Lets [`Auth::Insecure`] listen on addresses that other machines can reach. False by default: a server without
    /// authentication is then for this machine only.
    pub insecure_anywhere: bool,
    /// Checks who players are by what they show in their hello, such as a [JSON Web Token](crate::identity). By default
    /// nothing is asked for beyond the connect token.
    pub verifier: Option<Arc<dyn Verifier>>,
    /// Version of the game. A client of another is refused, and told so. Default: empty.
    pub game_version: String,
    /// Addresses under which clients reach this server, as connect tokens name them. The listening address by default.
    pub public_addresses: Vec<SocketAddr>,
    /// Simulation steps per second. Default 60; clients take it over.
    pub tick_rate_hz: f64,
    /// Snapshots per second. Default 30: every second tick, drawn smoothly by interpolation. At most the tick rate.
    pub send_rate_hz: f64,
    /// Most sessions at a time, those that are away included. Default 10,000.
    pub max_sessions: usize,
    /// How long a session waits for its client after the link is lost. Zero ends it at once. Default 300 s.
    pub resume_window: Duration,
    /// How many messages wait for each client to take them, with a link or without. Default:
    /// [`OutboxLimits::SERVER`], 1,000 messages of 8 MiB.
    pub outbox: OutboxLimits,
    /// What happens when more wait. Default: a further one is [refused](crate::message::Undeliverable). While a client
    /// is away, the oldest are dropped instead, and it is told how many.
    pub when_full: WhenFull,
    /// Sends each client what its link can carry, within these limits. By default everybody gets the same.
    pub adaptive: Option<PacingSettings>,
    /// What a client, and an address, may send and open, and what happens when it is more.
    pub limits: LimitSettings,
    /// A client of which nothing is heard for this long is gone. Default 5 s: three times the longest stall that is
    /// common on mobile networks.
    ///
    /// WebSocket links have a timeout of their own, since browsers answer pings for tabs that stand still.
    pub client_timeout: Duration,
    /// How long a client may take between connecting and saying who it is. Default 5 s.
    pub hello_timeout: Duration,
    /// Makes the links of the UDP listener worse than they are, in both directions, for trying out.
    pub conditions: Option<LinkConditions>,
    /// Largest snapshot in bytes. Default 1,100: with messages and headers it fits the 1,200 bytes that pass
    /// everywhere unfragmented.
    pub max_snapshot_bytes: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            udp: None,
            #[cfg(feature = "websocket")]
            websocket: None,
            auth: Auth::Insecure,
            insecure_anywhere: false,
            public_addresses: Vec::new(),
            tick_rate_hz: 60.0,
            send_rate_hz: 30.0,
            verifier: None,
            game_version: String::new(),
            max_sessions: 10_000,
            resume_window: Duration::from_secs(300),
            outbox: OutboxLimits::SERVER,
            when_full: WhenFull::Refuse,
            adaptive: None,
            limits: LimitSettings::default(),
            client_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(5),
            conditions: None,
            max_snapshot_bytes: 1_100,
        }
    }
}

/// Makes an app a server.
///
/// ```no_run
/// # use bevy::prelude::*;
/// # use bevy_tandem::prelude::*;
/// use bevy_tandem::headless::HeadlessPlugin;
///
/// # fn game(_: &mut App) {}
/// App::new()
///     .add_plugins((MinimalPlugins, HeadlessPlugin::default()))
///     .add_plugins((TandemServerPlugins::listen("127.0.0.1:5000"), game))
///     .run();
/// ```
#[derive(Clone, Default)]
pub struct TandemServerPlugins {
    config: ServerConfig,
}

impl TandemServerPlugins {
    /// A server that listens for UDP at `address`, without authentication: for development. So it must be an address
    /// of this machine alone, such as 127.0.0.1; [`ServerConfig`] has what other addresses need.
    ///
    /// # Panics
    ///
    /// When `address` is not of the form `IP:PORT`; parse it yourself and use [`Self::with_config`] to handle that.
    pub fn listen(address: &str) -> Self {
        let udp = address.parse().unwrap_or_else(|_| {
            panic!("`{address}` is not an address; write it as 127.0.0.1:5000")
        });
        Self::with_config(ServerConfig {
            udp: Some(udp),
            ..default()
        })
    }

    /// Listens for WebSocket too, without TLS: for browsers, and where UDP is blocked. For TLS, a browser build to serve,
    /// and other settings, see [`WsServerConfig`] and [`Self::with_config`].
    ///
    /// # Panics
    ///
    /// When `address` is not of the form `IP:PORT`.
    #[cfg(feature = "websocket")]
    #[must_use]
    pub fn websocket(mut self, address: &str) -> Self {
        let addr = address
            .parse()
            .unwrap_or_else(|_| panic!("`{address}` is not an address; write it as 0.0.0.0:5001"));
        self.config.websocket = Some(WsServerConfig::new(addr));
        self
    }

    /// A server with settings of its own.
    pub fn with_config(config: ServerConfig) -> Self {
        Self { config }
    }
}

impl PluginGroup for TandemServerPlugins {
    fn build(self) -> PluginGroupBuilder {
        let config = self.config;
        let mut group = PluginGroupBuilder::start::<Self>()
            .add(TickPlugin {
                tick_rate_hz: config.tick_rate_hz,
            })
            .add(SessionPlugin {
                config: config.clone(),
            })
            .add(ReplicationPlugin)
            .add(rooms::RoomPlugin)
            .add(InputPlugin)
            .add(MessagePlugin)
            .add(SendPlugin {
                config: config.clone(),
            });
        if let Some(settings) = config.adaptive.clone() {
            #[cfg(feature = "websocket")]
            let pace = config.websocket.as_ref().map(|ws| ws.pace);
            #[cfg(not(feature = "websocket"))]
            let pace = None;
            group = group.add(AdaptPlugin {
                settings,
                pace: pace.unwrap_or_default(),
            });
        }
        group.add(listen::Listeners { config })
    }
}

/// What went through the server's transports since it was started.
#[derive(Resource, Clone, Debug, Default)]
pub struct ServerStats {
    /// Bytes and datagrams, of all transports together.
    pub transport: TransportStats,
    /// The same for each transport, in the order in which they were added.
    pub transports: SmallVec<[TransportCount; 4]>,
    /// Sessions that went on over a new link.
    pub resumed: u64,
    /// Of these, how many had lost messages meanwhile.
    pub resynced: u64,
    /// Attempts to resume a session that were turned down.
    pub resumes_rejected: u64,
    /// What became of those who broke limits.
    pub limits: LimitCounts,
    /// Sessions with a link now: not the local player of a [listen server](crate::host).
    pub sessions: usize,
    /// Links of sessions that were ended, whose clients have yet to take the last messages.
    pub leaving: usize,
    /// Most sessions at a time.
    pub sessions_peak: usize,
}

/// What goes through one transport.
#[derive(Clone, Copy, Debug)]
pub struct TransportCount {
    /// What it is.
    pub kind: TransportKind,
    /// Sessions linked over it now.
    pub links: usize,
    /// Bytes and datagrams since it was made.
    pub stats: TransportStats,
}

/// How often limits were broken, by what was done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitCounts {
    /// Something was dropped, and nothing else.
    pub drops: u64,
    /// The client was warned.
    pub warnings: u64,
    /// The client was disconnected.
    pub disconnects: u64,
    /// The client was banned for a time.
    pub bans: u64,
    /// A link was refused for what its address had done.
    pub refused_links: u64,
}

/// Where the server listens, one entry for each transport that has an address.
#[derive(Resource, Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenAddresses(pub Vec<SocketAddr>);
