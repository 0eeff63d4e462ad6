//! What replicated entities and components look like to the protocol: numbers, not types.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::tick::Tick;
use crate::wire::quantize::{Fields, MAX_WORDS};

/// A replicated entity, as both sides name it. The server gives it out, and never gives it to another entity.
///
/// An index is short on the wire, and is given out again once its entity is gone and nobody can confuse the two. The
/// generation counts how often that has happened. It travels where something is named for the first time or long after:
/// with whole entities and in references. Updates name by index alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetId {
    index: u32,
    generation: u32,
}

impl NetId {
    /// The entity that had this index after it had been given out `generation` times before.
    pub const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation }
    }

    /// Its place in the server's records, shared with entities before and after it.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// How many entities had this index before.
    pub const fn generation(self) -> u32 {
        self.generation
    }

    /// The next entity with this index.
    pub(super) const fn successor(self) -> Self {
        Self::new(self.index, self.generation.wrapping_add(1))
    }
}

/// As one number: half the work of two.
impl std::hash::Hash for NetId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64((u64::from(self.generation) << 32) | u64::from(self.index));
    }
}

impl std::fmt::Debug for NetId {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "NetId({}v{})", self.index, self.generation)
    }
}

/// The number of a session, the same on server and clients. Never given out twice by one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u32);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A registered component: its place in the order of registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ComponentId(pub u8);

/// How a component's value travels.
#[derive(Clone, Debug)]
pub enum Layout {
    /// Quantised: words of known width, sent as differences to an acked baseline.
    Words(Fields),
    /// Serialised: sent whole when it changes.
    Bytes,
}

/// The layouts of all registered components, indexed by [`ComponentId`].
#[derive(Clone, Debug)]
pub struct Layouts(Arc<[Layout]>);

impl Layouts {
    /// At most 256 layouts fit a [`ComponentId`].
    ///
    /// # Panics
    ///
    /// With more than 256 layouts, or more than [`MAX_WORDS`] fields in one of them.
    pub fn new(layouts: impl IntoIterator<Item = Layout>) -> Self {
        let layouts: Arc<[_]> = layouts.into_iter().collect();
        assert!(
            layouts.len() <= 256,
            "at most 256 components can be replicated"
        );
        for layout in layouts.iter() {
            if let Layout::Words(fields) = layout {
                assert!(
                    fields.len() <= MAX_WORDS,
                    "a quantised component has at most {MAX_WORDS} words"
                );
            }
        }
        Self(layouts)
    }

    /// The layout of a component, or `None` if nothing is registered under that id.
    pub fn get(&self, id: ComponentId) -> Option<&Layout> {
        self.0.get(usize::from(id.0))
    }
}

/// Who simulates an entity ahead of the server. A component of server entities.
#[derive(bevy::prelude::Component, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PredictedBy {
    /// The client whose session owns it; everybody else interpolates.
    #[default]
    Owner,
    /// Every client that sees it: a ball that all may push, say.
    Everyone,
    /// Nobody; all clients interpolate, the owner too.
    Nobody,
}

impl PredictedBy {
    pub(super) fn to_bits(self) -> u32 {
        match self {
            Self::Owner => 0,
            Self::Everyone => 1,
            Self::Nobody => 2,
        }
    }

    pub(super) fn from_bits(bits: u32) -> Option<Self> {
        [Self::Owner, Self::Everyone, Self::Nobody]
            .get(bits as usize)
            .copied()
    }
}

/// What is known of an entity besides its components.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Number of the owning session; `None` for the world's own.
    pub owner: Option<u32>,
    /// Who simulates it ahead of the server.
    pub predicted_by: PredictedBy,
}

/// Values of one quantised component at several ticks, oldest first.
///
/// The server keeps what clients may use as a baseline, a client what the server may still refer to. Both keep
/// at most [`History::MAX_LEN`] values; equal successive values are one entry, so a client's entries are always a
/// subset of the server's and whatever the server still has, the client has too.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// Rows of a ring: the tick, then the words.
    rows: Vec<u32>,
    /// Length of a row.
    stride: u32,
    /// Rows in the ring: zero or a power of two.
    capacity: u32,
    start: u32,
    len: u32,
}

impl History {
    /// 64 values: about two seconds of a component that changes in every snapshot at 30 Hz. Older baselines are
    /// answered with whole values.
    pub const MAX_LEN: usize = 64;

