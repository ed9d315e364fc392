//! Counts by client network, so that a few networks cannot use up a resource.

use std::cell::Cell;

use super::Network;

/// A network may take more of a resource only while it has less than this many times what is free (Choudhury and Hahne,
/// "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998). So a single network gets at most seven
/// eighths, and however many networks use up their shares, some is left for the next.
const SHARE: usize = 7;

/// Counts by network, in hashed buckets.
#[derive(Debug)]
pub struct NetworkCounts {
    counts: Box<[Cell<u32>]>,
    /// The most that one bucket adds to `total`.
    cap: u32,
    total: Cell<u32>,
}

impl NetworkCounts {
    /// Zero counts in `buckets` buckets.
    pub fn new(buckets: usize) -> NetworkCounts {
        NetworkCounts::with_cap(buckets, u32::MAX)
    }

    /// Zero counts, where each bucket adds at most `cap` to [`NetworkCounts::total`].
    pub fn with_cap(buckets: usize, cap: u32) -> NetworkCounts {
        NetworkCounts { counts: vec![Cell::new(0); buckets].into(), cap, total: Cell::new(0) }
    }

    /// The count of a network.
    pub fn of(&self, network: Network) -> u32 {
        self.count(network).get()
    }

    fn count(&self, network: Network) -> &Cell<u32> {
        &self.counts[network.bucket(self.counts.len())]
    }

    /// The sum of all buckets, each up to the cap.
    pub fn total(&self) -> u32 {
        self.total.get()
    }

    /// Increments the count of a network.
    pub fn add(&self, network: Network) {
        self.add_to_bucket(network.bucket(self.counts.len()));
    }

    /// Increments a bucket.
    pub fn add_to_bucket(&self, bucket: usize) {
        let count = &self.counts[bucket];
        self.replace(count, count.get() + 1);
    }

    /// Decrements the count of a network.
    pub fn remove(&self, network: Network) {
        self.remove_from_bucket(network.bucket(self.counts.len()));
    }

    /// Decrements a bucket.
    pub fn remove_from_bucket(&self, bucket: usize) {
        let count = &self.counts[bucket];
        self.replace(count, count.get() - 1);
    }

    /// Sets the count of a network.
    pub fn set(&self, network: Network, to: u32) {
        self.replace(self.count(network), to);
    }

    /// Halves each count.
    pub fn halve(&self) {
        self.counts.iter().for_each(|count| self.replace(count, count.get() / 2));
    }

    fn replace(&self, count: &Cell<u32>, to: u32) {
        let from = count.replace(to);
        let total = self.total.get().wrapping_sub(from.min(self.cap)).wrapping_add(to.min(self.cap));
        self.total.set(total);
    }

    /// Whether a network may take another one while `free` are left.
    pub fn may_add(&self, network: Network, free: usize) -> bool {
        (self.of(network) as usize) < SHARE.saturating_mul(free)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn however_many_networks_take_what_they_may_some_is_left(takers in 1_u8..40, more in 0_usize..2000) {
            let limit = 8 * usize::from(takers) + more;
            let counts = NetworkCounts::new(1 << 16);
            let network = |number: u8| Network::of([192, 0, number, 1].into());
            let (mut taken, mut went_on) = (0, true);
            while went_on {
                went_on = false;
                for number in 0..takers {
                    if counts.may_add(network(number), limit - taken) {
                        counts.add(network(number));
                        taken += 1;
                        went_on = true;
                    }
                }
            }
            let free = limit - taken;
            prop_assert!(free <= limit / 8 + 1, "{free} of {limit} are free");
            prop_assert!(free > 0);
            let least = (0..takers).map(|number| counts.of(network(number))).min().unwrap();
            let most = (0..takers).map(|number| counts.of(network(number))).max().unwrap();
            prop_assert!(most - least <= 7);
        }
    }

    #[test]
    fn a_network_counts_up_to_the_cap_in_the_total() {
        let counts = NetworkCounts::with_cap(1 << 16, 3);
        let other = Network::of([192, 0, 2, 1].into());
        (0..10).for_each(|_| counts.add(Network::LOCAL));
        counts.add(other);
        assert_eq!((counts.total(), counts.of(Network::LOCAL)), (4, 10));
        (0..8).for_each(|_| counts.remove(Network::LOCAL));
        assert_eq!(counts.total(), 3);
        (0..2).for_each(|_| counts.remove(Network::LOCAL));
        counts.remove(other);
        assert_eq!(counts.total(), 0);
    }

    #[test]
    fn one_network_alone_gets_seven_eighths() {
        let counts = NetworkCounts::new(64);
        let taken = (0..80).take_while(|taken| {
            let may = counts.may_add(Network::LOCAL, 80 - taken);
            if may {
                counts.add(Network::LOCAL);
            }
            may
        });
        assert_eq!(taken.count(), 70);
        assert!(
            counts.may_add(Network::of([192, 0, 2, 1].into()), 1)
                || Network::of([192, 0, 2, 1].into()).bucket(64) == Network::LOCAL.bucket(64)
        );
    }
}
