//! Links, and the sessions at their ends: who connects, who they are, and when they are gone.

use std::net::SocketAddr;
use std::time::Duration;

use bevy::platform::collections::HashMap;
use bevy::prelude::*;

use super::inputs::SessionInputs;
use super::rooms;
use super::send::Outgoing;
use super::{ListenAddresses, ServerConfig, ServerStats};
use crate::message;
use crate::peer::{CONTROL_CHANNEL, ChunkKind, Peer, Side};
use crate::protocol::handshake::{
    Control, DisconnectReason, Hello, RESYNC_REQUEST, WIRE_VERSION, fingerprint, is_valid_name,
};
use crate::registry::Registry;
use crate::schedule::{CurrentTick, TandemSystems};
use crate::server::collect::Replication;
use crate::session::{Kick, Session, SessionId, SessionJoined, SessionLeft};
use crate::transport::{CloseReason, LinkEvent, LinkId, ServerTransport, TransportStats};
use crate::wire::serial;

/// Lets clients in and makes them sessions.
#[derive(Clone, Default)]
pub struct SessionPlugin {
    /// The server's settings.
    pub config: ServerConfig,
}

impl Plugin for SessionPlugin {
    fn build(&self, app: &mut App) {
        app.world_mut().get_resource_or_init::<Links>();
        app.insert_resource(SessionSettings(self.config.clone()))
            .init_resource::<ServerStats>()
            .init_resource::<ListenAddresses>()
            .init_resource::<Departures>()
            .add_systems(PreUpdate, receive.in_set(TandemSystems::Receive))
            .add_systems(PostUpdate, end_departing.before(TandemSystems::Collect))
            .add_systems(Last, shut_down.run_if(on_message::<AppExit>))
            .add_observer(kick);
    }

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
        let registrations = Registry::describe(app.world());
        let fingerprint = fingerprint(registrations.iter().map(String::as_str));
        let world = app.world_mut();
        let mut links = world.resource_mut::<Links>();
        links.registrations = registrations;
        links.fingerprint = fingerprint;
        let addresses = links
            .transports
            .iter()
            .filter_map(|transport| transport.local_addr())
            .collect();
        world.insert_resource(ListenAddresses(addresses));
    }
}

#[derive(Resource)]
struct SessionSettings(ServerConfig);

/// How a session's link does, measured by the server.
#[derive(Component, Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Its mean deviation.
    pub jitter: Duration,
    /// Share of the server's datagrams that are lost: 0 to 1.
    pub loss: f32,
}

/// Where a session's client is, if its transport knows.
#[derive(Component, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub SocketAddr);

/// The server's transports, and who is at the other ends.
#[derive(Resource, Default)]
pub(crate) struct Links {
    transports: Vec<Box<dyn ServerTransport>>,
    /// Links that have not said who they are.
    greeting: HashMap<LinkId, Greeting>,
    sessions: HashMap<LinkId, Entity>,
    next_session: u32,
    registrations: Vec<String>,
    fingerprint: u64,
    events: Vec<LinkEvent>,
}

/// A session's link.
#[derive(Component)]
pub(crate) struct Link {
    pub id: LinkId,
    pub peer: Peer,
    last_heard: Duration,
}

struct Greeting {
    peer: Peer,
    addr: Option<SocketAddr>,
    since: Duration,
    is_refused: bool,
}

impl Links {
    pub fn add<T: ServerTransport>(&mut self, make: impl FnOnce(u8) -> T) {
        let index = u8::try_from(self.transports.len()).expect("at most 256 transports");
        self.transports.push(Box::new(make(index)));
    }

    pub fn send(&mut self, now: Duration, link: LinkId, datagram: &[u8]) {
        if let Some(transport) = self.transports.get_mut(usize::from(link.transport_index())) {
            transport.send(now, link, datagram);
        }
    }

    pub fn flush(&mut self, now: Duration) {
        for transport in &mut self.transports {
            transport.flush(now);
        }
    }

    /// A number for a new session.
    pub fn allocate_session(&mut self) -> SessionId {
        let id = SessionId(self.next_session);
        self.next_session += 1;
        id
    }

