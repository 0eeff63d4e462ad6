//! Drawing others in the recent past, where what is to be drawn is known.
//!
//! Snapshots arrive unevenly and some not at all. So a client draws other players' entities at a
//! *playback moment* that lies a little behind the newest snapshot, between two that it has. A
//! [`Timeline`] per client decides what that moment is; a [`SampleBuffer`] per entity and component
//! holds the values around it.
//!
//! # How far behind
//!
//! A *slot* is a tick of which the server sent a snapshot. While playback is between the slots
//! *a* and *b*, it needs *b*, or anything newer, and needs it from the moment it passes *a*. So it
//! must stay behind the server by one send interval plus what *b* is late, where a lost slot is as
//! late as the next snapshot that does arrive. [`Timeline`] keeps this for the last 256 slots and
//! chooses the delay that suffices for 98 % of them.
//!
//! 95 % would not do at 5 % loss: the delay then covers jitter alone, each lost slot costs part of a
//! send interval without data, and more than 1 % of the frames starve (1.3 % at 144 frames a second,
//! on the rough link below). At 98 %, most single losses are covered. The price on that link is 13 ms,
//! and on a clean one nothing, as there is no tail to cover. 99 % would cost another 9 ms.
//!
//! More delay is needed at once, less is only nicer: playback slows down by up to 5 % to grow the
//! delay, and speeds up by 1 to 5 % to shrink it. Lacking more than 100 ms it runs at 0.75 times the
//! speed, with 250 ms too much at 1.25 times, and beyond 500 ms either way it jumps. Except at a jump
//! it never runs backwards.
//!
//! # Figures
//!
//! From the tests below: 60 ticks and (but where noted) 30 snapshots a second, wall clocks apart by
//! up to ±200 ppm, frame times varying by a tenth, six runs of a minute each, from the third second
//! on. *Delay* is [`Playback::delay`], without the one-way latency.
//!
//! | one-way link | fps | frames starved | delay |
//! |---|---|---|---|
//! | 20 ms, clean | 20 / 60 / 144 / 240 | 0 % | 87 / 54 / 45 / 42 ms |
//! | 75 ± 20 ms, 5 % loss | 20 / 60 / 144 / 240 | 0.0 / 0.2 / 0.4 / 0.5 % | 121 / 100 / 96 / 95 ms |
//! | the same, 60 snapshots | 60 | 0.1 % | 69 ms |
//! | the same, 20 snapshots | 60 | 0.3 % | 132 ms |
//! | 75 ± 60 ms, 15 % loss | 60 | 0.5 % | 171 ms |

use std::collections::VecDeque;
use std::ops::{Add, Mul};
use std::time::Duration;

use crate::tick::{Tick, Ticks};

/// How a [`Timeline`] behaves. The defaults are what the module's figures were measured with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimelineSettings {
    /// Duration of a tick, not zero. Default: 1/60 s.
    pub tick: Duration,
    /// Ticks between two snapshots while things change. Default 2: 30 snapshots a second.
    pub send_interval: Ticks,
    /// Share of slots for which the delay must suffice: 0.5 to 1. Default 0.98; the module's
    /// introduction tells why not less.
    pub covered_slots: f32,
    /// Further off than this, playback jumps. A snapshot that is later than this counts as an
    /// outage, for which no delay is kept ready. Default: 500 ms.
    pub jump_beyond: Duration,
    /// How far past the newest value a [`SampleBuffer`] may be extrapolated. Default: 250 ms.
    pub max_extrapolation: Duration,
}

impl Default for TimelineSettings {
    fn default() -> Self {
        Self {
            tick: Duration::from_nanos(16_666_667),
            send_interval: Ticks(2),
            covered_slots: 0.98,
            jump_beyond: Duration::from_millis(500),
            max_extrapolation: Duration::from_millis(250),
        }
    }
}

/// A moment to be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Playback {
    /// The tick at or before the moment.
    pub tick: Tick,
    /// How far it is on the way to the next tick: 0 to 1, exclusive.
    pub fraction: f32,
    /// No snapshot at or after the moment has arrived: it can only be guessed. Also true while the
    /// server has nothing to send, which is unknown until it sends again; the counts of
    /// [`Timeline::starvation`] are put right then.
    pub starved: bool,
    /// By how much the moment lies behind the server's present as heard of here: behind what would
    /// be drawn if each snapshot were drawn on arrival, and all came as fast as the fastest of the
    /// last 256 slots. The one-way latency, which nobody can know without synchronised clocks, is
    /// not in it: add half the round-trip time for the age of what is seen.
    pub delay: Duration,
    /// The newest tick of which a snapshot has arrived. Whatever is not in it, and not waiting for
    /// room in a later one, has not changed until then.
    pub newest: Tick,
    /// Ticks past the newest value that may be extrapolated.
    pub max_extrapolation_ticks: f32,
}

