//! The engine: applies events, and recomputes what each of them affects.

mod allocations;
mod explain;
mod inputs;
mod recompute;
mod sharing;
mod what_if;

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{
    ClusterName, EdgeName, ServiceName, Timestamp,
    health::CheckId,
    observation::ObservationCause,
    routes::{ActionTiers, Cause, RouteEntry, RouteKey},
};

use allocations::Allocations;

use crate::{
    capacity::Placement,
    demand::Demand,
    event::{Changes, RouteEvent},
    explanation::Explanation,
    fleet_index::{ClusterId, Coupling, DemandClassId, FleetIndex, RegionId, ServiceId},
    overrides::Overrides,
    plan::{Order, Plan},
    probers::Probers,
    regional_health::ClusterHealth,
    settings::Settings,
};

/// A cluster and a check that probes it.
type Pair = (ClusterName, CheckId);

/// The verdicts and the route table of one region.
///
/// ```
/// use std::sync::Arc;
/// use tidegate_model::{Timestamp, fleet::Fleet};
/// use tidegate_routing::{Engine, RouteEvent, Settings};
///
/// let mut engine = Engine::new(Settings::new("us-east".parse().unwrap()));
/// let changes = engine.apply(RouteEvent::Fleet(Arc::new(Fleet::default())), Timestamp(0));
/// assert!(changes.is_empty(), "an empty fleet has an empty table");
/// ```
#[derive(Debug, Clone)]
pub struct Engine {
    settings: Settings,
    now: Timestamp,
    probers: Probers,
    overrides: Overrides,
    demand: Demand,
    /// Absent before the first fleet.
    index: Option<FleetIndex>,
    coupling: Coupling,
    health: BTreeMap<Pair, ClusterHealth>,
    /// The services that use each pair.
    users: BTreeMap<Pair, Vec<ServiceId>>,
    /// When a cluster's drain ended.
    drain_ended: BTreeMap<ClusterName, Timestamp>,
    /// The next step of each cluster's slow start, by time and by cluster.
    ramps: BTreeSet<(Timestamp, ClusterName)>,
    ramp_of: BTreeMap<ClusterName, Timestamp>,
    /// By demand class and region.
    orders: BTreeMap<(DemandClassId, RegionId), Order>,
    /// By demand class, then region; absent if it must be recomputed.
    plans: Vec<Vec<Option<Plan>>>,
    allocations: Allocations,
    /// By demand class, in the home region.
    placements: Vec<Placement>,
    table: BTreeMap<RouteKey, RouteEntry>,
}

/// The work that an event causes.
#[derive(Debug, Default)]
struct Work {
    /// The fleet is new.
    everything: bool,
    /// Forced routes changed, so other pairs may be in use and other services may be coupled.
    forces: bool,
    /// Pairs whose health may have changed, with the cause of the observation if one changed it.
    pairs: BTreeMap<Pair, Option<ObservationCause>>,
    services: BTreeSet<ServiceId>,
    /// Demand classes whose drift must be checked.
    demand: BTreeSet<DemandClassId>,
    edges: BTreeSet<EdgeName>,
    causes: Vec<Cause>,
}

impl Engine {
    /// An engine without a fleet.
    pub fn new(settings: Settings) -> Engine {
        Engine {
            settings,
            now: Timestamp::default(),
            probers: Probers::default(),
            overrides: Overrides::default(),
            demand: Demand::default(),
            index: None,
            coupling: Coupling::default(),
            health: BTreeMap::new(),
            users: BTreeMap::new(),
            drain_ended: BTreeMap::new(),
            ramps: BTreeSet::new(),
            ramp_of: BTreeMap::new(),
            orders: BTreeMap::new(),
            plans: Vec::new(),
            allocations: Allocations::default(),
            placements: Vec::new(),
            table: BTreeMap::new(),
        }
    }

    /// Advances time to `now`, applies one event, and returns the changes of the route table.
    ///
    /// If `now` is earlier than in the call before, time stands still.
    pub fn apply(&mut self, event: RouteEvent, now: Timestamp) -> Changes {
        self.now = self.now.max(now);
        let mut work = Work::default();
        self.advance_time(&mut work);
        self.apply_event(event, &mut work);
        self.recompute(work)
    }

    /// The next time at which time alone may change something: a suppression, an override or a step of slow start ends, a
    /// report expires, a prober becomes stale, or demand is measured. Apply [`RouteEvent::Tick`] then.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let deadlines = [
            self.probers.next_deadline(self.settings.prober_stale_after),
            self.overrides.next_deadline(),
            self.demand.next_deadline(&self.settings),
            self.ramps.first().map(|(at, _)| *at),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The whole route table.
    pub fn table(&self) -> &BTreeMap<RouteKey, RouteEntry> {
        &self.table
    }

    /// How many probers are not stale.
    pub fn live_probers(&self) -> usize {
        self.probers.live_count()
    }

    /// The explanation of where a service's requests go; absent if the fleet lacks the service.
    pub fn explain(&self, service: &ServiceName) -> Option<Explanation> {
        let index = self.index.as_ref()?;
        let service = index.service_id(service)?;
        Some(self.explain_service(index, service))
    }

    /// The clusters that have a capacity, with their capacity and their load from all regions, both in requests per second.
    ///
    /// The load is that of settled demand, from which measured demand may drift by [`Settings::share_tolerance_permille`].
    pub fn capacities(&self) -> impl Iterator<Item = (&ClusterName, u32, f64)> {
        self.index.iter().flat_map(FleetIndex::clusters).filter_map(|(id, cluster)| {
            Some((&cluster.name, cluster.capacity?, self.load_of(id) as f64 / 1000.0))
        })
    }

    pub(crate) fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    pub(crate) fn health_of(&self, cluster: &ClusterName, check: CheckId) -> Option<&ClusterHealth> {
        self.health.get(&(cluster.clone(), check))
    }

    /// The load of a cluster from demand classes that use clusters of limited capacity, in thousandths of requests per second.
    pub(crate) fn load_of(&self, cluster: ClusterId) -> u64 {
        self.allocations.load(cluster)
    }

    /// Measured and settled demand, in thousandths of requests per second.
    pub(crate) fn demand_of(&self, class: DemandClassId, region: RegionId) -> (u64, u64) {
        (self.demand.measured(class, region), self.demand.settled(class, region))
    }

    /// The tiers of a service's actions as they are in the table.
    pub(crate) fn tiers_of(&self, service: &ServiceName) -> &[ActionTiers] {
        match self.table.get(&RouteKey::Tiers(service.clone())) {
            Some(RouteEntry::Tiers(entry)) => &entry.actions,
            Some(
                RouteEntry::Edge(_) | RouteEntry::Cluster(_) | RouteEntry::Health(_) | RouteEntry::Service(_),
            )
            | None => &[],
        }
    }
}
