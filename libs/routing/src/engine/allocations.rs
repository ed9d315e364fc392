//! The current allocations of capacity, kept so that a change costs only what it affects.
//!
//! Demands affect each other only through full clusters: while a cluster has headroom, each demand gets what it claims
//! there, whatever others claim. So when some demands change, the others that must be reassigned are those that claim a
//! cluster that was full, or becomes full, and that one of the changed demands claims too. All others keep their allocation
//! and count as load. The result is the same as if all demands were reassigned.

use std::collections::BTreeSet;

use crate::{
    capacity::{self, Assignment, Placement, RegionalDemand},
    fleet_index::{ClusterId, DemandClassId, RegionId},
    plan::Plan,
};

/// The key of a demand: a demand class in a region.
pub(crate) type DemandKey = (DemandClassId, RegionId);

/// The allocation of each demand, and the resulting load of each cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allocations {
    regions: usize,
    /// By demand class, then region.
    allocations: Vec<Option<Allocation>>,
    loads: Vec<ClusterLoad>,
}

/// The allocation of one demand.
#[derive(Debug, Clone)]
pub(crate) struct Allocation {
    placement: Placement,
    /// The clusters that a known demand claimed, with the amount that each granted.
    granted: Vec<(ClusterId, u64)>,
}

#[derive(Debug, Clone, Default)]
struct ClusterLoad {
    /// Thousandths of requests per second.
    load: u64,
    /// The cluster has no headroom.
    full: bool,
    /// The demands that claim it.
    claimants: BTreeSet<DemandKey>,
}

impl Allocations {
    pub(crate) fn new(classes: usize, regions: usize, clusters: usize) -> Allocations {
        let mut allocations = Vec::new();
        allocations.resize_with(classes * regions, || None);
        Allocations { regions, allocations, loads: vec![ClusterLoad::default(); clusters] }
    }

    /// The placement of a demand.
    pub(crate) fn placement(&self, key: DemandKey) -> Option<&Placement> {
        self.allocations[self.at(key)].as_ref().map(|allocation| &allocation.placement)
    }

    /// The load of a cluster in thousandths of requests per second.
    pub(crate) fn load(&self, cluster: ClusterId) -> u64 {
        self.loads[cluster.index()].load
    }

    /// Reassigns the demands that `changed` and those that they affect, and returns all of them. `capacities` are those of
    /// the clusters.
    pub(crate) fn reassign<'a>(
        &mut self,
        changed: impl IntoIterator<Item = DemandKey>,
        capacities: &[u64],
        demand: impl Fn(DemandKey) -> RegionalDemand<'a>,
    ) -> Vec<DemandKey> {
        let mut affected = BTreeSet::new();
        self.add_affected(changed.into_iter().collect(), &mut affected);
        loop {
            let keys: Vec<DemandKey> = affected.iter().copied().collect();
            let demands: Vec<RegionalDemand<'a>> = keys.iter().map(|key| demand(*key)).collect();
            let mut headroom = self.headroom_without(&keys, capacities);
            let assignment = capacity::assign(&demands, &mut headroom);
            let mut joining = Vec::new();
            for (demand, claimed) in demands.iter().zip(assignment.claimed()) {
                for member in &demand.plan.members[..claimed] {
                    let load = &self.loads[member.cluster.index()];
                    if load.full || headroom[member.cluster.index()] == 0 {
                        joining.extend(load.claimants.iter().filter(|key| !affected.contains(*key)));
                    }
                }
            }
            if joining.is_empty() {
                self.replace(&keys, Allocations::of(&demands, &assignment), &headroom);
                return keys;
            }
            self.add_affected(joining, &mut affected);
        }
    }

    /// The allocations that follow from an assignment of `demands`.
    pub(crate) fn of(demands: &[RegionalDemand<'_>], assignment: &Assignment) -> Vec<Allocation> {
        let placements = assignment.placements().zip(assignment.claimed());
        demands
            .iter()
            .zip(placements)
            .map(|(demand, (placement, claimed))| {
                let members = demand.plan.members[..claimed].iter().zip(placement.placed);
                let granted = members.map(|(member, amount)| (member.cluster, *amount)).collect();
                Allocation { placement: placement.to_owned(), granted }
            })
            .collect()
    }

    /// Replaces the allocations of `keys`. `headroom` is what is left in each cluster that they claim.
    pub(crate) fn replace(&mut self, keys: &[DemandKey], allocations: Vec<Allocation>, headroom: &[u64]) {
        for key in keys {
            self.remove(*key);
        }
        for (key, allocation) in keys.iter().zip(allocations) {
            for (cluster, amount) in &allocation.granted {
                let load = &mut self.loads[cluster.index()];
                load.load += amount;
                load.claimants.insert(*key);
                load.full = headroom[cluster.index()] == 0;
            }
            let at = self.at(*key);
            self.allocations[at] = Some(allocation);
        }
    }

    /// Removes the allocations of a demand class. The demands that share a full cluster with it must be reassigned.
    pub(crate) fn remove_class(&mut self, class: DemandClassId) {
        for region in 0..self.regions {
            self.remove((class, RegionId::numbered(region)));
        }
    }

    fn remove(&mut self, key: DemandKey) {
        let at = self.at(key);
        let allocation = self.allocations[at].take();
        for (cluster, amount) in allocation.map(|allocation| allocation.granted).unwrap_or_default() {
            let load = &mut self.loads[cluster.index()];
            load.load -= amount;
            load.claimants.remove(&key);
            // If it was full, all its other claimants are being reassigned, too.
            load.full = false;
        }
    }

    /// Adds `keys` and all demands that share a full cluster with them.
    fn add_affected(&self, mut keys: Vec<DemandKey>, affected: &mut BTreeSet<DemandKey>) {
        let mut seen = BTreeSet::new();
        while let Some(key) = keys.pop() {
            if !affected.insert(key) {
                continue;
            }
            for (cluster, _) in self.granted(key) {
                let load = &self.loads[cluster.index()];
                if load.full && seen.insert(*cluster) {
                    keys.extend(load.claimants.iter().filter(|key| !affected.contains(*key)));
                }
            }
        }
    }

    /// The headroom of each cluster without the load of `keys`.
    fn headroom_without(&self, keys: &[DemandKey], capacities: &[u64]) -> Vec<u64> {
        let mut loads: Vec<u64> = self.loads.iter().map(|load| load.load).collect();
        for key in keys {
            for (cluster, amount) in self.granted(*key) {
                loads[cluster.index()] -= amount;
            }
        }
        capacities.iter().zip(loads).map(|(capacity, load)| capacity.saturating_sub(load)).collect()
    }

    fn granted(&self, key: DemandKey) -> impl Iterator<Item = &(ClusterId, u64)> {
        self.allocations[self.at(key)].iter().flat_map(|allocation| &allocation.granted)
    }

    fn at(&self, (class, region): DemandKey) -> usize {
        class.index() * self.regions + region.index()
    }
}

