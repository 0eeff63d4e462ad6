//! Many small `NetcodeServer`s behind one address. No sockets, threads or clocks here.
//!
//! A `NetcodeServer` walks through its clients at each datagram, so each shard has few. Maps from
//! address and from link lead to the right one. What one shard cannot know of another is checked
//! here: that a client is connected once, that a token is used from one address, and how many
//! clients there are in all.
//!
//! `renetcode` keeps an unfinished handshake until its token expires, and lets nobody remove it.
//! Without keys an attacker chooses when that is. But a server that is full drops the handshake of
//! an address that asks again. So each request is kept for as long as it is pending; shown to its
//! shard once more, while that believes to be full, it removes the handshake, and makes the packet
//! that tells the client it was denied.
//!
//! A link opens, for the app, when something has come that only its client can have sent. Before, the client may not
//! know that it is in, and would throw away whatever it is sent: see `standard.rs`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use renetcode::{NetcodeServer, ServerAuthentication, ServerConfig, ServerResult};

use super::standard::LinkKeys;
use super::{FAREWELLS, MAX_TIME_STEP};
use crate::protocol::limits::Prefix;
use crate::transport::filter::netcode::{
    self, ConnectionRequest, KEEP_ALIVE, PAYLOAD, REQUEST_BYTES, RESPONSE, Sender,
};
use crate::transport::{
    CloseReason, Delivery, LinkEvent, LinkId, LinkIds, PeerInfo, TokenUse, TransportKind,
    TransportStats,
};

/// Few enough that walking through them costs less than decrypting a datagram does.
const SHARD_CLIENTS: usize = 64;

/// Handshakes under way are bounded by the number of sessions, since all may come at once, and by
/// this, since each takes 4 kB. When there are more, the oldest goes: an attacker then needs
/// thousands of requests in a round trip to disturb others, and not just this many.
const MAX_PENDING: std::ops::RangeInclusive<usize> = 1_024..=16_384;

/// And of one address, where it is not of this machine: what one address begins must not push out what others have.
/// Everybody at a school can still join within a second.
const MAX_PENDING_PER_ADDRESS: usize = 64;

/// How long a handshake may take: many round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes tried again at each sweep that could not be removed. Each try costs some 10 µs.
const STUCK_RETRIES: usize = 16;

/// Requests to connect per second, from everyone together. Each costs some 10 µs.
const HANDSHAKES_PER_S: f32 = 5_000.0;

/// Datagrams per second of one handshake. A client sends four.
const PENDING_DATAGRAMS_PER_S: f32 = 20.0;

/// Tokens remembered, in order to refuse them from elsewhere. 5 MB if ever needed.
const MAX_TOKENS: usize = 65_536;

/// Without keys, clients make their own tokens. `renetcode`'s last 5 minutes.
const MAX_INSECURE_TOKEN_S: u64 = 3_600;

/// `renetcode` sends a keep-alive when it has sent nothing for this long.
const KEEP_ALIVE_AFTER: Duration = Duration::from_millis(250);

/// What the shards need to know.
pub(super) struct ShardsConfig {
    pub(super) transport_index: u8,
    pub(super) protocol_id: u64,
    /// `None` lets everyone in.
    pub(super) private_key: Option<[u8; 32]>,
    pub(super) public_addresses: Vec<SocketAddr>,
    pub(super) max_sessions: usize,
    pub(super) client_timeout: Duration,
    pub(super) max_datagrams_per_s: f32,
    /// Time since 1970 when `now` was zero.
    pub(super) unix_time_at_start: Duration,
}

/// What comes out of handling something.
#[derive(Default)]
pub(super) struct Output {
    /// How many more events the app's queue takes. Links that close are reported regardless.
    pub(super) room: usize,
    pub(super) events: Vec<LinkEvent>,
    pub(super) packets: Packets,
}

/// Packets to send, one after the other in memory.
#[derive(Default)]
pub(super) struct Packets {
    bytes: Vec<u8>,
    ends: Vec<(SocketAddr, usize)>,
}

/// All clients of a server.
pub(super) struct Shards {
    config: ShardsConfig,
    /// The latest time told. Threads look at the clock before they wait for each other, so the
    /// time they tell can be earlier than that of a call before.
    now: Duration,
    swept_at: Duration,
    shards: Vec<Shard>,
    links: HashMap<LinkId, Link>,
    pending: HashMap<SocketAddr, Pending>,
    /// Addresses of `pending` by age. May name some that are gone.
    pending_by_age: VecDeque<(Duration, SocketAddr)>,
    /// Those of each address, oldest first. Loopback is not counted.
    pending_of: HashMap<Prefix, VecDeque<(Duration, SocketAddr)>>,
    /// Handshakes that are over but that their shard would not let go of yet.
    stuck: VecDeque<(SocketAddr, Pending)>,
    link_of_addr: HashMap<SocketAddr, LinkId>,
    link_of_client: HashMap<u64, LinkId>,
    tokens: Tokens,
    link_ids: LinkIds,
    handshake_budget: Budget,
    /// No new links.
    closing: bool,
    pub(super) stats: TransportStats,
}

struct Shard {
    server: NetcodeServer,
    linked: usize,
    /// Handshakes that the server holds, or may hold.
    pending: usize,
}

struct Link {
    shard: usize,
    client_id: u64,
    addr: SocketAddr,
    budget: Budget,
    /// Of datagrams; keep-alives only `renetcode` knows.
    heard_at: Duration,
    sent_at: Duration,
    /// The number of the next packet to the client.
    next_sequence: u64,
    /// Numbers under which the client was sent challenges, with the same key: `renetcode` numbers these for all clients
    /// together, and from the same start.
    spent: Vec<u64>,
    /// Until something was heard from the client.
    unconfirmed: Option<Box<Unconfirmed>>,
}

/// A link that its client may not know of yet. Nor does the app.
struct Unconfirmed {
    peer: PeerInfo,
    keys: LinkKeys,
    /// What keep-alives tell the client: its slot, and how many there are.
    indices: [u8; 8],
}

struct Pending {
    shard: usize,
    since: Duration,
    budget: Budget,
    request: Box<[u8; REQUEST_BYTES]>,
    expire_timestamp: u64,
    token_tag: [u8; 16],
    /// Numbers of the challenges sent.
    spent: Vec<u64>,
    /// It has answered the challenge and was denied. It goes on answering until it has heard that.
    denial: Option<Vec<u8>>,
}

