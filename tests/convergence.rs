//! Whatever the network does, every client ends up with exactly what it should see.
//!
//! A server (an archive, one view per client) and its clients (replicas) over links that lose, reorder, duplicate and
//! fall silent, with snapshots that clients must refuse and views that start over. Worlds, operations, budgets and links are random, from a seed; a failure names it:
//!
//!     CONVERGENCE_SEED=123 cargo test --test convergence random_worlds_converge
//!
//! `CONVERGENCE_CASES` sets the number of worlds (default 3,000).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;

use bevy_tandem::protocol::archive::{Archive, PartitionId};
use bevy_tandem::protocol::layout::{ComponentId, Layout, Layouts, Meta, NetId, PredictedBy};
use bevy_tandem::protocol::replica::{Change, Replica, ReplicaEntity, SnapshotError, ValueRef};
use bevy_tandem::protocol::view::{ApartValue, BlockCache, Encoded, SnapshotBudget, View};
use bevy_tandem::tick::{Tick, Ticks};
use bevy_tandem::wire::bits::BitWriter;
use bevy_tandem::wire::quantize::Field;
use fastrand::Rng;

/// A component's value, as the archive is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Words(Rc<[u32]>),
    Bytes(Rc<[u8]>),
}

impl PartialEq<ValueRef<'_>> for Value {
    fn eq(&self, other: &ValueRef) -> bool {
        match (self, other) {
            (Self::Words(a), ValueRef::Words(b)) => **a == **b,
            (Self::Bytes(a), ValueRef::Bytes(b)) => **a == **b,
            _ => false,
        }
    }
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef) -> Self {
        match value {
            ValueRef::Words(words) => Self::Words(words.into()),
            ValueRef::Bytes(bytes) => Self::Bytes(bytes.into()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Entity {
    meta: Meta,
    components: BTreeMap<ComponentId, Value>,
}

impl Entity {
    fn matches(&self, copy: &ReplicaEntity) -> bool {
        self.meta == copy.meta
            && self.components.len() == copy.values().count()
            && self
                .components
                .iter()
                .zip(copy.values())
                .all(|((id, value), (copied_id, copied))| *id == copied_id && *value == copied)
    }
}

type World = BTreeMap<NetId, (PartitionId, Entity)>;

/// The server: what it replicates, and the same in the plainest form.
struct Server {
    archive: Archive,
    layouts: Vec<Layout>,
    world: World,
    partitions: Vec<PartitionId>,
    tick: Tick,
    clients: Vec<Client>,
    cache: BlockCache,
    /// The world at past sends.
    past: HashMap<Tick, Rc<World>>,
}

struct Client {
    view: View,
    replica: Replica,
    link: Link,
    budget: SnapshotBudget,
    next_seq: u16,
    newest_seq: Option<u16>,
    /// Datagrams that an acknowledgement may still speak of.
    taken: VecDeque<u16>,
    /// What a game would have: built of nothing but the changes that it is told.
    mirror: BTreeMap<NetId, Entity>,
    /// Those of it that the server has not named since it started over.
    unconfirmed: BTreeSet<NetId>,
    /// How often it may still start over at its client's request, as the server limits that.
    next_resync: Tick,
    changes: Vec<Change>,
    /// What was seen at past sends.
    saw: HashMap<Tick, Vec<PartitionId>>,
    last: Encoded,
    last_len: usize,
}

/// Both directions of a link, in ticks.
struct Link {
    rng: Rng,
    loss: f32,
    duplication: f32,
    /// Share of the snapshots that come with their ends cut off, though the datagram is whole.
    breakage: f32,
    latency: u32,
    jitter: u32,
    /// Until these ticks, nothing comes through.
    down_until: Tick,
    up_until: Tick,
    down: Vec<(Tick, u16, Rc<[u8]>)>,
    up: Vec<(Tick, Up)>,
    messages: VecDeque<(Tick, ApartValue)>,
}

/// What a client says.
#[derive(Clone)]
struct Up {
    acks: Vec<u16>,
    resync: Option<u8>,
}

impl Link {
    fn perfect() -> Self {
        Self {
            rng: Rng::with_seed(0),
            loss: 0.0,
            duplication: 0.0,
            breakage: 0.0,
            latency: 1,
            jitter: 0,
            down_until: Tick(0),
            up_until: Tick(0),
            down: Vec::new(),
            up: Vec::new(),
            messages: VecDeque::new(),
        }
    }

    fn random(rng: &mut Rng, now: Tick) -> Self {
        Self {
            rng: rng.fork(),
            loss: [0.0, 0.05, 0.2, 0.5][rng.usize(..4)],
            duplication: [0.0, 0.1][rng.usize(..2)],
            breakage: [0.0, 0.0, 0.02, 0.2][rng.usize(..4)],
            latency: rng.u32(0..8),
            jitter: [0, 1, 6][rng.usize(..3)],
            down_until: now,
            up_until: now,
            ..Self::perfect()
        }
    }

    fn is_lost(&mut self, now: Tick, until: Tick) -> bool {
        until.is_newer_than(now) || self.rng.f32() < self.loss
    }

    fn arrival(&mut self, now: Tick) -> Tick {
        now + Ticks(self.latency + self.rng.u32(0..=self.jitter))
    }

    fn copies(&mut self) -> usize {
        1 + usize::from(self.rng.f32() < self.duplication)
    }

    fn send_down(&mut self, now: Tick, seq: u16, bytes: Rc<[u8]>) {
        for _ in 0..self.copies() {
            if !self.is_lost(now, self.down_until) {
                let due = self.arrival(now);
                self.down.push((due, seq, bytes.clone()));
            }
        }
    }

    fn send_up(&mut self, now: Tick, what: Up) {
        for _ in 0..self.copies() {
            if !self.is_lost(now, self.up_until) {
                let due = self.arrival(now);
                self.up.push((due, what.clone()));
            }
        }
    }

    /// Reliable and in order: late, but never lost.
    fn send_message(&mut self, now: Tick, value: ApartValue) {
        let mut due = self.arrival(now);
        while self.rng.f32() < self.loss {
            due += Ticks(12);
        }
        let before = self.messages.back().map_or(due, |(before, _)| *before);
        let due = due.latest(before).latest(self.down_until);
        self.messages.push_back((due, value));
    }
}

fn take_due<T>(queue: &mut Vec<(Tick, T)>, now: Tick) -> Vec<T> {
    let mut due = Vec::new();
    let mut index = 0;
    while index < queue.len() {
        if queue[index].0.is_newer_than(now) {
            index += 1;
        } else {
            due.push(queue.swap_remove(index).1);
        }
    }
    due
}

const MAX_ENTITIES: usize = 10_000;

impl Client {
    fn new(server: &Server, link: Link, budget: SnapshotBudget) -> Self {
        Self {
            view: View::new(server.tick),
            replica: Replica::new(Layouts::new(server.layouts.clone()), MAX_ENTITIES),
            link,
            budget,
            next_seq: 0,
            newest_seq: None,
            taken: VecDeque::new(),
            mirror: BTreeMap::new(),
            unconfirmed: BTreeSet::new(),
            next_resync: server.tick,
            changes: Vec::new(),
            saw: HashMap::new(),
            last: Encoded::default(),
            last_len: 0,
        }
    }

    fn receive(&mut self, now: Tick, past: &HashMap<Tick, Rc<World>>) {
        while let Some((due, _)) = self.link.messages.front()
            && !due.is_newer_than(now)
            && let Some((_, value)) = self.link.messages.pop_front()
        {
            self.replica.handle_apart(value, &mut self.changes);
            self.follow_changes();
        }
        let mut queue = std::mem::take(&mut self.link.down)
            .into_iter()
            .map(|(due, seq, bytes)| (due, (seq, bytes)))
            .collect();
        let due = take_due(&mut queue, now);
        self.link.down = queue
            .into_iter()
            .map(|(due, (seq, b))| (due, seq, b))
            .collect();
        for (seq, bytes) in due {
            let is_old = |newest: u16| seq.wrapping_sub(newest).cast_signed() <= 0;
            if self.newest_seq.is_some_and(is_old) {
                continue; // neither read nor acknowledged
            }
            self.newest_seq = Some(seq);
            let is_broken = self.link.rng.f32() < self.link.breakage;
            if is_broken {
                self.refuse(now, &bytes);
                continue;
            }
            let is_given_up = self.replica.resync_epoch();
            let taken = match self.replica.handle_snapshot(now, &bytes, &mut self.changes) {
                Ok(taken) => taken,
                Err(SnapshotError::GivenUp) if is_given_up.is_some() => continue,
                Err(error) => panic!("at {now}, datagram {seq}: {error}"),
            };
            assert_eq!(self.replica.resync_epoch(), None, "it goes on");
            self.follow_changes();
            self.taken.push_back(seq);
            self.taken.retain(|old| seq.wrapping_sub(*old) < 32);
            let tick = taken.header.tick;
            if taken.complete {
                let seen = visible(&past[&tick], &self.saw[&tick]);
                self.assert_has(seen, &format!("a complete snapshot of {tick}"));
                for net in std::mem::take(&mut self.unconfirmed) {
                    self.mirror.remove(&net);
                }
            }
        }
        for (net, copy) in self.replica.entities() {
            let confirmed = self.replica.confirmed(net).expect("it is there");
            let (partition, entity) = &past[&confirmed][&net];
            assert!(self.saw[&confirmed].contains(partition));
            let awaits_values = copy.values().count() < entity.components.len();
            assert!(
                awaits_values || entity.matches(copy),
                "{net:?} is as it was at {confirmed}: {entity:.0?}, not {copy:.0?}"
            );
        }
        if self.newest_seq.is_some() {
            let what = Up {
                acks: self.taken.iter().copied().collect(),
                resync: self.replica.resync_epoch(),
            };
            self.link.send_up(now, what);
        }
    }

    /// A snapshot of which only a part is there: nothing of it must be seen.
    fn refuse(&mut self, now: Tick, bytes: &[u8]) {
        let state = |replica: &Replica| {
            let mut entities: Vec<_> = replica
                .entities()
                .map(|(net, copy)| (net, format!("{copy:?}")))
                .collect();
            entities.sort();
            (entities, replica.newest(), replica.newest_complete())
        };
        let before = state(&self.replica);
        let part = &bytes[..self.link.rng.usize(..bytes.len())];
        let outcome = self.replica.handle_snapshot(now, part, &mut self.changes);
        assert!(outcome.is_err(), "half a snapshot is none");
        assert_eq!(self.changes, [], "nothing of it is told");
        assert_eq!(state(&self.replica), before, "nothing of it is kept");
        assert!(self.replica.resync_epoch().is_some());
    }

    fn follow_changes(&mut self) {
        for change in self.changes.drain(..) {
            match change {
                Change::StartedOver => {
                    self.unconfirmed = self.mirror.keys().copied().collect();
                }
                Change::Spawned(net) => {
                    if self.unconfirmed.remove(&net) {
                        self.mirror.remove(&net);
                    }
                    let meta = self.replica.entity(net).map(|copy| copy.meta);
                    let spawned = Entity {
                        meta: meta.unwrap_or_default(),
                        components: BTreeMap::new(),
                    };
                    let before = self.mirror.insert(net, spawned);
                    assert_eq!(before, None, "nothing is spawned twice");
                }
                Change::MetaChanged(net) => {
                    let copy = self.replica.entity(net).expect("meta of something there");
                    self.mirror.get_mut(&net).expect("spawned before").meta = copy.meta;
                }
                Change::Set(net, id) => {
                    let copy = self.replica.entity(net);
                    let value = copy.and_then(|copy| copy.value(id)).expect("a new value");
                    let entity = self.mirror.get_mut(&net).expect("spawned before");
                    entity.components.insert(id, value.into());
                }
                Change::Removed(net, id) => {
                    let entity = self.mirror.get_mut(&net).expect("spawned before");
                    entity.components.remove(&id);
                }
                Change::Despawned(net) => {
                    self.mirror.remove(&net).expect("spawned before");
                }
            }
        }
    }

    /// Large values may still be on their way as messages.
    fn assert_has<'a>(&self, seen: impl Iterator<Item = (NetId, &'a Entity)>, context: &str) {
        let mut count = 0;
        for (net, entity) in seen {
            count += 1;
            let copy = self.replica.entity(net);
            let Some(copy) = copy else {
                panic!("{context}: {net:?} is missing: {entity:?}")
            };
            assert_eq!(copy.meta, entity.meta, "{context}: {net:?}");
            for (id, value) in copy.values() {
                let wanted = entity.components.get(&id);
                assert!(
                    wanted.is_some_and(|wanted| *wanted == value),
                    "{context}: {net:?} {id:?} is {value:?}, not {wanted:?}"
                );
            }
        }
        let extra = self.replica.entities().count() - count;
        assert_eq!(extra, 0, "{context}: nothing else is there");
    }
}

fn visible<'a>(
    world: &'a World,
    partitions: &'a [PartitionId],
) -> impl Iterator<Item = (NetId, &'a Entity)> {
    world
        .iter()
        .filter(|(_, (partition, _))| partitions.contains(partition))
        .map(|(&net, (_, entity))| (net, entity))
}

