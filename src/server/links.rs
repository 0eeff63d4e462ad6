//! Links: what comes in over them, who is still to say hello, and which session each belongs to.

use std::net::SocketAddr;
use std::time::Duration;

use bevy::platform::collections::HashMap;
use bevy::prelude::*;
use bytes::Bytes;
use smallvec::SmallVec;

use super::collect;
use super::farewell::Leaving;
use super::inputs::SessionInputs;
use super::limits::{self, Doors, Limits};
use super::send::Outgoing;
use super::sessions::{self, SessionSettings};
use super::types::{ReceiveFns, ServerTypes};
use super::{ServerStats, TransportCount};
use crate::link::mailbox::Mailbox;
use crate::link::peer::{CONTROL_CHANNEL, Carrier, ChunkKind, Peer};
use crate::message::Letter;
use crate::message::{self, Channel, Fate, MessageEntry};
use crate::protocol::handshake::{DisconnectReason, Request};
use crate::protocol::input::InputBuffer;
use crate::protocol::limits::{Answer, Exceeded, Traffic};
use crate::protocol::reliable::{Stream, Taken};
use crate::registry::Registry;
use crate::schedule::CurrentTick;
use crate::server::collect::Replication;
use crate::session::Away;
use crate::tick::Tick;
use crate::transport::{
    CloseReason, LinkEvent, LinkId, PeerInfo, ServerTransport, SharedBytes, TransportKind,
    TransportStats,
};
use crate::wire::serial;

/// How a session's link does, measured by the server.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Its mean deviation.
    pub jitter: Duration,
    /// Share of the server's datagrams that are lost: 0 to 1.
    pub loss: f32,
    /// Whether what was sent still waits for the client to read it: it then gets no snapshots.
    pub is_congested: bool,
    /// Bytes that wait on the server for the client to read.
    pub queued_bytes: usize,
}

/// Where a session's client is, if its transport knows.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub SocketAddr);

/// Over which kind of transport a session is linked now.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkedOver(pub TransportKind);

/// The server's transports, and who is at the other ends.
#[derive(Resource, Default)]
pub(crate) struct Links {
    pub(super) transports: Vec<Box<dyn ServerTransport>>,
    /// Links that have not said who they are.
    pub(super) greeting: HashMap<LinkId, Greeting>,
    pub(super) sessions: HashMap<LinkId, Entity>,
    /// Links of sessions that have ended.
    pub(super) leaving: HashMap<LinkId, Leaving>,
    pub(super) registrations: Vec<String>,
    pub(super) fingerprint: u64,
    /// No new sessions: the server is about to go.
    pub(super) is_closing: bool,
    events: Vec<LinkEvent>,
}

/// A session's link.
#[derive(Component)]
pub(crate) struct Link {
    pub id: LinkId,
    pub peer: Peer,
    pub kind: TransportKind,
    pub last_heard: Duration,
    /// When something was last sent.
    pub last_sent: Duration,
    /// Bytes of datagrams that were sent, before any compression.
    pub bytes_out: u64,
}

/// A link whose client is still to say hello.
pub(super) struct Greeting {
    pub peer: Peer,
    pub info: PeerInfo,
    pub since: Duration,
    /// It was told why it may not come in, and has yet to read that.
    pub is_refused: bool,
    /// It counts as a handshake of its address.
    pub is_counted: bool,
    /// It is to be told [later](sessions::BAN_ANSWER_AFTER) why it may not come in.
    pub refusal: Option<DisconnectReason>,
}

/// One link of the server's, to send over.
pub(super) struct OverLink<'a> {
    pub links: &'a mut Links,
    pub now: Duration,
    pub link: LinkId,
    /// Bytes sent so far.
    pub sent: u64,
}

impl Carrier for OverLink<'_> {
    fn send(&mut self, datagram: &[u8]) {
        self.sent += datagram.len() as u64;
        if let Some(transport) = self.links.transport(self.link) {
            transport.send(self.now, self.link, datagram);
        }
    }

    fn send_shared(&mut self, head: &[u8], shared: &SharedBytes) {
        self.sent += (head.len() + shared.bytes().len()) as u64;
        if let Some(transport) = self.links.transport(self.link) {
            transport.send_shared(self.now, self.link, head, shared);
        }
    }

    fn clock(&self, now: Duration) -> Duration {
        let index = usize::from(self.link.transport_index());
        let transport = self.links.transports.get(index);
        transport.map_or(now, |transport| transport.clock(now))
    }
}

