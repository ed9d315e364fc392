//! Reports: small, lossy and repeated messages from edges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ClusterName, EdgeName, Epoch, RegionName, Revision, ServiceName, Timestamp, fleet::Address,
    observation::Failure,
};

/// The routes that an edge serves by, sent once a second and at each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The edge.
    pub edge: EdgeName,
    /// Its region.
    pub region: RegionName,
    /// The epoch of the table it serves.
    pub epoch: Epoch,
    /// The latest epoch that it knows of: it refuses tables of older ones.
    pub fence: Epoch,
    /// The revision of the table it serves.
    pub revision: Revision,
    /// When the message that brought this revision was received; zero when the table came from disk.
    pub received_at: Timestamp,
    /// When the last worker applied it.
    pub applied_at: Timestamp,
    /// When this report was made.
    pub reported_at: Timestamp,
    /// The number of messages since the edge started that were refused because their epoch was older or implausible.
    pub refused_old_epochs: u64,
    /// The number of messages since the edge started that were refused because no trusted key signed them.
    pub refused_unsigned: u64,
    /// Since when it lacks its region's latest table although a later one is published; absent: it is current.
    pub behind_since: Option<Timestamp>,
    /// Whether the edge is draining.
    pub draining: bool,
}

/// The load that an edge forwarded in the last interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The edge.
    pub edge: EdgeName,
    /// Its region.
    pub region: RegionName,
    /// The length of the interval, in milliseconds, at least 1.
    pub interval_ms: u32,
    /// The requests that arrived, per service: for its default action, then for each route.
    pub demand: BTreeMap<ServiceName, Vec<u32>>,
    /// The attempts per cluster.
    pub clusters: BTreeMap<ClusterName, ClusterLoad>,
}

/// The load of one cluster in an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterLoad {
    /// Attempts sent.
    pub attempts: u32,
    /// Attempts that failed.
    pub failures: u32,
    /// The 95th percentile of the time to the first response byte, in microseconds; 0 when unknown.
    pub p95_us: u32,
}

/// A suspicion: an edge's report that an endpoint failed a real request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// The edge that reports it.
    pub edge: EdgeName,
    /// Its region.
    pub region: RegionName,
    /// The cluster of the endpoint.
    pub cluster: ClusterName,
    /// The endpoint.
    pub endpoint: Address,
    /// The failure.
    pub failure: Failure,
    /// When the first of the requests that this suspicion covers failed.
    pub first_failure_at: Timestamp,
}
