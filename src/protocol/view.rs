//! What one client knows, and what to tell it next.
//!
//! A client that acknowledged everything up to a snapshot has one number as its baseline. Entities of which it knows
//! more or less than that (because a byte budget cut a snapshot, or because they just came into view) are its
//! *exceptions*, with bookkeeping of their own until an acknowledgement levels them again. The invariant:
//!
//! > An entity that is no exception is known to the client as it was at `baseline`.
//!
//! When the snapshot of tick T is acknowledged, the baseline becomes T: everything that had changed and was not in
//! that snapshot was made an exception when it was left out.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use smallvec::SmallVec;

use super::archive::{Archive, PartitionId, Record, StoredValue};
use super::layout::{ComponentId, Layout, NetId};
use super::snapshot::{self, Base, BytesValue, IdCoder, InputReport, SnapshotHeader};
use crate::tick::{Tick, Ticks};
use crate::wire::bits::{BitWriter, Bits};
use crate::wire::quantize;

/// What one client knows of the archive.
#[derive(Debug)]
pub struct View {
    partitions: SmallVec<[PartitionId; 2]>,
    baseline: Tick,
    previous: Tick,
    exceptions: HashMap<NetId, Exception>,
    /// Exceptions to look at for every snapshot.
    active: Vec<NetId>,
    /// Exceptions of which nothing was sent yet, in the order in which they will be.
    backlog: VecDeque<NetId>,
    /// The head of the backlog while a snapshot is written.
    in_turn: Vec<NetId>,
    in_flight: VecDeque<InFlight>,
    /// Counts snapshots: orders what was sent against what became an exception.
    snapshots: u64,
    apart: HashMap<(NetId, ComponentId), Tick>,
}

#[derive(Clone, Copy, Debug)]
struct Exception {
    knowledge: Knowledge,
    /// Acknowledgements of snapshots before this one say nothing about it.
    since: u64,
    made: Tick,
    /// When it was last in a snapshot, or became an exception.
    waiting_since: Tick,
    sent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    Nothing,
    StateOf(Tick),
    /// The client may have it, and must not.
    Gone,
}

#[derive(Debug)]
struct InFlight {
    seq: u16,
    tick: Tick,
    number: u64,
    exceptions: Vec<NetId>,
}

/// Limits for one snapshot.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotBudget {
    /// Size of the whole snapshot in bytes.
    pub max_bytes: usize,
    /// How long to wait for an acknowledgement before something unchanged is sent again: a round trip and a bit.
    pub resend_after: Ticks,
}

/// A value too large for a snapshot, to be sent as a reliable message of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApartValue {
    /// The entity.
    pub net: NetId,
    /// The component.
    pub component: ComponentId,
    /// The tick of the change: names this value in snapshots.
    pub version: u32,
    /// The serialised value.
    pub bytes: Bytes,
}

/// What became of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Entities in it, the gone ones too.
    pub entities: usize,
    /// Whether everything fitted.
    pub complete: bool,
}

/// Blocks encoded in this tick, shared by all clients with the same baseline.
///
/// Clear it when the archive changes.
#[derive(Debug, Default)]
pub struct BlockCache {
    blocks: HashMap<(PartitionId, Tick), Option<Block>>,
}

#[derive(Debug)]
struct Block {
    bits: Bits,
    entities: usize,
}

impl BlockCache {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.blocks.clear();
    }
}

/// Serialised values above this many bytes travel apart, so that one of them cannot fill a snapshot.
const MAX_INLINE_BYTES: usize = 256;
/// The same for an entity that alone is too large for a snapshot.
const MAX_INLINE_BYTES_WHEN_CROWDED: usize = 8;
/// How many entities of the backlog compete for a snapshot.
const BACKLOG_WINDOW: usize = 256;
/// Snapshots remembered while unacknowledged. Acknowledgements reach 33 datagrams back; the rest is slack for
/// datagrams without snapshots.
const MAX_IN_FLIGHT: usize = 128;
/// What closes a snapshot: the ends of both lists, of the blocks, and whether it is complete.
const TRAILER_BITS: usize = 4;
/// Candidates that may fail to fit before a snapshot counts as full.
const MISFITS: usize = 4;

