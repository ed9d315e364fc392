//! Outlier detection: an endpoint that fails real requests is left alone for a while.
//!
//! A connection that cannot be made is the endpoint's failure, whoever asked: one ejects it. Anything else that goes wrong
//! may be the request's own doing, so that anybody who knows a URL that fails could take an endpoint away from all others.
//! Such failures are judged by share, for each endpoint and action (a service's default, or one of its routes) apart, as by
//! Envoy's failure-percentage and success-rate detectors, and only eject from the action that failed. A network of clients
//! counts for a part of what is counted at most, and what fails for one network alone ejects only an endpoint that answers
//! nobody, for a moment. A failure says more when the same request was served elsewhere.

use std::{cell::Cell, time::Duration};

use tidegate_model::observation::Failure;
use tokio::time::Instant;

use crate::clients::Network;

/// The first ejection; each further one without much success between is twice as long, up to [`LONGEST`].
/// (Envoy multiplies a base ejection time likewise; its base of 30 s is for a detector that ejects far later.)
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// The longest ejection for failed requests while probes pass: they see what the endpoint is worth.
const LONGEST_WHILE_UP: Duration = Duration::from_secs(4);
/// Successes in a row after which earlier ejections are forgotten.
const FORGIVEN_AFTER: u32 = 50;
/// What is counted is of the last one to two of these.
const HALF_WINDOW: Duration = Duration::from_secs(5);
/// For how long a response says that what one network alone sees fail is that network's doing.
const ANSWERED: Duration = Duration::from_secs(3);
/// The least requests in the window to judge by.
const LEAST_REQUESTS: u32 = 10;
/// The share of failures that ejects by itself, in percent (Envoy's `failure_percentage_threshold`).
const FAILING: u32 = 85;
/// The share that ejects where the others of the cluster do much better, and from how many networks it must come.
const WORSE: u32 = 50;
const LEAST_NETWORKS: usize = 3;
/// The share that ejects whatever the cluster's other endpoints do, where what failed was served elsewhere.
const HOPELESS: u32 = 95;
/// Failures that were served elsewhere, or overtaken there, before they say that it is not the request.
const LEAST_CONTRASTED: u32 = 3;
/// Networks are told apart by so many places.
const PLACES: usize = 8;
/// The most requests of one network that count.
const NETWORK_WEIGHT: u32 = 10;

/// How long an endpoint is left alone, and why longer the next time.
#[derive(Debug, Default)]
pub struct Ejection {
    until: Cell<Option<Instant>>,
    count: Cell<u32>,
    successes_in_row: Cell<u32>,
}

impl Ejection {
    /// Whether requests should go elsewhere at `now`.
    pub fn is_in_force(&self, now: Instant) -> bool {
        self.until.get().is_some_and(|until| now < until)
    }

    /// A connection could not be made at `now`. Returns whether the endpoint is ejected by this.
    pub fn record_connect_failure(&self, now: Instant) -> bool {
        self.begin(now, LONGEST)
    }

    /// A request was answered.
    pub fn record_response(&self) {
        if self.count.get() > 0 {
            self.successes_in_row.set(self.successes_in_row.get() + 1);
            if self.successes_in_row.get() >= FORGIVEN_AFTER {
                self.count.set(0);
                self.successes_in_row.set(0);
            }
        }
    }

    /// Begins, unless it is in force; `longest` bounds it. Returns whether it began.
    fn begin(&self, now: Instant, longest: Duration) -> bool {
        self.successes_in_row.set(0);
        if self.is_in_force(now) {
            return false;
        }
        let length = FIRST.saturating_mul(1 << self.count.get().min(5)).min(longest);
        self.until.set(Some(now + length));
        self.count.set(self.count.get() + 1);
        true
    }

    /// Ends, and is forgotten.
    pub fn clear(&self) {
        self.until.set(None);
        self.count.set(0);
        self.successes_in_row.set(0);
    }
}

/// Whether a failure is the endpoint's, whatever was asked.
pub fn is_of_endpoint(failure: &Failure) -> bool {
    match failure {
        Failure::ConnectRefused | Failure::ConnectTimeout | Failure::ConnectError | Failure::Tls => true,
        Failure::Reset | Failure::NoAnswer | Failure::Status(_) | Failure::BadAnswer => false,
    }
}

/// How one action's requests fare at one endpoint; of one worker.
#[derive(Debug, Default)]
pub struct Tally {
    ejection: Ejection,
    answered_at: Cell<Option<Instant>>,
    began: Cell<Option<Instant>>,
    now: Counts,
    before: Counts,
}

/// Requests and failures by the clients' networks.
#[derive(Debug, Default)]
struct Counts {
    requests: [Cell<u32>; PLACES],
    failures: [Cell<u32>; PLACES],
    contrasted: Cell<u32>,
}

/// What a tally comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fare {
    /// Requests.
    pub requests: u32,
    /// The share of failures in percent, no network counting for more than its part.
    pub failed_percent: u32,
    /// Networks in which requests failed, as far as they can be told apart.
    failing_networks: usize,
    /// Failures that were served elsewhere.
    contrasted: u32,
}

