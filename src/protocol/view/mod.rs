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

mod blocks;
mod encode;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bevy::platform::collections::HashMap;
use bevy::platform::hash::FixedHasher;
use bytes::Bytes;
use indexmap::IndexMap;
use smallvec::SmallVec;

pub use blocks::BlockCache;
use encode::{MAX_INLINE_BYTES, Pass};

use super::archive::{Archive, PartitionId, Record, StoredValue};
use super::layout::{ComponentId, NetId};
use super::snapshot::{self, Base};
use crate::tick::{Tick, Ticks};

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
