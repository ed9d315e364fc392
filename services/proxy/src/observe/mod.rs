//! Reports finished requests: durations, spans and the access log.
//!
//! A request that is neither traced nor logged only costs its attempt log and a few counters of its own worker.

pub mod access;
mod attempt_log;
mod finished;
mod line;
mod malformed;
mod sampling;
mod spans;
mod text;
mod traceparent;

use std::{cell::RefCell, sync::Arc, time::Duration};

use rand::Rng;
use tidegate_http1::{Method, Request};
use tidegate_service::telemetry::SpanSink;

pub use attempt_log::{Attempt, AttemptLog, AttemptOutcome, AttemptReason, Interruption};
pub use finished::FinishedRequest;
pub use malformed::MalformedRequest;
pub use sampling::{RequestTrace, Sampling};
pub use traceparent::TraceParentText;

use crate::{
    clients::Client,
    edge_identity::EdgeIdentity,
    metrics::{RequestKind, WorkerCounters},
};
use access::AccessLog;
use line::AccessLogLine;

/// Reports a worker's requests.
pub struct Observer {
    edge: Arc<EdgeIdentity>,
    counters: Arc<WorkerCounters>,
    /// The sink of spans, and which requests are sampled.
    tracing: Option<(SpanSink, Sampling)>,
    access: Option<RefCell<AccessLog>>,
}

/// The configuration of all workers' observers.
#[derive(Clone, Default)]
pub struct ObserverConfig {
    /// The sink of spans, and which requests are sampled.
    pub tracing: Option<(SpanSink, Sampling)>,
    /// The access log.
    pub access: Option<Arc<access::AccessLogHandle>>,
}

impl ObserverConfig {
    /// Builds the observer of the edge's worker with these `counters`.
    pub fn build(&self, edge: Arc<EdgeIdentity>, counters: Arc<WorkerCounters>) -> Observer {
        Observer {
            edge,
            counters,
            tracing: self.tracing.clone(),
            access: self.access.clone().map(|shared| RefCell::new(AccessLog::new(shared))),
        }
    }
}

impl Observer {
    /// Starts the trace of a request, if it is sampled.
    pub fn sample(&self, request: &Request, random: &mut impl Rng) -> Option<RequestTrace> {
        let (_, sampling) = self.tracing.as_ref()?;
        sampling.sample(request, random)
    }

    /// Reports a finished request of a service.
    pub fn report_finished(&self, request: &FinishedRequest<'_>, random: &mut impl Rng) {
        let FinishedRequest { log, started, ended, .. } = *request;
        let mut trace = request.trace;
        if let Some((sink, sampling)) = &self.tracing
            && (trace.is_some() || log.is_notable())
        {
            let known = trace.unwrap_or_else(|| sampling.trace_late(request.head, random));
            spans::send_spans(sink, request, known, random);
            trace = Some(known);
        }
        if let Some(access) = &self.access {
            let duration = ended - started;
            access.borrow_mut().add(log.is_notable(), log.status.unwrap_or(0), duration, || {
                AccessLogLine::of_finished(request, trace, duration)
            });
        }
    }

    /// Reports a finished request that belongs to no service.
    pub fn report_local_reply(
        &self,
        client: Client,
        request: &Request,
        request_id: &[u8],
        status: u16,
        duration: Duration,
    ) {
        self.count_local(&request.method, client, status, duration);
        if let Some(access) = &self.access {
            let line =
                || AccessLogLine::of_request(&self.edge, request, client, request_id, status, duration);
            access.borrow_mut().add(false, status, duration, line);
        }
    }

    /// Reports a malformed request, refused with a status because of `why`.
    pub fn report_refusal(
        &self,
        client: Client,
        malformed: &MalformedRequest,
        (status, why): (u16, &str),
        duration: Duration,
    ) {
        self.count_local(&Method::from(malformed.method.as_str()), client, status, duration);
        if let Some(access) = &self.access {
            let line = || AccessLogLine::of_refusal(&self.edge, malformed, why, client, status, duration);
            access.borrow_mut().add(status >= 500, status, duration, line);
        }
    }

    fn count_local(&self, method: &Method, client: Client, status: u16, duration: Duration) {
        let kind = RequestKind::new(method, client.is_tls, Some(status), None);
        self.counters.requests.record(kind, duration.into());
    }

    /// Flushes the access log. Called about once a second.
    pub fn flush(&self) {
        if let Some(access) = &self.access {
            access.borrow_mut().flush();
        }
    }
}
