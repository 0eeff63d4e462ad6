//! The server's end: one port, threads of its own, one task for each connection.

mod config;
mod inbox;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
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

pub use config::{WsBindError, WsServerConfig};
use inbox::{Event, LinkInbox, Presence, ServerInbox, fleeting};

use crate::transport::udp::Auth;
use crate::transport::udp::token::{self, TokenError};
use crate::transport::ws::budget::Budget;
use crate::transport::ws::frame::{self, Credentials, Limits};
use crate::transport::ws::gate::{Full, Gate, Permit, RefusalLog};
use crate::transport::ws::http::{Http, NoUpgrade, Upgraded};
use crate::transport::ws::link::{Link, LinkRules};
use crate::transport::ws::outbox::{Gathered, Goodbye, Outbox};
use crate::transport::ws::socket::{Error, Socket};
use crate::transport::ws::stats::Stats;
use crate::transport::ws::tls::{Certificate, RELOAD_INTERVAL};
use crate::transport::{
    CloseReason, Delivery, LinkEvent, LinkId, LinkPace, MAX_STREAM_DATAGRAM_BYTES, PeerInfo,
    Rejected, ServerTransport, SharedBytes, TokenUse, TransportKind, TransportStats,
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

impl WsServer {
    /// Starts to listen.
    ///
    /// # Errors
    /// If it cannot listen there, see [`WsBindError`].
    pub fn bind(config: WsServerConfig) -> Result<Self, WsBindError> {
        let io_error = |source| WsBindError::of(config.addr, source);
        config.check()?;
        let certificate = config.tls.clone().map(Certificate::load).transpose()?;
        let tls = match &certificate {
            Some(certificate) => Some(TlsAcceptor::from(Arc::new(certificate.server_config()?))),
            None => None,
        };
        let listener = listen(config.addr).map_err(io_error)?;
        let local_addr = listener.local_addr().map_err(io_error)?;
        let public_addresses =
            token::public_addresses(&config.public_addresses, local_addr, config.is_secure())
                .ok_or(WsBindError::NoPublicAddress(local_addr))?;
        config.warn(local_addr);
        let runtime = start_runtime(config.threads).map_err(io_error)?;
        let mut server = Self {
            shared: Arc::new(Shared::new(&config, tls, public_addresses)),
            runtime: None,
            local_addr,
            links: HashMap::new(),
            dirty: Vec::new(),
            pace: config.pace,
            max_queue_bytes: config.max_queue_bytes.max(MIN_QUEUE_BYTES),
            congested_above: config.congested_above,
            rejected: Rejected::default(),
            events: Vec::new(),
        };
        {
            let _inside = runtime.enter();
            let listener = TcpListener::from_std(listener).map_err(io_error)?;
            runtime.spawn(server.shared.clone().accept(listener));
            if let Some(certificate) = certificate {
                runtime.spawn(certificate.keep_fresh(RELOAD_INTERVAL));
            }
        }
        server.runtime = Some(runtime);
        Ok(server)
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

fn start_runtime(threads: usize) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .max_blocking_threads(4) // for files
        .thread_name("tandem-ws")
        .enable_all()
        .build()
}

impl Shared {
    fn new(
        config: &WsServerConfig,
        tls: Option<TlsAcceptor>,
        public_addresses: Vec<SocketAddr>,
    ) -> Self {
        let handshakes = Gate::new(config.max_handshakes, config.max_handshakes_per_address);
        Self {
            http: Arc::new(Http::new(
                config.web.as_deref(),
                config.allowed_origins.clone(),
                config.trusted_proxies.clone(),
                handshakes,
            )),
            gate: Gate::new(config.max_sessions, config.max_links_per_address),
            inbox: ServerInbox::new(config.transport_index, config.inbox_datagrams),
            stats: Arc::default(),
            refusals: RefusalLog::default(),
            closed: Arc::default(),
            tls,
            auth: config.auth.clone(),
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
        }
    }

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
        let not_ready = |why: &str| Err(CloseReason::NotReady(why.to_owned()));
        let first = read_first(socket).await?;
        let (protocol_id, credentials) = frame::decode_auth(&first)
            .ok_or_else(|| refused("the first message must say who you are"))?;
        if protocol_id != self.protocol_id {
            return Err(refused(
                "this server runs another game, or another version of it",
            ));
        }
        let peer = self.identify(addr, credentials)?;
        let place = match self.gate.enter(Some(addr.ip())) {
            Ok(place) => place,
            Err(Full::InTotal) => return Err(CloseReason::Denied),
            Err(Full::FromAddress) => return not_ready("too many players from your address"),
        };
        if self.closed.load(Ordering::Relaxed) {
            return not_ready("it shuts down; connect to another");
        }
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

    /// Who a client is by what it shows.
    fn identify(
        &self,
        addr: SocketAddr,
        credentials: Credentials,
    ) -> Result<PeerInfo, CloseReason> {
        let (client_id, user_data, token) = match (&self.auth, credentials) {
            (Auth::Insecure, Credentials::Claim { client_id }) => (client_id, None, None),
            (Auth::Insecure, Credentials::Token(_)) => {
                let why = "this server takes no tokens; connect with `WsAuth::Insecure`";
                return Err(refused(why));
            }
            (Auth::Secure { .. }, Credentials::Claim { .. }) => {
                return Err(refused("this server wants a connect token of its back end"));
            }
            (Auth::Secure { private_key }, Credentials::Token(bytes)) => {
                let opened = token::open(
                    private_key,
                    self.protocol_id,
                    &bytes,
                    token::unix_time().as_secs(),
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
        Ok(PeerInfo {
            addr: Some(addr),
            client_id,
            user_data,
            secure: token.is_some(),
            token,
            kind: TransportKind::WebSocket,
            delivery: Delivery::Stream,
        })
    }
}

fn refused(why: &str) -> CloseReason {
    CloseReason::Refused(why.to_owned())
}

/// The message in which a client says who it is.
async fn read_first<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut Socket<S>,
) -> Result<Bytes, CloseReason> {
    loop {
        match socket.read().await {
            Ok(Message::Binary(bytes)) => return Ok(bytes),
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(Message::Close(_)) => return Err(CloseReason::ByPeer),
            Ok(_) => return Err(refused("the first message must say who you are")),
            Err(Error::Io(error)) => return Err(CloseReason::Transport(error.to_string())),
            Err(error) => return Err(refused(&error.to_string())),
        }
    }
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
