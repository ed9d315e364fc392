//! The effect of a hypothesis on all regions, as their route-computers compute it.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tidegate_bus::{Bus, BusError, subjects};
use tidegate_model::{ClusterName, RegionName, event::Destination, fleet::Fleet};
use tidegate_routing::{ActionEffect, ClusterEffect, Effect, EffectTotals, Hypothesis, Loss};
use tokio::task::JoinSet;

/// The most actions of a region that are listed as text.
const ACTIONS_LISTED: usize = 40;

/// The effect on each region.
#[derive(Debug, Default)]
pub struct Effects {
    /// The regions whose route-computers responded.
    pub by_region: BTreeMap<RegionName, Effect>,
    /// Why it could not be computed for the others.
    pub unknown: BTreeMap<RegionName, String>,
}

/// The regions that have edges, so that they have traffic and a route-computer, apart from those that are lost.
pub fn regions_with_edges(fleet: &Fleet, lost: &[Loss]) -> Vec<RegionName> {
    let mut regions: Vec<RegionName> = fleet
        .edges
        .values()
        .map(|edge| edge.region.clone())
        .filter(|region| !lost.contains(&Loss::Region(region.clone())))
        .collect();
    regions.sort_unstable();
    regions.dedup();
    regions
}

#[derive(serde::Deserialize)]
struct Refused {
    error: String,
}

impl Effects {
    /// Asks a route-computer of each region, all at once.
    pub async fn compute(
        bus: &Bus,
        regions: Vec<RegionName>,
        hypothesis: &Hypothesis,
        limit: Duration,
    ) -> anyhow::Result<Effects> {
        let request = Bytes::from(serde_json::to_vec(hypothesis)?);
        let mut requests = JoinSet::new();
        for region in regions {
            let (bus, request) = (bus.clone(), request.clone());
            requests.spawn(async move {
                let response = bus.request(&subjects::what_if(&region), request, limit).await;
                (region.clone(), read(&region, response))
            });
        }
        let mut effects = Effects::default();
        while let Some(done) = requests.join_next().await {
            match done? {
                (region, Ok(effect)) => _ = effects.by_region.insert(region, effect),
                (region, Err(why)) => _ = effects.unknown.insert(region, why),
            }
        }
        Ok(effects)
    }

    /// The part of all requests that leaves its cluster, in thousandths.
    pub fn moved_permille(&self) -> u16 {
        let totals = self.by_region.values().map(|effect| effect.totals);
        totals.fold(EffectTotals::default(), EffectTotals::plus).moved_share_permille()
    }

    /// The actions of all regions.
    pub fn actions(&self) -> impl Iterator<Item = (&RegionName, &ActionEffect)> {
        self.by_region
            .iter()
            .flat_map(|(region, effect)| effect.actions.iter().map(move |action| (region, action)))
    }

    /// The clusters of limited capacity. All regions compute the same unless their inputs differ.
    fn clusters(&self) -> BTreeMap<&ClusterName, &ClusterEffect> {
        let all = self.by_region.values().rev().flat_map(|effect| &effect.clusters);
        all.map(|cluster| (&cluster.cluster, cluster)).collect()
    }

    fn assumed(&self) -> Vec<&str> {
        let mut assumed: Vec<&str> =
            self.by_region.values().flat_map(|effect| &effect.assumed).map(ClusterName::as_str).collect();
        assumed.sort_unstable();
        assumed.dedup();
        assumed
    }

    /// The effect as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (region, effect) in &self.by_region {
            region_text(&mut text, region, effect);
        }
        // Writing to a String does not fail.
        for (region, why) in &self.unknown {
            _ = writeln!(text, "{region}: the effect could not be computed: {why}");
        }
        let clusters = self.clusters();
        if !clusters.is_empty() {
            text.push_str("clusters with a capacity:\n");
        }
        for cluster in clusters.values() {
            cluster_text(&mut text, cluster);
        }
        let assumed = self.assumed();
        if !assumed.is_empty() {
            _ = writeln!(text, "not probed yet, and assumed to be as before or up: {}", assumed.join(", "));
        }
        text
    }

    /// The effect as JSON. Rates are in thousandths of requests per second.
    pub fn json(&self) -> Value {
        json!({
            "moved_permille": self.moved_permille(),
            "regions": self.by_region,
            "unknown": self.unknown,
        })
    }
}

fn read(region: &RegionName, response: Result<Bytes, BusError>) -> Result<Effect, String> {
    let response = match response {
        Ok(response) => response,
        Err(BusError::NoResponder(_)) => return Err(format!("no route-computer runs for region {region}")),
        Err(BusError::TooLarge { size, limit, .. }) => {
            return Err(format!(
                "the request is larger ({size} bytes) than a message on the bus may be ({limit} bytes; `max_payload` of nats-server)"
            ));
        }
        Err(error) => return Err(error.to_string()),
    };
    if let Ok(refused) = serde_json::from_slice::<Refused>(&response) {
        return Err(refused.error);
    }
    serde_json::from_slice(&response)
        .map_err(|error| format!("the route-computer is of another version: {error}"))
}

