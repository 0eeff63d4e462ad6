//! A broadcast of 4 KiB to 1,000 WebSocket clients, beside a bare tokio-tungstenite loop that sends the same bytes.
//!
//!     cargo bench --bench broadcast [-- --clients N --seconds S --rounds R --burst K]
//!
//! Three servers, one after the other, several times over: a headless app with `ToClients { to: Target::All, .. }`, and
//! two bare loops, which have a task for each client that takes messages from a queue and sends them. One bare loop
//! deflates each message once, as the app does, the other sends it as it is. Clients are in a process of their own, so
//! that their cost does not count. Those of the app are real ones: they acknowledge, and are sent snapshots besides.
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
use bevy_tandem::server::ListenAddresses;
use bevy_tandem::transport::ws::{WsClientConfig, WsServerConfig};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use support::{Child, Options, allow_many_files, commands, median, reply, role};

const STATE_BYTES: usize = 4_096;
const TICK: Duration = Duration::from_nanos(1_000_000_000 / 60);
/// Ticks between two messages: 20 a second.
const TICKS_BETWEEN: u32 = 3;
/// Of a client. It need not draw anything.
const CLIENT_FRAME: Duration = Duration::from_millis(50);
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
            let number = |at: usize| args[at].parse().expect("the parent gives numbers");
            match role.as_str() {
                "apps" => be_apps(&args[0], number(1)),
                _ => be_readers(args[0].parse().expect("an address"), number(1)),
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
        println!(
            "beside the bare loop ({name}): {:.2} of its messages/s in a burst, {:.2} of its messages per CPU second in a \
             burst, {:.2} at 20 Hz",
            of(0, |f| f.burst_rate) / of(at, |f| f.burst_rate),
            of(at, |f| f.burst_us) / of(0, |f| f.burst_us),
            of(at, |f| f.paced_us) / of(0, |f| f.paced_us)
        );
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
    let mut clients = Clients::start("apps", &format!("ws://{addr}"), plan.clients);
    measure(plan, states, &mut Tandem(app), &mut clients)
}

/// Real clients, without a game. Tells the parent how many messages they have received.
fn be_apps(url: &str, count: usize) {
    let _commands = commands();
    let mut apps = Vec::<App>::with_capacity(count);
    let (mut is_ready, mut told) = (false, 0);
    let mut pace = Pace::new(Instant::now(), CLIENT_FRAME);
    loop {
        // Not all at once: a thousand players do not come in the same instant.
        for _ in 0..32.min(count - apps.len()) {
            apps.push(client(url));
        }
        apps.iter_mut().for_each(App::update);
        if !is_ready {
            is_ready = apps.len() == count && apps.iter().all(is_connected);
            if is_ready {
                reply("ready");
            }
        }
        let received = apps
            .iter()
            .map(|app| app.world().resource::<Received>().0)
            .sum();
        if received != told {
            told = received;
            reply(&received.to_string());
        }
        if let Some(sleep) = pace.close_tick(Instant::now()) {
            thread::sleep(sleep);
        }
    }
}

#[derive(Resource, Default)]
struct Received(u64);

fn client(url: &str) -> App {
    let mut app = App::new();
    app.add_plugins((
        MinimalPlugins,
        TandemClientPlugins::with_config(ClientConfig {
            websocket: Some(WsClientConfig::new(url)),
            connect_timeout: Duration::from_secs(60),
            websocket_timeout: Duration::from_secs(60),
            ..default()
        }),
        game,
    ))
    .init_resource::<Received>()
    .add_systems(
        Update,
        |mut states: MessageReader<FromServer<State>>, mut received: ResMut<Received>| {
            received.0 += states
                .read()
                .filter(|state| state.0.0.len() == STATE_BYTES)
                .count() as u64;
        },
    );
    app.finish();
    app.cleanup();
    app
}

fn is_connected(app: &App) -> bool {
    app.world().resource::<Connection>().state() == ConnectionState::Connected
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
    let _commands = commands();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a thread");
    let received = Arc::new(AtomicU64::new(0));
    let connected = Arc::new(AtomicU64::new(0));
    for _ in 0..count {
        let (received, connected) = (Arc::clone(&received), Arc::clone(&connected));
        runtime.spawn(async move {
            let stream = TcpStream::connect(server).await.expect("a server");
            let url = format!("ws://{server}/");
            let config = Some(small_buffers());
            let (mut socket, _) = tokio_tungstenite::client_async_with_config(url, stream, config)
                .await
                .expect("a WebSocket");
            connected.fetch_add(1, Ordering::Relaxed);
            while let Some(Ok(message)) = socket.next().await {
                received.fetch_add(u64::from(message.is_binary()), Ordering::Relaxed);
            }
        });
    }
    let (mut is_ready, mut told) = (false, 0);
    loop {
        thread::sleep(Duration::from_millis(20));
        if !is_ready && connected.load(Ordering::Relaxed) == count as u64 {
            is_ready = true;
            reply("ready");
        }
        let now = received.load(Ordering::Relaxed);
        if now != told {
            told = now;
            reply(&now.to_string());
        }
    }
}