impl Links {
    pub fn add<T: ServerTransport>(&mut self, make: impl FnOnce(u8) -> T) {
        let index = u8::try_from(self.transports.len()).expect("at most 256 transports");
        self.transports.push(Box::new(make(index)));
    }

    pub fn transport(&mut self, link: LinkId) -> Option<&mut Box<dyn ServerTransport>> {
        self.transports.get_mut(usize::from(link.transport_index()))
    }

    /// To send over a link.
    pub(super) fn over(&mut self, now: Duration, link: LinkId) -> OverLink<'_> {
        OverLink {
            links: self,
            now,
            link,
            sent: 0,
        }
    }

    pub fn flush(&mut self, now: Duration) {
        for transport in &mut self.transports {
            transport.flush(now);
        }
    }

    /// Says why, and closes. It leaves with the next snapshots: a flush for each would crowd those out.
    pub(super) fn close(
        &mut self,
        now: Duration,
        link: LinkId,
        peer: &mut Peer,
        reason: &DisconnectReason,
    ) {
        peer.goodbye(now, reason, &mut self.over(now, link));
        self.drop_link(link);
    }

    /// Closes a link without a word: its client is gone, or elsewhere.
    pub(super) fn drop_link(&mut self, link: LinkId) {
        if let Some(transport) = self.transport(link) {
            transport.close(link);
        }
        self.sessions.remove(&link);
        self.greeting.remove(&link);
    }

    /// Lets nobody in any more.
    pub(super) fn stop_accepting(&mut self) {
        self.is_closing = true;
        for transport in &mut self.transports {
            transport.stop_accepting();
        }
    }

    pub(super) fn stats(&self) -> TransportStats {
        self.transports
            .iter()
            .map(|transport| transport.stats())
            .sum()
    }

    fn counts(&self) -> SmallVec<[TransportCount; 4]> {
        let count = |index: usize, transport: &dyn ServerTransport| TransportCount {
            kind: transport.kind(),
            links: self
                .sessions
                .keys()
                .filter(|link| usize::from(link.transport_index()) == index)
                .count(),
            stats: transport.stats(),
        };
        self.transports
            .iter()
            .enumerate()
            .map(|(index, transport)| count(index, &**transport))
            .collect()
    }
}

