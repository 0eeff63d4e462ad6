//! Inputs by their ticks.

use super::SLOTS;
use crate::tick::Tick;

/// Inputs by tick, in a ring whose slots all have the length of the longest input so far.
#[derive(Clone, Debug)]
pub(super) struct InputRing {
    slots: Box<[Option<Slot>; SLOTS]>,
    slot_len: usize,
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    tick: Tick,
    len: u8,
}

impl Default for InputRing {
    fn default() -> Self {
        Self {
            slots: Box::new([None; SLOTS]),
            slot_len: 0,
            bytes: Vec::new(),
        }
    }
}

impl InputRing {
    pub fn clear(&mut self) {
        self.slots.fill(None);
    }

    /// Puts the input of `tick` in place of whatever its slot held. It is at most
    /// [`MAX_INPUT_BYTES`] long: both callers have looked.
    #[inline]
    pub fn store(&mut self, tick: Tick, input: &[u8]) {
        if input.len() > self.slot_len {
            self.widen(input.len());
        }
        let index = index_of(tick);
        self.slots[index] = Some(Slot {
            tick,
            len: input.len() as u8,
        });
        let start = index * self.slot_len;
        self.bytes[start..start + input.len()].copy_from_slice(input);
    }

    #[inline]
    pub fn get(&self, tick: Tick) -> Option<&[u8]> {
        let index = index_of(tick);
        let slot = self.slots[index].filter(|slot| slot.tick == tick)?;
        let start = index * self.slot_len;
        Some(&self.bytes[start..start + usize::from(slot.len)])
    }

    #[inline]
    pub fn take(&mut self, tick: Tick) -> Option<&[u8]> {
        let index = index_of(tick);
        let slot = self.slots[index].take_if(|slot| slot.tick == tick)?;
        let start = index * self.slot_len;
        Some(&self.bytes[start..start + usize::from(slot.len)])
    }

    /// Makes room for inputs of `slot_len` bytes. Happens at most 255 times in a ring's life, as
    /// there are no longer inputs.
    pub fn widen(&mut self, slot_len: usize) {
        let mut bytes = vec![0; slot_len * SLOTS];
        if self.slot_len > 0 {
            for (wide, narrow) in bytes
                .chunks_exact_mut(slot_len)
                .zip(self.bytes.chunks_exact(self.slot_len))
            {
                wide[..self.slot_len].copy_from_slice(narrow);
            }
        }
        self.bytes = bytes;
        self.slot_len = slot_len;
    }
}

#[inline]
pub(super) fn index_of(tick: Tick) -> usize {
    tick.0 as usize % SLOTS
}
