//! Random and slightly wrong bytes into everything that reads what came from the network.
//!
//! A panic is the failure, or memory out of proportion to the input. `FUZZ_ITERATIONS` sets the number of inputs over
//! all tests (default 300,000):
//!
//!     FUZZ_ITERATIONS=10000000 cargo test --release --test fuzz_decoders
#![allow(unsafe_code, reason = "counts what is allocated")]

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::time::Duration;

use bevy_tandem::protocol::acks::{AckTracker, Header};
use bevy_tandem::protocol::archive::{Archive, PartitionId};
use bevy_tandem::protocol::handshake::{
    Control, DisconnectReason, Hello, Intent, Request, Resumption,
};
use bevy_tandem::protocol::input::{EncodeLimits, InputBuffer, InputHistory, InputMessage};
use bevy_tandem::protocol::layout::{ComponentId, Layout, Layouts, Meta, NetId, PredictedBy};
use bevy_tandem::protocol::reliable::Taken;
use bevy_tandem::protocol::replica::{Replica, SnapshotError, ValueRef};
use bevy_tandem::protocol::resume::ResumeToken;
use bevy_tandem::protocol::view::{ApartValue, BlockCache, SnapshotBudget, View};
use bevy_tandem::session::SessionId;
use bevy_tandem::tick::{Tick, Ticks};
use bevy_tandem::wire::bits::{BitReader, BitWriter};
use bevy_tandem::wire::quantize::{
    AngleCodec, Field, FloatCodec, IntCodec, MAX_WORDS, Quantize, QuatCodec, TransformCodec,
    Vec2Codec, Vec3Codec, read_delta, read_full, write_delta, write_full,
};
use bevy_tandem::wire::serial;
use fastrand::Rng;

/// Counts what the calling thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Threads that end may allocate when their counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        count(memory.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, memory: Memory) {
        count(-(memory.size() as isize));
        // SAFETY: the pointer came from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, memory) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that were held at a time during `work` above what was held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before)
}

/// This test's share of the inputs.
fn iterations() -> u64 {
    let total = std::env::var("FUZZ_ITERATIONS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(300_000);
    total / TESTS
}

/// How many tests share them.
const TESTS: u64 = 6;

/// Tells which iteration panicked.
struct Progress(u64);

impl Drop for Progress {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("panicked at iteration {}", self.0);
        }
    }
}

fn random_bytes(rng: &mut Rng, max_len: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.usize(0..=max_len)];
    rng.fill(&mut bytes);
    bytes
}

/// A few small changes, or none.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.usize(0..5) {
        let len = bytes.len();
        match rng.u8(0..6) {
            0 | 1 if len > 0 => bytes[rng.usize(0..len)] ^= 1 << rng.u8(0..8),
            2 if len > 0 => bytes[rng.usize(0..len)] = rng.u8(..),
            3 => bytes.truncate(rng.usize(0..=len)),
            4 => bytes.extend(random_bytes(rng, 20)),
            5 if len > 1 => {
                let from = rng.usize(0..len);
                let until = rng.usize(from..=len.min(from + 8));
                bytes[from..until].fill([0, 0xff][rng.usize(0..2)]);
            }
            _ => {}
        }
    }
}

fn layouts() -> Layouts {
    Layouts::new([
        Layout::Words(TransformCodec::default().fields().into()),
        Layout::Bytes,
        Layout::Words([Field::linear(7), Field::opaque(3).joined()].into()),
        Layout::Words([Field::linear(1).at_rest(0)].into()),
        Layout::Bytes,
    ])
}

const MAX_ENTITIES: usize = 3_000;
/// As many bytes as a datagram may carry.
const DATAGRAM: usize = 1_200;