/// Everything that came in since the last frame.
pub(super) fn receive(
    world: &mut World,
    ends: &mut QueryState<SessionEnd>,
    away: &mut QueryState<(Entity, &'static Away)>,
) {
    let now = world.resource::<Time<Real>>().elapsed();
    let delta = world.resource::<Time<Real>>().delta();
    world.resource_scope(|world, mut links: Mut<Links>| {
        let links = &mut *links;
        let mut events = std::mem::take(&mut links.events);
        for transport in &mut links.transports {
            transport.receive(now, &mut events);
        }
        let mut ended = Vec::new();
        for event in events.drain(..) {
            match event {
                LinkEvent::Opened { link, peer: info } => {
                    sessions::open(world, links, now, link, info);
                }
                LinkEvent::Datagram { link, at, bytes } => {
                    let end = receive_datagram(world, ends, links, now, link, at, &bytes);
                    ended.extend(end);
                }
                LinkEvent::Closed { link, reason } => {
                    ended.extend(note_closed(world, links, link, reason));
                }
            }
        }
        links.events = events;
        sessions::greet(world, links, now, delta);
        receive_held(world, ends, now, &mut ended);
        find_silent(world, ends, now, delta, &mut ended);
        for (session, link, reason) in ended {
            // Resumed over another link meanwhile, the session has no more to do with this one.
            if world.get::<Link>(session).is_some_and(|at| at.id == link) {
                sessions::lose_link(world, links, now, session, reason);
            }
        }
        sessions::expire(world, away, links, now);
        count(world, links);
    });
}

/// A session whose link has ended, and why.
type End = (Entity, LinkId, DisconnectReason);

/// Hands a datagram to whoever its link is.
fn receive_datagram(
    world: &mut World,
    ends: &mut QueryState<SessionEnd>,
    links: &mut Links,
    now: Duration,
    link: LinkId,
    at: Duration,
    bytes: &[u8],
) -> Option<End> {
    if let Some(&session) = links.sessions.get(&link) {
        let received = receive_from_session(world, ends, now, session, at, bytes);
        let reason = limits::judge(world, session, received.err()?);
        // What else has come over it is nobody's any more.
        links.sessions.remove(&link);
        return Some((session, link, reason));
    }
    if let Some(greeting) = links.greeting.get_mut(&link)
        && let Err(violation) = greeting.peer.receive(at, bytes, |_| {}, |_, _| {})
    {
        debug!("{link} is closed before it said hello: {violation}");
        let reason = DisconnectReason::ProtocolViolation(violation.to_string());
        sessions::refuse(world, links, now, link, &reason);
    } else if let Some(leaving) = links.leaving.get_mut(&link) {
        leaving.receive(now, at, bytes);
    }
    None
}

fn note_closed(
    world: &mut World,
    links: &mut Links,
    link: LinkId,
    reason: CloseReason,
) -> Option<End> {
    sessions::forget_greeting(world, links, link);
    if let Some(leaving) = links.leaving.get_mut(&link) {
        leaving.is_gone();
    }
    let reason = match reason {
        // Who closes a link does not lose it. A browser's tab that is closed can say no more than this.
        CloseReason::ByPeer => DisconnectReason::ClientLeft,
        reason => reason.into(),
    };
    let session = links.sessions.remove(&link)?;
    Some((session, link, reason))
}

fn count(world: &mut World, links: &Links) {
    let refused_links = world.resource::<Doors>().refused();
    let mut stats = world.resource_mut::<ServerStats>();
    stats.limits.refused_links = refused_links;
    stats.transports = links.counts();
    let counts = stats.transports.iter().map(|count| count.stats);
    stats.transport = counts.sum();
    stats.sessions = links.sessions.len();
    stats.leaving = links.leaving.len();
    stats.sessions_peak = stats.sessions_peak.max(stats.sessions);
}

/// What a datagram from a client reaches.
pub(super) type SessionEnd = (
    Entity,
    &'static mut Link,
    &'static mut SessionInputs,
    &'static mut Outgoing,
    &'static mut SessionMail,
    &'static mut Limits,
);

/// The messages of a session, with or without a link.
#[derive(Component)]
pub(crate) struct SessionMail(pub Mailbox);

fn receive_from_session(
    world: &mut World,
    ends: &mut QueryState<SessionEnd>,
    now: Duration,
    session: Entity,
    at: Duration,
    datagram: &[u8],
) -> Result<(), DisconnectReason> {
    let tick = world.resource::<CurrentTick>().0;
    let Ok((_, mut link, mut inputs, mut outgoing, mut mail, mut limits)) =
        ends.get_mut(world, session)
    else {
        return Ok(());
    };
    limits.hear(now);
    link.last_heard = now;
    let mail = &mut mail.0;
    let repeats_before = link.peer.repeats();
    let mut receipts: Vec<Letter> = Vec::new();
    let mut said = Said::default();
    link.peer
        .receive(
            at,
            datagram,
            |seq| {
                outgoing.view.handle_ack(seq);
                mail.handle_ack(seq);
            },
            |kind, body| said.hear(now, tick, kind, body, &mut inputs.buffer, &mut limits),
        )
        .map_err(|violation| DisconnectReason::ProtocolViolation(violation.to_string()))?;
    if let Some(violation) = said.broken {
        return Err(DisconnectReason::ProtocolViolation(violation.into()));
    }
    if let Some(taken) = said.taken {
        mail.outbox
            .handle_taken(taken, |letter| receipts.push(letter));
    }
    let repeats = link.peer.repeats() - repeats_before;
    let breach = limits.repeat(now, repeats).err().or(said.breach);
    deliver_receipts(world, session, &receipts);
    if let Some(excess) = breach {
        limits::answer(world, session, excess)?;
    }
    if said.goodbye {
        return Err(DisconnectReason::ClientLeft);
    }
    receive_messages(world, now, session)
}

/// What the chunks of a datagram have said.
#[derive(Default)]
struct Said {
    goodbye: bool,
    taken: Option<Taken>,
    breach: Option<(Answer, Exceeded)>,
    /// What no client of ours says.
    broken: Option<&'static str>,
}

impl Said {
    fn hear(
        &mut self,
        now: Duration,
        tick: Tick,
        kind: ChunkKind,
        body: &[u8],
        inputs: &mut InputBuffer,
        limits: &mut Limits,
    ) {
        // One end is enough.
        if self.breach.is_some_and(|(answer, _)| answer.is_end()) {
            return;
        }
        match kind {
            ChunkKind::Inputs => match limits.take(now, Traffic::Inputs, body.len()) {
                Ok(()) if inputs.receive(tick, body).is_err() => {
                    self.broken = Some("malformed inputs");
                }
                Ok(()) => {}
                Err(excess) => self.breach = Some(excess),
            },
            ChunkKind::Goodbye => self.goodbye = true,
            ChunkKind::Snapshot | ChunkKind::Standstill => {
                self.broken = Some("only a server sends snapshots");
            }
            ChunkKind::Taken => match Taken::decode(body) {
                Ok((taken, _)) => self.taken = Some(taken),
                Err(_) => self.broken = Some("malformed acknowledgements"),
            },
            ChunkKind::Renet | ChunkKind::Message | ChunkKind::Part => {}
        }
    }
}

/// Tells the game which of its messages were taken, for those types that ask for it.
pub(super) fn deliver_receipts(world: &mut World, session: Entity, letters: &[Letter]) {
    for letter in letters {
        let entry = world
            .resource::<Registry>()
            .messages
            .get(usize::from(letter.id))
            .copied();
        if let Some(entry) = entry.filter(|entry| entry.has_receipts) {
            (entry.tell_fate)(world, collect::living, Fate::Delivered, session, letter);
        }
    }
}

fn violation(error: &dyn std::fmt::Display) -> DisconnectReason {
    DisconnectReason::ProtocolViolation(format!("malformed message: {error}"))
}

/// Hands messages to the game.
fn receive_messages(
    world: &mut World,
    now: Duration,
    session: Entity,
) -> Result<(), DisconnectReason> {
    while let Some(bytes) = next_message(world, session, CONTROL_CHANNEL) {
        match serial::decode(&bytes).map_err(|_| violation(&"not a request"))? {
            Request::Resync { epoch } => resync(world, now, session, epoch),
            Request::ConfirmToken { receipt } => {
                sessions::confirm_token(world, session, u32::from_le_bytes(receipt));
            }
        }
    }
    for channel in [Channel::ReliableOrdered, Channel::ReliableUnordered] {
        if let Some(stream) = channel.stream() {
            receive_numbered(world, now, session, channel, stream)?;
        }
    }
    while let Some(bytes) = next_message(world, session, Channel::Unreliable.id()) {
        let (entry, fns, body) = find_entry(world, Channel::Unreliable, &bytes)?;
        let excess = world
            .get_mut::<Limits>(session)
            .and_then(|mut limits| limits.take(now, entry.traffic, bytes.len()).err());
        match excess {
            Some(excess) => limits::answer(world, session, excess)?,
            None => (fns.receive)(world, session, body).map_err(|error| violation(&error))?,
        }
    }
    Ok(())
}

fn next_message(world: &mut World, session: Entity, channel: u8) -> Option<Bytes> {
    world.get_mut::<Link>(session)?.peer.next_message(channel)
}

/// The type of a message, how it is received, and the rest of it.
fn find_entry<'a>(
    world: &World,
    channel: Channel,
    bytes: &'a [u8],
) -> Result<(MessageEntry, ReceiveFns, &'a [u8]), DisconnectReason> {
    let (id, body) = message::split(bytes).map_err(|error| violation(&error))?;
    let entry = world.resource::<Registry>().messages.get(id).copied();
    let fns = world.resource::<ServerTypes>().messages.get(id).copied();
    match entry.filter(|entry| entry.channel == channel).zip(fns) {
        Some((entry, fns)) => Ok((entry, fns, body)),
        None => Err(violation(&format_args!("no message number {id}"))),
    }
}

