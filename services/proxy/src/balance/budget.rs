//! The retry budget: retries and hedges are a share of requests, so that they cannot multiply an overload.

use std::cell::Cell;

/// The retries that are allowed without earlier requests, so that a quiet service can retry, too.
const RESERVE: u32 = 100;
/// The cost of a retry, in the unit in which a request deposits `percent`.
const COST: u32 = 100;
/// Tokens above the reserve lose one part in this many each second, so steady requests accumulate about this many
/// seconds of their retries (as long as Finagle's window).
const SECONDS_SAVED: u32 = 10;

/// A token bucket that requests fill and retries drain (like Finagle's `RetryBudget`, with a reserve that is restored
/// over time instead of a time window).
pub struct RetryBudget {
    percent: Cell<u8>,
    tokens: Cell<u32>,
}

impl RetryBudget {
    /// A budget of `percent` of requests.
    pub fn new(percent: u8) -> RetryBudget {
        RetryBudget { percent: Cell::new(percent), tokens: Cell::new(RESERVE * COST) }
    }

    /// Changes the percentage and keeps the tokens.
    pub fn set_percent(&self, percent: u8) {
        self.percent.set(percent);
    }

    /// Deposits the tokens of one request.
    pub fn deposit(&self) {
        self.tokens.set(self.tokens.get().saturating_add(u32::from(self.percent.get())));
    }

    /// Withdraws the tokens for one retry or hedge. Returns whether there were enough.
    pub fn withdraw(&self) -> bool {
        match self.tokens.get().checked_sub(COST) {
            Some(rest) if self.percent.get() > 0 => {
                self.tokens.set(rest);
                true
            }
            _ => false,
        }
    }

    /// Restores a tenth of the reserve, or drops a tenth of the tokens above it. Called once a second.
    pub fn tick(&self) {
        const FULL: u32 = RESERVE * COST;
        let tokens = self.tokens.get();
        self.tokens.set(match tokens.checked_sub(FULL) {
            Some(saved) => FULL + saved - saved.div_ceil(SECONDS_SAVED),
            None => (tokens + FULL / 10).min(FULL),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests_beyond_the_reserve() {
        let budget = RetryBudget::new(20);
        (0..1000).for_each(|_| budget.deposit());
        let retries = std::iter::repeat_with(|| budget.withdraw()).take_while(|allowed| *allowed).count();
        assert_eq!(retries, 100 + 200);
        budget.tick();
        let restored = std::iter::repeat_with(|| budget.withdraw()).take_while(|allowed| *allowed).count();
        assert_eq!(restored, 10);
    }

    #[test]
    fn a_quiet_day_saves_no_more_than_seconds_of_requests() {
        let budget = RetryBudget::new(20);
        for _ in 0..86_400 {
            (0..1000).for_each(|_| budget.deposit());
            budget.tick();
        }
        let retries = std::iter::repeat_with(|| budget.withdraw()).take_while(|allowed| *allowed).count();
        // The reserve, and a fifth of the 1,000 requests of each of ten seconds.
        assert!((100 + 1500..=100 + 2000).contains(&retries), "{retries}");
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        assert!(!RetryBudget::new(0).withdraw());
    }
}
