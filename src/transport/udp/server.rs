//! The server's end: one socket, one thread to receive and one to send.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tracing::{error, info, warn};

use super::shards::{Output, Packets, Shards, ShardsConfig};
use super::socket::{self, ReceiveBatch};
use super::{DEFAULT_PROTOCOL_ID, token};
use crate::transport::{
    CloseReason, LinkEvent, LinkId, MAX_PAYLOAD_BYTES, Rejected, ServerTransport, TransportKind,
    TransportStats,
};

/// How long the receiving thread waits for a datagram before it looks whether to stop.
const READ_TIMEOUT: Duration = Duration::from_millis(25);

/// A socket's send buffer is rarely full; if it is, it is better to lose a datagram than to wait.
const WRITE_TIMEOUT: Duration = Duration::from_millis(5);

/// How often to look for what timed out and for who needs a keep-alive.
const SWEEP: Duration = Duration::from_millis(100);

/// Datagrams handled under one lock. Some 100 µs.
const CHUNK: usize = 64;

/// Batches of a frame that may wait to be sent. When the network is behind by more, whole frames
/// are dropped, as it would be too late for them.
const OUTBOX_BATCHES: usize = 4;

/// As much as a frame may send. 10,000 clients with a full datagram each take 12 MB.
const MAX_BATCH_BYTES: usize = 32 << 20;

/// How long `shutdown` repeats its farewells.
const FAREWELL_TIME: Duration = Duration::from_millis(100);

/// Who may connect.
#[derive(Clone)]
pub enum Auth {
    /// Everyone, under whatever client id they claim, encrypted with keys that anyone on the way
    /// can read. For development: servers listen on loopback addresses only, unless told otherwise
    /// by [`UdpServerConfig::insecure_anywhere`].
    Insecure,
    /// Who has a [connect token](token) made with this key.
    Secure {
        /// 32 bytes shared with the back end and nobody else.
        private_key: [u8; 32],
    },
}

impl std::fmt::Debug for Auth {
    /// Keeps the key out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Insecure => "Insecure",
            Self::Secure { .. } => "Secure",
        })
    }
}

/// How a [`UdpServer`] listens.
#[derive(Clone, Debug)]
pub struct UdpServerConfig {
    /// Where to listen. Port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Tells the server's transports apart: the top byte of their [`LinkId`]s. Default: 0.
    pub transport_index: u8,
    /// Which game, and which version of it; clients of others are ignored.
    /// Default: [`DEFAULT_PROTOCOL_ID`].
    pub protocol_id: u64,
    /// Who may connect. Default: [`Auth::Insecure`].
    pub auth: Auth,
    /// Lets [`Auth::Insecure`] listen on an address that other machines can reach. Default: false, so that
    /// a development server does not end up on the internet by a slip. For networks that you trust.
    pub insecure_anywhere: bool,
    /// How many may be connected at a time. Default: 10,000.
    pub max_sessions: usize,
    /// Silence after which a link is closed, to within 0.1 s. Default: 5 s. A living client is
    /// never silent for longer than 0.25 s, so this is the length of the outages it survives.
    pub client_timeout: Duration,
    /// Where clients reach this server: tokens must name one of these. Empty stands for `addr`.
    /// Port 0 stands for the port that the system chose.
    pub public_addresses: Vec<SocketAddr>,
    /// Size to ask of the kernel for the socket's buffers. Default: 4 MiB, some 10,000 datagrams.
    /// Linux grants `net.core.rmem_max` at most, unless the process has `CAP_NET_ADMIN`.
    pub buffer_bytes: usize,
    /// Datagrams that a client may send in a second, and half as many in a moment. Default: 400. One
    /// at 60 Hz sends 60, and some hundred more when acks and large inputs do not share them; after a
    /// time without network, that of three seconds may come at once.
    pub max_datagrams_per_s: u32,
    /// Datagrams kept for the app until it calls `receive`. Default: 65,536, a tenth of a second
    /// of 10,000 clients at 60 Hz.
    pub inbox_datagrams: usize,
}

