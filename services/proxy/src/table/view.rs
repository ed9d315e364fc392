//! Resolves route entries to a worker's own clusters and endpoints.

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
    routes::{
        ActionTiers, ClusterEntry, EndpointHealth, HealthEntry, RouteEntry, RouteKey, ServiceEntry,
        TiersEntry,
    },
    verdict::Verdict,
};

use super::{hosts::Hosts, matching::matches};
use crate::{
    balance::{Budget, Choice, Cluster, Endpoint, Latency, TierView},
    metrics::{Metrics, ServiceCounters},
    tls::UpstreamTlsConfigs,
};

/// A change of one entry; nothing takes it away.
pub type RouteChange = (RouteKey, Option<Arc<RouteEntry>>);

/// A service as one worker serves it. A request keeps the one with which it began.
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// Its health check.
    pub check: CheckId,
    /// The largest request body, in bytes.
    pub max_request_body: Option<u64>,
    /// The default action, then those of its routes.
    pub actions: Vec<ActionView>,
    /// How long it usually takes.
    pub latency: Rc<Latency>,
    /// What may be retried.
    pub budget: Rc<Budget>,
    /// Its counters.
    pub counters: Arc<ServiceCounters>,
    hosts: Vec<HostPattern>,
    routes: Vec<RouteMatch>,
}

/// An action, resolved.
pub struct ActionView {
    /// How requests are tried.
    pub policy: Policy,
    /// Where they go.
    pub tiers: Vec<TierView>,
    /// Requests to refuse, in thousandths.
    pub shed_permille: u16,
    /// Whether everything seemed down.
    pub fail_open: bool,
    /// Endpoints over all tiers.
    pub endpoint_count: usize,
}

struct ClusterState {
    cluster: Rc<Cluster>,
    endpoints: Vec<Rc<Endpoint>>,
}

/// A worker among all workers of an edge.
#[derive(Debug, Clone, Copy)]
pub struct WorkerPlace {
    /// Its place, from 0.
    pub id: usize,
    /// How many there are.
    pub count: usize,
}

impl WorkerPlace {
    /// This worker's part of what is allowed to the whole edge: all parts together are the whole, but nobody gets nothing.
    fn part_of(self, whole: u32) -> u32 {
        let (id, count) = (self.id as u32, self.count as u32);
        (whole / count + u32::from(id < whole % count)).max(1)
    }
}

/// All routes, as one worker serves them.
pub struct Table {
    worker: WorkerPlace,
    edge: EdgeName,
    metrics: Arc<Metrics>,
    tls: Arc<UpstreamTlsConfigs>,
    /// The networks that the edge is on; only endpoints on one of them can be reached. Absent: not told yet.
    networks: Option<Vec<NetworkName>>,
    entries: BTreeMap<RouteKey, Arc<RouteEntry>>,
    clusters: HashMap<ClusterName, ClusterState>,
    users: HashMap<ClusterName, BTreeSet<ServiceName>>,
    services: HashMap<ServiceName, Rc<ServiceView>>,
    hosts: Hosts,
}

