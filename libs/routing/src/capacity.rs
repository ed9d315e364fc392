//! Sharing out demand among clusters of limited capacity.
//!
//! In rounds: first every flow asks the first group of its plan, then with what is left the second, and so on, so that a
//! cluster's room goes first to those who like it best (with `nearest`: its own region). Who asks for more than there is
//! gets a part in proportion. More important services go through all rounds before less important ones begin, so what
//! nobody has room for is the least important traffic. Everything is whole thousandths of requests per second: the
//! result depends on the flows alone, and not on how they came about.

use crate::{plan::Plan, ramp};

/// The demand of one service in one region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow<'a> {
    /// 0 is the most important.
    pub(crate) priority: u8,
    /// Thousandths of requests per second; zero where nothing is known of it.
    pub(crate) demand: u64,
    pub(crate) plan: &'a Plan,
}

/// Where a flow's demand goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Placement<P = Vec<u64>> {
    /// What was to be placed; where the flow's demand is not known, something to take shares of.
    pub(crate) demand: u64,
    /// What each of the plan's sharing members gets.
    pub(crate) placed: P,
    /// Whether the demand is real, and counts against capacity.
    pub(crate) counted: bool,
}

impl<P: AsRef<[u64]>> Placement<P> {
    /// What nobody has room for.
    pub(crate) fn unplaced(&self) -> u64 {
        self.demand - self.placed.as_ref().iter().sum::<u64>()
    }

    pub(crate) fn to_owned(&self) -> Placement {
        Placement { demand: self.demand, placed: self.placed.as_ref().to_vec(), counted: self.counted }
    }
}

/// Where all flows' demand goes.
#[derive(Debug)]
pub(crate) struct Assignment {
    shared: Vec<Shared>,
    /// What each sharing member of each flow gets, flow after flow.
    placed: Vec<u64>,
}

impl Assignment {
    /// How many of its plan's members each flow of known demand asked, with or without success, in the flows' order.
    pub(crate) fn asked(&self) -> impl Iterator<Item = usize> {
        self.shared.iter().map(|flow| if flow.counted { flow.asked } else { 0 })
    }

    /// By flow, in their order.
    pub(crate) fn placements(&self) -> impl Iterator<Item = Placement<&[u64]>> {
        self.shared.iter().map(|flow| Placement {
            demand: if flow.members == 0 { 0 } else { flow.demand },
            placed: &self.placed[flow.first..flow.first + flow.members],
            counted: flow.counted,
        })
    }
}

/// A capacity in thousandths of requests per second.
pub(crate) fn room(capacity: Option<u32>) -> u64 {
    capacity.map_or(UNLIMITED, |capacity| u64::from(capacity) * 1000)
}

/// The unit in which a flow of unknown demand is shared out.
const NOMINAL: u64 = 1_000_000;

/// Room that cannot be used up.
pub(crate) const UNLIMITED: u64 = u64::MAX / 4;

/// Shares out all `flows`; `room` is what each cluster can take, by its number, and is what it could still take after.
pub(crate) fn assign(flows: &[Flow<'_>], room: &mut [u64]) -> Assignment {
    let mut assignment = Assignment { shared: Vec::with_capacity(flows.len()), placed: Vec::new() };
    let mut members = 0;
    for flow in flows {
        assignment.shared.push(Shared::new(flow, members));
        members += flow.plan.sharing;
    }
    assignment.placed.resize(members, 0);

    let mut round = Round { flows, assignment, offers: Vec::new(), offered: vec![0; room.len()] };
    let mut by_priority: Vec<usize> =
        (0..flows.len()).filter(|at| round.assignment.shared[*at].counted).collect();
    by_priority.sort_by_key(|at| flows[*at].priority);
    for class in by_priority.chunk_by(|a, b| flows[*a].priority == flows[*b].priority) {
        round.share_out(class, room, Slow::Kept);
        // Rather flatten a cluster that returns a little than refuse requests.
        round.share_out(class, room, Slow::Ignored);
    }
    let unknown: Vec<usize> = (0..flows.len()).filter(|at| !round.assignment.shared[*at].counted).collect();
    if !unknown.is_empty() {
        let mut endless = vec![UNLIMITED; room.len()];
        round.share_out(&unknown, &mut endless, Slow::Kept);
        round.share_out(&unknown, &mut endless, Slow::Ignored);
    }
    round.assignment
}

/// Whether slow start limits what a member gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slow {
    Kept,
    Ignored,
}

