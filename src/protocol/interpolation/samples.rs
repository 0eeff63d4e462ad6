//! What is drawn of a value at a moment.

use std::collections::VecDeque;
use std::ops::{Add, Mul};

use super::Playback;
use crate::tick::Tick;

/// The most samples in one buffer: a second of them at 30 snapshots a second.
pub const MAX_SAMPLES: usize = 32;

/// Recent values of one component of one entity, by tick.
///
/// Holds at most [`MAX_SAMPLES`]; when full, the oldest goes.
#[derive(Clone, Debug)]
pub struct SampleBuffer<T> {
    /// By tick, oldest first.
    entries: VecDeque<Entry<T>>,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    tick: Tick,
    value: T,
    hold: Option<Tick>,
    /// Nothing moves from the value before to this one.
    is_cut: bool,
}

/// What a [`SampleBuffer`] knows about a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample<'a, T> {
    /// Nothing at all.
    Empty,
    /// Exactly this: the value did not change around then, or is the first or only one.
    Hold(&'a T),
    /// On the way between two values.
    Between {
        /// The tick until which `before` held, and the value then.
        before: (Tick, &'a T),
        /// The next known value, and its tick.
        after: (Tick, &'a T),
        /// How far between them: 0 to 1.
        t: f32,
    },
    /// Past the newest value, of something that was changing.
    Extrapolate {
        /// The tick until which the value before the last held, and that value.
        previous: (Tick, &'a T),
        /// The newest value, and its tick.
        last: (Tick, &'a T),
        /// Ticks since `last`, up to [`Playback::max_extrapolation_ticks`].
        ticks_past: f32,
    },
}

impl<'a, T> Sample<'a, T> {
    /// Steps instead of sliding where `is_jump` says of two successive values that nothing moves
    /// from one to the other: a teleport.
    #[must_use]
    pub fn snap_if(self, is_jump: impl Fn(&T, &T) -> bool) -> Self {
        match self {
            Self::Between { before, after, .. } if is_jump(before.1, after.1) => {
                Self::Hold(before.1)
            }
            Self::Extrapolate { previous, last, .. } if is_jump(previous.1, last.1) => {
                Self::Hold(last.1)
            }
            other => other,
        }
    }

    /// The value, given how to blend two: `blend(a, b, t)` is *a* at 0, *b* at 1, and beyond *b*
    /// when extrapolating. `None` if there is none.
    #[must_use]
    pub fn blend(self, blend: impl FnOnce(&T, &T, f32) -> T) -> Option<T>
    where
        T: Clone,
    {
        match self {
            Self::Empty => None,
            Self::Hold(value) => Some(value.clone()),
            Self::Between { before, after, t } => Some(blend(before.1, after.1, t)),
            Self::Extrapolate {
                previous,
                last,
                ticks_past,
            } => {
                let span = last.0.distance_from(previous.0).max(1) as f32;
                Some(blend(previous.1, last.1, 1.0 + ticks_past / span))
            }
        }
    }
}

impl<T> Default for SampleBuffer<T> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
        }
    }
}

impl<T> SampleBuffer<T> {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that the value at `tick` was `value`. Samples may come in any order; a second one of
    /// the same tick replaces the first.
    ///
    /// `hold`: a tick at which the value before this one, in this buffer, is known to have held
    /// still, so that whoever stood for three seconds and then takes a step is not drawn walking
    /// for three seconds. Usually the snapshot before this one. `None` if nothing is known.
    pub fn insert(&mut self, tick: Tick, value: T, hold: Option<Tick>) {
        self.insert_entry(Entry {
            tick,
            value,
            hold,
            is_cut: false,
        });
    }

    /// Like [`Self::insert`], of a value to which nothing moves from the one before: that was in another space (of
    /// another parent, say), or of another life of the component.
    pub fn insert_cut(&mut self, tick: Tick, value: T) {
        self.insert_entry(Entry {
            tick,
            value,
            hold: None,
            is_cut: true,
        });
    }

    /// Forgets what was before the last cut.
    pub fn skip_to_cut(&mut self) {
        if let Some(cut) = self.entries.iter().rposition(|entry| entry.is_cut) {
            self.entries.drain(..cut);
        }
    }

    fn insert_entry(&mut self, entry: Entry<T>) {
        let tick = entry.tick;
        let at = self.index_after(tick);
        if let Some(same) = at.checked_sub(1).and_then(|i| self.entries.get_mut(i))
            && same.tick == tick
        {
            *same = entry;
            return;
        }
        if self.entries.len() < MAX_SAMPLES {
            self.entries.insert(at, entry);
        } else if at > 0 {
            self.entries.pop_front();
            self.entries.insert(at - 1, entry);
        }
    }

    /// What is known about a moment.
    #[must_use]
    pub fn sample(&self, at: &Playback) -> Sample<'_, T> {
        let index = self.index_after(at.tick);
        let before = index.checked_sub(1).and_then(|i| self.entries.get(i));
        match (before, self.entries.get(index)) {
            (None, None) => Sample::Empty,
            // Before its first value it can only have been that.
            (None, Some(first)) => Sample::Hold(&first.value),
            (Some(before), Some(after)) if after.is_cut => Sample::Hold(&before.value),
            (Some(before), Some(after)) => {
                let from = after.held_until(before.tick);
                if from.is_newer_than(at.tick) {
                    return Sample::Hold(&before.value);
                }
                let span = after.tick.distance_from(from).max(1) as f32;
                let t = (at.tick.distance_from(from) as f32 + at.fraction) / span;
                Sample::Between {
                    before: (from, &before.value),
                    after: (after.tick, &after.value),
                    t: t.clamp(0.0, 1.0),
                }
            }
            (Some(last), None) => {
                let previous = index.checked_sub(2).and_then(|i| self.entries.get(i));
                match previous {
                    // A newer snapshot without a newer value: it has come to rest.
                    Some(previous) if !last.is_cut && !at.newest.is_newer_than(last.tick) => {
                        let past = at.tick.distance_from(last.tick) as f32 + at.fraction;
                        Sample::Extrapolate {
                            previous: (last.held_until(previous.tick), &previous.value),
                            last: (last.tick, &last.value),
                            ticks_past: past.min(at.max_extrapolation_ticks),
                        }
                    }
                    _ => Sample::Hold(&last.value),
                }
            }
        }
    }

    /// Forgets what no moment from `tick` on needs: every sample before the newest that is not
    /// after `tick`, but for one, which extrapolation may need.
    pub fn discard_before(&mut self, tick: Tick) {
        let needless = self.index_after(tick).saturating_sub(2);
        self.entries.drain(..needless);
    }

    /// The newest value, and its tick.
    #[must_use]
    pub fn newest(&self) -> Option<(Tick, &T)> {
        self.entries.back().map(|entry| (entry.tick, &entry.value))
    }

    /// The oldest remembered tick. Of an entity that has just appeared, the moment it did.
    #[must_use]
    pub fn oldest_tick(&self) -> Option<Tick> {
        self.entries.front().map(|entry| entry.tick)
    }

    /// How many samples are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no sample is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Index of the first sample after `tick`.
    fn index_after(&self, tick: Tick) -> usize {
        self.entries
            .partition_point(|entry| !entry.tick.is_newer_than(tick))
    }
}

