//! The fleet with numbers for names, and what follows from it alone: who is near whom, and which services share
//! clusters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidegate_model::{
    ClusterName, RegionName, ServiceName,
    fleet::{Fleet, Preference},
    health::CheckId,
};

use crate::{proximity::Proximity, word::Thresholds};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(u32);

        impl $name {
            pub(crate) fn index(self) -> usize {
                self.0 as usize
            }

            // A fleet of more than four thousand million things does not fit into memory.
            pub(crate) fn numbered(index: usize) -> Self {
                Self(index as u32)
            }
        }
    )*};
}

ids! {
    /// A cluster's number; numbers follow the order of names.
    ClusterId;
    /// A region's number; numbers follow the order of names.
    RegionId;
    /// A service's number; numbers follow the order of names.
    ServiceId;
}

/// What the fleet says of a cluster.
#[derive(Debug)]
pub(crate) struct ClusterFacts {
    pub(crate) name: ClusterName,
    pub(crate) region: RegionId,
    /// Requests per second.
    pub(crate) capacity: Option<u32>,
}

/// What the fleet says of a service.
#[derive(Debug)]
pub(crate) struct ServiceFacts {
    pub(crate) name: ServiceName,
    pub(crate) check: CheckId,
    pub(crate) priority: u8,
    /// Of the default action, then of each route.
    pub(crate) preferences: Vec<Preference>,
    /// The clusters of all actions.
    pub(crate) clusters: BTreeSet<ClusterId>,
}

/// The fleet with numbers for names.
#[derive(Debug)]
pub(crate) struct Atlas {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) home: RegionId,
    regions: Vec<RegionName>,
    clusters: Vec<ClusterFacts>,
    services: Vec<ServiceFacts>,
    proximities: Vec<Proximity>,
}

impl Atlas {
    pub(crate) fn new(fleet: Arc<Fleet>, home: &RegionName) -> Atlas {
        // The region itself is there even when the fleet does not know it.
        let regions: BTreeSet<&RegionName> = fleet.regions.keys().chain([home]).collect();
        let regions: Vec<RegionName> = regions.into_iter().cloned().collect();
        let region_id = |name: &RegionName| regions.binary_search(name).map(RegionId::numbered).ok();
        let clusters: Vec<ClusterFacts> = fleet
            .clusters
            .iter()
            .filter_map(|(name, cluster)| {
                let region = region_id(&cluster.region)?;
                Some(ClusterFacts { name: name.clone(), region, capacity: cluster.capacity })
            })
            .collect();
        let cluster_id = |name: &ClusterName| {
            clusters.binary_search_by(|c| c.name.cmp(name)).map(ClusterId::numbered).ok()
        };
        let services = fleet
            .services
            .iter()
            .map(|(name, service)| {
                let preferences: Vec<Preference> =
                    service.actions().map(|action| action.clusters.clone()).collect();
                let clusters = preferences.iter().flat_map(Preference::clusters).filter_map(cluster_id);
                ServiceFacts {
                    name: name.clone(),
                    check: service.health.id(),
                    priority: service.priority,
                    clusters: clusters.collect(),
                    preferences,
                }
            })
            .collect();
        let proximities = regions
            .iter()
            .flat_map(|from| regions.iter().map(|to| Proximity::between(&fleet, from, to)))
            .collect();
        // It is in the list that was searched.
        let home = region_id(home).expect("the home region is among the regions");
        Atlas { home, regions, clusters, services, proximities, fleet }
    }

    pub(crate) fn cluster(&self, id: ClusterId) -> &ClusterFacts {
        &self.clusters[id.index()]
    }

    pub(crate) fn clusters(&self) -> impl ExactSizeIterator<Item = (ClusterId, &ClusterFacts)> {
        self.clusters.iter().enumerate().map(|(index, facts)| (ClusterId::numbered(index), facts))
    }

    pub(crate) fn cluster_id(&self, name: &ClusterName) -> Option<ClusterId> {
        self.clusters.binary_search_by(|cluster| cluster.name.cmp(name)).map(ClusterId::numbered).ok()
    }

