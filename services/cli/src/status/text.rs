//! A status for people.

use std::fmt::Write as _;

use tidegate_model::{Epoch, Revision};

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
    let has_prober =
        |region: &RegionStatus| region.running.keys().any(|name| name.starts_with("health-prober "));
    if status.fleet.is_some() && !status.regions.values().any(has_prober) {
        text.push_str("no health-prober reports: the state of clusters is the last known one\n");
    }
    for problem in &status.problems {
        // Writing to a String does not fail.
        _ = writeln!(text, "{problem}");
    }
    for item in &status.overrides {
        _ = writeln!(text, "override: {item}");
    }
    if status.regions.is_empty() {
        text.push_str("no region publishes a table yet, and no edge reports\n");
    }
    // A fleet that can't be read may exist.
    let was_applied = status.fleet.is_some() || !status.problems.is_empty();
    for (name, region) in &status.regions {
        _ = write!(text, "\nregion {name}: ");
        match (region.epoch, region.revision) {
            (Some(epoch), Some(revision)) => {
                let heard = region.owner_heard_ms_ago.unwrap_or_default();
                _ = writeln!(text, "epoch {epoch} revision {revision}, last message {heard} ms ago");
            }
            _ if was_applied => text.push_str("no leader publishes its table; edges serve by the last one\n"),
            _ => text.push_str("no leader publishes its table\n"),
        }
        if region.unsigned > 0 {
            _ = writeln!(
                text,
                "  {} messages about its table are signed by no key of the fleet: edges refuse them, and they are not shown",
                region.unsigned
            );
        }
        if region.is_unknown {
            text.push_str("  the fleet has no such region\n");
        }
        running(&mut text, region);
        edges(&mut text, region);
        for (cluster, checks) in &region.clusters {
            let mut lines: Vec<String> = checks
                .iter()
                .map(|check| {
                    let drained = if check.drained { "drained; " } else { "" };
                    format!(
                        "  cluster {:<18} {:<10} {drained}{}\n",
                        cluster.as_str(),
                        check.verdict,
                        check.reason
                    )
                })
                .collect();
            // Checks with equal results are one line.
            lines.sort_unstable();
            lines.dedup();
            text.extend(lines);
        }
        for (cluster, sent) in &region.sent {
            _ = writeln!(text, "  sent to {:<18} {}", cluster.as_str(), sent_text(sent));
        }
        for (service, actions) in &region.services {
            for (index, action) in actions.iter().enumerate() {
                let label = if index == 0 { service.clone() } else { format!("{service} route {index}") };
                let requests = action.requests.as_ref().map(|what| format!(" ({what})")).unwrap_or_default();
                _ = writeln!(text, "  service {label:<18} {}{requests}", serves(action));
            }
        }
    }
    text
}

fn running(text: &mut String, region: &RegionStatus) {
    // Edges have lines of their own.
    let deciders: Vec<&str> =
        region.running.keys().map(String::as_str).filter(|name| !name.starts_with("edge ")).collect();
    if !deciders.is_empty() {
        _ = writeln!(text, "  running {}", deciders.join(", "));
    }
    for (name, processes) in region.running.iter().filter(|(_, processes)| processes.len() > 1) {
        let (count, them) = (processes.len(), processes.join(", "));
        _ = writeln!(text, "  {name} is claimed by {count} processes: {them}; give each a name of its own");
    }
}

/// The time without a report after which an edge is stale; edges report each second.
const STALE_AFTER_MS: u64 = 3500;

fn edges(text: &mut String, region: &RegionStatus) {
    for (name, edge) in &region.edges {
        let has_table = (edge.epoch, edge.revision) != (Epoch(0), Revision(0));
        let state = if edge.reported_ms_ago > STALE_AFTER_MS {
            "stale"
        } else if edge.draining {
            "draining"
        } else if !has_table {
            "waiting"
        } else if edge.is_current && edge.behind_s.is_none() {
            "current"
        } else {
            "behind"
        };
        let serves = if has_table {
            format!(
                "epoch {} revision {}, served for {:.1} s, applied in {} µs",
                edge.epoch,
                edge.revision,
                edge.age_ms as f64 / 1000.0,
                edge.apply_us
            )
        } else {
            "no table yet".to_owned()
        };
        _ = writeln!(text, "  edge    {:<18} {state:<10} {serves}", name.as_str());
        if let Some(behind) = edge.behind_s {
            _ = writeln!(
                text,
                "          behind for {behind} s: it refuses a later table ({} messages so far); see its /readyz, and \
                 tidegate edge reset {name}",
                edge.refused
            );
        }
        if region.unknown_edges.contains(name) {
            _ = writeln!(text, "          the fleet has no edge {name} in this region");
        }
    }
    for name in &region.missing_edges {
        _ = writeln!(
            text,
            "  edge    {:<18} missing    it is in the fleet and does not report",
            name.as_str()
        );
    }
}

