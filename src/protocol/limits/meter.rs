//! How much a session may send.

use std::time::Duration;

/// Fractions of a token, so that a nanosecond at one token per second is one of them: refilling is exact.
const NANO: u64 = 1_000_000_000;

/// How often, on average and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many per second, in the long run. 0: only what `burst` allows, once.
    pub per_s: u32,
    /// How many at once, after a time of rest. At least 1, or nothing is ever allowed; for bytes, at least the largest
    /// message.
    pub burst: u32,
}

impl Rate {
    /// So much that it is no limit.
    pub const UNLIMITED: Self = Self::new(u32::MAX, u32::MAX);

    /// So many per second, and so many at once.
    #[must_use]
    pub const fn new(per_s: u32, burst: u32) -> Self {
        Self { per_s, burst }
    }
}

/// Lets so much through as its [`Rate`] allows.
///
/// ```
/// use bevy_tandem::protocol::limits::{Rate, TokenBucket};
/// use core::time::Duration;
///
/// let mut bucket = TokenBucket::new(Rate::new(10, 2));
/// let now = Duration::from_secs(1);
/// assert!(bucket.take(1, now) && bucket.take(1, now) && !bucket.take(1, now));
/// assert_eq!(bucket.wait(1, now), Some(Duration::from_millis(100)));
/// assert!(bucket.take(1, now + Duration::from_millis(100)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    rate: Rate,
    nanotokens: u64,
    at: Duration,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self {
            rate,
            nanotokens: rate.burst as u64 * NANO,
            at: Duration::ZERO,
        }
    }

    /// Takes so many tokens, or none if there are fewer. Returns whether it did.
    pub fn take(&mut self, tokens: u32, now: Duration) -> bool {
        let enough = self.has(tokens, now);
        if enough {
            self.nanotokens -= u64::from(tokens) * NANO;
        }
        enough
    }

    /// Whether there are so many tokens.
    pub fn has(&mut self, tokens: u32, now: Duration) -> bool {
        self.refill(now);
        self.nanotokens >= u64::from(tokens) * NANO
    }

    /// How long until there are so many tokens: zero if there are; `None` if there never will be.
    pub fn wait(&mut self, tokens: u32, now: Duration) -> Option<Duration> {
        self.refill(now);
        let missing = (u64::from(tokens) * NANO).saturating_sub(self.nanotokens);
        if missing == 0 {
            return Some(Duration::ZERO);
        }
        if tokens > self.rate.burst || self.rate.per_s == 0 {
            return None;
        }
        Some(Duration::from_nanos(
            missing.div_ceil(self.rate.per_s.into()),
        ))
    }

    /// Adds what comes in for so long, also beyond what it holds when full.
    ///
    /// That does not add up: afterwards it holds at most that much more than when full, or as much as before.
    pub fn credit_time(&mut self, length: Duration) {
        let full = u64::from(self.rate.burst) * NANO;
        let length_ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        let credit = length_ns.saturating_mul(self.rate.per_s.into());
        self.nanotokens = self
            .nanotokens
            .max(self.nanotokens.min(full).saturating_add(credit));
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let full = u64::from(self.rate.burst) * NANO;
        if self.nanotokens < full {
            let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
            let more = elapsed_ns.saturating_mul(self.rate.per_s.into());
            self.nanotokens = self.nanotokens.saturating_add(more).min(full);
        }
    }
}

/// How many messages and how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficLimit {
    /// Messages, or for inputs datagrams with inputs.
    pub messages: Rate,
    /// Bytes of them.
    pub bytes: Rate,
}

impl TrafficLimit {
    /// So much that it is no limit.
    pub const UNLIMITED: Self = Self {
        messages: Rate::UNLIMITED,
        bytes: Rate::UNLIMITED,
    };
}

/// What a session may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Inputs. Default: 150 datagrams a second and 300 at once, 64 KiB/s and 128 KiB at once. A client sends one per
    /// tick, 60 a second, of at most 260 bytes (15 kB/s); up to 130 a second at faster ticks. After a stall of the
    /// network, all that it held back comes at once; servers add that to the burst
    /// ([`SessionMeter::credit_silence`]).
    pub inputs: TrafficLimit,
    /// The game's messages. Default: 60 a second and 120 at once, 64 KiB/s and 128 KiB at once: one for each tick, and
    /// two seconds of them after a stall.
    pub messages: TrafficLimit,
    /// What other players must read. Default: 2 a second and 8 at once, 2 KiB/s and 8 KiB at once: more than anybody
    /// types.
    pub chat: TrafficLimit,
    /// Messages that come again, over UDP, though they were there already. Default: 8,192 a second, and as many at once.
    /// A client sends what is not acknowledged again every 200 ms, and that are at most
    /// [1,024](crate::protocol::reliable::MAX_WINDOW_MESSAGES) messages, 256 by default. More is an offence.
    pub repeats: Rate,
}

