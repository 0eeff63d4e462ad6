//! The client's clock: just far enough ahead that inputs arrive in time.
//!
//! The client simulates a tick before the server does, early enough for its input to travel. Too
//! late, and the server simulates without it; too early, and the player waits for others longer
//! than need be. How early is enough nobody can compute from a ping: it depends on jitter, loss and
//! frame times of both sides. So the server measures it ([`MarginMeter`]) and reports it with every
//! snapshot, and the client adjusts ([`ClockSync`]).
//!
//! # The margin
//!
//! The *margin* of an input is how many whole ticks the server could still have waited for it: 0 if
//! it arrived in the last moment, negative if its tick was simulated already. The server reports
//! the smallest margin among the last 16 inputs. These overlap from one snapshot to the next, so
//! that lost snapshots hide nothing.
//!
//! # Acting on old news without swinging
//!
//! A report tells of inputs that were sent a round trip ago. Whoever corrects by what it says, and
//! again by the next, corrects the same error many times. So the client remembers its *phase*: how
//! far its simulation was ahead of its own wall clock (in ticks, from an arbitrary zero) when it
//! made each input. Margin minus phase, the *base*, is then a property of the network and the two
//! wall clocks alone, whatever the client did to its phase meanwhile, and the phase it needs
//! follows directly: the negated base. A paused client, too, finds its place without asking: its
//! phase fell back, the base did not.
//!
//! The base is a low quantile over the last 10 seconds of reports. Should three quarters of the last
//! half second be lower, the connection has got worse and these count (grow fast). If it has got
//! better, the old reports must age first (shrink slowly). Four reports in a row that are more than
//! 10 ticks off mean that a clock has jumped: older ones are void.
//!
//! # Figures
//!
//! From the tests below: real headers, history and buffer over a simulated link, 60 ticks and 30
//! snapshots a second, wall clocks apart by up to ±200 ppm, frame times varying by a tenth, six runs
//! of a minute each. *Ahead* is by how many ticks the newest input precedes the tick that is being
//! simulated, on average; at 20 frames a second one of them is owed to three ticks being sent at
//! once.
//!
//! | one-way link | fps | late inputs | ahead |
//! |---|---|---|---|
//! | 20 ms, clean | 20 / 60 / 144 | 0 % | 2.0 / 0.8 / 0.9 ticks |
//! | 75 ± 20 ms, 5 % loss | 20 / 60 / 144 | 0.5 / 0.2 / 0.1 % | 4.1 / 1.9 / 1.9 ticks |
//! | 150 ± 30 ms, 2 % loss | 20 / 60 / 144 | 0.6 / 0.1 / 0.0 % | 3.5 / 2.3 / 2.2 ticks |
//!
//! No snaps, and after 5 s never more than a 5 % stretch. After the client was suspended for 5 s it
//! snaps once, in its first frame; after the server was, once, within 0.25 s of its return.

use std::collections::VecDeque;
use std::time::Duration;

use crate::tick::{Tick, Ticks};

/// How many inputs a report is about.
///
/// At 60 ticks and 20 snapshots a second, every input is in five reports.
const METER_WINDOW: usize = 16;

/// An input this much newer than the newest before it follows a jump of the client's clock, or a
/// loss so long that what was before says nothing about now.
const METER_GAP: i32 = 8;

/// The server's record of how early one client's inputs arrive.
#[derive(Clone, Debug, Default)]
pub struct MarginMeter {
    margins: [i8; METER_WINDOW],
    len: usize,
    next: usize,
    newest: Option<Tick>,
}

impl MarginMeter {
    /// A meter that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes the first arrival of the input for `input_tick`, while `server_tick` was the newest
    /// tick that had been simulated.
    ///
    /// An input that was dropped for being too far ahead counts as well: just then the client
    /// needs to know.
    pub fn handle_arrival(&mut self, server_tick: Tick, input_tick: Tick) {
        if self
            .newest
            .is_some_and(|newest| input_tick.distance_from(newest) > METER_GAP)
        {
            self.reset();
        }
        self.newest = Some(
            self.newest
                .map_or(input_tick, |newest| newest.latest(input_tick)),
        );
        let margin = input_tick.distance_from(server_tick).saturating_sub(1);
        self.margins[self.next] = margin.clamp(-i32::from(i8::MAX), i32::from(i8::MAX)) as i8;
        self.next = (self.next + 1) % METER_WINDOW;
        self.len = (self.len + 1).min(METER_WINDOW);
    }

    /// The smallest margin of the last 16 inputs, in whole ticks, −127 to 127 at the extremes;
    /// `None` before the first input. `i8::MIN` never occurs, and is free to stand for `None`.
    #[must_use]
    pub fn report(&self) -> Option<i8> {
        self.margins[..self.len].iter().copied().min()
    }

    /// Forgets everything: the client's clock was set back.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// How a [`ClockSync`] behaves. The defaults are what the module's figures were measured with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClockSettings {
    /// Duration of a tick, not zero. Default: 1/60 s.
    pub tick: Duration,
    /// Ticks of margin that even the worst inputs should have. Default 0: they arrive in the last
    /// moment, which is in time.
    pub spare_ticks: f32,
    /// Which share of the reports may be worse than that: 0 to 0.5. A report is the worst of 16
    /// inputs, so the share of late inputs is about a tenth of it. Default: 0.12, with which it
    /// stays below 1 % at 75 ± 20 ms and 5 % loss, whatever the frame rate.
    pub worse_reports: f32,
    /// Further off than this, in ticks, the clock is set rather than stretched. Default: 10.
    pub snap_beyond_ticks: f32,
}

impl Default for ClockSettings {
    fn default() -> Self {
        Self {
            tick: Duration::from_nanos(16_666_667),
            spare_ticks: 0.0,
            worse_reports: 0.12,
            snap_beyond_ticks: 10.0,
        }
    }
}

/// What the client is to do with its simulation's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjustment {
    /// Run this many times as fast as the wall clock: 0.95 to 1.05, and 0.9 to 1.1 when more than
    /// four ticks off.
    pub speed: f32,
    /// Make this the newest simulated tick, now. The ticks between are skipped, or, when it lies
    /// back, simulated again.
    pub snap: Option<Tick>,
}

