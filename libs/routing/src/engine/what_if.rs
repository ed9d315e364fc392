//! The effect of a hypothesis, computed by what computes the table: a copy of the engine applies it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidegate_model::{
    ClusterName, RegionName, ServiceName,
    event::Destination,
    fleet::{Fleet, RouteMatch, Service},
    routes::ActionTiers,
    verdict::Verdict,
};

use super::{Engine, Pair, Work, allocations::Allocations, inputs::all_checks};
use crate::{
    capacity::Placement,
    demand::Rates,
    event::RouteEvent,
    fleet_index::FleetIndex,
    overrides::Overrides,
    proximity::Proximity,
    regional_health::ClusterHealth,
    what_if::{ActionEffect, ClusterEffect, Effect, EffectTotals, Hypothesis, HypothesisError, Loss},
};

/// An action by what it is for: its index may differ between two fleets.
type ActionKey = (ServiceName, Option<RouteMatch>);

/// What an engine decides about one action.
struct Decision {
    /// Thousandths of requests per second, from the home region.
    demand: u64,
    tiers: ActionTiers,
}

impl Engine {
    /// The effect of a hypothesis on the home region's requests. Uses the engine up: give it a clone.
    ///
    /// # Errors
    /// When the hypothesis cannot be computed.
    pub fn what_if(mut self, hypothesis: &Hypothesis) -> Result<Effect, HypothesisError> {
        let before_fleet = self.index.as_ref().ok_or(HypothesisError::NoFleet)?.fleet.clone();
        let after_fleet = match &hypothesis.fleet {
            None => before_fleet.clone(),
            Some(text) => Arc::new(Fleet::parse(text, "fleet").map_err(|errors| {
                HypothesisError::Fleet(errors.iter().next().map(ToString::to_string).unwrap_or_default())
            })?),
        };
        check(hypothesis, &after_fleet)?;
        let region = self.settings.region.clone();

        let rates = self.demand.rates_by_region();
        self.assume_demand(&rates);
        let before = self.decisions(&rates);
        let clusters_before = self.limited_clusters();

        let health_before = self.health.clone();
        self.apply(RouteEvent::Fleet(after_fleet.clone()), self.now);
        self.apply_hypothetical_overrides(hypothesis);
        let assumed = self.assume_health(&health_before);
        let lost = self.lose_clusters(&hypothesis.lost);
        let rates = rates_after(&rates, &before_fleet, &after_fleet, hypothesis);
        self.assume_demand(&rates);
        let after = self.decisions(&rates);
        let clusters_after = self.limited_clusters();

        let (actions, totals) = action_effects(&before, &after);
        let mut effect = Effect {
            region,
            more_actions: excess(actions.len(), Effect::MOST_ACTIONS),
            actions,
            clusters: cluster_effects(&clusters_before, &clusters_after, &lost),
            more_clusters: 0,
            totals,
            assumed,
        };
        effect.more_clusters = excess(effect.clusters.len(), Effect::MOST_CLUSTERS);
        effect.actions.truncate(Effect::MOST_ACTIONS);
        effect.clusters.truncate(Effect::MOST_CLUSTERS);
        effect.assumed.truncate(Effect::MOST_CLUSTERS);
        Ok(effect)
    }

    /// Sets all demand to `rates`, and computes all shares by it.
    fn assume_demand(&mut self, rates: &BTreeMap<RegionName, Rates>) {
        let Some(index) = &self.index else { return };
        self.demand.assume(rates, index);
        let (classes, regions, clusters) =
            (index.classes().len(), index.regions().len(), index.clusters().len());
        let services = index.services().map(|(id, _)| id).collect();
        // Without the allocations of demand that is no longer there.
        self.allocations = Allocations::new(classes, regions, clusters);
        self.placements = vec![Placement::default(); classes];
        self.recompute(Work { services, ..Work::default() });
    }

