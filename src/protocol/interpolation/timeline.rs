//! Which moment is drawn.

use std::collections::VecDeque;
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
    /// How far past the newest value a [`SampleBuffer`](super::SampleBuffer) may be extrapolated. Default: 250 ms.
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
pub(super) const WINDOW: usize = 256;
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
    pub(super) slots: VecDeque<SlotTiming>,
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
pub(super) struct SlotTiming {
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
