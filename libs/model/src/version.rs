//! The versions of a replicated table.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// The term of one owner of a table. A later owner has a larger epoch; replicas refuse smaller ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The largest epoch that is believed. Route-computers count terms: at one a second they reach it in 100,000 years;
    /// probers start with the time in milliseconds, which reaches it in the year 2109.
    pub const MAX: Epoch = Epoch(1 << 42);
    /// The largest step of a counted epoch that is believed: leaders don't change that often while a replica is away.
    pub const MAX_STEP: u64 = 1 << 20;
    /// The furthest that a timed epoch may be in the future: the clocks of two machines differ by less.
    pub const MAX_AHEAD: Duration = Duration::from_secs(3600);

    /// Whether it is plausible at all.
    pub fn is_plausible(self) -> bool {
        self <= Epoch::MAX
    }

    /// Whether a counted epoch can follow `known`, or come before it.
    pub fn is_plausible_after(self, known: Epoch) -> bool {
        self.is_plausible() && (known.0 == 0 || self.0 <= known.0.saturating_add(Epoch::MAX_STEP))
    }

    /// Whether an epoch that is its owner's start time in milliseconds is plausible at `now`.
    pub fn is_plausible_at(self, now: Timestamp) -> bool {
        self.is_plausible() && u128::from(self.0) <= u128::from(now.0 / 1000) + Epoch::MAX_AHEAD.as_millis()
    }
}

/// The version of a table within an epoch: grows with each change. 0 is the empty table.
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
