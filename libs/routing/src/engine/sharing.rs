//! Plans and shares of the lanes that were touched, and of those that are coupled with them.

use std::collections::BTreeSet;

use tidegate_model::routes::ActionTiers;

use super::{
    Engine, Work,
    ledger::{FlowKey, Ledger, NO_PLAN},
    recompute::forced,
};
use crate::{
    atlas::{Atlas, ClusterId, LaneId, RegionId, ServiceId},
    capacity::{self, Assignment, Flow, Placement, UNLIMITED},
    plan::{self, Facts, Plan},
    ramp,
    tiers::{self, Circumstances},
    view::Standing,
};

/// By how much a cluster may be over its capacity before that counts, in thousandths of requests per second: what
/// rounding shares of this demand to thousandths may do, and no more than a request per second.
fn rounding(demand: u64) -> u64 {
    (demand / 500 + 10).min(1000)
}

/// Which demand shares are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    Settled,
    Measured,
}

/// How right the shares in force are for the measured demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The right ones are the same.
    Same,
    /// The right ones are a little different.
    Tolerable,
    Wrong,
}

impl Engine {
    /// Shares out again what was touched, and returns the services whose tiers may be different.
    pub(super) fn share(&mut self, atlas: &Atlas, work: &Work) -> BTreeSet<ServiceId> {
        let mut different = BTreeSet::new();
        let mut flows = Vec::new();
        for lane in atlas.lanes_of(&work.services) {
            self.plans[lane.index()].fill(None);
            if self.coupling.group_of(lane).is_some() {
                flows.extend(self.flows(atlas, &[lane], &[Figure::Settled]));
            } else {
                self.ledger.forget(lane);
                self.share_alone(atlas, lane);
            }
        }
        self.reassign(atlas, flows, &mut different);
        let mut groups = BTreeSet::new();
        for lane in &work.demand {
            match self.coupling.group_of(*lane) {
                Some(group) => {
                    groups.insert(group);
                }
                // Without limits, demand changes nothing.
                None => self.demand.settle(*lane),
            }
        }
        for group in groups {
            self.look_at_demand(atlas, group, &mut different);
        }
        // What was tolerable before may not be now; found out when demand is looked at next, the same for all replicas.
        for lane in atlas.lanes_of(&work.services) {
            if let Some(group) = self.coupling.group_of(lane)
                && self.coupling.lanes(group).iter().any(|lane| !self.demand.is_settled(*lane))
            {
                self.demand.look_again(lane, self.now);
            }
        }
        let mut services = work.services.clone();
        services.extend(different.into_iter().map(|lane| atlas.lane(lane).service));
        services
    }

    fn share_alone(&mut self, atlas: &Atlas, lane: LaneId) {
        self.make_plan(atlas, lane, atlas.home);
        self.demand.settle(lane);
        if let Some(plan) = &self.plans[lane.index()][atlas.home.index()] {
            self.placements[lane.index()] = nominal(plan, atlas);
        }
    }

    /// Shares out `flows` by settled demand.
    fn reassign(&mut self, atlas: &Atlas, flows: Vec<FlowKey>, different: &mut BTreeSet<LaneId>) {
        for (lane, region) in &flows {
            self.make_plan(atlas, *lane, *region);
        }
        let mut ledger = std::mem::take(&mut self.ledger);
        let concerned = ledger.reassign(flows, &rooms(atlas), |key| self.flow(atlas, key, Figure::Settled));
        self.ledger = ledger;
        self.take_placements(atlas, &concerned, different);
    }

    /// Lets the shares of a group follow what is measured, if that matters.
    fn look_at_demand(&mut self, atlas: &Atlas, group: usize, different: &mut BTreeSet<LaneId>) {
        let lanes = self.coupling.lanes(group).to_vec();
        if lanes.iter().all(|lane| self.demand.is_settled(*lane)) {
            return;
        }
        let keys = self.flows(atlas, &lanes, &[Figure::Settled, Figure::Measured]);
        let new = keys.iter().copied().filter(|key| self.ledger.placement(*key).is_none()).collect();
        self.reassign(atlas, new, different);

        let flows: Vec<Flow<'_>> = keys.iter().map(|key| self.flow(atlas, *key, Figure::Measured)).collect();
        let mut room = rooms(atlas);
        let assignment = capacity::assign(&flows, &mut room);
        let fit = self.fit(atlas, &keys, &flows, &assignment);
        if fit == Fit::Tolerable {
            return;
        }
        let asked = Ledger::asked(&flows, &assignment);
        self.ledger.write(&keys, asked, &room);
        for lane in lanes {
            self.demand.settle(lane);
        }
        self.take_placements(atlas, &keys, different);
    }

