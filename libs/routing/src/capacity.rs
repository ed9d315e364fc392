//! The assignment of demand to clusters of limited capacity.
//!
//! It proceeds in rounds. First each demand claims the first group of its plan, then with what remains the second, and so
//! on, so that a cluster's headroom goes first to those that prefer it most (with `nearest`: its own region). If the claims
//! exceed the headroom, each gets a part in proportion. More important services go through all rounds before less important
//! ones begin, so the traffic that no cluster has headroom for is the least important. All amounts are whole thousandths of
//! requests per second: the result depends on the demands alone, and not on their history.

use crate::{plan::Plan, ramp};

/// The demand of one demand class in one region, with the plan that it follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RegionalDemand<'a> {
    /// 0 is the most important.
    pub(crate) priority: u8,
    /// Thousandths of requests per second; zero if unknown.
    pub(crate) rate: u64,
    pub(crate) plan: &'a Plan,
}

/// The clusters that one demand is assigned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Placement<P = Vec<u64>> {
    /// The demand to place. If it is unknown, a nominal amount, so that there are shares.
    pub(crate) demand: u64,
    /// The amount for each sharing member of the plan.
    pub(crate) placed: P,
    /// Whether the demand is known and counts against capacity.
    pub(crate) counted: bool,
}

impl<P: AsRef<[u64]>> Placement<P> {
    /// The demand that no cluster has headroom for.
    pub(crate) fn unplaced(&self) -> u64 {
        self.demand - self.placed.as_ref().iter().sum::<u64>()
    }

    pub(crate) fn to_owned(&self) -> Placement {
        Placement { demand: self.demand, placed: self.placed.as_ref().to_vec(), counted: self.counted }
    }
}

/// The clusters that all demands are assigned to.
#[derive(Debug)]
pub(crate) struct Assignment {
    progress: Vec<Progress>,
    /// The amount for each sharing member of each demand, demand after demand.
    placed: Vec<u64>,
}

impl Assignment {
    /// How many members of its plan each known demand claimed, with or without success, in the order of demands.
    pub(crate) fn claimed(&self) -> impl Iterator<Item = usize> {
        self.progress.iter().map(|demand| if demand.counted { demand.claimed } else { 0 })
    }

    /// The placements in the order of demands.
    pub(crate) fn placements(&self) -> impl Iterator<Item = Placement<&[u64]>> {
        self.progress.iter().map(|demand| Placement {
            demand: if demand.members == 0 { 0 } else { demand.rate },
            placed: &self.placed[demand.first..demand.first + demand.members],
            counted: demand.counted,
        })
    }
}

/// A capacity in thousandths of requests per second.
pub(crate) fn thousandths(capacity: Option<u32>) -> u64 {
    capacity.map_or(UNLIMITED, |capacity| u64::from(capacity) * 1000)
}

/// The nominal amount of an unknown demand.
const NOMINAL: u64 = 1_000_000;

/// Headroom that cannot be used up.
pub(crate) const UNLIMITED: u64 = u64::MAX / 4;

/// Assigns all `demands`. `headroom` is that of each cluster by number, and is reduced by what was assigned.
pub(crate) fn assign(demands: &[RegionalDemand<'_>], headroom: &mut [u64]) -> Assignment {
    let mut assignment = Assignment { progress: Vec::with_capacity(demands.len()), placed: Vec::new() };
    let mut members = 0;
    for demand in demands {
        assignment.progress.push(Progress::new(demand, members));
        members += demand.plan.sharing;
    }
    assignment.placed.resize(members, 0);

    let mut round = Round { demands, assignment, claims: Vec::new(), claimed: vec![0; headroom.len()] };
    let mut by_priority: Vec<usize> =
        (0..demands.len()).filter(|at| round.assignment.progress[*at].counted).collect();
    by_priority.sort_by_key(|at| demands[*at].priority);
    for equals in by_priority.chunk_by(|a, b| demands[*a].priority == demands[*b].priority) {
        round.place(equals, headroom, SlowStart::Respected);
        // To shorten slow start is better than to refuse requests.
        round.place(equals, headroom, SlowStart::Ignored);
    }
    let unknown: Vec<usize> =
        (0..demands.len()).filter(|at| !round.assignment.progress[*at].counted).collect();
    if !unknown.is_empty() {
        let mut unlimited = vec![UNLIMITED; headroom.len()];
        round.place(&unknown, &mut unlimited, SlowStart::Respected);
        round.place(&unknown, &mut unlimited, SlowStart::Ignored);
    }
    round.assignment
}

/// Whether slow start limits what a member gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlowStart {
    Respected,
    Ignored,
}

