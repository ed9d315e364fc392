//! Addresses, hosts and identities.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// A SPIFFE ID: `spiffe://<trust domain>/<path>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId(String);

impl SpiffeId {
    /// The ID as a URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let trust_domain = text.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
        match trust_domain {
            Some(domain) if !domain.is_empty() && text.is_ascii() && !text.contains(char::is_whitespace) => {
                Ok(SpiffeId(text))
            }
            _ => {
                Err(format!("{text:?} is not a SPIFFE ID such as spiffe://example.org/ns/ingress/sa/gateway"))
            }
        }
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> String {
        id.0
    }
}

/// An IP address, or a DNS name that is resolved for each connection, with a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// An IP address and port.
    Ip(SocketAddr),
    /// A DNS name and port.
    Name {
        /// The name, in lower case.
        host: String,
        /// The port, not 0.
        port: u16,
    },
}

impl Address {
    /// The IP address and port; nothing for a DNS name.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Address::Ip(address) => Some(*address),
            Address::Name { .. } => None,
        }
    }

    /// The host, without the port and, for IPv6, without brackets.
    pub fn host(&self) -> String {
        match self {
            Address::Ip(address) => address.ip().to_string(),
            Address::Name { host, .. } => host.clone(),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Address::Ip(address) => address.port(),
            Address::Name { port, .. } => *port,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not an address such as 10.1.0.10:8443 or gateway.example.com:443");
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(format!("{text:?} has port 0"))
            } else {
                Ok(Address::Ip(address))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        // A last label of digits only would be a mistyped IP address, never a DNS name.
        let numeric = host.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if port == 0 || numeric || !is_dns_name(host) {
            return Err(wrong());
        }
        Ok(Address::Name { host: host.to_ascii_lowercase(), port })
    }
}

impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

fn is_dns_name(host: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

/// A pattern of hosts that a service serves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostPattern {
    /// Any host.
    Any,
    /// Exactly this host, in lower case.
    Exact(String),
    /// Any host below this suffix (`*.example.com` is stored as `example.com`), at any depth.
    Below(String),
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Exact(host) => f.write_str(host),
            HostPattern::Below(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        if lower == "*" {
            return Ok(HostPattern::Any);
        }
        let (name, pattern): (&str, fn(String) -> HostPattern) = match lower.strip_prefix("*.") {
            Some(rest) => (rest, HostPattern::Below),
            None => (&lower, HostPattern::Exact),
        };
        if is_dns_name(name) || lower.parse::<IpAddr>().is_ok() {
            Ok(pattern(name.to_owned()))
        } else {
            Err(format!("{text:?} is not a host such as shop.example.com, *.example.com or *"))
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> String {
        pattern.to_string()
    }
}
