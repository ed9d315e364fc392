//! Picks the endpoint of a try: tiers in order, clusters by share, endpoints by power of two choices.

use std::{rc::Rc, sync::Arc};

use rand::{Rng, RngExt as _};
use tidegate_model::verdict::Verdict;
use tokio::time::Instant;

use crate::{
    clients::Network,
    metrics::ServingCounters,
    upstream::{Cluster, Endpoint, Fare, Tally},
};

/// The clusters of one failover priority.
pub struct TierView {
    /// Its clusters.
    pub choices: Vec<Choice>,
}

/// A cluster within a tier.
pub struct Choice {
    /// Its share of the tier's requests, relative to the others'.
    pub share: u32,
    /// The cluster.
    pub cluster: Rc<Cluster>,
    /// Its endpoints.
    pub endpoints: Vec<Candidate>,
    /// What is counted of the service's requests that it answers in this tier.
    pub serving: Arc<ServingCounters>,
}

/// An endpoint for one action.
pub struct Candidate {
    /// The endpoint.
    pub endpoint: Rc<Endpoint>,
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

impl Choice {
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
    /// The tier's choice of a cluster.
    pub fn of(&self, cluster: &Rc<Cluster>) -> Option<&Choice> {
        self.choices.iter().find(|choice| Rc::ptr_eq(&choice.cluster, cluster))
    }
}

/// What a pick may choose from.
#[derive(Clone, Copy)]
pub struct Candidates<'a> {
    /// The tiers, in order.
    pub tiers: &'a [TierView],
    /// Endpoints that failed this request already.
    pub tried: &'a [Rc<Endpoint>],
    /// Clusters to leave alone while another can take the request.
    pub avoid: &'a [Rc<Cluster>],
    /// The time, for ejections.
    pub now: Instant,
    /// The client's network.
    pub client: Network,
}

/// Where a try goes.
pub struct Picked<'a> {
    /// The cluster and its tier.
    pub cluster: &'a Rc<Cluster>,
    /// The endpoint.
    pub endpoint: &'a Rc<Endpoint>,
    /// How the action fares there.
    pub tally: &'a Rc<Tally>,
    /// The tier's place, from 0.
    pub tier: usize,
}

/// How much an endpoint may have against it to be picked.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Standard {
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
    let mut by = |from: Candidates<'a>, standard| {
        from.tiers.iter().enumerate().find_map(|(place, tier)| {
            let (cluster, Candidate { endpoint, tally, .. }) = pick_in_tier(tier, from, standard, random)?;
            Some(Picked { cluster, endpoint, tally, tier: place })
        })
    };
    if !from.avoid.is_empty()
        && let Some(picked) = by(from, Standard::Good)
    {
        return Some(picked);
    }
    let anywhere = Candidates { avoid: &[], ..from };
    [Standard::Good, Standard::Ejected, Standard::Down]
        .into_iter()
        .find_map(|standard| by(anywhere, standard))
}

fn pick_in_tier<'a>(
    tier: &'a TierView,
    from: Candidates<'a>,
    standard: Standard,
    random: &mut impl Rng,
) -> Option<(&'a Rc<Cluster>, &'a Candidate)> {
    let take = |choice: &'a Choice, random: &mut _| {
        let avoided = from.avoid.iter().any(|avoided| Rc::ptr_eq(avoided, &choice.cluster));
        if avoided {
            return None;
        }
        // First the endpoint, so that no client is given up where nothing comes of it.
        let candidate = pick_in_cluster(choice, from, standard, random)?;
        if !choice.cluster.make_headroom_for(from.client, from.now) {
            // Counted once for a pick, which may come by several times.
            if standard == Standard::Good && from.avoid.is_empty() {
                choice.cluster.counters.at_limit.add(1);
            }
            return None;
        }
        Some((&choice.cluster, candidate))
    };
    if let [only] = tier.choices.as_slice() {
        return take(only, random);
    }
    let total: u32 = tier.choices.iter().map(|choice| choice.share).sum();
    let mut drawn = if total > 0 { random.random_range(0..total) } else { 0 };
    let start = tier
        .choices
        .iter()
        .position(|choice| {
            let here = drawn < choice.share;
            drawn = drawn.saturating_sub(choice.share);
            here
        })
        .unwrap_or(0);
    // The drawn cluster first; when it can't take the request, the others, those with a share before those without.
    let (before, after) = tier.choices.split_at(start);
    let others = || after[1..].iter().chain(before);
    take(&after[0], random)
        .or_else(|| others().filter(|choice| choice.share > 0).find_map(|choice| take(choice, random)))
        .or_else(|| others().filter(|choice| choice.share == 0).find_map(|choice| take(choice, random)))
}

fn pick_in_cluster<'a>(
    choice: &'a Choice,
    from: Candidates<'_>,
    standard: Standard,
    random: &mut impl Rng,
) -> Option<&'a Candidate> {
    let fits = |candidate: &Candidate| {
        let down = matches!(candidate.verdict, Verdict::Down | Verdict::PathDown);
        (standard >= Standard::Down || !down)
            && (standard >= Standard::Ejected || !candidate.is_ejected(from.now))
            && !from.tried.iter().any(|tried| Rc::ptr_eq(tried, &candidate.endpoint))
    };
    let count = choice.endpoints.len();
    if count == 0 {
        return None;
    }
    let first = random.random_range(0..count);
    if count > 1 {
        let second = (first + random.random_range(1..count)) % count;
        let (a, b) = (&choice.endpoints[first], &choice.endpoints[second]);
        match (fits(a), fits(b)) {
            (true, true) if b.endpoint.outstanding.get() < a.endpoint.outstanding.get() => return Some(b),
            (true, _) => return Some(a),
            (false, true) => return Some(b),
            (false, false) => {}
        }
    }
    // Neither of the two fits: any that does, from a random place on so that no endpoint is favoured.
    (0..count).map(|step| &choice.endpoints[(first + step) % count]).find(|candidate| fits(candidate))
}
