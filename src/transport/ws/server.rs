//! The server's end: one port, threads of its own, one task for each connection.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use tracing::warn;

use super::budget::Budget;
use super::config::DEFAULT_PROTOCOL_ID;
use super::frame::{self, Credentials, Limits};
use super::gate::{Full, Gate, Permit, RefusalLog};
use super::http::{Http, NoUpgrade, Upgraded};
use super::link::{Inbox, Link, LinkRules};
use super::outbox::{Gathered, Goodbye, Outbox};
use super::proxy::IpPrefix;
use super::socket::{Error, Socket};
use super::stats::Stats;
use super::tls::{Certificate, RELOAD_INTERVAL, TlsError, TlsFiles};
use crate::transport::udp::Auth;
use crate::transport::udp::token::{self, TokenError};
use crate::transport::{
    CloseReason, Delivery, LinkEvent, LinkId, LinkIds, LinkPace, MAX_STREAM_DATAGRAM_BYTES,
    PeerInfo, Rejected, ServerTransport, SharedBytes, TokenUse, TransportKind, TransportStats,
};

/// What the system holds for each connection. More would hide from us that a peer does not read.
const SOCKET_BUFFER_BYTES: usize = 64 << 10;

/// The system takes more once it has sent all but this.
const UNSENT_BYTES: u32 = 16 << 10;

/// Connections that the system has accepted and we have not.
const BACKLOG: i32 = 1_024;

/// What a server gives a link at once, and a snapshot, has to fit.
const MIN_QUEUE_BYTES: usize = 128 << 10;

/// What TLS holds of a connection before it is written.
const TLS_BUFFER_BYTES: usize = 16 << 10;

/// How long `shutdown` waits for links to take leave, and then for threads to end.
const FAREWELL_TIME: Duration = Duration::from_millis(400);
const STOP_TIME: Duration = Duration::from_millis(100);