/// How often there was nothing to draw from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Starvation {
    /// Frames whose verdict is known.
    pub frames: u64,
    /// Of these, frames whose moment lay past the newest snapshot although the server had sent, or
    /// was about to send, one that would have been needed.
    pub starved: u64,
}

impl Starvation {
    /// Share of frames starved, 0 to 1.
    #[must_use]
    pub fn ratio(&self) -> f32 {
        self.starved as f32 / self.frames.max(1) as f32
    }
}

/// How many slots are remembered: 8.5 s at 30 snapshots a second.
const WINDOW: usize = 256;
/// With fewer slots than this, playback stays another send interval behind, against surprises.
const FEW_SLOTS: usize = 32;
/// So many of them tell how soon snapshots have arrived lately.
const RECENT_SLOTS: usize = 8;
/// The most lost slots that are inferred from a gap.
const MAX_LOST_SLOTS: i32 = 8;
/// This long without a frame, the client itself was suspended: what it then finds waiting tells
/// nothing about the network.
const SUSPENDED_AFTER: Duration = Duration::from_millis(250);
/// Lateness beyond `jump_beyond` for this long means that the server's clock was set back.
const OUTAGE_BELIEVED_AFTER: Duration = Duration::from_millis(250);
/// Lacking more delay than this, in ticks, growing it is urgent.
const GROW_FIRMLY_BEYOND_TICKS: f64 = 6.0;
/// Having more delay in excess than this, in ticks, an outage is over, and it should be noticed.
const SHRINK_FIRMLY_BEYOND_TICKS: f64 = 15.0;
const GENTLE_RATE: f64 = 0.05;
const FIRM_RATE: f64 = 0.25;
/// Rate per tick of error when the delay must grow.
const GROW_GAIN: f64 = 0.05;
/// Rate per tick of error when the delay may shrink, beyond the dead band.
const SHRINK_GAIN: f64 = 0.01;
const SHRINK_DEADBAND_TICKS: f64 = 0.25;
/// Frames past the newest snapshot are remembered by whole ticks, so many of them.
const PENDING_TICKS: usize = 512;

/// One client's estimate of what moment to draw, from when snapshots arrive.
///
/// Per frame, hand over the snapshots that have arrived, with one and the same `now`, then
/// [`advance`](Self::advance).
#[derive(Clone, Debug)]
pub struct Timeline {
    settings: TimelineSettings,
    /// Ticks are counted from here, to be numbers.
    zero: Tick,
    newest: Option<Tick>,
    /// Newest last.
    slots: VecDeque<SlotTiming>,
    /// Since when all snapshots have been later than `jump_beyond`.
    outage_since: Option<Duration>,
    /// What suffices for `covered_slots` of the slots.
    needed: f64,
    /// The least offset of the slots.
    fastest: f64,
    /// What is drawn, in ticks from zero.
    moment: Option<f64>,
    last_advance: Option<Duration>,
    starvation: Starvation,
    /// Frames that drew past the newest snapshot, by how many ticks, whose verdict is open.
    pending: Box<[u32; PENDING_TICKS]>,
    pending_end: usize,
    jumps: u32,
    scratch: Vec<f64>,
    /// The server's game stands still at the newest tick.
    stands_still: bool,
    /// It has stood still, and playback waits until it is as far behind again as it should be.
    catches_up: bool,
    /// Ticks of wall-clock time in which it stood still so far.
    stood: f64,
}

/// When one slot arrived, in ticks.
#[derive(Clone, Copy, Debug)]
struct SlotTiming {
    /// Wall clock minus the slot's tick at its arrival.
    offset: f64,
    /// Wall clock minus playback that would have just sufficed.
    need: f64,
}

impl Timeline {
    /// A timeline that has not heard of anything.
    #[must_use]
    pub fn new(settings: TimelineSettings) -> Self {
        Self {
            settings,
            zero: Tick(0),
            newest: None,
            slots: VecDeque::with_capacity(WINDOW + MAX_LOST_SLOTS as usize),
            outage_since: None,
            needed: 0.0,
            fastest: 0.0,
            moment: None,
            last_advance: None,
            starvation: Starvation::default(),
            pending: Box::new([0; PENDING_TICKS]),
            pending_end: 0,
            jumps: 0,
            scratch: Vec::with_capacity(WINDOW),
            stands_still: false,
            catches_up: false,
            stood: 0.0,
        }
    }

