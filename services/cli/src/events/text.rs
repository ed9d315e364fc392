//! An event as text for people.

use std::fmt::Write as _;

use tidegate_bus::{TraceContext, history::StoredEvent};
use tidegate_model::{
    Timestamp,
    event::{Decided, Destination, EventKind, Move},
    observation::Signal,
    routes::Cause,
};

use super::moment::moment;
use crate::words;

/// An event as one line or more. With `is_below` it is about the same table as the event before, and an edge's event is
/// indented.
pub fn paragraph(stored: &StoredEvent, is_below: bool) -> String {
    let region = stored.event.region.as_str();
    let head = format!("{} {region:<10} ", moment(stored.event.at));
    match &stored.event.kind {
        EventKind::Leads { holder, epoch } => {
            format!("{head}{holder} leads the region from epoch {epoch} on\n")
        }
        EventKind::Fleet { revision, author, reason, changes } => {
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            let mut text = format!("{head}fleet revision {revision}, applied by {author}{why}\n");
            for line in &changes.lines {
                // Writing to a String does not fail.
                _ = writeln!(text, "    {line}");
            }
            if changes.more > 0 {
                _ = writeln!(text, "    and {} more", changes.more);
            }
            text
        }
        EventKind::FleetRefused { revision, error } => {
            format!("{head}fleet revision {revision} was refused, the one before stays in force: {error}\n")
        }
        EventKind::ProblemBegan { process, check, reason } => {
            format!("{head}{process} has a problem ({check}): {reason}\n")
        }
        EventKind::ProblemEnded { process, check, since } => {
            let lasted = words::format_duration(stored.event.at.since(*since));
            format!("{head}{process} no longer has the problem ({check}), after {lasted}\n")
        }
        EventKind::Decided(decided) => {
            let trace = stored
                .trace
                .as_ref()
                .map(TraceContext::trace_id)
                .map(|id| format!(", trace {id}"))
                .unwrap_or_default();
            decision(&head, decided, &trace)
        }
        EventKind::Applied { edge, epoch, revision, decided_at, received_at } => format!(
            "{}{edge} serves by epoch {epoch} revision {revision} {} after the decision (received after {})\n",
            if is_below { "    " } else { &head },
            millis(stored.event.at, *decided_at),
            millis(*received_at, *decided_at),
        ),
    }
}

fn decision(head: &str, decided: &Decided, trace: &str) -> String {
    let mut text = String::new();
    let mut causes: Vec<String> = decided.cause.causes.iter().map(|c| cause(c, decided)).collect();
    causes.dedup();
    let rest = " ".repeat(head.chars().count());
    for (index, cause) in causes.iter().enumerate() {
        text.push_str(if index == 0 { head } else { &rest });
        text.push_str(cause);
        text.push('\n');
    }
    if causes.is_empty() {
        text = format!("{head}the table changed\n");
    }
    for moved in &decided.moves {
        text.push_str(&movement(moved));
    }
    if decided.more_moves > 0 {
        // Writing to a String does not fail.
        _ = writeln!(text, "    and {} more", decided.more_moves);
    }
    _ = writeln!(
        text,
        "    epoch {} revision {}, decided {} after its input arrived{trace}",
        decided.epoch,
        decided.revision,
        millis(decided.cause.decided_at, decided.cause.input_at),
    );
    text
}

fn cause(cause: &Cause, decided: &Decided) -> String {
    let decided_at = decided.cause.decided_at;
    match cause {
        Cause::Health { cluster, verdict, reason, signal, probed_at } => {
            let seen = match (signal, probed_at) {
                (Some(Signal::Suspicion { first_failure_at }), _) => {
                    format!(
                        " (suspicion, {} after the first failed request)",
                        millis(decided_at, *first_failure_at)
                    )
                }
                (Some(Signal::Schedule), Some(probed_at)) => {
                    format!(" (probe, {} after it began)", millis(decided_at, *probed_at))
                }
                (Some(Signal::Schedule), None) => " (probe)".to_owned(),
                (None, _) => String::new(),
            };
            format!("cluster {cluster} is {verdict}: {reason}{seen}")
        }
        Cause::Override(what) => format!("override: {what}"),
        Cause::Fleet => "by the new fleet".to_owned(),
        Cause::Load => "demand changed".to_owned(),
        Cause::Time => "time passed".to_owned(),
    }
}

fn movement(moved: &Move) -> String {
    let route = if moved.route == 0 { String::new() } else { format!(" route {}", moved.route) };
    let mut text = format!("    {}{route} ", moved.service);
    let Move { before, after, .. } = moved;
    if before.shares == after.shares && before != after {
        // Writing to a String does not fail.
        _ = write!(text, "stays at {}", shares(after));
        match (before.fail_open, after.fail_open) {
            (true, false) => text.push_str(", which seemed down like all others before"),
            (false, true) => text.push_str(", though all seem down now"),
            (false, false) | (true, true) => {}
        }
        if before.shed_permille != after.shed_permille {
            _ = write!(
                text,
                ", {} % shed for lack of capacity, before {} %",
                percent(after.shed_permille),
                percent(before.shed_permille)
            );
        }
    } else {
        _ = write!(text, "goes to {}", goes_to(after));
        if *before != Destination::default() {
            _ = write!(text, ", before to {}", goes_to(before));
        }
    }
    _ = writeln!(text, ": {}", moved.reason);
    text
}

fn percent(permille: u16) -> f64 {
    f64::from(permille) / 10.0
}

fn shares(standing: &Destination) -> String {
    let total: u32 = standing.shares.iter().map(|(_, share)| u32::from(*share)).sum();
    let mut parts: Vec<String> = standing
        .shares
        .iter()
        .filter(|(_, share)| *share > 0)
        .map(|(cluster, share)| match u32::from(*share) * 100 / total.max(1) {
            100 => cluster.to_string(),
            percent => format!("{cluster} {percent} %"),
        })
        .collect();
    if parts.is_empty() {
        parts.push("nothing".to_owned());
    }
    parts.join(", ")
}

fn goes_to(standing: &Destination) -> String {
    let mut text = shares(standing);
    if standing.fail_open {
        text.push_str(" (though all seem down)");
    }
    if standing.shed_permille > 0 {
        _ = write!(text, " ({} % shed for lack of capacity)", percent(standing.shed_permille));
    }
    text
}

fn millis(later: Timestamp, earlier: Timestamp) -> String {
    format!("{:.1} ms", later.since(earlier).as_secs_f64() * 1000.0)
}
