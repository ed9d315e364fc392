//! Plans and shares of the services that were touched, and of those that are coupled with them.

use std::collections::BTreeSet;

use tidegate_model::routes::ActionTiers;

use super::{Engine, Work, recompute::forced};
use crate::{
    atlas::{Atlas, ClusterId, RegionId, ServiceId},
    capacity::{self, Assignment, Flow, Placement, UNLIMITED},
    plan::{self, Facts, Order, Plan},
    ramp,
    tiers::{self, Circumstances},
    view::Standing,
};

/// The flows of coupled services: which service in which region.
pub(crate) type Flows = Vec<(ServiceId, RegionId)>;

/// By how much a cluster may be over its capacity before that counts, in thousandths of requests per second: what
/// rounding may do.
const ROUNDING: u64 = 1000;

/// Which demand shares are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    Settled,
    Measured,
}

impl Engine {
    /// Shares out again what was touched, and returns the services whose tiers may be different.
    pub(super) fn share(&mut self, atlas: &Atlas, work: &Work) -> BTreeSet<ServiceId> {
        let mut different = work.services.clone();
        for service in &work.services {
            self.plans[service.index()].fill(None);
        }
        let mut groups = BTreeSet::new();
        for service in work.services.iter().chain(&work.demand) {
            match self.coupling.group_of(*service) {
                Some(group) => {
                    groups.insert(group);
                }
                None if work.services.contains(service) => self.share_alone(atlas, *service),
                // Without limits, demand changes nothing.
                None => self.demand.settle(*service),
            }
        }
        for group in groups {
            self.share_group(atlas, group, &mut different);
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

    fn share_group(&mut self, atlas: &Atlas, group: usize, different: &mut BTreeSet<ServiceId>) {
        let flows = self.flows(atlas, group);
        for (service, region) in &flows {
            self.make_plan(atlas, *service, *region);
        }
        let mut assignment = self.assign(atlas, &flows, Figure::Settled);
        let unsettled = flows.iter().any(|(service, region)| {
            self.demand.settled(*service, *region) != self.demand.measured(*service, *region)
        });
        if unsettled {
            let measured = self.assign(atlas, &flows, Figure::Measured);
            if self.must_move(atlas, &flows, &assignment, &measured) {
                for service in self.coupling.services(group) {
                    self.demand.settle(*service);
                }
                assignment = measured;
            }
        }
        for ((service, region), placement) in flows.iter().zip(assignment.placements()) {
            if *region == atlas.home {
                let placement = placement.to_owned();
                if self.placements[service.index()] != placement {
                    self.placements[service.index()] = placement;
                    different.insert(*service);
                }
            }
        }
    }

    /// The flows of a service and of all that are coupled with it.
    pub(crate) fn flows_with(&self, atlas: &Atlas, service: ServiceId) -> Flows {
        match self.coupling.group_of(service) {
            Some(group) => self.flows(atlas, group),
            None => vec![(service, atlas.home)],
        }
    }

    /// The flows of a group: those with demand, and all of this region.
    fn flows(&self, atlas: &Atlas, group: usize) -> Flows {
        let mut flows = Flows::new();
        for service in self.coupling.services(group) {
            for (region, _) in atlas.regions() {
                let demand =
                    self.demand.settled(*service, region).max(self.demand.measured(*service, region));
                if demand > 0 || region == atlas.home {
                    flows.push((*service, region));
                }
            }
        }
        flows
    }

    /// Shares out `flows`; those without a plan get nothing.
    pub(crate) fn assign(&self, atlas: &Atlas, flows: &Flows, figure: Figure) -> Assignment {
        static NO_PLAN: Plan = Plan { members: Vec::new(), sharing: 0, fail_open: false };
        let mut room: Vec<u64> = atlas.clusters().map(|(_, facts)| room(facts.capacity)).collect();
        let flows: Vec<Flow<'_>> = flows
            .iter()
            .map(|(service, region)| Flow {
                priority: atlas.service(*service).priority,
                demand: match figure {
                    Figure::Settled => self.demand.settled(*service, *region),
                    Figure::Measured => self.demand.measured(*service, *region),
                },
                plan: self.plans[service.index()][region.index()].as_ref().unwrap_or(&NO_PLAN),
            })
            .collect();
        capacity::assign(&flows, &mut room)
    }

    /// Whether the shares in force, `now`, are too wrong for what is measured, for which `then` would be right.
    fn must_move(&self, atlas: &Atlas, flows: &Flows, now: &Assignment, then: &Assignment) -> bool {
        let tolerance = self.settings.share_tolerance_permille;
        let mut load: Vec<u64> = vec![0; atlas.clusters().len()];
        for (((service, region), now), then) in flows.iter().zip(now.placements()).zip(then.placements()) {
            let share = |placement: &Placement<&[u64]>, at: usize| {
                tiers::permille(placement.placed.get(at).copied().unwrap_or(0), placement.demand)
            };
            let shed =
                |placement: &Placement<&[u64]>| tiers::permille(placement.unplaced(), placement.demand);
            let moves =
                (0..now.placed.len()).any(|at| share(&now, at).abs_diff(share(&then, at)) > tolerance);
            // No request is refused for which there is room.
            if moves || shed(&now) > shed(&then) {
                return true;
            }
            let plan = self.plans[service.index()][region.index()].as_ref();
            if let Some(plan) = plan.filter(|plan| !plan.fail_open) {
                let measured = u128::from(self.demand.measured(*service, *region));
                for (member, placed) in plan.members.iter().zip(now.placed) {
                    // A part of `measured`, so it is a u64.
                    let part = measured * u128::from(*placed) / u128::from(now.demand.max(1));
                    load[member.cluster.index()] += part as u64;
                }
            }
        }
        atlas
            .clusters()
            .any(|(cluster, facts)| load[cluster.index()] > room(facts.capacity).saturating_add(ROUNDING))
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

/// A capacity in thousandths of requests per second.
fn room(capacity: Option<u32>) -> u64 {
    capacity.map_or(UNLIMITED, |capacity| u64::from(capacity) * 1000)
}
