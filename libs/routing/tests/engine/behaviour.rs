//! Single behaviours, as an operator would describe them.

use std::collections::BTreeMap;

use tidegate_model::{
    Timestamp,
    observation::{Failure, Observation, ObservationCause, ProbeOutcome, Signal},
    overrides::{OverrideKind, OverrideSet, Withdrawal},
    routes::{Cause, RouteKey},
    verdict::Verdict,
};
use tidegate_routing::{ProximityBasis, RouteEvent, Settings};

use crate::world::{
    Builder, SURE, World, actions, load, load_by_action, ms, name, nearest, ordered, outcome, over,
    overrides, targets, weighted,
};

/// Two regions with a cluster each, and a service that prefers the first.
fn two_regions() -> Builder {
    Builder::default()
        .region("us", 38.9, -77.4)
        .region("eu", 53.3, -6.3)
        .cluster("us-1", "us", 2, Some(1000))
        .cluster("eu-1", "eu", 2, Some(1000))
        .service("shop", 0, ordered(&["us-1", "eu-1"]))
}

const BOTH: &[&str] = &["us-1", "eu-1"];
const PROBERS: &[(&str, &str)] = &[("us", "p"), ("eu", "p")];

fn all_up(builder: &Builder) -> World {
    let mut world = World::new("us", builder);
    for (region, prober) in PROBERS {
        world.report(region, prober, BOTH, true);
    }
    world
}

fn drain(cluster: &str) -> OverrideKind {
    OverrideKind::DrainCluster(name(cluster))
}

#[test]
fn without_any_observation_the_configured_order_is_served() {
    let world = World::new("us", &two_regions());
    assert_eq!(world.shares("shop"), [[("us-1", 1000)], [("eu-1", 1000)]]);
    assert_eq!(world.health("us-1").verdict, Verdict::Unknown);
    assert!(!world.tiers("shop").fail_open);
}

#[test]
fn a_dead_cluster_leaves_the_table_with_the_first_observation_that_shows_it() {
    let mut world = all_up(&two_regions());
    world.report("eu", "p", &["us-1"], false);
    let cause = ObservationCause {
        signal: Signal::Suspicion { first_failure_at: Timestamp(7) },
        probed_at: Timestamp(8),
        observed_at: Timestamp(9),
    };
    let failing = Observation { outcome: outcome(false), streak: 2 };
    let changes = world.apply(RouteEvent::Observations {
        region: name("us"),
        prober: name("p"),
        changes: targets(&world.fleet, &name("us-1"))
            .into_iter()
            .map(|target| (target, Some(failing.clone())))
            .collect(),
        cause: Some(cause.clone()),
    });

    assert_eq!(world.shares("shop"), [[("eu-1", 1000)]]);
    assert_eq!(world.tiers("shop").reason, "in the listed order: eu-1 serves; us-1 is down");
    let reason = "0 of 2 endpoints pass: 10.0.0.1:80 connection refused (p in us); \
                  10.0.0.2:80 connection refused (p in us)";
    assert_eq!(world.health("us-1").reason, reason);
    let cause = Cause::Health {
        cluster: name("us-1"),
        verdict: Verdict::Down,
        reason: reason.to_owned(),
        signal: Some(cause.signal),
        probed_at: Some(cause.probed_at),
    };
    assert_eq!(changes.causes, [cause]);
    assert_eq!(changes.entries.len(), 2, "its health and the service's tiers, nothing else");
}

#[test]
fn what_only_this_region_cannot_reach_is_path_down_and_left_out() {
    let mut world = all_up(&two_regions());
    world.report("us", "p", &["eu-1"], false);
    assert_eq!(world.health("eu-1").verdict, Verdict::PathDown);
    assert!(
        world
            .health("eu-1")
            .reason
            .starts_with("not reached from us, and other regions last saw it pass: 0 of 2")
    );
    assert_eq!(world.shares("shop"), [[("us-1", 1000)]]);
    let reached_from = |at: usize| {
        let explanation = world.engine.explain(&name("shop")).unwrap();
        explanation.actions[0].candidates[at].reached_from.clone()
    };
    assert_eq!((reached_from(0), reached_from(1)), (vec![name("eu"), name("us")], vec![name("eu")]));
}