    /// Takes over what the flows of this region got.
    fn take_placements(&mut self, atlas: &Atlas, keys: &[FlowKey], different: &mut BTreeSet<LaneId>) {
        for (lane, region) in keys {
            if *region == atlas.home
                && let Some(placement) = self.ledger.placement((*lane, *region))
                && self.placements[lane.index()] != *placement
            {
                self.placements[lane.index()] = placement.clone();
                different.insert(*lane);
            }
        }
    }

    /// The flows of some lanes: those with demand by one of the figures, and all of this region.
    fn flows(&self, atlas: &Atlas, lanes: &[LaneId], figures: &[Figure]) -> Vec<FlowKey> {
        let all = lanes.iter().flat_map(|lane| atlas.regions().map(move |(region, _)| (*lane, region)));
        all.filter(|key| {
            key.1 == atlas.home || figures.iter().any(|figure| self.demand_by(*key, *figure) > 0)
        })
        .collect()
    }

    fn demand_by(&self, (lane, region): FlowKey, figure: Figure) -> u64 {
        match figure {
            Figure::Settled => self.demand.settled(lane, region),
            Figure::Measured => self.demand.measured(lane, region),
        }
    }

    fn flow(&self, atlas: &Atlas, key: FlowKey, figure: Figure) -> Flow<'_> {
        let (lane, region) = key;
        Flow {
            priority: atlas.service(atlas.lane(lane).service).priority,
            demand: self.demand_by(key, figure),
            plan: self.plans[lane.index()][region.index()].as_ref().unwrap_or(&NO_PLAN),
        }
    }

    /// How well the shares in force fit the measured demand of `flows`, for which `then` would be right.
    fn fit(&self, atlas: &Atlas, keys: &[FlowKey], flows: &[Flow<'_>], then: &Assignment) -> Fit {
        let tolerance = self.settings.share_tolerance_permille;
        let mut load: Vec<u64> = vec![0; atlas.clusters().len()];
        let mut refused: Vec<&Plan> = Vec::new();
        let mut fit = Fit::Same;
        let rounding = rounding(flows.iter().map(|flow| flow.demand).sum());
        for ((key, flow), then) in keys.iter().zip(flows).zip(then.placements()) {
            let Some(now) = self.ledger.placement(*key) else { return Fit::Wrong };
            let share = |placed: &[u64], at: usize, demand: u64| {
                tiers::permille(placed.get(at).copied().unwrap_or(0), demand)
            };
            let shed =
                (tiers::permille(now.unplaced(), now.demand), tiers::permille(then.unplaced(), then.demand));
            let off = (0..now.placed.len())
                .map(|at| share(&now.placed, at, now.demand).abs_diff(share(then.placed, at, then.demand)))
                .max();
            // No request is refused for which there is room.
            if off.is_some_and(|off| off > tolerance) || shed.0 > shed.1 {
                return Fit::Wrong;
            }
            if shed.0 != shed.1 || !tiers::same_shares(&now.placed, then.placed) {
                fit = Fit::Tolerable;
            }
            if flow.demand > 0 && shed.0 > 0 {
                refused.push(flow.plan);
            }
            if !flow.plan.fail_open && now.demand > 0 {
                for (member, placed) in
                    flow.plan.members.iter().zip(&now.placed).filter(|(_, placed)| **placed > 0)
                {
                    load[member.cluster.index()] += capacity::scaled(flow.demand, *placed, now.demand);
                }
            }
        }
        let room = |cluster: ClusterId| capacity::room(atlas.cluster(cluster).capacity);
        let over = atlas
            .clusters()
            .any(|(cluster, _)| load[cluster.index()] > room(cluster).saturating_add(rounding));
        // Who fills a cluster may send it less than was settled; then others who were refused would find room there.
        let needless = refused
            .iter()
            .flat_map(|plan| &plan.members[..plan.sharing])
            .any(|member| load[member.cluster.index()] + rounding < room(member.cluster));
        if over || needless { Fit::Wrong } else { fit }
    }

    /// The plan of a lane as seen from `region`, if it is not there.
    fn make_plan(&mut self, atlas: &Atlas, lane: LaneId, region: RegionId) {
        if self.plans[lane.index()][region.index()].is_none() {
            let facts = atlas.lane(lane);
            let order = self
                .orders
                .entry((lane, region))
                .or_insert_with(|| plan::order(&facts.preference, region, atlas))
                .clone();
            let forced = forced(atlas, &self.overrides, facts.service);
            let plan =
                plan::plan(&order, forced, |cluster| self.facts(atlas, facts.service, cluster, region));
            self.plans[lane.index()][region.index()] = Some(plan);
        }
    }

    /// What decides about a candidate, as seen from `region`.
    pub(crate) fn facts(
        &self,
        atlas: &Atlas,
        service: ServiceId,
        cluster: ClusterId,
        region: RegionId,
    ) -> Facts {
        let cluster = atlas.cluster(cluster);
        let health = self.health.get(&(cluster.name.clone(), atlas.service(service).check));
        let standing = match health {
            Some(health) if region == atlas.home => health.standing,
            Some(health) => health.from(atlas.region(region)),
            None => Standing::UNKNOWN,
        };
        let since = standing.recovered_at.max(self.undrained.get(&cluster.name).copied());
        Facts {
            standing,
            drained: self.overrides.drain(&cluster.name, atlas.region(cluster.region)).is_some(),
            ramp: ramp::permille(since, self.settings.slow_start, self.now),
        }
    }

    /// The tiers of one action in this region.
    pub(super) fn action_tiers(&self, atlas: &Atlas, service: ServiceId, action: usize) -> ActionTiers {
        let lane = atlas.service(service).lane(action);
        let plan = self.plans[lane.index()][atlas.home.index()].as_ref().unwrap_or(&NO_PLAN);
        let candidates = self.candidates(atlas, lane);
        tiers::tiers(plan, &self.placements[lane.index()], &self.circumstances(atlas, lane, candidates))
    }

    /// The candidates of a lane in this region in the order of preference, with what decides about them.
    pub(crate) fn candidates(&self, atlas: &Atlas, lane: LaneId) -> Vec<(ClusterId, Facts)> {
        let order = self.orders.get(&(lane, atlas.home));
        let listed = order.into_iter().flatten().flatten().map(|(cluster, _)| *cluster);
        let mut candidates: Vec<ClusterId> = listed.collect();
        let service = atlas.lane(lane).service;
        let forced = forced(atlas, &self.overrides, service);
        candidates.extend(forced.filter(|cluster| !candidates.contains(cluster)));
        candidates
            .into_iter()
            .map(|cluster| (cluster, self.facts(atlas, service, cluster, atlas.home)))
            .collect()
    }

    fn circumstances<'a>(
        &'a self,
        atlas: &'a Atlas,
        lane: LaneId,
        candidates: Vec<(ClusterId, Facts)>,
    ) -> Circumstances<'a> {
        let lane = atlas.lane(lane);
        let force = self.overrides.force(&atlas.service(lane.service).name);
        Circumstances {
            atlas,
            preference: &lane.preference,
            candidates,
            overrides: &self.overrides,
            force: force.and_then(|(cluster, item)| Some((atlas.cluster_id(cluster)?, item))),
        }
    }
}

/// A plan's shares where demand does not matter.
fn nominal(plan: &Plan, atlas: &Atlas) -> Placement {
    let mut room = vec![UNLIMITED; atlas.clusters().len()];
    let flow = Flow { priority: 0, demand: 0, plan };
    let assignment = capacity::assign(&[flow], &mut room);
    assignment.placements().next().map(|placement| placement.to_owned()).unwrap_or_default()
}

/// What each cluster can take.
fn rooms(atlas: &Atlas) -> Vec<u64> {
    atlas.clusters().map(|(_, facts)| capacity::room(facts.capacity)).collect()
}
