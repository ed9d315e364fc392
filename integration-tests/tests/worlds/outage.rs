//! The bus is lost, or everybody who decides: what is served goes on, and what comes back finds its way by itself.

use std::time::Duration;

use tidegate_bus::clock;
use tidegate_integration_tests::{
    Fault, Plan, World,
    load::{Load, LoadPlan, Record, Summary},
    plan::{AWAY, HOME},
    world::until,
};
use tidegate_model::Timestamp;

const LIMIT: Duration = Duration::from_secs(120);
const RATE: u32 = 500;

/// Seconds of load with the bus or the deciders gone; `TIDEGATE_OUTAGE_S` sets another figure.
fn outage_s() -> u32 {
    std::env::var("TIDEGATE_OUTAGE_S").ok().map_or(10, |text| text.parse().expect("a number of seconds"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_bus_is_gone_and_it_returns_with_its_data() -> anyhow::Result<()> {
    survives_an_outage(|world| world.nats.restart()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_bus_is_gone_and_it_returns_with_nothing() -> anyhow::Result<()> {
    survives_an_outage(|world| world.nats.restart_without_data()).await
}

async fn survives_an_outage(restart: impl FnOnce(&mut World)) -> anyhow::Result<()> {
    // Given load on a healthy system.
    let mut world = World::start(&Plan::default()).await?;
    let load = load(&mut world).await?;

    // When the bus is gone for a while and comes back.
    world.nats.kill();
    load.answered_since(clock::now(), (RATE * outage_s()) as usize, LIMIT).await?;
    restart(&mut world);
    world.until_well_again(LIMIT).await?;
    let back_at = clock::now();

    // Then nothing was lost, and what comes next works as before.
    fails_over(&mut world).await?;
    let status = world.cli(&["status", "--json"]).await?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    assert!(status["fleet"]["revision"].is_u64(), "the fleet is on the bus again: {status}");
    lost_nothing(load, back_at).await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_every_prober_and_route_computer_is_gone() -> anyhow::Result<()> {
    // Given load on a healthy system.
    let mut world = World::start(&Plan::default()).await?;
    let load = load(&mut world).await?;

    // When all who decide are gone for a while and come back.
    for process in world.probers.values_mut().chain(world.computers.values_mut()) {
        process.kill();
    }
    load.answered_since(clock::now(), (RATE * outage_s()) as usize, LIMIT).await?;
    for process in world.probers.values_mut().chain(world.computers.values_mut()) {
        process.restart()?;
    }
    world.until_well_again(LIMIT).await?;
    let back_at = clock::now();

    // Then nothing was lost, and what comes next works as before.
    fails_over(&mut world).await?;
    lost_nothing(load, back_at).await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_restarts_without_the_bus_serves_from_disk() -> anyhow::Result<()> {
    // Given an edge that has kept its table, and a bus that is gone.
    let mut world = World::start(&Plan::default()).await?;
    let file = world.state_file(HOME.edge);
    until("the table is on disk", LIMIT, async || {
        let saved = std::fs::read_to_string(&file).unwrap_or_default();
        Ok(HOME
            .origins()
            .iter()
            .all(|name| {
                let address = world.origins[name].address().to_string();
                saved.contains(&address)
            })
            .then_some(()))
    })
    .await?;
    world.nats.kill();

    // When it is killed and starts again.
    let edge = world.edges.get_mut(HOME.edge).expect("the plan has an edge");
    edge.restart()?;

    // Then it serves, also when a cluster is lost in the meantime.
    let (status, origin) = world.ask(HOME.edge).await?;
    assert_eq!(status, 200);
    assert!(HOME.origins().contains(&origin), "{origin}");
    world.inflict(Fault::Kill).await?;
    let (status, origin) = world.ask(HOME.edge).await?;
    assert_eq!(status, 200);
    assert!(AWAY.origins().contains(&origin), "{origin}");

    // And it follows the bus again when that is back.
    world.mend(Fault::Kill).await?;
    world.nats.restart();
    world.until_well_again(LIMIT).await?;
    fails_over(&mut world).await?;
    world.succeeded();
    Ok(())
}

async fn load(world: &mut World) -> anyhow::Result<Load> {
    let target = world.edge_address(HOME.edge).await?;
    let load = Load::start(LoadPlan { target, rate: RATE, connections: 20 })?;
    load.answered_since(clock::now(), RATE as usize, LIMIT).await?;
    Ok(load)
}

/// A cluster is lost and found again.
async fn fails_over(world: &mut World) -> anyhow::Result<()> {
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    world.mend(Fault::Kill).await?;
    world.until_well(LIMIT).await
}

/// How long a request may be under way.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// No request failed or was slow; at `back_at` a cluster was killed, which may cost POSTs that were under way then or came
/// later.
async fn lost_nothing(load: Load, back_at: Timestamp) -> anyhow::Result<()> {
    let all = load.stop().await?;
    let before = |record: &&Record| record.ended_at() < back_at || record.due_at.plus(UNDER_WAY) < back_at;
    let meanwhile = Summary::of(all.iter().filter(before));
    assert_eq!(meanwhile.failed_post, 0, "{meanwhile:?}");
    let all = Summary::of(&all);
    assert_eq!((all.failed_get, all.slow_get), (0, 0), "{all:?}");
    Ok(())
}
