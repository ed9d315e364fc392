//! A status for people.

use std::fmt::Write as _;

use super::gather::{ActionStatus, RegionStatus, SentStatus, Status};

/// The status as text.
pub fn text(status: &Status) -> String {
    let mut text = match &status.fleet {
        Some(fleet) => {
            format!("fleet revision {} applied by {} {} s ago\n", fleet.revision, fleet.author, fleet.age_s)
        }
        None if status.problems.is_empty() => "no fleet was applied yet (tidegate apply FILE)\n".to_owned(),
        None => String::new(),
    };
    for problem in &status.problems {
        // Writing to a String does not fail.
        _ = writeln!(text, "{problem}");
    }
    for item in &status.overrides {
        _ = writeln!(text, "override: {item}");
    }
    if status.regions.is_empty() {
        text.push_str("no region publishes a table yet, and no edge speaks\n");
    }
    for (name, region) in &status.regions {
        _ = write!(text, "\nregion {name}: ");
        match (region.epoch, region.revision) {
            (Some(epoch), Some(revision)) => {
                let heard = region.owner_heard_ms_ago.unwrap_or_default();
                _ = writeln!(text, "epoch {epoch} revision {revision}, heard {heard} ms ago");
            }
            _ => text.push_str("nobody publishes its table; edges serve the last one\n"),
        }
        if region.is_unknown {
            text.push_str("  the fleet has no such region\n");
        }
        edges(&mut text, region);
        for (cluster, checks) in &region.clusters {
            for check in checks {
                let drained = if check.drained { "drained; " } else { "" };
                _ = writeln!(
                    text,
                    "  cluster {:<18} {:<10} {drained}{}",
                    cluster.as_str(),
                    check.verdict,
                    check.reason
                );
            }
        }
        for (cluster, sent) in &region.sent {
            _ = writeln!(text, "  sent to {:<18} {}", cluster.as_str(), sent_text(sent));
        }
        for (service, actions) in &region.services {
            for (place, action) in actions.iter().enumerate() {
                let label = if place == 0 { service.clone() } else { format!("{service} route {place}") };
                _ = writeln!(text, "  service {label:<18} {}", serves(action));
            }
        }
    }
    text
}

/// Edges say each second what they serve; after this many milliseconds without a word one is silent.
const SILENT_AFTER_MS: u64 = 3500;

fn edges(text: &mut String, region: &RegionStatus) {
    for (name, edge) in &region.edges {
        let state = if edge.reported_ms_ago > SILENT_AFTER_MS {
            "silent"
        } else if edge.draining {
            "draining"
        } else if edge.is_current {
            "current"
        } else {
            "behind"
        };
        _ = writeln!(
            text,
            "  edge    {:<18} {state:<10} epoch {} revision {}, served for {:.1} s, applied in {} µs",
            name.as_str(),
            edge.epoch,
            edge.revision,
            edge.age_ms as f64 / 1000.0,
            edge.apply_us
        );
        if region.unknown_edges.contains(name) {
            _ = writeln!(text, "          the fleet has no edge {name} in this region");
        }
    }
    for name in &region.missing_edges {
        _ = writeln!(
            text,
            "  edge    {:<18} missing    the fleet has it, and nothing was heard of it",
            name.as_str()
        );
    }
}

fn sent_text(sent: &SentStatus) -> String {
    let p95 = sent.p95_ms.map(|p95| format!("; 95 % answer within {p95:.0} ms")).unwrap_or_default();
    let failed = if sent.failed_per_s > 0.0 {
        format!(", {:.1} % fail", 100.0 * sent.failed_per_s / sent.per_s)
    } else {
        String::new()
    };
    format!("{:.0} requests/s{failed}{p95}", sent.per_s)
}

fn serves(action: &ActionStatus) -> String {
    let tiers: Vec<String> = action
        .tiers
        .iter()
        .map(|tier| match tier.as_slice() {
            [(cluster, _)] => cluster.clone(),
            shares => {
                let total: u32 = shares.iter().map(|(_, share)| u32::from(*share)).sum();
                let shares: Vec<String> = shares
                    .iter()
                    .map(|(cluster, share)| format!("{cluster} {} %", u32::from(*share) * 100 / total.max(1)))
                    .collect();
                shares.join(" + ")
            }
        })
        .collect();
    let mut text = tiers.join(", then ");
    if action.fail_open {
        text += " (everything seems down: all is tried)";
    }
    if action.shed_permille > 0 {
        text += &format!(" (refusing {}.{} %)", action.shed_permille / 10, action.shed_permille % 10);
    }
    text
}
