//! A client's copy of what the server replicates to it.
//!
//! Snapshots are taken strictly in order: one that arrives after a newer one is not taken and not acknowledged, so
//! the server sends again whatever only it contained. That keeps a client's knowledge a straight line, and makes
//! "acknowledged" mean "stored".
//!
//! A snapshot is read before any of it is applied, so one that is refused changes nothing. What it told is missing from
//! then on, so the whole epoch is given up: the server is asked to start over, and what comes in a new epoch builds on
//! nothing from before.

use bevy::platform::collections::HashMap;
use bevy::platform::hash::FixedHasher;
use bytes::Bytes;
use indexmap::IndexMap;

use super::draft::{Draft, DraftKind, DraftRecord, Known};
use super::layout::{ComponentId, History, Layout, Layouts, Meta, NetId};
use super::snapshot::SnapshotHeader;
use super::view::ApartValue;
use crate::tick::Tick;
use crate::wire::WireError;
use crate::wire::bits::BitReader;

/// A client's copy of the replicated entities.
#[derive(Debug)]
pub struct Replica {
    held: Held,
    newest: Option<Tick>,
    /// The epoch of the newest snapshot taken.
    epoch: Option<u8>,
    /// Of which epoch a snapshot was refused, if none of another has been taken since.
    given_up: Option<u8>,
    max_entities: usize,
    draft: Draft,
}

/// What a replica holds.
#[derive(Debug)]
struct Held {
    layouts: Layouts,
    entities: Entities,
    early: EarlyValues,
    newest_complete: Option<Tick>,
}

/// By the indices of their ids.
pub(super) type Entities = IndexMap<u32, ReplicaEntity, FixedHasher>;

/// One replicated entity.
#[derive(Debug, Default)]
pub struct ReplicaEntity {
    pub(super) generation: u32,
    /// Owner and prediction role.
    pub meta: Meta,
    mentioned: Tick,
    /// Until when the values before the newest mention are known to have held.
    held: Tick,
    pub(super) components: Vec<Component>,
}

#[derive(Debug)]
pub(super) struct Component {
    pub id: ComponentId,
    /// Insertions up to this tick are known.
    inserted: Tick,
    pub value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Words(History),
    /// `version` names a value that came as a message of its own.
    Bytes {
        bytes: Bytes,
        version: Option<u32>,
    },
    /// Known to exist; its value is still to come as a message.
    Awaited {
        version: u32,
    },
    /// Announced, while its record is read.
    Missing,
}

/// A component's newest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueRef<'a> {
    /// Quantised.
    Words(&'a [u32]),
    /// Serialised.
    Bytes(&'a [u8]),
}

/// What a snapshot did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The server tells everything anew: all entities are forgotten, and those that there still are follow, with the
    /// same ids. What the first complete snapshot has not named by its end is gone. Always the first change.
    StartedOver,
    /// A new entity; its components follow.
    Spawned(NetId),
    /// Owner or prediction role differ.
    MetaChanged(NetId),
    /// A component is new or has another value.
    Set(NetId, ComponentId),
    /// A component is no longer there. If a [`Self::Set`] follows for it, it was removed and inserted again.
    Removed(NetId, ComponentId),
    /// The entity is gone, or out of sight.
    Despawned(NetId),
}

/// Why a snapshot was not taken. Nothing of it was applied, and its datagram must not be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A newer one came first: ordinary life on a network that reorders.
    #[error("the snapshot is older than one that was already taken")]
    Stale,
    /// It belongs to an epoch of which a snapshot was refused; see [`Replica::resync_epoch`].
    #[error("the snapshot belongs to an epoch that was given up")]
    GivenUp,
    /// It refers to state that this client does not have; ask the server to start over.
    #[error("the snapshot builds on state this client does not have")]
    MissingBaseline,
    /// It is not a snapshot.
    #[error("the snapshot is malformed: {0}")]
    Malformed(#[from] WireError),
    /// It describes more entities than this client is willing to hold.
    #[error("the snapshot exceeds the limit of {0} entities")]
    TooManyEntities(usize),
}

/// A taken snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its header.
    pub header: SnapshotHeader,
    /// Whether it holds everything that had changed. If not, an entity that it does not mention may be older.
    pub complete: bool,
}

/// Values that have come as messages, since they may come before the snapshot which mentions them.
///
/// Some are never mentioned, since their entities have gone, and some twice. So values are held in two generations: when the newer one
/// is full, the older is dropped.
#[derive(Debug, Default)]
struct EarlyValues {
    newer: HashMap<(NetId, ComponentId), ApartValue>,
    newer_bytes: usize,
    older: HashMap<(NetId, ComponentId), ApartValue>,
}

