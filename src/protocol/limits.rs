//! What a peer may do how often, and what happens when it does more.
//!
//! | part | limits | of |
//! |---|---|---|
//! | [`TokenBucket`] | anything, to a [`Rate`] | anything |
//! | [`SessionMeter`] | messages and bytes per second: inputs, messages, chat | a session |
//! | [`Conduct`] | breaches: drop, warn, disconnect, ban | a session |
//! | [`AddressGate`] | attempts to connect, handshakes in flight, sessions; bans | an address |
//! | [`BanList`] | bans | an identity |
//!
//! Limits are far above what an honest client does, since to drop an honest player costs more than to serve a rude one
//! for another second. All memory is bounded. Time is an argument, from any fixed start; a clock that goes backwards only
//! stops things for so long.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
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
    /// [`Conduct`]. Mind that a reliable message which is dropped is lost: hold it back instead
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

/// What to do about a breach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Ignore what came, and say nothing.
    Drop,
    /// Ignore it, and tell the client, once.
    Warn,
    /// End the session or its link.
    Disconnect,
    /// End it, and let its player not come back for so long.
    Ban(Duration),
}

impl Answer {
    /// Whether the session or its link ends.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Disconnect | Self::Ban(_))
    }
}

/// How answers become harder. See [`Conduct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// At so many strikes, one warning. Default: 10. 0: never.
    pub warn_at: u32,
    /// At so many strikes, an offence: disconnect or ban. Default: 100, which is reached in under two seconds of twice
    /// the allowed messages. At least 1. [`u32::MAX`]: never.
    pub disconnect_at: u32,
    /// One strike is forgiven in so much time. Default: 500 ms. Zero: none ever.
    pub forgive_strike_every: Duration,
    /// The so many-th offence, and each after it, is answered with a ban. Default: 3. 1: ban at once. 0: never.
    pub ban_at_offence: u32,
    /// One offence is forgiven in so much time, and with the last one how many bans there were. Default: 10 minutes.
    /// Zero: none ever.
    pub forgive_offence_every: Duration,
    /// The first ban. Default: 5 minutes.
    pub ban: Duration,
    /// How much longer each ban is than the one before. Default: 4, so the second is 20 minutes. 0 counts as 1.
    pub ban_factor: u32,
    /// No ban is longer. Default: 24 hours.
    pub max_ban: Duration,
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            warn_at: 10,
            disconnect_at: 100,
            forgive_strike_every: Duration::from_millis(500),
            ban_at_offence: 3,
            forgive_offence_every: Duration::from_secs(600),
            ban: Duration::from_secs(300),
            ban_factor: 4,
            max_ban: Duration::from_secs(24 * 3_600),
        }
    }
}

/// A number that goes down by one each so often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Decaying {
    count: u32,
    /// When the next one is forgiven, counted from here.
    since: Duration,
}

impl Decaying {
    fn decay(&mut self, every: Duration, now: Duration) {
        if self.count == 0 || every.is_zero() {
            return;
        }
        let forgiven = now.saturating_sub(self.since).as_nanos() / every.as_nanos();
        match u32::try_from(forgiven) {
            Ok(forgiven) if forgiven < self.count => {
                self.count -= forgiven;
                self.since += every * forgiven;
            }
            _ => self.count = 0,
        }
    }

    fn add(&mut self, more: u32, now: Duration) {
        if self.count == 0 {
            self.since = now;
        }
        self.count = self.count.saturating_add(more);
    }
}

/// Offences of a session or address, and what follows from the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Record {
    offences: Decaying,
    bans: u32,
}

impl Record {
    fn decay(&mut self, ladder: &Ladder, now: Duration) {
        self.offences.decay(ladder.forgive_offence_every, now);
        if self.offences.count == 0 {
            self.bans = 0;
        }
    }

    fn offence(&mut self, ladder: &Ladder, now: Duration) -> Answer {
        self.decay(ladder, now);
        self.offences.add(1, now);
        if ladder.ban_at_offence == 0 || self.offences.count < ladder.ban_at_offence {
            return Answer::Disconnect;
        }
        let factor = ladder.ban_factor.max(1).saturating_pow(self.bans);
        self.bans = self.bans.saturating_add(1);
        Answer::Ban(ladder.ban.saturating_mul(factor).min(ladder.max_ban))
    }
}

/// How often each answer was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerCounts {
    /// [`Answer::Drop`].
    pub dropped: u64,
    /// [`Answer::Warn`].
    pub warned: u64,
    /// [`Answer::Disconnect`].
    pub disconnected: u64,
    /// [`Answer::Ban`].
    pub banned: u64,
}

impl AnswerCounts {
    /// Counts one more.
    pub fn note(&mut self, answer: Answer) {
        let count = match answer {
            Answer::Drop => &mut self.dropped,
            Answer::Warn => &mut self.warned,
            Answer::Disconnect => &mut self.disconnected,
            Answer::Ban(_) => &mut self.banned,
        };
        *count += 1;
    }

    /// How many there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.dropped + self.warned + self.disconnected + self.banned
    }
}

/// How one session has behaved, and what its next breach is answered with.
///
/// Each breach is a strike. Strikes are forgiven with time, so a stall of the network that lets a second of messages
/// arrive at once costs nothing. At [`Ladder::warn_at`] strikes, the client is warned once; at
/// [`Ladder::disconnect_at`], it has committed an offence, and its strikes start from zero again. The first offences end
/// the link; from [`Ladder::ban_at_offence`] on they ban, longer each time.
///
/// A session outlives its link, and so does its conduct. For those who come back with a new one, a [`BanList`] keeps
/// [offences](BanList::offence) by player, and an [`AddressGate`] [by address](AddressGate::offence).
#[derive(Clone, Copy, Debug, Default)]
pub struct Conduct {
    strikes: Decaying,
    warned: bool,
    record: Record,
    counts: AnswerCounts,
}

impl Conduct {
    /// A breach: a limit exceeded, a message that cannot be decoded.
    pub fn breach(&mut self, ladder: &Ladder, now: Duration) -> Answer {
        self.strikes.decay(ladder.forgive_strike_every, now);
        if self.strikes.count < ladder.warn_at {
            self.warned = false;
        }
        self.strikes.add(1, now);
        let answer =
            if self.strikes.count >= ladder.disconnect_at && ladder.disconnect_at < u32::MAX {
                return self.offence(ladder, now);
            } else if ladder.warn_at > 0 && self.strikes.count >= ladder.warn_at && !self.warned {
                self.warned = true;
                Answer::Warn
            } else {
                Answer::Drop
            };
        self.counts.note(answer);
        answer
    }

