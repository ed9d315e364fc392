//! A request with its route, policy and attempts.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tidegate_http1::{Framing, Request};
use tidegate_model::{fleet::Policy, observation::Failure};
use tokio::time::Instant;

use super::heads::ClientInfo;
use crate::{
    clients::{Client, Network},
    metrics::{RequestKind, Timing},
    observe::{Attempt, AttemptLog, FinishedRequest, Interruption, RequestTrace},
    table::{ActionView, ServiceView},
    worker_context::WorkerContext,
};

/// A request with its route, policy and attempts.
pub struct RequestContext<'a> {
    /// The worker that serves it.
    pub worker: &'a Rc<WorkerContext>,
    /// The service.
    pub service: &'a ServiceView,
    /// The action of its route.
    pub action: &'a ActionView,
    /// The policy of its action.
    pub policy: &'a Policy,
    /// The request's head.
    pub request: &'a Request,
    /// The client.
    pub client: Client,
    /// What endpoints are told about the client.
    pub info: ClientInfo<'a>,
    /// Its body's framing.
    pub framing: Framing,
    /// Whether it may be sent more than once.
    pub repeatable: bool,
    /// Whether there is more than one endpoint.
    pub has_elsewhere: bool,
    /// When its head was read.
    pub started: Instant,
    /// Its trace, if it is sampled from the start.
    pub trace: Option<RequestTrace>,
    /// The log of its attempts.
    pub log: RefCell<AttemptLog>,
    /// The size of the buffers of a fallback response.
    pub fallback_buffered: Cell<usize>,
}

impl RequestContext<'_> {
    /// The client's network.
    pub fn network(&self) -> Network {
        Network::of(self.client.address)
    }

    /// Records a failed attempt against its endpoint; only for this action if the request itself may be the cause.
    pub fn record_failure(&self, attempt: &Attempt, failure: &Failure) {
        self.worker.record_endpoint_failure(&attempt.endpoint, failure, |now| {
            attempt.detector.record_failure(self.network(), now);
            self.eject_if_outlier(attempt, now)
        });
    }

    /// Records that a request that failed in this attempt succeeded elsewhere.
    pub fn record_success_elsewhere(&self, attempt: &Attempt, now: Instant) {
        attempt.detector.record_success_elsewhere();
        if self.eject_if_outlier(attempt, now) {
            self.worker.record_ejection(&attempt.endpoint, "its failed requests succeed elsewhere");
        }
    }

    fn eject_if_outlier(&self, attempt: &Attempt, now: Instant) -> bool {
        let tiers = &self.action.tiers;
        let weighted = tiers.iter().find_map(|tier| tier.of(&attempt.cluster));
        weighted.is_some_and(|weighted| weighted.eject_if_outlier(&attempt.detector, now))
    }

    /// Counts the finished request, and reports it to traces and the access log.
    pub fn finish(&self, ended: Instant) {
        let log = self.log.borrow();
        let timing = Timing::from(ended - self.started);
        self.service.counters.duration.record(timing);
        let kind = RequestKind::new(
            &self.request.method,
            self.client.is_tls,
            log.status,
            log.interruption.map(Interruption::as_str),
        );
        self.action.requests.record(kind, timing);
        if let Some(status) = log.status
            && let Some(served) = log.served_by()
            && let Some(weighted) = self
                .action
                .tiers
                .iter()
                .find(|tier| tier.index == served.tier)
                .and_then(|tier| tier.of(&served.cluster))
        {
            weighted.serving.count(status, timing);
        }
        let finished = FinishedRequest {
            edge: &self.worker.edge,
            service: &self.service.name,
            route: self.action.route.as_deref(),
            head: self.request,
            client: self.client,
            request_id: self.info.request_id,
            started: self.started,
            ended,
            trace: self.trace,
            log: &log,
        };
        self.worker.observer.report_finished(&finished, &mut *self.worker.random.borrow_mut());
    }
}
