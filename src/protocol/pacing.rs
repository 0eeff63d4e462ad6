//! How much one client is sent, by how its link does.
//!
//! A link is taken through *grades*: at the first everything is sent as configured, at each further one less often and
//! in smaller pieces, gathered and compressed more. A bad link goes down a grade at once; a good one goes up after it
//! has been good for a while, and the while doubles each time that the better grade did not last. This is the scheme of
//! Glenn Fiedler's [Reliability and Congestion Avoidance over UDP], with several grades instead of two.
//!
//! [Reliability and Congestion Avoidance over UDP]: https://gafferongames.com/post/reliability_ordering_and_congestion_avoidance_over_udp/

use std::fmt;
use std::time::Duration;

/// How a link's datagrams are gathered into messages, and compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPace {
    /// Most datagrams and messages in one batch. What is beyond starts the next.
    pub max_batch: usize,
    /// Time between the beginnings of two batches, and so the longest that anything waits for its batch.
    pub interval: Duration,
    /// Batches of more bytes than this are compressed.
    pub compress_above: usize,
    /// How hard: 1 to 9, the level of deflate.
    pub level: u8,
}

impl LinkPace {
    /// For short delays: at most 100 in a batch, 10 ms apart, compressed above 500 bytes at level 9.
    pub const REALTIME: Self = Self {
        max_batch: 100,
        interval: Duration::from_millis(10),
        compress_above: 500,
        level: 9,
    };
    /// The default: at most 500 in a batch, 20 ms apart, compressed above 1,000 bytes at level 6.
    pub const BALANCED: Self = Self {
        max_batch: 500,
        interval: Duration::from_millis(20),
        compress_above: 1_000,
        level: 6,
    };
    /// For many clients: at most 1,000 in a batch, 50 ms apart, compressed above 2,000 bytes at level 1.
    pub const THROUGHPUT: Self = Self {
        max_batch: 1_000,
        interval: Duration::from_millis(50),
        compress_above: 2_000,
        level: 1,
    };
}

impl Default for LinkPace {
    fn default() -> Self {
        Self::BALANCED
    }
}

/// What is known of a link at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Its mean deviation.
    pub jitter: Duration,
    /// Share of datagrams lost, 0 to 1.
    pub loss: f32,
    /// What was sent still waits for the client to read it.
    pub is_congested: bool,
    /// Bytes sent to this client in the last second.
    pub bytes_per_s: f32,
}

/// What is sent at a grade.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grade {
    /// Share of the configured send rate, 0 to 1.
    pub rate: f32,
    /// Share of the configured size of snapshots, 0 to 1.
    pub budget: f32,
    /// How datagrams are gathered and compressed, where the transport does either; `None` leaves it as configured.
    pub pace: Option<LinkPace>,
}

/// Within which limits links are adapted, and to what.
#[derive(Clone, Debug, PartialEq)]
pub struct PacingSettings {
    /// The grades, best first. Default: full, then 2/3, 1/2 and 1/3 of the rate with 0.85, 0.7 and 0.5 of the size.
    pub grades: Vec<Grade>,
    /// More loss than this is bad. Default 0.12: interpolation and repeated inputs make up for less.
    pub max_loss: f32,
    /// A round trip of more than the best one seen times this, and 50 ms, is bad: queues are filling. Default 2.
    pub max_rtt_growth: f32,
    /// More bytes in a second than this are bad, whatever the link does. Default: no limit.
    pub max_bytes_per_s: Option<f32>,
    /// How long a link has to be good before it goes up a grade. Default 5 s.
    pub good_for: Duration,
    /// The longest that this may grow to. Default 60 s.
    pub max_good_for: Duration,
}

impl Default for PacingSettings {
    fn default() -> Self {
        let grade = |rate, budget, pace| Grade { rate, budget, pace };
        Self {
            grades: vec![
                grade(1.0, 1.0, None),
                grade(2.0 / 3.0, 0.85, Some(LinkPace::BALANCED)),
                grade(0.5, 0.7, Some(LinkPace::THROUGHPUT)),
                grade(1.0 / 3.0, 0.5, Some(LinkPace::THROUGHPUT)),
            ],
            max_loss: 0.12,
            max_rtt_growth: 2.0,
            max_bytes_per_s: None,
            good_for: Duration::from_secs(5),
            max_good_for: Duration::from_secs(60),
        }
    }
}

