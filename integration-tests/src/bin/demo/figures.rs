//! The demo's figures, as they are printed in JSON.

use std::time::Duration;

use serde::Serialize;
use tidegate_integration_tests::{Fault, drill::Detection, load::Summary};

/// What the demo found.
#[derive(Debug, Serialize)]
pub struct Demo {
    /// Whether no repeatable request failed.
    pub ok: bool,
    /// By fault.
    pub faults: Vec<Figures>,
}

/// The figures of one fault, from the moment it was made until all was as before.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Which.
    pub fault: String,
    /// Requests.
    pub requests: usize,
    /// GETs without a 2xx.
    pub failed_get: usize,
    /// POSTs without a 2xx.
    pub failed_post: usize,
    /// Tries after a failed one.
    pub retried: u64,
    /// Tries beside one without an answer.
    pub hedged: u64,
    /// The slowest GET.
    pub worst_get_ms: f64,
    /// GETs slower than half a second.
    pub slow_over_500ms: usize,
    /// From the first failed request or probe to the verdict in both regions; absent for a drain, which nobody needs to
    /// find.
    pub first_failure_to_verdict_ms: Option<f64>,
    /// From what a route-computer heard to what it decided by that, the longer of both regions.
    pub computation_ms: f64,
    /// From a region's verdict to its edge, the longer of both.
    pub verdict_to_last_edge_ms: f64,
    /// From the fault to the last edge.
    pub fault_to_last_edge_ms: f64,
}

/// What edges tried beyond the first try of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tried {
    /// After a failed one.
    pub retried: u64,
    /// Beside one without an answer.
    pub hedged: u64,
}

impl Tried {
    /// What came since then.
    pub fn since(self, before: Tried) -> Tried {
        Tried {
            retried: self.retried.saturating_sub(before.retried),
            hedged: self.hedged.saturating_sub(before.hedged),
        }
    }
}

impl Figures {
    /// The figures of one fault.
    pub fn new(detection: &Detection, fault: Fault, summary: &Summary, tried: Tried) -> Figures {
        Figures {
            fault: fault.to_string(),
            requests: summary.requests,
            failed_get: summary.failed_get,
            failed_post: summary.failed_post,
            retried: tried.retried,
            hedged: tried.hedged,
            worst_get_ms: ms(summary.worst_get),
            slow_over_500ms: summary.slow_get,
            first_failure_to_verdict_ms: detection.first_failure_to_verdict().map(ms),
            computation_ms: ms(detection.computation()),
            verdict_to_last_edge_ms: ms(detection.verdict_to_last_edge()),
            fault_to_last_edge_ms: ms(detection.fault_to_last_edge()),
        }
    }
}

/// Milliseconds, to the microsecond.
pub fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
