//! The header of every datagram, and what it teaches: what arrived, round-trip time, loss.
//!
//! Both directions use the same nine bytes. Each datagram has a sequence number of its own and
//! carries the acknowledgement of the newest 32 datagrams of the other side, so that one lost
//! acknowledgement is repaired by the next 31. Nothing is resent here: whoever put something into a
//! datagram learns by its sequence number whether that datagram arrived, and decides.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..2 | `seq` | number of this datagram, wrapping, little endian |
//! | 2..4 | `ack` | newest sequence number received from the other side |
//! | 4..8 | `ack_bits` | bit *i*: `ack - i` was received. Zero: nothing was received yet |
//! | 8 | `ack_delay_ms` | how long ago `ack` had arrived when this was sent; 255: longer than can be told |
//!
//! Round-trip time follows RFC 6298 with the weights scaled to the time between samples, as RFC 7323
//! (appendix G) asks of senders that get many samples per round trip: at 60 datagrams a second an
//! unscaled 1/8 would forget within two frames.

use std::collections::VecDeque;
use std::time::Duration;

use smallvec::SmallVec;

/// How many of our newest datagrams are remembered until they are acknowledged.
///
/// At 60 datagrams a second these are the last 4.2 seconds. What is older and still unknown is
/// forgotten without an event: keep whatever you remember per sequence number in a ring of this
/// length too, and overwriting does the forgetting.
pub const SENT_WINDOW: usize = 256;

/// How many datagrams, up to and including the newest, an acknowledgement speaks about.
pub const ACK_WINDOW: u16 = 32;

/// `ack_delay_ms` when the delay is longer than a byte can tell: such a header is no RTT sample.
const DELAY_UNKNOWN: u8 = u8::MAX;

/// Never declare a datagram lost by time before this, however short the round trip is: a frame of
/// the other side lies in between.
const MIN_LOSS_TIMEOUT: Duration = Duration::from_millis(100);

/// The minimum round trip is taken over one to two of these, so that a changed route is noticed.
const MIN_RTT_PERIOD: Duration = Duration::from_secs(10);

/// The first nine bytes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of this datagram among those of its sender; wraps around.
    pub seq: u16,
    /// Newest sequence number the sender has received. Meaningless while `ack_bits` is zero.
    pub ack: u16,
    /// Bit *i* set: `ack - i` was received. Zero: nothing was received yet.
    pub ack_bits: u32,
    /// Milliseconds between the arrival of `ack` and the sending of this; 255: unknown.
    pub ack_delay_ms: u8,
}

impl Header {
    /// Length of an encoded header in bytes.
    pub const LEN: usize = 9;

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let [s0, s1] = self.seq.to_le_bytes();
        let [a0, a1] = self.ack.to_le_bytes();
        let [b0, b1, b2, b3] = self.ack_bits.to_le_bytes();
        [s0, s1, a0, a1, b0, b1, b2, b3, self.ack_delay_ms]
    }

    /// The header at the start of `datagram`, and what follows it; `None` if it is too short.
    #[must_use]
    pub fn decode(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (&[s0, s1, a0, a1, b0, b1, b2, b3, ack_delay_ms], rest) =
            datagram.split_first_chunk::<{ Self::LEN }>()?;
        let header = Self {
            seq: u16::from_le_bytes([s0, s1]),
            ack: u16::from_le_bytes([a0, a1]),
            ack_bits: u32::from_le_bytes([b0, b1, b2, b3]),
            ack_delay_ms,
        };
        Some((header, rest))
    }
}

/// What [`AckTracker::handle_header`] thinks of an arriving datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Seen for the first time: use it. It may be older than others that were seen.
    New,
    /// Seen before: ignore what it carries.
    Duplicate,
    /// So old that nobody remembers whether it was seen, and that it will not be acknowledged:
    /// ignore what it carries.
    TooOld,
}