#[test]
fn an_endpoint_is_unreachable_only_if_it_does_not_answer_at_all() {
    for (failure, unreachable) in [
        (Failure::ConnectRefused, true),
        (Failure::ConnectTimeout, true),
        (Failure::ConnectError, true),
        (Failure::Reset, true),
        (Failure::NoResponse, true),
        (Failure::Tls, false),
        (Failure::Status(503), false),
        (Failure::BadResponse, false),
    ] {
        let mut world = all_up(&two_regions());
        let target = targets(&world.fleet, &name("us-1")).remove(0);
        let failing = Observation { outcome: ProbeOutcome::Fail(failure.clone()), streak: SURE };
        world.apply(RouteEvent::Observations {
            region: name("us"),
            prober: name("p"),
            changes: vec![(target, Some(failing))],
            cause: None,
        });
        let endpoints = &world.health("us-1").endpoints;
        assert_eq!(endpoints[0].verdict, Verdict::PathDown);
        assert_eq!((endpoints[0].unreachable, endpoints[1].unreachable), (unreachable, false), "{failure}");
    }
}

#[test]
fn one_endpoint_down_leaves_the_cluster_up() {
    let mut world = all_up(&two_regions());
    let target = targets(&world.fleet, &name("us-1")).remove(0);
    let failing = Observation { outcome: outcome(false), streak: SURE };
    world.apply(RouteEvent::Observations {
        region: name("us"),
        prober: name("p"),
        changes: vec![(target, Some(failing))],
        cause: None,
    });
    let health = world.health("us-1");
    assert_eq!(health.verdict, Verdict::Up);
    assert_eq!(health.endpoints[0].verdict, Verdict::PathDown);
    assert_eq!(health.endpoints[1].verdict, Verdict::Up);
    assert_eq!(world.shares("shop")[0], [("us-1", 1000)]);
}

#[test]
fn when_everything_is_down_all_of_it_is_tried_and_the_table_says_so() {
    let mut world = all_up(&two_regions());
    for (region, prober) in PROBERS {
        world.report(region, prober, BOTH, false);
    }
    assert!(world.tiers("shop").fail_open);
    assert_eq!(world.shares("shop"), [[("us-1", 1000)], [("eu-1", 1000)]]);
    assert_eq!(world.tiers("shop").reason, "everything is down, so all is tried, in the listed order");
}

#[test]
fn a_prober_that_alone_sees_everything_down_moves_nothing() {
    let mut world = all_up(&two_regions());
    world.report("us", "p", BOTH, false);
    assert_eq!(world.health("us-1").verdict, Verdict::Up);
    assert_eq!(world.shares("shop"), [[("us-1", 1000)], [("eu-1", 1000)]]);
}

#[test]
fn the_reason_of_a_health_says_how_many_endpoints_pass_and_why_the_others_do_not() {
    let mut world =
        World::new("us", &two_regions().cluster("big", "us", 4, None).service("all", 0, ordered(&["big"])));
    assert_eq!(world.health("us-1").reason, "no prober has reported on it yet");
    world.report("eu", "p", &["us-1", "big"], true);
    assert_eq!(world.health("us-1").reason, "2 of 2 endpoints pass");

    // The prober in us is distrusted, and no other one has seen eu-1.
    world.report("us", "p", BOTH, false);
    let distrusted = "only probed by a prober that sees everything down";
    let reason = format!("0 of 2 endpoints pass: 10.0.1.1:80 {distrusted}; 10.0.1.2:80 {distrusted}");
    assert_eq!(
        (world.health("eu-1").verdict, world.health("eu-1").reason.as_str()),
        (Verdict::Unknown, &*reason)
    );

    world.report("eu", "p", &["eu-1"], true);
    world.report("eu", "p", &["big"], false);
    let refused = "connection refused (p in eu)";
    let reason = format!("0 of 4 endpoints pass: 10.0.2.1:80 {refused}; 10.0.2.2:80 {refused}; and 2 more");
    assert_eq!(world.health("big").reason, reason);
}

