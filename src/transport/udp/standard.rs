//! What netcode 1.02 asks for and `renetcode` does not do, with the few packets that it takes.
//!
//! Once a client has answered the challenge, the server tells it so by a keep-alive, and until the client knows, it
//! throws payloads away. The standard has the server send a keep-alive before each payload until it has heard from the
//! client. `renetcode` sends one, and another only after 250 ms of silence. It also writes the number of the first, 0, in
//! no bytes, where the standard asks for one to eight, so clients that keep to it do not read that one.
//!
//! So [`Shards`](super::shards) send keep-alives of their own, until a packet has come that only the client can have
//! made. Numbers are never used twice with a key: for each packet that is made here, `renetcode` is asked for one too,
//! which is thrown away.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce, Tag};

use super::token::{self, VERSION};
use crate::transport::filter::netcode::{self, KEEP_ALIVE, REQUEST_BYTES};

const TAG_BYTES: usize = 16;

/// The keys of a link, as its connect token has them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct LinkKeys {
    protocol_id: u64,
    pub(super) client_to_server: [u8; 32],
    pub(super) server_to_client: [u8; 32],
}

impl LinkKeys {
    pub(super) fn new(
        protocol_id: u64,
        client_to_server: [u8; 32],
        server_to_client: [u8; 32],
    ) -> Self {
        Self {
            protocol_id,
            client_to_server,
            server_to_client,
        }
    }

    /// The keys in a connection request; `None` if its token was not made with the server's key.
    pub(super) fn of_request(
        private_key: &[u8; 32],
        request: &[u8; REQUEST_BYTES],
    ) -> Option<Self> {
        let (_, rest) = request.split_first_chunk::<{ 1 + VERSION.len() }>()?;
        let (protocol_id, rest) = rest.split_first_chunk::<8>()?;
        let (expires, rest) = rest.split_first_chunk::<8>()?;
        let (nonce, private) = rest.split_first_chunk::<24>()?;
        let (protocol_id, expires) = (
            u64::from_le_bytes(*protocol_id),
            u64::from_le_bytes(*expires),
        );
        let mut private = private.try_into().ok()?;
        let (body, _) =
            token::decrypt_private(private_key, protocol_id, expires, nonce, &mut private)?;
        // Client id and timeout.
        let (_, rest) = body.split_first_chunk::<12>()?;
        let (addresses, mut rest) = rest.split_first_chunk::<4>()?;
        for _ in 0..u32::from_le_bytes(*addresses).min(32) {
            let length = match rest.first()? {
                1 => 1 + 4 + 2,
                2 => 1 + 16 + 2,
                _ => return None,
            };
            rest = rest.get(length..)?;
        }
        let (client_to_server, rest) = rest.split_first_chunk()?;
        let (server_to_client, _) = rest.split_first_chunk()?;
        Some(Self::new(protocol_id, *client_to_server, *server_to_client))
    }

    /// Whether the holder of `key`, one of these, has made this packet.
    pub(super) fn is_authentic(&self, key: &[u8; 32], packet: &[u8]) -> bool {
        self.open(key, packet).is_some()
    }

    /// What is in an encrypted packet.
    pub(super) fn open(&self, key: &[u8; 32], packet: &[u8]) -> Option<Vec<u8>> {
        let (sequence, body_at) = netcode::sequence(packet)?;
        let (body, tag) = packet.get(body_at..)?.split_last_chunk::<TAG_BYTES>()?;
        let mut body = body.to_vec();
        ChaCha20Poly1305::new(key.into())
            .decrypt_in_place_detached(
                &nonce(sequence),
                &self.bound_to(packet[0]),
                &mut body,
                Tag::from_slice(tag),
            )
            .ok()?;
        Some(body)
    }

    /// A keep-alive with this number, which must never be used with `key` before or after.
    ///
    /// `indices` are the client's slot and the number of slots.
    pub(super) fn keep_alive(&self, key: &[u8; 32], sequence: u64, indices: [u8; 8]) -> Vec<u8> {
        let bytes = (8 - sequence.leading_zeros() as usize / 8).max(1);
        let prefix = KEEP_ALIVE | (bytes as u8) << 4;
        let mut packet = vec![prefix];
        packet.extend_from_slice(&sequence.to_le_bytes()[..bytes]);
        let body_at = packet.len();
        packet.extend_from_slice(&indices);
        let tag = ChaCha20Poly1305::new(key.into())
            .encrypt_in_place_detached(
                &nonce(sequence),
                &self.bound_to(prefix),
                &mut packet[body_at..],
            )
            .expect("eight bytes are not too many");
        packet.extend_from_slice(&tag);
        packet
    }

    fn bound_to(&self, prefix: u8) -> [u8; VERSION.len() + 8 + 1] {
        let mut bound_to = [prefix; VERSION.len() + 8 + 1];
        bound_to[..VERSION.len()].copy_from_slice(VERSION);
        bound_to[VERSION.len()..][..8].copy_from_slice(&self.protocol_id.to_le_bytes());
        bound_to
    }
}

fn nonce(sequence: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&sequence.to_le_bytes());
    nonce.into()
}