/// Snapshots as a server would send them, from the first on.
fn snapshots(rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut archive = Archive::new(layouts());
    let room = archive.add_partition();
    let mut view = View::new(Tick(0));
    view.set_partitions(&archive, Tick(0), &[PartitionId::GLOBAL, room]);
    let mut nets: Vec<NetId> = Vec::new();
    let mut snapshots = Vec::new();
    for number in 1..60_u16 {
        let tick = Tick(number.into());
        for _ in 0..rng.usize(0..20) {
            if nets.is_empty() || rng.u8(0..3) == 0 {
                let meta = Meta {
                    owner: rng.bool().then(|| rng.u32(..)),
                    predicted_by: PredictedBy::Everyone,
                };
                let partition = [PartitionId::GLOBAL, room][rng.usize(0..2)];
                nets.push(archive.spawn(tick, partition, meta, 1.0));
                continue;
            }
            let index = rng.usize(0..nets.len());
            let net = nets[index];
            match rng.u8(0..12) {
                0 => {
                    archive.despawn(tick, net);
                    nets.swap_remove(index);
                }
                1 => archive.move_to(tick, net, PartitionId::GLOBAL),
                2 => archive.remove(tick, net, ComponentId(rng.u8(0..5))),
                3..=4 => {
                    let text = random_bytes(rng, 300);
                    archive.set_bytes(tick, net, ComponentId([1, 4][rng.usize(0..2)]), &text);
                }
                5 => archive.set_words(tick, net, ComponentId(3), &[rng.u32(0..2)]),
                6..=8 => {
                    let words = [rng.u32(0..128), rng.u32(0..8)];
                    archive.set_words(tick, net, ComponentId(2), &words);
                }
                _ => {
                    let fields = TransformCodec::default().fields();
                    let words: Vec<_> = fields.iter().map(|f| rng.u32(..) & f.mask()).collect();
                    archive.set_words(tick, net, ComponentId(0), &words);
                }
            }
        }
        let budget = SnapshotBudget {
            max_bytes: [100, 1_100][rng.usize(0..2)],
            resend_after: Ticks(3),
        };
        let mut out = BitWriter::new();
        view.encode(
            &archive,
            tick,
            number,
            None,
            budget,
            &mut BlockCache::default(),
            &mut out,
            &mut Vec::new(),
        );
        if rng.bool() {
            view.handle_ack(number);
        }
        snapshots.push(out.finish().to_vec());
    }
    snapshots
}

#[test]
fn snapshots_neither_panic_nor_make_the_client_hold_much() {
    let mut rng = Rng::with_seed(1);
    let mut corpus = Vec::new();
    let mut replica = Replica::new(layouts(), MAX_ENTITIES);
    let mut progress = Progress(0);
    let mut taken = 0_u64;
    for iteration in 0..iterations() {
        progress.0 = iteration;
        if iteration % 4_000 == 0 {
            corpus = snapshots(&mut rng);
        }
        if iteration % 100 == 0 {
            replica = Replica::new(layouts(), MAX_ENTITIES);
            for snapshot in &corpus[..rng.usize(0..40)] {
                let _ = replica.handle_snapshot(Tick(0), snapshot, &mut Vec::new());
            }
        }
        let mut bytes = match rng.u8(0..4) {
            0 => random_bytes(&mut rng, DATAGRAM),
            _ => corpus[rng.usize(0..corpus.len())].clone(),
        };
        mutate(&mut rng, &mut bytes);
        bytes.truncate(DATAGRAM);
        if let Some(newest) = replica.newest()
            && let Some(start) = bytes.first_chunk_mut::<2>()
            && rng.u8(0..10) > 0
        {
            *start = ((newest.0 + 1 + rng.u32(0..3)) as u16).to_le_bytes();
        }
        // After one that was refused, only those of another epoch are read.
        if let Some(given_up) = replica.resync_epoch()
            && let Some(byte) = bytes.get_mut(2)
            && rng.u8(0..10) > 0
        {
            *byte = (*byte & 0xf0) | ((given_up + 1) % 16);
        }
        let (outcome, peak) = peak_of(|| {
            let mut changes = Vec::new();
            replica.handle_snapshot(Tick(0), &bytes, &mut changes)
        });
        taken += u64::from(outcome.is_ok());
        assert!(
            peak < 200_000,
            "{} bytes made the client hold {peak}: {outcome:?}",
            bytes.len()
        );
        let mut values = 0;
        for (net, copy) in replica.entities() {
            assert!(copy.values().count() <= 5);
            assert!(replica.confirmed(net).is_some());
            values += copy.values().count();
        }
        assert!(replica.entities().count() <= MAX_ENTITIES && values <= 5 * MAX_ENTITIES);
    }
    assert!(
        taken > iterations() / 20,
        "mutation leaves some as they were"
    );
}

