//! What is told of requests: durations by where they were served, spans, and lines in the access log.
//!
//! A request that nobody wants to hear of costs a note of its tries and a few counters of its own worker.

pub mod access;
mod decide;
mod line;
mod spans;
mod text;
mod traceparent;
mod trail;
mod unread;

use std::{cell::RefCell, sync::Arc, time::Duration};

use tidegate_http1::{Method, Request};
use tidegate_service::telemetry::SpanSink;
use tokio::time::Instant;

pub use decide::{RequestTrace, Sampling};
pub use traceparent::TraceParentText;
pub use trail::{Ending, Trail, TryNote, Why};
pub use unread::Unread;

use crate::{
    forward::{Client, Exchange, LocalReply},
    metrics::{RequestKind, Timing, WorkerCounters},
    worker::Worker,
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
    /// The trace of a request that is told of whatever becomes of it.
    pub fn begin(&self, request: &Request, worker: &Worker) -> Option<RequestTrace> {
        let (_, sampling) = self.tracing.as_ref()?;
        sampling.begin(request, &mut *worker.random.borrow_mut())
    }

    /// A request that a service answers for has ended.
    pub fn finished(&self, x: &Exchange<'_>, ended: Instant) {
        let trail = x.trail.borrow();
        let duration = ended - x.started;
        let timing = Timing::from(duration);
        x.service.counters.duration.record(timing);
        let kind = RequestKind::new(&x.request.method, x.origin.is_tls, trail.status, trail.broken);
        x.action.requests.record(kind, timing);
        if let Some(status) = trail.status
            && let Some((tier, cluster)) = trail.served_by()
            && let Some(choice) = x.action.tiers.get(tier).and_then(|tier| tier.of(cluster))
        {
            choice.serving.count(status, timing);
        }
        let mut trace = x.trace;
        if let Some((sink, sampling)) = &self.tracing
            && (trace.is_some() || trail.is_notable())
        {
            let known = trace.unwrap_or_else(|| sampling.late(x.request, &mut *x.worker.random.borrow_mut()));
            spans::send(sink, x, &trail, known, ended);
            trace = Some(known);
        }
        if let Some(access) = &self.access {
            access.borrow_mut().add(trail.is_notable(), trail.status.unwrap_or(0), duration, || {
                Line::of_exchange(x, &trail, trace, duration)
            });
        }
    }

    /// A request that no service answers for has ended.
    pub fn answered_ourselves(
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

    /// A request that could not be read was refused with `reply`.
    pub fn refused(&self, client: Client, unread: &Unread, reply: &LocalReply, duration: Duration) {
        self.count_own(&Method::from(unread.method.as_str()), client, reply.status, duration);
        if let Some(access) = &self.access {
            let line = || Line::of_refusal(unread, &reply.body, client, reply.status, duration);
            access.borrow_mut().add(reply.status >= 500, reply.status, duration, line);
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