/// How far one flow is shared out.
#[derive(Debug)]
struct Shared {
    demand: u64,
    remaining: u64,
    /// Where its members' amounts begin, and how many there are.
    first: usize,
    members: usize,
    /// Where the group begins that is asked next.
    group_at: usize,
    /// How many members were asked.
    asked: usize,
    counted: bool,
}

impl Shared {
    fn new(flow: &Flow<'_>, first: usize) -> Shared {
        // What is sent to clusters that seem down is a try, not a load.
        let counted = flow.demand > 0 && !flow.plan.fail_open;
        let demand = if counted { flow.demand } else { NOMINAL };
        Shared {
            demand,
            remaining: demand,
            first,
            members: flow.plan.sharing,
            group_at: 0,
            asked: 0,
            counted,
        }
    }
}

/// What one flow asks of one member.
struct Offer {
    flow: usize,
    /// Where the member's amount is.
    member_at: usize,
    cluster: usize,
    amount: u64,
}

struct Round<'a> {
    flows: &'a [Flow<'a>],
    assignment: Assignment,
    offers: Vec<Offer>,
    /// By cluster; all zero between passes.
    offered: Vec<u64>,
}

impl Round<'_> {
    /// Places what it can of the flows in `class`.
    fn share_out(&mut self, class: &[usize], room: &mut [u64], slow: Slow) {
        let shared = &mut self.assignment.shared;
        let mut active: Vec<usize> = class.iter().copied().filter(|at| shared[*at].remaining > 0).collect();
        for at in &active {
            shared[*at].group_at = 0;
        }
        // Each flow asks its current group until nobody there takes any more, then the next one, all in step.
        while !active.is_empty() {
            // Those that may ask the same group once more: each pass places all, fills a cluster or brings a member to
            // its limit, so it ends.
            let mut asking = active.clone();
            while !asking.is_empty() {
                asking.retain(|at| self.offer(*at, room, slow));
                self.accept(room);
                let shared = &self.assignment.shared;
                asking.retain(|at| shared[*at].remaining > 0);
            }
            let (flows, shared) = (self.flows, &mut self.assignment.shared);
            active.retain(|at| {
                let flow = &mut shared[*at];
                flow.group_at = group_end(flows[*at].plan, flow.group_at, flow.members);
                flow.asked = flow.asked.max(flow.group_at);
                flow.remaining > 0 && flow.group_at < flow.members
            });
        }
    }

    /// Splits what remains of a flow among the members of its group that have room, by weight; tells whether any has.
    fn offer(&mut self, flow: usize, room: &[u64], slow: Slow) -> bool {
        let shared = &self.assignment.shared[flow];
        let plan = self.flows[flow].plan;
        let group = shared.group_at..group_end(plan, shared.group_at, shared.members);
        let placed = &self.assignment.placed[shared.first..shared.first + shared.members];
        let limit = |at: usize| {
            let ramp = plan.members[at].ramp;
            if slow == Slow::Ignored || ramp == ramp::WHOLE {
                return u64::MAX;
            }
            (shared.demand / 1000 * u64::from(ramp)).saturating_sub(placed[at])
        };
        let takes = |at: &usize| room[plan.members[*at].cluster.index()] > 0 && limit(*at) > 0;
        let weights: u64 = group.clone().filter(takes).map(|at| u64::from(plan.members[at].weight)).sum();
        if weights == 0 {
            return false;
        }
        let part = |at: usize| scaled(shared.remaining, u64::from(plan.members[at].weight), weights);
        // What rounding leaves over goes to the first.
        let mut rest = shared.remaining - group.clone().filter(takes).map(part).sum::<u64>();
        for at in group.filter(takes) {
            let amount = (part(at) + std::mem::take(&mut rest)).min(limit(at));
            let cluster = plan.members[at].cluster.index();
            self.offered[cluster] += amount;
            self.offers.push(Offer { flow, member_at: shared.first + at, cluster, amount });
        }
        true
    }

    /// Takes all that was offered where there is room for all of it, and parts in proportion elsewhere.
    fn accept(&mut self, room: &mut [u64]) {
        for Offer { flow, member_at, cluster, amount } in &self.offers {
            let (offered, room) = (self.offered[*cluster], room[*cluster]);
            let taken = if offered <= room { *amount } else { scaled(*amount, room, offered) };
            self.assignment.placed[*member_at] += taken;
            self.assignment.shared[*flow].remaining -= taken;
        }
        for Offer { cluster, .. } in self.offers.drain(..) {
            room[cluster] = room[cluster].saturating_sub(std::mem::take(&mut self.offered[cluster]));
        }
    }
}