impl View {
    /// A client that knows nothing yet and sees `partitions`.
    pub fn new(now: Tick) -> Self {
        Self {
            partitions: SmallVec::new(),
            baseline: now,
            previous: now,
            exceptions: HashMap::new(),
            active: Vec::new(),
            backlog: VecDeque::new(),
            in_turn: Vec::new(),
            in_flight: VecDeque::new(),
            snapshots: 0,
            apart: HashMap::new(),
        }
    }

    /// Everything up to this tick is known to the client, save for exceptions.
    pub fn baseline(&self) -> Tick {
        self.baseline
    }

    /// The partitions that are seen.
    pub fn partitions(&self) -> &[PartitionId] {
        &self.partitions
    }

    /// Number of entities with bookkeeping of their own: what is still to be sent or acknowledged.
    pub fn exceptions(&self) -> usize {
        self.exceptions.len()
    }

    /// Ids that were given up at or before this tick are no longer of interest to this client.
    pub fn forgotten_before(&self) -> Tick {
        self.active
            .iter()
            .filter_map(|net| self.exceptions.get(net))
            .filter(|exception| exception.knowledge == Knowledge::Gone)
            .map(|exception| exception.made - Ticks(1))
            .fold(self.baseline, Tick::earliest)
    }

    /// Changes what is seen: entities of partitions no longer named are hidden, those of new ones shown.
    pub fn set_partitions(&mut self, archive: &Archive, now: Tick, partitions: &[PartitionId]) {
        let before = std::mem::replace(&mut self.partitions, partitions.into());
        for &left in before.iter().filter(|left| !partitions.contains(left)) {
            let members = archive.by_recency(left).map(|(net, _)| net);
            for net in members.chain(archive.tombstones_since(left, self.baseline)) {
                self.hide(now, net);
                // It may have moved to where it is still seen.
                let moved = archive.record(net).map(|record| record.partition);
                if moved.is_some_and(|moved| partitions.contains(&moved)) {
                    self.except(net, Knowledge::Nothing, now);
                }
            }
        }
        for &joined in partitions.iter().filter(|joined| !before.contains(joined)) {
            let mut members: Vec<_> = archive.by_recency(joined).collect();
            members.sort_by(|(a, x), (b, y)| y.priority.total_cmp(&x.priority).then(a.cmp(b)));
            for (net, _) in members {
                self.except(net, Knowledge::Nothing, now);
            }
        }
    }

    /// Starts over, as if the client knew nothing, without taking anything from it that it has.
    pub fn resync(&mut self, archive: &Archive, now: Tick) {
        let partitions = std::mem::take(&mut self.partitions);
        self.apart.clear();
        self.set_partitions(archive, now, &partitions);
    }

    /// The client has the snapshot that went out with datagram `seq`.
    pub fn handle_ack(&mut self, seq: u16) {
        let Some(index) = self.in_flight.iter().position(|sent| sent.seq == seq) else {
            return;
        };
        let Some(sent) = self.in_flight.remove(index) else {
            return;
        };
        self.baseline = self.baseline.latest(sent.tick);
        for net in sent.exceptions {
            let Some(exception) = self.exceptions.get_mut(&net) else {
                continue;
            };
            if exception.since > sent.number {
                continue;
            }
            match &mut exception.knowledge {
                Knowledge::Gone => drop(self.exceptions.remove(&net)),
                _ if sent.tick == self.baseline => drop(self.exceptions.remove(&net)),
                Knowledge::StateOf(known) => *known = known.latest(sent.tick),
                nothing @ Knowledge::Nothing => *nothing = Knowledge::StateOf(sent.tick),
            }
        }
    }