    /// A breach that no honest client commits, such as one of the protocol: disconnect or ban at once.
    pub fn offence(&mut self, ladder: &Ladder, now: Duration) -> Answer {
        self.strikes = Decaying::default();
        self.warned = false;
        let answer = self.record.offence(ladder, now);
        self.counts.note(answer);
        answer
    }

    /// How many strikes there are now.
    pub fn strikes(&mut self, ladder: &Ladder, now: Duration) -> u32 {
        self.strikes.decay(ladder.forgive_strike_every, now);
        self.strikes.count
    }

    /// How often each answer was given to it.
    #[must_use]
    pub fn counts(&self) -> AnswerCounts {
        self.counts
    }
}

/// What an address may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateLimits {
    /// Attempts to connect. Default: 4 a second, 32 at once: a school behind one address, or a player whose Wi-Fi comes
    /// and goes.
    pub attempts: Rate,
    /// Sessions at the same time. Default: 256, as a school or an office has one address.
    pub sessions: u32,
    /// Handshakes in flight. Default: 16.
    pub handshakes: u32,
    /// Handshakes in flight of all addresses together. Default: 1,024.
    pub handshakes_total: u32,
    /// How many addresses are remembered. Default: 16,384, which is about 4 MiB at most. At least 1.
    pub addresses: usize,
    /// Whether 127.0.0.0/8 and ::1 are free of these limits; bans hold there too. Default: true, for bots and tests.
    /// Behind a proxy on the same machine, see that the proxy tells the real addresses.
    pub exempt_loopback: bool,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            attempts: Rate::new(4, 32),
            sessions: 256,
            handshakes: 16,
            handshakes_total: 1_024,
            addresses: 16_384,
            exempt_loopback: true,
        }
    }
}

/// Why an address may not connect now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is banned.
    #[error("this address is banned for another {} s", whole_seconds(*.remaining))]
    Banned {
        /// For how long still.
        remaining: Duration,
    },
    /// It tries too often.
    #[error("too many attempts to connect from this address; try again in {} s", whole_seconds(*.retry_in))]
    TooFast {
        /// When the next attempt is allowed.
        retry_in: Duration,
    },
    /// It has too many sessions.
    #[error("too many sessions from this address; leave one of them first")]
    TooManySessions,
    /// It has too many handshakes in flight, or all addresses together have.
    #[error("too many connections are being set up; try again in a few seconds")]
    TooManyHandshakes,
    /// So many addresses have sessions and handshakes that not one more can be remembered.
    #[error("the server has connections from too many addresses; try again later")]
    TooManyAddresses,
}

fn whole_seconds(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// What an [`AddressGate`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounts {
    /// Attempts let through.
    pub admitted: u64,
    /// [`Refusal::Banned`].
    pub banned: u64,
    /// [`Refusal::TooFast`].
    pub too_fast: u64,
    /// [`Refusal::TooManySessions`].
    pub too_many_sessions: u64,
    /// [`Refusal::TooManyHandshakes`].
    pub too_many_handshakes: u64,
    /// [`Refusal::TooManyAddresses`].
    pub too_many_addresses: u64,
    /// Idle addresses forgotten to make room.
    pub forgotten: u64,
    /// Live bans forgotten to make room, since there was nothing else to forget.
    pub bans_forgotten: u64,
}

impl GateCounts {
    /// How many were refused, for whatever reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.banned
            + self.too_fast
            + self.too_many_sessions
            + self.too_many_handshakes
            + self.too_many_addresses
    }

    fn note(&mut self, refusal: Refusal) {
        let count = match refusal {
            Refusal::Banned { .. } => &mut self.banned,
            Refusal::TooFast { .. } => &mut self.too_fast,
            Refusal::TooManySessions => &mut self.too_many_sessions,
            Refusal::TooManyHandshakes => &mut self.too_many_handshakes,
            Refusal::TooManyAddresses => &mut self.too_many_addresses,
        };
        *count += 1;
    }
}

/// What counts as one address: an IPv4 address, or the first 64 bits of an IPv6 one, since a household has all that
/// begin with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Prefix {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Visitor {
    attempts: TokenBucket,
    handshakes: u32,
    sessions: u32,
    banned_until: Option<Duration>,
    record: Record,
    /// Counts touches: the smaller, the longer ago.
    touched: u64,
}

/// Where a visitor stands in the order of forgetting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Has sessions or handshakes: not to be forgotten, or counts would be wrong.
    Present,
    Banned(Duration),
    /// The least recently touched is forgotten first.
    Idle(u64),
}

impl Visitor {
    fn standing(&self) -> Standing {
        match self.banned_until {
            _ if self.handshakes > 0 || self.sessions > 0 => Standing::Present,
            Some(until) => Standing::Banned(until),
            None => Standing::Idle(self.touched),
        }
    }
}

/// Decides which addresses may connect. IPv6 addresses with the same first 64 bits count as one.
///
/// For each connection: [`try_connect`](Self::try_connect); then, however it ends or times out,
/// [`handshake_done`](Self::handshake_done). For each session: [`session_opened`](Self::session_opened), and at its end
/// [`session_closed`](Self::session_closed).
///
/// Remembers so many addresses as [`GateLimits::addresses`]. To make room, it forgets the address that was idle for
/// longest; if none is idle, the ban that would end first; and none with sessions or handshakes.
#[derive(Clone, Debug)]
pub struct AddressGate {
    limits: GateLimits,
    visitors: BTreeMap<Prefix, Visitor>,
    /// Visitors by standing, first to be forgotten first.
    idle: BTreeSet<(u64, Prefix)>,
    banned: BTreeSet<(Duration, Prefix)>,
    handshakes: u32,
    touches: u64,
    counts: GateCounts,
}

impl AddressGate {
    /// A gate that nobody has come to yet.
    #[must_use]
    pub fn new(limits: GateLimits) -> Self {
        Self {
            limits,
            visitors: BTreeMap::new(),
            idle: BTreeSet::new(),
            banned: BTreeSet::new(),
            handshakes: 0,
            touches: 0,
            counts: GateCounts::default(),
        }
    }

