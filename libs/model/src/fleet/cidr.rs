//! Ranges of IP addresses.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A range of IP addresses in CIDR notation (RFC 4632, RFC 4291): `10.0.0.0/8`, `2001:db8::/32`; a bare address is a range of
/// one. An IPv4 address that IPv6 maps is the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The first address.
    address: IpAddr,
    /// How many bits all addresses share.
    prefix: u8,
}

impl Cidr {
    /// Whether `address` is within the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => first == address & mask_v4(self.prefix),
            (IpAddr::V6(first), IpAddr::V6(address)) => first == address & mask_v6(self.prefix),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn mask_v4(prefix: u8) -> std::net::Ipv4Addr {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0).into()
}

fn mask_v6(prefix: u8) -> std::net::Ipv6Addr {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0).into()
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network such as 10.0.0.0/8 or 2001:db8::/32");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|prefix| *prefix <= most).ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        if let IpAddr::V6(v6) = address
            && v6.to_ipv4_mapped().is_some()
        {
            return Err(format!("{text:?} is an IPv4 network in IPv6: write it as IPv4"));
        }
        let first: IpAddr = match address {
            IpAddr::V4(address) => (address & mask_v4(prefix)).into(),
            IpAddr::V6(address) => (address & mask_v6(prefix)).into(),
        };
        // Bits behind the prefix are a typing error: of the address, or of the prefix.
        if first == address {
            Ok(Cidr { address, prefix })
        } else {
            Err(format!("{text:?} has bits behind its prefix: {first}/{prefix} is the network"))
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(cidr: &str, address: &str) -> bool {
        cidr.parse::<Cidr>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_range_contains_the_addresses_that_share_its_prefix() {
        for (cidr, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("192.0.2.128/25", "192.0.2.128", "192.0.2.127"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::"),
            ("::/0", "ffff::", "192.0.2.7"),
            ("::1", "::1", "::2"),
        ] {
            assert!(contains(cidr, inside), "{inside} in {cidr}");
            assert!(!contains(cidr, outside), "{outside} in {cidr}");
        }
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"), "an IPv4 client of a socket for both");
    }

    #[test]
    fn a_range_is_read_as_it_was_written_and_nothing_else_is_one() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "192.0.2.7/32"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "10/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "::/129",
            "a/8",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
        let error = "10.1.0.0/8".parse::<Cidr>().unwrap_err();
        assert!(error.contains("10.0.0.0/8 is the network"), "{error}");
    }
}
