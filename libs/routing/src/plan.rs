//! The plan of an action: its candidates in the order in which the edges of one region try them.

use tidegate_model::{ClusterName, fleet::Preference, verdict::Verdict};

use crate::{
    fleet_index::{ClusterId, FleetIndex, RegionId},
    proximity::{Proximity, ProximityBasis},
    ramp,
    regional_health::RegionalVerdict,
};

/// The order of an action's candidates by the fleet alone: groups that are tried in turn, with weights within a group.
pub(crate) type Order = Vec<Vec<(ClusterId, u32)>>;

/// The state of a candidate that decides its place in a plan, as seen from the region that the plan is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CandidateState {
    pub(crate) health: RegionalVerdict,
    pub(crate) drained: bool,
    /// The part of its share that slow start allows, in thousandths.
    pub(crate) ramp: u16,
}

/// One candidate in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) cluster: ClusterId,
    /// Members of one group are tried together; groups are numbered from 0 without gaps.
    pub(crate) group: u32,
    pub(crate) weight: u32,
    pub(crate) ramp: u16,
}

/// The clusters that are tried for an action, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// In the order of groups.
    pub(crate) members: Vec<Member>,
    /// The number of members, from the first, that share the traffic. The others are tried only if all of these fail.
    pub(crate) sharing: usize,
    /// All candidates seem down, so all of them are tried.
    pub(crate) fail_open: bool,
}

/// The order of `preference` as seen from `region`.
pub(crate) fn order(preference: &Preference, region: RegionId, index: &FleetIndex) -> Order {
    let id = |name: &ClusterName| index.cluster_id(name);
    match preference {
        Preference::Ordered(list) => list.iter().filter_map(id).map(|cluster| vec![(cluster, 1)]).collect(),
        Preference::Weighted(weights) => {
            let weights =
                weights.iter().filter_map(|(name, weight)| Some((id(name)?, u32::from(weight.get()))));
            let (first, last): (Vec<_>, Vec<_>) = weights.partition(|(_, weight)| *weight > 0);
            let last: Vec<_> = last.into_iter().map(|(cluster, _)| (cluster, 1)).collect();
            [first, last].into_iter().filter(|group| !group.is_empty()).collect()
        }
        Preference::Nearest(list) => {
            // If the distance is unknown, the clusters of one region at least stay together.
            let key = |cluster: ClusterId| {
                let home = index.cluster(cluster).region;
                let proximity: Proximity = index.proximity(region, home);
                let apart = (proximity.basis == ProximityBasis::Unknown).then_some(home);
                (proximity.latency_us, apart)
            };
            let mut clusters: Vec<ClusterId> = list.iter().filter_map(id).collect();
            clusters.sort_unstable();
            clusters.dedup();
            clusters.sort_by_key(|cluster| key(*cluster));
            clusters.chunk_by(|a, b| key(*a) == key(*b)).map(|group| by_capacity(group, index)).collect()
        }
    }
}

/// Weights by capacity if all of them are known and above zero, else equal weights.
fn by_capacity(group: &[ClusterId], index: &FleetIndex) -> Vec<(ClusterId, u32)> {
    let capacities: Option<Vec<u32>> = group
        .iter()
        .map(|cluster| index.cluster(*cluster).capacity.filter(|capacity| *capacity > 0))
        .collect();
    match capacities {
        Some(capacities) => group.iter().copied().zip(capacities).collect(),
        None => group.iter().map(|cluster| (*cluster, 1)).collect(),
    }
}

/// The stage in which a candidate is tried: all groups of a stage come before those of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Forced,
    Up,
    Unknown,
    Suppressed,
    Drained,
    DrainedUnknown,
    DrainedSuppressed,
    Out,
    DrainedOut,
}

