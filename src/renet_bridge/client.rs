//! The client's end: a `RenetClient`, and those that come after it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bevy::prelude::*;
use bevy_renet::renet::DisconnectReason;
use bevy_renet::{RenetClient, RenetReceive, RenetSend};
use bytes::Bytes;

use super::{FAREWELL_TIME, RENET_LINK, close_reason, is_sendable, lock};
use crate::client::{ConnectOver, Connection};
use crate::schedule::TandemSystems;
use crate::transport::{
    ClientLinkState, ClientTransport, CloseReason, TransportKind, TransportStats,
};

/// Datagrams kept while the app does not take them. A server sends some sixty a second.
const INBOX_DATAGRAMS: usize = 4_096;

/// Datagrams that may wait to be sent: a frame has a few.
const OUTBOX_DATAGRAMS: usize = 1_024;

/// Joins over the app's `RenetClient`. Beside [`TandemClientPlugins`] and bevy_renet's own plugins.
///
/// The client joins by itself as soon as there is a `RenetClient` that connects, and goes on with its session whenever
/// the game inserts another.
///
/// [`TandemClientPlugins`]: crate::client::TandemClientPlugins
#[derive(Clone, Copy, Debug)]
pub struct RenetBridgeClientPlugin {
    /// The channel, see [`channel_config`](super::channel_config). The game leaves it to the bridge.
    pub channel: u8,
}

impl RenetBridgeClientPlugin {
    /// A bridge over this channel.
    pub fn new(channel: impl Into<u8>) -> Self {
        Self {
            channel: channel.into(),
        }
    }
}

impl Plugin for RenetBridgeClientPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(Bridge {
            channel: self.channel,
            socket: Arc::default(),
            seen: Seen::Nothing,
            is_used: false,
        })
        .add_systems(
            PreUpdate,
            receive.after(RenetReceive).before(TandemSystems::Receive),
        )
        .add_systems(
            PostUpdate,
            (
                send.after(TandemSystems::Send).before(RenetSend),
                disconnect_closed.after(send).after(RenetSend),
            ),
        );
    }
}

#[derive(Resource)]
struct Bridge {
    channel: u8,
    socket: Socket,
    /// What the `RenetClient` was when last looked at.
    seen: Seen,
    /// Whether the connection that it has had its link.
    is_used: bool,
}

/// The newest link, which is the only one that counts.
type Socket = Arc<Mutex<Option<Arc<Mutex<Line>>>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Connecting,
    Connected,
    Disconnected(DisconnectReason),
}

impl Seen {
    fn of(client: Option<&RenetClient>) -> Self {
        match client {
            None => Self::Nothing,
            Some(client) if client.is_connected() => Self::Connected,
            Some(client) => client
                .disconnect_reason()
                .map_or(Self::Connecting, Self::Disconnected),
        }
    }

    /// Whether this is another `RenetClient` than the one before: none goes back to an earlier stage.
    fn is_new_since(self, before: Self) -> bool {
        match self {
            Self::Nothing | Self::Disconnected(_) => false,
            Self::Connecting => before != Self::Connecting,
            Self::Connected => matches!(before, Self::Nothing | Self::Disconnected(_)),
        }
    }

    /// How a link ended of which this has become.
    fn end(self) -> Option<CloseReason> {
        match self {
            Self::Connecting | Self::Connected => None,
            Self::Nothing => Some(CloseReason::Transport("the RenetClient is gone".into())),
            Self::Disconnected(reason) => {
                Some(close_reason(reason, DisconnectReason::DisconnectedByClient))
            }
        }
    }
}

/// Between the systems that know renet and the transport that knows a link.
struct Line {
    state: ClientLinkState,
    inbox: Vec<Vec<u8>>,
    outbox: Vec<Bytes>,
    /// The link is closed by this side, but its last words are still in the outbox.
    is_closing: bool,
    /// Since when renet has them. The server has some time to read them.
    closed_at: Option<Duration>,
    stats: TransportStats,
}

impl Line {
    /// Unless it has ended before.
    fn end(&mut self, reason: CloseReason) {
        if self.state.close_reason().is_none() {
            self.state = ClientLinkState::Closed(reason);
        }
    }
}

/// Makes a link that waits for a `RenetClient` to be connected, and takes the place of the one before.
fn next_link(socket: &Socket) -> RenetLink {
    let line = Arc::new(Mutex::new(Line {
        state: ClientLinkState::Connecting,
        inbox: Vec::new(),
        outbox: Vec::new(),
        is_closing: false,
        closed_at: None,
        stats: TransportStats::default(),
    }));
    *lock(socket) = Some(line.clone());
    RenetLink {
        line,
        state: ClientLinkState::Connecting,
    }
}

