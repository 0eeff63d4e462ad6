//! Whatever happens in the server's world, and whatever the network does: every client ends up with exactly what it
//! should see, parents and references included, and what its observers were told on the way is in order.
//!
//! `convergence` does this for the plain core; here whole apps play. The server's game spawns, despawns, changes,
//! removes, inserts, reparents, disables, changes owners, rooms and settings at random; observers on both sides despawn
//! in answer. Links lose, delay, duplicate and break; some snapshots cannot be read and have to be asked for again.
//!
//!     WORLD_SEED=123 cargo test --test world_convergence
//!
//! `WORLD_CASES` sets the number of worlds (default 160).

mod game;
mod log;
mod server;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bevy::ecs::entity_disabling::Disabled;
use bevy::ecs::query::Allow;
use bevy::platform::collections::HashMap;
use bevy::prelude::*;
use bevy_tandem::client::{ClientConfig, ConnectOver};
use bevy_tandem::prelude::*;
use bevy_tandem::testing::{TestClientId, TestNet};
use bevy_tandem::transport::{
    ClientLinkState, ClientTransport, Conditioned, LocalClient, TransportKind, TransportStats,
};
use fastrand::Rng;

use game::*;

/// Lets some snapshots arrive cut off, so that they cannot be read.
struct Cutting {
    link: LocalClient,
    rng: Rng,
    share: f32,
}

/// Bytes of a datagram before its chunks: see `protocol::acks`.
const HEADER_BYTES: usize = 9;
const SNAPSHOT: u8 = 0;

impl Cutting {
    fn cut(&mut self, datagram: Vec<u8>) -> Vec<u8> {
        let mut cut = datagram[..HEADER_BYTES.min(datagram.len())].to_vec();
        let mut at = HEADER_BYTES;
        while let Some(&[kind, low, high]) = datagram.get(at..at + 3) {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let Some(body) = datagram.get(at + 3..at + 3 + length) else {
                return datagram;
            };
            let is_cut = kind == SNAPSHOT && length > 8 && self.rng.f32() < self.share;
            let body = if is_cut { &body[..length / 2] } else { body };
            cut.push(kind);
            cut.extend((body.len() as u16).to_le_bytes());
            cut.extend(body);
            at += 3 + length;
        }
        cut
    }
}

impl ClientTransport for Cutting {
    fn state(&self) -> &ClientLinkState {
        self.link.state()
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        let mut came = Vec::new();
        self.link.receive(now, &mut came);
        datagrams.extend(came.into_iter().map(|datagram| self.cut(datagram)));
    }

    fn send(&mut self, now: Duration, datagram: &[u8]) {
        self.link.send(now, datagram);
    }

    fn flush(&mut self, now: Duration) {
        self.link.flush(now);
    }

    fn kind(&self) -> TransportKind {
        self.link.kind()
    }

    fn vanish(&mut self) {
        self.link.vanish();
    }

    fn close(&mut self) {
        self.link.close();
    }

    fn stats(&self) -> TransportStats {
        self.link.stats()
    }
}

/// A world, its clients, and what happens.
struct Play {
    net: TestNet,
    clients: Vec<TestClientId>,
    rng: Rng,
    link: LinkConditions,
    /// Share of snapshots that cannot be read.
    cut: f32,
    seed: u64,
}

