//! The connection to the server: joining, leaving, and the datagrams in between.

use std::time::Duration;

use bevy::prelude::*;

use super::ClientConfig;
use super::apply::Mirror;
use super::inputs::SentInputs;
use super::stats::ClientStats;
use crate::message;
use crate::peer::{CONTROL_CHANNEL, ChunkKind, Peer, Side};
use crate::protocol::clock::{ClockSettings, ClockSync};
use crate::protocol::handshake::{
    Control, DisconnectReason, Hello, MAX_NAME_CHARS, RESYNC_REQUEST, WIRE_VERSION,
    explain_mismatch, fingerprint,
};
use crate::protocol::input::EncodeLimits;
use crate::protocol::interpolation::{Timeline, TimelineSettings};
use crate::protocol::layout::{ComponentId, NetId};
use crate::protocol::view::ApartValue;
use crate::registry::Registry;
use crate::schedule::{CurrentTick, TandemSystems};
use crate::session::SessionId;
use crate::tick::Tick;
use crate::transport::{ClientLinkState, ClientTransport};
use crate::wire::serial;

/// Connects, keeps the clock in step with the server's, and sends inputs.
#[derive(Clone, Default)]
pub struct ConnectionPlugin {
    /// The client's settings.
    pub config: ClientConfig,
}

impl Plugin for ConnectionPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(Settings(self.config.clone()))
            .init_resource::<Connection>()
            .init_resource::<ClientStats>()
            .add_systems(PreUpdate, receive.in_set(TandemSystems::Receive))
            .add_systems(
                PostUpdate,
                (keep_time, send)
                    .chain()
                    .in_set(TandemSystems::Send)
                    .run_if(connected),
            )
            .add_systems(
                PostUpdate,
                greet.after(TandemSystems::Send).run_if(not(connected)),
            )
            .add_systems(Last, leave.run_if(on_message::<AppExit>))
            .add_observer(disconnect);
    }

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
    }
}

#[derive(Resource)]
pub(super) struct Settings(pub ClientConfig);

/// The client's connection.
#[derive(Resource, Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    state: ConnectionState,
}

/// Where a connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Not connected.
    Disconnected {
        /// Why it ended; `None` if there was none yet.
        reason: Option<DisconnectReason>,
    },
    /// On the way.
    Connecting,
    /// In.
    Connected {
        /// The number that the server gave this session.
        session: SessionId,
    },
}

impl Default for ConnectionState {
    fn default() -> Self {
        Self::Disconnected { reason: None }
    }
}

impl Connection {
    /// Only for players without a link.
    pub(crate) fn set(&mut self, state: ConnectionState) {
        self.state = state;
    }

    /// Where it stands.
    pub fn state(&self) -> &ConnectionState {
        &self.state
    }

    /// The session, while connected.
    pub fn session(&self) -> Option<SessionId> {
        match self.state {
            ConnectionState::Connected { session } => Some(session),
            _ => None,
        }
    }
}

/// Run condition: the client is connected.
pub fn connected(connection: Res<Connection>) -> bool {
    connection.session().is_some()
}

/// The server has let the client in.
#[derive(Event, Clone, Copy, Debug)]
pub struct Connected {
    /// The number that the server gave this session.
    pub session: SessionId,
}

/// The connection has ended, or could not be made. Copies of the server's entities are despawned after this.
#[derive(Event, Clone, Debug)]
pub struct Disconnected {
    /// Why.
    pub reason: DisconnectReason,
}

/// Makes the client leave.
#[derive(Event, Clone, Copy, Debug, Default)]
pub struct Disconnect;

/// The link, and what belongs to it.
#[derive(Resource)]
pub(super) struct Link {
    transport: Box<dyn ClientTransport>,
    pub peer: Peer,
    since: Duration,
    last_heard: Duration,
    last_sent: Duration,
    /// The newest tick whose input was sent.
    sent_tick: Option<Tick>,
    said_hello: bool,
    pub snapshots: Vec<Vec<u8>>,
    pub values: Vec<ApartValue>,
    pub clock: ClockSync,
    /// Whether the clock was set from a snapshot.
    pub is_synchronised: bool,
    pub timeline: Timeline,
    datagrams: Vec<Vec<u8>>,
}

/// Without ticks to send inputs for, a datagram goes out this often, so that acknowledgements arrive and the server
/// hears something.
const KEEP_ALIVE: Duration = Duration::from_millis(100);

