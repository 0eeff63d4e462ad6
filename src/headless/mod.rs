//! What a dedicated server binary needs around its game: a paced runner and reports.
//!
//! Plain Bevy has no such thing: `ScheduleRunnerPlugin` sleeps a whole period after each update, which drifts, and
//! knows neither signals nor how long a tick took.
//!
//! - [`HeadlessPlugin`] runs one tick per update on absolute deadlines and leaves cleanly on SIGINT and SIGTERM.
//! - [`report`] sums a run up in one JSON object.

mod priority;
pub mod report;
mod runner;

pub use crate::session::ShutdownRequested;
pub use priority::raise_priority;
pub use runner::{HeadlessPlugin, Pace, Signals, TickTimings};