impl Play {
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
            max_snapshot_bytes: [160, 300, 1_100][rng.usize(..3)],
            adaptive: None,
            ..default()
        };
        let mut net = TestNet::with_config(game, link.clone(), config);
        server::set_up(net.server.world_mut());
        let cut = [0.0, 0.0, 0.03][rng.usize(..3)];
        Self {
            net,
            clients: Vec::new(),
            rng,
            link,
            cut,
            seed,
        }
    }

    fn join(&mut self) {
        let n = self.clients.len() as u64;
        let config = ClientConfig {
            name: format!("Player {n}"),
            ..default()
        };
        let client = self.net.join_with(client_game, config);
        let connector = self.net.connector().clone();
        let mut conditions = self.link.clone().with_seed(self.seed + n);
        let share = self.cut;
        self.net
            .client(client)
            .connect_with(move |_: Option<&[u8]>| {
                conditions.seed = conditions.seed.wrapping_add(1_000);
                let link = Cutting {
                    link: connector.connect(),
                    rng: Rng::with_seed(conditions.seed),
                    share,
                };
                Ok(Box::new(Conditioned::new(link, conditions.clone()))
                    as Box<dyn ClientTransport>)
            });
        self.clients.push(client);
    }

    fn play(&mut self) {
        self.join();
        for _ in 0..self.rng.u32(60..240) {
            for _ in 0..self.rng.u32(..4) {
                server::act(self.net.server.world_mut(), &mut self.rng);
            }
            match self.rng.u32(..200) {
                0 if self.clients.len() < 3 => self.join(),
                1 => {
                    let client = self.clients[self.rng.usize(..self.clients.len())];
                    // Who is not in yet gives up.
                    if self.net.session(client).is_some() {
                        self.net.cut(client);
                    }
                }
                2 => {
                    let client = self.clients[self.rng.usize(..self.clients.len())];
                    let is_paused = self.rng.bool();
                    self.net.pause(client, is_paused);
                }
                _ => {}
            }
            self.step();
        }
        self.settle();
    }

    fn step(&mut self) {
        self.net.run(Ticks(1));
        for &client in &self.clients {
            check_frame(self.net.client(client));
        }
    }

    /// Nothing happens any more: the copies have to be right soon, and to stay so.
    fn settle(&mut self) {
        server::calm_down(self.net.server.world_mut());
        for &client in &self.clients {
            self.net.pause(client, false);
        }
        let mut differences = Vec::new();
        let mut right_for = 0;
        for _ in 0..1_500 {
            self.step();
            differences.clear();
            for &client in &self.clients {
                differences.extend(compare(&mut self.net, client));
            }
            right_for = if differences.is_empty() {
                right_for + 1
            } else {
                0
            };
            if right_for > 30 {
                for &client in &self.clients {
                    log::check_end(self.net.client(client));
                }
                return;
            }
        }
        panic!("after quiet: {differences:#?}");
    }
}

/// In every frame: what was changed together is together.
fn check_frame(app: &mut App) {
    let world = app.world_mut();
    let mut copies = world.query_filtered::<Entity, (With<Tag>, With<Replicated>)>();
    let mut carriers = world.query_filtered::<&Carrier, With<Replicated>>();
    let bands: Vec<_> = carriers.iter(world).map(|carrier| carrier.0).collect();
    let mut seen = HashMap::new();
    for entity in copies.iter(world) {
        let at = world.entity(entity);
        let tag = at.get::<Tag>().expect("it is asked for").0;
        if let Some(other) = seen.insert(tag, entity)
            && !MARKED_ANEW.with_borrow(|anew| anew.contains(&tag))
        {
            panic!("{entity} and {other} both have tag {tag}");
        }
        if let Err(error) = is_consistent(world, entity, &bands) {
            let playback = world.resource::<CurrentTick>().0;
            let role = world.get::<Predicted>(entity).is_some();
            let parent = world.get::<ChildOf>(entity);
            panic!("at {playback}, {tag} (predicted: {role}, below {parent:?}): {error}");
        }
    }
}

/// What is compared of an entity.
#[derive(Debug, Default, PartialEq)]
struct State {
    left: Option<Left>,
    right: Option<Right>,
    place: Option<Place>,
    mode: Option<Mode>,
    speed: Option<Speed>,
    big: Option<Big>,
    owner: Option<u32>,
    is_predicted: bool,
    /// By tag.
    aim: Option<Option<u32>>,
    group: Option<Vec<Option<u32>>>,
    parent: Option<u32>,
}

fn state(world: &World, entity: Entity, is_predicted: bool) -> State {
    let at = world.entity(entity);
    let tag = |entity: Entity| world.get::<Tag>(entity).map(|tag| tag.0);
    State {
        left: at.get().cloned(),
        right: at.get().cloned(),
        place: at.get().cloned(),
        mode: at.get().cloned(),
        speed: at.get().cloned(),
        big: at.get().cloned(),
        owner: at.get::<Owner>().map(|owner| owner.0.0),
        is_predicted,
        aim: at.get::<Aim>().map(|aim| tag(aim.whom)),
        group: at
            .get::<Group>()
            .map(|group| group.members.iter().map(|member| tag(*member)).collect()),
        parent: at.get::<ChildOf>().and_then(|parent| tag(parent.parent())),
    }
}

