//! Outlier detection: an endpoint that fails requests is ejected for a while.
//!
//! A failed connection attempt is the endpoint's failure, whatever the request: one ejects it. Other failures may be
//! caused by the request itself, so anyone who knows a failing URL could eject an endpoint for all other clients. Such
//! failures are evaluated by failure percentage, per endpoint and action (a service's default, or one of its routes),
//! like Envoy's failure-percentage and success-rate detectors, and only eject the endpoint from that action. A client
//! network has a limited weight, and failures of a single network only eject an endpoint that responds to nobody else,
//! and only briefly. A failure weighs more if the same request succeeded elsewhere.

use std::{cell::Cell, time::Duration};

use tidegate_model::observation::Failure;
use tokio::time::Instant;

use crate::clients::Network;

/// The first ejection; each further one without much success in between is twice as long, up to [`MAX_EJECTION`]. (Like
/// Envoy's `base_ejection_time`, whose default of 30 s is for a detector that ejects far later.)
const BASE_EJECTION: Duration = Duration::from_secs(1);
const MAX_EJECTION: Duration = Duration::from_secs(30);
/// The longest ejection for failed requests while probes pass.
const MAX_EJECTION_WHILE_UP: Duration = Duration::from_secs(4);
/// Consecutive successes after which earlier ejections no longer count.
const SUCCESSES_TO_RESET: u32 = 50;
/// Counts cover the last one to two of these.
const HALF_WINDOW: Duration = Duration::from_secs(5);
/// How long after a success the failures of a single network are attributed to that network.
const RECENT_SUCCESS: Duration = Duration::from_secs(3);
/// The fewest requests in the window to evaluate (Envoy's `failure_percentage_request_volume`).
const MIN_REQUESTS: u32 = 10;
/// The failure percentage that ejects if the cluster's other endpoints do better (Envoy's
/// `failure_percentage_threshold`).
const FAILURE_THRESHOLD: u32 = 85;
/// The failure percentage that ejects if the other endpoints do much better, and how many networks must see it.
const RELATIVE_THRESHOLD: u32 = 50;
const MIN_NETWORKS: usize = 3;
/// The failure percentage that ejects whatever the other endpoints do, if failed requests succeeded elsewhere.
const ABSOLUTE_THRESHOLD: u32 = 95;
/// How many failed requests must have succeeded elsewhere, or been overtaken there, to rule out the requests as the
/// cause.
const MIN_SUCCEEDED_ELSEWHERE: u32 = 3;
/// The number of buckets for client networks.
const NETWORK_BUCKETS: usize = 8;
/// The maximum weight of one network, in requests.
const NETWORK_WEIGHT: u32 = 10;

/// The current ejection of an endpoint, and how many there were.
#[derive(Debug, Default)]
pub struct Ejection {
    until: Cell<Option<Instant>>,
    count: Cell<u32>,
    successes_in_row: Cell<u32>,
}

impl Ejection {
    /// Whether the endpoint is ejected at `now`.
    pub fn is_active(&self, now: Instant) -> bool {
        self.until.get().is_some_and(|until| now < until)
    }

    /// Records a failed connection attempt. Returns whether this ejects the endpoint.
    pub fn record_connect_failure(&self, now: Instant) -> bool {
        self.begin(now, MAX_EJECTION)
    }

    /// Records a response.
    pub fn record_response(&self) {
        if self.count.get() > 0 {
            self.successes_in_row.set(self.successes_in_row.get() + 1);
            if self.successes_in_row.get() >= SUCCESSES_TO_RESET {
                self.count.set(0);
                self.successes_in_row.set(0);
            }
        }
    }

    /// Begins an ejection of at most `longest`, unless one is active. Returns whether it began.
    fn begin(&self, now: Instant, longest: Duration) -> bool {
        self.successes_in_row.set(0);
        if self.is_active(now) {
            return false;
        }
        let length = BASE_EJECTION.saturating_mul(1 << self.count.get().min(5)).min(longest);
        self.until.set(Some(now + length));
        self.count.set(self.count.get() + 1);
        true
    }