impl Shards {
    pub(super) fn new(config: ShardsConfig) -> Self {
        Self {
            link_ids: LinkIds::new(config.transport_index),
            config,
            now: Duration::ZERO,
            swept_at: Duration::ZERO,
            shards: Vec::new(),
            links: HashMap::new(),
            pending: HashMap::new(),
            pending_by_age: VecDeque::new(),
            pending_of: HashMap::new(),
            stuck: VecDeque::new(),
            link_of_addr: HashMap::new(),
            link_of_client: HashMap::new(),
            tokens: Tokens::default(),
            handshake_budget: Budget::full(HANDSHAKES_PER_S),
            closing: false,
            stats: TransportStats::default(),
        }
    }

    /// Refuses everybody who asks for a link from now on.
    pub(super) fn stop_accepting(&mut self) {
        self.closing = true;
    }

    /// Takes a datagram from the network.
    pub(super) fn handle_datagram(
        &mut self,
        now: Duration,
        addr: SocketAddr,
        datagram: &mut [u8],
        out: &mut Output,
    ) {
        self.now = self.now.max(now);
        self.stats.datagrams_in += 1;
        self.stats.bytes_in += datagram.len() as u64;
        if let Some(&link) = self.link_of_addr.get(&addr) {
            self.handle_linked(now, link, addr, datagram, out);
        } else if self.pending.contains_key(&addr) {
            self.handle_pending(addr, datagram, out);
        } else {
            self.handle_stranger(addr, datagram, out);
        }
    }

    /// Sends keep-alives and ends what has been silent for too long. About every 100 ms.
    pub(super) fn handle_timeouts(&mut self, now: Duration, out: &mut Output) {
        self.now = self.now.max(now);
        let now = self.now;
        let step = (now - self.swept_at).min(MAX_TIME_STEP);
        self.swept_at = now;
        for shard in &mut self.shards {
            shard.server.update(step);
        }

        while let Some(&(since, addr)) = self.pending_by_age.front()
            && now - since > HANDSHAKE_TIMEOUT
        {
            self.pending_by_age.pop_front();
            self.abandon_pending(since, addr);
        }
        for _ in 0..self.stuck.len().min(STUCK_RETRIES) {
            if let Some((addr, pending)) = self.stuck.pop_front() {
                self.release(addr, pending);
            }
        }

        let mut silent = Vec::new();
        for (&id, link) in &mut self.links {
            let server = &mut self.shards[link.shard].server;
            let unheard = now - link.heard_at;
            let is_unconfirmed = link.unconfirmed.is_some();
            if unheard > self.config.client_timeout
                && server.time_since_last_received_packet(link.client_id)
                    > Some(self.config.client_timeout)
            {
                silent.push(id);
            } else if is_unconfirmed {
                if let Some(keep_alive) = link.keep_alive(server) {
                    out.packets.push(link.addr, &keep_alive, &mut self.stats);
                }
            } else if now - link.sent_at >= KEEP_ALIVE_AFTER || unheard >= MAX_TIME_STEP {
                link.skip_spent(server);
                match server.update_client(link.client_id) {
                    ServerResult::PacketToSend { addr, payload } => {
                        link.sent_at = now;
                        link.next_sequence += 1;
                        out.packets.push(addr, payload, &mut self.stats);
                    }
                    // The token may have had a shorter timeout in it.
                    ServerResult::ClientDisconnected { .. } => silent.push(id),
                    _ => {}
                }
            }
        }
        for link in silent {
            self.close(link, CloseReason::TimedOut, out);
        }
    }

    /// Encrypts a datagram for a link.
    pub(super) fn send(&mut self, now: Duration, link: LinkId, datagram: &[u8], out: &mut Output) {
        self.now = self.now.max(now);
        let Some(link) = self.links.get_mut(&link) else {
            self.stats.rejected.unsendable += 1;
            return;
        };
        let server = &mut self.shards[link.shard].server;
        link.skip_spent(server);
        match server.generate_payload_packet(link.client_id, datagram) {
            Ok((addr, packet)) => {
                link.sent_at = self.now;
                link.next_sequence += 1;
                out.packets.push(addr, packet, &mut self.stats);
            }
            Err(_) => self.stats.rejected.unsendable += 1,
        }
    }

    /// Ends a link and tells the peer.
    pub(super) fn close(&mut self, link: LinkId, reason: CloseReason, out: &mut Output) {
        let Some(mut closed) = self.forget(link) else {
            return;
        };
        let server = &mut self.shards[closed.shard].server;
        // Without it, a client that does not know that it is in would not listen.
        let keep_alive = closed.keep_alive(server);
        closed.skip_spent(server);
        if let ServerResult::ClientDisconnected {
            payload: Some(packet),
            ..
        } = server.disconnect(closed.client_id)
        {
            // Who is silent probably does not listen either, and may be one of thousands.
            let farewells = if reason == CloseReason::TimedOut {
                1
            } else {
                FAREWELLS
            };
            for _ in 0..farewells {
                if let Some(keep_alive) = &keep_alive {
                    out.packets.push(closed.addr, keep_alive, &mut self.stats);
                }
                out.packets.push(closed.addr, packet, &mut self.stats);
            }
        }
        if closed.unconfirmed.is_none() {
            out.events.push(LinkEvent::Closed { link, reason });
        }
    }

