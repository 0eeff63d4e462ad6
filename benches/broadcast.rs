//! A broadcast of 4 KiB to 1,000 WebSocket clients, beside a bare tokio-tungstenite loop that sends the same bytes.
//!
//!     cargo bench --bench broadcast [-- --clients N --seconds S --rounds R --burst K]
//!
//! Three servers, one after the other, several times over: a headless app with `ToClients { to: Target::All, .. }`, and
//! two bare loops, which have a task for each client that takes messages from a queue and sends them. One bare loop
//! deflates each message once, as the app does, the other sends it as it is. Clients are in a process of their own, so
//! that their cost does not count, and do as little as they can: those of the bare loops only read, those of the app
//! also acknowledge, ten times a second and once for every eight messages. The app sends them snapshots besides.
//!
//! Measured is the processor time of the server for each message delivered, at 20 messages a second and for a burst; and
//! how fast a burst is through.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bevy::prelude::*;
use bevy_tandem::headless::Pace;
use bevy_tandem::headless::report::cpu_time;
use bevy_tandem::prelude::*;
use bevy_tandem::protocol::acks::{AckTracker, Header};
use bevy_tandem::protocol::handshake::{Control, Hello, Intent, WIRE_VERSION, fingerprint};
use bevy_tandem::protocol::reliable::{Accept, Inbox, Stream};
use bevy_tandem::server::ListenAddresses;
use bevy_tandem::transport::ws::frame::{
    self, Batch, Credentials, MAGIC, SUBPROTOCOL, decode, encode_auth,
};
use bevy_tandem::transport::ws::{DEFAULT_PROTOCOL_ID, WsServerConfig};
use bevy_tandem::wire::serial;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use support::{Child, Options, Verdict, allow_many_files, commands, median, reply, role};

const STATE_BYTES: usize = 4_096;
const TICK: Duration = Duration::from_nanos(1_000_000_000 / 60);
/// Ticks between two messages: 20 a second.
const TICKS_BETWEEN: u32 = 3;
/// Of the app's clients: how often they acknowledge, and after how many messages at the latest.
const HEARTBEAT: Duration = Duration::from_millis(100);
const STATES_BETWEEN_ACKS: u64 = 8;
/// What `bevy_tandem` calls things on the wire.
const MESSAGE: u8 = 4;
const TAKEN: u8 = 5;
const CONTROL_CHANNEL: u8 = 0;
const SHARED: u8 = 2;
/// Threads of the bare loops, as many as a `WsServer` has.
const THREADS: usize = 2;
/// As for `LinkPace::BALANCED`, which the app has.
const DEFLATE_LEVEL: u32 = 6;
const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn main() {
    allow_many_files();
    match role() {
        Some((role, args)) => {
            let server = args[0].parse().expect("an address");
            let count = args[1].parse().expect("a number");
            match role.as_str() {
                "players" => be_players(server, count),
                _ => be_readers(server, count),
            }
        }
        None => compare(&Options::get()),
    }
}

#[derive(Clone, Copy)]
struct Plan {
    clients: usize,
    seconds: u64,
    /// Messages of a burst.
    burst: usize,
}

/// What one server did.
#[derive(Clone, Copy)]
struct Figures {
    /// Processor time for each message delivered, at 20 a second: microseconds.
    paced_us: f64,
    /// The same without what the server does when there is nothing to send.
    paced_net_us: f64,
    burst_us: f64,
    /// Messages delivered each second of a burst.
    burst_rate: f64,
    /// Bytes on the wire for each message.
    bytes: f64,
}

