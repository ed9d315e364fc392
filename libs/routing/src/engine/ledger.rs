//! What was shared out last, so that a change costs what it touches.
//!
//! Flows meet in a cluster only when it is full: as long as it has room left, each gets there what it asks for, whoever
//! else asks. So when some flows change, those that must be shared out with them are the ones that asked a cluster that
//! was full, or becomes full, and is asked by one of them; all others stay as they are, and count as a load. The result is
//! the same as if all flows were shared out anew.

use std::collections::BTreeSet;

use crate::{
    atlas::{ClusterId, LaneId, RegionId},
    capacity::{self, Assignment, Flow, Placement},
    plan::Plan,
};

/// A flow: which lane in which region.
pub(crate) type FlowKey = (LaneId, RegionId);

/// The last outcome of each flow, and what it means for the clusters.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    regions: usize,
    /// By lane and region.
    outcomes: Vec<Option<Outcome>>,
    accounts: Vec<Account>,
}

/// What a flow got.
#[derive(Debug)]
pub(crate) struct Outcome {
    placement: Placement,
    /// The clusters that a flow of known demand asked, with what it got there.
    parts: Vec<(ClusterId, u64)>,
}

#[derive(Debug, Clone, Default)]
struct Account {
    /// Thousandths of requests per second.
    load: u64,
    /// Whether it has no room left.
    full: bool,
    askers: BTreeSet<FlowKey>,
}

impl Ledger {
    pub(crate) fn new(lanes: usize, regions: usize, clusters: usize) -> Ledger {
        let mut outcomes = Vec::new();
        outcomes.resize_with(lanes * regions, || None);
        Ledger { regions, outcomes, accounts: vec![Account::default(); clusters] }
    }

    /// What a flow got.
    pub(crate) fn placement(&self, key: FlowKey) -> Option<&Placement> {
        self.outcomes[self.at(key)].as_ref().map(|outcome| &outcome.placement)
    }

    /// What a cluster gets, in thousandths of requests per second.
    pub(crate) fn load(&self, cluster: ClusterId) -> u64 {
        self.accounts[cluster.index()].load
    }

    /// Shares out anew the flows that `changed` and those that this concerns, and returns all of them. `rooms` is what each
    /// cluster can take.
    pub(crate) fn reassign<'a>(
        &mut self,
        changed: impl IntoIterator<Item = FlowKey>,
        rooms: &[u64],
        flow: impl Fn(FlowKey) -> Flow<'a>,
    ) -> Vec<FlowKey> {
        let mut concerned = BTreeSet::new();
        self.concern(changed.into_iter().collect(), &mut concerned);
        loop {
            let keys: Vec<FlowKey> = concerned.iter().copied().collect();
            let flows: Vec<Flow<'a>> = keys.iter().map(|key| flow(*key)).collect();
            let mut room = self.room_without(&keys, rooms);
            let assignment = capacity::assign(&flows, &mut room);
            let mut joining = Vec::new();
            for (flow, shared) in flows.iter().zip(assignment.asked()) {
                for member in &flow.plan.members[..shared] {
                    let account = &self.accounts[member.cluster.index()];
                    if account.full || room[member.cluster.index()] == 0 {
                        let askers = &account.askers;
                        joining.extend(askers.iter().filter(|asker| !concerned.contains(*asker)));
                    }
                }
            }
            if joining.is_empty() {
                self.write(&keys, Ledger::asked(&flows, &assignment), &room);
                return keys;
            }
            self.concern(joining, &mut concerned);
        }
    }

    /// What each flow got, and from which clusters.
    pub(crate) fn asked(flows: &[Flow<'_>], assignment: &Assignment) -> Vec<Outcome> {
        let placements = assignment.placements().zip(assignment.asked());
        let outcome = |(flow, (placement, asked)): (&Flow<'_>, (Placement<&[u64]>, usize))| {
            let members = flow.plan.members[..asked].iter().zip(placement.placed);
            let parts = members.map(|(member, amount)| (member.cluster, *amount)).collect();
            Outcome { placement: placement.to_owned(), parts }
        };
        flows.iter().zip(placements).map(outcome).collect()
    }

    /// Takes the outcomes of `keys` for true; `room` is what is left in each cluster that they asked.
    pub(crate) fn write(&mut self, keys: &[FlowKey], outcomes: Vec<Outcome>, room: &[u64]) {
        for key in keys {
            self.take_out(*key);
        }
        for (key, outcome) in keys.iter().zip(outcomes) {
            for (cluster, amount) in &outcome.parts {
                let account = &mut self.accounts[cluster.index()];
                account.load += amount;
                account.askers.insert(*key);
                account.full = room[cluster.index()] == 0;
            }
            let at = self.at(*key);
            self.outcomes[at] = Some(outcome);
        }
    }

    /// Forgets the flows of a lane; who shared a full cluster with one of them is to be shared out anew.
    pub(crate) fn forget(&mut self, lane: LaneId) {
        for region in 0..self.regions {
            self.take_out((lane, RegionId::numbered(region)));
        }
    }

    fn take_out(&mut self, key: FlowKey) {
        let at = self.at(key);
        for (cluster, amount) in self.outcomes[at].take().map(|outcome| outcome.parts).unwrap_or_default() {
            let account = &mut self.accounts[cluster.index()];
            account.load -= amount;
            account.askers.remove(&key);
            // If it was, all others who asked it are being shared out too.
            account.full = false;
        }
    }

    /// Adds `flows` and all that share a full cluster with them.
    fn concern(&self, mut flows: Vec<FlowKey>, concerned: &mut BTreeSet<FlowKey>) {
        let mut seen = BTreeSet::new();
        while let Some(key) = flows.pop() {
            if !concerned.insert(key) {
                continue;
            }
            let parts = self.outcomes[self.at(key)].iter().flat_map(|outcome| &outcome.parts);
            for (cluster, _) in parts {
                let account = &self.accounts[cluster.index()];
                if account.full && seen.insert(*cluster) {
                    flows.extend(account.askers.iter().filter(|asker| !concerned.contains(*asker)));
                }
            }
        }
    }

    /// The room in each cluster if `keys` sent nothing.
    fn room_without(&self, keys: &[FlowKey], rooms: &[u64]) -> Vec<u64> {
        let mut loads: Vec<u64> = self.accounts.iter().map(|account| account.load).collect();
        for key in keys {
            for (cluster, amount) in self.outcomes[self.at(*key)].iter().flat_map(|outcome| &outcome.parts) {
                loads[cluster.index()] -= amount;
            }
        }
        rooms.iter().zip(loads).map(|(room, load)| room.saturating_sub(load)).collect()
    }

    fn at(&self, (lane, region): FlowKey) -> usize {
        lane.index() * self.regions + region.index()
    }
}

