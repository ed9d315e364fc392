//! The fleet: what exists, as parsed from the fleet file. Every name in it refers to something in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    ClusterName, EdgeName, ListenerName, NetworkName, RegionName, ServiceName,
    health::HealthCheck,
    unit::{Location, Weight},
};

/// Everything that exists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fleet {
    /// Regions, at least one.
    pub regions: BTreeMap<RegionName, Region>,
    /// Workload clusters.
    pub clusters: BTreeMap<ClusterName, Cluster>,
    /// Edge proxies.
    pub edges: BTreeMap<EdgeName, Edge>,
    /// What edges listen on.
    pub listeners: BTreeMap<ListenerName, Listener>,
    /// What edges forward.
    pub services: BTreeMap<ServiceName, Service>,
}

/// A failure domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Region {
    /// Where it is, for proximity.
    pub location: Option<Location>,
    /// Configured one-way latencies to other regions; where there is one, it stands before distance.
    pub latency: BTreeMap<RegionName, Duration>,
}

/// A workload cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The region it runs in.
    pub region: RegionName,
    /// The addresses of its ingress gateway, at least one, each once.
    pub endpoints: Vec<Endpoint>,
    /// How its endpoints are spoken to.
    pub upstream: Upstream,
    /// Requests per second that it can take; absent: no limit known.
    pub capacity: Option<u32>,
}

/// How the endpoints of a cluster are spoken to. Travels in the route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The HTTP version.
    pub protocol: UpstreamProtocol,
    /// TLS; absent: plain text.
    pub tls: Option<UpstreamTls>,
    /// How long an idle connection is kept, when the origin does not say less by `Keep-Alive: timeout`.
    pub idle_timeout: Duration,
    /// How long a connection may take to be made, TLS included.
    pub connect_timeout: Duration,
    /// Requests under way to the cluster from one edge, above which further ones go elsewhere or get 503.
    pub max_requests: u32,
}

/// The HTTP version spoken to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// With TLS what ALPN picks, else HTTP/1.1.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, with prior knowledge where there is no TLS.
    Http2,
}

/// TLS towards a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UpstreamTls {
    /// The name asked for by SNI and checked; absent: the endpoint's own host.
    pub server_name: Option<String>,
    /// PEM file with the authorities that are trusted; absent: the system's.
    pub ca: Option<PathBuf>,
    /// The SPIFFE ID that the peer's certificate must carry; then no DNS name is checked.
    pub identity: Option<SpiffeId>,
    /// The certificate that the edge shows.
    pub client_certificate: Option<CertificateFiles>,
}

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

/// A certificate and its key, as PEM files on the machine of the service that uses them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CertificateFiles {
    /// The certificate chain, leaf first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// One address of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// The network it is on.
    pub network: NetworkName,
}

/// An address with a port: of an IP address, or of a DNS name that is looked up when a connection is made.
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

/// An edge proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The region it runs in.
    pub region: RegionName,
    /// The address that users reach it by; for DNS and status only.
    pub address: Option<IpAddr>,
    /// What it listens on.
    pub listeners: Vec<ListenerName>,
    /// The networks it is on.
    pub networks: BTreeSet<NetworkName>,
}

/// A socket that edges accept users' connections on. Travels in the route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The address and port to bind; port 0 takes a free one.
    pub bind: SocketAddr,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// What a client may ask of it.
    pub limits: ListenerLimits,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenerProtocol {
    /// HTTP/1.1, and HTTP/2 by prior knowledge.
    Http,
    /// TLS, then HTTP/2 or HTTP/1.1 by ALPN.
    Https {
        /// Chosen by SNI; the first one is the default. Never empty.
        certificates: Vec<CertificateFiles>,
    },
}

/// Limits of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerLimits {
    /// The largest request head (request line and headers), in bytes.
    pub head_bytes: u32,
    /// The most header fields in a request.
    pub header_count: u16,
    /// How long a client may take to send a whole request head, or a TLS handshake.
    pub head_timeout: Duration,
    /// How long a client may be idle between requests, or send nothing of a body that is waited for.
    pub idle_timeout: Duration,
    /// The most connections at once for the whole edge on this listener.
    pub max_connections: u32,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        ListenerLimits {
            head_bytes: 64 * 1024,
            header_count: 100,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            max_connections: 100_000,
        }
    }
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The hosts it answers for, at least one.
    pub hosts: Vec<HostPattern>,
    /// How its clusters' health is asked for.
    pub health: HealthCheck,
    /// Who is shed first when nobody has room: 0 is the most important.
    pub priority: u8,
    /// The largest request body in bytes; absent: no limit.
    pub max_request_body: Option<u64>,
    /// What is done with a request that no route matches.
    pub default: Action,
    /// Routes, tried in order before the default.
    pub routes: Vec<Route>,
}

impl Service {
    /// All actions, the default first, then the routes' in order: the order of a service's tiers in the route table.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        std::iter::once(&self.default).chain(self.routes.iter().map(|route| &route.action))
    }
}

/// A route: requests that match get its action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which requests it is for.
    pub matches: RouteMatch,
    /// What is done with them.
    pub action: Action,
}

/// Which requests a route is for: all that is given must match. Travels in the route table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteMatch {
    /// The path must be this or below it, by whole segments.
    pub path_prefix: Option<String>,
    /// The path must be exactly this.
    pub path: Option<String>,
    /// The method must be one of these; empty: any.
    pub methods: Vec<String>,
    /// Headers (in lower case) that must be there with exactly this value.
    pub headers: BTreeMap<String, String>,
}

/// What is done with a request: where it goes and how often it is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// The clusters it may go to.
    pub clusters: Preference,
    /// How it is tried.
    pub policy: Policy,
}

/// How a request is tried. Travels in the route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The time for the whole request until the response head, all tries included.
    pub timeout: Duration,
    /// Tries beyond the first.
    pub attempts: u8,
    /// The time for one try until the response head; absent: only the whole timeout holds.
    pub per_try_timeout: Option<Duration>,
    /// When a repeatable request without an answer is also sent elsewhere.
    pub hedge: Hedge,
    /// Retries and hedges allowed, in percent of requests.
    pub budget_percent: u8,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            timeout: Duration::from_secs(15),
            attempts: 2,
            per_try_timeout: None,
            hedge: Hedge::Auto,
            budget_percent: 20,
        }
    }
}

/// When a request is hedged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hedge {
    /// After twice the service's recent 95th percentile, at least 50 ms, 250 ms while that is unknown.
    Auto,
    /// After this time.
    After(Duration),
    /// Never.
    Off,
}

/// The clusters that a request may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preference {
    /// In this order.
    Ordered(Vec<ClusterName>),
    /// The nearest to the edge's region first.
    Nearest(Vec<ClusterName>),
    /// By weight; at least one is above zero. The others are fallbacks in the order of weight.
    Weighted(BTreeMap<ClusterName, Weight>),
}

impl Preference {
    /// The clusters, in the order of the file or of names.
    pub fn clusters(&self) -> Vec<&ClusterName> {
        match self {
            Preference::Ordered(list) | Preference::Nearest(list) => list.iter().collect(),
            Preference::Weighted(weights) => weights.keys().collect(),
        }
    }
}

/// A host that a service answers for.
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

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Exact(host) => f.write_str(host),
            HostPattern::Below(suffix) => write!(f, "*.{suffix}"),
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

/// The network of an endpoint or edge that names none.
pub const DEFAULT_NETWORK: &str = "internet";