    /// Writes the snapshot of `tick`, to be sent with datagram `seq`.
    ///
    /// Values that are too large are appended to `apart`; they must go out reliably.
    pub fn encode(
        &mut self,
        archive: &Archive,
        tick: Tick,
        seq: u16,
        inputs: Option<InputReport>,
        budget: SnapshotBudget,
        cache: &mut BlockCache,
        out: &mut BitWriter,
        apart: &mut Vec<ApartValue>,
    ) -> Encoded {
        let header = SnapshotHeader {
            tick,
            baseline: self.baseline,
            previous: self.previous,
            inputs,
        };
        header.write(out);
        let end = out.bit_len() + budget.max_bytes * 8;
        let mut sent = InFlight {
            seq,
            tick,
            number: self.snapshots,
            exceptions: Vec::new(),
        };
        self.snapshots += 1;

        let encoded = self
            .encode_shared(archive, tick, end, cache, out)
            .unwrap_or_else(|| self.encode_own(archive, tick, end, budget, out, apart, &mut sent));
        out.write_bit(false);
        out.write_bit(encoded.complete);

        self.previous = tick;
        if self.in_flight.len() == MAX_IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back(sent);
        encoded
    }

    /// The common case: nothing special about this client, so its blocks are the same as everybody's.
    fn encode_shared(
        &self,
        archive: &Archive,
        tick: Tick,
        end: usize,
        cache: &mut BlockCache,
        out: &mut BitWriter,
    ) -> Option<Encoded> {
        if !self.exceptions.is_empty() {
            return None;
        }
        let mut encoded = Encoded {
            entities: 0,
            complete: true,
        };
        let mut bits = out.bit_len() + TRAILER_BITS;
        for &partition in &self.partitions {
            let block = cache.block(archive, tick, partition, self.baseline)?;
            bits += block.bits.len();
            encoded.entities += block.entities;
        }
        if bits > end {
            return None;
        }
        for &partition in &self.partitions {
            let block = cache.block(archive, tick, partition, self.baseline)?;
            if block.entities > 0 {
                out.append(&block.bits);
            }
        }
        Some(encoded)
    }

    /// What this client alone needs, the most urgent first, as far as it fits.
    fn encode_own(
        &mut self,
        archive: &Archive,
        tick: Tick,
        end: usize,
        budget: SnapshotBudget,
        out: &mut BitWriter,
        apart: &mut Vec<ApartValue>,
        sent: &mut InFlight,
    ) -> Encoded {
        let mut encoded = Encoded {
            entities: 0,
            complete: true,
        };
        let mut ids = IdCoder::default();
        out.write_bit(true);
        for net in self.collect_gone(archive, tick, budget.resend_after) {
            let mark = (out.bit_len(), ids);
            out.write_bit(true);
            ids.write(net, out);
            if out.bit_len() + TRAILER_BITS > end {
                out.truncate(mark.0);
                ids = mark.1;
                encoded.complete = false;
                self.except(net, Knowledge::Gone, tick);
            } else {
                encoded.entities += 1;
                self.mark_sent(net, tick, sent);
            }
        }
        out.write_bit(false);

        let mut ids = IdCoder::default();
        let mut misfits = 0;
        for (index, candidate) in self
            .collect_candidates(archive, tick, budget.resend_after)
            .into_iter()
            .enumerate()
        {
            let Some(record) = archive.record(candidate.net) else {
                continue;
            };
            if self.is_in_this_snapshot(candidate.net, tick) {
                continue;
            }
            let limits: &[usize] = match index {
                // Nothing will ever make more room for the first: send all of its large values apart.
                0 => &[MAX_INLINE_BYTES, MAX_INLINE_BYTES_WHEN_CROWDED],
                _ if misfits < MISFITS => &[MAX_INLINE_BYTES],
                _ => &[],
            };
            let fitted = limits.iter().find_map(|&max_inline| {
                let mark = (out.bit_len(), ids);
                let mut large = Vec::new();
                out.write_bit(true);
                ids.write(candidate.net, out);
                candidate.base.write(tick, out);
                write_record(
                    archive,
                    record,
                    candidate.base,
                    self.baseline,
                    out,
                    |id, stored| {
                        if stored.len() <= max_inline {
                            return false;
                        }
                        large.push(id);
                        true
                    },
                );
                if out.bit_len() + TRAILER_BITS <= end {
                    return Some(large);
                }
                out.truncate(mark.0);
                ids = mark.1;
                None
            });
            if let Some(large) = fitted {
                encoded.entities += 1;
                self.mark_sent(candidate.net, tick, sent);
                self.send_apart(candidate.net, record, &large, apart);
            } else {
                misfits += 1;
                encoded.complete = false;
                self.leave_out(&candidate);
            }
        }
        out.write_bit(false);
        self.return_backlog();
        encoded
    }