fn sent_text(sent: &SentStatus) -> String {
    let p95 = sent.p95_ms.map(|p95| format!("; 95 % respond within {p95:.0} ms")).unwrap_or_default();
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
        text += " (all clusters seem down: all are tried)";
    }
    if action.shed_permille > 0 {
        text += &format!(" (shedding {}.{} %)", action.shed_permille / 10, action.shed_permille % 10);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::gather::{ClusterStatus, EdgeStatus, FleetStatus};

    fn status() -> Status {
        let fleet = FleetStatus { revision: 1, author: "ann".to_owned(), age_s: 5 };
        let regions = [("us-east".parse().unwrap(), RegionStatus::default())].into();
        Status { fleet: Some(fleet), problems: Vec::new(), regions, overrides: Vec::new() }
    }

    fn region(status: &mut Status) -> &mut RegionStatus {
        status.regions.values_mut().next().unwrap()
    }

    #[test]
    fn an_edge_without_a_table_is_not_shown_to_serve_by_one() {
        let mut status = status();
        let edge = EdgeStatus {
            epoch: Epoch(0),
            revision: Revision(0),
            is_current: false,
            behind_s: None,
            refused: 0,
            age_ms: 1_795_758_653_400,
            apply_us: 0,
            draining: false,
            reported_ms_ago: 10,
        };
        region(&mut status).edges.insert("edge-1".parse().unwrap(), edge);
        let shown = text(&status);
        assert!(shown.contains("waiting    no table yet\n") && !shown.contains("served for"), "{shown}");
    }

    #[test]
    fn a_table_that_no_key_signed_is_marked() {
        let mut status = status();
        assert!(!text(&status).contains("signed by no key"));
        region(&mut status).unsigned = 3;
        assert!(text(&status).contains("3 messages about its table are signed by no key of the fleet"));
    }

    #[test]
    fn edges_serve_the_last_table_only_where_there_can_be_one() {
        let mut status = status();
        assert!(text(&status).contains("edges serve by the last one"));
        status.fleet = None;
        assert!(!text(&status).contains("edges serve by the last one"));
    }

    #[test]
    fn a_name_that_two_processes_claim_is_shown() {
        let mut status = status();
        let running = &mut region(&mut status).running;
        running.insert("health-prober p".to_owned(), vec!["process 1 on a".to_owned()]);
        running.insert("edge e".to_owned(), vec!["process 2 on a".to_owned()]);
        assert!(text(&status).contains("running health-prober p\n") && !text(&status).contains("claimed"));
        region(&mut status).running.get_mut("edge e").unwrap().push("process 3 on b".to_owned());
        let shown = text(&status);
        assert!(
            shown.contains("edge e is claimed by 2 processes: process 2 on a, process 3 on b; give each"),
            "{shown}"
        );
    }

    #[test]
    fn checks_with_equal_results_are_shown_once() {
        let mut status = status();
        let up = || ClusterStatus { verdict: "up".to_owned(), reason: "2 of 2".to_owned(), drained: false };
        let down = ClusterStatus { verdict: "down".to_owned(), ..up() };
        region(&mut status).clusters.insert("us-east-1".parse().unwrap(), vec![up(), down, up()]);
        assert_eq!(text(&status).matches("cluster us-east-1").count(), 2);
    }

    #[test]
    fn a_route_is_shown_with_the_requests_that_it_is_for() {
        let mut status = status();
        let action = |requests: Option<&str>| ActionStatus {
            requests: requests.map(str::to_owned),
            tiers: vec![vec![("us-east-1".to_owned(), 1000)]],
            reason: String::new(),
            fail_open: false,
            shed_permille: 0,
        };
        let actions = vec![action(None), action(Some("/api and below"))];
        region(&mut status).services.insert("shop".to_owned(), actions);
        let shown = text(&status);
        assert!(shown.contains("service shop route 1       us-east-1 (/api and below)\n"), "{shown}");
    }
}
