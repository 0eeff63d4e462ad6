//! Links within one process: no sockets, no threads, no clock of their own.
//!
//! Everything goes through [`ConditionedQueue`]s: datagrams, and the handshakes, heartbeats and
//! farewells that netcode would send, so links open late, time out and part ways as real ones do,
//! but exactly repeatably. Made for tests with a server and clients in one process, and for
//! single-player games.
//!
//! ```
//! use bevy_tandem::transport::{ClientTransport, LinkEvent, LocalServer, ServerTransport};
//! use core::time::Duration;
//!
//! let mut server = LocalServer::new();
//! let mut client = server.connector().connect();
//! let (mut events, now) = (Vec::new(), Duration::ZERO);
//!
//! client.flush(now); // asks
//! server.receive(now, &mut events); // answers
//! client.receive(now, &mut Vec::new());
//! assert!(client.state().is_connected());
//! assert!(matches!(events[0], LinkEvent::Opened { .. }));
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::conditioner::{ConditionedQueue, LinkConditions};
use super::{
    ClientLinkState, ClientTransport, CloseReason, Delivery, LinkEvent, LinkId, LinkIds,
    MAX_PAYLOAD_BYTES, PeerInfo, ServerTransport, TransportKind, TransportStats,
};

/// Silence after which a link times out: the default of the UDP transport.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after which an end with nothing to say sends a heartbeat, or asks again: as netcode does.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// A farewell may be lost, so it is said several times.
const FAREWELLS: usize = 10;

/// The server's end of all links of one process-wide network.
#[derive(Debug)]
pub struct LocalServer {
    hub: Arc<Mutex<Hub>>,
    /// `Closed` events of `close` and `shutdown`, for the next `receive`.
    closed: Vec<LinkId>,
    stats: TransportStats,
}

/// Makes clients of a [`LocalServer`]. Clone it freely.
#[derive(Clone, Debug)]
pub struct LocalConnector {
    hub: Arc<Mutex<Hub>>,
}

/// The client's end of one link. Dropping it says farewell, [`vanish`](ClientTransport::vanish) does not.
#[derive(Debug)]
pub struct LocalClient {
    hub: Arc<Mutex<Hub>>,
    link: LinkId,
    client_id: u64,
    user_data: Option<Box<[u8; 256]>>,
    state: ClientLinkState,
    heard_at: Duration,
    /// `None` until the first request.
    spoke_at: Option<Duration>,
    stats: TransportStats,
}

/// What both ends share.
#[derive(Debug)]
struct Hub {
    /// The furthest time that either end has told. Apps that started at different moments have
    /// different times, and a link needs one.
    clock: Duration,
    timeout: Duration,
    conditions: LinkConditions,
    ids: LinkIds,
    /// Ordered, so that runs are repeatable.
    links: BTreeMap<LinkId, Wire>,
    /// False after `shutdown`.
    accepting: bool,
}

/// The network between the two ends of a link.
#[derive(Debug)]
struct Wire {
    to_server: ConditionedQueue<Message>,
    to_client: ConditionedQueue<Message>,
    server: ServerEnd,
    /// The client will not look again.
    client_gone: bool,
}

/// What the server knows about a link.
#[derive(Debug)]
enum ServerEnd {
    Unheard,
    Open {
        client_id: u64,
        heard_at: Duration,
        spoke_at: Duration,
    },
    Closed,
}

#[derive(Clone, Debug)]
enum Message {
    /// The client asks for a link.
    Hello {
        client_id: u64,
        user_data: Option<Box<[u8; 256]>>,
    },
    /// The server grants it.
    Welcome,
    /// The server refuses it.
    Denied,
    Datagram(Vec<u8>),
    Heartbeat,
    Farewell(Parting),
}

/// Why an end says farewell.
#[derive(Clone, Copy, Debug)]
enum Parting {
    /// It wants no more of the link.
    Left,
    /// It has heard nothing for too long: the link is lost, and nobody has ended it.
    TimedOut,
}

