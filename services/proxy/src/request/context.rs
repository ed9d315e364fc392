//! A request and what was decided for it.

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
    context::WorkerContext,
    metrics::{RequestKind, Timing},
    observe::{Attempt, AttemptLog, FinishedRequest, Interruption, RequestTrace},
    table::{ActionView, ServiceView},
};

/// A request and what was decided for it.
pub struct RequestContext<'a> {
    /// The worker that serves it.
    pub worker: &'a Rc<WorkerContext>,
    /// Its service.
    pub service: &'a ServiceView,
    /// Its action.
    pub action: &'a ActionView,
    /// Its policy.
    pub policy: &'a Policy,
    /// Its head.
    pub request: &'a Request,
    /// Its client.
    pub client: Client,
    /// What is told of the client.
    pub info: ClientInfo<'a>,
    /// Its body's framing.
    pub framing: Framing,
    /// Whether it may be sent twice.
    pub repeatable: bool,
    /// Whether more than one endpoint could take it.
    pub has_elsewhere: bool,
    /// When its head was read.
    pub started: Instant,
    /// Its trace, when it is traced whatever becomes of it.
    pub trace: Option<RequestTrace>,
    /// Its attempts.
    pub log: RefCell<AttemptLog>,
    /// What a response holds that only counts when no better one comes.
    pub fallback_held: Cell<usize>,
}

impl RequestContext<'_> {
    /// The client's network.
    pub fn network(&self) -> Network {
        Network::of(self.client.address)
    }

    /// An attempt failed: counted against its endpoint, for this action where it may be the request's own doing.
    pub fn record_failure(&self, attempt: &Attempt, failure: &Failure) {
        self.worker.record_endpoint_failure(&attempt.endpoint, failure, |now| {
            attempt.tally.failed(self.network(), now);
            self.judge(attempt, now)
        });
    }

    /// A request that failed in this attempt was served elsewhere.
    pub fn record_contrast(&self, attempt: &Attempt, now: Instant) {
        attempt.tally.contrasted();
        if self.judge(attempt, now) {
            self.worker.record_ejection(&attempt.endpoint, "what it fails is served elsewhere");
        }
    }

    fn judge(&self, attempt: &Attempt, now: Instant) -> bool {
        let tiers = &self.action.tiers;
        let weighted = tiers.iter().find_map(|tier| tier.of(&attempt.cluster));
        weighted.is_some_and(|weighted| weighted.judge(&attempt.tally, now))
    }

    /// The request has ended: it is counted, and reported where somebody wants to hear of it.
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
            && let Some(weighted) =
                self.action.tiers.get(served.tier).and_then(|tier| tier.of(&served.cluster))
        {
            weighted.serving.count(status, timing);
        }
        let finished = FinishedRequest {
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
        self.worker.observer.finished(&finished, &mut *self.worker.random.borrow_mut());
    }
}
