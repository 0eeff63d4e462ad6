//! A client's recent inputs, and how they become a message.

use super::message::{
    HEAD_BYTES, INLINE_MASK_LEN, LITERAL, LONG_LITERAL, N_BITS, ONE_BYTE, PATCH, REPEAT,
};
use super::ring::InputRing;
use super::{InputError, MAX_INPUT_BYTES, MAX_INPUTS, SLOTS};
use crate::tick::{Tick, Ticks};

/// How much of the history goes into one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeLimits {
    /// The most inputs, 1 to [`MAX_INPUTS`]. Default 16: at 60 ticks a second a quarter of a second,
    /// which covers a round trip of about 200 ms. Beyond it an input was sent 16 times. On an
    /// ordered transport, the number of ticks since the last message is enough.
    pub max_inputs: usize,
    /// The most bytes. Default 256. The newest input alone needs at most 260.
    pub max_bytes: usize,
}

impl Default for EncodeLimits {
    fn default() -> Self {
        Self {
            max_inputs: 16,
            max_bytes: 256,
        }
    }
}

/// The client's recent inputs, and which of them the server has.
///
/// Remembers the last [`MAX_INPUTS`] ticks, acknowledged or not.
#[derive(Clone, Debug, Default)]
pub struct InputHistory {
    ring: InputRing,
    span: Option<Span>,
    epoch: u8,
}

/// Consecutive ticks in an [`InputHistory`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    newest: Tick,
    /// How many ticks up to `newest` are held; at least one.
    len: usize,
    /// The newest tick the server has.
    acked: Option<Tick>,
}

impl InputHistory {
    /// A history without inputs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers the input of `tick`.
    ///
    /// Normally that is the tick after the last one. Any other means that the clock has snapped:
    /// what was before is forgotten, and if the snap led back, a new epoch begins in which the
    /// server forgets too.
    ///
    /// # Errors
    ///
    /// [`InputError::TooLarge`], and then nothing has changed.
    pub fn push(&mut self, tick: Tick, input: &[u8]) -> Result<(), InputError> {
        if input.len() > MAX_INPUT_BYTES {
            return Err(InputError::TooLarge { len: input.len() });
        }
        self.span = Some(match self.span {
            Some(span) if tick == span.newest + Ticks(1) => Span {
                newest: tick,
                len: (span.len + 1).min(SLOTS),
                ..span
            },
            previous => {
                if previous.is_some_and(|span| !tick.is_newer_than(span.newest)) {
                    self.epoch = (self.epoch + 1) % 4;
                }
                self.ring.clear();
                Span {
                    newest: tick,
                    len: 1,
                    acked: None,
                }
            }
        });
        self.ring.store(tick, input);
        Ok(())
    }

    /// The server has all inputs it needs up to `tick`: they are not sent any more.
    ///
    /// An older acknowledgement than known changes nothing, nor does one of a tick that was not
    /// pushed yet, as may arrive after the clock has snapped back.
    pub fn handle_ack(&mut self, tick: Tick) {
        let Some(span) = &mut self.span else { return };
        let is_news = span.acked.is_none_or(|acked| tick.is_newer_than(acked));
        if is_news && !tick.is_newer_than(span.newest) {
            span.acked = Some(tick);
        }
    }

    /// The input of `tick`, while it is remembered.
    #[must_use]
    pub fn get(&self, tick: Tick) -> Option<&[u8]> {
        self.ring.get(tick)
    }

    /// The newest tick that has an input.
    #[must_use]
    pub fn newest(&self) -> Option<Tick> {
        self.span.map(|span| span.newest)
    }

    /// Appends a message with the inputs that are not acknowledged to `out`, as many of the newest
    /// as the limits allow.
    ///
    /// Returns how many they are. With none to send, or if not even the newest fits, nothing is
    /// appended.
    pub fn encode(&self, out: &mut Vec<u8>, limits: EncodeLimits) -> usize {
        let Some(span) = self.span else { return 0 };
        let unacked = match span.acked {
            Some(acked) => span.newest.distance_from(acked).max(0) as usize,
            None => span.len,
        };
        let most = unacked.min(span.len).min(limits.max_inputs).min(MAX_INPUTS);
        let start = out.len();
        let end = start.saturating_add(limits.max_bytes);
        out.extend_from_slice(&[0; HEAD_BYTES]);
        let mut previous: &[u8] = &[];
        let mut open_repeat = None; // where the repeat operation is that may count further
        let mut count = 0;
        for back in 0..most {
            let Some(input) = self.ring.get(span.newest - Ticks(back as u32)) else {
                break; // cannot be: the span says what the ring holds
            };
            let length_before = out.len();
            match open_repeat {
                _ if back == 0 || input != previous => {
                    open_repeat = None;
                    encode_difference(out, previous, input);
                }
                Some(at) => out[at] += 1, // fewer than 64 inputs: `n` does not overflow
                None => {
                    open_repeat = Some(out.len());
                    out.push(REPEAT);
                }
            }
            if out.len() > end {
                out.truncate(length_before);
                break;
            }
            previous = input;
            count += 1;
        }
        if count == 0 {
            out.truncate(start);
            return 0;
        }
        let [low, high] = (span.newest.0 as u16).to_le_bytes();
        out[start..start + HEAD_BYTES].copy_from_slice(&[
            self.epoch << 6 | (count as u8 - 1),
            low,
            high,
        ]);
        count
    }
}

/// Appends the shortest operation that makes `input` out of `previous`.
pub(super) fn encode_difference(out: &mut Vec<u8>, previous: &[u8], input: &[u8]) {
    let len = input.len();
    let literal_len = if len < usize::from(LONG_LITERAL) {
        1 + len
    } else {
        2 + len
    };
    let changed = || (0..len).filter(|&i| input[i] != previous[i]);
    if len == previous.len() && len > 0 {
        let count = changed().count();
        let first = changed().next().unwrap_or(0);
        if count == 1 && first <= usize::from(N_BITS) {
            out.extend_from_slice(&[ONE_BYTE | first as u8, input[first]]);
            return;
        }
        let mask_len = if len <= INLINE_MASK_LEN {
            0
        } else {
            len.div_ceil(8)
        };
        if 1 + mask_len + count < literal_len {
            let kind_at = out.len();
            out.push(PATCH);
            out.resize(kind_at + 1 + mask_len, 0);
            for i in changed() {
                if mask_len == 0 {
                    out[kind_at] |= 1 << i;
                } else {
                    out[kind_at + 1 + i / 8] |= 1 << (i % 8);
                }
                out.push(input[i]);
            }
            return;
        }
    }
    if len < usize::from(LONG_LITERAL) {
        out.push(LITERAL | len as u8);
    } else {
        out.extend_from_slice(&[LITERAL | LONG_LITERAL, len as u8]);
    }
    out.extend_from_slice(input);
}
