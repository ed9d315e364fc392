//! Where a replicated table stands.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::Timestamp;

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
    /// The furthest that a timed epoch may lie in the future: the clocks of two machines differ by less.
    pub const MAX_AHEAD: Duration = Duration::from_secs(3600);

    /// Whether it is an epoch at all, whoever says so.
    pub fn is_plausible(self) -> bool {
        self <= Epoch::MAX
    }

    /// Whether a counted epoch can follow `known`, or come before it.
    pub fn is_plausible_after(self, known: Epoch) -> bool {
        self.is_plausible() && (known.0 == 0 || self.0 <= known.0.saturating_add(Epoch::MAX_STEP))
    }

    /// Whether an epoch that is the time in milliseconds at which an owner began can have begun by `now`.
    pub fn is_plausible_at(self, now: Timestamp) -> bool {
        self.is_plausible() && u128::from(self.0) <= u128::from(now.0 / 1000) + Epoch::MAX_AHEAD.as_millis()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_is_a_time_is_not_far_in_the_future() {
        let now = Timestamp(1_800_000_000_000_000);
        let ahead = Epoch::MAX_AHEAD.as_millis() as u64;
        let at = |offset: u64| Epoch(now.0 / 1000 + offset);
        assert!(
            Epoch(0).is_plausible_at(now) && at(0).is_plausible_at(now) && at(ahead).is_plausible_at(now)
        );
        assert!(!at(ahead + 1).is_plausible_at(now));
        assert!(!Epoch(u64::MAX).is_plausible_at(Timestamp(u64::MAX)));
    }

    #[test]
    fn a_counted_epoch_is_near_the_last_one_once_there_is_one() {
        assert!(Epoch::MAX.is_plausible_after(Epoch(0)));
        assert!(
            Epoch(7 + Epoch::MAX_STEP).is_plausible_after(Epoch(7)) && Epoch(1).is_plausible_after(Epoch(7))
        );
        assert!(!Epoch(8 + Epoch::MAX_STEP).is_plausible_after(Epoch(7)));
        assert!(!Epoch(Epoch::MAX.0 + 1).is_plausible_after(Epoch::MAX));
    }
}
