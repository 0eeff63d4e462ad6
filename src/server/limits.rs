//! What clients and addresses may do, and what happens when they do more.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy::prelude::*;
use bytes::Bytes;

use super::links::{ClientAddress, Link};
use super::sessions::{SessionSettings, send_control};
use super::{ServerConfig, ServerStats};
use crate::identity::Identity;
use crate::protocol::handshake::{Control, DisconnectReason};
use crate::protocol::limits::{
    AddressGate, Answer, BanError, BanList, Conduct, Exceeded, GateCounts, GateLimits, Ladder,
    Refusal, SessionLimits, SessionMeter, Traffic,
};
use crate::protocol::reliable::{STREAMS, Stream};

/// What clients and addresses may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitSettings {
    /// What a session may send.
    pub session: SessionLimits,
    /// What an address may open.
    pub address: GateLimits,
    /// How answers become harder: drop, warn, disconnect, ban.
    pub ladder: Ladder,
}

/// A client has sent more than it may, and this was done about it. Fires for warnings and harder answers, not for each
/// thing that is dropped.
#[derive(EntityEvent, Clone, Copy, Debug)]
pub struct LimitBroken {
    /// The session.
    pub entity: Entity,
    /// Which limit.
    pub exceeded: Exceeded,
    /// What was done.
    pub answer: Answer,
}

/// How a session stands with its limits.
#[derive(Component)]
pub(super) struct Limits {
    meter: SessionMeter,
    conduct: Conduct,
    ladder: Ladder,
    /// For each stream, the next message, until it may be taken.
    held: [Option<Bytes>; STREAMS],
    /// When holding messages back last counted against the client.
    struck_at: Duration,
    last_heard: Duration,
}

/// Longer than clients are ever silent by themselves: something has held up what they sent.
const SILENCE: Duration = Duration::from_millis(250);

/// Reliable messages beyond the limit are not lost but wait, which an honest client sees only as a delay. It counts
/// against it this often, twice as fast as it is forgiven by default.
const STRIKE_EVERY: Duration = Duration::from_millis(250);

impl Limits {
    pub fn new(settings: &LimitSettings, now: Duration) -> Self {
        Self {
            meter: SessionMeter::new(&settings.session),
            conduct: Conduct::default(),
            ladder: settings.ladder,
            held: [None, None],
            struck_at: Duration::ZERO,
            last_heard: now,
        }
    }

    /// The message that waits to be taken.
    pub fn take_held(&mut self, stream: Stream) -> Option<Bytes> {
        self.held[stream.index()].take()
    }

    /// Whether messages wait.
    pub fn is_holding(&self) -> bool {
        self.held.iter().any(Option::is_some)
    }

    /// A new link: what was kept back comes again over it.
    pub fn start_link(&mut self) {
        self.held = [None, None];
    }

    /// Keeps a message back, with all that come after it. Tells what to do about it, if it is time.
    pub fn hold(
        &mut self,
        now: Duration,
        stream: Stream,
        message: Bytes,
        exceeded: Exceeded,
    ) -> Option<(Answer, Exceeded)> {
        self.held[stream.index()] = Some(message);
        if now.saturating_sub(self.struck_at) < STRIKE_EVERY {
            return None;
        }
        self.struck_at = now;
        Some((self.conduct.breach(&self.ladder, now), exceeded))
    }

    /// Whether so many bytes may be taken now.
    pub fn may_take(
        &mut self,
        now: Duration,
        traffic: Traffic,
        bytes: usize,
    ) -> Result<(), Exceeded> {
        self.meter.take(traffic, bytes, now)
    }

    /// Whether so many bytes may be taken now; if not, what to do about it.
    pub fn take(
        &mut self,
        now: Duration,
        traffic: Traffic,
        bytes: usize,
    ) -> Result<(), (Answer, Exceeded)> {
        self.meter
            .take(traffic, bytes, now)
            .map_err(|exceeded| (self.conduct.breach(&self.ladder, now), exceeded))
    }

    /// So many messages have come again that were there already. If that are more than an honest client can send, tells
    /// what to do about it.
    pub fn repeat(&mut self, now: Duration, count: u64) -> Result<(), (Answer, Exceeded)> {
        self.meter
            .repeat(count, now)
            .map_err(|exceeded| (self.conduct.offence(&self.ladder, now), exceeded))
    }

