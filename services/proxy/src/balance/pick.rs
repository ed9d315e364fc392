//! Picks the endpoint of an attempt: tiers in order, clusters by share, endpoints by power of two choices.

use std::{rc::Rc, sync::Arc};

use rand::{Rng, RngExt as _};
use tidegate_model::verdict::Verdict;
use tokio::time::Instant;

use crate::{
    clients::Network,
    metrics::ServingCounters,
    upstream::{ClusterState, EndpointState, Fare, Tally},
};

/// The clusters of one failover priority.
pub struct TierView {
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
    /// What is counted of the service's requests that it answers in this tier.
    pub serving: Arc<ServingCounters>,
}

/// An endpoint for one action.
pub struct Candidate {
    /// The endpoint.
    pub endpoint: Rc<EndpointState>,
    /// The verdict by the service's check.
    pub verdict: Verdict,
    /// How the action fares there.
    pub tally: Rc<Tally>,
}

impl Candidate {
    /// Whether its own failures keep the action's requests away at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.endpoint.is_ejected(now) || self.tally.is_ejected(now)
    }
}

impl WeightedCluster {
    /// Ejects an endpoint whose requests have this tally from the action, if it fares badly enough beside the others, half of
    /// which stay. (Envoy's `max_ejection_percent` is 10 by default, for larger clusters.) Returns whether it did.
    pub fn judge(&self, tally: &Rc<Tally>, now: Instant) -> bool {
        let Some(own) = self.endpoints.iter().find(|candidate| Rc::ptr_eq(&candidate.tally, tally)) else {
            return false;
        };
        let others = self.endpoints.iter().filter(|candidate| !Rc::ptr_eq(&candidate.tally, tally));
        let fares: Vec<Fare> = others.map(|candidate| candidate.tally.fare(now)).collect();
        let ejected = self.endpoints.iter().filter(|candidate| candidate.is_ejected(now)).count();
        let may_eject = (ejected + 1) * 2 <= self.endpoints.len();
        tally.judge(&fares, may_eject, own.verdict == Verdict::Up, now)
    }
}

impl TierView {
    /// The tier's weighted cluster.
    pub fn of(&self, cluster: &Rc<ClusterState>) -> Option<&WeightedCluster> {
        self.weighted_clusters.iter().find(|weighted| Rc::ptr_eq(&weighted.cluster, cluster))
    }
}

/// What a pick may choose from.
#[derive(Clone, Copy)]
pub struct Candidates<'a> {
    /// The tiers, in order.
    pub tiers: &'a [TierView],
    /// Endpoints that failed this request already.
    pub tried: &'a [Rc<EndpointState>],
    /// Clusters to leave alone while another can take the request.
    pub avoid: &'a [Rc<ClusterState>],
    /// The time, for ejections.
    pub now: Instant,
    /// The client's network.
    pub client: Network,
}

/// Where an attempt goes.
pub struct Picked<'a> {
    /// The cluster and its tier.
    pub cluster: &'a Rc<ClusterState>,
    /// The endpoint.
    pub endpoint: &'a Rc<EndpointState>,
    /// How the action fares there.
    pub tally: &'a Rc<Tally>,
    /// The tier's place, from 0.
    pub tier: usize,
}

/// How much an endpoint may have against it to be picked.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Eligibility {
    /// Up, not ejected, with room.
    Good,
    /// Ejected: better than nothing (Envoy's panic threshold has the same thought).
    Ejected,
    /// Down by the verdict: the last resort, since a verdict may be late.
    Down,
}

/// Picks an endpoint that was not tried yet; nothing when there is none, or all clusters are at their limit.
///
/// Within a cluster the less loaded of two random endpoints is taken (Mitzenmacher, "The Power of Two Choices in
/// Randomized Load Balancing", 2001).
pub fn pick<'a>(from: Candidates<'a>, random: &mut impl Rng) -> Option<Picked<'a>> {
    let mut by = |from: Candidates<'a>, eligibility| {
        from.tiers.iter().enumerate().find_map(|(place, tier)| {
            let (cluster, Candidate { endpoint, tally, .. }) = pick_in_tier(tier, from, eligibility, random)?;
            Some(Picked { cluster, endpoint, tally, tier: place })
        })
    };
    if !from.avoid.is_empty()
        && let Some(picked) = by(from, Eligibility::Good)
    {
        return Some(picked);
    }
    let anywhere = Candidates { avoid: &[], ..from };
    [Eligibility::Good, Eligibility::Ejected, Eligibility::Down]
        .into_iter()
        .find_map(|eligibility| by(anywhere, eligibility))
}

fn pick_in_tier<'a>(
    tier: &'a TierView,
    from: Candidates<'a>,
    eligibility: Eligibility,
    random: &mut impl Rng,
) -> Option<(&'a Rc<ClusterState>, &'a Candidate)> {
    let take = |weighted: &'a WeightedCluster, random: &mut _| {
        let avoided = from.avoid.iter().any(|avoided| Rc::ptr_eq(avoided, &weighted.cluster));
        if avoided {
            return None;
        }
        // First the endpoint, so that no client is given up where nothing comes of it.
        let candidate = pick_in_cluster(weighted, from, eligibility, random)?;
        if !weighted.cluster.make_headroom_for(from.client, from.now) {
            // Counted once for a pick, which may come by several times.
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
    // The drawn cluster first; when it can't take the request, the others, those with a share before those without.
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
    from: Candidates<'_>,
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
    // Neither of the two fits: any that does, from a random place on so that no endpoint is favoured.
    (0..count).map(|step| &weighted.endpoints[(first + step) % count]).find(|candidate| fits(candidate))
}
