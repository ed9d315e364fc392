//! The tries of one request, as they were made.

use std::rc::Rc;

use tidegate_model::observation::Failure;
use tokio::time::Instant;

use crate::upstream::{Cluster, Endpoint};

/// Why a try was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was the first.
    First,
    /// Another one failed.
    Retry,
    /// Another one was silent.
    Hedge,
}

/// How a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With an answer.
    Status(u16),
    /// Without one.
    Failed(Failure),
    /// Another one was answered first, or the request ended.
    Abandoned,
}

/// One try.
pub struct TryNote {
    /// Its cluster.
    pub cluster: Rc<Cluster>,
    /// Its endpoint.
    pub endpoint: Rc<Endpoint>,
    /// The cluster's tier, from 0.
    pub tier: usize,
    /// Why it was made.
    pub why: Why,
    /// Its span; 0 when there is none.
    pub span_id: u64,
    /// When it began.
    pub began: Instant,
    /// When and how it ended.
    pub ended: Option<(Instant, Ending)>,
}

/// The tries of one request, and what became of it.
#[derive(Default)]
pub struct Trail {
    // Most requests have one try; it needs no memory of its own.
    first: Option<TryNote>,
    more: Vec<TryNote>,
    /// The status that the client was given.
    pub status: Option<u16>,
    /// Which try was relayed to the client.
    pub relayed: Option<usize>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// Why the answer did not reach the client whole, if so.
    pub broken: Option<&'static str>,
}

impl Trail {
    /// Notes a try; returns its place.
    pub fn begin(&mut self, note: TryNote) -> usize {
        if self.first.is_none() {
            self.first = Some(note);
            return 0;
        }
        self.more.push(note);
        self.more.len()
    }

    /// Notes how a try ended.
    pub fn end(&mut self, place: usize, at: Instant, ending: Ending) {
        let note = if place == 0 { self.first.as_mut() } else { self.more.get_mut(place - 1) };
        if let Some(note) = note {
            note.ended.get_or_insert((at, ending));
        }
    }

    /// All tries, in order.
    pub fn tries(&self) -> impl Iterator<Item = &TryNote> {
        self.first.iter().chain(&self.more)
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// The tier and cluster whose answer the client got.
    pub fn served_by(&self) -> Option<(usize, &Rc<Cluster>)> {
        let note = self.tries().nth(self.relayed?)?;
        Some((note.tier, &note.cluster))
    }

    /// Whether people want to hear of it: an error, a retry, a hedge, an answer that was broken off.
    pub fn is_notable(&self) -> bool {
        !self.more.is_empty() || self.broken.is_some() || self.status.is_none_or(|status| status >= 500)
    }
}