/// Why a link goes to another grade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacingReason {
    /// The client does not read what it is sent.
    Congestion,
    /// Too much is lost.
    Loss,
    /// Round trips take much longer than they did.
    Delay,
    /// More bytes than allowed.
    Bytes,
    /// It has been good for a while.
    Recovered,
}

impl fmt::Display for PacingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Congestion => "congestion",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Bytes => "bytes",
            Self::Recovered => "recovered",
        })
    }
}

/// A link goes from one grade to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The grade it had.
    pub from: usize,
    /// The grade it has now.
    pub to: usize,
    /// Why.
    pub reason: PacingReason,
}

/// Adapts one link.
#[derive(Clone, Debug)]
pub struct Pacer {
    grade: usize,
    /// Since when the grade is what it is.
    since: Duration,
    /// Since when the link is good.
    good_since: Option<Duration>,
    /// How long it has to be good to go up.
    good_for: Duration,
    best_rtt: Option<Duration>,
}

/// A link is left alone for so long after each decision, so that its effect can be seen: some round trips.
const SETTLING: Duration = Duration::from_secs(1);

/// Going down again within this time after going up means that the better grade did not last.
const RELAPSE: Duration = Duration::from_secs(10);

impl Pacer {
    /// A link that just opened, at the first grade.
    pub fn new(now: Duration, settings: &PacingSettings) -> Self {
        Self {
            grade: 0,
            since: now,
            good_since: None,
            good_for: settings.good_for,
            best_rtt: None,
        }
    }

    /// The grade: an index into [`PacingSettings::grades`].
    pub fn grade(&self) -> usize {
        self.grade
    }

    /// Looks at the link; call it a few times each second.
    pub fn observe(
        &mut self,
        now: Duration,
        reading: &Reading,
        settings: &PacingSettings,
    ) -> Option<Decision> {
        if !reading.rtt.is_zero() {
            let best = self.best_rtt.get_or_insert(reading.rtt);
            *best = (*best).min(reading.rtt);
        }
        let at_grade = now.saturating_sub(self.since);
        let Some(reason) = self.what_is_bad(reading, settings) else {
            let good_since = *self.good_since.get_or_insert(now);
            let is_stable = now.saturating_sub(good_since) >= self.good_for;
            if self.grade == 0 && now.saturating_sub(good_since) > RELAPSE {
                // Trust grows back as slowly as it was lost.
                self.good_for = (self.good_for / 2).max(settings.good_for);
                self.good_since = Some(now);
            }
            if self.grade == 0 || !is_stable || at_grade < SETTLING {
                return None;
            }
            self.good_since = Some(now);
            return Some(self.go(now, self.grade - 1, PacingReason::Recovered));
        };
        self.good_since = None;
        if self.grade + 1 >= settings.grades.len() || at_grade < SETTLING {
            return None;
        }
        if at_grade < RELAPSE {
            self.good_for = (self.good_for * 2).min(settings.max_good_for);
        }
        Some(self.go(now, self.grade + 1, reason))
    }

    fn go(&mut self, now: Duration, to: usize, reason: PacingReason) -> Decision {
        let from = std::mem::replace(&mut self.grade, to);
        self.since = now;
        Decision { from, to, reason }
    }

