//! One end of a connection: datagrams with their header, and renet's packets inside them.
//!
//! Everything for the other side goes into one datagram where it fits:
//!
//! ```text
//! datagram   header { chunk }
//! chunk      kind (1 byte)  length (2 bytes, little endian)  body
//! ```
//!
//! Where datagrams can be lost, messages travel in renet's packets. A stream loses nothing, so there they are chunks of
//! their own, and renet has no part. Large ones go in parts, with snapshots between them.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use renet::{ChannelConfig, ConnectionConfig, RenetClient, SendType};

use crate::message::{MAX_CLIENT_MESSAGE_BYTES, MAX_SERVER_MESSAGE_BYTES};
use crate::protocol::acks::{self, AckTracker, Header, Received, is_newer};
use crate::protocol::handshake::DisconnectReason;
use crate::transport::filter::RenetFilter;
use crate::transport::{Delivery, SharedBytes, quietly};
use crate::wire::serial;

/// Largest datagram that is put together from several chunks.
pub(crate) use crate::transport::MAX_DATAGRAM_BYTES;

/// The channel of the connection itself: handshake, and values too large for snapshots.
pub(crate) const CONTROL_CHANNEL: u8 = 0;
const UNRELIABLE_CHANNEL: u8 = 3;
pub(crate) const CHANNELS: u8 = 4;

/// What a client may keep in flight on a channel, and so make the server hold: a window of its numbered messages, with
/// their numbers, and some more.
const CLIENT_CHANNEL_BYTES: usize = 96 << 10;
/// What a server may keep in flight on a channel to one client.
const SERVER_CHANNEL_BYTES: usize = 5 << 20;
/// Unacknowledged messages are sent again after this. Longer than most round trips, so that few are sent twice.
const RESEND_TIME: Duration = Duration::from_millis(200);
/// Bytes of messages in packets per client and send: a 1 MiB message takes about 15 sends, and leaves room for others.
/// An unreliable message goes at once or not at all, so the largest must fit.
const PACKET_BYTES_PER_SEND: u64 = 64 << 10;
/// Bytes that may wait at a stream when messages are added, and one larger message: 1.5 MB/s at 30 sends a second.
const STREAM_BYTES: usize = 48 << 10;
/// The same for a stream that has proved to be fast. With a snapshot, it still fits what a transport lets wait.
const FAST_STREAM_BYTES: usize = 2 * STREAM_BYTES;
/// It is fast if it sends so much between two times: more than disappears in the system's buffers.
const MUCH_SENT: usize = 36 << 10;
/// Unreliable messages that wait have at most so many bytes, or are one that is larger. Newer ones push out older ones.
const UNRELIABLE_BYTES: usize = 60_000;
/// In packets, unreliable messages have at most so many bytes in a send, or are one that is larger: half of what there is.
const UNRELIABLE_BYTES_PER_SEND: usize = PACKET_BYTES_PER_SEND as usize / 2;
/// Larger messages go over streams in parts of so many bytes: two seconds' worth of a link of 16 kB/s.
const PART_BYTES: usize = 32 << 10;
/// With so little before it, a stream is always given one more.
const LITTLE_QUEUED: usize = 16 << 10;
/// A message that has come to the end of a stream costs its bytes and about this much beside.
const ARRIVED_OVERHEAD: usize = 64;
const CHUNK_HEAD: usize = 3;
/// With the channel's number: this is the last part of a message.
const LAST_PART: u8 = 0x80;
/// What a message has besides itself: its number and, for a component's value, its name.
const MESSAGE_SLACK: usize = 64;
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
    /// On streams: a channel's number, and a message.
    Message,
    /// Which of the session's messages this side has taken.
    Taken,
    /// On streams: a channel's number, with [`LAST_PART`] for the last, and a part of a message.
    Part,
    /// The server's tick, four bytes: its game stands still there.
    Standstill,
}

/// Where datagrams go.
pub(crate) trait Carrier {
    fn send(&mut self, datagram: &[u8]);

