//! Resolves table entries to views: clusters with their endpoints, services with their actions.

use std::{rc::Rc, sync::Arc};

use tidegate_model::{
    ClusterName, ServiceName,
    fleet::{Policy, RouteMatch},
    health::CheckId,
    routes::{
        ActionTiers, ClusterEntry, EndpointHealth, HealthEntry, RouteEntry, RouteKey, ServiceEntry,
        TiersEntry,
    },
    verdict::Verdict,
};

use super::{ActionView, ResolvedCluster, ServiceView, Table};
use crate::{
    balance::{Candidate, LatencyHistogram, RetryBudget, TierView, WeightedCluster},
    metrics::ClusterGauges,
    upstream::{ClusterState, EndpointState},
};

impl Table {
    /// Updates the edge's networks from its entry. Returns whether they changed; all clusters are then resolved again.
    pub(super) fn update_networks(&mut self) -> bool {
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

    pub(super) fn resolve_cluster(&mut self, name: &ClusterName) {
        let Some(RouteEntry::Cluster(entry)) =
            self.entries.get(&RouteKey::Cluster(name.clone())).map(Arc::as_ref)
        else {
            if let Some(gone) = self.clusters.remove(name) {
                let ClusterGauges { active, waiting, idle, http2 } = &gone.cluster.counters.gauges;
                [active, waiting, idle, http2].into_iter().for_each(|gauge| gauge.set(0));
            }
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
                known.cloned().unwrap_or_else(|| EndpointState::new(endpoint.address.clone(), name.clone()))
            })
            .collect();
        let cluster = match old {
            Some(state) if state.cluster.region == entry.region => state.cluster.clone(),
            Some(_) | None => Rc::new(self.new_cluster(name, entry)),
        };
        self.clusters.insert(name.clone(), ResolvedCluster { cluster, endpoints });
    }

    fn new_cluster(&self, name: &ClusterName, entry: &ClusterEntry) -> ClusterState {
        let tls = entry.upstream.tls.as_ref();
        ClusterState::new(
            (name.clone(), entry.region.clone()),
            entry.upstream.clone(),
            tls.map(|tls| self.tls.get(&(tls.clone(), entry.upstream.protocol))),
            self.worker.part_of(entry.upstream.max_requests),
            self.metrics.cluster(self.worker.id, name),
        )
    }

    pub(super) fn resolve_service(&mut self, name: &ServiceName) {
        let old = self.services.remove(name);
        if let Some(old) = &old {
            for cluster in old.clusters() {
                self.services_by_cluster.entry(cluster).or_default().remove(name);
            }
        }
        let entry = self.entries.get(&RouteKey::Service(name.clone())).cloned();
        let tiers = self.entries.get(&RouteKey::Tiers(name.clone())).cloned();
        self.update_hosts(name, entry.as_deref(), old.as_deref());
        let (Some(RouteEntry::Service(entry)), Some(RouteEntry::Tiers(tiers))) =
            (entry.as_deref(), tiers.as_deref())
        else {
            return;
        };
        for action in &tiers.actions {
            for (cluster, _) in action.tiers.iter().flat_map(|tier| &tier.shares) {
                self.services_by_cluster.entry(cluster.clone()).or_default().insert(name.clone());
            }
        }
        let view = self.build_service_view(name, entry, tiers, old.as_deref());
        self.services.insert(name.clone(), Rc::new(view));
    }

    /// Updates the host index from the service's entry.
    fn update_hosts(&mut self, name: &ServiceName, entry: Option<&RouteEntry>, old: Option<&ServiceView>) {
        let hosts = match entry {
            Some(RouteEntry::Service(entry)) => entry.hosts.as_slice(),
            _ => &[],
        };
        // A failover changes tiers, not hosts, so most updates leave the index alone.
        if old.map_or(&[][..], |old| old.hosts.as_slice()) != hosts {
            self.hosts.set(name, hosts);
        }
    }

    fn build_service_view(
        &self,
        name: &ServiceName,
        entry: &ServiceEntry,
        tiers: &TiersEntry,
        old: Option<&ServiceView>,
    ) -> ServiceView {
        let budgets = budgets(entry, old);
        let routes = entry.routes.iter().map(|(route, policy)| (path_of(route), policy));
        let actions = std::iter::once((None, &entry.default_policy))
            .chain(routes)
            .zip(budgets)
            .enumerate()
            .map(|(index, ((route, policy), budget))| {
                let empty = ActionTiers {
                    tiers: Vec::new(),
                    shed_permille: 0,
                    fail_open: false,
                    reason: String::new(),
                };
                let from = tiers.actions.get(index).unwrap_or(&empty);
                self.build_action_view((name, index, route), (policy, budget), from, entry.check)
            })
            .collect();
        ServiceView {
            name: name.clone(),
            check: entry.check,
            max_request_body: entry.max_request_body,
            actions,
            latency: old.map_or_else(|| Rc::new(LatencyHistogram::new()), |old| old.latency.clone()),
            counters: self.metrics.service(self.worker.id, name),
            hosts: entry.hosts.clone(),
            routes: entry.routes.iter().map(|(route, _)| route.clone()).collect(),
        }
    }