impl EarlyValues {
    /// For each generation. Values come right before they are mentioned, so this is ample.
    const MAX_BYTES: usize = 4 << 20;

    fn insert(&mut self, value: ApartValue) {
        let key = (value.net, value.component);
        self.forget(key);
        let bytes = Self::held_bytes(&value);
        if self.newer_bytes + bytes > Self::MAX_BYTES {
            self.older = std::mem::take(&mut self.newer);
            self.newer_bytes = 0;
        }
        self.newer_bytes += bytes;
        self.newer.insert(key, value);
    }

    fn get(&self, key: (NetId, ComponentId)) -> Option<&ApartValue> {
        self.newer.get(&key).or_else(|| self.older.get(&key))
    }

    fn forget(&mut self, key: (NetId, ComponentId)) {
        if let Some(value) = self.newer.remove(&key) {
            self.newer_bytes -= Self::held_bytes(&value);
        }
        self.older.remove(&key);
    }

    fn held_bytes(value: &ApartValue) -> usize {
        size_of::<ApartValue>() + value.bytes.len()
    }
}

impl Replica {
    /// An empty copy that will hold at most `max_entities`.
    pub fn new(layouts: Layouts, max_entities: usize) -> Self {
        Self {
            held: Held {
                layouts,
                entities: Entities::default(),
                early: EarlyValues::default(),
                newest_complete: None,
            },
            newest: None,
            epoch: None,
            given_up: None,
            max_entities,
            draft: Draft::default(),
        }
    }

    /// Tick of the newest snapshot taken.
    pub fn newest(&self) -> Option<Tick> {
        self.newest
    }

    /// Tick of the newest snapshot taken that held everything.
    pub fn newest_complete(&self) -> Option<Tick> {
        self.held.newest_complete
    }

    /// The epoch that the server must leave, since a snapshot of it was refused: ask it to start over, and again until
    /// this is `None`.
    pub fn resync_epoch(&self) -> Option<u8> {
        self.given_up
    }

    /// The entities held.
    pub fn entities(&self) -> impl Iterator<Item = (NetId, &ReplicaEntity)> {
        self.held
            .entities
            .iter()
            .map(|(&index, entity)| (NetId::new(index, entity.generation), entity))
    }

    /// One entity.
    pub fn entity(&self, net: NetId) -> Option<&ReplicaEntity> {
        let entity = self.held.entities.get(&net.index())?;
        (entity.generation == net.generation()).then_some(entity)
    }

    /// The tick of which an entity's values are known to be the server's: its values have not changed from when they
    /// were received until then.
    pub fn confirmed(&self, net: NetId) -> Option<Tick> {
        self.known(net).map(|(_, confirmed)| confirmed)
    }

    /// An entity, and the tick for which it is [confirmed](Self::confirmed).
    pub fn known(&self, net: NetId) -> Option<(&ReplicaEntity, Tick)> {
        let entity = self.entity(net)?;
        let complete = self.held.newest_complete.unwrap_or(entity.mentioned);
        Some((entity, complete.latest(entity.mentioned)))
    }

    /// Takes a snapshot; what it did is appended to `changes`.
    ///
    /// `anchor` is any tick known to be near the server's, for the first snapshot.
    ///
    /// # Errors
    ///
    /// See [`SnapshotError`]. Nothing is changed then, except that the epoch is given up if the snapshot was not merely
    /// [stale](SnapshotError::Stale).
    pub fn handle_snapshot(
        &mut self,
        anchor: Tick,
        bytes: &[u8],
        changes: &mut Vec<Change>,
    ) -> Result<Taken, SnapshotError> {
        let mut input = BitReader::new(bytes);
        let header = SnapshotHeader::read(self.newest.unwrap_or(anchor), &mut input)
            .inspect_err(|_| self.given_up = self.given_up.or(Some(self.epoch.unwrap_or(0))))?;
        let is_old = |newest| !header.tick.is_newer_than(newest);
        if self.newest.is_some_and(is_old) {
            return Err(SnapshotError::Stale);
        }
        if self.given_up == Some(header.epoch) {
            return Err(SnapshotError::GivenUp);
        }
        let starts_over = self.epoch.is_some_and(|epoch| epoch != header.epoch);
        let known = Known {
            layouts: &self.held.layouts,
            entities: (!starts_over).then_some(&self.held.entities),
            max_entities: self.max_entities,
        };
        self.draft.clear();
        let complete = self
            .draft
            .read(known, &header, &mut input)
            .inspect_err(|_| self.given_up = Some(header.epoch))?;
        self.given_up = None;
        self.epoch = Some(header.epoch);
        if starts_over {
            self.held.entities.clear();
            self.held.newest_complete = None;
            changes.push(Change::StartedOver);
        }
        self.held.apply(&header, &mut self.draft, changes);
        self.newest = Some(header.tick);
        if complete {
            self.held.newest_complete = Some(header.tick);
        }
        Ok(Taken { header, complete })
    }