impl Server {
    fn new(layouts: Vec<Layout>, tick: Tick) -> Self {
        Self {
            archive: Archive::new(Layouts::new(layouts.clone())),
            layouts,
            world: World::new(),
            partitions: vec![PartitionId::GLOBAL],
            tick,
            clients: Vec::new(),
            cache: BlockCache::default(),
            past: HashMap::new(),
        }
    }

    fn join(&mut self, link: Link, budget: SnapshotBudget, partitions: &[PartitionId]) -> usize {
        let mut client = Client::new(self, link, budget);
        client
            .view
            .set_partitions(&self.archive, self.tick, partitions);
        self.clients.push(client);
        self.clients.len() - 1
    }

    fn spawn(&mut self, partition: PartitionId, meta: Meta, priority: f32) -> NetId {
        let net = self.archive.spawn(self.tick, partition, meta, priority);
        let entity = Entity {
            meta,
            ..Entity::default()
        };
        let before = self.world.insert(net, (partition, entity));
        assert!(
            before.is_none(),
            "an id is only given out again when it is free"
        );
        net
    }

    fn despawn(&mut self, net: NetId) {
        self.archive.despawn(self.tick, net);
        self.world.remove(&net);
    }

    fn set(&mut self, net: NetId, id: ComponentId, value: Value) {
        match &value {
            Value::Words(words) => self.archive.set_words(self.tick, net, id, words),
            Value::Bytes(bytes) => self.archive.set_bytes(self.tick, net, id, bytes),
        }
        let (_, entity) = self.world.get_mut(&net).expect("it was spawned");
        entity.components.insert(id, value);
    }

    fn remove(&mut self, net: NetId, id: ComponentId) {
        self.archive.remove(self.tick, net, id);
        let (_, entity) = self.world.get_mut(&net).expect("it was spawned");
        entity.components.remove(&id);
    }

