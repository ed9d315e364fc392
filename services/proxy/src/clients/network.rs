//! Networks of clients, told apart without a list of them.

use std::{net::IpAddr, sync::LazyLock};

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
            // The upper bits distinguish it from IPv4: no global IPv6 address begins with so many zeros.
            IpAddr::V6(address) => Network((address.to_bits() >> 72) as u64),
        }
    }

    /// The network's bucket of `count`, by a randomly seeded universal hash, so that nobody can choose colliding
    /// networks (Dietzfelbinger et al., "A Reliable Randomized Algorithm for the Closest-Pair Problem", 1997).
    pub fn bucket(self, count: usize) -> usize {
        static RANDOM: LazyLock<(u64, u64)> = LazyLock::new(rand::random);
        let (factor, offset) = *RANDOM;
        (self.0.wrapping_mul(factor | 1).wrapping_add(offset) >> 32) as usize % count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_what_one_party_usually_has() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.200"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8:0:ff00::1"), of("2001:db8:0:ffff::2"));
        assert_ne!(of("2001:db8:0:fe00::1"), of("2001:db8:0:ff00::1"));
    }
}
