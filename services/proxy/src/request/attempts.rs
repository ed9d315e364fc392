//! Attempts, retries and hedges of one request.

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Duration};

use rand::RngExt as _;
use tidegate_model::{fleet::Hedge, observation::Failure};
use tokio::time::Instant;

use super::{
    attempt::{AttemptError, AttemptPlan, run_attempt},
    request_context::RequestContext,
    slots::Slots,
    upload::Upload,
    upstream_response::UpstreamResponse,
};
use crate::{
    balance::{PickContext, pick},
    clients::UpstreamQuota,
    observe::{Attempt, AttemptOutcome, AttemptReason, TraceParentText},
    upstream::{ClusterState, EndpointState, Fault, InFlightRequest, Sent, is_connect_failure},
    wire::{BodyError, Timer},
};

/// The delay of a hedge while the service's response times are unknown, and the minimum delay.
const HEDGE_UNKNOWN: Duration = Duration::from_millis(250);
const HEDGE_LEAST: Duration = Duration::from_millis(50);
/// How long the edge waits for the endpoint's `100 Continue` before it sends its own.
const CONTINUE_AFTER: Duration = Duration::from_secs(1);

/// Why no endpoint's response can be relayed.
pub enum RequestFailure {
    /// No endpoint can take the request.
    NoEndpoint,
    /// No upstream connection is available.
    NoConnection,
    /// The last attempt failed.
    Failed(Failure),
    /// The client sent no more of its body within the service's timeout.
    SlowClient,
    /// No response within the service's timeout.
    Deadline,
    /// The client's body could not be read.
    Client(BodyError),
    /// The request has a target or host that the endpoint's protocol cannot represent.
    Unrepresentable,
}

/// The next event of a request's attempts.
enum AttemptsEvent {
    /// The attempt in this slot ended.
    Ended(usize, Result<Box<UpstreamResponse>, AttemptError>),
    /// The next deadline has passed.
    DeadlinePassed,
    /// The client has cancelled the request.
    ClientCancelled,
    /// The client is slow and was evicted.
    ClientEvicted,
}

/// The state of a request's attempts.
struct Attempts<'a> {
    x: &'a RequestContext<'a>,
    client: UpstreamQuota,
    tried: Vec<Rc<EndpointState>>,
    clusters: Vec<Rc<ClusterState>>,
    /// Failed attempts whose cause may be the request itself.
    failed: Vec<usize>,
    left: u8,
    /// Whether a stale connection or GOAWAY may still be replaced without using up an attempt.
    may_replace_connection: bool,
    /// The delay of the hedge, while one may still be sent.
    hedge_after: Option<Duration>,
    /// The numbers of the running attempts, by slot.
    running: [Option<usize>; 2],
    /// A response that is relayed only if no better one arrives.
    fallback: Option<Box<UpstreamResponse>>,
    last: RequestFailure,
}

