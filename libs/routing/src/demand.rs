//! Demand by demand class and region, from the load reports of all edges.
//!
//! Three values are kept. *Reported* demand is the sum of the edges' last reports. *Measured* demand is a sample of it,
//! taken at times that all replicas share, so that the order in which reports and observations arrive in between does not
//! matter. *Settled* demand is what shares follow. It is set to the measured demand only when the drift matters: a share
//! is wrong by more than the tolerance, a cluster gets more than its capacity, or requests are refused needlessly. So
//! fluctuations do not move shares.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use tidegate_model::{EdgeName, RegionName, ServiceName, Timestamp, report::Load};

use crate::{
    fleet_index::{DemandClassId, FleetIndex, RegionId},
    settings::Settings,
};

/// The shortest time that a report may span: a few requests within a moment are no high rate.
const SHORTEST_MS: u64 = 200;

#[derive(Debug, Clone)]
struct Report {
    at: Timestamp,
    rates: Rates,
}

/// Thousandths of requests per second by service: of its default action, then of each route.
pub(crate) type Rates = BTreeMap<ServiceName, Vec<u64>>;

/// Demand by demand class and region.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demand {
    reports: BTreeMap<RegionName, BTreeMap<EdgeName, Report>>,
    /// The earliest time at which a report may expire.
    expiry: Option<Timestamp>,
    regions: usize,
    /// Thousandths of requests per second by demand class, then region.
    reported: Vec<u64>,
    measured: Vec<u64>,
    settled: Vec<u64>,
    /// Demand classes whose reported demand changed since the last measurement, and when the first of them did.
    moved: BTreeSet<DemandClassId>,
    moved_at: Timestamp,
}

impl Demand {
    /// Records a report, which replaces the edge's last one. Ignores edges and services that the fleet does not have, and
    /// limits what one edge can carry.
    pub(crate) fn record_report(
        &mut self,
        load: &Load,
        settings: &Settings,
        index: Option<&FleetIndex>,
        now: Timestamp,
    ) {
        let Some(index) = index.filter(|index| index.has_edge(&load.edge, &load.region)) else { return };
        let rates = plausible_rates(load, settings, index);
        let report = Report { at: now, rates };
        let edges = self.reports.entry(load.region.clone()).or_default();
        let newest = edges.values().map(|other| other.at).max();
        let before = edges.insert(load.edge.clone(), report).map(|before| before.rates).unwrap_or_default();
        let expiry = now.plus(settings.load_expires_after);
        self.expiry = Some(self.expiry.map_or(expiry, |sooner| sooner.min(expiry)));
        let after = self.reports[&load.region][&load.edge].rates.clone();
        self.replace_rates(&load.region, &before, &after, index, now);
        if newest.is_some_and(|newest| newest.plus(grace(settings)) <= now) {
            // After such a gap, edges that did not return with this one may have to expire at once.
            self.expiry = Some(now);
            self.expire_reports(settings, Some(index), now);
        }
    }

    /// Adopts the numbers of a new fleet index, and keeps the measured and settled demand of `before`.
    pub(crate) fn reindex(&mut self, before: Option<&FleetIndex>, index: &FleetIndex, now: Timestamp) {
        let size = index.classes().len() * index.regions().len();
        let mut old = std::mem::take(self);
        // The reports of edges that the fleet no longer has, or has in another region, no longer count.
        for (region, edges) in &mut old.reports {
            edges.retain(|edge, _| index.has_edge(edge, region));
        }
        old.reports.retain(|_, edges| !edges.is_empty());
        *self = Demand {
            reports: old.reports,
            expiry: old.expiry,
            regions: index.regions().len(),
            reported: vec![0; size],
            measured: vec![0; size],
            settled: vec![0; size],
            moved: BTreeSet::new(),
            moved_at: if old.moved.is_empty() { now } else { old.moved_at },
        };
        if let Some(before) = before {
            for (class, was) in
                index.classes().filter_map(|(class, _)| Some((class, predecessor(class, index, before)?)))
            {
                for (region, name) in before.regions() {
                    if let Some(new_region) = index.region_id(name) {
                        let from = was.index() * old.regions + region.index();
                        let to = self.at(class, new_region);
                        self.measured[to] = old.measured[from];
                        self.settled[to] = old.settled[from];
                    }
                }
            }
        }
        for (region, edges) in &self.reports {
            let Some(region) = index.region_id(region) else { continue };
            for report in edges.values() {
                for (class, rate) in by_class(&report.rates, index) {
                    let at = self.at(class, region);
                    self.reported[at] += rate;
                }
            }
        }
        let moved = index.classes().map(|(class, _)| class);
        self.moved = moved
            .filter(|class| self.reported[self.row(*class)] != self.measured[self.row(*class)])
            .collect();
    }

