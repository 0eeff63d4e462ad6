//! What one client knows, and what to tell it next.
//!
//! A client that acknowledged everything up to a snapshot has one number as its baseline. Entities of which it knows
//! more or less than that (because a byte budget cut a snapshot, or because they just came into view) are its
//! *exceptions*, with bookkeeping of their own until an acknowledgement levels them again. The invariant:
//!
//! > An entity that is no exception is known to the client as it was at `baseline`.
//!
//! When the snapshot of tick T is acknowledged, the baseline becomes T: everything that had changed and was not in
//! that snapshot was an exception already, or was made one when it was left out. So an exception may only be dropped
//! when every snapshot that may still be acknowledged holds its news, or when it has none.

use std::collections::VecDeque;

use bevy::platform::collections::HashMap;
use bevy::platform::hash::FixedHasher;
use bytes::Bytes;
use indexmap::IndexMap;
use smallvec::SmallVec;

use super::archive::{Archive, PartitionId, Record, StoredValue};
use super::layout::{ComponentId, Layout, NetId};
use super::snapshot::{self, Base, BytesValue, IdCoder, InputReport, SnapshotHeader};
use crate::tick::{Tick, Ticks};
use crate::wire::bits::{BitWriter, Bits};

/// What one client knows of the archive.
#[derive(Debug)]
pub struct View {
    partitions: SmallVec<[PartitionId; 2]>,
    /// How often it has started over, modulo [`snapshot::EPOCHS`].
    epoch: u8,
    baseline: Tick,
    previous: Tick,
    /// Exceptions to look at for every snapshot.
    active: IndexMap<NetId, Exception, FixedHasher>,
    /// The other exceptions: whole entities, absent or unknown, of which nothing was sent yet.
    unsent: HashMap<NetId, Knowledge>,
    /// The order in which they will be. May name some twice, and some that are not unsent any more.
    backlog: VecDeque<NetId>,
    in_flight: VecDeque<InFlight>,
    /// The client once had everything, since this view began or started over.
    knows_all: bool,
    /// Number of the next snapshot: orders what was sent against what became an exception.
    next_number: u64,
    apart: HashMap<NetId, SentApart>,
    /// Entities that do not fit a snapshot even alone: as of which change, and with how many bits.
    oversized: HashMap<NetId, (Tick, usize)>,
    /// This one did not fit beside what is gone, which therefore waits for the next snapshot.
    next_alone: Option<NetId>,
}

#[derive(Clone, Copy, Debug)]
struct Exception {
    knowledge: Knowledge,
    /// Acknowledgements of snapshots before this one say nothing about it.
    since: u64,
    /// When it was last in a snapshot, or became an exception.
    waiting_since: Tick,
    sent: Option<Run>,
}

/// Numbers of the first and the newest of successive snapshots that all held an entity.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    newest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// The client does not have it.
    Absent,
    /// The client may have it, in some state: it is sent whole, and taken away if it must be hidden first.
    Unknown,
    StateOf(Tick),
    /// The client may have it, and must not.
    Gone {
        /// The despawn was after this tick, if it was despawned.
        after: Tick,
    },
}

#[derive(Debug)]
struct InFlight {
    seq: u16,
    tick: Tick,
    number: u64,
    is_complete: bool,
    exceptions: Vec<NetId>,
}

/// The newest values of an entity that were handed out as messages, by the ticks of their changes.
#[derive(Debug)]
struct SentApart {
    /// When the entity had entered its partition; if it did so anew, the client has forgotten the values.
    entered: Tick,
    versions: SmallVec<[(ComponentId, Tick); 1]>,
}

/// Limits for one snapshot.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotBudget {
    /// Size of the whole snapshot in bytes. An entity whose quantised components alone need more is not sent.
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
    /// Whether the client is up to date when it has taken this one.
    pub complete: bool,
    /// An entity that does not fit the budget even alone, and so is not sent.
    pub oversized: Option<NetId>,
}

/// What a client has still to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It is known to have everything.
    Nothing,
    /// Everything was sent, and some of it is not acknowledged yet.
    Acknowledgement,
    /// Something was not sent yet.
    News,
}