#[test]
fn probers_that_become_stale_change_nothing() {
    let mut world = all_up(&two_regions());
    for (region, prober) in PROBERS {
        world.report(region, prober, &["us-1"], false);
    }
    let before = world.engine.table().clone();
    world.tick_until(3_600_000);
    assert_eq!(*world.engine.table(), before);
    assert_eq!(world.engine.next_deadline(), None, "nothing is left to wait for");
}

#[test]
fn an_observation_leaves_demand_that_is_settled_as_it_is() {
    let mut world = all_up(&two_regions());
    world.now = 1_000;
    world.report("us", "p", &["us-1"], false);
    world.report("eu", "p", &["us-1"], false);
    assert_eq!(
        world.engine.next_deadline(),
        Some(ms(4_000)),
        "probers may be stale then, and nothing is before"
    );
}

#[test]
fn another_regions_probers_stand_in_for_a_stale_prober() {
    let mut world = all_up(&two_regions());
    world.report("us", "p", &["eu-1"], false);
    world.pass(5_000, &[("eu", "p")]);
    assert_eq!(world.health("eu-1").verdict, Verdict::Up);
    world.apply(RouteEvent::ProberHeartbeat { region: name("us"), prober: name("p") });
    assert_eq!(world.health("eu-1").verdict, Verdict::PathDown);
}

#[test]
fn a_cluster_that_recovers_gets_more_step_by_step() {
    let mut world = all_up(&two_regions());
    for pass in [false, true] {
        for (region, prober) in PROBERS {
            world.report(region, prober, &["us-1"], pass);
        }
    }
    assert_eq!(world.shares("shop"), [[("us-1", 100), ("eu-1", 900)]]);
    world.pass(15_000, PROBERS);
    assert_eq!(world.shares("shop"), [[("us-1", 600), ("eu-1", 400)]]);
    world.pass(15_000, PROBERS);
    assert_eq!(world.shares("shop"), [[("us-1", 1000)], [("eu-1", 1000)]]);
}

#[test]
fn a_cluster_that_recovers_alone_gets_everything() {
    let mut world = all_up(&two_regions());
    for (region, prober) in PROBERS {
        world.report(region, prober, BOTH, false);
        world.report(region, prober, &["us-1"], true);
    }
    assert_eq!(world.shares("shop"), [[("us-1", 1000)]]);
}

#[test]
fn clusters_that_recover_together_serve_in_order_at_once() {
    let mut world = all_up(&two_regions());
    for pass in [false, true] {
        for (region, prober) in PROBERS {
            world.report(region, prober, BOTH, pass);
        }
    }
    assert_eq!(world.shares("shop"), [[("us-1", 1000)], [("eu-1", 1000)]], "nobody else could take the rest");
}

#[test]
fn a_cluster_that_flaps_is_suppressed_and_still_preferred_to_nothing() {
    let mut world = all_up(&two_regions());
    for pass in [false, true, false, true] {
        for (region, prober) in PROBERS {
            world.report(region, prober, &["us-1"], pass);
        }
    }
    assert_eq!(world.health("us-1").verdict, Verdict::Down);
    assert_eq!(world.shares("shop"), [[("eu-1", 1000)], [("us-1", 1000)]]);
    assert!(world.tiers("shop").reason.contains("us-1 flaps and is suppressed"));
    let explanation = world.engine.explain(&name("shop")).unwrap();
    let until = |cluster| {
        let mut candidates = explanation.actions[0].candidates.iter();
        candidates.find(|candidate| candidate.cluster == name(cluster)).unwrap().suppressed_until
    };
    assert_eq!(until("us-1"), Some(ms(world.now + 5_000)));
    assert_eq!(until("eu-1"), None);

    for (region, prober) in PROBERS {
        world.report(region, prober, &["eu-1"], false);
    }
    assert_eq!(world.shares("shop"), [[("us-1", 1000)]], "it answers, the other does not");
    assert!(!world.tiers("shop").fail_open);

    world.pass(5_000, PROBERS);
    assert_eq!(world.health("us-1").verdict, Verdict::Up);
}

