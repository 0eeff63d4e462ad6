//! The server's end: all clients of a `RenetServer`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bevy::prelude::*;
use bevy_renet::renet::{ClientId, DisconnectReason, ServerEvent};
use bevy_renet::{RenetReceive, RenetSend, RenetServer, RenetServerEvent};
use bytes::Bytes;

use super::{DescribePeer, FAREWELL_TIME, RENET_LINK, RenetPeer, close_reason, is_sendable, lock};
use crate::protocol::limits::{Rate, TokenBucket};
use crate::schedule::TandemSystems;
use crate::server::ServerApp;
use crate::transport::{
    CloseReason, Delivery, LinkEvent, LinkId, LinkIds, PeerInfo, ServerTransport, TransportKind,
    TransportStats,
};

/// As much as may wait to be sent: the 1.2 kB of a frame for each of 10,000 clients, and more.
const MAX_OUTBOX_BYTES: usize = 32 << 20;

/// For so long, a client says hello before anything else is done. Four of netcode's keep-alives.
const UNHEARD: Duration = Duration::from_secs(1);

/// Lets the clients of the app's `RenetServer` into the game. Beside [`TandemServerPlugins`] and bevy_renet's own plugins.
///
/// The resource may come and go. Without it, no link is open.
///
/// [`TandemServerPlugins`]: crate::server::TandemServerPlugins
#[derive(Clone, Copy, Debug)]
pub struct RenetBridgeServerPlugin {
    /// The channel, see [`channel_config`](super::channel_config). The game leaves it to the bridge.
    pub channel: u8,
    /// What else is known of a client, asked once when it connects. With netcode's transport, say:
    ///
    /// ```
    /// # use bevy_renet::netcode::NetcodeServerTransport;
    /// # use bevy_tandem::renet_bridge::{DescribePeer, RenetPeer};
    /// let describe: DescribePeer = |world, client| {
    ///     let transport = world.get_resource::<NetcodeServerTransport>();
    ///     RenetPeer {
    ///         addr: transport.and_then(|it| it.client_addr(client)),
    ///         secure: true, // with `ServerAuthentication::Secure`
    ///         ..Default::default()
    ///     }
    /// };
    /// ```
    ///
    /// Default: nothing.
    pub describe: DescribePeer,
    /// Datagrams that a client may send in a second, and in a moment; what is beyond is dropped. Default: 400, as for
    /// UDP.
    pub max_datagrams_per_s: u32,
    /// Datagrams kept while the app does not take them. Default: 65,536, as for UDP.
    pub inbox_datagrams: usize,
}

impl RenetBridgeServerPlugin {
    /// A bridge over this channel, with the defaults.
    pub fn new(channel: impl Into<u8>) -> Self {
        Self {
            channel: channel.into(),
            describe: |_, _| RenetPeer::default(),
            max_datagrams_per_s: 400,
            inbox_datagrams: 65_536,
        }
    }
}

impl Plugin for RenetBridgeServerPlugin {
    fn build(&self, app: &mut App) {
        let rate = Rate::new(self.max_datagrams_per_s, self.max_datagrams_per_s);
        let mut shared = None;
        app.add_transport(|index| {
            let hub = Arc::new(Mutex::new(Hub::new(index, rate, self.inbox_datagrams)));
            shared = Some(hub.clone());
            RenetServerLinks { hub }
        });
        let Some(hub) = shared else { return };
        app.insert_resource(Bridge {
            hub,
            channel: self.channel,
            describe: self.describe,
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
        )
        .add_observer(note_disconnection);
    }
}

#[derive(Resource)]
struct Bridge {
    hub: Arc<Mutex<Hub>>,
    channel: u8,
    describe: DescribePeer,
}

/// Between the systems that know renet and the transport that knows links.
struct Hub {
    ids: LinkIds,
    /// Ordered, so that runs are repeatable. Also those whose link is closed, as long as renet has them.
    clients: BTreeMap<ClientId, Client>,
    /// Of whom nothing has come yet, and since when renet has them.
    newcomers: BTreeMap<ClientId, Duration>,
    open: BTreeMap<LinkId, ClientId>,
    events: Vec<LinkEvent>,
    /// How many of the events are datagrams.
    waiting: usize,
    inbox_datagrams: usize,
    outbox: Vec<(ClientId, Bytes)>,
    outbox_bytes: usize,
    /// Whose link is closed, and whose last words are still in the outbox.
    closing: Vec<ClientId>,
    /// Whose last words renet has, and since when. They have some time to read them.
    closed: Vec<(Duration, ClientId)>,
    rate: Rate,
    is_accepting: bool,
    stats: TransportStats,
}

struct Client {
    /// `None` once it is closed.
    link: Option<LinkId>,
    budget: TokenBucket,
}

impl Hub {
    fn new(transport_index: u8, rate: Rate, inbox_datagrams: usize) -> Self {
        Self {
            ids: LinkIds::new(transport_index),
            clients: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            open: BTreeMap::new(),
            events: Vec::new(),
            waiting: 0,
            inbox_datagrams,
            outbox: Vec::new(),
            outbox_bytes: 0,
            closing: Vec::new(),
            closed: Vec::new(),
            rate,
            is_accepting: true,
            stats: TransportStats::default(),
        }
    }