    fn what_is_bad(&self, reading: &Reading, settings: &PacingSettings) -> Option<PacingReason> {
        let usual = self.best_rtt.unwrap_or(reading.rtt) + 2 * reading.jitter;
        let longest = usual.mul_f32(settings.max_rtt_growth) + Duration::from_millis(50);
        if reading.is_congested {
            Some(PacingReason::Congestion)
        } else if reading.loss > settings.max_loss {
            Some(PacingReason::Loss)
        } else if reading.rtt > longest {
            Some(PacingReason::Delay)
        } else if settings
            .max_bytes_per_s
            .is_some_and(|most| reading.bytes_per_s > most)
        {
            Some(PacingReason::Bytes)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Reading = Reading {
        rtt: Duration::from_millis(60),
        jitter: Duration::from_millis(5),
        loss: 0.01,
        is_congested: false,
        bytes_per_s: 9_000.0,
    };

    struct Run {
        pacer: Pacer,
        settings: PacingSettings,
        now: Duration,
    }

    impl Run {
        fn new(settings: PacingSettings) -> Self {
            let pacer = Pacer::new(Duration::ZERO, &settings);
            Self {
                pacer,
                settings,
                now: Duration::ZERO,
            }
        }

        /// Observes the same for some seconds, four times in each.
        fn see(&mut self, reading: Reading, seconds: u64) -> Vec<Decision> {
            let mut decisions = Vec::new();
            for _ in 0..seconds * 4 {
                self.now += Duration::from_millis(250);
                decisions.extend(self.pacer.observe(self.now, &reading, &self.settings));
            }
            decisions
        }
    }

    #[test]
    fn a_good_link_stays_as_configured() {
        let mut run = Run::new(PacingSettings::default());
        assert_eq!(run.see(GOOD, 300), []);
        assert_eq!(run.pacer.grade(), 0);
    }

    #[test]
    fn each_trouble_lowers_the_grade_and_is_named() {
        let troubles = [
            (
                PacingReason::Congestion,
                Reading {
                    is_congested: true,
                    ..GOOD
                },
            ),
            (PacingReason::Loss, Reading { loss: 0.3, ..GOOD }),
            (
                PacingReason::Delay,
                Reading {
                    rtt: Duration::from_millis(600),
                    ..GOOD
                },
            ),
            (
                PacingReason::Bytes,
                Reading {
                    bytes_per_s: 60_000.0,
                    ..GOOD
                },
            ),
        ];
        for (reason, bad) in troubles {
            let mut run = Run::new(PacingSettings {
                max_bytes_per_s: Some(50_000.0),
                ..Default::default()
            });
            run.see(GOOD, 5);
            let decisions = run.see(bad, 2);
            assert_eq!(decisions[0].reason, reason);
            assert_eq!((decisions[0].from, decisions[0].to), (0, 1));
        }
    }

    #[test]
    fn a_bad_link_ends_at_the_last_grade_and_no_further() {
        let mut run = Run::new(PacingSettings::default());
        let bad = Reading { loss: 0.5, ..GOOD };
        assert_eq!(run.see(bad, 60).len(), 3);
        assert_eq!(run.pacer.grade(), 3);
    }

    #[test]
    fn a_link_recovers_grade_by_grade() {
        let mut run = Run::new(PacingSettings::default());
        run.see(Reading { loss: 0.5, ..GOOD }, 10);
        let decisions = run.see(GOOD, 200);
        let grades: Vec<_> = decisions.iter().map(|decision| decision.to).collect();
        assert_eq!(grades, [2, 1, 0]);
        assert!(
            decisions
                .iter()
                .all(|it| it.reason == PacingReason::Recovered)
        );
    }

    #[test]
    fn a_link_that_relapses_is_tried_less_and_less_often() {
        let mut run = Run::new(PacingSettings::default());
        let bad = Reading { loss: 0.5, ..GOOD };
        let mut waits = Vec::new();
        for _ in 0..6 {
            run.see(bad, 3);
            let before = run.now;
            while run.see(GOOD, 1).is_empty() {}
            waits.push((run.now - before).as_secs());
        }
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
        assert!(waits[5] >= 40, "{waits:?}");
        assert!(waits[5] <= 62, "but not for ever: {waits:?}");
    }

    #[test]
    fn grades_are_within_what_is_configured() {
        for grade in PacingSettings::default().grades {
            assert!(grade.rate > 0.0 && grade.rate <= 1.0);
            assert!(grade.budget > 0.0 && grade.budget <= 1.0);
        }
    }
}
