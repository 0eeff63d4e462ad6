//! The wire format of a snapshot: its header, and how entities are written and read.
//!
//! ```text
//! snapshot   header { 1 block } 0 complete
//! block      { 1 index } 0  { 1 index record } 0    what is gone, then what changed
//! record     0 update                                against the snapshot's baseline
//!            1 0 full
//!            1 1 ticks-back update                   against a baseline of its own
//! full       generation structure { age value }      one value per component
//! update     0 { change }                            one change per component
//!            1 structure { change }
//! change     0 | 1 age value                         quantised values: 1 age 0 delta, or 1 age 1 words
//! age        0 | 1 ticks-back                        when it was inserted, if that is news; only after a structure
//! value      words | 0 length bytes | 1 version      the last when a large value travels as a message
//! structure  owner role components
//! ```
//!
//! Indices are written as differences to the one before, numbers as Exp-Golomb codes.

use super::layout::{ComponentId, Layouts, Meta, NetId, PredictedBy};
use crate::tick::{Tick, Ticks};
use crate::wire::WireError;
use crate::wire::bits::{BitReader, BitWriter};

/// What a snapshot says besides the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The tick whose outcome it describes.
    pub tick: Tick,
    /// How often the view has started over, modulo [`EPOCHS`]. Nothing from before is built upon.
    pub epoch: u8,
    /// Updates in it are against the client's state of this tick.
    pub baseline: Tick,
    /// The tick of the snapshot that was sent before this one.
    pub previous: Tick,
    /// The server's view of the client's inputs.
    pub inputs: Option<InputReport>,
}

/// Epochs are told apart as long as a client misses fewer than so many in a row.
pub const EPOCHS: u8 = 16;

/// How the client's inputs arrive at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputReport {
    /// Newest input that the server has.
    pub newest: Tick,
    /// See [`MarginMeter`](super::clock::MarginMeter).
    pub margin: Option<i8>,
    /// How many inputs came after their tick so far, modulo 16: enough to count along.
    pub late: u8,
}

impl SnapshotHeader {
    pub(super) fn write(&self, out: &mut BitWriter) {
        let epoch = u32::from(self.epoch % EPOCHS);
        out.write_bits(self.tick.0 & 0xffff | epoch << 16, 20);
        out.write_exp_golomb(self.tick.0.wrapping_sub(self.baseline.0), 3);
        out.write_exp_golomb(self.tick.0.wrapping_sub(self.previous.0), 1);
        out.write_bit(self.inputs.is_some());
        if let Some(inputs) = self.inputs {
            out.write_signed_exp_golomb(inputs.newest.distance_from(self.tick), 3);
            out.write_bits(u32::from(inputs.late % 16), 4);
            out.write_bit(inputs.margin.is_some());
            if let Some(margin) = inputs.margin {
                out.write_signed_exp_golomb(i32::from(margin), 3);
            }
        }
    }

    /// `newest` is the newest tick seen so far; it tells which of the ticks with these low bits is meant.
    #[inline]
    pub(super) fn read(newest: Tick, input: &mut BitReader) -> Result<Self, WireError> {
        let bits = input.read_bits(20)?;
        let tick = newest.nearest_with_low_bits(bits as u16);
        let epoch = (bits >> 16) as u8;
        let baseline = tick - Ticks(input.read_exp_golomb(3)?);
        let previous = tick - Ticks(input.read_exp_golomb(1)?);
        let inputs = if input.read_bit()? {
            let newest = Tick(tick.0.wrapping_add_signed(input.read_signed_exp_golomb(3)?));
            let late = input.read_bits(4)? as u8;
            let margin = if input.read_bit()? {
                let margin = input.read_signed_exp_golomb(3)?;
                Some(i8::try_from(margin).map_err(|_| WireError::InvalidValue("input margin"))?)
            } else {
                None
            };
            Some(InputReport {
                newest,
                margin,
                late,
            })
        } else {
            None
        };
        Ok(Self {
            tick,
            epoch,
            baseline,
            previous,
            inputs,
        })
    }
}

/// Indices of ids are written as the difference to the one before in the same list.
#[derive(Clone, Copy, Default)]
pub(super) struct IdCoder {
    previous: u32,
}

impl IdCoder {
    pub fn write(&mut self, net: NetId, out: &mut BitWriter) {
        let step = net.index().wrapping_sub(self.previous).cast_signed();
        out.write_signed_exp_golomb(step, 1);
        self.previous = net.index();
    }

    #[inline]
    pub fn read(&mut self, input: &mut BitReader) -> Result<u32, WireError> {
        let step = input.read_signed_exp_golomb(1)?;
        self.previous = self.previous.wrapping_add_signed(step);
        Ok(self.previous)
    }
}