    /// Takes a value that was too large for a snapshot.
    pub fn handle_apart(&mut self, value: ApartValue, changes: &mut Vec<Change>) {
        // It is kept also where it fits: it may have been meant for when the entity comes back, or is told anew, and have
        // overtaken the snapshot that says so.
        self.held.early.insert(value.clone());
        self.held.fill(value, changes);
    }
}

impl Held {
    /// Brings the entities up to date with a snapshot that fits them.
    fn apply(&mut self, header: &SnapshotHeader, draft: &mut Draft, changes: &mut Vec<Change>) {
        let mut arrived = Arrived {
            inline: std::mem::take(&mut draft.inline),
            words: &draft.words,
        };
        for record in draft.records() {
            self.apply_record(header, record, &mut arrived, changes);
        }
        draft.inline = arrived.inline;
        for &index in &draft.gone {
            // What left one place may have entered another, in whichever order they are told. Values that came early
            // stay: they may be for when it comes back.
            let is_mentioned = |entity: &ReplicaEntity| entity.mentioned == header.tick;
            if !self.entities.get(&index).is_some_and(is_mentioned)
                && let Some(entity) = self.entities.swap_remove(&index)
            {
                changes.push(Change::Despawned(NetId::new(index, entity.generation)));
            }
        }
    }

    fn apply_record(
        &mut self,
        header: &SnapshotHeader,
        record: DraftRecord,
        arrived: &mut Arrived,
        changes: &mut Vec<Change>,
    ) {
        let DraftRecord { net, base, .. } = record;
        let tick = header.tick;
        let place = self.make_room(net, record.place, changes);
        let entity = &mut self.entities[place];
        let complete = self.newest_complete.unwrap_or(entity.mentioned);
        entity.held = entity.mentioned.latest(complete);
        entity.mentioned = tick;
        if let Some(meta) = record.meta {
            if meta != entity.meta {
                entity.meta = meta;
                changes.push(Change::MetaChanged(net));
            }
            entity.set_structure(&self.layouts, record.structure, tick, |removed| {
                changes.push(Change::Removed(net, removed));
            });
        }
        let mut awaited = Vec::new();
        // Both are in the order of their ids, and nothing is read for a component that is not there.
        let mut components = entity.components.iter_mut();
        for value in record.values {
            let id = value.component;
            let Some(component) = components.find(|component| component.id == id) else {
                break;
            };
            let is_again = value
                .inserted
                .is_some_and(|inserted| inserted.is_newer_than(component.inserted));
            if is_again {
                component.inserted = tick;
                component.value = Value::empty(&self.layouts, id);
                changes.push(Change::Removed(net, id));
            }
            match component.set(value.value, base, tick, arrived) {
                News::New => changes.push(Change::Set(net, id)),
                News::Apart => awaited.push(id),
                News::Known => {}
            }
        }
        for id in awaited {
            if let Some(early) = self.early.get((net, id)).cloned() {
                self.fill(early, changes);
            }
        }
    }

    /// Puts a value where it is awaited.
    fn fill(&mut self, value: ApartValue, changes: &mut Vec<Change>) {
        let slot = self
            .entities
            .get_mut(&value.net.index())
            .filter(|entity| entity.generation == value.net.generation())
            .and_then(|entity| entity.component_mut(value.component))
            .map(|component| &mut component.value);
        if let Some(slot) = slot
            && matches!(slot, Value::Awaited { version } if *version == value.version)
        {
            *slot = Value::Bytes {
                bytes: value.bytes,
                version: Some(value.version),
            };
            changes.push(Change::Set(value.net, value.component));
        }
    }

    /// Sees to it that the entity with this index is the one that is meant, and says at which place it is. `known` is the
    /// place, if its index has one.
    fn make_room(&mut self, net: NetId, known: Option<usize>, changes: &mut Vec<Change>) -> usize {
        let known = known.or_else(|| self.entities.get_index_of(&net.index()));
        if let Some(place) = known {
            let generation = self.entities[place].generation;
            if generation == net.generation() {
                return place;
            }
            // Another has its index now, so it is gone.
            changes.push(Change::Despawned(NetId::new(net.index(), generation)));
        }
        let entity = ReplicaEntity {
            generation: net.generation(),
            ..ReplicaEntity::default()
        };
        changes.push(Change::Spawned(net));
        self.entities.insert_full(net.index(), entity).0
    }
}

impl ReplicaEntity {
    /// The tick for which its values before those of the newest mention were last known to be the server's.
    pub fn held(&self) -> Tick {
        self.held
    }

