//! Reports endpoints that failed requests to the probers, at a limited rate.
//!
//! Reports on an endpoint back off while its verdict does not change. While the table has it down, nothing is reported;
//! after it is up again, the next failure is reported at once.

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

use crate::{edge_identity::EdgeIdentity, worker_context::EndpointFailure};

/// The shortest time between two suspicions of one endpoint.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest time between two suspicions of one endpoint.
const LONGEST: Duration = Duration::from_secs(5);
/// The time without a failure after which an endpoint's earlier suspicions are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

/// Limits which failures become suspicions.
#[derive(Debug, Default)]
pub struct SuspicionLimiter {
    endpoints: HashMap<(ClusterName, Address), ReportState>,
    /// For each check of a cluster, the endpoints that the table has down.
    down: BTreeMap<(ClusterName, CheckId), BTreeSet<Address>>,
}

/// The shared limiter, updated by the table and by failures. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Suspicions(Arc<Mutex<SuspicionLimiter>>);

impl Suspicions {
    /// Updates the health of endpoints from table entries that are new, changed or removed (nothing).
    pub fn update_health<'a>(&self, entries: impl Iterator<Item = (&'a RouteKey, Option<&'a RouteEntry>)>) {
        let mut limiter = self.limiter();
        for (key, entry) in entries {
            let RouteKey::Health(cluster, check) = key else { continue };
            match entry {
                Some(RouteEntry::Health(health)) => limiter.update_health(cluster, *check, health),
                _ => limiter.remove_health(cluster, *check),
            }
        }
    }

    fn limiter(&self) -> std::sync::MutexGuard<'_, SuspicionLimiter> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct ReportState {
    last: Timestamp,
    last_failure: Timestamp,
    pause: Duration,
    /// The first failure that was not reported.
    unreported_since: Option<Timestamp>,
}

impl SuspicionLimiter {
    /// Records a failure of an endpoint. If a suspicion should be published now, returns since when the endpoint has
    /// failed.
    pub fn record_failure(
        &mut self,
        cluster: &ClusterName,
        endpoint: &Address,
        at: Timestamp,
    ) -> Option<Timestamp> {
        if self.is_down(cluster, endpoint) {
            return None;
        }
        let key = (cluster.clone(), endpoint.clone());
        let Some(state) = self.endpoints.get_mut(&key) else {
            self.endpoints.insert(
                key,
                ReportState { last: at, last_failure: at, pause: SHORTEST, unreported_since: None },
            );
            return Some(at);
        };
        if at.since(state.last_failure) >= FORGOTTEN_AFTER {
            state.pause = Duration::ZERO;
        }
        state.last_failure = at;
        if at.since(state.last) < state.pause {
            state.unreported_since.get_or_insert(at);
            return None;
        }
        state.last = at;
        state.pause = (state.pause * 2).clamp(SHORTEST, LONGEST);
        Some(state.unreported_since.take().unwrap_or(at))
    }

