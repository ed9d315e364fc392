//! The publication of changes to the prober's table, with their cause and trace.

use std::time::Duration;

use tidegate_bus::{TraceContext, clock, codec, table::Owner};
use tidegate_model::{
    Timestamp,
    observation::{Observation, ObservationCause, ProbeOutcome, Signal, Target},
};
use tidegate_service::telemetry;
use tracing::{Span, info_span};

use crate::{core::ObservationChange, metrics::Metrics};

/// The changes of one turn of the prober's loop.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub changes: Vec<ObservationChange>,
    pub removed: Vec<Target>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.removed.is_empty()
    }

    /// Publishes the batch as one change of the table. `now` is the time since the start of the prober.
    pub async fn publish(self, owner: &mut Owner<Target, Observation>, now: Duration, metrics: &Metrics) {
        let Batch { mut changes, removed } = self;
        // The first change determines the cause and the trace: a suspicion that an edge waits for precedes due probes.
        changes.sort_by_key(|change| match &change.suspected {
            Some(suspected) => (false, suspected.first_failure_at.0, change.run_began),
            None => (true, 0, change.run_began),
        });
        let observed_at = clock::now();
        let cause = batch_cause(changes.first(), now, observed_at);
        let spans: Vec<Span> = changes.iter().map(|change| probe_span(change, now)).collect();
        let trace: Option<TraceContext> = spans.first().and_then(telemetry::span_context);
        metrics.changes.add((changes.len() + removed.len()) as u64);
        let entries = changes
            .into_iter()
            .map(|change| (change.target, Some(change.observation)))
            .chain(removed.into_iter().map(|target| (target, None)));
        let published = owner.publish(entries, codec::encode(&cause), trace.as_ref()).await;
        if let Some(Err(error)) = published.map(|published| published.sent) {
            metrics.unsent.increment();
            tracing::debug!(%error, "a change was not sent; the next heartbeat repairs it");
        }
    }
}

/// The cause of a batch by its first change.
fn batch_cause(first: Option<&ObservationChange>, now: Duration, observed_at: Timestamp) -> ObservationCause {
    let ago =
        |at: Duration| Timestamp(observed_at.0.saturating_sub(now.saturating_sub(at).as_micros() as u64));
    ObservationCause {
        signal: match first.and_then(|change| change.suspected.as_ref()) {
            Some(suspected) => Signal::Suspicion { first_failure_at: suspected.first_failure_at },
            None => Signal::Schedule,
        },
        probed_at: first.map_or(observed_at, |change| ago(change.run_began)),
        observed_at,
    }
}

/// The span of a probe that changed an observation. It is created after the probe, since most probes change nothing and
/// need no span. So its attributes hold the duration of the probe.
fn probe_span(change: &ObservationChange, now: Duration) -> Span {
    let Target { cluster, endpoint, check } = &change.target;
    let outcome = match &change.observation.outcome {
        ProbeOutcome::Pass => "pass".to_owned(),
        ProbeOutcome::Fail(failure) => failure.to_string(),
    };
    let ms = |since: Duration| now.saturating_sub(since).as_secs_f64() * 1e3;
    let (took_ms, run_ms, streak) = (ms(change.began), ms(change.run_began), change.observation.streak);
    let check = format!("{:016x}", check.0);
    let reason = format!("{outcome}, {streak} in a row");
    let Some(suspected) = &change.suspected else {
        return info_span!(
            "probe",
            tidegate.cluster = %cluster,
            tidegate.endpoint = %endpoint,
            tidegate.check = check,
            tidegate.reason = reason,
            tidegate.took_ms = took_ms,
            tidegate.run_ms = run_ms,
        );
    };
    let span = info_span!(
        "probe after suspicion",
        tidegate.cluster = %cluster,
        tidegate.endpoint = %endpoint,
        tidegate.check = check,
        tidegate.reason = reason,
        tidegate.took_ms = took_ms,
        tidegate.run_ms = run_ms,
        tidegate.first_failure_at = suspected.first_failure_at.0,
    );
    if let Some(parent) = &suspected.trace {
        telemetry::set_parent(&span, parent);
    }
    span
}
