//! The link to the server: hello and welcome, the datagrams in between, and what outlives it.

use std::collections::VecDeque;
use std::time::Duration;

use bevy::prelude::*;

use super::arrivals;
use super::connection::{
    self, Connected, Connection, ConnectionState, LimitWarning, ServerClosing, Settings,
};
use super::farewell::LastWords;
use super::inputs::SentInputs;
use super::mirror;
use super::mirror::Mirror;
use super::reconnect::{self, ResumeOutcome};
use super::stats::ClientStats;
use crate::link::mailbox::Mailbox;
use crate::link::peer::{CONTROL_CHANNEL, Carrier, ChunkKind, Peer, Side};
use crate::message::Fate;
use crate::message::Letter;
use crate::protocol::clock::{ClockSettings, ClockSync};
use crate::protocol::handshake::{
    Control, DisconnectReason, Hello, Intent, MAX_CONNECT_TOKENS, MAX_CREDENTIALS_BYTES, Request,
    Resumption, WIRE_VERSION, explain_mismatch, fingerprint,
};
use crate::protocol::input::EncodeLimits;
use crate::protocol::interpolation::{Timeline, TimelineSettings};
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::names::{validate_name, validate_version};
use crate::protocol::reliable::Taken;
use crate::protocol::resume::ResumeToken;
use crate::protocol::view::ApartValue;
use crate::registry::Registry;
use crate::schedule::CurrentTick;
use crate::session::SessionId;
use crate::tick::Tick;
use crate::transport::{
    Arrival, ClientLinkState, ClientTransport, CloseReason, Delivery, SharedBytes,
};
use crate::wire::serial;

/// The link, and what belongs to it.
#[derive(Resource)]
pub(super) struct Link {
    pub transport: Box<dyn ClientTransport>,
    pub peer: Peer,
    since: Duration,
    last_heard: Duration,
    last_sent: Duration,
    /// The newest tick whose input was sent.
    sent_tick: Option<Tick>,
    /// When it last asked to be told everything anew.
    asked_to_resync: Duration,
    said_hello: bool,
    /// With the numbers of their datagrams.
    pub snapshots: Vec<(u16, Vec<u8>)>,
    pub values: Vec<ApartValue>,
    pub clock: ClockSync,
    /// Whether the clock was set from a snapshot.
    pub is_synchronised: bool,
    pub timeline: Timeline,
    datagrams: Vec<Arrival>,
    /// How it has ended. What came before still counts, so the game is told later in the frame.
    pub lost: Option<DisconnectReason>,
    /// The server's tick, while its game stands still there.
    pub standstill: Option<Tick>,
}

/// What belongs to the session, and goes on over the next link.
#[derive(Resource, Default)]
pub(super) struct Keepsakes {
    /// With which to come back.
    pub token: Option<ResumeToken>,
    /// With which to open the next links, where the server asks for such: the last one first.
    pub connect_tokens: VecDeque<Vec<u8>>,
    /// The messages, once there is a session.
    pub mail: Option<Mailbox>,
}

impl Link {
    /// Leaves without a word.
    pub fn vanish(&mut self) {
        self.transport.vanish();
    }
}

pub(super) struct OverTransport<'a>(pub &'a mut dyn ClientTransport, pub Duration);

impl Carrier for OverTransport<'_> {
    fn send(&mut self, datagram: &[u8]) {
        self.0.send(self.1, datagram);
    }

    fn send_shared(&mut self, head: &[u8], shared: &SharedBytes) {
        self.0.send(self.1, &[head, shared.bytes()].concat());
    }

    fn clock(&self, now: Duration) -> Duration {
        self.0.clock(now)
    }
}

/// Begins a new session over this transport.
pub(super) fn connect(world: &mut World, transport: Box<dyn ClientTransport>) {
    connection::end(world, DisconnectReason::ClientLeft, LastWords::Wait);
    world.insert_resource(ClientStats::default());
    world.insert_resource(Keepsakes::default());
    world.insert_resource(reconnect::Reconnect::default());
    begin(world, transport);
    connection::change(world, ConnectionState::Connecting, None, None);
}

