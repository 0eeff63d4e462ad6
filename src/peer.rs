//! One end of a connection: datagrams with their header, and renet's packets inside them.
//!
//! Everything for the other side goes into one datagram where it fits:
//!
//! ```text
//! datagram   header { chunk }
//! chunk      kind (1 byte)  length (2 bytes, little endian)  body
//! ```

use std::time::Duration;

use bytes::Bytes;
use renet::{ChannelConfig, ConnectionConfig, RenetClient, SendType};

use crate::message::MAX_SERVER_MESSAGE_BYTES;
use crate::protocol::acks::{AckTracker, Delivery, Header, Received, is_newer};
use crate::transport::filter::RenetFilter;
use crate::transport::quietly;

/// Largest datagram that is put together from several chunks.
pub(crate) use crate::transport::MAX_DATAGRAM_BYTES;

/// The channel of the connection itself: handshake, and values too large for snapshots.
pub(crate) const CONTROL_CHANNEL: u8 = 0;
const CHANNELS: u8 = 4;

/// What a client may keep in flight on a channel, and so make the server hold.
const CLIENT_CHANNEL_BYTES: usize = 64 << 10;
/// What a server may keep in flight on a channel to one client.
const SERVER_CHANNEL_BYTES: usize = 5 << 20;
/// Unacknowledged messages are sent again after this. Longer than most round trips, so that few are sent twice.
const RESEND_TIME: Duration = Duration::from_millis(200);
/// Bytes of messages per client and send: a 1 MiB message takes about 15 sends, and leaves room for others.
const MESSAGE_BYTES_PER_SEND: u64 = 60_000;
const CHUNK_HEAD: usize = 3;
/// Small renet packets share the snapshot's datagram up to this size; larger ones get their own.
const SHARED_PACKET_BYTES: usize = 300;
/// The first byte of a renet packet that only acknowledges.
const RENET_ACK: u8 = 4;

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkKind {
    Snapshot,
    Inputs,
    Renet,
    Goodbye,
}

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// The other side sent what no correct peer sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Violation(pub String);

/// One end of a connection.
pub(crate) struct Peer {
    pub acks: AckTracker,
    side: Side,
    renet: RenetClient,
    filter: RenetFilter,
    /// Something arrived that renet should acknowledge.
    owes_acks: bool,
    has_new_messages: bool,
    /// The newest datagram from which a snapshot was shown.
    newest_snapshot: Option<u16>,
    outgoing: Vec<u8>,
}

impl Peer {
    pub fn new(side: Side) -> Self {
        let channels = |max_memory_usage_bytes| -> Vec<_> {
            (0..CHANNELS)
                .map(|channel_id| ChannelConfig {
                    channel_id,
                    max_memory_usage_bytes,
                    send_type: match channel_id {
                        CONTROL_CHANNEL | 1 => SendType::ReliableOrdered {
                            resend_time: RESEND_TIME,
                        },
                        2 => SendType::ReliableUnordered {
                            resend_time: RESEND_TIME,
                        },
                        _ => SendType::Unreliable,
                    },
                })
                .collect()
        };
        let from_server = match side {
            Side::Server => channels(SERVER_CHANNEL_BYTES),
            // renet's receiver counts slices rounded up, and incomplete messages in full.
            Side::Client => channels(2 * SERVER_CHANNEL_BYTES),
        };
        let from_client = channels(CLIENT_CHANNEL_BYTES);
        // A `RenetClient` sends on the client's channels; at the server's end they are the other way round.
        let (server_channels_config, client_channels_config) = match side {
            Side::Client => (from_server, from_client),
            Side::Server => (from_client, from_server),
        };
        let mut renet = RenetClient::new(ConnectionConfig {
            available_bytes_per_tick: MESSAGE_BYTES_PER_SEND,
            server_channels_config,
            client_channels_config,
        });
        renet.set_connected();
        let filter = match side {
            Side::Server => RenetFilter::from_client(),
            // A little more: a component's value comes with its name.
            Side::Client => RenetFilter::from_server(MAX_SERVER_MESSAGE_BYTES + 64),
        };
        Self {
            acks: AckTracker::new(),
            side,
            renet,
            filter,
            owes_acks: false,
            has_new_messages: false,
            newest_snapshot: None,
            outgoing: Vec::with_capacity(MAX_DATAGRAM_BYTES),
        }
    }

    /// Lets renet's clock follow.
    pub fn advance(&mut self, delta: Duration) {
        self.renet.update(delta);
    }

    /// Takes a datagram apart. Chunks of datagrams that came before, or too late, are not shown.
    ///
    /// Nor are snapshots that a newer one has overtaken: they are not used, so their datagrams are not acknowledged
    /// either, and the server sends again what only they contained.
    pub fn receive<'a>(
        &mut self,
        now: Duration,
        datagram: &'a [u8],
        mut on_acked: impl FnMut(u16),
        mut on_chunk: impl FnMut(ChunkKind, &'a [u8]),
    ) -> Result<(), Violation> {
        let Some((header, mut rest)) = Header::decode(datagram) else {
            return Err(Violation("a datagram without a header".into()));
        };
        let received = self.acks.handle_header(now, header, |delivery| {
            if let Delivery::Acked(seq) = delivery {
                on_acked(seq);
            }
        });
        if received != Received::New {
            return Ok(());
        }
        while let Some((&[kind, low, high], tail)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let Some((body, tail)) = tail.split_at_checked(length) else {
                return Err(Violation("a chunk longer than its datagram".into()));
            };
            rest = tail;
            match ChunkKind::from_byte(kind) {
                Some(ChunkKind::Renet) => self.receive_renet(body)?,
                Some(ChunkKind::Snapshot)
                    if self
                        .newest_snapshot
                        .is_some_and(|newest| !is_newer(header.seq, newest)) =>
                {
                    self.acks.withhold(header.seq);
                }
                Some(ChunkKind::Snapshot) => {
                    self.newest_snapshot = Some(header.seq);
                    on_chunk(ChunkKind::Snapshot, body);
                }
                Some(kind) => on_chunk(kind, body),
                None => return Err(Violation(format!("an unknown kind of chunk: {kind}"))),
            }
        }
        Ok(())
    }