    /// Says why, and closes.
    fn close(&mut self, now: Duration, link: LinkId, peer: &mut Peer, reason: &DisconnectReason) {
        let mut bytes = Vec::new();
        if serial::encode(reason, &mut bytes).is_ok() {
            peer.goodbye(now, &bytes, &mut |datagram| self.send(now, link, datagram));
        }
        self.flush(now);
        if let Some(transport) = self.transports.get_mut(usize::from(link.transport_index())) {
            transport.close(link);
        }
        self.sessions.remove(&link);
        self.greeting.remove(&link);
    }

    fn stats(&self) -> TransportStats {
        let stats = self.transports.iter().map(|transport| transport.stats());
        stats.fold(TransportStats::default(), |sum, stats| sum + stats)
    }
}

/// Everything that came in since the last frame.
fn receive(world: &mut World, ends: &mut QueryState<SessionEnd>) {
    let now = world.resource::<Time<Real>>().elapsed();
    let delta = world.resource::<Time<Real>>().delta();
    world.resource_scope(|world, mut links: Mut<Links>| {
        let links = &mut *links;
        let mut events = std::mem::take(&mut links.events);
        for transport in &mut links.transports {
            transport.receive(now, &mut events);
        }
        let mut left = Vec::new();
        for event in events.drain(..) {
            match event {
                LinkEvent::Opened { link, peer: info } => {
                    let peer = Peer::new(Side::Server);
                    let greeting = Greeting {
                        peer,
                        addr: info.addr,
                        since: now,
                        is_refused: false,
                    };
                    links.greeting.insert(link, greeting);
                }
                LinkEvent::Datagram { link, bytes } => {
                    if let Some(&session) = links.sessions.get(&link) {
                        if let Err(reason) = receive_from_session(world, ends, now, session, &bytes)
                        {
                            left.push((session, reason));
                        }
                    } else if let Some(greeting) = links.greeting.get_mut(&link)
                        && let Err(violation) =
                            greeting.peer.receive(now, &bytes, |_| {}, |_, _| {})
                    {
                        debug!("{link} is closed before it said hello: {violation}");
                        if let Some(mut greeting) = links.greeting.remove(&link) {
                            let reason = DisconnectReason::ProtocolViolation(violation.to_string());
                            links.close(now, link, &mut greeting.peer, &reason);
                        }
                    }
                }
                LinkEvent::Closed { link, reason } => {
                    links.greeting.remove(&link);
                    if let Some(session) = links.sessions.remove(&link) {
                        left.push((session, reason.into()));
                    }
                }
            }
        }
        links.events = events;
        greet(world, links, now, delta);
        find_silent(world, ends, now, delta, &mut left);
        for (session, reason) in left {
            end_session(world, links, now, session, reason);
        }
        let mut stats = world.resource_mut::<ServerStats>();
        stats.transport = links.stats();
        stats.sessions = links.sessions.len();
        stats.sessions_peak = stats.sessions_peak.max(stats.sessions);
    });
}

/// What a datagram from a client reaches.
type SessionEnd = (
    Entity,
    &'static mut Link,
    &'static mut SessionInputs,
    &'static mut Outgoing,
);

fn receive_from_session(
    world: &mut World,
    ends: &mut QueryState<SessionEnd>,
    now: Duration,
    session: Entity,
    datagram: &[u8],
) -> Result<(), DisconnectReason> {
    let tick = world.resource::<CurrentTick>().0;
    let Ok((_, mut link, mut inputs, mut outgoing)) = ends.get_mut(world, session) else {
        return Ok(());
    };
    link.last_heard = now;
    let (mut goodbye, mut broken) = (None, None);
    link.peer
        .receive(
            now,
            datagram,
            |seq| outgoing.view.handle_ack(seq),
            |kind, body| match kind {
                ChunkKind::Inputs => {
                    if inputs.buffer.receive(tick, body).is_err() {
                        broken = Some("malformed inputs");
                    }
                }
                ChunkKind::Goodbye => goodbye = Some(DisconnectReason::ClientLeft),
                ChunkKind::Snapshot => broken = Some("only a server sends snapshots"),
                ChunkKind::Renet => {}
            },
        )
        .map_err(|violation| DisconnectReason::ProtocolViolation(violation.to_string()))?;
    if let Some(violation) = broken {
        return Err(DisconnectReason::ProtocolViolation(violation.into()));
    }
    if let Some(reason) = goodbye {
        return Err(reason);
    }
    receive_messages(world, session)
}