impl Parting {
    /// What the farewell means to the end that reads it.
    fn as_heard(self) -> CloseReason {
        match self {
            Self::Left => CloseReason::ByPeer,
            Self::TimedOut => CloseReason::TimedOut,
        }
    }
}

impl Message {
    /// About what netcode takes, headers included.
    fn wire_bytes(&self) -> usize {
        match self {
            Self::Hello { .. } => 1_106,
            Self::Datagram(bytes) => bytes.len() + 50,
            _ => 50,
        }
    }
}

impl Default for LocalServer {
    fn default() -> Self {
        Self::new()
    }
}

impl LocalServer {
    /// A network without faults, as the server's first transport.
    pub fn new() -> Self {
        Self::with_transport_index(0)
    }

    /// The same, for a server with several transports: each needs an index of its own.
    pub fn with_transport_index(transport_index: u8) -> Self {
        let hub = Hub {
            clock: Duration::ZERO,
            timeout: DEFAULT_TIMEOUT,
            conditions: LinkConditions::default(),
            ids: LinkIds::new(transport_index),
            links: BTreeMap::new(),
            accepting: true,
        };
        Self {
            hub: Arc::new(Mutex::new(hub)),
            closed: Vec::new(),
            stats: TransportStats::default(),
        }
    }

    /// What clients connect with.
    pub fn connector(&self) -> LocalConnector {
        LocalConnector {
            hub: self.hub.clone(),
        }
    }

    /// Sets how long an end bears silence. Default: 5 s, as for UDP.
    pub fn set_timeout(&mut self, timeout: Duration) {
        lock(&self.hub).timeout = timeout;
    }

    /// Changes the weather for all links, present and future, both ways.
    pub fn set_conditions(&mut self, conditions: LinkConditions) {
        lock(&self.hub).set_conditions(conditions);
    }
}

impl LocalConnector {
    /// A new client, which starts to connect at its first `receive` or `flush`. Its client id is
    /// a small number unlike any other's.
    pub fn connect(&self) -> LocalClient {
        self.connect_with(None, None)
    }

    /// A new client that claims this id, for tests of what happens when a player comes back.
    pub fn connect_as(&self, client_id: u64) -> LocalClient {
        self.connect_with(Some(client_id), None)
    }

    /// A new client that claims this id and shows the server this data.
    pub fn connect_with(
        &self,
        client_id: Option<u64>,
        user_data: Option<Box<[u8; 256]>>,
    ) -> LocalClient {
        let mut hub = lock(&self.hub);
        let link = hub.ids.allocate();
        let stream = link.0.wrapping_mul(2);
        let wire = Wire {
            to_server: ConditionedQueue::new(hub.conditions.clone(), stream),
            to_client: ConditionedQueue::new(hub.conditions.clone(), stream + 1),
            server: ServerEnd::Unheard,
            client_gone: false,
        };
        hub.links.insert(link, wire);
        LocalClient {
            hub: self.hub.clone(),
            link,
            client_id: client_id.unwrap_or(link.0),
            user_data,
            state: ClientLinkState::Connecting,
            heard_at: hub.clock,
            spoke_at: None,
            stats: TransportStats::default(),
        }
    }

    /// Changes the weather for all links, present and future, both ways.
    pub fn set_conditions(&self, conditions: LinkConditions) {
        lock(&self.hub).set_conditions(conditions);
    }
}