    fn set_meta(&mut self, net: NetId, meta: Meta) {
        self.archive.set_meta(self.tick, net, meta);
        self.world.get_mut(&net).expect("it was spawned").1.meta = meta;
    }

    fn move_to(&mut self, net: NetId, partition: PartitionId) {
        self.archive.move_to(self.tick, net, partition);
        self.world.get_mut(&net).expect("it was spawned").0 = partition;
    }

    fn show(&mut self, client: usize, partitions: &[PartitionId]) {
        let view = &mut self.clients[client].view;
        view.set_partitions(&self.archive, self.tick, partitions);
    }

    fn remove_partition(&mut self, index: usize) {
        let partition = self.partitions.swap_remove(index);
        for client in &mut self.clients {
            let mut seen = client.view.partitions().to_vec();
            seen.retain(|seen| *seen != partition);
            client.view.set_partitions(&self.archive, self.tick, &seen);
        }
        self.archive.remove_partition(self.tick, partition);
        for (at, _) in self.world.values_mut() {
            if *at == partition {
                *at = PartitionId::GLOBAL;
            }
        }
    }

    /// One snapshot to each client, and whatever is due in the links.
    fn send(&mut self) {
        self.cache.clear();
        self.past.insert(self.tick, Rc::new(self.world.clone()));
        let mut out = BitWriter::new();
        for client in &mut self.clients {
            out.clear();
            let mut apart = Vec::new();
            client.next_seq = client
                .next_seq
                .wrapping_add(1 + u16::from(client.link.rng.u8(..8) == 0));
            let partitions = client.view.partitions().to_vec();
            client.saw.insert(self.tick, partitions);
            client.last = client.view.encode(
                &self.archive,
                self.tick,
                client.next_seq,
                None,
                client.budget,
                &mut self.cache,
                &mut out,
                &mut apart,
            );
            assert_eq!(client.last.oversized, None, "entities of these worlds fit");
            let snapshot = out.finish();
            assert!(
                snapshot.len() <= client.budget.max_bytes,
                "a snapshot of {} bytes exceeds its budget of {}",
                snapshot.len(),
                client.budget.max_bytes
            );
            client.last_len = snapshot.len();
            for value in apart {
                client.link.send_message(self.tick, value);
            }
            client
                .link
                .send_down(self.tick, client.next_seq, snapshot.into());
        }
        self.forget_what_all_know();
        let layouts = self.layouts.len() as u32;
        assert!(
            self.archive.remembered_values() <= 64 * layouts as usize * self.world.len(),
            "histories are bounded"
        );
    }

    /// As the server's plugin does it.
    fn forget_what_all_know(&mut self) {
        let mut oldest = HashMap::new();
        let mut known_everywhere = self.tick;
        for client in &self.clients {
            let baseline = client.view.baseline();
            known_everywhere = known_everywhere.earliest(client.view.forgotten_before());
            for &partition in client.view.partitions() {
                let entry = oldest.entry(partition).or_insert(baseline);
                *entry = entry.earliest(baseline);
            }
        }
        let tick = self.tick;
        self.archive
            .forget(|partition| oldest.get(&partition).copied().unwrap_or(tick));
        self.archive.reclaim(known_everywhere);
    }

    /// As the server's plugin does it.
    fn start_over_who_is_behind(&mut self) {
        for client in &mut self.clients {
            if client.view.is_left_behind(&self.archive, self.tick) {
                client.view.start_over(&self.archive, self.tick);
            }
        }
    }

    fn exchange(&mut self) {
        for client in &mut self.clients {
            client.receive(self.tick, &self.past);
            for up in take_due(&mut client.link.up, self.tick) {
                for seq in up.acks {
                    client.view.handle_ack(seq);
                }
                if up.resync == Some(client.view.epoch())
                    && !client.next_resync.is_newer_than(self.tick)
                {
                    client.next_resync = self.tick + Ticks(10);
                    client.view.start_over(&self.archive, self.tick);
                }
            }
        }
    }

    /// Ends a tick: sends, lets the links work, and begins the next.
    fn step(&mut self) {
        self.send();
        self.exchange();
        self.tick += Ticks(1);
    }

    fn is_settled(&self) -> bool {
        self.clients.iter().all(|client| {
            client.view.exceptions() == 0
                && client.replica.resync_epoch().is_none()
                && client.last.complete
                && client.last.entities == 0
                && client.link.messages.is_empty()
        })
    }

    /// Runs without further changes over good links, until nothing is left to say; then compares.
    fn settle(&mut self, max_ticks: u32) {
        for client in &mut self.clients {
            client.link.loss = 0.0;
            client.link.breakage = 0.0;
            client.link.down_until = self.tick;
            client.link.up_until = self.tick;
        }
        let mut quiet = 0;
        for _ in 0..max_ticks {
            self.step();
            quiet = if self.is_settled() { quiet + 1 } else { 0 };
            if quiet > 20 {
                break;
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            let context = format!("client {index}");
            assert_eq!(client.view.exceptions(), 0, "{context} has no exceptions");
            assert!(client.last.complete, "{context}: the last is complete");
            assert_eq!(client.last.entities, 0, "{context}: the last is empty");
            assert!(client.last_len <= 5, "{context}: the last is but a header");
            let wanted: BTreeMap<_, _> = visible(&self.world, client.view.partitions()).collect();
            client.assert_has(wanted.iter().map(|(net, entity)| (*net, *entity)), &context);
            for (net, entity) in &wanted {
                let copy = client.replica.entity(*net).expect("checked above");
                assert!(
                    entity.matches(copy),
                    "{context}: {net:?} is {copy:?}, not {entity:?}"
                );
            }
            let mirrored: BTreeMap<_, _> = client.mirror.iter().map(|(n, e)| (*n, e)).collect();
            assert_eq!(mirrored, wanted, "{context} was told of every change");
        }
    }
}

/// A world and what happens in it.
struct Game {
    rng: Rng,
    server: Server,
    send_interval: u32,
    max_entities: usize,
    operations: u32,
}

impl Game {
    fn random(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let layouts: Vec<_> = (0..rng.usize(1..=5)).map(|_| layout(&mut rng)).collect();
        let starts = [0, 1000, 0xffff - 60, u32::MAX - 60, i32::MAX as u32 - 60];
        let mut server = Server::new(layouts, Tick(starts[rng.usize(..starts.len())]));
        for _ in 0..rng.usize(..4) {
            let partition = server.archive.add_partition();
            server.partitions.push(partition);
        }
        Self {
            send_interval: rng.u32(1..=3),
            max_entities: [3, 10, 40][rng.usize(..3)],
            operations: [1, 4, 15][rng.usize(..3)],
            server,
            rng,
        }
    }

    fn run(mut self) {
        self.join();
        for _ in 0..self.rng.u32(40..120) {
            self.tick();
        }
        if self.rng.u8(..4) == 0 {
            // Longer than histories reach.
            let until = self.server.tick + Ticks(self.rng.u32(100..300));
            for client in &mut self.server.clients {
                match self.rng.u8(..3) {
                    0 => client.link.down_until = until,
                    1 => client.link.up_until = until,
                    _ => {}
                }
            }
            while until.is_newer_than(self.server.tick) {
                self.tick();
            }
            for _ in 0..self.rng.u32(0..30) {
                self.tick();
            }
        }
        self.server.settle(1_000);
        self.check_memory();
    }