    /// Removes the reports that are too old to count at `now`.
    pub(crate) fn expire_reports(&mut self, settings: &Settings, index: Option<&FleetIndex>, now: Timestamp) {
        if self.expiry.is_none_or(|expiry| expiry > now) {
            return;
        }
        self.expiry = None;
        let mut expired = Vec::new();
        for (region, edges) in &mut self.reports {
            let newest = edges.values().map(|report| report.at).max().unwrap_or(now);
            edges.retain(|_, report| {
                let expiry = expires_at(report.at, newest, settings);
                if expiry <= now {
                    expired.push((region.clone(), std::mem::take(&mut report.rates)));
                    return false;
                }
                self.expiry = Some(self.expiry.map_or(expiry, |sooner| sooner.min(expiry)));
                true
            });
        }
        self.reports.retain(|_, edges| !edges.is_empty());
        if let Some(index) = index {
            for (region, rates) in expired {
                self.replace_rates(&region, &rates, &BTreeMap::new(), index, now);
            }
        }
    }

    /// The rates of each region: the sums of its edges' reports.
    pub(crate) fn rates_by_region(&self) -> BTreeMap<RegionName, Rates> {
        let mut by_region: BTreeMap<RegionName, Rates> = BTreeMap::new();
        for (region, edges) in &self.reports {
            let sums = by_region.entry(region.clone()).or_default();
            for (service, rates) in edges.values().flat_map(|report| &report.rates) {
                let sums = sums.entry(service.clone()).or_default();
                sums.resize(sums.len().max(rates.len()), 0);
                sums.iter_mut().zip(rates).for_each(|(sum, rate)| *sum += rate);
            }
        }
        by_region
    }

    /// Takes these rates of each region for the reported, measured and settled demand.
    pub(crate) fn assume(&mut self, rates: &BTreeMap<RegionName, Rates>, index: &FleetIndex) {
        self.reported.fill(0);
        for (region, rates) in rates {
            let Some(region) = index.region_id(region) else { continue };
            for (class, rate) in by_class(rates, index) {
                let at = self.at(class, region);
                self.reported[at] += rate;
            }
        }
        self.measured.clone_from(&self.reported);
        self.settled.clone_from(&self.reported);
        self.moved.clear();
    }

    /// The next time at which demand must be measured, or a report may expire.
    pub(crate) fn next_deadline(&self, settings: &Settings) -> Option<Timestamp> {
        let moved =
            (!self.moved.is_empty()).then(|| next_measurement(self.moved_at, settings.demand_interval));
        [self.expiry, moved].into_iter().flatten().min()
    }

    /// Measures demand if it is time, and returns the demand classes whose demand changed.
    pub(crate) fn measure(&mut self, settings: &Settings, now: Timestamp) -> BTreeSet<DemandClassId> {
        if self.moved.is_empty() || next_measurement(self.moved_at, settings.demand_interval) > now {
            return BTreeSet::new();
        }
        let moved = std::mem::take(&mut self.moved);
        for class in &moved {
            let row = self.row(*class);
            self.measured[row.clone()].copy_from_slice(&self.reported[row]);
        }
        moved
    }

    pub(crate) fn measured(&self, class: DemandClassId, region: RegionId) -> u64 {
        self.measured[self.at(class, region)]
    }

    pub(crate) fn settled(&self, class: DemandClassId, region: RegionId) -> u64 {
        self.settled[self.at(class, region)]
    }

    /// Whether the settled demand of a demand class is the measured one.
    pub(crate) fn is_settled(&self, class: DemandClassId) -> bool {
        self.settled[self.row(class)] == self.measured[self.row(class)]
    }

    /// Schedules a demand class for the next measurement, even if its demand does not change.
    pub(crate) fn schedule_measurement(&mut self, class: DemandClassId, now: Timestamp) {
        if self.moved.is_empty() {
            self.moved_at = now;
        }
        self.moved.insert(class);
    }

    /// Settles a demand class at its measured demand.
    pub(crate) fn settle(&mut self, class: DemandClassId) {
        let row = self.row(class);
        self.settled[row.clone()].copy_from_slice(&self.measured[row]);
    }

    fn row(&self, class: DemandClassId) -> Range<usize> {
        class.index() * self.regions..(class.index() + 1) * self.regions
    }

    fn at(&self, class: DemandClassId, region: RegionId) -> usize {
        class.index() * self.regions + region.index()
    }