impl UdpServerConfig {
    /// Listens there, with the defaults.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            transport_index: 0,
            protocol_id: DEFAULT_PROTOCOL_ID,
            auth: Auth::Insecure,
            insecure_anywhere: false,
            max_sessions: 10_000,
            client_timeout: Duration::from_secs(5),
            public_addresses: Vec::new(),
            buffer_bytes: 4 << 20,
            max_datagrams_per_s: 400,
            inbox_datagrams: 65_536,
        }
    }
}

/// Why a [`UdpServer`] does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Someone else does.
    #[error("UDP port {} of {} is in use; stop the other server or choose another port", .0.port(), .0.ip())]
    InUse(SocketAddr),
    /// The machine has no such address.
    #[error("this machine has no address {0}; listen on 0.0.0.0 (or [::]) for all it has")]
    NoSuchAddress(std::net::IpAddr),
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
    /// Anything else.
    #[error("cannot listen on {addr}: {source}")]
    Io {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A [`ServerTransport`] over UDP.
///
/// It keeps the real time and ignores that of its callers.
pub struct UdpServer {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    batch: Batch,
    /// `None` after `shutdown`.
    outbox: Option<Sender<Batch>>,
    /// Batches that were sent, to be filled again.
    used_batches: Receiver<Batch>,
    threads: Vec<JoinHandle<()>>,
    /// A thread that ended by itself is a bug, and worth a line in the log.
    reported_dead: bool,
    /// What this side of the queues dropped.
    rejected: Rejected,
}

struct Shared {
    socket: UdpSocket,
    started_at: Instant,
    shards: Mutex<Shards>,
    /// Locked after `shards` where both are, so that events come in the order they happened.
    inbox: Mutex<Inbox>,
    stop: AtomicBool,
    /// Packets that the system would not send.
    unsent: AtomicU64,
}

struct Inbox {
    events: Vec<LinkEvent>,
    capacity: usize,
    /// As the shards last had them: who asks need not wait for a flood to be turned away.
    stats: TransportStats,
}

/// What a frame sends, one datagram after the other in memory.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    orders: Vec<Order>,
}

#[derive(Clone, Copy)]
enum Order {
    /// The next `len` bytes.
    Send {
        link: LinkId,
        len: usize,
    },
    Close {
        link: LinkId,
    },
}

impl BindError {
    fn of(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(addr),
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(addr.ip()),
            _ => Self::Io { addr, source },
        }
    }
}

impl UdpServer {
    /// Starts to listen.
    ///
    /// # Errors
    /// If it cannot listen there, see [`BindError`].
    pub fn bind(config: UdpServerConfig) -> Result<Self, BindError> {
        let addr = config.addr;
        // An IPv4 address can be written as an IPv6 one.
        let is_loopback = addr.ip().to_canonical().is_loopback();
        if matches!(config.auth, Auth::Insecure) && !is_loopback && !config.insecure_anywhere {
            return Err(BindError::Insecure(addr));
        }
        let io_error = |source| BindError::of(addr, source);
        let (socket, buffer_bytes) = socket::bind(addr, config.buffer_bytes).map_err(io_error)?;
        socket::set_timeouts(&socket, READ_TIMEOUT, WRITE_TIMEOUT).map_err(io_error)?;
        let local_addr = socket.local_addr().map_err(io_error)?;
        if buffer_bytes < config.buffer_bytes {
            info!(
                "UDP receive buffer is {buffer_bytes} bytes, not {}; for hundreds of clients, raise net.core.rmem_max",
                config.buffer_bytes
            );
        }

        let private_key = match &config.auth {
            Auth::Secure { private_key } => Some(*private_key),
            Auth::Insecure => None,
        };
        if private_key.is_none() && !is_loopback {
            warn!(
                "INSECURE: listening on {local_addr} without authentication. Anyone who reaches it can play as anyone, and \
                 anyone on the way can read and alter everything. Not for the internet: see `Auth::Secure`"
            );
        }
        let public_addresses =
            token::public_addresses(&config.public_addresses, local_addr, private_key.is_some())
                .ok_or(BindError::NoPublicAddress(local_addr))?;
        let shards = Shards::new(ShardsConfig {
            transport_index: config.transport_index,
            protocol_id: config.protocol_id,
            private_key,
            public_addresses,
            max_sessions: config.max_sessions,
            client_timeout: config.client_timeout,
            max_datagrams_per_s: config.max_datagrams_per_s as f32,
            unix_time_at_start: token::unix_time(),
        });
        let shared = Arc::new(Shared {
            socket,
            started_at: Instant::now(),
            shards: Mutex::new(shards),
            inbox: Mutex::new(Inbox {
                events: Vec::new(),
                capacity: config.inbox_datagrams,
                stats: TransportStats::default(),
            }),
            stop: AtomicBool::new(false),
            unsent: AtomicU64::new(0),
        });
        Self::start(shared, local_addr).map_err(io_error)
    }