    pub fn new(words: usize) -> Self {
        Self {
            rows: Vec::new(),
            stride: words as u32 + 1,
            capacity: 0,
            start: 0,
            len: 0,
        }
    }

    /// Words in a value.
    pub fn words(&self) -> usize {
        self.stride as usize - 1
    }

    /// Number of values held.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Where a row is, counted from the oldest.
    #[inline]
    fn range(&self, index: u32) -> std::ops::Range<usize> {
        let at = ((self.start + index) & (self.capacity - 1)) * self.stride;
        at as usize..(at + self.stride) as usize
    }

    #[inline]
    fn row(&self, index: u32) -> &[u32] {
        &self.rows[self.range(index)]
    }

    /// The newest value.
    #[inline]
    pub fn last(&self) -> Option<&[u32]> {
        (self.len > 0).then(|| &self.row(self.len - 1)[1..])
    }

    /// The value that held at `tick`: the newest entry not newer than it.
    #[inline]
    pub fn at(&self, tick: Tick) -> Option<&[u32]> {
        (0..self.len)
            .rev()
            .map(|index| self.row(index))
            .find(|row| !Tick(row[0]).is_newer_than(tick))
            .map(|row| &row[1..])
    }

    /// Appends a value; says whether it differs from the newest one.
    ///
    /// What was there for this tick or later ones is replaced: it came from a snapshot that broke off.
    #[inline]
    pub fn push(&mut self, tick: Tick, words: &[u32]) -> bool {
        debug_assert_eq!(words.len() + 1, self.stride as usize);
        while self.len > 0 && !tick.is_newer_than(Tick(self.row(self.len - 1)[0])) {
            self.len -= 1;
        }
        if self.last() == Some(words) {
            return false;
        }
        if self.len() == Self::MAX_LEN {
            self.drop_oldest();
        } else if self.len == self.capacity {
            self.grow();
        }
        let range = self.range(self.len);
        let row = &mut self.rows[range];
        row[0] = tick.0;
        row[1..].copy_from_slice(words);
        self.len += 1;
        true
    }

    /// Forgets what no baseline at or after `tick` needs.
    #[inline]
    pub fn forget_before(&mut self, tick: Tick) {
        while self.len > 1 && !Tick(self.row(1)[0]).is_newer_than(tick) {
            self.drop_oldest();
        }
    }

    #[inline]
    fn drop_oldest(&mut self) {
        self.start = (self.start + 1) & (self.capacity - 1);
        self.len -= 1;
    }

    fn grow(&mut self) {
        let capacity = (self.capacity * 2).max(1);
        let size = (capacity * self.stride) as usize;
        let mut rows = Vec::with_capacity(size);
        for index in 0..self.len {
            rows.extend_from_slice(self.row(index));
        }
        rows.resize(size, 0);
        self.rows = rows;
        self.capacity = capacity;
        self.start = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_answers_with_the_value_that_held_then() {
        let mut history = History::new(1);
        for (tick, value) in [(10, 1), (12, 2), (12 + 5, 3)] {
            assert!(history.push(Tick(tick), &[value]));
        }
        assert!(!history.push(Tick(20), &[3]), "an equal value is no change");
        assert_eq!(history.at(Tick(9)), None);
        assert_eq!(history.at(Tick(11)), Some(&[1][..]));
        assert_eq!(history.at(Tick(16)), Some(&[2][..]));
        assert_eq!(history.at(Tick(99)), Some(&[3][..]));
        history.forget_before(Tick(13));
        assert_eq!(history.at(Tick(11)), None);
        assert_eq!(history.at(Tick(13)), Some(&[2][..]));
    }

    #[test]
    fn history_goes_back_to_before_a_snapshot_that_broke_off() {
        let mut history = History::new(1);
        history.push(Tick(10), &[1]);
        history.push(Tick(900), &[2]);
        assert!(history.push(Tick(11), &[2]));
        assert_eq!(history.at(Tick(11)), Some(&[2][..]));
        assert_eq!(history.at(Tick(10)), Some(&[1][..]));
    }

    #[test]
    fn history_is_bounded() {
        let mut history = History::new(2);
        for tick in 0..1000 {
            history.push(Tick(tick), &[tick, tick]);
        }
        assert_eq!(
            history.at(Tick(1000 - History::MAX_LEN as u32)),
            Some(&[936, 936][..])
        );
        assert_eq!(history.at(Tick(935)), None);
    }
}