impl Tally {
    /// Whether the action's requests should go elsewhere at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejection.is_in_force(now)
    }

    /// A request of a client in this network was answered.
    pub fn succeeded(&self, network: Network, now: Instant) {
        self.rotate(now);
        bump(&self.now.requests[network.place(PLACES)]);
        self.answered_at.set(Some(now));
        self.ejection.record_response();
    }

    /// A request of a client in this network failed.
    pub fn failed(&self, network: Network, now: Instant) {
        self.rotate(now);
        let place = network.place(PLACES);
        bump(&self.now.requests[place]);
        bump(&self.now.failures[place]);
    }

    /// A request that failed was served elsewhere: it was not to blame.
    pub fn contrasted(&self) {
        bump(&self.now.contrasted);
    }

    /// What it comes to.
    pub fn fare(&self, now: Instant) -> Fare {
        self.rotate(now);
        let sum = |of: fn(&Counts) -> &[Cell<u32>; PLACES]| -> [u32; PLACES] {
            std::array::from_fn(|place| of(&self.now)[place].get() + of(&self.before)[place].get())
        };
        let (requests, failures) = (sum(|counts| &counts.requests), sum(|counts| &counts.failures));
        Fare {
            requests: requests.iter().sum(),
            failed_percent: failed_percent(&requests, &failures),
            failing_networks: failures.iter().filter(|count| **count > 0).count(),
            contrasted: self.now.contrasted.get() + self.before.contrasted.get(),
        }
    }

    /// Ejects the endpoint from the action if it fares badly enough, beside `others` of its cluster. `may_eject` says whether
    /// the cluster's limit allows another ejection, `is_up` whether probes pass. Returns whether it did.
    pub fn judge(&self, others: &[Fare], may_eject: bool, is_up: bool, now: Instant) -> bool {
        let fare = self.fare(now);
        if fare.requests < LEAST_REQUESTS || !fare.is_outlier(others, may_eject) {
            return false;
        }
        let is_of_one_network = fare.failing_networks < 2;
        if is_of_one_network && self.answered_at.get().is_some_and(|at| now < at + ANSWERED) {
            return false;
        }
        let longest = match (is_up, is_of_one_network) {
            (true, true) => FIRST,
            (true, false) => LONGEST_WHILE_UP,
            (false, _) => LONGEST,
        };
        let ejected = self.ejection.begin(now, longest);
        if ejected {
            // Whoever comes back is judged by what comes then.
            self.now.clear();
            self.before.clear();
        }
        ejected
    }

    /// Probes have seen it serve since it failed: what was held against it is answered.
    pub fn clear(&self) {
        self.ejection.clear();
        self.now.clear();
        self.before.clear();
    }

    fn rotate(&self, now: Instant) {
        let began = self.began.get().unwrap_or(now);
        let past = now.saturating_duration_since(began);
        if past < HALF_WINDOW && self.began.get().is_some() {
            return;
        }
        if past < HALF_WINDOW * 2 {
            self.before.take_from(&self.now);
        } else {
            self.before.clear();
        }
        self.now.clear();
        self.began.set(Some(now));
    }
}

impl Counts {
    fn clear(&self) {
        self.requests.iter().chain(&self.failures).chain([&self.contrasted]).for_each(|count| count.set(0));
    }

    fn take_from(&self, other: &Counts) {
        let own = self.requests.iter().chain(&self.failures).chain([&self.contrasted]);
        let others = other.requests.iter().chain(&other.failures).chain([&other.contrasted]);
        own.zip(others).for_each(|(own, other)| own.set(other.get()));
    }
}

impl Fare {
    fn is_outlier(&self, others: &[Fare], may_eject: bool) -> bool {
        // Served elsewhere: the requests are not to blame, and there is somewhere to go.
        if self.failed_percent >= HOPELESS && self.contrasted >= LEAST_CONTRASTED {
            return true;
        }
        let judged: Vec<u32> = others
            .iter()
            .filter(|fare| fare.requests >= LEAST_REQUESTS)
            .map(|fare| fare.failed_percent)
            .collect();
        let do_better = |times: u32| {
            !judged.is_empty() && judged.iter().all(|other| other * times <= self.failed_percent)
        };
        may_eject
            && (self.failed_percent >= FAILING && do_better(2)
                || self.failed_percent >= WORSE
                    && self.failing_networks >= LEAST_NETWORKS
                    && judged.len() >= 2
                    && do_better(4))
    }
}

/// The share of failures in percent, in which no network counts for more than [`NETWORK_WEIGHT`] requests.
fn failed_percent(requests: &[u32; PLACES], failures: &[u32; PLACES]) -> u32 {
    let (mut weights, mut failed) = (0_u64, 0_u64);
    for (requests, failures) in requests.iter().zip(failures).filter(|(requests, _)| **requests > 0) {
        let weight = u64::from((*requests).min(NETWORK_WEIGHT));
        weights += weight * 1000;
        failed += weight * 1000 * u64::from(*failures) / u64::from(*requests);
    }
    (failed * 100).checked_div(weights).unwrap_or(0) as u32
}