    fn collect_gone(&mut self, archive: &Archive, tick: Tick, resend_after: Ticks) -> Vec<NetId> {
        let mut gone = Vec::new();
        for &partition in &self.partitions {
            for net in archive.tombstones_since(partition, self.baseline) {
                self.exceptions.remove(&net);
                gone.push(net);
            }
        }
        for &net in &self.active {
            if let Some(exception) = self.exceptions.get(&net)
                && exception.knowledge == Knowledge::Gone
                && !exception.is_on_its_way(tick, resend_after)
            {
                gone.push(net);
            }
        }
        gone.sort_unstable();
        gone.dedup();
        if !self.apart.is_empty() {
            self.apart
                .retain(|(net, _), _| gone.binary_search(net).is_err());
        }
        gone
    }

    /// What could be sent: what changed and entities not yet sent at all, by turns, so that neither starves the other.
    fn collect_candidates(
        &mut self,
        archive: &Archive,
        tick: Tick,
        resend_after: Ticks,
    ) -> Vec<Candidate> {
        let waited = |since: Tick| tick.distance_from(since).max(1) as f32;
        let mut updates = Vec::new();
        for &partition in &self.partitions {
            for (net, record) in archive
                .by_recency(partition)
                .take_while(|(_, record)| record.changed.is_newer_than(self.baseline))
                .filter(|(net, _)| !self.exceptions.contains_key(net))
            {
                let known = Knowledge::StateOf(self.baseline);
                let base = known.base(record, self.baseline);
                let urgency = record.priority * waited(self.previous);
                updates.push(Candidate { net, base, urgency });
            }
        }
        self.active.sort_unstable();
        self.active.dedup();
        let (exceptions, baseline) = (&mut self.exceptions, self.baseline);
        self.active.retain(|&net| {
            let Some(exception) = exceptions.get(&net) else {
                return false;
            };
            if exception.knowledge == Knowledge::Gone {
                return true;
            }
            let Some(record) = archive.record(net) else {
                exceptions.remove(&net);
                return false;
            };
            if let Knowledge::StateOf(known) = exception.knowledge
                && !record.changed.is_newer_than(known)
                && !known.is_newer_than(baseline)
            {
                // Unchanged since it was last known: known as of the baseline, like any other.
                exceptions.remove(&net);
                return false;
            }
            let nothing_new = !record.changed.is_newer_than(exception.waiting_since);
            if !(nothing_new && exception.is_on_its_way(tick, resend_after)) {
                let base = exception.knowledge.base(record, baseline);
                let urgency = record.priority * waited(exception.waiting_since);
                updates.push(Candidate { net, base, urgency });
            }
            true
        });
        updates.sort_unstable_by(|a, b| {
            b.urgency
                .total_cmp(&a.urgency)
                .then_with(|| a.net.cmp(&b.net))
        });

        let window = self.backlog.len().min(BACKLOG_WINDOW);
        self.in_turn.extend(self.backlog.drain(..window));
        let mut unsent = self
            .in_turn
            .iter()
            .filter(|net| self.exceptions.get(net).is_some_and(Exception::is_unsent))
            .map(|&net| Candidate {
                net,
                base: Base::Nothing,
                urgency: 0.0,
            });
        let mut updates = updates.into_iter();
        let mut candidates = Vec::new();
        loop {
            let (update, first) = (updates.next(), unsent.next());
            if update.is_none() && first.is_none() {
                return candidates;
            }
            candidates.extend(update.into_iter().chain(first));
        }
    }