    /// Whether a client of whom nothing has come may be told something all the same.
    ///
    /// Before a client has heard that it is in, it throws away what it is sent; and netcode tells it again only while
    /// nothing else is sent.
    fn has_waited(&mut self, now: Duration, id: ClientId) -> bool {
        let since = *self.newcomers.entry(id).or_insert(now);
        now.saturating_sub(since) >= UNHEARD
    }

    /// renet has a new client, and something was heard of it.
    fn open(&mut self, id: ClientId, peer: RenetPeer) {
        let mut client = Client {
            link: None,
            budget: TokenBucket::new(self.rate),
        };
        if self.is_accepting {
            let link = self.ids.allocate();
            client.link = Some(link);
            self.open.insert(link, id);
            let peer = PeerInfo {
                addr: peer.addr,
                client_id: id,
                user_data: peer.user_data,
                secure: peer.secure,
                token: None,
                kind: RENET_LINK,
                delivery: Delivery::Datagrams,
            };
            self.events.push(LinkEvent::Opened { link, peer });
        } else {
            self.stats.rejected.handshake += 1;
            self.closing.push(id);
        }
        self.newcomers.remove(&id);
        self.clients.insert(id, client);
    }

    /// renet has it no more.
    fn forget(&mut self, id: ClientId, reason: CloseReason) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        // The next client with this id gets neither its datagrams nor its farewell.
        self.outbox.retain(|(to, _)| *to != id);
        self.outbox_bytes = self.outbox.iter().map(|(_, bytes)| bytes.len()).sum();
        self.closing.retain(|closing| *closing != id);
        self.closed.retain(|(_, closed)| *closed != id);
        if let Some(link) = client.link {
            self.open.remove(&link);
            self.events.push(LinkEvent::Closed { link, reason });
        }
    }

    fn take_in(&mut self, now: Duration, id: ClientId, datagram: &[u8]) {
        self.stats.datagrams_in += 1;
        self.stats.bytes_in += datagram.len() as u64;
        let rejected = &mut self.stats.rejected;
        let Some(client) = self.clients.get_mut(&id) else {
            rejected.unknown += 1;
            return;
        };
        let Some(link) = client.link else {
            rejected.unknown += 1;
            return;
        };
        if !is_sendable(datagram) {
            rejected.malformed += 1;
        } else if !client.budget.take(1, now) {
            rejected.over_budget += 1;
        } else if self.waiting >= self.inbox_datagrams {
            rejected.inbox_full += 1;
        } else {
            self.waiting += 1;
            self.events.push(LinkEvent::Datagram {
                link,
                at: now,
                bytes: datagram.to_vec(),
            });
        }
    }

    fn close(&mut self, link: LinkId) {
        let Some(id) = self.open.remove(&link) else {
            return;
        };
        if let Some(client) = self.clients.get_mut(&id) {
            client.link = None;
        }
        self.closing.push(id);
        self.events.push(LinkEvent::Closed {
            link,
            reason: CloseReason::ByUs,
        });
    }
}

/// Takes in whom and what renet has.
fn receive(world: &mut World) {
    let now = world.resource::<Time<Real>>().elapsed();
    world.resource_scope(|world, bridge: Mut<Bridge>| {
        let newcomers: Vec<ClientId> = {
            let mut hub = lock(&bridge.hub);
            let server = world.get_resource::<RenetServer>();
            forget_the_gone(&mut hub, server);
            let Some(server) = server else { return };
            server
                .clients_id_iter()
                .filter(|id| !hub.clients.contains_key(id))
                .collect()
        };
        for id in newcomers {
            let mut server = world.resource_mut::<RenetServer>();
            let first = server.receive_message(id, bridge.channel);
            if first.is_none() && !lock(&bridge.hub).has_waited(now, id) {
                continue;
            }
            let peer = (bridge.describe)(world, id);
            let mut hub = lock(&bridge.hub);
            hub.open(id, peer);
            if let Some(datagram) = first {
                hub.take_in(now, id, &datagram);
            }
        }
        let mut hub = lock(&bridge.hub);
        let mut server = world.resource_mut::<RenetServer>();
        let clients: Vec<ClientId> = hub.clients.keys().copied().collect();
        for id in clients {
            while let Some(datagram) = server.receive_message(id, bridge.channel) {
                hub.take_in(now, id, &datagram);
            }
        }
    });
}

