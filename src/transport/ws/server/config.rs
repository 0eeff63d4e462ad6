//! How a server is set up, and why it may not begin.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing::warn;

use super::MIN_QUEUE_BYTES;
use crate::transport::LinkPace;
use crate::transport::udp::Auth;
use crate::transport::ws::config::DEFAULT_PROTOCOL_ID;
use crate::transport::ws::proxy::IpPrefix;
use crate::transport::ws::tls::{TlsError, TlsFiles};

/// How a [`WsServer`](super::WsServer) listens.
#[derive(Clone, Debug)]
pub struct WsServerConfig {
    /// Where to listen, by TCP. Port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Tells the server's transports apart: the top byte of their [`LinkId`](crate::transport::LinkId)s. Default: 0.
    pub transport_index: u8,
    /// Which game, and which version of it; clients of others are refused. Default: [`DEFAULT_PROTOCOL_ID`].
    pub protocol_id: u64,
    /// Who may connect. Default: [`Auth::Insecure`].
    pub auth: Auth,
    /// Lets [`Auth::Insecure`] listen on an address that other machines can reach. Default: false, so that a development
    /// server does not end up on the internet by a slip. For networks that you trust. TLS is no substitute: it says who
    /// the server is, and not who the players are.
    pub insecure_anywhere: bool,
    /// Where players reach this server: connect tokens must name one of these. Empty stands for `addr`. Port 0 stands for
    /// the port that the system chose. A token for a server with UDP as well may name its UDP address: give that here.
    pub public_addresses: Vec<SocketAddr>,
    /// The certificate for `wss://`. It is read again when its files change; while those are wrong, the old one stays in
    /// use. Default: none, for `ws://` and for servers behind a proxy that does TLS.
    pub tls: Option<TlsFiles>,
    /// Proxies whose word on a client's address counts: they append to `X-Forwarded-For`, or else set `Forwarded` or
    /// `X-Real-IP`. Whoever is listed must set one of these itself, or its clients could. Default: none.
    pub trusted_proxies: Vec<IpPrefix>,
    /// A folder to serve by HTTP on the same port: a browser build. What links in it point to is served as well. Beside
    /// `x.wasm`, `x.wasm.br` and `x.wasm.gz` go to browsers that take them. Default: none.
    pub web: Option<PathBuf>,
    /// Origins (`https://example.org`) of pages that may connect. What is no browser says no origin, and may. Default:
    /// `None`, all.
    pub allowed_origins: Option<Vec<String>>,
    /// How datagrams are gathered and compressed, until told otherwise for a link. Default: [`LinkPace::BALANCED`].
    pub pace: LinkPace,
    /// How many may be connected at a time. Default: 10,000.
    pub max_sessions: usize,
    /// How many of them from one address, of IPv6 from one network of 64 bits. Loopback is exempt. Default: 256, as for
    /// [sessions](crate::protocol::limits::GateLimits::sessions).
    pub max_links_per_address: usize,
    /// Connections at a time that are no link yet. Beyond, new ones are closed at once. Default: 1,024.
    pub max_handshakes: usize,
    /// How many of them from one address, counted as for links. Default: 16.
    pub max_handshakes_per_address: usize,
    /// How long TCP, TLS and HTTP may take together. Default: 5 s.
    pub handshake_timeout: Duration,
    /// How long the client's first message may take after that. Default: 10 s, as a slow browser's page says nothing
    /// while it compiles its shaders.
    pub auth_timeout: Duration,
    /// Silence after which a client is pinged. Default: 5 s. Browsers answer by themselves, also for a hidden page.
    pub ping_interval: Duration,
    /// Silence after which a link is closed, to within a second. Default: 15 s, time for three pings.
    pub client_timeout: Duration,
    /// Datagrams that a client may send in a second, and in a moment. Default: 400. Above that it is read more
    /// slowly: a stream loses nothing.
    pub max_datagrams_per_s: u32,
    /// Bytes that a client may send in a second, and in a moment. Default: 128 KiB. Inputs take some 5.
    pub max_bytes_per_s: u32,
    /// Datagrams kept for the app until it calls `receive`. Default: 65,536. When they are that many, nothing more is
    /// read, and clients have to wait.
    pub inbox_datagrams: usize,
    /// With more bytes than this waiting, a client that does not read [is
    /// congested](crate::transport::ServerTransport::is_congested). Default: 16 KiB, some snapshots.
    pub congested_above: usize,
    /// How long a client may be congested until its link is closed. `None`: for ever. Default: 10 s.
    pub drop_congested_after: Option<Duration>,
    /// Bytes that may wait for a client, without what the system holds. Beyond, its link is closed, as
    /// [`CloseReason::Congested`](crate::transport::CloseReason::Congested). One datagram may be larger, if nothing else waits. Default, and the least: 128 KiB, as
    /// a server gives a link up to 96 KiB of messages at once.
    pub max_queue_bytes: usize,
    /// Threads that do all of this. Default: 2.
    pub threads: usize,
}

