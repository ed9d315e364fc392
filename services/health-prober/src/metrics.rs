//! The metrics of a health-prober.

use std::time::Duration;

use tidegate_model::observation::{Failure, ProbeOutcome};
use tidegate_service::{
    Registry,
    metrics::{Counter, Gauge, Histogram},
};

/// Upper bounds of probe durations, in seconds.
const DURATIONS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

#[derive(Debug)]
pub(crate) struct Metrics {
    passed: Counter,
    failed: [Counter; 8],
    pub local_errors: Counter,
    pub duration: Histogram,
    pub targets: Gauge,
    pub failing: Gauge,
    pub unusable: Gauge,
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
            registry.counter(
                "tidegate_probes_total",
                "Probes by outcome. \"local_resources\": this machine lacked what the probe needs.",
                &[("outcome", outcome)],
            )
        };
        let suspicions = |result: &str| {
            let help = "Suspicions received. looked_at: probed; passed_over: the endpoint was probed just before or is not \
                        probed; refused: the fleet lacks the edge; limited: the edge sends too many.";
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
                "no_response",
                "status",
                "bad_response",
            ]
            .map(probes),
            local_errors: probes("local_resources"),
            duration: registry.histogram(
                "tidegate_probe_duration_seconds",
                "Duration of probes.",
                &[],
                DURATIONS,
            ),
            targets: registry.gauge(
                "tidegate_probe_targets",
                "Endpoints that are probed, once for each check.",
                &[],
            ),
            failing: registry.gauge(
                "tidegate_probe_targets_failing",
                "Probe targets whose last probe failed.",
                &[],
            ),
            unusable: registry.gauge(
                "tidegate_probe_clusters_unusable",
                "Clusters that are not probed because their TLS files can't be used on this machine.",
                &[],
            ),
            running: registry.gauge("tidegate_probes_running", "Probes in flight.", &[]),
            changes: registry.counter(
                "tidegate_observations_total",
                "Changes of observations published.",
                &[],
            ),
            unsent: registry.counter(
                "tidegate_observations_unsent_total",
                "Publications that the bus did not accept; the next heartbeat repairs them.",
                &[],
            ),
            suspicions_looked_at: suspicions("looked_at"),
            suspicions_passed_over: suspicions("passed_over"),
            suspicions_refused: suspicions("refused"),
            suspicions_limited: suspicions("limited"),
            fleets_refused: registry.counter(
                "tidegate_fleets_refused_total",
                "Fleet files on the bus that this version can't parse.",
                &[],
            ),
        }
    }

    pub fn record_probe(&self, outcome: &ProbeOutcome, took: Duration) {
        self.duration.observe(took.as_secs_f64());
        let failed = |at: usize| &self.failed[at];
        match outcome {
            ProbeOutcome::Pass => &self.passed,
            ProbeOutcome::Fail(Failure::ConnectRefused) => failed(0),
            ProbeOutcome::Fail(Failure::ConnectTimeout) => failed(1),
            ProbeOutcome::Fail(Failure::ConnectError) => failed(2),
            ProbeOutcome::Fail(Failure::Tls) => failed(3),
            ProbeOutcome::Fail(Failure::Reset) => failed(4),
            ProbeOutcome::Fail(Failure::NoResponse) => failed(5),
            ProbeOutcome::Fail(Failure::Status(_)) => failed(6),
            ProbeOutcome::Fail(Failure::BadResponse) => failed(7),
        }
        .increment();
    }
}