/// Begins a link, for a new session or for the one that there is.
pub(super) fn begin(world: &mut World, transport: Box<dyn ClientTransport>) {
    world.insert_resource(SentInputs::default());
    let now = world
        .get_resource::<Time<Real>>()
        .map(Time::elapsed)
        .unwrap_or_default();
    let tick = world.resource::<Time<Fixed>>().timestep();
    let delivery = transport.delivery();
    world.insert_resource(Link {
        transport,
        peer: Peer::new(Side::Client, delivery),
        since: now,
        last_heard: now,
        last_sent: Duration::ZERO,
        sent_tick: None,
        asked_to_resync: Duration::ZERO,
        said_hello: false,
        snapshots: Vec::new(),
        values: Vec::new(),
        clock: ClockSync::new(ClockSettings { tick, ..default() }),
        is_synchronised: false,
        timeline: Timeline::new(TimelineSettings { tick, ..default() }),
        standstill: None,
        datagrams: Vec::new(),
        lost: None,
    });
}

/// What is counted over several links goes on from here.
pub(super) fn note_end_of_link(world: &mut World, link: &Link) {
    let stats = link.transport.stats();
    world.resource_mut::<ClientStats>().end_link(stats);
}

/// Whether the client's clock follows the server's: before that, its ticks mean nothing to the server.
pub(super) fn is_synchronised(link: Option<Res<Link>>) -> bool {
    link.is_some_and(|link| link.is_synchronised)
}

/// What to tell the game once the link is back in the world: it may answer by disconnecting.
enum News {
    Welcomed(SessionId),
    Resumed(ResumeOutcome),
    Closing(Duration),
    Warned(String),
}

/// Takes in everything that came since the last frame.
pub(super) fn receive(world: &mut World) {
    if !world.contains_resource::<Link>() {
        return;
    }
    let now = world.resource::<Time<Real>>().elapsed();
    let delta = world.resource::<Time<Real>>().delta();
    let mut news = Vec::new();
    let outcome = world.resource_scope(|world, mut link: Mut<Link>| {
        link.forgive_standstill(now, delta);
        let received = receive_datagrams(world, &mut link, now, delta);
        // What came before a farewell still counts.
        receive_control(world, &mut link, &mut news)?;
        received?;
        check_time(world, &link, now)
    });
    if let (Err(reason), Some(mut link)) = (outcome, world.get_resource_mut::<Link>()) {
        link.lost.get_or_insert(reason);
    }
    for news in news {
        match news {
            News::Welcomed(session) => world.trigger(Connected { session }),
            News::Resumed(outcome) => reconnect::finish(world, outcome),
            News::Closing(within) => world.trigger(ServerClosing { within }),
            News::Warned(limit) => world.trigger(LimitWarning { limit }),
        }
    }
}

/// A frame that takes longer is not slow: the app stood still, as browsers' tabs in the background do.
const LONGEST_FRAME: Duration = Duration::from_millis(250);

impl Link {
    /// While the app stands still, nothing can be heard, and nobody is to blame. The clock may even tell of it in the
    /// frame after the one that took in what had come meanwhile: renderers send the time along with their frames.
    fn forgive_standstill(&mut self, now: Duration, delta: Duration) {
        let standstill = delta.saturating_sub(LONGEST_FRAME);
        self.last_heard = (self.last_heard + standstill).min(now);
        self.since = (self.since + standstill).min(now);
    }
}

/// Snapshots that may wait for the welcome, which loss can delay: more than a server sends within the connect timeout.
const MAX_WAITING_SNAPSHOTS: usize = 1_024;

