//! The fleet: what exists, as parsed from the fleet file. Every name in it refers to something in it.

mod address;
mod file;
mod listener;
mod route;
mod upstream;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{
    address::{Address, HostPattern, SpiffeId},
    file::{FleetError, FleetErrors, STARTER, parse_duration, reference, schema},
    listener::{HealthEndpoints, Listener, ListenerLimits, ListenerProtocol, UnderscorePolicy},
    route::{Action, Hedge, Policy, Preference, Route, RouteMatch},
    upstream::{CertificateFiles, Upstream, UpstreamProtocol, UpstreamTls},
};
use crate::{
    ClusterName, EdgeName, ListenerName, NetworkName, RegionName, ServiceName, SigningPublicKey,
    health::HealthCheck, unit::Location,
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

impl Fleet {
    /// Whether it has this edge, in this region.
    pub fn has_edge(&self, edge: &EdgeName, region: &RegionName) -> bool {
        self.edges.get(edge).is_some_and(|known| known.region == *region)
    }

    /// That it lacks a region, in words that name those that it has; nothing when it has it.
    pub fn lacks_region(&self, region: &RegionName) -> Option<String> {
        let known: Vec<&str> = self.regions.keys().map(RegionName::as_str).collect();
        (!self.regions.contains_key(region))
            .then(|| format!("the fleet has no region {region}; it has {}", known.join(", ")))
    }
}

/// A failure domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Region {
    /// Where it is, for proximity.
    pub location: Option<Location>,
    /// Configured one-way latencies to other regions; where there is one, it stands before distance.
    pub latency: BTreeMap<RegionName, Duration>,
    /// The keys with which its route-computers sign its table and lease; none: they are not signed.
    pub signing_keys: Vec<SigningPublicKey>,
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

/// One address of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// The network it is on.
    pub network: NetworkName,
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

/// The network of an endpoint or edge that names none.
pub const DEFAULT_NETWORK: &str = "internet";