fn compare(options: &Options) {
    let plan = Plan {
        clients: options.number("--clients", 1_000, 20),
        seconds: options.number("--seconds", 10, 1),
        burst: options.number("--burst", 200, 20),
    };
    let rounds = options.number("--rounds", 3, 1);
    let contestants: [(&str, fn(Plan, &States) -> Figures); 3] = [
        ("bevy_tandem", measure_tandem),
        ("bare, deflated once", |plan, states| {
            measure_bare(plan, states, true)
        }),
        ("bare, as it is", |plan, states| {
            measure_bare(plan, states, false)
        }),
    ];
    let states = States::new();
    let mut results = [const { Vec::new() }; 3];
    for round in 0..rounds {
        for (at, (name, measure)) in contestants.iter().enumerate() {
            let figures = measure(plan, &states);
            println!(
                "round {}, {name}: at 20 Hz {:.2} µs a message ({:.2} µs without what idling costs); burst of {}: \
                 {:.2} µs, {:.0} messages/s; {:.0} bytes each",
                round + 1,
                figures.paced_us,
                figures.paced_net_us,
                plan.burst,
                figures.burst_us,
                figures.burst_rate,
                figures.bytes
            );
            results[at].push(figures);
        }
    }
    let of =
        |at: usize, field: fn(&Figures) -> f64| median(results[at].iter().map(field).collect());
    println!(
        "\n{} bytes to {} clients, medians of {rounds}:\n\
         | server | bytes each | CPU at 20 Hz | without idling | CPU in a burst | messages/s in a burst |\n\
         |---|---:|---:|---:|---:|---:|",
        STATE_BYTES, plan.clients
    );
    for (at, (name, _)) in contestants.iter().enumerate() {
        println!(
            "| {name} | {:.0} | {:.2} µs | {:.2} µs | {:.2} µs | {:.0} |",
            of(at, |f| f.bytes),
            of(at, |f| f.paced_us),
            of(at, |f| f.paced_net_us),
            of(at, |f| f.burst_us),
            of(at, |f| f.burst_rate)
        );
    }
    for (at, name) in [(1, "deflated"), (2, "as it is")] {
        let ratio = of(0, |f| f.burst_rate) / of(at, |f| f.burst_rate);
        println!(
            "beside the bare loop ({name}): {ratio:.2} of its messages/s in a burst, {:.2} of its messages per CPU second \
             in a burst, {:.2} at 20 Hz",
            of(at, |f| f.burst_us) / of(0, |f| f.burst_us),
            of(at, |f| f.paced_us) / of(0, |f| f.paced_us)
        );
        let otherwise = format!("{ratio:.2} of the messages/s of the bare loop ({name})");
        Verdict::default().expect(ratio >= 0.9, &otherwise);
    }
    println!("compressed to {:.3} of its size", states.compression());
}

/// A game's state, 4 KiB of it at a time: what 128 things are doing.
struct States(Vec<Vec<u8>>);

impl States {
    fn new() -> Self {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut things: Vec<([f32; 3], [f32; 3], u16)> = (0..STATE_BYTES / 32)
            .map(|_| {
                let place = [rng.f32() * 200.0, rng.f32() * 200.0, 0.0];
                let speed = [rng.f32() - 0.5, rng.f32() - 0.5, 0.0];
                (place, speed, 100)
            })
            .collect();
        let states = (0..64).map(|_| {
            let mut bytes = Vec::with_capacity(STATE_BYTES);
            for (number, (place, speed, health)) in (0u32..).zip(&mut things) {
                // A third of them move.
                if number % 3 == 0 {
                    (0..3).for_each(|axis| place[axis] += speed[axis]);
                }
                *health -= u16::from(rng.u8(..) == 0 && *health > 1);
                bytes.extend(number.to_le_bytes());
                place
                    .iter()
                    .chain(&*speed)
                    .for_each(|x| bytes.extend(x.to_le_bytes()));
                bytes.extend(health.to_le_bytes());
                bytes.extend([0; 2]);
            }
            bytes
        });
        Self(states.collect())
    }

    fn get(&self, number: usize) -> &[u8] {
        &self.0[number % self.0.len()]
    }

    fn compression(&self) -> f64 {
        let deflated: usize = self.0.iter().map(|state| deflate(state).len()).sum();
        deflated as f64 / (self.0.len() * STATE_BYTES) as f64
    }
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder =
        flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(DEFLATE_LEVEL));
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// Processor time, and what was delivered for it.
struct Meter<'a> {
    clients: &'a mut Clients,
    cpu: Duration,
    delivered: u64,
    since: Instant,
}

impl<'a> Meter<'a> {
    fn start(clients: &'a mut Clients) -> Self {
        Self {
            cpu: cpu_time(),
            delivered: clients.delivered(),
            since: Instant::now(),
            clients,
        }
    }

    /// CPU seconds since the start.
    fn cpu(&self) -> f64 {
        (cpu_time() - self.cpu).as_secs_f64()
    }

    /// Messages delivered since the start.
    fn delivered(&mut self) -> u64 {
        self.clients.delivered() - self.delivered
    }

    fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }
}

/// The process with the clients.
struct Clients {
    child: Child,
    delivered: u64,
}

impl Clients {
    fn start(role: &str, server: &str, count: usize) -> Self {
        Self {
            child: Child::start(role, &[server.to_owned(), count.to_string()]),
            delivered: 0,
        }
    }

    /// Whether all have connected. Asked before the first message.
    fn are_ready(&mut self) -> bool {
        self.child.overhear().is_some_and(|line| line == "ready")
    }

