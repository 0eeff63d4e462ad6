//! A client's copy of what the server replicates to it.
//!
//! Snapshots are taken strictly in order: one that arrives after a newer one is not taken and not acknowledged, so
//! the server sends again whatever only it contained. That keeps a client's knowledge a straight line, and makes
//! "acknowledged" mean "stored".

use bevy::platform::collections::HashMap;
use bytes::Bytes;

use super::layout::{ComponentId, History, Layout, Layouts, Meta, NetId};
use super::snapshot::{self, Base, BytesValue, IdCoder, SnapshotHeader};
use super::view::ApartValue;
use crate::tick::Tick;
use crate::wire::WireError;
use crate::wire::bits::BitReader;
use crate::wire::quantize;

/// A client's copy of the replicated entities.
#[derive(Debug)]
pub struct Replica {
    layouts: Layouts,
    entities: HashMap<NetId, ReplicaEntity>,
    newest: Option<Tick>,
    newest_complete: Option<Tick>,
    early: EarlyValues,
    max_entities: usize,
    structure: Vec<ComponentId>,
}

/// One replicated entity.
#[derive(Debug, Default)]
pub struct ReplicaEntity {
    /// Owner and prediction role.
    pub meta: Meta,
    mentioned: Tick,
    /// Until when the values before the newest mention are known to have held.
    held: Tick,
    components: Vec<(ComponentId, Value)>,
}

#[derive(Debug)]
enum Value {
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
    /// A new entity; its components follow.
    Spawned(NetId),
    /// Owner or prediction role differ.
    MetaChanged(NetId),
    /// A component is new or has another value.
    Set(NetId, ComponentId),
    /// A component is no longer there.
    Removed(NetId, ComponentId),
    /// The entity is gone, or out of sight.
    Despawned(NetId),
}

/// Why a snapshot was not taken. None of these is acknowledged, so nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A newer one came first: ordinary life on a network that reorders.
    #[error("the snapshot is older than one that was already taken")]
    Stale,
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

/// Values that came before the snapshot which mentions them.
///
/// Some are never mentioned, since their entities have gone. So values are held in two generations: when the newer one
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
        self.take(key);
        let bytes = Self::held_bytes(&value);
        if self.newer_bytes + bytes > Self::MAX_BYTES {
            self.older = std::mem::take(&mut self.newer);
            self.newer_bytes = 0;
        }
        self.newer_bytes += bytes;
        self.newer.insert(key, value);
    }

    fn take(&mut self, key: (NetId, ComponentId)) -> Option<ApartValue> {
        if let Some(value) = self.newer.remove(&key) {
            self.newer_bytes -= Self::held_bytes(&value);
            return Some(value);
        }
        self.older.remove(&key)
    }

    fn held_bytes(value: &ApartValue) -> usize {
        size_of::<ApartValue>() + value.bytes.len()
    }
}

impl Replica {
    /// An empty copy that will hold at most `max_entities`.
    pub fn new(layouts: Layouts, max_entities: usize) -> Self {
        Self {
            layouts,
            entities: HashMap::default(),
            newest: None,
            newest_complete: None,
            early: EarlyValues::default(),
            max_entities,
            structure: Vec::new(),
        }
    }

    /// Tick of the newest snapshot taken.
    pub fn newest(&self) -> Option<Tick> {
        self.newest
    }

    /// Tick of the newest snapshot taken that held everything.
    pub fn newest_complete(&self) -> Option<Tick> {
        self.newest_complete
    }

    /// The entities held.
    pub fn entities(&self) -> impl Iterator<Item = (NetId, &ReplicaEntity)> {
        self.entities.iter().map(|(&net, entity)| (net, entity))
    }

    /// One entity.
    pub fn entity(&self, net: NetId) -> Option<&ReplicaEntity> {
        self.entities.get(&net)
    }

