//! A cluster is lost under load, and no client notices.

use std::time::Duration;

use tidegate_integration_tests::{
    Fault, Plan, World,
    load::{Load, LoadPlan, Summary},
    plan::{AWAY, HOME},
};

const FOUND_LIMIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_to_the_nearest_cluster_of_a_healthy_system() -> anyhow::Result<()> {
    let mut world = World::start(&Plan::default()).await?;
    for region in [HOME, AWAY] {
        let (status, origin) = world.ask(region.edge).await?;
        assert_eq!(status, 200);
        assert!(region.origins().contains(&origin), "{origin} answered at {}", region.edge);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_cluster_is_found_by_suspicion() -> anyhow::Result<()> {
    let mut world = World::start(&Plan::default()).await?;
    let target = world.edge_address(HOME.edge).await?;
    let load = Load::start(LoadPlan { target, rate: 1000, connections: 40 })?;
    load.answered_since(tidegate_bus::clock::now(), 500, FOUND_LIMIT).await?;
    let fault_at = world.inflict(Fault::Kill).await?;
    let found = world.until_found(Fault::Kill, fault_at, FOUND_LIMIT).await?;
    load.answered_since(found.last_edge_at(), 500, FOUND_LIMIT).await?;
    let records = load.stop().await?;
    let summary = Summary::of(&records);
    println!("{found:#?} {:?} {:?}", found.first_failure_to_verdict(), found.fault_to_last_edge());
    println!("{summary:?}");
    assert_eq!(summary.failed_get, 0);
    Ok(())
}