/// What clients share while a tick is encoded: the blocks of all with the same baseline, and scratch memory.
///
/// Clear it when the archive changes.
#[derive(Debug, Default)]
pub struct BlockCache {
    blocks: HashMap<(PartitionId, Tick), Shared>,
    gone: Vec<NetId>,
    updates: Vec<Candidate>,
    in_turn: Vec<NetId>,
    candidates: Vec<Candidate>,
    large: Vec<ComponentId>,
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
struct Block {
    bits: Bits,
    entities: usize,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    net: NetId,
    base: Base,
    urgency: f32,
}

/// The snapshot being written.
#[derive(Clone, Copy)]
struct Pass<'a> {
    archive: &'a Archive,
    tick: Tick,
    number: u64,
    /// How long the output may become, in bits.
    end: usize,
    /// How much of that is for entities.
    room: usize,
    resend_after: Ticks,
}

impl Pass<'_> {
    /// Ticks since then, at least one.
    fn waited(&self, since: Tick) -> f32 {
        self.tick.distance_from(since).max(1) as f32
    }
}

impl Candidate {
    /// Writes it if it fits. Serialised values above `max_inline` bytes are only announced, and noted in `large`.
    fn write(
        self,
        pass: Pass,
        record: &Record,
        baseline: Tick,
        max_inline: usize,
        ids: &mut IdCoder,
        large: &mut Vec<ComponentId>,
        out: &mut BitWriter,
    ) -> bool {
        let mark = (out.bit_len(), *ids);
        large.clear();
        out.write_bit(true);
        ids.write(self.net, out);
        self.base.write(pass.tick, out);
        let goes_apart = |id, bytes: &[u8]| {
            let goes = bytes.len() > max_inline;
            if goes {
                large.push(id);
            }
            goes
        };
        write_record(
            pass.archive,
            self.net,
            record,
            self.base,
            pass.tick,
            baseline,
            out,
            goes_apart,
        );
        let fits = out.bit_len() + TRAILER_BITS <= pass.end;
        if !fits {
            out.truncate(mark.0);
            *ids = mark.1;
        }
        fits
    }
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

/// Serialised values above this many bytes travel apart, so that one of them cannot fill a snapshot.
const MAX_INLINE_BYTES: usize = 256;
/// The same for an entity that alone is too large for a snapshot.
const MAX_INLINE_BYTES_WHEN_CROWDED: usize = 8;
/// How many entities of the backlog compete for a snapshot.
const BACKLOG_WINDOW: usize = 256;
/// Snapshots remembered while unacknowledged. Acknowledgements reach 32 datagrams back; the rest is slack for
/// those that are late.
const MAX_IN_FLIGHT: usize = 128;
/// What closes a snapshot: the ends of both lists and of the blocks, and whether it is complete.
const TRAILER_BITS: usize = 4;
/// Candidates that may fail to fit before a snapshot counts as full.
const MISFITS: usize = 4;

impl View {
    /// A client that knows nothing and sees no partition yet.
    pub fn new(now: Tick) -> Self {
        Self {
            partitions: SmallVec::new(),
            epoch: 0,
            // What still happens in this tick is news.
            baseline: now - Ticks(1),
            previous: now,
            active: IndexMap::default(),
            unsent: HashMap::default(),
            backlog: VecDeque::new(),
            in_flight: VecDeque::new(),
            knows_all: false,
            next_number: 0,
            apart: HashMap::default(),
            oversized: HashMap::default(),
            next_alone: None,
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
        self.active.len() + self.unsent.len()
    }

    fn is_exception(&self, net: NetId) -> bool {
        self.active.contains_key(&net) || self.unsent.contains_key(&net)
    }

    /// Ids that were given up at or before this tick are no longer of interest to this client.
    pub fn forgotten_before(&self) -> Tick {
        self.active
            .values()
            .filter_map(|exception| match exception.knowledge {
                Knowledge::Gone { after } => Some(after),
                _ => None,
            })
            .fold(self.baseline, Tick::earliest)
    }

    /// What the client has still to be told.
    pub fn lack(&self, archive: &Archive) -> Lack {
        let is_news_since = |tick| {
            self.partitions.iter().any(|&partition| {
                archive.changed_since(partition, tick).next().is_some()
                    || archive.tombstones_since(partition, tick).next().is_some()
            })
        };
        let mut active = self.active.values();
        let waits = !self.unsent.is_empty() || active.any(|known| known.sent.is_none());
        if self.next_number == 0 || waits || is_news_since(self.previous) {
            Lack::News
        } else if !self.knows_all || !self.active.is_empty() || is_news_since(self.baseline) {
            Lack::Acknowledgement
        } else {
            Lack::Nothing
        }
    }

    /// Changes what is seen: entities of partitions no longer named are hidden, those of new ones shown.
    pub fn set_partitions(&mut self, archive: &Archive, now: Tick, partitions: &[PartitionId]) {
        let before = std::mem::replace(&mut self.partitions, partitions.into());
        for &left in before.iter().filter(|left| !partitions.contains(left)) {
            let members = archive.by_recency(left).map(|(net, _)| net);
            for net in members.chain(archive.tombstones_since(left, self.baseline)) {
                // What moved to where it is still seen entered there after the baseline, and is sent whole.
                if !self.sees(archive, net) {
                    self.hide(now, net);
                }
            }
        }
        let unsent = &self.unsent;
        self.backlog.retain(|net| unsent.contains_key(net));
        for &joined in partitions.iter().filter(|joined| !before.contains(joined)) {
            for (net, record) in by_priority(archive, joined) {
                let knowledge = match self.unsent.get(&net) {
                    Some(&known) => known,
                    None if self.active.contains_key(&net) => Knowledge::Unknown,
                    // It may come from a partition that is or was seen.
                    None if record.entered.is_newer_than(self.baseline) => Knowledge::Unknown,
                    None => Knowledge::Absent,
                };
                self.except(net, knowledge, now);
            }
        }
    }

    /// Starts over, as if the client knew nothing: everything is sent again, in a new epoch, and acknowledgements of
    /// what was sent before say nothing any more. The client forgets what it had when it sees the new epoch.
    pub fn start_over(&mut self, archive: &Archive, now: Tick) {
        let partitions = std::mem::take(&mut self.partitions);
        *self = Self {
            epoch: (self.epoch + 1) % snapshot::EPOCHS,
            previous: self.previous,
            next_number: self.next_number,
            ..Self::new(now)
        };
        self.set_partitions(archive, now, &partitions);
    }

    /// How often this view has started over, modulo [`EPOCHS`](super::snapshot::EPOCHS).
    pub fn epoch(&self) -> u8 {
        self.epoch
    }

    /// Whether the client has acknowledged nothing for so long that the archive keeps too much for it alone: what was
    /// despawned, and the past of what changed. It had better [start over](Self::start_over) then.
    ///
    /// 1,200 ticks are longer than links take to recover, if they do. When much is despawned, it is as many as
    /// 16,384 ids allow, but at least two seconds.
    pub fn is_left_behind(&self, archive: &Archive, now: Tick) -> bool {
        let behind = now.distance_from(self.forgotten_before());
        let limit = match archive.retired() > Self::MAX_RETIRED {
            true => Self::MAX_TICKS_BEHIND / 10,
            false => Self::MAX_TICKS_BEHIND,
        };
        behind > limit
    }

    const MAX_TICKS_BEHIND: i32 = 1_200;
    /// Ids that may wait to be given out again.
    const MAX_RETIRED: usize = 16_384;

    /// A value could not be sent as a message; its entity is sent again, with its large values.
    pub fn handle_unsent(&mut self, value: &ApartValue, now: Tick) {
        self.apart.remove(&value.net);
        if !self.is_gone(value.net) {
            self.except(value.net, Knowledge::Unknown, now);
        }
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
        self.knows_all |= sent.is_complete;
        for net in sent.exceptions {
            let Some(exception) = self.active.get_mut(&net) else {
                continue;
            };
            if exception.since > sent.number {
                continue;
            }
            // The baseline may pass later snapshots any time, so none of them may lack it.
            let is_in_all_since = exception
                .sent
                .is_some_and(|run| run.first <= sent.number && run.newest + 1 == self.next_number);
            match &mut exception.knowledge {
                Knowledge::Gone { .. } => drop(self.active.swap_remove(&net)),
                _ if is_in_all_since && sent.tick == self.baseline => {
                    self.active.swap_remove(&net);
                }
                Knowledge::StateOf(known) => *known = known.latest(sent.tick),
                nothing => *nothing = Knowledge::StateOf(sent.tick),
            }
        }
    }

    /// Writes the snapshot of `tick`, to be sent with datagram `seq`.
    ///
    /// Everything that happens in a tick must be in the archive before its snapshot is written. Values that are too
    /// large are appended to `apart`; they must go out reliably.
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
        let pass = Pass {
            archive,
            tick,
            number: self.next_number,
            end: out.bit_len() + budget.max_bytes * 8,
            room: 0,
            resend_after: budget.resend_after,
        };
        self.next_number += 1;
        let header = SnapshotHeader {
            tick,
            epoch: self.epoch,
            baseline: self.baseline,
            previous: self.previous,
            inputs,
        };
        header.write(out);
        let mut sent = Vec::new();
        let encoded = self
            .encode_shared(pass, cache, out)
            .unwrap_or_else(|| self.encode_own(pass, cache, out, apart, &mut sent));
        out.write_bit(false);
        out.write_bit(encoded.complete);

        self.previous = tick;
        if self.in_flight.len() == MAX_IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back(InFlight {
            seq,
            tick,
            number: pass.number,
            is_complete: encoded.complete,
            exceptions: sent,
        });
        encoded
    }