/// How far one demand is placed.
#[derive(Debug)]
struct Progress {
    rate: u64,
    remaining: u64,
    /// The index of its first member's amount, and the number of members.
    first: usize,
    members: usize,
    /// The first member of the group that is claimed next.
    group_at: usize,
    /// How many members were claimed.
    claimed: usize,
    counted: bool,
}

impl Progress {
    fn new(demand: &RegionalDemand<'_>, first: usize) -> Progress {
        // Requests to clusters that seem down are attempts, not load.
        let counted = demand.rate > 0 && !demand.plan.fail_open;
        let rate = if counted { demand.rate } else { NOMINAL };
        Progress {
            rate,
            remaining: rate,
            first,
            members: demand.plan.sharing,
            group_at: 0,
            claimed: 0,
            counted,
        }
    }
}

/// What one demand claims of one member.
struct Claim {
    demand: usize,
    /// The index of the member's amount.
    member_at: usize,
    cluster: usize,
    amount: u64,
}

struct Round<'a> {
    demands: &'a [RegionalDemand<'a>],
    assignment: Assignment,
    claims: Vec<Claim>,
    /// The sum of claims by cluster; zero between passes.
    claimed: Vec<u64>,
}

impl Round<'_> {
    /// Places as much of the demands of equal priority as there is headroom for.
    fn place(&mut self, equals: &[usize], headroom: &mut [u64], slow_start: SlowStart) {
        let progress = &mut self.assignment.progress;
        let mut active: Vec<usize> =
            equals.iter().copied().filter(|at| progress[*at].remaining > 0).collect();
        for at in &active {
            progress[*at].group_at = 0;
        }
        // All demands proceed in step: each claims its current group until no member takes more, then the next group.
        while !active.is_empty() {
            // The demands that may claim the same group once more. Each pass places all, fills a cluster or brings a
            // member to its limit, so the loop ends.
            let mut claiming = active.clone();
            while !claiming.is_empty() {
                claiming.retain(|at| self.claim(*at, headroom, slow_start));
                self.grant(headroom);
                let progress = &self.assignment.progress;
                claiming.retain(|at| progress[*at].remaining > 0);
            }
            let (demands, progress) = (self.demands, &mut self.assignment.progress);
            active.retain(|at| {
                let demand = &mut progress[*at];
                demand.group_at = group_end(demands[*at].plan, demand.group_at, demand.members);
                demand.claimed = demand.claimed.max(demand.group_at);
                demand.remaining > 0 && demand.group_at < demand.members
            });
        }
    }

    /// Splits what remains of a demand by weight among the members of its group that have headroom. Returns whether there
    /// are any.
    fn claim(&mut self, demand: usize, headroom: &[u64], slow_start: SlowStart) -> bool {
        let progress = &self.assignment.progress[demand];
        let plan = self.demands[demand].plan;
        let group = progress.group_at..group_end(plan, progress.group_at, progress.members);
        let placed = &self.assignment.placed[progress.first..progress.first + progress.members];
        let limit = |at: usize| {
            let ramp = plan.members[at].ramp;
            if slow_start == SlowStart::Ignored || ramp == ramp::WHOLE {
                return u64::MAX;
            }
            (progress.rate / 1000 * u64::from(ramp)).saturating_sub(placed[at])
        };
        let takes = |at: &usize| headroom[plan.members[*at].cluster.index()] > 0 && limit(*at) > 0;
        let weights: u64 = group.clone().filter(takes).map(|at| u64::from(plan.members[at].weight)).sum();
        if weights == 0 {
            return false;
        }
        let part = |at: usize| scaled(progress.remaining, u64::from(plan.members[at].weight), weights);
        // The rest from rounding goes to the first.
        let mut rest = progress.remaining - group.clone().filter(takes).map(part).sum::<u64>();
        for at in group.filter(takes) {
            let amount = (part(at) + std::mem::take(&mut rest)).min(limit(at));
            let cluster = plan.members[at].cluster.index();
            self.claimed[cluster] += amount;
            self.claims.push(Claim { demand, member_at: progress.first + at, cluster, amount });
        }
        true
    }

    /// Grants all claims: in full if the cluster has headroom for all of them, else in proportion.
    fn grant(&mut self, headroom: &mut [u64]) {
        for Claim { demand, member_at, cluster, amount } in &self.claims {
            let (claimed, headroom) = (self.claimed[*cluster], headroom[*cluster]);
            let granted = if claimed <= headroom { *amount } else { scaled(*amount, headroom, claimed) };
            self.assignment.placed[*member_at] += granted;
            self.assignment.progress[*demand].remaining -= granted;
        }
        for Claim { cluster, .. } in self.claims.drain(..) {
            headroom[cluster] = headroom[cluster].saturating_sub(std::mem::take(&mut self.claimed[cluster]));
        }
    }
}