    /// The server's game stands still at the newest tick: playback plays up to it and stops. The next snapshot that is
    /// [handled](Self::handle_snapshot) ends that.
    pub fn stand_still(&mut self) {
        self.stands_still = true;
        self.catches_up = false;
    }

    /// Takes in a snapshot of what was changed while the game stands still.
    pub fn handle_snapshot_in_standstill(&mut self, tick: Tick) {
        self.stand_still();
        if self.newest.is_none() {
            self.zero = tick;
        }
        self.newest = Some(self.newest.map_or(tick, |newest| newest.latest(tick)));
        self.forgive_pending();
    }

    /// Takes in that a snapshot of `tick` arrived at `now`, before which the server had sent one of
    /// `previous_sent` (its own tick or newer, if there was none).
    ///
    /// A gap between the two in which nothing was sent is not held against the network, and what
    /// was sent and has not arrived is known to be lost. A snapshot that was overtaken by a newer
    /// one changes nothing here: it arrived, as far as playback is concerned, with the newer one.
    pub fn handle_snapshot(&mut self, now: Duration, tick: Tick, previous_sent: Tick) {
        let Some(newest) = self.newest else {
            self.zero = tick;
            self.newest = Some(tick);
            self.note_slot(self.present(now), tick, self.interval());
            self.estimate();
            return;
        };
        if !tick.is_newer_than(newest) {
            return;
        }
        if std::mem::take(&mut self.stands_still) {
            self.go_on(now, tick);
        }
        self.settle_pending(newest, tick, previous_sent);
        self.newest = Some(tick);

        let suspended = self
            .last_advance
            .is_some_and(|last| now.saturating_sub(last) > SUSPENDED_AFTER);
        if suspended || self.is_outage(now, tick) {
            return;
        }
        let arrived = self.present(now);
        let interval = self.interval();
        let lost = previous_sent.distance_from(newest);
        if lost > 0 && tick.is_newer_than(previous_sent) {
            // Only the last lost one is known. Those before it are assumed at the usual interval,
            // unless the gap is so long that the server must have been silent in between.
            let most = if lost <= MAX_LOST_SLOTS * interval {
                MAX_LOST_SLOTS
            } else {
                1
            };
            for i in 0..most {
                let slot = Tick(previous_sent.0.wrapping_add_signed(-i * interval));
                if !slot.is_newer_than(newest) {
                    break;
                }
                self.note_slot(arrived, slot, interval);
            }
        }
        let gap = tick.distance_from(previous_sent).clamp(1, interval);
        self.note_slot(arrived, tick, gap);
        self.estimate();
    }

    /// The moment to draw in the frame at `now`; `None` before the first snapshot.
    pub fn advance(&mut self, now: Duration) -> Option<Playback> {
        let newest = self.newest?;
        let present = self.present(now);
        let caution = if self.slots.len() < FEW_SLOTS {
            f64::from(self.interval())
        } else {
            0.0
        };
        let target = present - self.needed - caution;
        let moment = match (self.moment, self.last_advance) {
            (Some(moment), Some(last)) if self.stands_still => {
                self.forgive_pending();
                let end = f64::from(newest.distance_from(self.zero));
                (moment + self.in_ticks(now.saturating_sub(last))).min(end)
            }
            (Some(moment), _) if self.catches_up && target < moment => moment,
            (Some(moment), Some(last)) => {
                self.catches_up = false;
                let elapsed = self.in_ticks(now.saturating_sub(last));
                let error = target - (moment + elapsed);
                if error.abs() > self.in_ticks(self.settings.jump_beyond) {
                    self.jumps += 1;
                    target
                } else {
                    let correction = elapsed * rate_for(error);
                    moment + elapsed + correction.clamp(-error.abs(), error.abs())
                }
            }
            _ => target,
        };
        self.moment = Some(moment);
        self.last_advance = Some(now);

        let past = moment - f64::from(newest.distance_from(self.zero));
        if past > 0.0 {
            let bucket = (past as usize).min(PENDING_TICKS - 1);
            self.pending[bucket] += 1;
            self.pending_end = self.pending_end.max(bucket + 1);
        } else {
            self.starvation.frames += 1;
        }
        let whole = moment.floor();
        Some(Playback {
            tick: Tick(self.zero.0.wrapping_add_signed(whole as i32)),
            // Rounding to f32 must not make it 1.
            fraction: ((moment - whole) as f32).min(1.0 - f32::EPSILON),
            starved: past > 0.0,
            delay: self
                .settings
                .tick
                .mul_f64((present - self.fastest - moment).max(0.0)),
            newest,
            max_extrapolation_ticks: self.in_ticks(self.settings.max_extrapolation) as f32,
        })
    }

