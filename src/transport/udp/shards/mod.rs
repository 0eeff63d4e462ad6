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

mod links;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use renetcode::{NetcodeServer, ServerAuthentication, ServerConfig, ServerResult};

use links::{Budget, Link, Pending, Unconfirmed, is_loopback, sequence_of};
use tokens::Tokens;

use crate::protocol::limits::Prefix;
use crate::transport::filter::netcode::{
    self, ConnectionRequest, KEEP_ALIVE, PAYLOAD, REQUEST_BYTES, RESPONSE, Sender,
};
use crate::transport::udp::standard::LinkKeys;
use crate::transport::udp::{FAREWELLS, MAX_TIME_STEP};
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