#[test]
fn a_drained_cluster_comes_last_until_the_drain_expires_and_then_returns_slowly() {
    let mut world = all_up(&two_regions());
    let item = over(drain("us-1"), Some(ms(60_000)));
    let changes = world.apply(RouteEvent::Overrides(OverrideSet {
        active: BTreeMap::from([("x".to_owned(), item)]),
        ..OverrideSet::default()
    }));
    assert_eq!(world.shares("shop"), [[("eu-1", 1000)], [("us-1", 1000)]]);
    assert_eq!(changes.causes, [Cause::Override("drain of cluster us-1 by ann: deploy".to_owned())]);

    world.pass(60_000, PROBERS);
    assert_eq!(world.shares("shop"), [[("us-1", 100), ("eu-1", 900)]]);
    world.pass(30_000, PROBERS);
    assert_eq!(world.shares("shop")[0], [("us-1", 1000)]);
}

#[test]
fn of_several_overrides_only_those_that_changed_are_the_cause() {
    let mut world = all_up(&two_regions());
    world.apply(overrides(&[drain("us-1")]));
    let changes = world.apply(overrides(&[drain("us-1"), drain("eu-1")]));
    assert_eq!(changes.causes, [Cause::Override("drain of cluster eu-1 by ann: deploy".to_owned())]);
    let changes = world.apply(overrides(&[drain("eu-1")]));
    assert_eq!(changes.causes, [Cause::Override("end of drain of cluster us-1 by ann: deploy".to_owned())]);
}

#[test]
fn all_overrides_of_a_cluster_are_explained_with_the_one_that_wins() {
    let mut world = all_up(&two_regions());
    let force = OverrideKind::ForceRoute { service: name("shop"), cluster: name("us-1") };
    world.apply(overrides(&[force, drain("us-1"), OverrideKind::EvacuateRegion(name("us"))]));
    let explained = |world: &World| {
        let explanation = world.engine.explain(&name("shop")).unwrap();
        let candidate =
            explanation.actions[0].candidates.iter().find(|other| other.cluster == name("us-1")).unwrap();
        candidate.overrides.iter().map(|item| (item.text.clone(), item.overruled.clone())).collect::<Vec<_>>()
    };

    let precedence = Some("a forced route takes precedence over a drain".to_owned());
    let drains = ["drain of cluster us-1 by ann: deploy", "evacuation of region us by ann: deploy"];
    let overruled = drains.map(|drain| (drain.to_owned(), precedence.clone()));
    let force = "shop forced to us-1 by ann: deploy".to_owned();
    assert_eq!(explained(&world)[0], (force.clone(), None));
    assert_eq!(explained(&world)[1..], overruled);
    assert_eq!(
        world.tiers("shop").reason,
        "in the listed order: us-1 serves; shop forced to us-1 by ann: deploy; overruled by that: drain of \
         cluster us-1 by ann: deploy; overruled by that: evacuation of region us by ann: deploy"
    );

    // A forced route to what is down has no effect.
    for (region, prober) in PROBERS {
        world.report(region, prober, &["us-1"], false);
    }
    assert!(explained(&world).contains(&(force, Some("us-1 is down".to_owned()))), "{:?}", explained(&world));
}

#[test]
fn the_end_of_a_drain_names_who_withdrew_it() {
    let mut world = all_up(&two_regions());
    let drain = over(drain("us-1"), None);
    let key = drain.kind.key();
    let withdrawal = Withdrawal {
        kind: drain.kind.clone(),
        author: "bob".to_owned(),
        reason: "done".to_owned(),
        withdrawn_at: ms(1),
    };
    let active = BTreeMap::from([(key.clone(), drain)]);
    world.apply(RouteEvent::Overrides(OverrideSet { active, ..OverrideSet::default() }));

    let withdrawn = BTreeMap::from([(key, withdrawal)]);
    let changes = world.apply(RouteEvent::Overrides(OverrideSet { withdrawn, ..OverrideSet::default() }));

    let sentence = "end of drain of cluster us-1 by ann: deploy, withdrawn by bob: done";
    assert_eq!(changes.causes, [Cause::Override(sentence.to_owned())]);
}

