//! Whatever a game does, and whenever: nothing panics, nothing is left behind, and the copies are right again.
//!
//! A server and its clients over lossy links. Systems, observers and hooks at every point of the frame do at random
//! whatever a game may do: spawn, despawn, insert, remove, reparent, change rooms, disable, kick, leave, connect, lose
//! the link, write messages. Then all are quiet, and every client has to have exactly what the server lets it see, but
//! for what its own game has changed. Then all leave, and nothing may be left; and a further match has to be as the
//! first.
//!
//!     HOSTILE_SEED=123 cargo test --test hostile_game
//!     HOSTILE_CASES=10000 cargo test --release --test hostile_game
//!
//! `HOSTILE_CASES` sets the number of matches (default 200), `HOSTILE_LOG=1` shows what was done in the one that fails.
#![allow(unsafe_code, reason = "counts what is allocated")]

mod check;
mod game;
mod mischief;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;
use std::time::Duration;

use bevy::ecs::entity_disabling::Disabled;
use bevy::ecs::query::Allow;
use bevy::prelude::*;
use bevy_tandem::client::{ClientConfig, ConnectOver};
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use bevy_tandem::transport::{ClientTransport, Conditioned};
use fastrand::Rng;

use game::{Control, Own, Strangers, Tag, game};
use mischief::{Door, Mischief};

/// A match.
struct Match {
    net: TestNet,
    clients: Vec<TestClientId>,
    rng: Rng,
    server_before: usize,
    clients_before: Vec<usize>,
}

fn app(app: &mut App) {
    game(app);
    mischief::install(app);
}

impl Match {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let link = LinkConditions {
            latency: Duration::from_millis(rng.u64(..100)),
            jitter: Duration::from_millis([0, 5, 30][rng.usize(..3)]),
            loss: [0.0, 0.05, 0.2][rng.usize(..3)],
            duplication: [0.0, 0.1][rng.usize(..2)],
            seed,
            ..default()
        };
        let config = ServerConfig {
            send_rate_hz: [20.0, 30.0, 60.0][rng.usize(..3)],
            max_snapshot_bytes: [200, 400, 1_100][rng.usize(..3)],
            adaptive: None,
            ..default()
        };
        let mut net = TestNet::with_config(app, link.clone(), config);
        net.run(Ticks(1));
        let server_before = entities(&mut net.server);
        let mut clients = Vec::new();
        let mut clients_before = Vec::new();
        for n in 0..rng.usize(1..=3) {
            let config = ClientConfig {
                name: format!("Player {n}"),
                ..default()
            };
            let client = net.join_with(app, config);
            let door = Door {
                connector: net.connector().clone(),
                conditions: link.clone().with_seed(seed + n as u64),
            };
            net.client(client).insert_resource(door);
            clients_before.push(entities(net.client(client)));
            clients.push(client);
        }
        let mut new = Self {
            net,
            clients,
            server_before,
            clients_before,
            rng,
        };
        let likelihood = [0.001, 0.005, 0.02][new.rng.usize(..3)];
        for n in 0..=new.clients.len() {
            let rng = new.rng.fork();
            let mischief = Mischief::new(rng, likelihood);
            new.app(n).insert_resource(mischief);
        }
        new
    }

    /// The server's app, or a client's.
    fn app(&mut self, n: usize) -> &mut App {
        match n.checked_sub(1) {
            None => &mut self.net.server,
            Some(n) => self.net.client(self.clients[n]),
        }
    }

    fn set_quiet(&mut self, is_quiet: bool) {
        for n in 0..=self.clients.len() {
            let world = self.app(n).world_mut();
            world.resource_mut::<Mischief>().is_quiet = is_quiet;
            if is_quiet {
                world.resource_mut::<Time<Virtual>>().unpause();
                let disabled: Vec<_> = world
                    .query_filtered::<Entity, (With<Disabled>, Or<(With<Tag>, With<Own>)>)>()
                    .iter(world)
                    .collect();
                for entity in disabled {
                    world.entity_mut(entity).remove::<Disabled>();
                }
                if world.contains_resource::<LocalInput<Control>>() {
                    world.insert_resource(LocalInput(Control::default()));
                }
            }
        }
    }

    fn step(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.net.run(Ticks(1));
            for n in 0..self.clients.len() {
                check::always(self.net.client(self.clients[n]));
            }
        }
    }

    fn state(&mut self, n: usize) -> ConnectionState {
        let client = self.clients[n];
        let connection = self.net.client(client).world().resource::<Connection>();
        connection.state()
    }

    /// Runs on until every client is in and has what it should.
    fn settle(&mut self, what: &str) {
        let mut differences = Vec::new();
        for round in 0..200 {
            self.step(10);
            for n in 0..self.clients.len() {
                if matches!(
                    self.state(n),
                    ConnectionState::Disconnected | ConnectionState::Failed
                ) {
                    self.net.connect(self.clients[n]);
                }
            }
            differences.clear();
            for &client in &self.clients {
                differences.extend(check::differences(&mut self.net, client));
            }
            if differences.is_empty() && round > 3 {
                return;
            }
        }
        panic!("{what}: {differences:#?}");
    }

    /// All connect, play, and leave again.
    fn play_round(&mut self, seed: u64) {
        for n in 0..=self.clients.len() {
            let mischief = Mischief::new(Rng::with_seed(seed), 0.01);
            self.app(n).insert_resource(mischief);
        }
        for n in 0..self.clients.len() {
            self.net.connect(self.clients[n]);
        }
        self.step(60);
        self.set_quiet(false);
        self.step(100);
        self.set_quiet(true);
        self.settle("after quiet");
        self.end();
    }

    /// Everybody leaves, and everything goes.
    fn end(&mut self) {
        for n in 0..self.clients.len() {
            let world = self.net.client(self.clients[n]).world_mut();
            world.trigger(Disconnect);
            let own: Vec<_> = world
                .query_filtered::<Entity, With<Own>>()
                .iter(world)
                .collect();
            for entity in own {
                world.try_despawn(entity).ok();
            }
        }
        self.step(60);
        let world = self.net.server.world_mut();
        // Those whose goodbye was lost.
        let sessions: Vec<_> = world
            .query_filtered::<Entity, With<Session>>()
            .iter(world)
            .collect();
        for session in sessions {
            let reason = "the match is over".to_owned();
            world.trigger(Kick { session, reason });
        }
        let mut things = world.query_filtered::<Entity, Or<(
            With<Tag>,
            With<Replicated>,
            With<Room>,
            With<mischief::Crate>,
        )>>();
        let things: Vec<_> = things.iter(world).collect();
        for thing in things {
            world.try_despawn(thing).ok();
        }
        self.step(60);
        assert_eq!(
            entities(&mut self.net.server),
            self.server_before,
            "what is left on the server: {:#?}",
            mischief::describe_all(&mut self.net.server)
        );
        for n in 0..self.clients.len() {
            let app = self.net.client(self.clients[n]);
            assert_eq!(
                entities(app),
                self.clients_before[n],
                "what is left on client {n}: {:#?}",
                mischief::describe_all(app)
            );
        }
        for n in 0..=self.clients.len() {
            let strangers = &self.app(n).world().resource::<Strangers>().0;
            assert!(strangers.is_empty(), "strangers are named: {strangers:?}");
        }
    }

    fn play(&mut self) {
        self.step(60);
        self.set_quiet(false);
        let ticks = self.rng.u32(60..200);
        self.step(ticks);
        self.set_quiet(true);
        self.settle("after quiet");
        self.end();
        // As if nothing had been.
        mischief::spawn_some(self.net.server.world_mut(), 6);
        for n in 0..self.clients.len() {
            self.net.connect(self.clients[n]);
        }
        self.settle("in the next match");
        self.end();
    }
}

