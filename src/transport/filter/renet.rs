//! Which packets may reach a `renet::RenetClient`.
//!
//! `renet` 2.0 checks that a packet can be parsed, and believes what it says. What a peer could
//! do to it that way, and what stops that here:
//!
//! | packet | does | rule |
//! |---|---|---|
//! | slice index ≥ number of slices | panics | refused |
//! | a message's number of slices changes | panics, or wraps a counter | refused |
//! | slices of a million-slice message | reserves a channel's whole memory | bounded message size |
//! | reliable message ids with gaps, messages empty | grows sets that its memory limit does not count | ids within 1,024 of the first missing one |
//! | thousands of empty messages in a packet | 40 bytes of memory for each byte sent | at most 640 a packet |
//! | a slice of a message received and read (unordered) | starts it anew, and never finishes | replaced by an empty packet with its sequence, so that it is acked |
//! | a full packet of messages that it has, again and again | copies each, and throws it away | the same |
//! | anything it cannot parse | ends the connection | dropped; the caller decides |
//!
//! From clients, slices are refused altogether: what clients send is small. Looked into and found
//! harmless: ack ranges of any size and number (it walks only what it sent), sequences (62 bits on
//! the wire, so nothing overflows), and sequences in descending order (its list of acks grows by
//! 16 bytes a packet until it no longer fits a packet, and then it ends the connection).

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use smallvec::SmallVec;

/// Length of each slice but the last of a message: `renet`'s own.
const SLICE_BYTES: usize = 1_200;

/// As many messages of one byte as fit a packet, and some more.
const MAX_MESSAGES: u16 = 640;

/// Channels on which a peer may send reliable messages, and as many for unreliable slices.
const MAX_CHANNELS: usize = 16;

/// Sliced messages of a channel that may be incomplete at a time.
const MAX_PARTIAL_MESSAGES: usize = 256;

/// How far unreliable sliced messages may lag behind the newest of them.
const UNRELIABLE_SLICED_WINDOW: u64 = 64;

/// Checks the renet packets that come over one link, before `RenetClient::process_packet`.
///
/// It keeps count of reliable messages as the receiving `RenetClient` does, so each needs the
/// other from the start, every packet that passes must be processed, and received messages must be
/// taken out every frame.
///
/// ```
/// # use bevy_tandem::transport::filter::RenetFilter;
/// # let mut renet = renet::RenetClient::new(renet::ConnectionConfig::default());
/// # let body = [4, 0, 0, 0, 0];
/// let mut filter = RenetFilter::from_client();
/// match filter.check(&body) {
///     Ok(packet) => renet.process_packet(&packet),
///     Err(rejection) if rejection.is_misbehaviour() => { /* close the link */ }
///     Err(_) => { /* as if the network had lost it: it will come again */ }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct RenetFilter {
    /// Zero refuses slices.
    max_slices: usize,
    reliable: SmallVec<[(u8, ReliableChannel); 2]>,
    unreliable: SmallVec<[(u8, UnreliableSlices); 1]>,
    repeats: u64,
}

/// Why a packet may not reach `renet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenetRejection {
    /// It cannot be parsed, or says something impossible.
    #[error("malformed renet packet")]
    Malformed,
    /// A client sent a slice of a large message.
    #[error("clients may not send messages over 1,200 bytes")]
    SliceFromClient,
    /// A message would be larger than allowed.
    #[error("renet message larger than the limit")]
    MessageTooLarge,
    /// More small messages in a packet, or more channels, than our own code makes.
    #[error("too many renet messages or channels")]
    TooMany,
    /// Contradicts an earlier slice of the same message.
    #[error("renet slice contradicts an earlier one")]
    Contradiction,
    /// Too far ahead of a message still missing. It will be sent again.
    #[error("renet message too far ahead of a missing one")]
    Ahead,
    /// Too many incomplete messages. It will be sent again.
    #[error("too many incomplete renet messages")]
    Busy,
    /// A slice of an unreliable message long past.
    #[error("stale unreliable renet slice")]
    Stale,
}