/// Hands reliable messages to the game, as far as the client's limits go. The others wait: only chat is lost.
fn receive_numbered(
    world: &mut World,
    now: Duration,
    session: Entity,
    channel: Channel,
    stream: Stream,
) -> Result<(), DisconnectReason> {
    loop {
        let held = world
            .get_mut::<Limits>(session)
            .and_then(|mut limits| limits.take_held(stream));
        let Some(bytes) = held.or_else(|| next_message(world, session, channel.id())) else {
            return Ok(());
        };
        let (_, numbered) = Mailbox::split(&bytes).map_err(|error| violation(&error))?;
        let (entry, fns, body) = find_entry(world, channel, numbered)?;
        let mut is_dropped = false;
        if let Some(mut limits) = world.get_mut::<Limits>(session) {
            if entry.traffic == Traffic::Chat {
                // Chat that waits would hold up what comes after it, and nobody wants to read it late.
                if let Err(excess) = limits.take(now, entry.traffic, bytes.len()) {
                    limits::answer(world, session, excess)?;
                    is_dropped = true;
                }
            } else if let Err(exceeded) = limits.may_take(now, entry.traffic, bytes.len()) {
                let answer = limits.hold(now, stream, bytes.clone(), exceeded);
                return answer.map_or(Ok(()), |answer| limits::answer(world, session, answer));
            }
        }
        let Some(mut mail) = world.get_mut::<SessionMail>(session) else {
            return Ok(());
        };
        let is_new = mail.0.accept(stream, &bytes)?.is_some();
        if is_new && !is_dropped {
            (fns.receive)(world, session, body).map_err(|error| violation(&error))?;
        }
    }
}