    /// Once all is known, a change lets go of what came before it.
    fn check_memory(&mut self) {
        let nets: Vec<_> = self.server.world.keys().copied().collect();
        for _ in 0..2 {
            for &net in &nets {
                let entity = &self.server.world[&net].1;
                for id in entity.components.keys().copied().collect::<Vec<_>>() {
                    if let Layout::Words(fields) = &self.server.layouts[usize::from(id.0)] {
                        let Value::Words(before) = &self.server.world[&net].1.components[&id]
                        else {
                            unreachable!("a layout of words has words")
                        };
                        let mut words = before.to_vec();
                        words[0] ^= fields[0].mask() & 1;
                        self.server.set(net, id, Value::Words(words.into()));
                    }
                }
            }
            self.server.settle(1_000);
        }
        let components = self.server.world.values().map(|(_, e)| e.components.len());
        assert!(
            self.server.archive.remembered_values() <= 2 * components.sum::<usize>(),
            "what all know is forgotten"
        );
    }

    fn tick(&mut self) {
        for _ in 0..self.rng.u32(0..=self.operations) {
            self.operate();
        }
        if self.server.tick.0.is_multiple_of(self.send_interval) {
            self.server.send();
        }
        self.server.exchange();
        self.server.tick += Ticks(1);
    }

    fn operate(&mut self) {
        let rng = &mut self.rng;
        let server = &mut self.server;
        let nets: Vec<_> = server.world.keys().copied().collect();
        let Some(&net) = nets.get(rng.usize(..nets.len().max(1))) else {
            return self.spawn();
        };
        match rng.u32(..100) {
            0..=9 if nets.len() < self.max_entities => self.spawn(),
            10..=14 => server.despawn(net),
            15..=19 => server.set_meta(net, meta(rng)),
            20..=27 => {
                let partition = server.partitions[rng.usize(..server.partitions.len())];
                server.move_to(net, partition);
            }
            28..=32 => {
                let id = ComponentId(rng.u8(..server.layouts.len() as u8));
                server.remove(net, id);
                if rng.bool() {
                    self.set(net, id);
                }
            }
            33..=36 if !server.clients.is_empty() => {
                let client = rng.usize(..server.clients.len());
                let partitions = self.some_partitions();
                self.server.show(client, &partitions);
            }
            37 if server.clients.len() < 4 => self.join(),
            38 if server.clients.len() > 1 && rng.u8(..4) == 0 => {
                server
                    .clients
                    .swap_remove(rng.usize(..server.clients.len()));
            }
            39 if !server.clients.is_empty() => {
                let client = rng.usize(..server.clients.len());
                let view = &mut server.clients[client].view;
                view.start_over(&server.archive, server.tick);
            }
            40 if rng.u8(..4) == 0 => {
                if server.partitions.len() > 1 && rng.bool() {
                    server.remove_partition(rng.usize(1..server.partitions.len()));
                } else if server.partitions.len() < 5 {
                    let partition = server.archive.add_partition();
                    server.partitions.push(partition);
                }
            }
            41..=42 if !server.clients.is_empty() => {
                let client = rng.usize(..server.clients.len());
                server.clients[client].budget.max_bytes = max_bytes(rng);
            }
            43 if !server.clients.is_empty() => {
                let client = rng.usize(..server.clients.len());
                let link = &mut server.clients[client].link;
                let until = server.tick + Ticks(rng.u32(1..20));
                if rng.bool() {
                    link.down_until = link.down_until.latest(until);
                } else {
                    link.up_until = link.up_until.latest(until);
                }
            }
            44..=45 => {
                let priority = [0.0, 0.1, 1.0, 10.0][rng.usize(..4)];
                server.archive.set_priority(net, priority);
            }
            _ => {
                let id = ComponentId(rng.u8(..server.layouts.len() as u8));
                self.set(net, id);
            }
        }
    }

    fn join(&mut self) {
        let rng = &mut self.rng;
        let link = Link::random(rng, self.server.tick);
        let round_trip = 2 * (link.latency + link.jitter) + self.send_interval + 1;
        let budget = SnapshotBudget {
            max_bytes: max_bytes(rng),
            resend_after: Ticks([round_trip, round_trip, 1, 40][rng.usize(..4)]),
        };
        let partitions = self.some_partitions();
        self.server.join(link, budget, &partitions);
    }

    /// In any order, mostly with the global one.
    fn some_partitions(&mut self) -> Vec<PartitionId> {
        let mut some: Vec<_> = self.server.partitions.clone();
        some.retain(|_| self.rng.u8(..3) > 0);
        self.rng.shuffle(&mut some);
        some
    }

    fn spawn(&mut self) {
        let rng = &mut self.rng;
        let partition = self.server.partitions[rng.usize(..self.server.partitions.len())];
        let priority = [0.1, 1.0, 10.0][rng.usize(..3)];
        let meta = meta(rng);
        let net = self.server.spawn(partition, meta, priority);
        for id in 0..self.server.layouts.len() as u8 {
            if self.rng.u8(..3) > 0 {
                self.set(net, ComponentId(id));
            }
        }
    }

    fn set(&mut self, net: NetId, id: ComponentId) {
        let rng = &mut self.rng;
        let before = self.server.world[&net].1.components.get(&id);
        let value = match &self.server.layouts[usize::from(id.0)] {
            Layout::Words(fields) => {
                let mut words: Vec<_> = match before {
                    Some(Value::Words(before)) => before.to_vec(),
                    _ => fields.iter().map(|_| rng.u32(..)).collect(),
                };
                for (word, field) in words.iter_mut().zip(fields) {
                    *word = match rng.u8(..4) {
                        0 => *word,
                        1 => rng.u32(..),
                        _ => word.wrapping_add(rng.u32(..5)).wrapping_sub(2),
                    } & field.mask();
                }
                Value::Words(words.into())
            }
            Layout::Bytes => {
                let sizes = [0, 1, 7, 8, 9, 60, 256, 257, 900, 20_000];
                let likely = if rng.u8(..10) == 0 { sizes.len() } else { 6 };
                let size = sizes[rng.usize(..likely)];
                Value::Bytes(vec![rng.u8(..3); size].into())
            }
        };
        self.server.set(net, id, value);
    }
}

fn layout(rng: &mut Rng) -> Layout {
    if rng.bool() {
        return Layout::Bytes;
    }
    let fields = (0..rng.usize(1..=4)).map(|_| {
        let bits = rng.u8(1..=16);
        let field = match rng.u8(..4) {
            0 => Field::opaque(bits),
            1 => Field::wrapping(bits),
            _ => Field::linear(bits),
        };
        let field = if rng.bool() { field.joined() } else { field };
        if rng.bool() { field.at_rest(1) } else { field }
    });
    Layout::Words(fields.collect())
}

fn meta(rng: &mut Rng) -> Meta {
    Meta {
        owner: rng.bool().then(|| rng.u32(..4)),
        predicted_by: [
            PredictedBy::Owner,
            PredictedBy::Everyone,
            PredictedBy::Nobody,
        ][rng.usize(..3)],
    }
}

fn max_bytes(rng: &mut Rng) -> usize {
    [80, 80, 120, 300, 1_100][rng.usize(..5)]
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Names the world that failed.
struct Naming(u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("CONVERGENCE_SEED={} fails", self.0);
        }
    }
}

fn converge(seed: u64) {
    let _naming = Naming(seed);
    Game::random(seed).run();
}

fn run_share(part: u64, parts: u64) {
    if let Some(seed) = variable::<u64>("CONVERGENCE_SEED") {
        if seed % parts == part {
            converge(seed);
        }
        return;
    }
    let cases = variable("CONVERGENCE_CASES").unwrap_or(3_000);
    for seed in (0..cases).filter(|seed| seed % parts == part) {
        converge(seed);
    }
}