    /// How many frames had nothing to draw from. Frames past the newest snapshot are counted when
    /// the next one tells whether the server had been silent or the network.
    #[must_use]
    pub fn starvation(&self) -> Starvation {
        self.starvation
    }

    /// How often playback jumped, since it began.
    #[must_use]
    pub fn jumps(&self) -> u32 {
        self.jumps
    }

    /// The server sends at another rate from now on.
    pub fn set_send_interval(&mut self, send_interval: Ticks) {
        self.settings.send_interval = send_interval;
    }

    fn in_ticks(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.settings.tick.as_secs_f64()
    }

    /// Wall-clock time in ticks, without that in which the server's game stood still.
    fn present(&self, now: Duration) -> f64 {
        self.in_ticks(now) - self.stood
    }

    /// The server's game goes on after a standstill: what that took is the difference between when this snapshot came and
    /// when one of its tick would have come, as recent ones did.
    fn go_on(&mut self, now: Duration, tick: Tick) {
        let usual = self.slots.iter().rev().take(RECENT_SLOTS);
        let usual = usual.map(|slot| slot.offset).reduce(f64::min);
        if let Some(usual) = usual {
            let offset = self.present(now) - f64::from(tick.distance_from(self.zero));
            self.stood += (offset - usual).max(0.0);
            self.catches_up = true;
        }
    }

    /// Frames past the newest snapshot have missed nothing: there was nothing new.
    fn forgive_pending(&mut self) {
        for frames in &mut self.pending[..self.pending_end] {
            self.starvation.frames += u64::from(std::mem::take(frames));
        }
        self.pending_end = 0;
    }

    fn interval(&self) -> i32 {
        self.settings.send_interval.0.clamp(1, 1_000) as i32
    }

    /// Whether a snapshot is so late that it is no measure of the delay to keep.
    ///
    /// Stays so late whatever comes, then it is the server's clock that was set back, and what was
    /// measured before is void. If it is as much too early, that is certain at once: no snapshot
    /// arrives before it is sent.
    fn is_outage(&mut self, now: Duration, tick: Tick) -> bool {
        let late = self.present(now) - f64::from(tick.distance_from(self.zero)) - self.fastest;
        let bound = self.in_ticks(self.settings.jump_beyond);
        if late < -bound {
            self.slots.clear();
        }
        if late <= bound {
            self.outage_since = None;
            return false;
        }
        let since = *self.outage_since.get_or_insert(now);
        if now.saturating_sub(since) < OUTAGE_BELIEVED_AFTER {
            return true;
        }
        self.outage_since = None;
        self.slots.clear();
        false
    }

    /// Remembers a slot that was preceded by another `gap` ticks before, and that was heard of when
    /// the wall clock showed `arrived` ticks.
    fn note_slot(&mut self, arrived: f64, slot: Tick, gap: i32) {
        let offset = arrived - f64::from(slot.distance_from(self.zero));
        if self.slots.len() == WINDOW {
            self.slots.pop_front();
        }
        self.slots.push_back(SlotTiming {
            offset,
            need: offset + f64::from(gap),
        });
    }

    fn estimate(&mut self) {
        self.scratch.clear();
        self.scratch.extend(self.slots.iter().map(|slot| slot.need));
        let Some(last) = self.scratch.len().checked_sub(1) else {
            return;
        };
        let share = f64::from(self.settings.covered_slots.clamp(0.0, 1.0));
        let index = ((last + 1) as f64 * share) as usize;
        let (_, needed, _) = self
            .scratch
            .select_nth_unstable_by(index.min(last), f64::total_cmp);
        self.needed = *needed;
        self.fastest = self
            .slots
            .iter()
            .fold(f64::MAX, |least, slot| least.min(slot.offset));
    }

    /// Judges the frames that were drawn past `newest`, now that the next snapshot is known.
    ///
    /// They starved if they needed one that was lost, that is up to `previous_sent`, or this one.
    /// In between the server was silent, and holding the last values was right.
    fn settle_pending(&mut self, newest: Tick, tick: Tick, previous_sent: Tick) {
        let lost_until = i64::from(previous_sent.distance_from(newest));
        let needed_from = i64::from(tick.distance_from(newest)) - i64::from(self.interval());
        for (past, frames) in self.pending[..self.pending_end].iter_mut().enumerate() {
            let past = past as i64;
            let count = u64::from(std::mem::take(frames));
            self.starvation.frames += count;
            if past < lost_until || past >= needed_from {
                self.starvation.starved += count;
            }
        }
        self.pending_end = 0;
    }
}