    /// Starts its two threads.
    fn start(shared: Arc<Shared>, local_addr: SocketAddr) -> io::Result<Self> {
        let (outbox, batches) = bounded(OUTBOX_BATCHES);
        let (used, used_batches) = bounded(OUTBOX_BATCHES);
        let mut server = Self {
            shared: shared.clone(),
            local_addr,
            batch: Batch::default(),
            outbox: Some(outbox),
            used_batches,
            threads: Vec::with_capacity(2),
            reported_dead: false,
            rejected: Rejected::default(),
        };
        // If the second thread cannot be made, dropping `server` stops the first.
        server.spawn("tandem-udp-send", {
            let shared = shared.clone();
            move || shared.run_sender(&batches, &used)
        })?;
        server.spawn("tandem-udp-recv", move || shared.run_receiver())?;
        Ok(server)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            // `renetcode` logs an error for every datagram that a stranger makes up.
            crate::transport::quietly(run);
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl ServerTransport for UdpServer {
    fn receive(&mut self, _now: Duration, events: &mut Vec<LinkEvent>) {
        if !self.reported_dead && self.threads.iter().any(JoinHandle::is_finished) {
            self.reported_dead = true;
            error!("a thread of the UDP transport panicked; restart the server");
        }
        let mut inbox = lock(&self.shared.inbox);
        if events.is_empty() {
            std::mem::swap(events, &mut inbox.events);
        } else {
            events.append(&mut inbox.events);
        }
    }

    fn clock(&self, _now: Duration) -> Duration {
        self.shared.started_at.elapsed()
    }

    fn send(&mut self, _now: Duration, link: LinkId, datagram: &[u8]) {
        if !(1..=MAX_PAYLOAD_BYTES).contains(&datagram.len()) {
            self.rejected.unsendable += 1;
        } else if self.batch.bytes.len() + datagram.len() > MAX_BATCH_BYTES {
            self.rejected.outbox_full += 1;
        } else {
            self.batch.bytes.extend_from_slice(datagram);
            self.batch.orders.push(Order::Send {
                link,
                len: datagram.len(),
            });
        }
    }

    fn flush(&mut self, _now: Duration) {
        if self.batch.orders.is_empty() {
            return;
        }
        let next = self.used_batches.try_recv().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, next);
        let Some(outbox) = &self.outbox else { return };
        if let Err(TrySendError::Full(mut batch) | TrySendError::Disconnected(mut batch)) =
            outbox.try_send(batch)
        {
            // It is too late for the datagrams, but links have to close.
            let orders = batch.orders.len();
            batch
                .orders
                .retain(|order| matches!(order, Order::Close { .. }));
            batch.bytes.clear();
            self.rejected.outbox_full += (orders - batch.orders.len()) as u64;
            self.batch = batch;
        }
    }

    fn close(&mut self, link: LinkId) {
        self.batch.orders.push(Order::Close { link });
    }

    fn kind(&self) -> TransportKind {
        TransportKind::Udp
    }

    fn stop_accepting(&mut self) {
        lock(&self.shared.shards).stop_accepting();
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.local_addr)
    }

