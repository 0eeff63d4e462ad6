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

mod samples;
#[cfg(test)]
mod tests;
mod timeline;

pub use samples::{MAX_SAMPLES, Sample, SampleBuffer, hermite};
pub use timeline::{Playback, Starvation, Timeline, TimelineSettings};