    fn receive_renet(&mut self, packet: &[u8]) -> Result<(), Violation> {
        // renet trusts its peers more than we do: see the filter.
        let checked = match self.filter.check(packet) {
            Ok(checked) => checked,
            Err(rejection) if rejection.is_misbehaviour() => {
                return Err(Violation(rejection.to_string()));
            }
            // As if the network had lost it: it will come again.
            Err(_) => return Ok(()),
        };
        self.owes_acks |= checked.first() != Some(&RENET_ACK);
        quietly(|| self.renet.process_packet(&checked));
        match self.renet.disconnect_reason() {
            Some(reason) => Err(Violation(format!("messages: {reason}"))),
            None => Ok(()),
        }
    }

    /// The next message that arrived on a channel.
    pub fn next_message(&mut self, channel: u8) -> Option<Bytes> {
        self.renet.receive_message(channel)
    }

    /// Queues a message. `false` when the channel is full: the other side does not keep up.
    pub fn send_message(&mut self, channel: u8, message: Vec<u8>) -> bool {
        if !self.renet.can_send_message(channel, message.len()) {
            return false;
        }
        self.renet.send_message(channel, message);
        self.has_new_messages = true;
        true
    }

    /// Whether messages have to be sent, sent again, or acknowledged. renet answers every packet, also one that only
    /// acknowledges, so it is only asked when there is something to say: then silence costs nothing.
    fn has_messages(&self) -> bool {
        let capacity = match self.side {
            Side::Client => CLIENT_CHANNEL_BYTES,
            Side::Server => SERVER_CHANNEL_BYTES,
        };
        let awaits_acks = |channel: u8| self.renet.channel_available_memory(channel) != capacity;
        self.owes_acks || self.has_new_messages || (0..CHANNELS - 1).any(awaits_acks)
    }

    /// Sends what renet has to say, and begins the datagram that the caller's chunks go into.
    ///
    /// Small packets stay in that datagram. Returns its number, for acknowledgements.
    pub fn begin(&mut self, now: Duration, send: &mut dyn FnMut(&[u8])) -> u16 {
        let packets = if self.has_messages() {
            self.renet.get_packets_to_send()
        } else {
            Vec::new()
        };
        self.owes_acks = false;
        self.has_new_messages = false;
        let (small, large): (Vec<_>, Vec<_>) = packets
            .into_iter()
            .partition(|packet| packet.len() <= SHARED_PACKET_BYTES);
        for packet in large {
            self.start_datagram(now);
            self.chunk(ChunkKind::Renet, &packet);
            send(&self.outgoing);
        }
        let mut seq = self.start_datagram(now);
        for packet in small {
            if self.outgoing.len() + CHUNK_HEAD + packet.len() > SHARED_PACKET_BYTES {
                send(&self.outgoing);
                seq = self.start_datagram(now);
            }
            self.chunk(ChunkKind::Renet, &packet);
        }
        seq
    }

    fn start_datagram(&mut self, now: Duration) -> u16 {
        let header = self.acks.next_header(now);
        self.outgoing.clear();
        self.outgoing.extend_from_slice(&header.encode());
        header.seq
    }

    /// How large a chunk may still be.
    pub fn room(&self) -> usize {
        MAX_DATAGRAM_BYTES.saturating_sub(self.outgoing.len() + CHUNK_HEAD)
    }

    /// Adds a chunk to the datagram that was begun. It must fit [`Self::room`], or be alone.
    pub fn chunk(&mut self, kind: ChunkKind, body: &[u8]) {
        self.outgoing.push(kind as u8);
        self.outgoing
            .extend_from_slice(&(body.len() as u16).to_le_bytes());
        self.outgoing.extend_from_slice(body);
    }

    /// Sends the datagram that was begun.
    pub fn finish(&mut self, send: &mut dyn FnMut(&[u8])) {
        send(&self.outgoing);
    }

    /// A datagram that says why this is the last one. Nobody acknowledges it; send it a few times.
    pub fn goodbye(&mut self, now: Duration, reason: &[u8], send: &mut dyn FnMut(&[u8])) {
        for _ in 0..GOODBYES {
            self.start_datagram(now);
            self.chunk(ChunkKind::Goodbye, reason);
            send(&self.outgoing);
        }
    }
}

/// At 20 % loss, fewer than one in a hundred leaves without its reason.
const GOODBYES: usize = 3;

impl ChunkKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Snapshot, Self::Inputs, Self::Renet, Self::Goodbye]
            .get(usize::from(byte))
            .copied()
    }
}