    /// The common case: nothing special about this client, so its blocks are the same as everybody's.
    fn encode_shared(
        &self,
        pass: Pass,
        cache: &mut BlockCache,
        out: &mut BitWriter,
    ) -> Option<Encoded> {
        if self.exceptions() > 0 {
            return None;
        }
        let start = out.bit_len();
        let mut entities = 0;
        for &partition in &self.partitions {
            let block = cache.block(pass, partition, self.baseline);
            let Some(block) =
                block.filter(|block| out.bit_len() + block.bits.len() + TRAILER_BITS <= pass.end)
            else {
                out.truncate(start);
                return None;
            };
            entities += block.entities;
            out.append(&block.bits);
        }
        Some(Encoded {
            entities,
            complete: true,
            oversized: None,
        })
    }

    /// What this client alone needs, the most urgent first, as far as it fits.
    fn encode_own(
        &mut self,
        pass: Pass,
        cache: &mut BlockCache,
        out: &mut BitWriter,
        apart: &mut Vec<ApartValue>,
        sent: &mut Vec<NetId>,
    ) -> Encoded {
        let start = out.bit_len();
        let mut encoded = Encoded {
            complete: true,
            ..Encoded::default()
        };
        let pass = Pass {
            room: pass.end.saturating_sub(start),
            ..pass
        };
        self.oversized.retain(|net, _| pass.archive.contains(*net));
        out.write_bit(true);
        self.write_gone(pass, cache, out, sent, &mut encoded);
        out.write_bit(false);
        self.write_candidates(pass, cache, out, apart, sent, &mut encoded);
        out.write_bit(false);
        if encoded.entities == 0 {
            out.truncate(start);
        }
        encoded
    }

