//! From what was touched to what changed in the table.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{
    ClusterName,
    fleet::Fleet,
    routes::{Cause, ClusterEntry, EdgeEntry, HealthEntry, RouteEntry, RouteKey, ServiceEntry, TiersEntry},
};

use super::{Engine, Pair, Work, ledger::Ledger};
use crate::{
    atlas::{Atlas, ClusterId, Coupling, LaneId, ServiceId},
    event::Changes,
    health::Health,
    overrides::{self, Overrides},
};

/// The entries that changed, and nothing for those that are gone.
type Changed = BTreeMap<RouteKey, Option<RouteEntry>>;

impl Engine {
    pub(super) fn recompute(&mut self, mut work: Work) -> Changes {
        // Taken out for the time of the computation, so that the rest can be changed by it.
        let Some(atlas) = self.atlas.take() else { return Changes::default() };
        let mut changed = Changed::new();
        let mut causes = std::mem::take(&mut work.causes);
        if work.everything {
            self.start_anew(&atlas, &mut work, &mut changed);
        } else {
            if work.forces {
                self.recouple(&atlas, &mut work, &mut changed);
            }
            for name in &work.edges {
                self.set(RouteKey::Edge(name.clone()), self.edge(&atlas, name), &mut changed);
            }
        }
        self.recompute_health(&atlas, &mut work, &mut changed, &mut causes);
        for service in self.share(&atlas, &work) {
            let entry = RouteEntry::Tiers(self.tiers(&atlas, service));
            self.set(RouteKey::Tiers(atlas.service(service).name.clone()), Some(entry), &mut changed);
        }
        self.atlas = Some(atlas);
        if changed.is_empty() {
            causes.clear();
        } else if causes.is_empty() {
            causes.push(Cause::Time);
        }
        Changes { entries: changed.into_iter().collect(), causes }
    }

    /// Everything that the fleet alone decides, when it is new.
    fn start_anew(&mut self, atlas: &Atlas, work: &mut Work, changed: &mut Changed) {
        self.orders.clear();
        let (lanes, regions) = (atlas.lanes().len(), atlas.regions().len());
        self.plans = vec![vec![None; regions]; lanes];
        self.placements = vec![crate::capacity::Placement::default(); lanes];
        self.ledger = Ledger::new(lanes, regions, atlas.clusters().len());
        self.coupling = couple(atlas, &self.overrides);
        self.users = users(atlas, &self.overrides);
        work.services.extend(atlas.services().map(|(id, _)| id));
        work.pairs.extend(self.users.keys().map(|pair| (pair.clone(), None)));
        let gone: Vec<Pair> =
            self.health.keys().filter(|pair| !self.users.contains_key(*pair)).cloned().collect();
        for pair in gone {
            self.health.remove(&pair);
        }
        self.undrained.retain(|cluster, _| atlas.cluster_id(cluster).is_some());
        self.ramps.clear();
        self.ramp_of.clear();
        for (_, cluster) in atlas.clusters() {
            self.schedule_ramp(&cluster.name);
        }
        let gone: Vec<RouteKey> =
            self.table.keys().filter(|key| !self.belongs(atlas, key)).cloned().collect();
        for key in gone {
            self.set(key, None, changed);
        }
        for (key, entry) in fleet_entries(&atlas.fleet) {
            self.set(key, Some(entry), changed);
        }
        for name in atlas.fleet.edges.keys() {
            self.set(RouteKey::Edge(name.clone()), self.edge(atlas, name), changed);
        }
    }

    /// Whether there may be an entry of this key.
    fn belongs(&self, atlas: &Atlas, key: &RouteKey) -> bool {
        let fleet = &atlas.fleet;
        match key {
            RouteKey::Edge(name) => {
                fleet.edges.get(name).is_some_and(|edge| edge.region == self.settings.region)
            }
            RouteKey::Cluster(name) => fleet.clusters.contains_key(name),
            RouteKey::Health(cluster, check) => self.users.contains_key(&(cluster.clone(), *check)),
            RouteKey::Service(name) | RouteKey::Tiers(name) => fleet.services.contains_key(name),
        }
    }

