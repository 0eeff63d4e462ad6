//! What is kept of a link, and of a handshake.

use std::net::SocketAddr;
use std::time::Duration;

use renetcode::NetcodeServer;

use super::Output;
use crate::transport::filter::netcode::{self, KEEP_ALIVE, PAYLOAD, REQUEST_BYTES};
use crate::transport::udp::standard::LinkKeys;
use crate::transport::{LinkEvent, LinkId, PeerInfo};

pub(super) struct Link {
    pub(super) shard: usize,
    pub(super) client_id: u64,
    pub(super) addr: SocketAddr,
    pub(super) budget: Budget,
    /// Of datagrams; keep-alives only `renetcode` knows.
    pub(super) heard_at: Duration,
    pub(super) sent_at: Duration,
    /// The number of the next packet to the client.
    pub(super) next_sequence: u64,
    /// Numbers under which the client was sent challenges, with the same key: `renetcode` numbers these for all clients
    /// together, and from the same start.
    pub(super) spent: Vec<u64>,
    /// Until something was heard from the client.
    pub(super) unconfirmed: Option<Box<Unconfirmed>>,
}

/// A link that its client may not know of yet. Nor does the app.
pub(super) struct Unconfirmed {
    pub(super) peer: PeerInfo,
    pub(super) keys: LinkKeys,
    /// What keep-alives tell the client: its slot, and how many there are.
    pub(super) indices: [u8; 8],
}

pub(super) struct Pending {
    pub(super) shard: usize,
    pub(super) since: Duration,
    pub(super) budget: Budget,
    pub(super) request: Box<[u8; REQUEST_BYTES]>,
    pub(super) expire_timestamp: u64,
    pub(super) token_tag: [u8; 16],
    /// Numbers of the challenges sent.
    pub(super) spent: Vec<u64>,
    /// It has answered the challenge and was denied. It goes on answering until it has heard that.
    pub(super) denial: Option<Vec<u8>>,
}

impl Link {
    /// Opens the link, for the app, if a packet shows that the client knows of it.
    pub(super) fn confirm(
        &mut self,
        id: LinkId,
        kind: u8,
        packet: &[u8],
        out: &mut Output,
    ) -> bool {
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
    pub(super) fn keep_alive(&mut self, server: &mut NetcodeServer) -> Option<Vec<u8>> {
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
    pub(super) fn skip_spent(&mut self, server: &mut NetcodeServer) {
        while self.spent.contains(&self.next_sequence) && self.use_up_number(server).is_some() {}
    }

    /// Has `renetcode` make the next packet, which is thrown away.
    pub(super) fn use_up_number(&mut self, server: &mut NetcodeServer) -> Option<()> {
        let (_, packet) = server.generate_payload_packet(self.client_id, &[0]).ok()?;
        debug_assert_eq!(sequence_of(packet), Some(self.next_sequence));
        self.next_sequence += 1;
        Some(())
    }
}

pub(super) fn sequence_of(packet: &[u8]) -> Option<u64> {
    netcode::sequence(packet).map(|(sequence, _)| sequence)
}

pub(super) fn is_loopback(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

/// So many per second, and so many at once.
pub(super) struct Budget {
    pub(super) left: f32,
    pub(super) at_once: f32,
    pub(super) filled_at: Duration,
}

impl Budget {
    pub(super) fn full(at_once: f32) -> Self {
        Self {
            left: at_once,
            at_once,
            filled_at: Duration::ZERO,
        }
    }

    pub(super) fn take(&mut self, now: Duration, per_second: f32) -> bool {
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
