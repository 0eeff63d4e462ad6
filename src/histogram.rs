//! Quantiles of many measurements in bounded memory.

/// Buckets per doubling of the value: a bucket is at most 1.6 % wide, so its middle is within 0.8 % of what was recorded.
const BUCKETS_PER_OCTAVE: usize = 1 << MANTISSA_BITS;
/// Leading mantissa bits that tell the buckets of an octave apart.
const MANTISSA_BITS: u32 = 6;
/// Values below 2^-20 (about one millionth) count as zero.
const MIN_EXPONENT: i32 = -20;
/// Values of 2^32 (about four billion) and more count as that.
const MAX_EXPONENT: i32 = 32;
const BUCKETS: usize = (MAX_EXPONENT - MIN_EXPONENT) as usize * BUCKETS_PER_OCTAVE;

/// Counts of values in logarithmic buckets.
///
/// Quantiles are within 1 % of the exact ones, for values from a millionth to four billion; what is smaller counts
/// as zero, and [`max`](Self::max) is exact. Recording costs a few instructions, and memory stays below 27 kB however
/// much is recorded. Buckets are cut from the bits of the floating point number, as in Gil Tene's HdrHistogram.
///
/// ```
/// use bevy_tandem::histogram::Histogram;
///
/// let mut tick_ms = Histogram::default();
/// (1..=100).for_each(|ms| tick_ms.record(f64::from(ms)));
/// assert!((tick_ms.quantile(0.5) - 50.0).abs() < 0.5);
/// assert_eq!(tick_ms.max(), 100.0);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Grows up to [`BUCKETS`], as far as the largest value asks.
    buckets: Vec<u64>,
    zeros: u64,
    count: u64,
    sum: f64,
    max: f64,
}

impl Histogram {
    /// Adds a value. Negative ones and NaN count as zero.
    pub fn record(&mut self, value: f64) {
        self.count += 1;
        match bucket_of(value) {
            None => self.zeros += 1,
            Some(bucket) => {
                if bucket >= self.buckets.len() {
                    self.buckets.resize(bucket + 1, 0);
                }
                self.buckets[bucket] += 1;
            }
        }
        if value > 0.0 {
            self.sum += value;
            self.max = self.max.max(value);
        }
    }

    /// Adds everything that `other` recorded.
    pub fn merge(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.zeros += other.zeros;
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// The value that a share `q` (0 to 1) of the values do not exceed; zero when there are none.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut seen = self.zeros;
        if seen >= rank {
            return 0.0;
        }
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle_of(bucket).min(self.max);
            }
        }
        self.max
    }

    /// The largest value, exactly; zero when there are none.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// The mean, exactly; zero when there are no values.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    /// How many values were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// The bucket of a value; `None` for those that count as zero.
fn bucket_of(value: f64) -> Option<usize> {
    if value.is_nan() || value < f64::from(MIN_EXPONENT).exp2() {
        return None;
    }
    let lowest = ((1023 + MIN_EXPONENT) as u64) << MANTISSA_BITS;
    let bucket = (value.to_bits() >> (f64::MANTISSA_DIGITS - 1 - MANTISSA_BITS)) - lowest;
    Some((bucket as usize).min(BUCKETS - 1))
}

/// The middle of a bucket, which is at most half its width from what was recorded.
fn middle_of(bucket: usize) -> f64 {
    let octave = (bucket / BUCKETS_PER_OCTAVE) as i32 + MIN_EXPONENT;
    let place = ((bucket % BUCKETS_PER_OCTAVE) as f64 + 0.5) / BUCKETS_PER_OCTAVE as f64;
    f64::from(octave).exp2() * (1.0 + place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_one_percent_of_the_exact_ones() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut values: Vec<f64> = (0..10_000)
            .map(|_| (rng.f64() * 30.0 - 13.0).exp2())
            .collect();
        let mut histogram = Histogram::default();
        values.iter().for_each(|&value| histogram.record(value));
        values.sort_by(f64::total_cmp);

        for q in [0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0] {
            let exact = values[(q * 10_000.0) as usize - 1];
            let error = (histogram.quantile(q) - exact).abs() / exact;
            assert!(error <= 0.01, "quantile {q} of {exact} is {error} off");
        }
        assert_eq!(histogram.max(), values[9_999], "the maximum is exact");
        assert_eq!(histogram.count(), 10_000, "nothing is dropped");
    }

    #[test]
    fn odd_values_are_counted_without_harm() {
        let mut histogram = Histogram::default();
        for value in [0.0, -1.0, f64::NAN, f64::MIN_POSITIVE, 1e-9] {
            histogram.record(value);
        }
        assert_eq!(histogram.quantile(1.0), 0.0, "all of these count as zero");
        histogram.record(f64::INFINITY);
        histogram.record(1e300);
        assert_eq!(histogram.count(), 7, "each is counted");
        assert!(histogram.buckets.len() <= BUCKETS, "memory stays bounded");
    }

    #[test]
    fn merging_equals_recording_everything_in_one() {
        let (mut low, mut high, mut both) = <(Histogram, Histogram, Histogram)>::default();
        for value in 0..1_000 {
            let value = f64::from(value);
            if value < 300.0 { &mut low } else { &mut high }.record(value);
            both.record(value);
        }
        low.merge(&high);
        for q in [0.0, 0.2, 0.3, 0.31, 0.9, 1.0] {
            assert_eq!(low.quantile(q), both.quantile(q), "quantile {q}");
        }
        assert_eq!((low.count(), low.max()), (both.count(), both.max()));
        assert_eq!(low.mean(), both.mean());
    }

    #[test]
    fn an_empty_histogram_answers_zero() {
        let histogram = Histogram::default();
        assert_eq!(
            (histogram.quantile(0.5), histogram.max(), histogram.mean()),
            (0.0, 0.0, 0.0)
        );
    }
}