    fn write_gone(
        &mut self,
        pass: Pass,
        cache: &mut BlockCache,
        out: &mut BitWriter,
        sent: &mut Vec<NetId>,
        encoded: &mut Encoded,
    ) {
        let mut gone = std::mem::take(&mut cache.gone);
        encoded.complete &= self.collect_gone(pass, &mut gone);
        // Half of the room at most: what lives must not wait for all that is gone.
        let share = match self.next_alone {
            None => pass.end.saturating_sub(out.bit_len() + TRAILER_BITS) / 2,
            Some(_) => 0,
        };
        let end = out.bit_len() + share;
        let mut ids = IdCoder::default();
        for net in gone.drain(..) {
            let mark = (out.bit_len(), ids);
            out.write_bit(true);
            ids.write(net, out);
            if out.bit_len() <= end {
                encoded.entities += 1;
                self.mark_sent(pass, net, sent);
                continue;
            }
            out.truncate(mark.0);
            ids = mark.1;
            encoded.complete = false;
            if !self.is_exception(net) {
                self.hide(pass.tick, net);
            }
        }
        cache.gone = gone;
    }

    fn write_candidates(
        &mut self,
        pass: Pass,
        cache: &mut BlockCache,
        out: &mut BitWriter,
        apart: &mut Vec<ApartValue>,
        sent: &mut Vec<NetId>,
        encoded: &mut Encoded,
    ) {
        encoded.complete &= self.collect_candidates(pass, cache, &mut encoded.oversized);
        let gone = encoded.entities;
        let mut ids = IdCoder::default();
        let mut misfits = 0;
        for &candidate in &cache.candidates {
            let Some(record) = pass.archive.record(candidate.net) else {
                continue;
            };
            if self.is_in_snapshot(candidate.net, pass.number) {
                continue;
            }
            let limits: &[usize] = match encoded.entities - gone {
                // Nothing will ever make more room for it: send all of its large values apart.
                0 => &[MAX_INLINE_BYTES, MAX_INLINE_BYTES_WHEN_CROWDED],
                _ if misfits < MISFITS => &[MAX_INLINE_BYTES],
                _ => &[],
            };
            let large = &mut cache.large;
            let fits = limits.iter().any(|&max_inline| {
                let baseline = self.baseline;
                candidate.write(pass, record, baseline, max_inline, &mut ids, large, out)
            });
            if fits {
                encoded.entities += 1;
                self.mark_sent(pass, candidate.net, sent);
                self.send_apart(candidate.net, record, large, apart);
                continue;
            }
            encoded.complete = false;
            match (encoded.entities - gone, gone) {
                (0, 0) => {
                    encoded.oversized = Some(candidate.net);
                    let measured = (record.changed, pass.room);
                    self.oversized.insert(candidate.net, measured);
                }
                (0, _) => self.next_alone = self.next_alone.or(Some(candidate.net)),
                _ => misfits += 1,
            }
            self.leave_out(candidate);
        }
        self.give_turns_back(cache);
        encoded.complete &= self.backlog.is_empty();
    }