/// How much faster or slower than 1 to play, `error` ticks behind (or, if negative, before) where
/// playback should be.
fn rate_for(error: f64) -> f64 {
    if !(-GROW_FIRMLY_BEYOND_TICKS..=SHRINK_FIRMLY_BEYOND_TICKS).contains(&error) {
        FIRM_RATE.copysign(error)
    } else if error < 0.0 {
        (error * GROW_GAIN).max(-GENTLE_RATE)
    } else {
        ((error - SHRINK_DEADBAND_TICKS).max(0.0) * SHRINK_GAIN).min(GENTLE_RATE)
    }
}

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

#[cfg(test)]
mod tests {
    use bevy::math::{Vec2, Vec3};

    use super::*;

    #[derive(Clone, Copy)]
    struct Scenario {
        seed: u64,
        latency_ms: f64,
        /// Uniform, to either side, and independent: snapshots overtake each other.
        jitter_ms: f64,
        loss: f64,
        fps: f64,
        drift_ppm: f64,
        send_interval: u32,
        /// When the client's process is suspended, and for how long.
        client_stall: Option<(f64, f64)>,
        /// When the server's process is suspended, and for how long. Its ticks are then missing.
        server_stall: Option<(f64, f64)>,
        /// When the server has nothing to send, and for how long.
        idle: Option<(f64, f64)>,
    }

    const CLEAN: Scenario = Scenario {
        seed: 0,
        latency_ms: 20.0,
        jitter_ms: 0.0,
        loss: 0.0,
        fps: 60.0,
        drift_ppm: 0.0,
        send_interval: 2,
        client_stall: None,
        server_stall: None,
        idle: None,
    };
    const ROUGH: Scenario = Scenario {
        latency_ms: 75.0,
        jitter_ms: 20.0,
        loss: 0.05,
        ..CLEAN
    };

    struct Frame {
        at: f64,
        /// Ticks since the server's first.
        moment: f64,
        /// Truth: which tick the server was at.
        server: f64,
        /// No snapshot at or after the moment had arrived, though the server had something to say.
        starved: bool,
        delay: Duration,
    }

    struct Outcome {
        frames: Vec<Frame>,
        timeline: Timeline,
    }

    impl Outcome {
        fn frames(&self, from: f64, to: f64) -> impl Iterator<Item = &Frame> {
            self.frames
                .iter()
                .filter(move |frame| frame.at >= from && frame.at < to)
        }

        fn starved_ratio(&self, from: f64, to: f64) -> f64 {
            self.frames(from, to).filter(|frame| frame.starved).count() as f64
                / self.frames(from, to).count() as f64
        }

        fn mean_delay_ms(&self, from: f64, to: f64) -> f64 {
            self.frames(from, to)
                .map(|frame| frame.delay.as_secs_f64() * 1e3)
                .sum::<f64>()
                / self.frames(from, to).count() as f64
        }

        /// Ticks played per tick of time, over each half second.
        fn rates(&self, from: f64, to: f64) -> Vec<f64> {
            let frames: Vec<_> = self.frames(from, to).collect();
            let mut rates = Vec::new();
            let mut start = 0;
            for (i, frame) in frames.iter().enumerate() {
                if frame.at - frames[start].at >= 0.5 {
                    let played = (frame.moment - frames[start].moment) / 60.0;
                    rates.push(played / (frame.at - frames[start].at));
                    start = i;
                }
            }
            rates
        }
    }

    const LENGTH: f64 = 60.0;