/// Entities that are no resources.
fn entities(app: &mut App) -> usize {
    use bevy::ecs::resource::IsResource;
    let world = app.world_mut();
    let mut all = world.query_filtered::<(), (Allow<Disabled>, Without<IsResource>)>();
    all.iter(world).count()
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Names the match that failed.
struct Naming(u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("HOSTILE_SEED={} fails", self.0);
            if std::env::var_os("HOSTILE_LOG").is_some() {
                mischief::LOG.with_borrow(|log| eprintln!("{}", log.join("\n")));
            }
        }
    }
}

fn play(seed: u64) {
    let _naming = Naming(seed);
    if std::env::var_os("HOSTILE_LOG").is_some() {
        // Bevy may abort: a command that fails while a panic unwinds panics again.
        eprintln!("HOSTILE_SEED={seed} begins");
    }
    mischief::LOG.with_borrow_mut(Vec::clear);
    game::MARKED_ANEW.with_borrow_mut(HashSet::clear);
    Match::new(seed).play();
}

fn play_share(part: u64, parts: u64) {
    if let Some(seed) = variable::<u64>("HOSTILE_SEED") {
        if seed % parts == part {
            play(seed);
        }
        return;
    }
    let first = variable("HOSTILE_FIRST").unwrap_or(0);
    let cases: u64 = variable("HOSTILE_CASES").unwrap_or(200);
    let mut failed = Vec::new();
    for seed in (first..first + cases).filter(|seed| seed % parts == part) {
        if std::panic::catch_unwind(|| play(seed)).is_err() {
            failed.push(seed);
            if failed.len() == 20 {
                break;
            }
        }
    }
    assert!(failed.is_empty(), "matches that fail: {failed:?}");
}

#[test]
fn a_hostile_game_harms_nobody_even() {
    play_share(0, 2);
}

#[test]
fn a_hostile_game_harms_nobody_odd() {
    play_share(1, 2);
}

/// Counts what the calling thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Threads that end may allocate when their counters are gone.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Layout) -> *mut u8 {
        count(memory.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Layout) {
        count(-(memory.size() as isize));
        // SAFETY: the pointer came from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, memory) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn matches_leave_no_memory_behind() {
    let _naming = Naming(7);
    let mut game = Match::new(7);
    let mut held = Vec::new();
    for _ in 0..24 {
        // The same each time, so that Bevy's own tables are as large as they get after the first.
        game.play_round(11);
        mischief::LOG.with_borrow_mut(|log| *log = Vec::new());
        game::MARKED_ANEW.with_borrow_mut(|anew| *anew = HashSet::new());
        held.push(HELD.get());
    }
    // Tables double now and then; what is left of each match would be left of every one.
    let mut growth: Vec<_> = held[7..].windows(2).map(|two| two[1] - two[0]).collect();
    growth.sort_unstable();
    let median = growth[growth.len() / 2];
    assert!(median < 500, "a match keeps {median} bytes: {held:?}");
}

/// A connector's link, made by hand.
fn link(door: &Door) -> Box<dyn ClientTransport> {
    Box::new(Conditioned::new(
        door.connector.connect(),
        door.conditions.clone(),
    ))
}

/// Connects anew from wherever the game is.
fn connect(world: &mut World) {
    let Some(door) = world.get_resource::<Door>().cloned() else {
        return;
    };
    let mut door = door;
    world.connect_with(move |_: Option<&[u8]>| {
        door.conditions.seed = door.conditions.seed.wrapping_add(1_000);
        Ok(link(&door))
    });
}