    /// A candidate was left out: what the client knows of it is its own matter from now on.
    fn leave_out(&mut self, candidate: Candidate) {
        if self.is_exception(candidate.net) {
            return;
        }
        let knowledge = match candidate.base {
            Base::Nothing => Knowledge::Unknown,
            Base::Snapshot => Knowledge::StateOf(self.baseline),
            Base::Own(tick) => Knowledge::StateOf(tick),
        };
        self.except(candidate.net, knowledge, self.previous);
    }

    /// Those in turn that did not fit keep their places, unless that is no question of place.
    fn give_turns_back(&mut self, cache: &mut BlockCache) {
        for net in cache.in_turn.drain(..).rev() {
            if !self.unsent.contains_key(&net) {
                continue;
            }
            match self.oversized.contains_key(&net) {
                true => self.backlog.push_back(net),
                false => self.backlog.push_front(net),
            }
        }
    }

    /// What to take from the client, in the order of ids; says whether that is all that it must not have.
    fn collect_gone(&mut self, pass: Pass, gone: &mut Vec<NetId>) -> bool {
        for index in 0..self.partitions.len() {
            let partition = self.partitions[index];
            for net in pass.archive.tombstones_since(partition, self.baseline) {
                // What moved to another partition that is seen is sent whole.
                if self.sees(pass.archive, net) {
                    continue;
                }
                // That it was left out of a snapshot before must not be forgotten.
                if !self.is_gone(net) {
                    self.active.swap_remove(&net);
                    self.unsent.remove(&net);
                }
                self.apart.remove(&net);
                gone.push(net);
            }
        }
        let mut is_all = true;
        let mut returned = Vec::new();
        for (&net, exception) in &self.active {
            if !exception.is_gone() {
                continue;
            }
            if self.sees(pass.archive, net) {
                returned.push(net);
            } else if exception.is_on_its_way(pass) {
                is_all = false;
            } else {
                gone.push(net);
            }
        }
        for net in returned {
            self.except(net, Knowledge::Unknown, pass.tick);
        }
        gone.sort_unstable();
        gone.dedup();
        is_all
    }

    /// What could be sent: what changed and entities not yet sent at all, by turns, so that neither starves the
    /// other. Says whether that is all that the client lacks.
    fn collect_candidates(
        &mut self,
        pass: Pass,
        cache: &mut BlockCache,
        oversized: &mut Option<NetId>,
    ) -> bool {
        cache.updates.clear();
        self.collect_changed(pass, &mut cache.updates);
        let is_all = self.collect_exceptions(pass, &mut cache.updates, oversized);
        // Among the many that will not fit, the order does not matter: a record takes a byte at least.
        sort_by_urgency(&mut cache.updates, pass.end / 8);
        self.take_turns(pass, cache, oversized);
        // It waits for a place of its own.
        if let Some(net) = self.next_alone.take()
            && let Some(at) = cache.candidates.iter().position(|it| it.net == net)
        {
            cache.candidates[..=at].rotate_right(1);
        }
        is_all
    }