/// A stretch of up to this is hardly felt.
const GENTLE_STRETCH: f32 = 0.05;
/// For when inputs would come late for a while otherwise.
const FIRM_STRETCH: f32 = 0.10;
/// More than this off, in ticks, calls for the firm stretch.
const FIRM_BEYOND_TICKS: f32 = 4.0;
/// Growing: share of speed per tick of error. 5 % at one tick; closes two thirds in 0.33 s.
const GROW_GAIN: f32 = 0.05;
/// Shrinking: it only gains comfort, and too much of it costs late inputs.
const SHRINK_GAIN: f32 = 0.01;
/// Being this much too early, in ticks, is not worth a stretch.
const SHRINK_DEADBAND_TICKS: f32 = 0.25;

/// How many reports are remembered. At 30 snapshots a second, 8.5 s.
const MAX_REPORTS: usize = 256;
const MAX_REPORT_AGE: Duration = Duration::from_secs(10);
/// Reports in a row that make a jump believable.
const JUMP_REPORTS: usize = 4;
/// Reports that make a worsening believable, if three quarters of them show it.
const WORSE_REPORTS: usize = 16;
/// Without usable reports for this long, the round-trip time has to do.
const REPORTS_STALE_AFTER: Duration = Duration::from_secs(2);
/// The most to allow for jitter, in ticks, while it is guessed.
const MAX_GUESSED_JITTER_TICKS: f64 = 4.0;
/// The most that a client waits for a server that goes on, in ticks. Beyond that the clock is set.
const MAX_WAIT_TICKS: f32 = 60.0;
/// How much further ahead than before, in ticks, a client goes on after a standstill. It knows the length of that to a
/// tick, and too late is worse than too early.
const SPARE_AFTER_STANDSTILL: f64 = 1.0;
/// A frame that takes longer makes the round trip look longer than the network does.
const SLOW_FRAME: Duration = Duration::from_millis(100);
/// How long after such a frame the round trip may still be what it made of it.
const SLOW_FRAMES_MATTER: Duration = Duration::from_secs(3);
/// The trend is taken over this much time.
const TREND_WINDOW: usize = 40;
/// Reports of so much time make one point of the trend.
const TREND_POINT: Duration = Duration::from_millis(500);
/// When the base has fallen by so many ticks within the window, the client's clock begins to count as one that falls
/// behind, and does wholly at twice as many. Wall clocks always differ a little.
const NOTED_FALL: f64 = 0.6;
/// Such a client is so many ticks further ahead: margins are whole ticks, and one that has just got less must not be one
/// too few. It is more for each tick per second, which it may take for a little less than it is.
const SPARE_FOR_FALL: f64 = 1.0;
const SPARE_PER_TREND: f64 = 0.25;
/// With fewer points in each half of the window, there is no telling.
const MIN_TREND_POINTS: usize = 3;
/// Clocks that differ by more than 8 % are no clocks, in ticks per second at 60 Hz.
const MAX_TREND: f64 = 5.0;
/// How many recent ticks' phases are remembered: 4 s, more than any useful round trip.
const PHASES: usize = 256;
/// A margin at the end of its range says only "far off".
const SATURATED_MARGIN: u8 = i8::MAX.unsigned_abs();

/// Decides how fast the client's simulation runs, so that its inputs arrive just in time.
///
/// Call [`start`](Self::start) when the first snapshot arrives, [`handle_snapshot`] for each one,
/// and [`poll`](Self::poll) once per frame.
///
/// [`handle_snapshot`]: Self::handle_snapshot
#[derive(Clone, Debug)]
pub struct ClockSync {
    settings: ClockSettings,
    /// Ticks are counted from here, to be numbers.
    zero: Tick,
    /// Margin minus phase of each report, newest last.
    bases: VecDeque<Base>,
    /// The same from round-trip time and the server's tick, while there are no reports.
    guesses: VecDeque<f64>,
    /// Margin to keep while guessing, for the jitter that nobody has measured yet.
    guess_margin: f64,
    /// Input tick of the last report that was used.
    last_report: Option<Tick>,
    /// Until then, reports may be about inputs of before a snap back.
    ignore_reports_until: Duration,
    /// Phase when the input of each recent tick was made.
    phases: Box<[Option<(Tick, f64)>; PHASES]>,
    last_polled: Option<Tick>,
    rtt: Duration,
    /// When there was last a poll, and one after a long frame.
    polled_at: Duration,
    slow_at: Option<Duration>,
    snaps: u32,
    /// By how many ticks a second the base changes: the two wall clocks do not run alike.
    trend: Trend,
    standstill: Standstill,
    /// Ticks of wall-clock time in which the server's game stood still so far.
    stood: f64,
    /// For selecting quantiles without allocating.
    scratch: Vec<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Base {
    at: Duration,
    value: f64,
}

/// Whether the server's game stands still.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Standstill {
    No,
    /// It does. A late one of the guesses before tells where it will go on: the snapshot that says so may be early, and
    /// then inputs would be late.
    Yes {
        guess: Option<f64>,
    },
    /// It goes on. The client noticed a moment too late that it stood still, and waits for as long.
    Over,
}

impl ClockSync {
    /// A clock that knows nothing yet.
    #[must_use]
    pub fn new(settings: ClockSettings) -> Self {
        Self {
            settings,
            zero: Tick(0),
            bases: VecDeque::with_capacity(MAX_REPORTS),
            guesses: VecDeque::with_capacity(2 * JUMP_REPORTS),
            guess_margin: 0.0,
            last_report: None,
            ignore_reports_until: Duration::ZERO,
            phases: Box::new([None; PHASES]),
            last_polled: None,
            rtt: Duration::ZERO,
            polled_at: Duration::ZERO,
            slow_at: None,
            snaps: 0,
            trend: Trend::default(),
            standstill: Standstill::No,
            stood: 0.0,
            scratch: Vec::with_capacity(MAX_REPORTS),
        }
    }

    /// Begins (again) with a snapshot of `server_tick` that has just arrived, and returns the tick
    /// the client should have simulated by now: a round trip, twice the jitter and two ticks ahead.
    ///
    /// The server's tick when an input sent now arrives is `server_tick` plus a whole round trip:
    /// half for the snapshot's way, half for the input's.
    pub fn start(&mut self, server_tick: Tick, rtt: Duration, jitter: Duration) -> Tick {
        let standstill = self.standstill;
        *self = Self::new(self.settings);
        if standstill != Standstill::No {
            self.standstill = Standstill::Yes { guess: None };
        }
        self.zero = server_tick;
        self.rtt = rtt;
        let lead = self.in_ticks(rtt) + self.margin_for(jitter) + 1.0;
        server_tick + Ticks(lead.ceil() as u32)
    }

