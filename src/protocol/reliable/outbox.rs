//! What the other side has still to take.

use std::collections::VecDeque;

use super::{
    Body, Gap, IMPORTANCES, Importance, MAX_WINDOW_MESSAGES, Resumption, STREAMS, Stream, Taken,
};

/// Queues that held more than this give their memory back when they are empty.
pub(super) const KEEP_CAPACITY: usize = 32;

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
    pub(super) limits: OutboxLimits,
    when_full: WhenFull,
    /// What waits, by importance and stream.
    pub(super) waiting: [[Queue<B>; STREAMS]; IMPORTANCES],
    pub(super) tails: [Tail<B>; STREAMS],
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
pub(super) struct Load {
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
pub(super) struct Entry<B> {
    /// Counts pushes: the smaller, the older.
    stamp: u64,
    importance: Importance,
    /// Asked for once, so that our books balance even if a body changed its mind.
    size: usize,
    body: B,
}

/// Messages without a number.
#[derive(Clone, Debug)]
pub(super) struct Queue<B> {
    pub(super) entries: VecDeque<Entry<B>>,
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
pub(super) struct Tail<B> {
    pub(super) entries: VecDeque<Entry<B>>,
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
pub(super) fn give_back<T>(entries: &mut VecDeque<T>) {
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
    /// [skip](super::Inbox::skip_to) to it.
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
