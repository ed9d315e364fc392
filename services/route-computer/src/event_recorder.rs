//! The event recorder: publishes the decisions of the region's leader to the history, with their reasons and moves.

use std::collections::BTreeMap;

use tidegate_bus::{Bus, TraceContext, fleet::FleetHead, table::Position};
use tidegate_model::{
    Epoch, HolderName, RegionName, ServiceName, Timestamp,
    event::{Decided, Destination, Event, EventKind, Move},
    routes::{ActionTiers, RouteCause, RouteEntry, RouteKey},
};

/// Publishes events, and remembers where requests go to detect moves.
pub struct EventRecorder {
    bus: Bus,
    region: RegionName,
    holder: HolderName,
    /// By service: for its default action, then for its routes in order.
    standings: BTreeMap<ServiceName, Vec<Destination>>,
}

impl EventRecorder {
    /// A recorder of an empty table.
    pub fn new(bus: &Bus, region: &RegionName, holder: &HolderName) -> EventRecorder {
        EventRecorder {
            bus: bus.clone(),
            region: region.clone(),
            holder: holder.clone(),
            standings: BTreeMap::new(),
        }
    }

    /// Records changed entries, and returns the moves: requests go to other clusters first, to all clusters because all seem
    /// down, or are shed. A mere shift of shares is no move.
    pub fn record_moves(&mut self, entries: &[(RouteKey, Option<RouteEntry>)]) -> Vec<Move> {
        let mut moves = Vec::new();
        for (key, entry) in entries {
            let RouteKey::Tiers(service) = key else { continue };
            let Some(RouteEntry::Tiers(tiers)) = entry else {
                self.standings.remove(service);
                continue;
            };
            let before = self.standings.remove(service).unwrap_or_default();
            let after: Vec<Destination> = tiers.actions.iter().map(standing_of).collect();
            for (index, (after, action)) in after.iter().zip(&tiers.actions).enumerate() {
                let before = before.get(index).cloned().unwrap_or_default();
                if differs(&before, after) {
                    moves.push(Move {
                        service: service.clone(),
                        route: u32::try_from(index).unwrap_or(u32::MAX),
                        before,
                        after: after.clone(),
                        reason: action.reason.clone(),
                    });
                }
            }
            self.standings.insert(service.clone(), after);
        }
        moves
    }

    /// Publishes the event of a decision. A change without moves that only follows load or time causes no event.
    pub async fn publish_decision(
        &self,
        position: Position,
        cause: RouteCause,
        mut moves: Vec<Move>,
        trace: Option<&TraceContext>,
    ) {
        if !cause.is_decisive() && moves.is_empty() {
            return;
        }
        let more_moves = u32::try_from(moves.len().saturating_sub(Decided::MOST_MOVES)).unwrap_or(u32::MAX);
        moves.truncate(Decided::MOST_MOVES);
        let at = cause.decided_at;
        let Position { epoch, revision } = position;
        self.publish(at, trace, EventKind::Decided(Decided { epoch, revision, cause, moves, more_moves }))
            .await;
    }

    /// Publishes the event that this route-computer leads.
    pub async fn publish_leadership(&self, at: Timestamp, epoch: Epoch) {
        self.publish(at, None, EventKind::Leads { holder: self.holder.clone(), epoch }).await;
    }

    /// Publishes the event of a new fleet.
    pub async fn publish_fleet(&self, at: Timestamp, head: &FleetHead) {
        let FleetHead { revision, author, reason, changes, .. } = head.clone();
        self.publish(at, None, EventKind::Fleet { revision, author, reason, changes }).await;
    }

    /// Publishes that the region refuses a fleet file.
    pub async fn publish_refused_fleet(&self, at: Timestamp, revision: u64, error: String) {
        self.publish(at, None, EventKind::FleetRefused { revision, error }).await;
    }

    async fn publish(&self, at: Timestamp, trace: Option<&TraceContext>, kind: EventKind) {
        let event = Event { region: self.region.clone(), at, kind };
        if let Err(error) = self.bus.publish_event(self.holder.as_str(), trace, &event).await {
            tracing::debug!(%error, "an event was not published");
        }
    }
}

fn standing_of(action: &ActionTiers) -> Destination {
    Destination {
        shares: action.tiers.first().map(|tier| tier.shares.clone()).unwrap_or_default(),
        shed_permille: action.shed_permille,
        fail_open: action.fail_open,
    }
}

fn differs(before: &Destination, after: &Destination) -> bool {
    let serving = |standing: &Destination| -> Vec<_> {
        standing.shares.iter().filter(|(_, share)| *share > 0).map(|(cluster, _)| cluster.clone()).collect()
    };
    let sheds = |standing: &Destination| standing.shed_permille > 0;
    serving(before) != serving(after) || sheds(before) != sheds(after) || before.fail_open != after.fail_open
}

#[cfg(test)]
mod tests {
    use tidegate_model::routes::{Tier, TiersEntry};

    use super::*;

    fn recorder() -> EventRecorder {
        EventRecorder::new(&Bus::in_process(), &"us-east".parse().unwrap(), &"computer-1".parse().unwrap())
    }

    fn action(shares: &[(&str, u16)]) -> ActionTiers {
        let shares = shares.iter().map(|(cluster, share)| (cluster.parse().unwrap(), *share)).collect();
        ActionTiers {
            tiers: vec![Tier { shares }],
            shed_permille: 0,
            fail_open: false,
            reason: "why".to_owned(),
        }
    }

    fn tiers(actions: Vec<ActionTiers>) -> Vec<(RouteKey, Option<RouteEntry>)> {
        let key = RouteKey::Tiers("shop".parse().unwrap());
        vec![(key, Some(RouteEntry::Tiers(TiersEntry { actions })))]
    }

    #[test]
    fn a_failover_is_a_move_and_a_shift_of_shares_is_not() {
        let mut recorder = recorder();
        assert_eq!(
            recorder.record_moves(&tiers(vec![action(&[("a", 900), ("b", 100)])])).len(),
            1,
            "the first table"
        );

        assert_eq!(recorder.record_moves(&tiers(vec![action(&[("a", 500), ("b", 500)])])), []);

        let moves = recorder.record_moves(&tiers(vec![action(&[("b", 1000)])]));
        let [moved] = moves.as_slice() else { panic!("{moves:?}") };
        assert_eq!((moved.service.as_str(), moved.route, moved.reason.as_str()), ("shop", 0, "why"));
        assert_eq!(moved.before.shares, action(&[("a", 500), ("b", 500)]).tiers[0].shares);
        assert_eq!(moved.after.shares, action(&[("b", 1000)]).tiers[0].shares);
    }

    #[test]
    fn only_the_route_that_moved_has_a_move() {
        let mut recorder = recorder();
        recorder.record_moves(&tiers(vec![action(&[("a", 1)]), action(&[("a", 1)])]));
        let moves = recorder.record_moves(&tiers(vec![action(&[("a", 1)]), action(&[("b", 1)])]));
        assert_eq!(moves.iter().map(|moved| moved.route).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn shedding_and_failing_open_are_moves_once() {
        let mut recorder = recorder();
        recorder.record_moves(&tiers(vec![action(&[("a", 1)])]));
        let shedding = |shed_permille| ActionTiers { shed_permille, ..action(&[("a", 1)]) };
        assert_eq!(recorder.record_moves(&tiers(vec![shedding(100)])).len(), 1);
        assert_eq!(recorder.record_moves(&tiers(vec![shedding(200)])), []);
        assert_eq!(
            recorder.record_moves(&tiers(vec![ActionTiers { fail_open: true, ..shedding(200) }])).len(),
            1
        );
    }
}