impl Table {
    /// No routes.
    pub fn new(
        worker: WorkerPlace,
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
            users: HashMap::new(),
            services: HashMap::new(),
            hosts: Hosts::default(),
        }
    }

    /// Whether there are no services.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The service of this name.
    pub fn service(&self, name: &str) -> Option<Rc<ServiceView>> {
        self.services.get(name).cloned()
    }

    /// Counts a failed try of a cluster's endpoint.
    pub fn count_failure(&self, cluster: &ClusterName, ejected: bool) {
        if let Some(state) = self.clusters.get(cluster) {
            state.cluster.counters.failures.add(1);
            state.cluster.counters.ejections.add(u64::from(ejected));
        }
    }

    /// The service for a request and the place of its action.
    pub fn find(&self, request: &Request) -> Option<(Rc<ServiceView>, usize)> {
        let service = self.services.get(self.hosts.find(&request.host)?)?;
        let route = service.routes.iter().position(|route| matches(route, request));
        Some((service.clone(), route.map_or(0, |place| place + 1)))
    }

    /// Every endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = &Rc<Endpoint>> {
        self.clusters.values().flat_map(|state| &state.endpoints)
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

    /// Applies changes; only services that they touch are resolved anew.
    pub fn apply(&mut self, changes: &[RouteChange]) {
        let mut touched = BTreeSet::new();
        for (key, entry) in changes {
            match entry {
                Some(entry) => self.entries.insert(key.clone(), entry.clone()),
                None => self.entries.remove(key),
            };
            match key {
                RouteKey::Edge(name) => {
                    if *name == self.edge && self.renetwork() {
                        touched.extend(self.services.keys().cloned());
                    }
                }
                RouteKey::Cluster(name) => {
                    self.resolve_cluster(name);
                    touched.extend(self.users.get(name).into_iter().flatten().cloned());
                }
                RouteKey::Health(name, check) => {
                    let users = self.users.get(name).into_iter().flatten();
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
        // Whoever waits for an endpoint that fell silent is woken last, when there is somewhere else to go.
        for (key, _) in changes {
            if let RouteKey::Health(name, check) = key {
                self.announce_health(name, *check);
            }
        }
    }

    /// Takes the edge's networks from its entry. Returns whether they changed; then all clusters are resolved anew.
    fn renetwork(&mut self) -> bool {
        let own = self.entries.get(&RouteKey::Edge(self.edge.clone())).map(Arc::as_ref);
        let networks = match own {
            Some(RouteEntry::Edge(entry)) => Some(entry.networks.clone()),
            _ => None,
        };
        if self.networks == networks {
            return false;
        }
        self.networks = networks;
        let names: Vec<ClusterName> = self.clusters.keys().cloned().collect();
        names.iter().for_each(|name| self.resolve_cluster(name));
        true
    }

    fn resolve_cluster(&mut self, name: &ClusterName) {
        let Some(RouteEntry::Cluster(entry)) =
            self.entries.get(&RouteKey::Cluster(name.clone())).map(Arc::as_ref)
        else {
            self.clusters.remove(name);
            return;
        };
        let old = self.clusters.get(name).filter(|state| state.cluster.upstream == entry.upstream);
        let endpoints = entry
            .endpoints
            .iter()
            .filter(|endpoint| {
                self.networks.as_ref().is_none_or(|networks| networks.contains(&endpoint.network))
            })
            .map(|endpoint| {
                let known = old.into_iter().flat_map(|state| &state.endpoints);
                let known = known.clone().find(|known| known.address == endpoint.address);
                known.cloned().unwrap_or_else(|| Endpoint::new(endpoint.address.clone(), name.clone()))
            })
            .collect();
        let cluster = match old {
            Some(state) if state.cluster.region == entry.region => state.cluster.clone(),
            Some(_) | None => Rc::new(self.new_cluster(name, entry)),
        };
        self.clusters.insert(name.clone(), ClusterState { cluster, endpoints });
    }

    fn new_cluster(&self, name: &ClusterName, entry: &ClusterEntry) -> Cluster {
        Cluster {
            name: name.clone(),
            region: entry.region.clone(),
            tls: entry.upstream.tls.as_ref().map(|tls| self.tls.get(&(tls.clone(), entry.upstream.protocol))),
            upstream: entry.upstream.clone(),
            active: std::cell::Cell::new(0),
            max_requests: self.worker.part_of(entry.upstream.max_requests),
            counters: self.metrics.cluster(self.worker.id, name),
        }
    }

    fn resolve_service(&mut self, name: &ServiceName) {
        let old = self.services.remove(name);
        if let Some(old) = &old {
            for cluster in old.clusters() {
                self.users.entry(cluster).or_default().remove(name);
            }
        }
        let entry = self.entries.get(&RouteKey::Service(name.clone())).cloned();
        let tiers = self.entries.get(&RouteKey::Tiers(name.clone())).cloned();
        self.rehost(name, entry.as_deref(), old.as_deref());
        let (Some(RouteEntry::Service(entry)), Some(RouteEntry::Tiers(tiers))) =
            (entry.as_deref(), tiers.as_deref())
        else {
            return;
        };
        for action in &tiers.actions {
            for (cluster, _) in action.tiers.iter().flat_map(|tier| &tier.shares) {
                self.users.entry(cluster.clone()).or_default().insert(name.clone());
            }
        }
        let view = self.view_of(name, entry, tiers, old.as_deref());
        self.services.insert(name.clone(), Rc::new(view));
    }

    /// Makes the index of hosts say what the service's entry says.
    fn rehost(&mut self, name: &ServiceName, entry: Option<&RouteEntry>, old: Option<&ServiceView>) {
        let hosts = match entry {
            Some(RouteEntry::Service(entry)) => entry.hosts.as_slice(),
            _ => &[],
        };
        // A failover changes tiers, not hosts; the index is only touched when it must be.
        if old.map_or(&[][..], |old| old.hosts.as_slice()) != hosts {
            self.hosts.set(name, hosts);
        }
    }

    fn view_of(
        &self,
        name: &ServiceName,
        entry: &ServiceEntry,
        tiers: &TiersEntry,
        old: Option<&ServiceView>,
    ) -> ServiceView {
        let policies =
            std::iter::once(&entry.default_policy).chain(entry.routes.iter().map(|(_, policy)| policy));
        let actions = policies
            .enumerate()
            .map(|(place, policy)| {
                let empty = ActionTiers {
                    tiers: Vec::new(),
                    shed_permille: 0,
                    fail_open: false,
                    reason: String::new(),
                };
                self.action(name, policy, tiers.actions.get(place).unwrap_or(&empty), entry.check)
            })
            .collect();
        let budget = match old {
            Some(old) => old.budget.clone(),
            None => Rc::new(Budget::new(entry.default_policy.budget_percent)),
        };
        budget.set_percent(entry.default_policy.budget_percent);
        ServiceView {
            name: name.clone(),
            check: entry.check,
            max_request_body: entry.max_request_body,
            actions,
            latency: old.map_or_else(|| Rc::new(Latency::new()), |old| old.latency.clone()),
            budget,
            counters: self.metrics.service(self.worker.id, name),
            hosts: entry.hosts.clone(),
            routes: entry.routes.iter().map(|(route, _)| route.clone()).collect(),
        }
    }

    fn action(
        &self,
        service: &ServiceName,
        policy: &Policy,
        from: &ActionTiers,
        check: CheckId,
    ) -> ActionView {
        let tiers: Vec<TierView> = from
            .tiers
            .iter()
            .enumerate()
            .map(|(place, tier)| {
                let choices = tier.shares.iter().filter_map(|(name, share)| {
                    let state = self.clusters.get(name)?;
                    let health = self.health(name, check);
                    let endpoints = state.endpoints.iter().map(|endpoint| {
                        (
                            endpoint.clone(),
                            health
                                .and_then(|health| health_of(health, endpoint))
                                .map_or(Verdict::Unknown, |known| known.verdict),
                        )
                    });
                    Some(Choice {
                        share: u32::from(*share),
                        cluster: state.cluster.clone(),
                        endpoints: endpoints.collect(),
                        serving: self.metrics.serving(self.worker.id, (service.clone(), name.clone(), place)),
                    })
                });
                TierView { choices: choices.collect() }
            })
            .filter(|tier: &TierView| !tier.choices.is_empty())
            .collect();
        let endpoint_count =
            tiers.iter().flat_map(|tier| &tier.choices).map(|choice| choice.endpoints.len()).sum();
        ActionView {
            policy: policy.clone(),
            tiers,
            shed_permille: from.shed_permille,
            fail_open: from.fail_open,
            endpoint_count,
        }
    }

    fn health(&self, cluster: &ClusterName, check: CheckId) -> Option<&HealthEntry> {
        match self.entries.get(&RouteKey::Health(cluster.clone(), check)).map(Arc::as_ref) {
            Some(RouteEntry::Health(health)) => Some(health),
            _ => None,
        }
    }

    fn announce_health(&self, name: &ClusterName, check: CheckId) {
        let Some(state) = self.clusters.get(name) else { return };
        let health = self.health(name, check);
        for endpoint in &state.endpoints {
            let known = health.and_then(|health| health_of(health, endpoint));
            let down = known.is_some_and(|known| matches!(known.verdict, Verdict::Down | Verdict::PathDown));
            endpoint.set_health(check, down, known.is_some_and(|known| known.silent));
        }
    }
}

impl ServiceView {
    /// What the route with the action at `place` asks of a path, as `http.route` tells it; nothing for the default.
    pub fn route(&self, place: usize) -> Option<String> {
        let route = self.routes.get(place.checked_sub(1)?)?;
        match (&route.path, &route.path_prefix) {
            (Some(path), _) => Some(path.clone()),
            (None, Some(prefix)) => Some(format!("{}/*", prefix.trim_end_matches('/'))),
            (None, None) => None,
        }
    }

    fn clusters(&self) -> Vec<ClusterName> {
        let choices = self.actions.iter().flat_map(|action| &action.tiers).flat_map(|tier| &tier.choices);
        choices.map(|choice| choice.cluster.name.clone()).collect()
    }
}

fn health_of<'a>(health: &'a HealthEntry, endpoint: &Endpoint) -> Option<&'a EndpointHealth> {
    health.endpoints.iter().find(|known| known.address == endpoint.address)
}

