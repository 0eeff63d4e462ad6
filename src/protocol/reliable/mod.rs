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

mod inbox;
mod outbox;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::wire::WireError;

pub use inbox::{Accept, Inbox};
pub use outbox::{Full, Outbox, OutboxLimits, Pushed, WhenFull};

/// How many streams a session has in each direction.
pub const STREAMS: usize = 2;

/// The most messages of one stream that are handed to a link and not acknowledged, whatever
/// [`OutboxLimits::window_messages`] says: an [`Inbox`] remembers so many.
pub const MAX_WINDOW_MESSAGES: usize = 1_024;

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