/// The plan of a demand class that no cluster may serve.
pub(crate) static NO_PLAN: Plan = Plan { members: Vec::new(), sharing: 0, fail_open: false };

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{plan::Member, ramp};

    const DEMANDS: usize = 8;
    const CLUSTERS: usize = 6;

    fn plan() -> impl Strategy<Value = Plan> {
        let ramp = prop_oneof![4 => Just(ramp::WHOLE), 1 => Just(300)];
        (vec((0..CLUSTERS, 1..4u32, ramp, any::<bool>()), 1..5), 0..20u8).prop_map(|(list, open)| {
            let mut members: Vec<Member> = Vec::new();
            let mut group = 0;
            for (cluster, weight, ramp, next) in list {
                let cluster = ClusterId::numbered(cluster);
                if members.iter().all(|member| member.cluster != cluster) {
                    group += u32::from(next && !members.is_empty());
                    members.push(Member { cluster, group, weight, ramp });
                }
            }
            Plan { sharing: members.len(), members, fail_open: open == 0 }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn reassigning_what_is_affected_equals_reassigning_everything(
            capacities in vec(0..2000u64, CLUSTERS),
            mut demands in vec((0..3u8, 0..800u64, plan()), DEMANDS),
            changes in vec((0..DEMANDS, 0..800u64, plan()), 1..20)
        ) {
            let keys: Vec<DemandKey> =
                (0..DEMANDS).map(|at| (DemandClassId::numbered(at / 2), RegionId::numbered(at % 2))).collect();
            let mut allocations = Allocations::new(DEMANDS / 2, 2, CLUSTERS);
            let mut changed = keys.clone();
            for change in std::iter::once(None).chain(changes.into_iter().map(Some)) {
                if let Some((at, rate, plan)) = change {
                    (demands[at].1, demands[at].2) = (rate, plan);
                    changed = vec![keys[at]];
                }
                let all: Vec<RegionalDemand<'_>> =
                    demands.iter().map(|(priority, rate, plan)| RegionalDemand { priority: *priority, rate: *rate, plan }).collect();
                let at = |key: DemandKey| key.0.index() * 2 + key.1.index();
                allocations.reassign(changed.clone(), &capacities, |key| all[at(key)]);

                let mut headroom = capacities.clone();
                let everything = capacity::assign(&all, &mut headroom);
                for (key, placement) in keys.iter().zip(everything.placements()) {
                    prop_assert_eq!(allocations.placement(*key), Some(&placement.to_owned()));
                }
            }
        }
    }

    #[test]
    fn a_demand_in_a_cluster_with_headroom_affects_no_other() {
        let member = |cluster| Member {
            cluster: ClusterId::numbered(cluster),
            group: 0,
            weight: 1,
            ramp: ramp::WHOLE,
        };
        let plan = Plan { members: vec![member(0)], sharing: 1, fail_open: false };
        let keys = [0, 1].map(|region| (DemandClassId::numbered(0), RegionId::numbered(region)));
        let mut allocations = Allocations::new(1, 2, 1);
        let demand = |rate| RegionalDemand { priority: 0, rate, plan: &plan };
        assert_eq!(allocations.reassign(keys, &[1000], |_| demand(100)), keys);
        assert_eq!(allocations.reassign([keys[0]], &[1000], |_| demand(200)), [keys[0]]);
        let crowded = |key: DemandKey| demand(if key == keys[0] { 900 } else { 100 });
        assert_eq!(allocations.reassign([keys[0]], &[1000], crowded), keys);
        assert_eq!(allocations.load(ClusterId::numbered(0)), 1000);
    }
}