impl RenetRejection {
    /// Whether no honest peer, on no network, causes this. The link may be closed.
    pub fn is_misbehaviour(self) -> bool {
        !matches!(self, Self::Ahead | Self::Busy | Self::Stale)
    }
}

impl RenetFilter {
    /// How far, in messages, a reliable message may be ahead of the first that is missing.
    pub const RELIABLE_WINDOW: u64 = IdWindow::SIZE;

    /// For what a client sends: no slices, so messages of at most 1,200 bytes.
    pub fn from_client() -> Self {
        Self {
            max_slices: 0,
            reliable: SmallVec::new(),
            unreliable: SmallVec::new(),
            repeats: 0,
        }
    }

    /// For what a server sends: messages of at most `max_message_bytes`. Incomplete ones take up
    /// to four times that per channel, so a channel's memory limit should be above it.
    pub fn from_server(max_message_bytes: usize) -> Self {
        Self {
            max_slices: max_message_bytes.div_ceil(SLICE_BYTES).max(1),
            ..Self::from_client()
        }
    }

    /// How many reliable messages have come that had come before.
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// The packet to hand to `RenetClient::process_packet`: this one, or a harmless one that has
    /// it acked.
    ///
    /// # Errors
    /// If no packet may be handed over. See [`RenetRejection::is_misbehaviour`].
    pub fn check<'a>(&mut self, packet: &'a [u8]) -> Result<Cow<'a, [u8]>, RenetRejection> {
        let mut reader = Reader(packet);
        let kind = reader.u8()?;
        let _sequence = reader.varint()?;
        match kind {
            0 => {
                let channel_id = reader.u8()?;
                let head_bytes = packet.len() - reader.0.len();
                if !self.check_small_reliable(channel_id, &mut reader)? {
                    return Ok(Cow::Owned(ack_only(&packet[..head_bytes])));
                }
            }
            1 => check_small_unreliable(&mut reader)?,
            2 => {
                let channel_id = reader.u8()?;
                let head_bytes = packet.len() - reader.0.len();
                let slice = self.read_slice(&mut reader)?;
                if !channel(&mut self.reliable, channel_id)?.handle_slice(slice, self.max_slices)? {
                    return Ok(Cow::Owned(ack_only(&packet[..head_bytes])));
                }
            }
            3 => {
                let channel_id = reader.u8()?;
                let slice = self.read_slice(&mut reader)?;
                channel(&mut self.unreliable, channel_id)?.handle_slice(slice)?;
            }
            4 => check_acks(&mut reader)?,
            _ => return Err(RenetRejection::Malformed),
        }
        Ok(Cow::Borrowed(packet))
    }

    /// Whether `renet` needs to see the messages: false if it has them all.
    fn check_small_reliable(
        &mut self,
        channel_id: u8,
        reader: &mut Reader,
    ) -> Result<bool, RenetRejection> {
        let messages = reader.message_count()?;
        let channel = channel(&mut self.reliable, channel_id)?;
        // Messages of a packet come in order, so one can let the next into the window. Judged on
        // a copy: a refused packet must leave no trace, since `renet` will not see it.
        let mut window = channel.window.clone();
        let mut new = 0;
        for _ in 0..messages {
            let message_id = reader.varint()?;
            reader.message()?;
            if channel.partial.contains_key(&message_id) {
                return Err(RenetRejection::Contradiction);
            }
            new += u16::from(window.insert(message_id)?);
        }
        reader.end()?;
        channel.window = window;
        self.repeats += u64::from(messages - new);
        Ok(new > 0)
    }

    /// A slice that makes sense by itself.
    fn read_slice(&self, reader: &mut Reader) -> Result<Slice, RenetRejection> {
        if self.max_slices == 0 {
            return Err(RenetRejection::SliceFromClient);
        }
        let message_id = reader.varint()?;
        let (index, count) = (reader.varint()?, reader.varint()?);
        let bytes = reader.message()?.len();
        reader.end()?;

        let max_slices = self.max_slices as u64;
        if count > max_slices {
            return Err(RenetRejection::MessageTooLarge);
        }
        let is_last = index + 1 == count;
        if index >= count || bytes == 0 || bytes > SLICE_BYTES || (!is_last && bytes != SLICE_BYTES)
        {
            return Err(RenetRejection::Malformed);
        }
        Ok(Slice {
            message_id,
            index: index as usize,
            count: count as usize,
        })
    }
}

