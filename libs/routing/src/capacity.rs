//! Sharing out demand among clusters of limited capacity.
//!
//! In rounds: first every flow asks the first group of its plan, then with what is left the second, and so on, so that a
//! cluster's room goes first to those who like it best (with `nearest`: its own region). Who asks for more than there is
//! gets a part in proportion. More important services go through all rounds before less important ones begin, so what
//! nobody has room for is the least important traffic. Everything is whole thousandths of requests per second: the
//! result depends on the flows alone, and not on how they came about.

use crate::plan::Plan;

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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Placement {
    /// What was to be placed; where the flow's demand is not known, something to take shares of.
    pub(crate) demand: u64,
    /// What each of the plan's sharing members gets.
    pub(crate) placed: Vec<u64>,
    /// Whether the demand is real, and counts against capacity.
    pub(crate) counted: bool,
}

impl Placement {
    /// What nobody has room for.
    pub(crate) fn unplaced(&self) -> u64 {
        self.demand - self.placed.iter().sum::<u64>()
    }
}

/// The unit in which a flow of unknown demand is shared out.
const NOMINAL: u64 = 1_000_000;

/// Room that cannot be used up.
pub(crate) const UNLIMITED: u64 = u64::MAX / 4;

/// Shares out all `flows`; `room` is what each cluster can take, by its number, and is what it could still take after.
pub(crate) fn assign(flows: &[Flow<'_>], room: &mut [u64]) -> Vec<Placement> {
    let mut sharing: Vec<Sharing<'_>> = flows.iter().map(|flow| Sharing::new(*flow)).collect();
    let mut by_priority: Vec<usize> = (0..flows.len()).filter(|at| sharing[*at].counted).collect();
    by_priority.sort_by_key(|at| flows[*at].priority);
    let mut offered: Vec<u64> = vec![0; room.len()];
    for class in by_priority.chunk_by(|a, b| flows[*a].priority == flows[*b].priority) {
        share_out(&mut sharing, class, room, &mut offered, Slow::Kept);
        // Rather flatten a cluster that returns a little than refuse requests.
        share_out(&mut sharing, class, room, &mut offered, Slow::Ignored);
    }
    let unknown: Vec<usize> = (0..flows.len()).filter(|at| !sharing[*at].counted).collect();
    if !unknown.is_empty() {
        let mut endless = vec![UNLIMITED; room.len()];
        share_out(&mut sharing, &unknown, &mut endless, &mut offered, Slow::Kept);
        share_out(&mut sharing, &unknown, &mut endless, &mut offered, Slow::Ignored);
    }
    sharing.into_iter().map(Sharing::into_placement).collect()
}

/// Whether slow start limits what a member gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slow {
    Kept,
    Ignored,
}

struct Sharing<'a> {
    plan: &'a Plan,
    demand: u64,
    remaining: u64,
    placed: Vec<u64>,
    counted: bool,
}

impl<'a> Sharing<'a> {
    fn new(flow: Flow<'a>) -> Sharing<'a> {
        // What is sent to clusters that seem down is a try, not a load.
        let counted = flow.demand > 0 && !flow.plan.fail_open;
        let demand = if counted { flow.demand } else { NOMINAL };
        let sharing = if flow.plan.members.is_empty() { 0 } else { flow.plan.sharing };
        Sharing { plan: flow.plan, demand, remaining: demand, placed: vec![0; sharing], counted }
    }

    fn into_placement(self) -> Placement {
        let demand = if self.placed.is_empty() { 0 } else { self.demand };
        Placement { demand, placed: self.placed, counted: self.counted }
    }

    /// What slow start still lets `member` have.
    fn limit(&self, member: usize, slow: Slow) -> u64 {
        let ramp = u64::from(self.plan.members[member].ramp);
        match slow {
            Slow::Kept if ramp < 1000 => (self.demand / 1000 * ramp).saturating_sub(self.placed[member]),
            Slow::Kept | Slow::Ignored => u64::MAX,
        }
    }

    /// Splits what remains among the members of `group` that have room, by weight.
    fn offer(&self, group: u32, room: &[u64], slow: Slow, mut each: impl FnMut(usize, u64)) {
        let first = self.plan.members[..self.placed.len()].partition_point(|member| member.group < group);
        let members = self.plan.members[first..self.placed.len()]
            .iter()
            .enumerate()
            .take_while(|(_, member)| member.group == group)
            .map(|(offset, member)| (first + offset, member))
            .filter(|(at, member)| room[member.cluster.index()] > 0 && self.limit(*at, slow) > 0);
        let weights: u64 = members.clone().map(|(_, member)| u64::from(member.weight)).sum();
        if weights == 0 {
            return;
        }
        let part = |weight: u32| {
            // A part of a u64, so it is one.
            (u128::from(self.remaining) * u128::from(weight) / u128::from(weights)) as u64
        };
        let parts: u64 = members.clone().map(|(_, member)| part(member.weight)).sum();
        let mut rest = self.remaining - parts;
        for (at, member) in members {
            let amount = part(member.weight) + std::mem::take(&mut rest);
            each(at, amount.min(self.limit(at, slow)));
        }
    }
}

/// Places what it can of the flows in `class`. `offered` is all zero, before and after.
fn share_out(
    sharing: &mut [Sharing<'_>],
    class: &[usize],
    room: &mut [u64],
    offered: &mut [u64],
    slow: Slow,
) {
    let mut offers: Vec<(usize, usize, u64)> = Vec::new();
    let mut active: Vec<usize> = class.iter().copied().filter(|at| sharing[*at].remaining > 0).collect();
    let mut group = 0;
    while !active.is_empty() {
        // Each pass places all, fills a cluster or brings a member to its limit: it ends.
        loop {
            offers.clear();
            for at in &active {
                let flow = &sharing[*at];
                flow.offer(group, room, slow, |member, amount| offers.push((*at, member, amount)));
            }
            if offers.is_empty() {
                break;
            }
            for (at, member, amount) in &offers {
                offered[sharing[*at].plan.members[*member].cluster.index()] += amount;
            }
            for (at, member, amount) in &offers {
                let flow = &mut sharing[*at];
                let cluster = flow.plan.members[*member].cluster.index();
                let taken = if offered[cluster] <= room[cluster] {
                    *amount
                } else {
                    (u128::from(*amount) * u128::from(room[cluster]) / u128::from(offered[cluster])) as u64
                };
                flow.placed[*member] += taken;
                flow.remaining -= taken;
            }
            for (at, member, _) in &offers {
                let cluster = sharing[*at].plan.members[*member].cluster.index();
                let all = std::mem::take(&mut offered[cluster]);
                if all > 0 {
                    room[cluster] = room[cluster].saturating_sub(all);
                }
            }
            active.retain(|at| sharing[*at].remaining > 0);
        }
        group += 1;
        active.retain(|at| {
            let flow = &sharing[*at];
            flow.placed.len().checked_sub(1).is_some_and(|last| flow.plan.members[last].group >= group)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atlas::ClusterId;
    use crate::plan::Member;

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
