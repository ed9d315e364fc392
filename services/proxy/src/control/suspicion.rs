//! Tells probers which endpoints failed real requests: seldom enough not to disturb, soon enough to matter.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use tidegate_bus::{Bus, subjects};
use tidegate_model::{ClusterName, Timestamp, fleet::Address, report::Suspicion};
use tokio::sync::mpsc;

use crate::worker::{EdgeIdentity, Suspect};

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

    /// Forgets endpoints without recent failures.
    pub fn forget(&mut self, now: Timestamp) {
        self.endpoints.retain(|_, told| now.since(told.last_failure) < FORGOTTEN_AFTER);
    }
}

/// Publishes suspicions.
pub async fn tell(bus: Bus, edge: Arc<EdgeIdentity>, mut suspects: mpsc::Receiver<Suspect>) -> Infallible {
    let mut limiter = Limiter::default();
    let mut sweep = tokio::time::interval(FORGOTTEN_AFTER);
    loop {
        let suspect = tokio::select! {
            Some(suspect) = suspects.recv() => suspect,
            _ = sweep.tick() => {
                limiter.forget(tidegate_bus::clock::now());
                continue;
            }
        };
        let Some(first_failure_at) = limiter.failed(&suspect.cluster, &suspect.endpoint, suspect.at) else {
            continue;
        };
        tracing::info!(cluster = %suspect.cluster, endpoint = %suspect.endpoint, failure = %suspect.failure, "suspected");
        let subject = subjects::suspect(&edge.region, &suspect.cluster);
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
}
