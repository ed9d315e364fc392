//! Resolves route entries to a worker's own clusters and endpoints.

mod resolve;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
};

use tidegate_http1::Request;
use tidegate_model::{
    ClusterName, EdgeName, NetworkName, ServiceName,
    fleet::{HostPattern, Policy, RouteMatch},
    health::CheckId,
    routes::{RouteEntry, RouteKey},
};

use super::{hosts::HostIndex, matching::matches};
use crate::{
    balance::{LatencyHistogram, RetryBudget, TierView},
    metrics::{LocalCounter, Metrics, RequestDurations, ServiceCounters},
    tls::UpstreamTlsConfigs,
    upstream::{ClusterState, EndpointState},
};

/// A change of one entry; nothing removes it.
pub type RouteChange = (RouteKey, Option<Arc<RouteEntry>>);

/// A service, resolved for one worker. A request keeps the view with which it began.
pub struct ServiceView {
    /// The service's name.
    pub name: ServiceName,
    /// Its health check.
    pub check: CheckId,
    /// The largest request body, in bytes.
    pub max_request_body: Option<u64>,
    /// The default action, then those of its routes.
    pub actions: Vec<ActionView>,
    /// Its recent response times.
    pub latency: Rc<LatencyHistogram>,
    /// Its counters.
    pub counters: Arc<ServiceCounters>,
    hosts: Vec<HostPattern>,
    routes: Vec<RouteMatch>,
}

/// An action, resolved for one worker.
pub struct ActionView {
    /// The path pattern of its route, as reported in `http.route`; nothing for the default action.
    pub route: Option<String>,
    /// The durations of its requests.
    pub requests: Arc<RequestDurations>,
    /// The number of requests for it.
    pub demand: Arc<LocalCounter>,
    /// Its retry and timeout policy.
    pub policy: Policy,
    /// The retry budget: the service's, unless the route has a percentage of its own.
    pub budget: Rc<RetryBudget>,
    /// Its tiers, without empty ones.
    pub tiers: Vec<TierView>,
    /// The share of requests to shed, in thousandths.
    pub shed_permille: u16,
    /// Whether all endpoints seem down, so that health is ignored.
    pub fail_open: bool,
    /// The number of endpoints in all tiers.
    pub endpoint_count: usize,
}

struct ResolvedCluster {
    cluster: Rc<ClusterState>,
    endpoints: Vec<Rc<EndpointState>>,
}

/// The index of a worker among all workers of an edge.
#[derive(Debug, Clone, Copy)]
pub struct WorkerIndex {
    /// The worker's index, from 0.
    pub id: usize,
    /// The number of workers.
    pub count: usize,
}

impl WorkerIndex {
    /// This worker's share of an edge-wide limit: the shares add up to the whole, but each is at least 1.
    fn part_of(self, whole: u32) -> u32 {
        let (id, count) = (self.id as u32, self.count as u32);
        (whole / count + u32::from(id < whole % count)).max(1)
    }
}

/// The route table of one worker.
pub struct Table {
    worker: WorkerIndex,
    edge: EdgeName,
    metrics: Arc<Metrics>,
    tls: Arc<UpstreamTlsConfigs>,
    /// The networks that the edge is on; only endpoints on one of them can be reached. Absent: not known yet.
    networks: Option<Vec<NetworkName>>,
    entries: BTreeMap<RouteKey, Arc<RouteEntry>>,
    clusters: HashMap<ClusterName, ResolvedCluster>,
    services_by_cluster: HashMap<ClusterName, BTreeSet<ServiceName>>,
    services: HashMap<ServiceName, Rc<ServiceView>>,
    hosts: HostIndex,
}

impl Table {
    /// An empty table.
    pub fn new(
        worker: WorkerIndex,
        edge: EdgeName,
        metrics: Arc<Metrics>,
        tls: Arc<UpstreamTlsConfigs>,
    ) -> Table {
        Table {
            worker,
            edge,
            metrics,
            tls,
            networks: None,
            entries: BTreeMap::new(),
            clusters: HashMap::new(),
            services_by_cluster: HashMap::new(),
            services: HashMap::new(),
            hosts: HostIndex::default(),
        }
    }

