//! An event as a JSON object for programs. `at` is RFC 3339 in UTC; `…_us` are microseconds since the Unix epoch.

use serde_json::{Map, Value, json};
use tidegate_bus::{TraceContext, history::StoredEvent};
use tidegate_model::{
    event::{Destination, EventKind, Move},
    observation::Signal,
    routes::Cause,
};

use super::moment::moment;

/// An event as JSON on one line.
pub fn line(stored: &StoredEvent) -> Value {
    let event = &stored.event;
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| _ = object.insert(key.to_owned(), value);
    set("at", json!(moment(event.at)));
    set("at_us", json!(event.at));
    set("region", json!(event.region));
    if let Some(id) = stored.trace.as_ref().map(TraceContext::trace_id) {
        set("trace_id", json!(id));
    }
    match &event.kind {
        EventKind::Leads { holder, epoch } => {
            set("event", json!("leads"));
            set("holder", json!(holder));
            set("epoch", json!(epoch));
        }
        EventKind::Fleet { revision, author, reason, changes } => {
            set("event", json!("fleet"));
            set("revision", json!(revision));
            set("author", json!(author));
            set("reason", json!(reason));
            set("changes", json!(changes.lines));
            set("more_changes", json!(changes.more));
        }
        EventKind::FleetRefused { revision, error } => {
            set("event", json!("fleet_refused"));
            set("revision", json!(revision));
            set("error", json!(error));
        }
        EventKind::ProblemBegan { process, check, reason } => {
            set("event", json!("problem_began"));
            set("process", json!(process));
            set("check", json!(check));
            set("reason", json!(reason));
        }
        EventKind::ProblemEnded { process, check, since } => {
            set("event", json!("problem_ended"));
            set("process", json!(process));
            set("check", json!(check));
            set("since_us", json!(since));
        }
        EventKind::Decided(decided) => {
            set("event", json!("decided"));
            set("epoch", json!(decided.epoch));
            set("revision", json!(decided.revision));
            set("input_at_us", json!(decided.cause.input_at));
            set("decided_at_us", json!(decided.cause.decided_at));
            set("causes", decided.cause.causes.iter().map(cause).collect());
            set("moves", decided.moves.iter().map(movement).collect());
            set("more_moves", json!(decided.more_moves));
        }
        EventKind::Applied { edge, epoch, revision, decided_at, received_at } => {
            set("event", json!("applied"));
            set("edge", json!(edge));
            set("epoch", json!(epoch));
            set("revision", json!(revision));
            set("decided_at_us", json!(decided_at));
            set("received_at_us", json!(received_at));
        }
    }
    Value::Object(object)
}

fn cause(cause: &Cause) -> Value {
    match cause {
        Cause::Health { cluster, verdict, reason, signal, probed_at } => {
            let (signal, first_failure_at) = match signal {
                Some(Signal::Schedule) => (Some("probe"), None),
                Some(Signal::Suspicion { first_failure_at }) => (Some("suspicion"), Some(first_failure_at)),
                None => (None, None),
            };
            json!({
                "kind": "health",
                "cluster": cluster,
                "verdict": verdict.to_string(),
                "reason": reason,
                "signal": signal,
                "first_failure_at_us": first_failure_at,
                "probed_at_us": probed_at,
            })
        }
        Cause::Override(what) => json!({ "kind": "override", "what": what }),
        Cause::Fleet => json!({ "kind": "fleet" }),
        Cause::Load => json!({ "kind": "load" }),
        Cause::Time => json!({ "kind": "time" }),
    }
}

fn movement(moved: &Move) -> Value {
    json!({
        "service": moved.service,
        "route": moved.route,
        "before": standing(&moved.before),
        "after": standing(&moved.after),
        "reason": moved.reason,
    })
}

fn standing(standing: &Destination) -> Value {
    let shares: Map<String, Value> =
        standing.shares.iter().map(|(cluster, share)| (cluster.to_string(), json!(share))).collect();
    json!({ "shares": shares, "shed_permille": standing.shed_permille, "fail_open": standing.fail_open })
}
