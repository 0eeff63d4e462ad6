//! What snapshots cost: on the server to note changes and to write them for its clients, on a client to read them.
//!
//!     cargo bench --bench snapshot
//!
//! Entities have a quantised transform and a serialised component of four bytes; `dirty` is the share of them that
//! moves in every tick. Clients acknowledge after four ticks, as at a round trip of about 70 ms.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;

use bevy::math::Vec3;
use bevy::transform::components::Transform;
use bevy_tandem::protocol::archive::{Archive, PartitionId};
use bevy_tandem::protocol::layout::{ComponentId, Layout, Layouts, Meta, NetId};
use bevy_tandem::protocol::replica::Replica;
use bevy_tandem::protocol::view::{BlockCache, SnapshotBudget, View};
use bevy_tandem::tick::{Tick, Ticks};
use bevy_tandem::wire::bits::BitWriter;
use bevy_tandem::wire::quantize::{Field, Quantize, TransformCodec};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const TRANSFORM: ComponentId = ComponentId(0);
const HEALTH: ComponentId = ComponentId(1);
/// Ticks until an acknowledgement is here.
const ROUND_TRIP: u32 = 4;
/// What fits a datagram.
const DATAGRAM: usize = 1_100;
const UNLIMITED: usize = 1 << 30;

/// A world, and how much of it moves.
#[derive(Clone, Copy)]
struct Load {
    entities: u32,
    dirty_percent: u32,
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{:>5} entities, {:>3} % dirty",
            self.entities, self.dirty_percent
        )
    }
}

fn loads() -> Vec<Load> {
    let dirty = |entities| {
        [0, 1, 10, 100].map(|dirty_percent| Load {
            entities,
            dirty_percent,
        })
    };
    [10, 100, 1_000, 10_000].map(dirty).concat()
}

/// Worlds with more news than a datagram holds.
fn crowded_loads() -> Vec<Load> {
    let mut loads = loads();
    loads.retain(|load| load.entities * load.dirty_percent / 100 >= 1_000);
    loads
}

/// A server's archive whose entities move.
struct World {
    archive: Archive,
    nets: Vec<NetId>,
    at: Vec<Transform>,
    codec: TransformCodec,
    fields: Vec<Field>,
    load: Load,
    tick: Tick,
    random: fastrand::Rng,
}

impl World {
    fn new(load: Load) -> Self {
        let codec = TransformCodec::default();
        let fields = codec.fields();
        let layouts = [Layout::Words(fields.clone().into()), Layout::Bytes];
        let mut random = fastrand::Rng::with_seed(1);
        let at: Vec<_> = (0..load.entities)
            .map(|_| Transform::from_translation(Vec3::splat(1_000.0 * (random.f32() - 0.5))))
            .collect();
        let mut world = Self {
            archive: Archive::new(Layouts::new(layouts)),
            nets: Vec::new(),
            at,
            codec,
            fields,
            load,
            tick: Tick(1),
            random,
        };
        for index in 0..load.entities as usize {
            let net = world
                .archive
                .spawn(world.tick, PartitionId::GLOBAL, Meta::default(), 1.0);
            world.nets.push(net);
            world.store(index);
            world.archive.set_bytes(world.tick, net, HEALTH, &[100; 4]);
        }
        world
    }

    fn layouts(&self) -> Layouts {
        Layouts::new([Layout::Words(self.fields.clone().into()), Layout::Bytes])
    }

    fn store(&mut self, index: usize) {
        let mut words = [0; 32];
        let words = &mut words[..self.fields.len()];
        self.codec.quantize(&self.at[index], words);
        self.archive
            .set_words(self.tick, self.nets[index], TRANSFORM, words);
    }

    /// A tick in which the same entities as ever move on.
    fn advance(&mut self) {
        self.tick += Ticks(1);
        let moving = (self.load.entities * self.load.dirty_percent).div_ceil(100);
        for index in 0..moving as usize {
            let step = Vec3::new(self.random.f32(), 0.0, self.random.f32());
            self.at[index].translation += step - Vec3::splat(0.5);
            self.store(index);
        }
        let oldest = self.tick - Ticks(64);
        self.archive.forget(|_| oldest);
    }
}

/// A client that has everything up to the world's tick.
fn settled(world: &World) -> View {
    let mut view = View::new(world.tick);
    let mut out = BitWriter::new();
    view.set_partitions(&world.archive, world.tick, &[PartitionId::GLOBAL]);
    let mut seq = 0;
    while view.exceptions() > 0 {
        out.clear();
        encode(
            &mut view,
            world,
            seq,
            UNLIMITED,
            &mut BlockCache::default(),
            &mut out,
        );
        view.handle_ack(seq);
        seq += 1;
    }
    view
}

