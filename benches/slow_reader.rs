//! A WebSocket client that stops reading for 20 s among 50 healthy ones, in a match of the arena.
//!
//!     cargo bench --bench slow_reader [-- --clients N --seconds S]
//!
//! Twice: with a server that drops such a client after 10 s, and with one that waits. The slow client still sends; what
//! the server sends to it is held back by a relay in between, which stops reading. Server, healthy clients, and the slow
//! one are processes of their own.
//!
//! Measured are the server's ticks and the healthy clients' snapshots before and meanwhile, and what the server holds for
//! the slow client: its own queue, and what the system has not got rid of (Linux tells in `/proc/net/tcp`).

// The arena's modules bring their tests along, which come to nothing here.
#[allow(dead_code, unused_imports)]
#[path = "../examples/support/args.rs"]
mod args;
#[path = "../examples/arena/brain.rs"]
mod brain;
#[allow(unused_imports)]
#[path = "../examples/arena/crowd.rs"]
mod crowd;
#[allow(unused_imports)]
#[path = "../examples/arena/game.rs"]
mod game;
#[path = "../examples/arena/host.rs"]
mod host;
#[allow(unused_imports)]
#[path = "../examples/arena/ledger.rs"]
mod ledger;
#[allow(unused_imports)]
#[path = "../examples/arena/map.rs"]
mod map;
#[path = "../examples/proxy/relay.rs"]
mod relay;
mod support;
#[path = "support/arena.rs"]
mod support_arena;

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use bevy::prelude::*;
use bevy_tandem::client::{ResumeFinished, ResumeOutcome};
use bevy_tandem::prelude::*;
use bevy_tandem::transport::ws::WsClientConfig;

use ledger::{Ledger, LedgerPlugin};
use relay::{Hole, Relay, Route};
use support::{Child, Options, Verdict, allow_many_files, role};
use support_arena::{Arena, ArenaReport, BotsReport, be_bots, be_server, bots_report, start_bots};

/// What a server and its system may hold for a client that does not read.
const MAX_HELD_KIB: u64 = 256;
const NAME: &str = "Slow";
const FRAME: Duration = Duration::from_nanos(1_000_000_000 / 60);
const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn main() {
    allow_many_files();
    match role() {
        Some((role, args)) if role == "server" => be_server(&args),
        Some((_, args)) => be_bots(&args),
        None => {
            let options = Options::get();
            let plan = Plan {
                clients: options.number("--clients", 50, 4),
                calm: Duration::from_secs(options.number("--seconds", 20, 3)),
                stall: Duration::from_secs(options.number("--stall", 20, 4)),
            };
            let mut verdict = Verdict::default();
            let drop_after = options.number("--drop-after", 10, 2);
            run(&plan, Some(drop_after), &mut verdict);
            run(&plan, None, &mut verdict);
            verdict.conclude(&options);
        }
    }
}

struct Plan {
    clients: usize,
    calm: Duration,
    stall: Duration,
}

fn run(plan: &Plan, drop_after_s: Option<u64>, verdict: &mut Verdict) {
    match drop_after_s {
        Some(seconds) => println!("a server that drops congested clients after {seconds} s:"),
        None => println!("a server that waits for congested clients:"),
    }
    let mut server = Arena::start(drop_after_s);
    let mut bots = start_bots(&server, plan.clients, "ws");
    let route = Route {
        listen: LOOPBACK,
        server: server.ws,
    };
    let relay = Relay::start(None, Some(route)).expect("a free port");
    let mut slow = Slow::new(relay.tcp_addr().expect("it listens"));

    let deadline = Instant::now() + Duration::from_secs(60);
    while !slow.is_connected() || bots_report(&mut bots).connected < plan.clients as u64 {
        assert!(Instant::now() < deadline, "the clients do not connect");
        slow.play(Duration::from_millis(200));
    }
    slow.play(Duration::from_secs(2));

    let _ = server.report();
    let before = bots_report(&mut bots);
    let started = Instant::now();
    while started.elapsed() < plan.calm {
        // As often as below, since that takes its time, too.
        slow.play(Duration::from_secs(1));
        server.peek();
    }
    let calm = server.report();
    let after = bots_report(&mut bots);
    describe("calm", plan, started.elapsed(), &before, &after, &calm);

    relay.set_hole(Hole::FromServer);
    let started = Instant::now();
    let mut seen = Seen::default();
    let before = after;
    while started.elapsed() < plan.stall {
        slow.play(Duration::from_secs(1));
        let report = server.peek();
        let Some(link) = report.link(NAME) else {
            seen.gone_at.get_or_insert(started.elapsed());
            continue;
        };
        if link.is_away {
            seen.dropped_at.get_or_insert(started.elapsed());
            continue;
        }
        if link.is_congested {
            seen.congested_at.get_or_insert(started.elapsed());
        }
        seen.queued = seen.queued.max(link.queued_bytes);
        seen.kernel = seen.kernel.max(most_unsent_bytes(server.ws.port()));
    }
    let after = bots_report(&mut bots);
    let stalled = server.report();
    describe(
        "stalled",
        plan,
        started.elapsed(),
        &before,
        &after,
        &stalled,
    );

    relay.set_hole(Hole::None);
    let reopened = Instant::now();
    while !(slow.is_connected() && slow.is_current())
        && reopened.elapsed() < Duration::from_secs(60)
    {
        slow.play(Duration::from_millis(50));
    }
    let back = reopened.elapsed();
    slow.play(ledger::UNDER_WAY);
    let report = server.report();
    let at = |moment: Option<Duration>| {
        moment.map_or("never".into(), |at| {
            format!("after {:.0} s", at.as_secs_f64())
        })
    };
    let held = (seen.queued + seen.kernel).div_ceil(1 << 10);
    println!(
        "  the slow client: congested {}, dropped {}, its session gone {}; at most {} bytes queued and {} in the system, \
         {} KiB of {MAX_HELD_KIB} together",
        at(seen.congested_at),
        at(seen.dropped_at),
        at(seen.gone_at),
        seen.queued,
        seen.kernel,
        held,
    );
    if !slow.is_connected() {
        let connection = slow.0.world().resource::<Connection>();
        println!(
            "  the slow client is {:?} (attempt {}): {:?}",
            connection.state(),
            connection.attempt(),
            connection.reason()
        );
    }
    println!(
        "  reading again: {} {:.2} s later, {} resumed, {} reliable messages lost; server's memory {:.1} MiB before, \
         {:.1} MiB after",
        if slow.is_connected() {
            "playing"
        } else {
            "NOT playing"
        },
        back.as_secs_f64(),
        slow.resumed(),
        slow.lost(),
        calm.rss_bytes / 1048576.0,
        report.rss_bytes / 1048576.0,
    );
    verdict.expect_p99("stalled", calm.tick_p99_ms, stalled.tick_p99_ms);
    verdict.demand(
        held <= MAX_HELD_KIB,
        &format!("{held} KiB are held for the slow client"),
    );
    let bots_last = bots_report(&mut bots);
    verdict.demand(
        bots_last.disconnects == 0,
        &format!(
            "{} healthy clients were disconnected",
            bots_last.disconnects
        ),
    );
    let astray = bots_last.astray() + slow.astray();
    verdict.demand(
        astray == 0,
        &format!("{astray} reliable messages went astray"),
    );
    verdict.demand(slow.is_connected(), "the slow client did not come back");
    bots.say("quit");
    server.process.say("quit");
    wait(&mut bots);
}

