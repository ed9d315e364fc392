//! Overrides of the computed routes by operators.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{ClusterName, EdgeName, RegionName, ServiceName, Timestamp};

/// An override. Its key in the bucket is [`OverrideKind::key`], so that a second one for the same object replaces the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// What is overridden.
    pub kind: OverrideKind,
    /// Who created it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it expires; absent: it is in force until it is withdrawn.
    pub expires_at: Option<Timestamp>,
}

/// The withdrawal of an override, which regions keep for a while as its tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// What was overridden.
    pub kind: OverrideKind,
    /// Who withdrew it.
    #[serde(default)]
    pub author: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// When it was withdrawn.
    pub withdrawn_at: Timestamp,
}

/// The overrides and the withdrawals that regions keep, by the key of the override ([`OverrideKind::key`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OverrideSet {
    /// The overrides. Expired ones may be among them.
    pub active: BTreeMap<String, Override>,
    /// The withdrawals, which say who ended an override.
    pub withdrawn: BTreeMap<String, Withdrawal>,
}

/// What an override does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverrideKind {
    /// A cluster gets no new traffic while anything else may serve.
    DrainCluster(ClusterName),
    /// An edge reports to outside balancers that it is not ready, and closes its connections gracefully.
    DrainEdge(EdgeName),
    /// No cluster of the region gets new traffic while anything else may serve.
    EvacuateRegion(RegionName),
    /// All of a service's traffic goes to one cluster first.
    ForceRoute {
        /// The service.
        service: ServiceName,
        /// Where it goes.
        cluster: ClusterName,
    },
}

impl OverrideKind {
    /// The override's key in the bucket.
    pub fn key(&self) -> String {
        match self {
            OverrideKind::DrainCluster(name) => format!("drain.cluster.{name}"),
            OverrideKind::DrainEdge(name) => format!("drain.edge.{name}"),
            OverrideKind::EvacuateRegion(name) => format!("evacuate.region.{name}"),
            OverrideKind::ForceRoute { service, .. } => format!("force.service.{service}"),
        }
    }
}

impl fmt::Display for OverrideKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OverrideKind::DrainCluster(name) => write!(f, "drain of cluster {name}"),
            OverrideKind::DrainEdge(name) => write!(f, "drain of edge {name}"),
            OverrideKind::EvacuateRegion(name) => write!(f, "evacuation of region {name}"),
            OverrideKind::ForceRoute { service, cluster } => write!(f, "{service} forced to {cluster}"),
        }
    }
}