    /// Messages that have arrived, all together.
    fn delivered(&mut self) -> u64 {
        while let Some(line) = self.child.overhear() {
            self.delivered = line.parse().unwrap_or(self.delivered);
        }
        self.delivered
    }
}

/// How a server is driven: a tick of its own, and a message to everybody.
trait Server {
    fn tick(&mut self);
    fn broadcast(&mut self, state: &[u8]);
    fn bytes_out(&self) -> u64;
}

fn measure(
    plan: Plan,
    states: &States,
    server: &mut impl Server,
    clients: &mut Clients,
) -> Figures {
    let run = |server: &mut dyn Server, ticks: u32, sends: bool| {
        let mut pace = Pace::new(Instant::now(), TICK);
        for tick in 0..ticks {
            if sends && tick % TICKS_BETWEEN == 0 {
                server.broadcast(states.get((tick / TICKS_BETWEEN) as usize));
            }
            server.tick();
            if let Some(sleep) = pace.close_tick(Instant::now()) {
                thread::sleep(sleep);
            }
        }
    };
    let ticks = plan.seconds as u32 * 60;
    let deadline = Instant::now() + Duration::from_secs(120);
    while !clients.are_ready() {
        assert!(Instant::now() < deadline, "the clients do not connect");
        run(server, 6, false);
    }
    run(server, 60, true);

    let meter = Meter::start(clients);
    run(server, ticks, false);
    let idle = meter.cpu();

    let sent = u64::from(ticks.div_ceil(TICKS_BETWEEN)) * plan.clients as u64;
    let mut meter = Meter::start(clients);
    let bytes_before = server.bytes_out();
    run(server, ticks, true);
    let paced = meter.cpu();
    let bytes = (server.bytes_out() - bytes_before) as f64 / sent as f64;
    while meter.delivered() < sent && meter.seconds() < 60.0 {
        run(server, 6, false);
    }
    assert!(meter.delivered() >= sent, "all that was sent arrives");

    let sent_burst = (plan.burst * plan.clients) as u64;
    let mut meter = Meter::start(clients);
    for number in 0..plan.burst {
        server.broadcast(states.get(number));
    }
    while meter.delivered() < sent_burst && meter.seconds() < 120.0 {
        run(server, 1, false);
    }
    let (burst, seconds) = (meter.cpu(), meter.seconds());
    assert!(meter.delivered() >= sent_burst, "all that was sent arrives");
    Figures {
        paced_us: paced * 1e6 / sent as f64,
        paced_net_us: (paced - idle).max(0.0) * 1e6 / sent as f64,
        burst_us: burst * 1e6 / sent_burst as f64,
        burst_rate: sent_burst as f64 / seconds,
        bytes,
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct State(Vec<u8>);

fn game(app: &mut App) {
    app.protocol()
        .add_message::<State>(Channel::ReliableOrdered);
}

struct Tandem(App);

impl Server for Tandem {
    fn tick(&mut self) {
        self.0.update();
    }

    fn broadcast(&mut self, state: &[u8]) {
        self.0.world_mut().write_message(ToClients {
            to: Target::All,
            message: State(state.to_vec()),
        });
    }

    fn bytes_out(&self) -> u64 {
        self.0.world().resource::<ServerStats>().transport.bytes_out
    }
}

fn measure_tandem(plan: Plan, states: &States) -> Figures {
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        TandemServerPlugins::with_config(ServerConfig {
            websocket: Some(WsServerConfig {
                threads: THREADS,
                ..WsServerConfig::new(LOOPBACK)
            }),
            send_rate_hz: 20.0,
            ..default()
        }),
        game,
    ));
    app.finish();
    app.cleanup();
    app.update();
    let addr = app.world().resource::<ListenAddresses>().0[0];
    let mut clients = Clients::start("players", &addr.to_string(), plan.clients);
    measure(plan, states, &mut Tandem(app), &mut clients)
}

/// Clients of the app that do what its protocol asks of them and nothing else: say hello, acknowledge. They do not even
/// inflate, so that it is the server that is measured.
fn be_players(server: SocketAddr, count: usize) {
    let tally = Tally::default();
    let runtime = client_runtime();
    let fingerprint = runtime
        .block_on(ask_fingerprint(server))
        .expect("a server of this protocol");
    for id in 0..count as u64 {
        let tally = tally.clone();
        runtime.spawn(async move {
            // Not all at once: a thousand players do not come in the same instant.
            tokio::time::sleep(Duration::from_millis(id)).await;
            if play(server, id, fingerprint, &tally).await.is_none() {
                eprintln!("player {id} panicked: the server is not understood");
            }
        });
    }
    tell(&tally, count as u64);
}

