//! What is told of requests: durations by where they were served, spans, and lines in the access log.
//!
//! A request that nobody wants to hear of costs a note of its tries and a few counters of its own worker.

pub mod access;
mod decide;
mod line;
mod spans;
mod traceparent;
mod trail;

use std::{cell::RefCell, sync::Arc, time::Duration};

use tidegate_http1::Request;
use tidegate_service::telemetry::SpanSink;
use tokio::time::Instant;

pub use decide::{RequestTrace, Sampling};
pub use traceparent::TraceParentText;
pub use trail::{Ending, Trail, TryNote, Why};

use crate::{
    forward::{Client, Exchange},
    worker::Worker,
};
use access::AccessLog;
use line::Line;

/// How a worker tells of its requests.
pub struct Observer {
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
    /// One worker's part.
    pub fn observer(&self) -> Observer {
        Observer {
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
        x.service.counters.duration.record(duration);
        if let Some(status) = trail.status
            && let Some((tier, cluster)) = trail.served_by()
            && let Some(choice) = x.action.tiers.get(tier).and_then(|tier| tier.of(cluster))
        {
            choice.serving.count(status, duration);
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
        if let Some(access) = &self.access {
            let line = || Line::of_request(request, client, request_id, status, duration);
            access.borrow_mut().add(false, status, duration, line);
        }
    }

    /// Gives what waits to the access log's writer. To be called about once a second.
    pub fn flush(&self) {
        if let Some(access) = &self.access {
            access.borrow_mut().flush();
        }
    }
}
