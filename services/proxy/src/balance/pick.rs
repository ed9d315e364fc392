//! Picks the endpoint of an attempt: tiers in order, clusters by share, endpoints by power of two choices.

use std::{rc::Rc, sync::Arc};

use rand::{Rng, RngExt as _};
use tidegate_model::verdict::Verdict;
use tokio::time::Instant;

use crate::{
    clients::Network,
    metrics::ServingCounters,
    upstream::{ClusterState, EndpointState, FailureStats, OutlierDetector},
};

/// The clusters of one failover priority.
pub struct TierView {
    /// The tier's index in the route table, from 0. Tiers without clusters have no view, so it is not the position.
    pub index: usize,
    /// Its clusters.
    pub weighted_clusters: Vec<WeightedCluster>,
}

/// A cluster within a tier.
pub struct WeightedCluster {
    /// Its share of the tier's requests, relative to the others'.
    pub share: u32,
    /// The cluster.
    pub cluster: Rc<ClusterState>,
    /// Its endpoints.
    pub endpoints: Vec<Candidate>,
    /// The counters of the service's requests that it serves in this tier.
    pub serving: Arc<ServingCounters>,
}

/// An endpoint for one action.
pub struct Candidate {
    /// The endpoint.
    pub endpoint: Rc<EndpointState>,
    /// The verdict by the service's check.
    pub verdict: Verdict,
    /// The outlier detector of the action at the endpoint.
    pub detector: Rc<OutlierDetector>,
}

impl Candidate {
    /// Whether the endpoint is ejected for the action at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.endpoint.is_ejected(now) || self.detector.is_ejected(now)
    }
}

impl WeightedCluster {
    /// Ejects the endpoint with this detector from the action, if it is an outlier among the others, of which at least
    /// half stay. (Envoy's `max_ejection_percent` is 10 by default, for larger clusters.) Returns whether it was
    /// ejected.
    pub fn eject_if_outlier(&self, detector: &Rc<OutlierDetector>, now: Instant) -> bool {
        let Some(own) = self.endpoints.iter().find(|candidate| Rc::ptr_eq(&candidate.detector, detector))
        else {
            return false;
        };
        let others = self.endpoints.iter().filter(|candidate| !Rc::ptr_eq(&candidate.detector, detector));
        let stats: Vec<FailureStats> = others.map(|candidate| candidate.detector.stats(now)).collect();
        let ejected = self.endpoints.iter().filter(|candidate| candidate.is_ejected(now)).count();
        let may_eject = (ejected + 1) * 2 <= self.endpoints.len();
        detector.eject_if_outlier(&stats, may_eject, own.verdict == Verdict::Up, now)
    }
}

impl TierView {
    /// The tier's entry for a cluster.
    pub fn of(&self, cluster: &Rc<ClusterState>) -> Option<&WeightedCluster> {
        self.weighted_clusters.iter().find(|weighted| Rc::ptr_eq(&weighted.cluster, cluster))
    }
}

/// The input of a pick.
#[derive(Clone, Copy)]
pub struct PickContext<'a> {
    /// The tiers, in order.
    pub tiers: &'a [TierView],
    /// Endpoints that already failed this request.
    pub tried: &'a [Rc<EndpointState>],
    /// Clusters to avoid while another can take the request.
    pub avoid: &'a [Rc<ClusterState>],
    /// The time at which ejections are evaluated.
    pub now: Instant,
    /// The client's network.
    pub client: Network,
}

/// The chosen endpoint of an attempt.
pub struct Picked<'a> {
    /// The cluster.
    pub cluster: &'a Rc<ClusterState>,
    /// The endpoint.
    pub endpoint: &'a Rc<EndpointState>,
    /// The outlier detector of the action at the endpoint.
    pub detector: &'a Rc<OutlierDetector>,
    /// The tier's index in the route table, from 0.
    pub tier: usize,
}

/// How eligible an endpoint must be.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Eligibility {
    /// Up, not ejected, with room.
    Good,
    /// Ejected endpoints as well (like Envoy's panic threshold).
    Ejected,
    /// Endpoints that are down as well: the last resort, since a verdict may be outdated.
    Down,
}

