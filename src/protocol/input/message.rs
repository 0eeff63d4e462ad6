//! What a message of inputs says.

use super::{InputError, MAX_INPUT_BYTES};
use crate::tick::{Tick, Ticks};

pub(super) const HEAD_BYTES: usize = 3;
pub(super) const REPEAT: u8 = 0 << 6;
pub(super) const LITERAL: u8 = 1 << 6;
pub(super) const PATCH: u8 = 2 << 6;
pub(super) const ONE_BYTE: u8 = 3 << 6;
pub(super) const KIND_BITS: u8 = 0b1100_0000;
pub(super) const N_BITS: u8 = 0b0011_1111;
/// `n` of a literal whose length follows in a byte of its own.
pub(super) const LONG_LITERAL: u8 = 63;
/// Inputs up to this length have their mask of changed bytes in `n`.
pub(super) const INLINE_MASK_LEN: usize = 6;

/// A well-formed message of inputs.
#[derive(Clone, Copy, Debug)]
pub struct InputMessage<'a> {
    pub(super) epoch: u8,
    newest: Tick,
    count: usize,
    operations: &'a [u8],
}

impl<'a> InputMessage<'a> {
    /// Checks a message completely. `near` is a tick less than 32,768 ticks away from its newest;
    /// the server's current one will do.
    ///
    /// # Errors
    ///
    /// [`InputError::Malformed`].
    pub fn parse(message: &'a [u8], near: Tick) -> Result<Self, InputError> {
        let (&[head, low, high], operations) = message
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or(InputError::Malformed)?;
        let message = Self {
            epoch: head >> 6,
            newest: near.nearest_with_low_bits(u16::from_le_bytes([low, high])),
            count: usize::from(head & N_BITS) + 1,
            operations,
        };
        message.walk(|_, _| ()).ok_or(InputError::Malformed)?;
        Ok(message)
    }

    /// The newest tick in the message.
    #[must_use]
    pub fn newest(&self) -> Tick {
        self.newest
    }

    /// How many inputs the message holds: 1 to [`MAX_INPUTS`](super::MAX_INPUTS).
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `on_input` with every input, the newest first.
    pub fn for_each(&self, on_input: impl FnMut(Tick, &[u8])) {
        let walked = self.walk(on_input);
        debug_assert!(walked.is_some(), "`parse` has walked the same bytes");
    }

    /// Decodes the operations; `None` as soon as something is wrong with them.
    ///
    /// Bounded by the number of inputs, which six bits hold, times their greatest length.
    fn walk(&self, mut on_input: impl FnMut(Tick, &[u8])) -> Option<()> {
        let mut input = [0; MAX_INPUT_BYTES];
        let mut len = 0;
        let mut rest = self.operations;
        let mut done = 0;
        while done < self.count {
            let (&operation, after) = rest.split_first()?;
            rest = after;
            let n = operation & N_BITS;
            let mut times = 1;
            match operation & KIND_BITS {
                REPEAT if done > 0 => times = usize::from(n) + 1,
                LITERAL => {
                    len = usize::from(n);
                    if n == LONG_LITERAL {
                        len = usize::from(take_bytes(&mut rest, 1)?[0]);
                    }
                    input[..len].copy_from_slice(take_bytes(&mut rest, len)?);
                }
                PATCH if len <= INLINE_MASK_LEN => {
                    patch(&mut input[..len], &[n], &mut rest)?;
                }
                PATCH if n == 0 => {
                    let mask = take_bytes(&mut rest, len.div_ceil(8))?;
                    patch(&mut input[..len], mask, &mut rest)?;
                }
                ONE_BYTE => {
                    *input[..len].get_mut(usize::from(n))? = take_bytes(&mut rest, 1)?[0];
                }
                _ => return None,
            }
            if times > self.count - done {
                return None;
            }
            for _ in 0..times {
                on_input(self.newest - Ticks(done as u32), &input[..len]);
                done += 1;
            }
        }
        rest.is_empty().then_some(())
    }
}

pub(super) fn take_bytes<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

/// Replaces the bytes of `input` whose bits are set in `mask`; `None` if bits beyond it are set.
pub(super) fn patch(input: &mut [u8], mask: &[u8], rest: &mut &[u8]) -> Option<()> {
    for (byte, &bits) in mask.iter().enumerate() {
        let mut bits = bits;
        while bits != 0 {
            let at = byte * 8 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            *input.get_mut(at)? = take_bytes(rest, 1)?[0];
        }
    }
    Some(())
}
