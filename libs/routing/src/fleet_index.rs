//! The fleet index: numbers for the fleet's names, and what follows from the fleet alone, such as the proximity of regions
//! and the coupling of services that share clusters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidegate_model::{
    ClusterName, EdgeName, RegionName, ServiceName,
    fleet::{Fleet, Preference},
    health::CheckId,
};

use crate::{probe_state::Thresholds, proximity::Proximity};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(u32);

        impl $name {
            pub(crate) fn index(self) -> usize {
                self.0 as usize
            }

            // A fleet of more than 4 billion items does not fit into memory.
            pub(crate) fn numbered(index: usize) -> Self {
                Self(index as u32)
            }
        }
    )*};
}

ids! {
    /// The number of a cluster, in the order of names.
    ClusterId;
    /// The number of a region, in the order of names.
    RegionId;
    /// The number of a service, in the order of names.
    ServiceId;
    /// The number of a demand class. Those of one service are consecutive.
    DemandClassId;
}

/// A cluster of the fleet.
#[derive(Debug, Clone)]
pub(crate) struct IndexedCluster {
    pub(crate) name: ClusterName,
    pub(crate) region: RegionId,
    /// Requests per second.
    pub(crate) capacity: Option<u32>,
}

/// A service of the fleet.
#[derive(Debug, Clone)]
pub(crate) struct IndexedService {
    pub(crate) name: ServiceName,
    pub(crate) check: CheckId,
    pub(crate) priority: u8,
    /// The demand class of the default action, then of each route.
    pub(crate) by_action: Vec<DemandClassId>,
    /// The clusters of all actions.
    pub(crate) clusters: BTreeSet<ClusterId>,
}

impl IndexedService {
    /// The demand class of an action. An action that the fleet does not have, as an edge with another fleet may report, is
    /// counted as the default action.
    pub(crate) fn class(&self, action: usize) -> DemandClassId {
        self.by_action.get(action).copied().unwrap_or(self.by_action[0])
    }

    /// Its demand classes, each once.
    pub(crate) fn classes(&self) -> impl Iterator<Item = DemandClassId> + use<> {
        let last = self.by_action.iter().max().map_or(0, |last| last.index());
        (self.by_action[0].index()..=last).map(DemandClassId::numbered)
    }
}

/// A demand class: the requests of one service with the same cluster preference, of one action or of several. Shares are
/// computed by demand class.
#[derive(Debug, Clone)]
pub(crate) struct DemandClass {
    pub(crate) service: ServiceId,
    /// The first of its actions.
    pub(crate) action: usize,
    pub(crate) preference: Preference,
    pub(crate) clusters: BTreeSet<ClusterId>,
}

/// The fleet, indexed by number.
#[derive(Debug, Clone)]
pub(crate) struct FleetIndex {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) home: RegionId,
    regions: Vec<RegionName>,
    clusters: Vec<IndexedCluster>,
    services: Vec<IndexedService>,
    classes: Vec<DemandClass>,
    proximities: Vec<Proximity>,
}

impl FleetIndex {
    /// Whether the fleet has this edge in this region.
    pub(crate) fn has_edge(&self, edge: &EdgeName, region: &RegionName) -> bool {
        self.fleet.has_edge(edge, region)
    }

    pub(crate) fn new(fleet: Arc<Fleet>, home: &RegionName) -> FleetIndex {
        // The home region is included even if the fleet lacks it.
        let regions: BTreeSet<&RegionName> = fleet.regions.keys().chain([home]).collect();
        let regions: Vec<RegionName> = regions.into_iter().cloned().collect();
        let region_id = |name: &RegionName| regions.binary_search(name).map(RegionId::numbered).ok();
        let clusters: Vec<IndexedCluster> = fleet
            .clusters
            .iter()
            .filter_map(|(name, cluster)| {
                let region = region_id(&cluster.region)?;
                Some(IndexedCluster { name: name.clone(), region, capacity: cluster.capacity })
            })
            .collect();
        let cluster_id = |name: &ClusterName| {
            clusters.binary_search_by(|c| c.name.cmp(name)).map(ClusterId::numbered).ok()
        };
        let mut classes: Vec<DemandClass> = Vec::new();
        let mut services = Vec::with_capacity(fleet.services.len());
        for (number, (name, service)) in fleet.services.iter().enumerate() {
            let first = classes.len();
            let mut by_action = Vec::new();
            for (action, preference) in service.actions().map(|action| &action.clusters).enumerate() {
                let known = classes[first..].iter().position(|class| class.preference == *preference);
                let at = first + known.unwrap_or(classes.len() - first);
                if at == classes.len() {
                    let clusters = preference.clusters().into_iter().filter_map(cluster_id).collect();
                    let service = ServiceId::numbered(number);
                    classes.push(DemandClass { service, action, preference: preference.clone(), clusters });
                }
                by_action.push(DemandClassId::numbered(at));
            }
            services.push(IndexedService {
                name: name.clone(),
                check: service.health.id(),
                priority: service.priority,
                by_action,
                clusters: classes[first..].iter().flat_map(|class| &class.clusters).copied().collect(),
            });
        }
        let proximities = regions
            .iter()
            .flat_map(|from| regions.iter().map(|to| Proximity::between(&fleet, from, to)))
            .collect();
        // It is in the list that was searched.
        let home = region_id(home).expect("the home region is among the regions");
        FleetIndex { home, regions, clusters, services, classes, proximities, fleet }
    }

