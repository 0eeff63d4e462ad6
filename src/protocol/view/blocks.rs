//! What of a snapshot is the same for all clients with the same baseline, and the bits of one entity.

use bevy::platform::collections::HashMap;

use super::Knowledge;
use super::encode::{Candidate, MAX_INLINE_BYTES, Pass};
use crate::protocol::archive::{Archive, PartitionId, Record, StoredValue};
use crate::protocol::layout::{ComponentId, History, Layout, NetId};
use crate::protocol::snapshot::{self, Base, BytesValue, IdCoder};
use crate::tick::Tick;
use crate::wire::bits::{BitWriter, Bits};

/// What clients share while a tick is encoded: the blocks of all with the same baseline, and scratch memory.
///
/// Clear it when the archive changes.
#[derive(Debug, Default)]
pub struct BlockCache {
    blocks: HashMap<(PartitionId, Tick), Shared>,
    pub(super) gone: Vec<NetId>,
    pub(super) updates: Vec<Candidate>,
    pub(super) in_turn: Vec<NetId>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) large: Vec<ComponentId>,
}

/// What clients with the same baseline are sent of a partition.
#[derive(Debug)]
enum Shared {
    Block(Block),
    /// Longer than so many bits, which was all that somebody had room for. Others may have more.
    LongerThan(usize),
    /// A value of it travels apart, and to whom it was sent is a client's own matter.
    Never,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) bits: Bits,
    pub(super) entities: usize,
}

impl BlockCache {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.blocks.clear();
    }

    /// How many blocks can be shared.
    pub fn shared(&self) -> usize {
        let is_block = |shared: &&Shared| matches!(shared, Shared::Block(_));
        self.blocks.values().filter(is_block).count()
    }
}

impl BlockCache {
    /// The block of a partition for clients with this baseline, or `None` if it cannot be shared.
    #[inline]
    pub(super) fn block(
        &mut self,
        pass: Pass,
        partition: PartitionId,
        baseline: Tick,
    ) -> Option<&Block> {
        let encode = || Block::encode(pass, partition, baseline);
        let shared = self
            .blocks
            .entry((partition, baseline))
            .or_insert_with(encode);
        if matches!(shared, Shared::LongerThan(end) if pass.end > *end) {
            *shared = encode();
        }
        match shared {
            Shared::Block(block) => Some(block),
            Shared::LongerThan(_) | Shared::Never => None,
        }
    }
}

impl Block {
    fn encode(pass: Pass, partition: PartitionId, baseline: Tick) -> Shared {
        let archive = pass.archive;
        let mut gone: Vec<_> = archive.tombstones_since(partition, baseline).collect();
        gone.sort_unstable();
        gone.dedup();
        let mut changed: Vec<_> = archive.changed_since(partition, baseline).collect();
        changed.sort_unstable_by_key(|&(net, _)| net);
        let entities = gone.len() + changed.len();
        let mut out = BitWriter::new();
        if entities == 0 {
            return Shared::Block(Self {
                bits: out.take(),
                entities,
            });
        }
        let mut ids = IdCoder::default();
        out.write_bit(true);
        for &net in &gone {
            out.write_bit(true);
            ids.write(net, &mut out);
        }
        out.write_bit(false);
        let mut ids = IdCoder::default();
        let mut is_shareable = true;
        for &(net, record) in &changed {
            let base = Knowledge::StateOf(baseline).base(record, baseline);
            out.write_bit(true);
            ids.write(net, &mut out);
            base.write(pass.tick, &mut out);
            write_record(
                archive,
                net,
                record,
                base,
                pass.tick,
                baseline,
                &mut out,
                |_, bytes| {
                    is_shareable &= bytes.len() <= MAX_INLINE_BYTES;
                    false
                },
            );
            if !is_shareable {
                return Shared::Never;
            }
            if out.bit_len() > pass.end {
                return Shared::LongerThan(pass.end);
            }
        }
        out.write_bit(false);
        Shared::Block(Self {
            bits: out.take(),
            entities,
        })
    }
}

/// Writes what a client that knows `base` has to be told of an entity.
///
/// `goes_apart` decides which serialised values are only announced.
pub(super) fn write_record(
    archive: &Archive,
    net: NetId,
    record: &Record,
    base: Base,
    tick: Tick,
    baseline: Tick,
    out: &mut BitWriter,
    mut goes_apart: impl FnMut(ComponentId, &[u8]) -> bool,
) {
    let known = match base {
        Base::Nothing => None,
        Base::Snapshot => Some(baseline),
        Base::Own(tick) => Some(tick),
    };
    let structure_is_known =
        known.is_some_and(|known| !record.structure_changed.is_newer_than(known));
    match known {
        None => snapshot::write_generation(net, out),
        Some(_) => out.write_bit(!structure_is_known),
    }
    if !structure_is_known {
        let ids = record.components.iter().map(|stored| stored.id);
        snapshot::write_structure(record.meta, ids, out);
    }
    // What came with the entity needs no telling.
    let known_insertions = known.unwrap_or(record.spawned);
    for stored in &record.components {
        if let Some(known) = known {
            let is_new = stored.changed.is_newer_than(known);
            out.write_bit(is_new);
            if !is_new {
                continue;
            }
        }
        if !structure_is_known {
            let is_news = stored.inserted.is_newer_than(known_insertions);
            snapshot::write_age(is_news.then_some(stored.inserted), tick, out);
        }
        match &stored.value {
            StoredValue::Words(history) => write_words(archive, stored.id, history, known, out),
            StoredValue::Bytes(bytes) if goes_apart(stored.id, bytes) => {
                let version = stored.changed.0;
                BytesValue::Apart { version }.write(out);
            }
            StoredValue::Bytes(bytes) => BytesValue::Inline(&bytes[..]).write(out),
        }
    }
}

/// Writes quantised words: what has changed in them since `known`, or all.
#[inline]
fn write_words(
    archive: &Archive,
    component: ComponentId,
    history: &History,
    known: Option<Tick>,
    out: &mut BitWriter,
) {
    let Some(Layout::Words(fields)) = archive.layouts().get(component) else {
        unreachable!("words are only stored for components whose layout is words");
    };
    let words = history.last().unwrap_or_default();
    // A component that was removed and added again has no history from before.
    let base = known.and_then(|known| history.at(known));
    if known.is_some() {
        out.write_bit(base.is_none());
    }
    match base {
        Some(base) => fields.write_delta(base, words, out),
        None => fields.write_full(words, out),
    }
}