    /// The client was heard. If it was silent for long, a stream may have held back what it sent, or it was cut off and
    /// had to keep it: all that comes at once.
    pub fn hear(&mut self, now: Duration) {
        let silent_for = now.saturating_sub(self.last_heard);
        self.last_heard = now;
        if silent_for > SILENCE {
            self.meter.credit_silence(silent_for);
        }
    }
}

/// Does what a breach asks for.
///
/// # Errors
///
/// The session must end, and why.
pub(super) fn answer(
    world: &mut World,
    session: Entity,
    (answer, exceeded): (Answer, Exceeded),
) -> Result<(), DisconnectReason> {
    if answer == Answer::Drop {
        // As often as a flood pleases, so before anything that costs.
        world.resource_mut::<ServerStats>().limits.drops += 1;
        return Ok(());
    }
    let limit = exceeded.to_string();
    let answer = match answer {
        // For the session it may be the first offence, but not for the player.
        Answer::Disconnect => offence(world, session, &limit),
        Answer::Ban(length) => {
            let (now, identity, address) = offender(world, session);
            let mut doors = world.resource_mut::<Doors>();
            doors.ban(now, identity.as_ref(), address, &limit, length);
            answer
        }
        milder => milder,
    };
    let counts = &mut world.resource_mut::<ServerStats>().limits;
    let goes_on = match answer {
        Answer::Ban(length) => {
            counts.bans += 1;
            Err(DisconnectReason::banned(&limit, length))
        }
        Answer::Disconnect => {
            counts.disconnects += 1;
            Err(DisconnectReason::LimitExceeded(limit))
        }
        Answer::Warn | Answer::Drop => {
            counts.warnings += 1;
            if let Some(mut link) = world.get_mut::<Link>(session) {
                send_control(&mut link.peer, &Control::Warning { limit });
            }
            Ok(())
        }
    };
    world.trigger(LimitBroken {
        entity: session,
        exceeded,
        answer,
    });
    goes_on
}

/// A session has sent what no correct client sends. Returns with which reason it ends.
pub(super) fn judge(
    world: &mut World,
    session: Entity,
    reason: DisconnectReason,
) -> DisconnectReason {
    let DisconnectReason::ProtocolViolation(what) = &reason else {
        return reason;
    };
    match offence(world, session, what) {
        Answer::Ban(length) => {
            world.resource_mut::<ServerStats>().limits.bans += 1;
            DisconnectReason::banned(what, length)
        }
        _ => reason,
    }
}

/// Counts an offence of a session's player, and says what follows.
fn offence(world: &mut World, session: Entity, why: &str) -> Answer {
    let ladder = world.resource::<SessionSettings>().0.limits.ladder;
    let (now, identity, address) = offender(world, session);
    let mut doors = world.resource_mut::<Doors>();
    doors.offence(now, identity.as_ref(), address, why, &ladder)
}

fn offender(world: &World, session: Entity) -> (Duration, Option<Identity>, Option<SocketAddr>) {
    (
        world.resource::<Time<Real>>().elapsed(),
        world.get::<Identity>(session).cloned(),
        world.get::<ClientAddress>(session).map(|at| at.0),
    )
}

/// Who may come in: limits by address, and bans.
#[derive(Resource)]
pub struct Doors {
    gate: AddressGate,
    players: BanList,
    /// Refused after they had said who they are.
    banned: u64,
}

impl Doors {
    pub(super) fn new(config: &ServerConfig) -> Self {
        Self {
            gate: AddressGate::new(config.limits.address),
            players: BanList::default(),
            banned: 0,
        }
    }

    /// Bans a player by who they are, for so long; `None`: until the server stops. It holds for those for whom somebody
    /// [vouches](Identity::verified).
    ///
    /// # Errors
    ///
    /// The list is full, or nobody is called that.
    pub fn ban_player(
        &mut self,
        now: Duration,
        player: &Identity,
        length: Option<Duration>,
        reason: &str,
    ) -> Result<(), BanError> {
        self.players.ban(&full_name(player), length, reason, now)
    }

    /// Ends a player's ban. Returns whether there was one.
    pub fn unban_player(&mut self, player: &Identity) -> bool {
        self.players.unban(&full_name(player))
    }