    /// Takes in what a snapshot's header says, which arrived at `now`.
    ///
    /// `margin` and `input_ack` are the server's [`MarginMeter::report`] and the newest input tick
    /// it had. `rtt` and `jitter` are only used to guess while there are no reports.
    pub fn handle_snapshot(
        &mut self,
        now: Duration,
        server_tick: Tick,
        margin: Option<i8>,
        input_ack: Option<Tick>,
        rtt: Duration,
        jitter: Duration,
    ) {
        let was_slow = self
            .slow_at
            .is_some_and(|at| now.saturating_sub(at) < SLOW_FRAMES_MATTER);
        if rtt < self.rtt / 2 && was_slow {
            self.doubt_everything(now, rtt);
        }
        self.rtt = rtt;
        self.guess_margin = self.margin_for(jitter);
        if self.guesses.len() == 2 * JUMP_REPORTS {
            self.guesses.pop_front();
        }
        let server = f64::from(server_tick.distance_from(self.zero));
        let mut guess = self.present(now) - server - self.in_ticks(rtt) - 1.0;
        if let Standstill::Yes { guess: before } = self.standstill {
            guess -= self.end_standstill(before, guess);
        }
        self.guesses.push_back(guess);

        if self
            .bases
            .back()
            .is_some_and(|base| now.saturating_sub(base.at) > REPORTS_STALE_AFTER)
        {
            self.bases.clear();
        }
        let (Some(margin), Some(input_ack)) = (margin, input_ack) else {
            return;
        };
        // A report is news only with a newer input, and known only if its input was made since the
        // clock was last set.
        let is_news = self
            .last_report
            .is_none_or(|last| input_ack.is_newer_than(last));
        if !is_news || now < self.ignore_reports_until {
            return;
        }
        let Some(phase) = self.phase_of(input_ack) else {
            return;
        };
        self.last_report = Some(input_ack);
        if margin.unsigned_abs() >= SATURATED_MARGIN {
            self.bases.clear();
            self.trend.restart();
            return;
        }
        // The smallest margin was that of any of the inputs; the middle one is least wrong.
        let middle = input_ack - Ticks(METER_WINDOW as u32 / 2);
        let phase = self.phase_of(middle).unwrap_or(phase);
        self.note_base(now, f64::from(margin) - phase);
    }

    /// The server's game goes on; returns how many ticks it stood still, by the guesses before and now.
    fn end_standstill(&mut self, before: Option<f64>, guess: f64) -> f64 {
        if before.is_none() {
            // Nobody knows how long it stood still, so phases from before say nothing about now.
            self.phases.fill(None);
        }
        let stood = before.map_or(0.0, |before| {
            (guess - before - SPARE_AFTER_STANDSTILL).max(0.0)
        });
        self.stood += stood;
        self.skip(self.settings.tick.mul_f64(stood));
        self.standstill = Standstill::Over;
        stood
    }

    /// The server's game stands still: so does the client's, until the next snapshot is
    /// [handled](Self::handle_snapshot). It is then where it would be if that time had not passed.
    pub fn stand_still(&mut self) {
        if !matches!(self.standstill, Standstill::Yes { .. }) {
            let guess = quantile(&mut self.scratch, self.guesses.iter().copied(), 0.75);
            self.standstill = Standstill::Yes { guess };
        }
    }

    /// What to do with the clock in this frame.
    ///
    /// Call it once per frame when the frame's ticks have run, before their inputs are sent.
    /// `now` is the wall-clock time up to which the simulation's clock has been advanced,
    /// `client_tick` the newest simulated tick and `overstep` the fraction of a tick (0 to 1) that
    /// is already accumulated towards the next. The speed holds until the next call.
    pub fn poll(&mut self, now: Duration, client_tick: Tick, overstep: f32) -> Adjustment {
        if now.saturating_sub(self.polled_at) > SLOW_FRAME {
            self.slow_at = Some(now);
        }
        self.polled_at = now;
        let position = f64::from(client_tick.distance_from(self.zero)) + f64::from(overstep);
        let phase = position - self.present(now);
        let run = |speed| Adjustment { speed, snap: None };
        if matches!(self.standstill, Standstill::Yes { .. }) {
            return run(0.0);
        }
        self.note_phase(client_tick, phase);
        let Some(wanted) = self.wanted_phase(now) else {
            return run(1.0);
        };
        let error = (wanted - phase) as f32; // ticks that the client should be further ahead
        if self.standstill == Standstill::Over {
            if (-MAX_WAIT_TICKS..-SHRINK_DEADBAND_TICKS).contains(&error) {
                return run(0.0);
            }
            self.standstill = Standstill::No;
        }
        if error.abs() > self.settings.snap_beyond_ticks {
            let steps = error.round() as i32;
            let target = Tick(client_tick.0.wrapping_add_signed(steps));
            self.handle_snap(now, target, steps < 0);
            return Adjustment {
                speed: 1.0,
                snap: Some(target),
            };
        }
        let follow = -self.trend.slope * self.settings.tick.as_secs_f64();
        let follow = follow as f32;
        let most = match error.abs() > FIRM_BEYOND_TICKS {
            true => FIRM_STRETCH,
            false => GENTLE_STRETCH.max(follow.abs()),
        };
        run(1.0 + (follow + stretch_for(error)).clamp(-most, most))
    }

    /// How often the clock was set rather than stretched, since the start.
    #[must_use]
    pub fn snaps(&self) -> u32 {
        self.snaps
    }

    /// Wall-clock time in ticks, without that in which the server's game stood still.
    fn present(&self, now: Duration) -> f64 {
        self.in_ticks(now) - self.stood
    }

    fn in_ticks(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.settings.tick.as_secs_f64()
    }

    /// Margin to keep when all that is known is the mean deviation of the round-trip time.
    ///
    /// Bounded, because after a single sample that deviation is but a guess: half the round trip.
    fn margin_for(&self, jitter: Duration) -> f64 {
        1.0 + (2.0 * self.in_ticks(jitter)).min(MAX_GUESSED_JITTER_TICKS)
    }

    fn phase_of(&self, tick: Tick) -> Option<f64> {
        let (at, phase) = self.phases[tick.0 as usize % PHASES]?;
        (at == tick).then_some(phase)
    }

