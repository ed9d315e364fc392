//! Probers that are frozen, started anew, or given a name that is in use: what they say is fresh, and what was known stays known.

use std::time::Duration;

use anyhow::Context as _;
use tidegate_integration_tests::{
    Fault, Plan, World,
    metrics::Metrics,
    plan::{ENDPOINTS, HOME, SERVICE},
    world::until,
};

const LIMIT: Duration = Duration::from_secs(30);
const RESTARTS: &str = "restarting with an empty table";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prober_that_thaws_brings_no_lost_cluster_back() -> anyhow::Result<()> {
    // Given a region with two probers, one of which is frozen, whose cluster is lost meanwhile.
    let mut world = World::start(&Plan { probers: 2, ..Plan::default() }).await?;
    let name = format!("prober-{}-1", HOME.name);
    let spoken = published(&mut world, &name).await?;
    world.probers[&name].freeze();
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    let before = concluded(&world, "up");
    assert!(concluded(&world, "down") > 0, "the log tells of verdicts otherwise");

    // When it thaws, then it looks before it speaks.
    world.probers[&name].thaw();
    until("the prober restarts", LIMIT, async || {
        Ok(world.probers[&name].log().contains(RESTARTS).then_some(()))
    })
    .await?;
    until("it speaks again", LIMIT, async || {
        Ok((published(&mut world, &name).await? >= spoken + ENDPOINTS as f64).then_some(()))
    })
    .await?;
    assert_eq!(concluded(&world, "up"), before, "a lost cluster was believed to be back");
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prober_whose_name_was_taken_for_a_while_is_heard_again() -> anyhow::Result<()> {
    // Given a prober beside which another of its name ran, and was killed.
    let mut world = World::start(&Plan::default()).await?;
    let name = format!("prober-{}-1", HOME.name);
    let double = world.probers[&name].double()?;
    until("the first complains", LIMIT, async || {
        Ok(world.probers[&name].log().contains("is also health-prober").then_some(()))
    })
    .await?;
    drop(double);
    until("the prober restarts", LIMIT, async || {
        Ok(world.probers[&name].log().contains(RESTARTS).then_some(()))
    })
    .await?;

    // When the cluster is lost, then it is believed.
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prober_that_is_started_anew_ends_no_slow_start() -> anyhow::Result<()> {
    // Given a cluster that has come back, and is to have its share only step by step.
    let slow_start = Duration::from_secs(60);
    let mut world = World::start(&Plan { probers: 2, slow_start, ..Plan::default() }).await?;
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    world.mend(Fault::Kill).await?;
    until("it begins slowly", LIMIT, async || Ok(is_slow(&world).await?.then_some(()))).await?;

    // When each of its region's probers is started anew, one after the other, then it goes on so.
    for number in [1, 2] {
        let name = format!("prober-{}-{number}", HOME.name);
        let prober = world.probers.get_mut(&name).context("a prober")?;
        prober.kill();
        prober.restart()?;
        until("the prober has looked", LIMIT, async || {
            assert!(is_slow(&world).await?, "the slow start has ended");
            Ok((published(&mut world, &name).await.unwrap_or(0.0) >= ENDPOINTS as f64).then_some(()))
        })
        .await?;
        assert!(is_slow(&world).await?, "the slow start has ended");
    }
    world.succeeded();
    Ok(())
}

/// How often this was concluded of the cluster in its own region.
fn concluded(world: &World, verdict: &str) -> usize {
    let told = format!("cluster={} verdict={verdict}", HOME.cluster);
    let own = world.computers.values().filter(|process| process.name().contains(HOME.name));
    own.map(|process| process.log().matches(&told).count()).sum()
}

async fn is_slow(world: &World) -> anyhow::Result<bool> {
    let said = world.cli(&["explain", SERVICE, "--region", HOME.name]).await?;
    Ok(String::from_utf8(said.stdout)?.contains("slow start"))
}

/// Changes that a prober has published since it started.
async fn published(world: &mut World, prober: &str) -> anyhow::Result<f64> {
    let process = world.probers.get_mut(prober).context("a prober")?;
    let admin = process.addresses(&["admin"], LIMIT).await?[0];
    Ok(Metrics::read(admin).await?.sum("tidegate_observations_total", &[]))
}
