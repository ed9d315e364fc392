//! How much of something the clients of each network have, so that no few of them can take all.

use std::cell::Cell;

use super::Network;

/// A network may have more of something only while it has less than so many times what is free (Choudhury and Hahne,
/// "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998). So one network alone gets seven eighths, and
/// however many take all that they may, some is left for the next.
const SHARE: usize = 7;

/// Counts by network, as far as networks can be told apart.
#[derive(Debug)]
pub struct NetworkCounts(Box<[Cell<u32>]>);

impl NetworkCounts {
    /// Nothing, of networks that fall into so many places.
    pub fn new(places: usize) -> NetworkCounts {
        NetworkCounts(vec![Cell::new(0); places].into())
    }

    /// The count of a network.
    pub fn of(&self, network: Network) -> &Cell<u32> {
        &self.0[network.place(self.0.len())]
    }

    /// Counts one more.
    pub fn add(&self, network: Network) {
        let count = self.of(network);
        count.set(count.get() + 1);
    }

    /// Counts one less.
    pub fn remove(&self, network: Network) {
        let count = self.of(network);
        count.set(count.get() - 1);
    }

    /// Whether a network may have another one where `free` are left.
    pub fn may_add(&self, network: Network, free: usize) -> bool {
        (self.of(network).get() as usize) < SHARE.saturating_mul(free)
    }

    /// Forgets half of each count.
    pub fn halve(&self) {
        self.0.iter().for_each(|count| count.set(count.get() / 2));
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
            let least = (0..takers).map(|number| counts.of(network(number)).get()).min().unwrap();
            let most = (0..takers).map(|number| counts.of(network(number)).get()).max().unwrap();
            prop_assert!(most - least <= 7);
        }
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