pub(super) fn connect(world: &mut World, transport: Box<dyn ClientTransport>) {
    end(world, DisconnectReason::ClientLeft);
    world.insert_resource(ClientStats::default());
    world.insert_resource(SentInputs::default());
    let now = world
        .get_resource::<Time<Real>>()
        .map(Time::elapsed)
        .unwrap_or_default();
    let tick = world.resource::<Time<Fixed>>().timestep();
    world.insert_resource(Link {
        transport,
        peer: Peer::new(Side::Client),
        since: now,
        last_heard: now,
        last_sent: Duration::ZERO,
        sent_tick: None,
        said_hello: false,
        snapshots: Vec::new(),
        values: Vec::new(),
        clock: ClockSync::new(ClockSettings { tick, ..default() }),
        is_synchronised: false,
        timeline: Timeline::new(TimelineSettings { tick, ..default() }),
        datagrams: Vec::new(),
    });
    world.get_resource_or_init::<Connection>().state = ConnectionState::Connecting;
}

/// Whether the client's clock follows the server's: before that, its ticks mean nothing to the server.
pub(super) fn is_synchronised(link: Option<Res<Link>>) -> bool {
    link.is_some_and(|link| link.is_synchronised)
}

/// Takes in everything that came since the last frame.
fn receive(world: &mut World) {
    if !world.contains_resource::<Link>() {
        return;
    }
    let now = world.resource::<Time<Real>>().elapsed();
    let delta = world.resource::<Time<Real>>().delta();
    let outcome = world.resource_scope(|world, mut link: Mut<Link>| {
        receive_datagrams(world, &mut link, now, delta)?;
        let welcomed = receive_messages(world, &mut link)?;
        check_time(world, &link, now)?;
        Ok(welcomed)
    });
    match outcome {
        // Told when the link is back in the world: the game may answer by disconnecting.
        Ok(Some(session)) => world.trigger(Connected { session }),
        Ok(None) => {}
        Err(reason) => end(world, reason),
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
        ..
    } = link;
    transport.receive(now, datagrams);
    peer.advance(delta);
    let mut farewell = None;
    for datagram in datagrams.iter() {
        *last_heard = now;
        let received = peer.receive(
            now,
            datagram,
            |_| {},
            |kind, body| match kind {
                ChunkKind::Snapshot => snapshots.push(body.to_vec()),
                ChunkKind::Goodbye => farewell = serial::decode(body).ok(),
                ChunkKind::Inputs | ChunkKind::Renet => {}
            },
        );
        if let Err(violation) = received {
            // Junk that got past the transport must not end the game.
            debug!("a datagram is dropped: {violation}");
        }
    }
    datagrams.clear();
    let mut stats = world.resource_mut::<ClientStats>();
    stats.transport = transport.stats();
    stats.rtt = peer.acks.rtt().unwrap_or_default();
    stats.jitter = peer.acks.jitter().unwrap_or_default();
    stats.loss = peer.acks.loss_ratio();
    if snapshots.len() > MAX_WAITING_SNAPSHOTS {
        return Err(DisconnectReason::ProtocolViolation(
            "too many snapshots before the welcome".into(),
        ));
    }
    match (farewell, transport.state()) {
        (Some(reason), _) => Err(reason),
        (None, ClientLinkState::Closed(reason)) => Err(match reason.clone() {
            crate::transport::CloseReason::ByPeer => {
                DisconnectReason::Link("the server closed it".into())
            }
            reason => reason.into(),
        }),
        _ => Ok(()),
    }
}

/// Takes in messages; returns the session if the server has let this client in.
fn receive_messages(
    world: &mut World,
    link: &mut Link,
) -> Result<Option<SessionId>, DisconnectReason> {
    let mut welcomed = None;
    while let Some(bytes) = link.peer.next_message(CONTROL_CHANNEL) {
        match serial::decode::<Control>(&bytes) {
            Ok(Control::Welcome {
                session,
                tick,
                tick_rate_hz,
            }) => {
                if !(1.0..=1000.0).contains(&tick_rate_hz) {
                    return Err(DisconnectReason::ProtocolViolation("the tick rate".into()));
                }
                if world.resource::<Connection>().session().is_none() {
                    welcome(world, link, session, tick, tick_rate_hz);
                    welcomed = Some(session);
                }
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
                component,
                version,
                bytes,
            }) => {
                link.values.push(ApartValue {
                    net: NetId(net),
                    component: ComponentId(component),
                    version,
                    bytes: bytes.into(),
                });
            }
            Err(error) => debug!("a control message is not understood: {error}"),
        }
    }
    for channel in CONTROL_CHANNEL + 1..=3 {
        while let Some(bytes) = link.peer.next_message(channel) {
            let received = message::split(&bytes).and_then(|(id, body)| {
                match world.resource::<Registry>().messages.get(id).copied() {
                    Some(entry) => (entry.receive_on_client)(world, body),
                    None => Ok(()),
                }
            });
            if let Err(error) = received {
                debug!("a message is not understood: {error}");
            }
        }
    }
    Ok(welcomed)
}

