//! Attempts, retries and hedges: how one request gets one response although endpoints fail.

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Duration};

use rand::RngExt as _;
use tidegate_model::{fleet::Hedge, observation::Failure};
use tokio::time::Instant;

use super::{
    attempt::{AttemptError, AttemptPlan, UpstreamResponse, attempt},
    context::RequestContext,
    slots::Slots,
    upload::Upload,
};
use crate::{
    balance::{Candidates, pick},
    clients::ClientShare,
    observe::{Attempt, AttemptOutcome, AttemptReason, TraceParentText},
    upstream::{ClusterState, EndpointState, Fault, InFlight, Sent, is_of_endpoint},
    wire::{BodyError, Timer},
};

/// When a hedge is sent while the service's usual time is unknown, and the least time at all.
const HEDGE_UNKNOWN: Duration = Duration::from_millis(250);
const HEDGE_LEAST: Duration = Duration::from_millis(50);
/// How long a client that expects `100 Continue` is left waiting for the endpoint's word.
const CONTINUE_AFTER: Duration = Duration::from_secs(1);

/// Why a request has no response of an endpoint.
pub enum NoResponse {
    /// There is no endpoint that could take it.
    NoEndpoint,
    /// This machine has no connection to an endpoint left for it.
    NoConnection,
    /// The last try failed so.
    Failed(Failure),
    /// The client sent nothing more of its body within the service's timeout.
    SlowClient,
    /// No response within the service's timeout.
    Deadline,
    /// The client's body could not be read.
    Client(BodyError),
    /// The request has a target or host that the endpoint's protocol cannot say.
    Unrepresentable,
}

/// What happened next.
enum Event {
    /// The attempt in this slot ended.
    Ended(usize, Result<Box<UpstreamResponse>, AttemptError>),
    /// The next deadline has passed.
    Time,
    /// The client has given the request up.
    Gone,
    /// The client is slow, and its place is needed.
    GivenUp,
}

/// What was tried and what may still be.
struct Attempts<'a> {
    x: &'a RequestContext<'a>,
    client: ClientShare,
    tried: Vec<Rc<EndpointState>>,
    clusters: Vec<Rc<ClusterState>>,
    /// Attempts that failed so that the request itself may have been to blame.
    failed: Vec<usize>,
    left: u8,
    /// A reused connection may die or go away once without costing an attempt.
    may_replace_connection: bool,
    /// How long after the request was sent it is hedged, if it still may be.
    hedge_after: Option<Duration>,
    /// The numbers of those under way, by slot.
    running: [Option<usize>; 2],
    /// A response that only counts when no better one comes.
    fallback: Option<Box<UpstreamResponse>>,
    last: NoResponse,
}

/// Sends the request until an endpoint answers: retries at once elsewhere when an attempt fails and the request may be sent
/// again, and hedges when no response comes. Within the service's attempts, budget and timeout.
pub async fn first_response(
    x: &RequestContext<'_>,
    upload: &RefCell<Upload<'_>>,
    timer: &mut Timer,
) -> Result<Box<UpstreamResponse>, NoResponse> {
    let mut attempts = Attempts::new(x, upload.borrow().down.account().share());
    let first = attempts.plan_attempt(0, AttemptReason::First, false, false).ok_or(NoResponse::NoEndpoint)?;
    let usual = pin!(Some(attempt(x, first, upload)));
    let mut slots = Slots::new(usual);
    loop {
        let event = poll_fn(|cx| {
            if let Poll::Ready((slot, ended)) = slots.poll(cx) {
                return Poll::Ready(Event::Ended(slot, ended));
            }
            let mut upload = upload.borrow_mut();
            if upload.down.poll_reset(cx).is_ready() {
                return Poll::Ready(Event::Gone);
            }
            if upload.is_given_up() {
                return Poll::Ready(Event::GivenUp);
            }
            timer.poll_until(attempts.next_deadline(&upload), cx).map(|()| Event::Time)
        })
        .await;
        match event {
            Event::Ended(slot, ended) => {
                slots.clear(slot);
                let step = match ended {
                    Ok(response) => attempts.responded(slot, response, upload),
                    Err(AttemptError::Client(error)) => return Err(NoResponse::Client(error)),
                    Err(AttemptError::Unrepresentable) => return Err(NoResponse::Unrepresentable),
                    Err(AttemptError::Endpoint { failure, sent, fault }) => {
                        attempts.failed(slot, failure, sent, fault, upload)
                    }
                };
                match step {
                    Step::Wait => {}
                    Step::Attempt(next) => slots.set(slot, attempt(x, next, upload)),
                    Step::Done(result) => return result,
                }
            }
            Event::GivenUp => {
                x.worker.counters.too_slow.add(1);
                return Err(NoResponse::SlowClient);
            }
            Event::Gone => return Err(NoResponse::Client(BodyError::Http2(h2::Reason::CANCEL.into()))),
            Event::Time => {
                let overdue = attempts.overdue(&upload.borrow());
                for slot in overdue {
                    slots.clear(slot);
                    match attempts.failed(slot, Failure::NoAnswer, Sent::Maybe, Fault::Endpoint, upload) {
                        Step::Wait => {}
                        Step::Attempt(next) => slots.set(slot, attempt(x, next, upload)),
                        Step::Done(result) => return result,
                    }
                }
                match attempts.passed(upload) {
                    Ok(Some((slot, next))) => slots.set(slot, attempt(x, next, upload)),
                    Ok(None) => {}
                    // An endpoint's word, even a bad one, says more than that there was none in time.
                    Err(refusal) => return attempts.fallback.take().ok_or(refusal),
                }
            }
        }
    }
}