    /// Ends all links and takes no more.
    pub(super) fn close_all(&mut self, out: &mut Output) {
        self.closing = true;
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.close(link, CloseReason::ByUs, out);
        }
    }

    fn handle_linked(
        &mut self,
        now: Duration,
        id: LinkId,
        addr: SocketAddr,
        datagram: &mut [u8],
        out: &mut Output,
    ) {
        if !netcode::from_client(datagram, Sender::Connected) {
            self.stats.rejected.malformed += 1;
            return;
        }
        let link = self
            .links
            .get_mut(&id)
            .expect("link_of_addr names links only");
        if !link.budget.take(self.now, self.config.max_datagrams_per_s) {
            self.stats.rejected.over_budget += 1;
            return;
        }
        let kind = datagram[0] & 0xf;
        if link.unconfirmed.is_some() && !link.confirm(id, kind, datagram, out) {
            let server = &mut self.shards[link.shard].server;
            if kind == RESPONSE
                && let Some(keep_alive) = link.keep_alive(server)
            {
                // It repeats its answer, so it has not had the keep-alive.
                out.packets.push(addr, &keep_alive, &mut self.stats);
                return;
            }
            if out.room == 0 && matches!(kind, KEEP_ALIVE | PAYLOAD) {
                // Taken now, it could not open the link.
                self.stats.rejected.inbox_full += 1;
                return;
            }
        }
        self.take_in(now, id, addr, datagram, out);
    }

    /// Takes a packet from a client, as far as it is genuine.
    fn take_in(
        &mut self,
        now: Duration,
        id: LinkId,
        addr: SocketAddr,
        datagram: &mut [u8],
        out: &mut Output,
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let kind = datagram[0] & 0xf;
        match self.shards[link.shard]
            .server
            .process_packet(addr, datagram)
        {
            ServerResult::Payload { payload, .. } => {
                link.heard_at = self.now;
                if out.room == 0 {
                    self.stats.rejected.inbox_full += 1;
                    return;
                }
                out.room -= 1;
                out.events.push(LinkEvent::Datagram {
                    link: id,
                    at: now,
                    bytes: payload.to_vec(),
                });
            }
            ServerResult::ClientDisconnected { .. } => {
                let closed = self.forget(id);
                if closed.is_some_and(|it| it.unconfirmed.is_none()) {
                    out.events.push(LinkEvent::Closed {
                        link: id,
                        reason: CloseReason::ByPeer,
                    });
                }
            }
            ServerResult::None if kind == PAYLOAD => self.stats.rejected.unauthentic += 1,
            _ => {}
        }
    }

    fn handle_pending(&mut self, addr: SocketAddr, datagram: &mut [u8], out: &mut Output) {
        if !netcode::from_client(datagram, Sender::Pending) {
            self.stats.rejected.malformed += 1;
            return;
        }
        let Some(pending) = self.pending.get_mut(&addr) else {
            return;
        };
        if !pending.budget.take(self.now, PENDING_DATAGRAMS_PER_S) {
            self.stats.rejected.over_budget += 1;
            return;
        }
        if ConnectionRequest::parse(datagram)
            .is_some_and(|request| request.token_tag != pending.token_tag)
        {
            // Noise on the wire, or a stranger who pretends to be there, must not end a good handshake.
            if self.keys_of(datagram).is_none() {
                self.stats.rejected.handshake += 1;
                return;
            }
            // Another client at this address: `renetcode` would go on with the keys of the first token.
            let since = self.pending[&addr].since;
            self.abandon_pending(since, addr);
            self.handle_stranger(addr, datagram, out);
            return;
        }
        if let Some(denial) = &pending.denial {
            out.packets.push(addr, denial, &mut self.stats);
            return;
        }
        let shard = pending.shard;
        match self.shards[shard].server.process_packet(addr, datagram) {
            ServerResult::PacketToSend { payload, .. } => {
                pending.spent.extend(sequence_of(payload));
                out.packets.push(addr, payload, &mut self.stats);
            }
            ServerResult::ClientConnected {
                client_id,
                user_data,
                payload,
                ..
            } => {
                let keep_alive = payload.to_vec();
                self.handle_connected(addr, client_id, user_data, &keep_alive, out);
            }
            _ => self.stats.rejected.handshake += 1,
        }
    }

    /// The keys in a request, if it was made with this server's key.
    fn keys_of(&self, request: &[u8]) -> Option<LinkKeys> {
        let key = self.config.private_key.unwrap_or([0; 32]);
        LinkKeys::of_request(&key, request.try_into().ok()?)
    }

    fn handle_stranger(&mut self, addr: SocketAddr, datagram: &mut [u8], out: &mut Output) {
        // Whatever can be judged without decryption comes first.
        let Some(request) = ConnectionRequest::parse(datagram) else {
            self.stats.rejected.unknown += 1;
            return;
        };
        let unix_time = (self.config.unix_time_at_start + self.now).as_secs();
        let longest = match self.config.private_key {
            Some(_) => u64::MAX,
            None => unix_time + MAX_INSECURE_TOKEN_S,
        };
        if self.closing
            || request.protocol_id != self.config.protocol_id
            || request.expire_timestamp <= unix_time
            || request.expire_timestamp > longest
            || !self.tokens.admits(&request.token_tag, addr)
            || !self.handshake_budget.take(self.now, HANDSHAKES_PER_S)
        {
            self.stats.rejected.handshake += 1;
            return;
        }

        let Some(shard) = self.shard_with_room() else {
            self.stats.rejected.handshake += 1;
            if let Some(shard) = self.shards.first_mut()
                && let Some(denial) = shard.deny(addr, datagram)
            {
                out.packets.push(addr, &denial, &mut self.stats);
            }
            return;
        };
        let ServerResult::PacketToSend { payload, .. } =
            self.shards[shard].server.process_packet(addr, datagram)
        else {
            self.stats.rejected.handshake += 1;
            return;
        };
        let spent = sequence_of(payload).into_iter().collect();
        out.packets.push(addr, payload, &mut self.stats);
        self.shards[shard].pending += 1;
        self.tokens.insert(request.token_tag, addr);

        if self.pending.len() >= self.max_pending() {
            self.abandon_oldest_pending();
        }
        let mut copy = Box::new([0; REQUEST_BYTES]);
        copy.copy_from_slice(datagram);
        let pending = Pending {
            shard,
            since: self.now,
            budget: Budget::full(PENDING_DATAGRAMS_PER_S),
            request: copy,
            expire_timestamp: request.expire_timestamp,
            token_tag: request.token_tag,
            spent,
            denial: None,
        };
        self.pending_by_age.push_back((self.now, addr));
        self.insert_pending(addr, pending);
    }

    fn insert_pending(&mut self, addr: SocketAddr, pending: Pending) {
        let since = pending.since;
        self.pending.insert(addr, pending);
        if !is_loopback(addr) {
            let same = self.pending_of.entry(addr.ip().into()).or_default();
            same.push_back((since, addr));
            if same.len() > MAX_PENDING_PER_ADDRESS
                && let Some(&(since, oldest)) = same.front()
            {
                self.abandon_pending(since, oldest);
            }
        }
    }

    fn handle_connected(
        &mut self,
        addr: SocketAddr,
        client_id: u64,
        user_data: Box<[u8; 256]>,
        keep_alive: &[u8],
        out: &mut Output,
    ) {
        let Some(mut pending) = self.take_pending(addr) else {
            return;
        };
        let shard = &mut self.shards[pending.shard];
        shard.pending -= 1;
        let twin = self.link_of_client.get(&client_id).copied();
        if let Some(twin) = twin
            && self
                .links
                .get(&twin)
                .is_some_and(|link| link.shard == pending.shard)
        {
            // One shard has the same client twice: `renetcode` compares the id of the challenge,
            // and a client can answer that of another token. They cannot be told apart any more.
            shard.server.disconnect(client_id);
            self.close(
                twin,
                CloseReason::Transport("the same client connected twice".into()),
                out,
            );
            self.stats.rejected.handshake += 1;
            return;
        }
        if twin.is_some() || self.links.len() >= self.config.max_sessions || self.closing {
            self.stats.rejected.handshake += 1;
            shard.server.disconnect(client_id);
            if let Some(denial) = shard.deny(addr, &mut pending.request[..]) {
                out.packets.push(addr, &denial, &mut self.stats);
                pending.denial = Some(denial);
                self.insert_pending(addr, pending);
            }
            return;
        }
        self.add_link(addr, client_id, user_data, keep_alive, pending, out);
    }

    /// A client has answered the challenge and may come in. It may not know that yet.
    fn add_link(
        &mut self,
        addr: SocketAddr,
        client_id: u64,
        user_data: Box<[u8; 256]>,
        keep_alive: &[u8],
        pending: Pending,
        out: &mut Output,
    ) {
        let Some(keys) = self.keys_of(&pending.request[..]) else {
            // `renetcode` has just read them.
            self.shards[pending.shard].server.disconnect(client_id);
            return;
        };
        let indices = keys
            .open(&keys.server_to_client, keep_alive)
            .and_then(|indices| indices.try_into().ok())
            .unwrap_or_default();
        let shard = &mut self.shards[pending.shard];
        shard.linked += 1;
        self.tokens.use_up(&pending.token_tag);
        let id = self.link_ids.allocate();
        let secure = self.config.private_key.is_some();
        let peer = PeerInfo {
            addr: Some(addr),
            client_id,
            user_data: Some(user_data),
            secure,
            token: secure.then_some(TokenUse {
                tag: pending.token_tag,
                expires: pending.expire_timestamp,
            }),
            kind: TransportKind::Udp,
            delivery: Delivery::Datagrams,
        };
        let mut link = Link {
            shard: pending.shard,
            client_id,
            addr,
            budget: Budget::full((self.config.max_datagrams_per_s / 2.0).max(1.0)),
            heard_at: self.now,
            sent_at: self.now,
            // The keep-alive that `renetcode` has made is number 0.
            next_sequence: 1,
            spent: pending.spent,
            unconfirmed: Some(Box::new(Unconfirmed {
                peer,
                keys,
                indices,
            })),
        };
        let keep_alive = link.keep_alive(&mut shard.server);
        self.links.insert(id, link);
        self.link_of_addr.insert(addr, id);
        self.link_of_client.insert(client_id, id);
        if let Some(keep_alive) = keep_alive {
            out.packets.push(addr, &keep_alive, &mut self.stats);
        }
    }

    /// Removes a link from the maps.
    fn forget(&mut self, id: LinkId) -> Option<Link> {
        let link = self.links.remove(&id)?;
        self.link_of_addr.remove(&link.addr);
        self.link_of_client.remove(&link.client_id);
        self.shards[link.shard].linked -= 1;
        Some(link)
    }

    fn abandon_oldest_pending(&mut self) {
        while let Some((since, addr)) = self.pending_by_age.pop_front() {
            if self.abandon_pending(since, addr) {
                return;
            }
        }
    }

    /// Whether there was such a handshake.
    fn abandon_pending(&mut self, since: Duration, addr: SocketAddr) -> bool {
        // The address may have connected, or come back, since it was noted.
        if self
            .pending
            .get(&addr)
            .is_none_or(|pending| pending.since != since)
        {
            return false;
        }
        if let Some(pending) = self.take_pending(addr) {
            self.release(addr, pending);
        }
        true
    }

    fn take_pending(&mut self, addr: SocketAddr) -> Option<Pending> {
        if let Entry::Occupied(mut same) = self.pending_of.entry(addr.ip().into()) {
            same.get_mut().retain(|(_, other)| *other != addr);
            if same.get().is_empty() {
                same.remove();
            }
        }
        self.pending.remove(&addr)
    }

    /// Has the shard drop a handshake, or notes that it would not.
    fn release(&mut self, addr: SocketAddr, mut pending: Pending) {
        if pending.denial.is_some() {
            // It did when that was made.
            return;
        }
        let shard = &mut self.shards[pending.shard];
        let expired = shard.server.current_time().as_secs() > pending.expire_timestamp;
        if expired || shard.deny(addr, &mut pending.request[..]).is_some() {
            shard.pending -= 1;
        } else {
            // This client connected from elsewhere meanwhile. Try again when it may be gone.
            self.stuck.push_back((addr, pending));
        }
    }

    fn shard_with_room(&mut self) -> Option<usize> {
        if self.links.len() >= self.config.max_sessions {
            self.add_shard_if_none();
            return None;
        }
        if let Some(index) = self
            .shards
            .iter()
            .position(|shard| shard.linked + shard.pending < SHARD_CLIENTS)
        {
            return Some(index);
        }
        let max_shards = (self.config.max_sessions + self.max_pending()).div_ceil(SHARD_CLIENTS);
        (self.shards.len() < max_shards).then(|| {
            self.add_shard();
            self.shards.len() - 1
        })
    }

    fn max_pending(&self) -> usize {
        self.config
            .max_sessions
            .clamp(*MAX_PENDING.start(), *MAX_PENDING.end())
    }

    /// A server of no sessions still has to say no.
    fn add_shard_if_none(&mut self) {
        if self.shards.is_empty() {
            self.add_shard();
        }
    }

    fn add_shard(&mut self) {
        let authentication = match self.config.private_key {
            Some(private_key) => ServerAuthentication::Secure { private_key },
            None => ServerAuthentication::Unsecure,
        };
        let server = NetcodeServer::new(ServerConfig {
            current_time: self.config.unix_time_at_start + self.now,
            max_clients: SHARD_CLIENTS,
            protocol_id: self.config.protocol_id,
            public_addresses: self.config.public_addresses.clone(),
            authentication,
        });
        self.shards.push(Shard {
            server,
            linked: 0,
            pending: 0,
        });
    }
}