#[test]
fn a_drained_cluster_serves_when_nothing_else_may() {
    let mut world = all_up(&two_regions());
    world.apply(overrides(&[OverrideKind::EvacuateRegion(name("us"))]));
    for (region, prober) in PROBERS {
        world.report(region, prober, &["eu-1"], false);
    }
    assert_eq!(world.shares("shop"), [[("us-1", 1000)]]);
}

#[test]
fn a_forced_route_goes_first_while_it_serves() {
    let mut world = all_up(&two_regions());
    world.apply(overrides(&[OverrideKind::ForceRoute { service: name("shop"), cluster: name("eu-1") }]));
    assert_eq!(world.shares("shop"), [[("eu-1", 1000)], [("us-1", 1000)]]);
    for (region, prober) in PROBERS {
        world.report(region, prober, &["eu-1"], false);
    }
    assert_eq!(world.shares("shop"), [[("us-1", 1000)]]);
    for (region, prober) in PROBERS {
        world.report(region, prober, &["us-1"], false);
    }
    assert_eq!(world.shares("shop"), [[("us-1", 1000)], [("eu-1", 1000)]], "both are tried as listed");
}

#[test]
fn a_forced_route_goes_to_a_drained_cluster_too() {
    let mut world = all_up(&two_regions());
    let force = OverrideKind::ForceRoute { service: name("shop"), cluster: name("eu-1") };
    world.apply(overrides(&[drain("us-1"), drain("eu-1"), force]));
    assert_eq!(world.shares("shop"), [[("eu-1", 1000)], [("us-1", 1000)]]);
    let (force, drain) = ("shop forced to eu-1 by ann: deploy", "drain of cluster us-1 by ann: deploy");
    let overruled = "overruled by that: drain of cluster eu-1 by ann: deploy";
    let reason = format!("in the listed order: eu-1 serves; {force}; {overruled}; {drain}");
    assert_eq!(world.tiers("shop").reason, reason);
    let explanation = world.engine.explain(&name("shop")).unwrap();
    let effective = explanation.actions[0].candidates.iter().map(|candidate| {
        let texts = candidate.overrides.iter().filter(|item| item.overruled.is_none());
        texts.map(|item| item.text.as_str()).collect::<Vec<_>>()
    });
    assert_eq!(effective.collect::<Vec<_>>(), [[drain], [force]]);
}

#[test]
fn a_reason_names_the_cluster_in_slow_start_and_the_one_beside_it_that_is_full() {
    let builder = two_regions().cluster("us-2", "us", 1, Some(1000)).service(
        "near",
        0,
        nearest(&["us-1", "us-2", "eu-1"]),
    );
    let mut world = all_up(&builder);
    for (region, prober) in PROBERS {
        world.report(region, prober, &["us-2"], true);
        world.report(region, prober, &["us-1"], false);
        world.report(region, prober, &["us-1"], true);
    }
    world.apply(load("us", "e1", &[("near", 1500)]));
    world.tick_until(1_000);
    assert_eq!(world.shares("near"), [[("us-1", 100), ("us-2", 667), ("eu-1", 233)]]);
    assert_eq!(
        world.tiers("near").reason,
        "nearest to us first: us-1, us-2 and eu-1 serve; us-1 recovered and is in slow start; us-2 has no headroom"
    );
}