/// Sends the request until an endpoint responds: retries elsewhere when an attempt fails and a retry is allowed, and
/// hedges when no response arrives. Respects the service's attempts, budget and timeout.
pub async fn first_response(
    x: &RequestContext<'_>,
    upload: &RefCell<Upload<'_>>,
    timer: &mut Timer,
) -> Result<Box<UpstreamResponse>, RequestFailure> {
    let mut attempts = Attempts::new(x, upload.borrow().down.account().upstream_quota());
    let first =
        attempts.plan_attempt(0, AttemptReason::First, false, false).ok_or(RequestFailure::NoEndpoint)?;
    let first = pin!(Some(run_attempt(x, first, upload)));
    let mut slots = Slots::new(first);
    loop {
        let event = poll_fn(|cx| {
            if let Poll::Ready((slot, ended)) = slots.poll(cx) {
                return Poll::Ready(AttemptsEvent::Ended(slot, ended));
            }
            let mut upload = upload.borrow_mut();
            if upload.down.poll_reset(cx).is_ready() {
                return Poll::Ready(AttemptsEvent::ClientCancelled);
            }
            if upload.is_client_evicted() {
                return Poll::Ready(AttemptsEvent::ClientEvicted);
            }
            timer.poll_until(attempts.next_deadline(&upload), cx).map(|()| AttemptsEvent::DeadlinePassed)
        })
        .await;
        match event {
            AttemptsEvent::Ended(slot, ended) => {
                slots.clear(slot);
                let step = match ended {
                    Ok(response) => attempts.handle_response(slot, response, upload),
                    Err(AttemptError::Client(error)) => return Err(RequestFailure::Client(error)),
                    Err(AttemptError::Unrepresentable) => return Err(RequestFailure::Unrepresentable),
                    Err(AttemptError::Endpoint { failure, sent, fault }) => {
                        attempts.handle_failure(slot, failure, sent, fault, upload)
                    }
                };
                match step {
                    Step::Wait => {}
                    Step::Attempt(next) => slots.set(slot, run_attempt(x, next, upload)),
                    Step::Done(result) => return result,
                }
            }
            AttemptsEvent::ClientEvicted => {
                x.worker.counters.too_slow.add(1);
                return Err(RequestFailure::SlowClient);
            }
            AttemptsEvent::ClientCancelled => {
                return Err(RequestFailure::Client(BodyError::Http2(h2::Reason::CANCEL.into())));
            }
            AttemptsEvent::DeadlinePassed => {
                let overdue = attempts.overdue_slots(&upload.borrow());
                for slot in overdue {
                    slots.clear(slot);
                    match attempts.handle_failure(
                        slot,
                        Failure::NoResponse,
                        Sent::Maybe,
                        Fault::Endpoint,
                        upload,
                    ) {
                        Step::Wait => {}
                        Step::Attempt(next) => slots.set(slot, run_attempt(x, next, upload)),
                        Step::Done(result) => return result,
                    }
                }
                match attempts.handle_deadlines(upload) {
                    Ok(Some((slot, next))) => slots.set(slot, run_attempt(x, next, upload)),
                    Ok(None) => {}
                    // Even a bad response is more informative than a timeout.
                    Err(refusal) => return attempts.fallback.take().ok_or(refusal),
                }
            }
        }
    }
}

enum Step {
    Wait,
    Attempt(AttemptPlan),
    Done(Result<Box<UpstreamResponse>, RequestFailure>),
}

