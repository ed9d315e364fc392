//! What a prober counts.

use std::time::Duration;

use tidegate_model::observation::{Failure, ProbeOutcome};
use tidegate_service::{
    Registry,
    metrics::{Counter, Gauge, Histogram},
};

/// Upper bounds of the probes' durations, in seconds.
const DURATIONS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

#[derive(Debug)]
pub(crate) struct Metrics {
    passed: Counter,
    failed: [Counter; 8],
    pub impossible: Counter,
    pub duration: Histogram,
    pub targets: Gauge,
    pub failing: Gauge,
    pub unreachable: Gauge,
    pub running: Gauge,
    pub changes: Counter,
    pub unsent: Counter,
    pub suspicions_looked_at: Counter,
    pub suspicions_passed_over: Counter,
    pub suspicions_refused: Counter,
    pub suspicions_limited: Counter,
    pub fleets_refused: Counter,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Metrics {
        let probes = |outcome: &str| {
            registry.counter("tidegate_probes_total", "Probes, by how they ended.", &[("outcome", outcome)])
        };
        let suspicions = |result: &str| {
            let help = "Suspicions received: looked at; passed over because the endpoint was looked at just before or is \
                        not probed; refused because the fleet lacks the edge; or limited because the edge sends too many.";
            registry.counter("tidegate_suspicions_total", help, &[("result", result)])
        };
        Metrics {
            passed: probes("pass"),
            failed: [
                "connect_refused",
                "connect_timeout",
                "connect_error",
                "tls",
                "reset",
                "no_answer",
                "status",
                "bad_answer",
            ]
            .map(probes),
            impossible: probes("impossible_here"),
            duration: registry.histogram(
                "tidegate_probe_duration_seconds",
                "How long probes took.",
                &[],
                DURATIONS,
            ),
            targets: registry.gauge(
                "tidegate_probe_targets",
                "Endpoints that are probed, once for each check.",
                &[],
            ),
            failing: registry.gauge("tidegate_probe_targets_failing", "Those whose last probe failed.", &[]),
            unreachable: registry.gauge(
                "tidegate_probe_clusters_unusable",
                "Clusters that are not probed because the files of their TLS can't be used here.",
                &[],
            ),
            running: registry.gauge("tidegate_probes_running", "Probes under way.", &[]),
            changes: registry.counter(
                "tidegate_observations_total",
                "Changes of observations published.",
                &[],
            ),
            unsent: registry.counter(
                "tidegate_observations_unsent_total",
                "Publications that the bus did not take; the next heartbeat makes up for them.",
                &[],
            ),
            suspicions_looked_at: suspicions("looked_at"),
            suspicions_passed_over: suspicions("passed_over"),
            suspicions_refused: suspicions("refused"),
            suspicions_limited: suspicions("limited"),
            fleets_refused: registry.counter(
                "tidegate_fleets_refused_total",
                "Fleet files on the bus that this version can't read.",
                &[],
            ),
        }
    }

    pub fn count(&self, outcome: &ProbeOutcome, took: Duration) {
        self.duration.observe(took.as_secs_f64());
        let failed = |at: usize| &self.failed[at];
        match outcome {
            ProbeOutcome::Pass => &self.passed,
            ProbeOutcome::Fail(Failure::ConnectRefused) => failed(0),
            ProbeOutcome::Fail(Failure::ConnectTimeout) => failed(1),
            ProbeOutcome::Fail(Failure::ConnectError) => failed(2),
            ProbeOutcome::Fail(Failure::Tls) => failed(3),
            ProbeOutcome::Fail(Failure::Reset) => failed(4),
            ProbeOutcome::Fail(Failure::NoAnswer) => failed(5),
            ProbeOutcome::Fail(Failure::Status(_)) => failed(6),
            ProbeOutcome::Fail(Failure::BadAnswer) => failed(7),
        }
        .increment();
    }
}
