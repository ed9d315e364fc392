//! What is reported of requests: durations by where they were served, spans, and lines in the access log.
//!
//! A request that nobody wants to hear of costs a note of its attempts and a few counters of its own worker.

pub mod access;
mod attempt_log;
mod decide;
mod finished;
mod line;
mod malformed;
mod spans;
mod text;
mod traceparent;

use std::{cell::RefCell, sync::Arc, time::Duration};

use rand::Rng;
use tidegate_http1::{Method, Request};
use tidegate_service::telemetry::SpanSink;

pub use attempt_log::{Attempt, AttemptLog, AttemptOutcome, AttemptReason, Interruption};
pub use decide::{RequestTrace, Sampling};
pub use finished::FinishedRequest;
pub use malformed::MalformedRequest;
pub use traceparent::TraceParentText;

use crate::{
    clients::Client,
    metrics::{RequestKind, WorkerCounters},
};
use access::AccessLog;
use line::Line;

/// How a worker tells of its requests.
pub struct Observer {
    counters: Arc<WorkerCounters>,
    /// Where spans go, and of which requests.
    tracing: Option<(SpanSink, Sampling)>,
    access: Option<RefCell<AccessLog>>,
}

/// What all workers tell of requests.
#[derive(Clone, Default)]
pub struct Observing {
    /// Where spans go, and of which requests.
    pub tracing: Option<(SpanSink, Sampling)>,
    /// The access log.
    pub access: Option<Arc<access::Shared>>,
}

impl Observing {
    /// The part of the worker with these `counters`.
    pub fn observer(&self, counters: Arc<WorkerCounters>) -> Observer {
        Observer {
            counters,
            tracing: self.tracing.clone(),
            access: self.access.clone().map(|shared| RefCell::new(AccessLog::new(shared))),
        }
    }
}

impl Observer {
    /// The trace of a request that is traced whatever becomes of it.
    pub fn begin(&self, request: &Request, random: &mut impl Rng) -> Option<RequestTrace> {
        let (_, sampling) = self.tracing.as_ref()?;
        sampling.begin(request, random)
    }

    /// A request that a service answers for has ended.
    pub fn finished(&self, request: &FinishedRequest<'_>, random: &mut impl Rng) {
        let FinishedRequest { log, started, ended, .. } = *request;
        let mut trace = request.trace;
        if let Some((sink, sampling)) = &self.tracing
            && (trace.is_some() || log.is_notable())
        {
            let known = trace.unwrap_or_else(|| sampling.late(request.head, random));
            spans::send(sink, request, known, random);
            trace = Some(known);
        }
        if let Some(access) = &self.access {
            let duration = ended - started;
            access.borrow_mut().add(log.is_notable(), log.status.unwrap_or(0), duration, || {
                Line::of_finished(request, trace, duration)
            });
        }
    }

    /// A request that no service answers for has ended.
    pub fn replied_locally(
        &self,
        client: Client,
        request: &Request,
        request_id: &[u8],
        status: u16,
        duration: Duration,
    ) {
        self.count_own(&request.method, client, status, duration);
        if let Some(access) = &self.access {
            let line = || Line::of_request(request, client, request_id, status, duration);
            access.borrow_mut().add(false, status, duration, line);
        }
    }

    /// A request that could not be read was refused with a status, and `why`.
    pub fn refused(
        &self,
        client: Client,
        unread: &MalformedRequest,
        (status, why): (u16, &str),
        duration: Duration,
    ) {
        self.count_own(&Method::from(unread.method.as_str()), client, status, duration);
        if let Some(access) = &self.access {
            let line = || Line::of_refusal(unread, why, client, status, duration);
            access.borrow_mut().add(status >= 500, status, duration, line);
        }
    }

    fn count_own(&self, method: &Method, client: Client, status: u16, duration: Duration) {
        let kind = RequestKind::new(method, client.is_tls, Some(status), None);
        self.counters.requests.record(kind, duration.into());
    }

    /// Gives what waits to the access log's writer. To be called about once a second.
    pub fn flush(&self) {
        if let Some(access) = &self.access {
            access.borrow_mut().flush();
        }
    }
}
