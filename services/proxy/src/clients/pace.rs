//! How fast a client moves what a request waits for: its body, or the response that it takes.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

/// The rate in bytes per second below which a client is slow, and the time that it has to show it. (The rate is the default
/// of Apache's `mod_reqtimeout`.)
const LEAST_RATE: u64 = 500;
const GRACE: Duration = Duration::from_secs(2);

/// The pace of one request's client. It ends nothing by itself: a slow client is given up when others need its place.
#[derive(Debug)]
pub struct Pace {
    network: Network,
    since: Cell<Instant>,
    moved: Cell<u64>,
    waits: Cell<bool>,
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

    /// One of `count` places, so that networks can be told apart without a list of them.
    pub fn place(self, count: usize) -> usize {
        // Fibonacci hashing (Knuth, "The Art of Computer Programming", volume 3, section 6.4).
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % count
    }
}

impl Pace {
    /// A client that begins now.
    pub fn new(network: Network, now: Instant) -> Pace {
        Pace {
            network,
            since: Cell::new(now),
            moved: Cell::new(0),
            waits: Cell::new(false),
            is_given_up: Cell::new(false),
            waker: RefCell::default(),
        }
    }

    /// The client's network.
    pub fn network(&self) -> Network {
        self.network
    }

    /// Another part of the request begins, at another pace.
    pub fn restart(&self, now: Instant) {
        self.since.set(now);
        self.moved.set(0);
        self.waits.set(false);
    }

    /// The client moved `bytes` since the pace was restarted.
    pub fn moved(&self, bytes: u64) {
        self.moved.set(bytes);
        self.waits.set(false);
    }

    /// The request waits for the client. Its task is woken when it is given up.
    pub fn waits(&self, cx: &Context<'_>) {
        self.waits.set(true);
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Whether the request waits for the client.
    pub fn is_waiting(&self) -> bool {
        self.waits.get()
    }

    /// Whether the request waits for a client that has been slow for long enough to tell.
    pub fn is_slow(&self, now: Instant) -> bool {
        let time = now.saturating_duration_since(self.since.get());
        self.waits.get() && time >= GRACE && self.moved.get() * 1000 < LEAST_RATE * time.as_millis() as u64
    }

    /// Bytes per second so far.
    pub fn rate(&self, now: Instant) -> u64 {
        let time = now.saturating_duration_since(self.since.get()).as_millis().max(1);
        self.moved.get().saturating_mul(1000) / time as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_slow_once_it_has_waited_long_for_little() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pace = Pace::new(Network::of([192, 0, 2, 1].into()), start);
        let cx = Context::from_waker(Waker::noop());
        assert!(!pace.is_slow(at(60_000)), "nothing waits for it");

        pace.waits(&cx);
        assert!(!pace.is_slow(at(1999)));
        assert!(pace.is_slow(at(2000)));

        pace.moved(5000);
        pace.waits(&cx);
        assert!(!pace.is_slow(at(10_000)));
        assert!(pace.is_slow(at(10_001)));
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
