//! How much of something the clients of each network have, so that no few of them can take all.

use std::cell::Cell;

use super::Network;

/// A network may have more of something only while it has less than so many times what is free (Choudhury and Hahne,
/// "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998). So one network alone gets seven eighths, and
/// however many take all that they may, some is left for the next.
const SHARE: usize = 7;

/// Counts by network, as far as networks can be told apart.
#[derive(Debug)]
pub struct NetworkCounts {
    counts: Box<[Cell<u32>]>,
    /// What one network counts for at most in `total`.
    cap: u32,
    total: Cell<u32>,
}

impl NetworkCounts {
    /// Nothing, of networks that fall into so many places.
    pub fn new(places: usize) -> NetworkCounts {
        NetworkCounts::with_cap(places, u32::MAX)
    }

    /// The same, where one network counts for `cap` at most in [`NetworkCounts::total`].
    pub fn with_cap(places: usize, cap: u32) -> NetworkCounts {
        NetworkCounts { counts: vec![Cell::new(0); places].into(), cap, total: Cell::new(0) }
    }

    /// The count of a network.
    pub fn of(&self, network: Network) -> u32 {
        self.count(network).get()
    }

    fn count(&self, network: Network) -> &Cell<u32> {
        &self.counts[network.place(self.counts.len())]
    }

    /// The counts of all networks, each up to the cap.
    pub fn total(&self) -> u32 {
        self.total.get()
    }

    /// Counts one more.
    pub fn add(&self, network: Network) {
        self.add_at(network.place(self.counts.len()));
    }

    /// Counts one more of the networks in `place`.
    pub fn add_at(&self, place: usize) {
        let count = &self.counts[place];
        self.replace(count, count.get() + 1);
    }

    /// Counts one less.
    pub fn remove(&self, network: Network) {
        self.remove_at(network.place(self.counts.len()));
    }

    /// Counts one less of the networks in `place`.
    pub fn remove_at(&self, place: usize) {
        let count = &self.counts[place];
        self.replace(count, count.get() - 1);
    }

    /// Sets the count of a network.
    pub fn set(&self, network: Network, to: u32) {
        self.replace(self.count(network), to);
    }

    /// Forgets half of each count.
    pub fn halve(&self) {
        self.counts.iter().for_each(|count| self.replace(count, count.get() / 2));
    }

    fn replace(&self, count: &Cell<u32>, to: u32) {
        let from = count.replace(to);
        let total = self.total.get().wrapping_sub(from.min(self.cap)).wrapping_add(to.min(self.cap));
        self.total.set(total);
    }

    /// Whether a network may have another one where `free` are left.
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
                || Network::of([192, 0, 2, 1].into()).place(64) == Network::LOCAL.place(64)
        );
    }
}
