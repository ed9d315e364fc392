//! The account for people.

use std::time::Instant;

use tidegate_integration_tests::{drill::Detection, load::Summary};

use crate::figures::{Demo, Tried, ms};

/// Prints the account, with the time since the start before each line.
pub struct Show {
    began: Instant,
    json: bool,
}

impl Show {
    /// The account goes to standard error when standard output is for JSON.
    pub fn new(json: bool) -> Show {
        Show { began: Instant::now(), json }
    }

    /// The begin of something new.
    pub fn title(&self, text: &str) {
        self.print("");
        self.line(text);
    }

    /// One line.
    pub fn line(&self, text: &str) {
        self.print(&format!("{:6.1} s  {text}", self.began.elapsed().as_secs_f64()));
    }

    /// How a fault was found.
    pub fn detection(&self, detection: &Detection) {
        if let Some(first) = detection.first_failure_at {
            let after = ms(first.since(detection.fault_at));
            self.line(&format!("  first failure seen {after:.1} ms after the fault"));
        }
        let from = detection.first_failure_at.unwrap_or(detection.fault_at);
        for found in &detection.found {
            self.line(&format!(
                "  {} decided {:.1} ms later, {:.2} ms of it to compute, by {}: {}",
                found.region,
                ms(found.decided_at.since(from)),
                ms(found.decided_at.since(found.heard_at)),
                found.signal,
                found.reason
            ));
            self.line(&format!(
                "  {} serves by it {:.1} ms after the verdict",
                found.edge,
                ms(found.applied_at.since(found.decided_at))
            ));
        }
        let all = ms(detection.fault_to_last_edge());
        self.line(&format!("  fault to last edge: {all:.1} ms"));
    }

    /// Who serves the requests that came by an edge.
    pub fn serving(&self, edge: &str, summary: &Summary) {
        let total: usize = summary.answers.values().sum();
        let shares: Vec<String> = summary
            .answers
            .iter()
            .map(|(origin, count)| format!("{origin} {:.0} %", 100.0 * *count as f64 / total.max(1) as f64))
            .collect();
        self.line(&format!("  served through {edge}: {}", shares.join(", ")));
    }

    /// What became of requests.
    pub fn requests(&self, summary: &Summary, tried: Tried) {
        self.line(&format!(
            "  {} requests: {} GET and {} POST failed, {} retried, {} hedged; slowest GET {:.1} ms",
            summary.requests,
            summary.failed_get,
            summary.failed_post,
            tried.retried,
            tried.hedged,
            ms(summary.worst_get)
        ));
        for (failure, count) in &summary.get_failures {
            self.line(&format!("  failed GET: {count} times {failure}"));
        }
    }

    /// The end: a table, or JSON.
    pub fn summary(&self, demo: &Demo) {
        if self.json {
            match serde_json::to_string(demo) {
                Ok(json) => println!("{json}"),
                Err(error) => eprintln!("demo: {error}"),
            }
            return;
        }
        println!(
            "\n{:<10}{:>10}{:>10}{:>10}{:>9}{:>8}{:>12}{:>8}{:>18}{:>16}{:>16}",
            "",
            "requests",
            "GET lost",
            "POST lost",
            "retried",
            "hedged",
            "worst GET",
            ">0.5 s",
            "failure-verdict",
            "verdict-edges",
            "fault-edges"
        );
        for f in &demo.faults {
            let verdict =
                f.first_failure_to_verdict_ms.map_or_else(|| "-".to_owned(), |time| format!("{time:.1} ms"));
            println!(
                "{:<10}{:>10}{:>10}{:>10}{:>9}{:>8}{:>9.1} ms{:>8}{verdict:>18}{:>13.1} ms{:>13.1} ms",
                f.fault,
                f.requests,
                f.failed_get,
                f.failed_post,
                f.retried,
                f.hedged,
                f.worst_get_ms,
                f.slow_over_500ms,
                f.verdict_to_last_edge_ms,
                f.fault_to_last_edge_ms
            );
        }
        println!(
            "\n{}",
            if demo.ok {
                "No repeatable request failed."
            } else {
                "Repeatable requests FAILED; see the account above."
            }
        );
    }

    fn print(&self, line: &str) {
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }
}