#[cfg(test)]
mod tests {
    use tidegate_model::{
        fleet::Fleet,
        routes::{EdgeEntry, Tier},
    };

    use super::*;

    /// A table with one service on one cluster whose two endpoints are on different networks.
    fn table(edge_networks: &[&str]) -> Table {
        let fleet = Fleet::parse(
            r#"
regions: { here: {} }
clusters:
  a: { region: here, endpoints: ["127.0.0.1:1", { address: "127.0.0.1:2", network: vpc }] }
services:
  site: { hosts: ["*"], clusters: [a] }
"#,
            "fleet.yaml",
        )
        .unwrap();
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
        let entries = [
            (
                RouteKey::Edge(edge.clone()),
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
                    routes: Vec::new(),
                }),
            ),
            (RouteKey::Tiers(service_name.clone()), RouteEntry::Tiers(TiersEntry { actions: vec![action] })),
        ];
        let mut table = Table::new(WorkerPlace { id: 0, count: 1 }, edge, Arc::default(), Arc::default());
        table.replace(&entries.map(|(key, entry)| (key, Arc::new(entry))));
        table
    }

    #[test]
    fn the_parts_of_workers_are_the_whole() {
        for (whole, count) in [(1024, 2), (5, 2), (7, 3), (3, 4), (1, 1)] {
            let parts: Vec<u32> = (0..count).map(|id| WorkerPlace { id, count }.part_of(whole)).collect();
            let sum: u32 = parts.iter().sum();
            assert_eq!(sum, whole.max(count as u32), "{parts:?}");
            assert!(parts.iter().max().unwrap() - parts.iter().min().unwrap() <= 1, "{parts:?}");
        }
    }

    #[test]
    fn only_endpoints_on_the_edges_networks_are_used() {
        for (networks, endpoints) in [(&["internet"][..], 1), (&["internet", "vpc"], 2), (&["other"], 0)] {
            let service = table(networks).service("site").unwrap();
            assert_eq!(service.actions[0].endpoint_count, endpoints, "{networks:?}");
        }
    }
}