/// The densest snapshots that there are: entities of nothing, and of components at rest.
#[test]
fn the_densest_snapshots_make_the_client_hold_some_hundred_bytes_a_byte() {
    let at_rest = || Layout::Words([Field::linear(1).at_rest(0)].into());
    for (components, entities) in [(0, 3_000), (1, 3_000), (5, 3_000), (255, 30)] {
        let layouts = Layouts::new((0..components).map(|_| at_rest()));
        let mut archive = Archive::new(layouts.clone());
        for _ in 0..entities {
            let net = archive.spawn(Tick(1), PartitionId::GLOBAL, Meta::default(), 1.0);
            for component in 0..components {
                archive.set_words(Tick(1), net, ComponentId(component), &[0]);
            }
        }
        let mut view = View::new(Tick(0));
        // Not as entities that came into view, which would be sent by and by.
        view.set_partitions(
            &Archive::new(layouts.clone()),
            Tick(0),
            &[PartitionId::GLOBAL],
        );
        let budget = SnapshotBudget {
            max_bytes: DATAGRAM,
            resend_after: Ticks(3),
        };
        let mut out = BitWriter::new();
        let mut cache = BlockCache::default();
        let encoded = view.encode(
            &archive,
            Tick(2),
            0,
            None,
            budget,
            &mut cache,
            &mut out,
            &mut Vec::new(),
        );
        let bytes = out.finish();
        let mut replica = Replica::new(layouts, 100_000);
        let mut changes = Vec::with_capacity(20_000);
        let (outcome, peak) = peak_of(|| replica.handle_snapshot(Tick(0), bytes, &mut changes));
        outcome.expect("a valid snapshot");
        println!(
            "{} entities of {components} components in {} bytes: {peak} bytes held",
            encoded.entities,
            bytes.len()
        );
        assert!(peak < 400_000, "{components} components: {peak} bytes");
    }
}

#[test]
fn large_values_neither_panic_nor_pile_up() {
    let mut rng = Rng::with_seed(2);
    let corpus = snapshots(&mut rng);
    let mut replica = Replica::new(layouts(), MAX_ENTITIES);
    let mut progress = Progress(0);
    let before = HELD.get();
    for iteration in 0..iterations() {
        progress.0 = iteration;
        if let Some(snapshot) = corpus.get(iteration as usize / 3) {
            let _ = replica.handle_snapshot(Tick(0), snapshot, &mut Vec::new());
        }
        let value = ApartValue {
            net: NetId::new(rng.u32(0..5_000), rng.u32(0..2)),
            component: ComponentId(rng.u8(..)),
            version: rng.u32(0..70),
            bytes: random_bytes(&mut rng, 400).into(),
        };
        replica.handle_apart(value, &mut Vec::new());
    }
    let held = HELD.get() - before;
    assert!(held < 24 << 20, "{held} bytes are held");
}

#[test]
fn acknowledgements_never_panic() {
    let mut rng = Rng::with_seed(3);
    let mut tracker = AckTracker::new();
    let mut now = Duration::ZERO;
    let mut progress = Progress(0);
    for iteration in 0..iterations() {
        progress.0 = iteration;
        now += Duration::from_millis(rng.u64(0..50));
        let sent = tracker.next_header(now);
        let mut bytes = match rng.u8(0..3) {
            0 => random_bytes(&mut rng, 12),
            _ => Header {
                seq: sent.seq.wrapping_add(rng.u16(0..4)),
                ack: sent.seq.wrapping_sub(rng.u16(0..40)),
                ack_bits: rng.u32(..),
                ack_delay_ms: rng.u8(..),
            }
            .encode()
            .to_vec(),
        };
        mutate(&mut rng, &mut bytes);
        if let Some((header, _)) = Header::decode(&bytes) {
            let mut told = 0;
            tracker.handle_header(now, header, |_| told += 1);
            assert!(told <= 512, "{told} deliveries from one datagram");
            assert!((0.0..=1.0).contains(&tracker.loss_ratio()));
        }
    }
}