    fn apply_hypothetical_overrides(&mut self, hypothesis: &Hypothesis) {
        if hypothesis.overrides.is_empty() && hypothesis.withdrawn.is_empty() {
            return;
        }
        let after: Overrides =
            self.overrides.replaced(&hypothesis.overrides, &hypothesis.withdrawn, self.now);
        let mut work = Work::default();
        self.replace_overrides(after, &BTreeMap::new(), self.now, &mut work);
        self.recompute(work);
    }

    /// Assumes the health of what is new and was never probed: that of the cluster before, or else up.
    fn assume_health(&mut self, before: &BTreeMap<Pair, ClusterHealth>) -> Vec<ClusterName> {
        let is_unknown = |health: &ClusterHealth| health.verdict.verdict == Verdict::Unknown;
        let unknown: Vec<Pair> = self
            .health
            .iter()
            .filter(|(_, health)| is_unknown(health))
            .map(|(pair, _)| pair.clone())
            .collect();
        let mut assumed = BTreeSet::new();
        for pair in unknown {
            if before.get(&pair).is_some_and(is_unknown) {
                continue;
            }
            let mut known = before.range(all_checks(&pair.0)).filter(|(_, health)| !is_unknown(health));
            let health = match before.get(&pair).or_else(|| known.next().map(|(_, health)| health)) {
                Some(health) => health.clone(),
                None => self.assumed_health(&pair.0, true),
            };
            assumed.insert(pair.0.clone());
            self.health.insert(pair, health);
        }
        assumed.into_iter().collect()
    }

    fn assumed_health(&self, cluster: &ClusterName, is_up: bool) -> ClusterHealth {
        let endpoints = self.index.as_ref().and_then(|index| index.fleet.clusters.get(cluster));
        let endpoints = endpoints.map(|cluster| cluster.endpoints.as_slice()).unwrap_or_default();
        ClusterHealth::assumed(endpoints, &self.settings.region, is_up)
    }

    /// Takes clusters for down everywhere, and returns them.
    fn lose_clusters(&mut self, lost: &[Loss]) -> BTreeSet<ClusterName> {
        let Some(index) = &self.index else { return BTreeSet::new() };
        let is_lost = |name: &ClusterName| {
            lost.iter().any(|loss| match loss {
                Loss::Cluster(cluster) => cluster == name,
                Loss::Region(region) => {
                    index.fleet.clusters.get(name).is_some_and(|cluster| cluster.region == *region)
                }
                Loss::Edge(_) => false,
            })
        };
        let all: BTreeSet<ClusterName> =
            index.fleet.clusters.keys().filter(|name| is_lost(name)).cloned().collect();
        let pairs: Vec<Pair> =
            self.users.keys().filter(|(cluster, _)| all.contains(cluster)).cloned().collect();
        for pair in pairs {
            let health = self.assumed_health(&pair.0, false);
            self.health.insert(pair, health);
        }
        all
    }

    /// What it decides about each action, with the demand from the home region.
    fn decisions(&self, rates: &BTreeMap<RegionName, Rates>) -> BTreeMap<ActionKey, Decision> {
        let Some(index) = &self.index else { return BTreeMap::new() };
        let home = rates.get(&self.settings.region);
        let mut decisions = BTreeMap::new();
        for (name, service) in &index.fleet.services {
            let rates = home.and_then(|home| home.get(name));
            for ((key, at), tiers) in action_keys(name, service).zip(0..).zip(self.tiers_of(name)) {
                let demand = rates.and_then(|rates: &Vec<u64>| rates.get(at)).copied().unwrap_or(0);
                decisions.insert(key, Decision { demand, tiers: tiers.clone() });
            }
        }
        decisions
    }

    /// The clusters of limited capacity, with their capacity and load in thousandths of requests per second.
    fn limited_clusters(&self) -> BTreeMap<ClusterName, (u64, u64)> {
        let clusters = self.index.iter().flat_map(FleetIndex::clusters);
        clusters
            .filter_map(|(id, cluster)| {
                Some((cluster.name.clone(), (u64::from(cluster.capacity?) * 1000, self.load_of(id))))
            })
            .collect()
    }
}