/// Hands messages to the game.
fn receive_messages(world: &mut World, session: Entity) -> Result<(), DisconnectReason> {
    let violation = |error: &dyn std::fmt::Display| {
        DisconnectReason::ProtocolViolation(format!("malformed message: {error}"))
    };
    for channel in CONTROL_CHANNEL..=3 {
        while let Some(bytes) = world
            .get_mut::<Link>(session)
            .and_then(|mut link| link.peer.next_message(channel))
        {
            if channel == CONTROL_CHANNEL {
                // The one thing a client may ask for later on: to be told everything again.
                if &*bytes == RESYNC_REQUEST {
                    resync(world, session);
                    continue;
                }
                return Err(violation(&"not a request"));
            }
            let (id, body) = message::split(&bytes).map_err(|error| violation(&error))?;
            let entry = world.resource::<Registry>().messages.get(id).copied();
            match entry.filter(|entry| entry.channel.id() == channel) {
                Some(entry) => (entry.receive_on_server)(world, session, body)
                    .map_err(|error| violation(&error))?,
                None => return Err(violation(&format_args!("no message number {id}"))),
            }
        }
    }
    Ok(())
}

/// It is work, so a client gets it once in two seconds (at 60 Hz); an honest one hardly ever asks.
const MIN_TICKS_BETWEEN_RESYNCS: i32 = 120;

fn resync(world: &mut World, session: Entity) {
    let tick = world.resource::<CurrentTick>().0;
    world.resource_scope(|world, replication: Mut<Replication>| {
        if let Some(mut outgoing) = world.get_mut::<Outgoing>(session)
            && tick.distance_from(outgoing.told_all) > MIN_TICKS_BETWEEN_RESYNCS
        {
            outgoing.told_all = tick;
            outgoing.view.resync(&replication.archive, tick);
        }
    });
}

/// Answers those who say hello, and gives up on those who do not.
fn greet(world: &mut World, links: &mut Links, now: Duration, delta: Duration) {
    if links.greeting.is_empty() {
        return;
    }
    let settings = world.resource::<SessionSettings>().0.clone();
    let waiting: Vec<_> = links.greeting.keys().copied().collect();
    for link in waiting {
        let Some(mut greeting) = links.greeting.remove(&link) else {
            continue;
        };
        greeting.peer.advance(delta);
        let waited = now.saturating_sub(greeting.since);
        if waited > settings.hello_timeout {
            links.close(now, link, &mut greeting.peer, &DisconnectReason::TimedOut);
            continue;
        }
        if !greeting.is_refused
            && let Some(bytes) = greeting.peer.next_message(CONTROL_CHANNEL)
        {
            match answer(links, &settings, &bytes) {
                Ok(hello) => {
                    welcome(world, links, now, link, greeting, hello);
                    continue;
                }
                Err(Refusal::Mismatch) => {
                    let control = Control::Mismatch {
                        wire_version: WIRE_VERSION,
                        registrations: links.registrations.clone(),
                    };
                    send_control(&mut greeting.peer, &control);
                    // The client leaves when it has read this; if not, the timeout comes.
                    greeting.is_refused = true;
                }
                Err(Refusal::Other(reason)) => {
                    links.close(now, link, &mut greeting.peer, &reason);
                    continue;
                }
            }
        }
        greeting
            .peer
            .begin(now, &mut |datagram| links.send(now, link, datagram));
        greeting
            .peer
            .finish(&mut |datagram| links.send(now, link, datagram));
        links.greeting.insert(link, greeting);
    }
}

enum Refusal {
    Mismatch,
    Other(DisconnectReason),
}

fn answer(links: &Links, settings: &ServerConfig, bytes: &[u8]) -> Result<Hello, Refusal> {
    let hello = serial::decode::<Hello>(bytes).map_err(|_| Refusal::Mismatch)?;
    if hello.wire_version != WIRE_VERSION || hello.fingerprint != links.fingerprint {
        return Err(Refusal::Mismatch);
    }
    if !is_valid_name(&hello.name) {
        return Err(Refusal::Other(DisconnectReason::InvalidName));
    }
    if links.sessions.len() >= settings.max_sessions {
        return Err(Refusal::Other(DisconnectReason::ServerFull));
    }
    Ok(hello)
}

