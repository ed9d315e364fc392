//! How long a request may wait for its client: to send the body, or to read the response.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::Network;

/// The rate in bytes per second below which a client is slow in the long run. (The default of Apache's `mod_reqtimeout`.)
const MIN_RATE: u32 = 500;
/// The full budget, after which a client is slow; and how long it must have been waited for to count as stalled.
const BUDGET: Duration = Duration::from_secs(2);
const MIN_STALL: Duration = Duration::from_millis(100);

/// The direction of the bytes that a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The request's body, from the client.
    Upload,
    /// The response, to the client.
    Download,
}

/// The stall budget of one request's client, a token bucket of time: it drains while the request waits for the client
/// and is refilled by the bytes that the client moves. It has no effect by itself: a slow client is evicted when others
/// need its resources.
#[derive(Debug)]
pub struct StallBudget {
    network: Network,
    /// The credit in microseconds, as of `since` while the request waits. If negative, how long the client has been
    /// slow.
    credit: Cell<i64>,
    since: Cell<Option<Instant>>,
    waits: [Cell<bool>; 2],
    is_evicted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl StallBudget {
    /// A full budget for a client in `network`.
    pub fn new(network: Network) -> StallBudget {
        StallBudget {
            network,
            credit: Cell::new(micros(BUDGET)),
            since: Cell::new(None),
            waits: Default::default(),
            is_evicted: Cell::new(false),
            waker: RefCell::default(),
        }
    }

    /// The client's network.
    pub fn network(&self) -> Network {
        self.network
    }

    /// Records that the client moved `bytes` in this direction, and that the request no longer waits for it.
    pub fn record_progress(&self, direction: Direction, bytes: u64, now: Instant) {
        let earned = i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(1_000_000) / i64::from(MIN_RATE);
        let left = self.credit_at(now);
        // A debt is forgiven as soon as the client makes progress.
        let left = if bytes > 0 { left.max(0) } else { left };
        self.credit.set(left.saturating_add(earned).min(micros(BUDGET)));
        self.waits[direction as usize].set(false);
        self.since.set(self.is_waiting().then_some(now));
    }

    /// Records that the request waits for the client. Its task is woken when the client is evicted.
    pub fn record_wait(&self, direction: Direction, now: Instant, cx: &Context<'_>) {
        if !self.waits[direction as usize].replace(true) && self.since.get().is_none() {
            self.since.set(Some(now));
        }
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Whether the request waits for the client.
    pub fn is_waiting(&self) -> bool {
        self.waits.iter().any(Cell::get)
    }

    /// Whether the request waits for a client that has used up its budget.
    pub fn is_slow(&self, now: Instant) -> bool {
        self.is_waiting() && self.credit_at(now) <= 0
    }

    /// Whether the request has waited for the client for a while, even if the budget is not used up.
    pub fn has_stalled(&self, now: Instant) -> bool {
        self.is_waiting() && self.credit_at(now) <= micros(BUDGET - MIN_STALL)
    }

    /// The remaining credit at `now` in microseconds; the slowest client has the least.
    pub fn credit_at(&self, now: Instant) -> i64 {
        let waited = self.since.get().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.credit.get().saturating_sub(micros(waited))
    }

    /// Evicts the client, because others need its resources.
    pub fn evict(&self) {
        self.is_evicted.set(true);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Whether the client was evicted.
    pub fn is_evicted(&self) -> bool {
        self.is_evicted.get()
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Direction::*, *};

    struct Clock(StallBudget, Instant);

    impl Clock {
        fn new() -> Clock {
            Clock(StallBudget::new(Network::LOCAL), Instant::now())
        }

        fn at(&self, ms: u64) -> Instant {
            self.1 + Duration::from_millis(ms)
        }

        fn record_wait(&self, direction: Direction, ms: u64) {
            self.0.record_wait(direction, self.at(ms), &Context::from_waker(Waker::noop()));
        }

        fn record_progress(&self, direction: Direction, bytes: u64, ms: u64) {
            self.0.record_progress(direction, bytes, self.at(ms));
        }

        fn is_slow(&self, ms: u64) -> bool {
            self.0.is_slow(self.at(ms))
        }
    }

    #[test]
    fn a_client_is_slow_once_it_was_waited_for_too_long() {
        let client = Clock::new();
        assert!(!client.is_slow(60_000), "nothing waits for it");
        client.record_wait(Upload, 0);
        assert!(!client.is_slow(1999));
        assert!(client.is_slow(2000));
        // A byte now and then does not help; a steady client at the minimum rate is never slow.
        client.record_progress(Upload, 1, 12_000);
        client.record_wait(Upload, 12_000);
        assert!(client.is_slow(12_002));
        for second in 13..60 {
            client.record_progress(Upload, 501, second * 1000);
            client.record_wait(Upload, second * 1000);
            assert!(!client.is_slow(second * 1000 + 1000));
        }
    }

    #[test]
    fn a_quick_beginning_does_not_pay_for_a_long_stall() {
        let client = Clock::new();
        client.record_wait(Upload, 0);
        client.record_progress(Upload, 100_000_000, 10);
        client.record_wait(Upload, 10);
        assert!(!client.is_slow(2009));
        assert!(client.is_slow(2010));
    }

    #[test]
    fn time_is_counted_only_while_one_direction_waits() {
        let client = Clock::new();
        client.record_wait(Upload, 0);
        client.record_wait(Download, 500);
        client.record_progress(Upload, 0, 1000);
        assert!(client.0.is_waiting(), "the other direction waits");
        client.record_progress(Download, 0, 1500);
        client.record_wait(Download, 60_000);
        assert!(!client.is_slow(60_499));
        assert!(client.is_slow(60_500));
    }
}
