//! What the game has taken.

use super::{MAX_WINDOW_MESSAGES, STREAMS, Stream, Taken};

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
    pub(super) early: Option<Box<Early>>,
}

/// Which of the next [`MAX_WINDOW_MESSAGES`] unordered messages were taken: a bit for each, in a ring.
#[derive(Clone, Debug)]
pub(super) struct Early {
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
    /// An inbox that expects these numbers next. [`Inbox::default`] expects 0, as a new [`Outbox`](super::Outbox) gives.
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
    /// ([`Outbox::first_kept`](super::Outbox::first_kept)). Returns how many messages are thereby missed. Never goes back.
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