    /// Ends the ejection and resets the count.
    pub fn clear(&self) {
        self.until.set(None);
        self.count.set(0);
        self.successes_in_row.set(0);
    }
}

/// Whether connecting failed, which is the endpoint's failure whatever the request.
pub fn is_connect_failure(failure: &Failure) -> bool {
    match failure {
        Failure::ConnectRefused | Failure::ConnectTimeout | Failure::ConnectError | Failure::Tls => true,
        Failure::Reset | Failure::NoResponse | Failure::Status(_) | Failure::BadResponse => false,
    }
}

/// The outlier detector of one action at one endpoint, in one worker.
#[derive(Debug, Default)]
pub struct OutlierDetector {
    ejection: Ejection,
    succeeded_at: Cell<Option<Instant>>,
    began: Cell<Option<Instant>>,
    current: WindowCounts,
    previous: WindowCounts,
}

/// Requests and failures by client network.
#[derive(Debug, Default)]
struct WindowCounts {
    requests: [Cell<u32>; NETWORK_BUCKETS],
    failures: [Cell<u32>; NETWORK_BUCKETS],
    succeeded_elsewhere: Cell<u32>,
}

/// The failure statistics of a detector's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureStats {
    /// The number of requests.
    pub requests: u32,
    /// The failure percentage, with the weight of each network limited.
    pub failure_percentage: u32,
    /// The number of networks with failures, as far as buckets distinguish them.
    failing_networks: usize,
    /// Failed requests that succeeded elsewhere.
    succeeded_elsewhere: u32,
}

impl OutlierDetector {
    /// Whether the endpoint is ejected from the action at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejection.is_active(now)
    }

    /// Records a success of a client in `network`.
    pub fn record_success(&self, network: Network, now: Instant) {
        self.rotate_window(now);
        increment(&self.current.requests[network.bucket(NETWORK_BUCKETS)]);
        self.succeeded_at.set(Some(now));
        self.ejection.record_response();
    }

    /// Records a failure of a client in `network`.
    pub fn record_failure(&self, network: Network, now: Instant) {
        self.rotate_window(now);
        let bucket = network.bucket(NETWORK_BUCKETS);
        increment(&self.current.requests[bucket]);
        increment(&self.current.failures[bucket]);
    }

    /// Records that a failed request succeeded elsewhere.
    pub fn record_success_elsewhere(&self) {
        increment(&self.current.succeeded_elsewhere);
    }

    /// The statistics at `now`.
    pub fn stats(&self, now: Instant) -> FailureStats {
        self.rotate_window(now);
        let sum = |of: fn(&WindowCounts) -> &[Cell<u32>; NETWORK_BUCKETS]| -> [u32; NETWORK_BUCKETS] {
            std::array::from_fn(|bucket| of(&self.current)[bucket].get() + of(&self.previous)[bucket].get())
        };
        let (requests, failures) = (sum(|counts| &counts.requests), sum(|counts| &counts.failures));
        FailureStats {
            requests: requests.iter().sum(),
            failure_percentage: failure_percentage(&requests, &failures),
            failing_networks: failures.iter().filter(|count| **count > 0).count(),
            succeeded_elsewhere: self.current.succeeded_elsewhere.get()
                + self.previous.succeeded_elsewhere.get(),
        }
    }

    /// Ejects the endpoint from the action if it is an outlier among `others` of its cluster. `may_eject` is whether
    /// the cluster's limit allows another ejection, `is_up` whether probes pass. Returns whether it was ejected.
    pub fn eject_if_outlier(
        &self,
        others: &[FailureStats],
        may_eject: bool,
        is_up: bool,
        now: Instant,
    ) -> bool {
        let stats = self.stats(now);
        if stats.requests < MIN_REQUESTS || !stats.is_outlier(others, may_eject) {
            return false;
        }
        let is_of_one_network = stats.failing_networks < 2;
        if is_of_one_network && self.succeeded_at.get().is_some_and(|at| now < at + RECENT_SUCCESS) {
            return false;
        }
        let longest = match (is_up, is_of_one_network) {
            (true, true) => BASE_EJECTION,
            (true, false) => MAX_EJECTION_WHILE_UP,
            (false, _) => MAX_EJECTION,
        };
        let ejected = self.ejection.begin(now, longest);
        if ejected {
            // After the ejection only new requests count.
            self.current.clear();
            self.previous.clear();
        }
        ejected
    }

    /// Ends the ejection and clears all counts, because probes have seen the endpoint recover.
    pub fn clear(&self) {
        self.ejection.clear();
        self.current.clear();
        self.previous.clear();
    }

    fn rotate_window(&self, now: Instant) {
        let began = self.began.get().unwrap_or(now);
        let past = now.saturating_duration_since(began);
        if past < HALF_WINDOW && self.began.get().is_some() {
            return;
        }
        if past < HALF_WINDOW * 2 {
            self.previous.take_from(&self.current);
        } else {
            self.previous.clear();
        }
        self.current.clear();
        self.began.set(Some(now));
    }
}