    /// Updates the health of a cluster by one check.
    fn update_health(&mut self, cluster: &ClusterName, check: CheckId, health: &HealthEntry) {
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

    fn remove_health(&mut self, cluster: &ClusterName, check: CheckId) {
        self.down.remove(&(cluster.clone(), check));
    }

    /// Whether the endpoint is down by every check of the cluster.
    fn is_down(&self, cluster: &ClusterName, endpoint: &Address) -> bool {
        let mut checks = self
            .down
            .range((cluster.clone(), CheckId(0))..=(cluster.clone(), CheckId(u64::MAX)))
            .map(|(_, down)| down.contains(endpoint))
            .peekable();
        checks.peek().is_some() && checks.all(|down| down)
    }

    /// Drops endpoints without recent failures.
    pub fn forget(&mut self, now: Timestamp) {
        self.endpoints.retain(|_, state| now.since(state.last_failure) < FORGOTTEN_AFTER);
    }
}

/// Publishes suspicions.
pub async fn publish_suspicions(
    bus: Bus,
    edge: Arc<EdgeIdentity>,
    suspicions: Suspicions,
    mut failures: mpsc::Receiver<EndpointFailure>,
) -> Infallible {
    let mut sweep = tokio::time::interval(FORGOTTEN_AFTER);
    loop {
        let failed = tokio::select! {
            Some(failed) = failures.recv() => failed,
            _ = sweep.tick() => {
                suspicions.limiter().forget(tidegate_bus::clock::now());
                continue;
            }
        };
        let state = suspicions.limiter().record_failure(&failed.cluster, &failed.endpoint, failed.at);
        let Some(first_failure_at) = state else { continue };
        tracing::info!(cluster = %failed.cluster, endpoint = %failed.endpoint, failure = %failed.failure, "suspected");
        let subject = subjects::suspect(&edge.region, &edge.name, &failed.cluster);
        let suspicion = Suspicion {
            edge: edge.name.clone(),
            region: edge.region.clone(),
            cluster: failed.cluster,
            endpoint: failed.endpoint,
            failure: failed.failure,
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
        // Without the bus the probers cannot be reached; the next failure is reported again.
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
        let mut limiter = SuspicionLimiter::default();
        let state: Vec<u64> = (0..40_000)
            .filter(|ms| limiter.record_failure(&cluster, &endpoint, Timestamp(ms * 1000)).is_some())
            .collect();
        assert_eq!(&state[..4], [0, 100, 300, 700]);
        assert!(state.windows(2).all(|pair| pair[1] - pair[0] <= 5000), "{state:?}");
        assert!(limiter.record_failure(&cluster, &endpoint, Timestamp(60_000_000)).is_some());
        assert!(limiter.record_failure(&cluster, &endpoint, Timestamp(60_100_000)).is_some());
    }

    #[test]
    fn an_endpoint_that_is_down_is_not_told_of_and_is_again_at_once_when_it_was_up() {
        let cluster: ClusterName = "a".parse().unwrap();
        let endpoint: Address = "127.0.0.1:1".parse().unwrap();
        let health = |verdict| HealthEntry {
            verdict,
            reason: String::new(),
            endpoints: vec![EndpointHealth { address: endpoint.clone(), verdict, unreachable: false }],
        };
        let ms = |ms: u64| Timestamp(ms * 1000);
        let mut limiter = SuspicionLimiter::default();
        let state = |limiter: &mut SuspicionLimiter, at| limiter.record_failure(&cluster, &endpoint, ms(at));
        // Reports in vain, so that the next one would be seconds away.
        let in_vain = (0..10_000).filter(|at| state(&mut limiter, *at).is_some()).count();
        assert!(in_vain >= 7, "{in_vain}");
        limiter.update_health(&cluster, CheckId(1), &health(Verdict::Down));
        assert_eq!(state(&mut limiter, 10_001), None);
        limiter.update_health(&cluster, CheckId(1), &health(Verdict::Up));
        assert_eq!(state(&mut limiter, 11_000), Some(ms(11_000)));
    }

    #[test]
    fn an_endpoint_that_only_one_of_two_checks_has_down_is_told_of() {
        let cluster: ClusterName = "a".parse().unwrap();
        let endpoint: Address = "127.0.0.1:1".parse().unwrap();
        let health = |verdict| HealthEntry {
            verdict,
            reason: String::new(),
            endpoints: vec![EndpointHealth { address: endpoint.clone(), verdict, unreachable: false }],
        };
        let mut limiter = SuspicionLimiter::default();
        limiter.update_health(&cluster, CheckId(1), &health(Verdict::Down));
        limiter.update_health(&cluster, CheckId(2), &health(Verdict::Up));
        assert!(limiter.record_failure(&cluster, &endpoint, Timestamp(1)).is_some());
        limiter.update_health(&cluster, CheckId(2), &health(Verdict::PathDown));
        assert!(limiter.record_failure(&cluster, &endpoint, Timestamp(60_000_000)).is_none());
        limiter.remove_health(&cluster, CheckId(1));
        limiter.remove_health(&cluster, CheckId(2));
        assert!(limiter.record_failure(&cluster, &endpoint, Timestamp(60_000_001)).is_some());
    }
}
