//! What would happen is told before it happens, and a change that would move much asks for confirmation.

use std::time::Duration;

use serde_json::Value;
use tidegate_bus::clock;
use tidegate_integration_tests::{
    Plan, World,
    load::{Load, LoadPlan},
    plan::{AWAY, HOME, SERVICE},
    world::until,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A world whose farther cluster has less capacity than the load on the home region's edge, of which 300 requests per second
/// are measured.
async fn loaded_world() -> anyhow::Result<(World, Load)> {
    let mut world = World::start(&Plan::default()).await?;
    let with_capacity: Vec<String> = world
        .fleet()
        .lines()
        .map(|line| {
            let capacity = if line.contains(&format!("  {}:", HOME.cluster)) { 1000 } else { 200 };
            match line.contains("endpoints:") {
                true => line.replace("] }", &format!("], capacity: {capacity} }}")),
                false => line.to_owned(),
            }
        })
        .collect();
    world.apply(&with_capacity.join("\n")).await?;
    let target = world.edge_address(HOME.edge).await?;
    let load = Load::start(LoadPlan { target, rate: 300, connections: 20 })?;
    load.answered_since(clock::now(), 300, LIMIT).await?;
    until("the demand is measured", LIMIT, async || {
        let effect = json(&world, &["what-if", "--demand", "x1", "--json"]).await?;
        Ok((action(&effect, HOME.name)["demand_before"].as_u64() > Some(250_000)).then_some(()))
    })
    .await?;
    Ok((world, load))
}

async fn json(world: &World, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = world.cli(arguments).await?;
    anyhow::ensure!(!output.stdout.is_empty(), "{arguments:?}: {output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The effect on the service's requests from a region.
fn action<'a>(effect: &'a Value, region: &str) -> &'a Value {
    &effect["regions"][region]["actions"][0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_told_before_it_happens_and_asking_changes_nothing() -> anyhow::Result<()> {
    // Given load that the nearer cluster has the capacity for, and the farther one has not.
    let (mut world, load) = loaded_world().await?;

    // When somebody asks what the loss of the nearer cluster would do.
    let lost = format!("cluster={}", HOME.cluster);
    let effect = json(&world, &["what-if", "--lose", &lost, "--json"]).await?;

    // Then requests would go to the farther one, and what exceeds its capacity would be shed.
    let of_home = action(&effect, HOME.name);
    assert_eq!(of_home["before"]["shares"][0][0], HOME.cluster, "{of_home}");
    assert_eq!(of_home["after"]["shares"][0][0], AWAY.cluster, "{of_home}");
    assert!(of_home["after"]["shed_permille"].as_u64() > Some(200), "{of_home}");
    let text = String::from_utf8(world.cli(&["what-if", "--lose", &lost]).await?.stdout)?;
    assert!(
        text.contains("shed for lack of capacity") && text.contains("capacity 200/s, no headroom"),
        "{text}"
    );

    // The users of a lost region would come to the other one; with half of the demand all fits.
    let region = format!("region={}", HOME.name);
    let effect = json(&world, &["what-if", "--lose", &region, "--json"]).await?;
    assert!(action(&effect, AWAY.name)["demand_after"].as_u64() > Some(250_000), "{effect}");
    assert!(effect["regions"][HOME.name].is_null(), "{effect}");
    let effect = json(&world, &["what-if", "--lose", &lost, "--demand", "x0.4", "--json"]).await?;
    assert_eq!(action(&effect, HOME.name)["after"]["shed_permille"], 0, "{effect}");

    // What there is not is a wrong argument, and who is no operator is not answered.
    let wrong = world.cli(&["what-if", "--lose", "cluster=nowhere-1"]).await?;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(String::from_utf8(wrong.stderr)?.contains(HOME.cluster));
    let edge = world.cli_as(&HOME.edge_user(), &["what-if", "--lose", &lost, "--timeout", "1s"]).await?;
    assert_eq!(edge.status.code(), Some(1), "{edge:?}");

    // And all requests were answered by the nearer one meanwhile.
    assert!(HOME.origins().contains(&world.ask(HOME.edge).await?.1));
    load.stop().await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_moves_most_traffic_asks_for_confirmation_and_can_be_tried() -> anyhow::Result<()> {
    // Given load on the nearer cluster, and a file by which the farther one serves.
    let (mut world, load) = loaded_world().await?;
    let current = String::from_utf8(world.cli(&["fleet", "get"]).await?.stdout)?;
    let both = format!("{{ nearest: [{}, {}] }}", HOME.cluster, AWAY.cluster);
    let file = world
        .write("away.yaml", &current.replace(&both, &format!("[{}, {}]", AWAY.cluster, HOME.cluster)))?;

    // When it is tried, then what would move is told, and that it needs confirmation.
    let tried = world.cli(&["apply", &file, "--dry-run"]).await?;
    let said = String::from_utf8(tried.stdout)?;
    assert_eq!(tried.status.code(), Some(3), "{said}");
    assert!(said.contains("~ service shop: clusters nearest of"), "{said}");
    assert!(said.contains(&format!("{SERVICE}: {} 100 % -> {}", HOME.cluster, AWAY.cluster)), "{said}");
    let report = json(&world, &["apply", &file, "--dry-run", "--json"]).await?;
    assert!(report["effect"]["moved_permille"].as_u64() > Some(600), "{report}");
    assert!(report["objections"].to_string().contains("--max-moved"), "{report}");

    // When it is applied without it, then nothing is written.
    let refused = world.cli(&["apply", &file]).await?;
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let said = String::from_utf8(refused.stderr)?;
    assert!(said.contains("--max-moved") && said.contains("--yes"), "{said}");
    assert_eq!(String::from_utf8(world.cli(&["fleet", "get"]).await?.stdout)?, current);
    // Nor where a service would lose its last cluster.
    let other = current.replace(&both, "[new-1]").replace(
        "edges:",
        &format!("  new-1: {{ region: {}, endpoints: [\"127.0.0.1:1\"] }}\nedges:", HOME.name),
    );
    let other = world.write("other.yaml", &other)?;
    let refused = world.cli(&["apply", &other, "--max-moved", "100"]).await?;
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(String::from_utf8(refused.stderr)?.contains("would lose its last cluster: new-1"));

    // When it is confirmed, then it is as it was told.
    let applied = world.cli(&["apply", &file, "--yes"]).await?;
    assert!(applied.status.success(), "{applied:?}");
    until("the farther cluster serves", LIMIT, async || {
        Ok(AWAY.origins().contains(&world.ask(HOME.edge).await?.1).then_some(()))
    })
    .await?;
    load.stop().await?;
    world.succeeded();
    Ok(())
}
