//! The nearer cluster is lost, and no client notices.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tidegate_bus::clock;
use tidegate_integration_tests::{
    Fault, Plan, World,
    drill::Detection,
    load::{Load, LoadPlan, Method, Summary},
    plan::{AWAY, HOME},
};

use crate::{collector::Collector, requests};

/// How long a fault may take to be found, and all to be well again. Nothing near it is expected.
const LIMIT: Duration = Duration::from_secs(30);
/// After the verdict was applied, requests that were under way may still end at the lost cluster for so long.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// Rounds of a measurement; the median counts.
const ROUNDS: usize = 7;

const RATE: u32 = 1000;
const CONNECTIONS: u32 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_to_the_nearest_cluster() -> anyhow::Result<()> {
    let mut world = World::start(&Plan::default()).await?;
    for region in [HOME, AWAY] {
        let (status, origin) = world.ask(region.edge).await?;
        assert_eq!(status, 200);
        assert!(region.origins().contains(&origin), "{origin} answered at {}", region.edge);
    }
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_or_is_slow_when_the_nearer_cluster_is_killed() -> anyhow::Result<()> {
    survives(Fault::Kill).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_or_is_slow_when_the_nearer_cluster_freezes() -> anyhow::Result<()> {
    survives(Fault::Freeze).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_or_is_slow_when_the_nearer_cluster_answers_503() -> anyhow::Result<()> {
    survives(Fault::Answer503).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_or_is_slow_when_one_endpoint_is_killed() -> anyhow::Result<()> {
    survives(Fault::Endpoint).await
}

async fn survives(fault: Fault) -> anyhow::Result<()> {
    // Given load on a healthy system that sends its spans to a receiver.
    let collector = Collector::start().await?;
    let plan = Plan { otlp_endpoint: Some(collector.endpoint().to_owned()), ..Plan::default() };
    let mut world = World::start(&plan).await?;
    let load = load(&mut world).await?;

    // When the fault is made, found, and undone.
    let fault_at = world.inflict(fault).await?;
    let found = world.until_found(fault, fault_at, LIMIT).await?;
    let settled_at = found.last_edge_at().plus(UNDER_WAY);
    load.answered_since(settled_at, 1, LIMIT).await?;
    let tried_before = tries_at_the_lost(&mut world).await?;
    load.answered_since(clock::now(), RATE as usize, LIMIT).await?;
    let tried_after = tries_at_the_lost(&mut world).await?;
    let mended_at = clock::now();
    world.mend(fault).await?;
    world.until_well(LIMIT).await?;
    load.answered_since(clock::now(), RATE as usize, LIMIT).await?;
    let records = load.stop().await?;

    // Then no GET failed or was slow, few POSTs did, and none of them that was sent after the verdict.
    let all = Summary::of(&records);
    assert_eq!(all.failed_get, 0, "{all:?}");
    assert_eq!(all.slow_get, 0, "{all:?}");
    assert!(all.failed_post <= CONNECTIONS as usize, "more than one POST of each connection: {all:?}");
    let late = Summary::of(records.iter().filter(|record| record.due_at >= settled_at));
    assert_eq!(late.failed_post, 0, "{late:?}");
    // And each that did may have reached an endpoint that was lost.
    let mut lost = HOME.origins();
    lost.truncate(if fault == Fault::Endpoint { 1 } else { lost.len() });
    let lost: Vec<SocketAddr> = lost.iter().map(|name| world.origins[name].address()).collect();
    let served_at =
        found.found.iter().find(|found| found.edge == HOME.edge).context("it was found")?.applied_at;
    for failed in records.iter().filter(|record| record.method == Method::Post && !record.is_answered()) {
        requests::is_lost_with_reason(&collector, failed, fault, &lost, served_at).await?;
    }
    println!("{} POSTs lost, each with reason", all.failed_post);
    // One endpoint less is not a cluster less: the other one goes on.
    if fault != Fault::Endpoint {
        assert_eq!(tried_before, tried_after, "requests still go to the lost cluster");
        let served = records.iter().filter(|record| (settled_at..mended_at).contains(&record.due_at));
        let served = Summary::of(served).answers;
        assert!(served.keys().all(|origin| AWAY.origins().contains(origin)), "{served:?}");
    }
    world.succeeded();
    Ok(())
}

/// A healthy system's load: a second of it has passed, so that the edge knows how long answers take.
async fn load(world: &mut World) -> anyhow::Result<Load> {
    let target = world.edge_address(HOME.edge).await?;
    let load = Load::start(LoadPlan { target, rate: RATE, connections: CONNECTIONS })?;
    load.answered_since(clock::now(), RATE as usize, LIMIT).await?;
    Ok(load)
}

async fn tries_at_the_lost(world: &mut World) -> anyhow::Result<f64> {
    let label = format!("cluster=\"{}\"", HOME.cluster);
    let metrics = world.edge_metrics(HOME.edge).await?;
    Ok(metrics.sum("tidegate_cluster_attempts_total", &[&label]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_every_edge_has_moved_within_100_ms_of_a_kill() -> anyhow::Result<()> {
    let mut world = World::start(&Plan::default()).await?;
    let load = load(&mut world).await?;
    let found = kill_again_and_again(&mut world).await?;
    let summary = Summary::of(&load.stop().await?);
    assert_eq!(summary.failed_get, 0, "{summary:?}");

    // And the services' own metrics tell of it.
    let computers = world.computers_metrics().await?;
    let name = "tidegate_convergence_fault_to_verdict_seconds_count";
    let by_suspicion: f64 =
        computers.iter().map(|metrics| metrics.sum(name, &["signal=\"suspicion\""])).sum();
    assert!(by_suspicion >= ROUNDS as f64, "{by_suspicion}");
    for region in [HOME, AWAY] {
        let metrics = world.edge_metrics(region.edge).await?;
        let applied = metrics.sum("tidegate_convergence_verdict_to_applied_seconds_count", &[]);
        assert!(applied >= ROUNDS as f64, "{}: {applied}", region.edge);
    }
    for detection in &found {
        assert!(detection.found.iter().any(|found| found.signal == "suspicion"), "{detection:?}");
    }
    let total = median(&found, Detection::fault_to_last_edge);
    assert!(total < Duration::from_millis(100), "{total:?} at the median of {found:#?}");
    let propagation = median(&found, Detection::verdict_to_last_edge);
    assert!(propagation < Duration::from_millis(20), "{propagation:?} at the median of {found:#?}");
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_load_every_edge_has_moved_within_600_ms_of_a_kill() -> anyhow::Result<()> {
    let mut world = World::start(&Plan::default()).await?;
    let found = kill_again_and_again(&mut world).await?;
    let total = median(&found, Detection::fault_to_last_edge);
    assert!(total < Duration::from_millis(600), "{total:?} at the median of {found:#?}");
    world.succeeded();
    Ok(())
}

async fn kill_again_and_again(world: &mut World) -> anyhow::Result<Vec<Detection>> {
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        let fault_at = world.inflict(Fault::Kill).await?;
        all.push(world.until_found(Fault::Kill, fault_at, LIMIT).await?);
        world.mend(Fault::Kill).await?;
        world.until_well(LIMIT).await?;
    }
    Ok(all)
}

fn median(all: &[Detection], of: impl Fn(&Detection) -> Duration) -> Duration {
    let mut times: Vec<Duration> = all.iter().map(of).collect();
    times.sort_unstable();
    times[times.len() / 2]
}
