//! How much is asked for: by lane and region, from the reports of all edges.
//!
//! Three figures are kept. *Reported* demand is the sum of the edges' last reports. *Measured* demand is what that was
//! when it was last looked at: at moments that all replicas share, so that it does not matter in which order reports and
//! observations come in between. *Settled* demand is what shares follow: it becomes what was measured only when a share
//! would be wrong by more than the tolerance, or a cluster would get more than its capacity, or requests would be refused
//! needlessly. So steady demand gives steady shares, however it wobbles.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use tidegate_model::{EdgeName, RegionName, ServiceName, Timestamp, report::Load};

use crate::{
    atlas::{Atlas, LaneId, RegionId},
    settings::Settings,
};

/// The shortest time that a report may span: a few requests in no time at all are no high rate.
const SHORTEST_MS: u64 = 200;

#[derive(Debug)]
struct Report {
    at: Timestamp,
    rates: Rates,
}

/// Thousandths of requests per second, of a service's default action and then of each route.
type Rates = BTreeMap<ServiceName, Vec<u64>>;

/// Demand by lane and region.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    reports: BTreeMap<RegionName, BTreeMap<EdgeName, Report>>,
    /// No report expires before.
    expiry: Option<Timestamp>,
    regions: usize,
    /// Thousandths of requests per second; by lane, then region.
    reported: Vec<u64>,
    measured: Vec<u64>,
    settled: Vec<u64>,
    /// Lanes whose reported demand changed since it was last looked at, and when the first of them did.
    moved: BTreeSet<LaneId>,
    moved_at: Timestamp,
}

impl Demand {
    /// Takes a report, which replaces the edge's last one. Only one of an edge that the fleet has, of the services that it
    /// has, and of no more than one edge can carry counts.
    pub(crate) fn report(&mut self, load: &Load, settings: &Settings, atlas: Option<&Atlas>, now: Timestamp) {
        let Some(atlas) = atlas.filter(|atlas| atlas.has_edge(&load.edge, &load.region)) else { return };
        let rates = believed_rates(load, settings, atlas);
        let report = Report { at: now, rates };
        let edges = self.reports.entry(load.region.clone()).or_default();
        let newest = edges.values().map(|other| other.at).max();
        let before = edges.insert(load.edge.clone(), report).map(|before| before.rates).unwrap_or_default();
        let expiry = now.plus(settings.load_expires_after);
        self.expiry = Some(self.expiry.map_or(expiry, |sooner| sooner.min(expiry)));
        let after = self.reports[&load.region][&load.edge].rates.clone();
        self.count(&load.region, &before, &after, atlas, now);
        if newest.is_some_and(|newest| newest.plus(grace(settings)) <= now) {
            // After such a gap, edges that did not come back with this one may have to go at once.
            self.expiry = Some(now);
            self.advance(settings, Some(atlas), now);
        }
    }

    /// Counts anew by the numbers of `atlas`, carrying over what was measured and settled from `before`.
    pub(crate) fn renumber(&mut self, before: Option<&Atlas>, atlas: &Atlas, now: Timestamp) {
        let size = atlas.lanes().len() * atlas.regions().len();
        let mut old = std::mem::take(self);
        // An edge that the fleet no longer has, or has elsewhere, asks for nothing there.
        for (region, edges) in &mut old.reports {
            edges.retain(|edge, _| atlas.has_edge(edge, region));
        }
        old.reports.retain(|_, edges| !edges.is_empty());
        *self = Demand {
            reports: old.reports,
            expiry: old.expiry,
            regions: atlas.regions().len(),
            reported: vec![0; size],
            measured: vec![0; size],
            settled: vec![0; size],
            moved: BTreeSet::new(),
            moved_at: if old.moved.is_empty() { now } else { old.moved_at },
        };
        if let Some(before) = before {
            for (lane, was) in atlas.lanes().filter_map(|(lane, _)| Some((lane, same(lane, atlas, before)?)))
            {
                for (region, name) in before.regions() {
                    if let Some(new_region) = atlas.region_id(name) {
                        let from = was.index() * old.regions + region.index();
                        let to = self.at(lane, new_region);
                        self.measured[to] = old.measured[from];
                        self.settled[to] = old.settled[from];
                    }
                }
            }
        }
        for (region, edges) in &self.reports {
            let Some(region) = atlas.region_id(region) else { continue };
            for report in edges.values() {
                for (lane, rate) in by_lane(&report.rates, atlas) {
                    self.reported[lane.index() * self.regions + region.index()] += rate;
                }
            }
        }
        let moved = atlas.lanes().map(|(lane, _)| lane);
        self.moved =
            moved.filter(|lane| self.reported[self.row(*lane)] != self.measured[self.row(*lane)]).collect();
    }