    /// What has changed since the baseline.
    fn collect_changed(&self, pass: Pass, updates: &mut Vec<Candidate>) {
        for &partition in &self.partitions {
            for (net, record) in pass.archive.changed_since(partition, self.baseline) {
                if !self.is_exception(net) {
                    let base = Knowledge::StateOf(self.baseline).base(record, self.baseline);
                    let urgency = record.priority * pass.waited(self.previous);
                    updates.push(Candidate { net, base, urgency });
                }
            }
        }
    }

    /// Exceptions that have news, or whose acknowledgement is overdue; says whether no others are left.
    fn collect_exceptions(
        &mut self,
        pass: Pass,
        updates: &mut Vec<Candidate>,
        oversized: &mut Option<NetId>,
    ) -> bool {
        let mut is_all = true;
        let mut at = 0;
        while let Some((&net, exception)) = self.active.get_index(at) {
            if exception.is_gone() {
                at += 1;
                continue;
            }
            let Some(record) = pass.archive.record(net) else {
                self.active.swap_remove_index(at);
                continue;
            };
            if let Knowledge::StateOf(known) = exception.knowledge
                && !record.changed.is_newer_than(known)
            {
                // Unchanged since it was last known: known as of the baseline, like any other.
                self.active.swap_remove_index(at);
                continue;
            }
            at += 1;
            let nothing_new = !record.changed.is_newer_than(exception.waiting_since);
            if is_oversized(&self.oversized, pass, net) {
                *oversized = Some(net);
                is_all = false;
            } else if nothing_new && exception.is_on_its_way(pass) {
                is_all = false;
            } else {
                let base = exception.knowledge.base(record, self.baseline);
                let urgency = record.priority * pass.waited(exception.waiting_since);
                updates.push(Candidate { net, base, urgency });
            }
        }
        is_all
    }

    /// Puts updates and what was not sent at all alternately into the list of candidates.
    fn take_turns(&mut self, pass: Pass, cache: &mut BlockCache, oversized: &mut Option<NetId>) {
        let BlockCache {
            updates,
            in_turn,
            candidates,
            ..
        } = cache;
        let window = self.backlog.len().min(BACKLOG_WINDOW);
        in_turn.clear();
        in_turn.extend(self.backlog.drain(..window));
        let mut unsent = in_turn
            .iter()
            .filter(|net| self.unsent.contains_key(*net))
            .filter(|net| {
                let is_oversized = is_oversized(&self.oversized, pass, **net);
                if is_oversized {
                    *oversized = Some(**net);
                }
                !is_oversized
            })
            .map(|&net| Candidate {
                net,
                base: Base::Nothing,
                urgency: 0.0,
            });
        let mut updates = updates.iter().copied();
        candidates.clear();
        // Only the first is sure of its place, so each list has that in turn.
        if pass.number % 2 == 1 {
            candidates.extend(unsent.next());
        }
        loop {
            let (update, first) = (updates.next(), unsent.next());
            if update.is_none() && first.is_none() {
                return;
            }
            candidates.extend(update.into_iter().chain(first));
        }
    }

    fn sees(&self, archive: &Archive, net: NetId) -> bool {
        archive
            .record(net)
            .is_some_and(|record| self.partitions.contains(&record.partition))
    }

    fn is_in_snapshot(&self, net: NetId, number: u64) -> bool {
        let run = self.active.get(&net).and_then(|known| known.sent);
        run.is_some_and(|run| run.newest == number)
    }

    fn mark_sent(&mut self, pass: Pass, net: NetId, sent: &mut Vec<NetId>) {
        let mut run = Run {
            first: pass.number,
            newest: pass.number,
        };
        if let Some(knowledge) = self.unsent.remove(&net) {
            let exception = Exception {
                knowledge,
                since: pass.number,
                waiting_since: pass.tick,
                sent: Some(run),
            };
            self.active.insert(net, exception);
        } else if let Some(exception) = self.active.get_mut(&net) {
            if let Some(before) = exception.sent.filter(|run| run.newest + 1 == pass.number) {
                run.first = before.first;
            }
            exception.sent = Some(run);
            exception.waiting_since = pass.tick;
        } else {
            return;
        }
        sent.push(net);
    }

    fn is_gone(&self, net: NetId) -> bool {
        self.active.get(&net).is_some_and(Exception::is_gone)
    }

