//! Inputs on their way to the server: sent until acknowledged, used in exactly their tick.
//!
//! An input is an opaque string of at most [`MAX_INPUT_BYTES`] bytes that belongs to one tick. The
//! client keeps the recent ones in an [`InputHistory`] and puts all that are not yet acknowledged
//! into every datagram, so that a lost datagram delays an input by one datagram and never loses it.
//! The server holds early ones back in an [`InputBuffer`] until their tick is simulated.
//!
//! # Encoding
//!
//! Players hold keys, so most inputs equal their predecessor. A message starts with three bytes and
//! goes backwards in time, the newest input first, each as a difference to the one before it in the
//! message. Where the byte budget ends, the oldest are left out.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | bits 6–7: epoch, bits 0–5: number of inputs − 1 |
//! | 1..3 | low 16 bits of the newest tick, little endian |
//! | rest | operations |
//!
//! An operation is a byte of two bits `kind` and six bits `n`, and what the kind asks for:
//!
//! | kind | meaning |
//! |---|---|
//! | 0 repeat | `n + 1` more inputs equal the previous one |
//! | 1 literal | the input in full: `n` bytes; 63: a length byte follows |
//! | 2 patch | as long as the previous one; a mask of changed bytes (`n` itself up to 6 bytes, else `len / 8` rounded up bytes), then the changed bytes |
//! | 3 one byte | as the previous one but for byte `n`, which follows |
//!
//! Ten equal inputs of four bytes take 9 bytes; sixty-four take no more. A message of sixteen
//! inputs costs the server 50 to 140 ns, with taking one out (`benches/input.rs`).
//!
//! # Epochs
//!
//! When the client's clock snaps back it plays ticks again for which it has sent inputs already.
//! The epoch, counted modulo four, tells the server to drop what it holds of the earlier attempt.

use crate::protocol::clock::MarginMeter;
use crate::tick::{Tick, Ticks};

/// The longest input, in bytes.
pub const MAX_INPUT_BYTES: usize = 255;

/// The most inputs in one message, and how many the client remembers.
pub const MAX_INPUTS: usize = 64;

/// Slots of either ring. At least [`MAX_INPUTS`], and a power of two so that slots stay distinct
/// when ticks wrap around.
const SLOTS: usize = 64;
const _: () = assert!(SLOTS >= MAX_INPUTS && SLOTS.is_power_of_two());

const HEAD_BYTES: usize = 3;
const REPEAT: u8 = 0 << 6;
const LITERAL: u8 = 1 << 6;
const PATCH: u8 = 2 << 6;
const ONE_BYTE: u8 = 3 << 6;
const KIND_BITS: u8 = 0b1100_0000;
const N_BITS: u8 = 0b0011_1111;
/// `n` of a literal whose length follows in a byte of its own.
const LONG_LITERAL: u8 = 63;
/// Inputs up to this length have their mask of changed bytes in `n`.
const INLINE_MASK_LEN: usize = 6;

