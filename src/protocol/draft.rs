//! A snapshot that has been read, and is still to be applied.
//!
//! Everything is checked when it is read, against what the client holds. What is applied afterwards fits.

use bytes::Bytes;

use super::layout::{ComponentId, Layout, Layouts, Meta, NetId};
use super::replica::{Component, Entities, ReplicaEntity, SnapshotError};
use super::snapshot::{self, Base, BytesValue, IdCoder, SnapshotHeader};
use crate::tick::Tick;
use crate::wire::WireError;
use crate::wire::bits::BitReader;

/// A snapshot that has been read.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub gone: Vec<u32>,
    records: Vec<ReadRecord>,
    /// The component lists of those records that have one.
    structures: Vec<ComponentId>,
    values: Vec<DraftValue>,
    pub words: Vec<u32>,
    pub inline: Vec<Bytes>,
    /// Entities that are not held yet.
    spawned: usize,
    /// Where the next entity is expected: right after the one before, as they are told in the order of their ids.
    next_place: usize,
}

#[derive(Clone, Copy, Debug)]
struct ReadRecord {
    net: NetId,
    place: Option<u32>,
    base: Option<Tick>,
    meta: Option<Meta>,
    /// Where its component list ends, and its values.
    structures_end: u32,
    values_end: u32,
}

/// What a snapshot says of an entity.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftRecord<'a> {
    pub net: NetId,
    /// Its place among the entities that are held, if it has one. Places hold until one is removed.
    pub place: Option<usize>,
    /// What it is a difference to; `None` for whole entities.
    pub base: Option<Tick>,
    /// With the list of components, if either may be new.
    pub meta: Option<Meta>,
    pub structure: &'a [ComponentId],
    pub values: &'a [DraftValue],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DraftValue {
    pub component: ComponentId,
    /// When it was inserted, if that is news.
    pub inserted: Option<Tick>,
    pub value: DraftKind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum DraftKind {
    /// Where its words begin, and whether they were a difference.
    Words {
        start: u32,
        is_delta: bool,
    },
    /// Which of the serialised values it is.
    Inline(u32),
    Apart {
        version: u32,
    },
}

/// What a snapshot is read against.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub layouts: &'a Layouts,
    /// `None` where the server tells everything anew.
    pub entities: Option<&'a Entities>,
    pub max_entities: usize,
}

impl Draft {
    pub fn clear(&mut self) {
        self.gone.clear();
        self.records.clear();
        self.structures.clear();
        self.values.clear();
        self.words.clear();
        self.inline.clear();
        self.spawned = 0;
        self.next_place = 0;
    }