/// What was seen of the slow client at the server.
#[derive(Default)]
struct Seen {
    congested_at: Option<Duration>,
    dropped_at: Option<Duration>,
    gone_at: Option<Duration>,
    queued: u64,
    kernel: u64,
}

fn describe(
    phase: &str,
    plan: &Plan,
    length: Duration,
    before: &BotsReport,
    after: &BotsReport,
    report: &ArenaReport,
) {
    let snapshots = (after.snapshots - before.snapshots) as f64;
    println!(
        "  {phase}: p99 tick {:.2} ms; healthy clients: {:.1} snapshots/s each, {} disconnects",
        report.tick_p99_ms,
        snapshots / plan.clients as f64 / length.as_secs_f64(),
        after.disconnects - before.disconnects
    );
}

fn wait(child: &mut Child) {
    // So that its farewells are not cut off.
    let _ = child.overhear();
    thread::sleep(Duration::from_millis(300));
}

/// The client that does not read, when the relay holds back what it should.
struct Slow(App);

#[derive(Resource, Default)]
struct Resumed(u64);

impl Slow {
    fn new(server: SocketAddr) -> Self {
        let mut app = App::new();
        app.add_plugins((
            MinimalPlugins,
            TandemClientPlugins::with_config(ClientConfig {
                websocket: Some(WsClientConfig::new(format!("ws://{server}"))),
                // It is the server's patience that is measured, not its own.
                websocket_timeout: Duration::from_secs(60),
                name: NAME.into(),
                ..default()
            }),
            game::game,
            LedgerPlugin,
        ))
        .init_resource::<Resumed>()
        .add_observer(|done: On<ResumeFinished>, mut resumed: ResMut<Resumed>| {
            resumed.0 += u64::from(!matches!(done.outcome, ResumeOutcome::Rejected(_)));
        });
        app.finish();
        app.cleanup();
        Self(app)
    }

    /// Runs it for so long.
    fn play(&mut self, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.0.update();
            thread::sleep(FRAME);
        }
    }

    fn is_connected(&self) -> bool {
        self.0.world().resource::<Connection>().state() == ConnectionState::Connected
    }

    /// Whether all that it sent until a moment ago was answered.
    fn is_current(&self) -> bool {
        let now = self.0.world().resource::<Time<Real>>().elapsed();
        self.0.world().resource::<Ledger>().lost(now) == 0
    }

    fn resumed(&self) -> u64 {
        self.0.world().resource::<Resumed>().0
    }

    fn lost(&self) -> u64 {
        let now = self.0.world().resource::<Time<Real>>().elapsed();
        self.0.world().resource::<Ledger>().lost(now)
    }

    /// Reliable messages that did not come once and in order.
    fn astray(&self) -> u64 {
        let ledger = self.0.world().resource::<Ledger>();
        self.lost() + ledger.duplicated + ledger.reordered
    }
}

/// The most that the system holds, unsent or unacknowledged, for a connection of the server at this port.
fn most_unsent_bytes(port: u16) -> u64 {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let suffix = format!(":{port:04X}");
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next()?;
        let queues = fields.nth(2)?;
        let (sending, _) = queues.split_once(':')?;
        local
            .ends_with(&suffix)
            .then(|| u64::from_str_radix(sending, 16).ok())?
    };
    // The first line names the columns.
    table.lines().skip(1).filter_map(of_line).max().unwrap_or(0)
}
