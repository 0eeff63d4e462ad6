//! The server's record of what it replicates, in the order in which it changed.
//!
//! Entities live in partitions (a room is one, the roomless world another). Each partition keeps its entities in a
//! list ordered by their last change, so that "what changed since tick B" is the tail of that list: an entity that
//! does not change costs neither work nor bytes, however many clients watch.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use bytes::Bytes;
use smallvec::SmallVec;

use super::layout::{ComponentId, History, Layout, Layouts, Meta, NetId};
use crate::tick::Tick;

/// A set of entities that are seen together: the members of a room, or the entities of no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartitionId(u32);

impl PartitionId {
    /// Entities of no room, seen by every session.
    pub const GLOBAL: Self = Self(0);
}

/// The server's replicated entities, with as much of their past as baselines need.
#[derive(Debug)]
pub struct Archive {
    layouts: Layouts,
    slots: Vec<Slot>,
    len: usize,
    partitions: Vec<Option<Partition>>,
    /// Indices to give out again, lowest first: low ones are short on the wire.
    free: BinaryHeap<Reverse<u32>>,
    /// Ids whose despawn some client may not know yet: their indices would be ambiguous to it.
    retired: VecDeque<(Tick, NetId)>,
}

/// What has an index.
#[derive(Debug)]
struct Slot {
    /// The newest id with this index.
    net: NetId,
    /// It was given out for an entity that is still to come.
    is_reserved: bool,
    record: Option<Record>,
}

#[derive(Debug, Default)]
struct Partition {
    newest_change: Option<NetId>,
    tombstones: VecDeque<(Tick, NetId)>,
    /// No client that sees this partition uses a baseline older than this.
    oldest_baseline: Tick,
}

#[derive(Debug)]
pub(super) struct Record {
    pub partition: PartitionId,
    pub meta: Meta,
    pub priority: f32,
    pub spawned: Tick,
    /// When it came into its partition.
    pub entered: Tick,
    /// When its owner, role or set of components last changed.
    pub structure_changed: Tick,
    /// When anything of it last changed.
    pub changed: Tick,
    /// In the order of their ids.
    pub components: SmallVec<[Stored; 4]>,
    older: Option<NetId>,
    newer: Option<NetId>,
}

#[derive(Debug)]
pub(super) struct Stored {
    pub id: ComponentId,
    /// Since when the entity has it without a break.
    pub inserted: Tick,
    pub changed: Tick,
    pub value: StoredValue,
}

#[derive(Debug)]
pub(super) enum StoredValue {
    Words(History),
    Bytes(Bytes),
}

impl Archive {
    /// An empty archive with the global partition.
    pub fn new(layouts: Layouts) -> Self {
        Self {
            layouts,
            slots: Vec::new(),
            len: 0,
            partitions: vec![Some(Partition::default())],
            free: BinaryHeap::new(),
            retired: VecDeque::new(),
        }
    }