impl<T> Entry<T> {
    /// Until when the value of the sample before this one, at tick `before`, held.
    fn held_until(&self, before: Tick) -> Tick {
        self.hold
            .filter(|hold| hold.is_newer_than(before) && self.tick.is_newer_than(*hold))
            .unwrap_or(before)
    }
}

/// The cubic curve that leaves `p0` with velocity `v0` and arrives at `p1` with velocity `v1`
/// `dt` seconds later, at `t` (0 to 1) of the way. Velocities are per second.
///
/// The cubic Hermite spline in its usual basis. Works for `f32`, `Vec2`, `Vec3` and the like.
/// Compared with a straight line it keeps the speed steady where two stretches meet, which matters
/// when snapshots are far apart; it overshoots if a velocity is wrong.
#[must_use]
pub fn hermite<V>(p0: V, v0: V, p1: V, v1: V, t: f32, dt: f32) -> V
where
    V: Copy + Add<Output = V> + Mul<f32, Output = V>,
{
    let (t2, t3) = (t * t, t * t * t);
    p0 * (2.0 * t3 - 3.0 * t2 + 1.0)
        + v0 * ((t3 - 2.0 * t2 + t) * dt)
        + p1 * (3.0 * t2 - 2.0 * t3)
        + v1 * ((t3 - t2) * dt)
}