#[test]
fn random_worlds_converge_even() {
    run_share(0, 2);
}

#[test]
fn random_worlds_converge_odd() {
    run_share(1, 2);
}

#[test]
fn a_refused_snapshot_is_never_built_upon() {
    let mut pair = Pair::new();
    let nets: Vec<_> = (0..20)
        .map(|_| pair.spawn(PartitionId::GLOBAL, 1.0))
        .collect();
    pair.settle(AMPLE);
    pair.server.despawn(pair.tick, nets[0]);
    pair.set_text(nets[1], TEXT, b"spear");
    let news = pair.encode(AMPLE);
    let part = &news.bytes[..news.bytes.len() - 1];
    let mut changes = Vec::new();
    let outcome = pair.replica.handle_snapshot(pair.tick, part, &mut changes);
    assert!(matches!(outcome, Err(SnapshotError::Malformed(_))));
    assert_eq!(changes, []);
    assert_eq!(pair.count(), 20);

    // What comes next in this epoch is refused as well, and the game keeps what it has.
    let next = pair.encode(AMPLE);
    let outcome = pair
        .replica
        .handle_snapshot(pair.tick, &next.bytes, &mut changes);
    assert_eq!(outcome, Err(SnapshotError::GivenUp));
    assert_eq!(pair.replica.resync_epoch(), Some(pair.view.epoch()));

    pair.view.start_over(&pair.server, pair.tick);
    pair.ack(&next); // of an epoch that is over: it means nothing
    let anew = pair.encode(AMPLE);
    let changes = pair.deliver(&anew);
    assert_eq!(changes.first(), Some(&Change::StartedOver));
    assert_eq!(pair.replica.resync_epoch(), None);
    assert_eq!(pair.count(), 19);
    assert_eq!(pair.text(nets[1], TEXT), Some(b"spear".to_vec()));
    pair.ack(&anew);
    pair.settle(AMPLE);
}

#[test]
fn a_replica_that_is_full_refuses_and_keeps_what_it_has() {
    let mut pair = Pair::new();
    pair.replica = Replica::new(pair.server.layouts().clone(), 3);
    for _ in 0..3 {
        pair.spawn(PartitionId::GLOBAL, 1.0);
    }
    pair.settle(AMPLE);
    let extra = pair.spawn(PartitionId::GLOBAL, 1.0);
    let snapshot = pair.encode(AMPLE);
    let outcome = pair
        .replica
        .handle_snapshot(pair.tick, &snapshot.bytes, &mut Vec::new());
    assert_eq!(outcome, Err(SnapshotError::TooManyEntities(3)));
    assert_eq!(pair.count(), 3);
    pair.server.despawn(pair.tick, extra);
    pair.view.start_over(&pair.server, pair.tick);
    pair.settle(AMPLE);
    assert_eq!(pair.count(), 3);
}

#[test]
fn a_component_that_was_removed_and_inserted_again_is_told_as_both_once() {
    for value in [b"same!", b"other"] {
        let mut pair = Pair::new();
        let net = pair.spawn(PartitionId::GLOBAL, 1.0);
        pair.set_text(net, TEXT, b"same!");
        let late = pair.spawn(PartitionId::GLOBAL, 1.0);
        pair.settle(AMPLE);
        for net in [net, late] {
            pair.server.remove(pair.tick, net, TEXT);
            pair.set_text(net, TEXT, value);
        }
        let anew = [
            Change::Removed(net, TEXT),
            Change::Set(net, TEXT),
            Change::Set(late, TEXT),
        ];
        let first = pair.encode(AMPLE);
        assert_eq!(pair.deliver(&first), anew);
        // Unacknowledged, it is told again.
        let again = pair.encode(AMPLE);
        assert!(again.encoded.entities > 0);
        assert_eq!(pair.deliver(&again), []);
        pair.ack(&again);
        // Changes in place are no insertions.
        pair.set_text(net, TEXT, b"third");
        let third = pair.encode(AMPLE);
        assert_eq!(pair.deliver(&third), [Change::Set(net, TEXT)]);
        // Nor is the whole entity, told again.
        pair.ack(&third);
        let room = pair.server.add_partition();
        pair.see(&[PartitionId::GLOBAL, room]);
        pair.move_to(net, room);
        let moved = pair.encode(AMPLE);
        assert_eq!(pair.deliver(&moved), []);
        // But what happened on the way is.
        pair.server.remove(pair.tick, net, TEXT);
        pair.set_text(net, TEXT, b"third");
        let anew = [Change::Removed(net, TEXT), Change::Set(net, TEXT)];
        let moved = pair.encode(AMPLE);
        assert_eq!(pair.deliver(&moved), anew);
    }
}

/// A world of entities that name each other. Each knows its own number, and that of whom it names.
struct Acquaintances {
    game: Game,
    next_number: u32,
}

impl Acquaintances {
    const NUMBER: ComponentId = ComponentId(0);
    const NAMES: ComponentId = ComponentId(1);

    fn random(seed: u64) -> Self {
        let mut game = Game::random(seed);
        game.server = Server::new(vec![Layout::Bytes; 2], game.server.tick);
        game.join();
        Self {
            game,
            next_number: 0,
        }
    }

    fn operate(&mut self) {
        let Game { rng, server, .. } = &mut self.game;
        let nets: Vec<_> = server.world.keys().copied().collect();
        let any = |rng: &mut Rng| nets.get(rng.usize(..nets.len().max(1))).copied();
        match rng.u8(..10) {
            0..=2 => {
                let net = server.spawn(PartitionId::GLOBAL, Meta::default(), 1.0);
                let number = self.next_number.to_le_bytes().to_vec();
                self.next_number += 1;
                server.set(net, Self::NUMBER, Value::Bytes(number.into()));
            }
            3..=5 => {
                if let Some(net) = any(rng) {
                    server.despawn(net);
                }
            }
            6..=8 => {
                if let (Some(net), Some(named)) = (any(rng), any(rng)) {
                    let Value::Bytes(number) = &server.world[&named].1.components[&Self::NUMBER]
                    else {
                        unreachable!("numbers are bytes")
                    };
                    let mut bytes = number.to_vec();
                    bytes.extend(named.index().to_le_bytes());
                    bytes.extend(named.generation().to_le_bytes());
                    server.set(net, Self::NAMES, Value::Bytes(bytes.into()));
                }
            }
            _ if server.clients.len() < 4 => self.game.join(),
            _ => drop(
                server
                    .clients
                    .swap_remove(rng.usize(..server.clients.len())),
            ),
        }
    }

    /// Whom a copy names is whom the server's entity named when it did.
    fn check(&self) {
        let number_of = |copy: &ReplicaEntity| match copy.value(Self::NUMBER) {
            Some(ValueRef::Bytes(bytes)) => Some(bytes.to_vec()),
            _ => None,
        };
        for client in &self.game.server.clients {
            for (net, copy) in client.replica.entities() {
                let Some(ValueRef::Bytes(names)) = copy.value(Self::NAMES) else {
                    continue;
                };
                let word = |at: usize| u32::from_le_bytes(names[at..at + 4].try_into().unwrap());
                let named = client.replica.entity(NetId::new(word(4), word(8)));
                if let Some(number) = named.and_then(number_of) {
                    assert_eq!(number, names[..4], "{net:?} names a stranger");
                }
            }
        }
    }
}

