//! The recomputation of what an event affects, and the resulting changes of the route table.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{
    ClusterName,
    fleet::Fleet,
    routes::{Cause, ClusterEntry, EdgeEntry, HealthEntry, RouteEntry, RouteKey, ServiceEntry, TiersEntry},
};

use super::{Engine, Pair, Work, allocations::Allocations};
use crate::{
    event::Changes,
    fleet_index::{ClusterId, Coupling, DemandClassId, FleetIndex, ServiceId},
    overrides::{self, Overrides},
    regional_health::ClusterHealth,
};

/// The entries that changed; absent if removed.
type Changed = BTreeMap<RouteKey, Option<RouteEntry>>;

impl Engine {
    pub(super) fn recompute(&mut self, mut work: Work) -> Changes {
        // Taken during the computation, which needs it while it changes the rest.
        let Some(index) = self.index.take() else { return Changes::default() };
        let mut changed = Changed::new();
        let mut causes = std::mem::take(&mut work.causes);
        if work.everything {
            self.rebuild(&index, &mut work, &mut changed);
        } else {
            if work.forces {
                self.recouple(&index, &mut work, &mut changed);
            }
            for name in &work.edges {
                self.set_entry(RouteKey::Edge(name.clone()), self.edge_entry(&index, name), &mut changed);
            }
        }
        self.recompute_health(&index, &mut work, &mut changed, &mut causes);
        for service in self.share_out(&index, &work) {
            let entry = RouteEntry::Tiers(self.tiers_entry(&index, service));
            self.set_entry(RouteKey::Tiers(index.service(service).name.clone()), Some(entry), &mut changed);
        }
        self.index = Some(index);
        if changed.is_empty() {
            causes.clear();
        } else if causes.is_empty() {
            causes.push(Cause::Time);
        }
        Changes { entries: changed.into_iter().collect(), causes }
    }

    /// Rebuilds what the fleet alone decides.
    fn rebuild(&mut self, index: &FleetIndex, work: &mut Work, changed: &mut Changed) {
        self.orders.clear();
        let (classes, regions) = (index.classes().len(), index.regions().len());
        self.plans = vec![vec![None; regions]; classes];
        self.placements = vec![crate::capacity::Placement::default(); classes];
        self.allocations = Allocations::new(classes, regions, index.clusters().len());
        self.coupling = couple(index, &self.overrides);
        self.users = users(index, &self.overrides);
        work.services.extend(index.services().map(|(id, _)| id));
        work.pairs.extend(self.users.keys().map(|pair| (pair.clone(), None)));
        let gone: Vec<Pair> =
            self.health.keys().filter(|pair| !self.users.contains_key(*pair)).cloned().collect();
        for pair in gone {
            self.health.remove(&pair);
        }
        self.drain_ended.retain(|cluster, _| index.cluster_id(cluster).is_some());
        self.ramps.clear();
        self.ramp_of.clear();
        for (_, cluster) in index.clusters() {
            self.schedule_ramp(&cluster.name);
        }
        let gone: Vec<RouteKey> =
            self.table.keys().filter(|key| !self.is_in_fleet(index, key)).cloned().collect();
        for key in gone {
            self.set_entry(key, None, changed);
        }
        for (key, entry) in fleet_entries(&index.fleet) {
            self.set_entry(key, Some(entry), changed);
        }
        for name in index.fleet.edges.keys() {
            self.set_entry(RouteKey::Edge(name.clone()), self.edge_entry(index, name), changed);
        }
    }

    /// Whether the route table may have an entry with this key.
    fn is_in_fleet(&self, index: &FleetIndex, key: &RouteKey) -> bool {
        let fleet = &index.fleet;
        match key {
            RouteKey::Edge(name) => {
                fleet.edges.get(name).is_some_and(|edge| edge.region == self.settings.region)
            }
            RouteKey::Cluster(name) => fleet.clusters.contains_key(name),
            RouteKey::Health(cluster, check) => self.users.contains_key(&(cluster.clone(), *check)),
            RouteKey::Service(name) | RouteKey::Tiers(name) => fleet.services.contains_key(name),
        }
    }

    /// Updates the pairs in use and the coupling after forced routes changed.
    fn recouple(&mut self, index: &FleetIndex, work: &mut Work, changed: &mut Changed) {
        let changed_classes: Vec<DemandClassId> = index.classes_of(&work.services).collect();
        let after = couple(index, &self.overrides);
        for class in changed_classes {
            for coupling in [&self.coupling, &after] {
                let group = coupling.group_of(class).map(|group| coupling.classes(group)).unwrap_or_default();
                work.services.extend(group.iter().map(|class| index.class(*class).service));
            }
        }
        self.coupling = after;
        let before = std::mem::replace(&mut self.users, users(index, &self.overrides));
        for pair in before.keys().filter(|pair| !self.users.contains_key(*pair)).cloned().collect::<Vec<_>>()
        {
            self.health.remove(&pair);
            self.set_entry(RouteKey::Health(pair.0, pair.1), None, changed);
        }
        work.pairs.extend(
            self.users.keys().filter(|pair| !before.contains_key(*pair)).map(|pair| (pair.clone(), None)),
        );
    }

