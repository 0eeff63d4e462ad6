//! What an address may do before it has a session.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::conduct::{Answer, Ladder, Record};
use super::meter::{Rate, TokenBucket};

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
pub(super) struct Visitor {
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
pub(super) enum Standing {
    /// Has sessions or handshakes: not to be forgotten, or counts would be wrong.
    Present,
    Banned(Duration),
    /// The least recently touched is forgotten first.
    Idle(u64),
}

impl Visitor {
    pub(super) fn standing(&self) -> Standing {
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
    pub(super) visitors: BTreeMap<Prefix, Visitor>,
    /// Visitors by standing, first to be forgotten first.
    pub(super) idle: BTreeSet<(u64, Prefix)>,
    pub(super) banned: BTreeSet<(Duration, Prefix)>,
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

    /// Somebody at this address has committed an offence (a session's [`Conduct`](super::Conduct) has led to its end): what to do about
    /// the address. Bans it if that is the answer. An exempt address is never banned for offences.
    ///
    /// Many players can share an address, so a server that knows who its players are rather
    /// [bans those](super::BanList::offence).
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