fn receive_datagrams(
    world: &mut World,
    link: &mut Link,
    now: Duration,
    delta: Duration,
) -> Result<(), DisconnectReason> {
    let Link {
        transport,
        peer,
        datagrams,
        snapshots,
        last_heard,
        standstill,
        ..
    } = link;
    transport.receive_timed(now, datagrams);
    peer.advance(delta);
    let mut farewell = None;
    let mut receipts: Vec<Letter> = Vec::new();
    let mut keepsakes = world.resource_mut::<Keepsakes>();
    for Arrival { at, bytes } in datagrams.iter() {
        *last_heard = now;
        let (mut taken_now, mut snapshot) = (None, None);
        let mail = &mut keepsakes.mail;
        let received = peer.receive(
            *at,
            bytes,
            |seq| {
                if let Some(mail) = mail {
                    mail.handle_ack(seq);
                }
            },
            |kind, body| match kind {
                ChunkKind::Snapshot => snapshot = Some(body.to_vec()),
                ChunkKind::Goodbye => farewell = serial::decode(body).ok(),
                ChunkKind::Taken => taken_now = Taken::decode(body).ok().map(|(taken, _)| taken),
                // One that a snapshot has overtaken is undone when that is applied.
                ChunkKind::Standstill => note_standstill(standstill, body),
                ChunkKind::Inputs | ChunkKind::Renet | ChunkKind::Message | ChunkKind::Part => {}
            },
        );
        snapshots.extend(peer.newest_snapshot().zip(snapshot));
        if let (Some(taken), Some(mail)) = (taken_now, mail) {
            mail.outbox
                .handle_taken(taken, |letter| receipts.push(letter));
        }
        if let Err(violation) = received {
            // Junk that got past the transport must not end the game.
            debug!("a datagram is dropped: {violation}");
        }
    }
    datagrams.clear();
    deliver_receipts(world, &receipts);
    link.measure(&mut world.resource_mut::<ClientStats>());
    match farewell {
        Some(reason) => Err(reason),
        None => link.check(),
    }
}

impl Link {
    fn measure(&self, stats: &mut ClientStats) {
        stats.count_transport(self.transport.stats());
        stats.rtt = self.peer.acks.rtt().unwrap_or_default();
        stats.jitter = self.peer.acks.jitter().unwrap_or_default();
        stats.loss = self.peer.acks.loss_ratio();
    }

    /// Whether it is still good for anything.
    fn check(&self) -> Result<(), DisconnectReason> {
        if self.snapshots.len() > MAX_WAITING_SNAPSHOTS {
            return Err(DisconnectReason::ProtocolViolation(
                "too many snapshots before the welcome".into(),
            ));
        }
        match self.transport.state() {
            ClientLinkState::Closed(CloseReason::ByPeer) => {
                Err(DisconnectReason::Link("the server closed it".into()))
            }
            ClientLinkState::Closed(reason) => Err(reason.clone().into()),
            _ => Ok(()),
        }
    }
}

fn note_standstill(standstill: &mut Option<Tick>, body: &[u8]) {
    if let Ok(bytes) = body.try_into() {
        let tick = Tick(u32::from_le_bytes(bytes));
        *standstill = Some(standstill.map_or(tick, |before| before.latest(tick)));
    }
}

/// Tells the game which of its messages were taken, for those types that ask for it.
pub(super) fn deliver_receipts(world: &mut World, letters: &[Letter]) {
    for letter in letters {
        let messages = &world.resource::<Registry>().messages;
        let entry = messages.get(usize::from(letter.id)).copied();
        if let Some(entry) = entry.filter(|entry| entry.has_receipts) {
            (entry.tell_fate)(
                world,
                mirror::own_entity,
                Fate::Delivered,
                Entity::PLACEHOLDER,
                letter,
            );
        }
    }
}

