//! The inputs that a server has of one client, until their ticks.

use super::ring::InputRing;
use super::{InputError, InputMessage, MAX_INPUT_BYTES, SLOTS};
use crate::protocol::clock::MarginMeter;
use crate::tick::{Tick, Ticks};

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
    pub(super) queued: InputRing,
    /// Which ticks have arrived.
    seen: Option<Seen>,
    /// The newest input whose tick has been simulated: what is repeated.
    last_tick: Option<Tick>,
    pub(super) last: Vec<u8>,
    repeats: u32,
    epoch: Option<u8>,
    margin: MarginMeter,
    counts: InputCounts,
}

/// Ticks whose input has arrived, by distance from the newest of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
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

    /// Takes in a message that [`InputHistory::encode`](super::InputHistory::encode) wrote. `server_tick` is the newest tick
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