/// A server tells who has registered other things what it has registered.
async fn ask_fingerprint(server: SocketAddr) -> Option<u64> {
    let mut player = Player::connect(server, u64::MAX, 0).await?;
    loop {
        let message = player.next().await?;
        if let Some(Control::Mismatch { registrations, .. }) = player.take(&message)? {
            return Some(fingerprint(registrations.iter().map(String::as_str)));
        }
    }
}

async fn play(server: SocketAddr, id: u64, fingerprint: u64, tally: &Tally) -> Option<()> {
    let mut player = Player::connect(server, id, fingerprint).await?;
    let mut acknowledged = Instant::now();
    // The server's snapshots come more often than acknowledgements are due.
    while let Some(message) = player.next().await {
        let before = player.states;
        if let Some(Control::Welcome { .. }) = player.take(&message)? {
            tally.connected.fetch_add(1, Ordering::Relaxed);
        }
        let states = player.states - before;
        tally.received.fetch_add(states, Ordering::Relaxed);
        let untold = player.states - player.states_told;
        if untold >= STATES_BETWEEN_ACKS || acknowledged.elapsed() >= HEARTBEAT {
            acknowledged = Instant::now();
            player.acknowledge().await?;
        }
    }
    Some(())
}

struct Player {
    socket: WebSocketStream<TcpStream>,
    acks: AckTracker,
    inbox: Inbox,
    /// Messages received, and how many of them the server was told of.
    states: u64,
    states_told: u64,
    since: Instant,
}

impl Player {
    async fn connect(server: SocketAddr, id: u64, fingerprint: u64) -> Option<Self> {
        let stream = TcpStream::connect(server).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let mut request = format!("ws://{server}/").into_client_request().ok()?;
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", SUBPROTOCOL.parse().ok()?);
        let config = Some(small_buffers());
        let (mut socket, _) = client_async_with_config(request, stream, config)
            .await
            .ok()?;
        let auth = encode_auth(DEFAULT_PROTOCOL_ID, &Credentials::Claim { client_id: id });
        socket.send(Frame::Binary(auth.into())).await.ok()?;
        let welcome = socket.next().await?.ok()?;
        if welcome.into_data()[..] != MAGIC {
            return None;
        }
        let mut player = Self {
            socket,
            acks: AckTracker::new(),
            inbox: Inbox::default(),
            states: 0,
            states_told: 0,
            since: Instant::now(),
        };
        let hello = Hello {
            wire_version: WIRE_VERSION,
            fingerprint,
            name: format!("Player {id}"),
            game_version: String::new(),
            platform: "benchmark".into(),
            credentials: Vec::new(),
            intent: Intent::Join,
        };
        let mut message = vec![CONTROL_CHANNEL];
        serial::encode(&hello, &mut message).ok()?;
        player.send(MESSAGE, &message).await?;
        Some(player)
    }

    /// The next binary message.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Frame::Binary(message) = self.socket.next().await?.ok()? {
                return Some(message);
            }
        }
    }

    /// Takes a message in, and returns the last thing that the server says about the connection itself.
    fn take(&mut self, message: &Bytes) -> Option<Option<Control>> {
        let mut control = None;
        // What many get has the part that is for this one in front, as it is.
        if let [SHARED, low, high, rest @ ..] = &message[..] {
            let head = rest.get(..usize::from(u16::from_le_bytes([*low, *high])))?;
            self.take_datagram(head, &mut control)?;
            return Some(control);
        }
        let mut is_understood = true;
        decode(message, frame::Limits::FROM_SERVER, |datagram, shared| {
            let datagram = [datagram, shared].concat();
            is_understood &= self.take_datagram(&datagram, &mut control).is_some();
        })
        .ok()?;
        is_understood.then_some(control)
    }

    fn take_datagram(&mut self, datagram: &[u8], control: &mut Option<Control>) -> Option<()> {
        let header = Header::decode(datagram)?;
        self.acks
            .handle_header(self.since.elapsed(), header.0, |_| ());
        let mut chunks = header.1;
        while let Some((&[kind, low, high], rest)) = chunks.split_first_chunk() {
            // What many get is not looked at beyond its head.
            let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
            let (body, rest) = rest.split_at(length);
            chunks = rest;
            match (kind, body.split_first()) {
                (MESSAGE, Some((&CONTROL_CHANNEL, body))) => {
                    *control = Some(serial::decode(body).ok()?);
                }
                (MESSAGE, Some((_, body))) => {
                    let (number, _) = serial::decode_prefix(body).ok()?;
                    let is_next = self.inbox.accept(Stream::Ordered, number) == Accept::New;
                    self.states += u64::from(is_next);
                }
                _ => {}
            }
        }
        Some(())
    }

    async fn acknowledge(&mut self) -> Option<()> {
        let mut taken = Vec::new();
        self.inbox.taken().encode(&mut taken);
        self.states_told = self.states;
        self.send(TAKEN, &taken).await
    }

    async fn send(&mut self, kind: u8, body: &[u8]) -> Option<()> {
        let header = self.acks.next_header(self.since.elapsed()).encode();
        let length = u16::try_from(body.len()).ok()?.to_le_bytes();
        let mut batch = Batch::default();
        batch.push(&[&header, &[kind][..], &length, body].concat());
        let message = batch.into_message(usize::MAX, 1);
        self.socket.send(Frame::Binary(message)).await.ok()
    }
}