    fn stats(&self) -> TransportStats {
        let mut stats = lock(&self.shared.inbox).stats;
        stats.rejected.unsendable += self.rejected.unsendable;
        stats.rejected.outbox_full +=
            self.rejected.outbox_full + self.shared.unsent.load(Ordering::Relaxed);
        stats
    }

    fn shutdown(&mut self) {
        self.flush(Duration::ZERO);
        // The sending thread sends what it has and ends; then this one can say farewell.
        if self.outbox.take().is_none() {
            return;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
        self.shared.say_farewell();
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn run_receiver(&self) {
        let mut batch = ReceiveBatch::new(CHUNK);
        let mut out = Output::default();
        let mut next_sweep = Duration::ZERO;
        while !self.stop.load(Ordering::Relaxed) {
            if batch.fill(&self.socket).is_err() {
                // Unknown, so it may last: do not spin.
                thread::sleep(READ_TIMEOUT);
            }
            let now = self.started_at.elapsed();
            let sweep = now >= next_sweep;
            if batch.is_empty() && !sweep {
                continue;
            }
            self.with_shards(&mut out, |shards, out| {
                for (addr, datagram) in batch.iter_mut() {
                    shards.handle_datagram(now, addr, datagram, out);
                }
                if sweep {
                    shards.handle_timeouts(now, out);
                }
            });
            if sweep {
                next_sweep = now + SWEEP;
            }
            self.send_packets(&mut out.packets);
        }
    }

    fn run_sender(&self, batches: &Receiver<Batch>, used: &Sender<Batch>) {
        let mut out = Output::default();
        for mut batch in batches {
            let mut bytes = &batch.bytes[..];
            for chunk in batch.orders.chunks(CHUNK) {
                let now = self.started_at.elapsed();
                self.with_shards(&mut out, |shards, out| {
                    for order in chunk {
                        match *order {
                            Order::Send { link, len } => {
                                let (datagram, rest) = bytes.split_at(len);
                                bytes = rest;
                                shards.send(now, link, datagram, out);
                            }
                            Order::Close { link } => shards.close(link, CloseReason::ByUs, out),
                        }
                    }
                });
                self.send_packets(&mut out.packets);
            }
            batch.bytes.clear();
            batch.orders.clear();
            // If nobody takes it back, it is freed.
            let _ = used.try_send(batch);
        }
    }

    /// Runs `f` and hands its events to the app before anyone else gets to the shards.
    fn with_shards(&self, out: &mut Output, f: impl FnOnce(&mut Shards, &mut Output)) {
        let mut shards = lock(&self.shards);
        let inbox = lock(&self.inbox);
        out.room = inbox.capacity.saturating_sub(inbox.events.len());
        drop(inbox);
        f(&mut shards, out);
        let mut inbox = lock(&self.inbox);
        inbox.events.append(&mut out.events);
        inbox.stats = shards.stats;
    }

    fn send_packets(&self, packets: &mut Packets) {
        for (addr, packet) in packets.iter() {
            if self.socket.send_to(packet, addr).is_err() {
                self.unsent.fetch_add(1, Ordering::Relaxed);
            }
        }
        packets.clear();
    }

    fn say_farewell(&self) {
        let mut out = Output::default();
        self.with_shards(&mut out, Shards::close_all);
        // One packet to everyone, then the next: if time runs out, all have had some.
        let end = Instant::now() + FAREWELL_TIME;
        let mut packets: Vec<_> = out.packets.iter().enumerate().collect();
        packets.sort_by_key(|(index, _)| index % super::FAREWELLS);
        for (_, (addr, packet)) in packets {
            let _ = self.socket.send_to(packet, addr);
            if Instant::now() > end {
                return;
            }
        }
    }
}

/// What another thread left behind when it panicked is as good as any: datagrams can be lost.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