impl WindowCounts {
    fn clear(&self) {
        self.requests
            .iter()
            .chain(&self.failures)
            .chain([&self.succeeded_elsewhere])
            .for_each(|count| count.set(0));
    }

    fn take_from(&self, other: &WindowCounts) {
        let own = self.requests.iter().chain(&self.failures).chain([&self.succeeded_elsewhere]);
        let others = other.requests.iter().chain(&other.failures).chain([&other.succeeded_elsewhere]);
        own.zip(others).for_each(|(own, other)| own.set(other.get()));
    }
}

impl FailureStats {
    fn is_outlier(&self, others: &[FailureStats], may_eject: bool) -> bool {
        // They succeeded elsewhere, so the requests are not the cause, and there is an alternative.
        if self.failure_percentage >= ABSOLUTE_THRESHOLD
            && self.succeeded_elsewhere >= MIN_SUCCEEDED_ELSEWHERE
        {
            return true;
        }
        let judged: Vec<u32> = others
            .iter()
            .filter(|stats| stats.requests >= MIN_REQUESTS)
            .map(|stats| stats.failure_percentage)
            .collect();
        let do_better = |times: u32| {
            !judged.is_empty() && judged.iter().all(|other| other * times <= self.failure_percentage)
        };
        may_eject
            && (self.failure_percentage >= FAILURE_THRESHOLD && do_better(2)
                || self.failure_percentage >= RELATIVE_THRESHOLD
                    && self.failing_networks >= MIN_NETWORKS
                    && judged.len() >= 2
                    && do_better(4))
    }
}

/// The failure percentage, in which no network weighs more than [`NETWORK_WEIGHT`] requests.
fn failure_percentage(requests: &[u32; NETWORK_BUCKETS], failures: &[u32; NETWORK_BUCKETS]) -> u32 {
    let (mut weights, mut failed) = (0_u64, 0_u64);
    for (requests, failures) in requests.iter().zip(failures).filter(|(requests, _)| **requests > 0) {
        let weight = u64::from((*requests).min(NETWORK_WEIGHT));
        weights += weight * 1000;
        failed += weight * 1000 * u64::from(*failures) / u64::from(*requests);
    }
    (failed * 100).checked_div(weights).unwrap_or(0) as u32
}

