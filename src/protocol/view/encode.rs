//! One client's snapshot of a tick: what goes into it, in which order, and what is left out.

use bevy::platform::collections::HashMap;

use super::blocks::{BlockCache, write_record};
use super::{ApartValue, Encoded, InFlight, Knowledge, SnapshotBudget, View};
use crate::protocol::archive::{Archive, Record};
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::snapshot::{Base, IdCoder, InputReport, SnapshotHeader};
use crate::tick::{Tick, Ticks};
use crate::wire::bits::BitWriter;

#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) net: NetId,
    pub(super) base: Base,
    pub(super) urgency: f32,
}

/// The snapshot being written.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) archive: &'a Archive,
    pub(super) tick: Tick,
    pub(super) number: u64,
    /// How long the output may become, in bits.
    pub(super) end: usize,
    /// How much of that is for entities.
    pub(super) room: usize,
    pub(super) resend_after: Ticks,
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

/// Serialised values above this many bytes travel apart, so that one of them cannot fill a snapshot.
pub(super) const MAX_INLINE_BYTES: usize = 256;
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

impl View {
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
    #[inline]
    pub(super) fn encode_shared(
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
    pub(super) fn encode_own(
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
}