/// Why an input or a message of inputs was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Only on the sending side.
    #[error("an input of {len} bytes is too large; make it at most {MAX_INPUT_BYTES}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
    },
    /// The message does not follow the format: no client of ours wrote it.
    #[error("malformed input message; disconnect its sender")]
    Malformed,
}

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
struct Span {
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
fn encode_difference(out: &mut Vec<u8>, previous: &[u8], input: &[u8]) {
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

/// A well-formed message of inputs.
#[derive(Clone, Copy, Debug)]
pub struct InputMessage<'a> {
    epoch: u8,
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

    /// How many inputs the message holds: 1 to [`MAX_INPUTS`].
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

fn take_bytes<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

/// Replaces the bytes of `input` whose bits are set in `mask`; `None` if bits beyond it are set.
fn patch(input: &mut [u8], mask: &[u8], rest: &mut &[u8]) -> Option<()> {
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

/// Limits of an [`InputBuffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputBufferSettings {
    /// How far ahead of the newest simulated tick an input may be: 1 to 64, larger values count
    /// as 64. Default 64, about a second at 60 Hz: more than the clock's longest useful lead, and
    /// with it the memory of a buffer is bounded to 64 inputs.
    pub max_ahead: Ticks,
    /// How many ticks in a row the last input is repeated when none arrives. Default 60, a second
    /// at 60 Hz: then a player who has gone silent lets go of the keys.
    pub max_repeats: Ticks,
}

impl Default for InputBufferSettings {
    fn default() -> Self {
        Self {
            max_ahead: Ticks(64),
            max_repeats: Ticks(60),
        }
    }
}

/// What [`InputBuffer::insert`] did with an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Held until its tick.
    Queued,
    /// Arrived before.
    Duplicate,
    /// Arrived for the first time, but its tick is simulated already. If it is newer than what the
    /// server repeats, it is repeated from now on.
    Late,
    /// Too far ahead, and dropped. A later copy may find its place.
    TooFarAhead,
    /// Longer than [`MAX_INPUT_BYTES`], and dropped. Does not come out of a parsed message.
    TooLarge,
}

/// What [`InputBuffer::take`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken<'a> {
    /// The input of exactly this tick.
    Fresh(&'a [u8]),
    /// It has not arrived; this is the newest input before it that has.
    Repeated(&'a [u8]),
    /// Nothing has arrived for this or an earlier tick, or nothing for too long.
    None,
}

impl<'a> Taken<'a> {
    /// The input to simulate with, fresh or repeated.
    #[must_use]
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Fresh(bytes) | Self::Repeated(bytes) => Some(bytes),
            Self::None => None,
        }
    }
}

/// What has happened to a client's inputs since the buffer was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputCounts {
    /// Inputs that arrived, in time or late, each tick once.
    pub received: u64,
    /// Of these, how many arrived after their tick was simulated.
    pub late: u64,
    /// Ticks simulated without their own input, since the first input's tick.
    pub missing: u64,
    /// Of these, how many repeated an earlier input.
    pub repeated: u64,
    /// Copies of inputs that were dropped for being too far ahead.
    pub too_far_ahead: u64,
}

/// The server's queue of one client's inputs.
///
/// Holds at most 64 inputs, and allocates only when one is longer than any before.
#[derive(Clone, Debug, Default)]
pub struct InputBuffer {
    settings: InputBufferSettings,
    queued: InputRing,
    /// Which ticks have arrived.
    seen: Option<Seen>,
    /// The newest input whose tick has been simulated: what is repeated.
    last_tick: Option<Tick>,
    last: Vec<u8>,
    repeats: u32,
    epoch: Option<u8>,
    margin: MarginMeter,
    counts: InputCounts,
}

/// Ticks whose input has arrived, by distance from the newest of them.
#[derive(Clone, Copy, Debug)]
struct Seen {
    newest: Tick,
    /// Bit *i*: the input of `newest - i` has arrived.
    bits: u128,
}