    fn run(scenario: Scenario) -> Outcome {
        let mut rng = fastrand::Rng::with_seed(scenario.seed);
        let settings = TimelineSettings {
            send_interval: Ticks(scenario.send_interval),
            ..Default::default()
        };
        let within = |span: Option<(f64, f64)>, now: f64| {
            span.is_some_and(|(at, length)| now >= at && now < at + length)
        };

        // What the server sends: (sent, arrives, tick, previous).
        let first = Tick(u32::MAX - 900); // wraps after 15 seconds
        let mut sent: Vec<(f64, f64, Tick, Tick)> = Vec::new();
        let mut server_ticks: Vec<f64> = Vec::new();
        let mut tick = first;
        let mut previous = first;
        let mut now = 0.0;
        while now < LENGTH {
            if let Some((at, length)) = scenario
                .server_stall
                .filter(|_| within(scenario.server_stall, now))
            {
                now = at + length;
            }
            server_ticks.push(now);
            let elapsed = tick.distance_from(first) as u32;
            if elapsed.is_multiple_of(scenario.send_interval) && !within(scenario.idle, now) {
                if rng.f64() >= scenario.loss {
                    let delay = scenario.latency_ms + scenario.jitter_ms * (rng.f64() * 2.0 - 1.0);
                    sent.push((now, now + delay / 1e3, tick, previous));
                }
                previous = tick;
            }
            tick += Ticks(1);
            now += 1.0 / 60.0;
        }
        sent.sort_by(|a, b| a.1.total_cmp(&b.1));

        let mut outcome = Outcome {
            frames: Vec::new(),
            timeline: Timeline::new(settings),
        };
        let mut newest = None;
        let mut arrivals = sent.iter().peekable();
        let mut now = rng.f64() / scenario.fps;
        while now < LENGTH {
            if let Some((at, length)) = scenario
                .client_stall
                .filter(|_| within(scenario.client_stall, now))
            {
                now = at + length;
            }
            let local = Duration::from_secs_f64(50.0 + now * (1.0 + scenario.drift_ppm / 1e6));
            while let Some((_, _, tick, previous)) = arrivals.next_if(|arrival| arrival.1 <= now) {
                outcome.timeline.handle_snapshot(local, *tick, *previous);
                newest = Some(tick.distance_from(first).max(newest.unwrap_or(0)));
            }
            if let (Some(playback), Some(newest)) = (outcome.timeline.advance(local), newest) {
                let moment =
                    f64::from(playback.tick.distance_from(first)) + f64::from(playback.fraction);
                outcome.frames.push(Frame {
                    at: now,
                    moment,
                    server: server_ticks.partition_point(|at| *at <= now) as f64,
                    starved: moment > f64::from(newest),
                    delay: playback.delay,
                });
            }
            now += (0.9 + 0.2 * rng.f64()) / scenario.fps;
        }
        outcome
    }

    /// Runs a scenario with several seeds and drifts, and returns mean starved ratio and delay.
    fn means(name: &str, scenario: Scenario) -> (f64, f64) {
        let runs = 6;
        let (mut starved, mut delay, mut early) = (0.0, 0.0, 0.0);
        for seed in 0..runs {
            let drift_ppm = [-200.0, 0.0, 200.0][seed as usize % 3];
            let outcome = run(Scenario {
                seed,
                drift_ppm,
                ..scenario
            });
            starved += outcome.starved_ratio(2.0, LENGTH) / runs as f64;
            early += outcome.starved_ratio(0.0, 2.0) / runs as f64;
            delay += outcome.mean_delay_ms(2.0, LENGTH) / runs as f64;
            assert_eq!(outcome.timeline.jumps(), 0, "{name}: jumped");
            assert!(
                outcome.frames.is_sorted_by(|a, b| a.moment <= b.moment),
                "{name}: ran backwards"
            );
            for rate in outcome.rates(2.0, LENGTH) {
                assert!((0.94..1.06).contains(&rate), "{name}: ran at {rate}");
            }
            let counted = f64::from(outcome.timeline.starvation().ratio());
            let true_ratio = outcome.starved_ratio(0.0, LENGTH);
            assert!(
                (counted - true_ratio).abs() < 0.003,
                "{name}: counted {counted} starved, but it were {true_ratio}"
            );
        }
        println!(
            "{name}: starved {:.2} %, in the first 2 s {:.2} %, delay {delay:.0} ms",
            starved * 100.0,
            early * 100.0
        );
        (starved, delay)
    }

    #[test]
    fn a_rough_link_rarely_starves() {
        for fps in [20.0, 60.0, 144.0, 240.0] {
            let (starved, delay) = means(&format!("rough at {fps} fps"), Scenario { fps, ..ROUGH });
            assert!(starved <= 0.01, "{fps} fps: {starved} starved");
            let most = if fps < 30.0 { 150.0 } else { 120.0 };
            assert!(delay <= most, "{fps} fps: {delay} ms behind");
        }
    }

    #[test]
    fn a_clean_link_needs_one_send_interval_and_a_frame() {
        for fps in [20.0, 60.0, 144.0, 240.0] {
            let (starved, delay) = means(&format!("clean at {fps} fps"), Scenario { fps, ..CLEAN });
            assert!(starved <= 0.001, "{fps} fps: {starved} starved");
            assert!(
                delay <= 33.4 + 1.1e3 / fps + 5.0,
                "{fps} fps: {delay} ms behind"
            );
        }
    }

