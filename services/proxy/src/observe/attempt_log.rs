//! The attempts of one request: what retries, metrics, spans and the access log know of them.

use std::rc::Rc;

use tidegate_model::observation::Failure;
use tokio::time::Instant;

use crate::upstream::{ClusterState, EndpointState, Tally};

/// Why an attempt was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptReason {
    /// It was the first.
    First,
    /// Another one failed.
    Retry,
    /// Another one had no response yet.
    Hedge,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// Nothing yet. In a request that has ended: another attempt had a response first, or the client gave up.
    Pending,
    /// The endpoint responded with this status.
    Response(Instant, u16),
    /// It failed.
    Failed(Instant, Failure),
}

/// One attempt of a request at an endpoint.
pub struct Attempt {
    /// Why it was made.
    pub reason: AttemptReason,
    /// Its cluster.
    pub cluster: Rc<ClusterState>,
    /// Its endpoint.
    pub endpoint: Rc<EndpointState>,
    /// How the action fares at the endpoint.
    pub tally: Rc<Tally>,
    /// The cluster's tier, from 0.
    pub tier: usize,
    /// When it began.
    pub began: Instant,
    /// Its span; 0 when there is none.
    pub span_id: u64,
    /// What became of it.
    pub outcome: AttemptOutcome,
}

/// Why a response did not reach its client whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The client closed its connection or reset the stream.
    ClientGone,
    /// The client was slow, and its place was needed.
    ClientTooSlow,
    /// The endpoint broke its response off.
    BrokenOff,
    /// Nothing passed in either direction for too long.
    Idle,
    /// The rest of the request's body was malformed or too large.
    RequestRefused,
}

impl Interruption {
    /// Its name in metrics, spans and the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Interruption::ClientGone => "client_gone",
            Interruption::ClientTooSlow => "client_too_slow",
            Interruption::BrokenOff => "broken_off",
            Interruption::Idle => "silent",
            Interruption::RequestRefused => "request_refused",
        }
    }
}

/// The attempts of one request, and what became of it.
#[derive(Default)]
pub struct AttemptLog {
    // Most requests have one attempt; it needs no memory of its own.
    first: Option<Attempt>,
    more: Vec<Attempt>,
    /// The status that the client was given.
    pub status: Option<u16>,
    /// The attempt whose response was relayed to the client.
    pub relayed: Option<usize>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the response's body.
    pub sent: u64,
    /// Why the response did not reach the client whole, if so.
    pub interruption: Option<Interruption>,
}

impl AttemptLog {
    /// Adds an attempt; returns its number, from 0.
    pub fn push(&mut self, attempt: Attempt) -> usize {
        if self.first.is_none() {
            self.first = Some(attempt);
            return 0;
        }
        self.more.push(attempt);
        self.more.len()
    }

    /// The attempt with this number.
    ///
    /// # Panics
    /// When there is none.
    pub fn attempt(&self, number: usize) -> &Attempt {
        let attempt = if number == 0 { self.first.as_ref() } else { self.more.get(number - 1) };
        attempt.expect("numbers come from push")
    }

    /// Records what became of an attempt.
    pub fn end(&mut self, number: usize, outcome: AttemptOutcome) {
        let attempt = if number == 0 { self.first.as_mut() } else { self.more.get_mut(number - 1) };
        if let Some(attempt) = attempt {
            attempt.outcome = outcome;
        }
    }

    /// All attempts, in order.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.first.iter().chain(&self.more)
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// The attempt whose response the client got.
    pub fn served_by(&self) -> Option<&Attempt> {
        self.attempts().nth(self.relayed?)
    }

    /// Whether people want to hear of the request: an error, a retry, a hedge, a response that was broken off.
    pub fn is_notable(&self) -> bool {
        !self.more.is_empty() || self.interruption.is_some() || self.status.is_none_or(|status| status >= 500)
    }
}
