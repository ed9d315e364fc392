//! The retry budget: retries and hedges are a share of requests, so that they cannot multiply an overload.

use std::cell::Cell;

/// Retries that are allowed without any requests before, so that a quiet service can retry too.
const RESERVE: u32 = 100;
/// What one retry costs, in the unit in which a request pays `percent`.
const COST: u32 = 100;
/// The most retries that can be saved up.
const MOST: u32 = 10_000;

/// A token bucket that requests fill and retries empty (the shape of Finagle's `RetryBudget`, with a reserve that is
/// restored over time in place of a time window).
pub struct Budget {
    percent: Cell<u8>,
    tokens: Cell<u32>,
}

impl Budget {
    /// A budget of `percent` of requests.
    pub fn new(percent: u8) -> Budget {
        Budget { percent: Cell::new(percent), tokens: Cell::new(RESERVE * COST) }
    }

    /// Changes the share and keeps what was saved.
    pub fn set_percent(&self, percent: u8) {
        self.percent.set(percent);
    }

    /// A request came.
    pub fn deposit(&self) {
        let tokens = self.tokens.get() + u32::from(self.percent.get());
        self.tokens.set(tokens.min(MOST * COST));
    }

    /// Takes the right to one retry or hedge.
    pub fn withdraw(&self) -> bool {
        match self.tokens.get().checked_sub(COST) {
            Some(rest) if self.percent.get() > 0 => {
                self.tokens.set(rest);
                true
            }
            _ => false,
        }
    }

    /// Restores a tenth of the reserve; called once a second.
    pub fn tick(&self) {
        let tokens = self.tokens.get();
        if tokens < RESERVE * COST {
            self.tokens.set((tokens + RESERVE * COST / 10).min(RESERVE * COST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests_beyond_the_reserve() {
        let budget = Budget::new(20);
        (0..1000).for_each(|_| budget.deposit());
        let retries = std::iter::repeat_with(|| budget.withdraw()).take_while(|allowed| *allowed).count();
        assert_eq!(retries, 100 + 200);
        budget.tick();
        let restored = std::iter::repeat_with(|| budget.withdraw()).take_while(|allowed| *allowed).count();
        assert_eq!(restored, 10);
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        assert!(!Budget::new(0).withdraw());
    }
}