fn encode(
    view: &mut View,
    world: &World,
    seq: u16,
    max_bytes: usize,
    cache: &mut BlockCache,
    out: &mut BitWriter,
) {
    let budget = SnapshotBudget {
        max_bytes,
        resend_after: Ticks(ROUND_TRIP + 2),
    };
    let mut apart = Vec::new();
    view.encode(
        &world.archive,
        world.tick,
        seq,
        None,
        budget,
        cache,
        out,
        &mut apart,
    );
}

/// Every client's snapshot of one tick.
fn encode_for_all(bencher: Bencher, load: Load, clients: usize, baselines: u32) {
    let mut world = World::new(load);
    let mut views = Vec::new();
    for index in 0..clients as u32 {
        if index < baselines {
            world.advance();
        }
        views.push(settled(&world));
    }
    for _ in 0..ROUND_TRIP {
        world.advance();
    }
    let mut cache = BlockCache::default();
    let mut out = BitWriter::new();
    bencher.counter(ItemsCount::new(clients)).bench_local(|| {
        cache.clear();
        for view in &mut views {
            out.clear();
            encode(view, &world, 0, UNLIMITED, &mut cache, &mut out);
            black_box(out.finish());
        }
    });
}

/// All clients have acknowledged the same snapshot, as on good links.
#[divan::bench(args = loads(), consts = [1, 10, 100], max_time = 0.3)]
fn encode_same_baseline<const CLIENTS: usize>(bencher: Bencher, load: Load) {
    encode_for_all(bencher, load, CLIENTS, 1);
}

/// Up to 32 different snapshots were acknowledged: the worst that links can do.
#[divan::bench(args = loads(), consts = [10, 100], max_time = 0.3)]
fn encode_other_baselines<const CLIENTS: usize>(bencher: Bencher, load: Load) {
    encode_for_all(bencher, load, CLIENTS, 32);
}

/// Snapshots are cut to 1,100 bytes, so that each client has bookkeeping of its own. One tick, per client.
#[divan::bench(args = crowded_loads(), max_time = 0.5, sample_size = 1)]
fn encode_crowded(bencher: Bencher, load: Load) {
    let mut world = World::new(load);
    let view = settled(&world);
    world.advance();
    let state = RefCell::new((world, view, 0_u16, VecDeque::new()));
    let mut cache = BlockCache::default();
    let mut out = BitWriter::new();
    let tick = || {
        let (world, view, seq, in_flight) = &mut *state.borrow_mut();
        world.advance();
        *seq = seq.wrapping_add(1);
        in_flight.push_back(*seq);
        if in_flight.len() > ROUND_TRIP as usize
            && let Some(acked) = in_flight.pop_front()
        {
            view.handle_ack(acked);
        }
    };
    bencher.with_inputs(tick).bench_local_values(|()| {
        let (world, view, seq, _) = &mut *state.borrow_mut();
        cache.clear();
        out.clear();
        encode(view, world, *seq, DATAGRAM, &mut cache, &mut out);
        out.finish().len()
    });
}

/// A client takes the next snapshot, whole however large.
#[divan::bench(args = loads(), max_time = 0.3, sample_size = 1)]
fn decode(bencher: Bencher, load: Load) {
    let mut world = World::new(load);
    let mut view = View::new(world.tick);
    view.set_partitions(&world.archive, world.tick, &[PartitionId::GLOBAL]);
    let replica = RefCell::new(Replica::new(world.layouts(), 1 << 18));
    let mut in_flight = VecDeque::new();
    let mut seq = 0_u16;
    let mut next = || {
        seq = seq.wrapping_add(1);
        world.advance();
        let mut out = BitWriter::new();
        encode(
            &mut view,
            &world,
            seq,
            UNLIMITED,
            &mut BlockCache::default(),
            &mut out,
        );
        in_flight.push_back(seq);
        if in_flight.len() > ROUND_TRIP as usize
            && let Some(acked) = in_flight.pop_front()
        {
            view.handle_ack(acked);
        }
        out.finish().to_vec()
    };
    for _ in 0..80 {
        let snapshot = next();
        let taken = replica
            .borrow_mut()
            .handle_snapshot(Tick(0), &snapshot, &mut Vec::new());
        taken.expect("a valid snapshot");
    }
    let mut changes = Vec::new();
    bencher.with_inputs(next).bench_local_values(|snapshot| {
        changes.clear();
        replica
            .borrow_mut()
            .handle_snapshot(Tick(0), &snapshot, &mut changes)
    });
}

/// What changed in a tick is noted: quantised values compared with those before and remembered.
#[divan::bench(args = loads(), max_time = 0.3)]
fn note_changes(bencher: Bencher, load: Load) {
    let mut world = World::new(load);
    for _ in 0..80 {
        world.advance();
    }
    bencher.bench_local(|| world.advance());
}
