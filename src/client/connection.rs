//! Where the connection stands, and what the game is told of it.

use bevy::prelude::*;
use bevy::state::app::StatesPlugin;

use super::farewell::{self, LastWords};
use super::link::{self, Keepsakes, Link};
use super::orders::{self, Order};
use super::{ClientConfig, ClientStats, arrivals, reconnect};
use crate::protocol::handshake::DisconnectReason;
use crate::registry::Registry;
use crate::schedule::TandemSystems;
use crate::session::SessionId;

/// Connects, keeps the clock in step with the server's, sends inputs, and connects again when the link is lost.
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
            .init_resource::<link::Keepsakes>()
            .init_resource::<reconnect::Reconnect>()
            .init_resource::<orders::Orders>()
            .init_resource::<farewell::Farewells>()
            .init_resource::<arrivals::Arrivals>()
            .add_systems(
                PreUpdate,
                (orders::start_frame, link::receive, reconnect::try_again)
                    .chain()
                    .in_set(TandemSystems::Receive),
            )
            .add_systems(PreUpdate, orders::after_apply.after(TandemSystems::Apply))
            .add_systems(
                PostUpdate,
                (link::keep_time, link::send)
                    .chain()
                    .in_set(TandemSystems::Send)
                    .run_if(connected),
            )
            .add_systems(
                PostUpdate,
                (
                    link::greet.run_if(not(connected)),
                    orders::end_frame,
                    farewell::say,
                )
                    .chain()
                    .after(TandemSystems::Send),
            )
            .add_systems(Last, exit.run_if(on_message::<AppExit>))
            .add_observer(disconnect);
    }

    fn finish(&self, app: &mut App) {
        Registry::freeze(app);
        install_state(app);
    }
}

/// Lets the game use [`ConnectionState`] as a state of Bevy's.
pub(crate) fn install_state(app: &mut App) {
    if !app.is_plugin_added::<StatesPlugin>() {
        // Not added as a plugin: the game may still add its own group that has it.
        StatesPlugin.build(app);
    }
    app.init_state::<ConnectionState>();
}

#[derive(Resource)]
pub(super) struct Settings(pub ClientConfig);

/// Where a connection stands. Also a state of Bevy's: `OnEnter(ConnectionState::Reconnecting)`,
/// `in_state(ConnectionState::Connected)`.
#[derive(States, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// There is none: none was made yet, or one side has ended it.
    #[default]
    Disconnected,
    /// On the way to the server for the first time.
    Connecting,
    /// In.
    Connected,
    /// The link is lost. The session waits at the server while the client tries to come back.
    Reconnecting,
    /// It could not be made, or not be made again.
    Failed,
}

/// The client's connection.
#[derive(Resource, Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    state: ConnectionState,
    session: Option<SessionId>,
    reason: Option<DisconnectReason>,
    attempt: u32,
}

impl Connection {
    /// Where it stands.
    pub fn state(&self) -> ConnectionState {
        self.state
    }

    /// The session, while connected or reconnecting.
    pub fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// Why it is not connected: how the last link, attempt or session ended.
    pub fn reason(&self) -> Option<&DisconnectReason> {
        self.reason.as_ref()
    }