#[test]
fn a_service_can_be_forced_to_a_cluster_that_is_not_its_own() {
    let builder = two_regions().cluster("spare", "eu", 1, Some(10));
    let mut world = all_up(&builder);
    world.report("us", "p", &["spare"], true);
    world.apply(overrides(&[OverrideKind::ForceRoute { service: name("shop"), cluster: name("spare") }]));
    assert_eq!(world.shares("shop")[0], [("spare", 1000)]);
    world.apply(overrides(&[]));
    assert_eq!(world.shares("shop")[0], [("us-1", 1000)]);
    assert!(
        !world
            .engine
            .table()
            .keys()
            .any(|key| matches!(key, RouteKey::Health(c, _) if c.as_str() == "spare"))
    );
}

#[test]
fn nearest_takes_the_own_region_first_and_shares_within_a_region_by_capacity() {
    let builder = two_regions().cluster("us-2", "us", 1, Some(3000)).service(
        "near",
        0,
        nearest(&["eu-1", "us-1", "us-2"]),
    );
    let world = World::new("us", &builder);
    assert_eq!(world.shares("near"), [vec![("us-1", 250), ("us-2", 750)], vec![("eu-1", 1000)]]);
    let explanation = world.engine.explain(&name("near")).unwrap();
    let bases: Vec<ProximityBasis> =
        explanation.actions[0].candidates.iter().map(|candidate| candidate.proximity.basis).collect();
    assert_eq!(bases, [ProximityBasis::SameRegion, ProximityBasis::SameRegion, ProximityBasis::Distance]);
}

#[test]
fn weights_are_shares_and_weight_zero_is_a_fallback() {
    let builder = two_regions().cluster("eu-2", "eu", 1, None).service(
        "split",
        0,
        weighted(&[("us-1", 90), ("eu-1", 10), ("eu-2", 0)]),
    );
    let world = World::new("us", &builder);
    assert_eq!(world.shares("split"), [vec![("eu-1", 100), ("us-1", 900)], vec![("eu-2", 1000)]]);
}

#[test]
fn demand_beyond_capacity_goes_to_the_next_and_what_exceeds_all_headroom_is_shed() {
    let mut world = all_up(&two_regions());
    world.apply(load("us", "e1", &[("shop", 900)]));
    world.tick_until(1_000);
    assert_eq!(world.shares("shop")[0], [("us-1", 1000)]);
    assert_eq!(world.tiers("shop").reason, "in the listed order: us-1 serves");
    world.apply(load("us", "e1", &[("shop", 1600)]));
    world.tick_until(2_000);
    assert_eq!(world.shares("shop"), [[("us-1", 625), ("eu-1", 375)]]);
    let full = "in the listed order: us-1 and eu-1 serve; us-1 has no headroom";
    assert_eq!(world.tiers("shop").reason, full);
    world.apply(load("eu", "e2", &[("shop", 900)]));
    world.tick_until(3_000);
    assert_eq!(world.tiers("shop").shed_permille, 200);
    let full = format!("{full}; eu-1 has no headroom; no cluster has headroom for the rest");
    assert_eq!(world.tiers("shop").reason, full);
    let explanation = world.engine.explain(&name("shop")).unwrap();
    let loads: Vec<u64> = explanation.actions[0].candidates.iter().map(|c| c.load).collect();
    assert_eq!(loads, [1000, 1000]);
    let capacities: Vec<_> = world.engine.capacities().collect();
    assert_eq!(capacities, [(&name("eu-1"), 1000, 1000.0), (&name("us-1"), 1000, 1000.0)]);
    assert_eq!(explanation.actions[0].demand, [(name("eu"), 900, 900), (name("us"), 1600, 1600)]);
}

#[test]
fn an_explanation_lists_the_regions_with_demand_measured_or_settled() {
    let mut world = all_up(&two_regions().service("near", 0, nearest(BOTH)));
    world.apply(load("us", "e1", &[("near", 1600)]));
    world.tick_until(1_000);
    let demand = |world: &World| world.engine.explain(&name("near")).unwrap().actions[0].demand.clone();
    assert_eq!(demand(&world), [(name("us"), 1600, 1600)]);

    // A drift that is tolerated.
    world.apply(load("us", "e1", &[("near", 1590)]));
    world.apply(load("eu", "e1", &[("near", 10)]));
    world.tick_until(2_000);
    assert_eq!(demand(&world), [(name("eu"), 10, 0), (name("us"), 1590, 1600)]);
}