fn increment(count: &Cell<u32>) {
    count.set(count.get().saturating_add(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u8) -> Network {
        Network::of([192, 0, number, 1].into())
    }

    /// A detector with these requests: network, successes, failures.
    fn detector(counts: &[(u8, u32, u32)], now: Instant) -> OutlierDetector {
        let detector = OutlierDetector::default();
        for (number, answered, failed) in counts {
            (0..*answered).for_each(|_| detector.record_success(network(*number), now));
            (0..*failed).for_each(|_| detector.record_failure(network(*number), now));
        }
        detector
    }

    #[test]
    fn a_refused_connection_ejects_at_once_and_longer_each_time() {
        let (ejection, start) = (Ejection::default(), Instant::now());
        assert!(ejection.record_connect_failure(start));
        assert!(ejection.is_active(start + Duration::from_millis(999)));
        assert!(!ejection.is_active(start + Duration::from_secs(1)));
        assert!(ejection.record_connect_failure(start + Duration::from_secs(2)));
        assert!(ejection.is_active(start + Duration::from_millis(3999)));
    }

    #[test]
    fn one_client_whose_requests_fail_everywhere_ejects_nothing() {
        let now = Instant::now();
        // Alone, beside an endpoint at which they fail as well.
        let (own, other) = (detector(&[(1, 0, 1000)], now), detector(&[(1, 0, 1000)], now));
        assert!(!own.eject_if_outlier(&[other.stats(now)], true, true, now));
        assert!(!own.eject_if_outlier(&[], true, true, now));
        // Beside others who are served, even if only the client's own were served elsewhere.
        let own = detector(&[(1, 0, 1000), (2, 20, 0), (3, 20, 0)], now);
        (0..1000).for_each(|_| own.record_success_elsewhere());
        assert!(!own.eject_if_outlier(&[detector(&[(2, 50, 0)], now).stats(now)], true, true, now));
    }

    #[test]
    fn an_endpoint_that_fails_what_others_serve_is_ejected() {
        let now = Instant::now();
        let alone = detector(&[(1, 0, 10)], now);
        assert!(!alone.eject_if_outlier(&[], true, true, now), "nobody else has served it");
        (0..3).for_each(|_| alone.record_success_elsewhere());
        assert!(
            alone.eject_if_outlier(&[], false, true, now),
            "the limit does not keep a cluster that serves nothing"
        );

        let beside = detector(&(1..=8).map(|network| (network, 1, 20)).collect::<Vec<_>>(), now);
        assert!(
            !beside.eject_if_outlier(&[detector(&[(1, 20, 0)], now).stats(now)], false, true, now),
            "the limit"
        );
        assert!(beside.eject_if_outlier(&[detector(&[(1, 20, 0)], now).stats(now)], true, true, now));
    }

    #[test]
    fn an_endpoint_that_fails_half_is_ejected_where_several_networks_see_it_and_others_do_well() {
        let now = Instant::now();
        let well = [detector(&[(1, 30, 1)], now).stats(now), detector(&[(2, 30, 0)], now).stats(now)];
        // So many that they cannot all be taken for fewer than three.
        let several = (1..=20).map(|network| (network, 5, 6)).collect::<Vec<_>>();
        assert!(detector(&several, now).eject_if_outlier(&well, true, true, now));
        assert!(!detector(&[(1, 15, 18)], now).eject_if_outlier(&well, true, true, now), "one network");
        assert!(!detector(&several, now).eject_if_outlier(&well[..1], true, true, now), "one other");
    }

    #[test]
    fn passing_probes_keep_ejections_short_and_those_for_one_network_shorter() {
        let mut now = Instant::now();
        for (is_up, networks, longest) in [
            (true, 1, BASE_EJECTION),
            (true, 10, MAX_EJECTION_WHILE_UP),
            (false, 1, MAX_EJECTION),
            (false, 10, MAX_EJECTION),
        ] {
            let detector = OutlierDetector::default();
            let mut eject = || {
                now += MAX_EJECTION;
                (0..10).for_each(|number| detector.record_failure(network(1 + number % networks), now));
                (0..3).for_each(|_| detector.record_success_elsewhere());
                assert!(detector.eject_if_outlier(&[], true, is_up, now));
            };
            (0..7).for_each(|_| eject());
            assert!(detector.is_ejected(now + longest - Duration::from_millis(1)));
            assert!(!detector.is_ejected(now + longest));
        }
    }

    #[test]
    fn what_fails_for_one_network_alone_ejects_nothing_that_answered_a_moment_ago() {
        let start = Instant::now();
        let detector = detector(&[(1, 1, 400)], start);
        (0..400).for_each(|_| detector.record_success_elsewhere());
        assert!(!detector.eject_if_outlier(
            &[],
            true,
            true,
            start + RECENT_SUCCESS - Duration::from_millis(1)
        ));
        assert!(detector.eject_if_outlier(&[], true, true, start + RECENT_SUCCESS));
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let start = Instant::now();
        let detector = detector(&[(1, 0, 100)], start);
        assert_eq!(detector.stats(start + Duration::from_secs(9)).requests, 100);
        assert_eq!(detector.stats(start + Duration::from_secs(19)).requests, 0);
    }
}
