//! The tiers of an action: its plan and shares as an entry of the route table, with the reason in words.

use tidegate_model::{
    fleet::Preference,
    overrides::Override,
    routes::{ActionTiers, Tier},
    verdict::Verdict,
};

use crate::{
    capacity::Placement,
    fleet_index::{ClusterId, FleetIndex, IndexedCluster},
    overrides::{self, Overrides},
    plan::{CandidateState, Plan},
    ramp,
};

/// How many clusters a reason names.
const CLUSTERS_NAMED: usize = 3;

/// What the reason mentions, beside plan and placement.
pub(crate) struct TierContext<'a> {
    pub(crate) index: &'a FleetIndex,
    pub(crate) preference: &'a Preference,
    /// The candidates in the order of preference.
    pub(crate) candidates: Vec<(ClusterId, CandidateState)>,
    pub(crate) overrides: &'a Overrides,
    pub(crate) force: Option<(ClusterId, &'a Override)>,
}

/// The tiers: first the clusters that share the traffic, then the rest of the plan, group by group.
pub(crate) fn tiers(plan: &Plan, placement: &Placement, context: &TierContext<'_>) -> ActionTiers {
    let mut tiers = Vec::new();
    let first: Vec<(ClusterId, u64)> = plan
        .members
        .iter()
        .zip(&placement.placed)
        .filter(|(_, placed)| **placed > 0)
        .map(|(member, placed)| (member.cluster, *placed))
        .collect();
    let first = shares(&first);
    let taken = |cluster: ClusterId| first.iter().any(|(other, share)| *other == cluster && *share > 0);
    for group in plan.members.chunk_by(|a, b| a.group == b.group) {
        let rest: Vec<(ClusterId, u64)> = group
            .iter()
            .filter(|member| !taken(member.cluster))
            .map(|member| (member.cluster, u64::from(member.weight.max(1))))
            .collect();
        if !rest.is_empty() {
            tiers.push(tier(&shares(&rest), context.index));
        }
    }
    let first: Vec<(ClusterId, u16)> = first.into_iter().filter(|(_, share)| *share > 0).collect();
    if !first.is_empty() {
        tiers.insert(0, tier(&first, context.index));
    }
    let shed_permille = permille(placement.unplaced(), placement.demand);
    ActionTiers {
        reason: reason(plan, placement, &first, shed_permille, context),
        tiers,
        shed_permille,
        fail_open: plan.fail_open,
    }
}

/// `part` of `whole` in thousandths, rounded to the nearest.
pub(crate) fn permille(part: u64, whole: u64) -> u16 {
    if whole == 0 {
        return 0;
    }
    // Part is at most whole, so this is at most 1000.
    ((u128::from(part) * 1000 + u128::from(whole) / 2) / u128::from(whole)) as u16
}

/// Whether two placements of one plan result in the same shares.
pub(crate) fn same_shares(a: &[u64], b: &[u64]) -> bool {
    // Most placements use one member, and are compared without their shares.
    let single = |placed: &[u64]| {
        let mut used = placed.iter().enumerate().filter(|(_, amount)| **amount > 0);
        used.next().filter(|_| used.next().is_none()).map(|(at, _)| at)
    };
    match (single(a), single(b)) {
        (Some(a), Some(b)) => a == b,
        (_, _) => {
            let used =
                |placed: &[u64]| placed.iter().copied().filter(|amount| *amount > 0).collect::<Vec<_>>();
            let is_used = |placed: &[u64]| placed.iter().map(|amount| *amount > 0).collect::<Vec<_>>();
            is_used(a) == is_used(b) && parts(&used(a)) == parts(&used(b))
        }
    }
}

/// Amounts as shares that add up to 1000 (50,000 if more than 32 share), by the largest remainder method.
fn shares(amounts: &[(ClusterId, u64)]) -> Vec<(ClusterId, u16)> {
    let parts = parts(&amounts.iter().map(|(_, amount)| *amount).collect::<Vec<_>>());
    amounts.iter().map(|(cluster, _)| *cluster).zip(parts).collect()
}

fn parts(amounts: &[u64]) -> Vec<u16> {
    let whole: u64 = if amounts.len() <= 32 { 1000 } else { 50_000 };
    let sum: u128 = amounts.iter().map(|amount| u128::from(*amount)).sum();
    if sum == 0 {
        return vec![1; amounts.len()];
    }
    // At most `whole`, which fits.
    let exact = |amount: u64| u128::from(amount) * u128::from(whole);
    let mut shares: Vec<u16> = amounts.iter().map(|amount| (exact(*amount) / sum) as u16).collect();
    let given: u64 = shares.iter().map(|share| u64::from(*share)).sum();
    let mut by_remainder: Vec<usize> = (0..amounts.len()).collect();
    by_remainder.sort_by_key(|at| (std::cmp::Reverse(exact(amounts[*at]) % sum), *at));
    for at in by_remainder.into_iter().take((whole - given) as usize) {
        shares[at] += 1;
    }
    shares
}

/// A tier in which at least one share is above zero.
fn tier(shares: &[(ClusterId, u16)], index: &FleetIndex) -> Tier {
    Tier {
        shares: shares
            .iter()
            .map(|(cluster, share)| (index.cluster(*cluster).name.clone(), *share))
            .collect(),
    }
}

