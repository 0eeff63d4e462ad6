//! A relay for UDP and TCP that can fail as networks do: silently, for a while; by resetting connections; by moving
//! clients to another address; and, all the time, by losing, delaying, doubling and damaging what passes.
// The command line and the tests each use their part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bevy_tandem::transport::Delivery;
use bevy_tandem::transport::conditioner::{ConditionedQueue, LinkConditions, Wire};
use futures_util::future::{Either, select};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Most clients of each kind at a time; further ones are not answered.
const MAX_CLIENTS: usize = 4_096;
/// A UDP client of which nothing was heard for so long makes room when there are too many.
const IDLE: Duration = Duration::from_secs(60);
/// Of each TCP socket. Small, so that a hole is felt soon by who sends into it, and memory stays bounded.
const TCP_BUFFER_BYTES: usize = 64 << 10;
/// What one read takes from a TCP connection.
const CHUNK_BYTES: usize = 16 << 10;

/// How often datagrams under way are looked at.
const STEP: Duration = Duration::from_millis(1);
/// Most chunks of a TCP connection that the relay holds, each way, while they are delayed.
const DELAYED_CHUNKS: usize = 64;

/// What happens to all that passes, each way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RelayConditions {
    /// Datagrams meet all of these; TCP shows only the delay of them.
    pub link: LinkConditions,
    /// Share of datagrams in which a bit is flipped, 0 to 1.
    pub corruption: f32,
    /// TCP connections stand still, each at times of its own.
    pub stalls: Option<Stalls>,
}

/// When TCP connections stand still, as they do when a packet was lost and has to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalls {
    /// From one to the next. More than zero.
    pub every: Duration,
    /// For so long.
    pub length: Duration,
}

impl Stalls {
    /// How long a connection that has lived for `age`, and whose first stall came after `phase`, is still to wait.
    pub fn left(self, age: Duration, phase: Duration) -> Duration {
        let since = age.saturating_sub(phase).as_nanos() % self.every.as_nanos().max(1);
        let since = Duration::from_nanos(u64::try_from(since).unwrap_or(u64::MAX));
        match age < phase {
            true => Duration::ZERO,
            false => self.length.saturating_sub(since),
        }
    }
}

/// Where to listen, and where what arrives there goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub listen: SocketAddr,
    pub server: SocketAddr,
}

/// What gets through a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hole {
    /// Everything.
    #[default]
    None,
    /// Nothing, either way. Datagrams vanish. TCP connections stay open, and what was on its way arrives when the hole
    /// closes. Nobody is told.
    Both,
    /// The same for what comes from the server alone: its clients are heard, and do not read.
    FromServer,
}

/// Which way something goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    ToServer,
    FromServer,
}

impl Hole {
    fn swallows(self, way: Way) -> bool {
        match self {
            Self::None => false,
            Self::Both => true,
            Self::FromServer => matches!(way, Way::FromServer),
        }
    }
}

/// A running relay. Stops when dropped.
pub struct Relay {
    shared: Arc<Shared>,
    udp: Option<SocketAddr>,
    tcp: Option<SocketAddr>,
    /// Dropped last: its thread does all the work.
    runtime: Option<Runtime>,
}

/// What went through a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// UDP clients, each counted again after it was moved.
    pub udp_clients: u64,
    /// TCP connections accepted.
    pub tcp_connections: u64,
    /// Datagrams and TCP chunks passed on.
    pub forwarded: u64,
    /// Datagrams that fell into a hole, or came from too many clients.
    pub dropped: u64,
    /// TCP connections that were reset by [`Relay::cut`].
    pub cut: u64,
}

struct Shared {
    conditions: RelayConditions,
    started_at: Instant,
    /// What is swallowed now.
    hole: watch::Sender<Hole>,
    udp_clients: Mutex<HashMap<SocketAddr, UdpClient>>,
    tcp_connections: Mutex<Vec<TcpConnection>>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    udp_clients: AtomicU64,
    tcp_connections: AtomicU64,
    forwarded: AtomicU64,
    dropped: AtomicU64,
    cut: AtomicU64,
}

/// A client, and the socket that the server takes it for.
struct UdpClient {
    upstream: Arc<UdpSocket>,
    /// Carries answers back.
    back: AbortHandle,
    heard_at: Instant,
    /// What is under way, unless the conditions are perfect.
    wires: Option<Wires>,
}

/// What is under way between a client and the server.
struct Wires {
    to_server: Wire,
    from_server: Wire,
}

impl Drop for UdpClient {
    fn drop(&mut self) {
        self.back.abort();
    }
}

