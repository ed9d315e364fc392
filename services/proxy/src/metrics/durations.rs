//! Histograms of durations.

use std::time::Duration;

use super::LocalCounter;

/// Upper bounds of duration histograms, in seconds: those recommended by OpenTelemetry's HTTP conventions, and some
/// below, since many nearby responses are faster than the lowest of them.
pub const DURATION_BOUNDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Durations {
    /// One count per bound, not cumulative, and one above all bounds.
    pub buckets: [LocalCounter; DURATION_BOUNDS.len() + 1],
    /// The sum, in microseconds.
    pub sum_us: LocalCounter,
}

/// A duration with its bucket, looked up once for several histograms.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    bucket: usize,
    us: u64,
}

impl From<Duration> for Timing {
    fn from(duration: Duration) -> Timing {
        let seconds = duration.as_secs_f64();
        let bucket =
            DURATION_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(DURATION_BOUNDS.len());
        Timing { bucket, us: duration.as_micros() as u64 }
    }
}

impl Durations {
    /// Adds a duration.
    pub fn record(&self, Timing { bucket, us }: Timing) {
        self.buckets[bucket].add(1);
        self.sum_us.add(us);
    }
}

/// The sum of several duration histograms.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DurationSums {
    /// Counts by bucket, not cumulative; the last is above all bounds.
    pub counts: [u64; DURATION_BOUNDS.len() + 1],
    /// The sum in seconds.
    pub sum: f64,
}

impl DurationSums {
    /// Adds histograms up.
    pub fn of<'a>(all: impl Iterator<Item = &'a Durations>) -> DurationSums {
        let mut sums = DurationSums::default();
        all.for_each(|durations| sums.add(durations));
        sums
    }

    /// Adds one more histogram.
    pub fn add(&mut self, durations: &Durations) {
        for (sum, bucket) in self.counts.iter_mut().zip(&durations.buckets) {
            *sum += bucket.get();
        }
        self.sum += durations.sum_us.get() as f64 / 1e6;
    }

    /// The difference to an earlier sum.
    pub fn since(&self, before: &DurationSums) -> DurationSums {
        let counts = std::array::from_fn(|at| self.counts[at].saturating_sub(before.counts[at]));
        DurationSums { counts, sum: (self.sum - before.sum).max(0.0) }
    }

    /// The 95th percentile, interpolated within its bucket; nothing without durations.
    pub fn p95(&self) -> Option<Duration> {
        let total: u64 = self.counts.iter().sum();
        let rank = total as f64 * 0.95;
        let mut below = 0;
        for (at, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            if (below + count) as f64 >= rank {
                let low = if at == 0 { 0.0 } else { DURATION_BOUNDS[at - 1] };
                // Above all bounds, the last one is the best estimate.
                let high = DURATION_BOUNDS.get(at).copied().unwrap_or(low);
                let part = (rank - below as f64) / *count as f64;
                return Some(Duration::from_secs_f64(low + (high - low) * part));
            }
            below += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_lies_within_its_bucket() {
        let durations = Durations::default();
        assert_eq!(DurationSums::of([&durations].into_iter()).p95(), None);
        for _ in 0..90 {
            durations.record(Duration::from_millis(2).into());
        }
        for _ in 0..10 {
            durations.record(Duration::from_millis(60).into());
        }
        let before = DurationSums::of([&durations].into_iter());
        assert_eq!(before.p95(), Some(Duration::from_micros(62_500)));
        for _ in 0..20 {
            durations.record(Duration::from_micros(100).into());
        }
        let since = DurationSums::of([&durations].into_iter()).since(&before);
        assert_eq!(since.p95(), Some(Duration::from_micros(475)));
    }
}