impl SessionLimits {
    /// No limits: for tests, and for servers among friends.
    pub const UNLIMITED: Self = Self {
        inputs: TrafficLimit::UNLIMITED,
        messages: TrafficLimit::UNLIMITED,
        chat: TrafficLimit::UNLIMITED,
        repeats: Rate::UNLIMITED,
    };
}

impl Default for SessionLimits {
    fn default() -> Self {
        let limit = |per_s, burst, kib_per_s: u32, kib_burst: u32| TrafficLimit {
            messages: Rate::new(per_s, burst),
            bytes: Rate::new(kib_per_s << 10, kib_burst << 10),
        };
        Self {
            inputs: limit(150, 300, 64, 128),
            messages: limit(60, 120, 64, 128),
            chat: limit(2, 8, 2, 8),
            repeats: Rate::new(8_192, 8_192),
        }
    }
}

/// What a session sends, as far as limits are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Traffic {
    /// Datagrams with inputs.
    Inputs,
    /// The game's messages.
    Messages,
    /// Messages that other players must read.
    Chat,
}

impl Traffic {
    fn index(self) -> usize {
        match self {
            Self::Inputs => 0,
            Self::Messages => 1,
            Self::Chat => 2,
        }
    }
}

/// More than [`SessionLimits`] allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Too many messages.
    #[error("too many {0:?} a second: send fewer, or raise `SessionLimits` on the server")]
    Messages(Traffic),
    /// Too many bytes.
    #[error("too many bytes of {0:?} a second: send less, or raise `SessionLimits` on the server")]
    Bytes(Traffic),
    /// Too many messages that were there already.
    #[error(
        "too many messages a second are sent again: send fewer, or raise `SessionLimits` on the server"
    )]
    Repeats,
}

/// What is made up for after a silence, however long it was. Enough for the 1,000 messages that a client keeps while it is
/// cut off, and too little to be worth saving up for.
pub const MAX_SILENCE: Duration = Duration::from_secs(15);

/// Measures one session against [`SessionLimits`].
#[derive(Clone, Debug)]
pub struct SessionMeter {
    buckets: [(TokenBucket, TokenBucket); 3],
    repeats: TokenBucket,
}

impl SessionMeter {
    /// A session that has sent nothing.
    #[must_use]
    pub fn new(limits: &SessionLimits) -> Self {
        let buckets = [limits.inputs, limits.messages, limits.chat];
        Self {
            buckets: buckets.map(|limit| {
                (
                    TokenBucket::new(limit.messages),
                    TokenBucket::new(limit.bytes),
                )
            }),
            repeats: TokenBucket::new(limits.repeats),
        }
    }

    /// A message of so many bytes has come.
    ///
    /// # Errors
    ///
    /// [`Exceeded`] if that is too much now. It then counts for nothing. What to do with it, and with its sender, says
    /// [`Conduct`](super::Conduct). Mind that a reliable message which is dropped is lost: hold it back instead
    /// ([`Self::wait`]), or end the link.
    pub fn take(&mut self, traffic: Traffic, bytes: usize, now: Duration) -> Result<(), Exceeded> {
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (messages, bytes) = &mut self.buckets[traffic.index()];
        if !messages.has(1, now) {
            return Err(Exceeded::Messages(traffic));
        }
        if !bytes.take(size, now) {
            return Err(Exceeded::Bytes(traffic));
        }
        messages.take(1, now);
        Ok(())
    }

    /// So many messages have come again.
    ///
    /// # Errors
    ///
    /// [`Exceeded::Repeats`] if that are too many. They then count for nothing.
    pub fn repeat(&mut self, count: u64, now: Duration) -> Result<(), Exceeded> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        match self.repeats.take(count, now) {
            true => Ok(()),
            false => Err(Exceeded::Repeats),
        }
    }

    /// How long until a message of so many bytes is allowed; `None` if it never will be.
    pub fn wait(&mut self, traffic: Traffic, bytes: usize, now: Duration) -> Option<Duration> {
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (messages, bytes) = &mut self.buckets[traffic.index()];
        Some(messages.wait(1, now)?.max(bytes.wait(size, now)?))
    }

    /// Nothing could come for so long: what would have been allowed meanwhile may come at once, but no more than in
    /// [`MAX_SILENCE`].
    pub fn credit_silence(&mut self, length: Duration) {
        let length = length.min(MAX_SILENCE);
        for (messages, bytes) in &mut self.buckets {
            messages.credit_time(length);
            bytes.credit_time(length);
        }
        self.repeats.credit_time(length);
    }
}