    /// Remembers the phase of all ticks that ran since the last call.
    fn note_phase(&mut self, client_tick: Tick, phase: f64) {
        let ran = match self.last_polled {
            Some(last) => client_tick.distance_from(last),
            None => 1,
        };
        if ran < 0 {
            self.phases.fill(None); // set back by somebody else
        }
        for back in 0..ran.clamp(0, PHASES as i32) as u32 {
            let tick = client_tick - Ticks(back);
            self.phases[tick.0 as usize % PHASES] = Some((tick, phase));
        }
        self.last_polled = Some(client_tick);
    }

    /// So much time does not count: what is known is no older for it.
    fn skip(&mut self, time: Duration) {
        for base in &mut self.bases {
            base.at += time;
        }
        for (at, _) in &mut self.trend.points {
            *at += time.as_secs_f64();
        }
        self.trend.gathered.clear();
    }

    /// The round trip has become much shorter at once: it had been this side's frames that made it long.
    /// What was measured meanwhile says nothing about now, and nor does what the server still reports of inputs from then.
    fn doubt_everything(&mut self, now: Duration, rtt: Duration) {
        self.slow_at = None;
        self.guesses.clear();
        self.bases.clear();
        self.trend.restart();
        self.last_report = None;
        let window = self.settings.tick * METER_WINDOW as u32;
        self.ignore_reports_until = Duration::ZERO;
        self.ignore_reports_for(now, rtt, window);
    }

    fn ignore_reports_for(&mut self, now: Duration, rtt: Duration, more: Duration) {
        let until = now.saturating_add(rtt + rtt / 4 + self.settings.tick * 4 + more);
        self.ignore_reports_until = self.ignore_reports_until.max(until);
    }

    fn handle_snap(&mut self, now: Duration, target: Tick, back: bool) {
        self.snaps += 1;
        self.phases.fill(None);
        self.last_polled = Some(target);
        self.last_report = None;
        if back {
            // The server may for a round trip acknowledge ticks of before, which are to come again.
            self.ignore_reports_for(now, self.rtt, Duration::ZERO);
        }
    }

    fn note_base(&mut self, now: Duration, value: f64) {
        let jump = f64::from(self.settings.snap_beyond_ticks);
        while self.bases.len() >= MAX_REPORTS
            || self
                .bases
                .front()
                .is_some_and(|base| now.saturating_sub(base.at) > MAX_REPORT_AGE)
        {
            self.bases.pop_front();
        }
        let known = self.base(now);
        self.bases.push_back(Base { at: now, value });
        self.trend.note(now, value);
        if let Some(known) = known {
            let recent = self
                .bases
                .iter()
                .rev()
                .take(JUMP_REPORTS)
                .map(|base| base.value - known);
            let (up, down) = recent.fold((0, 0), |(up, down), off| {
                (
                    up + usize::from(off > jump),
                    down + usize::from(off < -jump),
                )
            });
            if up == JUMP_REPORTS || down == JUMP_REPORTS {
                self.bases.drain(..self.bases.len() - JUMP_REPORTS);
                self.trend.restart();
            }
        }
    }

    /// The base to rely on, from reports.
    fn base(&mut self, now: Duration) -> Option<f64> {
        let slope = self.trend.slope;
        // What it would be now.
        let value = |base: &Base| base.value + slope * now.saturating_sub(base.at).as_secs_f64();
        let usual = quantile(
            &mut self.scratch,
            self.bases.iter().map(value),
            f64::from(self.settings.worse_reports),
        )?;
        if self.bases.len() < WORSE_REPORTS {
            return Some(usual);
        }
        let recent = self.bases.iter().rev().take(WORSE_REPORTS).map(value);
        let recent = quantile(&mut self.scratch, recent, 0.75)?;
        Some(usual.min(recent))
    }

    /// How far ahead of its wall clock the client's simulation should be.
    fn wanted_phase(&mut self, now: Duration) -> Option<f64> {
        let spare = f64::from(self.settings.spare_ticks);
        if let Some(base) = self.base(now) {
            // A clock that falls behind all the time is late whenever that is taken for a little less than it is.
            let falls = ((self.trend.fall - NOTED_FALL) / NOTED_FALL).clamp(0.0, 1.0);
            let falls_behind =
                falls * (SPARE_FOR_FALL - self.trend.slope.min(0.0) * SPARE_PER_TREND);
            return Some(spare + falls_behind - base);
        }
        let guess = quantile(&mut self.scratch, self.guesses.iter().copied(), 0.5)?;
        Some(spare + self.guess_margin - guess)
    }
}

/// How the base changes in the long run, in ticks per second.
///
/// Wall clocks that run unlike each other make it rise or fall evenly, for as long as the connection lasts. A route that
/// gets worse or better makes it jump. So the trend is looked for in either half of the last 20 seconds, and the flatter
/// one counts: a jump is in one of them at most. Within a half, the median of the slopes between all pairs of points is
/// what outliers disturb least (Theil and Sen's).
#[derive(Clone, Debug, Default)]
struct Trend {
    /// Middles of half a second each: when in seconds, and the base. Newest last.
    points: VecDeque<(f64, f64)>,
    /// Reports of the half second that has begun.
    gathered: Vec<f64>,
    since: Duration,
    slope: f64,
    /// By how much the base has fallen over the window.
    fall: f64,
    scratch: Vec<f64>,
}

impl Trend {
    fn restart(&mut self) {
        self.points.clear();
        self.gathered.clear();
        self.slope = 0.0;
        self.fall = 0.0;
    }

    fn note(&mut self, now: Duration, base: f64) {
        if self.gathered.is_empty() {
            self.since = now;
        }
        self.gathered.push(base);
        if now.saturating_sub(self.since) < TREND_POINT {
            return;
        }
        let middle = (self.since + now).as_secs_f64() / 2.0;
        let mean = self.gathered.iter().sum::<f64>() / self.gathered.len() as f64;
        self.gathered.clear();
        if self.points.len() == TREND_WINDOW {
            self.points.pop_front();
        }
        self.points.push_back((middle, mean));
        self.slope = self.find().clamp(-MAX_TREND, MAX_TREND);
        let quarter = self.points.len() / 4;
        if quarter > 0 {
            let mean = |sum: f64| sum / quarter as f64;
            let first = self.points.iter().take(quarter).map(|(_, base)| base);
            let last = self.points.iter().rev().take(quarter).map(|(_, base)| base);
            self.fall = mean(first.sum()) - mean(last.sum());
        }
    }