    /// Whether the table has no services.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The service with this name.
    pub fn service(&self, name: &str) -> Option<Rc<ServiceView>> {
        self.services.get(name).cloned()
    }

    /// Counts a failed attempt at a cluster.
    pub fn count_failure(&self, cluster: &ClusterName) {
        if let Some(state) = self.clusters.get(cluster) {
            state.cluster.counters.failures.add(1);
        }
    }

    /// Counts an ejection of a cluster's endpoint.
    pub fn count_ejection(&self, cluster: &ClusterName) {
        if let Some(state) = self.clusters.get(cluster) {
            state.cluster.counters.ejections.add(1);
        }
    }

    /// The service for a request, and the index of its action.
    pub fn match_request(&self, request: &Request) -> Option<(Rc<ServiceView>, usize)> {
        let service = self.services.get(self.hosts.service_for(&request.host)?)?;
        let route = service.routes.iter().position(|route| matches(route, request));
        Some((service.clone(), route.map_or(0, |index| index + 1)))
    }

    /// Every cluster.
    pub fn clusters(&self) -> impl Iterator<Item = &Rc<ClusterState>> {
        self.clusters.values().map(|state| &state.cluster)
    }

    /// Every endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = &Rc<EndpointState>> {
        self.clusters.values().flat_map(|state| &state.endpoints)
    }

    /// Sets the gauges of all clusters.
    pub fn set_gauges(&self) {
        for ResolvedCluster { cluster, endpoints } in self.clusters.values() {
            for endpoint in endpoints {
                let closed = endpoint.pool.take_excess();
                if closed > 0 {
                    cluster.counters.excess.add(u64::from(closed));
                    tracing::warn!(
                        cluster = %cluster.name, endpoint = %endpoint.address, closed,
                        "the endpoint sent bytes that belong to no request: its connections are not reused for a minute"
                    );
                }
            }
            let sizes = endpoints.iter().map(|endpoint| endpoint.pool.sizes());
            let (idle, http2) = sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
            let gauges = &cluster.counters.gauges;
            let waiting = cluster.awaiting_clients.count() as u64;
            gauges.active.set(u64::from(cluster.active()).saturating_sub(waiting));
            gauges.waiting.set(waiting);
            gauges.idle.set(idle as u64);
            gauges.http2.set(http2 as u64);
        }
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Rc<ServiceView>> {
        self.services.values()
    }

    /// Replaces all entries.
    pub fn replace(&mut self, entries: &[(RouteKey, Arc<RouteEntry>)]) {
        let new: BTreeSet<&RouteKey> = entries.iter().map(|(key, _)| key).collect();
        let gone = self.entries.keys().filter(|key| !new.contains(key)).map(|key| (key.clone(), None));
        let changed = entries
            .iter()
            .filter(|(key, entry)| self.entries.get(key) != Some(entry))
            .map(|(key, entry)| (key.clone(), Some(entry.clone())));
        let changes: Vec<RouteChange> = gone.chain(changed).collect();
        self.apply(&changes);
    }

    /// Applies changes. Only the affected services are resolved again.
    pub fn apply(&mut self, changes: &[RouteChange]) {
        let mut touched = BTreeSet::new();
        for (key, entry) in changes {
            match entry {
                Some(entry) => self.entries.insert(key.clone(), entry.clone()),
                None => self.entries.remove(key),
            };
            match key {
                RouteKey::Edge(name) => {
                    if *name == self.edge && self.update_networks() {
                        touched.extend(self.services.keys().cloned());
                    }
                }
                RouteKey::Cluster(name) => {
                    self.resolve_cluster(name);
                    touched.extend(self.services_by_cluster.get(name).into_iter().flatten().cloned());
                }
                RouteKey::Health(name, check) => {
                    let users = self.services_by_cluster.get(name).into_iter().flatten();
                    touched.extend(
                        users
                            .filter(|user| self.services.get(*user).is_none_or(|s| s.check == *check))
                            .cloned(),
                    );
                }
                RouteKey::Service(name) | RouteKey::Tiers(name) => {
                    touched.insert(name.clone());
                }
            }
        }
        for name in &touched {
            self.resolve_service(name);
        }
        // Requests that wait for an unreachable endpoint are woken last, when the alternatives are resolved.
        for (key, _) in changes {
            if let RouteKey::Health(name, check) = key {
                self.apply_health(name, *check);
            }
        }
    }
}