fn region_text(text: &mut String, region: &RegionName, effect: &Effect) {
    let demand = |side: fn(&ActionEffect) -> u64| rate(effect.actions.iter().map(side).sum());
    let (before, after) = (demand(|action| action.demand_before), demand(|action| action.demand_after));
    let change = if before == after { before } else { format!("{before} -> {after}") };
    // Writing to a String does not fail.
    _ = writeln!(text, "{region}: demand {change}");
    let changed: Vec<&ActionEffect> =
        effect.actions.iter().filter(|action| action.before != action.after).collect();
    for action in changed.iter().take(ACTIONS_LISTED) {
        action_text(text, action);
    }
    if changed.len() > ACTIONS_LISTED {
        _ = writeln!(text, "    and {} more that change", changed.len() - ACTIONS_LISTED);
    }
    let rest = effect.actions.len() - changed.len() + effect.more_actions as usize;
    match (changed.len(), rest) {
        (0, _) => text.push_str("    nothing changes for any request\n"),
        (_, 0) => {}
        (_, 1) => text.push_str("    nothing changes for 1 other service or route\n"),
        (_, rest) => {
            _ = writeln!(text, "    nothing changes for {rest} other services or routes");
        }
    }
}

fn action_text(text: &mut String, action: &ActionEffect) {
    let ActionEffect { service, route, before, after, moved_permille, reason, .. } = action;
    let route = route.as_ref().map(|route| format!(" route ({route})")).unwrap_or_default();
    // Writing to a String does not fail.
    _ = match (before, after) {
        (Some(before), None) => {
            writeln!(text, "    {service}{route}: no longer served, before {}", shares(before))
        }
        (None, Some(after)) => {
            writeln!(text, "    {service}{route}: new, goes to {}: {reason}", shares(after))
        }
        (Some(before), Some(after)) => writeln!(
            text,
            "    {service}{route}: {} -> {} ({} % move): {reason}",
            shares(before),
            shares(after),
            percent(*moved_permille)
        ),
        (None, None) => Ok(()),
    };
}

fn cluster_text(text: &mut String, cluster: &ClusterEffect) {
    let ClusterEffect { cluster: name, capacity_before, capacity_after, load_before, load_after, lost } =
        cluster;
    let change =
        |before: String, after: String| if before == after { before } else { format!("{before} -> {after}") };
    let capacity = |side: Option<u64>| side.map_or_else(|| "none".to_owned(), rate);
    let headroom = match capacity_after {
        _ if *lost => ", lost".to_owned(),
        None => String::new(),
        // What rounding leaves is no headroom.
        Some(capacity) if capacity.saturating_sub(*load_after) < 1000 => ", no headroom".to_owned(),
        Some(capacity) => format!(", headroom {}", rate(capacity - load_after)),
    };
    // Writing to a String does not fail.
    _ = writeln!(
        text,
        "    {:<20} load {}, capacity {}{headroom}",
        name.as_str(),
        change(rate(*load_before), rate(*load_after)),
        change(capacity(*capacity_before), capacity(*capacity_after)),
    );
}

/// A destination in words, such as `us-1 80 %, eu-1 20 %, 5 % shed`.
pub fn shares(destination: &Destination) -> String {
    let whole: u32 = destination.shares.iter().map(|(_, share)| u32::from(*share)).sum();
    let mut parts: Vec<String> = destination
        .shares
        .iter()
        .filter(|(_, share)| *share > 0)
        .map(|(cluster, share)| {
            let permille = u32::from(*share) * 1000 / whole.max(1);
            format!("{cluster} {} %", percent(u16::try_from(permille).unwrap_or(1000)))
        })
        .collect();
    if parts.is_empty() {
        parts.push("nothing".to_owned());
    }
    if destination.fail_open {
        parts.push("though all seem down".to_owned());
    }
    if destination.shed_permille > 0 {
        parts.push(format!("{} % shed for lack of capacity", percent(destination.shed_permille)));
    }
    parts.join(", ")
}

/// Thousandths as percent.
pub fn percent(permille: u16) -> f64 {
    f64::from(permille) / 10.0
}

/// Thousandths of requests per second, rounded to whole ones.
fn rate(thousandths: u64) -> String {
    format!("{}/s", thousandths.saturating_add(500) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_told_with_what_is_shed() {
        let destination = Destination {
            shares: vec![("us-1".parse().unwrap(), 800), ("eu-1".parse().unwrap(), 200)],
            shed_permille: 143,
            fail_open: false,
        };
        assert_eq!(shares(&destination), "us-1 80 %, eu-1 20 %, 14.3 % shed for lack of capacity");
        assert_eq!(shares(&Destination::default()), "nothing");
    }

    #[test]
    fn a_full_cluster_has_no_headroom_whatever_was_rounded() {
        let mut text = String::new();
        let full = ClusterEffect {
            cluster: "eu-1".parse().unwrap(),
            capacity_before: Some(600_000),
            capacity_after: Some(600_000),
            load_before: 200_000,
            load_after: 599_999,
            lost: false,
        };
        cluster_text(&mut text, &full);
        assert!(text.contains("load 200/s -> 600/s, capacity 600/s, no headroom"), "{text}");
    }

    #[test]
    fn a_response_that_is_none_says_what_would_help() {
        let region: RegionName = "us".parse().unwrap();
        let none = read(&region, Err(BusError::NoResponder("x".to_owned()))).unwrap_err();
        assert_eq!(none, "no route-computer runs for region us");
        let refused =
            read(&region, Ok(Bytes::from_static(b"{\"error\":\"there is no fleet yet\"}"))).unwrap_err();
        assert_eq!(refused, "there is no fleet yet");
        assert!(read(&region, Ok(Bytes::from_static(b"{}"))).unwrap_err().contains("another version"));
    }
}
