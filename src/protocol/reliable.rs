//! A session's numbered messages, one direction of them, from one link to the next.
//!
//! A link delivers reliably as long as it lives. What was on the way when it died, nobody knows. So a session numbers
//! its messages itself: the [`Outbox`] keeps each until the other side's *game* has taken it, the [`Inbox`] knows what
//! the game has taken. After a resume over a new link the outbox hands out again exactly what is missing, under the same
//! numbers, and the inbox drops what comes twice.
//!
//! # Streams and importance
//!
//! Two [`Stream`]s have numbers of their own. In the ordered one a message arrives after those that were handed to the
//! link before it; in the unordered one each arrives as soon as it can. Numbers are given when a message is handed to a
//! link and not when it is pushed, so an important message overtakes those that wait, also in the ordered stream. Within
//! one stream and one [`Importance`] the order is that of pushing.
//!
//! # The window
//!
//! At most [`OutboxLimits::window_bytes`] are with the link at a time. More would make its buffers long, and nothing in
//! a buffer can be overtaken. It also bounds what is sent twice after a resume.
//!
//! # Numbers
//!
//! They are `u32`, wrap around, and are compared by distance. At most [`MAX_WINDOW_MESSAGES`] of a stream are out at a
//! time, so there is never a doubt. Whatever the other side claims, it can only make the outbox keep what it keeps
//! anyway, within its limits.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::wire::WireError;

/// How many streams a session has in each direction.
pub const STREAMS: usize = 2;

/// The most messages of one stream that are handed to a link and not acknowledged, whatever
/// [`OutboxLimits::window_messages`] says: an [`Inbox`] remembers so many.
pub const MAX_WINDOW_MESSAGES: usize = 1_024;

/// Queues that held more than this give their memory back when they are empty.
const KEEP_CAPACITY: usize = 32;

const IMPORTANCES: usize = 3;

/// The longest varint of a `u32`, in bytes.
const MAX_VARINT_BYTES: usize = 5;

/// Which sequence a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Messages arrive in the order in which they were handed to the link.
    Ordered,
    /// Messages arrive as soon as they can.
    Unordered,
}

impl Stream {
    /// All of them, in the order of [`Self::index`].
    pub const ALL: [Self; STREAMS] = [Self::Ordered, Self::Unordered];

    /// Its place in arrays with one element per stream: 0 or 1.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Ordered => 0,
            Self::Unordered => 1,
        }
    }
}

/// Which messages go first when they cannot all go at once.
///
/// Strict: while more important ones wait, others do. Queues are bounded, so what is never sent shows as a full queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Importance {
    /// After all others, and the first to be dropped.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before all others.
    High,
}

impl Importance {
    /// Highest first: the order in which queues are served.
    const DESCENDING: [Self; IMPORTANCES] = [Self::High, Self::Normal, Self::Low];
    const ASCENDING: [Self; IMPORTANCES] = [Self::Low, Self::Normal, Self::High];

    fn index(self) -> usize {
        match self {
            Self::Low => 0,
            Self::Normal => 1,
            Self::High => 2,
        }
    }
}

/// How much an [`Outbox`] holds, and how much of that is with the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    /// The most messages, waiting and unacknowledged together. At least 1. Default: 1,000.
    pub max_messages: usize,
    /// The most bytes of them. Larger messages are refused. Default: 1 MiB; [`OutboxLimits::SERVER`] has 8 MiB, so that
    /// a message of 1 MiB fits beside what waits already.
    pub max_bytes: usize,
    /// The most bytes that are handed to the link and not acknowledged. A larger message goes alone. Default: 64 KiB,
    /// which is 640 kB/s at a round trip of 100 ms; [`OutboxLimits::SERVER`] has 96 KiB.
    pub window_bytes: usize,
    /// The most messages that are handed to the link and not acknowledged: 1 to [`MAX_WINDOW_MESSAGES`], and taken as
    /// the nearest of these otherwise. Default: 256, which is 2,560 a second at a round trip of 100 ms.
    pub window_messages: usize,
}

impl OutboxLimits {
    /// What a client sends: commands and chat.
    pub const CLIENT: Self = Self {
        max_messages: 1_000,
        max_bytes: 1 << 20,
        window_bytes: 64 << 10,
        window_messages: 256,
    };

    /// What a server sends to one client, large values included.
    pub const SERVER: Self = Self {
        max_bytes: 8 << 20,
        window_bytes: 96 << 10,
        ..Self::CLIENT
    };
}

impl Default for OutboxLimits {
    fn default() -> Self {
        Self::CLIENT
    }
}

/// What [`Outbox::push`] does when the outbox is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Refuses the new message. The default: the game learns at once, and nothing that was promised is broken.
    #[default]
    Refuse,
    /// Drops messages that were not yet handed to the link, the least important first and of these the oldest, but none
    /// that is more important than the new one. Refuses the new one if that does not make enough room.
    DropOldest,
    /// Asks the caller to end the link: a peer that cannot keep up is no player.
    Close,
}

/// What an [`Outbox`] keeps: a message that can be copied cheaply, as it may have to be sent again.
pub trait Body: Clone {
    /// What it counts for in the limits, in bytes.
    fn size_bytes(&self) -> usize;
}

impl Body for Bytes {
    fn size_bytes(&self) -> usize {
        self.len()
    }
}

impl Body for Vec<u8> {
    fn size_bytes(&self) -> usize {
        self.len()
    }
}

/// A message was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "tells what was dropped to make room"]
pub struct Pushed<B> {
    /// What was dropped to make room, oldest first. Usually empty.
    pub dropped: Vec<B>,
}

/// A message was not accepted; it is handed back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full<B> {
    /// There is no room.
    #[error(
        "the outgoing queue is full ({messages} messages, {bytes} bytes): send less, raise `OutboxLimits`, \
         or let it drop old messages with `WhenFull::DropOldest`"
    )]
    Refused {
        /// The message.
        body: B,
        /// How many messages the outbox holds.
        messages: usize,
        /// How many bytes they have.
        bytes: usize,
    },
    /// There is no room, and [`WhenFull::Close`] asks for the end of the link.
    #[error(
        "the outgoing queue is full ({messages} messages, {bytes} bytes), and its policy is to end the link"
    )]
    Close {
        /// The message.
        body: B,
        /// How many messages the outbox holds.
        messages: usize,
        /// How many bytes they have.
        bytes: usize,
    },
    /// It would not fit into an empty outbox either.
    #[error(
        "a message of {size} bytes is too large for an outgoing queue of {max_bytes} bytes: \
         split it, or raise `OutboxLimits::max_bytes`"
    )]
    TooLarge {
        /// The message.
        body: B,
        /// Its size in bytes.
        size: usize,
        /// [`OutboxLimits::max_bytes`].
        max_bytes: usize,
    },
}

/// What the other side's game has taken: for each stream, all numbers before `next`.
///
/// Cumulative, so that a lost one does not matter. Encoded as two LEB128 varints, ordered stream first: 2 to 10 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Taken {
    /// The first number that was not taken, by [`Stream::index`].
    pub next: [u32; STREAMS],
}

impl Taken {
    /// Appends its encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for next in self.next {
            write_varint(next, out);
        }
    }

    /// Reads what [`Self::encode`] wrote at the start of `input`, and returns what follows it too.
    ///
    /// # Errors
    ///
    /// [`WireError`] if `input` ends too early, or holds a number that is too large or needlessly long.
    pub fn decode(input: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (ordered, rest) = read_varint(input)?;
        let (unordered, rest) = read_varint(rest)?;
        let next = [ordered, unordered];
        Ok((Self { next }, rest))
    }
}