    /// Somebody wants to connect. If they may, a handshake is in flight from here on.
    ///
    /// How many sessions an address has does not matter yet: who has many may still resume one. For the same reason, a
    /// banned address with sessions is let in so far: who it is shows when they have said hello.
    ///
    /// # Errors
    ///
    /// [`Refusal`]. Nothing is in flight then.
    pub fn try_connect(&mut self, address: IpAddr, now: Duration) -> Result<(), Refusal> {
        let result = self.admit(address, now);
        match result {
            Ok(()) => self.counts.admitted += 1,
            Err(refusal) => self.counts.note(refusal),
        }
        result
    }

    /// A handshake that [`Self::try_connect`] allowed is over: it succeeded, failed, or took too long.
    pub fn handshake_done(&mut self, address: IpAddr) {
        let done = self.update_known(address.into(), |visitor| {
            let in_flight = visitor.handshakes > 0;
            visitor.handshakes = visitor.handshakes.saturating_sub(1);
            in_flight
        });
        if done == Some(true) {
            self.handshakes = self.handshakes.saturating_sub(1);
        }
    }

    /// A session begins.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManySessions`] or [`Refusal::TooManyAddresses`]; then it is not counted, so do not report its end.
    pub fn session_opened(&mut self, address: IpAddr, now: Duration) -> Result<(), Refusal> {
        let most = if self.is_exempt(address) {
            u32::MAX
        } else {
            self.limits.sessions
        };
        let result = self
            .update(address.into(), now, |visitor| {
                if visitor.sessions >= most {
                    return Err(Refusal::TooManySessions);
                }
                visitor.sessions += 1;
                Ok(())
            })
            .flatten();
        if let Err(refusal) = result {
            self.counts.note(refusal);
        }
        result
    }

    /// A session is over.
    pub fn session_closed(&mut self, address: IpAddr) {
        self.update_known(address.into(), |visitor| {
            visitor.sessions = visitor.sessions.saturating_sub(1);
        });
    }

    /// A session goes on from another address. No limit applies: the player was let in already.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManyAddresses`]; then it still counts for the old one.
    pub fn session_moved(
        &mut self,
        from: IpAddr,
        to: IpAddr,
        now: Duration,
    ) -> Result<(), Refusal> {
        if Prefix::from(from) == Prefix::from(to) {
            return Ok(());
        }
        self.update(to.into(), now, |visitor| {
            visitor.sessions = visitor.sessions.saturating_add(1);
        })?;
        self.session_closed(from);
        Ok(())
    }

    /// Somebody at this address has committed an offence (a session's [`Conduct`] has led to its end): what to do about
    /// the address. Bans it if that is the answer. An exempt address is never banned for offences.
    ///
    /// Many players can share an address, so a server that knows who its players are rather
    /// [bans those](BanList::offence).
    pub fn offence(&mut self, address: IpAddr, ladder: &Ladder, now: Duration) -> Answer {
        if self.is_exempt(address) {
            return Answer::Disconnect;
        }
        let answer = self.update(address.into(), now, |visitor| {
            let answer = visitor.record.offence(ladder, now);
            if let Answer::Ban(length) = answer {
                visitor.ban(now.saturating_add(length));
            }
            answer
        });
        answer.unwrap_or(Answer::Disconnect)
    }

    /// Bans an address for so long, or for as long as it is banned already if that is longer. [`Duration::MAX`]: forever.
    /// Its sessions are the caller's to end.
    ///
    /// # Errors
    ///
    /// [`Refusal::TooManyAddresses`] if there is no room for it.
    pub fn ban(&mut self, address: IpAddr, length: Duration, now: Duration) -> Result<(), Refusal> {
        self.update(address.into(), now, |visitor| {
            visitor.ban(now.saturating_add(length));
        })
    }

    /// Ends a ban. Returns whether there was one, if perhaps one that had just run out.
    pub fn unban(&mut self, address: IpAddr) -> bool {
        let was_banned = self.update_known(address.into(), |visitor| visitor.banned_until.take());
        was_banned.flatten().is_some()
    }

    /// How long this address is still banned, if it is.
    #[must_use]
    pub fn is_banned(&self, address: IpAddr, now: Duration) -> Option<Duration> {
        let until = self.visitors.get(&address.into())?.banned_until?;
        (until > now).then(|| until.saturating_sub(now))
    }

    /// How many handshakes are in flight.
    #[must_use]
    pub fn handshakes(&self) -> u32 {
        self.handshakes
    }

    /// How many sessions this address has.
    #[must_use]
    pub fn sessions(&self, address: IpAddr) -> u32 {
        self.visitors
            .get(&address.into())
            .map_or(0, |visitor| visitor.sessions)
    }