#[test]
fn references_name_no_strangers_whoever_dies_and_joins() {
    for seed in 0..300 {
        let _naming = Naming(seed);
        let mut world = Acquaintances::random(seed);
        for _ in 0..150 {
            for _ in 0..world.game.rng.u32(0..=4) {
                world.operate();
            }
            if world
                .game
                .server
                .tick
                .0
                .is_multiple_of(world.game.send_interval)
            {
                world.game.server.send();
            }
            world.game.server.exchange();
            world.game.server.tick += Ticks(1);
            world.check();
        }
        world.game.server.settle(1_000);
        world.check();
    }
}

/// One client whose snapshots are delivered and acknowledged by hand.
struct Pair {
    server: Archive,
    view: View,
    replica: Replica,
    tick: Tick,
    seq: u16,
}

/// A snapshot on its way.
struct Snapshot {
    seq: u16,
    bytes: Vec<u8>,
    encoded: Encoded,
    apart: Vec<ApartValue>,
}

const AMPLE: usize = 100_000;
const NUMBER: ComponentId = ComponentId(0);
const TEXT: ComponentId = ComponentId(1);

impl Pair {
    /// The client sees the global partition.
    fn new() -> Self {
        Self::with_layouts(vec![
            Layout::Words([Field::linear(16)].into()),
            Layout::Bytes,
            Layout::Bytes,
            Layout::Bytes,
            Layout::Bytes,
        ])
    }

    fn with_layouts(layouts: Vec<Layout>) -> Self {
        let layouts = Layouts::new(layouts);
        let server = Archive::new(layouts.clone());
        let mut view = View::new(Tick(100));
        view.set_partitions(&server, Tick(100), &[PartitionId::GLOBAL]);
        Self {
            server,
            view,
            replica: Replica::new(layouts, MAX_ENTITIES),
            tick: Tick(100),
            seq: 0,
        }
    }

    fn spawn(&mut self, partition: PartitionId, priority: f32) -> NetId {
        self.server
            .spawn(self.tick, partition, Meta::default(), priority)
    }

    fn set_text(&mut self, net: NetId, component: ComponentId, text: &[u8]) {
        self.server.set_bytes(self.tick, net, component, text);
    }

    fn move_to(&mut self, net: NetId, partition: PartitionId) {
        self.server.move_to(self.tick, net, partition);
    }

    fn see(&mut self, partitions: &[PartitionId]) {
        self.view
            .set_partitions(&self.server, self.tick, partitions);
    }

    /// Ends the tick with a snapshot.
    fn encode(&mut self, max_bytes: usize) -> Snapshot {
        self.seq += 1;
        let budget = SnapshotBudget {
            max_bytes,
            resend_after: Ticks(8),
        };
        let (mut out, mut apart) = (BitWriter::new(), Vec::new());
        let encoded = self.view.encode(
            &self.server,
            self.tick,
            self.seq,
            None,
            budget,
            &mut BlockCache::default(),
            &mut out,
            &mut apart,
        );
        self.tick += Ticks(1);
        Snapshot {
            seq: self.seq,
            bytes: out.finish().to_vec(),
            encoded,
            apart,
        }
    }

    fn deliver(&mut self, snapshot: &Snapshot) -> Vec<Change> {
        let mut changes = Vec::new();
        self.replica
            .handle_snapshot(self.tick, &snapshot.bytes, &mut changes)
            .expect("a snapshot that can be used");
        changes
    }

    fn deliver_messages(&mut self, snapshot: &Snapshot) {
        for value in &snapshot.apart {
            self.replica.handle_apart(value.clone(), &mut Vec::new());
        }
    }

    fn ack(&mut self, snapshot: &Snapshot) {
        self.view.handle_ack(snapshot.seq);
    }

    /// A snapshot that arrives, with its acknowledgement and messages.
    fn exchange(&mut self, max_bytes: usize) -> Snapshot {
        let snapshot = self.encode(max_bytes);
        self.deliver(&snapshot);
        self.deliver_messages(&snapshot);
        self.ack(&snapshot);
        snapshot
    }

    fn settle(&mut self, max_bytes: usize) {
        for _ in 0..1_000 {
            let snapshot = self.exchange(max_bytes);
            if snapshot.encoded.complete && snapshot.encoded.entities == 0 {
                assert_eq!(self.view.exceptions(), 0);
                return;
            }
        }
        panic!("there is always something left to say");
    }

    fn count(&self) -> usize {
        self.replica.entities().count()
    }

    fn text(&self, net: NetId, component: ComponentId) -> Option<Vec<u8>> {
        match self.replica.entity(net)?.value(component)? {
            ValueRef::Bytes(bytes) => Some(bytes.to_vec()),
            ValueRef::Words(_) => None,
        }
    }
}

#[test]
fn news_that_a_later_snapshot_lacks_are_not_taken_for_known() {
    let mut pair = Pair::new();
    let important = pair.spawn(PartitionId::GLOBAL, 10.0);
    let other = pair.spawn(PartitionId::GLOBAL, 1.0);
    pair.settle(AMPLE);
    pair.set_text(important, TEXT, &[1; 100]);
    pair.set_text(other, TEXT, &[1; 100]);
    let _lost = pair.encode(150); // makes an exception of the other
    let first = pair.encode(AMPLE);
    pair.set_text(important, TEXT, &[2; 100]);
    pair.set_text(other, TEXT, &[2; 100]);
    let second = pair.encode(150);
    assert!(!second.encoded.complete, "the other was left out");
    pair.deliver(&first);
    pair.deliver(&second);
    pair.ack(&first);
    pair.ack(&second);
    pair.settle(AMPLE);
    assert_eq!(pair.text(other, TEXT), Some(vec![2; 100]));
}

#[test]
fn what_is_sent_but_lost_is_not_taken_for_known_with_the_next_snapshot() {
    let mut pair = Pair::new();
    let important = pair.spawn(PartitionId::GLOBAL, 10.0);
    let other = pair.spawn(PartitionId::GLOBAL, 1.0);
    pair.settle(AMPLE);
    pair.set_text(important, TEXT, &[1; 100]);
    pair.set_text(other, TEXT, &[1; 100]);
    let _lost = pair.encode(150);
    let first = pair.encode(AMPLE);
    pair.set_text(other, TEXT, &[2; 100]);
    let _lost = pair.encode(AMPLE);
    let third = pair.encode(AMPLE);
    assert!(!third.encoded.complete, "news on their way are not there");
    pair.deliver(&first);
    pair.deliver(&third);
    pair.ack(&first);
    pair.ack(&third);
    pair.settle(AMPLE);
    assert_eq!(pair.text(other, TEXT), Some(vec![2; 100]));
}

#[test]
fn a_despawn_that_an_acknowledged_snapshot_lacks_is_told_again() {
    let mut pair = Pair::new();
    let nets: Vec<_> = (0..60)
        .map(|_| pair.spawn(PartitionId::GLOBAL, 1.0))
        .collect();
    pair.settle(AMPLE);
    for net in nets {
        pair.server.despawn(pair.tick, net);
    }
    let without_all = pair.encode(20);
    let _lost = pair.encode(AMPLE);
    pair.deliver(&without_all);
    pair.ack(&without_all);
    assert_ne!(pair.count(), 0);
    pair.settle(AMPLE);
    assert_eq!(pair.count(), 0);
}

