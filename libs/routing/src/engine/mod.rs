//! The engine: applies events, and recomputes what each of them touches.

mod explain;
mod inputs;
mod ledger;
mod recompute;
mod sharing;

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{
    ClusterName, EdgeName, ServiceName, Timestamp,
    health::CheckId,
    observation::ObservationCause,
    routes::{ActionTiers, Cause, RouteEntry, RouteKey},
};

use ledger::Ledger;

use crate::{
    atlas::{Atlas, ClusterId, Coupling, LaneId, RegionId, ServiceId},
    capacity::Placement,
    demand::Demand,
    event::{Changes, RouteEvent},
    evidence::Evidence,
    explanation::Explanation,
    health::Health,
    overrides::Overrides,
    plan::{Order, Plan},
    settings::Settings,
};

/// A cluster and the check that it is asked with.
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
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    now: Timestamp,
    evidence: Evidence,
    overrides: Overrides,
    demand: Demand,
    /// Nothing before the first fleet.
    atlas: Option<Atlas>,
    coupling: Coupling,
    health: BTreeMap<Pair, Health>,
    /// The services that each pair matters to.
    users: BTreeMap<Pair, Vec<ServiceId>>,
    /// When a cluster's drain ended.
    undrained: BTreeMap<ClusterName, Timestamp>,
    /// When a cluster's slow start goes on; the second is for looking up the first.
    ramps: BTreeSet<(Timestamp, ClusterName)>,
    ramp_of: BTreeMap<ClusterName, Timestamp>,
    /// By lane and region.
    orders: BTreeMap<(LaneId, RegionId), Order>,
    /// By lane and region; nothing where it must be made anew.
    plans: Vec<Vec<Option<Plan>>>,
    ledger: Ledger,
    /// Of each lane in this region.
    placements: Vec<Placement>,
    table: BTreeMap<RouteKey, RouteEntry>,
}

/// What is to be looked at again.
#[derive(Debug, Default)]
struct Work {
    /// The fleet is new.
    everything: bool,
    /// Forced routes are different, so other pairs may matter and other services may be coupled.
    forces: bool,
    /// With why the prober looked, where an observation is what touched it.
    pairs: BTreeMap<Pair, Option<ObservationCause>>,
    services: BTreeSet<ServiceId>,
    /// Lanes whose demand is to be looked at.
    demand: BTreeSet<LaneId>,
    edges: BTreeSet<EdgeName>,
    causes: Vec<Cause>,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(settings: Settings) -> Engine {
        Engine {
            settings,
            now: Timestamp::default(),
            evidence: Evidence::default(),
            overrides: Overrides::default(),
            demand: Demand::default(),
            atlas: None,
            coupling: Coupling::default(),
            health: BTreeMap::new(),
            users: BTreeMap::new(),
            undrained: BTreeMap::new(),
            ramps: BTreeSet::new(),
            ramp_of: BTreeMap::new(),
            orders: BTreeMap::new(),
            plans: Vec::new(),
            ledger: Ledger::default(),
            placements: Vec::new(),
            table: BTreeMap::new(),
        }
    }

    /// Lets time pass until `now`, applies one event, and returns what changed in the route table.
    ///
    /// `now` earlier than that of the event before counts as the same.
    pub fn apply(&mut self, event: RouteEvent, now: Timestamp) -> Changes {
        self.now = self.now.max(now);
        let mut work = Work::default();
        self.advance(&mut work);
        self.take(event, &mut work);
        self.recompute(work)
    }

    /// When time alone may change something next: a hold, an override, a step of slow start or a report's life ends, a
    /// prober falls silent, or demand is to be looked at. [`RouteEvent::Tick`] is to be applied then.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let deadlines = [
            self.evidence.next_deadline(self.settings.prober_silent_after),
            self.overrides.next_deadline(),
            self.demand.next_deadline(&self.settings),
            self.ramps.first().map(|(at, _)| *at),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The whole table.
    pub fn table(&self) -> &BTreeMap<RouteKey, RouteEntry> {
        &self.table
    }

    /// How many probers are heard: not those that are silent.
    pub fn probers_heard(&self) -> usize {
        self.evidence.heard()
    }

    /// Why a service's requests go where they go; nothing for a service that the fleet does not have.
    pub fn explain(&self, service: &ServiceName) -> Option<Explanation> {
        let atlas = self.atlas.as_ref()?;
        let service = atlas.service_id(service)?;
        Some(self.explain_service(atlas, service))
    }

    /// The clusters of the fleet that have a capacity, with what they can take and what all regions send there, both in
    /// requests per second.
    ///
    /// The second is what the shares in force were made from, which measured demand may leave by
    /// [`Settings::share_tolerance_permille`].
    pub fn capacities(&self) -> impl Iterator<Item = (&ClusterName, u32, f64)> {
        self.atlas
            .iter()
            .flat_map(Atlas::clusters)
            .filter_map(|(id, facts)| Some((&facts.name, facts.capacity?, self.load_of(id) as f64 / 1000.0)))
    }

    pub(crate) fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    pub(crate) fn health_of(&self, cluster: &ClusterName, check: CheckId) -> Option<&Health> {
        self.health.get(&(cluster.clone(), check))
    }

    /// What a cluster gets from lanes that use clusters of limited capacity, in thousandths of requests per second.
    pub(crate) fn load_of(&self, cluster: ClusterId) -> u64 {
        self.ledger.load(cluster)
    }

    /// Measured and settled demand, in thousandths of requests per second.
    pub(crate) fn demand_of(&self, lane: LaneId, region: RegionId) -> (u64, u64) {
        (self.demand.measured(lane, region), self.demand.settled(lane, region))
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