fn check_small_unreliable(reader: &mut Reader) -> Result<(), RenetRejection> {
    let _channel_id = reader.u8()?;
    for _ in 0..reader.message_count()? {
        reader.message()?;
    }
    reader.end()
}

/// Ranges run downwards, each written as its distance from the one before and its length.
fn check_acks(reader: &mut Reader) -> Result<(), RenetRejection> {
    let (end, length, more) = (reader.varint()?, reader.varint()?, reader.varint()?);
    let mut start = end.checked_sub(length).ok_or(RenetRejection::Malformed)?;
    // However many it claims, it cannot claim more than it has bytes for.
    for _ in 0..more {
        let (gap, length) = (reader.varint()?, reader.varint()?);
        let end = start
            .checked_sub(gap + 2)
            .ok_or(RenetRejection::Malformed)?;
        start = end.checked_sub(length).ok_or(RenetRejection::Malformed)?;
    }
    reader.end()
}

/// A small reliable packet without messages: `renet` acks its sequence and does nothing else.
/// `head` is the type, sequence and channel of the packet it stands for.
fn ack_only(head: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(head.len() + 2);
    packet.push(0);
    packet.extend_from_slice(&head[1..]);
    packet.extend_from_slice(&[0, 0]);
    packet
}

/// A slice of a larger message: its payload's length is legal, `index < count ≤ max_slices`.
#[derive(Clone, Copy)]
struct Slice {
    message_id: u64,
    index: usize,
    count: usize,
}

/// Mirrors which messages `renet`'s receiving channel has and has begun.
#[derive(Clone, Debug, Default)]
struct ReliableChannel {
    window: IdWindow,
    partial: BTreeMap<u64, PartialMessage>,
    partial_slices: usize,
}

#[derive(Clone, Debug)]
struct PartialMessage {
    received: Box<[bool]>,
    missing: usize,
}

impl ReliableChannel {
    /// Whether `renet` needs to see the slice: false if it has the message already.
    fn handle_slice(&mut self, slice: Slice, max_slices: usize) -> Result<bool, RenetRejection> {
        if self.window.contains(slice.message_id)? {
            return Ok(false);
        }
        if !self.partial.contains_key(&slice.message_id) {
            let slices = self.partial_slices + slice.count;
            if self.partial.len() >= MAX_PARTIAL_MESSAGES || slices > 4 * max_slices {
                return Err(RenetRejection::Busy);
            }
            self.partial_slices = slices;
        }
        let message = self
            .partial
            .entry(slice.message_id)
            .or_insert_with(|| PartialMessage {
                received: vec![false; slice.count].into(),
                missing: slice.count,
            });
        if message.received.len() != slice.count {
            return Err(RenetRejection::Contradiction);
        }
        if !std::mem::replace(&mut message.received[slice.index], true) {
            message.missing -= 1;
        }
        if message.missing == 0 {
            self.partial.remove(&slice.message_id);
            self.partial_slices -= slice.count;
            self.window.insert(slice.message_id)?;
        }
        Ok(true)
    }
}

/// Which messages have arrived, from the first that has not onwards.
#[derive(Clone, Debug, Default)]
struct IdWindow {
    first_missing: u64,
    /// One bit for each id from `first_missing` on, at its remainder.
    received: [u64; Self::WORDS],
}

impl IdWindow {
    const WORDS: usize = 16;
    const SIZE: u64 = Self::WORDS as u64 * 64;

