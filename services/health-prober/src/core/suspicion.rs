//! Suspicions of edges, and how often they trigger probes.

use std::time::Duration;

use tidegate_bus::TraceContext;
use tidegate_model::Timestamp;

/// The suspicion that triggered a probe before it was due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspected {
    /// When the first real request failed.
    pub first_failure_at: Timestamp,
    /// The trace of the suspicion.
    pub trace: Option<TraceContext>,
}

/// The rate limit of probes of one target that suspicions trigger: at most one pair per `gap`. The gap doubles up to the
/// check's interval with each suspicion, and returns to its minimum after a confirmed one or after a quiet time.
#[derive(Debug)]
pub(super) struct Throttle {
    least: Duration,
    most: Duration,
    gap: Duration,
    last: Option<Duration>,
}

/// The quiet time, in longest gaps, after which earlier false suspicions are forgotten.
const FORGET_AFTER: u32 = 10;

impl Throttle {
    pub fn new(least: Duration, interval: Duration) -> Throttle {
        Throttle { least, most: interval.max(least), gap: least, last: None }
    }

    /// Admits a suspicion unless one was admitted within the gap.
    pub fn admit(&mut self, now: Duration) -> bool {
        if let Some(last) = self.last {
            let quiet = now.saturating_sub(last);
            if quiet < self.gap {
                return false;
            }
            if quiet >= self.most * FORGET_AFTER {
                self.gap = self.least;
            }
        }
        self.last = Some(now);
        // `confirm` resets the gap once the probes show a failure.
        self.gap = (self.gap * 2).min(self.most);
        true
    }

    /// Resets the gap: the suspicion was true.
    pub fn confirm(&mut self) {
        self.gap = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The times at which a suspicion is admitted, with one each 10 ms until `until`.
    fn admitted(throttle: &mut Throttle, from: u64, until: u64) -> Vec<u64> {
        (from..until).step_by(10).filter(|now| throttle.admit(ms(*now))).collect()
    }

    #[test]
    fn false_suspicions_are_admitted_ever_more_rarely_up_to_the_interval() {
        let mut throttle = Throttle::new(ms(100), ms(500));
        assert_eq!(admitted(&mut throttle, 0, 2200), [0, 200, 600, 1100, 1600, 2100]);
    }

    #[test]
    fn a_confirmed_suspicion_admits_the_next_one_soon() {
        let mut throttle = Throttle::new(ms(100), ms(500));
        assert_eq!(admitted(&mut throttle, 0, 600), [0, 200]);
        throttle.confirm();
        assert_eq!(admitted(&mut throttle, 600, 700), [600]);
        throttle.confirm();
        assert_eq!(admitted(&mut throttle, 610, 800), [700]);
    }

    #[test]
    fn false_suspicions_are_forgotten() {
        let mut throttle = Throttle::new(ms(100), ms(500));
        admitted(&mut throttle, 0, 3000);
        assert_eq!(admitted(&mut throttle, 9000, 9300), [9000, 9200]);
    }
}