#[test]
fn an_explanation_says_which_tier_and_share_each_candidate_has() {
    let mut world = all_up(&two_regions());
    let places = |world: &World| -> Vec<_> {
        let explanation = world.engine.explain(&name("shop")).unwrap();
        let candidates = explanation.actions[0].candidates.iter();
        candidates.map(|c| (c.cluster.to_string(), c.tier, c.share_permille, c.slow_start_permille)).collect()
    };
    let (us, eu) = ("us-1".to_owned(), "eu-1".to_owned());
    assert_eq!(places(&world), [(us.clone(), Some(0), 1000, 1000), (eu.clone(), Some(1), 0, 1000)]);
    world.report("eu", "p", &["us-1"], false);
    world.report("us", "p", &["us-1"], false);
    assert_eq!(places(&world), [(us.clone(), None, 0, 1000), (eu.clone(), Some(0), 1000, 1000)]);
    world.report("eu", "p", &["us-1"], true);
    world.report("us", "p", &["us-1"], true);
    assert_eq!(places(&world), [(us, Some(0), 100, 100), (eu, Some(0), 900, 1000)]);
}

#[test]
fn routes_share_capacity_by_their_own_demand() {
    let builder = two_regions().route("shop", ordered(&["eu-1", "us-1"])).route("shop", ordered(&["eu-1"]));
    let mut world = all_up(&builder);
    let mut shares = |demand: [u32; 3]| {
        world.apply(load_by_action("us", "e1", &[("shop", demand.to_vec())]));
        world.tick_until(world.now + 1_000);
        actions(&world.engine, &name("shop"))
            .iter()
            .map(|action| {
                let first =
                    action.tiers[0].shares.iter().map(|(cluster, share)| (cluster.to_string(), *share));
                (first.collect::<Vec<_>>(), action.shed_permille)
            })
            .collect::<Vec<_>>()
    };
    let at = |cluster: &str, share: u16| (cluster.to_owned(), share);

    // The demand of one route is not charged to the clusters of another.
    let [default, first, second] = shares([900, 900, 0]).try_into().unwrap();
    assert_eq!(default, (vec![at("us-1", 1000)], 0));
    assert_eq!(first, (vec![at("eu-1", 1000)], 0));
    assert_eq!(second, (vec![at("eu-1", 1000)], 0));

    // What exceeds the headroom goes to the next cluster, and what exceeds all of it is shed.
    let [_, first, _] = shares([100, 1600, 0]).try_into().unwrap();
    assert_eq!(first, (vec![at("eu-1", 625), at("us-1", 375)], 0));
    let [_, _, second] = shares([0, 0, 1250]).try_into().unwrap();
    assert_eq!(second.1, 200);
}

#[test]
fn demand_that_fluctuates_moves_no_shares() {
    let mut world = all_up(&two_regions());
    world.apply(load("us", "e1", &[("shop", 1600)]));
    world.tick_until(1_000);
    let before = world.engine.table().clone();
    for (at, rate) in [1590, 1600, 1580, 1540, 1481, 1599, 1600].into_iter().enumerate() {
        world.apply(load("us", "e1", &[("shop", rate)]));
        world.tick_until(2_000 + 1_000 * at as u64);
        assert_eq!(*world.engine.table(), before, "{rate}");
    }
    // Less by one than what is 50 thousandths off, which is tolerated.
    world.apply(load("us", "e1", &[("shop", 1480)]));
    world.tick_until(9_000);
    assert_eq!(world.shares("shop"), [[("us-1", 676), ("eu-1", 324)]]);
}