    /// Sends both as one datagram; the second part goes to many.
    fn send_shared(&mut self, head: &[u8], shared: &SharedBytes);

    /// The time at this moment, where the frame's is `now`. What is sent is stamped with it, and what arrives must be
    /// told by the same clock.
    fn clock(&self, now: Duration) -> Duration {
        now
    }
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
    messages: Messages,
    /// The newest datagram from which a snapshot was shown.
    newest_snapshot: Option<u16>,
    outgoing: Vec<u8>,
}

/// How messages travel.
enum Messages {
    InPackets(Box<Packets>),
    AsChunks(Box<Chunks>),
}

struct Packets {
    renet: RenetClient,
    filter: RenetFilter,
    /// Unreliable messages that wait: renet would drop what does not fit a send.
    unreliable: VecDeque<Bytes>,
    unreliable_bytes: usize,
    /// An unreliable message has taken most of a send. The next is for those that are reliable.
    owes_reliable: bool,
    /// Something arrived that renet should acknowledge.
    owes_acks: bool,
    has_new_messages: bool,
}

#[derive(Default)]
struct Chunks {
    reliable: Queue,
    unreliable: Queue,
    arrived: [VecDeque<Bytes>; CHANNELS as usize],
    /// What `arrived` holds, [`ARRIVED_OVERHEAD`] included.
    arrived_bytes: usize,
    /// Messages of which parts have come.
    partial: [Vec<u8>; CHANNELS as usize],
    /// What waited at the stream after it was last given something.
    left_waiting: usize,
    /// It sends so much between two times that it may have more.
    is_fast: bool,
}

/// Messages that wait for a stream.
#[derive(Default)]
struct Queue {
    messages: VecDeque<Waiting>,
    bytes: usize,
}

/// A message on its way to a stream.
struct Waiting {
    channel: u8,
    /// What precedes the message: its number, if it has one.
    head: Vec<u8>,
    body: SharedBytes,
    /// Which part is next.
    part: usize,
}

/// What goes into a datagram: a message, or a part of one.
struct Piece {
    kind: ChunkKind,
    /// The channel's number, and [`LAST_PART`].
    channel: u8,
    head: Vec<u8>,
    body: SharedBytes,
}

impl Waiting {
    /// Bytes that are still to be sent.
    fn bytes(&self) -> usize {
        self.head.len() + self.body.bytes().len() - self.part * PART_BYTES
    }

    fn next_bytes(&self) -> usize {
        self.bytes().min(self.head.len() + PART_BYTES)
    }
}

impl Queue {
    fn push(&mut self, message: Waiting) {
        self.bytes += message.bytes();
        self.messages.push_back(message);
    }

    fn take(&mut self) -> Option<Piece> {
        let next = self.messages.front_mut()?;
        self.bytes -= next.next_bytes();
        if next.body.bytes().len() <= PART_BYTES {
            let message = self.messages.pop_front()?;
            return Some(Piece {
                kind: ChunkKind::Message,
                channel: message.channel,
                head: message.head,
                body: message.body,
            });
        }
        let parts = next.body.parts(PART_BYTES);
        let body = parts.get(next.part)?.clone();
        let is_last = next.part + 1 == parts.len();
        next.part += 1;
        let piece = Piece {
            kind: ChunkKind::Part,
            channel: next.channel | if is_last { LAST_PART } else { 0 },
            head: std::mem::take(&mut next.head),
            body,
        };
        if is_last {
            self.messages.pop_front();
        }
        Some(piece)
    }

    /// Drops the oldest message of which nothing is sent. Returns whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let is_begun = self.messages.front().is_some_and(|next| next.part > 0);
        let dropped = self.messages.remove(usize::from(is_begun));
        self.bytes -= dropped.as_ref().map_or(0, Waiting::bytes);
        dropped.is_some()
    }
}

