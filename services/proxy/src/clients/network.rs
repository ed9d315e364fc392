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

    /// The network's bucket of `count`, by a randomly keyed hash, so that nobody can choose colliding networks.
    pub fn bucket(self, count: usize) -> usize {
        static KEYS: LazyLock<[u64; 3]> = LazyLock::new(rand::random);
        self.bucket_by(*KEYS, count)
    }

    /// Two rounds of multiplication and shift, as in MurmurHash3's finalizer. With one round, neighbouring networks, of
    /// which an address block is made, would share few buckets for one key of fifty.
    fn bucket_by(self, [mask, first, second]: [u64; 3], count: usize) -> usize {
        let mixed = (self.0 ^ mask).wrapping_mul(first | 1);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(second | 1);
        (mixed >> 32) as usize % count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_networks_spread_over_buckets_whatever_the_keys() {
        for _ in 0..10_000 {
            let keys: [u64; 3] = rand::random();
            let networks = (0..20).map(|third| Network::of([192, 0, third, 1].into()));
            let buckets: std::collections::BTreeSet<usize> =
                networks.map(|network| network.bucket_by(keys, 8)).collect();
            assert!(buckets.len() >= 3, "{keys:?}");
        }
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