fn forget_the_gone(hub: &mut Hub, server: Option<&RenetServer>) {
    let is_connected = |id| server.is_some_and(|server| server.is_connected(id));
    hub.newcomers.retain(|id, _| is_connected(*id));
    let gone = hub.clients.keys().filter(|id| !is_connected(**id));
    for id in gone.copied().collect::<Vec<_>>() {
        let reason = server.and_then(|server| server.disconnect_reason(id));
        hub.forget(id, reason_of(reason.unwrap_or(DisconnectReason::Transport)));
    }
}

fn reason_of(reason: DisconnectReason) -> CloseReason {
    close_reason(reason, DisconnectReason::DisconnectedByServer)
}

/// A client can be gone and back under the same id between two looks at the list.
fn note_disconnection(event: On<RenetServerEvent>, bridge: Res<Bridge>) {
    if let ServerEvent::ClientDisconnected { client_id, reason } = &event.event().0 {
        lock(&bridge.hub).forget(*client_id, reason_of(*reason));
    }
}

/// Hands over what is to be sent.
fn send(bridge: Res<Bridge>, server: Option<ResMut<RenetServer>>, time: Res<Time<Real>>) {
    let mut hub = lock(&bridge.hub);
    let hub = &mut *hub;
    hub.outbox_bytes = 0;
    let Some(mut server) = server else {
        hub.stats.rejected.unsendable += hub.outbox.len() as u64;
        hub.outbox.clear();
        hub.closing.clear();
        return;
    };
    for (id, datagram) in hub.outbox.drain(..) {
        // Asked first: renet would log each that does not fit.
        if !server.is_connected(id) {
            hub.stats.rejected.unsendable += 1;
        } else if server.can_send_message(id, bridge.channel, datagram.len()) {
            hub.stats.datagrams_out += 1;
            hub.stats.bytes_out += datagram.len() as u64;
            server.send_message(id, bridge.channel, datagram);
        } else {
            hub.stats.rejected.outbox_full += 1;
        }
    }
    let closing = hub.closing.drain(..).map(|id| (time.elapsed(), id));
    hub.closed.extend(closing);
}

/// Disconnects those who have had time to read their last words.
fn disconnect_closed(
    bridge: Res<Bridge>,
    server: Option<ResMut<RenetServer>>,
    time: Res<Time<Real>>,
) {
    let mut hub = lock(&bridge.hub);
    if hub.closed.is_empty() {
        return;
    }
    let Some(mut server) = server else {
        hub.closed.clear();
        return;
    };
    hub.closed.retain(|(since, id)| {
        let is_over = time.elapsed().saturating_sub(*since) >= FAREWELL_TIME;
        if is_over {
            server.disconnect(*id);
        }
        !is_over
    });
}

struct RenetServerLinks {
    hub: Arc<Mutex<Hub>>,
}

impl ServerTransport for RenetServerLinks {
    fn receive(&mut self, _now: Duration, events: &mut Vec<LinkEvent>) {
        let mut hub = lock(&self.hub);
        hub.waiting = 0;
        events.append(&mut hub.events);
    }

    fn send(&mut self, _now: Duration, link: LinkId, datagram: &[u8]) {
        let mut hub = lock(&self.hub);
        match hub.open.get(&link).copied() {
            Some(_) if hub.outbox_bytes + datagram.len() > MAX_OUTBOX_BYTES => {
                hub.stats.rejected.outbox_full += 1;
            }
            Some(id) if is_sendable(datagram) => {
                hub.outbox_bytes += datagram.len();
                hub.outbox.push((id, Bytes::copy_from_slice(datagram)));
            }
            _ => hub.stats.rejected.unsendable += 1,
        }
    }

    /// The systems hand everything over before the game's transport sends.
    fn flush(&mut self, _now: Duration) {}

    fn close(&mut self, link: LinkId) {
        lock(&self.hub).close(link);
    }

    fn kind(&self) -> TransportKind {
        RENET_LINK
    }

    fn stop_accepting(&mut self) {
        lock(&self.hub).is_accepting = false;
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }

