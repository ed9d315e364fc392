//! What an operator does and sees by the command line.

use std::time::Duration;

use serde_json::Value;
use tidegate_bus::clock;
use tidegate_integration_tests::{
    Fault, Plan, World,
    load::{Load, LoadPlan, Summary},
    plan::{AWAY, HOME, SERVICE},
};

const LIMIT: Duration = Duration::from_secs(30);

/// Ten mistakes: the line and a word of what is said of each.
const MISTAKES: &str = r#"regions:
  us-east: { location: [138.9, -77.4] }
  eu-west: { location: [53.3, -6.3], colour: blue }
clusters:
  us-east-1: { region: us-eest, endpoints: ["127.0.0.1:9001"] }
  eu-west-1: { region: eu-west, endpoints: ["127.0.0.1:99999"] }
  empty-1: { region: eu-west, endpoints: [] }
edges:
  edge-us: { region: us-east, listeners: [htpp] }
listeners:
  http: { bind: "127.0.0.1", protocol: http }
services:
  shop:
    hosts: [shop.example.com]
    clusters: [us-east-1, eu-west-2]
    health: { path: healthz, interval: 250ms }
    timeout: soon
"#;
const LINES: [usize; 10] = [2, 3, 5, 6, 7, 9, 11, 15, 16, 17];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_file_with_mistakes_is_told_all_of_them_and_changes_nothing() -> anyhow::Result<()> {
    // Given a system that runs by a good fleet file.
    let mut world = World::start(&Plan::default()).await?;
    let before = status(&world).await?;

    // When a file with ten mistakes is checked and applied.
    let file = world.write("mistakes.yaml", MISTAKES)?;
    let checked = world.cli(&["check", &file]).await?;
    let applied = world.cli(&["apply", &file]).await?;

    // Then each is told with its place, by both,
    for output in [checked, applied] {
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr)?;
        for line in LINES {
            assert!(said.contains(&format!("mistakes.yaml:{line}:")), "nothing on line {line}:\n{said}");
        }
        assert!(said.contains("10 errors"), "{said}");
        assert!(said.contains("did you mean \"us-east\"?"), "a suggestion for us-eest:\n{said}");
    }
    // and nothing has changed.
    let after = status(&world).await?;
    assert_eq!(before["fleet"]["revision"], after["fleet"]["revision"]);
    assert_eq!(world.ask(HOME.edge).await?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_cluster_gets_no_requests_until_it_is_taken_back() -> anyhow::Result<()> {
    // Given load on a healthy system.
    let mut world = World::start(&Plan::default()).await?;
    let target = world.edge_address(HOME.edge).await?;
    let load = Load::start(LoadPlan { target, rate: 500, connections: 20 })?;
    load.answered_since(clock::now(), 500, LIMIT).await?;

    // When an operator drains the nearer cluster.
    let drained_at = world.inflict(Fault::Drain).await?;
    let moved = world.until_found(Fault::Drain, drained_at, LIMIT).await?;
    load.answered_since(moved.last_edge_at(), 500, LIMIT).await?;

    // Then all requests go to the other one, and the operator sees why.
    let until = clock::now();
    let served = Summary::of(&load.between(moved.last_edge_at(), until)).answers;
    assert!(served.keys().all(|origin| AWAY.origins().contains(origin)), "{served:?}");
    let shown = status(&world).await?;
    let overrides = shown["overrides"].to_string();
    assert!(overrides.contains(HOME.cluster) && overrides.contains("drill"), "{overrides}");
    let tiers = &shown["regions"][HOME.name]["services"][SERVICE][0]["tiers"];
    assert_eq!(tiers[0][0][0], AWAY.cluster, "{tiers}");
    let explained = explain(&world).await?;
    let candidate = candidate(&explained, HOME.cluster);
    assert!(candidate["overridden"].to_string().contains("drill"), "{candidate}");

    // And when the drain is taken back, requests come back, and none was lost on either way.
    world.mend(Fault::Drain).await?;
    world.until_well(LIMIT).await?;
    let back_at = clock::now();
    load.answered_since(back_at, 500, LIMIT).await?;
    let all = load.stop().await?;
    let served = Summary::of(all.iter().filter(|record| record.due_at > back_at)).answers;
    assert!(served.keys().all(|origin| HOME.origins().contains(origin)), "{served:?}");
    let all = Summary::of(&all);
    assert_eq!((all.failed_get, all.failed_post, all.slow_get), (0, 0, 0), "{all:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_explain_tell_of_a_lost_cluster() -> anyhow::Result<()> {
    // Given a system of which all is shown to be well.
    let mut world = World::start(&Plan::default()).await?;
    let shown = status(&world).await?;
    for region in [HOME, AWAY] {
        let shown = &shown["regions"][region.name];
        assert!(shown["epoch"].is_u64() && shown["revision"].is_u64(), "{shown}");
        assert_eq!(shown["edges"][region.edge]["is_current"], true, "{shown}");
        assert_eq!(shown["clusters"][HOME.cluster][0]["verdict"], "up", "{shown}");
        assert_eq!(shown["services"][SERVICE][0]["tiers"][0][0][0], region.cluster, "{shown}");
    }

    // When a cluster is lost.
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    let what = "both regions agree that it is down";
    world
        .watch
        .until(what, LIMIT, |ledger| {
            let down = |region: &str| {
                let health = ledger.tables.get(region)?.health(HOME.cluster)?;
                (health.verdict == tidegate_model::verdict::Verdict::Down).then_some(())
            };
            down(HOME.name).and(down(AWAY.name))
        })
        .await?;

    // Then status and explain say so, with the reason.
    let shown = status(&world).await?;
    let cluster = &shown["regions"][HOME.name]["clusters"][HOME.cluster][0];
    assert_eq!(cluster["verdict"], "down", "{cluster}");
    assert!(cluster["reason"].to_string().contains("refused"), "{cluster}");
    assert_eq!(shown["regions"][HOME.name]["services"][SERVICE][0]["tiers"][0][0][0], AWAY.cluster);
    let explained = explain(&world).await?;
    assert_eq!(candidate(&explained, HOME.cluster)["verdict"], "Down");
    let text = world.cli(&["explain", SERVICE, "--region", HOME.name]).await?;
    let text = String::from_utf8(text.stdout)?;
    assert!(text.contains(AWAY.cluster) && text.contains("100.0 %"), "{text}");
    Ok(())
}

async fn status(world: &World) -> anyhow::Result<Value> {
    let output = world.cli(&["status", "--json"]).await?;
    assert!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn explain(world: &World) -> anyhow::Result<Value> {
    let output = world.cli(&["explain", SERVICE, "--region", HOME.name, "--json"]).await?;
    assert!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn candidate<'a>(explained: &'a Value, cluster: &str) -> &'a Value {
    explained["actions"][0]["candidates"]
        .as_array()
        .and_then(|all| all.iter().find(|candidate| candidate["cluster"] == cluster))
        .unwrap_or_else(|| panic!("no candidate {cluster}: {explained}"))
}
