//! How long to wait before the next attempt to reconnect.
//!
//! Delays grow exponentially up to a maximum, so that a server that is down or full is left in peace; and they are
//! random, so that the thousand clients of a server that has just come back do not all come at once. Of the two kinds of
//! jitter that Marc Brooker compares in [Exponential Backoff And Jitter] (AWS Architecture Blog), "equal" is the default
//! here: half of the delay is certain, so nobody hammers, and half is random. "Full" spreads clients more evenly and does
//! the least work in total, at the price of attempts that follow each other closely now and then.
//!
//! [Exponential Backoff And Jitter]: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

use std::time::Duration;

/// How much of a delay is random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jitter {
    /// Nothing: for tests.
    None,
    /// The second half: from 0.5 to 1 times the delay. The default.
    #[default]
    Equal,
    /// All of it: from 0 to 1 times the delay.
    Full,
}

/// When to try again, and when to give up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackoffSettings {
    /// Delay before the first attempt, at most. Above 0. Default: 1 s.
    pub initial: Duration,
    /// How much longer each delay is than the one before. At least 1. Default: 2.
    pub factor: f64,
    /// No delay is longer. At least `initial`. Default: 30 s.
    pub max: Duration,
    /// How many attempts. 0: do not reconnect. Default: 10, which is between two and four minutes with the other
    /// defaults, plus what the attempts take: within the five for which a server keeps a session.
    pub attempts: u32,
    /// How random delays are. Default: [`Jitter::Equal`].
    pub jitter: Jitter,
}

impl Default for BackoffSettings {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_secs(30),
            attempts: 10,
            jitter: Jitter::default(),
        }
    }
}

impl BackoffSettings {
    /// Whether they make sense.
    ///
    /// # Errors
    ///
    /// [`BackoffError`] names the first that does not.
    pub fn validate(&self) -> Result<(), BackoffError> {
        if self.initial.is_zero() {
            return Err(BackoffError::NoDelay);
        }
        if !self.factor.is_finite() || self.factor < 1.0 {
            return Err(BackoffError::Factor(self.factor));
        }
        if self.max < self.initial {
            return Err(BackoffError::Max {
                initial: self.initial,
                max: self.max,
            });
        }
        Ok(())
    }

    /// The longest that the delay before an attempt (from 1) can be.
    #[must_use]
    pub fn longest_delay(&self, attempt: u32) -> Duration {
        let exponent = attempt.saturating_sub(1).min(1_000).cast_signed();
        let seconds = self.initial.as_secs_f64() * self.factor.powi(exponent);
        // Compared as seconds, since a large power may not fit a `Duration`.
        if seconds < self.max.as_secs_f64() {
            Duration::try_from_secs_f64(seconds).unwrap_or(self.max)
        } else {
            self.max
        }
    }
}

/// Settings that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum BackoffError {
    /// Attempts would follow each other without a pause.
    #[error("`initial` is zero: set the delay before the first attempt, 1 s for example")]
    NoDelay,
    /// Delays would shrink.
    #[error("`factor` is {0}: delays must not shrink, so make it 1 or more")]
    Factor(f64),
    /// The first delay is longer than the longest.
    #[error("`max` ({max:?}) is less than `initial` ({initial:?}): raise it")]
    Max {
        /// [`BackoffSettings::initial`].
        initial: Duration,
        /// [`BackoffSettings::max`].
        max: Duration,
    },
}

/// When the next attempt is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Which attempt it is, from 1.
    pub attempt: u32,
    /// How long to wait before it.
    pub delay: Duration,
}

/// Counts attempts and says how long to wait before each.
///
/// ```
/// use bevy_tandem::protocol::backoff::*;
/// use core::time::Duration;
///
/// let mut backoff = Backoff::new(BackoffSettings { attempts: 2, ..Default::default() })?;
/// let delay = Duration::from_millis(750);
/// assert_eq!(backoff.next(0.5), Some(Delay { attempt: 1, delay }));
/// assert_eq!(backoff.next(0.5), Some(Delay { attempt: 2, delay: 2 * delay }));
/// assert_eq!(backoff.next(0.5), None); // give up
/// # Ok::<(), BackoffError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    settings: BackoffSettings,
    attempt: u32,
}

impl Backoff {
    /// Before the first attempt.
    ///
    /// # Errors
    ///
    /// As [`BackoffSettings::validate`].
    pub fn new(settings: BackoffSettings) -> Result<Self, BackoffError> {
        settings.validate()?;
        Ok(Self {
            settings,
            attempt: 0,
        })
    }

