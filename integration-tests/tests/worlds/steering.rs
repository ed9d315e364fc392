//! Overrides of operators stay in force until they are withdrawn.

use std::time::Duration;

use http::StatusCode;
use tidegate_integration_tests::{
    Fault, Plan, World, client,
    plan::{AWAY, HOME, HOST, RegionPlan, SERVICE},
    world::until,
};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_region_serves_nobody_until_it_is_withdrawn() -> anyhow::Result<()> {
    let mut world = World::start(&Plan::default()).await?;

    let said = succeeds(&world, &["drain", "region", HOME.name, "--reason", "storm", "--for", "1h"]).await?;
    assert!(said.contains("evacuation of region us-east, for 1h"), "{said}");
    for region in [HOME, AWAY] {
        is_served_from(&mut world, &region, &AWAY).await?;
    }
    let status = succeeds(&world, &["status"]).await?;
    assert!(
        status.contains("override: evacuation of region us-east") && status.contains("storm"),
        "{status}"
    );

    succeeds(&world, &["undrain", "region", HOME.name]).await?;
    for region in [HOME, AWAY] {
        is_served_from(&mut world, &region, &region).await?;
    }
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_edge_tells_balancers_so_and_serves_who_still_comes() -> anyhow::Result<()> {
    let mut world = World::start(&Plan::default()).await?;

    succeeds(&world, &["drain", "edge", HOME.edge]).await?;
    tells_balancers(&mut world, StatusCode::SERVICE_UNAVAILABLE).await?;
    assert_eq!(world.ask(HOME.edge).await?.0, 200);
    until("the status shows it", LIMIT, async || {
        let status = succeeds(&world, &["status"]).await?;
        let edge = status.lines().find(|line| line.contains(&format!("edge    {}", HOME.edge)));
        Ok(edge.filter(|line| line.contains("draining")).map(|_| ()))
    })
    .await?;

    succeeds(&world, &["undrain", "edge", HOME.edge]).await?;
    tells_balancers(&mut world, StatusCode::OK).await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_route_holds_until_it_is_withdrawn_and_a_watched_status_shows_it() -> anyhow::Result<()> {
    // Given a system whose status somebody watches.
    let mut world = World::start(&Plan::default()).await?;
    let mut watching = world.cli_that_stays(&["status", "--watch"])?;
    watching.says("\u{1b}[2J\u{1b}[Hfleet revision").await?;

    // When a service is forced to the farther cluster, then its requests go there, and the next screens say so.
    succeeds(&world, &["force", SERVICE, "--to", AWAY.cluster, "--reason", "a test"]).await?;
    is_served_from(&mut world, &HOME, &AWAY).await?;
    let shown = watching.says("override: ").await?;
    assert!(shown.contains(&format!("{SERVICE} forced to {}", AWAY.cluster)), "{shown}");

    // When a cluster or a service is not there, then what there is is said, and nothing changes.
    for wrong in [["force", SERVICE, "--to", "nowhere-1"], ["force", "shoop", "--to", AWAY.cluster]] {
        let refused = world.cli(&wrong).await?;
        let said = String::from_utf8(refused.stderr)?;
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(if wrong[1] == SERVICE { HOME.cluster } else { SERVICE }), "{said}");
    }
    is_served_from(&mut world, &HOME, &AWAY).await?;

    // When it is withdrawn, then they come back, and there is nothing more to withdraw.
    succeeds(&world, &["unforce", SERVICE]).await?;
    is_served_from(&mut world, &HOME, &HOME).await?;
    let again = world.cli(&["unforce", SERVICE]).await?;
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8(again.stderr)?.contains("not forced"));
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overrides_that_contradict_each_other_or_do_nothing_are_withheld_until_confirmed()
-> anyhow::Result<()> {
    // Given a service that is forced to a cluster.
    let mut world = World::start(&Plan::default()).await?;
    succeeds(&world, &["force", SERVICE, "--to", HOME.cluster, "--author", "ann"]).await?;

    // When that cluster or its region is drained, then nothing is done, and why and what would be right is said.
    for target in [["cluster", HOME.cluster], ["region", HOME.name]] {
        let said = is_withheld(&world, &["drain", target[0], target[1]]).await?;
        assert!(said.contains("takes precedence") && said.contains("tidegate unforce shop"), "{said}");
    }
    assert!(!succeeds(&world, &["status"]).await?.contains("override: drain"));

    // When it is confirmed, then explain has both, and which one wins.
    succeeds(&world, &["drain", "cluster", HOME.cluster, "--author", "bob", "--yes"]).await?;
    until("both are explained", LIMIT, async || {
        let said = succeeds(&world, &["explain", SERVICE, "--region", HOME.name]).await?;
        let overruled = format!("drain of cluster {} by bob (without effect: a forced route", HOME.cluster);
        let forced = format!("{SERVICE} forced to {} by ann", HOME.cluster);
        Ok((said.contains(&overruled) && said.contains(&forced)).then_some(()))
    })
    .await?;
    is_served_from(&mut world, &HOME, &HOME).await?;

    // When the forced route ends, then the drain moves requests, and the other cluster may not be drained as well.
    succeeds(&world, &["unforce", SERVICE]).await?;
    is_served_from(&mut world, &HOME, &AWAY).await?;
    let said = is_withheld(&world, &["force", SERVICE, "--to", HOME.cluster]).await?;
    assert!(said.contains("although it is drained"), "{said}");
    let said = is_withheld(&world, &["drain", "cluster", AWAY.cluster]).await?;
    assert!(said.contains("nothing else may serve it"), "{said}");
    succeeds(&world, &["undrain", "cluster", HOME.cluster]).await?;

    // When a cluster is down, then nothing is forced to it.
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    until("both regions know that it is down", LIMIT, async || {
        let said = world.cli(&["force", SERVICE, "--to", HOME.cluster]).await?;
        let code = said.status.code();
        let said = String::from_utf8(said.stderr)?;
        let in_both = [HOME, AWAY]
            .iter()
            .all(|region| said.contains(&format!("in {}, {SERVICE} would go to", region.name)));
        Ok((code == Some(3) && in_both).then_some(()))
    })
    .await?;

    // Nor is the last edge of all drained.
    succeeds(&world, &["drain", "edge", HOME.edge]).await?;
    let said = is_withheld(&world, &["drain", "edge", AWAY.edge]).await?;
    assert!(said.contains("the last edge that is not drained"), "{said}");
    world.succeeded();
    Ok(())
}

/// Runs a command that must be withheld, and returns what it says.
async fn is_withheld(world: &World, arguments: &[&str]) -> anyhow::Result<String> {
    let output = world.cli(arguments).await?;
    anyhow::ensure!(output.status.code() == Some(3), "{arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

/// Runs a command that must succeed, and returns what it says.
async fn succeeds(world: &World, arguments: &[&str]) -> anyhow::Result<String> {
    let output = world.cli(arguments).await?;
    anyhow::ensure!(output.status.success(), "{arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Waits until the edge of `region` answers from the cluster of `from`. No answer may fail meanwhile.
async fn is_served_from(world: &mut World, region: &RegionPlan, from: &RegionPlan) -> anyhow::Result<()> {
    until(&format!("{} answers from {}", region.edge, from.cluster), LIMIT, async || {
        let (status, origin) = world.ask(region.edge).await?;
        anyhow::ensure!(status == 200, "{} answered {status}", region.edge);
        Ok(from.origins().contains(&origin).then_some(()))
    })
    .await
}

/// Waits until the home region's edge answers outside balancers so.
async fn tells_balancers(world: &mut World, status: StatusCode) -> anyhow::Result<()> {
    let edge = world.edge_address(HOME.edge).await?;
    until(&format!("balancers are told {status}"), LIMIT, async || {
        let answer = client::get(edge, HOST, "/.well-known/tidegate/health").await?;
        Ok((answer.status() == status).then_some(()))
    })
    .await
}