    /// Replaces the rates of a report with those of the next one.
    fn replace_rates(
        &mut self,
        region: &RegionName,
        before: &Rates,
        after: &Rates,
        index: &FleetIndex,
        now: Timestamp,
    ) {
        let Some(region) = index.region_id(region) else { return };
        let (before, after) = (by_class(before, index), by_class(after, index));
        for class in before.keys().chain(after.keys().filter(|class| !before.contains_key(*class))) {
            let rate = |rates: &BTreeMap<DemandClassId, u64>| rates.get(class).copied().unwrap_or(0);
            let (before, after) = (rate(&before), rate(&after));
            if before != after {
                let at = self.at(*class, region);
                self.reported[at] = self.reported[at] + after - before;
                if self.moved.is_empty() {
                    self.moved_at = now;
                }
                self.moved.insert(*class);
            }
        }
    }
}

/// The rates of a report, without services and routes that the fleet lacks, and scaled down to what one edge can carry.
fn plausible_rates(load: &Load, settings: &Settings, index: &FleetIndex) -> Rates {
    let interval_ms = u64::from(load.interval_ms).max(SHORTEST_MS);
    let rate = |count: &u32| u64::from(*count) * 1_000_000 / interval_ms;
    let known = load.demand.iter().filter_map(|(name, counts)| {
        let actions = index.service(index.service_id(name)?).by_action.len();
        Some((name.clone(), counts.iter().take(actions).map(rate).collect::<Vec<u64>>()))
    });
    let mut rates: Rates = known.collect();
    let total: u128 = rates.values().flatten().map(|rate| u128::from(*rate)).sum();
    let most = u128::from(settings.edge_capacity) * 1000;
    if total > most {
        rates.values_mut().flatten().for_each(|rate| *rate = (u128::from(*rate) * most / total) as u64);
    }
    rates
}

/// Rates by demand class, without services that the fleet lacks.
fn by_class(rates: &Rates, index: &FleetIndex) -> BTreeMap<DemandClassId, u64> {
    let mut by_class = BTreeMap::new();
    for (name, rates) in rates {
        let Some(service) = index.service_id(name) else { continue };
        for (action, rate) in rates.iter().enumerate() {
            *by_class.entry(index.service(service).class(action)).or_default() += rate;
        }
    }
    by_class
}

/// The demand class of an earlier fleet whose demand `class` takes over: of the same service and with the same preference,
/// or else of the same action, if that preference is gone.
fn predecessor(class: DemandClassId, index: &FleetIndex, before: &FleetIndex) -> Option<DemandClassId> {
    let successor = index.class(class);
    let service = index.service(successor.service);
    let was = before.service(before.service_id(&service.name)?);
    let alike = was.classes().find(|other| before.class(*other).preference == successor.preference);
    alike.or_else(|| {
        let other = *was.by_action.get(successor.action)?;
        let is_gone =
            service.classes().all(|class| index.class(class).preference != before.class(other).preference);
        is_gone.then_some(other)
    })
}

/// When a report expires. An edge that no longer reports while others of its region do is gone, and its users are with the
/// others. If a whole region no longer reports, its reports are lost and its requests are not.
fn expires_at(at: Timestamp, newest: Timestamp, settings: &Settings) -> Timestamp {
    let alone = newest < at.plus(grace(settings));
    at.plus(if alone {
        settings.load_kept_for.max(settings.load_expires_after)
    } else {
        settings.load_expires_after
    })
}

/// How much longer other edges must report before an edge counts as gone instead of its whole region as cut off.
fn grace(settings: &Settings) -> Duration {
    settings.load_expires_after / 2
}

