//! A status for people.

use std::{fmt::Write as _, time::Duration};

use super::gather::{ActionStatus, EdgeStatus, ProblemStatus, RegionStatus, SentStatus, Status};
use crate::words;

/// The status as text.
pub fn text(status: &Status) -> String {
    let mut text = match &status.fleet {
        Some(fleet) => {
            let age = words::format_duration(Duration::from_secs(fleet.age_s));
            format!("fleet revision {} applied by {} {age} ago\n", fleet.revision, fleet.author)
        }
        None if status.problems.is_empty() => "no fleet was applied yet (tidegate apply FILE)\n".to_owned(),
        None => String::new(),
    };
    let has_prober =
        |region: &RegionStatus| region.running.keys().any(|name| name.starts_with("health-prober "));
    let hears_all = status.problems.is_empty();
    if status.fleet.is_some() && hears_all && !status.regions.values().any(has_prober) {
        text.push_str("no health-prober reports: the state of clusters is the last known one\n");
    }
    for problem in &status.problems {
        // Writing to a String does not fail.
        _ = writeln!(text, "{problem}");
    }
    for item in &status.overrides {
        _ = writeln!(text, "override: {item}");
    }
    if status.regions.is_empty() && hears_all {
        text.push_str("no region publishes a table yet, and no edge reports\n");
    }
    for (name, region) in &status.regions {
        _ = write!(text, "\nregion {name}: ");
        match (region.epoch, region.revision) {
            (Some(epoch), Some(revision)) => {
                let heard = region.owner_heard_ms_ago.unwrap_or_default();
                _ = writeln!(text, "epoch {epoch} revision {revision}, last message {heard} ms ago");
            }
            _ => _ = writeln!(text, "no leader publishes its table{}", edges_without_leader(region)),
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
            if let Some(outage) = actions.iter().find_map(outage) {
                _ = writeln!(text, "  service {service}: {outage}");
            }
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
    for kind in region.missing_services() {
        _ = writeln!(text, "  no {kind} runs here");
    }
    for (name, problems) in region.problems.iter().filter(|(name, _)| !name.starts_with("edge ")) {
        problem_lines(text, &format!("  {name}: "), problems);
    }
    for (name, processes) in region.running.iter().filter(|(_, processes)| processes.len() > 1) {
        let (count, them) = (processes.len(), processes.join(", "));
        _ = writeln!(text, "  {name} is claimed by {count} processes: {them}; give each a name of its own");
    }
}

/// What the edges of a region without a leader serve by.
fn edges_without_leader(region: &RegionStatus) -> &'static str {
    let mut reporting = region.edges.values().filter(|edge| !edge.is_stale());
    match (reporting.clone().count(), reporting.any(EdgeStatus::has_table)) {
        (0, _) => "",
        (_, true) => "; edges serve by the last one",
        (_, false) => "; its edges have none yet and serve nothing",
    }
}

/// Why an action's requests may not be served, if so.
fn outage(action: &ActionStatus) -> Option<String> {
    let has_cluster = action.tiers.iter().flatten().any(|(_, share)| *share > 0);
    match (action.fail_open, has_cluster) {
        (true, _) => Some(format!("no cluster is up, so all are tried: {}", action.reason)),
        (false, false) => Some(format!("no cluster takes its requests: {}", action.reason)),
        (false, true) => None,
    }
}

fn problem_lines(text: &mut String, indent: &str, problems: &[ProblemStatus]) {
    for problem in problems {
        let what = if problem.is_blocking { "not ready" } else { "warning" };
        let lasting = words::format_duration(Duration::from_secs(problem.for_s));
        _ = writeln!(text, "{indent}{what} for {lasting}: {}", problem.reason);
    }
}

fn edges(text: &mut String, region: &RegionStatus) {
    for (name, edge) in &region.edges {
        let has_table = edge.has_table();
        let problems = region.problems.get(&format!("edge {name}")).map(Vec::as_slice).unwrap_or_default();
        let is_ready = !problems.iter().any(|problem| problem.is_blocking);
        let state = if edge.is_stale() {
            "stale"
        } else if edge.draining {
            "draining"
        } else if !has_table {
            "waiting"
        } else if !is_ready {
            "not ready"
        } else if edge.is_current && edge.behind_s.is_none() {
            "current"
        } else if region.epoch.is_none() && edge.behind_s.is_none() {
            // Nobody publishes a later one.
            "last table"
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
        problem_lines(text, "          ", problems);
        if let Some(behind) = edge.behind_s {
            let behind = words::format_duration(Duration::from_secs(behind));
            _ = writeln!(
                text,
                "          behind for {behind}: it refuses a later table ({} messages so far); see its /readyz, and \
                 tidegate edge reset {name}",
                edge.refused
            );
        }
        if region.unknown_edges.contains(name) {
            _ = writeln!(text, "          the fleet has no edge {name} in this region");
        }
    }
    for name in &region.missing_edges {
        let state = match region.is_heard {
            true => "missing    it is in the fleet and does not report",
            false => "unknown    this user has no permission to hear it",
        };
        _ = writeln!(text, "  edge    {:<18} {state}", name.as_str());
    }
}

fn sent_text(sent: &SentStatus) -> String {
    let p95 = sent.p95_ms.map(|p95| match p95 {
        ..1.0 => "; 95 % respond in less than 1 ms".to_owned(),
        p95 => format!("; 95 % respond within {p95:.0} ms"),
    });
    let p95 = p95.unwrap_or_default();
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
    use tidegate_model::{Epoch, Revision};

    use super::*;
    use crate::status::gather::{ClusterStatus, FleetStatus};

    fn status() -> Status {
        let fleet = FleetStatus { revision: 1, author: "ann".to_owned(), age_s: 5 };
        let regions = [("us-east".parse().unwrap(), RegionStatus::default())].into();
        Status { fleet: Some(fleet), problems: Vec::new(), regions, overrides: Vec::new() }
    }

    fn region(status: &mut Status) -> &mut RegionStatus {
        status.regions.values_mut().next().unwrap()
    }

    fn edge(epoch: u64) -> EdgeStatus {
        EdgeStatus {
            epoch: Epoch(epoch),
            revision: Revision(epoch),
            is_current: true,
            behind_s: None,
            refused: 0,
            age_ms: 1_795_758_653_400,
            apply_us: 0,
            draining: false,
            reported_ms_ago: 10,
        }
    }

    #[test]
    fn an_edge_that_is_not_ready_is_shown_with_the_reason_and_since_when() {
        let mut status = status();
        let region = region(&mut status);
        (region.epoch, region.revision) = (Some(Epoch(1)), Some(Revision(1)));
        region.edges.insert("edge-1".parse().unwrap(), edge(1));
        region.is_heard = true;
        for name in ["health-prober p", "route-computer c"] {
            region.running.insert(name.to_owned(), vec!["process 1 on a".to_owned()]);
        }
        assert!(text(&status).contains("  no replicator runs here\n") && !status.is_well());
        let running = &mut self::region(&mut status).running;
        running.insert("replicator r".to_owned(), vec!["process 2 on a".to_owned()]);
        assert!(text(&status).contains("edge    edge-1             current") && status.is_well());

        let problem = |is_blocking, reason: &str| ProblemStatus {
            check: "listeners".to_owned(),
            reason: reason.to_owned(),
            for_s: 75,
            is_blocking,
        };
        let problems = vec![problem(true, "listener web: the port is taken"), problem(false, "behind")];
        self::region(&mut status).problems.insert("edge edge-1".to_owned(), problems);
        let shown = text(&status);
        assert!(shown.contains("edge    edge-1             not ready"), "{shown}");
        assert!(
            shown.contains("          not ready for 1 m 15 s: listener web: the port is taken\n"),
            "{shown}"
        );
        assert!(shown.contains("          warning for 1 m 15 s: behind\n") && !status.is_well(), "{shown}");
    }

    #[test]
    fn an_edge_that_may_not_be_heard_is_not_shown_as_missing() {
        let mut status = status();
        let missing = ["edge-1".parse().unwrap()];
        region(&mut status).missing_edges = missing.to_vec();
        assert!(
            text(&status).contains("edge-1             unknown    this user has no permission to hear it")
        );
        region(&mut status).is_heard = true;
        assert!(text(&status).contains("edge-1             missing"));
    }

    #[test]
    fn a_service_without_a_cluster_has_a_line_of_its_own() {
        let mut status = status();
        let action = |tiers, fail_open| ActionStatus {
            requests: None,
            tiers,
            reason: "all are drained".to_owned(),
            fail_open,
            shed_permille: 0,
        };
        let tiers = || vec![vec![("us-1".to_owned(), 1000)]];
        let mut shown = |tiers, fail_open| {
            region(&mut status).services.insert("shop".to_owned(), vec![action(tiers, fail_open)]);
            text(&status)
        };
        assert!(!shown(tiers(), false).contains("no cluster"));
        assert!(
            shown(Vec::new(), false)
                .contains("service shop: no cluster takes its requests: all are drained\n")
        );
        assert!(
            shown(tiers(), true)
                .contains("service shop: no cluster is up, so all are tried: all are drained\n")
        );
    }

    #[test]
    fn an_edge_without_a_table_is_not_shown_to_serve_by_one() {
        let mut status = status();
        region(&mut status).edges.insert("edge-1".parse().unwrap(), edge(0));
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
        assert!(!text(&status).contains("edges"));
        region(&mut status).edges.insert("edge-1".parse().unwrap(), edge(0));
        assert!(text(&status).contains("; its edges have none yet and serve nothing"));
        region(&mut status).edges.insert("edge-2".parse().unwrap(), edge(1));
        assert!(text(&status).contains("; edges serve by the last one"));
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