    /// How many addresses are remembered.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.visitors.len()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> GateCounts {
        self.counts
    }

    fn is_exempt(&self, address: IpAddr) -> bool {
        self.limits.exempt_loopback && address.to_canonical().is_loopback()
    }

    fn admit(&mut self, address: IpAddr, now: Duration) -> Result<(), Refusal> {
        if let Some(remaining) = self.is_banned(address, now)
            && self.sessions(address) == 0
        {
            return Err(Refusal::Banned { remaining });
        }
        let exempt = self.is_exempt(address);
        if !exempt && self.handshakes >= self.limits.handshakes_total {
            return Err(Refusal::TooManyHandshakes);
        }
        let most = self.limits.handshakes;
        self.update(address.into(), now, |visitor| {
            if !exempt {
                if visitor.handshakes >= most {
                    return Err(Refusal::TooManyHandshakes);
                }
                if !visitor.attempts.take(1, now) {
                    let retry_in = visitor.attempts.wait(1, now).unwrap_or(Duration::MAX);
                    return Err(Refusal::TooFast { retry_in });
                }
            }
            visitor.handshakes = visitor.handshakes.saturating_add(1);
            Ok(())
        })
        .flatten()?;
        self.handshakes = self.handshakes.saturating_add(1);
        Ok(())
    }

    /// Changes a visitor, who is remembered from here on.
    fn update<T>(
        &mut self,
        prefix: Prefix,
        now: Duration,
        change: impl FnOnce(&mut Visitor) -> T,
    ) -> Result<T, Refusal> {
        if !self.visitors.contains_key(&prefix) {
            self.make_room(now)?;
            let visitor = Visitor {
                attempts: TokenBucket::new(self.limits.attempts),
                handshakes: 0,
                sessions: 0,
                banned_until: None,
                record: Record::default(),
                touched: self.touches,
            };
            self.visitors.insert(prefix, visitor);
            self.idle.insert((visitor.touched, prefix));
        }
        self.update_known(prefix, |visitor| {
            visitor.banned_until = visitor.banned_until.filter(|&until| until > now);
            change(visitor)
        })
        .ok_or(Refusal::TooManyAddresses)
    }

    /// Changes a visitor, if they are remembered.
    fn update_known<T>(
        &mut self,
        prefix: Prefix,
        change: impl FnOnce(&mut Visitor) -> T,
    ) -> Option<T> {
        let visitor = self.visitors.get_mut(&prefix)?;
        match visitor.standing() {
            Standing::Present => false,
            Standing::Banned(until) => self.banned.remove(&(until, prefix)),
            Standing::Idle(touched) => self.idle.remove(&(touched, prefix)),
        };
        self.touches += 1;
        visitor.touched = self.touches;
        let result = change(visitor);
        match visitor.standing() {
            Standing::Present => false,
            Standing::Banned(until) => self.banned.insert((until, prefix)),
            Standing::Idle(touched) => self.idle.insert((touched, prefix)),
        };
        Some(result)
    }

    fn make_room(&mut self, now: Duration) -> Result<(), Refusal> {
        while self.visitors.len() >= self.limits.addresses.max(1) {
            let first_ban = self.banned.first().copied();
            if let Some((until, prefix)) = first_ban.filter(|&(until, _)| until <= now) {
                self.banned.remove(&(until, prefix));
                self.visitors.remove(&prefix);
                self.counts.forgotten += 1;
            } else if let Some((_, prefix)) = self.idle.pop_first() {
                self.visitors.remove(&prefix);
                self.counts.forgotten += 1;
            } else if let Some((_, prefix)) = self.banned.pop_first() {
                self.visitors.remove(&prefix);
                self.counts.bans_forgotten += 1;
            } else {
                return Err(Refusal::TooManyAddresses);
            }
        }
        Ok(())
    }
}

impl Visitor {
    fn ban(&mut self, until: Duration) {
        self.banned_until = self.banned_until.max(Some(until));
    }
}

/// The longest identity that can be banned, in bytes: an e-mail address or the subject of a signed token fits.
pub const MAX_IDENTITY_BYTES: usize = 256;

/// The longest reason that is kept, in bytes. The rest is cut off.
pub const MAX_REASON_BYTES: usize = 120;

/// Who is banned, by whatever string identifies a player: an account, a client id.
///
/// Only as good as the identity. Where clients merely claim one, ban addresses.
#[derive(Clone, Debug)]
pub struct BanList {
    capacity: usize,
    /// Offences of those who may be banned for the next.
    records: BTreeMap<String, Record>,
    bans: BTreeMap<String, Ban>,
    /// By end, first one first.
    ends: BTreeSet<(Duration, String)>,
}

#[derive(Clone, Debug)]
struct Ban {
    until: Duration,
    reason: String,
}

/// A ban that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Banned<'a> {
    /// For how long still; `None`: forever.
    pub remaining: Option<Duration>,
    /// Why: to be shown to the player.
    pub reason: &'a str,
}

/// Why somebody could not be banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BanError {
    /// There is no room, and all others are banned for longer.
    #[error(
        "the ban list is full ({capacity} bans, all of them longer): raise its capacity, or unban somebody"
    )]
    Full {
        /// How many bans it holds.
        capacity: usize,
    },
    /// Nobody is called that.
    #[error("an identity has 1 to {MAX_IDENTITY_BYTES} bytes, not {0}")]
    Identity(usize),
}

impl Default for BanList {
    /// Holds 10,000 bans, which is 8 MiB at most.
    fn default() -> Self {
        Self::new(10_000)
    }
}

impl BanList {
    /// An empty list that holds so many bans.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            records: BTreeMap::new(),
            bans: BTreeMap::new(),
            ends: BTreeSet::new(),
        }
    }

    /// Bans a player for so long; `None`: forever. Replaces an earlier ban, also a longer one.
    ///
    /// A full list forgets the ban that ends first.
    ///
    /// # Errors
    ///
    /// [`BanError`]
    pub fn ban(
        &mut self,
        identity: &str,
        length: Option<Duration>,
        reason: &str,
        now: Duration,
    ) -> Result<(), BanError> {
        if !(1..=MAX_IDENTITY_BYTES).contains(&identity.len()) {
            return Err(BanError::Identity(identity.len()));
        }
        let until = length.map_or(Duration::MAX, |length| now.saturating_add(length));
        self.expire(now);
        if !self.bans.contains_key(identity) && self.bans.len() >= self.capacity {
            let capacity = self.capacity;
            match self.ends.first() {
                Some((first, _)) if *first < until => {}
                _ => return Err(BanError::Full { capacity }),
            }
            if let Some((_, forgotten)) = self.ends.pop_first() {
                self.bans.remove(&forgotten);
            }
        }
        let reason = reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned();
        if let Some(old) = self.bans.insert(identity.to_owned(), Ban { until, reason }) {
            self.ends.remove(&(old.until, identity.to_owned()));
        }
        self.ends.insert((until, identity.to_owned()));
        Ok(())
    }

    /// This player has committed an offence (a session's [`Conduct`] has led to its end): what to do about it. Bans them
    /// if that is the answer.
    ///
    /// Remembers as many players as bans. Beyond that, whoever is not remembered is not banned.
    pub fn offence(
        &mut self,
        identity: &str,
        ladder: &Ladder,
        reason: &str,
        now: Duration,
    ) -> Answer {
        if !self.records.contains_key(identity) && self.records.len() >= self.capacity {
            self.records.retain(|_, record| {
                record.decay(ladder, now);
                record.offences.count > 0
            });
            if self.records.len() >= self.capacity {
                return Answer::Disconnect;
            }
        }
        let record = self.records.entry(identity.to_owned()).or_default();
        match record.offence(ladder, now) {
            Answer::Ban(length) if self.ban(identity, Some(length), reason, now).is_err() => {
                Answer::Disconnect
            }
            answer => answer,
        }
    }

    /// Ends a ban. Returns whether there was one, if perhaps one that had just run out.
    pub fn unban(&mut self, identity: &str) -> bool {
        match self.bans.remove(identity) {
            Some(ban) => self.ends.remove(&(ban.until, identity.to_owned())),
            None => false,
        }
    }

    /// The ban of this player, if they are banned.
    #[must_use]
    pub fn is_banned(&self, identity: &str, now: Duration) -> Option<Banned<'_>> {
        self.bans.get(identity)?.at(now)
    }

    /// Everybody who is banned, sorted by identity.
    pub fn iter(&self, now: Duration) -> impl Iterator<Item = (&str, Banned<'_>)> {
        self.bans
            .iter()
            .filter_map(move |(identity, ban)| Some((identity.as_str(), ban.at(now)?)))
    }

    /// Forgets bans that have run out. [`Self::ban`] does so too.
    pub fn expire(&mut self, now: Duration) {
        while self.ends.first().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, identity)) = self.ends.pop_first() {
                self.bans.remove(&identity);
            }
        }
    }

    /// How many bans it holds, those included that have run out and are not [forgotten](Self::expire) yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bans.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bans.is_empty()
    }
}