/// The newest link, if it is not over.
fn line(socket: &Socket) -> Option<Arc<Mutex<Line>>> {
    lock(socket)
        .clone()
        .filter(|line| lock(line).state.close_reason().is_none())
}

/// Follows the `RenetClient`, and takes in what it has.
fn receive(world: &mut World) {
    let now = Seen::of(world.get_resource::<RenetClient>());
    let mut bridge = world.resource_mut::<Bridge>();
    let before = std::mem::replace(&mut bridge.seen, now);
    let is_new = now.is_new_since(before);
    bridge.is_used &= !is_new;
    let (socket, channel, is_used) = (bridge.socket.clone(), bridge.channel, bridge.is_used);

    if let Some(line) = line(&socket) {
        let mut line = lock(&line);
        match now.end() {
            Some(reason) if now != before => line.end(reason),
            // The link was that of the one before. One that waits goes on waiting.
            None if is_new && line.state.is_connected() => line.end(replaced()),
            _ => {}
        }
    }
    match now {
        Seen::Connecting if is_new => prepare(world, &socket),
        Seen::Connected => {
            if !is_used {
                world.resource_mut::<Bridge>().is_used = true;
                open(world, &socket);
            }
            take_in(world, &socket, channel);
        }
        _ => {}
    }
}

fn replaced() -> CloseReason {
    CloseReason::Transport("the game has inserted another RenetClient".into())
}

/// Begins to join, so that the game sees that something is under way. A session that there is waits until renet has
/// connected.
fn prepare(world: &mut World, socket: &Socket) {
    if line(socket).is_none() && !has_session(world) {
        join(world, socket);
    }
}

/// renet has connected.
fn open(world: &mut World, socket: &Socket) {
    if line(socket).is_none() {
        if has_session(world) {
            world.resume_over(next_link(socket));
        } else {
            join(world, socket);
        }
    }
    if let Some(line) = line(socket) {
        lock(&line).state = ClientLinkState::Connected;
    }
}

fn has_session(world: &World) -> bool {
    let connection = world.get_resource::<Connection>();
    connection.is_some_and(|connection| connection.session().is_some())
}

fn join(world: &mut World, socket: &Socket) {
    let socket = socket.clone();
    world.connect_with(move |_: Option<&[u8]>| {
        let link: Box<dyn ClientTransport> = Box::new(next_link(&socket));
        Ok(link)
    });
}

fn take_in(world: &mut World, socket: &Socket, channel: u8) {
    let mut client = world.resource_mut::<RenetClient>();
    let line = line(socket);
    while let Some(datagram) = client.receive_message(channel) {
        // Without a link: what was under way when it closed.
        let Some(mut line) = line.as_ref().map(lock) else {
            continue;
        };
        line.stats.datagrams_in += 1;
        line.stats.bytes_in += datagram.len() as u64;
        if !is_sendable(&datagram) {
            line.stats.rejected.malformed += 1;
        } else if line.inbox.len() >= INBOX_DATAGRAMS {
            line.stats.rejected.inbox_full += 1;
        } else {
            line.inbox.push(datagram.to_vec());
        }
    }
}

/// Hands over what is to be sent.
fn send(bridge: Res<Bridge>, mut client: Option<ResMut<RenetClient>>, time: Res<Time<Real>>) {
    let Some(line) = lock(&bridge.socket).clone() else {
        return;
    };
    let mut line = lock(&line);
    let Line { outbox, stats, .. } = &mut *line;
    for datagram in outbox.drain(..) {
        match &mut client {
            Some(client) if client.is_connected() => {
                // Asked first: renet would log each that does not fit.
                if client.can_send_message(bridge.channel, datagram.len()) {
                    stats.datagrams_out += 1;
                    stats.bytes_out += datagram.len() as u64;
                    client.send_message(bridge.channel, datagram);
                } else {
                    stats.rejected.outbox_full += 1;
                }
            }
            _ => stats.rejected.unsendable += 1,
        }
    }
    if std::mem::take(&mut line.is_closing) {
        line.closed_at = Some(time.elapsed());
    }
}

/// Disconnects when the server has had time to read the last words.
fn disconnect_closed(
    bridge: Res<Bridge>,
    client: Option<ResMut<RenetClient>>,
    time: Res<Time<Real>>,
) {
    let Some(line) = lock(&bridge.socket).clone() else {
        return;
    };
    let mut line = lock(&line);
    let is_over = |since| time.elapsed().saturating_sub(since) >= FAREWELL_TIME;
    if line.closed_at.is_some_and(is_over) {
        line.closed_at = None;
        if let Some(mut client) = client {
            client.disconnect();
        }
    }
}

