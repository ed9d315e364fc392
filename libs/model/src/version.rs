//! Where a replicated table stands.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One reign over a table. A later owner has a larger epoch; a replica refuses what comes from a smaller one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The largest epoch that is believed. Route-computers count terms, so they would take 100,000 years of one a second;
    /// probers begin with the time in milliseconds, which is larger in the year 2109.
    pub const MAX: Epoch = Epoch(1 << 42);
    /// The most by which a counted epoch is believed to grow at once: no route-computer leads so often while somebody is
    /// away.
    pub const MAX_STEP: u64 = 1 << 20;

    /// Whether it is an epoch at all, whoever says so.
    pub fn is_plausible(self) -> bool {
        self <= Epoch::MAX
    }

    /// Whether a counted epoch can follow `known`, or come before it.
    pub fn is_plausible_after(self, known: Epoch) -> bool {
        self.is_plausible() && (known.0 == 0 || self.0 <= known.0.saturating_add(Epoch::MAX_STEP))
    }
}

/// A table's state within an epoch: grows with each change. 0 is the empty table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
