//! Why a service's requests go where they go.

use serde::{Deserialize, Serialize};
use tidegate_model::{ClusterName, RegionName, ServiceName, routes::ActionTiers, verdict::Verdict};

use crate::proximity::Proximity;

/// Why a service's requests go where they go, in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The region.
    pub region: RegionName,
    /// The service.
    pub service: ServiceName,
    /// Who is shed first when nobody has room: 0 is the most important.
    pub priority: u8,
    /// The default action, then each route's.
    pub actions: Vec<ActionExplanation>,
}

/// Why the requests of one action go where they go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionExplanation {
    /// The entry of the route table, with its reason.
    pub tiers: ActionTiers,
    /// What each region asks for, in requests per second: as measured, and as shares follow it. Regions that ask for
    /// nothing are not listed. Actions with the same clusters are counted together.
    pub demand: Vec<(RegionName, u64, u64)>,
    /// Every candidate, in the order of preference.
    pub candidates: Vec<CandidateExplanation>,
}

/// One candidate of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateExplanation {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its region.
    pub region: RegionName,
    /// How near it is.
    pub proximity: Proximity,
    /// Its verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// The regions that reach it.
    pub reached_from: Vec<RegionName>,
    /// What it can take, in requests per second.
    pub capacity: Option<u32>,
    /// What all services that use clusters of limited capacity send it, from all regions, in requests per second.
    pub load: u64,
    /// The part of its share that slow start allows, in thousandths.
    pub slow_start_permille: u16,
    /// The override that it stands under, if any.
    pub overridden: Option<String>,
    /// The tier that it is in, from 0; absent: in none.
    pub tier: Option<usize>,
    /// Its part of the requests, shed ones not counted, in thousandths; zero below the first tier.
    pub share_permille: u16,
}