/// Appends `value` as a LEB128 varint: seven bits a byte, the low ones first; 1 to 5 bytes.
pub fn write_varint(mut value: u32, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a LEB128 varint at the start of `input`, and returns what follows it too.
///
/// # Errors
///
/// [`WireError`] if `input` ends within it, if it does not fit a `u32`, or if it is longer than it needs to be (so that
/// each number has one encoding).
pub fn read_varint(input: &[u8]) -> Result<(u32, &[u8]), WireError> {
    let mut value = 0;
    for (index, &byte) in input.iter().take(MAX_VARINT_BYTES).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if byte == 0 && index > 0 {
                return Err(WireError::InvalidValue(
                    "a varint is longer than it needs to be",
                ));
            }
            let value = u32::try_from(value)
                .map_err(|_| WireError::InvalidValue("a varint does not fit 32 bits"))?;
            return Ok((value, &input[index + 1..]));
        }
    }
    if input.len() < MAX_VARINT_BYTES {
        Err(WireError::OutOfBits)
    } else {
        Err(WireError::InvalidValue("a varint does not fit 32 bits"))
    }
}

/// How a session goes on over a new link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// The other side gets every message that it misses.
    Complete,
    /// It gets all but this many, at least one, which had to be dropped while there was no link. Of the unordered
    /// stream, some of them may have arrived before: then it is fewer, and [`Inbox::skip_to`] knows how many.
    Lost(u64),
}

/// The other side claims what cannot be: it has lost its state, belongs to another session, or lies.
///
/// Nothing has changed. Reject the resume, or [start over](Outbox::start_over).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the other side claims to have taken all {stream:?} messages before {claimed}, which must lie between \
     {acknowledged} and {next}: join anew instead of resuming"
)]
pub struct Gap {
    /// The stream of the first claim that cannot be.
    pub stream: Stream,
    /// The claim.
    pub claimed: u32,
    /// What it had acknowledged before.
    pub acknowledged: u32,
    /// The first number that was not given yet.
    pub next: u32,
}

/// The sending end: keeps each message until the other side's game has taken it.
///
/// Unused, it has allocated nothing.
///
/// ```
/// use bevy_tandem::protocol::reliable::*;
///
/// let mut outbox = Outbox::default();
/// let mut inbox = Inbox::default();
/// outbox.push(Stream::Ordered, Importance::Normal, b"one".to_vec())?;
/// let lost_with_the_link = outbox.next_to_send();
/// assert!(lost_with_the_link.is_some());
/// outbox.set_away();
/// outbox.push(Stream::Ordered, Importance::Normal, b"two".to_vec())?;
///
/// assert_eq!(outbox.resume(inbox.taken(), |_| ()), Ok(Resumption::Complete));
/// let mut got = Vec::new();
/// while let Some((stream, number, body)) = outbox.next_to_send() {
///     if inbox.accept(stream, number) == Accept::New {
///         got.push(body);
///     }
/// }
/// assert_eq!(got, [b"one", b"two"]);
/// outbox.handle_taken(inbox.taken(), |_| ());
/// assert!(outbox.is_empty());
/// # Ok::<(), Full<Vec<u8>>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Outbox<B> {
    limits: OutboxLimits,
    when_full: WhenFull,
    /// What waits, by importance and stream.
    waiting: [[Queue<B>; STREAMS]; IMPORTANCES],
    tails: [Tail<B>; STREAMS],
    /// Everything here.
    held: Load,
    /// What this link was given and has not been acknowledged.
    in_flight: Load,
    next_stamp: u64,
    away: bool,
    lost: u64,
    /// Part of `lost` of which the other side does not know for certain.
    lost_untold: u64,
}

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    messages: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes -= bytes;
    }
}

#[derive(Clone, Debug)]
struct Entry<B> {
    /// Counts pushes: the smaller, the older.
    stamp: u64,
    importance: Importance,
    /// Asked for once, so that our books balance even if a body changed its mind.
    size: usize,
    body: B,
}

/// Messages without a number.
#[derive(Clone, Debug)]
struct Queue<B> {
    entries: VecDeque<Entry<B>>,
    bytes: usize,
}

impl<B> Queue<B> {
    const EMPTY: Self = Self {
        entries: VecDeque::new(),
        bytes: 0,
    };

    fn pop(&mut self) -> Option<Entry<B>> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.size;
        give_back(&mut self.entries);
        Some(entry)
    }
}

/// Messages of one stream that have a number and are not acknowledged.
#[derive(Clone, Debug)]
struct Tail<B> {
    entries: VecDeque<Entry<B>>,
    /// How many of `entries` this link was given.
    given: usize,
    /// The number of the first of `entries`, or the next to give.
    first: u32,
    /// The other side has taken everything before this. Up to `first`, what follows it was dropped.
    acked: u32,
    /// Of what was dropped, so many from `acked` on are known not to have been taken before: there was a resume since.
    known_lost: u32,
}

impl<B> Tail<B> {
    const fn starting_at(first: u32) -> Self {
        Self {
            entries: VecDeque::new(),
            given: 0,
            first,
            acked: first,
            known_lost: 0,
        }
    }

    /// The number of the next message to be handed over for the first time.
    fn next(&self) -> u32 {
        self.first.wrapping_add(self.entries.len() as u32)
    }

    /// Whether the other side may have taken everything before `number`, and not less than we know of.
    fn is_plausible(&self, number: u32) -> bool {
        number.wrapping_sub(self.acked) <= self.next().wrapping_sub(self.acked)
    }

    fn pop(&mut self) -> Option<Entry<B>> {
        let entry = self.entries.pop_front()?;
        self.first = self.first.wrapping_add(1);
        give_back(&mut self.entries);
        Some(entry)
    }
}

/// Frees what a burst has left behind.
fn give_back<T>(entries: &mut VecDeque<T>) {
    if entries.is_empty() && entries.capacity() > KEEP_CAPACITY {
        *entries = VecDeque::new();
    }
}

impl<B: Body> Default for Outbox<B> {
    fn default() -> Self {
        Self::new(OutboxLimits::default(), WhenFull::default())
    }
}

impl<B: Body> Outbox<B> {
    /// An empty outbox whose numbers start at 0.
    #[must_use]
    pub const fn new(limits: OutboxLimits, when_full: WhenFull) -> Self {
        Self {
            limits,
            when_full,
            waiting: [const { [const { Queue::EMPTY }; STREAMS] }; IMPORTANCES],
            tails: [const { Tail::starting_at(0) }; STREAMS],
            held: Load {
                messages: 0,
                bytes: 0,
            },
            in_flight: Load {
                messages: 0,
                bytes: 0,
            },
            next_stamp: 0,
            away: false,
            lost: 0,
            lost_untold: 0,
        }
    }