#[test]
fn an_id_is_not_given_out_again_before_its_despawn_is_told() {
    let mut pair = Pair::new();
    let net = pair.spawn(PartitionId::GLOBAL, 1.0);
    pair.settle(AMPLE);
    pair.server.despawn(pair.tick, net);
    pair.tick += Ticks(1);
    let full = pair.exchange(0);
    assert!(!full.encoded.complete);
    pair.server.reclaim(pair.view.forgotten_before());
    let other = pair.spawn(PartitionId::GLOBAL, 1.0);
    assert_ne!(other, net);
    pair.settle(AMPLE);
    assert!(pair.replica.entity(net).is_none());
    pair.server.reclaim(pair.view.forgotten_before());
    let successor = pair.spawn(PartitionId::GLOBAL, 1.0);
    assert_eq!(successor.index(), net.index());
    assert_ne!(successor, net, "but it is another entity");
}

#[test]
fn an_entity_that_comes_back_before_its_leaving_was_told_is_there() {
    let mut pair = Pair::new();
    let elsewhere = pair.server.add_partition();
    let net = pair.spawn(PartitionId::GLOBAL, 1.0);
    pair.settle(AMPLE);
    pair.move_to(net, elsewhere);
    pair.exchange(0); // no room to tell
    pair.move_to(net, PartitionId::GLOBAL);
    pair.settle(AMPLE);
    assert!(pair.replica.entity(net).is_some());
}

#[test]
fn what_is_hidden_while_it_waits_to_be_sent_again_is_taken_away() {
    let mut pair = Pair::new();
    let net = pair.spawn(PartitionId::GLOBAL, 1.0);
    pair.settle(AMPLE);
    pair.view.start_over(&pair.server, pair.tick);
    pair.see(&[]);
    pair.settle(AMPLE);
    assert!(pair.replica.entity(net).is_none());
}

#[test]
fn an_entity_that_moves_between_seen_partitions_stays() {
    for into_global in [true, false] {
        let mut pair = Pair::new();
        let room = pair.server.add_partition();
        let (from, to) = if into_global {
            (room, PartitionId::GLOBAL)
        } else {
            (PartitionId::GLOBAL, room)
        };
        pair.see(&[PartitionId::GLOBAL, room]);
        let net = pair.spawn(from, 1.0);
        pair.settle(AMPLE);
        pair.move_to(net, to);
        let snapshot = pair.encode(AMPLE);
        assert_eq!(pair.deliver(&snapshot), [], "nothing happens to it");
        pair.ack(&snapshot);
        pair.settle(AMPLE);
        assert!(pair.replica.entity(net).is_some());
    }
}

#[test]
fn a_snapshot_is_incomplete_as_long_as_whole_entities_wait() {
    let mut pair = Pair::new();
    let room = pair.server.add_partition();
    for _ in 0..300 {
        pair.spawn(room, 1.0);
    }
    pair.settle(AMPLE);
    pair.see(&[room]);
    loop {
        let snapshot = pair.exchange(AMPLE);
        assert_eq!(snapshot.encoded.complete, pair.count() == 300);
        if pair.count() == 300 {
            break;
        }
    }
}

#[test]
fn a_value_that_goes_apart_only_when_crowded_arrives_either_way() {
    let mut pair = Pair::new();
    let net = pair.spawn(PartitionId::GLOBAL, 1.0);
    for component in 1..=4 {
        pair.set_text(net, ComponentId(component), &[component; 200]);
    }
    for max_bytes in [300, AMPLE, 300] {
        pair.settle(max_bytes);
        for component in 1..=4 {
            let text = pair.text(net, ComponentId(component));
            assert_eq!(text, Some(vec![component; 200]), "with {max_bytes} bytes");
        }
        pair.view.start_over(&pair.server, pair.tick);
    }
}

#[test]
fn a_large_value_may_overtake_the_snapshot_in_which_its_entity_goes_for_a_while() {
    let mut pair = Pair::new();
    let elsewhere = pair.server.add_partition();
    let net = pair.spawn(PartitionId::GLOBAL, 1.0);
    pair.set_text(net, TEXT, &[7; 5_000]);
    pair.settle(AMPLE);
    pair.move_to(net, elsewhere);
    let goes = pair.encode(AMPLE);
    pair.ack(&goes);
    pair.move_to(net, PartitionId::GLOBAL);
    let comes_back = pair.encode(AMPLE);
    pair.deliver_messages(&comes_back);
    pair.deliver(&goes);
    assert_eq!(pair.count(), 0);
    pair.deliver(&comes_back);
    assert_eq!(pair.text(net, TEXT), Some(vec![7; 5_000]));
}

#[test]
fn a_value_whose_message_could_not_be_sent_is_sent_again() {
    let mut pair = Pair::new();
    let net = pair.spawn(PartitionId::GLOBAL, 1.0);
    pair.set_text(net, TEXT, &[7; 5_000]);
    let snapshot = pair.encode(AMPLE);
    for value in &snapshot.apart {
        pair.view.handle_unsent(value, pair.tick);
    }
    pair.deliver(&snapshot);
    pair.ack(&snapshot);
    assert_eq!(pair.text(net, TEXT), None);
    pair.settle(AMPLE);
    assert_eq!(pair.text(net, TEXT), Some(vec![7; 5_000]));
}

#[test]
fn nothing_starves() {
    let mut pair = Pair::new();
    let restless: Vec<_> = (0..40)
        .map(|_| pair.spawn(PartitionId::GLOBAL, 10.0))
        .collect();
    let humble = pair.spawn(PartitionId::GLOBAL, 0.1);
    pair.settle(AMPLE);
    pair.set_text(humble, TEXT, b"at last");
    let newcomer = pair.spawn(PartitionId::GLOBAL, 0.1);
    pair.set_text(newcomer, TEXT, &[1; 250]);
    let goner = pair.spawn(PartitionId::GLOBAL, 0.1);
    pair.server.despawn(pair.tick, goner);
    for round in 0..2_000_u32 {
        for &net in &restless {
            pair.set_text(net, TEXT, &[round as u8; 100]);
        }
        pair.exchange(300);
        if pair.text(humble, TEXT).is_some() && pair.text(newcomer, TEXT).is_some() {
            return;
        }
    }
    panic!("{humble:?} or {newcomer:?} never got a turn");
}

#[test]
fn an_entity_too_large_for_one_snapshot_is_delivered() {
    let mut pair = Pair::new();
    let net = pair.spawn(PartitionId::GLOBAL, 1.0);
    for component in 1..=4 {
        pair.set_text(net, ComponentId(component), &[component; 256]);
    }
    for _ in 0..4 {
        let snapshot = pair.exchange(100);
        assert!(snapshot.bytes.len() <= 100);
    }
    pair.settle(100);
    assert_eq!(pair.text(net, ComponentId(4)), Some(vec![4; 256]));
}

#[test]
fn entities_that_never_fit_are_named_and_block_nobody() {
    let wide = Layout::Words([Field::linear(32); 32].into());
    let mut pair = Pair::with_layouts(vec![wide, Layout::Bytes]);
    for _ in 0..10 {
        let net = pair.spawn(PartitionId::GLOBAL, 10.0);
        pair.server
            .set_words(pair.tick, net, NUMBER, &[u32::MAX; 32]);
    }
    let other = pair.spawn(PartitionId::GLOBAL, 1.0);
    for _ in 0..10 {
        let snapshot = pair.exchange(100);
        assert!(snapshot.bytes.len() <= 100);
        assert!(snapshot.encoded.oversized.is_some());
    }
    assert!(pair.replica.entity(other).is_some());
}

/// An entity that fits a whole snapshot of 100 bytes, but not half of one.
fn broad(pair: &mut Pair) -> NetId {
    let net = pair.spawn(PartitionId::GLOBAL, 1.0);
    pair.server
        .set_words(pair.tick, net, NUMBER, &[u32::MAX; 14]);
    net
}

