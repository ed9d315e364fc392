//! Which requests go where, and how often they are tried.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{ClusterName, unit::Weight};

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
