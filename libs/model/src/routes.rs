//! The route table of one region, as entries of a replicated table.
//!
//! What rarely changes (hosts, policies, endpoints) and what a failover changes (health, tiers) are separate entries, so that
//! the delta of a failover is small. No entry holds a time: the same inputs give the same bytes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    ClusterName, EdgeName, ListenerName, NetworkName, RegionName, ServiceName, Timestamp,
    fleet::{Address, Endpoint, HostPattern, Listener, Policy, RouteMatch, Upstream},
    health::CheckId,
    observation::Signal,
    verdict::Verdict,
};

/// The key of an entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteKey {
    /// An edge's own configuration.
    Edge(EdgeName),
    /// A cluster's endpoints and how to connect to them.
    Cluster(ClusterName),
    /// A cluster's health for one check.
    Health(ClusterName, CheckId),
    /// A service's hosts, routes and policies.
    Service(ServiceName),
    /// Where a service's requests go.
    Tiers(ServiceName),
}

/// An entry; its kind is that of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteEntry {
    /// For [`RouteKey::Edge`].
    Edge(EdgeEntry),
    /// For [`RouteKey::Cluster`].
    Cluster(ClusterEntry),
    /// For [`RouteKey::Health`].
    Health(HealthEntry),
    /// For [`RouteKey::Service`].
    Service(ServiceEntry),
    /// For [`RouteKey::Tiers`].
    Tiers(TiersEntry),
}

/// An edge's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeEntry {
    /// The address that users reach it by.
    pub address: Option<IpAddr>,
    /// Its listeners.
    pub listeners: Vec<(ListenerName, Listener)>,
    /// The networks it is on.
    pub networks: Vec<NetworkName>,
    /// Why it should drain, when it should.
    pub drain: Option<String>,
}

/// A cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterEntry {
    /// The region it runs in.
    pub region: RegionName,
    /// Its endpoints, in the order of the fleet file.
    pub endpoints: Vec<Endpoint>,
    /// How to connect to them.
    pub upstream: Upstream,
}

/// A cluster's health for one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthEntry {
    /// The cluster's verdict.
    pub verdict: Verdict,
    /// The reason: the observations and the rule.
    pub reason: String,
    /// Each endpoint's verdict, in the order of [`ClusterEntry::endpoints`].
    pub endpoints: Vec<EndpointHealth>,
}

/// An endpoint's health for one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHealth {
    /// The endpoint.
    pub address: Address,
    /// Its verdict.
    pub verdict: Verdict,
    /// Whether it is down because it is unreachable (no connection, or no response in time), rather than because of its
    /// responses. Waiting for it is futile.
    pub unreachable: bool,
}

/// A service's hosts, routes and policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// The hosts that it serves.
    pub hosts: Vec<HostPattern>,
    /// Its health check.
    pub check: CheckId,
    /// The largest request body in bytes.
    pub max_request_body: Option<u64>,
    /// The policy of a request that no route matches.
    pub default_policy: Policy,
    /// Its routes, tried in order.
    pub routes: Vec<(RouteMatch, Policy)>,
}

/// Where a service's requests go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TiersEntry {
    /// For the default action, then for each route in order.
    pub actions: Vec<ActionTiers>,
}

/// Where the requests of one action go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionTiers {
    /// Tried in order. Empty only when the action has no cluster at all.
    pub tiers: Vec<Tier>,
    /// The share of requests to shed with 503 and `Retry-After` for lack of capacity, in thousandths.
    pub shed_permille: u16,
    /// Whether all clusters seem down, so that all are tried.
    pub fail_open: bool,
    /// The reason for these clusters, in this order, with these shares.
    pub reason: String,
}

/// The clusters of one failover priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// Clusters and their shares of this tier's requests; shares are relative and at least one is above zero. A share of
    /// zero takes a request only when the tier's others have failed it.
    pub shares: Vec<(ClusterName, u16)>,
}

/// The cause of a published change of routes. Sent with the change, never as part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteCause {
    /// The causes of the change.
    pub causes: Vec<Cause>,
    /// When the input that caused it arrived.
    pub input_at: Timestamp,
    /// When the verdict and the table were computed.
    pub decided_at: Timestamp,
}

impl RouteCause {
    /// Whether it changes who may serve, and not only the shares or the time.
    pub fn is_decisive(&self) -> bool {
        self.causes.iter().any(|cause| match cause {
            Cause::Health { .. } | Cause::Override(_) | Cause::Fleet => true,
            Cause::Load | Cause::Time => false,
        })
    }
}

/// One cause of a change of routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A cluster's verdict or an endpoint's changed.
    Health {
        /// The cluster.
        cluster: ClusterName,
        /// Its verdict now.
        verdict: Verdict,
        /// The reason.
        reason: String,
        /// Why the prober probed; absent where time alone changed the verdict.
        signal: Option<Signal>,
        /// When the probe that changed it began; absent where time alone changed the verdict.
        probed_at: Option<Timestamp>,
    },
    /// An override was created, withdrawn or has expired.
    Override(String),
    /// The fleet changed.
    Fleet,
    /// Demand changed.
    Load,
    /// Time passed: slow start advanced, damping or an override ended.
    Time,
}
