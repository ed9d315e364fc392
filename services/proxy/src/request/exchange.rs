//! A request and what was decided for it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tidegate_http1::{Framing, Request};
use tidegate_model::{fleet::Policy, observation::Failure};
use tokio::time::Instant;

use super::heads::Origin;
use crate::{
    clients::{Client, Network},
    context::Worker,
    metrics::{RequestKind, Timing},
    observe::{FinishedRequest, RequestTrace, Trail},
    table::{ActionView, ServiceView},
    upstream::{Cluster, Endpoint, Tally},
};

/// A request and what was decided for it.
pub struct Exchange<'a> {
    /// The worker that serves it.
    pub worker: &'a Rc<Worker>,
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
    pub origin: Origin<'a>,
    /// Its body's framing.
    pub framing: Framing,
    /// Whether it may be sent twice.
    pub repeatable: bool,
    /// Whether more than one endpoint could take it.
    pub has_elsewhere: bool,
    /// When its head was read.
    pub started: Instant,
    /// Its trace, when it is told of whatever becomes of it.
    pub trace: Option<RequestTrace>,
    /// What was tried.
    pub trail: RefCell<Trail>,
    /// What a response holds that only counts when no better one comes.
    pub fallback_held: Cell<usize>,
}

impl Exchange<'_> {
    /// The client's network.
    pub fn network(&self) -> Network {
        Network::of(self.client.address)
    }

    /// An endpoint failed the request: counted against it, for this action where it may be the request's own doing.
    pub fn endpoint_failed(
        &self,
        cluster: &Rc<Cluster>,
        endpoint: &Endpoint,
        tally: &Rc<Tally>,
        failure: &Failure,
    ) {
        self.worker.endpoint_failed(endpoint, failure, |now| {
            tally.failed(self.network(), now);
            self.judge(cluster, tally, now)
        });
    }

    /// Requests that failed there were served elsewhere.
    pub fn contrasted(&self, cluster: &Rc<Cluster>, endpoint: &Endpoint, tally: &Rc<Tally>, now: Instant) {
        tally.contrasted();
        if self.judge(cluster, tally, now) {
            self.worker.ejected(endpoint, "what it fails is served elsewhere");
        }
    }

    fn judge(&self, cluster: &Rc<Cluster>, tally: &Rc<Tally>, now: Instant) -> bool {
        self.action
            .tiers
            .iter()
            .find_map(|tier| tier.of(cluster))
            .is_some_and(|choice| choice.judge(tally, now))
    }

    /// The request has ended: it is counted, and reported where somebody wants to hear of it.
    pub fn finish(&self, ended: Instant) {
        let log = self.trail.borrow();
        let timing = Timing::from(ended - self.started);
        self.service.counters.duration.record(timing);
        let kind = RequestKind::new(&self.request.method, self.client.is_tls, log.status, log.broken);
        self.action.requests.record(kind, timing);
        if let Some(status) = log.status
            && let Some((tier, cluster)) = log.served_by()
            && let Some(choice) = self.action.tiers.get(tier).and_then(|tier| tier.of(cluster))
        {
            choice.serving.count(status, timing);
        }
        let finished = FinishedRequest {
            service: &self.service.name,
            route: self.action.route.as_deref(),
            head: self.request,
            client: self.client,
            request_id: self.origin.request_id,
            started: self.started,
            ended,
            trace: self.trace,
            log: &log,
        };
        self.worker.observer.finished(&finished, &mut *self.worker.random.borrow_mut());
    }
}