    fn recompute_health(
        &mut self,
        index: &FleetIndex,
        work: &mut Work,
        changed: &mut Changed,
        causes: &mut Vec<Cause>,
    ) {
        let mut of_health = Vec::new();
        for (pair, cause) in std::mem::take(&mut work.pairs) {
            let Some(services) = self.users.get(&pair) else { continue };
            let (cluster, check) = &pair;
            let before = self.health.get(&pair);
            let health = ClusterHealth::assess(
                cluster,
                *check,
                &index.fleet.clusters[cluster].endpoints,
                &self.probers,
                &self.settings.region,
                before,
            );
            if before == Some(&health) {
                continue;
            }
            // Verdicts of other regions affect their shares, and so those of this one.
            work.services.extend(services);
            let entry = health.entry.clone();
            self.health.insert(pair.clone(), health);
            self.schedule_ramp(&pair.0);
            let HealthEntry { verdict, reason, .. } = entry.clone();
            if self.set_entry(
                RouteKey::Health(pair.0.clone(), pair.1),
                Some(RouteEntry::Health(entry)),
                changed,
            ) {
                of_health.push(Cause::Health {
                    cluster: pair.0,
                    verdict,
                    reason,
                    signal: cause.as_ref().map(|cause| cause.signal),
                    probed_at: cause.map(|cause| cause.probed_at),
                });
            }
        }
        // With a new fleet, the fleet is the cause of its verdicts.
        if !work.everything {
            of_health.dedup();
            of_health.append(causes);
            *causes = of_health;
        }
    }

    /// Sets or removes an entry of the table. Returns whether that changed it.
    fn set_entry(&mut self, key: RouteKey, entry: Option<RouteEntry>, changed: &mut Changed) -> bool {
        if self.table.get(&key) == entry.as_ref() {
            return false;
        }
        match &entry {
            Some(entry) => self.table.insert(key.clone(), entry.clone()),
            None => self.table.remove(&key),
        };
        changed.insert(key, entry);
        true
    }

    /// The entry of an edge; absent if the home region lacks it.
    fn edge_entry(&self, index: &FleetIndex, name: &tidegate_model::EdgeName) -> Option<RouteEntry> {
        let edge = index.fleet.edges.get(name).filter(|edge| edge.region == self.settings.region)?;
        let listeners = edge.listeners.iter();
        Some(RouteEntry::Edge(EdgeEntry {
            address: edge.address,
            listeners: listeners
                .filter_map(|name| Some((name.clone(), index.fleet.listeners.get(name)?.clone())))
                .collect(),
            networks: edge.networks.iter().cloned().collect(),
            drain: self.overrides.edge_drain_of(name).map(overrides::describe),
        }))
    }

    fn tiers_entry(&mut self, index: &FleetIndex, service: ServiceId) -> TiersEntry {
        let actions = 0..index.service(service).by_action.len();
        TiersEntry { actions: actions.map(|action| self.action_tiers(index, service, action)).collect() }
    }
}

fn fleet_entries(fleet: &Fleet) -> impl Iterator<Item = (RouteKey, RouteEntry)> {
    let clusters = fleet.clusters.iter().map(|(name, cluster)| {
        let entry = ClusterEntry {
            region: cluster.region.clone(),
            endpoints: cluster.endpoints.clone(),
            upstream: cluster.upstream.clone(),
        };
        (RouteKey::Cluster(name.clone()), RouteEntry::Cluster(entry))
    });
    let services = fleet.services.iter().map(|(name, service)| {
        let routes = service.routes.iter();
        let entry = ServiceEntry {
            hosts: service.hosts.clone(),
            check: service.health.id(),
            max_request_body: service.max_request_body,
            default_policy: service.default.policy.clone(),
            routes: routes.map(|route| (route.matches.clone(), route.action.policy.clone())).collect(),
        };
        (RouteKey::Service(name.clone()), RouteEntry::Service(entry))
    });
    clusters.chain(services)
}

/// The cluster that a service is forced to, if the fleet has both.
pub(super) fn forced(index: &FleetIndex, overrides: &Overrides, service: ServiceId) -> Option<ClusterId> {
    let (cluster, _) = overrides.forced_route(&index.service(service).name)?;
    index.cluster_id(cluster)
}

fn couple(index: &FleetIndex, overrides: &Overrides) -> Coupling {
    Coupling::new(index, |service| forced(index, overrides, service))
}

/// The services that use each pair.
fn users(index: &FleetIndex, overrides: &Overrides) -> BTreeMap<Pair, Vec<ServiceId>> {
    let mut users: BTreeMap<Pair, Vec<ServiceId>> = BTreeMap::new();
    for (id, service) in index.services() {
        let clusters: BTreeSet<ClusterId> =
            service.clusters.iter().copied().chain(forced(index, overrides, id)).collect();
        for cluster in clusters {
            let name: ClusterName = index.cluster(cluster).name.clone();
            users.entry((name, service.check)).or_default().push(id);
        }
    }
    users
}