    fn find(&mut self) -> f64 {
        let half = self.points.len() / 2;
        if half < MIN_TREND_POINTS {
            return 0.0;
        }
        let older = self.slope_of(0..half);
        let newer = self.slope_of(half..self.points.len());
        match older * newer > 0.0 {
            true if older.abs() < newer.abs() => older,
            true => newer,
            false => 0.0,
        }
    }

    fn slope_of(&mut self, range: std::ops::Range<usize>) -> f64 {
        let points = &self.points;
        let slopes = range.clone().flat_map(|b| {
            (range.start..b).map(move |a| {
                let ((t0, y0), (t1, y1)) = (points[a], points[b]);
                (y1 - y0) / (t1 - t0).max(1e-3)
            })
        });
        quantile(&mut self.scratch, slopes, 0.5).unwrap_or(0.0)
    }
}

/// Share of speed to add for being `error` ticks too little ahead.
fn stretch_for(error: f32) -> f32 {
    if error.abs() > FIRM_BEYOND_TICKS {
        FIRM_STRETCH.copysign(error)
    } else if error > 0.0 {
        (error * GROW_GAIN).min(GENTLE_STRETCH)
    } else {
        let excess = (error.abs() - SHRINK_DEADBAND_TICKS).max(0.0);
        -(excess * SHRINK_GAIN).min(GENTLE_STRETCH)
    }
}