    /// Its components and their newest values, in the order of registration. Values still awaited are left out.
    pub fn values(&self) -> impl Iterator<Item = (ComponentId, ValueRef<'_>)> {
        self.components
            .iter()
            .filter_map(|component| Some((component.id, component.value.newest()?)))
    }

    /// Whether it has a component, also one whose value is still awaited.
    pub fn has(&self, id: ComponentId) -> bool {
        self.component(id).is_some()
    }

    /// The newest value of a component.
    pub fn value(&self, id: ComponentId) -> Option<ValueRef<'_>> {
        self.component(id)?.value.newest()
    }

    fn find(&self, id: ComponentId) -> Result<usize, usize> {
        self.components
            .binary_search_by_key(&id, |component| component.id)
    }

    pub(super) fn component(&self, id: ComponentId) -> Option<&Component> {
        Some(&self.components[self.find(id).ok()?])
    }

    fn component_mut(&mut self, id: ComponentId) -> Option<&mut Component> {
        let index = self.find(id).ok()?;
        Some(&mut self.components[index])
    }

    fn set_structure(
        &mut self,
        layouts: &Layouts,
        structure: &[ComponentId],
        tick: Tick,
        mut removed: impl FnMut(ComponentId),
    ) {
        self.components.retain(|component| {
            let stays = structure.contains(&component.id);
            if !stays {
                removed(component.id);
            }
            stays
        });
        for &id in structure {
            if let Err(index) = self.find(id) {
                let component = Component {
                    id,
                    inserted: tick,
                    value: Value::empty(layouts, id),
                };
                self.components.insert(index, component);
            }
        }
    }
}

/// The values that have come with a snapshot.
struct Arrived<'a> {
    words: &'a [u32],
    inline: Vec<Bytes>,
}

/// What a value that came is to an entity.
enum News {
    New,
    Known,
    /// It comes as a message, or has come already.
    Apart,
}

impl Component {
    fn set(
        &mut self,
        value: DraftKind,
        base: Option<Tick>,
        tick: Tick,
        arrived: &mut Arrived,
    ) -> News {
        let is_new = match (value, &mut self.value) {
            (DraftKind::Words { start, is_delta }, Value::Words(history)) => {
                if is_delta && let Some(base) = base {
                    history.forget_before(base);
                }
                let start = start as usize;
                history.push(tick, &arrived.words[start..start + history.words()])
            }
            (DraftKind::Words { .. }, _) => false, // a layout does not change
            (DraftKind::Inline(index), current) => {
                let new = std::mem::take(&mut arrived.inline[index as usize]);
                let same = matches!(&*current, Value::Bytes { bytes, .. } if *bytes == new);
                if !same {
                    *current = Value::Bytes {
                        bytes: new,
                        version: None,
                    };
                }
                !same
            }
            (DraftKind::Apart { version }, current) => {
                let same =
                    matches!(&*current, Value::Bytes { version: had, .. } if *had == Some(version));
                if !same {
                    *current = Value::Awaited { version };
                    return News::Apart;
                }
                false
            }
        };
        match is_new {
            true => News::New,
            false => News::Known,
        }
    }
}

impl Value {
    /// No value yet.
    fn empty(layouts: &Layouts, id: ComponentId) -> Self {
        match layouts.get(id) {
            Some(Layout::Words(fields)) => Self::Words(History::new(fields.len())),
            _ => Self::Missing,
        }
    }

    /// The quantised value that held at `tick`.
    pub fn at(&self, tick: Tick) -> Option<&[u32]> {
        match self {
            Self::Words(history) => history.at(tick),
            _ => None,
        }
    }

    #[inline]
    pub fn is_missing(&self) -> bool {
        self.newest().is_none() && !matches!(self, Self::Awaited { .. })
    }

    fn newest(&self) -> Option<ValueRef<'_>> {
        match self {
            Self::Words(history) => history.last().map(ValueRef::Words),
            Self::Bytes { bytes, .. } => Some(ValueRef::Bytes(bytes)),
            Self::Awaited { .. } | Self::Missing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_nobody_mentions_do_not_pile_up() {
        let mut replica = Replica::new(Layouts::new([Layout::Bytes]), 10);
        for net in 0..400_000 {
            let value = ApartValue {
                net: NetId::new(net, 0),
                component: ComponentId(0),
                version: 0,
                bytes: Bytes::new(),
            };
            replica.handle_apart(value, &mut Vec::new());
        }
        let held = replica.held.early.newer.len() + replica.held.early.older.len();
        assert!(held * size_of::<ApartValue>() <= 2 * EarlyValues::MAX_BYTES);
        let newest = replica
            .held
            .early
            .get((NetId::new(399_999, 0), ComponentId(0)));
        assert!(newest.is_some(), "the newest are the ones that are kept");
    }
}
