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