    fn build_action_view(
        &self,
        (service, action, route): (&ServiceName, usize, Option<String>),
        (policy, budget): (&Policy, Rc<RetryBudget>),
        from: &ActionTiers,
        check: CheckId,
    ) -> ActionView {
        let tiers: Vec<TierView> = from
            .tiers
            .iter()
            .enumerate()
            .map(|(index, tier)| {
                let weighted_clusters = tier.shares.iter().filter_map(|(name, share)| {
                    let state = self.clusters.get(name)?;
                    let health = self.health(name, check);
                    let endpoints = state.endpoints.iter().map(|endpoint| Candidate {
                        endpoint: endpoint.clone(),
                        verdict: health
                            .and_then(|health| health_of(health, endpoint))
                            .map_or(Verdict::Unknown, |known| known.verdict),
                        detector: endpoint.detector(service, action),
                    });
                    Some(WeightedCluster {
                        share: u32::from(*share),
                        cluster: state.cluster.clone(),
                        endpoints: endpoints.collect(),
                        serving: self.metrics.serving(self.worker.id, (service.clone(), name.clone(), index)),
                    })
                });
                TierView { index, weighted_clusters: weighted_clusters.collect() }
            })
            .filter(|tier: &TierView| !tier.weighted_clusters.is_empty())
            .collect();
        let endpoint_count = tiers
            .iter()
            .flat_map(|tier| &tier.weighted_clusters)
            .map(|weighted| weighted.endpoints.len())
            .sum();
        ActionView {
            requests: self.metrics.requests(self.worker.id, (service.clone(), route.clone())),
            demand: self.metrics.demand(self.worker.id, (service.clone(), action)),
            route,
            policy: policy.clone(),
            budget,
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

    pub(super) fn apply_health(&self, name: &ClusterName, check: CheckId) {
        let Some(state) = self.clusters.get(name) else { return };
        let health = self.health(name, check);
        for endpoint in &state.endpoints {
            let known = health.and_then(|health| health_of(health, endpoint));
            let down = known.is_some_and(|known| matches!(known.verdict, Verdict::Down | Verdict::PathDown));
            endpoint.set_health(check, down, known.is_some_and(|known| known.unreachable));
        }
    }
}

/// The path pattern of a route, if it has one.
fn path_of(route: &RouteMatch) -> Option<String> {
    match (&route.path, &route.path_prefix) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(prefix)) => Some(format!("{}/*", prefix.trim_end_matches('/'))),
        (None, None) => None,
    }
}

/// The retry budgets of the default action and the routes. An action that exists in `old` keeps its tokens. A route
/// shares the service's budget, unless its percentage differs; then its budget is a share of its own requests.
fn budgets(entry: &ServiceEntry, old: Option<&ServiceView>) -> Vec<Rc<RetryBudget>> {
    let of = |known: Option<&Rc<RetryBudget>>, percent: u8| {
        let budget = known.map_or_else(|| Rc::new(RetryBudget::new(percent)), Rc::clone);
        budget.set_percent(percent);
        budget
    };
    let shared_percent = entry.default_policy.budget_percent;
    let was_shared = old.map(|old| &old.actions[0].budget);
    let shared = of(was_shared, shared_percent);
    let own = entry.routes.iter().map(|(route, policy)| {
        if policy.budget_percent == shared_percent {
            return shared.clone();
        }
        let index = old.and_then(|old| old.routes.iter().position(|known| known == route));
        let known = old.zip(index).map(|(old, index)| &old.actions[index + 1].budget);
        of(known.filter(|known| was_shared.is_none_or(|was| !Rc::ptr_eq(known, was))), policy.budget_percent)
    });
    std::iter::once(shared.clone()).chain(own).collect()
}

fn health_of<'a>(health: &'a HealthEntry, endpoint: &EndpointState) -> Option<&'a EndpointHealth> {
    health.endpoints.iter().find(|known| known.address == endpoint.address)
}
