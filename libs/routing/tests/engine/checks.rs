//! Checks that every table passes.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{
    ClusterName, RegionName, ServiceName, fleet::Fleet, overrides::OverrideKind, verdict::Verdict,
};
use tidegate_routing::Engine;

use crate::world::{actions, health, region_of};

/// The clusters that overrides drain.
pub fn drained(fleet: &Fleet, overrides: &[OverrideKind]) -> BTreeSet<ClusterName> {
    let is_drained = |cluster: &ClusterName| {
        overrides.iter().any(|kind| match kind {
            OverrideKind::DrainCluster(name) => name == cluster,
            OverrideKind::EvacuateRegion(name) => *name == region_of(fleet, cluster),
            OverrideKind::DrainEdge(_) | OverrideKind::ForceRoute { .. } => false,
        })
    };
    fleet.clusters.keys().filter(|cluster| is_drained(cluster)).cloned().collect()
}

/// Checks the tiers of every service.
pub fn check_table(engine: &Engine, fleet: &Fleet, overrides: &[OverrideKind]) {
    let drained = drained(fleet, overrides);
    let all = fleet.services.iter().flat_map(|(name, service)| {
        let in_force = actions(engine, name);
        assert_eq!(in_force.len(), service.actions().count());
        service.actions().zip(in_force).map(move |(wanted, action)| (name, &wanted.clusters, action))
    });
    for (service, preference, action) in all {
        let forced = overrides.iter().find_map(|kind| match kind {
            OverrideKind::ForceRoute { service: of, cluster } if of == service => Some(cluster),
            _ => None,
        });
        let candidates: BTreeSet<&ClusterName> = preference.clusters().into_iter().chain(forced).collect();
        let verdict = |cluster: &ClusterName| health(engine, cluster).unwrap().verdict;
        let may_serve = |cluster: &ClusterName| matches!(verdict(cluster), Verdict::Up | Verdict::Unknown);

        let mut seen = BTreeSet::new();
        for tier in &action.tiers {
            assert!(tier.shares.iter().any(|(_, share)| *share > 0), "{service}: a tier without a share");
            for (cluster, _) in &tier.shares {
                assert!(candidates.contains(cluster), "{service}: {cluster} is none of its clusters");
                assert!(seen.insert(cluster), "{service}: {cluster} twice");
            }
        }
        assert!(candidates.is_empty() || !action.tiers.is_empty(), "{service}: an empty table");
        for cluster in &candidates {
            assert!(
                !may_serve(cluster) || seen.contains(*cluster),
                "{service}: {cluster} may serve, and is left out"
            );
        }
        assert!(!action.reason.is_empty());
        if action.fail_open {
            assert!(!candidates.iter().any(|c| may_serve(c)), "{service} fails open beside what serves");
            assert_eq!(seen.len(), candidates.len(), "{service} fails open, but not to all");
            continue;
        }
        let traffic = action.tiers.first().into_iter().flat_map(|tier| &tier.shares);
        let others = candidates.iter().filter(|c| !drained.contains(**c) || Some(**c) == forced);
        let others_serve = others.clone().any(|c| may_serve(c));
        for (cluster, _) in traffic {
            if others_serve {
                assert!(may_serve(cluster), "{service}: traffic to {cluster}, which is down");
                assert!(
                    !drained.contains(cluster) || forced == Some(cluster),
                    "{service}: new traffic to {cluster}, which is drained: {action:?}"
                );
            }
        }
    }
}

/// Demand in requests per second, by region, service and action.
pub type Demand = BTreeMap<(RegionName, ServiceName, usize), u32>;

/// Checks the load that the engines of all regions together send to each cluster.
pub fn check_capacity(
    engines: &[(RegionName, &Engine)],
    fleet: &Fleet,
    overrides: &[OverrideKind],
    demand: &Demand,
) {
    let drained = drained(fleet, overrides);
    let mut sent: BTreeMap<&ClusterName, f64> = BTreeMap::new();
    let mut shed: Vec<(&ServiceName, usize, &Engine)> = Vec::new();
    for (region, engine) in engines {
        let all = fleet.services.keys().flat_map(|service| {
            actions(engine, service).iter().enumerate().map(move |(at, action)| (service, at, action))
        });
        for (service, at, action) in all {
            let rate = demand.get(&(region.clone(), service.clone(), at)).copied().unwrap_or(0);
            if action.fail_open || rate == 0 {
                continue;
            }
            if action.shed_permille > 2 {
                shed.push((service, at, engine));
            }
            let whole: f64 = action.tiers[0].shares.iter().map(|(_, share)| f64::from(*share)).sum();
            let accepted = f64::from(rate) * f64::from(1000 - action.shed_permille) / 1000.0;
            for (cluster, share) in &action.tiers[0].shares {
                let clusters = fleet.clusters.get_key_value(cluster).unwrap().0;
                *sent.entry(clusters).or_default() += accepted * f64::from(*share) / whole;
            }
        }
    }
    // Shares are whole thousandths.
    let total: f64 = demand.values().map(|rate| f64::from(*rate)).sum();
    let tolerance = 2.0 + total * 0.002;
    for (cluster, sent) in &sent {
        if let Some(capacity) = fleet.clusters[*cluster].capacity {
            assert!(*sent <= f64::from(capacity) + tolerance, "{cluster} gets {sent} of {capacity}");
        }
    }
    for (service, at, engine) in shed {
        for cluster in fleet.services[service].actions().nth(at).unwrap().clusters.clusters() {
            let serves =
                health(engine, cluster).unwrap().verdict == Verdict::Up && !drained.contains(cluster);
            let headroom = fleet.clusters[cluster].capacity.map_or(f64::MAX, f64::from)
                - sent.get(cluster).copied().unwrap_or(0.0);
            assert!(
                !serves || headroom <= tolerance,
                "{service} sheds while {cluster} has headroom for {headroom}"
            );
        }
    }
}