struct RenetLink {
    line: Arc<Mutex<Line>>,
    state: ClientLinkState,
}

impl RenetLink {
    fn part(&mut self, disconnects: bool) {
        let mut line = lock(&self.line);
        if self.state.close_reason().is_none() {
            self.state = ClientLinkState::Closed(CloseReason::ByUs);
            line.is_closing |= disconnects || line.state.is_connected();
        }
        line.end(CloseReason::ByUs);
    }
}

impl ClientTransport for RenetLink {
    fn state(&self) -> &ClientLinkState {
        &self.state
    }

    fn receive(&mut self, _now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        let mut line = lock(&self.line);
        datagrams.append(&mut line.inbox);
        if self.state.close_reason().is_none() {
            self.state = line.state.clone();
        }
    }

    fn send(&mut self, _now: Duration, datagram: &[u8]) {
        let mut line = lock(&self.line);
        if !self.state.is_connected() || !is_sendable(datagram) {
            line.stats.rejected.unsendable += 1;
        } else if line.outbox.len() >= OUTBOX_DATAGRAMS {
            line.stats.rejected.outbox_full += 1;
        } else {
            line.outbox.push(Bytes::copy_from_slice(datagram));
        }
    }

    /// The systems hand everything over before the game's transport sends.
    fn flush(&mut self, _now: Duration) {}

    fn kind(&self) -> TransportKind {
        RENET_LINK
    }

    /// Disconnects renet, whose transport says farewell; but a `RenetClient` that this link has only waited for may still
    /// be of use to the next.
    fn vanish(&mut self) {
        self.part(false);
    }

    fn close(&mut self) {
        self.part(true);
    }

    fn stats(&self) -> TransportStats {
        lock(&self.line).stats
    }
}

impl Drop for RenetLink {
    fn drop(&mut self) {
        self.vanish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: Seen = Seen::Disconnected(DisconnectReason::Transport);

    #[test]
    fn another_renet_client_is_known_by_its_going_back() {
        use Seen::{Connected, Connecting, Nothing};
        for (before, now, is_new) in [
            (Nothing, Connecting, true),
            (Connecting, Connecting, false),
            (Connecting, Connected, false),
            (Connected, Connected, false),
            (Connected, LOST, false),
            (LOST, Nothing, false),
            (Nothing, Nothing, false),
            (Connected, Connecting, true),
            (LOST, Connecting, true),
            (LOST, Connected, true),
            (Nothing, Connected, true),
        ] {
            assert_eq!(now.is_new_since(before), is_new, "{before:?} then {now:?}");
        }
    }

    #[test]
    fn the_reason_of_an_end_is_told_once() {
        let socket = Socket::default();
        let mut link = next_link(&socket);
        lock(&line(&socket).expect("it waits")).end(CloseReason::ByPeer);
        assert!(line(&socket).is_none(), "it is over");
        link.receive(Duration::ZERO, &mut Vec::new());
        link.close();
        assert_eq!(link.state().close_reason(), Some(&CloseReason::ByPeer));
    }

    #[test]
    fn only_a_link_that_was_open_takes_renet_with_it_when_it_vanishes() {
        let socket = Socket::default();
        let is_closing = |link: RenetLink| {
            let line = link.line.clone();
            drop(link);
            lock(&line).is_closing
        };
        assert!(!is_closing(next_link(&socket)), "it waited");
        let link = next_link(&socket);
        lock(&link.line).state = ClientLinkState::Connected;
        assert!(is_closing(link), "it was open");
        let mut link = next_link(&socket);
        link.close();
        assert!(is_closing(link), "it was closed on purpose");
    }

    #[test]
    fn what_waits_to_be_sent_is_bounded() {
        let mut link = next_link(&Socket::default());
        link.send(Duration::ZERO, &[1]);
        assert_eq!(link.stats().rejected.unsendable, 1, "it is not open");
        lock(&link.line).state = ClientLinkState::Connected;
        link.receive(Duration::ZERO, &mut Vec::new());
        (0..OUTBOX_DATAGRAMS + 5).for_each(|_| link.send(Duration::ZERO, &[1]));
        assert_eq!(link.stats().rejected.outbox_full, 5);
        link.send(Duration::ZERO, &[1; 1_251]);
        link.send(Duration::ZERO, &[]);
        assert_eq!(
            link.stats().rejected.unsendable,
            3,
            "of no length that is sent"
        );
    }
}