    /// Forgets the reports that are too old to count at `now`.
    pub(crate) fn advance(&mut self, settings: &Settings, atlas: Option<&Atlas>, now: Timestamp) {
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
        if let Some(atlas) = atlas {
            for (region, rates) in expired {
                self.count(&region, &rates, &BTreeMap::new(), atlas, now);
            }
        }
    }

    /// When demand is to be looked at next, because it moved or a report may expire.
    pub(crate) fn next_deadline(&self, settings: &Settings) -> Option<Timestamp> {
        let moved = (!self.moved.is_empty()).then(|| next_look(self.moved_at, settings.demand_interval));
        [self.expiry, moved].into_iter().flatten().min()
    }

    /// The lanes whose demand moved, when it is time to look.
    pub(crate) fn take_moved(&mut self, settings: &Settings, now: Timestamp) -> BTreeSet<LaneId> {
        if self.moved.is_empty() || next_look(self.moved_at, settings.demand_interval) > now {
            return BTreeSet::new();
        }
        let moved = std::mem::take(&mut self.moved);
        for lane in &moved {
            let row = self.row(*lane);
            self.measured[row.clone()].copy_from_slice(&self.reported[row]);
        }
        moved
    }

    pub(crate) fn measured(&self, lane: LaneId, region: RegionId) -> u64 {
        self.measured[self.at(lane, region)]
    }

    pub(crate) fn settled(&self, lane: LaneId, region: RegionId) -> u64 {
        self.settled[self.at(lane, region)]
    }

    /// Whether shares follow what is measured of a lane.
    pub(crate) fn is_settled(&self, lane: LaneId) -> bool {
        self.settled[self.row(lane)] == self.measured[self.row(lane)]
    }

    /// Has a lane's demand looked at at the next moment for it, even if it does not move.
    pub(crate) fn look_again(&mut self, lane: LaneId, now: Timestamp) {
        if self.moved.is_empty() {
            self.moved_at = now;
        }
        self.moved.insert(lane);
    }

    /// Lets shares follow what is measured of a lane.
    pub(crate) fn settle(&mut self, lane: LaneId) {
        let row = self.row(lane);
        self.settled[row.clone()].copy_from_slice(&self.measured[row]);
    }

    fn row(&self, lane: LaneId) -> Range<usize> {
        lane.index() * self.regions..(lane.index() + 1) * self.regions
    }

    fn at(&self, lane: LaneId, region: RegionId) -> usize {
        lane.index() * self.regions + region.index()
    }

    /// Counts what a report says in place of what was said `before`.
    fn count(&mut self, region: &RegionName, before: &Rates, after: &Rates, atlas: &Atlas, now: Timestamp) {
        let Some(region) = atlas.region_id(region) else { return };
        let (before, after) = (by_lane(before, atlas), by_lane(after, atlas));
        for lane in before.keys().chain(after.keys().filter(|lane| !before.contains_key(*lane))) {
            let rate = |rates: &BTreeMap<LaneId, u64>| rates.get(lane).copied().unwrap_or(0);
            let (before, after) = (rate(&before), rate(&after));
            if before != after {
                let at = self.at(*lane, region);
                self.reported[at] = self.reported[at] + after - before;
                if self.moved.is_empty() {
                    self.moved_at = now;
                }
                self.moved.insert(*lane);
            }
        }
    }
}