/// How a [`WsServer`] listens.
#[derive(Clone, Debug)]
pub struct WsServerConfig {
    /// Where to listen, by TCP. Port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Tells the server's transports apart: the top byte of their [`LinkId`]s. Default: 0.
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
    /// congested](ServerTransport::is_congested). Default: 16 KiB, some snapshots.
    pub congested_above: usize,
    /// How long a client may be congested until its link is closed. `None`: for ever. Default: 10 s.
    pub drop_congested_after: Option<Duration>,
    /// Bytes that may wait for a client, without what the system holds. Beyond, its link is closed, as
    /// [`CloseReason::Congested`]. One datagram may be larger, if nothing else waits. Default, and the least: 128 KiB, as
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

/// Why a [`WsServer`] does not listen.
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

/// A [`ServerTransport`] over WebSocket.
///
/// It keeps the real time and ignores that of its callers.
pub struct WsServer {
    shared: Arc<Shared>,
    /// `None` after `shutdown`.
    runtime: Option<Runtime>,
    local_addr: SocketAddr,
    links: HashMap<LinkId, AppLink>,
    /// Links with something gathered.
    dirty: Vec<LinkId>,
    pace: LinkPace,
    max_queue_bytes: usize,
    congested_above: usize,
    /// What this side of the queues dropped.
    rejected: Rejected,
    /// Kept for its memory.
    events: Vec<Event>,
}

/// A link as the app's thread knows it.
struct AppLink {
    outbox: Arc<Outbox>,
    gathered: Gathered,
    max_batch: usize,
    /// Closed by the app or for a full queue; what comes now is too late.
    closing: bool,
}

/// What the tasks share.
struct Shared {
    http: Arc<Http>,
    /// Open links.
    gate: Arc<Gate>,
    inbox: ServerInbox,
    stats: Arc<Stats>,
    refusals: RefusalLog,
    /// Whether no more links may open.
    closed: Arc<AtomicBool>,
    tls: Option<TlsAcceptor>,
    auth: Auth,
    protocol_id: u64,
    public_addresses: Vec<SocketAddr>,
    rules: LinkRules,
    max_datagrams_per_s: u32,
    max_bytes_per_s: u32,
    pace: LinkPace,
    handshake_timeout: Duration,
    auth_timeout: Duration,
}

/// [`LinkEvent`]s, of which the first brings the link's queue.
enum Event {
    Opened {
        link: LinkId,
        peer: PeerInfo,
        outbox: Arc<Outbox>,
    },
    Datagram {
        link: LinkId,
        bytes: Vec<u8>,
    },
    Closed {
        link: LinkId,
        reason: CloseReason,
    },
}

/// What waits for the app.
struct ServerInbox {
    state: Mutex<InboxState>,
    /// Of `state.events`, to look at without a lock.
    waiting: AtomicUsize,
    capacity: usize,
}

struct InboxState {
    ids: LinkIds,
    events: Vec<Event>,
    /// Tasks that wait for room.
    paused: HashMap<LinkId, Waker>,
    /// Nothing opens any more.
    stopped: bool,
}

impl WsServer {
    /// Starts to listen.
    ///
    /// # Errors
    /// If it cannot listen there, see [`WsBindError`].
    pub fn bind(config: WsServerConfig) -> Result<Self, WsBindError> {
        let addr = config.addr;
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => WsBindError::InUse(addr),
            io::ErrorKind::AddrNotAvailable => WsBindError::NoSuchAddress(addr.ip()),
            _ => WsBindError::Io { addr, source },
        };
        let is_loopback = addr.ip().to_canonical().is_loopback();
        let is_secure = matches!(config.auth, Auth::Secure { .. });
        if !is_secure && !is_loopback && !config.insecure_anywhere {
            return Err(WsBindError::Insecure(addr));
        }
        if let Some(folder) = config.web.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(WsBindError::NoFolder(folder.clone()));
        }
        let certificate = config.tls.clone().map(Certificate::load).transpose()?;
        let tls = match &certificate {
            Some(certificate) => Some(TlsAcceptor::from(Arc::new(certificate.server_config()?))),
            None => None,
        };
        let listener = listen(addr).map_err(io_error)?;
        let local_addr = listener.local_addr().map_err(io_error)?;
        let mut public_addresses = config.public_addresses;
        if public_addresses.is_empty() {
            if is_secure && local_addr.ip().is_unspecified() {
                return Err(WsBindError::NoPublicAddress(local_addr));
            }
            public_addresses.push(local_addr);
        }
        for public in public_addresses
            .iter_mut()
            .filter(|public| public.port() == 0)
        {
            public.set_port(local_addr.port());
        }
        if !is_secure && !is_loopback {
            warn!(
                "listening on {local_addr} WITHOUT authentication: anyone can connect as anyone; see `Auth::Secure`"
            );
        }
        if is_secure && !is_loopback && tls.is_none() && config.trusted_proxies.is_empty() {
            warn!(
                "connect tokens come to {local_addr} readable by anyone on the way, who can use them first; set `tls`, or \
                 put a proxy with TLS in front and name it in `trusted_proxies`"
            );
        }

        let handshakes = Gate::new(config.max_handshakes, config.max_handshakes_per_address);
        let shared = Arc::new(Shared {
            http: Arc::new(Http::new(
                config.web.as_deref(),
                config.allowed_origins,
                config.trusted_proxies,
                handshakes,
            )),
            gate: Gate::new(config.max_sessions, config.max_links_per_address),
            inbox: ServerInbox {
                state: Mutex::new(InboxState {
                    ids: LinkIds::new(config.transport_index),
                    events: Vec::new(),
                    paused: HashMap::new(),
                    stopped: false,
                }),
                waiting: AtomicUsize::new(0),
                capacity: config.inbox_datagrams.max(1),
            },
            stats: Arc::default(),
            refusals: RefusalLog::default(),
            closed: Arc::default(),
            tls,
            auth: config.auth,
            protocol_id: config.protocol_id,
            public_addresses,
            rules: LinkRules {
                limits: Limits::FROM_CLIENT,
                peer_is_client: true,
                budget: None,
                ping_interval: config.ping_interval,
                timeout: config.client_timeout,
                congested_above: config.congested_above,
                drop_congested_after: config.drop_congested_after,
            },
            max_datagrams_per_s: config.max_datagrams_per_s,
            max_bytes_per_s: config.max_bytes_per_s,
            pace: config.pace,
            handshake_timeout: config.handshake_timeout,
            auth_timeout: config.auth_timeout,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.threads.max(1))
            .max_blocking_threads(4) // for files
            .thread_name("tandem-ws")
            .enable_all()
            .build()
            .map_err(io_error)?;
        {
            let _inside = runtime.enter();
            let listener = TcpListener::from_std(listener).map_err(io_error)?;
            runtime.spawn(shared.clone().accept(listener));
            if let Some(certificate) = certificate {
                runtime.spawn(certificate.keep_fresh(RELOAD_INTERVAL));
            }
        }
        Ok(Self {
            shared,
            runtime: Some(runtime),
            local_addr,
            links: HashMap::new(),
            dirty: Vec::new(),
            pace: config.pace,
            max_queue_bytes: config.max_queue_bytes.max(MIN_QUEUE_BYTES),
            congested_above: config.congested_above,
            rejected: Rejected::default(),
            events: Vec::new(),
        })
    }

