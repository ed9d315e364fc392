//! The fleet with numbers for names, and what follows from it alone: who is near whom, and which services share
//! clusters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidegate_model::{
    ClusterName, EdgeName, RegionName, ServiceName,
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
    /// A lane's number; those of a service follow one another.
    LaneId;
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
    /// The lanes of the default action, then of each route.
    pub(crate) by_action: Vec<LaneId>,
    /// The clusters of all actions.
    pub(crate) clusters: BTreeSet<ClusterId>,
}

impl ServiceFacts {
    /// The lane of an action; of the default action where there is none, as an edge may say that knows another fleet.
    pub(crate) fn lane(&self, action: usize) -> LaneId {
        self.by_action.get(action).copied().unwrap_or(self.by_action[0])
    }

    /// Its lanes, each once.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = LaneId> + use<> {
        let last = self.by_action.iter().max().map_or(0, |last| last.index());
        (self.by_action[0].index()..=last).map(LaneId::numbered)
    }
}

/// The requests of one service that prefer the same clusters: those of one action, or of several that say the same. They
/// are shared out together.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) service: ServiceId,
    /// The first of its actions.
    pub(crate) action: usize,
    pub(crate) preference: Preference,
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
    lanes: Vec<Lane>,
    proximities: Vec<Proximity>,
}

impl Atlas {
    /// Whether the fleet has this edge, in this region.
    pub(crate) fn has_edge(&self, edge: &EdgeName, region: &RegionName) -> bool {
        self.fleet.has_edge(edge, region)
    }

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
        let mut lanes: Vec<Lane> = Vec::new();
        let mut services = Vec::with_capacity(fleet.services.len());
        for (index, (name, service)) in fleet.services.iter().enumerate() {
            let first = lanes.len();
            let mut by_action = Vec::new();
            for (action, preference) in service.actions().map(|action| &action.clusters).enumerate() {
                let known = lanes[first..].iter().position(|lane| lane.preference == *preference);
                let at = first + known.unwrap_or(lanes.len() - first);
                if at == lanes.len() {
                    let clusters = preference.clusters().into_iter().filter_map(cluster_id).collect();
                    let service = ServiceId::numbered(index);
                    lanes.push(Lane { service, action, preference: preference.clone(), clusters });
                }
                by_action.push(LaneId::numbered(at));
            }
            services.push(ServiceFacts {
                name: name.clone(),
                check: service.health.id(),
                priority: service.priority,
                by_action,
                clusters: lanes[first..].iter().flat_map(|lane| &lane.clusters).copied().collect(),
            });
        }
        let proximities = regions
            .iter()
            .flat_map(|from| regions.iter().map(|to| Proximity::between(&fleet, from, to)))
            .collect();
        // It is in the list that was searched.
        let home = region_id(home).expect("the home region is among the regions");
        Atlas { home, regions, clusters, services, lanes, proximities, fleet }
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

    pub(crate) fn lane(&self, id: LaneId) -> &Lane {
        &self.lanes[id.index()]
    }

    pub(crate) fn lanes(&self) -> impl ExactSizeIterator<Item = (LaneId, &Lane)> {
        self.lanes.iter().enumerate().map(|(index, lane)| (LaneId::numbered(index), lane))
    }

    /// The lanes of some services.
    pub(crate) fn lanes_of<'a>(
        &'a self,
        services: impl IntoIterator<Item = &'a ServiceId>,
    ) -> impl Iterator<Item = LaneId> {
        services.into_iter().flat_map(|service| self.service(*service).lanes())
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

/// Which lanes share clusters of limited capacity, and so must be shared out together.
#[derive(Debug, Default)]
pub(crate) struct Coupling {
    groups: Vec<Vec<LaneId>>,
    of_lane: Vec<Option<usize>>,
}

impl Coupling {
    /// The coupling when each lane may use its own clusters and the one that its service is `forced` to.
    pub(crate) fn new(atlas: &Atlas, forced: impl Fn(ServiceId) -> Option<ClusterId>) -> Coupling {
        // Union-find: `parent` over lanes; each limited cluster ties its lanes together.
        let mut parent: Vec<usize> = (0..atlas.lanes.len()).collect();
        let mut first_user: Vec<Option<usize>> = vec![None; atlas.clusters.len()];
        let mut limited = vec![false; atlas.lanes.len()];
        for (lane, facts) in atlas.lanes() {
            for cluster in facts.clusters.iter().copied().chain(forced(facts.service)) {
                if atlas.cluster(cluster).capacity.is_none() {
                    continue;
                }
                limited[lane.index()] = true;
                match first_user[cluster.index()] {
                    None => first_user[cluster.index()] = Some(lane.index()),
                    Some(other) => {
                        let (a, b) = (root(&mut parent, lane.index()), root(&mut parent, other));
                        parent[a.max(b)] = a.min(b);
                    }
                }
            }
        }
        let mut coupling = Coupling { groups: Vec::new(), of_lane: vec![None; atlas.lanes.len()] };
        let mut group_of_root: BTreeMap<usize, usize> = BTreeMap::new();
        for (lane, _) in atlas.lanes().filter(|(lane, _)| limited[lane.index()]) {
            let root = root(&mut parent, lane.index());
            let group = *group_of_root.entry(root).or_insert_with(|| {
                coupling.groups.push(Vec::new());
                coupling.groups.len() - 1
            });
            coupling.groups[group].push(lane);
            coupling.of_lane[lane.index()] = Some(group);
        }
        coupling
    }

    /// The group of a lane; nothing when it uses no cluster of limited capacity.
    pub(crate) fn group_of(&self, lane: LaneId) -> Option<usize> {
        self.of_lane[lane.index()]
    }

    /// The lanes of a group, in order.
    pub(crate) fn lanes(&self, group: usize) -> &[LaneId] {
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