/// What a report says of services and routes that the fleet has, scaled down to what one edge can carry.
fn believed_rates(load: &Load, settings: &Settings, atlas: &Atlas) -> Rates {
    let interval_ms = u64::from(load.interval_ms).max(SHORTEST_MS);
    let rate = |count: &u32| u64::from(*count) * 1_000_000 / interval_ms;
    let known = load.demand.iter().filter_map(|(name, counts)| {
        let actions = atlas.service(atlas.service_id(name)?).by_action.len();
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

/// Rates of services that the fleet has, by lane.
fn by_lane(rates: &Rates, atlas: &Atlas) -> BTreeMap<LaneId, u64> {
    let mut by_lane = BTreeMap::new();
    for (name, rates) in rates {
        let Some(service) = atlas.service_id(name) else { continue };
        for (action, rate) in rates.iter().enumerate() {
            *by_lane.entry(atlas.service(service).lane(action)).or_default() += rate;
        }
    }
    by_lane
}

/// The lane of an earlier fleet that `lane` stands for: of the same service, with the same preference, or else of the same
/// action, if that preference is gone.
fn same(lane: LaneId, atlas: &Atlas, before: &Atlas) -> Option<LaneId> {
    let facts = atlas.lane(lane);
    let service = atlas.service(facts.service);
    let was = before.service(before.service_id(&service.name)?);
    let alike = was.lanes().find(|other| before.lane(*other).preference == facts.preference);
    alike.or_else(|| {
        let other = *was.by_action.get(facts.action)?;
        let is_gone =
            service.lanes().all(|lane| atlas.lane(lane).preference != before.lane(other).preference);
        is_gone.then_some(other)
    })
}

/// An edge that is silent while others of its region go on is gone, and its users are with the others. When all of a
/// region are silent it is their word that does not get here, not their requests.
fn expires_at(at: Timestamp, newest: Timestamp, settings: &Settings) -> Timestamp {
    let alone = newest < at.plus(grace(settings));
    at.plus(if alone {
        settings.load_held_for.max(settings.load_expires_after)
    } else {
        settings.load_expires_after
    })
}

/// How much longer others must report before an edge counts as gone rather than its whole region as silent.
fn grace(settings: &Settings) -> Duration {
    settings.load_expires_after / 2
}

/// The first multiple of `interval` after `moved_at`: replicas look at the same moments.
fn next_look(moved_at: Timestamp, interval: Duration) -> Timestamp {
    let interval = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX).max(1);
    Timestamp((moved_at.0 / interval + 1).saturating_mul(interval))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_model::fleet::{Fleet, Region};

    use super::*;
    use crate::build;

    fn atlas() -> Atlas {
        let mut fleet = Fleet::default();
        fleet.regions.insert("us".parse().unwrap(), Region::default());
        let a = build::cluster("us", 0, None);
        fleet.clusters.insert("a".parse().unwrap(), a);
        for edge in ["e1", "e2"] {
            fleet.edges.insert(edge.parse().unwrap(), build::edge("us"));
        }
        fleet.services.insert("shop".parse().unwrap(), build::ordered(&["a"]));
        Atlas::new(Arc::new(fleet), &"us".parse().unwrap())
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
        atlas: Atlas,
        demand: Demand,
    }

    impl Fixture {
        fn new() -> Fixture {
            let (atlas, mut demand) = (atlas(), Demand::default());
            demand.renumber(None, &atlas, seconds(0));
            Fixture { settings: Settings::new("us".parse().unwrap()), atlas, demand }
        }

        fn report(&mut self, edge: &str, count: u32, at: u64) {
            self.demand.advance(&self.settings, Some(&self.atlas), seconds(at));
            self.demand.report(&load(edge, count), &self.settings, Some(&self.atlas), seconds(at));
        }

        fn rate(&mut self, at: u64) -> u64 {
            self.demand.advance(&self.settings, Some(&self.atlas), seconds(at));
            let service = self.atlas.service_id(&"shop".parse().unwrap()).unwrap();
            let lane = self.atlas.service(service).lane(0);
            self.demand.reported[self.demand.at(lane, self.atlas.home)] / 1000
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
    fn an_edge_that_falls_silent_beside_others_no_longer_counts() {
        let mut f = Fixture::new();
        f.report("e1", 100, 0);
        for second in 0..10 {
            f.report("e2", 50, second);
        }
        assert_eq!((f.rate(9), f.rate(10)), (150, 50));
    }

    #[test]
    fn the_demand_of_a_region_that_falls_silent_as_a_whole_is_held_for_a_while() {
        let mut f = Fixture::new();
        f.report("e1", 100, 0);
        f.report("e2", 50, 1);
        assert_eq!((f.rate(59), f.rate(60), f.rate(61)), (150, 50, 0));
    }

    #[test]
    fn an_edge_that_does_not_come_back_with_the_others_is_gone() {
        let mut f = Fixture::new();
        f.report("e1", 100, 0);
        f.report("e2", 50, 1);
        f.report("e2", 60, 30);
        assert_eq!(f.rate(30), 60);
    }

    #[test]
    fn it_is_looked_at_on_moments_that_all_replicas_share() {
        let mut f = Fixture::new();
        f.demand.report(&load("e1", 1), &f.settings, Some(&f.atlas), Timestamp(1_200_000));
        f.demand.report(&load("e2", 1), &f.settings, Some(&f.atlas), Timestamp(1_700_000));
        assert_eq!(f.demand.next_deadline(&f.settings), Some(seconds(2)));
        assert_eq!(f.demand.take_moved(&f.settings, Timestamp(1_999_999)).len(), 0);
        assert_eq!(f.demand.take_moved(&f.settings, seconds(2)).len(), 1);
    }
}