    /// The tick of which an entity's values are known to be the server's: its values have not changed from when they
    /// were received until then.
    pub fn confirmed(&self, net: NetId) -> Option<Tick> {
        let mentioned = self.entities.get(&net)?.mentioned;
        Some(
            self.newest_complete
                .map_or(mentioned, |complete| complete.latest(mentioned)),
        )
    }

    /// Takes a snapshot; what it did is appended to `changes`.
    ///
    /// `anchor` is any tick known to be near the server's, for the first snapshot.
    ///
    /// # Errors
    ///
    /// See [`SnapshotError`]. A malformed snapshot may have been taken in part. None of it is built upon as long as the
    /// server is not told that it arrived.
    pub fn handle_snapshot(
        &mut self,
        anchor: Tick,
        bytes: &[u8],
        changes: &mut Vec<Change>,
    ) -> Result<Taken, SnapshotError> {
        let mut input = BitReader::new(bytes);
        let header = SnapshotHeader::read(self.newest.unwrap_or(anchor), &mut input)?;
        if self
            .newest
            .is_some_and(|newest| !header.tick.is_newer_than(newest))
        {
            return Err(SnapshotError::Stale);
        }
        let mut gone = Vec::new();
        while input.read_bit()? {
            let mut ids = IdCoder::default();
            while input.read_bit()? {
                gone.push(ids.read(&mut input)?);
            }
            let mut ids = IdCoder::default();
            while input.read_bit()? {
                let net = ids.read(&mut input)?;
                self.read_record(&header, net, &mut input, changes)?;
            }
        }
        let complete = input.read_bit()?;
        for net in gone {
            // What left one place may have entered another, in whichever order they are told. Values that came early
            // stay: they may be for when it comes back.
            let stays = |entity: &ReplicaEntity| entity.mentioned == header.tick;
            if !self.entities.get(&net).is_some_and(stays) && self.entities.remove(&net).is_some() {
                changes.push(Change::Despawned(net));
            }
        }
        self.newest = Some(header.tick);
        if complete {
            self.newest_complete = Some(header.tick);
        }
        Ok(Taken { header, complete })
    }

    /// Takes a value that was too large for a snapshot.
    pub fn handle_apart(&mut self, value: ApartValue, changes: &mut Vec<Change>) {
        let key = (value.net, value.component);
        let slot = self
            .entities
            .get_mut(&key.0)
            .and_then(|entity| entity.value_mut(key.1));
        if let Some(slot) = slot
            && matches!(slot, Value::Awaited { version } if *version == value.version)
        {
            *slot = Value::Bytes {
                bytes: value.bytes,
                version: Some(value.version),
            };
            changes.push(Change::Set(key.0, key.1));
            return;
        }
        // Also one that is here already is kept: it is sent again for an entity that went and came back, and may
        // overtake the snapshot in which it goes.
        self.early.insert(value);
    }