#[test]
fn an_entity_that_needs_a_snapshot_of_its_own_gets_one_while_others_despawn_in_every_tick() {
    let fields: Vec<_> = (0..14).map(|_| Field::linear(32)).collect();
    let wide = Layout::Words([Field::linear(32); 32].into());
    for is_known_before in [false, true] {
        let mut pair = Pair::with_layouts(vec![Layout::Words(fields.clone().into()), wide.clone()]);
        let known = is_known_before.then(|| {
            let net = pair.spawn(PartitionId::GLOBAL, 1.0);
            pair.server.set_words(pair.tick, net, NUMBER, &[0; 14]);
            net
        });
        let mut crowd: Vec<_> = (0..3_000)
            .map(|_| pair.spawn(PartitionId::GLOBAL, 1.0))
            .collect();
        pair.settle(1_100);
        let broad = known.unwrap_or_else(|| broad(&mut pair));
        pair.server
            .set_words(pair.tick, broad, NUMBER, &[u32::MAX; 14]);
        // And one that fits nowhere.
        let giant = pair.spawn(PartitionId::GLOBAL, 10.0);
        pair.server
            .set_words(pair.tick, giant, TEXT, &[u32::MAX; 32]);
        let mut is_reported = false;
        let mut newcomers = Vec::new();
        for _ in 0..60 {
            for _ in 0..20 {
                let gone = crowd.pop().expect("a large crowd");
                pair.server.despawn(pair.tick, gone);
            }
            newcomers.push(pair.spawn(PartitionId::GLOBAL, 0.5));
            let snapshot = pair.exchange(100);
            assert!(snapshot.bytes.len() <= 100);
            is_reported |= snapshot.encoded.oversized == Some(giant);
            assert_ne!(snapshot.encoded.oversized, Some(broad), "it fits");
        }
        let words = pair
            .replica
            .entity(broad)
            .and_then(|copy| copy.value(NUMBER));
        assert_eq!(words, Some(ValueRef::Words(&[u32::MAX; 14])));
        assert!(is_reported, "what never fits is named");
        let arrived = newcomers
            .iter()
            .filter(|net| pair.replica.entity(**net).is_some());
        assert!(arrived.count() > 40, "nothing else starves");
        assert!(pair.replica.entity(crowd[0]).is_some());
    }
}

#[test]
fn many_that_never_fit_starve_nobody() {
    let wide = Layout::Words([Field::linear(32); 32].into());
    let mut pair = Pair::with_layouts(vec![wide, Layout::Bytes]);
    let giants: Vec<_> = (0..400)
        .map(|_| {
            let net = pair.spawn(PartitionId::GLOBAL, 10.0);
            pair.server
                .set_words(pair.tick, net, NUMBER, &[u32::MAX; 32]);
            net
        })
        .collect();
    let others: Vec<_> = (0..400)
        .map(|_| pair.spawn(PartitionId::GLOBAL, 1.0))
        .collect();
    for _ in 0..100 {
        pair.exchange(100);
    }
    for net in others {
        assert!(pair.replica.entity(net).is_some(), "{net:?} waits");
    }
    // With more room, they come.
    for _ in 0..400 {
        pair.exchange(1_100);
    }
    for net in giants {
        assert!(pair.replica.entity(net).is_some(), "{net:?} waits");
    }
}

#[test]
fn what_one_has_no_room_for_is_still_shared_by_others() {
    let mut pair = Pair::new();
    let nets: Vec<_> = (0..40)
        .map(|_| pair.spawn(PartitionId::GLOBAL, 1.0))
        .collect();
    let mut other = View::new(pair.tick);
    other.set_partitions(&pair.server, pair.tick, &[PartitionId::GLOBAL]);
    let mut narrow = View::new(pair.tick);
    narrow.set_partitions(&pair.server, pair.tick, &[PartitionId::GLOBAL]);
    let budget = |max_bytes| SnapshotBudget {
        max_bytes,
        resend_after: Ticks(8),
    };
    for view in [&mut narrow, &mut other] {
        view.encode(
            &pair.server,
            pair.tick,
            0,
            None,
            budget(AMPLE),
            &mut BlockCache::default(),
            &mut BitWriter::new(),
            &mut Vec::new(),
        );
        view.handle_ack(0);
    }
    pair.tick += Ticks(1);
    for &net in &nets {
        pair.set_text(net, TEXT, &[7; 20]);
    }
    let mut cache = BlockCache::default();
    let mut encode = |view: &mut View, max_bytes| {
        let mut out = BitWriter::new();
        view.encode(
            &pair.server,
            pair.tick,
            1,
            None,
            budget(max_bytes),
            &mut cache,
            &mut out,
            &mut Vec::new(),
        )
    };
    let cut = encode(&mut narrow, 60);
    assert!(!cut.complete);
    let whole = encode(&mut other, AMPLE);
    assert!(whole.complete);
    assert_eq!(whole.entities, 40);
    assert_eq!(cache.shared(), 1, "encoded once for all who have room");
}

#[test]
fn a_client_that_never_acknowledges_makes_nobody_remember_for_ever() {
    let layouts = vec![Layout::Words([Field::linear(16)].into()), Layout::Bytes];
    let mut server = Server::new(layouts, Tick(0));
    let budget = SnapshotBudget {
        max_bytes: 1_100,
        resend_after: Ticks(8),
    };
    let silent = server.join(Link::perfect(), budget, &[PartitionId::GLOBAL]);
    server.join(Link::perfect(), budget, &[PartitionId::GLOBAL]);
    let mut nets: Vec<_> = (0..100)
        .map(|_| server.spawn(PartitionId::GLOBAL, Meta::default(), 1.0))
        .collect();
    server.clients[silent].link.up_until = Tick(u32::MAX / 2);
    let mut most = (0, 0);
    for tick in 0..6_000u32 {
        for _ in 0..2 {
            server.despawn(nets.remove(0));
            let net = server.spawn(PartitionId::GLOBAL, Meta::default(), 1.0);
            server.set(net, NUMBER, Value::Words([tick & 0xffff].into()));
            nets.push(net);
        }
        server.step();
        server.start_over_who_is_behind();
        let now = server.tick;
        let is_recent = |tick: &Tick| now.distance_from(*tick) < 3_000;
        server.past.retain(|tick, _| is_recent(tick));
        for client in &mut server.clients {
            client.saw.retain(|tick, _| is_recent(tick));
        }
        let exceptions = server.clients[silent].view.exceptions();
        most = (most.0.max(server.archive.retired()), most.1.max(exceptions));
    }
    // Two despawns a tick, and 1,200 ticks of patience.
    assert!(most.0 <= 2 * 1_300, "{} ids wait", most.0);
    assert!(most.1 <= 3 * 1_300, "{} exceptions", most.1);
    // What it was shown is right all the same, and it goes on once it answers.
    server.clients[silent].link.up_until = server.tick;
    server.settle(200);
}

#[test]
fn an_idle_world_costs_but_a_header() {
    let mut pair = Pair::new();
    for _ in 0..1_000 {
        let net = pair.spawn(PartitionId::GLOBAL, 1.0);
        pair.server.set_words(pair.tick, net, NUMBER, &[5]);
    }
    pair.settle(1_100);
    let idle = pair.exchange(1_100);
    assert_eq!(idle.encoded.entities, 0);
    assert!(idle.bytes.len() <= 4, "{} bytes", idle.bytes.len());
}
