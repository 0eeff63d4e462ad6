//! Which datagrams may reach `renetcode`.
//!
//! A netcode datagram is a connection request of exactly 1,078 bytes, or
//! `[prefix] [sequence: n bytes] [body] [authentication tag: 16 bytes]`, where the prefix holds
//! the packet's type in its low and `n` in its high half (netcode 1.02, `STANDARD.md`). Known to
//! crash `renetcode` 2.0 before it decrypts anything:
//!
//! - `n` above 8: indexes past the end of an array of 8 bytes.
//! - Shorter than `1 + n + 16`: subtracts the tag's length from less than that.
//! - A sequence within 256 of `u64::MAX`: overflows in the replay protection (with overflow
//!   checks, so in debug builds).
//!
//! Known to do harm otherwise: a connection request from a connected address is taken, though
//! unauthenticated, for a sign of life.

use crate::transport::MAX_PAYLOAD_BYTES;

/// Length of a connection request: type, version, protocol id, expiry, nonce, private data.
pub const REQUEST_BYTES: usize = 1 + VERSION.len() + 8 + 8 + 24 + 1024;

const VERSION: &[u8; 13] = b"NETCODE 1.02\0";
const TAG_BYTES: usize = 16;

/// Length of a challenge and of its response: the token's sequence and the token.
const CHALLENGE_BYTES: usize = 8 + 300;

/// Indices of a client and of the number of clients.
const KEEP_ALIVE_BYTES: usize = 4 + 4;

const REQUEST: u8 = 0;
const DENIED: u8 = 1;
const CHALLENGE: u8 = 2;
/// Type of the packets in which a client answers the challenge.
pub(crate) const RESPONSE: u8 = 3;
/// Type of the packets that only say that their sender is there.
pub(crate) const KEEP_ALIVE: u8 = 4;
/// Type of the packets that carry the app's datagrams.
pub(crate) const PAYLOAD: u8 = 5;
const DISCONNECT: u8 = 6;

/// What a server knows about the address that a datagram came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Nothing: only a request to connect makes sense.
    Stranger,
    /// It asked to connect, and may ask again or answer the challenge.
    Pending,
    /// It has a link.
    Connected,
}

/// Whether a datagram from `sender` may reach a `renetcode::NetcodeServer`.
pub fn from_client(datagram: &[u8], sender: Sender) -> bool {
    let Some(&prefix) = datagram.first() else {
        return false;
    };
    if prefix == REQUEST {
        return sender != Sender::Connected && ConnectionRequest::parse(datagram).is_some();
    }
    let Some(body_bytes) = encrypted_body_bytes(datagram) else {
        return false;
    };
    match (prefix & 0xf, sender) {
        // Connected, too: the answer was repeated before the first keep-alive arrived.
        (RESPONSE, Sender::Pending | Sender::Connected) => body_bytes == CHALLENGE_BYTES,
        (KEEP_ALIVE, Sender::Connected) => body_bytes == KEEP_ALIVE_BYTES,
        (PAYLOAD, Sender::Connected) => (1..=MAX_PAYLOAD_BYTES).contains(&body_bytes),
        (DISCONNECT, Sender::Connected) => body_bytes == 0,
        _ => false,
    }
}

/// Whether a datagram from the server's address may reach a `renetcode::NetcodeClient`.
pub fn from_server(datagram: &[u8]) -> bool {
    let Some(&prefix) = datagram.first() else {
        return false;
    };
    let Some(body_bytes) = encrypted_body_bytes(datagram) else {
        return false;
    };
    match prefix & 0xf {
        DENIED | DISCONNECT => body_bytes == 0,
        CHALLENGE => body_bytes == CHALLENGE_BYTES,
        KEEP_ALIVE => body_bytes == KEEP_ALIVE_BYTES,
        PAYLOAD => (1..=MAX_PAYLOAD_BYTES).contains(&body_bytes),
        _ => false,
    }
}

/// The sequence number of an encrypted packet, and where what follows it begins.
pub(crate) fn sequence(datagram: &[u8]) -> Option<(u64, usize)> {
    let sequence_bytes = usize::from(datagram.first()? >> 4);
    if sequence_bytes > 8 {
        return None;
    }
    let mut sequence = [0; 8];
    sequence[..sequence_bytes].copy_from_slice(datagram.get(1..1 + sequence_bytes)?);
    Some((u64::from_le_bytes(sequence), 1 + sequence_bytes))
}