impl WsServerConfig {
    /// Listens there, with the defaults.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            transport_index: 0,
            protocol_id: DEFAULT_PROTOCOL_ID,
            auth: Auth::Insecure,
            insecure_anywhere: false,
            public_addresses: Vec::new(),
            tls: None,
            trusted_proxies: Vec::new(),
            web: None,
            allowed_origins: None,
            pace: LinkPace::BALANCED,
            max_sessions: 10_000,
            max_links_per_address: 256,
            max_handshakes: 1_024,
            max_handshakes_per_address: 16,
            handshake_timeout: Duration::from_secs(5),
            auth_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(5),
            client_timeout: Duration::from_secs(15),
            max_datagrams_per_s: 400,
            max_bytes_per_s: 128 << 10,
            inbox_datagrams: 65_536,
            congested_above: 16 << 10,
            drop_congested_after: Some(Duration::from_secs(10)),
            max_queue_bytes: MIN_QUEUE_BYTES,
            threads: 2,
        }
    }
}

/// Why a [`WsServer`](super::WsServer) does not listen.
#[derive(Debug, thiserror::Error)]
pub enum WsBindError {
    /// Someone else does.
    #[error("TCP port {} of {} is in use; stop the other server or choose another port", .0.port(), .0.ip())]
    InUse(SocketAddr),
    /// The machine has no such address.
    #[error("this machine has no address {0}; listen on 0.0.0.0 (or [::]) for all it has")]
    NoSuchAddress(IpAddr),
    /// With tokens, an address that is not one.
    #[error(
        "with `Auth::Secure`, listening on {0} needs `public_addresses`: what clients' tokens name"
    )]
    NoPublicAddress(SocketAddr),
    /// Without tokens, an address that is not only for this machine.
    #[error(
        "without authentication, anyone who reaches {0} could play as anyone; use `Auth::Secure`, or listen on 127.0.0.1 \
         (or [::1]), or set `insecure_anywhere` if everyone who reaches it may"
    )]
    Insecure(SocketAddr),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The folder to serve is none.
    #[error("{} is not a folder; give one with a browser build, or none", .0.display())]
    NoFolder(PathBuf),
    /// Anything else.
    #[error("cannot listen on {addr}: {source}")]
    Io {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl WsServerConfig {
    pub(super) fn is_secure(&self) -> bool {
        matches!(self.auth, Auth::Secure { .. })
    }

    fn is_loopback(&self) -> bool {
        self.addr.ip().to_canonical().is_loopback()
    }

    /// What can be told before anything is opened.
    pub(super) fn check(&self) -> Result<(), WsBindError> {
        if !self.is_secure() && !self.is_loopback() && !self.insecure_anywhere {
            return Err(WsBindError::Insecure(self.addr));
        }
        match self.web.as_ref().filter(|folder| !folder.is_dir()) {
            Some(folder) => Err(WsBindError::NoFolder(folder.clone())),
            None => Ok(()),
        }
    }

    /// Tells the log what is dangerous about it.
    pub(super) fn warn(&self, local_addr: SocketAddr) {
        if self.is_loopback() {
            return;
        }
        if !self.is_secure() {
            warn!(
                "listening on {local_addr} WITHOUT authentication: anyone can connect as anyone; see `Auth::Secure`"
            );
        } else if self.tls.is_none() && self.trusted_proxies.is_empty() {
            warn!(
                "connect tokens come to {local_addr} readable by anyone on the way, who can use them first; set `tls`, or \
                 put a proxy with TLS in front and name it in `trusted_proxies`"
            );
        }
    }
}

impl WsBindError {
    pub(super) fn of(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(addr),
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(addr.ip()),
            _ => Self::Io { addr, source },
        }
    }
}