fn bump(count: &Cell<u32>) {
    count.set(count.get().saturating_add(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u8) -> Network {
        Network::of([192, 0, number, 1].into())
    }

    /// A tally of requests by network: how many were answered, how many failed.
    fn tally(counts: &[(u8, u32, u32)], now: Instant) -> Tally {
        let tally = Tally::default();
        for (number, answered, failed) in counts {
            (0..*answered).for_each(|_| tally.succeeded(network(*number), now));
            (0..*failed).for_each(|_| tally.failed(network(*number), now));
        }
        tally
    }

    #[test]
    fn a_refused_connection_ejects_at_once_and_longer_each_time() {
        let (ejection, start) = (Ejection::default(), Instant::now());
        assert!(ejection.record_connect_failure(start));
        assert!(ejection.is_in_force(start + Duration::from_millis(999)));
        assert!(!ejection.is_in_force(start + Duration::from_secs(1)));
        assert!(ejection.record_connect_failure(start + Duration::from_secs(2)));
        assert!(ejection.is_in_force(start + Duration::from_millis(3999)));
    }

    #[test]
    fn one_client_whose_requests_fail_everywhere_ejects_nothing() {
        let now = Instant::now();
        // Alone, beside an endpoint at which they fail as well.
        let (own, other) = (tally(&[(1, 0, 1000)], now), tally(&[(1, 0, 1000)], now));
        assert!(!own.judge(&[other.fare(now)], true, true, now));
        assert!(!own.judge(&[], true, true, now));
        // Beside others who are served, even if only the client's own were served elsewhere.
        let own = tally(&[(1, 0, 1000), (2, 20, 0), (3, 20, 0)], now);
        (0..1000).for_each(|_| own.contrasted());
        assert!(!own.judge(&[tally(&[(2, 50, 0)], now).fare(now)], true, true, now));
    }

    #[test]
    fn an_endpoint_that_fails_what_others_serve_is_ejected() {
        let now = Instant::now();
        let alone = tally(&[(1, 0, 10)], now);
        assert!(!alone.judge(&[], true, true, now), "nobody else has served it");
        (0..3).for_each(|_| alone.contrasted());
        assert!(alone.judge(&[], false, true, now), "the limit does not keep a cluster that serves nothing");

        let beside = tally(&(1..=8).map(|network| (network, 1, 20)).collect::<Vec<_>>(), now);
        assert!(!beside.judge(&[tally(&[(1, 20, 0)], now).fare(now)], false, true, now), "the limit");
        assert!(beside.judge(&[tally(&[(1, 20, 0)], now).fare(now)], true, true, now));
    }

    #[test]
    fn an_endpoint_that_fails_half_is_ejected_where_several_networks_see_it_and_others_do_well() {
        let now = Instant::now();
        let well = [tally(&[(1, 30, 1)], now).fare(now), tally(&[(2, 30, 0)], now).fare(now)];
        // So many that they cannot all be taken for fewer than three.
        let several = (1..=20).map(|network| (network, 5, 6)).collect::<Vec<_>>();
        assert!(tally(&several, now).judge(&well, true, true, now));
        assert!(!tally(&[(1, 15, 18)], now).judge(&well, true, true, now), "one network");
        assert!(!tally(&several, now).judge(&well[..1], true, true, now), "one other");
    }

    #[test]
    fn passing_probes_keep_ejections_short_and_those_for_one_network_shorter() {
        let mut now = Instant::now();
        for (is_up, networks, longest) in
            [(true, 1, FIRST), (true, 10, LONGEST_WHILE_UP), (false, 1, LONGEST), (false, 10, LONGEST)]
        {
            let tally = Tally::default();
            let mut eject = || {
                now += LONGEST;
                (0..10).for_each(|number| tally.failed(network(1 + number % networks), now));
                (0..3).for_each(|_| tally.contrasted());
                assert!(tally.judge(&[], true, is_up, now));
            };
            (0..7).for_each(|_| eject());
            assert!(tally.is_ejected(now + longest - Duration::from_millis(1)));
            assert!(!tally.is_ejected(now + longest));
        }
    }

    #[test]
    fn what_fails_for_one_network_alone_ejects_nothing_that_answered_a_moment_ago() {
        let start = Instant::now();
        let tally = tally(&[(1, 1, 400)], start);
        (0..400).for_each(|_| tally.contrasted());
        assert!(!tally.judge(&[], true, true, start + ANSWERED - Duration::from_millis(1)));
        assert!(tally.judge(&[], true, true, start + ANSWERED));
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let start = Instant::now();
        let tally = tally(&[(1, 0, 100)], start);
        assert_eq!(tally.fare(start + Duration::from_secs(9)).requests, 100);
        assert_eq!(tally.fare(start + Duration::from_secs(19)).requests, 0);
    }
}