#[test]
fn inputs_neither_panic_nor_pile_up() {
    let mut rng = Rng::with_seed(4);
    let mut history = InputHistory::new();
    let mut buffer = InputBuffer::default();
    let mut tick = Tick(u32::MAX - 50_000);
    let mut progress = Progress(0);
    let before = HELD.get();
    for iteration in 0..iterations() {
        progress.0 = iteration;
        tick += Ticks(1);
        let input = random_bytes(&mut rng, 12);
        history.push(tick, &input).expect("short enough");
        let mut message = Vec::new();
        if rng.u8(0..4) == 0 {
            message = random_bytes(&mut rng, 600);
        } else {
            history.encode(&mut message, EncodeLimits::default());
            mutate(&mut rng, &mut message);
        }
        if let Ok(message) = InputMessage::parse(&message, tick) {
            let mut count = 0;
            message.for_each(|_, input| {
                assert!(input.len() <= 255);
                count += 1;
            });
            assert_eq!(count, message.count());
        }
        let _ = buffer.receive(tick, &message);
        buffer.take(tick + Ticks(1));
    }
    let held = HELD.get() - before;
    assert!(held < 100_000, "{held} bytes are held");
}

#[test]
fn bits_and_quantised_values_never_panic() {
    let mut rng = Rng::with_seed(5);
    let mut progress = Progress(0);
    for iteration in 0..iterations() {
        progress.0 = iteration;
        let count = rng.usize(1..=MAX_WORDS);
        let fields: Vec<_> = (0..count).map(|_| field(&mut rng)).collect();
        let mut words = || -> Vec<u32> {
            let words = fields.iter().map(|field| rng.u32(..) & field.mask());
            words.collect()
        };
        let (base, new) = (words(), words());
        let mut out = BitWriter::new();
        write_full(&fields, &new, &mut out);
        write_delta(&fields, &base, &new, &mut out);
        let mut bytes = out.finish().to_vec();
        if rng.bool() {
            bytes = random_bytes(&mut rng, 80);
        }
        mutate(&mut rng, &mut bytes);
        let mut input = BitReader::new(&bytes);
        let mut read = vec![0; count];
        let _ = read_full(&fields, &mut read, &mut input);
        assert!(read.iter().zip(&fields).all(|(w, f)| *w <= f.mask()));
        let _ = read_delta(&fields, &base, &mut read, &mut input);
        assert!(read.iter().zip(&fields).all(|(w, f)| *w <= f.mask()));
        read_anything(&mut rng, &bytes);
        dequantize_anything(&mut rng);
    }
}

fn field(rng: &mut Rng) -> Field {
    let bits = rng.u8(1..=32);
    let field = [Field::linear, Field::wrapping, Field::opaque][rng.usize(0..3)](bits);
    let field = if rng.bool() { field.joined() } else { field };
    if rng.bool() {
        return field;
    }
    field.at_rest(rng.u32(..) & field.mask())
}

fn read_anything(rng: &mut Rng, bytes: &[u8]) {
    let mut input = BitReader::new(bytes);
    for _ in 0..rng.usize(0..40) {
        let before = input.remaining_bits();
        match rng.u8(0..5) {
            0 => drop(input.read_bit()),
            1 => drop(input.read_bits(rng.u32(0..=32))),
            2 => drop(input.read_exp_golomb(rng.u32(0..32))),
            3 => drop(input.read_signed_exp_golomb(rng.u32(0..32))),
            _ => {
                let len = [rng.usize(0..20), usize::MAX][rng.usize(0..2)];
                drop(input.read_bytes(len));
            }
        }
        assert!(input.remaining_bits() <= before);
    }
}

fn dequantize_anything(rng: &mut Rng) {
    fn check<T, Q: Quantize<T>>(rng: &mut Rng, codec: &Q) -> T {
        let fields = codec.fields();
        let words: Vec<_> = fields.iter().map(|f| rng.u32(..) & f.mask()).collect();
        let value = codec.dequantize(&words);
        let mut again = vec![0; words.len()];
        codec.quantize(&value, &mut again);
        assert!(again.iter().zip(&fields).all(|(w, f)| *w <= f.mask()));
        value
    }
    match rng.u8(0..7) {
        0 => assert!(check(rng, &TransformCodec::default()).is_finite()),
        1 => assert!(check(rng, &QuatCodec::new(9)).is_finite()),
        2 => assert!(check(rng, &Vec3Codec::new(100.0, 0.01)).is_finite()),
        3 => assert!(check(rng, &Vec2Codec::new(100.0, 0.01)).is_finite()),
        4 => assert!(check(rng, &FloatCodec::new(-1.0, 2.0, 0.01)).is_finite()),
        5 => assert!((-7..=90).contains(&check(rng, &IntCodec::new(-7_i32, 90)))),
        _ => drop::<f32>(check(rng, &AngleCodec::new(11))),
    }
}