fn welcome(world: &mut World, link: &mut Link, session: SessionId, tick: Tick, tick_rate_hz: f64) {
    let mut fixed = world.resource_mut::<Time<Fixed>>();
    fixed.set_timestep_hz(tick_rate_hz);
    let timestep = fixed.timestep();
    link.clock = ClockSync::new(ClockSettings {
        tick: timestep,
        ..default()
    });
    link.timeline = Timeline::new(TimelineSettings {
        tick: timestep,
        ..default()
    });
    let max_entities = world.resource::<Settings>().0.max_entities;
    Mirror::begin(world, session, tick, max_entities);
    world.resource_mut::<Connection>().state = ConnectionState::Connected { session };
}

fn check_time(world: &World, link: &Link, now: Duration) -> Result<(), DisconnectReason> {
    let settings = &world.resource::<Settings>().0;
    if world.resource::<Connection>().session().is_none() {
        if now.saturating_sub(link.since) > settings.connect_timeout {
            return Err(DisconnectReason::ConnectTimedOut);
        }
    } else if now.saturating_sub(link.last_heard) > settings.timeout {
        return Err(DisconnectReason::TimedOut);
    }
    Ok(())
}

/// Says who this is, once the link is there.
fn greet(world: &mut World) {
    if !world.contains_resource::<Link>() {
        return;
    }
    // The server refuses others too, but one this long does not even fit a message to it.
    if world.resource::<Settings>().0.name.len() > 4 * MAX_NAME_CHARS {
        end(world, DisconnectReason::InvalidName);
        return;
    }
    let now = world.resource::<Time<Real>>().elapsed();
    world.resource_scope(|world, mut link: Mut<Link>| {
        let Link {
            transport,
            peer,
            said_hello,
            last_sent,
            ..
        } = &mut *link;
        if transport.state().is_connected() {
            if !*said_hello {
                let registrations = Registry::describe(world);
                let hello = Hello {
                    wire_version: WIRE_VERSION,
                    fingerprint: fingerprint(registrations.iter().map(String::as_str)),
                    name: world.resource::<Settings>().0.name.clone(),
                };
                let mut bytes = Vec::new();
                if serial::encode(&hello, &mut bytes).is_ok() {
                    peer.send_message(CONTROL_CHANNEL, bytes);
                }
                *said_hello = true;
                *last_sent = Duration::ZERO;
            }
            if now.saturating_sub(*last_sent) >= KEEP_ALIVE || last_sent.is_zero() {
                *last_sent = now;
                peer.begin(now, &mut |datagram| transport.send(now, datagram));
                peer.finish(&mut |datagram| transport.send(now, datagram));
            }
        }
        transport.flush(now);
    });
}

/// Runs the simulation's clock a little faster or slower, so that inputs arrive just in time.
fn keep_time(
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

/// Sends this frame's inputs, acknowledgements and messages.
fn send(
    mut link: ResMut<Link>,
    inputs: Res<SentInputs>,
    real: Res<Time<Real>>,
    mut mirror: ResMut<Mirror>,
    mut bytes: Local<Vec<u8>>,
) {
    let now = real.elapsed();
    let Link {
        transport,
        peer,
        last_sent,
        sent_tick,
        ..
    } = &mut *link;
    if mirror.wants_resync() {
        peer.send_message(CONTROL_CHANNEL, RESYNC_REQUEST.to_vec());
    }
    let newest = inputs.history.newest();
    if newest != *sent_tick || now.saturating_sub(*last_sent) >= KEEP_ALIVE {
        *sent_tick = newest;
        *last_sent = now;
        peer.begin(now, &mut |datagram| transport.send(now, datagram));
        bytes.clear();
        let limits = EncodeLimits {
            max_bytes: peer.room().min(512),
            ..default()
        };
        if inputs.history.encode(&mut bytes, limits) > 0 {
            peer.chunk(ChunkKind::Inputs, &bytes);
        }
        peer.finish(&mut |datagram| transport.send(now, datagram));
    }
    transport.flush(now);
}

fn disconnect(_: On<Disconnect>, mut commands: Commands) {
    commands.queue(|world: &mut World| end(world, DisconnectReason::ClientLeft));
}

fn leave(world: &mut World) {
    end(world, DisconnectReason::ClientLeft);
}

/// Ends the connection: tells the server, then the game, then takes the copies away.
fn end(world: &mut World, reason: DisconnectReason) {
    let Some(mut link) = world.remove_resource::<Link>() else {
        return;
    };
    let now = world.resource::<Time<Real>>().elapsed();
    let Link {
        transport, peer, ..
    } = &mut link;
    let mut bytes = Vec::new();
    if serial::encode(&reason, &mut bytes).is_ok() {
        peer.goodbye(now, &bytes, &mut |datagram| transport.send(now, datagram));
    }
    transport.flush(now);
    transport.close();
    world.resource_mut::<Connection>().state = ConnectionState::Disconnected {
        reason: Some(reason.clone()),
    };
    world.trigger(Disconnected { reason });
    Mirror::end(world);
    world
        .resource_mut::<Time<Virtual>>()
        .set_relative_speed(1.0);
}
