//! Tries, retries and hedges: how one request gets one answer although endpoints fail.

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Duration};

use rand::RngExt as _;
use tidegate_model::{fleet::Hedge, observation::Failure};
use tokio::time::Instant;

use super::{
    attempt::{Answer, Try, TryError, attempt},
    exchange::Exchange,
    slots::Slots,
    upload::Upload,
};
use crate::{
    balance::{Candidates, pick},
    clients::ClientShare,
    observe::{Ending, TraceParentText, TryNote, Why},
    upstream::{Cluster, Endpoint, Fault, InFlight, Sent, Tally, is_of_endpoint},
    wire::{BodyError, Timer},
};

/// When a hedge is sent while the service's usual time is unknown, and the least time at all.
const HEDGE_UNKNOWN: Duration = Duration::from_millis(250);
const HEDGE_LEAST: Duration = Duration::from_millis(50);
/// How long a client that expects `100 Continue` is left waiting for the endpoint's word.
const CONTINUE_AFTER: Duration = Duration::from_secs(1);

/// Why a request has no answer of an endpoint.
pub enum Refusal {
    /// There is no endpoint that could take it.
    NoEndpoint,
    /// This machine has no connection to an endpoint left for it.
    NoConnection,
    /// The last try failed so.
    Failed(Failure),
    /// The client sent nothing more of its body within the service's timeout.
    SlowClient,
    /// No answer within the service's timeout.
    Deadline,
    /// The client's body could not be read.
    Client(BodyError),
    /// The request has a target or host that the endpoint's protocol cannot say.
    Unsayable,
}

/// A try under way.
struct Running {
    endpoint: Rc<Endpoint>,
    cluster: Rc<Cluster>,
    tally: Rc<Tally>,
    began: Instant,
    limit: Option<Duration>,
    why: Why,
    /// Its place in the request's trail.
    note: usize,
}

impl Running {
    /// When it must be answered. Like the whole time, its own is counted from when the client last sent something.
    fn deadline(&self, upload: &Upload<'_>) -> Option<Instant> {
        Some(self.began.max(upload.progress_at) + self.limit?)
    }
}

/// What happened next.
enum Event {
    /// The try in this slot ended.
    Ended(usize, Result<Box<Answer>, TryError>),
    /// The next deadline has passed.
    Time,
    /// The client has given the request up.
    Gone,
    /// The client is slow, and its place is needed.
    GivenUp,
}

/// What was tried and what may still be.
struct Tries<'a> {
    x: &'a Exchange<'a>,
    client: ClientShare,
    tried: Vec<Rc<Endpoint>>,
    clusters: Vec<Rc<Cluster>>,
    /// Where it failed so that it may have been to blame itself.
    failed_at: Vec<(Rc<Cluster>, Rc<Endpoint>, Rc<Tally>)>,
    left: u8,
    /// A reused connection may die or go away once without costing a try.
    idle_death_allowed: bool,
    /// How long after the request was sent it is hedged, if it still may be.
    hedge_after: Option<Duration>,
    running: [Option<Running>; 2],
    /// An answer that only counts when no better one comes.
    fallback: Option<Box<Answer>>,
    last: Refusal,
}

/// Sends the request until an endpoint answers: retries at once elsewhere when a try fails and the request may be sent
/// again, and hedges when no answer comes. Within the service's attempts, budget and timeout.
pub async fn first_answer(
    x: &Exchange<'_>,
    upload: &RefCell<Upload<'_>>,
    timer: &mut Timer,
) -> Result<Box<Answer>, Refusal> {
    let mut tries = Tries::new(x, upload.borrow().down.account().share());
    let first = tries.next_try(0, Why::First, false, false).ok_or(Refusal::NoEndpoint)?;
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
            timer.poll_until(tries.next_deadline(&upload), cx).map(|()| Event::Time)
        })
        .await;
        match event {
            Event::Ended(slot, ended) => {
                slots.clear(slot);
                let step = match ended {
                    Ok(answer) => tries.answered(slot, answer, upload),
                    Err(TryError::Client(error)) => return Err(Refusal::Client(error)),
                    Err(TryError::Unsayable) => return Err(Refusal::Unsayable),
                    Err(TryError::Endpoint { failure, sent, fault }) => {
                        tries.failed(slot, failure, sent, fault, upload)
                    }
                };
                match step {
                    Step::Wait => {}
                    Step::Try(next) => slots.set(slot, attempt(x, next, upload)),
                    Step::Done(result) => return result,
                }
            }
            Event::GivenUp => {
                x.worker.counters.too_slow.add(1);
                return Err(Refusal::SlowClient);
            }
            Event::Gone => return Err(Refusal::Client(BodyError::Http2(h2::Reason::CANCEL.into()))),
            Event::Time => {
                let overdue = tries.overdue(&upload.borrow());
                for slot in overdue {
                    slots.clear(slot);
                    match tries.failed(slot, Failure::NoAnswer, Sent::Maybe, Fault::Endpoint, upload) {
                        Step::Wait => {}
                        Step::Try(next) => slots.set(slot, attempt(x, next, upload)),
                        Step::Done(result) => return result,
                    }
                }
                match tries.passed(upload) {
                    Ok(Some((slot, next))) => slots.set(slot, attempt(x, next, upload)),
                    Ok(None) => {}
                    // An endpoint's word, even a bad one, says more than that there was none in time.
                    Err(refusal) => return tries.fallback.take().ok_or(refusal),
                }
            }
        }
    }
}