#[test]
fn handshakes_neither_panic_nor_make_anyone_hold_much() {
    let mut rng = Rng::with_seed(6);
    let mut progress = Progress(0);
    for iteration in 0..iterations() {
        progress.0 = iteration;
        let mut bytes = Vec::new();
        let encoded = match rng.u8(0..8) {
            0 => {
                bytes = random_bytes(&mut rng, 200);
                Ok(())
            }
            1 => serial::encode(
                &Hello {
                    wire_version: rng.u32(..),
                    fingerprint: rng.u64(..),
                    name: "Ada".into(),
                    game_version: String::new(),
                    platform: "linux".into(),
                    credentials: Vec::new(),
                    intent: Intent::Join,
                },
                &mut bytes,
            ),
            2 => serial::encode(
                &Control::Welcome {
                    session: SessionId(rng.u32(..)),
                    tick: Tick(rng.u32(..)),
                    tick_rate_hz: 60.0,
                    token: ResumeToken {
                        session: rng.u32(..),
                        secret: [rng.u8(..); 32],
                    },
                    resumption: rng.bool().then(|| Resumption {
                        taken: Taken {
                            next: [rng.u32(..), rng.u32(..)],
                        },
                        first_kept: [rng.u32(..), rng.u32(..)],
                        lost: rng.u64(..),
                    }),
                },
                &mut bytes,
            ),
            3 => serial::encode(
                &Control::Mismatch {
                    wire_version: 1,
                    registrations: vec!["component Health".into(); rng.usize(0..5)],
                },
                &mut bytes,
            ),
            4..=5 => serial::encode(
                &Control::Value {
                    net: rng.u32(..),
                    generation: rng.u32(0..3),
                    component: rng.u8(..),
                    version: rng.u32(..),
                    bytes: random_bytes(&mut rng, 100).into(),
                },
                &mut bytes,
            ),
            6 => serial::encode(
                &DisconnectReason::ProtocolMismatch {
                    position: rng.usize(..),
                    server: "component Health".into(),
                    client: "nothing".into(),
                },
                &mut bytes,
            ),
            _ => serial::encode(&DisconnectReason::Kicked("go".into()), &mut bytes),
        };
        encoded.expect("small enough");
        mutate(&mut rng, &mut bytes);
        let ((), peak) = peak_of(|| {
            let _ = serial::decode::<Hello>(&bytes);
            let _ = serial::decode::<Control>(&bytes);
            let _ = serial::decode::<DisconnectReason>(&bytes);
            let _ = serial::decode::<Request>(&bytes);
        });
        // For a moment: a string's length is believed up to the codec's limit before the bytes behind it are seen.
        let most = 17 * serial::MAX_VALUE_BYTES as isize;
        assert!(peak < most, "{} bytes made us hold {peak}", bytes.len());
    }
}

#[test]
fn a_value_as_it_was_read_is_the_one_that_was_written() {
    let mut rng = Rng::with_seed(7);
    let corpus = snapshots(&mut rng);
    let mut replica = Replica::new(layouts(), MAX_ENTITIES);
    let mut words = 0;
    for snapshot in &corpus {
        match replica.handle_snapshot(Tick(0), snapshot, &mut Vec::new()) {
            Ok(_) => {}
            Err(SnapshotError::MissingBaseline) => replica = Replica::new(layouts(), MAX_ENTITIES),
            Err(error) => panic!("the corpus is valid: {error}"),
        }
        let values = replica.entities().flat_map(|(_, copy)| copy.values());
        let is_words = |value: &(_, ValueRef)| matches!(value.1, ValueRef::Words(_));
        words = words.max(values.filter(is_words).count());
    }
    assert!(words > 10);
}
