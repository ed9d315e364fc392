//! Reports: small, lossy and repeated messages from edges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ClusterName, EdgeName, Epoch, RegionName, Revision, ServiceName, Timestamp, fleet::Address,
    observation::Failure,
};

/// Which routes an edge serves, sent once a second and at each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The edge.
    pub edge: EdgeName,
    /// Its region.
    pub region: RegionName,
    /// The epoch of the table it serves.
    pub epoch: Epoch,
    /// The latest epoch that it has heard of: its region's leader has to have this one or a later one to be believed.
    pub fence: Epoch,
    /// The revision of the table it serves.
    pub revision: Revision,
    /// When the message that brought this revision was received; zero when the table came from disk.
    pub received_at: Timestamp,
    /// When the last worker began to serve by it.
    pub applied_at: Timestamp,
    /// When this report was made.
    pub reported_at: Timestamp,
    /// Messages that were refused because their epoch was older or cannot be, since the edge started.
    pub refused_old_epochs: u64,
    /// Messages that were refused because no key that is trusted signed them, since the edge started.
    pub refused_unsigned: u64,
    /// Since when it has not had its region's latest table although somebody speaks of one; absent: it has, or nobody does.
    pub behind_since: Option<Timestamp>,
    /// Whether the edge is draining.
    pub draining: bool,
}

/// What an edge forwarded in the last interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The edge.
    pub edge: EdgeName,
    /// Its region.
    pub region: RegionName,
    /// The time that the counts span, in milliseconds, at least 1.
    pub interval_ms: u32,
    /// Requests that arrived, per service: of its default action, then of each route.
    pub demand: BTreeMap<ServiceName, Vec<u32>>,
    /// What became of requests, per cluster.
    pub clusters: BTreeMap<ClusterName, ClusterLoad>,
}

/// What an edge saw of one cluster in an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterLoad {
    /// Attempts sent.
    pub attempts: u32,
    /// Attempts that failed.
    pub failures: u32,
    /// The 95th percentile of the time to the first response byte, in microseconds; 0 when unknown.
    pub p95_us: u32,
}

/// An edge's word that an endpoint failed a real request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// The edge that says so.
    pub edge: EdgeName,
    /// Its region.
    pub region: RegionName,
    /// The cluster of the endpoint.
    pub cluster: ClusterName,
    /// The endpoint.
    pub endpoint: Address,
    /// What happened.
    pub failure: Failure,
    /// When the first of the failed requests that this suspicion speaks for failed.
    pub first_failure_at: Timestamp,
}
