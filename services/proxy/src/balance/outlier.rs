//! Outlier ejection: an endpoint that fails real requests is left alone for a while.

use std::time::Duration;

use tidegate_model::observation::Failure;
use tokio::time::Instant;

/// The first ejection; each further one without much success between is twice as long, up to [`LONGEST`].
/// (Envoy multiplies a base ejection time likewise; its base of 30 s is for a detector that ejects far later.)
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Successes in a row after which earlier ejections are forgotten.
const FORGIVEN_AFTER: u32 = 50;

/// What is held against one endpoint.
#[derive(Debug, Default)]
pub struct Outlier {
    failures_in_row: u32,
    successes_in_row: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
}

impl Outlier {
    /// Whether requests should go elsewhere at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    /// Whether a success would change anything; lets the hot path skip a call.
    pub fn is_spotless(&self) -> bool {
        self.failures_in_row == 0 && self.ejections == 0
    }

    /// A request was answered.
    pub fn succeeded(&mut self) {
        self.failures_in_row = 0;
        self.successes_in_row += 1;
        if self.successes_in_row >= FORGIVEN_AFTER {
            self.ejections = 0;
        }
    }

    /// A request failed at `now`. Returns whether the endpoint is ejected by this.
    pub fn failed(&mut self, failure: &Failure, now: Instant) -> bool {
        self.successes_in_row = 0;
        self.failures_in_row += 1;
        if self.is_ejected(now) || self.failures_in_row < failures_needed(failure) {
            return false;
        }
        let length = FIRST.saturating_mul(1 << self.ejections.min(5)).min(LONGEST);
        self.ejected_until = Some(now + length);
        self.ejections += 1;
        true
    }
}

/// How many failures in a row eject. What says more about the endpoint than about the request needs fewer.
fn failures_needed(failure: &Failure) -> u32 {
    match failure {
        Failure::ConnectRefused | Failure::ConnectTimeout | Failure::ConnectError | Failure::Tls => 1,
        Failure::Reset | Failure::NoAnswer => 3,
        Failure::Status(_) | Failure::BadAnswer => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_ejects_at_once_and_longer_each_time() {
        let (mut outlier, start) = (Outlier::default(), Instant::now());
        assert!(outlier.failed(&Failure::ConnectRefused, start));
        assert!(outlier.is_ejected(start + Duration::from_millis(999)));
        assert!(!outlier.is_ejected(start + Duration::from_secs(1)));
        assert!(outlier.failed(&Failure::ConnectRefused, start + Duration::from_secs(2)));
        assert!(outlier.is_ejected(start + Duration::from_millis(3999)));
    }

    #[test]
    fn a_success_between_failures_keeps_an_endpoint_in() {
        let (mut outlier, now) = (Outlier::default(), Instant::now());
        for _ in 0..10 {
            assert!(!outlier.failed(&Failure::Status(503), now));
            assert!(!outlier.failed(&Failure::Status(503), now));
            outlier.succeeded();
        }
        let ejected = (0..5).map(|_| outlier.failed(&Failure::Status(503), now)).collect::<Vec<_>>();
        assert_eq!(ejected, [false, false, false, false, true]);
    }
}