/// Goes on with the messages that had to wait.
fn receive_held(
    world: &mut World,
    ends: &mut QueryState<SessionEnd>,
    now: Duration,
    ended: &mut Vec<(Entity, LinkId, DisconnectReason)>,
) {
    let waiting: Vec<_> = ends
        .iter(world)
        .filter(|(.., limits)| limits.is_holding())
        .map(|(session, link, ..)| (session, link.id))
        .collect();
    for (session, link) in waiting {
        if let Err(reason) = receive_messages(world, now, session) {
            ended.push((session, link, reason));
        }
    }
}

/// It is work, so a client gets it once in two seconds; an honest one hardly ever asks.
const MIN_TIME_BETWEEN_RESYNCS: Duration = Duration::from_secs(2);

/// A client could not use a snapshot. It asks until it sees a new epoch, and we may be in that already.
fn resync(world: &mut World, now: Duration, session: Entity, epoch: u8) {
    let tick = world.resource::<CurrentTick>().0;
    world.resource_scope(|world, replication: Mut<Replication>| {
        if let Some(mut outgoing) = world.get_mut::<Outgoing>(session)
            && outgoing.view.epoch() == epoch
            && now.saturating_sub(outgoing.told_all) > MIN_TIME_BETWEEN_RESYNCS
        {
            outgoing.told_all = now;
            outgoing.view.start_over(&replication.archive, tick);
        }
    });
}

/// Finds the sessions whose timeout has come, and lets renet's clocks follow.
fn find_silent(
    world: &mut World,
    ends: &mut QueryState<SessionEnd>,
    now: Duration,
    delta: Duration,
    ended: &mut Vec<(Entity, LinkId, DisconnectReason)>,
) {
    let timeout = world.resource::<SessionSettings>().0.client_timeout;
    for (session, mut link, _, _, mail, _) in ends.iter_mut(world) {
        link.peer.advance(delta);
        if mail.0.is_overrun() {
            ended.push((session, link.id, DisconnectReason::Congested));
        }
        // Over WebSocket a browser answers for a tab that is in the background; the transport finds out who is gone.
        let is_judged = link.kind != TransportKind::WebSocket;
        if is_judged && now.saturating_sub(link.last_heard) > timeout {
            ended.push((session, link.id, DisconnectReason::TimedOut));
        }
    }
}
