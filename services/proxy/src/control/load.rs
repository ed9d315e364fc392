//! Reports the edge's load once a second.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use tidegate_bus::{Bus, subjects};
use tidegate_model::{
    ClusterName, ServiceName,
    report::{ClusterLoad, Load},
};
use tokio::time::Instant;

use crate::{
    edge_identity::EdgeIdentity,
    metrics::{ActionKey, DurationSums, Metrics},
};

const EVERY: Duration = Duration::from_secs(1);

/// Publishes the edge's load once a second, until dropped.
pub async fn report(bus: Bus, edge: Arc<EdgeIdentity>, metrics: Arc<Metrics>) -> Infallible {
    let subject = subjects::load(&edge.region, &edge.name);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut requests, mut attempts, mut failures) =
        <(CounterDeltas<_>, CounterDeltas<_>, CounterDeltas<_>)>::default();
    let mut took: BTreeMap<ClusterName, DurationSums> = BTreeMap::new();
    let mut last = Instant::now();
    loop {
        let now = ticks.tick().await;
        let interval_ms = u32::try_from((now - last).as_millis()).unwrap_or(u32::MAX);
        last = now;
        let demand = by_service(requests.since(metrics.sum_demand()));
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
        // The next report follows a second later.
        _ = bus.publish_report(&subject, None, &load).await;
    }
}

/// Groups counts by service, with the actions in order.
fn by_service(counts: BTreeMap<ActionKey, u32>) -> BTreeMap<ServiceName, Vec<u32>> {
    let mut demand: BTreeMap<ServiceName, Vec<u32>> = BTreeMap::new();
    for ((service, action), count) in counts {
        let of_service = demand.entry(service).or_default();
        of_service.resize(action + 1, 0);
        of_service[action] = count;
    }
    demand
}

/// The values of counters at their last read.
struct CounterDeltas<N>(BTreeMap<N, u64>);

impl<N> Default for CounterDeltas<N> {
    fn default() -> Self {
        CounterDeltas(BTreeMap::new())
    }
}

impl<N: Ord + Clone> CounterDeltas<N> {
    fn since(&mut self, now: Vec<(N, u64)>) -> BTreeMap<N, u32> {
        let before = std::mem::replace(&mut self.0, now.iter().cloned().collect());
        now.into_iter()
            .map(|(name, count)| {
                let before = before.get(&name).copied().unwrap_or(0);
                // A lower value means that the counter was dropped and began at 0 again.
                let since = count.checked_sub(before).unwrap_or(count);
                (name, u32::try_from(since).unwrap_or(u32::MAX))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_is_told_by_action() {
        let (shop, site): (ServiceName, ServiceName) = ("shop".parse().unwrap(), "site".parse().unwrap());
        let counts = [((shop.clone(), 0), 7), ((shop.clone(), 2), 3), ((site.clone(), 0), 1)];
        assert_eq!(by_service(counts.into()), [(shop, vec![7, 0, 3]), (site, vec![1])].into());
    }

    #[test]
    fn a_counter_that_went_and_came_back_counts_from_nothing() {
        let mut last = CounterDeltas::default();
        let mut since =
            |counts: &[(&'static str, u64)]| last.since(counts.to_vec()).into_values().collect::<Vec<_>>();
        assert_eq!(since(&[("a", 5), ("b", 1)]), [5, 1]);
        assert_eq!(since(&[("b", 4)]), [3]);
        assert_eq!(since(&[("a", 2), ("b", 2)]), [2, 2]);
    }
}