/// Takes in what the server says about the connection itself.
fn receive_control(
    world: &mut World,
    link: &mut Link,
    news: &mut Vec<News>,
) -> Result<(), DisconnectReason> {
    while let Some(bytes) = link.peer.next_message(CONTROL_CHANNEL) {
        match serial::decode::<Control>(&bytes) {
            Ok(Control::Welcome {
                session,
                tick,
                tick_rate_hz,
                token,
                resumption,
            }) => {
                if !(1.0..=1000.0).contains(&tick_rate_hz) {
                    return Err(DisconnectReason::ProtocolViolation("the tick rate".into()));
                }
                if world.resource::<Connection>().state() == ConnectionState::Connected {
                    continue;
                }
                keep_token(world, link, token);
                set_tick_rate(world, link, tick_rate_hz);
                news.push(match resumption {
                    None => welcome(world, session, tick),
                    Some(resumption) => go_on(world, session, tick, &resumption)?,
                });
            }
            Ok(Control::Mismatch {
                wire_version,
                registrations,
            }) => {
                let own = Registry::describe(world);
                return Err(explain_mismatch(wire_version, &registrations, &own));
            }
            Ok(Control::Value {
                net,
                generation,
                component,
                version,
                bytes,
            }) => {
                let (net, component) = (NetId::new(net, generation), ComponentId(component));
                link.values.push(ApartValue {
                    net,
                    component,
                    version,
                    bytes,
                });
            }
            Ok(Control::ConnectToken(token)) => keep_connect_token(world, token),
            Ok(Control::Closing { in_ms }) => {
                news.push(News::Closing(Duration::from_millis(in_ms.into())));
            }
            Ok(Control::Warning { limit }) => news.push(News::Warned(limit)),
            Err(error) => debug!("a control message is not understood: {error}"),
        }
    }
    Ok(())
}

fn keep_connect_token(world: &mut World, token: Vec<u8>) {
    let tokens = &mut world.resource_mut::<Keepsakes>().connect_tokens;
    tokens.push_back(token);
    if tokens.len() > MAX_CONNECT_TOKENS {
        tokens.pop_front();
    }
}

/// Keeps the token for a resume, and says so: until then the server takes the one before, too.
fn keep_token(world: &mut World, link: &mut Link, token: ResumeToken) {
    let receipt = token.receipt().to_le_bytes();
    send_request(&mut link.peer, &Request::ConfirmToken { receipt });
    world.resource_mut::<Keepsakes>().token = Some(token);
}

pub(super) fn send_request(peer: &mut Peer, request: &Request) {
    let mut bytes = Vec::new();
    if serial::encode(request, &mut bytes).is_ok() {
        peer.send_message(CONTROL_CHANNEL, &SharedBytes::for_one(bytes));
    }
}

fn set_tick_rate(world: &mut World, link: &mut Link, tick_rate_hz: f64) {
    let mut fixed = world.resource_mut::<Time<Fixed>>();
    fixed.set_timestep_hz(tick_rate_hz);
    let tick = fixed.timestep();
    link.clock = ClockSync::new(ClockSettings { tick, ..default() });
    link.timeline = Timeline::new(TimelineSettings { tick, ..default() });
}

/// The session begins.
fn welcome(world: &mut World, session: SessionId, tick: Tick) -> News {
    let settings = &world.resource::<Settings>().0;
    let max_entities = settings.max_entities;
    let mail = Mailbox::new(settings.outbox, settings.when_full);
    world.resource_mut::<Keepsakes>().mail = Some(mail);
    Mirror::begin(world, session, tick, max_entities);
    reconnect::stop(world);
    connection::change(world, ConnectionState::Connected, Some(session), None);
    News::Welcomed(session)
}

/// The session goes on.
fn go_on(
    world: &mut World,
    session: SessionId,
    tick: Tick,
    resumption: &Resumption,
) -> Result<News, DisconnectReason> {
    let mut receipts = Vec::new();
    {
        let mut keepsakes = world.resource_mut::<Keepsakes>();
        let Some(mail) = &mut keepsakes.mail else {
            return Err(DisconnectReason::ProtocolViolation(
                "there is no session to resume".into(),
            ));
        };
        mail.inbox.skip_to(resumption.first_kept);
        mail.start_link();
        mail.outbox
            .resume(resumption.taken, |letter| receipts.push(letter))
            .map_err(|gap| DisconnectReason::ProtocolViolation(gap.to_string()))?;
    }
    deliver_receipts(world, &receipts);
    arrivals::start_link(world);
    let max_entities = world.resource::<Settings>().0.max_entities;
    Mirror::resume(world, tick, max_entities);
    world.resource_mut::<ClientStats>().begin_link();
    connection::change(world, ConnectionState::Connected, Some(session), None);
    Ok(News::Resumed(match resumption.lost {
        0 => ResumeOutcome::Resumed,
        lost => ResumeOutcome::Resynced { lost },
    }))
}

