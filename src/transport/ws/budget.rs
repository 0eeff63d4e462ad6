//! What a peer may send: so much in a moment, and so much in a second.

use std::time::{Duration, Instant};

/// A budget of datagrams and bytes, of which a second's worth can be saved up.
///
/// A message is read whole, so a budget can be overdrawn by one. Then the peer has to wait.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    datagrams: Bucket,
    bytes: Bucket,
    filled_at: Instant,
}

#[derive(Clone, Debug)]
struct Bucket {
    per_s: f64,
    left: f64,
}

impl Bucket {
    fn new(per_s: u32) -> Self {
        let per_s = f64::from(per_s.max(1));
        Self { per_s, left: per_s }
    }

    fn fill(&mut self, elapsed: Duration) {
        self.left = (self.left + elapsed.as_secs_f64() * self.per_s).min(self.per_s);
    }

    /// Seconds until it is not overdrawn.
    fn wait(&self) -> f64 {
        -self.left / self.per_s
    }
}

impl Budget {
    /// A full budget of so many datagrams and bytes a second.
    pub fn new(now: Instant, datagrams_per_s: u32, bytes_per_s: u32) -> Self {
        Self {
            datagrams: Bucket::new(datagrams_per_s),
            bytes: Bucket::new(bytes_per_s),
            filled_at: now,
        }
    }

    /// Takes what the peer sent.
    pub fn spend(&mut self, now: Instant, datagrams: usize, bytes: usize) {
        self.fill(now);
        self.datagrams.left -= datagrams as f64;
        self.bytes.left -= bytes as f64;
    }

    /// How long the peer has to wait, if it does.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let wait = self.datagrams.wait().max(self.bytes.wait());
        if wait < 0.0 {
            return None;
        }
        self.fill(now);
        let wait = self.datagrams.wait().max(self.bytes.wait());
        // A little more, so that it is over then in spite of rounding.
        (wait >= 0.0).then(|| Duration::from_secs_f64(wait) + Duration::from_millis(1))
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        self.datagrams.fill(elapsed);
        self.bytes.fill(elapsed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_keeps_to_its_budget_never_waits() {
        let start = Instant::now();
        let mut budget = Budget::new(start, 60, 6_000);
        for tick in 0..600 {
            let now = start + Duration::from_secs(1) * tick / 60;
            assert_eq!(budget.wait(now), None, "at tick {tick}");
            budget.spend(now, 1, 90);
        }
    }

    #[test]
    fn a_peer_that_does_not_is_held_to_it() {
        let start = Instant::now();
        for (datagrams_per_s, bytes_per_s) in [(100, u32::MAX), (u32::MAX, 10_000)] {
            let mut budget = Budget::new(start, datagrams_per_s, bytes_per_s);
            let (mut now, mut sent) = (start, 0);
            while now < start + Duration::from_secs(10) {
                match budget.wait(now) {
                    Some(wait) => now += wait,
                    None => {
                        sent += 1;
                        budget.spend(now, 1, 100);
                    }
                }
            }
            assert!(
                (1_000..=1_102).contains(&sent),
                "a second's worth at once, then the rate: {sent}"
            );
        }
    }

    #[test]
    fn what_is_saved_up_is_bounded() {
        let start = Instant::now();
        let mut budget = Budget::new(start, 100, 1_000_000);
        let later = start + Duration::from_secs(3_600);
        budget.spend(later, 100, 0);
        assert!(
            budget.wait(later).is_some(),
            "an hour of silence is worth a second"
        );
    }
}