/// What a record is written against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Nothing,
    Snapshot,
    Own(Tick),
}

impl Base {
    pub fn write(self, tick: Tick, out: &mut BitWriter) {
        match self {
            Self::Snapshot => out.write_bit(false),
            Self::Nothing => out.write_bits(0b01, 2),
            Self::Own(base) => {
                out.write_bits(0b11, 2);
                out.write_exp_golomb(tick.0.wrapping_sub(base.0), 3);
            }
        }
    }

    #[inline]
    pub fn read(tick: Tick, input: &mut BitReader) -> Result<Self, WireError> {
        if !input.read_bit()? {
            return Ok(Self::Snapshot);
        }
        if !input.read_bit()? {
            return Ok(Self::Nothing);
        }
        Ok(Self::Own(tick - Ticks(input.read_exp_golomb(3)?)))
    }
}

/// Tells a whole entity from others that have or had its index. Most have no predecessors: one bit.
pub(super) fn write_generation(net: NetId, out: &mut BitWriter) {
    out.write_exp_golomb(net.generation(), 0);
}

pub(super) fn read_generation(index: u32, input: &mut BitReader) -> Result<NetId, WireError> {
    Ok(NetId::new(index, input.read_exp_golomb(0)?))
}

pub(super) fn write_structure(
    meta: Meta,
    components: impl ExactSizeIterator<Item = ComponentId>,
    out: &mut BitWriter,
) {
    out.write_bit(meta.owner.is_some());
    if let Some(owner) = meta.owner {
        out.write_exp_golomb(owner, 4);
    }
    out.write_bits(meta.predicted_by.to_bits(), 2);
    out.write_exp_golomb(components.len() as u32, 1);
    let mut next = 0;
    for ComponentId(id) in components {
        out.write_exp_golomb(u32::from(id) - next, 0);
        next = u32::from(id) + 1;
    }
}

/// Reads a structure; its components are appended, in ascending order, and are all registered.
pub(super) fn read_structure(
    layouts: &Layouts,
    input: &mut BitReader,
    components: &mut Vec<ComponentId>,
) -> Result<Meta, WireError> {
    let owner = if input.read_bit()? {
        Some(input.read_exp_golomb(4)?)
    } else {
        None
    };
    let predicted_by = PredictedBy::from_bits(input.read_bits(2)?)
        .ok_or(WireError::InvalidValue("prediction role"))?;
    let count = input.read_exp_golomb(1)?;
    let mut next = 0u32;
    for _ in 0..count {
        let id = next.saturating_add(input.read_exp_golomb(0)?);
        let id = u8::try_from(id).map_err(|_| WireError::InvalidValue("component id"))?;
        if layouts.get(ComponentId(id)).is_none() {
            return Err(WireError::InvalidValue("component id"));
        }
        components.push(ComponentId(id));
        next = u32::from(id) + 1;
    }
    Ok(Meta {
        owner,
        predicted_by,
    })
}

/// When a component was inserted, if that happened after what a client knows: it may have been removed before.
pub(super) fn write_age(inserted: Option<Tick>, tick: Tick, out: &mut BitWriter) {
    out.write_bit(inserted.is_some());
    if let Some(inserted) = inserted {
        out.write_exp_golomb(tick.0.wrapping_sub(inserted.0), 3);
    }
}

pub(super) fn read_age(tick: Tick, input: &mut BitReader) -> Result<Option<Tick>, WireError> {
    if !input.read_bit()? {
        return Ok(None);
    }
    Ok(Some(tick - Ticks(input.read_exp_golomb(3)?)))
}

/// A serialised value: in the snapshot itself, or announced by its version and sent as a reliable message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BytesValue<T> {
    Inline(T),
    Apart { version: u32 },
}

impl BytesValue<&[u8]> {
    pub fn write(&self, out: &mut BitWriter) {
        match *self {
            Self::Inline(bytes) => {
                out.write_bit(false);
                out.write_exp_golomb(bytes.len() as u32, 3);
                out.write_bytes(bytes);
            }
            Self::Apart { version } => {
                out.write_bit(true);
                out.write_bits(version, 32);
            }
        }
    }
}

impl BytesValue<Vec<u8>> {
    pub fn read(input: &mut BitReader) -> Result<Self, WireError> {
        if input.read_bit()? {
            return Ok(Self::Apart {
                version: input.read_bits(32)?,
            });
        }
        let length = input.read_exp_golomb(3)?;
        Ok(Self::Inline(input.read_bytes(length as usize)?))
    }
}
