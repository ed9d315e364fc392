//! A hypothesis about what an operator might do or lose, and its effect, as values.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tidegate_model::{
    ClusterName, EdgeName, RegionName, ServiceName,
    event::Destination,
    fleet::RouteMatch,
    overrides::{Override, OverrideKind},
};

/// A hypothesis: all parts of it are assumed together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hypothesis {
    /// The text of a fleet file that is applied; absent: the one in force stays.
    pub fleet: Option<String>,
    /// Overrides that are created.
    pub overrides: Vec<Override>,
    /// Overrides that are withdrawn.
    pub withdrawn: Vec<OverrideKind>,
    /// What is lost.
    pub lost: Vec<Loss>,
    /// The factor of all demand, in thousandths.
    pub demand_permille: u32,
}

impl Default for Hypothesis {
    /// Nothing changes.
    fn default() -> Self {
        Hypothesis {
            fleet: None,
            overrides: Vec::new(),
            withdrawn: Vec::new(),
            lost: Vec::new(),
            demand_permille: 1000,
        }
    }
}

impl Hypothesis {
    /// The largest factor of demand, in thousandths.
    pub const MOST_DEMAND_PERMILLE: u32 = 1_000_000;
    /// The most overrides, withdrawals and losses, each.
    pub const MOST_ITEMS: usize = 1000;
}

/// What is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// All clusters and edges of a region.
    Region(RegionName),
    /// A cluster: it is down, as every region sees it.
    Cluster(ClusterName),
    /// An edge. Its users come to the other edges of its region, or, without another one, to the nearest region with one.
    Edge(EdgeName),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::Region(name) => write!(f, "region {name}"),
            Loss::Cluster(name) => write!(f, "cluster {name}"),
            Loss::Edge(name) => write!(f, "edge {name}"),
        }
    }
}

/// Parses `region=NAME`, `cluster=NAME` or `edge=NAME`.
impl FromStr for Loss {
    type Err = String;
    fn from_str(text: &str) -> Result<Loss, String> {
        let form = || format!("{text:?} is not region=NAME, cluster=NAME or edge=NAME");
        let (kind, name) = text.split_once('=').ok_or_else(form)?;
        let wrong = |error: tidegate_model::name::NameError| format!("{name:?}: {error}");
        match kind {
            "region" => name.parse().map(Loss::Region).map_err(wrong),
            "cluster" => name.parse().map(Loss::Cluster).map_err(wrong),
            "edge" => name.parse().map(Loss::Edge).map_err(wrong),
            _ => Err(form()),
        }
    }
}

/// A hypothesis that cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HypothesisError {
    /// There is no fleet yet.
    #[error("there is no fleet yet")]
    NoFleet,
    /// Its fleet file cannot be parsed.
    #[error("the fleet file cannot be read by this version: {0}")]
    Fleet(String),
    /// The fleet lacks what is lost.
    #[error("the fleet has no {0}")]
    Unknown(Loss),
    /// It is larger than it may be.
    #[error("it is too large: {0}")]
    TooLarge(&'static str),
}

/// The effect of a hypothesis on one region's requests, and on the clusters.
///
/// Both sides are computed from the demand that edges reported last, so that only the hypothesis makes a difference. The
/// shares in force may differ from those before by the tolerance of settled demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// The region.
    pub region: RegionName,
    /// The actions, those that change first; at most [`Effect::MOST_ACTIONS`].
    pub actions: Vec<ActionEffect>,
    /// The number of further actions.
    pub more_actions: u32,
    /// The clusters that have a capacity, before or after; at most [`Effect::MOST_CLUSTERS`].
    pub clusters: Vec<ClusterEffect>,
    /// The number of further clusters.
    pub more_clusters: u32,
    /// The sums of all actions.
    pub totals: EffectTotals,
    /// Clusters or checks that are not probed yet, and are assumed to be as the cluster was before, or up.
    pub assumed: Vec<ClusterName>,
}

impl Effect {
    /// The most actions that are listed.
    pub const MOST_ACTIONS: usize = 2000;
    /// The most clusters that are listed.
    pub const MOST_CLUSTERS: usize = 2000;
}

/// The effect on the requests of one action from one region's edges. Rates are in thousandths of requests per second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionEffect {
    /// The service.
    pub service: ServiceName,
    /// The requests of the route; absent for the service's default.
    pub route: Option<RouteMatch>,
    /// The demand before.
    pub demand_before: u64,
    /// The demand after.
    pub demand_after: u64,
    /// Where its requests go before; absent where the action is new.
    pub before: Option<Destination>,
    /// Where its requests go after; absent where the action is gone.
    pub after: Option<Destination>,
    /// The part of the requests that leaves its cluster, in thousandths.
    pub moved_permille: u16,
    /// The reason for where its requests go after.
    pub reason: String,
}

impl ActionEffect {
    /// Whether anything is different.
    pub fn is_changed(&self) -> bool {
        self.before != self.after || self.demand_before != self.demand_after
    }
}

/// The effect on a cluster of limited capacity. Rates are in thousandths of requests per second, from all regions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterEffect {
    /// The cluster.
    pub cluster: ClusterName,
    /// Its capacity before; absent where it has none.
    pub capacity_before: Option<u64>,
    /// Its capacity after; absent where it has none.
    pub capacity_after: Option<u64>,
    /// Its load before.
    pub load_before: u64,
    /// Its load after.
    pub load_after: u64,
    /// Whether the hypothesis is that it is lost.
    pub lost: bool,
}

/// The sums of all actions in one region, listed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EffectTotals {
    /// The demand before, in thousandths of requests per second.
    pub demand: u64,
    /// The part of it that leaves its cluster.
    pub moved: u64,
    /// The number of actions before.
    pub actions: u64,
    /// The sum of [`ActionEffect::moved_permille`], which counts while there is no demand.
    pub moved_permille: u64,
}

impl EffectTotals {
    /// The sums of both.
    pub fn plus(self, other: EffectTotals) -> EffectTotals {
        EffectTotals {
            demand: self.demand + other.demand,
            moved: self.moved + other.moved,
            actions: self.actions + other.actions,
            moved_permille: self.moved_permille + other.moved_permille,
        }
    }

    /// The part of the requests that leaves its cluster, in thousandths. Without demand all actions count the same.
    pub fn moved_share_permille(&self) -> u16 {
        let share = match (self.demand, self.actions) {
            (0, 0) => 0,
            (0, actions) => self.moved_permille / actions,
            (demand, _) => (u128::from(self.moved) * 1000 / u128::from(demand)) as u64,
        };
        u16::try_from(share.min(1000)).unwrap_or(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_parsed() {
        assert_eq!("cluster=us-1".parse(), Ok(Loss::Cluster("us-1".parse().unwrap())));
        assert_eq!("region=us".parse(), Ok(Loss::Region("us".parse().unwrap())));
        assert_eq!("edge=e".parse::<Loss>().unwrap().to_string(), "edge e");
        for wrong in ["us-1", "cluster", "cluster=", "cluster=a.b", "service=shop"] {
            assert!(wrong.parse::<Loss>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn moved_shares_count_by_demand_and_without_demand_by_action() {
        let idle = EffectTotals { demand: 0, moved: 0, actions: 4, moved_permille: 2000 };
        assert_eq!(idle.moved_share_permille(), 500);
        let busy = EffectTotals { demand: 100, moved: 10, actions: 4, moved_permille: 2000 };
        assert_eq!(busy.moved_share_permille(), 100);
        assert_eq!(busy.plus(idle).moved_share_permille(), 100);
        assert_eq!(EffectTotals::default().moved_share_permille(), 0);
    }
}
