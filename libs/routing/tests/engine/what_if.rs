//! Hypotheses: their effect is what the engine would decide, and nothing changes by asking.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{
    ClusterName,
    event::Destination,
    fleet::Fleet,
    overrides::{Override, OverrideKind},
};
use tidegate_routing::{ActionEffect, Effect, Hypothesis, HypothesisError, Loss, RouteEvent};

use crate::world::{Builder, World, load, name, over};

const FLEET: &str = "
regions:
  us: { location: [38.9, -77.4] }
  eu: { location: [53.3, -6.3] }
clusters:
  us-1: { region: us, endpoints: [\"10.0.0.1:80\"], capacity: 1000 }
  eu-1: { region: eu, endpoints: [\"10.0.1.1:80\"], capacity: 600 }
edges:
  e-us: { region: us, listeners: [web] }
  e1-us: { region: us, listeners: [web] }
  e-eu: { region: eu, listeners: [web] }
listeners: { web: { bind: \"127.0.0.1:80\", protocol: http } }
services:
  shop: { hosts: [shop.example.com], clusters: { nearest: [us-1, eu-1] } }
";
const CLUSTERS: &[&str] = &["us-1", "eu-1"];

/// An engine of the region, to which all clusters are up, with 500 requests per second in us and 200 in eu.
fn world(region: &str) -> World {
    let fleet = Fleet::parse(FLEET, "fleet").unwrap_or_else(|errors| panic!("{errors}"));
    let mut world = World::new(region, &Builder(fleet));
    for region in ["us", "eu"] {
        world.report(region, "p", CLUSTERS, true);
    }
    world.apply(load("us", "e", &[("shop", 300)]));
    world.apply(load("us", "e1", &[("shop", 200)]));
    world.apply(load("eu", "e", &[("shop", 200)]));
    world.tick_until(1500);
    world
}

fn effect(world: &World, hypothesis: &Hypothesis) -> Effect {
    world.engine.clone().what_if(hypothesis).unwrap()
}

fn shop(effect: &Effect) -> &ActionEffect {
    effect.actions.iter().find(|action| action.service.as_str() == "shop").unwrap()
}

fn shares(destination: Option<&Destination>) -> Vec<(&str, u16)> {
    destination.unwrap().shares.iter().map(|(name, share)| (name.as_str(), *share)).collect()
}

fn loads(effect: &Effect) -> BTreeMap<&str, (u64, u64)> {
    let rate = |cluster: &tidegate_routing::ClusterEffect| {
        (cluster.load_before.div_ceil(1000), cluster.load_after.div_ceil(1000))
    };
    effect.clusters.iter().map(|cluster| (cluster.cluster.as_str(), rate(cluster))).collect()
}

fn lose(lost: &[&str]) -> Hypothesis {
    Hypothesis { lost: lost.iter().map(|text| text.parse().unwrap()).collect(), ..Hypothesis::default() }
}

#[test]
fn the_fleet_that_is_there_changes_nothing() {
    for fleet in [None, Some(FLEET.to_owned())] {
        let effect = effect(&world("us"), &Hypothesis { fleet, ..Hypothesis::default() });
        assert!(effect.actions.iter().all(|action| !action.is_changed()), "{effect:?}");
        assert!(
            effect.clusters.iter().all(|cluster| cluster.load_before == cluster.load_after),
            "{effect:?}"
        );
        assert_eq!((effect.totals.moved_share_permille(), effect.totals.demand), (0, 500_000));
        assert!(effect.assumed.is_empty());
    }
}

#[test]
fn a_lost_cluster_leaves_the_shares_that_its_real_loss_leaves() {
    let mut world = world("us");
    let assumed = effect(&world, &lose(&["cluster=us-1"]));
    let action = shop(&assumed);
    assert_eq!(shares(action.before.as_ref()), [("us-1", 1000)]);
    // 700 requests per second come to 600 of capacity.
    assert_eq!(shares(action.after.as_ref()), [("eu-1", 1000)]);
    assert_eq!(action.after.as_ref().unwrap().shed_permille, 143);
    assert_eq!(action.moved_permille, 1000);
    assert_eq!(loads(&assumed)["eu-1"], (200, 600));
    assert_eq!(world.shares("shop")[0], [("us-1", 1000)], "asking changes nothing");

    for region in ["us", "eu"] {
        world.report(region, "p", &["us-1"], false);
    }
    assert_eq!(world.shares("shop")[0], [("eu-1", 1000)]);
    assert_eq!(world.tiers("shop").shed_permille, action.after.as_ref().unwrap().shed_permille);
}

#[test]
fn the_users_of_a_lost_region_come_to_the_nearest_one_with_an_edge() {
    let effect = effect(&world("eu"), &lose(&["region=us"]));
    let action = shop(&effect);
    assert_eq!((action.demand_before, action.demand_after), (200_000, 700_000));
    assert_eq!(shares(action.after.as_ref()), [("eu-1", 1000)]);
    assert_eq!(action.after.as_ref().unwrap().shed_permille, 143);
    assert_eq!(loads(&effect)["us-1"], (500, 0));
}

#[test]
fn a_lost_edge_leaves_its_users_to_the_regions_others_and_the_last_one_to_the_next_region() {
    let one = effect(&world("us"), &lose(&["edge=e-us"]));
    assert!(!shop(&one).is_changed(), "{one:?}");
    let both = effect(&world("eu"), &lose(&["edge=e-us", "edge=e1-us"]));
    assert_eq!(shop(&both).demand_after, 700_000);
    assert_eq!(shares(shop(&both).after.as_ref())[0].0, "eu-1");
}

#[test]
fn more_demand_spills_to_the_next_cluster_and_what_exceeds_all_is_shed() {
    let more = |demand_permille| Hypothesis { demand_permille, ..Hypothesis::default() };
    let spills = effect(&world("us"), &more(2200));
    assert_eq!(loads(&spills)["us-1"], (500, 1000));
    assert_eq!(loads(&spills)["eu-1"], (200, 540));
    let sheds = effect(&world("us"), &more(4000));
    assert!(shop(&sheds).after.as_ref().unwrap().shed_permille > 0, "{sheds:?}");
}

#[test]
fn another_fleet_has_the_effect_that_it_has_once_applied_and_probed() {
    // Given a fleet with other shares, and one more cluster that nobody has probed.
    let text = FLEET
        .replace("nearest: [us-1, eu-1]", "weights: { us-1: 250, eu-1: 250, us-2: 500 }")
        .replace("edges:\n", "  us-2: { region: us, endpoints: [\"10.0.2.1:80\"] }\nedges:\n");

    // When its effect is computed.
    let mut world = world("us");
    let assumed = effect(&world, &Hypothesis { fleet: Some(text.clone()), ..Hypothesis::default() });

    // Then the new cluster is assumed to be up, and it is as after the fleet was applied and the cluster probed.
    assert_eq!(assumed.assumed, [name("us-2")]);
    let action = shop(&assumed);
    assert_eq!(action.moved_permille, 750);
    assert_eq!(assumed.totals.moved_share_permille(), 750);
    world.fleet = Arc::new(Fleet::parse(&text, "fleet").unwrap());
    world.apply(RouteEvent::Fleet(world.fleet.clone()));
    for region in ["us", "eu"] {
        world.report(region, "p", &["us-2"], true);
    }
    world.tick_until(3000);
    assert_eq!(world.shares("shop")[0], shares(action.after.as_ref()));
}

#[test]
fn another_health_check_leaves_clusters_as_they_are() {
    let mut world = world("us");
    for region in ["us", "eu"] {
        world.report(region, "p", &["us-1"], false);
    }
    let text = FLEET.replace("clusters: { nearest", "health: { path: /healthz }, clusters: { nearest");
    let effect = effect(&world, &Hypothesis { fleet: Some(text), ..Hypothesis::default() });
    assert!(!shop(&effect).is_changed(), "{effect:?}");
    assert_eq!(effect.assumed, [name::<ClusterName>("eu-1"), name("us-1")]);
}

#[test]
fn overrides_that_would_be_created_or_withdrawn_take_part() {
    let mut world = world("us");
    let drain: Override = over(OverrideKind::DrainCluster(name("us-1")), None);
    let drained = effect(&world, &Hypothesis { overrides: vec![drain.clone()], ..Hypothesis::default() });
    assert_eq!(shares(shop(&drained).after.as_ref()), [("eu-1", 1000)]);

    world.apply(crate::world::overrides(std::slice::from_ref(&drain.kind)));
    let back = effect(&world, &Hypothesis { withdrawn: vec![drain.kind], ..Hypothesis::default() });
    // It comes back by slow start.
    assert!(shares(shop(&back).after.as_ref()).iter().any(|(cluster, _)| *cluster == "us-1"), "{back:?}");
}

#[test]
fn a_service_that_is_gone_has_moved_and_a_new_one_has_not() {
    let text = FLEET.replace("  shop:", "  cart:");
    let effect = effect(&world("us"), &Hypothesis { fleet: Some(text), ..Hypothesis::default() });
    let of = |service: &str| effect.actions.iter().find(|action| action.service.as_str() == service).unwrap();
    assert_eq!((of("shop").after.as_ref(), of("shop").moved_permille), (None, 1000));
    assert_eq!((of("cart").before.as_ref(), of("cart").moved_permille), (None, 0));
    assert_eq!(effect.totals.moved_share_permille(), 1000);
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let refused = |hypothesis: &Hypothesis| world("us").engine.what_if(hypothesis).unwrap_err();
    assert_eq!(refused(&lose(&["cluster=us-9"])), HypothesisError::Unknown(Loss::Cluster(name("us-9"))));
    assert!(matches!(
        refused(&Hypothesis { fleet: Some("regions: 7".to_owned()), ..Hypothesis::default() }),
        HypothesisError::Fleet(_)
    ));
    let many = Hypothesis { lost: vec![Loss::Region(name("us")); 1001], ..Hypothesis::default() };
    assert!(matches!(refused(&many), HypothesisError::TooLarge(_)));
    let engine = tidegate_routing::Engine::new(tidegate_routing::Settings::new(name("us")));
    assert_eq!(engine.what_if(&Hypothesis::default()), Err(HypothesisError::NoFleet));
}