impl ServerTransport for LocalServer {
    fn receive(&mut self, now: Duration, events: &mut Vec<LinkEvent>) {
        let mut hub = lock(&self.hub);
        let now = hub.advance(now);
        let mut open_ids: Vec<u64> = hub
            .links
            .values()
            .filter_map(Wire::open_client_id)
            .collect();
        let (timeout, accepting) = (hub.timeout, hub.accepting);

        for (&link, wire) in &mut hub.links {
            while let Some(message) = wire.to_server.pop_due(now) {
                let client_id = match (&message, &wire.server) {
                    (Message::Hello { client_id, .. }, ServerEnd::Unheard) => Some(*client_id),
                    _ => None,
                };
                if let Some(client_id) = client_id {
                    if !accepting || open_ids.contains(&client_id) {
                        self.stats.rejected.handshake += 1;
                        wire.tell_client(now, Message::Denied);
                        continue;
                    }
                    open_ids.push(client_id);
                }
                let event = wire.hear(now, link, message);
                if let Some(LinkEvent::Datagram { bytes, .. }) = &event {
                    self.stats.datagrams_in += 1;
                    self.stats.bytes_in += bytes.len() as u64;
                }
                events.extend(event);
            }
            if let ServerEnd::Open { heard_at, .. } = wire.server
                && now - heard_at > timeout
            {
                wire.server = ServerEnd::Closed;
                wire.tell_client(now, Message::Farewell(Parting::TimedOut));
                events.push(LinkEvent::Closed {
                    link,
                    reason: CloseReason::TimedOut,
                });
            }
        }
        events.extend(self.closed.drain(..).map(|link| LinkEvent::Closed {
            link,
            reason: CloseReason::ByUs,
        }));
        hub.forget_finished();
    }

    fn send(&mut self, now: Duration, link: LinkId, datagram: &[u8]) {
        let mut hub = lock(&self.hub);
        let now = hub.advance(now);
        match hub.links.get_mut(&link) {
            Some(wire)
                if matches!(wire.server, ServerEnd::Open { .. })
                    && datagram.len() <= MAX_PAYLOAD_BYTES =>
            {
                wire.tell_client(now, Message::Datagram(datagram.to_vec()));
                self.stats.datagrams_out += 1;
                self.stats.bytes_out += datagram.len() as u64;
            }
            _ => self.stats.rejected.unsendable += 1,
        }
    }

    fn flush(&mut self, now: Duration) {
        let mut hub = lock(&self.hub);
        let now = hub.advance(now);
        for wire in hub.links.values_mut() {
            if let ServerEnd::Open { spoke_at, .. } = wire.server
                && now - spoke_at >= HEARTBEAT
            {
                wire.tell_client(now, Message::Heartbeat);
            }
        }
    }

    fn close(&mut self, link: LinkId) {
        let mut hub = lock(&self.hub);
        let now = hub.clock;
        let Some(wire) = hub.links.get_mut(&link) else {
            return;
        };
        if matches!(wire.server, ServerEnd::Open { .. }) {
            wire.server = ServerEnd::Closed;
            (0..FAREWELLS).for_each(|_| wire.tell_client(now, Message::Farewell(Parting::Left)));
            self.closed.push(link);
        }
    }

    fn kind(&self) -> TransportKind {
        TransportKind::Local
    }

    fn stop_accepting(&mut self) {
        lock(&self.hub).accepting = false;
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }

    fn shutdown(&mut self) {
        let links: Vec<LinkId> = {
            let mut hub = lock(&self.hub);
            hub.accepting = false;
            hub.links.keys().copied().collect()
        };
        links.into_iter().for_each(|link| self.close(link));
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl LocalClient {
    /// The id this client shows the server.
    pub fn client_id(&self) -> u64 {
        self.client_id
    }

    /// The server's name for this link.
    pub fn link(&self) -> LinkId {
        self.link
    }

    /// Changes the weather for this link, both ways.
    pub fn set_conditions(&self, conditions: LinkConditions) {
        if let Some(wire) = lock(&self.hub).links.get_mut(&self.link) {
            wire.set_conditions(&conditions);
        }
    }

    fn leave(&mut self, reason: CloseReason, farewells: usize) {
        if self.state.close_reason().is_some() {
            return;
        }
        let parting = match reason {
            CloseReason::TimedOut => Parting::TimedOut,
            _ => Parting::Left,
        };
        self.state = ClientLinkState::Closed(reason);
        let mut hub = lock(&self.hub);
        let now = hub.clock;
        if let Some(wire) = hub.links.get_mut(&self.link) {
            (0..farewells).for_each(|_| wire.tell_server(now, Message::Farewell(parting)));
            wire.client_gone = true;
        }
        hub.forget_finished();
    }

    /// Asks again, or gives a sign of life, if it is time.
    fn keep_alive(&mut self, now: Duration) {
        if self
            .spoke_at
            .is_some_and(|spoke_at| now - spoke_at < HEARTBEAT)
        {
            return;
        }
        let message = match self.state {
            ClientLinkState::Connecting => Message::Hello {
                client_id: self.client_id,
                user_data: self.user_data.clone(),
            },
            ClientLinkState::Connected => Message::Heartbeat,
            ClientLinkState::Closed(_) => return,
        };
        self.spoke_at = Some(now);
        if let Some(wire) = lock(&self.hub).links.get_mut(&self.link) {
            wire.tell_server(now, message);
        }
    }
}

impl ClientTransport for LocalClient {
    fn state(&self) -> &ClientLinkState {
        &self.state
    }

    fn receive(&mut self, now: Duration, datagrams: &mut Vec<Vec<u8>>) {
        let hub = self.hub.clone();
        let mut hub = lock(&hub);
        let now = hub.advance(now);
        let timeout = hub.timeout;
        let mut reason = None;
        if self.state.close_reason().is_none()
            && let Some(wire) = hub.links.get_mut(&self.link)
        {
            while let Some(message) = wire.to_client.pop_due(now) {
                self.heard_at = now;
                match message {
                    Message::Welcome => self.state = ClientLinkState::Connected,
                    Message::Denied if !self.state.is_connected() => {
                        reason = Some(CloseReason::Denied);
                    }
                    Message::Farewell(parting) => reason = Some(parting.as_heard()),
                    Message::Datagram(bytes) => {
                        // It can overtake the welcome.
                        self.state = ClientLinkState::Connected;
                        self.stats.datagrams_in += 1;
                        self.stats.bytes_in += bytes.len() as u64;
                        datagrams.push(bytes);
                    }
                    Message::Hello { .. } | Message::Heartbeat | Message::Denied => {}
                }
                if reason.is_some() {
                    break;
                }
            }
        }
        drop(hub);

        if reason.is_none() && now - self.heard_at > timeout {
            reason = Some(match self.state {
                ClientLinkState::Connecting => CloseReason::ConnectTimedOut,
                _ => CloseReason::TimedOut,
            });
        }
        match reason {
            Some(reason) => self.leave(reason, 1),
            None => self.keep_alive(now),
        }
    }

    fn send(&mut self, now: Duration, datagram: &[u8]) {
        if !self.state.is_connected() || datagram.len() > MAX_PAYLOAD_BYTES {
            self.stats.rejected.unsendable += 1;
            return;
        }
        let mut hub = lock(&self.hub);
        let now = hub.advance(now);
        if let Some(wire) = hub.links.get_mut(&self.link) {
            wire.tell_server(now, Message::Datagram(datagram.to_vec()));
            self.spoke_at = Some(now);
            self.stats.datagrams_out += 1;
            self.stats.bytes_out += datagram.len() as u64;
        }
    }

    fn flush(&mut self, now: Duration) {
        let now = lock(&self.hub).advance(now);
        self.keep_alive(now);
    }

    fn kind(&self) -> TransportKind {
        TransportKind::Local
    }

    fn vanish(&mut self) {
        self.leave(CloseReason::ByUs, 0);
    }

    fn close(&mut self) {
        self.leave(CloseReason::ByUs, FAREWELLS);
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

impl Drop for LocalClient {
    fn drop(&mut self) {
        self.close();
    }
}

impl Hub {
    fn advance(&mut self, now: Duration) -> Duration {
        self.clock = self.clock.max(now);
        self.clock
    }

    fn set_conditions(&mut self, conditions: LinkConditions) {
        self.links
            .values_mut()
            .for_each(|wire| wire.set_conditions(&conditions));
        self.conditions = conditions;
    }

    /// Drops links that nobody will look at again.
    fn forget_finished(&mut self) {
        self.links.retain(|_, wire| {
            let server_done = match wire.server {
                ServerEnd::Closed => true,
                // A client that left before its request arrived.
                ServerEnd::Unheard => wire.to_server.is_empty(),
                ServerEnd::Open { .. } => false,
            };
            !(wire.client_gone && server_done)
        });
    }
}

impl Wire {
    fn tell_server(&mut self, now: Duration, message: Message) {
        self.to_server.push(now, message.wire_bytes(), message);
    }

    fn tell_client(&mut self, now: Duration, message: Message) {
        if let ServerEnd::Open { spoke_at, .. } = &mut self.server {
            *spoke_at = now;
        }
        // Nobody would take it out again.
        if !self.client_gone {
            self.to_client.push(now, message.wire_bytes(), message);
        }
    }

    /// The server hears something. One that says hello may come in.
    fn hear(&mut self, now: Duration, link: LinkId, message: Message) -> Option<LinkEvent> {
        match (message, &mut self.server) {
            (
                Message::Hello {
                    client_id,
                    user_data,
                },
                ServerEnd::Unheard,
            ) => {
                self.server = ServerEnd::Open {
                    client_id,
                    heard_at: now,
                    spoke_at: now,
                };
                self.tell_client(now, Message::Welcome);
                let peer = PeerInfo {
                    addr: None,
                    client_id,
                    user_data,
                    secure: false,
                    token: None,
                    kind: TransportKind::Local,
                    delivery: Delivery::Datagrams,
                };
                return Some(LinkEvent::Opened { link, peer });
            }
            // The welcome was lost, or is still on its way.
            (Message::Hello { .. }, ServerEnd::Open { heard_at, .. }) => {
                *heard_at = now;
                self.tell_client(now, Message::Welcome);
            }
            (Message::Datagram(bytes), ServerEnd::Open { heard_at, .. }) => {
                *heard_at = now;
                let at = now;
                return Some(LinkEvent::Datagram { link, at, bytes });
            }
            (Message::Farewell(parting), ServerEnd::Open { .. }) => {
                self.server = ServerEnd::Closed;
                let reason = parting.as_heard();
                return Some(LinkEvent::Closed { link, reason });
            }
            (_, ServerEnd::Open { heard_at, .. }) => *heard_at = now,
            _ => {}
        }
        None
    }

    fn set_conditions(&mut self, conditions: &LinkConditions) {
        self.to_server.set_conditions(conditions.clone());
        self.to_client.set_conditions(conditions.clone());
    }

    fn open_client_id(&self) -> Option<u64> {
        match self.server {
            ServerEnd::Open { client_id, .. } => Some(client_id),
            _ => None,
        }
    }
}

/// A panic of another holder leaves the queues usable: each is changed by single calls.
fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A server and a client, stepped together at 100 Hz.
    struct Pair {
        now: Duration,
        server: LocalServer,
        client: LocalClient,
        events: Vec<LinkEvent>,
        datagrams: Vec<Vec<u8>>,
    }

    impl Pair {
        fn new(conditions: LinkConditions) -> Self {
            let mut server = LocalServer::new();
            server.set_conditions(conditions);
            let client = server.connector().connect();
            Self {
                now: Duration::ZERO,
                server,
                client,
                events: Vec::new(),
                datagrams: Vec::new(),
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now += ms(10);
                self.server.receive(self.now, &mut self.events);
                self.client.receive(self.now, &mut self.datagrams);
                self.client.flush(self.now);
                self.server.flush(self.now);
            }
        }

        fn closed(&self) -> Option<&CloseReason> {
            self.events.iter().find_map(|event| match event {
                LinkEvent::Closed { reason, .. } => Some(reason),
                _ => None,
            })
        }
    }

    #[test]
    fn a_link_opens_carries_and_closes() {
        let mut net = Pair::new(LinkConditions::default());
        net.run(ms(30));
        let link = net.client.link();
        assert!(
            net.client.state().is_connected(),
            "opens within a few frames"
        );
        assert!(
            matches!(net.events[..], [LinkEvent::Opened { .. }]),
            "opens once"
        );

        net.client.send(net.now, b"up");
        net.server.send(net.now, link, b"down");
        net.run(ms(20));
        assert_eq!(net.datagrams, [b"down"], "server to client");
        assert!(
            matches!(&net.events[1], LinkEvent::Datagram { bytes, .. } if bytes == b"up"),
            "client to server"
        );

        net.client.close();
        net.run(ms(20));
        assert_eq!(
            net.closed(),
            Some(&CloseReason::ByPeer),
            "the server hears of it"
        );
        assert_eq!(
            net.client.state().close_reason(),
            Some(&CloseReason::ByUs),
            "and so does the client"
        );
        assert!(lock(&net.server.hub).links.is_empty(), "nothing remains");
    }

    #[test]
    fn what_was_sent_before_a_close_arrives_before_it() {
        let mut net = Pair::new(LinkConditions {
            latency: ms(50),
            ..Default::default()
        });
        net.run(ms(300));
        net.server
            .send(net.now, net.client.link(), b"you are banned");
        net.server.close(net.client.link());
        net.run(ms(100));
        assert_eq!(net.datagrams, [b"you are banned"], "the last word arrives");
        assert_eq!(
            net.client.state().close_reason(),
            Some(&CloseReason::ByPeer),
            "and then the link closes"
        );
        assert_eq!(
            net.closed(),
            Some(&CloseReason::ByUs),
            "the server's own event says who did it"
        );
    }

    #[test]
    fn a_link_opens_over_an_awful_network() {
        for seed in 0..20 {
            let mut net = Pair::new(LinkConditions::awful().with_seed(seed));
            net.run(ms(4_000));
            assert!(
                net.client.state().is_connected(),
                "asks until it is answered (seed {seed})"
            );
        }
    }

    #[test]
    fn an_idle_link_stays_open_and_a_blackhole_ends_it_on_both_sides() {
        let mut net = Pair::new(LinkConditions::wifi());
        net.run(ms(20_000));
        assert!(net.client.state().is_connected(), "heartbeats keep it open");
        net.client.set_conditions(LinkConditions::blackhole());
        net.run(ms(4_500));
        assert!(
            net.client.state().is_connected() && net.closed().is_none(),
            "not before the timeout"
        );
        net.run(ms(1_000));
        assert_eq!(
            net.client.state().close_reason(),
            Some(&CloseReason::TimedOut),
            "client notices"
        );
        assert_eq!(net.closed(), Some(&CloseReason::TimedOut), "server notices");
    }

    #[test]
    fn a_vanished_client_times_out() {
        let mut net = Pair::new(LinkConditions::default());
        net.run(ms(100));
        let other = net.server.connector().connect();
        std::mem::replace(&mut net.client, other).vanish();
        net.run(ms(4_900));
        assert_eq!(net.closed(), None, "the server cannot know yet");
        net.run(ms(300));
        assert_eq!(net.closed(), Some(&CloseReason::TimedOut), "silence tells");
    }

    #[test]
    fn the_same_client_is_not_connected_twice() {
        let mut net = Pair::new(LinkConditions::default());
        net.run(ms(100));
        let mut twin = net.server.connector().connect_as(net.client.client_id());
        twin.flush(net.now);
        net.run(ms(10));
        twin.receive(net.now, &mut Vec::new());
        assert_eq!(
            twin.state().close_reason(),
            Some(&CloseReason::Denied),
            "the second is refused"
        );
        assert!(net.client.state().is_connected(), "the first stays");
    }

    #[test]
    fn a_shut_down_server_tells_its_clients_and_takes_no_more() {
        let mut net = Pair::new(LinkConditions::default());
        net.run(ms(100));
        net.server.shutdown();
        let mut late = net.server.connector().connect();
        late.flush(net.now);
        net.run(ms(50));
        late.receive(net.now, &mut Vec::new());
        assert_eq!(
            net.client.state().close_reason(),
            Some(&CloseReason::ByPeer),
            "told"
        );
        assert_eq!(
            late.state().close_reason(),
            Some(&CloseReason::Denied),
            "refused"
        );
    }
}