/// The plan of a flow that has none: nobody may serve it.
pub(crate) static NO_PLAN: Plan = Plan { members: Vec::new(), sharing: 0, fail_open: false };

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{plan::Member, ramp};

    const FLOWS: usize = 8;
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
        fn sharing_out_what_is_concerned_equals_sharing_out_everything(
            rooms in vec(0..2000u64, CLUSTERS),
            mut flows in vec((0..3u8, 0..800u64, plan()), FLOWS),
            changes in vec((0..FLOWS, 0..800u64, plan()), 1..20)
        ) {
            let keys: Vec<FlowKey> =
                (0..FLOWS).map(|at| (LaneId::numbered(at / 2), RegionId::numbered(at % 2))).collect();
            let mut ledger = Ledger::new(FLOWS / 2, 2, CLUSTERS);
            let mut changed = keys.clone();
            for change in std::iter::once(None).chain(changes.into_iter().map(Some)) {
                if let Some((at, demand, plan)) = change {
                    (flows[at].1, flows[at].2) = (demand, plan);
                    changed = vec![keys[at]];
                }
                let all: Vec<Flow<'_>> =
                    flows.iter().map(|(priority, demand, plan)| Flow { priority: *priority, demand: *demand, plan }).collect();
                let at = |key: FlowKey| key.0.index() * 2 + key.1.index();
                ledger.reassign(changed.clone(), &rooms, |key| all[at(key)]);

                let mut room = rooms.clone();
                let everything = capacity::assign(&all, &mut room);
                for (key, placement) in keys.iter().zip(everything.placements()) {
                    prop_assert_eq!(ledger.placement(*key), Some(&placement.to_owned()));
                }
            }
        }
    }

    #[test]
    fn a_flow_in_a_cluster_with_room_concerns_no_other() {
        let member = |cluster| Member {
            cluster: ClusterId::numbered(cluster),
            group: 0,
            weight: 1,
            ramp: ramp::WHOLE,
        };
        let plan = Plan { members: vec![member(0)], sharing: 1, fail_open: false };
        let keys = [0, 1].map(|region| (LaneId::numbered(0), RegionId::numbered(region)));
        let mut ledger = Ledger::new(1, 2, 1);
        let flow = |demand| Flow { priority: 0, demand, plan: &plan };
        assert_eq!(ledger.reassign(keys, &[1000], |_| flow(100)), keys);
        assert_eq!(ledger.reassign([keys[0]], &[1000], |_| flow(200)), [keys[0]]);
        let crowded = |key: FlowKey| flow(if key == keys[0] { 900 } else { 100 });
        assert_eq!(ledger.reassign([keys[0]], &[1000], crowded), keys);
        assert_eq!(ledger.load(ClusterId::numbered(0)), 1000);
    }
}
