//! Reports once a second what the edge forwarded.

use std::{collections::BTreeMap, convert::Infallible, hash::Hash, sync::Arc, time::Duration};

use tidegate_bus::{Bus, subjects};
use tidegate_model::{
    ClusterName,
    report::{ClusterLoad, Load},
};
use tokio::time::Instant;

use crate::{
    metrics::{DurationSums, Metrics},
    worker::EdgeIdentity,
};

const EVERY: Duration = Duration::from_secs(1);

/// Reports until dropped.
pub async fn report(bus: Bus, edge: Arc<EdgeIdentity>, metrics: Arc<Metrics>) -> Infallible {
    let subject = subjects::load(&edge.region, &edge.name);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut requests, mut attempts, mut failures) = <(Last<_>, Last<_>, Last<_>)>::default();
    let mut took: BTreeMap<ClusterName, DurationSums> = BTreeMap::new();
    let mut last = Instant::now();
    loop {
        let now = ticks.tick().await;
        let interval_ms = u32::try_from((now - last).as_millis()).unwrap_or(u32::MAX);
        last = now;
        let demand = requests.since(metrics.sum_services(|service| service.requests.get()));
        let attempts = attempts.since(metrics.sum_clusters(|cluster| cluster.attempts.get()));
        let failures = failures.since(metrics.sum_clusters(|cluster| cluster.failures.get()));
        let now_took: BTreeMap<_, _> = metrics.sum_cluster_durations().into_iter().collect();
        let before = std::mem::replace(&mut took, now_took);
        if interval_ms == 0 {
            continue;
        }
        let clusters = attempts.into_iter().map(|(name, attempts)| {
            let failures = failures.get(&name).copied().unwrap_or(0);
            let p95 = took.get(&name).and_then(|sums| match before.get(&name) {
                Some(before) => sums.since(before).p95(),
                None => sums.p95(),
            });
            let p95_us = p95.map_or(0, |p95| u32::try_from(p95.as_micros()).unwrap_or(u32::MAX));
            (name, ClusterLoad { attempts, failures, p95_us })
        });
        let load = Load {
            edge: edge.name.clone(),
            region: edge.region.clone(),
            interval_ms,
            demand,
            clusters: clusters.collect(),
        };
        // It is said anew a second later.
        _ = bus.publish_report(&subject, None, &load).await;
    }
}

/// What counters stood at when they were last read.
struct Last<N>(BTreeMap<N, u64>);

impl<N> Default for Last<N> {
    fn default() -> Self {
        Last(BTreeMap::new())
    }
}

impl<N: Ord + Hash + Clone> Last<N> {
    fn since(&mut self, now: Vec<(N, u64)>) -> BTreeMap<N, u32> {
        now.into_iter()
            .map(|(name, count)| {
                let before = self.0.insert(name.clone(), count).unwrap_or(0);
                (name, u32::try_from(count - before).unwrap_or(u32::MAX))
            })
            .collect()
    }
}