impl<'a> Attempts<'a> {
    fn new(x: &'a RequestContext<'a>, client: UpstreamQuota) -> Attempts<'a> {
        let hedge_after = match x.policy.hedge {
            Hedge::Off => None,
            Hedge::After(delay) => Some(delay),
            Hedge::Auto => {
                Some(x.service.latency.p95().map_or(HEDGE_UNKNOWN, |p95| (p95 * 2).max(HEDGE_LEAST)))
            }
        };
        Attempts {
            x,
            client,
            tried: Vec::new(),
            clusters: Vec::new(),
            failed: Vec::new(),
            left: x.policy.attempts,
            may_replace_connection: true,
            // Only safe methods: of two parallel attempts the older may take effect last, and a late PUT would undo a
            // newer one.
            hedge_after: hedge_after.filter(|_| x.request.method.is_safe() && x.info.upgrade.is_none()),
            running: [None, None],
            fallback: None,
            last: RequestFailure::NoEndpoint,
        }
    }

    /// Plans the next attempt. With `elsewhere`, other clusters than before are preferred.
    fn plan_attempt(
        &mut self,
        slot: usize,
        reason: AttemptReason,
        fresh: bool,
        elsewhere: bool,
    ) -> Option<AttemptPlan> {
        let began = Instant::now();
        let from = PickContext {
            tiers: &self.x.action.tiers,
            tried: &self.tried,
            avoid: if elsewhere { &self.clusters } else { &[] },
            now: began,
            client: self.x.network(),
        };
        let picked = pick(from, &mut *self.x.worker.random.borrow_mut())?;
        let (endpoint, cluster, detector) =
            (picked.endpoint.clone(), picked.cluster.clone(), picked.detector.clone());
        let span_id = self.x.trace.map_or(0, |_| self.x.worker.random.borrow_mut().random::<u64>().max(1));
        let traceparent = self.x.trace.map(|trace| TraceParentText::new(trace.trace_id, span_id));
        let in_flight = InFlightRequest::new(endpoint.clone(), cluster.clone(), self.client.clone());
        let number = self.x.log.borrow_mut().push(Attempt {
            reason,
            cluster,
            endpoint,
            detector,
            tier: picked.tier,
            began,
            span_id,
            outcome: AttemptOutcome::Pending,
        });
        self.running[slot] = Some(number);
        Some(AttemptPlan { in_flight, number, fresh, traceparent })
    }

    /// The deadline of an attempt's response. Like the total timeout it restarts when the client sends body data.
    fn deadline(&self, number: usize, upload: &Upload<'_>) -> Option<Instant> {
        let limit = self.x.policy.per_try_timeout?;
        Some(self.x.log.borrow().attempt(number).began.max(upload.progress_at) + limit)
    }

    /// The next deadline of any kind.
    fn next_deadline(&self, upload: &Upload<'_>) -> Instant {
        let mut next = self.total_deadline(upload);
        if !upload.awaits_client() {
            for running in self.running.iter().flatten() {
                next = self.deadline(*running, upload).map_or(next, |deadline| deadline.min(next));
            }
        }
        if upload.is_complete() {
            next = self.hedge_after.map_or(next, |delay| next.min(upload.progress_at + delay));
        }
        if upload.expects_continue() {
            next = next.min(self.x.started + CONTINUE_AFTER);
        }
        next
    }

    /// The total timeout restarts when the client sends body data: a long upload is not a slow response.
    fn total_deadline(&self, upload: &Upload<'_>) -> Instant {
        upload.progress_at + self.x.policy.timeout
    }

    fn overdue_slots(&self, upload: &Upload<'_>) -> impl Iterator<Item = usize> + use<> {
        let now = Instant::now();
        let late = |slot: &Option<usize>| {
            !upload.awaits_client()
                && slot.and_then(|running| self.deadline(running, upload)).is_some_and(|at| at <= now)
        };
        let late = [late(&self.running[0]), late(&self.running[1])];
        (0..2).filter(move |slot| late[*slot])
    }

    /// Handles deadlines that have passed; may plan a hedge.
    fn handle_deadlines(
        &mut self,
        upload: &RefCell<Upload<'_>>,
    ) -> Result<Option<(usize, AttemptPlan)>, RequestFailure> {
        let now = Instant::now();
        let mut upload = upload.borrow_mut();
        if now >= self.total_deadline(&upload) {
            if upload.awaits_client() {
                return Err(RequestFailure::SlowClient);
            }
            let log = self.x.log.borrow();
            for running in self.running.iter_mut().filter_map(Option::take) {
                self.x.record_failure(log.attempt(running), &Failure::NoResponse);
            }
            return Err(RequestFailure::Deadline);
        }
        if now >= self.x.started + CONTINUE_AFTER {
            upload.send_continue();
        }
        if self.hedge_after.is_none_or(|delay| now < upload.progress_at + delay) || !upload.is_complete() {
            return Ok(None);
        }
        self.hedge_after = None;
        let Some(slot) = self.running.iter().position(Option::is_none) else { return Ok(None) };
        let Some(waiting) = self.running.iter().flatten().next() else { return Ok(None) };
        self.avoid_endpoint_of(*waiting);
        if !upload.can_replay() || !self.can_pick() || !self.x.action.budget.withdraw() {
            return Ok(None);
        }
        Ok(self.plan_attempt(slot, AttemptReason::Hedge, false, true).map(|next| {
            self.x.service.counters.hedges.add(1);
            (slot, next)
        }))
    }

    fn can_pick(&self) -> bool {
        let tiers = &self.x.action.tiers;
        tiers
            .iter()
            .flat_map(|tier| &tier.weighted_clusters)
            .filter(|weighted| weighted.cluster.has_room(self.client.network()))
            .flat_map(|weighted| &weighted.endpoints)
            .any(|candidate| !self.tried.iter().any(|tried| Rc::ptr_eq(tried, &candidate.endpoint)))
    }

    /// Excludes the endpoint of an attempt from further ones, and avoids its cluster.
    fn avoid_endpoint_of(&mut self, number: usize) {
        let log = self.x.log.borrow();
        let attempt = log.attempt(number);
        self.tried.push(attempt.endpoint.clone());
        self.clusters.push(attempt.cluster.clone());
    }

    /// Handles the response of an attempt.
    fn handle_response(
        &mut self,
        slot: usize,
        mut response: Box<UpstreamResponse>,
        upload: &RefCell<Upload<'_>>,
    ) -> Step {
        self.running[slot] = None;
        let (number, status, now) = (response.attempt, response.head.status, Instant::now());
        self.x.log.borrow_mut().record_outcome(number, AttemptOutcome::Response(now, status));
        let log = self.x.log.borrow();
        let attempt = log.attempt(number);
        let took = now - attempt.began;
        attempt.cluster.counters.first_byte.record(took.into());
        if !matches!(status, 502..=504) {
            self.x.service.latency.record(took);
            attempt.endpoint.record_response();
            attempt.detector.record_success(self.x.network(), now);
            for failed in self.failed.drain(..) {
                self.x.record_success_elsewhere(log.attempt(failed), now);
            }
            if attempt.reason == AttemptReason::Hedge {
                self.x.service.counters.hedges_won.add(1);
            }
            // Earlier attempts without a response were overtaken: weak evidence against their endpoints.
            let running = self.running.iter().flatten().map(|number| log.attempt(*number));
            for slower in running.filter(|other| other.began < attempt.began) {
                self.x.record_failure(slower, &Failure::NoResponse);
                self.x.record_success_elsewhere(slower, now);
            }
            return Step::Done(Ok(response));
        }
        self.x.record_failure(attempt, &Failure::Status(status));
        drop(log);
        self.failed.push(number);
        self.avoid_endpoint_of(number);
        self.x.fallback_buffered.set(response.buffered());
        self.fallback = Some(response);
        self.plan_retry(slot, self.x.repeatable, upload)
    }

    /// Handles a failed attempt.
    fn handle_failure(
        &mut self,
        slot: usize,
        failure: Failure,
        sent: Sent,
        fault: Fault,
        upload: &RefCell<Upload<'_>>,
    ) -> Step {
        let Some(number) = self.running[slot].take() else { return Step::Wait };
        self.x
            .log
            .borrow_mut()
            .record_outcome(number, AttemptOutcome::Failed(Instant::now(), failure.clone()));
        let may_repeat = self.x.repeatable || sent == Sent::Nothing;
        let log = self.x.log.borrow();
        let attempt = log.attempt(number);
        match fault {
            Fault::Endpoint => {
                self.x.record_failure(attempt, &failure);
                if !is_connect_failure(&failure) {
                    self.failed.push(number);
                }
            }
            Fault::StaleConnection => self.x.worker.report_failure(&attempt.endpoint, &failure),
            Fault::GoAway | Fault::LocalResources => {}
        }
        let reason = attempt.reason;
        drop(log);
        if matches!(fault, Fault::StaleConnection | Fault::GoAway)
            && may_repeat
            && self.may_replace_connection
            && upload.borrow().can_replay()
        {
            self.may_replace_connection = false;
            self.last = RequestFailure::Failed(failure);
            // It replaces the attempt that met a stale connection: a hedge stays a hedge.
            let reason =
                if reason == AttemptReason::Hedge { AttemptReason::Hedge } else { AttemptReason::Retry };
            return self
                .plan_attempt(slot, reason, true, false)
                .map_or_else(|| self.finish_slot(), Step::Attempt);
        }
        self.avoid_endpoint_of(number);
        self.last = match fault {
            Fault::LocalResources => RequestFailure::NoConnection,
            Fault::Endpoint | Fault::StaleConnection | Fault::GoAway => RequestFailure::Failed(failure),
        };
        self.plan_retry(slot, may_repeat, upload)
    }

    /// Plans a retry elsewhere, if allowed.
    fn plan_retry(&mut self, slot: usize, may_repeat: bool, upload: &RefCell<Upload<'_>>) -> Step {
        if may_repeat && self.left > 0 && upload.borrow().can_replay() && self.can_pick() {
            if self.x.action.budget.withdraw() {
                self.left -= 1;
                // After a second failure the cluster is suspect: the next attempt leaves it.
                let elsewhere = self.clusters.len() > 1;
                if let Some(next) = self.plan_attempt(slot, AttemptReason::Retry, false, elsewhere) {
                    self.x.service.counters.retries.add(1);
                    return Step::Attempt(next);
                }
            } else {
                self.x.service.counters.budget_exhausted.add(1);
            }
        }
        self.finish_slot()
    }

    /// Ends a slot without another attempt; the other slot may still get a response.
    fn finish_slot(&mut self) -> Step {
        if self.running.iter().any(Option::is_some) {
            return Step::Wait;
        }
        let last = std::mem::replace(&mut self.last, RequestFailure::NoEndpoint);
        Step::Done(self.fallback.take().ok_or(last))
    }
}