impl InputBuffer {
    /// An empty buffer.
    #[must_use]
    pub fn new(settings: InputBufferSettings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// Takes in a message that [`InputHistory::encode`] wrote. `server_tick` is the newest tick
    /// that has been simulated.
    ///
    /// # Errors
    ///
    /// [`InputError::Malformed`], and then nothing has changed. An honest client never causes it.
    pub fn receive(&mut self, server_tick: Tick, message: &[u8]) -> Result<(), InputError> {
        let message = InputMessage::parse(message, server_tick)?;
        match (message
            .epoch
            .wrapping_sub(self.epoch.unwrap_or(message.epoch)))
            % 4
        {
            0 => {}
            // Sent before the client began anew; what it says does not count any more.
            3 => return Ok(()),
            _ => self.restart(),
        }
        self.epoch = Some(message.epoch);
        message.for_each(|tick, input| {
            self.insert(server_tick, tick, input);
        });
        Ok(())
    }

    /// Takes in one input. `server_tick` is the newest tick that has been simulated.
    ///
    /// The first input ever is the start: ticks before it are not missing.
    #[inline]
    pub fn insert(&mut self, server_tick: Tick, tick: Tick, input: &[u8]) -> Arrival {
        if input.len() > MAX_INPUT_BYTES {
            return Arrival::TooLarge;
        }
        let ahead = tick.distance_from(server_tick);
        if ahead > self.settings.max_ahead.0.min(SLOTS as u32) as i32 {
            self.counts.too_far_ahead += 1;
            self.margin.handle_arrival(server_tick, tick);
            return Arrival::TooFarAhead;
        }
        if !self.see(tick) {
            return Arrival::Duplicate;
        }
        self.counts.received += 1;
        self.margin.handle_arrival(server_tick, tick);
        if ahead > 0 {
            self.queued.store(tick, input);
            return Arrival::Queued;
        }
        self.counts.late += 1;
        if self.last_tick.is_none_or(|last| tick.is_newer_than(last)) {
            self.last.clear();
            self.last.extend_from_slice(input);
            self.last_tick = Some(tick);
            self.repeats = 0;
        }
        Arrival::Late
    }

    /// The input to simulate `tick` with. Ask once for every tick, in order.
    pub fn take(&mut self, tick: Tick) -> Taken<'_> {
        if let Some(input) = self.queued.take(tick) {
            self.last.clear();
            self.last.extend_from_slice(input);
            self.last_tick = Some(tick);
            self.repeats = 0;
            return Taken::Fresh(&self.last);
        }
        if self.last_tick.is_none() {
            return Taken::None; // before the first input's tick
        }
        self.counts.missing += 1;
        if self.repeats >= self.settings.max_repeats.0 {
            return Taken::None;
        }
        self.repeats += 1;
        self.counts.repeated += 1;
        Taken::Repeated(&self.last)
    }

    /// The newest tick whose input has arrived: what to acknowledge.
    ///
    /// Older ones may still be on their way, but every message carries all that are not
    /// acknowledged, so whoever sent the newest has sent those before it in the same message, as
    /// far as its limits allowed.
    #[must_use]
    pub fn newest(&self) -> Option<Tick> {
        self.seen.map(|seen| seen.newest)
    }

    /// What to report to the client's clock: see [`MarginMeter::report`].
    #[must_use]
    pub fn margin(&self) -> Option<i8> {
        self.margin.report()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> InputCounts {
        self.counts
    }

    /// Forgets what is queued and what has arrived, for a client that begins anew. What was last
    /// used goes on being repeated, and the counts go on.
    fn restart(&mut self) {
        self.queued.clear();
        self.seen = None;
        self.margin.reset();
    }

    /// Notes that `tick` has arrived; `false` if it had before, or was too long ago to tell.
    fn see(&mut self, tick: Tick) -> bool {
        let Some(seen) = &mut self.seen else {
            self.seen = Some(Seen {
                newest: tick,
                bits: 1,
            });
            return true;
        };
        let ahead = tick.distance_from(seen.newest);
        if ahead > 0 {
            seen.bits = seen.bits.checked_shl(ahead.unsigned_abs()).unwrap_or(0) | 1;
            seen.newest = tick;
            return true;
        }
        match 1u128.checked_shl(ahead.unsigned_abs()) {
            Some(bit) if seen.bits & bit == 0 => {
                seen.bits |= bit;
                true
            }
            _ => false,
        }
    }
}

/// Inputs by tick, in a ring whose slots all have the length of the longest input so far.
#[derive(Clone, Debug)]
struct InputRing {
    slots: Box<[Option<Slot>; SLOTS]>,
    slot_len: usize,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
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
    fn clear(&mut self) {
        self.slots.fill(None);
    }

