//! Plans and shares of the demand classes that an event affects, and of those that are coupled with them.

use std::collections::BTreeSet;

use tidegate_model::routes::ActionTiers;

use super::{
    Engine, Work,
    allocations::{Allocations, DemandKey, NO_PLAN},
    recompute::forced,
};
use crate::{
    capacity::{self, Assignment, Placement, RegionalDemand, UNLIMITED},
    fleet_index::{ClusterId, DemandClassId, FleetIndex, RegionId, ServiceId},
    plan::{self, CandidateState, Plan},
    ramp,
    regional_health::RegionalVerdict,
    tiers::{self, TierContext},
};

/// The excess over a cluster's capacity that is ignored, in thousandths of requests per second: what the rounding of shares
/// to thousandths may cause for this demand, and at most one request per second.
fn rounding(demand: u64) -> u64 {
    (demand / 500 + 10).min(1000)
}

/// The demand that shares are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DemandSource {
    Settled,
    Measured,
}

/// How far the shares in force have drifted from those that the measured demand needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drift {
    None,
    /// Within the tolerance.
    Tolerable,
    Excessive,
}

impl Engine {
    /// Recomputes shares, and returns the services whose tiers may have changed.
    pub(super) fn share_out(&mut self, index: &FleetIndex, work: &Work) -> BTreeSet<ServiceId> {
        let mut moved = BTreeSet::new();
        let mut demands = Vec::new();
        for class in index.classes_of(&work.services) {
            self.plans[class.index()].fill(None);
            if self.coupling.group_of(class).is_some() {
                demands.extend(self.demand_keys(index, &[class], &[DemandSource::Settled]));
            } else {
                self.allocations.remove_class(class);
                self.share_uncoupled(index, class);
            }
        }
        self.reassign(index, demands, &mut moved);
        let mut groups = BTreeSet::new();
        for class in &work.demand {
            match self.coupling.group_of(*class) {
                Some(group) => {
                    groups.insert(group);
                }
                // Without limited capacity, demand does not matter.
                None => self.demand.settle(*class),
            }
        }
        for group in groups {
            self.correct_drift(index, group, &mut moved);
        }
        // Drift that was tolerable may no longer be. The next measurement tells, at the same time for all replicas.
        for class in index.classes_of(&work.services) {
            if let Some(group) = self.coupling.group_of(class)
                && self.coupling.classes(group).iter().any(|class| !self.demand.is_settled(*class))
            {
                self.demand.schedule_measurement(class, self.now);
            }
        }
        let mut services = work.services.clone();
        services.extend(moved.into_iter().map(|class| index.class(class).service));
        services
    }

    fn share_uncoupled(&mut self, index: &FleetIndex, class: DemandClassId) {
        self.ensure_plan(index, class, index.home);
        self.demand.settle(class);
        if let Some(plan) = &self.plans[class.index()][index.home.index()] {
            self.placements[class.index()] = nominal_placement(plan, index);
        }
    }

    /// Reassigns `demands` by settled demand.
    fn reassign(&mut self, index: &FleetIndex, demands: Vec<DemandKey>, moved: &mut BTreeSet<DemandClassId>) {
        for (class, region) in &demands {
            self.ensure_plan(index, *class, *region);
        }
        let mut allocations = std::mem::take(&mut self.allocations);
        let affected = allocations.reassign(demands, &capacities(index), |key| {
            self.regional_demand(index, key, DemandSource::Settled)
        });
        self.allocations = allocations;
        self.adopt_placements(index, &affected, moved);
    }

    /// Settles a group at its measured demand if its shares have drifted too far.
    fn correct_drift(&mut self, index: &FleetIndex, group: usize, moved: &mut BTreeSet<DemandClassId>) {
        let classes = self.coupling.classes(group).to_vec();
        if classes.iter().all(|class| self.demand.is_settled(*class)) {
            return;
        }
        let keys = self.demand_keys(index, &classes, &[DemandSource::Settled, DemandSource::Measured]);
        let new = keys.iter().copied().filter(|key| self.allocations.placement(*key).is_none()).collect();
        self.reassign(index, new, moved);

        let demands: Vec<RegionalDemand<'_>> =
            keys.iter().map(|key| self.regional_demand(index, *key, DemandSource::Measured)).collect();
        let mut headroom = capacities(index);
        let assignment = capacity::assign(&demands, &mut headroom);
        if self.drift(index, &keys, &demands, &assignment) == Drift::Tolerable {
            return;
        }
        let allocations = Allocations::of(&demands, &assignment);
        self.allocations.replace(&keys, allocations, &headroom);
        for class in classes {
            self.demand.settle(class);
        }
        self.adopt_placements(index, &keys, moved);
    }