impl Link {
    /// Opens the link, for the app, if a packet shows that the client knows of it.
    fn confirm(&mut self, id: LinkId, kind: u8, packet: &[u8], out: &mut Output) -> bool {
        let is_heard = |it: &mut Box<Unconfirmed>| {
            out.room > 0
                && matches!(kind, KEEP_ALIVE | PAYLOAD)
                && it.keys.is_authentic(&it.keys.client_to_server, packet)
        };
        let Some(confirmed) = self.unconfirmed.take_if(is_heard) else {
            return false;
        };
        out.room -= 1;
        out.events.push(LinkEvent::Opened {
            link: id,
            peer: confirmed.peer,
        });
        true
    }

    /// A keep-alive for a client that may not know yet that it is in. `None` if it does.
    fn keep_alive(&mut self, server: &mut NetcodeServer) -> Option<Vec<u8>> {
        let sequence = self.next_sequence;
        self.unconfirmed.as_ref()?;
        self.use_up_number(server)?;
        if self.spent.contains(&sequence) {
            return self.keep_alive(server);
        }
        let Unconfirmed { keys, indices, .. } = &**self.unconfirmed.as_ref()?;
        Some(keys.keep_alive(&keys.server_to_client, sequence, *indices))
    }

    /// Passes over numbers that were used with this link's key before.
    fn skip_spent(&mut self, server: &mut NetcodeServer) {
        while self.spent.contains(&self.next_sequence) && self.use_up_number(server).is_some() {}
    }