impl Packets {
    fn new(side: Side) -> Self {
        let channels = |max_memory_usage_bytes| -> Vec<_> {
            // renet serves them in this order, and what is unreliable cannot wait there.
            [UNRELIABLE_CHANNEL, CONTROL_CHANNEL, 1, 2]
                .into_iter()
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
            available_bytes_per_tick: PACKET_BYTES_PER_SEND,
            server_channels_config,
            client_channels_config,
        });
        renet.set_connected();
        let filter = match side {
            Side::Server => RenetFilter::from_client(),
            Side::Client => RenetFilter::from_server(MAX_SERVER_MESSAGE_BYTES + MESSAGE_SLACK),
        };
        Self {
            renet,
            filter,
            unreliable: VecDeque::new(),
            unreliable_bytes: 0,
            owes_reliable: false,
            owes_acks: false,
            has_new_messages: false,
        }
    }

    fn receive(&mut self, packet: &[u8]) -> Result<(), Violation> {
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

    fn send(&mut self, channel: u8, message: Bytes) -> bool {
        if channel == UNRELIABLE_CHANNEL {
            while self.unreliable_bytes + message.len() > UNRELIABLE_BYTES
                && let Some(dropped) = self.unreliable.pop_front()
            {
                self.unreliable_bytes -= dropped.len();
            }
            self.unreliable_bytes += message.len();
            self.unreliable.push_back(message);
            return true;
        }
        if !self.renet.can_send_message(channel, message.len()) {
            return false;
        }
        self.renet.send_message(channel, message);
        self.has_new_messages = true;
        true
    }

    /// Hands renet the unreliable messages of one send.
    fn pump_unreliable(&mut self, side: Side) {
        if std::mem::take(&mut self.owes_reliable) && self.has_something_to_say(side) {
            return;
        }
        let mut bytes = 0;
        while let Some(next) = self.unreliable.front()
            && (bytes == 0 || bytes + next.len() <= UNRELIABLE_BYTES_PER_SEND)
            && let Some(message) = self.unreliable.pop_front()
        {
            bytes += message.len();
            // It warns of messages that are easily lost.
            quietly(|| self.renet.send_message(UNRELIABLE_CHANNEL, message));
            self.has_new_messages = true;
        }
        self.unreliable_bytes -= bytes;
        self.owes_reliable = bytes > UNRELIABLE_BYTES_PER_SEND;
    }

    /// Whether messages have to be sent, sent again, or acknowledged. renet answers every packet, also one that only
    /// acknowledges, so it is only asked when there is something to say: then silence costs nothing.
    fn has_something_to_say(&self, side: Side) -> bool {
        let capacity = match side {
            Side::Client => CLIENT_CHANNEL_BYTES,
            Side::Server => SERVER_CHANNEL_BYTES,
        };
        let awaits_acks = |channel: u8| self.renet.channel_available_memory(channel) != capacity;
        self.owes_acks || self.has_new_messages || (0..CHANNELS - 1).any(awaits_acks)
    }

    fn take_packets(&mut self, side: Side) -> Vec<Vec<u8>> {
        self.pump_unreliable(side);
        let packets = match self.has_something_to_say(side) {
            true => self.renet.get_packets_to_send(),
            false => Vec::new(),
        };
        self.owes_acks = false;
        self.has_new_messages = false;
        packets
    }
}

impl Chunks {
    /// `body` is a channel's number and a message.
    fn receive(&mut self, side: Side, body: &[u8]) -> Result<(), Violation> {
        let Some((&channel, message)) = body.split_first() else {
            return Err(Violation("a message without a channel".into()));
        };
        self.arrive(side, channel, Bytes::copy_from_slice(message))
    }

    /// `body` is a channel's number, with or without [`LAST_PART`], and a part of a message.
    fn receive_part(&mut self, side: Side, body: &[u8]) -> Result<(), Violation> {
        // Clients send nothing that is so large.
        let (Side::Client, Some((&channel, part))) = (side, body.split_first()) else {
            return Err(Violation("a part of a message".into()));
        };
        let is_last = channel & LAST_PART != 0;
        let channel = channel & !LAST_PART;
        let Some(partial) = self.partial.get_mut(usize::from(channel)) else {
            return Err(Violation("a part of a message on no channel".into()));
        };
        partial.extend_from_slice(part);
        if is_last {
            let message = std::mem::take(partial);
            return self.arrive(side, channel, message.into());
        }
        match partial.len() > MAX_SERVER_MESSAGE_BYTES + MESSAGE_SLACK {
            true => Err(Violation("a message too large".into())),
            false => Ok(()),
        }
    }