    /// Takes a message that is to be sent.
    ///
    /// While the session is [away](Self::set_away), a full outbox drops the oldest of all its messages, whatever
    /// [`WhenFull`] says: who comes back wants to know what happened last.
    ///
    /// # Errors
    ///
    /// [`Full`], with the message, if it was not taken. Then nothing was dropped either.
    pub fn push(
        &mut self,
        stream: Stream,
        importance: Importance,
        body: B,
    ) -> Result<Pushed<B>, Full<B>> {
        let size = body.size_bytes();
        if size > self.limits.max_bytes {
            let max_bytes = self.limits.max_bytes;
            return Err(Full::TooLarge {
                body,
                size,
                max_bytes,
            });
        }
        let mut dropped = Vec::new();
        if !self.has_room_for(size) {
            let Load { messages, bytes } = self.held;
            if self.away {
                while !self.has_room_for(size)
                    && let Some(body) = self.drop_oldest()
                {
                    dropped.push(body);
                }
            } else if self.when_full == WhenFull::Close {
                return Err(Full::Close {
                    body,
                    messages,
                    bytes,
                });
            } else if self.when_full == WhenFull::DropOldest
                && self.could_make_room_for(size, importance)
            {
                while !self.has_room_for(size)
                    && let Some(body) = self.drop_least_important()
                {
                    dropped.push(body);
                }
            } else {
                return Err(Full::Refused {
                    body,
                    messages,
                    bytes,
                });
            }
        }
        let queue = &mut self.waiting[importance.index()][stream.index()];
        queue.entries.push_back(Entry {
            stamp: self.next_stamp,
            importance,
            size,
            body,
        });
        queue.bytes += size;
        self.next_stamp += 1;
        self.held.add(size);
        Ok(Pushed { dropped })
    }

    /// The next message to hand to the link, with its number; `None` if nothing waits, the window is full, or the
    /// session is away.
    ///
    /// What a resume hands out again comes before everything that waits. After that, the most important message, and of
    /// equally important ones the oldest. If that one does not fit the window, nothing does: otherwise small messages
    /// would keep a large one waiting forever.
    pub fn next_to_send(&mut self) -> Option<(Stream, u32, B)> {
        self.next_if(Self::fits_window)
    }

    /// The same for a link that keeps the order, loses nothing and tells how many bytes it has `queued`: up to
    /// [`OutboxLimits::window_bytes`] of them, whether or not the game at the other end has taken those before. A larger
    /// message goes as soon as less than a quarter of that is queued.
    pub fn next_to_stream(&mut self, queued: usize) -> Option<(Stream, u32, B)> {
        self.next_if(|outbox, size| {
            outbox.in_flight.messages < MAX_WINDOW_MESSAGES
                && (queued < outbox.limits.window_bytes.div_ceil(4)
                    || queued + size <= outbox.limits.window_bytes)
        })
    }

    fn next_if(&mut self, fits: impl Fn(&Self, usize) -> bool) -> Option<(Stream, u32, B)> {
        if self.away {
            return None;
        }
        let again = Stream::ALL
            .into_iter()
            .filter_map(|stream| {
                let tail = &self.tails[stream.index()];
                Some((stream, tail.entries.get(tail.given)?))
            })
            .min_by_key(|(_, entry)| (std::cmp::Reverse(entry.importance), entry.stamp))
            .map(|(stream, entry)| (stream, entry.size));
        if let Some((stream, size)) = again {
            if !fits(self, size) {
                return None;
            }
            return self.give(stream);
        }
        for importance in Importance::DESCENDING {
            if let Some((stream, size)) = self.oldest_waiting(importance) {
                if !fits(self, size) {
                    return None;
                }
                let entry = self.waiting[importance.index()][stream.index()].pop()?;
                self.tails[stream.index()].entries.push_back(entry);
                return self.give(stream);
            }
        }
        None
    }

    /// The other side's game has taken messages; `on_taken` gets each that was not known to be, in order per stream.
    ///
    /// Call it only with what arrives over the session's newest link. Claims about numbers that were never given, and
    /// old news, are ignored.
    pub fn handle_taken(&mut self, taken: Taken, mut on_taken: impl FnMut(B)) {
        for stream in Stream::ALL {
            let next = taken.next[stream.index()];
            if self.tails[stream.index()].is_plausible(next) {
                self.advance(stream, next, &mut on_taken);
            }
        }
        if !self.away {
            // It speaks over the new link, so it has heard how the session goes on.
            self.lost_untold = 0;
        }
    }

    /// There is no link any more, and the session waits for a new one: until [`Self::resume`], nothing is handed out,
    /// and a full outbox drops its oldest messages.
    pub fn set_away(&mut self) {
        self.away = true;
        self.forget_what_was_given();
    }

    /// Goes on over a new link to a side that has taken what `taken` says; `on_taken` as in [`Self::handle_taken`].
    ///
    /// Everything else that has a number is handed out again, in order and with the same numbers, then what waits. The
    /// other side must be told [`Self::first_kept`] before the first message, and skip to it. The old link need not be
    /// known to be dead.
    ///
    /// A loss is told again at each resume until the other side was heard after one, since the answer to a resume can
    /// be lost too.
    ///
    /// # Errors
    ///
    /// [`Gap`] if `taken` is less than was acknowledged before, or more than was sent.
    pub fn resume(&mut self, taken: Taken, mut on_taken: impl FnMut(B)) -> Result<Resumption, Gap> {
        for stream in Stream::ALL {
            let tail = &self.tails[stream.index()];
            let claimed = taken.next[stream.index()];
            if !tail.is_plausible(claimed) {
                return Err(Gap {
                    stream,
                    claimed,
                    acknowledged: tail.acked,
                    next: tail.next(),
                });
            }
        }
        for stream in Stream::ALL {
            self.advance(stream, taken.next[stream.index()], &mut on_taken);
            let tail = &mut self.tails[stream.index()];
            tail.known_lost = tail.first.wrapping_sub(tail.acked);
        }
        self.away = false;
        self.forget_what_was_given();
        Ok(match self.lost_untold {
            0 => Resumption::Complete,
            lost => Resumption::Lost(lost),
        })
    }

    /// Goes on over a new link to a side that has lost its state, with an inbox that expects `next`.
    ///
    /// Messages that have a number are forgotten, as nobody can say whether they were taken; `on_forgotten` gets them,
    /// and [`Self::lost`] does not count them. What waits is kept.
    pub fn start_over(&mut self, next: Taken, mut on_forgotten: impl FnMut(B)) {
        for (tail, next) in self.tails.iter_mut().zip(next.next) {
            for entry in std::mem::replace(tail, Tail::starting_at(next)).entries {
                self.held.remove(entry.size);
                on_forgotten(entry.body);
            }
        }
        self.in_flight = Load::default();
        self.away = false;
        self.lost_untold = 0;
    }

    /// Takes out everything, oldest first: the session is over, and nobody will ask for it any more.
    pub fn drain(&mut self) -> Vec<B> {
        let tails = self.tails.iter_mut().map(|tail| &mut tail.entries);
        let waiting = self.waiting.iter_mut().flatten();
        let queues = tails.chain(waiting.map(|queue| &mut queue.entries));
        let mut entries: Vec<_> = queues.flat_map(std::mem::take).collect();
        entries.sort_by_key(|entry| entry.stamp);
        *self = Self::new(self.limits, self.when_full);
        entries.into_iter().map(|entry| entry.body).collect()
    }

    /// The first number of each stream that is still here, or will be: after a loss, the other side must
    /// [skip](Inbox::skip_to) to it.
    #[must_use]
    pub fn first_kept(&self) -> [u32; STREAMS] {
        self.tails.each_ref().map(|tail| tail.first)
    }