    pub(crate) fn cluster(&self, id: ClusterId) -> &IndexedCluster {
        &self.clusters[id.index()]
    }

    pub(crate) fn clusters(&self) -> impl ExactSizeIterator<Item = (ClusterId, &IndexedCluster)> {
        self.clusters.iter().enumerate().map(|(index, cluster)| (ClusterId::numbered(index), cluster))
    }

    pub(crate) fn cluster_id(&self, name: &ClusterName) -> Option<ClusterId> {
        self.clusters.binary_search_by(|cluster| cluster.name.cmp(name)).map(ClusterId::numbered).ok()
    }

    pub(crate) fn service(&self, id: ServiceId) -> &IndexedService {
        &self.services[id.index()]
    }

    pub(crate) fn services(&self) -> impl ExactSizeIterator<Item = (ServiceId, &IndexedService)> {
        self.services.iter().enumerate().map(|(index, service)| (ServiceId::numbered(index), service))
    }

    pub(crate) fn service_id(&self, name: &ServiceName) -> Option<ServiceId> {
        self.services.binary_search_by(|service| service.name.cmp(name)).map(ServiceId::numbered).ok()
    }

    pub(crate) fn class(&self, id: DemandClassId) -> &DemandClass {
        &self.classes[id.index()]
    }

    pub(crate) fn classes(&self) -> impl ExactSizeIterator<Item = (DemandClassId, &DemandClass)> {
        self.classes.iter().enumerate().map(|(index, class)| (DemandClassId::numbered(index), class))
    }

    /// The demand classes of some services.
    pub(crate) fn classes_of<'a>(
        &'a self,
        services: impl IntoIterator<Item = &'a ServiceId>,
    ) -> impl Iterator<Item = DemandClassId> {
        services.into_iter().flat_map(|service| self.service(*service).classes())
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
        checks.map(|(indexed, service)| (indexed.check, Thresholds::of(&service.health))).collect()
    }
}

/// The groups of demand classes that share clusters of limited capacity, so that their shares depend on each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coupling {
    groups: Vec<Vec<DemandClassId>>,
    of_class: Vec<Option<usize>>,
}

impl Coupling {
    /// The coupling where each demand class may use its own clusters and the one that its service is `forced` to.
    pub(crate) fn new(index: &FleetIndex, forced: impl Fn(ServiceId) -> Option<ClusterId>) -> Coupling {
        // Union-find over demand classes: each limited cluster joins those that use it.
        let mut parent: Vec<usize> = (0..index.classes.len()).collect();
        let mut first_user: Vec<Option<usize>> = vec![None; index.clusters.len()];
        let mut limited = vec![false; index.classes.len()];
        for (id, class) in index.classes() {
            for cluster in class.clusters.iter().copied().chain(forced(class.service)) {
                if index.cluster(cluster).capacity.is_none() {
                    continue;
                }
                limited[id.index()] = true;
                match first_user[cluster.index()] {
                    None => first_user[cluster.index()] = Some(id.index()),
                    Some(other) => {
                        let (a, b) = (root(&mut parent, id.index()), root(&mut parent, other));
                        parent[a.max(b)] = a.min(b);
                    }
                }
            }
        }
        let mut coupling = Coupling { groups: Vec::new(), of_class: vec![None; index.classes.len()] };
        let mut group_of_root: BTreeMap<usize, usize> = BTreeMap::new();
        for (class, _) in index.classes().filter(|(class, _)| limited[class.index()]) {
            let root = root(&mut parent, class.index());
            let group = *group_of_root.entry(root).or_insert_with(|| {
                coupling.groups.push(Vec::new());
                coupling.groups.len() - 1
            });
            coupling.groups[group].push(class);
            coupling.of_class[class.index()] = Some(group);
        }
        coupling
    }

    /// The group of a demand class, if it uses a cluster of limited capacity.
    pub(crate) fn group_of(&self, class: DemandClassId) -> Option<usize> {
        self.of_class[class.index()]
    }

    /// The demand classes of a group, in order.
    pub(crate) fn classes(&self, group: usize) -> &[DemandClassId] {
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