    /// Puts back what was in turn and did not fit.
    fn return_backlog(&mut self) {
        for net in self.in_turn.drain(..).rev() {
            if self.exceptions.get(&net).is_some_and(Exception::is_unsent) {
                self.backlog.push_front(net);
            }
        }
    }

    fn is_in_this_snapshot(&self, net: NetId, tick: Tick) -> bool {
        self.exceptions.get(&net).is_some_and(|exception| {
            exception.sent
                && exception.knowledge != Knowledge::Gone
                && exception.waiting_since == tick
        })
    }

    fn mark_sent(&mut self, net: NetId, tick: Tick, sent: &mut InFlight) {
        if let Some(exception) = self.exceptions.get_mut(&net) {
            if !exception.sent {
                self.active.push(net);
            }
            exception.sent = true;
            exception.waiting_since = tick;
            sent.exceptions.push(net);
        }
    }

    fn leave_out(&mut self, candidate: &Candidate) {
        if self.exceptions.contains_key(&candidate.net) {
            return;
        }
        let knowledge = match candidate.base {
            Base::Nothing => Knowledge::Nothing,
            Base::Snapshot => Knowledge::StateOf(self.baseline),
            Base::Own(tick) => Knowledge::StateOf(tick),
        };
        self.except(candidate.net, knowledge, self.previous);
    }

    fn hide(&mut self, now: Tick, net: NetId) {
        if self.exceptions.get(&net).is_some_and(Exception::is_unsent) {
            self.exceptions.remove(&net);
        } else {
            self.except(net, Knowledge::Gone, now);
        }
    }

    fn except(&mut self, net: NetId, knowledge: Knowledge, made: Tick) {
        let since = self.snapshots;
        let sent = false;
        self.exceptions.insert(
            net,
            Exception {
                knowledge,
                since,
                made,
                waiting_since: made,
                sent,
            },
        );
        if knowledge == Knowledge::Nothing {
            self.backlog.push_back(net);
        } else {
            self.active.push(net);
        }
    }

    /// Hands out the large values of an entity, each version once.
    fn send_apart(
        &mut self,
        net: NetId,
        record: &Record,
        large: &[ComponentId],
        apart: &mut Vec<ApartValue>,
    ) {
        for stored in record
            .components
            .iter()
            .filter(|stored| large.contains(&stored.id))
        {
            if let StoredValue::Bytes(bytes) = &stored.value
                && self.apart.insert((net, stored.id), stored.changed) != Some(stored.changed)
            {
                apart.push(ApartValue {
                    net,
                    component: stored.id,
                    version: stored.changed.0,
                    bytes: bytes.clone(),
                });
            }
        }
    }
}

struct Candidate {
    net: NetId,
    base: Base,
    urgency: f32,
}

impl Knowledge {
    fn base(self, record: &Record, baseline: Tick) -> Base {
        match self {
            Self::StateOf(known) if record.entered.is_newer_than(known) => Base::Nothing,
            Self::StateOf(known) if known == baseline => Base::Snapshot,
            Self::StateOf(known) => Base::Own(known),
            Self::Nothing | Self::Gone => Base::Nothing,
        }
    }
}

impl Exception {
    fn is_unsent(&self) -> bool {
        self.knowledge == Knowledge::Nothing && !self.sent
    }