fn reason(
    plan: &Plan,
    placement: &Placement,
    first: &[(ClusterId, u16)],
    shed_permille: u16,
    context: &TierContext<'_>,
) -> String {
    let name = |cluster: ClusterId| context.index.cluster(cluster).name.as_str();
    let order = match context.preference {
        Preference::Ordered(_) => "in the listed order".to_owned(),
        Preference::Nearest(_) => format!("nearest to {} first", context.index.region(context.index.home)),
        Preference::Weighted(_) => "by weight".to_owned(),
    };
    if plan.members.is_empty() {
        return "no cluster is configured".to_owned();
    }
    if plan.fail_open {
        return format!("everything is down, so all is tried, {order}");
    }
    let serving: Vec<&str> = first.iter().map(|(cluster, _)| name(*cluster)).collect();
    let mut sentences = match serving.as_slice() {
        [] => vec![format!("{order}: no cluster has headroom")],
        [one] => vec![format!("{order}: {one} serves")],
        several => vec![format!("{order}: {} serve", list(several))],
    };
    if let Some((forced, force)) = context.force {
        sentences.push(overrides::describe(force));
        let IndexedCluster { name, region, .. } = context.index.cluster(forced);
        for drain in context.overrides.drains_of(name, context.index.region(*region)) {
            sentences.push(format!("overruled by that: {}", overrides::describe(drain)));
        }
    }
    let limitations: Vec<String> = context
        .candidates
        .iter()
        .filter_map(|(cluster, state)| limitation(*cluster, *state, plan, placement, context))
        .collect();
    sentences.extend(limitations.iter().take(CLUSTERS_NAMED).cloned());
    if limitations.len() > CLUSTERS_NAMED {
        sentences.push(format!("and {} more that don't serve in full", limitations.len() - CLUSTERS_NAMED));
    }
    if shed_permille > 0 {
        sentences.push("no cluster has headroom for the rest".to_owned());
    }
    sentences.join("; ")
}

/// What keeps a cluster from its whole share, if anything does.
fn limitation(
    cluster: ClusterId,
    state: CandidateState,
    plan: &Plan,
    placement: &Placement,
    context: &TierContext<'_>,
) -> Option<String> {
    let IndexedCluster { name, region, .. } = context.index.cluster(cluster);
    let forced = context.force.is_some_and(|(forced, _)| forced == cluster);
    if !forced && let Some(drain) = context.overrides.drain_of(name, context.index.region(*region)) {
        return Some(overrides::describe(drain));
    }
    match state.health.verdict {
        Verdict::Down | Verdict::PathDown if state.health.suppressed => {
            return Some(format!("{name} flaps and is suppressed"));
        }
        Verdict::Down | Verdict::PathDown => return Some(format!("{name} is {}", state.health.verdict)),
        Verdict::Unknown => return Some(format!("nothing is known of {name}")),
        Verdict::Up => {}
    }
    let at = plan.members[..placement.placed.len()].iter().position(|member| member.cluster == cluster)?;
    if plan.members[at].ramp < ramp::WHOLE {
        return Some(format!("{name} recovered and is in slow start"));
    }
    // What exceeds its headroom is served by a later group, or by none.
    let group = plan.members[at].group;
    let behind = plan.members.iter().zip(&placement.placed).any(|(m, placed)| m.group > group && *placed > 0);
    let is_full = placement.counted && (behind || placement.unplaced() > 0);
    is_full.then(|| format!("{name} has no headroom"))
}

fn list(names: &[&str]) -> String {
    match names.len() {
        0 => String::new(),
        1..=CLUSTERS_NAMED => {
            let (last, others) = (names[names.len() - 1], &names[..names.len() - 1]);
            if others.is_empty() { last.to_owned() } else { format!("{} and {last}", others.join(", ")) }
        }
        more => format!("{} and {} more", names[..CLUSTERS_NAMED].join(", "), more - CLUSTERS_NAMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(amounts: &[u64]) -> Vec<u16> {
        let amounts: Vec<_> =
            amounts.iter().enumerate().map(|(at, amount)| (ClusterId::numbered(at), *amount)).collect();
        shares(&amounts).into_iter().map(|(_, share)| share).collect()
    }

    #[test]
    fn shares_add_up_to_the_whole() {
        assert_eq!(amounts(&[1, 1, 1]), [334, 333, 333]);
        assert_eq!(amounts(&[1, 2, 4]), [143, 286, 571], "the largest remainders are rounded up");
        assert_eq!(amounts(&[600, 400]), [600, 400]);
        assert_eq!(amounts(&[0, 0]), [1, 1]);
        assert_eq!(amounts(&[7; 100]), [500; 100]);
    }

    #[test]
    fn placements_have_the_same_shares_if_they_use_the_same_members_in_the_same_proportion() {
        assert!(same_shares(&[5, 0], &[9, 0]));
        assert!(same_shares(&[300, 0, 700], &[600, 0, 1400]));
        assert!(same_shares(&[1, 9_999], &[2, 9_998]), "what is below a thousandth does not matter");
        assert!(!same_shares(&[5, 0], &[0, 5]));
        assert!(!same_shares(&[5, 0], &[5, 5]));
        assert!(!same_shares(&[300, 700], &[310, 690]));
    }

    #[test]
    fn a_long_list_is_shortened() {
        assert_eq!(list(&["a"]), "a");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
        assert_eq!(list(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    }
}