    /// Adopts the allocations of the home region, and adds the demand classes whose placement changed to `moved`.
    fn adopt_placements(
        &mut self,
        index: &FleetIndex,
        keys: &[DemandKey],
        moved: &mut BTreeSet<DemandClassId>,
    ) {
        for (class, region) in keys {
            if *region == index.home
                && let Some(placement) = self.allocations.placement((*class, *region))
                && self.placements[class.index()] != *placement
            {
                self.placements[class.index()] = placement.clone();
                moved.insert(*class);
            }
        }
    }

    /// The demands of some demand classes: those above zero by one of the sources, and all of the home region.
    fn demand_keys(
        &self,
        index: &FleetIndex,
        classes: &[DemandClassId],
        sources: &[DemandSource],
    ) -> Vec<DemandKey> {
        let all = classes.iter().flat_map(|class| index.regions().map(move |(region, _)| (*class, region)));
        all.filter(|key| key.1 == index.home || sources.iter().any(|source| self.rate_of(*key, *source) > 0))
            .collect()
    }

    fn rate_of(&self, (class, region): DemandKey, source: DemandSource) -> u64 {
        match source {
            DemandSource::Settled => self.demand.settled(class, region),
            DemandSource::Measured => self.demand.measured(class, region),
        }
    }

    fn regional_demand(
        &self,
        index: &FleetIndex,
        key: DemandKey,
        source: DemandSource,
    ) -> RegionalDemand<'_> {
        let (class, region) = key;
        RegionalDemand {
            priority: index.service(index.class(class).service).priority,
            rate: self.rate_of(key, source),
            plan: self.plans[class.index()][region.index()].as_ref().unwrap_or(&NO_PLAN),
        }
    }

    /// The drift of the shares in force from `needed`, the assignment of the measured `demands`.
    fn drift(
        &self,
        index: &FleetIndex,
        keys: &[DemandKey],
        demands: &[RegionalDemand<'_>],
        needed: &Assignment,
    ) -> Drift {
        let tolerance = self.settings.share_tolerance_permille;
        let mut load: Vec<u64> = vec![0; index.clusters().len()];
        let mut shed: Vec<&Plan> = Vec::new();
        let mut drift = Drift::None;
        let rounding = rounding(demands.iter().map(|demand| demand.rate).sum());
        for ((key, demand), needed) in keys.iter().zip(demands).zip(needed.placements()) {
            let Some(now) = self.allocations.placement(*key) else { return Drift::Excessive };
            let share = |placed: &[u64], at: usize, demand: u64| {
                tiers::permille(placed.get(at).copied().unwrap_or(0), demand)
            };
            let shed_now = tiers::permille(now.unplaced(), now.demand);
            let shed_needed = tiers::permille(needed.unplaced(), needed.demand);
            let off = (0..now.placed.len())
                .map(|at| {
                    share(&now.placed, at, now.demand).abs_diff(share(needed.placed, at, needed.demand))
                })
                .max();
            // No request is shed for which there is headroom.
            if off.is_some_and(|off| off > tolerance) || shed_now > shed_needed {
                return Drift::Excessive;
            }
            if shed_now != shed_needed || !tiers::same_shares(&now.placed, needed.placed) {
                drift = Drift::Tolerable;
            }
            if demand.rate > 0 && shed_now > 0 {
                shed.push(demand.plan);
            }
            if !demand.plan.fail_open {
                for (member, placed) in
                    demand.plan.members.iter().zip(&now.placed).filter(|(_, placed)| **placed > 0)
                {
                    load[member.cluster.index()] += capacity::scaled(demand.rate, *placed, now.demand);
                }
            }
        }
        let capacity = |cluster: ClusterId| capacity::thousandths(index.cluster(cluster).capacity);
        let is_overloaded = index
            .clusters()
            .any(|(cluster, _)| load[cluster.index()] > capacity(cluster).saturating_add(rounding));
        // The demand that fills a cluster may have fallen, which leaves headroom for those that are shed.
        let sheds_needlessly = shed
            .iter()
            .flat_map(|plan| &plan.members[..plan.sharing])
            .any(|member| load[member.cluster.index()] + rounding < capacity(member.cluster));
        if is_overloaded || sheds_needlessly { Drift::Excessive } else { drift }
    }

    /// Computes the plan of a demand class in `region`, unless it is up to date.
    fn ensure_plan(&mut self, index: &FleetIndex, class: DemandClassId, region: RegionId) {
        if self.plans[class.index()][region.index()].is_none() {
            let of_class = index.class(class);
            let order = self
                .orders
                .entry((class, region))
                .or_insert_with(|| plan::order(&of_class.preference, region, index))
                .clone();
            let forced = forced(index, &self.overrides, of_class.service);
            let plan = plan::plan(&order, forced, |cluster| {
                self.candidate_state(index, of_class.service, cluster, region)
            });
            self.plans[class.index()][region.index()] = Some(plan);
        }
    }

    /// The state of a candidate as seen from `region`.
    pub(crate) fn candidate_state(
        &self,
        index: &FleetIndex,
        service: ServiceId,
        cluster: ClusterId,
        region: RegionId,
    ) -> CandidateState {
        let cluster = index.cluster(cluster);
        let health = self.health.get(&(cluster.name.clone(), index.service(service).check));
        let verdict = match health {
            Some(health) if region == index.home => health.verdict,
            Some(health) => health.verdict_in(index.region(region)),
            None => RegionalVerdict::UNKNOWN,
        };
        let since = verdict.recovered_at.max(self.drain_ended.get(&cluster.name).copied());
        CandidateState {
            health: verdict,
            drained: self.overrides.drain_of(&cluster.name, index.region(cluster.region)).is_some(),
            ramp: ramp::permille(since, self.settings.slow_start, self.now),
        }
    }

    /// The tiers of one action in the home region.
    pub(super) fn action_tiers(&self, index: &FleetIndex, service: ServiceId, action: usize) -> ActionTiers {
        let class = index.service(service).class(action);
        let plan = self.plans[class.index()][index.home.index()].as_ref().unwrap_or(&NO_PLAN);
        let candidates = self.candidates(index, class);
        tiers::tiers(plan, &self.placements[class.index()], &self.tier_context(index, class, candidates))
    }

    /// The candidates of a demand class in the home region in the order of preference, each with its state.
    pub(crate) fn candidates(
        &self,
        index: &FleetIndex,
        class: DemandClassId,
    ) -> Vec<(ClusterId, CandidateState)> {
        let order = self.orders.get(&(class, index.home));
        let listed = order.into_iter().flatten().flatten().map(|(cluster, _)| *cluster);
        let mut candidates: Vec<ClusterId> = listed.collect();
        let service = index.class(class).service;
        let forced = forced(index, &self.overrides, service);
        candidates.extend(forced.filter(|cluster| !candidates.contains(cluster)));
        candidates
            .into_iter()
            .map(|cluster| (cluster, self.candidate_state(index, service, cluster, index.home)))
            .collect()
    }

    fn tier_context<'a>(
        &'a self,
        index: &'a FleetIndex,
        class: DemandClassId,
        candidates: Vec<(ClusterId, CandidateState)>,
    ) -> TierContext<'a> {
        let class = index.class(class);
        let force = self.overrides.forced_route(&index.service(class.service).name);
        TierContext {
            index,
            preference: &class.preference,
            candidates,
            overrides: &self.overrides,
            force: force.and_then(|(cluster, item)| Some((index.cluster_id(cluster)?, item))),
        }
    }
}

/// The placement of a plan whose demand does not matter.
fn nominal_placement(plan: &Plan, index: &FleetIndex) -> Placement {
    let mut headroom = vec![UNLIMITED; index.clusters().len()];
    let demand = RegionalDemand { priority: 0, rate: 0, plan };
    let assignment = capacity::assign(&[demand], &mut headroom);
    assignment.placements().next().map(|placement| placement.to_owned()).unwrap_or_default()
}

/// The capacity of each cluster in thousandths of requests per second.
fn capacities(index: &FleetIndex) -> Vec<u64> {
    index.clusters().map(|(_, cluster)| capacity::thousandths(cluster.capacity)).collect()
}