    /// How many messages the other side will never get because they were dropped while the session was away.
    ///
    /// Those that it had taken already, unknown to us, are not counted any more after the next resume (but for some of
    /// the unordered stream, see [`Resumption::Lost`]). Messages dropped by [`WhenFull::DropOldest`] are not counted.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether the session is without a link.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.away
    }

    /// Whether every message was taken by the other side.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.messages == 0
    }

    /// How many messages are here, waiting and unacknowledged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.messages
    }

    /// How many bytes they have.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.held.bytes
    }

    /// How many messages this link was given and the other side's game has not taken, as far as we know.
    #[must_use]
    pub fn in_flight_messages(&self) -> usize {
        self.in_flight.messages
    }

    /// How many bytes they have.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight.bytes
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> OutboxLimits {
        self.limits
    }

    fn has_room_for(&self, size: usize) -> bool {
        // An empty outbox has room for one message even if its limits say none.
        self.held.messages == 0
            || self.held.messages < self.limits.max_messages
                && self.held.bytes + size <= self.limits.max_bytes
    }

    fn fits_window(&self, size: usize) -> bool {
        let messages = self.limits.window_messages.clamp(1, MAX_WINDOW_MESSAGES);
        self.in_flight.messages == 0
            || self.in_flight.messages < messages
                && self.in_flight.bytes + size <= self.limits.window_bytes
    }

    /// Whether dropping what waits and is at most so important is enough.
    fn could_make_room_for(&self, size: usize, importance: Importance) -> bool {
        let mut left = self.held;
        for queue in self.waiting[..=importance.index()].iter().flatten() {
            left.messages -= queue.entries.len();
            left.bytes -= queue.bytes;
        }
        left.messages == 0
            || left.messages < self.limits.max_messages
                && left.bytes + size <= self.limits.max_bytes
    }

    fn drop_least_important(&mut self) -> Option<B> {
        let (importance, stream) = Importance::ASCENDING
            .into_iter()
            .find_map(|importance| Some((importance, self.oldest_waiting(importance)?.0)))?;
        let entry = self.waiting[importance.index()][stream.index()].pop()?;
        self.held.remove(entry.size);
        Some(entry.body)
    }

    /// Drops the oldest message of all. In a tail that is the first one: a hole in its middle could not be told with
    /// one number.
    fn drop_oldest(&mut self) -> Option<B> {
        let oldest_tail = Stream::ALL
            .into_iter()
            .filter_map(|stream| {
                let entry = self.tails[stream.index()].entries.front()?;
                Some((entry.stamp, stream))
            })
            .min_by_key(|&(stamp, _)| stamp);
        let oldest_waiting = Importance::ASCENDING
            .into_iter()
            .flat_map(|importance| Stream::ALL.map(|stream| (importance, stream)))
            .filter_map(|(importance, stream)| {
                let queue = &self.waiting[importance.index()][stream.index()];
                Some((queue.entries.front()?.stamp, importance, stream))
            })
            .min_by_key(|&(stamp, ..)| stamp);
        let entry = match (oldest_tail, oldest_waiting) {
            (Some((sent, stream)), waiting) if waiting.is_none_or(|(stamp, ..)| sent < stamp) => {
                self.tails[stream.index()].pop()
            }
            (_, Some((_, importance, stream))) => {
                self.waiting[importance.index()][stream.index()].pop()
            }
            _ => None,
        }?;
        self.held.remove(entry.size);
        self.lost += 1;
        self.lost_untold += 1;
        Some(entry.body)
    }

    /// The stream and size of the oldest message among those that wait and are so important.
    fn oldest_waiting(&self, importance: Importance) -> Option<(Stream, usize)> {
        let queues = &self.waiting[importance.index()];
        Stream::ALL
            .into_iter()
            .filter_map(|stream| Some((stream, queues[stream.index()].entries.front()?)))
            .min_by_key(|(_, entry)| entry.stamp)
            .map(|(stream, entry)| (stream, entry.size))
    }

    /// Hands out the first message of a tail that this link was not given.
    fn give(&mut self, stream: Stream) -> Option<(Stream, u32, B)> {
        let tail = &mut self.tails[stream.index()];
        let entry = tail.entries.get(tail.given)?;
        let number = tail.first.wrapping_add(tail.given as u32);
        let body = entry.body.clone();
        self.in_flight.add(entry.size);
        tail.given += 1;
        Some((stream, number, body))
    }

    /// Notes that everything before `next` was taken. It must be plausible.
    fn advance(&mut self, stream: Stream, next: u32, on_taken: &mut impl FnMut(B)) {
        let tail = &mut self.tails[stream.index()];
        let ahead = next.wrapping_sub(tail.acked);
        let dropped = tail.first.wrapping_sub(tail.acked);
        // What was dropped while it was on its way, and has arrived nevertheless.
        let taken_after_all = u64::from(ahead.min(dropped).saturating_sub(tail.known_lost));
        self.lost -= taken_after_all;
        self.lost_untold = self.lost_untold.saturating_sub(taken_after_all);
        tail.known_lost = tail.known_lost.saturating_sub(ahead);
        tail.acked = next;
        for _ in dropped..ahead {
            let Some(entry) = tail.pop() else { return };
            self.held.remove(entry.size);
            if tail.given > 0 {
                tail.given -= 1;
                self.in_flight.remove(entry.size);
            }
            on_taken(entry.body);
        }
    }

    fn forget_what_was_given(&mut self) {
        self.in_flight = Load::default();
        for tail in &mut self.tails {
            tail.given = 0;
        }
    }
}

/// What [`Inbox::accept`] thinks of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Seen for the first time: the game takes it now.
    New,
    /// The game has taken it before: drop it. Usual after a resume.
    Duplicate,
    /// In the ordered stream, one before it is missing. A link that keeps order never shows this: the other side broke
    /// the protocol.
    OutOfOrder,
    /// In the unordered stream, it lies [`MAX_WINDOW_MESSAGES`] or more after one that is missing. Our own outbox never
    /// sends that: the other side broke the protocol.
    TooFar,
}

/// The receiving end: knows what the game has taken.
///
/// Fixed in size but for 128 bytes, once an unordered message came early. One inbox serves a session over all its links,
/// also while an old and a new one overlap.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    next: [u32; STREAMS],
    early: Option<Box<Early>>,
}

/// Which of the next [`MAX_WINDOW_MESSAGES`] unordered messages were taken: a bit for each, in a ring.
#[derive(Clone, Debug)]
struct Early {
    bits: [u64; MAX_WINDOW_MESSAGES / 64],
}

// Slots stay distinct when numbers wrap around.
const _: () = assert!(MAX_WINDOW_MESSAGES.is_power_of_two() && MAX_WINDOW_MESSAGES >= 64);

impl Early {
    const NONE: Self = Self {
        bits: [0; MAX_WINDOW_MESSAGES / 64],
    };

    fn bit(number: u32) -> (usize, u64) {
        let slot = number as usize % MAX_WINDOW_MESSAGES;
        (slot / 64, 1 << (slot % 64))
    }

    fn contains(&self, number: u32) -> bool {
        let (word, bit) = Self::bit(number);
        self.bits[word] & bit != 0
    }

    fn insert(&mut self, number: u32) {
        let (word, bit) = Self::bit(number);
        self.bits[word] |= bit;
    }

