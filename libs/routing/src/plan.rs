//! The candidates of an action, in the order in which one region's edges try them.

use tidegate_model::{ClusterName, fleet::Preference, verdict::Verdict};

use crate::{
    atlas::{Atlas, ClusterId, RegionId},
    proximity::{Proximity, ProximityBasis},
    ramp,
    view::Standing,
};

/// The order of an action's candidates as the fleet alone gives it: groups tried in turn, and weights within a group.
pub(crate) type Order = Vec<Vec<(ClusterId, u32)>>;

/// What decides about one candidate, as seen from the region that the plan is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) standing: Standing,
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

/// Who is tried, in which order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// In the order of groups.
    pub(crate) members: Vec<Member>,
    /// The first so many members share the traffic; those after them are for when all of these fail.
    pub(crate) sharing: usize,
    /// Everything seems down, so all of it is tried.
    pub(crate) fail_open: bool,
}

/// The order of `preference` as seen from `region`.
pub(crate) fn order(preference: &Preference, region: RegionId, atlas: &Atlas) -> Order {
    let id = |name: &ClusterName| atlas.cluster_id(name);
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
            // Where nothing is known of the distance, a region's clusters at least stay together.
            let key = |cluster: ClusterId| {
                let home = atlas.cluster(cluster).region;
                let proximity: Proximity = atlas.proximity(region, home);
                let apart = (proximity.basis == ProximityBasis::Unknown).then_some(home);
                (proximity.latency_us, apart)
            };
            let mut clusters: Vec<ClusterId> = list.iter().filter_map(id).collect();
            clusters.sort_unstable();
            clusters.dedup();
            clusters.sort_by_key(|cluster| key(*cluster));
            clusters.chunk_by(|a, b| key(*a) == key(*b)).map(|group| by_capacity(group, atlas)).collect()
        }
    }
}

/// Weights by capacity where all of them are known and above zero, else equal ones.
fn by_capacity(group: &[ClusterId], atlas: &Atlas) -> Vec<(ClusterId, u32)> {
    let capacities: Option<Vec<u32>> = group
        .iter()
        .map(|cluster| atlas.cluster(*cluster).capacity.filter(|capacity| *capacity > 0))
        .collect();
    match capacities {
        Some(capacities) => group.iter().copied().zip(capacities).collect(),
        None => group.iter().map(|cluster| (*cluster, 1)).collect(),
    }
}

/// The stages in which candidates are tried, each group of a stage before the groups of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Forced,
    Up,
    Unknown,
    HeldOut,
    Drained,
    DrainedUnknown,
    DrainedHeldOut,
    Out,
    DrainedOut,
}

fn stage(facts: Facts, forced: bool) -> Stage {
    let Facts { standing, drained, .. } = facts;
    match (standing.verdict, drained && !forced) {
        (Verdict::Up | Verdict::Unknown, false) if forced => Stage::Forced,
        (Verdict::Up, false) => Stage::Up,
        (Verdict::Unknown, false) => Stage::Unknown,
        (Verdict::PathDown | Verdict::Down, false) if standing.held_out => Stage::HeldOut,
        (Verdict::PathDown | Verdict::Down, false) => Stage::Out,
        (Verdict::Up, true) => Stage::Drained,
        (Verdict::Unknown, true) => Stage::DrainedUnknown,
        (Verdict::PathDown | Verdict::Down, true) if standing.held_out => Stage::DrainedHeldOut,
        (Verdict::PathDown | Verdict::Down, true) => Stage::DrainedOut,
    }
}

/// The plan of candidates in `order`, of which `forced` comes first if it may serve (also when it is not in the order).
///
/// Those that serve come first; those of which nothing is known after them; what is held out, then what is drained, only
/// for when nothing better is left; what is down not at all, unless everything is.
pub(crate) fn plan(order: &Order, forced: Option<ClusterId>, facts: impl Fn(ClusterId) -> Facts) -> Plan {
    let mut staged: Vec<(Stage, usize, Member)> = Vec::new();
    let forced_first = forced.into_iter().map(|cluster| (0, (cluster, 1)));
    let listed = order
        .iter()
        .enumerate()
        .flat_map(|(rank, group)| group.iter().map(move |member| (rank + 1, *member)))
        .filter(|(_, (cluster, _))| Some(*cluster) != forced);
    for (rank, (cluster, weight)) in forced_first.chain(listed) {
        let facts = facts(cluster);
        let stage = stage(facts, Some(cluster) == forced);
        let rank = if rank == 0 && stage != Stage::Forced { rank_of(order, cluster) } else { rank };
        staged.push((stage, rank, Member { cluster, group: 0, weight, ramp: facts.ramp }));
    }
    staged.sort_by_key(|(stage, rank, member)| (*stage, *rank, member.cluster));
    let fail_open = staged.iter().all(|(stage, _, _)| *stage >= Stage::Out);
    if !fail_open {
        staged.retain(|(stage, _, _)| *stage < Stage::Out);
    }
    // What is drained or held out shares nothing with what is not.
    let shares_with = |stage: Stage| match stage {
        Stage::Forced | Stage::Up | Stage::Unknown => Stage::Unknown,
        Stage::Drained | Stage::DrainedUnknown => Stage::DrainedUnknown,
        Stage::HeldOut | Stage::DrainedHeldOut | Stage::Out | Stage::DrainedOut => stage,
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
    grow_only_beside_the_grown(&mut members[..sharing]);
    Plan { members, sharing, fail_open }
}

/// The place of a cluster in the order; after all others when it is not in it.
fn rank_of(order: &Order, cluster: ClusterId) -> usize {
    let place = order.iter().position(|group| group.iter().any(|(other, _)| *other == cluster));
    place.unwrap_or(order.len()) + 1
}

/// Slow start sends the rest elsewhere: where no cluster has its whole share, there is no such place.
fn grow_only_beside_the_grown(members: &mut [Member]) {
    if members.iter().all(|member| member.ramp < ramp::WHOLE) {
        for member in members {
            member.ramp = ramp::WHOLE;
        }
    }
}
