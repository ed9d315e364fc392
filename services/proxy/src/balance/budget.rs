//! The retry budget: retries and hedges are a share of requests, so that they cannot multiply an overload.

use std::cell::Cell;

/// Retries that are allowed without any requests before, so that a quiet service can retry too.
const RESERVE: u32 = 100;
/// What one retry costs, in the unit in which a request pays `percent`.
const COST: u32 = 100;
/// Savings above the reserve lose one part in this many each second: what is left of steady requests is worth so many
/// seconds of them less one (Finagle's window is as long).
const SECONDS_SAVED: u32 = 10;

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
        self.tokens.set(self.tokens.get().saturating_add(u32::from(self.percent.get())));
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

    /// Restores a tenth of the reserve, or lets a tenth of what was saved beyond it go; called once a second.
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
        let budget = Budget::new(20);
        (0..1000).for_each(|_| budget.deposit());
        let retries = std::iter::repeat_with(|| budget.withdraw()).take_while(|allowed| *allowed).count();
        assert_eq!(retries, 100 + 200);
        budget.tick();
        let restored = std::iter::repeat_with(|| budget.withdraw()).take_while(|allowed| *allowed).count();
        assert_eq!(restored, 10);
    }

    #[test]
    fn a_quiet_day_saves_no_more_than_seconds_of_requests() {
        let budget = Budget::new(20);
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
        assert!(!Budget::new(0).withdraw());
    }
}