    fn hide(&mut self, now: Tick, net: NetId) {
        if self.is_gone(net) {
            return;
        }
        if self.unsent.get(&net) == Some(&Knowledge::Absent) {
            self.unsent.remove(&net);
            return;
        }
        self.apart.remove(&net);
        let after = self.baseline.earliest(now - Ticks(1));
        self.except(net, Knowledge::Gone { after }, now);
    }

    fn except(&mut self, net: NetId, knowledge: Knowledge, now: Tick) {
        if matches!(knowledge, Knowledge::Absent | Knowledge::Unknown) {
            self.active.swap_remove(&net);
            if self.unsent.insert(net, knowledge).is_none() {
                self.backlog.push_back(net);
            }
            return;
        }
        self.unsent.remove(&net);
        let exception = Exception {
            knowledge,
            since: self.next_number,
            waiting_since: now,
            sent: None,
        };
        self.active.insert(net, exception);
    }

    /// Hands out the large values of an entity, each version once.
    fn send_apart(
        &mut self,
        net: NetId,
        record: &Record,
        large: &[ComponentId],
        apart: &mut Vec<ApartValue>,
    ) {
        if large.is_empty() {
            return;
        }
        let handed_out = self.apart.entry(net).or_insert_with(|| SentApart {
            entered: record.entered,
            versions: SmallVec::new(),
        });
        if handed_out.entered != record.entered {
            handed_out.entered = record.entered;
            handed_out.versions.clear();
        }
        for stored in &record.components {
            let StoredValue::Bytes(bytes) = &stored.value else {
                continue;
            };
            let version = (stored.id, stored.changed);
            if !large.contains(&stored.id) || handed_out.versions.contains(&version) {
                continue;
            }
            handed_out.versions.retain(|(id, _)| *id != stored.id);
            // One that only goes apart for lack of room may be sent inline in between, without its version.
            if bytes.len() > MAX_INLINE_BYTES {
                handed_out.versions.push(version);
            }
            apart.push(ApartValue {
                net,
                component: stored.id,
                version: stored.changed.0,
                bytes: bytes.clone(),
            });
        }
    }
}

/// The entities of a partition, the most important first.
fn by_priority(archive: &Archive, partition: PartitionId) -> Vec<(NetId, &Record)> {
    let mut members: Vec<_> = archive.by_recency(partition).collect();
    members.sort_by(|(a, x), (b, y)| y.priority.total_cmp(&x.priority).then(a.cmp(b)));
    members
}

/// Whether it is known not to fit a snapshot with so much room even alone.
fn is_oversized(oversized: &HashMap<NetId, (Tick, usize)>, pass: Pass, net: NetId) -> bool {
    if oversized.is_empty() {
        return false;
    }
    let is_same = |changed| {
        let record = pass.archive.record(net);
        record.is_some_and(|record| record.changed == changed)
    };
    let known = oversized.get(&net);
    known.is_some_and(|&(changed, had)| pass.room <= had && is_same(changed))
}

/// Sorts the first `most`; those after them come in any order.
fn sort_by_urgency(updates: &mut [Candidate], most: usize) {
    let by_urgency = |a: &Candidate, b: &Candidate| {
        let urgency = b.urgency.total_cmp(&a.urgency);
        urgency.then_with(|| a.net.cmp(&b.net))
    };
    if updates.len() > most {
        updates.select_nth_unstable_by(most, by_urgency);
        updates[..most].sort_unstable_by(by_urgency);
    } else {
        updates.sort_unstable_by(by_urgency);
    }
}

impl Knowledge {
    fn base(self, record: &Record, baseline: Tick) -> Base {
        match self {
            Self::StateOf(known) if record.entered.is_newer_than(known) => Base::Nothing,
            Self::StateOf(known) if known == baseline => Base::Snapshot,
            Self::StateOf(known) => Base::Own(known),
            Self::Absent | Self::Unknown | Self::Gone { .. } => Base::Nothing,
        }
    }
}

impl Exception {
    fn is_gone(&self) -> bool {
        matches!(self.knowledge, Knowledge::Gone { .. })
    }