/// A task for each client, and a queue for each task.
struct Bare {
    runtime: tokio::runtime::Runtime,
    queues: Arc<std::sync::Mutex<Vec<mpsc::Sender<Bytes>>>>,
    deflates: bool,
    bytes_out: Arc<AtomicU64>,
}

impl Server for Bare {
    fn tick(&mut self) {}

    fn broadcast(&mut self, state: &[u8]) {
        let message = Bytes::from(if self.deflates {
            deflate(state)
        } else {
            state.to_vec()
        });
        for queue in self.queues.lock().expect("nobody panics").iter() {
            queue.try_send(message.clone()).expect("room for a burst");
        }
    }

    fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }
}

fn small_buffers() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
}

fn measure_bare(plan: Plan, states: &States, deflates: bool) -> Figures {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .expect("threads");
    let mut server = Bare {
        queues: Arc::default(),
        deflates,
        bytes_out: Arc::default(),
        runtime,
    };
    let listener = server
        .runtime
        .block_on(TcpListener::bind(LOOPBACK))
        .expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let (queues, bytes_out) = (Arc::clone(&server.queues), Arc::clone(&server.bytes_out));
    server.runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (sender, queue) = mpsc::channel(1_024);
            queues.lock().expect("nobody panics").push(sender);
            tokio::spawn(serve(stream, queue, Arc::clone(&bytes_out)));
        }
    });
    let mut clients = Clients::start("readers", &addr.to_string(), plan.clients);
    measure(plan, states, &mut server, &mut clients)
}

async fn serve(stream: TcpStream, mut queue: mpsc::Receiver<Bytes>, bytes_out: Arc<AtomicU64>) {
    let _ = stream.set_nodelay(true);
    let config = Some(small_buffers());
    let Ok(mut socket) = tokio_tungstenite::accept_async_with_config(stream, config).await else {
        return;
    };
    while let Some(message) = queue.recv().await {
        // A header of four bytes.
        bytes_out.fetch_add(message.len() as u64 + 4, Ordering::Relaxed);
        if socket.send(Frame::Binary(message)).await.is_err() {
            return;
        }
    }
}

/// Clients of the bare loops. They only read, and count.
fn be_readers(server: SocketAddr, count: usize) {
    let tally = Tally::default();
    let runtime = client_runtime();
    for _ in 0..count {
        let tally = tally.clone();
        runtime.spawn(async move {
            let stream = TcpStream::connect(server).await.expect("a server");
            let url = format!("ws://{server}/");
            let config = Some(small_buffers());
            let (mut socket, _) = client_async_with_config(url, stream, config)
                .await
                .expect("a WebSocket");
            tally.connected.fetch_add(1, Ordering::Relaxed);
            while let Some(Ok(message)) = socket.next().await {
                let states = u64::from(message.is_binary());
                tally.received.fetch_add(states, Ordering::Relaxed);
            }
        });
    }
    tell(&tally, count as u64);
}

fn client_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a thread")
}

/// What the clients have seen, all together.
#[derive(Clone, Default)]
struct Tally {
    connected: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
}

/// Tells the parent.
fn tell(tally: &Tally, clients: u64) {
    let _commands = commands();
    let (mut is_ready, mut told) = (false, 0);
    loop {
        thread::sleep(Duration::from_millis(20));
        if !is_ready && tally.connected.load(Ordering::Relaxed) == clients {
            is_ready = true;
            reply("ready");
        }
        let now = tally.received.load(Ordering::Relaxed);
        if now != told {
            told = now;
            reply(&now.to_string());
        }
    }
}
