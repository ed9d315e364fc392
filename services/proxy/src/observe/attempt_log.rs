//! The attempts of one request, as retries, metrics, spans and the access log use them.

use std::rc::Rc;

use tidegate_model::observation::Failure;
use tokio::time::Instant;

use crate::upstream::{ClusterState, EndpointState, OutlierDetector};

/// Why an attempt was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptReason {
    /// The first attempt.
    First,
    /// Another attempt failed.
    Retry,
    /// Another attempt had no response yet.
    Hedge,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// Still running. After the request has ended: abandoned, because another attempt responded first or the client
    /// disconnected.
    Pending,
    /// The endpoint responded with this status.
    Response(Instant, u16),
    /// The attempt failed.
    Failed(Instant, Failure),
}

/// One attempt of a request at an endpoint.
pub struct Attempt {
    /// The reason for it.
    pub reason: AttemptReason,
    /// The cluster.
    pub cluster: Rc<ClusterState>,
    /// The endpoint.
    pub endpoint: Rc<EndpointState>,
    /// The outlier detector of the action at the endpoint.
    pub detector: Rc<OutlierDetector>,
    /// The index of the cluster's tier in the route table, from 0.
    pub tier: usize,
    /// When it began.
    pub began: Instant,
    /// The id of its span; 0 if there is none.
    pub span_id: u64,
    /// Its outcome.
    pub outcome: AttemptOutcome,
}

/// Why a response did not reach its client completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The client closed its connection or reset the stream.
    ClientGone,
    /// The client was slow and was evicted.
    ClientTooSlow,
    /// The endpoint failed within its response.
    BrokenOff,
    /// The idle timeout of the stream passed.
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
            Interruption::Idle => "idle_timeout",
            Interruption::RequestRefused => "request_refused",
        }
    }
}

/// The attempts of one request, and its outcome.
#[derive(Default)]
pub struct AttemptLog {
    // Most requests have one attempt, which needs no allocation.
    first: Option<Attempt>,
    more: Vec<Attempt>,
    /// The status of the response to the client.
    pub status: Option<u16>,
    /// The attempt whose response was relayed to the client.
    pub relayed: Option<usize>,
    /// Bytes received of the request's body.
    pub received: u64,
    /// Bytes sent of the response's body.
    pub sent: u64,
    /// Why the response did not reach the client completely, if so.
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
    /// If there is none.
    pub fn attempt(&self, number: usize) -> &Attempt {
        let attempt = if number == 0 { self.first.as_ref() } else { self.more.get(number - 1) };
        attempt.expect("numbers come from push")
    }

    /// Records the outcome of an attempt.
    pub fn record_outcome(&mut self, number: usize, outcome: AttemptOutcome) {
        let attempt = if number == 0 { self.first.as_mut() } else { self.more.get_mut(number - 1) };
        if let Some(attempt) = attempt {
            attempt.outcome = outcome;
        }
    }

    /// All attempts, in order.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.first.iter().chain(&self.more)
    }

    /// The number of attempts.
    pub fn count(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// The attempt whose response was relayed to the client.
    pub fn served_by(&self) -> Option<&Attempt> {
        self.attempts().nth(self.relayed?)
    }

    /// Whether the request is always traced and logged: an error, a retry, a hedge or an interrupted response.
    pub fn is_notable(&self) -> bool {
        !self.more.is_empty() || self.interruption.is_some() || self.status.is_none_or(|status| status >= 500)
    }
}