    fn read_record(
        &mut self,
        header: &SnapshotHeader,
        net: NetId,
        input: &mut BitReader,
        changes: &mut Vec<Change>,
    ) -> Result<(), SnapshotError> {
        let tick = header.tick;
        let base = Base::read(tick, input)?;
        let known = match base {
            Base::Nothing => None,
            Base::Snapshot => Some(header.baseline),
            Base::Own(tick) => Some(tick),
        };
        if known.is_none() && !self.entities.contains_key(&net) {
            if self.entities.len() >= self.max_entities {
                return Err(SnapshotError::TooManyEntities(self.max_entities));
            }
            self.entities.insert(net, ReplicaEntity::default());
            changes.push(Change::Spawned(net));
        }
        let Some(entity) = self.entities.get_mut(&net) else {
            return Err(SnapshotError::MissingBaseline);
        };
        let complete = self.newest_complete.unwrap_or(entity.mentioned);
        entity.held = entity.mentioned.latest(complete);
        entity.mentioned = tick;
        if known.is_none() || input.read_bit()? {
            let meta = snapshot::read_structure(&self.layouts, input, &mut self.structure)?;
            if meta != entity.meta {
                entity.meta = meta;
                changes.push(Change::MetaChanged(net));
            }
            entity.set_structure(&self.layouts, &self.structure, |removed| {
                changes.push(Change::Removed(net, removed));
            });
        }
        let mut awaited = Vec::new();
        for (id, value) in &mut entity.components {
            if known.is_some() && !input.read_bit()? {
                if value.is_missing() {
                    return Err(WireError::InvalidValue("a new component without a value").into());
                }
                continue;
            }
            match (self.layouts.get(*id), &mut *value) {
                (Some(Layout::Words(fields)), Value::Words(history)) => {
                    let mut words = [0; quantize::MAX_WORDS];
                    let words = &mut words[..fields.len()];
                    match known {
                        Some(known) if !input.read_bit()? => {
                            let base = history.at(known).ok_or(SnapshotError::MissingBaseline)?;
                            quantize::read_delta(fields, base, words, input)?;
                            history.forget_before(known);
                        }
                        _ => quantize::read_full(fields, words, input)?,
                    }
                    if history.push(tick, words) {
                        changes.push(Change::Set(net, *id));
                    }
                }
                _ => match BytesValue::read(input)? {
                    BytesValue::Inline(new) => {
                        let same = matches!(&*value, Value::Bytes { bytes, .. } if *bytes == new);
                        if !same {
                            *value = Value::Bytes {
                                bytes: new.into(),
                                version: None,
                            };
                            changes.push(Change::Set(net, *id));
                        }
                    }
                    BytesValue::Apart { version } => {
                        let same = matches!(&*value, Value::Bytes { version: had, .. } if *had == Some(version));
                        if !same {
                            *value = Value::Awaited { version };
                            awaited.push(*id);
                        }
                    }
                },
            }
        }
        for id in awaited {
            if let Some(early) = self.early.take((net, id)) {
                self.handle_apart(early, changes);
            }
        }
        Ok(())
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
            .filter_map(|(id, value)| Some((*id, value.newest()?)))
    }

    /// Whether it has a component, also one whose value is still awaited.
    pub fn has(&self, id: ComponentId) -> bool {
        self.components.iter().any(|(of, _)| *of == id)
    }

    /// The newest value of a component.
    pub fn value(&self, id: ComponentId) -> Option<ValueRef<'_>> {
        let index = self
            .components
            .binary_search_by_key(&id, |(id, _)| *id)
            .ok()?;
        self.components[index].1.newest()
    }

    fn value_mut(&mut self, id: ComponentId) -> Option<&mut Value> {
        let index = self
            .components
            .binary_search_by_key(&id, |(id, _)| *id)
            .ok()?;
        Some(&mut self.components[index].1)
    }

    fn set_structure(
        &mut self,
        layouts: &Layouts,
        structure: &[ComponentId],
        mut removed: impl FnMut(ComponentId),
    ) {
        self.components.retain(|(id, _)| {
            let stays = structure.contains(id);
            if !stays {
                removed(*id);
            }
            stays
        });
        for &id in structure {
            if let Err(index) = self.components.binary_search_by_key(&id, |(id, _)| *id) {
                let value = match layouts.get(id) {
                    Some(Layout::Words(fields)) => Value::Words(History::new(fields.len())),
                    _ => Value::Missing,
                };
                self.components.insert(index, (id, value));
            }
        }
    }
}

impl Value {
    fn is_missing(&self) -> bool {
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
                net: NetId(net),
                component: ComponentId(0),
                version: 0,
                bytes: Bytes::new(),
            };
            replica.handle_apart(value, &mut Vec::new());
        }
        let held = replica.early.newer.len() + replica.early.older.len();
        assert!(held * size_of::<ApartValue>() <= 2 * EarlyValues::MAX_BYTES);
        let newest = replica.early.take((NetId(399_999), ComponentId(0)));
        assert!(newest.is_some(), "the newest are the ones that are kept");
    }
}