#[test]
fn nothing_is_shed_while_a_fall_in_demand_leaves_headroom() {
    // A twentieth of the important service fills eu-1, so that nothing is left there for the other one.
    let builder = Builder::default()
        .region("us", 38.9, -77.4)
        .cluster("us-1", "us", 1, None)
        .cluster("eu-1", "us", 1, Some(40))
        .service("shop", 0, nearest(&["us-1", "eu-1"]))
        .service("batch", 1, ordered(&["eu-1"]));
    let mut world = all_up(&builder);
    let mut demand = |shop| {
        world.apply(load("us", "e", &[("shop", shop), ("batch", 10)]));
        world.tick_until(world.now + 1000);
        let eu = world.tiers("shop").tiers[0].shares.iter().find(|(cluster, _)| cluster.as_str() == "eu-1");
        (eu.map(|(_, share)| *share), world.tiers("batch").shed_permille)
    };

    assert_eq!(demand(800), (Some(50), 1000));
    assert_eq!(
        demand(790),
        (Some(50), 1000),
        "headroom for half a request per second is too little to move for"
    );
    // Fewer than five points less than what is right, but half of eu-1 would be idle.
    assert_eq!(demand(420), (Some(95), 1000));
}

#[test]
fn small_capacities_are_kept_to_as_well() {
    let builder = Builder::default()
        .region("us", 38.9, -77.4)
        .cluster("us-1", "us", 1, Some(5))
        .cluster("eu-1", "us", 1, Some(5))
        .service("shop", 0, ordered(&["us-1", "eu-1"]));
    let mut world = all_up(&builder);
    for (demand, shed) in [(17, 412), (18, 444), (20, 500), (16, 375)] {
        world.apply(load("us", "e", &[("shop", demand)]));
        world.tick_until(world.now + 1_000);
        assert_eq!(world.tiers("shop").shed_permille, shed, "of {demand}");
    }
}

#[test]
fn the_least_important_service_is_shed_first() {
    let builder = two_regions().service("batch", 9, ordered(&["us-1", "eu-1"]));
    let mut world = all_up(&builder);
    world.apply(load("us", "e1", &[("shop", 1800), ("batch", 400)]));
    world.tick_until(1_000);
    assert_eq!((world.tiers("shop").shed_permille, world.tiers("batch").shed_permille), (0, 500));
}

#[test]
fn an_endpoint_that_fails_in_another_way_does_not_change_the_table() {
    let mut world = all_up(&two_regions());
    for (region, prober) in PROBERS {
        world.report(region, prober, &["us-1"], false);
    }
    let timed_out = Observation { outcome: ProbeOutcome::Fail(Failure::NoResponse), streak: SURE };
    let changes = world.apply(RouteEvent::Observations {
        region: name("us"),
        prober: name("p"),
        changes: vec![(targets(&world.fleet, &name("us-1")).remove(0), Some(timed_out))],
        cause: None,
    });
    assert!(changes.is_empty(), "{changes:?}");
}

#[test]
fn what_was_observed_before_the_fleet_came_counts() {
    let builder = two_regions();
    let mut world = World::with(Settings::new(name("us")), &Builder::default());
    let failing = Observation { outcome: outcome(false), streak: SURE };
    let targets = targets(&builder.0, &name("us-1"));
    world.apply(RouteEvent::ObservationsReset {
        restarted: false,
        region: name("us"),
        prober: name("p"),
        all: targets.into_iter().map(|target| (target, failing.clone())).collect(),
        cause: None,
    });
    world.apply(RouteEvent::Fleet(std::sync::Arc::new(builder.0)));
    assert_eq!(world.health("us-1").verdict, Verdict::Down);
}

#[test]
fn what_leaves_the_fleet_leaves_the_table() {
    let mut world = all_up(&two_regions());
    let mut smaller = (*world.fleet).clone();
    smaller.services.get_mut("shop").unwrap().default.clusters = ordered(&["eu-1"]);
    smaller.clusters.remove("us-1");
    let changes = world.apply(RouteEvent::Fleet(std::sync::Arc::new(smaller)));
    assert_eq!(changes.causes, [Cause::Fleet]);
    assert_eq!(world.shares("shop"), [[("eu-1", 1000)]]);
    assert_eq!(world.mirror, *world.engine.table());
    assert!(!world.mirror.contains_key(&RouteKey::Cluster(name("us-1"))));
}