impl Ban {
    fn at(&self, now: Duration) -> Option<Banned<'_>> {
        (self.until > now).then(|| Banned {
            remaining: (self.until < Duration::MAX).then(|| self.until - now),
            reason: &self.reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn v4(last: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0xcb00_7100 + last)) // 203.0.113.0
    }

    #[test]
    fn what_a_silence_held_back_is_allowed_and_silences_do_not_add_up() {
        let rate = Rate::new(10, 20);
        let mut bucket = TokenBucket::new(rate);
        bucket.credit_time(s(10));
        assert!(bucket.take(120, s(0)) && !bucket.take(1, s(0)));
        for _ in 0..100 {
            bucket.credit_time(s(10));
        }
        assert!(!bucket.take(121, s(0)) && bucket.take(120, s(0)));
        bucket.credit_time(Duration::MAX);
        assert!(bucket.take(u32::MAX, s(0)));
    }

    #[test]
    fn a_bucket_allows_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::new(Rate::new(3, 5));
        let mut taken = 0;
        for now in 0..10_000 {
            while bucket.take(1, ms(now)) {
                taken += 1;
            }
        }
        assert_eq!(taken, 5 + 29, "thirds of a second are not rounded away");
    }

    #[test]
    fn a_bucket_says_how_long_to_wait() {
        let mut bucket = TokenBucket::new(Rate::new(3, 5));
        assert_eq!(bucket.wait(5, s(0)), Some(s(0)));
        assert!(bucket.take(5, s(0)));
        let wait = bucket.wait(1, s(0)).expect("one is possible");
        assert_eq!(wait, Duration::from_nanos(333_333_334));
        assert!(!bucket.take(1, wait - Duration::from_nanos(1)));
        assert!(bucket.take(1, wait));
        assert_eq!(bucket.wait(6, wait), None, "more than it can hold");
        let mut once = TokenBucket::new(Rate::new(0, 1));
        assert!(once.take(1, s(0)));
        assert_eq!(once.wait(1, s(0)), None, "never refilled");
    }

    #[test]
    fn an_honest_client_stays_within_the_default_limits() {
        let mut meter = SessionMeter::new(&SessionLimits::default());
        for tick in 0..6_000u64 {
            // Once in 20 s the network stalls for 1 s, and everything comes at the end of it.
            let at = tick * 1_000 / 60;
            let now = ms(if at % 20_000 < 1_000 {
                at - at % 20_000 + 1_000
            } else {
                at
            });
            assert_eq!(meter.take(Traffic::Inputs, 260, now), Ok(()));
            assert_eq!(meter.take(Traffic::Messages, 1_000, now), Ok(()));
            if tick % 30 == 0 {
                assert_eq!(meter.take(Traffic::Chat, 200, now), Ok(()));
            }
        }
    }

    #[test]
    fn a_flood_is_let_through_at_the_limit_and_no_faster() {
        let mut meter = SessionMeter::new(&SessionLimits::default());
        let passed = (0..60_000u64)
            .filter(|i| meter.take(Traffic::Messages, 50, ms(i / 6)).is_ok())
            .count();
        assert!(
            (719..=720).contains(&passed),
            "120 and 60 a second for 10 s: {passed}"
        );
        let chat = (0..1_000).filter(|_| meter.take(Traffic::Chat, 10, s(10)).is_ok());
        assert_eq!(chat.count(), 8, "kinds of traffic are measured apart");
    }

    #[test]
    fn bytes_are_limited_as_well_as_messages() {
        let mut meter = SessionMeter::new(&SessionLimits::default());
        let all = Traffic::Messages;
        assert_eq!(meter.take(all, 128 << 10, s(0)), Ok(()));
        assert_eq!(meter.take(all, 1, s(0)), Err(Exceeded::Bytes(all)));
        assert_eq!(meter.wait(all, 64 << 10, s(0)), Some(s(1)));
        assert_eq!(meter.take(all, usize::MAX, s(9)), Err(Exceeded::Bytes(all)));
        assert_eq!(meter.wait(all, usize::MAX, s(9)), None);
        for _ in 0..120 {
            assert_eq!(
                meter.take(all, 0, s(9)),
                Ok(()),
                "what was refused counts for nothing"
            );
        }
        assert_eq!(meter.take(all, 0, s(9)), Err(Exceeded::Messages(all)));
    }

    #[test]
    fn a_resumed_client_may_send_what_it_had_to_keep_but_saves_nothing_up() {
        for silence in [MAX_SILENCE, MAX_SILENCE * 100] {
            let mut meter = SessionMeter::new(&SessionLimits::default());
            for _ in 0..3 {
                meter.credit_silence(silence);
            }
            for _ in 0..1_020 {
                assert_eq!(meter.take(Traffic::Messages, 1_000, s(1)), Ok(()));
            }
            assert!(meter.take(Traffic::Messages, 1, s(1)).is_err());
            let chat = (0..100).filter(|_| meter.take(Traffic::Chat, 10, s(1)).is_ok());
            assert_eq!(chat.count(), 38);
        }
    }

    #[test]
    fn breaches_are_dropped_then_warned_about_once_then_end_the_link() {
        let ladder = Ladder::default();
        let mut conduct = Conduct::default();
        let answers: Vec<Answer> = (0..100).map(|_| conduct.breach(&ladder, s(1))).collect();
        assert!(answers[..9].iter().all(|&answer| answer == Answer::Drop));
        assert_eq!(answers[9], Answer::Warn);
        assert!(answers[10..99].iter().all(|&answer| answer == Answer::Drop));
        assert_eq!(answers[99], Answer::Disconnect);
        let counts = AnswerCounts {
            dropped: 98,
            warned: 1,
            disconnected: 1,
            banned: 0,
        };
        assert_eq!((conduct.counts(), counts.total()), (counts, 100));
        assert_eq!(
            conduct.breach(&ladder, s(1)),
            Answer::Drop,
            "strikes start again"
        );
    }

    #[test]
    fn strikes_are_forgiven_with_time_and_a_new_warning_is_possible() {
        let ladder = Ladder::default();
        let mut conduct = Conduct::default();
        for _ in 0..20 {
            conduct.breach(&ladder, s(0));
        }
        assert_eq!(conduct.strikes(&ladder, ms(4_999)), 11);
        assert_eq!(conduct.strikes(&ladder, s(5)), 10);
        assert_eq!(
            conduct.breach(&ladder, s(5)),
            Answer::Drop,
            "warned already"
        );
        assert_eq!(conduct.strikes(&ladder, s(600)), 0);
        let answers = (0..10).map(|_| conduct.breach(&ladder, s(600)));
        assert_eq!(answers.last(), Some(Answer::Warn));
        let mut slow = Conduct::default();
        for second in 0..10_000 {
            assert_eq!(
                slow.breach(&ladder, s(second)),
                Answer::Drop,
                "now and then is no harm"
            );
        }
    }

    #[test]
    fn repeated_offences_lead_to_bans_that_grow() {
        let ladder = Ladder::default();
        let mut conduct = Conduct::default();
        let mut offence = |now| conduct.offence(&ladder, now);
        assert_eq!(offence(s(0)), Answer::Disconnect);
        assert_eq!(offence(s(1)), Answer::Disconnect);
        let minutes = |n: u64| Answer::Ban(s(60 * n));
        for expected in [5, 20, 80, 320, 1_280, 1_440, 1_440] {
            assert_eq!(offence(s(2)), minutes(expected));
        }
        assert_eq!(
            offence(s(86_400)),
            Answer::Disconnect,
            "forgiven after long enough"
        );
        assert_eq!(conduct.counts().banned, 7);
    }

    #[test]
    fn every_rung_of_the_ladder_can_be_taken_out() {
        let never = Ladder {
            warn_at: 0,
            disconnect_at: u32::MAX,
            ban_at_offence: 0,
            ..Ladder::default()
        };
        let mut conduct = Conduct::default();
        for _ in 0..1_000 {
            assert_eq!(conduct.breach(&never, s(0)), Answer::Drop);
        }
        assert_eq!(conduct.offence(&never, s(0)), Answer::Disconnect);
        let at_once = Ladder {
            disconnect_at: 1,
            ban_at_offence: 1,
            ..Ladder::default()
        };
        assert_eq!(
            Conduct::default().breach(&at_once, s(0)),
            Answer::Ban(s(300))
        );
    }

    #[test]
    fn an_address_may_try_so_often_and_is_told_when_again() {
        let mut gate = AddressGate::new(GateLimits {
            attempts: Rate::new(2, 3),
            ..GateLimits::default()
        });
        for _ in 0..3 {
            assert_eq!(gate.try_connect(v4(1), s(0)), Ok(()));
            gate.handshake_done(v4(1));
        }
        let retry_in = ms(500);
        assert_eq!(
            gate.try_connect(v4(1), s(0)),
            Err(Refusal::TooFast { retry_in })
        );
        assert_eq!(gate.try_connect(v4(2), s(0)), Ok(()), "another address");
        assert_eq!(gate.try_connect(v4(1), retry_in), Ok(()));
        assert_eq!((gate.counts().admitted, gate.counts().too_fast), (5, 1));
    }

    #[test]
    fn handshakes_in_flight_are_limited_by_address_and_in_total() {
        let limits = GateLimits {
            handshakes: 2,
            handshakes_total: 3,
            ..GateLimits::default()
        };
        let mut gate = AddressGate::new(limits);
        let too_many = Err(Refusal::TooManyHandshakes);
        assert_eq!(
            [1, 1, 1, 2, 2].map(|who| gate.try_connect(v4(who), s(0))),
            [Ok(()), Ok(()), too_many, Ok(()), too_many]
        );
        gate.handshake_done(v4(1));
        assert_eq!(gate.try_connect(v4(2), s(0)), Ok(()));
        gate.handshake_done(v4(9));
        gate.handshake_done(v4(9));
        assert_eq!(gate.handshakes(), 3, "what was never begun is not ended");
    }

    #[test]
    fn sessions_are_limited_and_can_resume_and_move_all_the_same() {
        let mut gate = AddressGate::new(GateLimits {
            sessions: 1,
            ..GateLimits::default()
        });
        assert_eq!(gate.session_opened(v4(1), s(0)), Ok(()));
        assert_eq!(
            gate.session_opened(v4(1), s(0)),
            Err(Refusal::TooManySessions)
        );
        assert_eq!(
            gate.try_connect(v4(1), s(0)),
            Ok(()),
            "it may be for a resume"
        );
        assert_eq!(gate.session_opened(v4(2), s(0)), Ok(()));
        assert_eq!(gate.session_moved(v4(2), v4(1), s(0)), Ok(()));
        assert_eq!((gate.sessions(v4(1)), gate.sessions(v4(2))), (2, 0));
        gate.session_closed(v4(1));
        gate.session_closed(v4(1));
        assert_eq!(gate.session_opened(v4(1), s(0)), Ok(()));
    }

    #[test]
    fn ipv6_addresses_of_one_household_count_as_one() {
        let v6 = |bits: u128| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | bits));
        let mut gate = AddressGate::new(GateLimits::default());
        gate.ban(v6(1), s(10), s(0)).expect("room");
        assert_eq!(gate.is_banned(v6(0xffff_ffff_ffff_ffff), s(0)), Some(s(10)));
        assert_eq!(gate.is_banned(v6(1 << 64), s(0)), None);
        gate.ban(v4(1), s(10), s(0)).expect("room");
        let IpAddr::V4(one) = v4(1) else {
            unreachable!("made as v4")
        };
        let mapped = IpAddr::V6(one.to_ipv6_mapped());
        assert_eq!(
            gate.is_banned(mapped, s(0)),
            Some(s(10)),
            "the same, written differently"
        );
    }

    #[test]
    fn bans_end_by_time_or_by_hand_and_are_not_shortened() {
        let mut gate = AddressGate::new(GateLimits::default());
        gate.ban(v4(1), s(10), s(5)).expect("room");
        gate.ban(v4(1), s(1), s(5)).expect("room");
        let refused = Refusal::Banned {
            remaining: ms(2_500),
        };
        assert_eq!(gate.try_connect(v4(1), ms(12_500)), Err(refused));
        assert_eq!(
            refused.to_string(),
            "this address is banned for another 3 s"
        );
        assert_eq!(gate.try_connect(v4(1), s(15)), Ok(()));
        gate.ban(v4(1), Duration::MAX, s(15)).expect("room");
        assert!(gate.is_banned(v4(1), s(1 << 40)).is_some());
        assert!(gate.unban(v4(1)) && !gate.unban(v4(1)) && !gate.unban(v4(2)));
        assert_eq!(gate.try_connect(v4(1), s(15)), Ok(()));
    }

    #[test]
    fn neighbours_of_a_banned_player_may_come_back_to_their_sessions() {
        let mut gate = AddressGate::new(GateLimits::default());
        assert_eq!(gate.session_opened(v4(1), s(0)), Ok(()));
        gate.ban(v4(1), s(10), s(0)).expect("room");
        assert_eq!(gate.try_connect(v4(1), s(1)), Ok(()));
        gate.handshake_done(v4(1));
        gate.session_closed(v4(1));
        assert_eq!(
            gate.try_connect(v4(1), s(1)),
            Err(Refusal::Banned { remaining: s(9) })
        );
    }

    #[test]
    fn offences_of_a_player_add_up_over_sessions_and_are_forgiven() {
        let ladder = Ladder::default();
        let mut list = BanList::new(2);
        let mut offence = |who, at| list.offence(who, &ladder, "flood", s(at));
        assert_eq!(offence("eve", 0), Answer::Disconnect);
        assert_eq!(offence("eve", 0), Answer::Disconnect);
        assert_eq!(offence("bob", 0), Answer::Disconnect);
        assert_eq!(offence("ada", 0), Answer::Disconnect, "there is no room");
        assert_eq!(offence("eve", 0), Answer::Ban(s(300)));
        assert_eq!(
            offence("eve", 1_300),
            Answer::Disconnect,
            "two are forgiven"
        );
        assert_eq!(
            offence("ada", 1_300),
            Answer::Disconnect,
            "bob is forgotten"
        );
        assert_eq!(list.is_banned("eve", s(299)).unwrap().reason, "flood");
        assert!(list.is_banned("eve", s(300)).is_none());
    }

    #[test]
    fn offences_of_those_who_come_back_as_somebody_new_ban_their_address() {
        let mut gate = AddressGate::new(GateLimits::default());
        let ladder = Ladder::default();
        for _ in 0..2 {
            assert_eq!(gate.offence(v4(1), &ladder, s(0)), Answer::Disconnect);
        }
        assert_eq!(gate.offence(v4(1), &ladder, s(0)), Answer::Ban(s(300)));
        assert_eq!(gate.is_banned(v4(1), s(0)), Some(s(300)));
        assert_eq!(gate.offence(v4(2), &ladder, s(0)), Answer::Disconnect);
    }

    #[test]
    fn loopback_is_exempt_from_limits_unless_told_and_never_from_bans() {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let limits = GateLimits {
            attempts: Rate::new(1, 1),
            sessions: 1,
            ..GateLimits::default()
        };
        let mut gate = AddressGate::new(limits);
        for _ in 0..5_000 {
            assert_eq!(gate.try_connect(local, s(0)), Ok(()));
            assert_eq!(gate.session_opened(local, s(0)), Ok(()));
        }
        (0..5_000).for_each(|_| gate.session_closed(local));
        gate.ban(local, s(1), s(0)).expect("room");
        assert!(gate.try_connect(local, s(0)).is_err());
        let mut strict = AddressGate::new(GateLimits {
            exempt_loopback: false,
            ..limits
        });
        assert!(
            strict.try_connect(local, s(0)).is_ok() && strict.try_connect(local, s(0)).is_err()
        );
    }

    #[test]
    fn a_full_gate_forgets_idle_addresses_then_bans_and_never_sessions() {
        let mut gate = AddressGate::new(GateLimits {
            addresses: 4,
            ..GateLimits::default()
        });
        gate.session_opened(v4(1), s(0)).expect("room");
        gate.ban(v4(2), s(100), s(0)).expect("room");
        gate.ban(v4(3), s(50), s(0)).expect("room");
        for stranger in 10..1_000 {
            assert_eq!(gate.try_connect(v4(stranger), s(1)), Ok(()));
            gate.handshake_done(v4(stranger));
        }
        assert_eq!((gate.addresses(), gate.counts().forgotten), (4, 989));
        assert!(gate.is_banned(v4(2), s(1)).is_some() && gate.is_banned(v4(3), s(1)).is_some());

        assert_eq!(gate.try_connect(v4(4), s(1)), Ok(()), "in flight now");
        assert_eq!(gate.try_connect(v4(5), s(1)), Ok(()));
        assert!(
            gate.is_banned(v4(3), s(1)).is_none(),
            "the ban that ended first had to go"
        );
        assert_eq!(gate.try_connect(v4(6), s(100)), Ok(()));
        assert_eq!(gate.counts().bans_forgotten, 1, "the other had run out");
        assert_eq!(
            gate.try_connect(v4(7), s(100)),
            Err(Refusal::TooManyAddresses)
        );
        assert_eq!(gate.sessions(v4(1)), 1);
    }

    #[test]
    fn a_ban_list_tells_why_and_for_how_long() {
        let mut list = BanList::default();
        list.ban("ada", Some(s(10)), "rude", s(1)).expect("room");
        list.ban("eve", None, "ruder", s(1)).expect("room");
        let banned = |remaining, reason| Some(Banned { remaining, reason });
        assert_eq!(list.is_banned("ada", s(2)), banned(Some(s(9)), "rude"));
        assert_eq!(list.is_banned("eve", s(1 << 50)), banned(None, "ruder"));
        assert_eq!(list.is_banned("bob", s(2)), None);
        assert_eq!(
            list.iter(s(2)).map(|(who, _)| who).collect::<Vec<_>>(),
            ["ada", "eve"]
        );
        assert_eq!(list.is_banned("ada", s(11)), None);
        assert_eq!(list.iter(s(11)).count(), 1);
        list.ban("eve", Some(s(1)), "forgiven, nearly", s(11))
            .expect("room");
        assert_eq!((list.len(), list.is_banned("eve", s(12))), (1, None));
        assert!(list.unban("eve") && !list.unban("eve") && list.is_empty());
    }

    #[test]
    fn a_full_ban_list_forgets_the_ban_that_ends_first() {
        let mut list = BanList::new(2);
        list.ban("a", None, "", s(0)).expect("room");
        list.ban("b", Some(s(10)), "", s(0)).expect("room");
        let error = list.ban("c", Some(s(5)), "", s(0)).unwrap_err();
        assert!(error.to_string().contains("raise its capacity"), "{error}");
        list.ban("d", Some(s(20)), "", s(0)).expect("longer than b");
        assert!(list.is_banned("b", s(0)).is_none() && list.is_banned("a", s(0)).is_some());
        list.ban("e", Some(s(5)), "", s(20)).expect("d has run out");
        list.ban("f", None, "", s(20)).expect("longer than e");
        assert!(
            list.ban("g", None, "", s(20)).is_err(),
            "bans without end are not forgotten"
        );
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn what_a_ban_list_keeps_is_bounded() {
        let mut list = BanList::new(1);
        assert_eq!(list.ban("", None, "", s(0)), Err(BanError::Identity(0)));
        assert_eq!(
            list.ban(&"x".repeat(257), None, "", s(0)),
            Err(BanError::Identity(257))
        );
        list.ban("ada", None, &"é€".repeat(100), s(0))
            .expect("room");
        let reason = list.is_banned("ada", s(0)).expect("banned").reason;
        assert!(reason.len() <= MAX_REASON_BYTES && reason.len() > MAX_REASON_BYTES - 3);
    }

    proptest! {
        #[test]
        fn a_bucket_never_gives_more_than_its_rate(
            per_s: u32,
            burst: u32,
            steps in proptest::collection::vec((0u64..5_000_000_000, any::<u32>()), 0..100),
        ) {
            let mut bucket = TokenBucket::new(Rate::new(per_s, burst));
            let mut now = Duration::ZERO;
            let mut given = 0u128;
            for (pause_ns, tokens) in steps {
                now += Duration::from_nanos(pause_ns);
                let wait = bucket.wait(tokens, now);
                let took = bucket.take(tokens, now);
                prop_assert_eq!(took, wait == Some(Duration::ZERO));
                given += u128::from(tokens) * u128::from(took);
                let allowed = u128::from(burst) * 1_000_000_000 + now.as_nanos() * u128::from(per_s);
                prop_assert!(given * 1_000_000_000 <= allowed);
                if let Some(wait) = wait {
                    let mut later = bucket;
                    prop_assert!(took || later.take(tokens, now + wait), "waiting is enough");
                }
            }
        }

        /// Counts stay right and memory bounded whatever happens, and the orders of forgetting agree with the visitors.
        #[test]
        fn a_gate_agrees_with_a_plain_count(seed: u64, addresses in 1usize..12) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let limits = GateLimits {
                attempts: Rate::new(2, 5),
                sessions: 3,
                handshakes: 3,
                handshakes_total: 8,
                addresses,
                exempt_loopback: true,
            };
            let mut gate = AddressGate::new(limits);
            let mut now = Duration::ZERO;
            let mut handshakes = [0u32; 16];
            let mut sessions = [0u32; 16];
            for _ in 0..500 {
                now += ms(rng.u64(0..300));
                let who = rng.usize(0..16);
                let other = rng.usize(0..16);
                match rng.u8(0..8) {
                    0 | 1 => {
                        if gate.try_connect(v4(who as u32), now).is_ok() {
                            prop_assert!(gate.is_banned(v4(who as u32), now).is_none() || sessions[who] > 0);
                            handshakes[who] += 1;
                        }
                    }
                    2 if handshakes[who] > 0 => {
                        gate.handshake_done(v4(who as u32));
                        handshakes[who] -= 1;
                    }
                    3 => sessions[who] += u32::from(gate.session_opened(v4(who as u32), now).is_ok()),
                    4 if sessions[who] > 0 => {
                        gate.session_closed(v4(who as u32));
                        sessions[who] -= 1;
                    }
                    5 if sessions[who] > 0 => {
                        if gate.session_moved(v4(who as u32), v4(other as u32), now).is_ok() {
                            sessions[who] -= 1;
                            sessions[other] += 1;
                        }
                    }
                    6 => drop(gate.ban(v4(who as u32), ms(rng.u64(0..5_000)), now)),
                    _ => drop(gate.unban(v4(who as u32))),
                }
                prop_assert!(gate.addresses() <= addresses);
                prop_assert_eq!(gate.handshakes(), handshakes.iter().sum::<u32>());
                prop_assert!(gate.handshakes() <= 8 && handshakes.iter().all(|&n| n <= 3));
                for (who, &count) in sessions.iter().enumerate() {
                    prop_assert_eq!(gate.sessions(v4(who as u32)), count);
                }
                let present = gate.visitors.values().filter(|v| v.standing() == Standing::Present);
                prop_assert_eq!(present.count() + gate.idle.len() + gate.banned.len(), gate.addresses());
            }
        }

        #[test]
        fn conduct_survives_any_ladder_and_clock(
            warn_at: u32, disconnect_at in 0u32..20, ban_at_offence in 0u32..5, ban_factor: u32,
            every_ns: u64, offence_ns: u64, ban in 0u64.., times: Vec<u64>,
        ) {
            let ladder = Ladder {
                warn_at,
                disconnect_at,
                forgive_strike_every: Duration::from_nanos(every_ns),
                ban_at_offence,
                forgive_offence_every: Duration::from_nanos(offence_ns),
                ban: Duration::from_secs(ban),
                ban_factor,
                max_ban: Duration::MAX,
            };
            let mut conduct = Conduct::default();
            for &time in &times {
                let answer = conduct.breach(&ladder, Duration::from_nanos(time));
                if let Answer::Ban(length) = answer {
                    prop_assert!(length >= ladder.ban);
                }
            }
            prop_assert_eq!(conduct.counts().total(), times.len() as u64);
        }
    }
}
