//! Tells probers which endpoints failed real requests: seldom enough not to disturb, soon enough to matter.
//!
//! Suspicions of an endpoint grow rarer while nothing comes of them. Once the table has it down they have done their
//! work: nothing is told until it is up again, and then the next failure is told at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tidegate_bus::{Bus, subjects};
use tidegate_model::{
    ClusterName, Timestamp,
    fleet::Address,
    health::CheckId,
    report::Suspicion,
    routes::{HealthEntry, RouteEntry, RouteKey},
    verdict::Verdict,
};
use tokio::sync::mpsc;

use crate::context::{EdgeIdentity, Suspect};

/// The shortest time between two suspicions of one endpoint.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest, reached when suspicions go on and on.
const LONGEST: Duration = Duration::from_secs(5);
/// The time without a failure after which an endpoint's earlier suspicions are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// Decides which failures become suspicions.
#[derive(Debug, Default)]
pub struct Limiter {
    endpoints: HashMap<(ClusterName, Address), Told>,
    /// For each check of a cluster, the endpoints that the table has down.
    down: BTreeMap<(ClusterName, CheckId), BTreeSet<Address>>,
}

/// What the table says and what fails, on their way to the one limiter. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Suspicions(Arc<Mutex<Limiter>>);

impl Suspicions {
    /// Takes note of entries of the table that are new, changed, or (nothing) gone.
    pub fn know<'a>(&self, entries: impl Iterator<Item = (&'a RouteKey, Option<&'a RouteEntry>)>) {
        let mut limiter = self.limiter();
        for (key, entry) in entries {
            let RouteKey::Health(cluster, check) = key else { continue };
            match entry {
                Some(RouteEntry::Health(health)) => limiter.know(cluster, *check, health),
                _ => limiter.unknow(cluster, *check),
            }
        }
    }

    fn limiter(&self) -> std::sync::MutexGuard<'_, Limiter> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Told {
    last: Timestamp,
    last_failure: Timestamp,
    pause: Duration,
    /// The first failure that no suspicion has told of.
    untold: Option<Timestamp>,
}

impl Limiter {
    /// A failure at an endpoint. Returns since when it fails, when that should be told now.
    pub fn failed(&mut self, cluster: &ClusterName, endpoint: &Address, at: Timestamp) -> Option<Timestamp> {
        if self.is_down(cluster, endpoint) {
            return None;
        }
        let key = (cluster.clone(), endpoint.clone());
        let Some(told) = self.endpoints.get_mut(&key) else {
            self.endpoints.insert(key, Told { last: at, last_failure: at, pause: SHORTEST, untold: None });
            return Some(at);
        };
        if at.since(told.last_failure) >= FORGOTTEN_AFTER {
            told.pause = Duration::ZERO;
        }
        told.last_failure = at;
        if at.since(told.last) < told.pause {
            told.untold.get_or_insert(at);
            return None;
        }
        told.last = at;
        told.pause = (told.pause * 2).clamp(SHORTEST, LONGEST);
        Some(told.untold.take().unwrap_or(at))
    }

    /// The table's word on a cluster, for one check.
    fn know(&mut self, cluster: &ClusterName, check: CheckId, health: &HealthEntry) {
        let down = health
            .endpoints
            .iter()
            .filter(|endpoint| matches!(endpoint.verdict, Verdict::Down | Verdict::PathDown))
            .map(|endpoint| endpoint.address.clone())
            .collect();
        self.down.insert((cluster.clone(), check), down);
        for endpoint in &health.endpoints {
            if self.is_down(cluster, &endpoint.address) {
                self.endpoints.remove(&(cluster.clone(), endpoint.address.clone()));
            }
        }
    }

    fn unknow(&mut self, cluster: &ClusterName, check: CheckId) {
        self.down.remove(&(cluster.clone(), check));
    }

    /// Whether every check of the cluster has the endpoint down.
    fn is_down(&self, cluster: &ClusterName, endpoint: &Address) -> bool {
        let mut checks = self
            .down
            .range((cluster.clone(), CheckId(0))..=(cluster.clone(), CheckId(u64::MAX)))
            .map(|(_, down)| down.contains(endpoint))
            .peekable();
        checks.peek().is_some() && checks.all(|down| down)
    }

    /// Forgets endpoints without recent failures.
    pub fn forget(&mut self, now: Timestamp) {
        self.endpoints.retain(|_, told| now.since(told.last_failure) < FORGOTTEN_AFTER);
    }
}

