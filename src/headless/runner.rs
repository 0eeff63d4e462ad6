//! Runs an app without a window, one tick per update, on time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bevy::app::{App, AppExit, Plugin, PluginsState};
use bevy::ecs::resource::Resource;
use bevy::ecs::world::World;
use bevy::time::{Fixed, Time, TimeUpdateStrategy};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::priority::raise_priority;
use super::report::{self, ServerReport};
use crate::histogram::Histogram;
use crate::server::ServerStats;
use crate::session::ShutdownRequested;

/// How many ticks the runner makes up for after a stall; what lies further back is skipped. Clients notice either
/// way, but a server that chases a long backlog is late for much longer.
const MAX_TICKS_BEHIND: u32 = 8;

/// Runs the app at the tick rate of `Time<Fixed>` until it exits, its time is up, or it is told to stop.
///
/// Each update simulates exactly one tick; updates start on absolute deadlines, so that sleeping
/// late once does not delay the rest. Between them the thread sleeps and costs nothing.
///
/// SIGINT and SIGTERM trigger [`ShutdownRequested`]; the app runs on for `grace`, or until nobody is connected, and exits
/// with success, upon which the server plugins tell every client. A second signal ends the process at once. At the end
/// of `run_for` there is no grace.
///
/// Replaces the app's runner: add it instead of `ScheduleRunnerPlugin`.
#[derive(Clone, Debug)]
pub struct HeadlessPlugin {
    /// Stop by itself after this long. Default: never.
    pub run_for: Option<Duration>,
    /// How long to run on after [`ShutdownRequested`], for players to read that the server goes, and for games that have
    /// something to finish. Default: 2 s.
    pub grace: Duration,
    /// Whether ticks go before other threads, as [`raise_priority`] says. Default: yes, as a dedicated server is there
    /// for nothing else. Say no where it shares a machine with what is more urgent.
    pub raise_priority: bool,
    /// Write a [`ServerReport`] here at the end. Default: none.
    pub report: Option<std::path::PathBuf>,
}

impl Default for HeadlessPlugin {
    fn default() -> Self {
        Self {
            run_for: None,
            grace: Duration::from_secs(2),
            raise_priority: true,
            report: None,
        }
    }
}

impl Plugin for HeadlessPlugin {
    fn build(&self, app: &mut App) {
        let settings = self.clone();
        app.insert_resource(TimeUpdateStrategy::FixedTimesteps(1))
            .init_resource::<TickTimings>()
            .set_runner(move |app| run(app, &settings));
    }
}

/// How long ticks took since the app started.
#[derive(Resource, Clone, Debug, Default)]
pub struct TickTimings {
    /// Milliseconds spent in each tick.
    pub tick_ms: Histogram,
    /// Ticks that ended after the next one was due.
    pub overruns: u64,
}

impl TickTimings {
    fn note(&mut self, took: Duration, is_overrun: bool) {
        self.tick_ms.record(took.as_secs_f64() * 1e3);
        self.overruns += u64::from(is_overrun);
    }
}

/// Absolute deadlines at a steady rate.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    period: Duration,
    deadline: Instant,
}

impl Pace {
    /// Deadlines each `period`, the first of them one period from `now`.
    pub fn new(now: Instant, period: Duration) -> Self {
        Self {
            period,
            deadline: now + period,
        }
    }

    /// Closes a tick that ended `now`: how long to sleep until the next, or `None` if that is already due.
    ///
    /// A backlog of up to eight ticks is worked off without sleeping; a longer one is forgotten.
    pub fn close_tick(&mut self, now: Instant) -> Option<Duration> {
        let sleep = self.deadline.checked_duration_since(now);
        if sleep.is_none() && now - self.deadline > self.period * MAX_TICKS_BEHIND {
            self.deadline = now;
        }
        self.deadline += self.period;
        sleep
    }
}