/// The value that a share `q` of `values` lies below (the smallest, if they are few).
fn quantile(scratch: &mut Vec<f64>, values: impl Iterator<Item = f64>, q: f64) -> Option<f64> {
    scratch.clear();
    scratch.extend(values);
    let index = (scratch.len() as f64 * q) as usize;
    let last = scratch.len().checked_sub(1)?;
    let (_, value, _) = scratch.select_nth_unstable_by(index.min(last), f64::total_cmp);
    Some(*value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::protocol::acks::{AckTracker, Header};
    use crate::protocol::input::{EncodeLimits, InputBuffer, InputHistory, Taken};

    /// A way for datagrams in one direction.
    #[derive(Clone, Copy)]
    struct Link {
        latency_ms: f64,
        /// Uniform, to either side, and independent: datagrams overtake each other.
        jitter_ms: f64,
        loss: f64,
    }

    const CLEAN: Link = Link {
        latency_ms: 20.0,
        jitter_ms: 0.0,
        loss: 0.0,
    };
    const ROUGH: Link = Link {
        latency_ms: 75.0,
        jitter_ms: 20.0,
        loss: 0.05,
    };

    /// As long as frames come in step with the server's, a datagram takes whole ticks.
    const IN_STEP: Link = Link {
        latency_ms: 30.0,
        jitter_ms: 0.0,
        loss: 0.0,
    };

    const FAR: Link = Link {
        latency_ms: 150.0,
        jitter_ms: 30.0,
        loss: 0.02,
    };

    /// Datagrams by the time they are due, in nanoseconds of true time.
    #[derive(Default)]
    struct Wire {
        datagrams: BTreeMap<(u64, u64), Vec<u8>>,
        sent: u64,
    }

    impl Wire {
        fn send(&mut self, now: f64, link: Link, rng: &mut fastrand::Rng, datagram: Vec<u8>) {
            self.sent += 1;
            if rng.f64() >= link.loss {
                let delay_ms = link.latency_ms + link.jitter_ms * (rng.f64() * 2.0 - 1.0);
                let due = ((now + delay_ms / 1e3) * 1e9) as u64;
                self.datagrams.insert((due, self.sent), datagram);
            }
        }

        fn poll(&mut self, now: f64) -> Option<Vec<u8>> {
            let entry = self.datagrams.first_entry()?;
            (entry.key().0 as f64 <= now * 1e9).then(|| entry.remove())
        }
    }

    #[derive(Clone, Copy)]
    struct Scenario {
        seed: u64,
        link: Link,
        fps: f64,
        /// Client's wall clock against the server's, in parts per million.
        drift_ppm: f64,
        /// Seconds of true time.
        length: f64,
        /// By which share frame times vary.
        uneven_frames: f64,
        /// When the client's process is suspended, and for how long.
        client_stall: Option<(f64, f64)>,
        /// When the server's process is suspended, and for how long. Its ticks are then missing.
        server_stall: Option<(f64, f64)>,
        /// When the server's game is paused, and for how long. It says so.
        pause: Option<(f64, f64)>,
        /// When the client draws another number of frames, until when, and how many.
        slow: Option<(f64, f64, f64)>,
        /// From when on the link is another.
        then: Option<(f64, Link)>,
        settings: ClockSettings,
    }

    impl Default for Scenario {
        fn default() -> Self {
            Self {
                seed: 1,
                link: CLEAN,
                fps: 60.0,
                drift_ppm: 0.0,
                length: 60.0,
                uneven_frames: 0.1,
                client_stall: None,
                server_stall: None,
                pause: None,
                slow: None,
                then: None,
                settings: ClockSettings::default(),
            }
        }
    }

    /// What one server tick saw.
    #[derive(Clone, Copy)]
    struct Simulated {
        at: f64,
        fresh: bool,
        /// How many ticks early the newest input was, beyond this tick.
        ahead: i32,
    }

    struct Outcome {
        ticks: Vec<Simulated>,
        speeds: Vec<(f64, f32)>,
        snaps: Vec<f64>,
    }

    impl Outcome {
        fn late_ratio(&self, from: f64, to: f64) -> f64 {
            let seen: Vec<_> = self
                .ticks
                .iter()
                .filter(|t| t.at >= from && t.at < to)
                .collect();
            seen.iter().filter(|t| !t.fresh).count() as f64 / seen.len() as f64
        }

        fn mean_ahead(&self, from: f64, to: f64) -> f64 {
            let seen: Vec<_> = self
                .ticks
                .iter()
                .filter(|t| t.at >= from && t.at < to)
                .collect();
            seen.iter().map(|t| f64::from(t.ahead)).sum::<f64>() / seen.len() as f64
        }

        /// How often per second the speed went from one side of 1 to the other by 1 % or more.
        fn swings_per_s(&self, from: f64) -> f64 {
            let mut swings = 0.0;
            let mut side = 0.0;
            for &(_, speed) in self.speeds.iter().filter(|(at, _)| *at >= from) {
                if (speed - 1.0).abs() >= 0.01 {
                    let now = (speed - 1.0).signum();
                    if now * side < 0.0 {
                        swings += 1.0;
                    }
                    side = now;
                }
            }
            swings / (self.speeds.last().expect("ran").0 - from)
        }
    }

    const TICK: f64 = 1.0 / 60.0;

    /// Client and server over the real headers, input history and buffer; only the game is left out.
    fn run(scenario: Scenario) -> Outcome {
        let mut rng = fastrand::Rng::with_seed(scenario.seed);
        let client_time =
            |now: f64| Duration::from_secs_f64(100.0 + now * (1.0 + scenario.drift_ppm / 1e6));
        let server_time = |now: f64| Duration::from_secs_f64(7.0 + now);
        let stalled = |stall: Option<(f64, f64)>, now: f64| {
            stall.filter(|(at, length)| now >= *at && now < at + length)
        };

        let (mut up, mut down) = (Wire::default(), Wire::default());
        let (mut client_acks, mut server_acks) = (AckTracker::new(), AckTracker::new());
        let mut history = InputHistory::new();
        let mut buffer = InputBuffer::default();
        let mut clock: Option<ClockSync> = None;
        let mut client_tick = Tick(0);
        let mut overstep = 0.0f64;
        let mut speed = 1.0f32;
        let mut last_frame: Option<f64> = None;
        let mut newest_snapshot: Option<Tick> = None;

        let mut server_tick = Tick(u32::MAX - 600); // wraps after ten seconds
        let mut next_server = rng.f64() * TICK;
        let mut next_frame = rng.f64() / scenario.fps;
        if scenario.uneven_frames == 0.0 {
            next_frame = next_server; // in step
        }
        let mut started = false;
        let mut beat = false;
        let mut outcome = Outcome {
            ticks: Vec::new(),
            speeds: Vec::new(),
            snaps: Vec::new(),
        };

        loop {
            let now = next_server.min(next_frame);
            if now > scenario.length {
                return outcome;
            }
            let link = match scenario.then {
                Some((from, link)) if now >= from => link,
                _ => scenario.link,
            };
            if next_server <= next_frame {
                if let Some((at, length)) = stalled(scenario.server_stall, now) {
                    next_server = at + length;
                    continue;
                }
                next_server += TICK;
                while let Some(datagram) = up.poll(now) {
                    let (header, body) = Header::decode(&datagram).expect("ours");
                    server_acks.handle_header(server_time(now), header, |_| ());
                    if !body.is_empty() {
                        buffer.receive(server_tick, body).expect("ours");
                    }
                }
                if let Some((at, _)) = stalled(scenario.pause, now) {
                    // It notices a tenth of a second later that there are no ticks.
                    beat = !beat;
                    if beat && now - at > 0.1 {
                        let mut datagram =
                            server_acks.next_header(server_time(now)).encode().to_vec();
                        datagram.extend(server_tick.0.to_le_bytes());
                        down.send(now, link, &mut rng, datagram);
                    }
                    continue;
                }
                server_tick += Ticks(1);
                let fresh = matches!(buffer.take(server_tick), Taken::Fresh(_));
                let ahead = buffer
                    .newest()
                    .map_or(0, |newest| newest.distance_from(server_tick));
                started |= fresh;
                if started {
                    outcome.ticks.push(Simulated {
                        at: now,
                        fresh,
                        ahead,
                    });
                }
                if server_tick.0.is_multiple_of(2) {
                    let mut datagram = server_acks.next_header(server_time(now)).encode().to_vec();
                    datagram.extend(server_tick.0.to_le_bytes());
                    datagram.push(
                        buffer
                            .margin()
                            .map_or(i8::MIN, |margin| margin)
                            .cast_unsigned(),
                    );
                    datagram.push(u8::from(buffer.newest().is_some()));
                    datagram.extend(buffer.newest().unwrap_or_default().0.to_le_bytes());
                    down.send(now, link, &mut rng, datagram);
                }
                continue;
            }

            if let Some((at, length)) = stalled(scenario.client_stall, now) {
                next_frame = at + length;
                continue;
            }
            let slow = scenario
                .slow
                .filter(|(from, to, _)| (*from..*to).contains(&now));
            let fps = slow.map_or(scenario.fps, |(_, _, fps)| fps);
            let uneven = scenario.uneven_frames;
            next_frame += (1.0 - uneven + 2.0 * uneven * rng.f64()) / fps;
            let local = client_time(now);
            while let Some(datagram) = down.poll(now) {
                let (header, body) = Header::decode(&datagram).expect("ours");
                client_acks.handle_header(local, header, |_| ());
                let number =
                    |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("four"));
                let snapshot_tick = Tick(number(0));
                if body.len() == 4 {
                    if let Some(clock) = &mut clock
                        && !newest_snapshot.is_some_and(|it: Tick| it.is_newer_than(snapshot_tick))
                    {
                        clock.stand_still();
                    }
                    continue;
                }
                newest_snapshot =
                    Some(newest_snapshot.map_or(snapshot_tick, |it| it.latest(snapshot_tick)));
                let margin = (body[4] != 0x80).then_some(body[4].cast_signed());
                let input_ack = (body[5] != 0).then_some(Tick(number(6)));
                let (Some(rtt), Some(jitter)) = (client_acks.rtt(), client_acks.jitter()) else {
                    continue; // the first exchange is not done
                };
                let clock = clock.get_or_insert_with(|| {
                    let mut clock = ClockSync::new(scenario.settings);
                    client_tick = clock.start(snapshot_tick, rtt, jitter);
                    clock
                });
                clock.handle_snapshot(local, snapshot_tick, margin, input_ack, rtt, jitter);
                if let Some(ack) = input_ack {
                    history.handle_ack(ack);
                }
            }
            let mut inputs = Vec::new();
            let mut ticks_ran = false;
            if let Some(clock) = &mut clock {
                // As Bevy does: no frame counts for more than a quarter of a second.
                let ran = (now - last_frame.unwrap_or(now)) * (1.0 + scenario.drift_ppm / 1e6);
                let delta = ran.min(0.25);
                overstep += delta / TICK * f64::from(speed);
                while overstep >= 1.0 {
                    overstep -= 1.0;
                    client_tick += Ticks(1);
                    ticks_ran = true;
                    history.push(client_tick, &[7]).expect("short");
                }
                let adjustment = clock.poll(local, client_tick, overstep as f32);
                speed = adjustment.speed;
                outcome.speeds.push((now, speed));
                if let Some(tick) = adjustment.snap {
                    client_tick = tick;
                    outcome.snaps.push(now);
                }
                history.encode(&mut inputs, EncodeLimits::default());
            }
            last_frame = Some(now);
            if ticks_ran || clock.is_none() {
                let mut datagram = client_acks.next_header(local).encode().to_vec();
                datagram.extend(inputs);
                up.send(now, link, &mut rng, datagram);
            }
        }
    }

    /// Means over the runs of a scenario with different seeds and clock drifts of ±200 ppm.
    fn assert_keeps(name: &str, scenario: Scenario, most_late: f64, most_ahead: f64) {
        let runs = 6;
        let (mut late, mut ahead, mut early_late) = (0.0, 0.0, 0.0);
        let mut mean_swings = 0.0;
        for seed in 0..runs {
            let drift_ppm = [-200.0, 0.0, 200.0][seed as usize % 3];
            let outcome = run(Scenario {
                seed,
                drift_ppm,
                ..scenario
            });
            late += outcome.late_ratio(3.0, 60.0) / runs as f64;
            early_late += outcome.late_ratio(0.0, 3.0) / runs as f64;
            ahead += outcome.mean_ahead(3.0, 60.0) / runs as f64;
            assert!(
                outcome.snaps.is_empty(),
                "{name}: snapped at {:?}",
                outcome.snaps
            );
            let swings = outcome.swings_per_s(3.0);
            assert!(swings < 0.12, "{name}: the speed swings {swings} times/s");
            mean_swings += swings / runs as f64;
            assert!(
                outcome
                    .speeds
                    .iter()
                    .all(|(_, speed)| (0.9..=1.1).contains(speed)),
                "{name}: the speed leaves its bounds"
            );
            let settled = outcome.speeds.iter().filter(|(at, _)| *at > 5.0);
            let firm = settled.filter(|(_, speed)| (speed - 1.0).abs() > GENTLE_STRETCH + 1e-6);
            assert_eq!(
                firm.count(),
                0,
                "{name}: stretched firmly after it had settled"
            );
        }
        println!(
            "{name}: late {:.2} %, in the first 3 s {:.2} %, ahead {ahead:.1} ticks",
            late * 100.0,
            early_late * 100.0
        );
        assert!(
            mean_swings < 0.08,
            "{name}: the speed swings {mean_swings} times/s"
        );
        assert!(late <= most_late, "{name}: {late} late");
        assert!(
            ahead <= most_ahead,
            "{name}: {ahead} ticks ahead on average"
        );
        assert!(
            early_late <= 0.05,
            "{name}: {early_late} late in the first seconds"
        );
    }

    #[test]
    fn a_clean_link_is_never_late() {
        for (fps, most_ahead) in [(20.0, 2.5), (60.0, 1.5), (144.0, 1.5)] {
            let scenario = Scenario {
                link: CLEAN,
                fps,
                ..Scenario::default()
            };
            assert_keeps(&format!("clean at {fps} fps"), scenario, 0.0, most_ahead);
        }
    }

    #[test]
    fn a_rough_link_is_rarely_late() {
        for (fps, most_ahead) in [(20.0, 4.5), (60.0, 2.5), (144.0, 2.5)] {
            let scenario = Scenario {
                link: ROUGH,
                fps,
                ..Scenario::default()
            };
            assert_keeps(&format!("rough at {fps} fps"), scenario, 0.01, most_ahead);
        }
    }

    #[test]
    fn a_long_way_does_not_make_it_swing() {
        for (fps, most_ahead) in [(20.0, 4.5), (60.0, 3.0), (144.0, 3.0)] {
            let scenario = Scenario {
                link: FAR,
                fps,
                ..Scenario::default()
            };
            assert_keeps(&format!("far at {fps} fps"), scenario, 0.01, most_ahead);
        }
    }

    #[test]
    fn a_suspended_client_finds_its_place_at_once() {
        for seed in 0..6 {
            let outcome = run(Scenario {
                seed,
                link: ROUGH,
                client_stall: Some((20.0, 5.0)),
                ..Scenario::default()
            });
            let [snap] = outcome.snaps[..] else {
                panic!("one snap is enough, not {:?}", outcome.snaps);
            };
            assert!((25.0..25.1).contains(&snap), "snapped at {snap}");
            let late = outcome.late_ratio(25.3, 60.0);
            assert!(late <= 0.01, "{late} late after it has settled");
        }
    }

    #[test]
    fn a_suspended_server_is_waited_for() {
        for seed in 0..6 {
            let outcome = run(Scenario {
                seed,
                link: ROUGH,
                server_stall: Some((20.0, 5.0)),
                ..Scenario::default()
            });
            assert!(
                (1..=2).contains(&outcome.snaps.len()),
                "snapped at {:?}",
                outcome.snaps
            );
            let settled = outcome.snaps.last().expect("some") + 0.3;
            assert!(settled < 26.0, "took until {settled}");
            let late = outcome.late_ratio(settled, 60.0);
            let ahead = outcome.mean_ahead(settled + 12.0, 60.0);
            assert!(late <= 0.01, "{late} late after it has settled");
            assert!(ahead <= 3.0, "{ahead} ticks ahead");
        }
    }

    #[test]
    fn wall_clocks_that_drift_are_followed() {
        for (link, uneven_frames) in [(IN_STEP, 0.0), (CLEAN, 0.1), (ROUGH, 0.1), (FAR, 0.1)] {
            for fps in [20.0, 60.0, 144.0] {
                for drift in [0.001, 0.005, 0.01, 0.02] {
                    for drift_ppm in [drift * 1e6, -drift * 1e6] {
                        let (mut late, mut ahead, runs) = (0.0, 0.0, 3);
                        for seed in 0..runs {
                            let outcome = run(Scenario {
                                seed,
                                link,
                                fps,
                                drift_ppm,
                                uneven_frames,
                                ..Scenario::default()
                            });
                            late += outcome.late_ratio(8.0, 60.0) / runs as f64;
                            ahead += outcome.mean_ahead(8.0, 60.0) / runs as f64;
                            assert_eq!(outcome.snaps, [0.0; 0], "{drift_ppm} ppm at {fps} fps");
                        }
                        println!(
                            "{} ms, {fps} fps, {drift_ppm} ppm: late {:.2} %, ahead {ahead:.1}",
                            link.latency_ms,
                            late * 100.0
                        );
                        assert!(late <= 0.01, "{drift_ppm} ppm at {fps} fps: {late} late");
                        assert!(ahead <= 6.5, "{drift_ppm} ppm at {fps} fps: {ahead} ahead");
                    }
                }
            }
        }
    }

    #[test]
    fn a_paused_server_is_waited_for_without_a_snap() {
        for link in [CLEAN, ROUGH, FAR] {
            for length in [0.15, 0.5, 3.0, 20.0] {
                for seed in 0..6 {
                    let outcome = run(Scenario {
                        seed,
                        link,
                        pause: Some((20.0, length)),
                        ..Scenario::default()
                    });
                    assert_eq!(outcome.snaps, [0.0; 0], "paused for {length} s");
                    let link_ms = link.latency_ms;
                    let late = outcome.late_ratio(20.0 + length, 21.0 + length);
                    assert!(
                        late <= 0.07,
                        "{link_ms} ms: {late} late in the second after {length} s"
                    );
                    let ahead = outcome.mean_ahead(20.3 + length, 22.0 + length);
                    assert!(ahead <= 7.5, "{ahead} ticks ahead after {length} s");
                }
            }
        }
    }

    #[test]
    fn a_client_that_was_slow_steers_half_a_second_later() {
        for link in [CLEAN, ROUGH, FAR] {
            for slow in [1.0, 2.0, 5.0] {
                for seed in 0..6 {
                    let outcome = run(Scenario {
                        seed,
                        link,
                        slow: Some((10.0, 70.0, slow)),
                        length: 90.0,
                        ..Scenario::default()
                    });
                    let name = format!("{} ms, {slow} fps", link.latency_ms);
                    let is_quick = |(at, _): &&(f64, f32)| *at >= 70.0;
                    let (quick, _) = outcome.speeds.iter().find(is_quick).expect("ran on");
                    let from = quick + 0.5 + link.latency_ms / 1e3;
                    let first = outcome.late_ratio(from, from + 1.0);
                    let late = outcome.late_ratio(from, 90.0);
                    // Two frames a second and a long way look like a round trip of half a second.
                    let most = match link.latency_ms > 100.0 {
                        true if slow == 2.0 => 0.5,
                        true => 0.25,
                        false => 0.1,
                    };
                    assert!(first <= most, "{name}: {first} late in the first second");
                    assert!(late <= 0.03, "{name}: {late} late");
                }
            }
        }
    }

    #[test]
    fn a_worse_route_is_adapted_to_within_two_seconds() {
        for seed in 0..6 {
            let outcome = run(Scenario {
                seed,
                link: CLEAN,
                then: Some((20.0, FAR)),
                length: 90.0,
                ..Scenario::default()
            });
            let late = outcome.late_ratio(22.0, 60.0);
            assert!(late <= 0.02, "{late} late");
            let outcome = run(Scenario {
                seed,
                link: FAR,
                then: Some((20.0, CLEAN)),
                length: 90.0,
                ..Scenario::default()
            });
            let (late, ahead) = (
                outcome.late_ratio(20.0, 60.0),
                outcome.mean_ahead(50.0, 90.0),
            );
            assert!(late <= 0.005, "{late} late because the route got better");
            assert!(ahead <= 2.0, "{ahead} ticks ahead half a minute later");
        }
    }

    #[test]
    fn a_late_input_is_a_negative_margin() {
        let mut meter = MarginMeter::new();
        assert_eq!(meter.report(), None);
        meter.handle_arrival(Tick(u32::MAX), Tick(3));
        assert_eq!(
            meter.report(),
            Some(3),
            "needed four ticks later; one would have been in time"
        );
        meter.handle_arrival(Tick(3), Tick(4));
        assert_eq!(meter.report(), Some(0));
        meter.handle_arrival(Tick(5), Tick(5));
        assert_eq!(meter.report(), Some(-1));
        for tick in 6..22 {
            meter.handle_arrival(Tick(tick - 3), Tick(tick));
        }
        assert_eq!(meter.report(), Some(2), "only the last 16 count");
        meter.handle_arrival(Tick(0), Tick(1 << 30));
        assert_eq!(
            meter.report(),
            Some(127),
            "far off is all that fits, and a jump voids the rest"
        );
    }

    #[test]
    fn without_inputs_the_round_trip_has_to_do() {
        let rtt = Duration::from_millis(100);
        let jitter = Duration::from_millis(5);
        let mut clock = ClockSync::new(ClockSettings::default());
        let mut client_tick = clock.start(Tick(0), rtt, jitter);
        let mut overstep = 0.0;
        for frame in 0..6_000u32 {
            // The client's wall clock is off by 200 ppm; a snapshot comes every other tick.
            let now = Duration::from_secs_f64(f64::from(frame) * TICK * 1.000_2);
            if frame.is_multiple_of(2) {
                clock.handle_snapshot(now, Tick(frame), None, None, rtt, jitter);
            }
            let adjustment = clock.poll(now, client_tick, overstep as f32);
            assert_eq!(adjustment.snap, None);
            overstep += 1.000_2 * f64::from(adjustment.speed);
            client_tick += Ticks(overstep as u32);
            overstep = overstep.fract();
            let ahead = client_tick.distance_from(Tick(frame));
            assert!(
                (7..=11).contains(&ahead),
                "{ahead} ticks ahead, of which 6 are the round trip"
            );
        }
    }

    #[test]
    fn nonsense_from_a_server_does_not_panic() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut clock = ClockSync::new(ClockSettings::default());
        clock.start(Tick(5), Duration::MAX / 4, Duration::ZERO);
        let mut client_tick = Tick(5);
        for i in 0..20_000 {
            let now = Duration::from_millis(i * 5);
            let rtt = Duration::from_millis(rng.u64(..5_000));
            let input_ack = Tick(client_tick.0.wrapping_sub(rng.u32(..300)));
            let margin = rng.bool().then(|| rng.i8(..));
            clock.handle_snapshot(now, Tick(rng.u32(..)), margin, Some(input_ack), rtt, rtt);
            client_tick += Ticks(rng.u32(..3));
            let adjustment = clock.poll(now, client_tick, rng.f32());
            assert!((0.9..=1.1).contains(&adjustment.speed));
            client_tick = adjustment.snap.unwrap_or(client_tick);
        }
    }
}