    #[test]
    fn other_send_rates_and_links_are_found_out() {
        for (send_interval, most) in [(1, 0.01), (3, 0.01), (6, 0.01)] {
            let (starved, _) = means(
                &format!("rough every {send_interval}"),
                Scenario {
                    send_interval,
                    ..ROUGH
                },
            );
            assert!(
                starved <= most,
                "every {send_interval} ticks: {starved} starved"
            );
        }
        let awful = Scenario {
            jitter_ms: 60.0,
            loss: 0.15,
            ..ROUGH
        };
        let (starved, delay) = means("75 ± 60 ms, 15 % loss", awful);
        assert!(starved <= 0.015, "{starved} starved");
        assert!(delay <= 250.0, "{delay} ms behind");
    }

    #[test]
    fn a_suspended_client_goes_on_where_it_should_be() {
        let outcome = run(Scenario {
            client_stall: Some((20.0, 5.0)),
            ..ROUGH
        });
        assert_eq!(outcome.timeline.jumps(), 0, "it merely goes on");
        assert!(outcome.starved_ratio(25.0, 35.0) <= 0.02);
        let before = outcome.mean_delay_ms(15.0, 20.0);
        let after = outcome.mean_delay_ms(25.0, 30.0);
        assert!(
            (before - after).abs() < 20.0,
            "{before} ms before it, {after} ms after"
        );
    }

    #[test]
    fn a_suspended_server_is_gone_back_to() {
        for seed in 0..6 {
            let outcome = run(Scenario {
                seed,
                server_stall: Some((20.0, 5.0)),
                ..ROUGH
            });
            assert!(
                outcome.timeline.jumps() <= 2,
                "{} jumps",
                outcome.timeline.jumps()
            );
            assert!(
                outcome.starved_ratio(25.5, 35.0) <= 0.015,
                "starves after it has returned"
            );
            for frame in outcome.frames(25.5, 60.0) {
                let age = (frame.server - frame.moment) / 60.0 * 1e3;
                assert!(
                    (75.0..260.0).contains(&age),
                    "drawn {age} ms after it happened"
                );
            }
        }
    }

    #[test]
    fn silence_is_not_starvation() {
        for seed in 0..6 {
            let outcome = run(Scenario {
                seed,
                idle: Some((20.0, 3.0)),
                ..ROUGH
            });
            assert_eq!(outcome.timeline.jumps(), 0);
            let ratio = outcome.timeline.starvation().ratio();
            assert!(ratio <= 0.01, "{ratio} counted as starved");
            let before = outcome.mean_delay_ms(15.0, 20.0);
            let after = outcome.mean_delay_ms(23.0, 25.0);
            assert!(
                (before - after).abs() < 15.0,
                "{before} ms before it, {after} ms after"
            );
        }
    }

    #[test]
    fn nonsense_from_a_server_does_not_panic() {
        let mut rng = fastrand::Rng::with_seed(9);
        let mut timeline = Timeline::new(TimelineSettings::default());
        for i in 0..20_000u64 {
            let now = Duration::from_millis(i * rng.u64(1..5));
            timeline.handle_snapshot(now, Tick(rng.u32(..)), Tick(rng.u32(..)));
            let playback = timeline.advance(now).expect("has begun");
            assert!((0.0..1.0).contains(&playback.fraction));
        }
        assert!(timeline.slots.len() <= WINDOW);
    }

    fn at(tick: u32, fraction: f32, newest: u32) -> Playback {
        Playback {
            tick: Tick(tick),
            fraction,
            starved: false,
            delay: Duration::ZERO,
            newest: Tick(newest),
            max_extrapolation_ticks: 15.0,
        }
    }

    fn lerp(a: &f32, b: &f32, t: f32) -> f32 {
        a + (b - a) * t
    }

    #[test]
    fn samples_are_blended_in_whatever_order_they_came() {
        let mut buffer = SampleBuffer::new();
        assert_eq!(buffer.sample(&at(0, 0.0, 0)), Sample::Empty);
        buffer.insert(Tick(2), 20.0, None);
        buffer.insert(Tick(u32::MAX - 1), 0.0, None); // four ticks before
        assert_eq!(buffer.sample(&at(0, 0.0, 2)).blend(lerp), Some(10.0));
        assert_eq!(buffer.sample(&at(1, 0.5, 2)).blend(lerp), Some(17.5));
        assert_eq!(buffer.sample(&at(u32::MAX - 5, 0.0, 2)), Sample::Hold(&0.0));
        buffer.insert(Tick(2), 40.0, None);
        assert_eq!(buffer.len(), 2, "the same tick is replaced");
        assert_eq!(buffer.sample(&at(0, 0.0, 2)).blend(lerp), Some(20.0));
    }