    fn stats(&self) -> TransportStats {
        lock(&self.hub).stats
    }

    fn shutdown(&mut self) {
        let mut hub = lock(&self.hub);
        hub.is_accepting = false;
        let links: Vec<LinkId> = hub.open.keys().copied().collect();
        links.into_iter().for_each(|link| hub.close(link));
    }
}

impl Drop for RenetServerLinks {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK_RATE: Rate = Rate::new(10, 10);

    fn hub() -> Hub {
        Hub::new(3, LINK_RATE, 100)
    }

    fn opened(hub: &mut Hub, id: ClientId) -> LinkId {
        hub.open(id, RenetPeer::default());
        match hub.events.last() {
            Some(LinkEvent::Opened { link, peer }) if peer.client_id == id => *link,
            other => panic!("it opens: {other:?}"),
        }
    }

    #[test]
    fn a_link_opens_and_closes_once() {
        let mut hub = hub();
        let link = opened(&mut hub, 7);
        assert_eq!(link.transport_index(), 3, "of this transport");
        hub.close(link);
        hub.close(link);
        hub.forget(7, CloseReason::ByPeer);
        let closed: Vec<_> = hub
            .events
            .iter()
            .filter_map(|event| match event {
                LinkEvent::Closed { reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(closed, [CloseReason::ByUs], "whoever comes first");
        assert!(hub.clients.is_empty() && hub.open.is_empty() && hub.closing.is_empty());
    }

    #[test]
    fn who_comes_back_under_the_same_id_gets_another_link_and_no_old_datagrams() {
        let shared = Arc::new(Mutex::new(hub()));
        let mut links = RenetServerLinks {
            hub: shared.clone(),
        };
        let first = opened(&mut lock(&shared), 7);
        links.send(Duration::ZERO, first, b"late");
        links.close(first);
        lock(&shared).forget(7, CloseReason::ByPeer);
        let second = opened(&mut lock(&shared), 7);
        assert_ne!(first, second);
        let hub = lock(&shared);
        assert!(hub.outbox.is_empty() && hub.outbox_bytes == 0 && hub.closing.is_empty());
    }

    #[test]
    fn what_a_client_may_send_is_bounded() {
        let mut hub = hub();
        opened(&mut hub, 7);
        hub.take_in(Duration::ZERO, 7, &[]);
        hub.take_in(Duration::ZERO, 7, &[0; 1_251]);
        assert_eq!(
            hub.stats.rejected.malformed, 2,
            "of a length that is not sent"
        );
        for _ in 0..50 {
            hub.take_in(Duration::ZERO, 7, &[1]);
        }
        assert_eq!(
            (hub.waiting, hub.stats.rejected.over_budget),
            (10, 40),
            "per client"
        );
        for id in 8..30 {
            opened(&mut hub, id);
            (0..10).for_each(|_| hub.take_in(Duration::ZERO, id, &[1]));
        }
        assert_eq!(
            (hub.waiting, hub.stats.rejected.inbox_full),
            (100, 130),
            "and in all"
        );
        hub.take_in(Duration::ZERO, 99, &[1]);
        assert_eq!(hub.stats.rejected.unknown, 1, "from nobody");
    }

    #[test]
    fn what_waits_to_be_sent_is_bounded() {
        let shared = Arc::new(Mutex::new(hub()));
        let mut links = RenetServerLinks {
            hub: shared.clone(),
        };
        let link = opened(&mut lock(&shared), 7);
        for _ in 0..MAX_OUTBOX_BYTES / 1_250 + 10 {
            links.send(Duration::ZERO, link, &[1; 1_250]);
        }
        links.send(Duration::ZERO, link, &[1; 1_251]);
        let hub = lock(&shared);
        assert!(hub.outbox_bytes <= MAX_OUTBOX_BYTES);
        assert!(hub.stats.rejected.outbox_full >= 10);
    }

    #[test]
    fn who_says_nothing_is_waited_for_and_not_for_ever() {
        let mut hub = hub();
        assert!(!hub.has_waited(Duration::from_secs(5), 7));
        assert!(!hub.has_waited(Duration::from_millis(5_900), 7));
        assert!(hub.has_waited(Duration::from_secs(6), 7));
        opened(&mut hub, 7);
        assert!(hub.newcomers.is_empty());
    }

    #[test]
    fn who_comes_when_nobody_is_let_in_is_disconnected() {
        let mut hub = hub();
        hub.is_accepting = false;
        hub.open(7, RenetPeer::default());
        assert!(hub.events.is_empty(), "without a link");
        assert_eq!(hub.closing, [7]);
    }
}