/// What became of a datagram of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It arrived. Told once per datagram, perhaps after it had been thought lost.
    Acked(u16),
    /// It is thought lost: a newer one arrived, and either 32 datagrams or twice the round-trip
    /// time have gone by. Told at most once per datagram.
    Lost(u16),
}

/// Numbers the datagrams of one connection, acknowledges those of the other side, and measures.
///
/// Bounded in size. Sequence numbers are compared by distance, which is unambiguous as long as fewer
/// than 32,768 datagrams in a row are lost: nine minutes at 60 per second, long after any timeout.
///
/// What the other side claims is checked only so far that it cannot confuse us: acknowledgements of
/// datagrams that were never sent, or are forgotten, are ignored. A peer which lies about what it
/// received, or how long it waited, spoils its own connection.
#[derive(Clone, Debug)]
pub struct AckTracker {
    next_seq: u16,
    /// The newest [`SENT_WINDOW`] at most, oldest first.
    sent: VecDeque<Sent>,
    /// How many of them arrived, and how many are lost.
    acked: u16,
    lost: u16,
    newest_acked: Option<u16>,
    /// Every datagram before this one is settled (acknowledged, lost or forgotten).
    oldest_unsettled: u16,
    received: Option<ReceiveWindow>,
    rtt: Option<Rtt>,
    /// A round trip with a delay that the other side could not tell, less what it must have been: for want of better.
    rtt_at_most: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Duration,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    InFlight,
    Acked,
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct ReceiveWindow {
    newest: u16,
    newest_at: Duration,
    /// Bit *i*: `newest - i` was received, and is acknowledged.
    bits: u32,
    /// Bit *i*: `newest - i` was received too, but is not acknowledged.
    withheld: u32,
}

impl Default for AckTracker {
    fn default() -> Self {
        Self::new()
    }
}

impl AckTracker {
    /// A tracker of a connection over which nothing went yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next_seq: 0,
            sent: VecDeque::new(),
            acked: 0,
            lost: 0,
            newest_acked: None,
            oldest_unsettled: 0,
            received: None,
            rtt: None,
            rtt_at_most: None,
        }
    }

    /// The header for the datagram that is about to be sent at `now`.
    ///
    /// Call it only for datagrams that are handed to the transport: every call uses up a number.
    pub fn next_header(&mut self, now: Duration) -> Header {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        if self.sent.len() == SENT_WINDOW
            && let Some(forgotten) = self.sent.pop_front()
            && let Some(count) = self.count_of(forgotten.fate)
        {
            *count -= 1;
        }
        self.sent.push_back(Sent {
            at: now,
            fate: Fate::InFlight,
        });
        if usize::from(self.next_seq.wrapping_sub(self.oldest_unsettled)) > SENT_WINDOW {
            self.oldest_unsettled = self.next_seq.wrapping_sub(SENT_WINDOW as u16);
        }
        match self.received {
            None => Header {
                seq,
                ack: 0,
                ack_bits: 0,
                ack_delay_ms: 0,
            },
            Some(window) => {
                let delay = now.saturating_sub(window.newest_at).as_millis();
                Header {
                    seq,
                    ack: window.newest,
                    ack_bits: window.bits,
                    ack_delay_ms: u8::try_from(delay).unwrap_or(DELAY_UNKNOWN),
                }
            }
        }
    }

    /// Takes in the header of a datagram that arrived at `now`, and tells through `on_delivery`
    /// what it reveals about our own.
    ///
    /// Acknowledgements are taken from duplicates and old datagrams too: they are true whenever
    /// they arrive.
    pub fn handle_header(
        &mut self,
        now: Duration,
        header: Header,
        mut on_delivery: impl FnMut(Delivery),
    ) -> Received {
        self.handle_acks(now, header, &mut on_delivery);
        self.declare_lost(now, &mut on_delivery);
        self.note_received(now, header.seq)
    }

    /// Does not acknowledge a datagram after all, because what it carried was not used. It still counts as seen, so
    /// that a copy of it is a duplicate.
    pub fn withhold(&mut self, seq: u16) {
        let Some(window) = &mut self.received else {
            return;
        };
        let back = window.newest.wrapping_sub(seq);
        if back < ACK_WINDOW {
            window.bits &= !(1 << back);
            window.withheld |= 1 << back;
        }
    }

    /// Smoothed round-trip time, without the time the other side waited before it answered;
    /// `None` until the first acknowledgement.
    ///
    /// As long as the other side has always waited for longer than it can tell, it is what the round trip is at most.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
            .as_ref()
            .map(|rtt| rtt.smoothed)
            .or(self.rtt_at_most)
    }

    /// Shortest round trip of the last 10 to 20 seconds.
    #[must_use]
    pub fn min_rtt(&self) -> Option<Duration> {
        self.rtt.as_ref().map(|rtt| rtt.min_now.min(rtt.min_before))
    }

    /// Mean deviation of the round-trip time from its smoothed value (`RTTVAR` of RFC 6298).
    /// Half the first sample, until there are more.
    #[must_use]
    pub fn jitter(&self) -> Option<Duration> {
        self.rtt.as_ref().map(|rtt| rtt.deviation)
    }

    /// Share of our datagrams that were lost, of those among the newest [`SENT_WINDOW`] whose fate
    /// is known: 0 to 1.
    #[must_use]
    pub fn loss_ratio(&self) -> f32 {
        let (lost, acked) = (f32::from(self.lost), f32::from(self.acked));
        lost / (lost + acked).max(1.0)
    }

    /// How many of [`Self::sent`] have this fate, for those whose fate is known.
    fn count_of(&mut self, fate: Fate) -> Option<&mut u16> {
        match fate {
            Fate::InFlight => None,
            Fate::Acked => Some(&mut self.acked),
            Fate::Lost => Some(&mut self.lost),
        }
    }

    /// Settles what has become of a datagram that is still remembered.
    fn settle(&mut self, index: usize, fate: Fate) {
        let before = std::mem::replace(&mut self.sent[index].fate, fate);
        if let Some(count) = self.count_of(before) {
            *count -= 1;
        }
        if let Some(count) = self.count_of(fate) {
            *count += 1;
        }
    }

    /// The newest of our datagrams that is known to have arrived.
    #[must_use]
    pub fn newest_acked(&self) -> Option<u16> {
        self.newest_acked
    }

    /// Where a datagram is among [`Self::sent`], if it is there.
    fn index_of(&self, seq: u16) -> usize {
        let back = usize::from(self.next_seq.wrapping_sub(seq));
        self.sent.len().wrapping_sub(back)
    }

    fn handle_acks(
        &mut self,
        now: Duration,
        header: Header,
        on_delivery: &mut impl FnMut(Delivery),
    ) {
        let mut bits = header.ack_bits;
        while bits != 0 {
            let back = bits.trailing_zeros() as u16;
            bits &= bits - 1;
            let seq = header.ack.wrapping_sub(back);
            let index = self.index_of(seq);
            // Forgotten or never sent, or known already.
            let known = self.sent.get(index).filter(|it| it.fate != Fate::Acked);
            let Some(&sent) = known else {
                continue;
            };
            self.settle(index, Fate::Acked);
            if self.newest_acked.is_none_or(|newest| is_newer(seq, newest)) {
                self.newest_acked = Some(seq);
            }
            // Only the newest tells the time: `ack_delay_ms` is about it alone.
            if back == 0 {
                let waited = Duration::from_millis(u64::from(header.ack_delay_ms));
                let sample = now.saturating_sub(sent.at).saturating_sub(waited);
                match &mut self.rtt {
                    _ if header.ack_delay_ms == DELAY_UNKNOWN => self.rtt_at_most = Some(sample),
                    Some(rtt) => rtt.handle_sample(now, sample),
                    None => self.rtt = Some(Rtt::new(now, sample)),
                }
            }
            on_delivery(Delivery::Acked(seq));
        }
    }

    /// Declares lost what an acknowledgement would by now have mentioned.
    ///
    /// Datagrams are settled from the oldest on, and both conditions hold for a datagram if they
    /// hold for a newer one. So the walk stops at the first that may still arrive, and each
    /// datagram is visited once.
    fn declare_lost(&mut self, now: Duration, on_delivery: &mut impl FnMut(Delivery)) {
        let (Some(newest_acked), Some(rtt)) = (self.newest_acked, &self.rtt) else {
            return;
        };
        let timeout = (rtt.smoothed * 2).max(rtt.smoothed + rtt.deviation * 4);
        let timeout = timeout.max(MIN_LOSS_TIMEOUT);
        while is_newer(newest_acked, self.oldest_unsettled) {
            let seq = self.oldest_unsettled;
            let index = self.index_of(seq);
            if let Some(&sent) = self.sent.get(index)
                && sent.fate == Fate::InFlight
            {
                let unmentionable = newest_acked.wrapping_sub(seq) >= ACK_WINDOW;
                if !unmentionable && now.saturating_sub(sent.at) <= timeout {
                    return;
                }
                self.settle(index, Fate::Lost);
                on_delivery(Delivery::Lost(seq));
            }
            self.oldest_unsettled = seq.wrapping_add(1);
        }
    }

    fn note_received(&mut self, now: Duration, seq: u16) -> Received {
        let Some(window) = &mut self.received else {
            self.received = Some(ReceiveWindow {
                newest: seq,
                newest_at: now,
                bits: 1,
                withheld: 0,
            });
            return Received::New;
        };
        if is_newer(seq, window.newest) {
            let ahead = u32::from(seq.wrapping_sub(window.newest));
            window.bits = window.bits.checked_shl(ahead).unwrap_or(0) | 1;
            window.withheld = window.withheld.checked_shl(ahead).unwrap_or(0);
            window.newest = seq;
            window.newest_at = now;
            return Received::New;
        }
        let back = window.newest.wrapping_sub(seq);
        if back >= ACK_WINDOW {
            return Received::TooOld;
        }
        let bit = 1 << back;
        if (window.bits | window.withheld) & bit != 0 {
            return Received::Duplicate;
        }
        window.bits |= bit;
        Received::New
    }
}