fn welcome(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    link: LinkId,
    mut greeting: Greeting,
    hello: Hello,
) {
    let tick = world.resource::<CurrentTick>().0;
    let id = links.allocate_session();
    let tick_rate_hz = 1.0 / world.resource::<Time<Fixed>>().timestep().as_secs_f64();
    send_control(
        &mut greeting.peer,
        &Control::Welcome {
            session: id,
            tick,
            tick_rate_hz,
        },
    );
    let session = world
        .spawn((
            Session {
                id,
                name: hello.name,
            },
            Link {
                id: link,
                peer: greeting.peer,
                last_heard: now,
            },
            LinkStats::default(),
            SessionInputs::default(),
            Outgoing::new(tick),
        ))
        .id();
    if let Some(addr) = greeting.addr {
        world.entity_mut(session).insert(ClientAddress(addr));
    }
    links.sessions.insert(link, session);
    world.resource_scope(|world, mut replication: Mut<Replication>| {
        rooms::show_room(world, &mut replication.archive, tick, session);
    });
    world.trigger(SessionJoined { entity: session });
}

fn send_control(peer: &mut Peer, control: &Control) {
    let mut bytes = Vec::new();
    if serial::encode(control, &mut bytes).is_ok() {
        peer.send_message(CONTROL_CHANNEL, bytes);
    }
}

/// Finds the sessions whose timeout has come, and lets renet's clocks follow.
fn find_silent(
    world: &mut World,
    ends: &mut QueryState<SessionEnd>,
    now: Duration,
    delta: Duration,
    left: &mut Vec<(Entity, DisconnectReason)>,
) {
    let timeout = world.resource::<SessionSettings>().0.client_timeout;
    for (session, mut link, ..) in ends.iter_mut(world) {
        link.peer.advance(delta);
        if now.saturating_sub(link.last_heard) > timeout {
            left.push((session, DisconnectReason::TimedOut));
        }
    }
}

/// Tells the game, then removes the session and all that it owns.
fn end_session(
    world: &mut World,
    links: &mut Links,
    now: Duration,
    session: Entity,
    reason: DisconnectReason,
) {
    let Ok(mut entity) = world.get_entity_mut(session) else {
        return;
    };
    if !entity.contains::<Session>() {
        return;
    }
    // The player of a listen server has none.
    if let Some(mut link) = entity.take::<Link>() {
        links.close(now, link.id, &mut link.peer, &reason);
    }
    debug!("session {session} has left: {reason}");
    world.trigger(SessionLeft {
        entity: session,
        reason,
    });
    if let Ok(entity) = world.get_entity_mut(session) {
        entity.despawn();
    }
}

/// Sessions to be ended, and why. Not at once: the game may ask for it while links are being served.
#[derive(Resource, Default)]
pub(crate) struct Departures(Vec<(Entity, DisconnectReason)>);

impl Departures {
    /// Ends a session before the next snapshots are collected.
    pub fn add(&mut self, session: Entity, reason: DisconnectReason) {
        self.0.push((session, reason));
    }
}

fn kick(kick: On<Kick>, mut departures: ResMut<Departures>) {
    departures.add(kick.session, DisconnectReason::Kicked(kick.reason.clone()));
}

fn end_departing(world: &mut World) {
    if world.resource::<Departures>().0.is_empty() {
        return;
    }
    let departures = std::mem::take(&mut world.resource_mut::<Departures>().0);
    let now = world.resource::<Time<Real>>().elapsed();
    world.resource_scope(|world, mut links: Mut<Links>| {
        for (session, reason) in departures {
            end_session(world, &mut links, now, session, reason);
        }
    });
}

/// Tells every client that the server goes, and closes.
fn shut_down(world: &mut World) {
    let now = world.resource::<Time<Real>>().elapsed();
    world.resource_scope(|world, mut links: Mut<Links>| {
        let mut sessions = world.query_filtered::<Entity, With<Session>>();
        let sessions: Vec<_> = sessions.iter(world).collect();
        for session in sessions {
            end_session(
                world,
                &mut links,
                now,
                session,
                DisconnectReason::ServerShutdown,
            );
        }
        for transport in &mut links.transports {
            transport.shutdown();
        }
        world.resource_mut::<ServerStats>().transport = links.stats();
    });
}

impl From<CloseReason> for DisconnectReason {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::ConnectTimedOut => Self::ConnectTimedOut,
            CloseReason::TimedOut => Self::TimedOut,
            CloseReason::ByPeer | CloseReason::ByUs => Self::ClientLeft,
            CloseReason::Denied => Self::ServerFull,
            other => Self::Link(other.to_string()),
        }
    }
}
