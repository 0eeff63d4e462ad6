//! Who may not come back, by identity.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::conduct::{Answer, Ladder, Record};

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
pub(super) struct Ban {
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

    /// This player has committed an offence (a session's [`Conduct`](super::Conduct) has led to its end): what to do about it. Bans them
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