struct TcpConnection {
    /// Carry bytes each way. They end when either side does.
    pumps: AbortHandle,
    streams: Arc<Mutex<Vec<Arc<TcpStream>>>>,
}

impl Relay {
    /// Listens, and relays to the servers.
    ///
    /// # Errors
    ///
    /// An address cannot be listened on.
    pub fn start(udp: Option<Route>, tcp: Option<Route>) -> io::Result<Self> {
        Self::start_with(udp, tcp, RelayConditions::default())
    }

    /// The same, over a network that is as bad as these conditions.
    ///
    /// # Errors
    ///
    /// An address cannot be listened on.
    pub fn start_with(
        udp: Option<Route>,
        tcp: Option<Route>,
        conditions: RelayConditions,
    ) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("relay")
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared {
            conditions,
            started_at: Instant::now(),
            hole: watch::Sender::new(Hole::None),
            udp_clients: Mutex::default(),
            tcp_connections: Mutex::default(),
            counts: Counts::default(),
        });
        let guard = runtime.enter();
        let (mut udp_addr, mut tcp_addr) = (None, None);
        if let Some(route) = udp {
            let socket = Arc::new(bind_udp(route.listen)?);
            udp_addr = Some(socket.local_addr()?);
            if shared.has_wires() {
                tokio::spawn(deliver(Arc::clone(&shared), Arc::clone(&socket)));
            }
            tokio::spawn(relay_udp(Arc::clone(&shared), socket, route.server));
        }
        if let Some(route) = tcp {
            let listener = listen_tcp(route.listen)?;
            tcp_addr = Some(listener.local_addr()?);
            tokio::spawn(relay_tcp(Arc::clone(&shared), listener, route.server));
        }
        drop(guard);
        Ok(Self {
            shared,
            udp: udp_addr,
            tcp: tcp_addr,
            runtime: Some(runtime),
        })
    }

    /// Where it listens for UDP.
    pub fn udp_addr(&self) -> Option<SocketAddr> {
        self.udp
    }

    /// Where it listens for TCP.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Opens or closes a black hole.
    pub fn set_hole(&self, hole: Hole) {
        self.shared.hole.send_replace(hole);
    }

    /// Resets all TCP connections that there are. UDP has none.
    pub fn cut(&self) {
        for connection in lock(&self.shared.tcp_connections).drain(..) {
            connection.reset();
            self.shared.counts.cut.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Moves every UDP client to another port, as a router does that has forgotten them: from its next datagram on, the
    /// server sees it come from elsewhere, and what is sent to the old port is lost.
    pub fn rebind(&self) {
        lock(&self.shared.udp_clients).clear();
    }

    /// What went through so far.
    pub fn stats(&self) -> RelayStats {
        let counts = &self.shared.counts;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RelayStats {
            udp_clients: of(&counts.udp_clients),
            tcp_connections: of(&counts.tcp_connections),
            forwarded: of(&counts.forwarded),
            dropped: of(&counts.dropped),
            cut: of(&counts.cut),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn swallows(&self, way: Way) -> bool {
        self.hole.borrow().swallows(way)
    }

    /// Returns when there is no hole that way, at once if there is none now.
    async fn pass(&self, way: Way) {
        let mut hole = self.hole.subscribe();
        // No error: the sender lives as long as `self`.
        let _ = hole.wait_for(|hole| !hole.swallows(way)).await;
    }

    /// Time since the start.
    fn now(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// Whether datagrams take time, or do not arrive as they were sent.
    fn has_wires(&self) -> bool {
        let seed = self.conditions.link.seed;
        self.conditions.link != LinkConditions::default().with_seed(seed)
            || self.conditions.corruption > 0.0
    }

    /// A wire of its own for each client and each direction.
    fn wire(&self, stream: u64) -> Wire {
        let RelayConditions {
            link, corruption, ..
        } = &self.conditions;
        Wire::new(link.clone(), *corruption, stream)
    }

    /// Puts a datagram on its way, if that takes a wire. Else it can go at once.
    fn take_up(&self, client: SocketAddr, way: Way, datagram: &[u8]) -> bool {
        let mut clients = lock(&self.udp_clients);
        let Some(wires) = clients.get_mut(&client).and_then(|it| it.wires.as_mut()) else {
            return false;
        };
        let wire = match way {
            Way::ToServer => &mut wires.to_server,
            Way::FromServer => &mut wires.from_server,
        };
        let dropped = wire.dropped();
        wire.push(self.now(), datagram.to_vec());
        let dropped = wire.dropped() - dropped;
        self.counts.dropped.fetch_add(dropped, Ordering::Relaxed);
        true
    }

    fn count_forwarded(&self) {
        self.counts.forwarded.fetch_add(1, Ordering::Relaxed);
    }

    fn count_dropped(&self) {
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

async fn relay_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>, server: SocketAddr) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An error is news of an earlier datagram that could not be delivered, of no interest here.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if shared.swallows(Way::ToServer) {
            shared.count_dropped();
            continue;
        }
        match upstream_of(&shared, &socket, client, server) {
            Ok(_) if shared.take_up(client, Way::ToServer, &buffer[..length]) => {}
            // A full buffer drops datagrams, as any network does.
            Ok(upstream) if upstream.try_send(&buffer[..length]).is_ok() => {
                shared.count_forwarded();
            }
            _ => shared.count_dropped(),
        }
    }
}

/// The socket from which this client's datagrams go to the server.
fn upstream_of(
    shared: &Arc<Shared>,
    socket: &Arc<UdpSocket>,
    client: SocketAddr,
    server: SocketAddr,
) -> io::Result<Arc<UdpSocket>> {
    let mut clients = lock(&shared.udp_clients);
    let now = Instant::now();
    if let Some(known) = clients.get_mut(&client) {
        known.heard_at = now;
        return Ok(Arc::clone(&known.upstream));
    }
    if clients.len() >= MAX_CLIENTS {
        clients.retain(|_, client| now - client.heard_at < IDLE);
    }
    if clients.len() >= MAX_CLIENTS {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let upstream = bind_udp(any)?;
    SockRef::from(&upstream).connect(&server.into())?;
    let upstream = Arc::new(upstream);
    let back = answer(
        Arc::clone(shared),
        Arc::clone(&upstream),
        Arc::clone(socket),
        client,
    );
    let stream = 2 * shared.counts.udp_clients.fetch_add(1, Ordering::Relaxed);
    let entry = UdpClient {
        upstream: Arc::clone(&upstream),
        back: tokio::spawn(back).abort_handle(),
        heard_at: now,
        wires: shared.has_wires().then(|| Wires {
            to_server: shared.wire(stream),
            from_server: shared.wire(stream + 1),
        }),
    };
    clients.insert(client, entry);
    Ok(upstream)
}

/// Carries the server's datagrams back to one client.
async fn answer(
    shared: Arc<Shared>,
    upstream: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
) {
    let mut buffer = vec![0; 1 << 11];
    loop {
        let Ok(length) = upstream.recv(&mut buffer).await else {
            // The server is not there. It may be, later.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if shared.swallows(Way::FromServer) {
            shared.count_dropped();
        } else if shared.take_up(client, Way::FromServer, &buffer[..length]) {
            // On its way.
        } else if socket.try_send_to(&buffer[..length], client).is_ok() {
            shared.count_forwarded();
        } else {
            shared.count_dropped();
        }
    }
}

/// Delivers datagrams when they are due.
async fn deliver(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut steps = tokio::time::interval(STEP);
    steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        steps.tick().await;
        let now = shared.now();
        for (client, known) in lock(&shared.udp_clients).iter_mut() {
            let Some(wires) = &mut known.wires else {
                continue;
            };
            while let Some(datagram) = wires.to_server.pop_due(now) {
                match known.upstream.try_send(&datagram) {
                    Ok(_) => shared.count_forwarded(),
                    Err(_) => shared.count_dropped(),
                }
            }
            while let Some(datagram) = wires.from_server.pop_due(now) {
                match socket.try_send_to(&datagram, *client) {
                    Ok(_) => shared.count_forwarded(),
                    Err(_) => shared.count_dropped(),
                }
            }
        }
    }
}

async fn relay_tcp(shared: Arc<Shared>, listener: TcpListener, server: SocketAddr) {
    loop {
        shared.pass(Way::ToServer).await;
        let Ok((client, _)) = listener.accept().await else {
            // Out of file descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let index = shared
            .counts
            .tcp_connections
            .fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(client);
        let streams = Arc::new(Mutex::new(vec![Arc::clone(&client)]));
        let mut connections = lock(&shared.tcp_connections);
        connections.retain(|connection| !connection.pumps.is_finished());
        if connections.len() < MAX_CLIENTS {
            let pumps = tokio::spawn(carry(
                Arc::clone(&shared),
                index,
                client,
                server,
                Arc::clone(&streams),
            ));
            connections.push(TcpConnection {
                pumps: pumps.abort_handle(),
                streams,
            });
        }
    }
}

impl TcpConnection {
    /// Ends both sides with a reset, not with a goodbye.
    fn reset(&self) {
        for stream in lock(&self.streams).drain(..) {
            // Closing a socket with nothing to linger for resets the connection.
            let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
        self.pumps.abort();
    }
}

/// One connection, until either side ends it.
async fn carry(
    shared: Arc<Shared>,
    index: u64,
    client: Arc<TcpStream>,
    server: SocketAddr,
    streams: Arc<Mutex<Vec<Arc<TcpStream>>>>,
) {
    let Ok(upstream) = connect_tcp(server).await else {
        return;
    };
    let upstream = Arc::new(upstream);
    lock(&streams).push(Arc::clone(&upstream));
    let _ = client.set_nodelay(true);
    let _ = upstream.set_nodelay(true);

    // They end with this task.
    let mut pumps = tokio::task::JoinSet::new();
    let up = Delay::new(&shared, 2 * index);
    let down = Delay::new(&shared, 2 * index + 1);
    pumps.spawn(pump(
        Arc::clone(&shared),
        Way::ToServer,
        up,
        Arc::clone(&client),
        Arc::clone(&upstream),
    ));
    pumps.spawn(pump(shared, Way::FromServer, down, upstream, client));
    while let Some(result) = pumps.join_next().await {
        if matches!(result, Ok(Err(_))) {
            // One side has reset its connection: so is the other's.
            for stream in lock(&streams).iter() {
                let _ = SockRef::from(&**stream).set_linger(Some(Duration::ZERO));
            }
            break;
        }
    }
    lock(&streams).clear();
}

/// What is under way on one direction of a TCP connection.
struct Delay {
    chunks: ConditionedQueue<Vec<u8>>,
    /// Stalls, the time since when they count, and that of the first.
    stalls: Option<(Stalls, Instant, Duration)>,
}

impl Delay {
    fn new(shared: &Shared, stream: u64) -> Self {
        let RelayConditions { link, stalls, .. } = &shared.conditions;
        // Neighbours do not stall together.
        let mut dice = fastrand::Rng::with_seed(link.seed ^ stream.rotate_left(32));
        Self {
            chunks: ConditionedQueue::new(link.clone().over(Delivery::Stream), stream),
            stalls: stalls.map(|stalls| (stalls, Instant::now(), stalls.every.mul_f64(dice.f64()))),
        }
    }

    /// Until when nothing more is read.
    fn is_full(&self) -> bool {
        self.chunks.len() >= DELAYED_CHUNKS
    }

    /// Returns when the next chunk has come through, or never.
    async fn arrival(&mut self, shared: &Shared) -> Vec<u8> {
        let Some(due) = self.chunks.next_due() else {
            return std::future::pending().await;
        };
        tokio::time::sleep(due.saturating_sub(shared.now())).await;
        if let Some((stalls, since, phase)) = self.stalls {
            tokio::time::sleep(stalls.left(since.elapsed(), phase)).await;
        }
        self.chunks.pop_any().unwrap_or_default()
    }
}

/// Carries bytes one way until their end, which it passes on.
async fn pump(
    shared: Arc<Shared>,
    way: Way,
    mut delay: Delay,
    from: Arc<TcpStream>,
    to: Arc<TcpStream>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut has_ended = false;
    loop {
        let may_read = !has_ended && !delay.is_full();
        let next = {
            let read = pin!(async {
                match may_read {
                    true => {
                        from.async_io(Interest::READABLE, || from.try_read(&mut buffer))
                            .await
                    }
                    false => std::future::pending().await,
                }
            });
            let arrival = pin!(delay.arrival(&shared));
            match select(read, arrival).await {
                Either::Left((read, _)) => Either::Left(read?),
                Either::Right((chunk, _)) => Either::Right(chunk),
            }
        };
        let chunk = match next {
            Either::Left(length) => {
                // An empty chunk is the end.
                has_ended = length == 0;
                let bytes = buffer[..length].to_vec();
                delay.chunks.push(shared.now(), length, bytes);
                continue;
            }
            Either::Right(chunk) => chunk,
        };
        // What was read before the hole opened waits here, and nothing more is read: the sender's window fills up.
        shared.pass(way).await;
        if chunk.is_empty() {
            return SockRef::from(&*to).shutdown(std::net::Shutdown::Write);
        }
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            to.writable().await?;
            match to.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        shared.count_forwarded();
    }
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // For many clients behind one socket. What the system does not grant is lost, as on any network.
    let _ = socket.set_recv_buffer_size(4 << 20);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp_socket(address)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // Connections inherit the buffers.
    socket.listen(1_024)
}

async fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    tcp_socket(address)?.connect(address).await
}

fn tcp_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_recv_buffer_size(TCP_BUFFER_BYTES as u32)?;
    socket.set_send_buffer_size(TCP_BUFFER_BYTES as u32)?;
    Ok(socket)
}

/// No code that holds these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
