//! The fleet, as parsed from the fleet file. Every name in it refers to an object in it.

mod address;
mod change;
mod cidr;
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
    change::{ChangeSummary, FleetChange, FleetObject, ObjectChange, changes},
    cidr::Cidr,
    file::{FleetErrors, FleetProblem, FleetWarnings, STARTER, parse_duration, reference, schema},
    listener::{
        EscapedSlashPolicy, HealthEndpoints, Listener, ListenerLimits, ListenerProtocol, PathNormalization,
        UnderscorePolicy,
    },
    route::{Action, Hedge, Policy, Preference, Route, RouteMatch},
    upstream::{CertificateFiles, Upstream, UpstreamProtocol, UpstreamTls},
};
use crate::{
    ClusterName, EdgeName, ListenerName, NetworkName, RegionName, ServiceName, SigningPublicKey,
    health::HealthCheck, unit::Location,
};

/// The fleet: all regions, clusters, edges, listeners and services.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fleet {
    /// Regions, at least one.
    pub regions: BTreeMap<RegionName, Region>,
    /// Workload clusters.
    pub clusters: BTreeMap<ClusterName, Cluster>,
    /// Edge proxies.
    pub edges: BTreeMap<EdgeName, Edge>,
    /// The listeners of edges.
    pub listeners: BTreeMap<ListenerName, Listener>,
    /// The services that edges forward.
    pub services: BTreeMap<ServiceName, Service>,
}

impl Fleet {
    /// Whether it has this edge, in this region.
    pub fn has_edge(&self, edge: &EdgeName, region: &RegionName) -> bool {
        self.edges.get(edge).is_some_and(|known| known.region == *region)
    }

    /// An error text that names the existing regions where the fleet lacks this one; nothing when it has it.
    pub fn lacks_region(&self, region: &RegionName) -> Option<String> {
        let known: Vec<&str> = self.regions.keys().map(RegionName::as_str).collect();
        (!self.regions.contains_key(region))
            .then(|| format!("the fleet has no region {region}; it has {}", known.join(", ")))
    }
}

/// A failure domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Region {
    /// The location, for proximity.
    pub location: Option<Location>,
    /// Configured one-way latencies to other regions; each overrides the distance.
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
    /// How to connect to its endpoints.
    pub upstream: Upstream,
    /// Requests per second that it can take; absent: no limit known.
    pub capacity: Option<u32>,
}

/// One address of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address.
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
    /// Its listeners.
    pub listeners: Vec<ListenerName>,
    /// The networks it is on.
    pub networks: BTreeSet<NetworkName>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The hosts that it serves, at least one.
    pub hosts: Vec<HostPattern>,
    /// The health check of its clusters.
    pub health: HealthCheck,
    /// The priority when no cluster has capacity: services with larger numbers are shed first.
    pub priority: u8,
    /// The largest request body in bytes; absent: no limit.
    pub max_request_body: Option<u64>,
    /// The action for requests that match no route.
    pub default: Action,
    /// Routes, tried in order before the default.
    pub routes: Vec<Route>,
}

impl Service {
    /// All actions: the default, then those of the routes in order, as in the service's tiers in the route table.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        std::iter::once(&self.default).chain(self.routes.iter().map(|route| &route.action))
    }

    /// The clusters of all its actions; one that several actions have is there as often.
    pub fn clusters(&self) -> Vec<&ClusterName> {
        self.actions().flat_map(|action| action.clusters.clusters()).collect()
    }
}

/// The network of an endpoint or edge that names none.
pub const DEFAULT_NETWORK: &str = "internet";