    pub(crate) fn service(&self, id: ServiceId) -> &ServiceFacts {
        &self.services[id.index()]
    }

    pub(crate) fn services(&self) -> impl ExactSizeIterator<Item = (ServiceId, &ServiceFacts)> {
        self.services.iter().enumerate().map(|(index, facts)| (ServiceId::numbered(index), facts))
    }

    pub(crate) fn service_id(&self, name: &ServiceName) -> Option<ServiceId> {
        self.services.binary_search_by(|service| service.name.cmp(name)).map(ServiceId::numbered).ok()
    }

    pub(crate) fn region(&self, id: RegionId) -> &RegionName {
        &self.regions[id.index()]
    }

    pub(crate) fn regions(&self) -> impl ExactSizeIterator<Item = (RegionId, &RegionName)> {
        self.regions.iter().enumerate().map(|(index, name)| (RegionId::numbered(index), name))
    }

    pub(crate) fn region_id(&self, name: &RegionName) -> Option<RegionId> {
        self.regions.binary_search(name).map(RegionId::numbered).ok()
    }

    pub(crate) fn proximity(&self, from: RegionId, to: RegionId) -> Proximity {
        self.proximities[from.index() * self.regions.len() + to.index()]
    }

    /// The thresholds of all checks.
    pub(crate) fn thresholds(&self) -> BTreeMap<CheckId, Thresholds> {
        let checks = self.services.iter().zip(self.fleet.services.values());
        checks.map(|(facts, service)| (facts.check, Thresholds::of(&service.health))).collect()
    }
}

/// Which services share clusters of limited capacity, and so must be shared out together.
#[derive(Debug, Default)]
pub(crate) struct Coupling {
    groups: Vec<Vec<ServiceId>>,
    of_service: Vec<Option<usize>>,
}

impl Coupling {
    /// The coupling when each service may use its own clusters and the one that it is `forced` to.
    pub(crate) fn new(atlas: &Atlas, forced: impl Fn(ServiceId) -> Option<ClusterId>) -> Coupling {
        // Union-find: `parent` over services; each limited cluster ties its services together.
        let mut parent: Vec<usize> = (0..atlas.services.len()).collect();
        let mut first_user: Vec<Option<usize>> = vec![None; atlas.clusters.len()];
        let mut limited = vec![false; atlas.services.len()];
        for (service, facts) in atlas.services() {
            for cluster in facts.clusters.iter().copied().chain(forced(service)) {
                if atlas.cluster(cluster).capacity.is_none() {
                    continue;
                }
                limited[service.index()] = true;
                match first_user[cluster.index()] {
                    None => first_user[cluster.index()] = Some(service.index()),
                    Some(other) => {
                        let (a, b) = (root(&mut parent, service.index()), root(&mut parent, other));
                        parent[a.max(b)] = a.min(b);
                    }
                }
            }
        }
        let mut coupling = Coupling { groups: Vec::new(), of_service: vec![None; atlas.services.len()] };
        let mut group_of_root: BTreeMap<usize, usize> = BTreeMap::new();
        for (service, _) in atlas.services().filter(|(service, _)| limited[service.index()]) {
            let root = root(&mut parent, service.index());
            let group = *group_of_root.entry(root).or_insert_with(|| {
                coupling.groups.push(Vec::new());
                coupling.groups.len() - 1
            });
            coupling.groups[group].push(service);
            coupling.of_service[service.index()] = Some(group);
        }
        coupling
    }

    /// The group of a service; nothing when it uses no cluster of limited capacity.
    pub(crate) fn group_of(&self, service: ServiceId) -> Option<usize> {
        self.of_service[service.index()]
    }

    /// The services of a group, in order.
    pub(crate) fn services(&self, group: usize) -> &[ServiceId] {
        &self.groups[group]
    }
}

fn root(parent: &mut [usize], mut node: usize) -> usize {
    while parent[node] != node {
        parent[node] = parent[parent[node]];
        node = parent[node];
    }
    node
}