fn stage(candidate: CandidateState, forced: bool) -> Stage {
    let CandidateState { health, drained, .. } = candidate;
    match (health.verdict, drained && !forced) {
        (Verdict::Up | Verdict::Unknown, false) if forced => Stage::Forced,
        (Verdict::Up, false) => Stage::Up,
        (Verdict::Unknown, false) => Stage::Unknown,
        (Verdict::PathDown | Verdict::Down, false) if health.suppressed => Stage::Suppressed,
        (Verdict::PathDown | Verdict::Down, false) => Stage::Out,
        (Verdict::Up, true) => Stage::Drained,
        (Verdict::Unknown, true) => Stage::DrainedUnknown,
        (Verdict::PathDown | Verdict::Down, true) if health.suppressed => Stage::DrainedSuppressed,
        (Verdict::PathDown | Verdict::Down, true) => Stage::DrainedOut,
    }
}

/// The plan of the candidates in `order`, and of `forced`, which comes first if it may serve.
///
/// Candidates that are up come first, then those with an unknown verdict. Suppressed ones, then drained ones, are used only
/// if nothing better is left. Candidates that are down are left out, unless all are.
pub(crate) fn plan(
    order: &Order,
    forced: Option<ClusterId>,
    state_of: impl Fn(ClusterId) -> CandidateState,
) -> Plan {
    let mut staged: Vec<(Stage, usize, Member)> = Vec::new();
    let forced_first = forced.into_iter().map(|cluster| (0, (cluster, 1)));
    let listed = order
        .iter()
        .enumerate()
        .flat_map(|(rank, group)| group.iter().map(move |member| (rank + 1, *member)))
        .filter(|(_, (cluster, _))| Some(*cluster) != forced);
    for (rank, (cluster, weight)) in forced_first.chain(listed) {
        let state = state_of(cluster);
        let stage = stage(state, Some(cluster) == forced);
        let rank = if rank == 0 && stage != Stage::Forced { rank_of(order, cluster) } else { rank };
        staged.push((stage, rank, Member { cluster, group: 0, weight, ramp: state.ramp }));
    }
    staged.sort_by_key(|(stage, rank, member)| (*stage, *rank, member.cluster));
    let fail_open = staged.iter().all(|(stage, _, _)| *stage >= Stage::Out);
    if !fail_open {
        staged.retain(|(stage, _, _)| *stage < Stage::Out);
    }
    // Drained or suppressed candidates share no traffic with others.
    let shares_with = |stage: Stage| match stage {
        Stage::Forced | Stage::Up | Stage::Unknown => Stage::Unknown,
        Stage::Drained | Stage::DrainedUnknown => Stage::DrainedUnknown,
        Stage::Suppressed | Stage::DrainedSuppressed | Stage::Out | Stage::DrainedOut => stage,
    };
    let first = staged.first().map(|(stage, _, _)| shares_with(*stage));
    let sharing = staged.iter().take_while(|(stage, _, _)| Some(shares_with(*stage)) == first).count();
    let mut members = Vec::with_capacity(staged.len());
    let mut group = 0;
    let mut before: Option<(Stage, usize)> = None;
    for (stage, rank, mut member) in staged {
        if before.is_some_and(|before| before != (stage, rank)) {
            group += 1;
        }
        before = Some((stage, rank));
        member.group = group;
        members.push(member);
    }
    skip_slow_start_without_alternative(&mut members[..sharing]);
    Plan { members, sharing, fail_open }
}

/// The position of a cluster in the order, from 1; after all others if it is not listed.
fn rank_of(order: &Order, cluster: ClusterId) -> usize {
    let position = order.iter().position(|group| group.iter().any(|(other, _)| *other == cluster));
    position.unwrap_or(order.len()) + 1
}

/// Ends slow start if no member may have its whole share, since nobody could take the rest.
fn skip_slow_start_without_alternative(members: &mut [Member]) {
    if members.iter().all(|member| member.ramp < ramp::WHOLE) {
        for member in members {
            member.ramp = ramp::WHOLE;
        }
    }
}