/// Length of the encrypted part without its tag, if the sequence before it is legal.
fn encrypted_body_bytes(datagram: &[u8]) -> Option<usize> {
    let (sequence, body_at) = sequence(datagram)?;
    // Compared with a window of 256 by adding that to it.
    sequence.checked_add(256)?;
    datagram.len().checked_sub(body_at + TAG_BYTES)
}

/// What a connection request shows before any decryption.
///
/// All of it is authenticated by the tag, so where decryption succeeds it is what the issuer of
/// the token wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRequest {
    /// Which game, and which version of it.
    pub protocol_id: u64,
    /// When the token expires, in seconds since 1970.
    pub expire_timestamp: u64,
    /// The tag of the token's private part: different for every token.
    pub token_tag: [u8; TAG_BYTES],
}

impl ConnectionRequest {
    /// Reads a request of the right length and version.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let datagram: &[u8; REQUEST_BYTES] = datagram.try_into().ok()?;
        let (head, token_tag) = datagram.split_last_chunk()?;
        let (&[prefix], rest) = head.split_first_chunk()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (protocol_id, rest) = rest.split_first_chunk()?;
        let (expire_timestamp, _) = rest.split_first_chunk()?;
        (prefix == REQUEST && version == VERSION).then(|| Self {
            protocol_id: u64::from_le_bytes(*protocol_id),
            expire_timestamp: u64::from_le_bytes(*expire_timestamp),
            token_tag: *token_tag,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use renetcode::{
        ClientAuthentication, NetcodeClient, NetcodeServer, ServerAuthentication, ServerConfig,
        ServerResult,
    };

    use super::*;

    const STEP: Duration = Duration::from_millis(300);

    /// A real server and client, and every datagram of their handshake and some traffic.
    struct Session {
        server: NetcodeServer,
        client: NetcodeClient,
        addr: SocketAddr,
        from_client: Vec<(Vec<u8>, Sender)>,
        from_server: Vec<Vec<u8>>,
    }

    fn session() -> Session {
        let server_addr = SocketAddr::from(([127, 0, 0, 1], 5000));
        let addr = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let mut server = NetcodeServer::new(ServerConfig {
            current_time: Duration::ZERO,
            max_clients: 4,
            protocol_id: 7,
            public_addresses: vec![server_addr],
            authentication: ServerAuthentication::Unsecure,
        });
        let auth = ClientAuthentication::Unsecure {
            protocol_id: 7,
            client_id: 1,
            server_addr,
            user_data: None,
        };
        let mut client = NetcodeClient::new(Duration::ZERO, auth).expect("a token");
        let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
        for sender in [
            Sender::Stranger,
            Sender::Pending,
            Sender::Connected,
            Sender::Connected,
        ] {
            let (request, _) = client.update(STEP).expect("something to send at each step");
            let mut request = request.to_vec();
            from_client.push((request.clone(), sender));
            server.update(STEP);
            let answer = match server.process_packet(addr, &mut request) {
                ServerResult::PacketToSend { payload, .. }
                | ServerResult::ClientConnected { payload, .. } => payload.to_vec(),
                _ => continue,
            };
            from_server.push(answer.clone());
            client.process_packet(&mut answer.clone());
        }
        assert!(
            client.is_connected() && server.is_client_connected(1),
            "the handshake works"
        );
        for len in [1, 100, MAX_PAYLOAD_BYTES] {
            let (_, payload) = client
                .generate_payload_packet(&vec![1; len])
                .expect("connected");
            from_client.push((payload.to_vec(), Sender::Connected));
            let (_, payload) = server
                .generate_payload_packet(1, &vec![1; len])
                .expect("connected");
            from_server.push(payload.to_vec());
        }
        Session {
            server,
            client,
            addr,
            from_client,
            from_server,
        }
    }

    fn panics(f: impl FnOnce()) -> bool {
        catch_unwind(AssertUnwindSafe(f)).is_err()
    }

    /// A datagram that stops an unfiltered server, client or both, from a connected address.
    fn assert_crashes_unfiltered_and_is_filtered(datagram: &[u8]) {
        let mut session = session();
        let (mut to_server, mut to_client) = (datagram.to_vec(), datagram.to_vec());
        assert!(
            panics(|| drop(session.server.process_packet(session.addr, &mut to_server))),
            "renetcode's server crashes; if not, the filter could be relaxed"
        );
        assert!(
            panics(|| {
                session.client.process_packet(&mut to_client);
            }),
            "and so does its client"
        );
        for sender in [Sender::Stranger, Sender::Pending, Sender::Connected] {
            assert!(!from_client(datagram, sender), "the filter stops it");
        }
        assert!(!from_server(datagram), "in both directions");
    }

    #[test]
    fn eighteen_byte_datagram_with_prefix_0x95_is_stopped() {
        // A sequence not seen before, so that the replay protection does not get there first.
        let mut datagram = [1; 18];
        datagram[0] = 0x95;
        assert_crashes_unfiltered_and_is_filtered(&datagram);
    }

    #[test]
    fn eighteen_byte_datagram_with_prefix_0x85_is_stopped() {
        // A sequence not seen before, so that the replay protection does not get there first.
        let mut datagram = [1; 18];
        datagram[0] = 0x85;
        assert_crashes_unfiltered_and_is_filtered(&datagram);
    }

    #[test]
    fn sequences_longer_than_eight_bytes_are_stopped_at_any_length() {
        for sequence_bytes in 9..16 {
            let mut datagram = [0; 200];
            datagram[0] = sequence_bytes << 4 | PAYLOAD;
            assert_crashes_unfiltered_and_is_filtered(&datagram);
        }
    }

    #[test]
    fn sequences_that_overflow_the_replay_window_are_stopped() {
        let mut datagram = [0xff; 100];
        datagram[0] = 0x85;
        if cfg!(debug_assertions) {
            assert_crashes_unfiltered_and_is_filtered(&datagram);
        }
        assert!(
            !from_client(&datagram, Sender::Connected),
            "the last sequence of all"
        );
        datagram[1] = 0;
        assert!(!from_server(&datagram), "the first that overflows");
        datagram[2] = 0xfe;
        assert!(from_server(&datagram), "the last that does not");
    }

    #[test]
    fn everything_a_real_session_sends_passes() {
        let mut session = session();
        for (datagram, sender) in &session.from_client {
            assert!(
                from_client(datagram, *sender),
                "{sender:?} may send {} bytes",
                datagram.len()
            );
        }
        assert!(
            session
                .from_server
                .iter()
                .all(|datagram| from_server(datagram)),
            "and the server too"
        );

        let (_, farewell) = session.client.disconnect().expect("connected");
        assert!(
            from_client(farewell, Sender::Connected),
            "a client's farewell passes"
        );
        match session.server.disconnect(1) {
            ServerResult::ClientDisconnected {
                payload: Some(farewell),
                ..
            } => {
                assert!(from_server(farewell), "a server's farewell passes");
            }
            other => panic!("the server says farewell, not {other:?}"),
        }
    }

    #[test]
    fn a_request_from_a_connected_address_is_no_sign_of_life() {
        let mut session = session();
        let mut request = session.from_client[0].0.clone();
        session.server.update(Duration::from_secs(3));
        let _ = session.server.process_packet(session.addr, &mut request);
        let silence = session.server.time_since_last_received_packet(1);
        assert_eq!(
            silence,
            Some(Duration::ZERO),
            "renetcode is fooled; if not, the rule could go"
        );
        assert!(
            !from_client(&session.from_client[0].0, Sender::Connected),
            "the filter is not"
        );
    }

    #[test]
    fn a_request_shows_its_protocol_and_expiry() {
        let session = session();
        let request = ConnectionRequest::parse(&session.from_client[0].0).expect("a real request");
        assert_eq!(request.protocol_id, 7, "as the client was told");
        assert_eq!(
            request.expire_timestamp, 300,
            "renetcode's insecure tokens last so long"
        );
        for end in [0, 1, REQUEST_BYTES - 1] {
            assert_eq!(
                ConnectionRequest::parse(&session.from_client[0].0[..end]),
                None,
                "cut short"
            );
        }
    }

    #[test]
    fn strangers_can_only_ask() {
        let session = session();
        for (datagram, _) in &session.from_client[1..] {
            assert!(
                !from_client(datagram, Sender::Stranger),
                "not {} bytes",
                datagram.len()
            );
        }
        assert!(!from_client(&[], Sender::Stranger), "nor nothing");
    }
}