/// Picks an endpoint that has not been attempted yet; nothing if there is none, or all clusters are at their limits.
///
/// Within a cluster the less loaded of two random endpoints is taken (Mitzenmacher, "The Power of Two Choices in
/// Randomized Load Balancing", 2001).
pub fn pick<'a>(from: PickContext<'a>, random: &mut impl Rng) -> Option<Picked<'a>> {
    let mut by = |from: PickContext<'a>, eligibility| {
        from.tiers.iter().find_map(|tier| {
            let (cluster, Candidate { endpoint, detector, .. }) =
                pick_in_tier(tier, from, eligibility, random)?;
            Some(Picked { cluster, endpoint, detector, tier: tier.index })
        })
    };
    if !from.avoid.is_empty()
        && let Some(picked) = by(from, Eligibility::Good)
    {
        return Some(picked);
    }
    let anywhere = PickContext { avoid: &[], ..from };
    [Eligibility::Good, Eligibility::Ejected, Eligibility::Down]
        .into_iter()
        .find_map(|eligibility| by(anywhere, eligibility))
}

fn pick_in_tier<'a>(
    tier: &'a TierView,
    from: PickContext<'a>,
    eligibility: Eligibility,
    random: &mut impl Rng,
) -> Option<(&'a Rc<ClusterState>, &'a Candidate)> {
    let take = |weighted: &'a WeightedCluster, random: &mut _| {
        let avoided = from.avoid.iter().any(|avoided| Rc::ptr_eq(avoided, &weighted.cluster));
        if avoided {
            return None;
        }
        // First the endpoint, so that no client is evicted in vain.
        let candidate = pick_in_cluster(weighted, from, eligibility, random)?;
        if !weighted.cluster.make_headroom_for(from.client, from.now) {
            // Counted once per pick, which may visit a cluster several times.
            if eligibility == Eligibility::Good && from.avoid.is_empty() {
                weighted.cluster.counters.at_limit.add(1);
            }
            return None;
        }
        Some((&weighted.cluster, candidate))
    };
    if let [only] = tier.weighted_clusters.as_slice() {
        return take(only, random);
    }
    let total: u32 = tier.weighted_clusters.iter().map(|weighted| weighted.share).sum();
    let mut drawn = if total > 0 { random.random_range(0..total) } else { 0 };
    let start = tier
        .weighted_clusters
        .iter()
        .position(|weighted| {
            let here = drawn < weighted.share;
            drawn = drawn.saturating_sub(weighted.share);
            here
        })
        .unwrap_or(0);
    // The drawn cluster first; if it can't take the request, the others, those with a share before those without.
    let (before, after) = tier.weighted_clusters.split_at(start);
    let others = || after[1..].iter().chain(before);
    take(&after[0], random)
        .or_else(|| {
            others().filter(|weighted| weighted.share > 0).find_map(|weighted| take(weighted, random))
        })
        .or_else(|| {
            others().filter(|weighted| weighted.share == 0).find_map(|weighted| take(weighted, random))
        })
}

fn pick_in_cluster<'a>(
    weighted: &'a WeightedCluster,
    from: PickContext<'_>,
    eligibility: Eligibility,
    random: &mut impl Rng,
) -> Option<&'a Candidate> {
    let fits = |candidate: &Candidate| {
        let down = matches!(candidate.verdict, Verdict::Down | Verdict::PathDown);
        (eligibility >= Eligibility::Down || !down)
            && (eligibility >= Eligibility::Ejected || !candidate.is_ejected(from.now))
            && !from.tried.iter().any(|tried| Rc::ptr_eq(tried, &candidate.endpoint))
    };
    let count = weighted.endpoints.len();
    if count == 0 {
        return None;
    }
    let first = random.random_range(0..count);
    if count > 1 {
        let second = (first + random.random_range(1..count)) % count;
        let (a, b) = (&weighted.endpoints[first], &weighted.endpoints[second]);
        match (fits(a), fits(b)) {
            (true, true) if b.endpoint.outstanding.get() < a.endpoint.outstanding.get() => return Some(b),
            (true, _) => return Some(a),
            (false, true) => return Some(b),
            (false, false) => {}
        }
    }
    // Neither of the two is eligible: the next eligible one after a random index, so that no endpoint is favoured.
    (0..count).map(|step| &weighted.endpoints[(first + step) % count]).find(|candidate| fits(candidate))
}
