//! What happens to those who send more.

use std::time::Duration;

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
pub(super) struct Decaying {
    pub count: u32,
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
pub(super) struct Record {
    pub offences: Decaying,
    bans: u32,
}

impl Record {
    pub fn decay(&mut self, ladder: &Ladder, now: Duration) {
        self.offences.decay(ladder.forgive_offence_every, now);
        if self.offences.count == 0 {
            self.bans = 0;
        }
    }

    pub fn offence(&mut self, ladder: &Ladder, now: Duration) -> Answer {
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
/// A session outlives its link, and so does its conduct. For those who come back with a new one, a [`BanList`](super::BanList) keeps
/// [offences](super::BanList::offence) by player, and an [`AddressGate`](super::AddressGate) [by address](super::AddressGate::offence).
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