fn check_time(world: &World, link: &Link, now: Duration) -> Result<(), DisconnectReason> {
    let settings = &world.resource::<Settings>().0;
    let limit = match world.resource::<Connection>().state() {
        ConnectionState::Connected => {
            let mail = &world.resource::<Keepsakes>().mail;
            if mail.as_ref().is_some_and(Mailbox::is_overrun) {
                return Err(DisconnectReason::Congested);
            }
            let silent_for = now.saturating_sub(link.last_heard);
            return match silent_for > settings.timeout_over(link.transport.kind()) {
                true => Err(DisconnectReason::TimedOut),
                false => Ok(()),
            };
        }
        ConnectionState::Reconnecting => settings.reconnect.attempt_timeout,
        _ => settings.connect_timeout,
    };
    match now.saturating_sub(link.since) > limit {
        true => Err(DisconnectReason::ConnectTimedOut),
        false => Ok(()),
    }
}

/// What the client says first.
fn hello(world: &World) -> Result<Hello, DisconnectReason> {
    let settings = &world.resource::<Settings>().0;
    // The server refuses these too, but too long ones do not even fit a message to it.
    validate_name(&settings.name)?;
    validate_version(&settings.game_version)?;
    if settings.credentials.len() > MAX_CREDENTIALS_BYTES {
        return Err(DisconnectReason::Unauthorised(format!(
            "credentials of {} bytes are too long; {MAX_CREDENTIALS_BYTES} are possible",
            settings.credentials.len()
        )));
    }
    let registrations = Registry::describe(world);
    let keepsakes = world.resource::<Keepsakes>();
    let is_back = world.resource::<Connection>().state() == ConnectionState::Reconnecting;
    let intent = match (&keepsakes.token, &keepsakes.mail) {
        (Some(token), Some(mail)) if is_back => Intent::Resume {
            token: token.clone(),
            taken: mail.inbox.taken(),
        },
        _ => Intent::Join,
    };
    Ok(Hello {
        wire_version: WIRE_VERSION,
        fingerprint: fingerprint(registrations.iter().map(String::as_str)),
        name: settings.name.clone(),
        game_version: settings.game_version.clone(),
        platform: platform(),
        credentials: settings.credentials.clone(),
        intent,
    })
}

/// What the server is told of this machine.
fn platform() -> String {
    if cfg!(target_family = "wasm") {
        "browser".into()
    } else {
        format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH)
    }
}

/// Says who this is, once the link is there.
pub(super) fn greet(world: &mut World) {
    if !world.contains_resource::<Link>() {
        return;
    }
    let now = world.resource::<Time<Real>>().elapsed();
    let outcome = world.resource_scope(|world, mut link: Mut<Link>| {
        let Link {
            transport,
            peer,
            said_hello,
            last_sent,
            ..
        } = &mut *link;
        if transport.state().is_connected() {
            if !*said_hello {
                let mut bytes = Vec::new();
                if serial::encode(&hello(world)?, &mut bytes).is_ok() {
                    peer.send_message(CONTROL_CHANNEL, &SharedBytes::for_one(bytes));
                }
                *said_hello = true;
                *last_sent = Duration::ZERO;
            }
            let settings = &world.resource::<Settings>().0;
            let heartbeat = settings.heartbeat_over(transport.kind());
            if now.saturating_sub(*last_sent) >= heartbeat || last_sent.is_zero() {
                *last_sent = now;
                let mut to = OverTransport(&mut **transport, now);
                peer.begin(now, 0, &mut to);
                peer.finish(&mut to);
            }
        }
        transport.flush(now);
        Ok(())
    });
    if let (Err(reason), Some(mut link)) = (outcome, world.get_resource_mut::<Link>()) {
        link.lost.get_or_insert(reason);
    }
}