enum Step {
    Wait,
    Try(Try),
    Done(Result<Box<Answer>, Refusal>),
}

impl<'a> Tries<'a> {
    fn new(x: &'a Exchange<'a>, client: ClientShare) -> Tries<'a> {
        let hedge_after = match x.policy.hedge {
            Hedge::Off => None,
            Hedge::After(delay) => Some(delay),
            Hedge::Auto => {
                Some(x.service.latency.p95().map_or(HEDGE_UNKNOWN, |p95| (p95 * 2).max(HEDGE_LEAST)))
            }
        };
        Tries {
            x,
            client,
            tried: Vec::new(),
            clusters: Vec::new(),
            failed_at: Vec::new(),
            left: x.policy.attempts,
            idle_death_allowed: true,
            // Of two that are under way at once, the later may be done first: an old PUT would undo a newer one.
            hedge_after: hedge_after.filter(|_| x.request.method.is_safe() && x.origin.upgrade.is_none()),
            running: [None, None],
            fallback: None,
            last: Refusal::NoEndpoint,
        }
    }

    /// Picks where the next try goes. With `elsewhere`, clusters that were not tried are preferred.
    fn next_try(&mut self, slot: usize, why: Why, fresh: bool, elsewhere: bool) -> Option<Try> {
        let began = Instant::now();
        let from = Candidates {
            tiers: &self.x.action.tiers,
            tried: &self.tried,
            avoid: if elsewhere { &self.clusters } else { &[] },
            now: began,
            client: self.x.network(),
        };
        let picked = pick(from, &mut *self.x.worker.random.borrow_mut())?;
        let (endpoint, cluster, tier) = (picked.endpoint.clone(), picked.cluster.clone(), picked.tier);
        let tally = picked.tally.clone();
        let span_id = self.x.trace.map_or(0, |_| self.x.worker.random.borrow_mut().random::<u64>().max(1));
        let traceparent = self.x.trace.map(|trace| TraceParentText::new(trace.trace_id, span_id));
        let note = self.x.trail.borrow_mut().begin(TryNote {
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            tier,
            why,
            span_id,
            began,
            ended: None,
        });
        self.running[slot] = Some(Running {
            endpoint: endpoint.clone(),
            cluster: cluster.clone(),
            tally: tally.clone(),
            began,
            limit: self.x.policy.per_try_timeout,
            why,
            note,
        });
        Some(Try {
            flight: InFlight::new(endpoint, cluster, tally, self.client.clone()),
            tier,
            began,
            fresh,
            note,
            traceparent,
        })
    }

    /// When something is due if no try ends before.
    fn next_deadline(&self, upload: &Upload<'_>) -> Instant {
        let mut next = self.total_deadline(upload);
        if !upload.awaits_client() {
            for running in self.running.iter().flatten() {
                next = running.deadline(upload).map_or(next, |deadline| deadline.min(next));
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
        let late = |slot: &Option<Running>| {
            !upload.awaits_client()
                && slot.as_ref().and_then(|running| running.deadline(upload)).is_some_and(|at| at <= now)
        };
        let late = [late(&self.running[0]), late(&self.running[1])];
        (0..2).filter(move |slot| late[*slot])
    }

    /// Deals with deadlines that have passed; may begin a hedge.
    fn passed(&mut self, upload: &RefCell<Upload<'_>>) -> Result<Option<(usize, Try)>, Refusal> {
        let now = Instant::now();
        let mut upload = upload.borrow_mut();
        if now >= self.total_deadline(&upload) {
            if upload.awaits_client() {
                return Err(Refusal::SlowClient);
            }
            for running in self.running.iter_mut().filter_map(Option::take) {
                self.x.endpoint_failed(
                    &running.cluster,
                    &running.endpoint,
                    &running.tally,
                    &Failure::NoAnswer,
                );
            }
            return Err(Refusal::Deadline);
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
        self.tried.push(waiting.endpoint.clone());
        self.clusters.push(waiting.cluster.clone());
        if !upload.can_replay() || !self.can_pick() || !self.x.action.budget.withdraw() {
            return Ok(None);
        }
        Ok(self.next_try(slot, Why::Hedge, false, true).map(|next| {
            self.x.service.counters.hedges.add(1);
            (slot, next)
        }))
    }

    fn can_pick(&self) -> bool {
        let tiers = &self.x.action.tiers;
        tiers
            .iter()
            .flat_map(|tier| &tier.choices)
            .filter(|choice| choice.cluster.has_room(self.client.network()))
            .flat_map(|choice| &choice.endpoints)
            .any(|candidate| !self.tried.iter().any(|tried| Rc::ptr_eq(tried, &candidate.endpoint)))
    }

    /// A try was answered.
    fn answered(&mut self, slot: usize, mut answer: Box<Answer>, upload: &RefCell<Upload<'_>>) -> Step {
        let running = self.running[slot].take();
        let status = answer.head.status;
        let now = Instant::now();
        self.x.trail.borrow_mut().end(answer.note, now, Ending::Status(status));
        let took = now - answer.began;
        answer.flight.cluster.counters.first_byte.record(took.into());
        if !matches!(status, 502..=504) {
            self.x.service.latency.record(took);
            answer.flight.endpoint.record_response();
            answer.flight.tally.succeeded(self.x.network(), now);
            for (cluster, endpoint, tally) in self.failed_at.drain(..) {
                self.x.contrasted(&cluster, &endpoint, &tally, now);
            }
            if running.is_some_and(|r| r.why == Why::Hedge) {
                self.x.service.counters.hedges_won.add(1);
            }
            // Whoever was asked before and has not answered yet was overtaken: evidence, though weak.
            for slower in self.running.iter().flatten().filter(|r| r.began < answer.began) {
                self.x.endpoint_failed(&slower.cluster, &slower.endpoint, &slower.tally, &Failure::NoAnswer);
                self.x.contrasted(&slower.cluster, &slower.endpoint, &slower.tally, now);
            }
            return Step::Done(Ok(answer));
        }
        let failure = Failure::Status(status);
        let (endpoint, cluster) = (answer.flight.endpoint.clone(), answer.flight.cluster.clone());
        let tally = answer.flight.tally.clone();
        self.x.endpoint_failed(&cluster, &endpoint, &tally, &failure);
        self.failed_at.push((cluster.clone(), endpoint.clone(), tally));
        self.tried.push(endpoint);
        self.clusters.push(cluster);
        self.x.fallback_held.set(answer.held());
        self.fallback = Some(answer);
        self.retry(slot, self.x.repeatable, upload)
    }

    /// A try failed.
    fn failed(
        &mut self,
        slot: usize,
        failure: Failure,
        sent: Sent,
        fault: Fault,
        upload: &RefCell<Upload<'_>>,
    ) -> Step {
        let Some(running) = self.running[slot].take() else { return Step::Wait };
        self.x.trail.borrow_mut().end(running.note, Instant::now(), Ending::Failed(failure.clone()));
        let may_repeat = self.x.repeatable || sent == Sent::Nothing;
        match fault {
            Fault::Endpoint => {
                self.x.endpoint_failed(&running.cluster, &running.endpoint, &running.tally, &failure);
                if !is_of_endpoint(&failure) {
                    self.failed_at.push((
                        running.cluster.clone(),
                        running.endpoint.clone(),
                        running.tally.clone(),
                    ));
                }
            }
            Fault::DiedIdle => self.x.worker.suspect(&running.endpoint, &failure),
            Fault::WentAway | Fault::Ours => {}
        }
        if matches!(fault, Fault::DiedIdle | Fault::WentAway)
            && may_repeat
            && self.idle_death_allowed
            && upload.borrow().can_replay()
        {
            self.idle_death_allowed = false;
            self.last = Refusal::Failed(failure);
            // It takes the place of the try that found nobody: a hedge goes on as one.
            let why = if running.why == Why::Hedge { Why::Hedge } else { Why::Retry };
            return self.next_try(slot, why, true, false).map_or_else(|| self.give_up(), Step::Try);
        }
        self.tried.push(running.endpoint);
        self.clusters.push(running.cluster);
        self.last = if fault == Fault::Ours { Refusal::NoConnection } else { Refusal::Failed(failure) };
        self.retry(slot, may_repeat, upload)
    }

    /// Tries again elsewhere, if that may be.
    fn retry(&mut self, slot: usize, may_repeat: bool, upload: &RefCell<Upload<'_>>) -> Step {
        if may_repeat && self.left > 0 && upload.borrow().can_replay() && self.can_pick() {
            if self.x.action.budget.withdraw() {
                self.left -= 1;
                // A second failure in a cluster says that it is not the endpoint: the next try leaves the cluster.
                let elsewhere = self.clusters.len() > 1;
                if let Some(next) = self.next_try(slot, Why::Retry, false, elsewhere) {
                    self.x.service.counters.retries.add(1);
                    return Step::Try(next);
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
        let last = std::mem::replace(&mut self.last, Refusal::NoEndpoint);
        Step::Done(self.fallback.take().ok_or(last))
    }
}
