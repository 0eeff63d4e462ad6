//! What several tests share.
#![allow(dead_code)]

use std::thread;
use std::time::{Duration, Instant};

#[path = "../../examples/proxy/relay.rs"]
pub mod relay;

/// Long enough for anything that comes at all, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again and again, a few milliseconds apart, until there is an answer.
///
/// # Panics
///
/// When there is none for [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