/// Publishes suspicions.
pub async fn tell(
    bus: Bus,
    edge: Arc<EdgeIdentity>,
    suspicions: Suspicions,
    mut suspects: mpsc::Receiver<Suspect>,
) -> Infallible {
    let mut sweep = tokio::time::interval(FORGOTTEN_AFTER);
    loop {
        let suspect = tokio::select! {
            Some(suspect) = suspects.recv() => suspect,
            _ = sweep.tick() => {
                suspicions.limiter().forget(tidegate_bus::clock::now());
                continue;
            }
        };
        let told = suspicions.limiter().failed(&suspect.cluster, &suspect.endpoint, suspect.at);
        let Some(first_failure_at) = told else { continue };
        tracing::info!(cluster = %suspect.cluster, endpoint = %suspect.endpoint, failure = %suspect.failure, "suspected");
        let subject = subjects::suspect(&edge.region, &edge.name, &suspect.cluster);
        let suspicion = Suspicion {
            edge: edge.name.clone(),
            region: edge.region.clone(),
            cluster: suspect.cluster,
            endpoint: suspect.endpoint,
            failure: suspect.failure,
            first_failure_at,
        };
        let span = tracing::info_span!(
            "suspicion",
            otel.kind = "producer",
            tidegate.edge = %edge.name,
            tidegate.cluster = %suspicion.cluster,
            tidegate.endpoint = %suspicion.endpoint,
            tidegate.reason = %suspicion.failure,
        );
        let trace = tidegate_service::telemetry::span_context(&span);
        // With the bus away nobody can look, and the next failure is told again.
        _ = bus.publish_report(&subject, trace.as_ref(), &suspicion).await;
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::routes::EndpointHealth;

    use super::*;

    #[test]
    fn suspicions_grow_rarer_while_failures_go_on_and_are_prompt_again_later() {
        let (cluster, endpoint) = ("a".parse().unwrap(), "127.0.0.1:1".parse().unwrap());
        let mut limiter = Limiter::default();
        let told: Vec<u64> = (0..40_000)
            .filter(|ms| limiter.failed(&cluster, &endpoint, Timestamp(ms * 1000)).is_some())
            .collect();
        assert_eq!(&told[..4], [0, 100, 300, 700]);
        assert!(told.windows(2).all(|pair| pair[1] - pair[0] <= 5000), "{told:?}");
        assert!(limiter.failed(&cluster, &endpoint, Timestamp(60_000_000)).is_some());
        assert!(limiter.failed(&cluster, &endpoint, Timestamp(60_100_000)).is_some());
    }

    #[test]
    fn an_endpoint_that_is_down_is_not_told_of_and_is_again_at_once_when_it_was_up() {
        let cluster: ClusterName = "a".parse().unwrap();
        let endpoint: Address = "127.0.0.1:1".parse().unwrap();
        let health = |verdict| HealthEntry {
            verdict,
            reason: String::new(),
            endpoints: vec![EndpointHealth { address: endpoint.clone(), verdict, silent: false }],
        };
        let ms = |ms: u64| Timestamp(ms * 1000);
        let mut limiter = Limiter::default();
        let told = |limiter: &mut Limiter, at| limiter.failed(&cluster, &endpoint, ms(at));
        // Looks in vain, so that the next one would be seconds away.
        let in_vain = (0..10_000).filter(|at| told(&mut limiter, *at).is_some()).count();
        assert!(in_vain >= 7, "{in_vain}");
        limiter.know(&cluster, CheckId(1), &health(Verdict::Down));
        assert_eq!(told(&mut limiter, 10_001), None);
        limiter.know(&cluster, CheckId(1), &health(Verdict::Up));
        assert_eq!(told(&mut limiter, 11_000), Some(ms(11_000)));
    }

    #[test]
    fn an_endpoint_that_only_one_of_two_checks_has_down_is_told_of() {
        let cluster: ClusterName = "a".parse().unwrap();
        let endpoint: Address = "127.0.0.1:1".parse().unwrap();
        let health = |verdict| HealthEntry {
            verdict,
            reason: String::new(),
            endpoints: vec![EndpointHealth { address: endpoint.clone(), verdict, silent: false }],
        };
        let mut limiter = Limiter::default();
        limiter.know(&cluster, CheckId(1), &health(Verdict::Down));
        limiter.know(&cluster, CheckId(2), &health(Verdict::Up));
        assert!(limiter.failed(&cluster, &endpoint, Timestamp(1)).is_some());
        limiter.know(&cluster, CheckId(2), &health(Verdict::PathDown));
        assert!(limiter.failed(&cluster, &endpoint, Timestamp(60_000_000)).is_none());
        limiter.unknow(&cluster, CheckId(1));
        limiter.unknow(&cluster, CheckId(2));
        assert!(limiter.failed(&cluster, &endpoint, Timestamp(60_000_001)).is_some());
    }
}
