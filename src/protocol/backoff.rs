//! stub
use std::time::Duration;
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackoffSettings {
    pub attempts: u32,
}
impl Default for BackoffSettings {
    fn default() -> Self {
        Self { attempts: 10 }
    }
}
#[derive(Debug)]
pub struct Backoff {
    s: BackoffSettings,
    n: u32,
}
pub struct Delay {
    pub attempt: u32,
    pub delay: Duration,
}
impl Backoff {
    pub fn new(s: BackoffSettings) -> Self {
        Self { s, n: 0 }
    }
    pub fn next(&mut self, random: f64) -> Option<Delay> {
        if self.n >= self.s.attempts {
            return None;
        }
        self.n += 1;
        let d = (1u32 << (self.n - 1).min(5)).min(30) as f64;
        Some(Delay {
            attempt: self.n,
            delay: Duration::from_secs_f64(d * (0.5 + 0.5 * random)),
        })
    }
}