    /// While reconnecting, the number of the attempt that is next or under way, from 1. While connecting, 0 for the
    /// first, and from 1 those to which the server has put the client off.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// Run condition: the client is connected.
pub fn connected(connection: Res<Connection>) -> bool {
    connection.state == ConnectionState::Connected
}

/// Run condition: the client has lost its link and tries to come back.
pub fn reconnecting(connection: Res<Connection>) -> bool {
    connection.state == ConnectionState::Reconnecting
}

/// The connection's state has changed.
#[derive(Event, Clone, Debug)]
pub struct ConnectionChanged {
    /// What it was.
    pub from: ConnectionState,
    /// What it is.
    pub to: ConnectionState,
    /// Why, if not by this side's wish.
    pub reason: Option<DisconnectReason>,
}

/// The server has let the client in, with a new session.
#[derive(Event, Clone, Copy, Debug)]
pub struct Connected {
    /// The number that the server gave this session.
    pub session: SessionId,
}

/// The session has ended, or could not be had. Copies of the server's entities are despawned after this, and after the
/// commands of those who observe it: a camera may still be taken off.
#[derive(Event, Clone, Debug)]
pub struct Disconnected {
    /// Why.
    pub reason: DisconnectReason,
}

/// The server goes in a while.
#[derive(Event, Clone, Copy, Debug)]
pub struct ServerClosing {
    /// How long it stays.
    pub within: std::time::Duration,
}

/// The client has sent more than it may, and what was beyond has been dropped.
#[derive(Event, Clone, Debug)]
pub struct LimitWarning {
    /// Which limit.
    pub limit: String,
}

/// Makes the client leave, at the end of this frame: whenever it is triggered, and however often.
///
/// The server still gets what was written to it before, in the same frame too. For reliable messages, the link stays for a
/// round trip or two: for five seconds at most, and for one if nothing comes through. What does not arrive by then is
/// [given back](crate::message::Undeliverable).
#[derive(Event, Clone, Copy, Debug, Default)]
pub struct Disconnect;

/// Goes to another state, and tells the game.
pub(crate) fn change(
    world: &mut World,
    to: ConnectionState,
    session: Option<SessionId>,
    reason: Option<DisconnectReason>,
) {
    let mut connection = world.resource_mut::<Connection>();
    let from = std::mem::replace(&mut connection.state, to);
    connection.session = session;
    connection.reason = reason.clone();
    if !matches!(
        to,
        ConnectionState::Connecting | ConnectionState::Reconnecting
    ) {
        connection.attempt = 0;
    }
    if from == to {
        return;
    }
    if let Some(mut next) = world.get_resource_mut::<NextState<ConnectionState>>() {
        next.set(to);
    }
    world.trigger(ConnectionChanged { from, to, reason });
    world.flush();
}

/// A further attempt is due, or under way.
pub(super) fn note_attempt(world: &mut World, attempt: u32) {
    world.resource_mut::<Connection>().attempt = attempt;
}

fn disconnect(_: On<Disconnect>, mut orders: ResMut<orders::Orders>) {
    orders.add(Order::Disconnect);
}

/// The app exits: there is no time to wait for an answer.
fn exit(world: &mut World) {
    orders::end_frame(world);
    orders::busy(world, |world| {
        end(world, DisconnectReason::ClientLeft, LastWords::Once);
    });
    farewell::end_all(world);
}

/// Ends the session: tells the server, then the game, then takes the copies away.
pub(super) fn end(world: &mut World, reason: DisconnectReason, words: LastWords) {
    let state = world
        .get_resource::<Connection>()
        .map(Connection::state)
        .unwrap_or_default();
    let link = world.remove_resource::<Link>();
    // There is none between two attempts.
    let is_trying = matches!(
        state,
        ConnectionState::Connecting | ConnectionState::Reconnecting
    );
    if link.is_none() && !is_trying {
        return;
    }
    // What came before the end still counts.
    arrivals::tell_all(world);
    let keepsakes = std::mem::take(&mut *world.resource_mut::<Keepsakes>());
    let words = match state {
        ConnectionState::Connected => words,
        // The server does not listen to it yet.
        _ => LastWords::No,
    };
    farewell::begin(world, link, keepsakes.mail, &reason, words);
    reconnect::stop(world);
    change(
        world,
        match state {
            ConnectionState::Connected if is_somebodys_will(&reason) => {
                ConnectionState::Disconnected
            }
            _ if reason == DisconnectReason::ClientLeft => ConnectionState::Disconnected,
            _ => ConnectionState::Failed,
        },
        None,
        Some(reason.clone()),
    );
    world.trigger(Disconnected { reason });
    // The game may take what is its own off the copies.
    world.flush();
    super::mirror::Mirror::end(world);
    world
        .resource_mut::<Time<Virtual>>()
        .set_relative_speed(1.0);
}

/// Whether one of the sides has ended the session on purpose.
fn is_somebodys_will(reason: &DisconnectReason) -> bool {
    use DisconnectReason as Reason;
    matches!(
        reason,
        Reason::ClientLeft
            | Reason::ServerShutdown
            | Reason::Kicked(_)
            | Reason::Banned { .. }
            | Reason::Replaced
            | Reason::LimitExceeded(_)
    )
}
