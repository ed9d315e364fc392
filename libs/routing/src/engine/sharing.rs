//! Plans and shares of the services that were touched, and of those that are coupled with them.

use std::collections::BTreeSet;

use tidegate_model::routes::ActionTiers;

use super::{
    Engine, Work,
    ledger::{FlowKey, Ledger, NO_PLAN},
    recompute::forced,
};
use crate::{
    atlas::{Atlas, ClusterId, RegionId, ServiceId},
    capacity::{self, Assignment, Flow, Placement, UNLIMITED},
    plan::{self, Facts, Order, Plan},
    ramp,
    tiers::{self, Circumstances},
    view::Standing,
};

/// By how much a cluster may be over its capacity before that counts, in thousandths of requests per second: what
/// rounding may do.
const ROUNDING: u64 = 1000;

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
        let mut different = work.services.clone();
        let mut flows = Vec::new();
        for service in &work.services {
            self.plans[service.index()].fill(None);
            if self.coupling.group_of(*service).is_some() {
                flows.extend(self.flows(atlas, &[*service], &[Figure::Settled]));
            } else {
                self.ledger.forget(*service);
                self.share_alone(atlas, *service);
            }
        }
        self.reassign(atlas, flows, &mut different);
        let mut groups = BTreeSet::new();
        for service in &work.demand {
            match self.coupling.group_of(*service) {
                Some(group) => {
                    groups.insert(group);
                }
                // Without limits, demand changes nothing.
                None => self.demand.settle(*service),
            }
        }
        for group in groups {
            self.look_at_demand(atlas, group, &mut different);
        }
        // What was tolerable before may not be now; found out when demand is looked at next, the same for all replicas.
        for service in &work.services {
            if let Some(group) = self.coupling.group_of(*service)
                && self.coupling.services(group).iter().any(|service| !self.demand.is_settled(*service))
            {
                self.demand.look_again(*service, self.now);
            }
        }
        different
    }

    fn share_alone(&mut self, atlas: &Atlas, service: ServiceId) {
        self.make_plan(atlas, service, atlas.home);
        self.demand.settle(service);
        if let Some(plan) = &self.plans[service.index()][atlas.home.index()] {
            self.placements[service.index()] = nominal(plan, atlas);
        }
    }

    /// Shares out `flows` by settled demand.
    fn reassign(&mut self, atlas: &Atlas, flows: Vec<FlowKey>, different: &mut BTreeSet<ServiceId>) {
        for (service, region) in &flows {
            self.make_plan(atlas, *service, *region);
        }
        let mut ledger = std::mem::take(&mut self.ledger);
        let concerned = ledger.reassign(flows, &rooms(atlas), |key| self.flow(atlas, key, Figure::Settled));
        self.ledger = ledger;
        self.take_placements(atlas, &concerned, different);
    }

    /// Lets the shares of a group follow what is measured, if that matters.
    fn look_at_demand(&mut self, atlas: &Atlas, group: usize, different: &mut BTreeSet<ServiceId>) {
        let services = self.coupling.services(group).to_vec();
        if services.iter().all(|service| self.demand.is_settled(*service)) {
            return;
        }
        let keys = self.flows(atlas, &services, &[Figure::Settled, Figure::Measured]);
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
        for service in services {
            self.demand.settle(service);
        }
        self.take_placements(atlas, &keys, different);
    }

    /// Takes over what the flows of this region got.
    fn take_placements(&mut self, atlas: &Atlas, keys: &[FlowKey], different: &mut BTreeSet<ServiceId>) {
        for (service, region) in keys {
            if *region == atlas.home
                && let Some(placement) = self.ledger.placement((*service, *region))
                && self.placements[service.index()] != *placement
            {
                self.placements[service.index()] = placement.clone();
                different.insert(*service);
            }
        }
    }

    /// The flows of some services: those with demand by one of the figures, and all of this region.
    fn flows(&self, atlas: &Atlas, services: &[ServiceId], figures: &[Figure]) -> Vec<FlowKey> {
        let all =
            services.iter().flat_map(|service| atlas.regions().map(move |(region, _)| (*service, region)));
        all.filter(|key| {
            key.1 == atlas.home || figures.iter().any(|figure| self.demand_by(*key, *figure) > 0)
        })
        .collect()
    }

    fn demand_by(&self, (service, region): FlowKey, figure: Figure) -> u64 {
        match figure {
            Figure::Settled => self.demand.settled(service, region),
            Figure::Measured => self.demand.measured(service, region),
        }
    }

    fn flow(&self, atlas: &Atlas, key: FlowKey, figure: Figure) -> Flow<'_> {
        let (service, region) = key;
        Flow {
            priority: atlas.service(service).priority,
            demand: self.demand_by(key, figure),
            plan: self.plans[service.index()][region.index()].as_ref().unwrap_or(&NO_PLAN),
        }
    }

    /// How well the shares in force fit the measured demand of `flows`, for which `then` would be right.
    fn fit(&self, atlas: &Atlas, keys: &[FlowKey], flows: &[Flow<'_>], then: &Assignment) -> Fit {
        let tolerance = self.settings.share_tolerance_permille;
        let mut load: Vec<u64> = vec![0; atlas.clusters().len()];
        let mut refused: Vec<&Plan> = Vec::new();
        let mut fit = Fit::Same;
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
            .any(|(cluster, _)| load[cluster.index()] > room(cluster).saturating_add(ROUNDING));
        // Who fills a cluster may send it less than was settled; then others who were refused would find room there.
        let needless = refused
            .iter()
            .flat_map(|plan| &plan.members[..plan.sharing])
            .any(|member| load[member.cluster.index()] + ROUNDING < room(member.cluster));
        if over || needless { Fit::Wrong } else { fit }
    }

    /// The plan of a service's default action as seen from `region`, if it is not there.
    fn make_plan(&mut self, atlas: &Atlas, service: ServiceId, region: RegionId) {
        if self.plans[service.index()][region.index()].is_none() {
            self.make_order(atlas, service, 0, region);
            let plan = self.plan(atlas, service, 0, region);
            self.plans[service.index()][region.index()] = Some(plan);
        }
    }

    fn make_order(&mut self, atlas: &Atlas, service: ServiceId, action: usize, region: RegionId) {
        self.orders
            .entry((service, action, region))
            .or_insert_with(|| plan::order(&atlas.service(service).preferences[action], region, atlas));
    }

    fn plan(&self, atlas: &Atlas, service: ServiceId, action: usize, region: RegionId) -> Plan {
        static NOWHERE: Order = Order::new();
        let order = self.orders.get(&(service, action, region)).unwrap_or(&NOWHERE);
        let forced = forced(atlas, &self.overrides, service);
        plan::plan(order, forced, |cluster| self.facts(atlas, service, cluster, region))
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
    pub(super) fn action_tiers(&mut self, atlas: &Atlas, service: ServiceId, action: usize) -> ActionTiers {
        let preferences = &atlas.service(service).preferences;
        self.make_order(atlas, service, action, atlas.home);
        let (plan, placement) = if preferences[action] == preferences[0] {
            let plan = self.plans[service.index()][atlas.home.index()].clone().unwrap_or_default();
            (plan, self.placements[service.index()].clone())
        } else {
            let plan = self.plan(atlas, service, action, atlas.home);
            let placement = nominal(&plan, atlas);
            (plan, placement)
        };
        let candidates = self.candidates(atlas, service, action);
        tiers::tiers(&plan, &placement, &self.circumstances(atlas, service, action, candidates))
    }

    /// The candidates of an action in this region in the order of preference, with what decides about them.
    pub(crate) fn candidates(
        &self,
        atlas: &Atlas,
        service: ServiceId,
        action: usize,
    ) -> Vec<(ClusterId, Facts)> {
        let order = self.orders.get(&(service, action, atlas.home));
        let listed = order.into_iter().flatten().flatten().map(|(cluster, _)| *cluster);
        let mut candidates: Vec<ClusterId> = listed.collect();
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
        service: ServiceId,
        action: usize,
        candidates: Vec<(ClusterId, Facts)>,
    ) -> Circumstances<'a> {
        let facts = atlas.service(service);
        let force = self.overrides.force(&facts.name);
        Circumstances {
            atlas,
            preference: &facts.preferences[action],
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