/// The end of the group that begins at `from`.
fn group_end(plan: &Plan, from: usize, members: usize) -> usize {
    let rest = &plan.members[from..members];
    let Some(first) = rest.first() else { return members };
    from + rest.iter().take_while(|member| member.group == first.group).count()
}

/// `amount` times `part` over `whole`; `part` is at most `whole`.
pub(crate) fn scaled(amount: u64, part: u64, whole: u64) -> u64 {
    match amount.checked_mul(part) {
        _ if part == whole => amount,
        Some(product) => product / whole,
        // At most `amount`, so it fits.
        None => (u128::from(amount) * u128::from(part) / u128::from(whole)) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fleet_index::ClusterId, plan::Member};

    fn assign(demands: &[RegionalDemand<'_>], headroom: &mut [u64]) -> Vec<Placement> {
        super::assign(demands, headroom).placements().map(|placement| placement.to_owned()).collect()
    }

    /// A plan of groups of (cluster, weight, ramp).
    fn plan(groups: &[&[(usize, u32, u16)]]) -> Plan {
        let members: Vec<Member> = groups
            .iter()
            .zip(0..)
            .flat_map(|(group, number)| {
                group.iter().map(move |(cluster, weight, ramp)| Member {
                    cluster: ClusterId::numbered(*cluster),
                    group: number,
                    weight: *weight,
                    ramp: *ramp,
                })
            })
            .collect();
        Plan { sharing: members.len(), members, fail_open: false }
    }

    fn demand(plan: &Plan, priority: u8, rate: u64) -> RegionalDemand<'_> {
        RegionalDemand { priority, rate, plan }
    }

    #[test]
    fn what_exceeds_the_headroom_of_the_first_goes_to_the_next() {
        let plan = plan(&[&[(0, 1, 1000)], &[(1, 1, 1000)]]);
        let mut headroom = [600, 1000];
        let placements = assign(&[demand(&plan, 0, 1000)], &mut headroom);
        assert_eq!(placements[0].placed, [600, 400]);
        assert_eq!(headroom, [0, 600]);
    }

    #[test]
    fn those_that_prefer_a_cluster_most_come_before_those_that_spill_to_it() {
        let far = plan(&[&[(0, 1, 1000)], &[(1, 1, 1000)]]);
        let near = plan(&[&[(1, 1, 1000)]]);
        let placements = assign(&[demand(&far, 0, 1000), demand(&near, 0, 800)], &mut [500, 1000]);
        assert_eq!(placements[1].placed, [800]);
        assert_eq!(placements[0].placed, [500, 200]);
        assert_eq!(placements[0].unplaced(), 300);
    }

    #[test]
    fn without_headroom_the_least_important_is_left_over() {
        let plan = plan(&[&[(0, 1, 1000)]]);
        let placements = assign(&[demand(&plan, 9, 800), demand(&plan, 1, 800)], &mut [1000]);
        assert_eq!((placements[0].unplaced(), placements[1].unplaced()), (600, 0));
    }

    #[test]
    fn weights_hold_as_far_as_there_is_headroom() {
        let plan = plan(&[&[(0, 90, 1000), (1, 10, 1000)]]);
        assert_eq!(assign(&[demand(&plan, 0, 1000)], &mut [5000, 5000])[0].placed, [900, 100]);
        assert_eq!(assign(&[demand(&plan, 0, 1000)], &mut [300, 5000])[0].placed, [300, 700]);
    }

    #[test]
    fn slow_start_leaves_the_rest_to_the_next_group_unless_that_is_full() {
        let plan = plan(&[&[(0, 1, 200)], &[(1, 1, 1000)]]);
        assert_eq!(assign(&[demand(&plan, 0, 1000)], &mut [5000, 5000])[0].placed, [200, 800]);
        assert_eq!(assign(&[demand(&plan, 0, 1000)], &mut [5000, 300])[0].placed, [700, 300]);
    }

    #[test]
    fn an_unknown_demand_is_placed_without_regard_to_headroom() {
        let plan = plan(&[&[(0, 1, 1000)], &[(1, 1, 1000)]]);
        let mut headroom = [0, 10];
        let placements = assign(&[demand(&plan, 0, 0)], &mut headroom);
        assert_eq!((placements[0].placed[0], placements[0].placed[1]), (NOMINAL, 0));
        assert_eq!(headroom, [0, 10]);
    }
}