    /// What it says of entities, in the order in which it does.
    pub fn records(&self) -> impl Iterator<Item = DraftRecord<'_>> {
        let (mut structures, mut values) = (0, 0);
        self.records.iter().map(move |read| {
            let structure = &self.structures[structures..read.structures_end as usize];
            let of_record = &self.values[values..read.values_end as usize];
            (structures, values) = (read.structures_end as usize, read.values_end as usize);
            DraftRecord {
                net: read.net,
                place: read.place.map(|place| place as usize),
                base: read.base,
                meta: read.meta,
                structure,
                values: of_record,
            }
        })
    }

    /// Reads what follows the header; says whether it is complete.
    pub fn read(
        &mut self,
        known: Known,
        header: &SnapshotHeader,
        input: &mut BitReader,
    ) -> Result<bool, SnapshotError> {
        while input.read_bit()? {
            let mut ids = IdCoder::default();
            while input.read_bit()? {
                self.gone.push(ids.read(input)?);
            }
            let mut ids = IdCoder::default();
            while input.read_bit()? {
                let index = ids.read(input)?;
                self.read_record(known, header, index, input)?;
            }
        }
        Ok(input.read_bit()?)
    }

    /// An entity that is held, and its place.
    #[inline]
    fn find<'a>(&mut self, known: Known<'a>, index: u32) -> Option<(usize, &'a ReplicaEntity)> {
        let entities = known.entities?;
        let next = entities.get_index(self.next_place);
        let found = match next.filter(|(at, _)| **at == index) {
            Some((_, held)) => (self.next_place, held),
            None => {
                let (place, _, held) = entities.get_full(&index)?;
                (place, held)
            }
        };
        self.next_place = found.0 + 1;
        Some(found)
    }

    fn read_record(
        &mut self,
        known: Known,
        header: &SnapshotHeader,
        index: u32,
        input: &mut BitReader,
    ) -> Result<(), SnapshotError> {
        let base = match Base::read(header.tick, input)? {
            Base::Nothing => None,
            Base::Snapshot => Some(header.baseline),
            Base::Own(tick) => Some(tick),
        };
        let (place, held) = self.find(known, index).unzip();
        let (net, held) = match (base, held) {
            (Some(_), Some(held)) => (NetId::new(index, held.generation), Some(held)),
            (Some(_), None) => return Err(SnapshotError::MissingBaseline),
            (None, held) => {
                let net = snapshot::read_generation(index, input)?;
                self.spawned += usize::from(held.is_none());
                let had = known.entities.map_or(0, Entities::len);
                if had + self.spawned > known.max_entities {
                    return Err(SnapshotError::TooManyEntities(known.max_entities));
                }
                let is_it = |held: &&ReplicaEntity| held.generation == net.generation();
                (net, held.filter(is_it))
            }
        };
        let has_structure = base.is_none() || input.read_bit()?;
        let mut meta = None;
        if has_structure {
            let start = self.structures.len();
            let structures = &mut self.structures;
            meta = Some(snapshot::read_structure(known.layouts, input, structures)?);
            for at in start..self.structures.len() {
                let id = self.structures[at];
                let had = held.and_then(|held| held.component(id));
                self.read_value(known.layouts, header.tick, base, true, id, had, input)?;
            }
        } else {
            let held = held.ok_or(SnapshotError::MissingBaseline)?;
            for had in &held.components {
                let (id, had) = (had.id, Some(had));
                self.read_value(known.layouts, header.tick, base, false, id, had, input)?;
            }
        }
        self.records.push(ReadRecord {
            net,
            place: place.map(|place| place as u32),
            base,
            meta,
            structures_end: self.structures.len() as u32,
            values_end: self.values.len() as u32,
        });
        Ok(())
    }

    fn read_value(
        &mut self,
        layouts: &Layouts,
        tick: Tick,
        base: Option<Tick>,
        has_structure: bool,
        id: ComponentId,
        had: Option<&Component>,
        input: &mut BitReader,
    ) -> Result<(), SnapshotError> {
        if base.is_some() && !input.read_bit()? {
            if had.is_none_or(|had| had.value.is_missing()) {
                return Err(WireError::InvalidValue("a new component without a value").into());
            }
            return Ok(());
        }
        let inserted = match has_structure {
            true => snapshot::read_age(tick, input)?,
            false => None,
        };
        let value = match layouts.get(id) {
            Some(Layout::Words(fields)) => {
                let start = self.words.len();
                self.words.resize(start + fields.len(), 0);
                let words = &mut self.words[start..];
                let base = match base {
                    Some(base) if !input.read_bit()? => Some(base),
                    _ => None,
                };
                match base {
                    Some(base) => {
                        let value = had
                            .and_then(|had| had.value.at(base))
                            .ok_or(SnapshotError::MissingBaseline)?;
                        fields.read_delta(value, words, input)?;
                    }
                    None => fields.read_full(words, input)?,
                }
                DraftKind::Words {
                    start: start as u32,
                    is_delta: base.is_some(),
                }
            }
            _ => match BytesValue::read(input)? {
                BytesValue::Inline(bytes) => {
                    self.inline.push(bytes.into());
                    DraftKind::Inline(self.inline.len() as u32 - 1)
                }
                BytesValue::Apart { version } => DraftKind::Apart { version },
            },
        };
        self.values.push(DraftValue {
            component: id,
            inserted,
            value,
        });
        Ok(())
    }
}
