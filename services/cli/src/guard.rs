//! What asks for confirmation before a fleet file is applied.

use std::collections::BTreeSet;

use tidegate_model::{
    ClusterName,
    fleet::{Fleet, Service},
};

use crate::effect::{Effects, percent};

/// What speaks against applying `after` in place of `before` without confirmation, one sentence each: a service would be
/// gone or lose its last cluster, or more than `max_moved` percent of all traffic would move.
pub fn objections(before: &Fleet, after: &Fleet, effects: &Effects, max_moved: u8) -> Vec<String> {
    let mut objections = Vec::new();
    for (name, was) in &before.services {
        let Some(is) = after.services.get(name) else {
            objections.push(format!("the service {name} would no longer be served"));
            continue;
        };
        let (had, has) = (clusters(was), clusters(is));
        if had.is_disjoint(&has) {
            objections.push(format!(
                "the service {name} would lose its last cluster: {} would serve in place of {}",
                list(&has),
                list(&had)
            ));
        }
    }
    for (region, action) in effects.actions() {
        let was_open = action.before.as_ref().is_some_and(|before| before.fail_open);
        if action.before.is_some() && !was_open && action.after.as_ref().is_some_and(|after| after.fail_open)
        {
            objections
                .push(format!("the service {} would have no cluster that is up in {region}", action.service));
        }
    }
    let moved = effects.moved_permille();
    if moved > u16::from(max_moved) * 10 {
        objections.push(format!(
            "{} % of all traffic would move to other clusters or end, which is more than {max_moved} % (--max-moved)",
            percent(moved)
        ));
    }
    // Several routes of a service may have the same.
    let mut seen = BTreeSet::new();
    objections.retain(|objection| seen.insert(objection.clone()));
    objections
}

fn clusters(service: &Service) -> BTreeSet<&ClusterName> {
    service.actions().flat_map(|action| action.clusters.clusters()).collect()
}

fn list(names: &BTreeSet<&ClusterName>) -> String {
    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use tidegate_routing::{Effect, EffectTotals};

    use super::*;

    const FLEET: &str = "
regions: { us: {} }
clusters:
  a: { region: us, endpoints: [\"127.0.0.1:1\"] }
  b: { region: us, endpoints: [\"127.0.0.1:2\"] }
edges: { e: { region: us, listeners: [web] } }
listeners: { web: { bind: \"127.0.0.1:80\", protocol: http } }
services:
  shop: { hosts: [shop.example.com], clusters: [a] }
  cart: { hosts: [cart.example.com], clusters: [a, b] }
";

    fn fleet(text: &str) -> Fleet {
        Fleet::parse(text, "fleet").unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn moved(permille: u64) -> Effects {
        let region: tidegate_model::RegionName = "us".parse().unwrap();
        let effect = Effect {
            region: region.clone(),
            actions: Vec::new(),
            more_actions: 0,
            clusters: Vec::new(),
            more_clusters: 0,
            totals: EffectTotals { demand: 1000, moved: permille, actions: 2, moved_permille: 0 },
            assumed: Vec::new(),
        };
        Effects { by_region: [(region, effect)].into(), ..Effects::default() }
    }

    #[test]
    fn a_service_that_keeps_a_cluster_asks_for_nothing() {
        let after =
            FLEET.replace("clusters: [a]", "clusters: [b, a]").replace("clusters: [a, b]", "clusters: [b]");
        assert!(objections(&fleet(FLEET), &fleet(&after), &moved(500), 50).is_empty());
    }

    #[test]
    fn a_service_without_its_last_cluster_or_gone_asks() {
        let other = objections(
            &fleet(FLEET),
            &fleet(&FLEET.replace("clusters: [a] }", "clusters: [b] }")),
            &Effects::default(),
            50,
        );
        assert_eq!(other, ["the service shop would lose its last cluster: b would serve in place of a"]);
        let gone = FLEET.replace("  shop: { hosts: [shop.example.com], clusters: [a] }\n", "");
        let gone = objections(&fleet(FLEET), &fleet(&gone), &Effects::default(), 50);
        assert_eq!(gone, ["the service shop would no longer be served"]);
    }

    #[test]
    fn more_traffic_than_the_limit_asks() {
        let fleet = fleet(FLEET);
        assert!(objections(&fleet, &fleet, &moved(500), 50).is_empty());
        let over = objections(&fleet, &fleet, &moved(501), 50);
        assert!(over[0].starts_with("50.1 % of all traffic would move"), "{over:?}");
        assert!(objections(&fleet, &fleet, &moved(1000), 100).is_empty());
    }
}