    /// Adds a partition.
    pub fn add_partition(&mut self) -> PartitionId {
        // Closed rooms leave holes; a linear search is fine for something that happens when a room opens.
        let index = self
            .partitions
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| {
                self.partitions.push(None);
                self.partitions.len() - 1
            });
        self.partitions[index] = Some(Partition::default());
        PartitionId(index as u32)
    }

    /// Closes a partition that nobody sees any more; entities still in it become global.
    pub fn remove_partition(&mut self, tick: Tick, partition: PartitionId) {
        if partition == PartitionId::GLOBAL {
            return;
        }
        let members: Vec<_> = self.by_recency(partition).map(|(net, _)| net).collect();
        for net in members {
            self.move_to(tick, net, PartitionId::GLOBAL);
        }
        if let Some(slot) = self.partitions.get_mut(partition.0 as usize) {
            *slot = None;
        }
    }

    /// Adds an entity. `priority` weighs it against others when not everything fits: 1 is usual, and 0.01 to 100 are
    /// the bounds, so that nothing waits forever.
    ///
    /// In a partition that was closed, it becomes global.
    pub fn spawn(
        &mut self,
        tick: Tick,
        partition: PartitionId,
        meta: Meta,
        priority: f32,
    ) -> NetId {
        let net = self.reserve();
        self.spawn_as(net, tick, partition, meta, priority);
        net
    }

    /// Adds the entity for which an id was [reserved](Self::reserve); see [`Self::spawn`].
    pub fn spawn_as(
        &mut self,
        net: NetId,
        tick: Tick,
        partition: PartitionId,
        meta: Meta,
        priority: f32,
    ) {
        let slot = self.slots.get(net.index() as usize);
        if !slot.is_some_and(|slot| slot.net == net && slot.is_reserved) {
            return;
        }
        let partition = match self.partition(partition) {
            Some(_) => partition,
            None => PartitionId::GLOBAL,
        };
        let slot = &mut self.slots[net.index() as usize];
        slot.is_reserved = false;
        self.len += 1;
        slot.record = Some(Record {
            partition,
            meta,
            priority: bounded(priority),
            spawned: tick,
            entered: tick,
            structure_changed: tick,
            changed: tick,
            components: SmallVec::new(),
            older: None,
            newer: None,
        });
        self.link_newest(net);
    }

    /// An id that no other entity has or had, for one to be [spawned](Self::spawn_as), or [despawned](Self::despawn)
    /// before it comes to that.
    pub fn reserve(&mut self) -> NetId {
        let Some(Reverse(index)) = self.free.pop() else {
            let net = NetId::new(self.slots.len() as u32, 0);
            self.slots.push(Slot {
                net,
                is_reserved: true,
                record: None,
            });
            return net;
        };
        let slot = &mut self.slots[index as usize];
        slot.net = slot.net.successor();
        slot.is_reserved = true;
        slot.net
    }

    /// Removes an entity; the index of its id is given out again once [`Self::reclaim`] says that every client knows.
    pub fn despawn(&mut self, tick: Tick, net: NetId) {
        let Some(slot) = self.slots.get_mut(net.index() as usize) else {
            return;
        };
        if slot.net != net {
            return;
        }
        if slot.is_reserved {
            // Nobody was told of it.
            slot.is_reserved = false;
            self.free.push(Reverse(net.index()));
        }
        if self.record(net).is_none() {
            return;
        }
        self.leave_partition(tick, net);
        self.slots[net.index() as usize].record = None;
        self.len -= 1;
        self.retired.push_back((tick, net));
    }

    /// Moves an entity to another partition: hidden from those who see only the old one, shown to those of the new.
    pub fn move_to(&mut self, tick: Tick, net: NetId, partition: PartitionId) {
        let Some(record) = self.record(net) else {
            return;
        };
        if record.partition == partition || self.partition(partition).is_none() {
            return;
        }
        self.leave_partition(tick, net);
        if let Some(record) = self.record_mut(net) {
            record.partition = partition;
            record.entered = tick;
            record.changed = tick;
        }
        self.link_newest(net);
    }

    /// Sets owner and prediction role.
    pub fn set_meta(&mut self, tick: Tick, net: NetId, meta: Meta) {
        if let Some(record) = self.record_mut(net)
            && record.meta != meta
        {
            record.meta = meta;
            record.structure_changed = tick;
            self.touch(tick, net);
        }
    }

    /// Sets the weight of an entity against others when not everything fits; see [`Self::spawn`].
    pub fn set_priority(&mut self, net: NetId, priority: f32) {
        if let Some(record) = self.record_mut(net) {
            record.priority = bounded(priority);
        }
    }

    /// Sets a quantised component. A value that quantises to the one before is no change.
    ///
    /// # Panics
    ///
    /// When there are not as many words as the component's layout has fields.
    pub fn set_words(&mut self, tick: Tick, net: NetId, id: ComponentId, words: &[u32]) {
        let changed = self.with_component(tick, net, id, |value| match value {
            StoredValue::Words(history) => history.push(tick, words),
            StoredValue::Bytes(_) => false,
        });
        if changed {
            self.touch(tick, net);
        }
    }

    /// Sets a serialised component. Equal bytes are no change.
    pub fn set_bytes(&mut self, tick: Tick, net: NetId, id: ComponentId, bytes: &[u8]) {
        let changed = self.with_component(tick, net, id, |value| match value {
            StoredValue::Bytes(current) if current != bytes => {
                *current = Bytes::copy_from_slice(bytes);
                true
            }
            _ => false,
        });
        if changed {
            self.touch(tick, net);
        }
    }

    /// Removes a component.
    pub fn remove(&mut self, tick: Tick, net: NetId, id: ComponentId) {
        let Some(record) = self.record_mut(net) else {
            return;
        };
        if let Ok(index) = record
            .components
            .binary_search_by_key(&id, |stored| stored.id)
        {
            record.components.remove(index);
            record.structure_changed = tick;
            self.touch(tick, net);
        }
    }

    /// Forgets what no client needs: `oldest_baseline` tells the oldest baseline among those who see a partition, or
    /// the present if nobody does.
    pub fn forget(&mut self, oldest_baseline: impl Fn(PartitionId) -> Tick) {
        for (index, partition) in self.partitions.iter_mut().enumerate() {
            let Some(partition) = partition else { continue };
            let oldest = oldest_baseline(PartitionId(index as u32));
            partition.oldest_baseline = oldest;
            while let Some(&(tick, _)) = partition.tombstones.front()
                && !tick.is_newer_than(oldest)
            {
                partition.tombstones.pop_front();
            }
        }
    }

    /// Gives indices free whose despawn happened at or before `known_everywhere`.
    pub fn reclaim(&mut self, known_everywhere: Tick) {
        while let Some(&(tick, net)) = self.retired.front()
            && !tick.is_newer_than(known_everywhere)
        {
            self.retired.pop_front();
            self.free.push(Reverse(net.index()));
        }
    }

    /// Number of indices that are not given out again yet, since a client may still know what they stood for.
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Number of departures that some client may still have to be told of.
    pub fn tombstones(&self) -> usize {
        let partitions = self.partitions.iter().flatten();
        partitions.map(|partition| partition.tombstones.len()).sum()
    }

    /// Whether an entity is there.
    pub fn contains(&self, net: NetId) -> bool {
        self.record(net).is_some()
    }

    /// Number of entities.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is replicated.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of quantised values held, over all components and ticks: what is remembered for baselines.
    pub fn remembered_values(&self) -> usize {
        let records = self.slots.iter().flat_map(|slot| &slot.record);
        records
            .flat_map(|record| &record.components)
            .map(|stored| match &stored.value {
                StoredValue::Words(history) => history.len(),
                StoredValue::Bytes(_) => 0,
            })
            .sum()
    }

    /// How the components of its entities look.
    pub fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    pub(super) fn record(&self, net: NetId) -> Option<&Record> {
        let slot = self.slots.get(net.index() as usize)?;
        slot.record.as_ref().filter(|_| slot.net == net)
    }

    /// The entities of a partition, the most recently changed first.
    pub(super) fn by_recency(
        &self,
        partition: PartitionId,
    ) -> impl Iterator<Item = (NetId, &Record)> {
        let newest = self
            .partition(partition)
            .and_then(|partition| partition.newest_change);
        std::iter::successors(
            newest.and_then(|net| Some((net, self.record(net)?))),
            |(_, record)| record.older.and_then(|net| Some((net, self.record(net)?))),
        )
    }

    /// The entities of a partition that changed after `tick`, the most recently changed first.
    pub(super) fn changed_since(
        &self,
        partition: PartitionId,
        tick: Tick,
    ) -> impl Iterator<Item = (NetId, &Record)> {
        self.by_recency(partition)
            .take_while(move |(_, record)| record.changed.is_newer_than(tick))
    }

    /// What left a partition after `tick`, the most recent first.
    pub(super) fn tombstones_since(
        &self,
        partition: PartitionId,
        tick: Tick,
    ) -> impl Iterator<Item = NetId> {
        self.partition(partition)
            .into_iter()
            .flat_map(|partition| partition.tombstones.iter().rev())
            .take_while(move |(left, _)| left.is_newer_than(tick))
            .map(|&(_, net)| net)
    }

    fn partition(&self, partition: PartitionId) -> Option<&Partition> {
        self.partitions.get(partition.0 as usize)?.as_ref()
    }

    fn partition_mut(&mut self, partition: PartitionId) -> &mut Partition {
        self.partitions[partition.0 as usize]
            .as_mut()
            .expect("records only name open partitions: closing one moves its members away")
    }

    fn record_mut(&mut self, net: NetId) -> Option<&mut Record> {
        let slot = self.slots.get_mut(net.index() as usize)?;
        slot.record.as_mut().filter(|_| slot.net == net)
    }

    fn with_component(
        &mut self,
        tick: Tick,
        net: NetId,
        id: ComponentId,
        set: impl FnOnce(&mut StoredValue) -> bool,
    ) -> bool {
        let empty = match self.layouts.get(id) {
            Some(Layout::Words(fields)) => StoredValue::Words(History::new(fields.len())),
            Some(Layout::Bytes) => StoredValue::Bytes(Bytes::new()),
            None => return false,
        };
        let slot = self.slots.get_mut(net.index() as usize);
        let Some(record) = slot
            .filter(|slot| slot.net == net)
            .and_then(|slot| slot.record.as_mut())
        else {
            return false;
        };
        let (index, added) = match record
            .components
            .binary_search_by_key(&id, |stored| stored.id)
        {
            Ok(index) => (index, false),
            Err(index) => {
                let stored = Stored {
                    id,
                    inserted: tick,
                    changed: tick,
                    value: empty,
                };
                record.components.insert(index, stored);
                record.structure_changed = tick;
                (index, true)
            }
        };
        let stored = &mut record.components[index];
        let changed = set(&mut stored.value);
        if changed {
            stored.changed = tick;
            if let StoredValue::Words(history) = &mut stored.value
                && let Some(Some(partition)) = self.partitions.get(record.partition.0 as usize)
            {
                history.forget_before(partition.oldest_baseline);
            }
        }
        changed || added
    }

    /// Marks an entity as changed: it becomes the newest of its partition.
    fn touch(&mut self, tick: Tick, net: NetId) {
        let Some(record) = self.record_mut(net) else {
            return;
        };
        record.changed = tick;
        let partition = record.partition;
        if self.partition_mut(partition).newest_change != Some(net) {
            self.unlink(net);
            self.link_newest(net);
        }
    }

    fn leave_partition(&mut self, tick: Tick, net: NetId) {
        self.unlink(net);
        if let Some(partition) = self.record(net).map(|record| record.partition) {
            self.partition_mut(partition)
                .tombstones
                .push_back((tick, net));
        }
    }

    fn link_newest(&mut self, net: NetId) {
        let Some(partition) = self.record(net).map(|record| record.partition) else {
            return;
        };
        let before = self.partition_mut(partition).newest_change.replace(net);
        if let Some(before) = before.and_then(|before| self.record_mut(before)) {
            before.newer = Some(net);
        }
        if let Some(record) = self.record_mut(net) {
            record.older = before;
            record.newer = None;
        }
    }

    fn unlink(&mut self, net: NetId) {
        let Some(record) = self.record_mut(net) else {
            return;
        };
        let (partition, older, newer) =
            (record.partition, record.older.take(), record.newer.take());
        if let Some(older) = older.and_then(|older| self.record_mut(older)) {
            older.newer = newer;
        }
        match newer.and_then(|newer| self.record_mut(newer)) {
            Some(newer) => newer.older = older,
            None => self.partition_mut(partition).newest_change = older,
        }
    }
}

fn bounded(priority: f32) -> f32 {
    if priority.is_nan() {
        return 1.0;
    }
    priority.clamp(0.01, 100.0)
}
