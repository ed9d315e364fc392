use tidegate_bus::TraceContext;
use tidegate_model::{
    Epoch, Revision,
    event::{Decided, Destination, Event, Move},
    observation::Signal,
    routes::{Cause, RouteCause},
    verdict::Verdict,
};

use super::{moment::moment, *};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn stored(region: &str, at: u64, kind: EventKind) -> StoredEvent {
    let trace = TraceContext::new(&format!("00-{TRACE}-b7ad6b7169203331-01"), None);
    StoredEvent { event: Event { region: region.parse().unwrap(), at: Timestamp(at), kind }, trace }
}

fn decided(region: &str, revision: u64) -> StoredEvent {
    let shares = |cluster: &str| Destination {
        shares: vec![(cluster.parse().unwrap(), 1000)],
        ..Destination::default()
    };
    let cause = Cause::Health {
        cluster: "us-east-1".parse().unwrap(),
        verdict: Verdict::Down,
        reason: "2 of 2 endpoints refuse".to_owned(),
        signal: Some(Signal::Suspicion { first_failure_at: Timestamp(1_000_000) }),
        probed_at: None,
    };
    let decided = Decided {
        epoch: Epoch(5),
        revision: Revision(revision),
        cause: RouteCause {
            causes: vec![cause.clone(), cause],
            input_at: Timestamp(1_023_000),
            decided_at: Timestamp(1_024_000),
        },
        moves: vec![Move {
            service: "shop".parse().unwrap(),
            route: 0,
            before: shares("us-east-1"),
            after: shares("eu-west-1"),
            reason: "us-east-1 is down".to_owned(),
        }],
        more_moves: 0,
    };
    stored(region, 1_024_000, EventKind::Decided(decided))
}

fn applied(region: &str, edge: &str, revision: u64) -> StoredEvent {
    let kind = EventKind::Applied {
        edge: edge.parse().unwrap(),
        epoch: Epoch(5),
        revision: Revision(revision),
        decided_at: Timestamp(1_024_000),
        received_at: Timestamp(1_025_000),
    };
    stored(region, 1_025_500, kind)
}

#[test]
fn a_failover_is_shown_as_what_failed_what_was_decided_and_when_an_edge_had_it() {
    let shown = text::paragraph(&decided("us-east", 301), false)
        + &text::paragraph(&applied("us-east", "edge-1", 301), true);
    let expected = format!(
        "1970-01-01T00:00:01.024Z us-east    cluster us-east-1 is down: 2 of 2 endpoints refuse (suspicion, 24.0 ms \
         after the first failed request)\n    \
         shop goes to eu-west-1, before to us-east-1: us-east-1 is down\n    \
         epoch 5 revision 301, decided 1.0 ms after its input arrived, trace {TRACE}\n    \
         edge-1 serves by epoch 5 revision 301 1.5 ms after the decision (received after 1.0 ms)\n"
    );
    assert_eq!(shown, expected);
}

#[test]
fn a_move_that_changes_no_share_is_shown_as_what_it_changes() {
    let mut stored = decided("us-east", 301);
    let EventKind::Decided(decided) = &mut stored.event.kind else { unreachable!() };
    let moved = &mut decided.moves[0];
    moved.before = Destination { fail_open: true, ..moved.after.clone() };
    let shown = text::paragraph(&stored, false);
    assert!(
        shown.contains("    shop stays at eu-west-1, which seemed down like all others before: "),
        "{shown}"
    );
}

#[test]
fn an_edge_that_does_not_stand_below_its_decision_is_shown_with_time_and_region() {
    let shown = text::paragraph(&applied("us-east", "edge-1", 301), false);
    assert!(shown.starts_with("1970-01-01T00:00:01.025Z us-east    edge-1 serves by epoch 5"), "{shown}");
}

#[test]
fn moments_are_all_of_the_same_width() {
    assert_eq!(moment(Timestamp(1_020_000)), "1970-01-01T00:00:01.020Z");
    assert_eq!(moment(Timestamp(1_000_999)), "1970-01-01T00:00:01.000Z");
}

#[test]
fn json_says_the_same() {
    let line = json::line(&decided("us-east", 301));
    assert_eq!(line["event"], "decided");
    assert_eq!(line["trace_id"], TRACE);
    assert_eq!(line["causes"][0]["signal"], "suspicion");
    assert_eq!(line["moves"][0]["after"]["shares"]["eu-west-1"], 1000);
    let line = json::line(&applied("us-east", "edge-1", 301));
    assert_eq!((&line["event"], &line["edge"]), (&"applied".into(), &"edge-1".into()));
    assert_eq!(line["at_us"].as_u64().unwrap() - line["decided_at_us"].as_u64().unwrap(), 1500);
}

#[test]
fn edges_stand_below_the_decision_that_they_speak_of() {
    let events = vec![
        decided("us-east", 1),
        decided("eu-west", 1),
        applied("eu-west", "edge-eu", 1),
        applied("us-east", "edge-us", 1),
        applied("us-east", "edge-us", 7),
    ];
    let shown: Vec<String> = gather(events)
        .iter()
        .map(|stored| match &stored.event.kind {
            EventKind::Applied { edge, revision, .. } => format!("{edge} {revision}"),
            EventKind::Decided(decided) => format!("{} {}", stored.event.region, decided.revision),
            EventKind::Leads { .. }
            | EventKind::Fleet { .. }
            | EventKind::FleetRefused { .. }
            | EventKind::ProblemBegan { .. }
            | EventKind::ProblemEnded { .. } => String::new(),
        })
        .collect();
    assert_eq!(shown, ["us-east 1", "edge-us 1", "eu-west 1", "edge-eu 1", "edge-us 7"]);
}