    /// Whether it was there.
    fn remove(&mut self, number: u32) -> bool {
        let (word, bit) = Self::bit(number);
        let was_there = self.bits[word] & bit != 0;
        self.bits[word] &= !bit;
        was_there
    }
}

impl Inbox {
    /// An inbox that expects these numbers next. [`Inbox::default`] expects 0, as a new [`Outbox`] gives.
    #[must_use]
    pub const fn starting_at(next: Taken) -> Self {
        Self {
            next: next.next,
            early: None,
        }
    }

    /// A message has come. If it is [new](Accept::New), it counts as taken from here on.
    pub fn accept(&mut self, stream: Stream, number: u32) -> Accept {
        let next = &mut self.next[stream.index()];
        let ahead = number.wrapping_sub(*next);
        if ahead.cast_signed() < 0 {
            return Accept::Duplicate;
        }
        match stream {
            Stream::Ordered if ahead > 0 => return Accept::OutOfOrder,
            Stream::Ordered => *next = next.wrapping_add(1),
            Stream::Unordered if ahead as usize >= MAX_WINDOW_MESSAGES => return Accept::TooFar,
            Stream::Unordered if ahead == 0 => {
                *next = next.wrapping_add(1);
                self.take_early();
            }
            Stream::Unordered => {
                let early = self.early.get_or_insert_with(|| Box::new(Early::NONE));
                if early.contains(number) {
                    return Accept::Duplicate;
                }
                early.insert(number);
            }
        }
        Accept::New
    }

    /// What to tell the other side: now and then, and when resuming.
    #[must_use]
    pub fn taken(&self) -> Taken {
        Taken { next: self.next }
    }

    /// Gives up waiting for anything before these numbers, which the other side no longer has
    /// ([`Outbox::first_kept`]). Returns how many messages are thereby missed. Never goes back.
    ///
    /// A message that arrives after all, over an old link, is a duplicate then.
    pub fn skip_to(&mut self, first: [u32; STREAMS]) -> u64 {
        let mut missed = 0;
        for stream in Stream::ALL {
            let next = self.next[stream.index()];
            let to = first[stream.index()];
            let ahead = to.wrapping_sub(next);
            if ahead.cast_signed() <= 0 {
                continue;
            }
            missed += u64::from(ahead);
            self.next[stream.index()] = to;
            if stream == Stream::Unordered
                && let Some(early) = &mut self.early
            {
                for offset in 0..ahead.min(MAX_WINDOW_MESSAGES as u32) {
                    missed -= u64::from(early.remove(next.wrapping_add(offset)));
                }
                self.take_early();
            }
        }
        missed
    }