    /// Has `renetcode` make the next packet, which is thrown away.
    fn use_up_number(&mut self, server: &mut NetcodeServer) -> Option<()> {
        let (_, packet) = server.generate_payload_packet(self.client_id, &[0]).ok()?;
        debug_assert_eq!(sequence_of(packet), Some(self.next_sequence));
        self.next_sequence += 1;
        Some(())
    }
}

fn sequence_of(packet: &[u8]) -> Option<u64> {
    netcode::sequence(packet).map(|(sequence, _)| sequence)
}

fn is_loopback(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

impl Shard {
    /// Shows the server a request while it believes to be full, so that it drops the handshake if
    /// it has it. The result tells the client that it was denied.
    fn deny(&mut self, addr: SocketAddr, request: &mut [u8]) -> Option<Vec<u8>> {
        self.server.set_max_clients(0);
        let denial = match self.server.process_packet(addr, request) {
            ServerResult::PacketToSend { payload, .. } => Some(payload.to_vec()),
            _ => None,
        };
        self.server.set_max_clients(SHARD_CLIENTS);
        denial
    }
}

impl Packets {
    fn push(&mut self, addr: SocketAddr, packet: &[u8], stats: &mut TransportStats) {
        self.bytes.extend_from_slice(packet);
        self.ends.push((addr, self.bytes.len()));
        stats.datagrams_out += 1;
        stats.bytes_out += packet.len() as u64;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        starts
            .zip(&self.ends)
            .map(|(start, (addr, end))| (*addr, &self.bytes[start..*end]))
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// So many per second, and so many at once.
struct Budget {
    left: f32,
    at_once: f32,
    filled_at: Duration,
}

impl Budget {
    fn full(at_once: f32) -> Self {
        Self {
            left: at_once,
            at_once,
            filled_at: Duration::ZERO,
        }
    }

    fn take(&mut self, now: Duration, per_second: f32) -> bool {
        let elapsed = now.saturating_sub(self.filled_at);
        self.filled_at = now;
        self.left = (self.left + elapsed.as_secs_f32() * per_second).min(self.at_once);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// Which address each token came from, oldest forgotten first.
#[derive(Default)]
struct Tokens {
    uses: HashMap<[u8; 16], TokenOrigin>,
    order: VecDeque<[u8; 16]>,
}

struct TokenOrigin {
    addr: SocketAddr,
    /// It made a link. Recordings of that session must not make another.
    used_up: bool,
}

impl Tokens {
    fn admits(&self, tag: &[u8; 16], addr: SocketAddr) -> bool {
        self.uses
            .get(tag)
            .is_none_or(|token| token.addr == addr && !token.used_up)
    }

    fn insert(&mut self, tag: [u8; 16], addr: SocketAddr) {
        if self
            .uses
            .insert(
                tag,
                TokenOrigin {
                    addr,
                    used_up: false,
                },
            )
            .is_none()
        {
            self.order.push_back(tag);
        }
        if self.order.len() > MAX_TOKENS
            && let Some(oldest) = self.order.pop_front()
        {
            self.uses.remove(&oldest);
        }
    }

    fn use_up(&mut self, tag: &[u8; 16]) {
        if let Some(token) = self.uses.get_mut(tag) {
            token.used_up = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use renetcode::{ClientAuthentication, ConnectToken, DisconnectReason, NetcodeClient};

    use super::*;

    const PROTOCOL: u64 = 3;
    const UNIX_TIME: Duration = Duration::from_secs(1_000_000);
    const STEP: Duration = Duration::from_millis(100);
    const KEY: [u8; 32] = [9; 32];

    fn server_addr() -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 1], 5000))
    }

    fn addr(n: u32) -> SocketAddr {
        SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 40_000))
    }

    fn config(private_key: Option<[u8; 32]>) -> ShardsConfig {
        ShardsConfig {
            transport_index: 1,
            protocol_id: PROTOCOL,
            private_key,
            public_addresses: vec![server_addr()],
            max_sessions: 1_000,
            client_timeout: Duration::from_secs(5),
            max_datagrams_per_s: 400.0,
            unix_time_at_start: UNIX_TIME,
        }
    }

    fn token(client_id: u64, valid_s: u64, key: &[u8; 32]) -> ConnectToken {
        ConnectToken::generate(
            UNIX_TIME,
            PROTOCOL,
            valid_s,
            client_id,
            -1,
            vec![server_addr()],
            None,
            key,
        )
        .expect("a token")
    }

    /// A server, and clients at addresses of their own, on a network without delay.
    struct Net {
        shards: Shards,
        now: Duration,
        out: Output,
        clients: Vec<(SocketAddr, NetcodeClient)>,
        events: Vec<LinkEvent>,
    }

    impl Net {
        fn new(config: ShardsConfig) -> Self {
            let out = Output {
                room: usize::MAX,
                ..Output::default()
            };
            let shards = Shards::new(config);
            Self {
                shards,
                now: Duration::ZERO,
                out,
                clients: Vec::new(),
                events: Vec::new(),
            }
        }

        fn join(&mut self, at: SocketAddr, connect_token: ConnectToken) -> usize {
            let auth = ClientAuthentication::Secure { connect_token };
            self.clients.push((
                at,
                NetcodeClient::new(Duration::ZERO, auth).expect("a good token"),
            ));
            self.clients.len() - 1
        }

        fn deliver(&mut self, from: SocketAddr, datagram: &[u8]) {
            self.shards
                .handle_datagram(self.now, from, &mut datagram.to_vec(), &mut self.out);
            self.collect();
        }

        /// Delivers what the server has to say.
        fn collect(&mut self) {
            self.events.append(&mut self.out.events);
            for (to, packet) in self.out.packets.iter() {
                for (_, client) in self.clients.iter_mut().filter(|(at, _)| *at == to) {
                    if netcode::from_server(packet) {
                        client.process_packet(&mut packet.to_vec());
                    }
                }
            }
            self.out.packets.clear();
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now += STEP;
                for index in 0..self.clients.len() {
                    let (from, client) = &mut self.clients[index];
                    let (from, packet) = (
                        *from,
                        client.update(STEP).map(|(packet, _)| packet.to_vec()),
                    );
                    if let Some(packet) = packet {
                        self.deliver(from, &packet);
                    }
                }
                self.shards.handle_timeouts(self.now, &mut self.out);
                self.collect();
            }
        }

        fn connected(&self) -> usize {
            self.clients
                .iter()
                .filter(|(_, client)| client.is_connected())
                .count()
        }

        fn reasons(&self) -> Vec<&CloseReason> {
            self.events
                .iter()
                .filter_map(|event| match event {
                    LinkEvent::Closed { reason, .. } => Some(reason),
                    _ => None,
                })
                .collect()
        }

        fn assert_consistent(&self) {
            let shards = &self.shards;
            assert_eq!(
                shards.links.len(),
                shards.link_of_addr.len(),
                "an address for each link"
            );
            assert_eq!(
                shards.links.len(),
                shards.link_of_client.len(),
                "a client for each link"
            );
            for (index, shard) in shards.shards.iter().enumerate() {
                let links = shards
                    .links
                    .values()
                    .filter(|link| link.shard == index)
                    .count();
                assert_eq!(shard.linked, links, "shard {index} counts its links");
                assert_eq!(
                    shard.server.connected_clients(),
                    links,
                    "and renetcode agrees"
                );
                let pending = shards
                    .pending
                    .values()
                    .chain(shards.stuck.iter().map(|(_, pending)| pending));
                let pending = pending
                    .filter(|pending| pending.shard == index && pending.denial.is_none())
                    .count();
                assert_eq!(shard.pending, pending, "and its handshakes");
            }
            let counted = shards.pending_of.values().map(VecDeque::len);
            assert_eq!(
                counted.sum::<usize>(),
                shards.pending.len(),
                "an address for each handshake"
            );
        }
    }

    /// The request of a client that has not sent anything yet.
    fn request(token: &ConnectToken) -> Vec<u8> {
        // A client does not use a token that it knows to be too old.
        let connect_token = ConnectToken {
            create_timestamp: 0,
            ..token.clone()
        };
        let auth = ClientAuthentication::Secure { connect_token };
        let mut client = NetcodeClient::new(Duration::ZERO, auth).expect("a good token");
        client.update(STEP).expect("a request").0.to_vec()
    }

    #[test]
    fn two_hundred_clients_share_four_shards() {
        let mut net = Net::new(config(Some(KEY)));
        for n in 0..200 {
            net.join(addr(n), token(u64::from(n), 60, &KEY));
        }
        net.run(STEP * 10);
        assert_eq!(net.connected(), 200, "all connect");
        assert_eq!(net.shards.shards.len(), 4, "64 to a shard");
        net.assert_consistent();

        for index in 0..200 {
            let (from, client) = &mut net.clients[index];
            let (from, packet) = (
                *from,
                client
                    .generate_payload_packet(&[index as u8])
                    .expect("connected")
                    .1
                    .to_vec(),
            );
            net.deliver(from, &packet);
        }
        let bytes = |event: &LinkEvent| match event {
            LinkEvent::Datagram { bytes, .. } => Some(bytes[0]),
            _ => None,
        };
        let received: Vec<u8> = net.events.iter().filter_map(bytes).collect();
        assert_eq!(received, (0..200).collect::<Vec<u8>>(), "each is heard");
        net.run(Duration::from_secs(20));
        assert_eq!(net.connected(), 200, "keep-alives keep them");
    }

    #[test]
    fn the_same_client_on_another_shard_is_denied() {
        let mut net = Net::new(config(Some(KEY)));
        // Fill the first shard, so that the twin meets another one.
        for n in 0..SHARD_CLIENTS as u32 {
            net.join(addr(n), token(u64::from(n), 60, &KEY));
        }
        net.run(STEP * 10);
        let twin = net.join(addr(1_000), token(0, 60, &KEY));
        net.run(STEP * 10);
        assert_eq!(
            net.clients[twin].1.disconnect_reason(),
            Some(DisconnectReason::ConnectionDenied),
            "told so"
        );
        assert_eq!(net.connected(), SHARD_CLIENTS, "the first stays");
        assert!(net.reasons().is_empty(), "nobody loses a link");
        net.assert_consistent();
    }

    #[test]
    fn the_same_client_gets_in_once_the_first_is_gone() {
        let mut net = Net::new(config(Some(KEY)));
        net.join(addr(0), token(0, 60, &KEY));
        net.run(STEP * 10);
        net.clients.clear(); // it crashed
        let again = net.join(addr(1), token(0, 60, &KEY));
        net.run(Duration::from_secs(4));
        assert!(
            !net.clients[again].1.is_connected(),
            "not while the server believes in the first"
        );
        net.run(Duration::from_secs(3));
        assert!(net.clients[again].1.is_connected(), "then it does");
        assert_eq!(
            net.reasons(),
            [&CloseReason::TimedOut],
            "when the first has timed out"
        );
        net.assert_consistent();
    }

    #[test]
    fn of_two_that_ask_at_once_under_one_id_one_connects() {
        let mut net = Net::new(config(Some(KEY)));
        net.join(addr(0), token(5, 60, &KEY));
        net.join(addr(1), token(5, 60, &KEY));
        net.run(STEP * 20);
        assert_eq!(net.connected(), 1, "whoever answered first");
        net.run(HANDSHAKE_TIMEOUT * 2);
        net.assert_consistent();
    }

    #[test]
    fn answering_the_challenge_of_another_token_connects_nobody_twice() {
        let mut net = Net::new(config(Some(KEY)));
        let (first, second) = (token(5, 60, &KEY), token(6, 60, &KEY));
        net.deliver(addr(0), &request(&first));
        // The player is not connected yet, so the shard suspects nothing.
        let player = net.join(addr(2), token(5, 60, &KEY));
        net.run(STEP * 6);
        assert!(net.clients[player].1.is_connected(), "the player is");

        // Understands the challenge to the second token, answers it in the name of the first.
        let mixed = ConnectToken {
            server_to_client_key: second.server_to_client_key,
            ..first
        };
        let cheat = net.join(addr(1), mixed);
        net.deliver(addr(1), &request(&second));
        let answer = net.clients[cheat]
            .1
            .update(STEP)
            .expect("an answer")
            .0
            .to_vec();
        net.deliver(addr(0), &answer);
        let reason = CloseReason::Transport("the same client connected twice".into());
        assert_eq!(
            net.reasons(),
            [&reason],
            "renetcode cannot tell the two apart, so both go"
        );
        net.assert_consistent();
    }

    #[test]
    fn a_token_works_from_one_address_only() {
        let mut net = Net::new(config(Some(KEY)));
        for n in 0..SHARD_CLIENTS as u32 {
            net.join(addr(n), token(u64::from(n), 60, &KEY));
        }
        net.run(STEP * 3);
        let stolen = token(500, 60, &KEY);
        net.deliver(addr(900), &request(&stolen));
        assert_eq!(
            net.shards.pending.len(),
            1,
            "welcome from the first address"
        );
        let thief = net.join(addr(901), stolen);
        net.run(STEP * 10);
        assert!(
            !net.clients[thief].1.is_connected(),
            "and not from the second"
        );
        assert_eq!(net.shards.pending.len(), 1, "which gets no answer");
    }

    #[test]
    fn a_used_token_makes_no_second_link() {
        let mut net = Net::new(config(Some(KEY)));
        let token = token(1, 60, &KEY);
        net.join(addr(0), token.clone());
        net.run(STEP * 10);
        let farewell = net.clients[0].1.disconnect().expect("connected").1.to_vec();
        net.deliver(addr(0), &farewell);
        assert_eq!(net.reasons(), [&CloseReason::ByPeer], "the session is over");
        net.deliver(addr(0), &request(&token));
        assert!(
            net.shards.pending.is_empty(),
            "and a recording of it stays one"
        );
    }

    #[test]
    fn forged_and_expired_requests_cost_nothing_and_get_no_answer() {
        let mut net = Net::new(config(Some(KEY)));
        let good = token(1, 60, &KEY);
        let wrong_protocol = ConnectToken {
            protocol_id: PROTOCOL + 1,
            ..good.clone()
        };
        for token in [token(1, 60, &[1; 32]), token(1, 0, &KEY), wrong_protocol] {
            net.shards
                .handle_datagram(STEP, addr(0), &mut request(&token), &mut net.out);
        }
        net.shards
            .handle_datagram(STEP, addr(0), &mut [0x95; 18], &mut net.out);
        assert_eq!(net.out.packets.iter().count(), 0, "no answer");
        assert!(
            net.shards.pending.is_empty() && net.shards.tokens.uses.is_empty(),
            "no memory"
        );
        let rejected = net.shards.stats.rejected;
        assert_eq!(
            (rejected.handshake, rejected.unknown),
            (3, 1),
            "but a count"
        );
    }

    #[test]
    fn unfinished_handshakes_are_bounded_and_end() {
        let mut net = Net::new(config(None));
        for n in 0..1_024 + 500 {
            net.now += Duration::from_millis(1);
            net.deliver(addr(n), &request(&token(u64::from(n), 3_000, &[0; 32])));
        }
        assert_eq!(net.shards.pending.len(), 1_024, "the oldest had to go");
        assert!(
            !net.shards.pending.contains_key(&addr(0)),
            "it was that one"
        );
        net.assert_consistent();

        net.clients.clear();
        net.run(HANDSHAKE_TIMEOUT + STEP * 2);
        assert!(
            net.shards.pending.is_empty(),
            "all are over in seconds, though their tokens last an hour"
        );
        assert!(
            net.shards.shards.iter().all(|shard| shard.pending == 0),
            "in renetcode, too"
        );
        net.join(addr(0), token(1, 60, &[0; 32]));
        net.run(STEP * 10);
        assert_eq!(net.connected(), 1, "there is room for others");
        net.assert_consistent();
    }

    #[test]
    fn handshakes_of_one_address_push_out_those_of_no_other() {
        let mut net = Net::new(config(None));
        let ask = |net: &mut Net, at: SocketAddr, n: u32| {
            net.now += Duration::from_micros(100);
            net.deliver(at, &request(&token(u64::from(n), 3_000, &[0; 32])));
        };
        ask(&mut net, addr(0), 0);
        for n in 1..3_000 {
            let mut flooder = addr(1);
            flooder.set_port(1_024 + n as u16);
            ask(&mut net, flooder, n);
            net.assert_consistent();
        }
        let is_flooder = |at: &&SocketAddr| at.ip() == addr(1).ip();
        assert_eq!(net.shards.pending.keys().filter(is_flooder).count(), 64);
        assert!(net.shards.pending.contains_key(&addr(0)));
        net.run(HANDSHAKE_TIMEOUT + STEP * 2);
        assert!(net.shards.pending_of.is_empty());
        net.assert_consistent();
    }

    #[test]
    fn insecure_tokens_may_not_last_for_ever() {
        let mut net = Net::new(config(None));
        net.deliver(addr(0), &request(&token(0, 1 << 40, &[0; 32])));
        assert!(
            net.shards.pending.is_empty(),
            "renetcode would keep the handshake as long"
        );
    }

    #[test]
    fn a_handshake_begun_by_another_at_the_same_address_does_not_block_it() {
        let mut net = Net::new(config(None));
        // Someone pretends to be there, or a client crashed while connecting.
        net.deliver(addr(0), &request(&token(66, 3_000, &[0; 32])));
        net.join(addr(0), token(1, 60, &[0; 32]));
        net.run(STEP * 10);
        assert_eq!(net.connected(), 1, "the later request counts");
        net.assert_consistent();
    }

    #[test]
    fn a_full_server_says_so() {
        let mut net = Net::new(ShardsConfig {
            max_sessions: 2,
            ..config(Some(KEY))
        });
        for n in 0..3 {
            net.join(addr(n), token(u64::from(n), 60, &KEY));
        }
        net.run(STEP * 10);
        assert_eq!(net.connected(), 2, "so many and no more");
        let late = net.join(addr(9), token(9, 60, &KEY));
        net.run(STEP * 3);
        for index in [2, late] {
            let reason = net.clients[index].1.disconnect_reason();
            assert_eq!(
                reason,
                Some(DisconnectReason::ConnectionDenied),
                "before and after the challenge"
            );
        }
        net.assert_consistent();
    }

    #[test]
    fn a_silent_client_times_out_whatever_its_token_says() {
        let mut net = Net::new(config(None));
        net.join(addr(0), token(0, 60, &[0; 32]));
        net.run(STEP * 10);
        let (_, client) = net.clients.remove(0);
        net.run(Duration::from_millis(4_500));
        assert!(net.reasons().is_empty(), "not yet");
        // A stranger at its address cannot keep it alive.
        let recorded = request(&token(0, 60, &[0; 32]));
        net.deliver(addr(0), &recorded);
        net.deliver(addr(0), &[0x15; 100]);
        net.run(Duration::from_secs(1));
        assert_eq!(
            net.reasons(),
            [&CloseReason::TimedOut],
            "after five seconds"
        );
        assert!(client.is_connected(), "the token said never");
        net.assert_consistent();
    }

    #[test]
    fn time_may_seem_to_run_backwards_between_threads() {
        let mut net = Net::new(config(Some(KEY)));
        net.join(addr(0), token(0, 60, &KEY));
        net.run(STEP * 10);
        let link = *net.shards.links.keys().next().expect("one link");
        net.shards
            .send(net.now + STEP * 5, link, b"later", &mut net.out);
        net.shards.handle_timeouts(net.now, &mut net.out);
        net.run(STEP * 20);
        assert_eq!(net.connected(), 1, "nothing comes of it");
    }

    #[test]
    fn a_suspended_process_does_not_lose_its_clients() {
        let mut net = Net::new(config(Some(KEY)));
        net.join(addr(0), token(0, 60, &KEY));
        net.run(STEP * 10);
        net.now += Duration::from_secs(3_600);
        net.run(STEP * 10);
        assert_eq!(
            net.connected(),
            1,
            "an hour passed in one step, and is not taken for silence"
        );
    }

    #[test]
    fn a_link_has_a_budget_and_the_app_a_bounded_inbox() {
        let mut net = Net::new(config(Some(KEY)));
        net.join(addr(0), token(0, 60, &KEY));
        net.run(STEP * 10);
        net.out.room = 100;
        for _ in 0..1_000 {
            let packet = net.clients[0]
                .1
                .generate_payload_packet(&[1])
                .expect("connected")
                .1
                .to_vec();
            net.deliver(addr(0), &packet);
        }
        let rejected = net.shards.stats.rejected;
        assert_eq!(rejected.inbox_full, 100, "200 pass the budget and 100 fit");
        assert_eq!(rejected.over_budget, 800, "the rest is not even decrypted");
    }

    #[test]
    fn replayed_and_altered_datagrams_do_not_reach_the_app() {
        let mut net = Net::new(config(Some(KEY)));
        net.join(addr(0), token(0, 60, &KEY));
        net.run(STEP * 10);
        let packet = net.clients[0]
            .1
            .generate_payload_packet(b"once")
            .expect("connected")
            .1
            .to_vec();
        let mut altered = packet.clone();
        altered[10] ^= 1;
        for packet in [&altered, &packet, &packet] {
            net.deliver(addr(0), packet);
        }
        let datagrams = net
            .events
            .iter()
            .filter(|event| matches!(event, LinkEvent::Datagram { .. }))
            .count();
        assert_eq!(datagrams, 1, "only the original");
        assert_eq!(
            net.shards.stats.rejected.unauthentic, 2,
            "the others are counted"
        );
    }

    #[test]
    fn closing_tells_the_peer() {
        let mut net = Net::new(config(Some(KEY)));
        net.join(addr(0), token(0, 60, &KEY));
        net.run(STEP * 10);
        let link = *net.shards.links.keys().next().expect("one link");
        assert_eq!(link.transport_index(), 1, "an id of this transport");
        net.shards.close(link, CloseReason::ByUs, &mut net.out);
        net.shards.close(link, CloseReason::ByUs, &mut net.out);
        assert_eq!(
            net.out.packets.iter().count(),
            FAREWELLS,
            "several times, but only for the first call"
        );
        net.collect();
        let reason = net.clients[0].1.disconnect_reason();
        assert_eq!(
            reason,
            Some(DisconnectReason::DisconnectedByServer),
            "it hears it"
        );
        assert_eq!(
            net.reasons(),
            [&CloseReason::ByUs],
            "and the app is told once"
        );
        net.assert_consistent();
    }
}