enum Step {
    Wait,
    Attempt(AttemptPlan),
    Done(Result<Box<UpstreamResponse>, NoResponse>),
}

impl<'a> Attempts<'a> {
    fn new(x: &'a RequestContext<'a>, client: ClientShare) -> Attempts<'a> {
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
            // Of two that are under way at once, the later may be done first: an old PUT would undo a newer one.
            hedge_after: hedge_after.filter(|_| x.request.method.is_safe() && x.info.upgrade.is_none()),
            running: [None, None],
            fallback: None,
            last: NoResponse::NoEndpoint,
        }
    }

    /// Picks where the next try goes. With `elsewhere`, clusters that were not tried are preferred.
    fn plan_attempt(
        &mut self,
        slot: usize,
        reason: AttemptReason,
        fresh: bool,
        elsewhere: bool,
    ) -> Option<AttemptPlan> {
        let began = Instant::now();
        let from = Candidates {
            tiers: &self.x.action.tiers,
            tried: &self.tried,
            avoid: if elsewhere { &self.clusters } else { &[] },
            now: began,
            client: self.x.network(),
        };
        let picked = pick(from, &mut *self.x.worker.random.borrow_mut())?;
        let (endpoint, cluster, tally) =
            (picked.endpoint.clone(), picked.cluster.clone(), picked.tally.clone());
        let span_id = self.x.trace.map_or(0, |_| self.x.worker.random.borrow_mut().random::<u64>().max(1));
        let traceparent = self.x.trace.map(|trace| TraceParentText::new(trace.trace_id, span_id));
        let flight = InFlight::new(endpoint.clone(), cluster.clone(), self.client.clone());
        let number = self.x.log.borrow_mut().push(Attempt {
            reason,
            cluster,
            endpoint,
            tally,
            tier: picked.tier,
            began,
            span_id,
            outcome: AttemptOutcome::Pending,
        });
        self.running[slot] = Some(number);
        Some(AttemptPlan { flight, number, fresh, traceparent })
    }

    /// When an attempt must have a response. Like the whole time, its own is counted from when the client last sent something.
    fn deadline(&self, number: usize, upload: &Upload<'_>) -> Option<Instant> {
        let began = self.x.log.borrow().attempt(number).began;
        Some(began.max(upload.progress_at) + self.x.policy.per_try_timeout?)
    }

    /// When something is due if no attempt ends before.
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

    /// The whole time is counted from when the client last sent something: a long upload is not a slow answer.
    fn total_deadline(&self, upload: &Upload<'_>) -> Instant {
        upload.progress_at + self.x.policy.timeout
    }

    fn overdue(&self, upload: &Upload<'_>) -> impl Iterator<Item = usize> + use<> {
        let now = Instant::now();
        let late = |slot: &Option<usize>| {
            !upload.awaits_client()
                && slot.and_then(|running| self.deadline(running, upload)).is_some_and(|at| at <= now)
        };
        let late = [late(&self.running[0]), late(&self.running[1])];
        (0..2).filter(move |slot| late[*slot])
    }

    /// Deals with deadlines that have passed; may begin a hedge.
    fn passed(&mut self, upload: &RefCell<Upload<'_>>) -> Result<Option<(usize, AttemptPlan)>, NoResponse> {
        let now = Instant::now();
        let mut upload = upload.borrow_mut();
        if now >= self.total_deadline(&upload) {
            if upload.awaits_client() {
                return Err(NoResponse::SlowClient);
            }
            let log = self.x.log.borrow();
            for running in self.running.iter_mut().filter_map(Option::take) {
                self.x.record_failure(log.attempt(running), &Failure::NoAnswer);
            }
            return Err(NoResponse::Deadline);
        }
        if now >= self.x.started + CONTINUE_AFTER {
            upload.let_continue();
        }
        if self.hedge_after.is_none_or(|delay| now < upload.progress_at + delay) || !upload.is_complete() {
            return Ok(None);
        }
        self.hedge_after = None;
        let Some(slot) = self.running.iter().position(Option::is_none) else { return Ok(None) };
        let Some(waiting) = self.running.iter().flatten().next() else { return Ok(None) };
        self.avoid(*waiting);
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

    /// Further attempts go elsewhere than this one.
    fn avoid(&mut self, number: usize) {
        let log = self.x.log.borrow();
        let attempt = log.attempt(number);
        self.tried.push(attempt.endpoint.clone());
        self.clusters.push(attempt.cluster.clone());
    }

    /// An attempt has a response.
    fn responded(
        &mut self,
        slot: usize,
        mut response: Box<UpstreamResponse>,
        upload: &RefCell<Upload<'_>>,
    ) -> Step {
        self.running[slot] = None;
        let (number, status, now) = (response.attempt, response.head.status, Instant::now());
        self.x.log.borrow_mut().end(number, AttemptOutcome::Response(now, status));
        let log = self.x.log.borrow();
        let attempt = log.attempt(number);
        let took = now - attempt.began;
        attempt.cluster.counters.first_byte.record(took.into());
        if !matches!(status, 502..=504) {
            self.x.service.latency.record(took);
            attempt.endpoint.record_response();
            attempt.tally.succeeded(self.x.network(), now);
            for failed in self.failed.drain(..) {
                self.x.record_contrast(log.attempt(failed), now);
            }
            if attempt.reason == AttemptReason::Hedge {
                self.x.service.counters.hedges_won.add(1);
            }
            // Whoever was asked before and has not responded yet was overtaken: evidence, though weak.
            let running = self.running.iter().flatten().map(|number| log.attempt(*number));
            for slower in running.filter(|other| other.began < attempt.began) {
                self.x.record_failure(slower, &Failure::NoAnswer);
                self.x.record_contrast(slower, now);
            }
            return Step::Done(Ok(response));
        }
        self.x.record_failure(attempt, &Failure::Status(status));
        drop(log);
        self.failed.push(number);
        self.avoid(number);
        self.x.fallback_held.set(response.held());
        self.fallback = Some(response);
        self.retry(slot, self.x.repeatable, upload)
    }

    /// An attempt failed.
    fn failed(
        &mut self,
        slot: usize,
        failure: Failure,
        sent: Sent,
        fault: Fault,
        upload: &RefCell<Upload<'_>>,
    ) -> Step {
        let Some(number) = self.running[slot].take() else { return Step::Wait };
        self.x.log.borrow_mut().end(number, AttemptOutcome::Failed(Instant::now(), failure.clone()));
        let may_repeat = self.x.repeatable || sent == Sent::Nothing;
        let log = self.x.log.borrow();
        let attempt = log.attempt(number);
        match fault {
            Fault::Endpoint => {
                self.x.record_failure(attempt, &failure);
                if !is_of_endpoint(&failure) {
                    self.failed.push(number);
                }
            }
            Fault::StaleConnection => self.x.worker.suspect(&attempt.endpoint, &failure),
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
            self.last = NoResponse::Failed(failure);
            // It takes the place of the attempt that found nobody: a hedge goes on as one.
            let reason =
                if reason == AttemptReason::Hedge { AttemptReason::Hedge } else { AttemptReason::Retry };
            return self
                .plan_attempt(slot, reason, true, false)
                .map_or_else(|| self.give_up(), Step::Attempt);
        }
        self.avoid(number);
        self.last = match fault {
            Fault::LocalResources => NoResponse::NoConnection,
            Fault::Endpoint | Fault::StaleConnection | Fault::GoAway => NoResponse::Failed(failure),
        };
        self.retry(slot, may_repeat, upload)
    }

    /// Attempts it again elsewhere, if that may be.
    fn retry(&mut self, slot: usize, may_repeat: bool, upload: &RefCell<Upload<'_>>) -> Step {
        if may_repeat && self.left > 0 && upload.borrow().can_replay() && self.can_pick() {
            if self.x.action.budget.withdraw() {
                self.left -= 1;
                // A second failure in a cluster says that it is not the endpoint: the next attempt leaves the cluster.
                let elsewhere = self.clusters.len() > 1;
                if let Some(next) = self.plan_attempt(slot, AttemptReason::Retry, false, elsewhere) {
                    self.x.service.counters.retries.add(1);
                    return Step::Attempt(next);
                }
            } else {
                self.x.service.counters.budget_exhausted.add(1);
            }
        }
        self.give_up()
    }

    /// Nothing more is tried in this slot: the other may still answer.
    fn give_up(&mut self) -> Step {
        if self.running.iter().any(Option::is_some) {
            return Step::Wait;
        }
        let last = std::mem::replace(&mut self.last, NoResponse::NoEndpoint);
        Step::Done(self.fallback.take().ok_or(last))
    }
}