    fn arrive(&mut self, side: Side, channel: u8, message: Bytes) -> Result<(), Violation> {
        let limit = match side {
            Side::Server => MAX_CLIENT_MESSAGE_BYTES,
            Side::Client => MAX_SERVER_MESSAGE_BYTES,
        };
        let Some(arrived) = self.arrived.get_mut(usize::from(channel)) else {
            return Err(Violation("a message on no channel".into()));
        };
        if message.len() > limit + MESSAGE_SLACK {
            return Err(Violation("a message too large".into()));
        }
        // A server lets messages wait that come too fast, and a correct client then sends no more than its window.
        let capacity = match side {
            Side::Server => CLIENT_CHANNEL_BYTES,
            Side::Client => 2 * SERVER_CHANNEL_BYTES,
        };
        self.arrived_bytes += message.len() + ARRIVED_OVERHEAD;
        if self.arrived_bytes > capacity {
            return Err(Violation("more messages than may wait".into()));
        }
        arrived.push_back(message);
        Ok(())
    }

    fn send(&mut self, side: Side, channel: u8, head: Vec<u8>, body: SharedBytes) -> bool {
        let capacity = match side {
            Side::Client => CLIENT_CHANNEL_BYTES,
            Side::Server => SERVER_CHANNEL_BYTES,
        };
        let message = Waiting {
            channel,
            head,
            body,
            part: 0,
        };
        if channel == UNRELIABLE_CHANNEL {
            while self.unreliable.bytes + message.bytes() > UNRELIABLE_BYTES
                && self.unreliable.drop_oldest()
            {}
            self.unreliable.push(message);
            return true;
        }
        if self.reliable.bytes + message.bytes() > capacity {
            return false;
        }
        self.reliable.push(message);
        true
    }

    /// What a stream on which so many bytes wait may have: at least something, unless the peer does not keep up.
    fn take_waiting(&mut self, mut queued: usize) -> Vec<Piece> {
        let sent = self.left_waiting.saturating_sub(queued);
        if sent >= MUCH_SENT {
            self.is_fast = true;
        } else if queued > STREAM_BYTES / 2 && sent < STREAM_BYTES / 4 {
            self.is_fast = false;
        }
        let most = match self.is_fast {
            true => FAST_STREAM_BYTES,
            false => STREAM_BYTES,
        };
        let mut taken = Vec::new();
        for queue in [&mut self.reliable, &mut self.unreliable] {
            while let Some(next) = queue.messages.front() {
                let bytes = next.next_bytes();
                if queued >= LITTLE_QUEUED && queued + bytes > most {
                    break;
                }
                queued += bytes;
                taken.extend(queue.take());
            }
        }
        self.left_waiting = queued;
        taken
    }

    fn take_arrived(&mut self, channel: u8) -> Option<Bytes> {
        let message = self.arrived.get_mut(usize::from(channel))?.pop_front()?;
        self.arrived_bytes -= message.len() + ARRIVED_OVERHEAD;
        Some(message)
    }
}

impl Peer {
    pub fn new(side: Side, delivery: Delivery) -> Self {
        Self {
            acks: AckTracker::new(),
            side,
            messages: match delivery {
                Delivery::Datagrams => Messages::InPackets(Box::new(Packets::new(side))),
                Delivery::Stream => Messages::AsChunks(Box::default()),
            },
            newest_snapshot: None,
            outgoing: Vec::new(),
        }
    }

    /// Whether the link keeps the order and loses nothing.
    pub fn is_stream(&self) -> bool {
        matches!(self.messages, Messages::AsChunks(_))
    }