fn run(mut app: App, settings: &HeadlessPlugin) -> AppExit {
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!("cannot listen for signals: {error}");
            return AppExit::error();
        }
    };
    while app.plugins_state() == PluginsState::Adding {
        thread::sleep(Duration::from_millis(1));
    }
    app.finish();
    app.cleanup();
    if settings.raise_priority {
        raise_priority();
    }

    let started = Instant::now();
    let period = app.world().resource::<Time<Fixed>>().timestep();
    let mut pace = Pace::new(started, period);
    let mut shutdown_at = None;
    let exit = loop {
        let tick_started = Instant::now();
        app.update();
        let now = Instant::now();
        let sleep = pace.close_tick(now);

        let mut timings = app.world_mut().resource_mut::<TickTimings>();
        timings.note(now - tick_started, sleep.is_none());

        if let Some(exit) = app.should_exit() {
            break exit;
        }
        let time_is_up = settings.run_for.is_some_and(|limit| now - started >= limit);
        if shutdown_at.is_none() && (signals.any() || time_is_up) {
            let grace = match time_is_up {
                true => Duration::ZERO,
                false => settings.grace,
            };
            shutdown_at = Some(now + grace);
            app.world_mut().trigger(ShutdownRequested { grace });
        }
        let stats = app.world().get_resource::<ServerStats>();
        let nobody_is_there = stats.is_none_or(|stats| stats.sessions + stats.leaving == 0);
        if shutdown_at.is_some_and(|at| now >= at || nobody_is_there) {
            // One more update, in which everybody hears of it.
            app.world_mut().write_message(AppExit::Success);
            continue;
        }
        if let Some(sleep) = sleep {
            thread::sleep(sleep);
        }
    };
    match &settings.report {
        Some(path) if !write_report(path, app.world(), started.elapsed()) => AppExit::error(),
        _ => exit,
    }
}

fn write_report(path: &Path, world: &World, ran_for: Duration) -> bool {
    let written = report::write(path, &ServerReport::of(world, ran_for));
    if let Err(error) = &written {
        tracing::error!("cannot write the report to {}: {error}", path.display());
    }
    written.is_ok()
}

/// SIGINT and SIGTERM, noted until somebody asks. A second one ends the process at once.
#[derive(Clone, Debug)]
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Takes the signals over from the system, which would end the process.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn listen() -> std::io::Result<Self> {
        let seen = Arc::new(AtomicUsize::new(0));
        let impatient = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Registered first, so that it sees the first signal's mark only when a second one arrives.
            flag::register_conditional_shutdown(signal, 1, Arc::clone(&impatient))?;
            flag::register(signal, Arc::clone(&impatient))?;
            flag::register_usize(signal, Arc::clone(&seen), 1)?;
        }
        Ok(Self(seen))
    }

    /// Whether one arrived.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(10);

    #[test]
    fn sleeping_late_does_not_shift_later_deadlines() {
        let start = Instant::now();
        let mut pace = Pace::new(start, PERIOD);
        let at = |ms| start + Duration::from_millis(ms);

        assert_eq!(pace.close_tick(at(2)), Some(Duration::from_millis(8)));
        // Woke 3 ms late and worked for 2.
        assert_eq!(
            pace.close_tick(at(15)),
            Some(Duration::from_millis(5)),
            "the next tick is due at 20 ms, whatever happened before"
        );
    }

    #[test]
    fn a_short_backlog_is_worked_off_and_a_long_one_forgotten() {
        let start = Instant::now();
        let mut pace = Pace::new(start, PERIOD);
        let at = |ms| start + Duration::from_millis(ms);

        assert_eq!(pace.close_tick(at(35)), None, "ended after 10 ms");
        assert_eq!(pace.close_tick(at(36)), None, "and 20");
        assert_eq!(pace.close_tick(at(37)), None, "and 30");
        assert_eq!(
            pace.close_tick(at(38)),
            Some(Duration::from_millis(2)),
            "caught up with 40"
        );

        assert_eq!(pace.close_tick(at(5_000)), None, "a stall");
        assert_eq!(
            pace.close_tick(at(5_001)),
            Some(Duration::from_millis(9)),
            "at once back to one tick a period"
        );
    }
}