    /// The link, if a datagram of that many bytes may be sent over it now.
    fn link_for(&mut self, link: LinkId, bytes: usize) -> Option<&mut AppLink> {
        let found = self
            .links
            .get_mut(&link)
            .filter(|found| !found.closing && (1..=MAX_STREAM_DATAGRAM_BYTES).contains(&bytes));
        let Some(found) = found else {
            self.rejected.unsendable += 1;
            return None;
        };
        let queued = found.outbox.queued_bytes() + found.gathered.bytes();
        if queued > 0 && queued + bytes > self.max_queue_bytes {
            self.rejected.outbox_full += 1;
            found.closing = true;
            found.gathered = Gathered::default();
            found.outbox.say(Goodbye::Drop(CloseReason::Congested));
            return None;
        }
        if found.gathered.is_empty() {
            self.dirty.push(link);
        }
        Some(found)
    }
}

impl ServerTransport for WsServer {
    fn receive(&mut self, now: Duration, events: &mut Vec<LinkEvent>) {
        self.shared.inbox.take(&mut self.events);
        let fleeting = fleeting(&self.events);
        for event in self.events.drain(..) {
            if let Event::Opened { link, .. } | Event::Closed { link, .. } = &event
                && fleeting.contains(link)
            {
                continue;
            }
            events.push(match event {
                Event::Opened { link, peer, outbox } => {
                    self.links.insert(
                        link,
                        AppLink {
                            outbox,
                            gathered: Gathered::default(),
                            max_batch: self.pace.max_batch,
                            closing: false,
                        },
                    );
                    LinkEvent::Opened { link, peer }
                }
                Event::Datagram { link, bytes } => LinkEvent::Datagram {
                    link,
                    at: now,
                    bytes,
                },
                Event::Closed { link, reason } => {
                    self.links.remove(&link);
                    LinkEvent::Closed { link, reason }
                }
            });
        }
    }

    fn send(&mut self, _now: Duration, link: LinkId, datagram: &[u8]) {
        if let Some(link) = self.link_for(link, datagram.len()) {
            link.gathered.push(datagram, link.max_batch);
        }
    }

    fn send_shared(&mut self, now: Duration, link: LinkId, head: &[u8], shared: &SharedBytes) {
        if head.len() > usize::from(u16::MAX) {
            return self.send(now, link, &[head, shared.bytes()].concat());
        }
        if let Some(link) = self.link_for(link, head.len() + shared.bytes().len()) {
            link.gathered.push_shared(head, shared);
        }
    }

    fn flush(&mut self, _now: Duration) {
        let wakers: Vec<_> = self
            .dirty
            .drain(..)
            .filter_map(|link| {
                let link = self.links.get_mut(&link)?;
                link.outbox.push(&mut link.gathered)
            })
            .collect();
        // To wake a task from outside may wake a thread first. From inside it is a place in that thread's queue.
        match &self.runtime {
            Some(runtime) if wakers.len() > 1 => {
                runtime.spawn(async { wakers.into_iter().for_each(Waker::wake) });
            }
            _ => wakers.into_iter().for_each(Waker::wake),
        }
    }

    fn close(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(&link)
            && !link.closing
        {
            link.closing = true;
            // The goodbye finds it awake already.
            let waker = link.outbox.push(&mut link.gathered);
            link.outbox.say(Goodbye::Close(CloseReason::ByUs));
            waker.into_iter().for_each(Waker::wake);
        }
    }