/// Where the group that begins at `from` ends.
fn group_end(plan: &Plan, from: usize, members: usize) -> usize {
    let rest = &plan.members[from..members];
    let Some(first) = rest.first() else { return members };
    from + rest.iter().take_while(|member| member.group == first.group).count()
}

/// `amount` times `part` over `whole`, where `part` is at most `whole`.
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
    use crate::{atlas::ClusterId, plan::Member};

    fn assign(flows: &[Flow<'_>], room: &mut [u64]) -> Vec<Placement> {
        super::assign(flows, room).placements().map(|placement| placement.to_owned()).collect()
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

    fn flow(plan: &Plan, priority: u8, demand: u64) -> Flow<'_> {
        Flow { priority, demand, plan }
    }

    #[test]
    fn what_the_first_has_no_room_for_goes_to_the_next() {
        let plan = plan(&[&[(0, 1, 1000)], &[(1, 1, 1000)]]);
        let mut room = [600, 1000];
        let placements = assign(&[flow(&plan, 0, 1000)], &mut room);
        assert_eq!(placements[0].placed, [600, 400]);
        assert_eq!(room, [0, 600]);
    }

    #[test]
    fn those_who_like_a_cluster_best_come_before_those_who_overflow_to_it() {
        let far = plan(&[&[(0, 1, 1000)], &[(1, 1, 1000)]]);
        let near = plan(&[&[(1, 1, 1000)]]);
        let placements = assign(&[flow(&far, 0, 1000), flow(&near, 0, 800)], &mut [500, 1000]);
        assert_eq!(placements[1].placed, [800]);
        assert_eq!(placements[0].placed, [500, 200]);
        assert_eq!(placements[0].unplaced(), 300);
    }

    #[test]
    fn when_nobody_has_room_the_least_important_is_left_over() {
        let plan = plan(&[&[(0, 1, 1000)]]);
        let placements = assign(&[flow(&plan, 9, 800), flow(&plan, 1, 800)], &mut [1000]);
        assert_eq!((placements[0].unplaced(), placements[1].unplaced()), (600, 0));
    }

    #[test]
    fn weights_hold_as_far_as_there_is_room() {
        let plan = plan(&[&[(0, 90, 1000), (1, 10, 1000)]]);
        assert_eq!(assign(&[flow(&plan, 0, 1000)], &mut [5000, 5000])[0].placed, [900, 100]);
        assert_eq!(assign(&[flow(&plan, 0, 1000)], &mut [300, 5000])[0].placed, [300, 700]);
    }

    #[test]
    fn slow_start_leaves_the_rest_to_the_next_group_unless_that_is_full() {
        let plan = plan(&[&[(0, 1, 200)], &[(1, 1, 1000)]]);
        assert_eq!(assign(&[flow(&plan, 0, 1000)], &mut [5000, 5000])[0].placed, [200, 800]);
        assert_eq!(assign(&[flow(&plan, 0, 1000)], &mut [5000, 300])[0].placed, [700, 300]);
    }

    #[test]
    fn a_flow_of_unknown_demand_is_shared_out_without_regard_to_room() {
        let plan = plan(&[&[(0, 1, 1000)], &[(1, 1, 1000)]]);
        let mut room = [0, 10];
        let placements = assign(&[flow(&plan, 0, 0)], &mut room);
        assert_eq!((placements[0].placed[0], placements[0].placed[1]), (NOMINAL, 0));
        assert_eq!(room, [0, 10]);
    }
}