/// The first multiple of `interval` after `moved_at`, so that all replicas measure at the same times.
fn next_measurement(moved_at: Timestamp, interval: Duration) -> Timestamp {
    let interval = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).max(1);
    Timestamp((moved_at.0 / interval + 1).saturating_mul(interval))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_model::fleet::{Fleet, Region};

    use super::*;
    use crate::build;

    fn fleet_index() -> FleetIndex {
        let mut fleet = Fleet::default();
        fleet.regions.insert("us".parse().unwrap(), Region::default());
        let a = build::cluster("us", 0, None);
        fleet.clusters.insert("a".parse().unwrap(), a);
        for edge in ["e1", "e2"] {
            fleet.edges.insert(edge.parse().unwrap(), build::edge("us"));
        }
        fleet.services.insert("shop".parse().unwrap(), build::ordered(&["a"]));
        FleetIndex::new(Arc::new(fleet), &"us".parse().unwrap())
    }

    fn load(edge: &str, count: u32) -> Load {
        Load {
            edge: edge.parse().unwrap(),
            region: "us".parse().unwrap(),
            interval_ms: 1000,
            demand: BTreeMap::from([("shop".parse().unwrap(), vec![count])]),
            clusters: BTreeMap::new(),
        }
    }

    fn seconds(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    struct Fixture {
        settings: Settings,
        index: FleetIndex,
        demand: Demand,
    }

    impl Fixture {
        fn new() -> Fixture {
            let (index, mut demand) = (fleet_index(), Demand::default());
            demand.reindex(None, &index, seconds(0));
            Fixture { settings: Settings::new("us".parse().unwrap()), index, demand }
        }

        fn report(&mut self, edge: &str, count: u32, at: u64) {
            self.demand.expire_reports(&self.settings, Some(&self.index), seconds(at));
            self.demand.record_report(&load(edge, count), &self.settings, Some(&self.index), seconds(at));
        }

        fn class(&self) -> DemandClassId {
            let service = self.index.service_id(&"shop".parse().unwrap()).unwrap();
            self.index.service(service).class(0)
        }

        fn rate(&mut self, at: u64) -> u64 {
            self.demand.expire_reports(&self.settings, Some(&self.index), seconds(at));
            self.demand.reported[self.demand.at(self.class(), self.index.home)] / 1000
        }

        /// Replaces the fleet by one with these services and regions.
        fn reindex(&mut self, services: &[&str], regions: &[&str], at: u64) {
            let mut fleet = (*self.index.fleet).clone();
            let services = services.iter().map(|name| (name.parse().unwrap(), build::ordered(&["a"])));
            fleet.services = services.collect();
            fleet.regions = regions.iter().map(|name| (name.parse().unwrap(), Region::default())).collect();
            let before =
                std::mem::replace(&mut self.index, FleetIndex::new(Arc::new(fleet), &"us".parse().unwrap()));
            self.demand.reindex(Some(&before), &self.index, seconds(at));
        }
    }

    #[test]
    fn demand_is_the_sum_of_the_edges_last_reports() {
        let mut f = Fixture::new();
        f.report("e1", 100, 1);
        f.report("e2", 50, 1);
        f.report("e1", 70, 2);
        assert_eq!(f.rate(2), 120);
    }

    #[test]
    fn an_edge_counts_with_no_more_than_it_can_carry() {
        let mut f = Fixture::new();
        f.settings.edge_capacity = 1000;
        f.report("e1", 1000, 1);
        assert_eq!(f.rate(1), 1000);
        f.report("e1", 4000, 2);
        assert_eq!(f.rate(2), 1000);
    }

    #[test]
    fn a_new_fleet_keeps_the_demand_of_its_services_and_regions() {
        let mut f = Fixture::new();
        f.report("e1", 100, 1);
        f.demand.measure(&f.settings, seconds(2));
        f.demand.settle(f.class());
        f.report("e1", 70, 2);
        // The new names come before the old ones, so that the numbers of those change.
        for (services, regions) in [(&["chat", "shop"][..], &["eu", "us"][..]), (&["shop"], &["us"])] {
            f.reindex(services, regions, 3);
            let (class, home) = (f.class(), f.index.home);
            assert_eq!(f.rate(3), 70);
            assert_eq!((f.demand.measured(class, home), f.demand.settled(class, home)), (100_000, 100_000));
            assert_eq!(f.demand.moved, BTreeSet::from([class]));
        }
    }

    #[test]
    fn an_edge_that_stops_reporting_beside_others_no_longer_counts() {
        let mut f = Fixture::new();
        f.report("e1", 100, 0);
        for second in 0..10 {
            f.report("e2", 50, second);
        }
        assert_eq!((f.rate(9), f.rate(10)), (150, 50));
    }

    #[test]
    fn the_demand_of_a_region_that_stops_reporting_as_a_whole_is_kept_for_a_while() {
        let mut f = Fixture::new();
        f.report("e1", 100, 0);
        f.report("e2", 50, 1);
        assert_eq!((f.rate(59), f.rate(60), f.rate(61)), (150, 50, 0));
    }

    #[test]
    fn an_edge_that_does_not_return_with_the_others_is_gone() {
        let mut f = Fixture::new();
        f.report("e1", 100, 0);
        f.report("e2", 50, 1);
        f.report("e2", 60, 30);
        assert_eq!(f.rate(30), 60);
    }

    #[test]
    fn it_is_measured_at_times_that_all_replicas_share() {
        let mut f = Fixture::new();
        f.demand.record_report(&load("e1", 1), &f.settings, Some(&f.index), Timestamp(1_200_000));
        f.demand.record_report(&load("e2", 1), &f.settings, Some(&f.index), Timestamp(1_700_000));
        assert_eq!(f.demand.next_deadline(&f.settings), Some(seconds(2)));
        assert_eq!(f.demand.measure(&f.settings, Timestamp(1_999_999)).len(), 0);
        assert_eq!(f.demand.measure(&f.settings, seconds(2)).len(), 1);
    }
}
