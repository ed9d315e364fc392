//! How fast a client moves what a request waits for: its body, or the response that it takes.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    sync::LazyLock,
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

/// The rate in bytes per second below which a client is slow in the long run. (The default of Apache's `mod_reqtimeout`.)
const LEAST_RATE: u32 = 500;
/// For how long at most it may be waited for before it is slow, and before it may have to go where nothing else helps.
const PATIENCE: Duration = Duration::from_secs(2);
const LEAST_PATIENCE: Duration = Duration::from_millis(100);

/// Which way the bytes go that are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The request's body, from the client.
    Upload,
    /// The response, to the client.
    Download,
}

/// The pace of one request's client, a token bucket of time: it drains while the request waits for the client, and is
/// filled by what the client moves. It ends nothing by itself: a slow client is given up when others need its place.
#[derive(Debug)]
pub struct Pace {
    network: Network,
    /// Credit in microseconds, as of `since` while the request waits. Negative: for how long the client has been slow.
    credit: Cell<i64>,
    since: Cell<Option<Instant>>,
    waits: [Cell<bool>; 2],
    is_given_up: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The network of a client: what one party usually controls of the address space (a /24 of IPv4, a /56 of IPv6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(u64);

impl Network {
    /// The loopback network of IPv4.
    #[cfg(test)]
    pub const LOCAL: Network = Network(0x7f_0000);

    /// The network of an address.
    pub fn of(address: IpAddr) -> Network {
        match address.to_canonical() {
            IpAddr::V4(address) => Network(u64::from(address.to_bits() >> 8)),
            // Told apart from IPv4 by the upper bits: no global address of IPv6 begins with so many zeros.
            IpAddr::V6(address) => Network((address.to_bits() >> 72) as u64),
        }
    }

    /// One of `count` places, so that networks can be told apart without a list of them. Which of them meet in one place,
    /// nobody can know (Dietzfelbinger et al., "A Reliable Randomized Algorithm for the Closest-Pair Problem", 1997).
    pub fn place(self, count: usize) -> usize {
        static RANDOM: LazyLock<(u64, u64)> = LazyLock::new(rand::random);
        let (factor, offset) = *RANDOM;
        (self.0.wrapping_mul(factor | 1).wrapping_add(offset) >> 32) as usize % count
    }
}

impl Pace {
    /// A client in `network` that was not waited for yet.
    pub fn new(network: Network) -> Pace {
        Pace {
            network,
            credit: Cell::new(micros(PATIENCE)),
            since: Cell::new(None),
            waits: Default::default(),
            is_given_up: Cell::new(false),
            waker: RefCell::default(),
        }
    }

    /// The client's network.
    pub fn network(&self) -> Network {
        self.network
    }

    /// The client moved `bytes` in this direction, which the request waits for no more.
    pub fn moved(&self, direction: Direction, bytes: u64, now: Instant) {
        let earned =
            i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(1_000_000) / i64::from(LEAST_RATE);
        let left = self.credit_at(now);
        // What it once let the others wait for is forgotten as soon as it goes on.
        let left = if bytes > 0 { left.max(0) } else { left };
        self.credit.set(left.saturating_add(earned).min(micros(PATIENCE)));
        self.waits[direction as usize].set(false);
        self.since.set(self.is_waiting().then_some(now));
    }

    /// The request waits for the client. Its task is woken when the client is given up.
    pub fn wait(&self, direction: Direction, now: Instant, cx: &Context<'_>) {
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

    /// Whether the request waits for a client that is slow.
    pub fn is_slow(&self, now: Instant) -> bool {
        self.is_waiting() && self.credit_at(now) <= 0
    }

    /// Whether the request has waited for the client for a while, though perhaps not long enough to call it slow.
    pub fn has_stalled(&self, now: Instant) -> bool {
        self.is_waiting() && self.credit_at(now) <= micros(PATIENCE - LEAST_PATIENCE)
    }

    /// What orders clients, the slowest first: for how many microseconds more this one may be waited for.
    pub fn credit_at(&self, now: Instant) -> i64 {
        let waited = self.since.get().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.credit.get().saturating_sub(micros(waited))
    }

    /// Gives the client up: its place is needed.
    pub fn give_up(&self) {
        self.is_given_up.set(true);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Whether the client was given up.
    pub fn is_given_up(&self) -> bool {
        self.is_given_up.get()
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Direction::*, *};

    struct Clock(Pace, Instant);

    impl Clock {
        fn new() -> Clock {
            Clock(Pace::new(Network::LOCAL), Instant::now())
        }

        fn at(&self, ms: u64) -> Instant {
            self.1 + Duration::from_millis(ms)
        }

        fn wait(&self, direction: Direction, ms: u64) {
            self.0.wait(direction, self.at(ms), &Context::from_waker(Waker::noop()));
        }

        fn moved(&self, direction: Direction, bytes: u64, ms: u64) {
            self.0.moved(direction, bytes, self.at(ms));
        }

        fn is_slow(&self, ms: u64) -> bool {
            self.0.is_slow(self.at(ms))
        }
    }

    #[test]
    fn a_client_is_slow_once_it_was_waited_for_too_long() {
        let client = Clock::new();
        assert!(!client.is_slow(60_000), "nothing waits for it");
        client.wait(Upload, 0);
        assert!(!client.is_slow(1999));
        assert!(client.is_slow(2000));
        // A byte now and then does not help; who goes on at the rate is left alone.
        client.moved(Upload, 1, 12_000);
        client.wait(Upload, 12_000);
        assert!(client.is_slow(12_002));
        for second in 13..60 {
            client.moved(Upload, 501, second * 1000);
            client.wait(Upload, second * 1000);
            assert!(!client.is_slow(second * 1000 + 1000));
        }
    }

    #[test]
    fn a_quick_beginning_does_not_pay_for_a_long_stall() {
        let client = Clock::new();
        client.wait(Upload, 0);
        client.moved(Upload, 100_000_000, 10);
        client.wait(Upload, 10);
        assert!(!client.is_slow(2009));
        assert!(client.is_slow(2010));
    }

    #[test]
    fn time_is_counted_only_while_one_direction_waits() {
        let client = Clock::new();
        client.wait(Upload, 0);
        client.wait(Download, 500);
        client.moved(Upload, 0, 1000);
        assert!(client.0.is_waiting(), "the other direction waits");
        client.moved(Download, 0, 1500);
        client.wait(Download, 60_000);
        assert!(!client.is_slow(60_499));
        assert!(client.is_slow(60_500));
    }

    #[test]
    fn a_network_is_what_one_party_usually_has() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.200"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8:0:ff00::1"), of("2001:db8:0:ffff::2"));
        assert_ne!(of("2001:db8:0:fe00::1"), of("2001:db8:0:ff00::1"));
    }
}