    /// Puts the input of `tick` in place of whatever its slot held. It is at most
    /// [`MAX_INPUT_BYTES`] long: both callers have looked.
    fn store(&mut self, tick: Tick, input: &[u8]) {
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

    fn get(&self, tick: Tick) -> Option<&[u8]> {
        let index = index_of(tick);
        let slot = self.slots[index].filter(|slot| slot.tick == tick)?;
        let start = index * self.slot_len;
        Some(&self.bytes[start..start + usize::from(slot.len)])
    }

    fn take(&mut self, tick: Tick) -> Option<&[u8]> {
        let index = index_of(tick);
        let slot = self.slots[index].take_if(|slot| slot.tick == tick)?;
        let start = index * self.slot_len;
        Some(&self.bytes[start..start + usize::from(slot.len)])
    }

    /// Makes room for inputs of `slot_len` bytes. Happens at most 255 times in a ring's life, as
    /// there are no longer inputs.
    fn widen(&mut self, slot_len: usize) {
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

fn index_of(tick: Tick) -> usize {
    tick.0 as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn decoded(message: &[u8], near: Tick) -> Vec<(Tick, Vec<u8>)> {
        let mut inputs = Vec::new();
        InputMessage::parse(message, near)
            .expect("well-formed")
            .for_each(|tick, input| inputs.push((tick, input.to_vec())));
        inputs
    }

    fn history(first: Tick, inputs: &[impl AsRef<[u8]>]) -> InputHistory {
        let mut history = InputHistory::new();
        for (i, input) in inputs.iter().enumerate() {
            history
                .push(first + Ticks(i as u32), input.as_ref())
                .expect("short enough");
        }
        history
    }

    #[test]
    fn a_held_key_costs_a_few_bytes() {
        let held = history(Tick(100), &[b"WASD"; 10]);
        let mut message = Vec::new();
        assert_eq!(held.encode(&mut message, EncodeLimits::default()), 10);
        assert_eq!(message.len(), 9, "{message:02x?}");

        let long = history(Tick(100), &[b"WASD"; 64]);
        message.clear();
        let limits = EncodeLimits {
            max_inputs: 64,
            ..EncodeLimits::default()
        };
        assert_eq!(long.encode(&mut message, limits), 64);
        assert_eq!(message.len(), 9, "however long it is held");
    }

    #[test]
    fn a_byte_budget_cuts_the_oldest() {
        let inputs: Vec<[u8; 8]> = (0..16u64)
            .map(|i| (i * 0x0101_0101_0101_0101).to_le_bytes())
            .collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(|input| &input[..]).collect();
        let history = history(Tick(0), &inputs);
        for max_bytes in 0..200 {
            let mut message = b"before".to_vec();
            let limits = EncodeLimits {
                max_bytes,
                ..EncodeLimits::default()
            };
            let count = history.encode(&mut message, limits);
            let message = message.strip_prefix(b"before").expect("only appended to");
            assert!(message.len() <= max_bytes);
            assert_eq!(
                count == 0,
                max_bytes < 3 + 9,
                "{max_bytes} bytes hold {count} inputs"
            );
            if count > 0 {
                let got = decoded(message, Tick(0));
                assert_eq!(got.len(), count);
                for (back, (tick, input)) in got.iter().enumerate() {
                    assert_eq!(*tick, Tick(15 - back as u32), "newest first");
                    assert_eq!(input, inputs[15 - back]);
                }
            }
        }
    }

    #[test]
    fn acknowledged_inputs_are_not_sent_again() {
        let mut history = history(Tick(u32::MAX - 3), &[b"a"; 10]); // newest: 5
        let mut message = Vec::new();
        history.handle_ack(Tick(2));
        history.handle_ack(Tick(0)); // older news
        history.handle_ack(Tick(90)); // never pushed
        assert_eq!(history.encode(&mut message, EncodeLimits::default()), 3);
        history.handle_ack(Tick(5));
        message.clear();
        assert_eq!(history.encode(&mut message, EncodeLimits::default()), 0);
        assert!(message.is_empty());
        assert_eq!(
            history.get(Tick(u32::MAX)),
            Some(&b"a"[..]),
            "remembered for replays"
        );
    }

    #[test]
    fn a_clock_that_snapped_back_replaces_what_was_queued() {
        let mut client = history(Tick(100), &[b"old"; 10]);
        let mut server = InputBuffer::default();
        let mut message = Vec::new();
        client.encode(&mut message, EncodeLimits::default());
        server.receive(Tick(90), &message).expect("well-formed");
        let stale = message.clone();

        for tick in 95..100 {
            client.push(Tick(tick), b"new").expect("short enough");
        }
        message.clear();
        client.encode(&mut message, EncodeLimits::default());
        server.receive(Tick(91), &message).expect("well-formed");
        server.receive(Tick(91), &stale).expect("well-formed");
        assert_eq!(server.newest(), Some(Tick(99)));
        assert_eq!(server.take(Tick(95)), Taken::Fresh(b"new"));
        for tick in 96..100 {
            server.take(Tick(tick));
        }
        assert_eq!(
            server.take(Tick(100)),
            Taken::Repeated(b"new"),
            "the old plan is void"
        );
    }

    #[test]
    fn a_missing_input_repeats_the_last_and_then_lets_go() {
        let mut buffer = InputBuffer::new(InputBufferSettings {
            max_repeats: Ticks(2),
            ..InputBufferSettings::default()
        });
        assert_eq!(buffer.take(Tick(8)), Taken::None, "not started");
        assert_eq!(buffer.insert(Tick(8), Tick(10), b"go"), Arrival::Queued);
        assert_eq!(buffer.take(Tick(9)), Taken::None, "still before the start");
        assert_eq!(buffer.take(Tick(10)), Taken::Fresh(b"go"));
        assert_eq!(buffer.take(Tick(11)), Taken::Repeated(b"go"));
        assert_eq!(buffer.take(Tick(12)), Taken::Repeated(b"go"));
        assert_eq!(buffer.take(Tick(13)), Taken::None);
        let counts = buffer.counts();
        assert_eq!(
            (counts.received, counts.missing, counts.repeated),
            (1, 3, 2)
        );
    }

    #[test]
    fn a_late_input_counts_once_and_is_repeated_from_then_on() {
        let mut buffer = InputBuffer::default();
        buffer.insert(Tick(0), Tick(1), b"left");
        buffer.take(Tick(1));
        buffer.take(Tick(2));
        for _ in 0..5 {
            buffer.insert(Tick(2), Tick(2), b"right");
        }
        assert_eq!(buffer.counts().late, 1, "copies do not count");
        assert_eq!(buffer.take(Tick(3)), Taken::Repeated(b"right"));
    }

    #[test]
    fn what_is_too_far_ahead_is_dropped_and_may_come_again() {
        let mut buffer = InputBuffer::default();
        assert_eq!(buffer.insert(Tick(0), Tick(65), b"x"), Arrival::TooFarAhead);
        assert_eq!(buffer.newest(), None, "not acknowledged");
        assert_eq!(buffer.insert(Tick(1), Tick(65), b"x"), Arrival::Queued);
        assert_eq!(buffer.insert(Tick(1), Tick(65), b"x"), Arrival::Duplicate);
        assert_eq!(
            buffer.insert(Tick(1), Tick(2), &[0; 256]),
            Arrival::TooLarge
        );
        assert_eq!(buffer.counts().too_far_ahead, 1);
    }

    /// Inputs as players make them: mostly the same, sometimes a byte or everything different.
    fn player(rng: &mut fastrand::Rng, previous: &[u8]) -> Vec<u8> {
        let mut input = previous.to_vec();
        match rng.u8(..100) {
            0..60 => {}
            60..90 if !input.is_empty() => {
                for _ in 0..rng.usize(1..4) {
                    let at = rng.usize(..input.len());
                    input[at] = rng.u8(..);
                }
            }
            _ => {
                let len = match rng.u8(..10) {
                    0 => rng.usize(..=MAX_INPUT_BYTES),
                    _ => rng.usize(..=12),
                };
                input = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
            }
        }
        input
    }

    proptest! {
        /// Every input the server uses for a tick is what the client pushed for it, or is counted.
        #[test]
        fn the_server_uses_what_was_pushed_or_counts_it(
            seed: u64,
            first: u32,
            loss in 0.0..0.6f64,
            jitter in 0u32..12,
            lead in 0u32..20,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut client = InputHistory::new();
            let mut server = InputBuffer::default();
            let mut pushed: HashMap<Tick, Vec<u8>> = HashMap::new();
            let mut wire: Vec<(u32, Vec<u8>)> = Vec::new();
            let mut acks: Vec<(u32, Tick)> = Vec::new();
            let (mut fresh, mut not_fresh) = (0, 0);
            let mut input = Vec::new();
            let limits = EncodeLimits { max_bytes: 300, ..EncodeLimits::default() };
            for step in 0..300u32 {
                let client_tick = Tick(first.wrapping_add(step + lead));
                let server_tick = Tick(first.wrapping_add(step));
                input = player(&mut rng, &input);
                client.push(client_tick, &input).expect("short enough");
                pushed.insert(client_tick, input.clone());
                let mut message = Vec::new();
                client.encode(&mut message, limits);
                for _ in 0..rng.usize(1..3) {
                    if !message.is_empty() && rng.f64() >= loss {
                        wire.push((step + 2 + rng.u32(0..=jitter), message.clone()));
                    }
                }
                wire.retain(|(due, message)| {
                    if *due <= step {
                        server.receive(server_tick, message).expect("well-formed");
                    }
                    *due > step
                });
                acks.retain(|(due, tick)| {
                    if *due <= step {
                        client.handle_ack(*tick);
                    }
                    *due > step
                });
                if let Some(newest) = server.newest() && rng.f64() >= loss {
                    acks.push((step + 2 + rng.u32(0..=jitter), newest));
                }
                let next = server_tick + Ticks(1);
                match server.take(next) {
                    Taken::Fresh(used) => {
                        fresh += 1;
                        prop_assert_eq!(Some(used), pushed.get(&next).map(Vec::as_slice));
                    }
                    Taken::Repeated(used) => {
                        not_fresh += 1;
                        prop_assert!(pushed.values().any(|input| input == used));
                    }
                    Taken::None => {}
                }
            }
            let counts = server.counts();
            prop_assert_eq!(counts.repeated, not_fresh);
            prop_assert!(counts.repeated <= counts.missing);
            prop_assert!(counts.late <= counts.received);
            prop_assert!(fresh + counts.late <= counts.received);
            if loss < 0.1 && lead > 16 + jitter {
                prop_assert!(counts.late == 0, "lead enough, but {:?}", counts);
            }
        }

        #[test]
        fn any_inputs_survive_encoding(
            inputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..64),
            first: u32,
        ) {
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let history = history(Tick(first), &inputs);
            let mut message = Vec::new();
            let limits = EncodeLimits { max_inputs: 64, max_bytes: usize::MAX };
            let count = history.encode(&mut message, limits);
            prop_assert_eq!(count, inputs.len());
            let mut got = decoded(&message, Tick(first.wrapping_add(1000)));
            got.reverse();
            for (i, (tick, input)) in got.iter().enumerate() {
                prop_assert_eq!(*tick, Tick(first.wrapping_add(i as u32)));
                prop_assert_eq!(&input[..], inputs[i]);
            }
        }

        #[test]
        fn hostile_bytes_neither_panic_nor_grow_memory(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..64),
            server_tick: u32,
        ) {
            let mut buffer = InputBuffer::default();
            for (i, message) in messages.iter().enumerate() {
                let now = Tick(server_tick.wrapping_add(i as u32));
                let _ = buffer.receive(now, message);
                buffer.take(now + Ticks(1));
            }
            prop_assert!(buffer.queued.bytes.len() <= SLOTS * MAX_INPUT_BYTES);
            prop_assert!(buffer.last.len() <= MAX_INPUT_BYTES);
        }

        /// Mutated honest messages reach deeper than noise.
        #[test]
        fn damaged_messages_are_refused_or_harmless(seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut client = InputHistory::new();
            let mut server = InputBuffer::default();
            let mut input = Vec::new();
            for tick in 0..40 {
                input = player(&mut rng, &input);
                client.push(Tick(tick), &input).expect("short enough");
                let mut message = Vec::new();
                client.encode(&mut message, EncodeLimits::default());
                for _ in 0..rng.usize(..4) {
                    if !message.is_empty() {
                        let at = rng.usize(..message.len());
                        message[at] = rng.u8(..);
                        message.truncate(rng.usize(at..=message.len()));
                    }
                }
                let _ = server.receive(Tick(tick), &message);
                server.take(Tick(tick + 1));
            }
        }
    }
}