    /// Passes over what came early and is next now.
    fn take_early(&mut self) {
        if let Some(early) = &mut self.early {
            let next = &mut self.next[Stream::Unordered.index()];
            while early.remove(*next) {
                *next = next.wrapping_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::Importance::{High, Low, Normal};
    use super::Stream::{Ordered, Unordered};
    use super::*;

    fn taken(ordered: u32, unordered: u32) -> Taken {
        Taken {
            next: [ordered, unordered],
        }
    }

    fn small(max_messages: usize, when_full: WhenFull) -> Outbox<Vec<u8>> {
        let limits = OutboxLimits {
            max_messages,
            max_bytes: 1_000,
            window_bytes: 100,
            window_messages: 4,
        };
        Outbox::new(limits, when_full)
    }

    fn push(outbox: &mut Outbox<Vec<u8>>, stream: Stream, importance: Importance, id: u8) {
        let pushed = outbox.push(stream, importance, vec![id]).expect("room");
        assert!(pushed.dropped.is_empty(), "nothing had to go");
    }

    fn drain(outbox: &mut Outbox<Vec<u8>>) -> Vec<(Stream, u32, u8)> {
        std::iter::from_fn(|| outbox.next_to_send())
            .map(|(stream, number, body)| (stream, number, body[0]))
            .collect()
    }

    #[test]
    fn an_unused_outbox_and_inbox_have_allocated_nothing() {
        let outbox = Outbox::<Bytes>::default();
        let queues = outbox.waiting.iter().flatten();
        assert!(queues.map(|q| q.entries.capacity()).all(|n| n == 0));
        assert!(outbox.tails.iter().all(|t| t.entries.capacity() == 0));
        let mut inbox = Inbox::default();
        for number in 0..2_000 {
            assert_eq!(inbox.accept(Unordered, number), Accept::New);
            assert_eq!(inbox.accept(Ordered, number), Accept::New);
        }
        assert!(inbox.early.is_none(), "nothing came early");
    }

    #[test]
    fn a_burst_leaves_no_memory_behind() {
        let mut outbox = Outbox::default();
        for _ in 0..1_000 {
            let _ = outbox.push(Ordered, Normal, vec![0]).expect("room");
        }
        let mut inbox = Inbox::default();
        while let Some((stream, number, _)) = outbox.next_to_send() {
            inbox.accept(stream, number);
            outbox.handle_taken(inbox.taken(), |_| ());
        }
        assert!(outbox.is_empty() && outbox.bytes() == 0);
        assert!(outbox.waiting[1][0].entries.capacity() <= KEEP_CAPACITY);
        assert!(outbox.tails[0].entries.capacity() <= KEEP_CAPACITY);
    }

    #[test]
    fn important_messages_overtake_and_equals_keep_their_order() {
        let mut outbox = small(100, WhenFull::Refuse);
        outbox.limits.window_messages = 100;
        push(&mut outbox, Ordered, Low, 1);
        push(&mut outbox, Ordered, Normal, 2);
        push(&mut outbox, Unordered, Normal, 3);
        push(&mut outbox, Ordered, Normal, 4);
        push(&mut outbox, Ordered, High, 5);
        assert_eq!(
            drain(&mut outbox),
            [
                (Ordered, 0, 5),
                (Ordered, 1, 2),
                (Unordered, 0, 3),
                (Ordered, 2, 4),
                (Ordered, 3, 1),
            ]
        );
    }

    #[test]
    fn the_window_bounds_what_is_with_the_link() {
        let mut outbox = small(100, WhenFull::Refuse);
        for id in 0..6 {
            push(&mut outbox, Ordered, Normal, id);
        }
        assert_eq!(drain(&mut outbox).len(), 4);
        assert_eq!((outbox.in_flight_messages(), outbox.len()), (4, 6));
        outbox.handle_taken(taken(1, 0), |_| ());
        assert_eq!(drain(&mut outbox), [(Ordered, 4, 4)]);
    }

    #[test]
    fn a_stream_gets_what_it_has_room_for() {
        let mut outbox = small(2_000, WhenFull::Refuse);
        outbox.limits.max_bytes = 10_000;
        for id in 0..20 {
            let _ = outbox.push(Ordered, Normal, vec![id; 30]).expect("room");
        }
        let mut give = |mut queued| {
            let before = queued;
            while let Some((_, _, body)) = outbox.next_to_stream(queued) {
                queued += body.len();
            }
            (queued - before) / 30
        };
        assert_eq!(give(0), 3, "as many as the window has bytes");
        assert_eq!(give(0), 3, "and again, though nothing was taken");
        assert_eq!(give(50), 1);
        assert_eq!(give(90), 0);
    }

    #[test]
    fn a_message_larger_than_the_window_goes_alone_and_is_not_starved() {
        let mut outbox = small(100, WhenFull::Refuse);
        push(&mut outbox, Ordered, Normal, 1);
        let _ = outbox.push(Ordered, Normal, vec![2; 500]).expect("room");
        push(&mut outbox, Unordered, Normal, 3);
        assert_eq!(drain(&mut outbox), [(Ordered, 0, 1)]);
        outbox.handle_taken(taken(1, 0), |_| ());
        assert_eq!(drain(&mut outbox), [(Ordered, 1, 2)], "alone");
        outbox.handle_taken(taken(2, 0), |_| ());
        assert_eq!(drain(&mut outbox), [(Unordered, 0, 3)]);
    }

    #[test]
    fn a_full_outbox_refuses_by_default_and_hands_the_message_back() {
        let mut outbox = small(2, WhenFull::default());
        push(&mut outbox, Ordered, Normal, 1);
        push(&mut outbox, Ordered, Normal, 2);
        let full = outbox.push(Ordered, High, vec![3]).unwrap_err();
        assert!(full.to_string().contains("full (2 messages, 2 bytes)"));
        assert!(matches!(full, Full::Refused { body, .. } if body == [3]));
        assert_eq!(drain(&mut outbox).len(), 2);
        assert!(
            outbox.push(Ordered, High, vec![3]).is_err(),
            "handed over is not acknowledged"
        );
        outbox.handle_taken(taken(1, 0), |_| ());
        push(&mut outbox, Ordered, High, 3);
    }

    #[test]
    fn too_large_a_message_is_refused_whatever_the_policy() {
        for when_full in [WhenFull::Refuse, WhenFull::DropOldest, WhenFull::Close] {
            let mut outbox = small(100, when_full);
            let full = outbox.push(Ordered, Normal, vec![0; 1_001]).unwrap_err();
            assert!(matches!(full, Full::TooLarge { size: 1_001, .. }));
        }
    }

    #[test]
    fn a_full_outbox_asks_to_close_if_told_so() {
        let mut outbox = small(1, WhenFull::Close);
        push(&mut outbox, Ordered, Normal, 1);
        let full = outbox.push(Ordered, Normal, vec![2]).unwrap_err();
        assert!(matches!(full, Full::Close { .. }));
    }

    #[test]
    fn drop_oldest_drops_the_least_important_first_and_never_better_ones() {
        let mut outbox = small(3, WhenFull::DropOldest);
        push(&mut outbox, Ordered, High, 1);
        push(&mut outbox, Ordered, Low, 2);
        push(&mut outbox, Unordered, Low, 3);
        let dropped = |outbox: &mut Outbox<_>, importance, id| {
            let pushed = outbox.push(Ordered, importance, vec![id]);
            pushed.map(|pushed| pushed.dropped.concat())
        };
        assert_eq!(dropped(&mut outbox, Normal, 4), Ok(vec![2]));
        assert_eq!(dropped(&mut outbox, Normal, 5), Ok(vec![3]));
        assert_eq!(dropped(&mut outbox, Normal, 6), Ok(vec![4]));
        assert!(dropped(&mut outbox, Low, 7).is_err(), "only better ones");
        assert_eq!(drain(&mut outbox).len(), 3);
        assert!(
            dropped(&mut outbox, High, 8).is_err(),
            "what was handed to the link is not dropped"
        );
        assert_eq!(outbox.lost(), 0, "nothing was lost for want of a link");
    }

    #[test]
    fn drop_oldest_drops_nothing_if_that_is_not_enough() {
        let mut outbox = small(100, WhenFull::DropOldest);
        let _ = outbox.push(Ordered, High, vec![1; 700]).expect("room");
        let _ = outbox.push(Ordered, Low, vec![2; 200]).expect("room");
        assert!(outbox.push(Ordered, Low, vec![3; 400]).is_err());
        assert_eq!((outbox.len(), outbox.bytes()), (2, 900));
    }

    #[test]
    fn a_resume_hands_out_exactly_what_is_missing_under_the_same_numbers() {
        let mut outbox = small(100, WhenFull::Refuse);
        for id in 0..3 {
            push(&mut outbox, Ordered, Normal, id);
        }
        push(&mut outbox, Unordered, Normal, 3);
        assert_eq!(drain(&mut outbox).len(), 4);
        outbox.set_away();
        push(&mut outbox, Ordered, High, 4);
        assert_eq!(outbox.next_to_send(), None, "there is no link");

        let mut receipts = Vec::new();
        let resumed = outbox.resume(taken(2, 0), |body| receipts.extend(body));
        assert_eq!(resumed, Ok(Resumption::Complete));
        assert_eq!(receipts, [0, 1]);
        assert_eq!(
            drain(&mut outbox),
            [(Ordered, 2, 2), (Unordered, 0, 3), (Ordered, 3, 4)],
            "numbered ones first"
        );
    }

    #[test]
    fn a_resume_needs_no_knowledge_of_the_old_links_death() {
        let mut outbox = small(100, WhenFull::Refuse);
        for id in 0..4 {
            push(&mut outbox, Ordered, Normal, id);
        }
        assert_eq!(drain(&mut outbox).len(), 4, "the window is full");
        assert_eq!(outbox.resume(taken(0, 0), |_| ()), Ok(Resumption::Complete));
        assert_eq!(outbox.in_flight_messages(), 0);
        assert_eq!(drain(&mut outbox).len(), 4);
        // What was given to the old link arrives after all, and is acknowledged before it was handed out again.
        assert_eq!(outbox.resume(taken(0, 0), |_| ()), Ok(Resumption::Complete));
        assert_eq!(outbox.next_to_send(), Some((Ordered, 0, vec![0])));
        outbox.handle_taken(taken(3, 0), |_| ());
        assert_eq!(drain(&mut outbox), [(Ordered, 3, 3)]);
        outbox.handle_taken(taken(4, 0), |_| ());
        assert!(outbox.is_empty() && outbox.in_flight_bytes() == 0);
    }

    #[test]
    fn a_resume_that_cannot_be_is_refused_and_changes_nothing() {
        let mut outbox = small(100, WhenFull::Refuse);
        for id in 0..3 {
            push(&mut outbox, Ordered, Normal, id);
        }
        drain(&mut outbox);
        outbox.handle_taken(taken(2, 0), |_| ());
        for claim in [taken(1, 0), taken(4, 0), taken(u32::MAX, 0), taken(3, 1)] {
            let gap = outbox
                .resume(claim, |_| panic!("nothing was taken"))
                .unwrap_err();
            assert!(gap.to_string().contains("join anew"), "{gap}");
        }
        assert_eq!(outbox.in_flight_messages(), 1);
        assert_eq!(outbox.resume(taken(3, 0), |_| ()), Ok(Resumption::Complete));
    }

    #[test]
    fn nonsense_about_what_was_taken_is_ignored() {
        let mut outbox = small(100, WhenFull::Refuse);
        for id in 0..3 {
            push(&mut outbox, Ordered, Normal, id);
        }
        drain(&mut outbox);
        outbox.handle_taken(taken(2, 0), |_| ());
        for claim in [
            taken(0, 0),
            taken(4, 0),
            taken(1 << 31, 7),
            taken(2, u32::MAX),
        ] {
            outbox.handle_taken(claim, |_| panic!("nothing was taken"));
        }
        let mut receipts = Vec::new();
        outbox.handle_taken(taken(3, 9), |body| receipts.extend(body));
        assert_eq!(receipts, [2], "each stream is judged alone");
    }

    #[test]
    fn while_away_the_oldest_go_and_the_loss_is_remembered() {
        let mut outbox = small(4, WhenFull::Refuse);
        let mut inbox = Inbox::default();
        for id in 0..3 {
            push(&mut outbox, Ordered, Normal, id);
        }
        for (stream, number, _) in drain(&mut outbox).into_iter().take(1) {
            assert_eq!(inbox.accept(stream, number), Accept::New);
        }
        outbox.set_away();
        let mut dropped = Vec::new();
        for id in 3..7 {
            let pushed = outbox.push(Ordered, Normal, vec![id]).expect("oldest go");
            dropped.extend(pushed.dropped.concat());
        }
        assert_eq!(dropped, [0, 1, 2], "numbered ones too");
        assert_eq!(outbox.lost(), 3);

        // Number 0 had been taken; and an answer that is lost changes nothing.
        for _ in 0..2 {
            let resumed = outbox.resume(inbox.taken(), |_| panic!("nothing is left to take"));
            assert_eq!(resumed, Ok(Resumption::Lost(2)));
            assert_eq!((outbox.lost(), outbox.first_kept()), (2, [3, 0]));
            outbox.set_away();
        }
        assert_eq!(
            outbox.resume(inbox.taken(), |_| ()),
            Ok(Resumption::Lost(2))
        );
        assert_eq!(inbox.skip_to(outbox.first_kept()), 2);
        let got = drain(&mut outbox);
        assert_eq!(got.iter().map(|m| m.2).collect::<Vec<_>>(), [3, 4, 5, 6]);
        for (stream, number, _) in got {
            assert_eq!(inbox.accept(stream, number), Accept::New);
        }
        // The link dies before an acknowledgement: skipping is not mistaken for taking.
        outbox.set_away();
        assert_eq!(
            outbox.resume(inbox.taken(), |_| ()),
            Ok(Resumption::Lost(2))
        );
        outbox.handle_taken(inbox.taken(), |_| ());
        assert_eq!(outbox.lost(), 2);
        assert!(outbox.is_empty());
        outbox.set_away();
        assert_eq!(
            outbox.resume(inbox.taken(), |_| ()),
            Ok(Resumption::Complete),
            "it knows by now"
        );
    }

    #[test]
    fn starting_over_forgets_what_has_a_number_and_keeps_what_waits() {
        let mut outbox = small(100, WhenFull::Refuse);
        for id in 0..6 {
            push(&mut outbox, Ordered, Normal, id);
        }
        assert_eq!(drain(&mut outbox).len(), 4);
        let mut forgotten = Vec::new();
        outbox.start_over(Taken::default(), |body| forgotten.extend(body));
        assert_eq!(forgotten, [0, 1, 2, 3]);
        assert_eq!(drain(&mut outbox), [(Ordered, 0, 4), (Ordered, 1, 5)]);
        assert_eq!((outbox.len(), outbox.bytes()), (2, 2));
    }

    #[test]
    fn an_inbox_knows_duplicates_gaps_and_nonsense() {
        let mut inbox = Inbox::starting_at(taken(u32::MAX, u32::MAX));
        assert_eq!(inbox.accept(Ordered, 0), Accept::OutOfOrder);
        assert_eq!(inbox.accept(Ordered, u32::MAX), Accept::New);
        assert_eq!(inbox.accept(Ordered, u32::MAX), Accept::Duplicate);
        assert_eq!(inbox.accept(Ordered, 0), Accept::New);

        assert_eq!(inbox.accept(Unordered, 1), Accept::New);
        assert_eq!(inbox.accept(Unordered, 1), Accept::Duplicate);
        assert_eq!(inbox.accept(Unordered, 1_022), Accept::New);
        assert_eq!(inbox.accept(Unordered, 1_023), Accept::TooFar);
        assert_eq!(inbox.accept(Unordered, 1 << 31), Accept::Duplicate);
        assert_eq!(inbox.taken(), taken(1, u32::MAX));
        assert_eq!(inbox.accept(Unordered, u32::MAX), Accept::New);
        assert_eq!(inbox.accept(Unordered, 0), Accept::New);
        assert_eq!(inbox.taken(), taken(1, 2), "what came early counts now");
    }

    #[test]
    fn skipping_counts_what_is_missed_and_never_goes_back() {
        let mut inbox = Inbox::default();
        for number in [1, 2, 5, 7] {
            assert_eq!(inbox.accept(Unordered, number), Accept::New);
        }
        assert_eq!(inbox.skip_to([3, 5]), 3 + 3, "0, 3 and 4 of the unordered");
        assert_eq!(inbox.taken(), taken(3, 6));
        assert_eq!(inbox.skip_to([1, 0]), 0);
        assert_eq!(inbox.skip_to([3 + (1 << 31), 6]), 0, "the other way around");
        assert_eq!(inbox.taken(), taken(3, 6));
        assert_eq!(inbox.skip_to([3, 1 << 30]), (1 << 30) - 6 - 1);
        for number in (1 << 30)..(1 << 30) + 2_000 {
            assert_eq!(
                inbox.accept(Unordered, number),
                Accept::New,
                "no bit is left over"
            );
        }
    }

    #[test]
    fn what_was_taken_is_read_as_written() {
        for (value, bytes) in [
            (taken(0, 127), vec![0, 127]),
            (taken(128, 300), vec![0x80, 1, 0xac, 2]),
            (taken(u32::MAX, 1), vec![0xff, 0xff, 0xff, 0xff, 0x0f, 1]),
        ] {
            let mut out = Vec::new();
            value.encode(&mut out);
            assert_eq!(out, bytes);
            out.push(42);
            assert_eq!(Taken::decode(&out), Ok((value, &[42][..])));
            for len in 0..bytes.len() {
                assert_eq!(Taken::decode(&bytes[..len]), Err(WireError::OutOfBits));
            }
        }
        for bad in [
            &[0x80, 0, 0][..],
            &[0xff, 0xff, 0xff, 0xff, 0x10, 0],
            &[0xff; 9],
        ] {
            assert!(matches!(
                Taken::decode(bad),
                Err(WireError::InvalidValue(_))
            ));
        }
    }

    #[derive(Clone, Debug)]
    struct Message {
        id: u32,
        size: usize,
    }

    impl Body for Message {
        fn size_bytes(&self) -> usize {
            self.size
        }
    }

    /// A link: keeps the order of one stream, not that of the other, and delivers everything while it lives.
    #[derive(Default)]
    struct Pipe {
        ordered: VecDeque<(u32, Message)>,
        unordered: Vec<(u32, Message)>,
        acks: Vec<Taken>,
    }

    /// A session over a series of links, and what the receiver's game saw.
    struct Play {
        rng: fastrand::Rng,
        outbox: Outbox<Message>,
        inbox: Inbox,
        link: Option<Pipe>,
        /// A link that one side thinks dead, and that delivers nevertheless.
        ghost: Option<Pipe>,
        kept: HashMap<u32, (Stream, Importance)>,
        dropped: HashSet<u32>,
        got: Vec<u32>,
        receipts: HashSet<u32>,
        missed: u64,
        next_id: u32,
    }

    impl Play {
        fn push(&mut self, stream: Stream) {
            let importance = Importance::DESCENDING[self.rng.usize(0..3)];
            let id = self.next_id;
            let size = if self.rng.u8(0..20) == 0 {
                2_000
            } else {
                self.rng.usize(0..200)
            };
            match self.outbox.push(stream, importance, Message { id, size }) {
                Ok(pushed) => {
                    self.next_id += 1;
                    self.kept.insert(id, (stream, importance));
                    for message in pushed.dropped {
                        assert!(self.dropped.insert(message.id), "dropped once");
                    }
                }
                Err(_) => assert!(!self.outbox.is_away(), "away, there is always room"),
            }
        }

        fn pump(&mut self) {
            let Some(link) = &mut self.link else { return };
            while let Some((stream, number, message)) = self.outbox.next_to_send() {
                match stream {
                    Ordered => link.ordered.push_back((number, message)),
                    Unordered => link.unordered.push((number, message)),
                }
            }
            let limits = self.outbox.limits();
            assert!(self.outbox.in_flight_messages() <= limits.window_messages);
            assert!(
                self.outbox.in_flight_bytes() <= limits.window_bytes
                    || self.outbox.in_flight_messages() == 1
            );
        }

        fn deliver(&mut self, ghost: bool) {
            let pipe = if ghost {
                &mut self.ghost
            } else {
                &mut self.link
            };
            let Some(pipe) = pipe else { return };
            let (stream, (number, message)) = if self.rng.bool() {
                let Some(message) = pipe.ordered.pop_front() else {
                    return;
                };
                (Ordered, message)
            } else if pipe.unordered.is_empty() {
                return;
            } else {
                let index = self.rng.usize(0..pipe.unordered.len());
                (Unordered, pipe.unordered.swap_remove(index))
            };
            match self.inbox.accept(stream, number) {
                Accept::New => self.got.push(message.id),
                Accept::Duplicate => {}
                refused => panic!("{refused:?} for number {number} of {stream:?}"),
            }
        }

        fn acknowledge(&mut self) {
            let Some(link) = &mut self.link else { return };
            link.acks.push(self.inbox.taken());
            let index = self.rng.usize(0..link.acks.len());
            match self.rng.u8(0..4) {
                0 => drop(link.acks.swap_remove(index)), // lost
                1 => {}                                  // late
                _ => {
                    let acked = link.acks.swap_remove(index);
                    self.outbox.handle_taken(acked, |message| {
                        assert!(self.receipts.insert(message.id), "one receipt each");
                    });
                }
            }
        }

        fn cut(&mut self, ghosts: bool) {
            let dead = self.link.take();
            if ghosts {
                self.ghost = dead;
            }
            if self.rng.bool() {
                self.outbox.set_away(); // else the sender has not noticed
            }
        }

        fn resume(&mut self) {
            let resumed = self.outbox.resume(self.inbox.taken(), |message| {
                assert!(self.receipts.insert(message.id), "one receipt each");
            });
            let lost = resumed.expect("honest sides have no gap");
            if self.rng.u8(0..4) == 0 {
                self.outbox.set_away(); // the answer was lost
                return;
            }
            let missed = self.inbox.skip_to(self.outbox.first_kept());
            match lost {
                Resumption::Complete => assert_eq!(missed, 0),
                Resumption::Lost(lost) => assert!(missed <= lost && lost > 0),
            }
            self.missed += missed;
            self.link = Some(Pipe::default());
        }

        fn finish(&mut self) {
            while self.link.is_none() {
                self.resume();
            }
            for _ in 0..100_000 {
                self.pump();
                self.deliver(false);
                self.acknowledge();
                if self.outbox.is_empty() {
                    return;
                }
            }
            panic!("{} messages are left", self.outbox.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn every_message_arrives_exactly_once_over_any_series_of_links(
            seed: u64,
            start: u32,
            max_messages in 3usize..40,
            ghosts: bool,
            mixed: bool,
            drop_oldest: bool,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let limits = OutboxLimits {
                max_messages,
                max_bytes: 5_000,
                window_bytes: rng.usize(1..3_000),
                window_messages: rng.usize(1..20),
            };
            let when_full = if drop_oldest { WhenFull::DropOldest } else { WhenFull::Refuse };
            let mut outbox = Outbox::new(limits, when_full);
            let start = taken(start | 0xffff_ff00, start);
            outbox.start_over(start, |_| ());
            let mut play = Play {
                rng,
                outbox,
                inbox: Inbox::starting_at(start),
                link: Some(Pipe::default()),
                ghost: None,
                kept: HashMap::new(),
                dropped: HashSet::new(),
                got: Vec::new(),
                receipts: HashSet::new(),
                missed: 0,
                next_id: 0,
            };
            for _ in 0..2_000 {
                match play.rng.u8(0..100) {
                    0..30 => {
                        let stream = if mixed { Stream::ALL[play.rng.usize(0..2)] } else { Ordered };
                        play.push(stream);
                    }
                    30..50 => play.pump(),
                    50..75 => play.deliver(false),
                    75..80 => play.deliver(true),
                    80..95 => play.acknowledge(),
                    95..97 => play.cut(ghosts),
                    _ if play.link.is_none() => play.resume(),
                    _ => {}
                }
                prop_assert!(play.outbox.len() <= max_messages);
                prop_assert!(play.outbox.bytes() <= 5_000);
            }
            play.finish();

            let got: HashSet<u32> = play.got.iter().copied().collect();
            prop_assert_eq!(got.len(), play.got.len(), "none twice");
            for id in play.kept.keys() {
                prop_assert!(got.contains(id) || play.dropped.contains(id), "{} is missing", id);
            }
            prop_assert!(play.receipts.is_subset(&got), "a receipt is true");
            let never = play.kept.len() - got.len();
            if when_full == WhenFull::Refuse {
                prop_assert!(never as u64 <= play.outbox.lost());
                if !ghosts && !mixed {
                    prop_assert_eq!(never as u64, play.outbox.lost());
                }
            }
            prop_assert!(play.missed <= play.outbox.lost());
            for importance in Importance::DESCENDING {
                let ids: Vec<u32> = play.got.iter().copied()
                    .filter(|id| play.kept[id] == (Ordered, importance))
                    .collect();
                prop_assert!(ids.is_sorted(), "in order: {ids:?}");
            }
        }

        #[test]
        fn no_peer_can_make_either_end_grow(seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut outbox = small(10, WhenFull::Refuse);
            let mut inbox = Inbox::default();
            for _ in 0..2_000 {
                let wild = taken(rng.u32(..) >> rng.u32(0..32), rng.u32(..) >> rng.u32(0..32));
                match rng.u8(0..7) {
                    0 => drop(outbox.push(Stream::ALL[rng.usize(0..2)], Normal, vec![0; rng.usize(0..50)])),
                    1 => drop(outbox.next_to_send()),
                    2 => outbox.handle_taken(wild, |_| ()),
                    3 => drop(outbox.resume(wild, |_| ())),
                    4 => outbox.set_away(),
                    5 => drop(inbox.skip_to(wild.next)),
                    _ => drop(inbox.accept(Stream::ALL[rng.usize(0..2)], wild.next[0])),
                }
                prop_assert!(outbox.len() <= 10 && outbox.bytes() <= 1_000);
            }
        }

        #[test]
        fn decoding_wild_bytes_fails_or_round_trips(bytes: Vec<u8>) {
            if let Ok((taken, rest)) = Taken::decode(&bytes) {
                let mut out = Vec::new();
                taken.encode(&mut out);
                out.extend_from_slice(rest);
                prop_assert_eq!(out, bytes, "each value has one encoding");
            }
        }
    }
}