fn room_of(world: &World, entity: Entity) -> Option<Entity> {
    let mut at = entity;
    loop {
        if let Some(room) = world.get::<InRoom>(at) {
            return Some(room.0);
        }
        at = world.get::<ChildOf>(at)?.parent();
    }
}

/// What a session should see, by tag.
fn expected(world: &mut World, session: Entity) -> BTreeMap<u32, State> {
    let mut things = world.query_filtered::<(Entity, &Tag), (With<Replicated>, Allow<Disabled>)>();
    let things: Vec<_> = things.iter(world).map(|(e, tag)| (e, tag.0)).collect();
    let world = &*world;
    let own = room_of(world, session);
    let is_seen = |entity| room_of(world, entity).is_none_or(|room| Some(room) == own);
    let is_predicted = |entity| {
        let by = world.get::<PredictedBy>(entity).copied();
        let owner = world.get::<OwnedBy>(entity).map(|owner| owner.0);
        match by.unwrap_or_default() {
            PredictedBy::Owner => owner == Some(session),
            PredictedBy::Everyone => true,
            PredictedBy::Nobody => false,
        }
    };
    let is_fragile = |entity| world.get::<Fragile>(entity).is_some();
    let mut seen: BTreeMap<_, _> = things
        .into_iter()
        .filter(|(entity, _)| is_seen(*entity) && !is_fragile(*entity))
        .map(|(entity, tag)| (tag, state(world, entity, is_predicted(entity))))
        .collect();
    // What is not seen cannot be named.
    let tags: Vec<_> = seen.keys().copied().collect();
    let is_known = |tag: &u32| tags.binary_search(tag).is_ok();
    for state in seen.values_mut() {
        state.parent = state.parent.filter(is_known);
        state.aim = state.aim.map(|aim| aim.filter(is_known));
        for member in state.group.iter_mut().flatten() {
            *member = member.filter(is_known);
        }
    }
    seen
}

/// Where a client's copies are not as they should be.
fn compare(net: &mut TestNet, client: TestClientId) -> Vec<String> {
    let Some(session) = net.session(client) else {
        return vec![format!(
            "not connected: {:?}",
            net.client(client).world().resource::<Connection>()
        )];
    };
    let expected = expected(net.server.world_mut(), session);
    let world = net.client(client).world_mut();
    let mut copies = world.query_filtered::<(Entity, &Tag), With<Replicated>>();
    let copies: BTreeMap<_, _> = copies.iter(world).map(|(e, tag)| (tag.0, e)).collect();
    let world = &*world;
    let mut differences = Vec::new();
    for (tag, entity) in &copies {
        if !expected.contains_key(tag) {
            differences.push(format!("{tag} is still there, as {entity}"));
        }
    }
    for (tag, wanted) in expected {
        let Some(&entity) = copies.get(&tag) else {
            differences.push(format!("{tag} is missing: {wanted:?}"));
            continue;
        };
        let seen = state(world, entity, world.get::<Predicted>(entity).is_some());
        if wanted != seen {
            differences.push(format!("{tag} is {seen:?}, not {wanted:?}"));
        }
    }
    differences
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Names the world that failed.
struct Naming(u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("WORLD_SEED={} fails", self.0);
        }
    }
}

fn play(seed: u64) {
    let _naming = Naming(seed);
    MARKED_ANEW.with_borrow_mut(HashSet::clear);
    Play::new(seed).play();
}

fn play_share(part: u64, parts: u64) {
    if let Some(seed) = variable::<u64>("WORLD_SEED") {
        if seed % parts == part {
            play(seed);
        }
        return;
    }
    let first = variable("WORLD_FIRST").unwrap_or(0);
    let cases: u64 = variable("WORLD_CASES").unwrap_or(160);
    let mut failed = Vec::new();
    for seed in (first..first + cases).filter(|seed| seed % parts == part) {
        if std::panic::catch_unwind(|| play(seed)).is_err() {
            failed.push(seed);
            if failed.len() == 20 {
                break;
            }
        }
    }
    assert!(failed.is_empty(), "worlds that fail: {failed:?}");
}

#[test]
fn copies_of_random_worlds_converge_even() {
    play_share(0, 2);
}

#[test]
fn copies_of_random_worlds_converge_odd() {
    play_share(1, 2);
}