fn check(hypothesis: &Hypothesis, fleet: &Fleet) -> Result<(), HypothesisError> {
    let Hypothesis { overrides, withdrawn, lost, demand_permille, .. } = hypothesis;
    if [overrides.len(), withdrawn.len(), lost.len()].iter().any(|count| *count > Hypothesis::MOST_ITEMS) {
        return Err(HypothesisError::TooLarge("too many overrides or losses"));
    }
    if *demand_permille > Hypothesis::MOST_DEMAND_PERMILLE {
        return Err(HypothesisError::TooLarge("the factor of demand"));
    }
    let is_known = |loss: &Loss| match loss {
        Loss::Region(name) => fleet.regions.contains_key(name),
        Loss::Cluster(name) => fleet.clusters.contains_key(name),
        Loss::Edge(name) => fleet.edges.contains_key(name),
    };
    match lost.iter().find(|loss| !is_known(loss)) {
        Some(loss) => Err(HypothesisError::Unknown(loss.clone())),
        None => Ok(()),
    }
}

/// The actions of a service in the order of the fleet file. A match that occurs twice is one: the second gets no requests.
fn action_keys(name: &ServiceName, service: &Service) -> impl Iterator<Item = ActionKey> {
    let routes = service.routes.iter().map(|route| Some(route.matches.clone()));
    let keys: Vec<ActionKey> =
        std::iter::once(None).chain(routes).map(|route| (name.clone(), route)).collect();
    keys.into_iter()
}

/// The demand of each region after the hypothesis: actions keep theirs, those of a region without an edge come to the nearest
/// region with one, and all of it grows by the factor.
fn rates_after(
    rates: &BTreeMap<RegionName, Rates>,
    before: &Fleet,
    after: &Fleet,
    hypothesis: &Hypothesis,
) -> BTreeMap<RegionName, Rates> {
    let lost = &hypothesis.lost;
    let surviving: BTreeSet<&RegionName> = after
        .edges
        .iter()
        .filter(|(name, edge)| {
            !lost.iter().any(|loss| match loss {
                Loss::Edge(lost) => lost == *name,
                Loss::Region(lost) => *lost == edge.region,
                Loss::Cluster(_) => false,
            })
        })
        .map(|(_, edge)| &edge.region)
        .collect();
    let mut result: BTreeMap<RegionName, Rates> = BTreeMap::new();
    for (region, rates) in rates {
        let fleet = if after.regions.contains_key(region) { after } else { before };
        let nearest = || {
            surviving.iter().copied().min_by_key(|other| Proximity::between(fleet, region, other).latency_us)
        };
        let target = if surviving.contains(region) { Some(region) } else { nearest() };
        let Some(target) = target else { continue };
        let sums = result.entry(target.clone()).or_default();
        for (name, rates) in rates {
            let (Some(was), Some(is)) = (before.services.get(name), after.services.get(name)) else {
                continue;
            };
            let positions: BTreeMap<ActionKey, usize> = action_keys(name, is).zip(0..).collect();
            let sums = sums.entry(name.clone()).or_default();
            sums.resize(is.routes.len() + 1, 0);
            for (key, rate) in action_keys(name, was).zip(rates) {
                // Without its route, a request takes another one or the default.
                let at = positions.get(&key).copied().unwrap_or(0);
                let scaled = u128::from(*rate) * u128::from(hypothesis.demand_permille) / 1000;
                sums[at] = sums[at].saturating_add(u64::try_from(scaled).unwrap_or(u64::MAX));
            }
        }
    }
    result
}