    fn is_congested(&self, link: LinkId) -> bool {
        self.links
            .get(&link)
            .is_some_and(|link| link.outbox.is_congested(self.congested_above))
    }

    fn queued_bytes(&self, link: LinkId) -> usize {
        self.links
            .get(&link)
            .map_or(0, |link| link.outbox.queued_bytes() + link.gathered.bytes())
    }

    fn set_pace(&mut self, link: LinkId, pace: LinkPace) {
        if let Some(link) = self.links.get_mut(&link) {
            link.max_batch = pace.max_batch;
            link.outbox.set_pace(pace);
        }
    }

    fn kind(&self) -> TransportKind {
        TransportKind::WebSocket
    }

    fn stop_accepting(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.local_addr)
    }

    fn stats(&self) -> TransportStats {
        let mut stats = self.shared.stats.read();
        stats.rejected.unsendable += self.rejected.unsendable;
        stats.rejected.outbox_full += self.rejected.outbox_full;
        stats
    }

    fn shutdown(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        self.flush(Duration::ZERO);
        self.stop_accepting();
        for link in self.links.values_mut() {
            link.closing = true;
            link.outbox.say(Goodbye::GoAway);
        }
        self.shared.inbox.stop();
        let end = Instant::now() + FAREWELL_TIME;
        while self.shared.gate.len() > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        // A runtime does not like to end on a thread of another, where an app may well run.
        let stop = move || runtime.shutdown_timeout(STOP_TIME);
        if let Ok(stopping) = thread::Builder::new().spawn(stop) {
            let _ = stopping.join();
        }
    }
}

impl Drop for WsServer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn listen(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A server that restarts finds its port in use by connections that have ended.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    // Connections inherit these.
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}

impl ServerInbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves all events there, and lets tasks go on that waited for room.
    fn take(&self, events: &mut Vec<Event>) {
        let paused = {
            let mut state = self.lock();
            std::mem::swap(&mut state.events, events);
            self.waiting.store(0, Ordering::Relaxed);
            std::mem::take(&mut state.paused)
        };
        for waker in paused.into_values() {
            waker.wake();
        }
    }

    /// Lets nothing open any more, and tells those to go of which the app has not heard yet.
    fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        for event in &state.events {
            if let Event::Opened { outbox, .. } = event {
                outbox.say(Goodbye::GoAway);
            }
        }
    }

    fn push(&self, state: &mut InboxState, events: impl IntoIterator<Item = Event>) {
        state.events.extend(events);
        self.waiting.store(state.events.len(), Ordering::Relaxed);
    }

    fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < self.capacity
    }

    /// Opens a link, unless the server stops or the app does not look.
    fn open(&self, peer: PeerInfo, outbox: &Arc<Outbox>) -> Option<LinkId> {
        let mut state = self.lock();
        if state.stopped || !self.has_room() {
            return None;
        }
        let link = state.ids.allocate();
        let outbox = outbox.clone();
        self.push(&mut state, [Event::Opened { link, peer, outbox }]);
        Some(link)
    }

    /// There is always room for this: there is one for each link that opened.
    fn close(&self, link: LinkId, reason: CloseReason) {
        let mut state = self.lock();
        state.paused.remove(&link);
        self.push(&mut state, [Event::Closed { link, reason }]);
    }
}

/// The way from a link to the app. However the link's task ends, the app is told.
struct Presence {
    shared: Arc<Shared>,
    link: LinkId,
    closed: bool,
}

impl Presence {
    fn close(&mut self, reason: CloseReason) {
        if !std::mem::replace(&mut self.closed, true) {
            self.shared.inbox.close(self.link, reason);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        // The server stopped before the link had taken leave; or the task panicked, which is in the log.
        let reason = if self.shared.closed.load(Ordering::Relaxed) {
            CloseReason::ByUs
        } else {
            CloseReason::Transport("the server failed".into())
        };
        self.close(reason);
    }
}

/// Delivers to the app what one link receives.
struct LinkInbox {
    shared: Arc<Shared>,
    link: LinkId,
}

impl Inbox for LinkInbox {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let inbox = &self.shared.inbox;
        if inbox.has_room() {
            return Poll::Ready(());
        }
        let mut state = inbox.lock();
        if inbox.has_room() {
            return Poll::Ready(());
        }
        state.paused.insert(self.link, cx.waker().clone());
        Poll::Pending
    }

