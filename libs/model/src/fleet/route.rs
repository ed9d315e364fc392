//! Routes and retry policies.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{ClusterName, unit::Weight};

/// A route: an action for matching requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The requests that it is for.
    pub matches: RouteMatch,
    /// The action.
    pub action: Action,
}

/// The match of a route: a request must match all given conditions. Part of the route table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct RouteMatch {
    /// The path must be this or below it, by whole segments.
    pub path_prefix: Option<String>,
    /// The path must be exactly this.
    pub path: Option<String>,
    /// The method must be one of these; empty: any.
    pub methods: Vec<String>,
    /// Headers (in lower case) that must be present with exactly this value.
    pub headers: BTreeMap<String, String>,
}

/// The action of a route: the clusters and the retry policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// The clusters it may go to.
    pub clusters: Preference,
    /// The retry policy.
    pub policy: Policy,
}

/// A retry policy. Part of the route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The time limit of the request until the response head, all attempts included.
    pub timeout: Duration,
    /// The most attempts after the first.
    pub attempts: u8,
    /// The time limit of one attempt until the response head; absent: only the whole timeout applies.
    pub per_try_timeout: Option<Duration>,
    /// When a repeatable request without a response is hedged.
    pub hedge: Hedge,
    /// The retry budget: retries and hedges in percent of requests.
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