fn action_effects(
    before: &BTreeMap<ActionKey, Decision>,
    after: &BTreeMap<ActionKey, Decision>,
) -> (Vec<ActionEffect>, EffectTotals) {
    let keys: BTreeSet<&ActionKey> = before.keys().chain(after.keys()).collect();
    let mut totals = EffectTotals::default();
    let mut effects = Vec::with_capacity(keys.len());
    for key in keys {
        let (was, is) = (before.get(key), after.get(key));
        let demand = |side: Option<&Decision>| side.map_or(0, |decision| decision.demand);
        let destination = |side: Option<&Decision>| side.map(|decision| destination(&decision.tiers));
        // As in `rates_after`: without its route, a request takes the default.
        let heir = is.is_none().then(|| after.get(&(key.0.clone(), None))).flatten();
        let (from, to) = (destination(was), destination(is.or(heir)));
        let moved_permille = moved_permille(from.as_ref(), to.as_ref());
        if was.is_some() {
            totals.demand += demand(was);
            totals.moved += demand(was) * u64::from(moved_permille) / 1000;
            totals.actions += 1;
            totals.moved_permille += u64::from(moved_permille);
        }
        effects.push(ActionEffect {
            service: key.0.clone(),
            route: key.1.clone(),
            demand_before: demand(was),
            demand_after: demand(is),
            before: from,
            after: to,
            moved_permille,
            reason: match (is, heir) {
                (Some(decision), _) => decision.tiers.reason.clone(),
                (None, Some(heir)) => {
                    format!(
                        "the route is gone, its requests take the service's default: {}",
                        heir.tiers.reason
                    )
                }
                (None, None) => String::new(),
            },
        });
    }
    // Those that move most first; among equals in the order of names.
    effects.sort_by_key(|effect| (!effect.is_changed(), std::cmp::Reverse(effect.moved_permille)));
    (effects, totals)
}

fn cluster_effects(
    before: &BTreeMap<ClusterName, (u64, u64)>,
    after: &BTreeMap<ClusterName, (u64, u64)>,
    lost: &BTreeSet<ClusterName>,
) -> Vec<ClusterEffect> {
    let names: BTreeSet<&ClusterName> = before.keys().chain(after.keys()).collect();
    let effect = |name: &ClusterName| {
        let (was, is) = (before.get(name), after.get(name));
        ClusterEffect {
            cluster: name.clone(),
            capacity_before: was.map(|(capacity, _)| *capacity),
            capacity_after: is.map(|(capacity, _)| *capacity),
            load_before: was.map_or(0, |(_, load)| *load),
            load_after: is.map_or(0, |(_, load)| *load),
            lost: lost.contains(name),
        }
    };
    let mut effects: Vec<ClusterEffect> = names.into_iter().map(effect).collect();
    effects.sort_by_key(|effect| effect.load_before == effect.load_after);
    effects
}

/// The first tier, in shares of 1000.
fn destination(tiers: &ActionTiers) -> Destination {
    Destination {
        shares: tiers.tiers.first().map(|tier| tier.shares.clone()).unwrap_or_default(),
        shed_permille: tiers.shed_permille,
        fail_open: tiers.fail_open,
    }
}

/// The part of the requests that leaves its cluster, in thousandths. Requests of an action that is gone leave theirs.
fn moved_permille(before: Option<&Destination>, after: Option<&Destination>) -> u16 {
    let Some(before) = before else { return 0 };
    let part = |side: &Destination, cluster: &ClusterName| -> u64 {
        let whole: u64 = side.shares.iter().map(|(_, share)| u64::from(*share)).sum();
        let share = side.shares.iter().find(|(name, _)| name == cluster).map_or(0, |(_, share)| *share);
        u64::from(share) * u64::from(1000 - side.shed_permille.min(1000)) / whole.max(1)
    };
    let leaves = before.shares.iter().map(|(cluster, _)| {
        part(before, cluster).saturating_sub(after.map_or(0, |after| part(after, cluster)))
    });
    u16::try_from(leaves.sum::<u64>().min(1000)).unwrap_or(1000)
}

fn excess(count: usize, most: usize) -> u32 {
    u32::try_from(count.saturating_sub(most)).unwrap_or(u32::MAX)
}