    /// Sent so recently that the acknowledgement may still come.
    fn is_on_its_way(&self, tick: Tick, resend_after: Ticks) -> bool {
        self.sent && tick.distance_from(self.waiting_since) < resend_after.0.cast_signed()
    }
}

impl BlockCache {
    /// The block of a partition for clients with this baseline, or `None` if it cannot be shared.
    fn block(
        &mut self,
        archive: &Archive,
        tick: Tick,
        partition: PartitionId,
        baseline: Tick,
    ) -> Option<&Block> {
        self.blocks
            .entry((partition, baseline))
            .or_insert_with(|| Block::encode(archive, tick, partition, baseline))
            .as_ref()
    }
}

impl Block {
    /// `None` when a value of it must travel apart: whom that was sent to is a client's own matter.
    fn encode(
        archive: &Archive,
        tick: Tick,
        partition: PartitionId,
        baseline: Tick,
    ) -> Option<Self> {
        let mut gone: Vec<_> = archive.tombstones_since(partition, baseline).collect();
        gone.sort_unstable();
        gone.dedup();
        let mut changed: Vec<_> = archive
            .by_recency(partition)
            .take_while(|(_, record)| record.changed.is_newer_than(baseline))
            .collect();
        changed.sort_unstable_by_key(|&(net, _)| net);

        let mut bits = BitWriter::new();
        let mut ids = IdCoder::default();
        bits.write_bit(true);
        for &net in &gone {
            bits.write_bit(true);
            ids.write(net, &mut bits);
        }
        bits.write_bit(false);
        let mut ids = IdCoder::default();
        let mut is_shareable = true;
        for &(net, record) in &changed {
            let base = Knowledge::StateOf(baseline).base(record, baseline);
            bits.write_bit(true);
            ids.write(net, &mut bits);
            base.write(tick, &mut bits);
            write_record(archive, record, base, baseline, &mut bits, |_, bytes| {
                is_shareable &= bytes.len() <= MAX_INLINE_BYTES;
                false
            });
            if !is_shareable {
                return None;
            }
        }
        bits.write_bit(false);
        Some(Self {
            bits: bits.take(),
            entities: gone.len() + changed.len(),
        })
    }
}

/// Writes what a client that knows `base` has to be told of an entity.
///
/// `goes_apart` decides which serialised values are only announced.
fn write_record(
    archive: &Archive,
    record: &Record,
    base: Base,
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
    if known.is_some() {
        out.write_bit(!structure_is_known);
    }
    if !structure_is_known {
        let ids = record.components.iter().map(|stored| stored.id);
        snapshot::write_structure(record.meta, ids, out);
    }
    for stored in &record.components {
        // A component that was removed and added again is new, whatever its value was before.
        let known = known.filter(|&known| !stored.added.is_newer_than(known));
        if base != Base::Nothing {
            let is_new = known.is_none_or(|known| stored.changed.is_newer_than(known));
            out.write_bit(is_new);
            if !is_new {
                continue;
            }
        }
        match (&stored.value, archive.layouts().get(stored.id)) {
            (StoredValue::Words(history), Some(Layout::Words(fields))) => {
                let words = history.last().unwrap_or_default();
                let base_words = known.and_then(|known| history.at(known));
                if base != Base::Nothing {
                    out.write_bit(base_words.is_none());
                }
                match base_words {
                    Some(base_words) => quantize::write_delta(fields, base_words, words, out),
                    None => quantize::write_full(fields, words, out),
                }
            }
            (StoredValue::Bytes(bytes), _) if goes_apart(stored.id, bytes) => {
                BytesValue::Apart {
                    version: stored.changed.0,
                }
                .write(out);
            }
            (StoredValue::Bytes(bytes), _) => BytesValue::Inline(&bytes[..]).write(out),
            (StoredValue::Words(_), _) => {
                unreachable!("words are only stored for components whose layout is words")
            }
        }
    }
}