    fn contains(&self, id: u64) -> Result<bool, RenetRejection> {
        if id < self.first_missing {
            return Ok(true);
        }
        if id - self.first_missing >= Self::SIZE {
            return Err(RenetRejection::Ahead);
        }
        let (word, bit) = Self::place(id);
        Ok(self.received[word] & bit != 0)
    }

    /// Whether it is new.
    fn insert(&mut self, id: u64) -> Result<bool, RenetRejection> {
        if self.contains(id)? {
            return Ok(false);
        }
        let (word, bit) = Self::place(id);
        self.received[word] |= bit;
        loop {
            let (word, bit) = Self::place(self.first_missing);
            if self.received[word] & bit == 0 {
                return Ok(true);
            }
            self.received[word] &= !bit;
            self.first_missing += 1;
        }
    }

    fn place(id: u64) -> (usize, u64) {
        ((id / 64) as usize % Self::WORDS, 1 << (id % 64))
    }
}

/// Remembers the number of slices of recent messages for as long as their slices are let through.
#[derive(Clone, Debug, Default)]
struct UnreliableSlices {
    newest_id: u64,
    /// Message ids and their numbers of slices, oldest first by arrival.
    recent: VecDeque<(u64, usize)>,
}

impl UnreliableSlices {
    fn handle_slice(&mut self, slice: Slice) -> Result<(), RenetRejection> {
        if slice.message_id + UNRELIABLE_SLICED_WINDOW <= self.newest_id {
            return Err(RenetRejection::Stale);
        }
        if let Some((_, count)) = self.recent.iter().find(|(id, _)| *id == slice.message_id) {
            return if *count == slice.count {
                Ok(())
            } else {
                Err(RenetRejection::Contradiction)
            };
        }
        self.newest_id = self.newest_id.max(slice.message_id);
        self.recent.push_back((slice.message_id, slice.count));
        self.recent
            .retain(|(id, _)| id + UNRELIABLE_SLICED_WINDOW > self.newest_id);
        Ok(())
    }
}

fn channel<T: Default, const N: usize>(
    channels: &mut SmallVec<[(u8, T); N]>,
    id: u8,
) -> Result<&mut T, RenetRejection>
where
    [(u8, T); N]: smallvec::Array<Item = (u8, T)>,
{
    let index = match channels.iter().position(|(other, _)| *other == id) {
        Some(index) => index,
        None if channels.len() < MAX_CHANNELS => {
            channels.push((id, T::default()));
            channels.len() - 1
        }
        None => return Err(RenetRejection::TooMany),
    };
    Ok(&mut channels[index].1)
}