    /// Finds anew which pairs matter and who is coupled, after forced routes changed.
    fn recouple(&mut self, atlas: &Atlas, work: &mut Work, changed: &mut Changed) {
        let touched: Vec<LaneId> = atlas.lanes_of(&work.services).collect();
        let after = couple(atlas, &self.overrides);
        for lane in touched {
            for coupling in [&self.coupling, &after] {
                let group = coupling.group_of(lane).map(|group| coupling.lanes(group)).unwrap_or_default();
                work.services.extend(group.iter().map(|lane| atlas.lane(*lane).service));
            }
        }
        self.coupling = after;
        let before = std::mem::replace(&mut self.users, users(atlas, &self.overrides));
        for pair in before.keys().filter(|pair| !self.users.contains_key(*pair)).cloned().collect::<Vec<_>>()
        {
            self.health.remove(&pair);
            self.set(RouteKey::Health(pair.0, pair.1), None, changed);
        }
        work.pairs.extend(
            self.users.keys().filter(|pair| !before.contains_key(*pair)).map(|pair| (pair.clone(), None)),
        );
    }

    fn recompute_health(
        &mut self,
        atlas: &Atlas,
        work: &mut Work,
        changed: &mut Changed,
        causes: &mut Vec<Cause>,
    ) {
        let mut of_health = Vec::new();
        for (pair, cause) in std::mem::take(&mut work.pairs) {
            let Some(services) = self.users.get(&pair) else { continue };
            let (cluster, check) = &pair;
            let before = self.health.get(&pair);
            let health = Health::look(
                cluster,
                *check,
                &atlas.fleet.clusters[cluster].endpoints,
                &self.evidence,
                &self.settings.region,
                before,
            );
            if before == Some(&health) {
                continue;
            }
            // What is seen elsewhere matters to the shares of other regions, and so to those of this one.
            work.services.extend(services);
            let entry = health.entry.clone();
            self.health.insert(pair.clone(), health);
            self.schedule_ramp(&pair.0);
            let HealthEntry { verdict, reason, .. } = entry.clone();
            if self.set(RouteKey::Health(pair.0.clone(), pair.1), Some(RouteEntry::Health(entry)), changed) {
                of_health.push(Cause::Health {
                    cluster: pair.0,
                    verdict,
                    reason,
                    signal: cause.as_ref().map(|cause| cause.signal),
                    probed_at: cause.map(|cause| cause.probed_at),
                });
            }
        }
        // With a new fleet, verdicts are no news of their own.
        if !work.everything {
            of_health.dedup();
            of_health.append(causes);
            *causes = of_health;
        }
    }

    /// Puts an entry into the table, or takes it out; tells whether that changed anything.
    fn set(&mut self, key: RouteKey, entry: Option<RouteEntry>, changed: &mut Changed) -> bool {
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

    /// The entry of an edge of this region.
    fn edge(&self, atlas: &Atlas, name: &tidegate_model::EdgeName) -> Option<RouteEntry> {
        let edge = atlas.fleet.edges.get(name).filter(|edge| edge.region == self.settings.region)?;
        let listeners = edge.listeners.iter();
        Some(RouteEntry::Edge(EdgeEntry {
            address: edge.address,
            listeners: listeners
                .filter_map(|name| Some((name.clone(), atlas.fleet.listeners.get(name)?.clone())))
                .collect(),
            networks: edge.networks.iter().cloned().collect(),
            drain: self.overrides.edge(name).map(overrides::sentence),
        }))
    }

    fn tiers(&mut self, atlas: &Atlas, service: ServiceId) -> TiersEntry {
        let actions = 0..atlas.service(service).by_action.len();
        TiersEntry { actions: actions.map(|action| self.action_tiers(atlas, service, action)).collect() }
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
pub(super) fn forced(atlas: &Atlas, overrides: &Overrides, service: ServiceId) -> Option<ClusterId> {
    let (cluster, _) = overrides.force(&atlas.service(service).name)?;
    atlas.cluster_id(cluster)
}

fn couple(atlas: &Atlas, overrides: &Overrides) -> Coupling {
    Coupling::new(atlas, |service| forced(atlas, overrides, service))
}

/// The services that each pair matters to.
fn users(atlas: &Atlas, overrides: &Overrides) -> BTreeMap<Pair, Vec<ServiceId>> {
    let mut users: BTreeMap<Pair, Vec<ServiceId>> = BTreeMap::new();
    for (service, facts) in atlas.services() {
        let clusters: BTreeSet<ClusterId> =
            facts.clusters.iter().copied().chain(forced(atlas, overrides, service)).collect();
        for cluster in clusters {
            let name: ClusterName = atlas.cluster(cluster).name.clone();
            users.entry((name, facts.check)).or_default().push(service);
        }
    }
    users
}