    /// The next attempt and the delay before it; `None` when there were enough. `random` is uniform in `0.0..1.0`;
    /// anything outside is taken as the nearest end.
    pub fn next(&mut self, random: f64) -> Option<Delay> {
        if self.attempt >= self.settings.attempts {
            return None;
        }
        self.attempt += 1;
        let longest = self.settings.longest_delay(self.attempt);
        let random = if random.is_nan() {
            0.0
        } else {
            random.clamp(0.0, 1.0)
        };
        let delay = match self.settings.jitter {
            Jitter::None => longest,
            Jitter::Equal => part_of(longest, 0.5 + random / 2.0),
            Jitter::Full => part_of(longest, random),
        };
        Some(Delay {
            attempt: self.attempt,
            delay,
        })
    }

    /// Starts again with the shortest delay: after an attempt that succeeded.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// How many attempts there were since the last [reset](Self::reset).
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &BackoffSettings {
        &self.settings
    }
}

/// A share, 0 to 1, of a duration.
fn part_of(whole: Duration, share: f64) -> Duration {
    // Rounding may lead beyond `Duration::MAX`, and never beyond `whole` by more than that.
    Duration::try_from_secs_f64(whole.as_secs_f64() * share).map_or(whole, |part| part.min(whole))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(settings: BackoffSettings, random: f64) -> Vec<f64> {
        let mut backoff = Backoff::new(settings).expect("valid");
        std::iter::from_fn(|| backoff.next(random))
            .map(|next| next.delay.as_secs_f64())
            .collect()
    }

    #[test]
    fn delays_double_from_one_second_to_thirty_and_end_after_ten_attempts() {
        let settings = BackoffSettings {
            jitter: Jitter::None,
            ..BackoffSettings::default()
        };
        let expected = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 30.0];
        assert_eq!(all(settings, 0.7), expected);
    }

    #[test]
    fn equal_jitter_keeps_half_of_the_delay_and_full_jitter_nothing() {
        let equal = BackoffSettings::default();
        let full = BackoffSettings {
            jitter: Jitter::Full,
            ..equal
        };
        assert_eq!(all(equal, 0.0)[..3], [0.5, 1.0, 2.0]);
        assert_eq!(all(equal, 0.5)[..3], [0.75, 1.5, 3.0]);
        assert_eq!(all(full, 0.0)[..3], [0.0, 0.0, 0.0]);
        assert_eq!(all(full, 0.5)[..3], [0.5, 1.0, 2.0]);
    }

    #[test]
    fn all_attempts_fit_the_time_for_which_a_server_keeps_a_session() {
        assert_eq!(
            all(BackoffSettings::default(), 1.0).iter().sum::<f64>(),
            181.0
        );
        assert_eq!(
            all(BackoffSettings::default(), 0.0).iter().sum::<f64>(),
            90.5
        );
    }

    #[test]
    fn a_success_starts_again_with_the_shortest_delay() {
        let mut backoff = Backoff::default();
        let first = backoff.next(0.3);
        assert_ne!(backoff.next(0.3), first);
        backoff.reset();
        assert_eq!(backoff.attempt(), 0);
        assert_eq!(backoff.next(0.3), first);
    }

    #[test]
    fn no_attempts_means_none() {
        let settings = BackoffSettings {
            attempts: 0,
            ..BackoffSettings::default()
        };
        assert!(all(settings, 0.5).is_empty());
    }

    #[test]
    fn senseless_settings_are_refused_with_advice() {
        let good = BackoffSettings::default();
        let refused = |settings: BackoffSettings, advice: &str| {
            let error = Backoff::new(settings).expect_err(advice);
            assert!(error.to_string().contains(advice), "{error}");
        };
        refused(
            BackoffSettings {
                initial: Duration::ZERO,
                ..good
            },
            "`initial` is zero",
        );
        for factor in [0.9, -1.0, f64::NAN, f64::INFINITY] {
            refused(BackoffSettings { factor, ..good }, "1 or more");
        }
        refused(
            BackoffSettings {
                max: Duration::from_millis(999),
                ..good
            },
            "raise it",
        );
    }

    proptest! {
        #[test]
        fn delays_never_exceed_the_maximum_nor_shrink(
            initial_ns in 1u64..,
            factor in 1.0..1e300f64,
            longer_ns: u64,
            attempts in 0u32..2_000,
            random in proptest::num::f64::ANY,
            kind in 0..3,
        ) {
            let initial = Duration::from_nanos(initial_ns);
            let max = initial.saturating_add(Duration::from_nanos(longer_ns));
            let jitter = [Jitter::None, Jitter::Equal, Jitter::Full][kind as usize];
            let settings = BackoffSettings { initial, factor, max, attempts, jitter };
            let mut backoff = Backoff::new(settings).expect("valid");
            let mut last = Duration::ZERO;
            let mut count = 0;
            while let Some(next) = backoff.next(random) {
                count += 1;
                prop_assert_eq!(next.attempt, count);
                prop_assert!(next.delay <= max && next.delay >= last);
                last = next.delay;
            }
            prop_assert_eq!(count, attempts);
        }
    }
}