/// What is left of a packet. Integers are big-endian; varints are QUIC's (RFC 9000, section 16).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], RenetRejection> {
        let (bytes, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(RenetRejection::Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, RenetRejection> {
        Ok(self.bytes(1)?[0])
    }

    fn varint(&mut self) -> Result<u64, RenetRejection> {
        let first = *self.0.first().ok_or(RenetRejection::Malformed)?;
        let bytes = self.bytes(1 << (first >> 6))?;
        let value = bytes
            .iter()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        // The two highest bits told the length.
        Ok(value & (u64::MAX >> (66 - 8 * bytes.len())))
    }

    fn message_count(&mut self) -> Result<u16, RenetRejection> {
        let bytes = self.bytes(2)?;
        let count = u16::from_be_bytes([bytes[0], bytes[1]]);
        if count > MAX_MESSAGES {
            Err(RenetRejection::TooMany)
        } else {
            Ok(count)
        }
    }

    fn message(&mut self) -> Result<&'a [u8], RenetRejection> {
        let length = self.varint()?;
        self.bytes(usize::try_from(length).map_err(|_| RenetRejection::Malformed)?)
    }

    fn end(&self) -> Result<(), RenetRejection> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(RenetRejection::Malformed)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use renet::{ChannelConfig, ConnectionConfig, RenetClient, SendType};

    use super::*;

    const UNRELIABLE: u8 = 0;
    const UNORDERED: u8 = 1;
    const ORDERED: u8 = 2;

    fn renet() -> RenetClient {
        let mut renet = RenetClient::new(ConnectionConfig::default());
        renet.set_connected();
        renet
    }

    fn varint(packet: &mut Vec<u8>, value: u64) {
        packet.extend_from_slice(&(value | 0b11 << 62).to_be_bytes());
    }

    fn small(kind: u8, sequence: u64, channel_id: u8, messages: &[(u64, &[u8])]) -> Vec<u8> {
        let mut packet = vec![kind];
        varint(&mut packet, sequence);
        packet.push(channel_id);
        packet.extend_from_slice(&(messages.len() as u16).to_be_bytes());
        for (id, message) in messages {
            if kind == 0 {
                varint(&mut packet, *id);
            }
            varint(&mut packet, message.len() as u64);
            packet.extend_from_slice(message);
        }
        packet
    }

    fn slice(kind: u8, channel_id: u8, id: u64, index: u64, count: u64, bytes: usize) -> Vec<u8> {
        let mut packet = vec![kind];
        varint(&mut packet, 0);
        packet.push(channel_id);
        [id, index, count, bytes as u64]
            .into_iter()
            .for_each(|value| varint(&mut packet, value));
        packet.resize(packet.len() + bytes, 1);
        packet
    }

    fn crashes(packets: &[Vec<u8>]) -> bool {
        let mut renet = renet();
        catch_unwind(AssertUnwindSafe(|| {
            packets
                .iter()
                .for_each(|packet| renet.process_packet(packet));
        }))
        .is_err()
    }

    #[test]
    fn a_slice_index_beyond_the_number_of_slices_is_stopped() {
        for (kind, channel) in [(2, ORDERED), (2, UNORDERED), (3, UNRELIABLE)] {
            for index in [2, 1_000, u64::MAX >> 2] {
                let packet = slice(kind, channel, 0, index, 2, SLICE_BYTES);
                assert!(
                    crashes(std::slice::from_ref(&packet)),
                    "renet indexes out of bounds"
                );
                let rejection = RenetFilter::from_server(1 << 20).check(&packet).map(drop);
                assert_eq!(
                    rejection,
                    Err(RenetRejection::Malformed),
                    "the filter refuses"
                );
            }
        }
    }

    #[test]
    fn a_changing_number_of_slices_is_stopped() {
        for (kind, channel) in [(2, ORDERED), (2, UNORDERED), (3, UNRELIABLE)] {
            let packets = [
                slice(kind, channel, 0, 0, 2, SLICE_BYTES),
                slice(kind, channel, 0, 5, 9, SLICE_BYTES),
            ];
            assert!(crashes(&packets), "renet indexes out of bounds");
            let mut filter = RenetFilter::from_server(1 << 20);
            assert!(filter.check(&packets[0]).is_ok(), "the first is honest");
            let rejection = filter.check(&packets[1]).map(drop);
            assert_eq!(
                rejection,
                Err(RenetRejection::Contradiction),
                "the second contradicts it"
            );
        }
    }

    #[test]
    fn a_number_of_slices_that_grows_on_the_last_is_stopped() {
        // Complete at its first number, accounted for at its second.
        let packets = [
            slice(2, ORDERED, 0, 0, 2, SLICE_BYTES),
            slice(2, ORDERED, 0, 1, 900, SLICE_BYTES),
        ];
        if cfg!(debug_assertions) {
            assert!(
                crashes(&packets),
                "renet subtracts more memory than it added"
            );
        }
        let mut filter = RenetFilter::from_server(2 << 20);
        assert!(filter.check(&packets[0]).is_ok(), "the first is honest");
        assert_eq!(
            filter.check(&packets[1]).map(drop),
            Err(RenetRejection::Contradiction),
            "the second is not"
        );
    }

    #[test]
    fn clients_may_not_send_slices() {
        for (kind, channel) in [(2, ORDERED), (3, UNRELIABLE)] {
            let rejection = RenetFilter::from_client()
                .check(&slice(kind, channel, 0, 0, 1, 5))
                .map(drop);
            assert_eq!(
                rejection,
                Err(RenetRejection::SliceFromClient),
                "however well-formed"
            );
        }
    }

    #[test]
    fn messages_over_the_limit_are_stopped() {
        let mut filter = RenetFilter::from_server(10 * SLICE_BYTES);
        assert!(
            filter
                .check(&slice(2, ORDERED, 0, 0, 10, SLICE_BYTES))
                .is_ok(),
            "at the limit"
        );
        let rejection = filter
            .check(&slice(2, ORDERED, 1, 0, 11, SLICE_BYTES))
            .map(drop);
        assert_eq!(rejection, Err(RenetRejection::MessageTooLarge), "above it");
    }

    #[test]
    fn empty_messages_with_gaps_cannot_grow_memory() {
        let mut filter = RenetFilter::from_client();
        let mut passed = 0;
        for id in 1..10_000 {
            passed += usize::from(filter.check(&small(0, id, ORDERED, &[(id, b"")])).is_ok());
        }
        assert_eq!(passed, 1_023, "only so many can wait for the missing first");
        let rejection = filter
            .check(&small(0, 0, ORDERED, &[(u64::MAX >> 2, b"")]))
            .map(drop);
        assert_eq!(
            rejection,
            Err(RenetRejection::Ahead),
            "an honest peer could get there, so it is not punished"
        );
        assert!(
            filter.check(&small(0, 0, ORDERED, &[(0, b"")])).is_ok(),
            "the missing one is welcome"
        );
        assert!(
            filter.check(&small(0, 0, ORDERED, &[(2_000, b"")])).is_ok(),
            "and opens the window"
        );
    }

    #[test]
    fn a_packet_can_open_the_window_for_its_own_later_messages() {
        let mut filter = RenetFilter::from_client();
        for id in 1..1_024 {
            filter
                .check(&small(0, id, ORDERED, &[(id, b"x")]))
                .expect("within the window");
        }
        let resent: Vec<(u64, &[u8])> = vec![(0, b"x"), (1_024, b"x"), (1_500, b"x")];
        assert!(
            filter.check(&small(0, 5_000, ORDERED, &resent)).is_ok(),
            "else nothing would ever move again"
        );
    }

    #[test]
    fn a_refused_packet_leaves_no_trace() {
        let mut filter = RenetFilter::from_client();
        let refused: Vec<(u64, &[u8])> = vec![(0, b"x"), (5_000, b"x")];
        assert!(
            filter.check(&small(0, 0, ORDERED, &refused)).is_err(),
            "one message is too far ahead"
        );
        assert!(
            filter
                .check(&small(0, 1, ORDERED, &[(1_024, b"x")]))
                .is_err(),
            "so the other is still missing"
        );
    }

    #[test]
    fn a_flood_of_empty_messages_in_one_packet_is_stopped() {
        let messages: Vec<(u64, &[u8])> = vec![(0, b""); 700];
        let rejection = RenetFilter::from_client()
            .check(&small(1, 0, UNRELIABLE, &messages))
            .map(drop);
        assert_eq!(
            rejection,
            Err(RenetRejection::TooMany),
            "nobody honest sends that"
        );
    }

    #[test]
    fn huge_ack_ranges_pass_and_do_no_harm() {
        let mut packet = vec![4];
        let end = u64::MAX >> 2;
        [0, end, end, 0]
            .into_iter()
            .for_each(|value| varint(&mut packet, value));
        assert!(
            RenetFilter::from_client().check(&packet).is_ok(),
            "well-formed"
        );
        let mut renet = renet();
        renet.send_message(ORDERED, vec![1]);
        renet.get_packets_to_send();
        renet.process_packet(&packet);
        assert!(renet.is_connected(), "acks whatever was sent, in no time");
    }

    #[test]
    fn impossible_ack_ranges_are_stopped() {
        for values in [[0, 5, 6, 0], [0, 5, 0, 1]] {
            let mut packet = vec![4];
            values
                .into_iter()
                .for_each(|value| varint(&mut packet, value));
            assert_eq!(
                RenetFilter::from_client().check(&packet).map(drop),
                Err(RenetRejection::Malformed),
                "a range below zero, and a range that is missing"
            );
        }
    }

    #[test]
    fn descending_sequences_end_in_a_disconnect_and_not_in_growth() {
        let mut renet = renet();
        for n in 0..20_000 {
            renet.process_packet(&small(1, 1_000_000 - 2 * n, UNRELIABLE, &[]));
            if n % 64 == 0 {
                renet.get_packets_to_send();
            }
        }
        assert!(
            renet.is_disconnected(),
            "renet's list of acks no longer fits a packet"
        );
    }

    #[test]
    fn of_a_packet_that_only_repeats_nothing_but_its_acknowledgement_is_left() {
        let mut renet = renet();
        let mut filter = RenetFilter::from_client();
        let messages = [(0, &b"one"[..]), (1, b"two")];
        for (sequence, messages, passes) in [
            (0, &messages[..1], true),
            (1, &messages[..], true),
            (2, &messages[..], false),
            (3, &messages[1..], false),
        ] {
            let packet = small(0, sequence, ORDERED, messages);
            let checked = filter.check(&packet).expect("an honest packet");
            assert_eq!(*checked == *packet, passes, "packet {sequence}");
            assert!(passes || checked.len() < packet.len(), "packet {sequence}");
            renet.process_packet(&checked);
        }
        assert_eq!(renet.receive_message(ORDERED).as_deref(), Some(&b"one"[..]));
        assert_eq!(renet.receive_message(ORDERED).as_deref(), Some(&b"two"[..]));
        assert_eq!(renet.receive_message(ORDERED), None);
        assert_eq!(filter.repeats(), 4);
        let mut acked = RenetClient::new(ConnectionConfig::default());
        (0..4).for_each(|sequence| acked.process_packet(&small(0, sequence, ORDERED, &[])));
        let acks = |renet: &mut RenetClient| renet.get_packets_to_send().concat();
        assert_eq!(acks(&mut renet), acks(&mut acked), "all four are acked");
    }

    #[test]
    fn a_late_slice_of_a_message_already_read_is_acked_and_not_begun_again() {
        let mut renet = renet();
        let mut filter = RenetFilter::from_server(1 << 20);
        // Message 0 is missing, message 1 complete and, since the channel is unordered, read.
        for index in 0..2 {
            let packet = slice(2, UNORDERED, 1, index, 2, SLICE_BYTES);
            renet.process_packet(&filter.check(&packet).expect("an honest slice"));
        }
        assert!(
            renet.receive_message(UNORDERED).is_some(),
            "read before message 0"
        );

        let again = slice(2, UNORDERED, 1, 0, 2, SLICE_BYTES);
        let packet = filter.check(&again).expect("a late copy is nobody's fault");
        assert!(packet.len() < 20, "nothing of the message is left");
        let acks = |renet: &mut RenetClient| renet.get_packets_to_send().concat();
        let mut acked = RenetClient::new(ConnectionConfig::default());
        acked.process_packet(&again);
        renet.process_packet(&packet);
        assert_eq!(
            acks(&mut renet)[2..],
            acks(&mut acked)[2..],
            "the copy is acked like the original"
        );
    }

    #[test]
    fn incomplete_messages_are_bounded() {
        let mut filter = RenetFilter::from_server(100 * SLICE_BYTES);
        for id in 0..4 {
            assert!(
                filter
                    .check(&slice(2, ORDERED, id, 0, 100, SLICE_BYTES))
                    .is_ok(),
                "four of the largest"
            );
        }
        let rejection = filter.check(&slice(2, ORDERED, 4, 0, 1, 1)).map(drop);
        assert_eq!(rejection, Err(RenetRejection::Busy), "the next has to wait");
    }

    #[test]
    fn unreliable_slices_are_remembered_as_long_as_they_pass() {
        let mut filter = RenetFilter::from_server(1 << 20);
        for id in 0..1_000 {
            assert!(
                filter
                    .check(&slice(3, UNRELIABLE, id, 0, 2, SLICE_BYTES))
                    .is_ok(),
                "the newest passes"
            );
        }
        assert_eq!(
            filter.unreliable[0].1.recent.len(),
            64,
            "and the rest is forgotten"
        );
        let old = filter.check(&slice(3, UNRELIABLE, 900, 1, 2, 1)).map(drop);
        assert_eq!(
            old,
            Err(RenetRejection::Stale),
            "what is forgotten does not pass"
        );
        let recent = filter
            .check(&slice(3, UNRELIABLE, 990, 1, 3, SLICE_BYTES))
            .map(drop);
        assert_eq!(
            recent,
            Err(RenetRejection::Contradiction),
            "what passes is not forgotten"
        );
    }

    /// Sends messages of all sizes both ways through filters and a network that loses, reorders
    /// and repeats, and expects all of them.
    #[test]
    fn everything_honest_arrives_over_a_bad_network() {
        let config = || {
            let channel = |channel_id, send_type| ChannelConfig {
                channel_id,
                max_memory_usage_bytes: 4 << 20,
                send_type,
            };
            let resend_time = Duration::from_millis(100);
            let channels = vec![
                channel(UNRELIABLE, SendType::Unreliable),
                channel(UNORDERED, SendType::ReliableUnordered { resend_time }),
                channel(ORDERED, SendType::ReliableOrdered { resend_time }),
            ];
            ConnectionConfig {
                available_bytes_per_tick: 60_000,
                server_channels_config: channels.clone(),
                client_channels_config: channels,
            }
        };
        let mut rng = fastrand::Rng::with_seed(11);
        let mut ends = [RenetClient::new(config()), RenetClient::new(config())];
        ends.iter_mut().for_each(RenetClient::set_connected);
        let mut filters = [
            RenetFilter::from_client(),
            RenetFilter::from_server(100_000),
        ];
        let (mut sent, mut received) = ([0; 2], [0; 2]);
        for frame in 0..3_000 {
            for (end, renet) in ends.iter_mut().enumerate() {
                for channel in [UNRELIABLE, UNORDERED, ORDERED] {
                    while renet.receive_message(channel).is_some() {
                        received[end] += usize::from(channel != UNRELIABLE);
                    }
                }
                for _ in 0..if frame < 1_500 { 4 } else { 0 } {
                    let channel = rng.u8(0..3);
                    let largest = if end == 1 && rng.u8(..) < 10 {
                        50_000
                    } else {
                        1_200
                    };
                    let message: Vec<u8> = vec![frame as u8; rng.usize(0..=largest)];
                    sent[end] += usize::from(channel != UNRELIABLE);
                    renet.send_message(channel, message);
                }
                renet.update(Duration::from_millis(16));
            }
            for (end, filter) in filters.iter_mut().enumerate() {
                let mut packets = ends[end].get_packets_to_send();
                rng.shuffle(&mut packets);
                for packet in packets {
                    // Lost, arrived, or arrived twice.
                    for _ in 0..rng.usize(0..=2) {
                        match filter.check(&packet) {
                            Ok(packet) => ends[1 - end].process_packet(&packet),
                            Err(why) => assert!(
                                !why.is_misbehaviour(),
                                "honest packets are no misbehaviour: {why}"
                            ),
                        }
                    }
                }
            }
        }
        assert!(
            ends.iter().all(RenetClient::is_connected),
            "both ends stay connected"
        );
        assert_eq!(
            [received[1], received[0]],
            sent,
            "every reliable message arrived"
        );
    }
}
