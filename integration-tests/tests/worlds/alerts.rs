//! What a real Prometheus tells of a world by the rules and dashboards that are shipped.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::Value;
use tidegate_bus::{clock, fleet::FleetStore};
use tidegate_integration_tests::{
    Fault, Plan, World,
    load::{Load, LoadPlan, Summary},
    plan::{AWAY, HOME},
    process::Process,
    world::ALL,
};

use crate::{
    forged::forge_heartbeat,
    prometheus::{Prometheus, shipped},
};

const LIMIT: Duration = Duration::from_secs(60);
const RATE: u32 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_alert_of_a_lost_cluster_fires_alone_and_ends_when_it_is_back() -> anyhow::Result<()> {
    // Given load on a healthy system of which a Prometheus has nothing to tell.
    let mut world = World::start(&Plan::default()).await?;
    let roomy = world.fleet().replace("endpoints: [", "capacity: 10000, endpoints: [");
    world.apply(&roomy).await?;
    let prometheus = Prometheus::start(&mut world).await?;
    let load = load(&mut world).await?;
    prometheus.until_only(&[], LIMIT).await?;
    let quiet_at = Instant::now();

    // When the nearer cluster is killed.
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;

    // Then that is told for each region, and nothing else is.
    let told = ["TidegateClusterDown in us-east", "TidegateClusterDown in eu-west"];
    prometheus.until_only(&told, LIMIT).await?;

    // When it is back, then nothing is told any more, and nothing else ever was.
    world.mend(Fault::Kill).await?;
    world.until_well(LIMIT).await?;
    prometheus.until_only(&[], LIMIT).await?;
    assert_eq!(prometheus.fired_since(quiet_at).await?, BTreeSet::from(["TidegateClusterDown".to_owned()]));
    let summary = Summary::of(&load.stop().await?);
    assert_eq!(summary.failed_get, 0, "{summary:?}");

    // And what rules and dashboards ask for has been there, with the labels that they name it by.
    rules_ask_for_what_is_there(&prometheus).await?;
    dashboards_show_what_is_there(&prometheus).await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_other_alert_fires_by_its_fault() -> anyhow::Result<()> {
    // Given load on a healthy system.
    let mut world = World::start(&Plan::default()).await?;
    let prometheus = Prometheus::start(&mut world).await?;
    let load = load(&mut world).await?;
    prometheus.until_only(&[], LIMIT).await?;
    let quiet_at = Instant::now();

    // When all clusters are lost, then users are hurt.
    world.inflict(Fault::Kill).await?;
    for name in AWAY.origins() {
        world.origins.get_mut(&name).expect("the plan has it").process.kill();
    }
    let hurt = [
        "TidegateServiceFailsOpen in us-east",
        "TidegateServiceFailsOpen in eu-west",
        "TidegateErrors",
        "TidegateRetryBudgetExhausted",
    ];
    prometheus.until_all(&hurt, LIMIT).await?;
    for name in AWAY.origins() {
        world.origins.get_mut(&name).expect("the plan has it").process.restart()?;
    }
    world.mend(Fault::Kill).await?;
    world.until_well(LIMIT).await?;

    // When two probers have one name, then it is told.
    let first =
        world.probers.values().find(|process| process.name().contains(HOME.name)).expect("one of home");
    let double = first.double()?;
    prometheus.until_all(&["TidegateNameShared in us-east"], LIMIT).await?;
    drop(double);

    // When no cluster has headroom, and a listener's connections are too many, then both alerts fire.
    let fleet = world.fleet().replace("protocol: http }", "protocol: http, limits: { max_connections: 4 } }");
    let full = fleet.replace("endpoints: [", "capacity: 20, endpoints: [");
    world.apply(&full).await?;
    prometheus.until_all(&["TidegateShedding", "TidegateCapacityShort"], LIMIT).await?;
    let target = world.edge_address(HOME.edge).await?;
    let more = Load::start(LoadPlan { target, rate: RATE, connections: 20 })?;
    prometheus.until_all(&["TidegateConnectionsRefused in us-east"], LIMIT).await?;
    drop((load, more));

    // When a region's table is spoken of by an attacker alone, who forges epochs, then the alert for its edge fires.
    let forger = world.bus(ALL).await?;
    anyhow::ensure!(forger.ready(LIMIT).await);
    let owners = || world.computers.values().filter(|process| process.name().contains(HOME.name));
    owners().for_each(Process::freeze);
    let forging = tokio::spawn(async move {
        while forge_heartbeat(&forger, 1 << 41).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    prometheus.until_all(&["TidegateEdgeBehind in us-east"], LIMIT).await?;
    forging.abort();
    owners().for_each(Process::thaw);

    // When a fleet gets to the bus unchecked that nobody can use, then that is reported, and the one before stays in force.
    let bus = world.bus(ALL).await?;
    anyhow::ensure!(bus.ready(LIMIT).await);
    FleetStore::new(&bus).put("regions: 7", "somebody").await?;
    let refusing = ["TidegateFleetRefused in us-east", "TidegateFleetRefused in eu-west"];
    prometheus.until_all(&refusing, LIMIT).await?;
    world.apply(&fleet).await?;

    // When a region's replicator ends, then its alert fires.
    world.replicators.get_mut(AWAY.name).expect("the plan has it").kill();
    prometheus.until_all(&["TidegateNoReplicator in eu-west"], LIMIT).await?;

    // When a region's route-computer ends, and the bus is gone, then nobody leads and tables grow old.
    let computers = world.computers.values_mut();
    computers.filter(|process| process.name().contains(AWAY.name)).for_each(Process::kill);
    prometheus.until_all(&["TidegateTargetDown in eu-west", "TidegateNobodyLeads in eu-west"], LIMIT).await?;
    world.nats.kill();
    let apart = [
        "TidegateBusAway in us-east",
        "TidegateBusAway in eu-west",
        "TidegateNobodyLeads in us-east",
        "TidegateTableOld in us-east",
        "TidegateTableOld in eu-west",
        "TidegateNoProbers in us-east",
    ];
    prometheus.until_all(&apart, LIMIT).await?;

    // Then there is no rule that has not fired.
    let mut silent: BTreeSet<String> = prometheus.rules().await?.into_iter().map(|(name, _)| name).collect();
    for name in prometheus.fired_since(quiet_at).await? {
        silent.remove(&name);
    }
    silent.remove("TidegateClusterDown");
    assert_eq!(silent, BTreeSet::new());
    world.succeeded();
    Ok(())
}

async fn load(world: &mut World) -> anyhow::Result<Load> {
    let target = world.edge_address(HOME.edge).await?;
    let load = Load::start(LoadPlan { target, rate: RATE, connections: 20 })?;
    load.answered_since(clock::now(), RATE as usize, LIMIT).await?;
    Ok(load)
}

/// Every selector of every rule has series.
async fn rules_ask_for_what_is_there(prometheus: &Prometheus) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    let rules = prometheus.rules().await?;
    assert!(!rules.is_empty());
    for (name, query) in rules {
        let selectors = selectors(&query);
        assert!(!selectors.is_empty(), "{name} asks for nothing: {query}");
        for selector in selectors {
            if prometheus.ask(&format!("last_over_time({selector}[10m])")).await?.is_empty() {
                missing.push(format!("{name}: {selector}"));
            }
        }
    }
    assert_eq!(missing, [""; 0], "rules ask for what no service shows");
    Ok(())
}

/// Every query of every dashboard is answered, with the labels of its legend.
async fn dashboards_show_what_is_there(prometheus: &Prometheus) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    let mut asked = 0;
    for file in std::fs::read_dir(shipped("dashboards"))? {
        let dashboard: Value = serde_json::from_slice(&std::fs::read(file?.path())?)?;
        for panel in dashboard["panels"].as_array().into_iter().flatten() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let text = |key: &str| target[key].as_str().unwrap_or_default();
                let query = text("expr").replace("$__rate_interval", "1m");
                let series = prometheus.ask(&query).await?;
                let legend = legend_labels(text("legendFormat"));
                let is_named = |label: &&str| series.iter().all(|sample| sample.labels.contains_key(*label));
                if series.is_empty() || !legend.iter().all(is_named) {
                    wrong.push(format!("{}: {query} by {legend:?}: {series:?}", panel["title"]));
                }
                asked += 1;
            }
        }
    }
    assert!(asked > 0);
    assert_eq!(wrong, [""; 0], "panels that show nothing, or nothing by the labels that they name");
    Ok(())
}

/// The selectors of a query: names of metrics, each with its labels in braces.
fn selectors(query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = query;
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        rest = &rest[start..];
        let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let mut end = length;
        if rest[length..].starts_with('{') {
            end += rest[length..].find('}').map_or(0, |brace| brace + 1);
        }
        if rest[..length].starts_with("tidegate_") || &rest[..length] == "up" {
            found.push(rest[..end].to_owned());
        }
        rest = &rest[end..];
    }
    found
}

/// The labels that a legend names.
fn legend_labels(legend: &str) -> Vec<&str> {
    legend.split("{{").skip(1).filter_map(|part| Some(part.split_once("}}")?.0.trim())).collect()
}

#[test]
fn selectors_are_found_in_a_query() {
    let query =
        "sum by (service) (rate(tidegate_a_total{status=\"5xx\"}[1m])) / up{job=~\"x-.*\"} > tidegate_b";
    assert_eq!(selectors(query), ["tidegate_a_total{status=\"5xx\"}", "up{job=~\"x-.*\"}", "tidegate_b"]);
    assert_eq!(legend_labels("{{service}} p95 {{ tier }}"), ["service", "tier"]);
}