/// Whether `a` lies after `b`, the shorter way around.
pub(crate) fn is_newer(a: u16, b: u16) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Round-trip time in the manner of RFC 6298.
#[derive(Clone, Debug)]
struct Rtt {
    smoothed: Duration,
    deviation: Duration,
    /// Shortest of the current period, and of the one before.
    min_now: Duration,
    min_before: Duration,
    period_start: Duration,
    last_sample_at: Duration,
    /// Newest samples in a row that are much shorter than what was believed.
    shorter: SmallVec<[Duration; SHORTER_SAMPLES]>,
}

/// So many samples in a row of less than half the smoothed round trip, and it is over what made it long: one side drew
/// a frame a second, say. A round trip cannot be measured too short.
const SHORTER_SAMPLES: usize = 3;

impl Rtt {
    fn new(now: Duration, sample: Duration) -> Self {
        Self {
            smoothed: sample,
            deviation: sample / 2,
            min_now: sample,
            min_before: sample,
            period_start: now,
            last_sample_at: now,
            shorter: SmallVec::new(),
        }
    }

    fn handle_sample(&mut self, now: Duration, sample: Duration) {
        if now.saturating_sub(self.period_start) >= MIN_RTT_PERIOD {
            self.min_before = self.min_now;
            self.min_now = sample;
            self.period_start = now;
        }
        self.min_now = self.min_now.min(sample);

        let is_usual = self.smoothed.saturating_sub(sample) <= self.deviation * 3;
        if sample < self.smoothed / 2 && !is_usual {
            self.shorter.push(sample);
        } else {
            self.shorter.clear();
        }
        if self.shorter.len() == SHORTER_SAMPLES {
            // Some may still be of when it was long. Then it falls once more, which a small deviation allows.
            self.shorter.sort_unstable();
            self.smoothed = self.shorter[SHORTER_SAMPLES / 2];
            self.deviation = self.smoothed / 8;
            self.shorter.clear();
        }

        // A side that was suspended answers seconds late. One such sample must not be believed
        // whole; a lasting change still is, as each sample may double the estimate's distance.
        let most = self.smoothed + (self.deviation * 4).max(self.smoothed);
        let sample = sample.min(most);

        // RFC 6298 means its weights for one sample per round trip.
        let elapsed = now.saturating_sub(self.last_sample_at);
        self.last_sample_at = now;
        let round_trips = if elapsed >= self.smoothed {
            1.0
        } else {
            elapsed.as_secs_f64() / self.smoothed.as_secs_f64()
        };
        let error = self.smoothed.abs_diff(sample);
        self.deviation = blend(self.deviation, error, round_trips / 4.0);
        self.smoothed = blend(self.smoothed, sample, round_trips / 8.0);
    }
}