    /// Ends an address's ban. Returns whether there was one.
    pub fn unban_address(&mut self, address: IpAddr) -> bool {
        self.gate.unban(address)
    }

    /// What was done to those who came.
    pub fn counts(&self) -> GateCounts {
        self.gate.counts()
    }

    /// How many were turned away.
    pub(super) fn refused(&self) -> u64 {
        self.gate.counts().refused() + self.banned
    }

    /// Somebody has opened a link.
    pub(super) fn knock(&mut self, now: Duration, ip: IpAddr) -> Result<(), DisconnectReason> {
        self.gate.try_connect(ip, now).map_err(explain)
    }

    /// And has said hello, or was sent away.
    pub(super) fn heard(&mut self, ip: IpAddr) {
        self.gate.handshake_done(ip);
    }

    /// A session begins at this address.
    pub(super) fn enter(&mut self, now: Duration, ip: IpAddr) -> Result<(), DisconnectReason> {
        self.gate.session_opened(ip, now).map_err(explain)
    }

    /// A session ends there.
    pub(super) fn leave(&mut self, ip: IpAddr) {
        self.gate.session_closed(ip);
    }

    /// A session goes on from elsewhere.
    pub(super) fn change_address(&mut self, now: Duration, from: IpAddr, to: IpAddr) {
        if let Err(refusal) = self.gate.session_moved(from, to, now) {
            debug!("a session still counts for its old address: {refusal}");
        }
    }

    pub(super) fn check_player(
        &mut self,
        now: Duration,
        identity: &Identity,
    ) -> Result<(), DisconnectReason> {
        if identity.verified
            && let Some(ban) = self.players.is_banned(&full_name(identity), now)
        {
            self.banned += 1;
            let left = ban.remaining.unwrap_or(Duration::MAX);
            return Err(DisconnectReason::banned(ban.reason, left));
        }
        Ok(())
    }

    pub(super) fn check_address(
        &mut self,
        now: Duration,
        ip: IpAddr,
    ) -> Result<(), DisconnectReason> {
        match self.gate.is_banned(ip, now) {
            Some(remaining) => {
                self.banned += 1;
                Err(explain(Refusal::Banned { remaining }))
            }
            None => Ok(()),
        }
    }

    /// A session has done what ends it: does the same to the player as the ladder says.
    fn offence(
        &mut self,
        now: Duration,
        identity: Option<&Identity>,
        addr: Option<SocketAddr>,
        reason: &str,
        ladder: &Ladder,
    ) -> Answer {
        match (identity, addr) {
            (Some(identity), _) if identity.verified => {
                self.players
                    .offence(&full_name(identity), ladder, reason, now)
            }
            (_, Some(addr)) => self.gate.offence(addr.ip(), ladder, now),
            (_, None) => Answer::Disconnect,
        }
    }

    /// Bans a player by who they are, where that is certain, and otherwise by address.
    pub(super) fn ban(
        &mut self,
        now: Duration,
        identity: Option<&Identity>,
        addr: Option<SocketAddr>,
        reason: &str,
        length: Duration,
    ) {
        let by_name = identity
            .filter(|identity| identity.verified)
            .and_then(|identity| {
                self.players
                    .ban(&full_name(identity), Some(length), reason, now)
                    .ok()
            });
        if by_name.is_none()
            && let Some(addr) = addr
            && let Err(refusal) = self.gate.ban(addr.ip(), length, now)
        {
            warn!("{} cannot be banned: {refusal}", addr.ip());
        }
    }
}

/// Subjects of two issuers have nothing to do with each other.
fn full_name(player: &Identity) -> String {
    match &player.issuer {
        Some(issuer) => format!("{} of {issuer}", player.subject),
        None => player.subject.clone(),
    }
}

/// What a client is told that is not let in.
fn explain(refusal: Refusal) -> DisconnectReason {
    match refusal {
        Refusal::Banned { remaining } => {
            DisconnectReason::banned("this address is banned", remaining)
        }
        Refusal::TooManySessions => DisconnectReason::LimitExceeded(refusal.to_string()),
        // Somebody who lost a link along with all others at this address must not lose the session.
        Refusal::TooFast { .. } | Refusal::TooManyHandshakes | Refusal::TooManyAddresses => {
            DisconnectReason::NotReady(refusal.to_string())
        }
    }
}
