//! A session's numbered messages, on either side: what is still to be taken by the other end, over this link or the
//! next, and what was taken here.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::link::peer::{ChunkKind, Peer, Violation};
use crate::message::{Channel, Letter, MessageEntry};
use crate::protocol::handshake::DisconnectReason;
use crate::protocol::reliable::{
    Accept, Body, Full, Inbox, Outbox, OutboxLimits, Stream, Taken, WhenFull,
};
use crate::wire::serial;

/// One end of a session's messages. It outlives links.
pub(crate) struct Mailbox {
    pub outbox: Outbox<Letter>,
    pub inbox: Inbox,
    /// What the other side knows to be taken.
    told: Taken,
    /// Bytes of messages taken since it was last told.
    untold_bytes: usize,
    /// What it was told, by the datagrams that may still be acknowledged.
    telling: VecDeque<(u16, Taken)>,
    /// The link takes no more, or more waits than may: only a new link helps.
    is_overrun: bool,
}

/// A quarter of what clients may have on its way: [`OutboxLimits::CLIENT`].
const MUCH_TO_TELL_BYTES: usize = 16 << 10;

/// Datagrams that are remembered for [`Mailbox::handle_ack`]: acknowledgements reach 32 back.
const MAX_TELLING: usize = 64;

impl Channel {
    /// The numbered stream that this channel is; `None` if its messages may be lost.
    pub(crate) fn stream(self) -> Option<Stream> {
        match self {
            Self::ReliableOrdered => Some(Stream::Ordered),
            Self::ReliableUnordered => Some(Stream::Unordered),
            Self::Unreliable => None,
        }
    }

    fn of(stream: Stream) -> Self {
        match stream {
            Stream::Ordered => Self::ReliableOrdered,
            Stream::Unordered => Self::ReliableUnordered,
        }
    }
}

impl Mailbox {
    pub fn new(limits: OutboxLimits, when_full: WhenFull) -> Self {
        Self {
            outbox: Outbox::new(limits, when_full),
            inbox: Inbox::default(),
            told: Taken::default(),
            untold_bytes: 0,
            telling: VecDeque::new(),
            is_overrun: false,
        }
    }

    /// Takes the messages away. What is left is empty.
    pub fn take(&mut self) -> Self {
        let empty = Self::new(OutboxLimits::default(), WhenFull::default());
        std::mem::replace(self, empty)
    }

    /// All messages of which it is not known that the other side has taken them, oldest first.
    pub fn drain(&mut self) -> Vec<Letter> {
        self.outbox.drain()
    }

    /// Whether this link is of no more use.
    pub fn is_overrun(&self) -> bool {
        self.is_overrun
    }

    /// Queues a message: a reliable one in the mailbox, another at the link. Returns what was dropped to make room, or
    /// `None` if the message will not be sent.
    pub fn post(
        &mut self,
        peer: Option<&mut Peer>,
        entries: &[MessageEntry],
        channel: Channel,
        letter: Letter,
    ) -> Option<Vec<Letter>> {
        let importance = entries
            .get(usize::from(letter.id))
            .map(|entry| entry.importance)
            .unwrap_or_default();
        match (channel.stream(), peer) {
            (Some(stream), _) => {
                let pushed = self.outbox.push(stream, importance, letter);
                self.is_overrun |= matches!(pushed, Err(Full::Close { .. }));
                pushed.ok().map(|pushed| pushed.dropped)
            }
            (None, Some(peer)) => peer.send_message(channel.id(), &letter.body).then(Vec::new),
            // What may be lost is not kept for a link that is not there.
            (None, None) => Some(Vec::new()),
        }
    }

    /// Gives the link what it may have at once; a stream, if so many bytes wait at its transport.
    pub fn pump_link(&mut self, peer: &mut Peer, queued: usize) {
        if peer.is_stream() {
            self.pump_stream(peer, queued + peer.waiting_bytes());
        } else {
            self.pump(peer);
        }
    }

    /// Gives the link what it may have at once.
    pub fn pump(&mut self, peer: &mut Peer) {
        while let Some((stream, number, letter)) = self.outbox.next_to_send() {
            self.is_overrun |= !peer.send_numbered(Channel::of(stream).id(), number, &letter.body);
        }
    }

    /// The same for a stream that has so many bytes queued.
    pub fn pump_stream(&mut self, peer: &mut Peer, mut queued: usize) {
        while let Some((stream, number, letter)) = self.outbox.next_to_stream(queued) {
            queued += letter.size_bytes();
            self.is_overrun |= !peer.send_numbered(Channel::of(stream).id(), number, &letter.body);
        }
    }

    /// The number of a message, and the message.
    pub fn split(bytes: &[u8]) -> Result<(u32, &[u8]), Violation> {
        serial::decode_prefix(bytes)
            .map_err(|error| Violation(format!("a message's number: {error}")))
    }

    /// Takes a message as it came over a numbered channel: `None` if it was taken before.
    ///
    /// A gap is a link that has lost something, though it must not. The next one brings it again.
    pub fn accept(
        &mut self,
        stream: Stream,
        bytes: &Bytes,
    ) -> Result<Option<Bytes>, DisconnectReason> {
        let (number, rest) = Self::split(bytes)
            .map_err(|violation| DisconnectReason::ProtocolViolation(violation.to_string()))?;
        match self.inbox.accept(stream, number) {
            Accept::New => {
                self.untold_bytes += bytes.len();
                Ok(Some(bytes.slice_ref(rest)))
            }
            Accept::Duplicate => Ok(None),
            Accept::OutOfOrder | Accept::TooFar => Err(DisconnectReason::Link(format!(
                "something before message {number} was lost on the way"
            ))),
        }
    }

    /// Whether the other side waits, or soon will, to hear that its messages were taken.
    pub fn has_much_to_tell(&self) -> bool {
        self.untold_bytes >= MUCH_TO_TELL_BYTES
    }

    /// Tells the other side what was taken, in the datagram that was begun, unless it knows.
    pub fn tell_taken(&mut self, peer: &mut Peer, seq: u16) {
        let taken = self.inbox.taken();
        if taken == self.told {
            return;
        }
        let mut body = Vec::with_capacity(10);
        taken.encode(&mut body);
        if body.len() > peer.room() {
            return;
        }
        peer.chunk(ChunkKind::Taken, &body);
        self.untold_bytes = 0;
        if self.telling.len() == MAX_TELLING {
            self.telling.pop_front();
        }
        self.telling.push_back((seq, taken));
    }

    /// The other side has this datagram.
    pub fn handle_ack(&mut self, seq: u16) {
        if let Some(index) = self.telling.iter().position(|(of, _)| *of == seq) {
            // What was told before is no news either.
            if let Some((_, taken)) = self.telling.drain(..=index).next_back() {
                self.told = taken;
            }
        }
    }

    /// A new link: what is taken was told in the handshake.
    pub fn start_link(&mut self) {
        self.telling.clear();
        self.is_overrun = false;
        self.told = self.inbox.taken();
    }
}
