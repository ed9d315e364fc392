//! The explanation of where a service's requests go, as a value.

use serde::{Deserialize, Serialize};
use tidegate_model::{
    ClusterName, RegionName, ServiceName, Timestamp, routes::ActionTiers, verdict::Verdict,
};

use crate::proximity::Proximity;

/// The explanation of where a service's requests go in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The region.
    pub region: RegionName,
    /// The service.
    pub service: ServiceName,
    /// The importance of the service if requests must be shed: 0 is the most important, which is shed last.
    pub priority: u8,
    /// The default action, then each route's.
    pub actions: Vec<ActionExplanation>,
}

/// The explanation of where the requests of one action go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionExplanation {
    /// The entry of the route table, with its reason.
    pub tiers: ActionTiers,
    /// The demand of each region in requests per second: measured, and settled (which shares follow). Regions without
    /// demand are not listed. Actions of one demand class are counted together.
    pub demand: Vec<(RegionName, u64, u64)>,
    /// All candidates in the order of preference.
    pub candidates: Vec<CandidateExplanation>,
}

/// The explanation of one override that is about a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverrideExplanation {
    /// What it does, by whom and why.
    pub text: String,
    /// Why it has no effect; absent if it has.
    pub overruled: Option<String>,
}

/// The explanation of one candidate of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateExplanation {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its region.
    pub region: RegionName,
    /// Its proximity to the region.
    pub proximity: Proximity,
    /// The verdict on it.
    pub verdict: Verdict,
    /// The reason for the verdict.
    pub reason: String,
    /// When its suppression ends at the earliest, if it is suppressed.
    pub suppressed_until: Option<Timestamp>,
    /// The regions that reach it.
    pub reached_from: Vec<RegionName>,
    /// Its capacity in requests per second; absent if unlimited.
    pub capacity: Option<u32>,
    /// Its load in requests per second, from all regions and all services that use clusters of limited capacity.
    pub load: u64,
    /// The part of its share that slow start allows, in thousandths.
    pub slow_start_permille: u16,
    /// All overrides that are about it, the ones that win first.
    pub overrides: Vec<OverrideExplanation>,
    /// The index of its tier, from 0; absent if it is in none.
    pub tier: Option<usize>,
    /// Its share of the requests that are not shed, in thousandths; zero below the first tier.
    pub share_permille: u16,
}