    #[test]
    fn whoever_stood_still_starts_late_and_is_not_smeared() {
        let mut buffer = SampleBuffer::new();
        buffer.insert(Tick(100), 0.0, None);
        buffer.insert(Tick(280), 1.0, Some(Tick(278)));
        assert_eq!(buffer.sample(&at(200, 0.0, 280)), Sample::Hold(&0.0));
        assert_eq!(buffer.sample(&at(279, 0.0, 280)).blend(lerp), Some(0.5));
        buffer.insert(Tick(284), 2.0, Some(Tick(3))); // senseless: ignored
        assert_eq!(buffer.sample(&at(282, 0.0, 284)).blend(lerp), Some(1.5));
    }

    #[test]
    fn extrapolation_is_bounded_and_only_for_what_moves() {
        let mut buffer = SampleBuffer::new();
        buffer.insert(Tick(10), 0.0, None);
        assert_eq!(
            buffer.sample(&at(12, 0.0, 10)),
            Sample::Hold(&0.0),
            "one value has no speed"
        );
        buffer.insert(Tick(12), 2.0, None);
        assert_eq!(buffer.sample(&at(13, 0.5, 12)).blend(lerp), Some(3.5));
        assert_eq!(
            buffer.sample(&at(500, 0.0, 12)).blend(lerp),
            Some(17.0),
            "15 ticks at most"
        );
        assert_eq!(
            buffer.sample(&at(13, 0.5, 14)),
            Sample::Hold(&2.0),
            "known to have stopped"
        );
    }

    #[test]
    fn a_teleport_is_a_step() {
        let mut buffer = SampleBuffer::new();
        buffer.insert(Tick(0), 0.0, None);
        buffer.insert(Tick(2), 900.0, None);
        let far = |a: &f32, b: &f32| (a - b).abs() > 100.0;
        assert_eq!(
            buffer.sample(&at(1, 0.9, 2)).snap_if(far),
            Sample::Hold(&0.0)
        );
        assert_eq!(
            buffer.sample(&at(2, 0.0, 2)).snap_if(far),
            Sample::Hold(&900.0)
        );
        assert_eq!(
            buffer.sample(&at(3, 0.0, 2)).snap_if(far),
            Sample::Hold(&900.0)
        );
    }

    #[test]
    fn a_buffer_stays_small() {
        let mut buffer = SampleBuffer::new();
        for tick in 0..1_000 {
            buffer.insert(Tick(tick), tick, None);
        }
        buffer.insert(Tick(3), 3, None); // too old to matter
        assert_eq!(buffer.len(), MAX_SAMPLES);
        assert_eq!(buffer.oldest_tick(), Some(Tick(968)));
        assert_eq!(buffer.newest(), Some((Tick(999), &999)));
        buffer.discard_before(Tick(990));
        assert_eq!(
            buffer.oldest_tick(),
            Some(Tick(989)),
            "one more, for extrapolation"
        );
        buffer.discard_before(Tick(5_000));
        assert_eq!(buffer.len(), 2);
    }

    #[test]
    fn a_hermite_curve_meets_its_ends_with_their_velocities() {
        fn check<V>(p0: V, v0: V, p1: V, v1: V, length: impl Fn(V) -> f32)
        where
            V: Copy + Add<Output = V> + Mul<f32, Output = V>,
        {
            let dt = 0.05;
            let near = |a: V, b: V, within: f32, what: &str| {
                let off = length(a + b * -1.0);
                assert!(off <= within, "{what} is off by {off}");
            };
            let curve = |t: f32| hermite(p0, v0, p1, v1, t, dt);
            near(curve(0.0), p0, 1e-5, "start");
            near(curve(1.0), p1, 1e-5, "end");
            let step = 1e-3;
            let slope = |from: f32| (curve(from + step) + curve(from) * -1.0) * (1.0 / (step * dt));
            near(slope(0.0), v0, 0.5, "velocity at the start");
            near(slope(1.0 - step), v1, 0.5, "velocity at the end");
        }
        check(1.0, -2.0, 3.0, 4.0, f32::abs);
        check(Vec2::X, Vec2::Y * 3.0, Vec2::ONE, Vec2::NEG_X, Vec2::length);
        check(Vec3::Z, Vec3::ONE, Vec3::Y, Vec3::NEG_Z * 2.0, Vec3::length);
        assert_eq!(
            hermite(0.0, 2.0, 1.0, 2.0, 0.5, 0.5),
            0.5,
            "even motion is a straight line"
        );
    }
}
