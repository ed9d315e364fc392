//! The recent response times of a service.

use std::{cell::Cell, time::Duration};

/// Buckets grow by an eighth of a power of two: 8.6 % apart at most, 1 µs to over a minute.
const BUCKETS: usize = 8 * 27;
/// The number of samples after which older ones count half.
const HALF_LIFE: u32 = 1024;
/// The fewest samples for a percentile.
const ENOUGH: u32 = 20;

/// A decaying histogram of response times: every [`HALF_LIFE`] samples all counts are halved.
pub struct LatencyHistogram {
    counts: Box<[Cell<u32>; BUCKETS]>,
    total: Cell<u32>,
    since_halved: Cell<u32>,
    p95: Cell<Option<Duration>>,
}

impl LatencyHistogram {
    /// An empty histogram.
    pub fn new() -> LatencyHistogram {
        LatencyHistogram {
            counts: Box::new(std::array::from_fn(|_| Cell::new(0))),
            total: Cell::new(0),
            since_halved: Cell::new(0),
            p95: Cell::new(None),
        }
    }

    /// Adds a time.
    pub fn record(&self, time: Duration) {
        let bucket = &self.counts[bucket_of(time)];
        bucket.set(bucket.get() + 1);
        self.total.set(self.total.get() + 1);
        self.since_halved.set(self.since_halved.get() + 1);
        if self.since_halved.get() >= HALF_LIFE {
            self.since_halved.set(0);
            self.total.set(self.counts.iter().map(|count| count.replace(count.get() / 2) / 2).sum());
        }
        // A percentile costs a walk over the buckets, so it is not computed for each sample.
        if self.since_halved.get().is_multiple_of(64) || self.total.get() <= ENOUGH {
            self.p95.set(self.percentile(95));
        }
    }

    /// The recent 95th percentile, within 9 %; nothing until there are enough samples.
    pub fn p95(&self) -> Option<Duration> {
        self.p95.get()
    }

    fn percentile(&self, percent: u32) -> Option<Duration> {
        let total = self.total.get();
        if total < ENOUGH {
            return None;
        }
        let wanted = (u64::from(total) * u64::from(percent)).div_ceil(100);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += u64::from(count.get());
            seen >= wanted
        })?;
        Some(upper_bound(bucket))
    }
}

fn bucket_of(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let power = micros.ilog2();
    // The three bits below the leading one pick the eighth.
    let eighth = if power >= 3 { (micros >> (power - 3)) & 7 } else { (micros << (3 - power)) & 7 };
    (power as usize * 8 + eighth as usize).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> Duration {
    let (power, eighth) = (bucket / 8, bucket % 8);
    let micros = (1_u64 << power) * (8 + eighth as u64 + 1) / 8;
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn old_times_are_forgotten() {
        let latency = LatencyHistogram::new();
        assert_eq!(latency.p95(), None);
        (0..2000).for_each(|_| latency.record(Duration::from_millis(200)));
        (0..16_000).for_each(|_| latency.record(Duration::from_millis(2)));
        assert!(latency.p95().unwrap() < Duration::from_millis(3));
    }

    proptest! {
        #[test]
        fn the_percentile_is_near_the_exact_one(mut micros in proptest::collection::vec(1_u64..60_000_000, 64..500)) {
            let latency = LatencyHistogram::new();
            micros.iter().for_each(|micro| latency.record(Duration::from_micros(*micro)));
            micros.sort_unstable();
            let exact = micros[(micros.len() * 95).div_ceil(100) - 1];
            let told = latency.percentile(95).unwrap().as_micros() as u64;
            prop_assert!(told >= exact && told <= exact + exact / 8 + 1, "{told} for {exact}");
        }
    }
}