    fn deliver(&mut self, datagrams: &mut Vec<Vec<u8>>) {
        let inbox = &self.shared.inbox;
        let link = self.link;
        let events = datagrams
            .drain(..)
            .map(|bytes| Event::Datagram { link, bytes });
        inbox.push(&mut inbox.lock(), events);
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !is_of_one_connection(&error) {
                        // Most likely there are too many open files. It passes, and asking faster does not help.
                        self.refusals.note(IpAddr::from([0; 4]), &error.to_string());
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    continue;
                }
            };
            match self.http.enter(peer) {
                Ok(permit) => {
                    tokio::spawn(self.clone().serve(stream, peer, permit));
                }
                Err(full) => self.refuse(
                    peer,
                    match full {
                        Full::InTotal => "too many connections that are no link yet",
                        Full::FromAddress => {
                            "too many connections of its address that are no link yet"
                        }
                    },
                ),
            }
        }
    }

    fn refuse(&self, peer: SocketAddr, why: &str) {
        self.stats.add_refused();
        self.refusals.note(peer.ip(), why);
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, permit: Permit) {
        let deadline = tokio::time::Instant::now() + self.handshake_timeout;
        if configure(&stream).is_err() {
            return; // it is gone already
        }
        // Who says nothing costs no buffers for what it might say.
        if !matches!(timeout_at(deadline, stream.peek(&mut [0])).await, Ok(Ok(1))) {
            return self.refuse(peer, "it said nothing");
        }
        // Each part is boxed, so that none takes the place that the largest needs.
        if let Some(tls) = &self.tls {
            let accept =
                tls.accept_with(stream, |tls| tls.set_buffer_limit(Some(TLS_BUFFER_BYTES)));
            match timeout_at(deadline, Box::pin(accept)).await {
                Ok(Ok(stream)) => {
                    Box::pin(self.serve_http(stream, peer, permit, deadline)).await;
                }
                Ok(Err(error)) => self.refuse(peer, &format!("no TLS: {error}")),
                Err(_) => self.refuse(peer, "TLS took too long"),
            }
        } else {
            Box::pin(self.serve_http(stream, peer, permit, deadline)).await;
        }
    }

    async fn serve_http<S>(
        self: Arc<Self>,
        stream: S,
        peer: SocketAddr,
        permit: Permit,
        deadline: tokio::time::Instant,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let http = self.http.clone();
        let served = http.serve(stream, peer, permit, self.closed.clone(), deadline);
        match Box::pin(served).await {
            Ok(upgraded) => Box::pin(self.serve_link(upgraded)).await,
            Err(NoUpgrade::Answered) => {}
            Err(NoUpgrade::Refused(addr, why)) => self.refuse(addr, &why),
            Err(NoUpgrade::Broken(addr)) => {
                self.refuse(addr, "no HTTP request, or not in time");
            }
        }
    }

    async fn serve_link<S>(self: Arc<Self>, upgraded: Upgraded<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Upgraded {
            stream,
            read,
            addr,
            permit: handshake,
        } = upgraded;
        let mut socket = Socket::new(
            stream,
            read,
            Role::Server,
            frame::MAX_AUTH_BYTES,
            self.stats.clone(),
        );
        let outbox = Arc::new(Outbox::new(self.pace));
        let admitted = timeout(self.auth_timeout, self.admit(&mut socket, addr, &outbox)).await;
        // On a bad link, the answer may be under way, and may come in time when the client tries again.
        let admitted = admitted.unwrap_or_else(|_| {
            Err(CloseReason::NotReady(
                "you have not said in time who you are".into(),
            ))
        });
        let (mut presence, _place) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                self.refuse(addr, &reason.to_string());
                let (code, text) = frame::close_frame(&reason);
                if socket.queue_close(code, text).is_ok() {
                    let _ = timeout(self.auth_timeout, socket.finish()).await;
                }
                return;
            }
        };
        drop(handshake);
        socket.set_max_message_bytes(Limits::FROM_CLIENT.max_message_bytes);
        let rules = LinkRules {
            budget: Some(Budget::new(
                Instant::now(),
                self.max_datagrams_per_s,
                self.max_bytes_per_s,
            )),
            ..self.rules.clone()
        };
        let inbox = LinkInbox {
            shared: self.clone(),
            link: presence.link,
        };
        Link::new(socket, inbox, outbox, self.stats.clone(), rules)
            .run(|reason| presence.close(reason))
            .await;
    }

    /// Reads who the client is, and opens its link if it may come in.
    async fn admit<S: AsyncRead + AsyncWrite + Unpin>(
        self: &Arc<Self>,
        socket: &mut Socket<S>,
        addr: SocketAddr,
        outbox: &Arc<Outbox>,
    ) -> Result<(Presence, Permit), CloseReason> {
        let refused = |why: &str| Err(CloseReason::Refused(why.to_owned()));
        let not_ready = |why: &str| Err(CloseReason::NotReady(why.to_owned()));
        let first = loop {
            match socket.read().await {
                Ok(Message::Binary(bytes)) => break bytes,
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Close(_)) => return Err(CloseReason::ByPeer),
                Ok(_) => return refused("the first message must say who you are"),
                Err(Error::Io(error)) => return Err(CloseReason::Transport(error.to_string())),
                Err(error) => return refused(&error.to_string()),
            }
        };
        let Some((protocol_id, credentials)) = frame::decode_auth(&first) else {
            return refused("the first message must say who you are");
        };
        if protocol_id != self.protocol_id {
            return refused("this server runs another game, or another version of it");
        }
        let now_unix = token::unix_time().as_secs();
        let (client_id, user_data, token) = match (&self.auth, credentials) {
            (Auth::Insecure, Credentials::Claim { client_id }) => (client_id, None, None),
            (Auth::Insecure, Credentials::Token(_)) => {
                return refused("this server takes no tokens; connect with `WsAuth::Insecure`");
            }
            (Auth::Secure { .. }, Credentials::Claim { .. }) => {
                return refused("this server wants a connect token of its back end");
            }
            (Auth::Secure { private_key }, Credentials::Token(bytes)) => {
                let opened = token::open(
                    private_key,
                    self.protocol_id,
                    &bytes,
                    now_unix,
                    &self.public_addresses,
                )
                .map_err(|error| match error {
                    TokenError::Expired => CloseReason::TokenExpired,
                    error => CloseReason::Refused(error.to_string()),
                })?;
                let used = TokenUse {
                    tag: opened.tag,
                    expires: opened.expires,
                };
                (opened.client_id, Some(opened.user_data), Some(used))
            }
        };
        let place = match self.gate.enter(Some(addr.ip())) {
            Ok(place) => place,
            Err(Full::InTotal) => return Err(CloseReason::Denied),
            Err(Full::FromAddress) => return not_ready("too many players from your address"),
        };
        if self.closed.load(Ordering::Relaxed) {
            return not_ready("it shuts down; connect to another");
        }
        let peer = PeerInfo {
            addr: Some(addr),
            client_id,
            user_data,
            secure: token.is_some(),
            token,
            kind: TransportKind::WebSocket,
            delivery: Delivery::Stream,
        };
        let Some(link) = self.inbox.open(peer, outbox) else {
            return not_ready("too much is going on; try again");
        };
        let presence = Presence {
            shared: self.clone(),
            link,
            closed: false,
        };
        // Before anything that the app sends.
        match socket.queue_binary(Bytes::from_static(&frame::MAGIC), Bytes::new()) {
            Ok(()) => Ok((presence, place)),
            Err(error) => Err(CloseReason::Transport(error.to_string())),
        }
    }
}

/// Links that have opened and closed again, and said nothing in between: the app need not bother with them.
fn fleeting(events: &[Event]) -> HashSet<LinkId> {
    let mut silent = HashSet::new();
    let mut fleeting = HashSet::new();
    for event in events {
        match event {
            Event::Opened { link, .. } => {
                silent.insert(*link);
            }
            // Most frames open no link, and then this costs nothing for each datagram.
            Event::Datagram { link, .. } if !silent.is_empty() => {
                silent.remove(link);
            }
            Event::Datagram { .. } => {}
            Event::Closed { link, .. } => fleeting.extend(silent.take(link)),
        }
    }
    fleeting
}

/// Whether only the connection failed that was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