    /// Sent so recently that the acknowledgement may still come.
    fn is_on_its_way(&self, pass: Pass) -> bool {
        let waited = pass.tick.distance_from(self.waiting_since);
        self.sent.is_some() && waited < pass.resend_after.0.cast_signed()
    }
}

impl BlockCache {
    /// The block of a partition for clients with this baseline, or `None` if it cannot be shared.
    fn block(&mut self, pass: Pass, partition: PartitionId, baseline: Tick) -> Option<&Block> {
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
fn write_record(
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
            StoredValue::Words(history) => {
                let Some(Layout::Words(fields)) = archive.layouts().get(stored.id) else {
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
            StoredValue::Bytes(bytes) if goes_apart(stored.id, bytes) => {
                let version = stored.changed.0;
                BytesValue::Apart { version }.write(out);
            }
            StoredValue::Bytes(bytes) => BytesValue::Inline(&bytes[..]).write(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::layout::{Layouts, Meta};
    use crate::wire::quantize::Field;

    const BUDGET: SnapshotBudget = SnapshotBudget {
        max_bytes: 100_000,
        resend_after: Ticks(4),
    };

    fn archive(entities: u32) -> (Archive, Vec<NetId>) {
        let fields = vec![Field::linear(16), Field::linear(16).joined()];
        let layouts = [Layout::Words(fields.into()), Layout::Bytes];
        let mut archive = Archive::new(Layouts::new(layouts));
        let nets = (0..entities)
            .map(|_| archive.spawn(Tick(1), PartitionId::GLOBAL, Meta::default(), 1.0))
            .collect();
        (archive, nets)
    }

    /// A client that was told everything at tick 2.
    fn settled_view(archive: &Archive) -> View {
        let mut view = View::new(Tick(1));
        view.set_partitions(archive, Tick(1), &[PartitionId::GLOBAL]);
        encode(&mut view, archive, Tick(2), 0);
        view.handle_ack(0);
        assert_eq!(view.exceptions(), 0);
        view
    }

    fn encode(view: &mut View, archive: &Archive, tick: Tick, seq: u16) -> Vec<u8> {
        let (mut out, mut apart) = (BitWriter::new(), Vec::new());
        let mut cache = BlockCache::default();
        view.encode(
            archive, tick, seq, None, BUDGET, &mut cache, &mut out, &mut apart,
        );
        out.finish().to_vec()
    }

    #[test]
    fn an_ordinary_client_gets_the_same_bytes_from_the_shared_block_as_from_its_own() {
        let (mut archive, nets) = archive(50);
        for &net in &nets {
            archive.set_words(Tick(1), net, ComponentId(0), &[net.index(), 7]);
        }
        let mut view = settled_view(&archive);
        for (index, &net) in nets.iter().enumerate() {
            match index % 5 {
                0 => archive.set_words(Tick(3), net, ComponentId(0), &[9, 9]),
                1 => archive.set_bytes(Tick(3), net, ComponentId(1), b"spear"),
                2 => archive.remove(Tick(3), net, ComponentId(0)),
                3 => archive.despawn(Tick(3), net),
                _ => {}
            }
        }
        archive.spawn(Tick(3), PartitionId::GLOBAL, Meta::default(), 1.0);

        let pass = Pass {
            archive: &archive,
            tick: Tick(3),
            number: view.next_number,
            end: 100_000,
            room: 100_000,
            resend_after: BUDGET.resend_after,
        };
        let mut cache = BlockCache::default();
        let (mut shared, mut own) = (BitWriter::new(), BitWriter::new());
        let from_shared = view.encode_shared(pass, &mut cache, &mut shared);
        let from_own = view.encode_own(pass, &mut cache, &mut own, &mut vec![], &mut vec![]);
        assert_eq!(from_shared, Some(from_own));
        assert_eq!(from_own.entities, 41);
        assert_eq!(shared.take(), own.take());
    }

    #[test]
    fn a_client_that_hops_between_rooms_makes_no_bookkeeping_grow() {
        let (mut archive, _) = archive(0);
        let rooms = [archive.add_partition(), archive.add_partition()];
        for room in rooms {
            for _ in 0..1_000 {
                archive.spawn(Tick(1), room, Meta::default(), 1.0);
            }
        }
        let mut view = View::new(Tick(5));
        for hop in 0..100 {
            let tick = Tick(6 + hop);
            view.set_partitions(&archive, tick, &[rooms[hop as usize % 2]]);
            encode(&mut view, &archive, tick, hop as u16);
        }
        assert!(view.exceptions() <= 2_000);
        assert!(view.backlog.len() <= 1_000);
        assert!(view.active.len() <= 4_000);
    }
}