impl ServiceView {
    /// The distinct retry budgets of its actions.
    pub fn budgets(&self) -> impl Iterator<Item = &Rc<RetryBudget>> {
        let shared = &self.actions[0].budget;
        let own = self.actions[1..].iter().map(|action| &action.budget);
        std::iter::once(shared).chain(own.filter(|budget| !Rc::ptr_eq(budget, shared)))
    }

    fn clusters(&self) -> Vec<ClusterName> {
        let weighted_clusters =
            self.actions.iter().flat_map(|action| &action.tiers).flat_map(|tier| &tier.weighted_clusters);
        weighted_clusters.map(|weighted| weighted.cluster.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_model::{
        fleet::Fleet,
        routes::{ActionTiers, ClusterEntry, EdgeEntry, ServiceEntry, Tier, TiersEntry},
    };
    use tokio::time::Instant;

    use super::*;
    use crate::{
        balance::{PickContext, pick},
        clients::Network,
    };

    /// A table with one service on one cluster whose two endpoints are on different networks.
    fn table(edge_networks: &[&str]) -> Table {
        let mut table = Table::new(
            WorkerIndex { id: 0, count: 1 },
            "edge-1".parse().unwrap(),
            Arc::default(),
            Arc::default(),
        );
        table.replace(&entries(edge_networks, ""));
        table
    }

    /// What such a table is made of; `more` are further fields of the service.
    fn entries(edge_networks: &[&str], more: &str) -> Vec<(RouteKey, Arc<RouteEntry>)> {
        let text = format!(
            r#"
regions: {{ here: {{}} }}
clusters:
  a: {{ region: here, endpoints: ["127.0.0.1:1", {{ address: "127.0.0.1:2", network: vpc }}] }}
services:
  site: {{ hosts: ["*"], clusters: [a], {more} }}
"#
        );
        let fleet = Fleet::parse(&text, "fleet.yaml").unwrap();
        let (cluster_name, cluster) = fleet.clusters.first_key_value().unwrap();
        let (service_name, service) = fleet.services.first_key_value().unwrap();
        let edge: EdgeName = "edge-1".parse().unwrap();
        let networks = edge_networks.iter().map(|name| name.parse().unwrap()).collect();
        let action = ActionTiers {
            tiers: vec![Tier { shares: vec![(cluster_name.clone(), 1000)] }],
            shed_permille: 0,
            fail_open: false,
            reason: String::new(),
        };
        let routes =
            service.routes.iter().map(|route| (route.matches.clone(), route.action.policy.clone())).collect();
        let entries = [
            (
                RouteKey::Edge(edge),
                RouteEntry::Edge(EdgeEntry { address: None, listeners: Vec::new(), networks, drain: None }),
            ),
            (
                RouteKey::Cluster(cluster_name.clone()),
                RouteEntry::Cluster(ClusterEntry {
                    region: cluster.region.clone(),
                    endpoints: cluster.endpoints.clone(),
                    upstream: cluster.upstream.clone(),
                }),
            ),
            (
                RouteKey::Service(service_name.clone()),
                RouteEntry::Service(ServiceEntry {
                    hosts: service.hosts.clone(),
                    check: service.health.id(),
                    max_request_body: None,
                    default_policy: service.default.policy.clone(),
                    routes,
                }),
            ),
            (RouteKey::Tiers(service_name.clone()), RouteEntry::Tiers(TiersEntry { actions: vec![action] })),
        ];
        entries.map(|(key, entry)| (key, Arc::new(entry))).into()
    }

    #[test]
    fn the_parts_of_workers_are_the_whole() {
        for (whole, count) in [(1024, 2), (5, 2), (7, 3), (3, 4), (1, 1)] {
            let parts: Vec<u32> = (0..count).map(|id| WorkerIndex { id, count }.part_of(whole)).collect();
            let sum: u32 = parts.iter().sum();
            assert_eq!(sum, whole.max(count as u32), "{parts:?}");
            assert!(parts.iter().max().unwrap() - parts.iter().min().unwrap() <= 1, "{parts:?}");
        }
    }

    #[test]
    fn what_leaves_the_fleet_leaves_no_series_behind() {
        let mut table = table(&["internet"]);
        let metrics = table.metrics.clone();
        let series = || {
            let (services, clusters) = (metrics.sum_services(|_| 0), metrics.sum_clusters(|_| 0));
            [services.len(), clusters.len(), metrics.sum_serving().len(), metrics.sum_requests().len()]
        };
        let under_way = table.service("site");
        let mut now = Instant::now();
        let mut hours_pass = || {
            metrics.forget_unused(now);
            now += Duration::from_secs(3600);
            metrics.forget_unused(now);
        };
        hours_pass();
        assert_eq!(series(), [1; 4]);

        table.replace(&[]);
        hours_pass();
        assert_eq!(series(), [1; 4], "a request that began before still counts");
        drop(under_way);
        hours_pass();
        assert_eq!(series(), [0; 4]);
    }

    #[test]
    fn a_route_has_a_budget_of_its_own_where_its_share_is_another_one() {
        let fields = |frugal: &str| {
            format!(
                "retry: {{ budget: 20% }}, routes: [
                   {{ path_prefix: /same, retry: {{ attempts: 1 }} }},
                   {{ path_prefix: /frugal, retry: {{ budget: {frugal} }} }} ]"
            )
        };
        let mut table = table(&["internet"]);
        table.replace(&entries(&["internet"], &fields("5%")));
        let before = table.service("site").unwrap();
        let [own, same, frugal] = &before.actions[..] else { panic!("three actions") };
        assert!(Rc::ptr_eq(&own.budget, &same.budget) && !Rc::ptr_eq(&own.budget, &frugal.budget));
        assert_eq!(before.budgets().count(), 2);

        // A change keeps the tokens as long as the budget is the route's own.
        for (share, is_kept) in [("6%", true), ("20%", false), ("7%", false)] {
            table.replace(&entries(&["internet"], &fields(share)));
            let now = table.service("site").unwrap();
            assert!(Rc::ptr_eq(&now.actions[0].budget, &own.budget), "{share}");
            assert_eq!(Rc::ptr_eq(&now.actions[2].budget, &frugal.budget), is_kept, "{share}");
        }
        assert!(!Rc::ptr_eq(&table.service("site").unwrap().actions[2].budget, &own.budget));
    }

    #[test]
    fn only_endpoints_on_the_edges_networks_are_used() {
        for (networks, endpoints) in [(&["internet"][..], 1), (&["internet", "vpc"], 2), (&["other"], 0)] {
            let service = table(networks).service("site").unwrap();
            assert_eq!(service.actions[0].endpoint_count, endpoints, "{networks:?}");
        }
    }

    #[test]
    fn an_empty_tier_does_not_renumber_the_tiers_after_it() {
        let mut table = table(&["internet"]);
        let key = RouteKey::Tiers("site".parse().unwrap());
        let Some(RouteEntry::Tiers(mut entry)) = table.entries.get(&key).map(|entry| (**entry).clone())
        else {
            panic!("no tiers")
        };
        entry.actions[0].tiers.insert(0, Tier { shares: vec![("unknown".parse().unwrap(), 1000)] });

        table.apply(&[(key, Some(Arc::new(RouteEntry::Tiers(entry))))]);

        let service = table.service("site").unwrap();
        let tiers = &service.actions[0].tiers;
        let context =
            PickContext { tiers, tried: &[], avoid: &[], now: Instant::now(), client: Network::LOCAL };
        let picked = pick(context, &mut rand::rng()).unwrap();
        // Spans and the access log report the picked tier, metrics the label of these counters.
        let labelled =
            table.metrics.serving(0, (service.name.clone(), picked.cluster.name.clone(), picked.tier));
        assert_eq!((tiers.len(), picked.tier), (1, 1));
        assert!(Arc::ptr_eq(&labelled, &tiers[0].weighted_clusters[0].serving));
    }
}