    /// How many reliable messages have come again that were there already, since the link began.
    pub fn repeats(&self) -> u64 {
        match &self.messages {
            Messages::InPackets(packets) => packets.filter.repeats(),
            Messages::AsChunks(_) => 0,
        }
    }

    /// Bytes of reliable messages that a stream is still to be given.
    pub fn waiting_bytes(&self) -> usize {
        match &self.messages {
            Messages::InPackets(_) => 0,
            Messages::AsChunks(chunks) => chunks.reliable.bytes,
        }
    }

    /// Lets renet's clock follow.
    pub fn advance(&mut self, delta: Duration) {
        if let Messages::InPackets(packets) = &mut self.messages {
            packets.renet.update(delta);
        }
    }

    /// Takes a datagram apart that arrived at `at`. Chunks of datagrams that came before, or too late, are not shown.
    ///
    /// Nor are snapshots that a newer one has overtaken: they are not used, so their datagrams are not acknowledged
    /// either, and the server sends again what only they contained.
    pub fn receive<'a>(
        &mut self,
        at: Duration,
        datagram: &'a [u8],
        mut on_acked: impl FnMut(u16),
        mut on_chunk: impl FnMut(ChunkKind, &'a [u8]),
    ) -> Result<(), Violation> {
        let Some((header, mut rest)) = Header::decode(datagram) else {
            return Err(Violation("a datagram without a header".into()));
        };
        let received = self.acks.handle_header(at, header, |delivery| {
            if let acks::Delivery::Acked(seq) = delivery {
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
                Some(kind @ (ChunkKind::Renet | ChunkKind::Message | ChunkKind::Part)) => {
                    match (&mut self.messages, kind) {
                        (Messages::InPackets(packets), ChunkKind::Renet) => {
                            packets.receive(body)?;
                        }
                        (Messages::AsChunks(chunks), ChunkKind::Message) => {
                            chunks.receive(self.side, body)?;
                        }
                        (Messages::AsChunks(chunks), ChunkKind::Part) => {
                            chunks.receive_part(self.side, body)?;
                        }
                        _ => return Err(Violation("a message of the wrong form".into())),
                    }
                }
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

    /// The number of the newest datagram from which a snapshot was shown.
    pub fn newest_snapshot(&self) -> Option<u16> {
        self.newest_snapshot
    }

    /// The next message that arrived on a channel.
    pub fn next_message(&mut self, channel: u8) -> Option<Bytes> {
        match &mut self.messages {
            Messages::InPackets(packets) => packets.renet.receive_message(channel),
            Messages::AsChunks(chunks) => chunks.take_arrived(channel),
        }
    }

    /// Queues a message without a number. `false` when the channel is full: the other side does not keep up.
    pub fn send_message(&mut self, channel: u8, message: &SharedBytes) -> bool {
        match &mut self.messages {
            Messages::InPackets(packets) => packets.send(channel, message.bytes().clone()),
            Messages::AsChunks(chunks) => {
                chunks.send(self.side, channel, Vec::new(), message.clone())
            }
        }
    }

    /// Queues one of the session's numbered messages. `false` when the channel is full.
    pub fn send_numbered(&mut self, channel: u8, number: u32, body: &SharedBytes) -> bool {
        let mut head = Vec::with_capacity(5);
        if serial::encode(&number, &mut head).is_err() {
            return false;
        }
        match &mut self.messages {
            Messages::InPackets(packets) => {
                packets.send(channel, [&head, &body.bytes()[..]].concat().into())
            }
            Messages::AsChunks(chunks) => chunks.send(self.side, channel, head, body.clone()),
        }
    }

    /// Sends the messages that wait, and begins the datagram that the caller's chunks go into.
    ///
    /// Small ones stay in that datagram. A stream that has `queued` bytes is given no more than it can have soon. Returns
    /// the datagram's number, for acknowledgements.
    pub fn begin(&mut self, now: Duration, queued: usize, to: &mut impl Carrier) -> u16 {
        let now = to.clock(now);
        match &mut self.messages {
            Messages::InPackets(packets) => {
                let packets = packets.take_packets(self.side);
                self.begin_with_packets(now, packets, to)
            }
            Messages::AsChunks(chunks) => {
                let waiting = chunks.take_waiting(queued);
                self.begin_with_messages(now, waiting, to)
            }
        }
    }

    fn begin_with_packets(
        &mut self,
        now: Duration,
        packets: Vec<Vec<u8>>,
        to: &mut impl Carrier,
    ) -> u16 {
        let (small, large): (Vec<_>, Vec<_>) = packets
            .into_iter()
            .partition(|packet| packet.len() <= SHARED_PACKET_BYTES);
        for packet in large {
            self.start_datagram(now);
            self.chunk(ChunkKind::Renet, &packet);
            to.send(&self.outgoing);
        }
        let mut seq = self.start_datagram(now);
        for packet in small {
            if self.outgoing.len() + CHUNK_HEAD + packet.len() > SHARED_PACKET_BYTES {
                to.send(&self.outgoing);
                seq = self.start_datagram(now);
            }
            self.chunk(ChunkKind::Renet, &packet);
        }
        seq
    }

    /// Reliable ones in the order in which they were queued: a stream keeps it, and so the numbers' order.
    fn begin_with_messages(
        &mut self,
        now: Duration,
        waiting: Vec<Piece>,
        to: &mut impl Carrier,
    ) -> u16 {
        let mut seq = self.start_datagram(now);
        for Piece {
            kind,
            channel,
            head,
            body,
        } in waiting
        {
            let message = body.bytes();
            let length = 1 + head.len() + message.len();
            if self.outgoing.len() + CHUNK_HEAD + length > SHARED_PACKET_BYTES {
                if self.outgoing.len() > Header::LEN {
                    to.send(&self.outgoing);
                    seq = self.start_datagram(now);
                }
                if length > SHARED_PACKET_BYTES - Header::LEN - CHUNK_HEAD {
                    self.chunk_head(kind, length as u16);
                    self.outgoing.push(channel);
                    self.outgoing.extend_from_slice(&head);
                    if body.is_for_one() {
                        self.outgoing.extend_from_slice(message);
                        to.send(&self.outgoing);
                    } else {
                        to.send_shared(&self.outgoing, &body);
                    }
                    seq = self.start_datagram(now);
                    continue;
                }
            }
            self.chunk_head(kind, length as u16);
            self.outgoing.push(channel);
            self.outgoing.extend_from_slice(&head);
            self.outgoing.extend_from_slice(message);
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
        self.chunk_head(kind, body.len() as u16);
        self.outgoing.extend_from_slice(body);
    }

    fn chunk_head(&mut self, kind: ChunkKind, length: u16) {
        self.outgoing.push(kind as u8);
        self.outgoing.extend_from_slice(&length.to_le_bytes());
    }

    /// Sends the datagram that was begun.
    pub fn finish(&mut self, to: &mut impl Carrier) {
        to.send(&self.outgoing);
    }

    /// A datagram that says why this is the last one, as far as it fits. Nobody acknowledges it; send it a few times.
    pub fn goodbye(&mut self, now: Duration, reason: &DisconnectReason, to: &mut impl Carrier) {
        let mut bytes = Vec::new();
        if serial::encode(&reason.shortened(), &mut bytes).is_err() {
            return;
        }
        let times = match self.messages {
            Messages::InPackets(_) => GOODBYES,
            Messages::AsChunks(_) => 1,
        };
        let now = to.clock(now);
        for _ in 0..times {
            self.start_datagram(now);
            self.chunk(ChunkKind::Goodbye, &bytes);
            to.send(&self.outgoing);
        }
    }
}

/// At 20 % loss, fewer than one in a hundred leaves without its reason.
const GOODBYES: usize = 3;

impl ChunkKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Snapshot,
            Self::Inputs,
            Self::Renet,
            Self::Goodbye,
            Self::Message,
            Self::Taken,
            Self::Part,
            Self::Standstill,
        ]
        .get(usize::from(byte))
        .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[derive(Default)]
    struct Wire(Vec<Vec<u8>>);

    impl Carrier for Wire {
        fn send(&mut self, datagram: &[u8]) {
            self.0.push(datagram.to_vec());
        }

        fn send_shared(&mut self, head: &[u8], shared: &SharedBytes) {
            self.0.push([head, shared.bytes()].concat());
        }
    }

    /// A carrier whose clock goes on during a frame.
    struct Clocked<'a>(&'a mut Wire, Duration);

    impl Carrier for Clocked<'_> {
        fn send(&mut self, datagram: &[u8]) {
            self.0.send(datagram);
        }

        fn send_shared(&mut self, head: &[u8], shared: &SharedBytes) {
            self.0.send_shared(head, shared);
        }

        fn clock(&self, _now: Duration) -> Duration {
            self.1
        }
    }

    /// A millisecond at a time: a client that reads at the start of its frames and sends at their end, and a server that
    /// does so 60 times a second. What they measure, in milliseconds.
    fn measured_round_trips(frame_ms: u64, one_way_ms: u64) -> (f64, f64) {
        let ms = Duration::from_millis;
        let mut ends = [
            Peer::new(Side::Client, Delivery::Datagrams),
            Peer::new(Side::Server, Delivery::Datagrams),
        ];
        let frames = [frame_ms, 16];
        // Under way to each end, with the time of arrival.
        let mut under_way = [VecDeque::new(), VecDeque::new()];
        for now in 0..20_000 {
            for end in 0..2 {
                let phase = now % frames[end];
                if phase == 0 {
                    while let Some((at, datagram)) =
                        under_way[end].pop_front_if(|(at, _): &mut (u64, Vec<u8>)| *at <= now)
                    {
                        ends[end]
                            .receive(ms(at), &datagram, |_| {}, |_, _| {})
                            .expect("ours");
                    }
                }
                if phase == frames[end] - 1 {
                    let mut wire = Wire::default();
                    let mut to = Clocked(&mut wire, ms(now));
                    let frame_began = ms(now - phase);
                    ends[end].begin(frame_began, 0, &mut to);
                    ends[end].finish(&mut to);
                    let arrive = wire.0.into_iter().map(|it| (now + one_way_ms, it));
                    under_way[1 - end].extend(arrive);
                }
            }
        }
        let rtt = |end: usize| ends[end].acks.rtt().expect("measured").as_secs_f64() * 1e3;
        (rtt(0), rtt(1))
    }

    #[test]
    fn a_client_at_7_frames_a_second_measures_the_wire_and_not_its_frames() {
        let (client, server) = measured_round_trips(143, 25);
        assert!((49.0..=52.0).contains(&client), "{client} ms at the client");
        assert!((49.0..=52.0).contains(&server), "{server} ms at the server");
    }

    #[test]
    fn even_a_client_at_2_frames_a_second_measures_the_wire() {
        let (client, server) = measured_round_trips(500, 25);
        assert!((49.0..=52.0).contains(&client), "{client} ms at the client");
        // It answers later than it can tell, so its server knows a bound.
        assert!(
            (50.0..=1_000.0).contains(&server),
            "{server} ms at the server"
        );
    }

    /// What one end sends in a tick, over a stream that has so much queued.
    fn sent(from: &mut Peer, queued: usize) -> Vec<Vec<u8>> {
        let mut wire = Wire::default();
        from.begin(NOW, queued, &mut wire);
        from.finish(&mut wire);
        wire.0
    }

    fn taken(by: &mut Peer, datagrams: &[Vec<u8>]) -> Result<(), Violation> {
        datagrams
            .iter()
            .try_for_each(|datagram| by.receive(NOW, datagram, |_| {}, |_, _| {}))
    }

    fn stream_ends() -> (Peer, Peer) {
        (
            Peer::new(Side::Server, Delivery::Stream),
            Peer::new(Side::Client, Delivery::Stream),
        )
    }

    #[test]
    fn large_messages_leave_a_stream_in_parts_and_arrive_whole() {
        let (mut server, mut client) = stream_ends();
        let large: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        for message in [large.clone(), vec![1], large.clone()] {
            assert!(server.send_numbered(1, 7, &SharedBytes::new(message)));
        }
        assert_eq!(
            server.waiting_bytes(),
            2 * 200_000 + 1 + 3,
            "with their numbers"
        );
        let mut ticks = 0;
        let mut arrived = Vec::new();
        while arrived.len() < 3 {
            let datagrams = sent(&mut server, 0);
            let bytes: usize = datagrams.iter().map(Vec::len).sum();
            assert!(bytes < FAST_STREAM_BYTES + 1_000, "{bytes} in a tick");
            taken(&mut client, &datagrams).unwrap();
            arrived.extend(std::iter::from_fn(|| client.next_message(1)));
            ticks += 1;
        }
        assert!(ticks >= 4, "{ticks}");
        assert_eq!(server.waiting_bytes(), 0);
        assert!(arrived[0][1..] == large && arrived[2][1..] == large);
        assert_eq!(arrived[1][..], [7, 1]);
    }

    #[test]
    fn a_stream_that_is_not_read_gets_nothing_more() {
        let (mut server, _) = stream_ends();
        server.send_message(1, &SharedBytes::new(vec![0; 50_000]));
        let datagrams = sent(&mut server, STREAM_BYTES);
        assert_eq!(datagrams.len(), 1);
        assert_eq!(datagrams[0].len(), Header::LEN, "no message is in it");
        assert_eq!(server.waiting_bytes(), 50_000);
    }

    #[test]
    fn a_stream_gets_more_once_it_has_sent_what_it_got() {
        let (mut server, _) = stream_ends();
        for _ in 0..1_000 {
            server.send_message(1, &SharedBytes::new(vec![0; 1_000]));
        }
        let mut bytes = |queued| {
            let datagrams = sent(&mut server, queued);
            datagrams.iter().map(Vec::len).sum::<usize>()
        };
        let about = |bytes: usize, most: usize| (most - 2_000..most + 2_000).contains(&bytes);
        assert!(about(bytes(0), STREAM_BYTES));
        assert!(about(bytes(0), FAST_STREAM_BYTES), "all was gone");
        assert!(about(bytes(50_000), FAST_STREAM_BYTES - 50_000));
        assert!(bytes(90_000) < 100, "it has become slow");
        for queued in [80_000, 70_000, 60_000, 50_000] {
            assert!(bytes(queued) < 100);
        }
        assert!(about(bytes(40_000), STREAM_BYTES - 40_000));
    }

    #[test]
    fn unreliable_messages_that_wait_make_room_for_newer_ones() {
        let (mut server, mut client) = stream_ends();
        for number in 0..100 {
            assert!(
                server.send_message(UNRELIABLE_CHANNEL, &SharedBytes::new(vec![number; 5_000]))
            );
        }
        for _ in 0..2 {
            taken(&mut client, &sent(&mut server, 0)).unwrap();
        }
        let numbers: Vec<_> =
            std::iter::from_fn(|| client.next_message(UNRELIABLE_CHANNEL).map(|it| it[0]))
                .collect();
        assert_eq!(numbers, (88..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_client_makes_a_server_hold_is_bounded() {
        let (mut server, mut client) = stream_ends();
        let mut ticks = 0;
        let violation = loop {
            for _ in 0..100 {
                client.send_message(1, &SharedBytes::new(vec![0]));
            }
            if let Err(violation) = taken(&mut server, &sent(&mut client, 0)) {
                break violation;
            }
            ticks += 1;
            assert!(ticks < 100, "it holds all");
        };
        assert_eq!(violation.0, "more messages than may wait");
        assert!(ticks > 10, "a window of messages may wait: {ticks}");
    }

    #[test]
    fn clients_send_no_parts() {
        let (mut server, mut client) = stream_ends();
        let mut wire = Wire::default();
        client.begin(NOW, 0, &mut wire);
        client.chunk(ChunkKind::Part, &[1, 2, 3]);
        client.finish(&mut wire);
        assert!(taken(&mut server, &wire.0).is_err());
    }
}