/// Runs the simulation's clock a little faster or slower, so that inputs arrive just in time, and stops it while the
/// server's game stands still.
pub(super) fn keep_time(
    mut link: ResMut<Link>,
    mut tick: ResMut<CurrentTick>,
    mut virtual_time: ResMut<Time<Virtual>>,
    real: Res<Time<Real>>,
    fixed: Res<Time<Fixed>>,
    mut stats: ResMut<ClientStats>,
    mut mirror: ResMut<Mirror>,
) {
    if !link.is_synchronised {
        return;
    }
    if link.standstill.is_some() {
        link.clock.stand_still();
    }
    let adjustment = link
        .clock
        .poll(real.elapsed(), tick.0, fixed.overstep_fraction());
    virtual_time.set_relative_speed(adjustment.speed);
    if let Some(target) = adjustment.snap {
        debug!("the clock is set from tick {} to {target}", tick.0);
        tick.0 = target;
        stats.clock_snaps += 1;
        mirror.start_predictions_over();
    }
}

/// A server starts over once a second at most, so it may not heed the first request.
const RESYNC_INTERVAL: Duration = Duration::from_millis(500);

/// A server sends something this often, even to a client of whom it knows that the link is bad.
const STREAM_STANDS_STILL: Duration = Duration::from_secs(1);

/// Sends this frame's inputs, acknowledgements and messages.
pub(super) fn send(
    mut link: ResMut<Link>,
    mut keepsakes: ResMut<Keepsakes>,
    inputs: Res<SentInputs>,
    real: Res<Time<Real>>,
    settings: Res<Settings>,
    mirror: Res<Mirror>,
    mut bytes: Local<Vec<u8>>,
) {
    let now = real.elapsed();
    let Link {
        transport,
        peer,
        last_sent,
        last_heard,
        sent_tick,
        asked_to_resync,
        ..
    } = &mut *link;
    if let Some(epoch) = mirror.resync_epoch()
        && now.saturating_sub(*asked_to_resync) >= RESYNC_INTERVAL
    {
        *asked_to_resync = now;
        send_request(peer, &Request::Resync { epoch });
    }
    let newest = inputs.history.newest();
    // A stream that stands still keeps all that is put into it, and inputs will be too late.
    let stands_still = transport.delivery() == Delivery::Stream
        && now.saturating_sub(*last_heard) > STREAM_STANDS_STILL;
    let is_due = newest != *sent_tick && !stands_still
        || now.saturating_sub(*last_sent) >= settings.0.heartbeat_over(transport.kind())
        || keepsakes
            .mail
            .as_ref()
            .is_some_and(Mailbox::has_much_to_tell);
    // What waits would only grow older: inputs are repeated, and messages are kept.
    if is_due && !transport.is_congested() {
        *sent_tick = newest;
        *last_sent = now;
        let mut to = OverTransport(&mut **transport, now);
        let mut mail = keepsakes.mail.as_mut();
        if let Some(mail) = &mut mail {
            mail.pump(peer);
        }
        let seq = peer.begin(now, 0, &mut to);
        if let Some(mail) = mail {
            mail.tell_taken(peer, seq);
        }
        bytes.clear();
        let limits = EncodeLimits {
            max_bytes: peer.room().min(512),
            ..default()
        };
        if inputs.history.encode(&mut bytes, limits) > 0 {
            peer.chunk(ChunkKind::Inputs, &bytes);
        }
        peer.finish(&mut to);
    }
    transport.flush(now);
}

/// Lets the link go as when the network fails: the session waits, and the client comes back.
pub(super) fn cut(world: &mut World) {
    if world.contains_resource::<Link>() {
        reconnect::lose(world, DisconnectReason::Link("it was cut".into()));
    }
}