/// `weight` (0 to 1) of `new`, the rest of `old`.
fn blend(old: Duration, new: Duration, weight: f64) -> Duration {
    old.mul_f64(1.0 - weight) + new.mul_f64(weight)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn ignore(_: Delivery) {}

    #[test]
    fn header_survives_encoding() {
        let header = Header {
            seq: 65_535,
            ack: 258,
            ack_bits: 0x8000_0001,
            ack_delay_ms: 7,
        };
        let mut datagram = header.encode().to_vec();
        datagram.push(42);
        assert_eq!(Header::decode(&datagram), Some((header, &[42][..])));
        assert_eq!(
            Header::decode(&datagram[..8]),
            None,
            "too short is not a header"
        );
    }

    #[test]
    fn what_is_withheld_is_not_acknowledged_but_remembered() {
        let (mut ada, mut bob) = (AckTracker::new(), AckTracker::new());
        let headers: Vec<_> = (0..4).map(|n| ada.next_header(ms(n))).collect();
        for at in [0, 3, 1, 2] {
            assert_eq!(
                bob.handle_header(ms(10), headers[at], ignore),
                Received::New
            );
        }
        bob.withhold(1);
        bob.withhold(3); // also the newest
        bob.withhold(500); // never came
        let mut acked = HashSet::new();
        let answer = bob.next_header(ms(10));
        ada.handle_header(ms(20), answer, |delivery| {
            if let Delivery::Acked(seq) = delivery {
                acked.insert(seq);
            }
        });
        assert_eq!(acked, HashSet::from([0, 2]));
        assert_eq!(
            bob.handle_header(ms(11), headers[1], ignore),
            Received::Duplicate,
            "it was seen all the same"
        );
        bob.handle_header(ms(12), ada.next_header(ms(12)), ignore);
        assert_eq!(
            bob.handle_header(ms(13), headers[1], ignore),
            Received::Duplicate,
            "also when newer ones have come"
        );
    }

    #[test]
    fn nothing_received_acks_nothing() {
        let (mut ada, mut bob) = (AckTracker::new(), AckTracker::new());
        ada.next_header(ms(0)); // number 0, which an all-zero acknowledgement must not mean
        let hello = bob.next_header(ms(0));
        assert_eq!(hello.ack_bits, 0);
        ada.handle_header(ms(5), hello, |delivery| {
            panic!("{delivery:?} out of nothing")
        });
        assert_eq!(ada.rtt(), None);
    }

    #[test]
    fn round_trip_excludes_the_wait_of_the_other_side() {
        let (mut ada, mut bob) = (AckTracker::new(), AckTracker::new());
        for round in 0..200 {
            let start = ms(round * 200);
            bob.handle_header(start + ms(40), ada.next_header(start), ignore);
            ada.handle_header(start + ms(130), bob.next_header(start + ms(90)), ignore);
        }
        assert_eq!(ada.rtt(), Some(ms(80)));
        assert_eq!(ada.min_rtt(), Some(ms(80)));
        assert!(
            ada.jitter().is_some_and(|jitter| jitter < ms(1)),
            "{:?}",
            ada.jitter()
        );
    }

    #[test]
    fn one_suspended_side_does_not_spoil_the_round_trip() {
        let (mut ada, mut bob) = (AckTracker::new(), AckTracker::new());
        for round in 0..100 {
            let start = ms(round * 100);
            bob.handle_header(start + ms(25), ada.next_header(start), ignore);
            ada.handle_header(start + ms(50), bob.next_header(start + ms(25)), ignore);
        }
        bob.handle_header(ms(15_000), ada.next_header(ms(10_000)), ignore);
        ada.handle_header(ms(15_025), bob.next_header(ms(15_000)), ignore);
        assert!(ada.rtt().is_some_and(|rtt| rtt < ms(60)), "{:?}", ada.rtt());
    }

    #[test]
    fn hostile_acks_are_ignored() {
        let mut ada = AckTracker::new();
        for _ in 0..10 {
            ada.next_header(ms(0));
        }
        for ack in [100, 9_999, 40_000, 65_535 - 40] {
            let lie = Header {
                seq: 1,
                ack,
                ack_bits: u32::MAX,
                ack_delay_ms: 0,
            };
            ada.handle_header(ms(10), lie, |delivery| {
                panic!("{delivery:?} was never sent")
            });
        }
        // Partly true: only what was sent counts.
        let mut acked = Vec::new();
        let half = Header {
            seq: 2,
            ack: 12,
            ack_bits: u32::MAX,
            ack_delay_ms: 0,
        };
        ada.handle_header(ms(10), half, |delivery| acked.push(delivery));
        assert_eq!(
            acked,
            (0..10).rev().map(Delivery::Acked).collect::<Vec<_>>()
        );
        assert_eq!(ada.newest_acked(), Some(9));
    }

    #[test]
    fn a_lost_datagram_is_told_once_and_may_still_turn_up() {
        let (mut ada, mut bob) = (AckTracker::new(), AckTracker::new());
        bob.handle_header(ms(10), ada.next_header(ms(0)), ignore);
        let straggler = ada.next_header(ms(16));
        let mut told = Vec::new();
        for round in 0..20 {
            let now = ms(33 + round * 16);
            bob.handle_header(now + ms(10), ada.next_header(now), ignore);
            let answer = bob.next_header(now + ms(10));
            ada.handle_header(now + ms(20), answer, |d| told.push(d));
        }
        let of_straggler = |told: &[Delivery]| {
            let seq = straggler.seq;
            told.iter()
                .filter(|d| matches!(d, Delivery::Acked(s) | Delivery::Lost(s) if *s == seq))
                .copied()
                .collect::<Vec<_>>()
        };
        assert_eq!(of_straggler(&told), [Delivery::Lost(1)]);
        assert!(ada.loss_ratio() > 0.0);

        assert_eq!(bob.handle_header(ms(500), straggler, ignore), Received::New);
        let late = bob.next_header(ms(500));
        ada.handle_header(ms(510), late, |d| told.push(d));
        assert_eq!(of_straggler(&told), [Delivery::Lost(1), Delivery::Acked(1)]);
        assert_eq!(ada.loss_ratio(), 0.0, "it was not lost after all");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The tracker against a model that remembers everything, over a link that loses,
        /// duplicates and reorders; long enough to wrap around from a start just before the wrap.
        #[test]
        fn agrees_with_a_model_that_forgets_nothing(
            seed: u64,
            loss in 0.0..0.5f64,
            duplication in 0.0..0.3f64,
            jitter_ms in 0u64..200,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut ada, mut bob) = (AckTracker::new(), AckTracker::new());
            ada.next_seq = 65_000;
            ada.oldest_unsettled = 65_000;

            let mut to_bob: BTreeMap<(u64, u32), Header> = BTreeMap::new();
            let mut to_ada: BTreeMap<(u64, u32), Header> = BTreeMap::new();
            let mut order = 0;
            let mut send = |queue: &mut BTreeMap<_, _>, now: u64, header: Header, rng: &mut fastrand::Rng| {
                let copies = 1 + usize::from(rng.f64() < duplication);
                for _ in 0..copies {
                    if rng.f64() >= loss {
                        order += 1;
                        queue.insert((now + 20 + rng.u64(0..=jitter_ms), order), header);
                    }
                }
            };

            // Keyed by the number of the datagram counted without wrapping.
            let mut sent: u32 = 0;
            let mut arrived: HashSet<u32> = HashSet::new();
            let mut told_acked: HashMap<u32, u32> = HashMap::new();
            let mut told_lost: HashMap<u32, u32> = HashMap::new();
            let mut newest_arrived: Option<u32> = None;
            let unwrapped = |seq: u16, sent: u32| {
                let next = 65_000u32 + sent;
                let back = u32::from((next as u16).wrapping_sub(seq));
                next.wrapping_sub(back).wrapping_sub(65_000)
            };

            for now in (0..30_000u64).step_by(16) {
                while let Some(entry) = to_bob.first_entry().filter(|e| e.key().0 <= now) {
                    let header = entry.remove();
                    let index = unwrapped(header.seq, sent);
                    let expected = match newest_arrived {
                        Some(newest) if index + 32 <= newest => Received::TooOld,
                        _ if arrived.contains(&index) => Received::Duplicate,
                        _ => Received::New,
                    };
                    prop_assert_eq!(bob.handle_header(ms(now), header, ignore), expected);
                    if expected == Received::New {
                        arrived.insert(index);
                        newest_arrived = newest_arrived.max(Some(index));
                    }
                }
                while let Some(entry) = to_ada.first_entry().filter(|e| e.key().0 <= now) {
                    ada.handle_header(ms(now), entry.remove(), |delivery| match delivery {
                        Delivery::Acked(seq) => *told_acked.entry(unwrapped(seq, sent)).or_default() += 1,
                        Delivery::Lost(seq) => *told_lost.entry(unwrapped(seq, sent)).or_default() += 1,
                    });
                }
                send(&mut to_bob, now, ada.next_header(ms(now)), &mut rng);
                sent += 1;
                send(&mut to_ada, now, bob.next_header(ms(now)), &mut rng);
            }

            for (index, &times) in &told_acked {
                prop_assert!(arrived.contains(index), "{index} acknowledged but never arrived");
                prop_assert_eq!(times, 1, "{} acknowledged more than once", index);
            }
            prop_assert!(told_lost.values().all(|&times| times == 1));
            let newest = ada.newest_acked().map(|seq| unwrapped(seq, sent)).unwrap_or(0);
            for index in 0..newest.saturating_sub(32) {
                prop_assert!(
                    told_acked.contains_key(&index) || told_lost.contains_key(&index),
                    "datagram {index} was never settled"
                );
                if told_lost.contains_key(&index) && !told_acked.contains_key(&index) && loss < 0.2 {
                    // Only the acknowledgements' own loss and age may hide an arrival.
                    prop_assert!(!arrived.contains(&index) || jitter_ms > 100);
                }
            }
            if jitter_ms < 10 && loss > 0.0 && told_acked.len() > 100 {
                let rtt = ada.rtt().map_or(0, |rtt| rtt.as_millis());
                prop_assert!((32..100).contains(&rtt), "round trip of 40 to 90 ms measured as {rtt}");
            }
        }
    }
}
