//! What an operator does and sees by the command line.

use std::{fs, os::unix::fs::symlink, time::Duration};

use anyhow::Context as _;
use serde_json::Value;
use tidegate_bus::{clock, testing::NatsServer};
use tidegate_integration_tests::{
    Fault, Plan, World, binaries,
    load::{Load, LoadPlan, Summary},
    plan::{AWAY, HOME, SERVICE},
    world::until,
};
use tokio::process::Command;

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
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_cluster_gets_no_requests_until_it_is_withdrawn() -> anyhow::Result<()> {
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
    assert!(candidate["overrides"].to_string().contains("drill"), "{candidate}");

    // And when the drain is withdrawn, requests come back, and none was lost on either way.
    world.mend(Fault::Drain).await?;
    world.until_well(LIMIT).await?;
    let back_at = clock::now();
    load.answered_since(back_at, 500, LIMIT).await?;
    let all = load.stop().await?;
    let served = Summary::of(all.iter().filter(|record| record.due_at > back_at)).answers;
    assert!(served.keys().all(|origin| HOME.origins().contains(origin)), "{served:?}");
    let all = Summary::of(&all);
    assert_eq!((all.failed_get, all.failed_post, all.slow_get), (0, 0, 0), "{all:?}");
    world.succeeded();
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
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_of_a_failover_and_of_the_way_back() -> anyhow::Result<()> {
    // Given load on a system whose events somebody follows.
    let mut world = World::start(&Plan::default()).await?;
    let target = world.edge_address(HOME.edge).await?;
    let load = Load::start(LoadPlan { target, rate: 500, connections: 20 })?;
    load.answered_since(clock::now(), 100, LIMIT).await?;
    let mut following = world.cli_that_stays(&["events", "--follow"])?;

    // When a cluster is killed.
    let fault_at = world.inflict(Fault::Kill).await?;
    world.until_found(Fault::Kill, fault_at, LIMIT).await?;
    load.stop().await?;

    // Then who follows is told what failed and where requests go,
    following.says(&format!("cluster {} is", HOME.cluster)).await?;
    following.says(&format!("{SERVICE} goes to {}", AWAY.cluster)).await?;

    // and of each region it is kept what decided it, why, when its edge had it, and in which trace.
    for region in [HOME, AWAY] {
        until("the decision and the edge's word are kept", LIMIT, async || {
            let events = events(&world, region.name).await?;
            // The other region's users went to their own cluster before, too.
            let moves =
                |event: &Value| region.name != HOME.name || event["moves"].to_string().contains(AWAY.cluster);
            let mut decisions = events.iter().filter(|event| {
                event["event"] == "decided" && event["at_us"].as_u64() > Some(fault_at.0) && moves(event)
            });
            let Some(decided) = decisions.next() else { return Ok(None) };
            let cause = &decided["causes"][0];
            assert_eq!((&cause["kind"], &cause["cluster"]), (&"health".into(), &HOME.cluster.into()));
            assert!(["probe", "suspicion"].map(Value::from).contains(&cause["signal"]), "{cause}");
            let applied = events.iter().find(|event| {
                event["event"] == "applied"
                    && (&event["epoch"], &event["revision"]) == (&decided["epoch"], &decided["revision"])
            });
            let Some(applied) = applied else { return Ok(None) };
            assert_eq!(applied["edge"], region.edge);
            let times = [
                &decided["input_at_us"],
                &decided["decided_at_us"],
                &applied["received_at_us"],
                &applied["at_us"],
            ];
            assert!(times.map(Value::as_u64).is_sorted(), "{times:?}");
            Ok(Some(()))
        })
        .await?;
    }

    // And when it is mended, the way back is told, too.
    world.mend(Fault::Kill).await?;
    following.says(&format!("{SERVICE} goes to {}", HOME.cluster)).await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_events_is_told_that_the_bus_is_away_and_what_happens_after_it() -> anyhow::Result<()> {
    // Given somebody who follows the events of a system that is well.
    let mut world = World::start(&Plan::default()).await?;
    let mut following = world.cli_that_stays(&["events", "--follow"])?;
    following.says("epoch").await?;

    // When the bus loses its data, then the follower says that it is away,
    world.nats.kill();
    following.complains("waiting for the bus").await?;
    world.nats.restart_without_data();

    // and what happens afterwards, and is kept again, is told.
    let mut attempt = 0;
    until("somebody keeps events again", LIMIT, async || {
        attempt += 1;
        let file = world.write("after.yaml", &format!("{}# attempt {attempt}\n", world.fleet()))?;
        world.cli(&["apply", &file, "--author", "somebody-later"]).await?;
        let kept = String::from_utf8(world.cli(&["events"]).await?.stdout)?;
        Ok(kept.contains("applied by somebody-later").then_some(()))
    })
    .await?;
    following.says("applied by somebody-later").await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_addresses_that_are_none_are_wrong_arguments() -> anyhow::Result<()> {
    // Given a system that is well.
    let world = World::start(&Plan::default()).await?;
    let wrong: [(&[&str], &str); 4] = [
        (&["explain", "nothing", "--region", HOME.name], SERVICE),
        (&["explain", SERVICE, "--region", "nowhere"], HOME.name),
        (&["status", "--nats-servers", "http://127.0.0.1:4222"], "--nats-servers"),
        (&["status", "--nats-servers", ""], "--nats-servers"),
    ];
    for (arguments, right) in wrong {
        // When what there is not is named, then it is a wrong argument, and what would be right is said.
        let output = world.cli(arguments).await?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(right), "{arguments:?}: {said}");
    }
    world.succeeded();
    Ok(())
}

#[tokio::test]
async fn a_status_that_could_not_ask_for_all_is_told_and_a_failure() -> anyhow::Result<()> {
    // Given a bus that keeps nothing.
    let nats = NatsServer::start_without_jetstream();

    // When its status is asked for.
    let mut status = Command::from(binaries::command("tidegate")?);
    let output = status.args(["status", "--nats-servers", &nats.url()]).output().await?;

    // Then what could not be read is told with what helps, and it is a failure.
    let said = String::from_utf8(output.stdout)?;
    assert!(said.contains("the fleet cannot be read") && said.contains("nats-server --jetstream"), "{said}");
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}

async fn events(world: &World, region: &str) -> anyhow::Result<Vec<Value>> {
    let output = world.cli(&["events", "--json", "--region", region]).await?;
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout)?;
    lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

async fn status(world: &World) -> anyhow::Result<Value> {
    let output = world.cli(&["status", "--json"]).await?;
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_fleet_file_is_applied_as_it_changes_through_swapped_links() -> anyhow::Result<()> {
    // Given the fleet file as Kubernetes mounts a ConfigMap, with a mistake in place of the service's name later.
    let mut world = World::start(&Plan::default()).await?;
    let fleet = world.fleet();
    let mounted = std::path::PathBuf::from(world.write("mounted.yaml", &fleet)?).with_file_name("mounted");
    let swap = |version: &str, text: &str| -> anyhow::Result<()> {
        fs::create_dir_all(mounted.join(version))?;
        fs::write(mounted.join(version).join("fleet.yaml"), text)?;
        symlink(version, mounted.join("..data_tmp"))?;
        Ok(fs::rename(mounted.join("..data_tmp"), mounted.join("..data"))?)
    };
    swap("..v1", &fleet)?;
    symlink("..data/fleet.yaml", mounted.join("fleet.yaml"))?;
    let before = status(&world).await?["fleet"]["revision"].clone();
    let file = mounted.join("fleet.yaml").display().to_string();
    let mut watching = world.cli_that_stays(&["apply", "--watch", &file])?;

    // When it begins, then what is the fleet already is not written again.
    watching.says("is already applied").await?;
    assert_eq!(status(&world).await?["fleet"]["revision"], before);

    // When the folder is swapped for one with a mistake, then it is told and nothing changes.
    swap("..v2", &fleet.replace("services:", "servicess:"))?;
    watching.complains("fleet.yaml:").await?;
    assert_eq!(status(&world).await?["fleet"]["revision"], before);

    // When it is swapped for a good one, then that is the fleet, and requests go on.
    swap("..v3", &format!("{fleet}\n# a change\n"))?;
    watching.says("applied ").await?;
    assert_ne!(status(&world).await?["fleet"]["revision"], before);
    assert_eq!(world.ask(HOME.edge).await?.0, 200);

    // When it is asked to stop, then it does.
    assert!(watching.terminate().await?.success());
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_of_one_name_are_told_by_themselves_and_by_the_status() -> anyhow::Result<()> {
    // Given a system in which each has a name of its own.
    let world = World::start(&Plan::default()).await?;
    let name = format!("prober-{}-1", HOME.name);
    let prober = world.probers.get(&name).context("a prober of home")?;
    let running = |status: &Value| status["regions"][HOME.name]["running"].clone();
    let before = running(&status(&world).await?);
    let bearing = format!("health-prober {name}");
    assert_eq!(before[&bearing].as_array().map(Vec::len), Some(1), "{before}");
    assert!(before.get(format!("edge {}", HOME.edge)).is_some(), "{before}");

    // When a second prober is started as the first, then both say so, and so does the status.
    let mut double = prober.double()?;
    let told = format!("is also {bearing} of ");
    until("both complain", LIMIT, async || {
        Ok((prober.log().contains(&told) && double.log().contains(&told)).then_some(()))
    })
    .await?;
    let said = String::from_utf8(world.cli(&["status"]).await?.stdout)?;
    assert!(said.contains(&format!("{bearing} is claimed by 2 processes")), "{said}");

    // When it ends, then the name is the first one's again.
    double.terminate(LIMIT).await?;
    until("the name is its own again", LIMIT, async || {
        Ok(prober.log().contains("no other process claims the name").then_some(()))
    })
    .await?;
    world.succeeded();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_an_edge_is_in_its_status_in_events_and_in_metrics() -> anyhow::Result<()> {
    // Given a system in which all is well, and says so.
    let mut world = World::start(&Plan::default()).await?;
    let code = async |world: &World| anyhow::Ok(world.cli(&["status"]).await?.status.code());
    until("the status shows no problem", LIMIT, async || Ok((code(&world).await? == Some(0)).then_some(())))
        .await?;

    // When a listener is added whose port is taken, and one whose certificate does not exist.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let listeners = format!(
        "listeners:\n  taken: {{ bind: \"{}\", protocol: http }}\n  \
         bare: {{ bind: \"127.0.0.1:0\", protocol: https, certificates: [{{ chain: /none/chain.pem, key: /none/key.pem }}] }}\n",
        taken.local_addr()?
    );
    let fleet = world.fleet();
    let wanted =
        fleet.replacen("listeners:\n", &listeners, 1).replace("listeners: [", "listeners: [taken, bare, ");
    assert_ne!(wanted, fleet);
    world.apply(&wanted).await?;

    // Then the edge is not ready in the status, with both reasons, and the exit code says so.
    let shown = until("the status shows why", LIMIT, async || {
        let said = String::from_utf8(world.cli(&["status"]).await?.stdout)?;
        Ok((said.contains("listener taken:") && said.contains("listener bare:")).then_some(said))
    })
    .await?;
    assert!(shown.contains("not ready for ") && shown.contains("/none/"), "{shown}");
    assert_eq!(code(&world).await?, Some(3));
    let status = status(&world).await?;
    let problem = &status["regions"][HOME.name]["problems"][format!("edge {}", HOME.edge)][0];
    assert!(problem["check"] == "listeners" && problem["is_blocking"] == true, "{problem}");

    // And there is an event, a metric and a log line.
    let edge = format!("edge {}", HOME.edge);
    until("the event of the problem", LIMIT, async || {
        let events = events(&world, HOME.name).await?;
        Ok(events.iter().any(|e| e["event"] == "problem_began" && e["process"] == *edge).then_some(()))
    })
    .await?;
    let metrics = world.edge_metrics(HOME.edge).await?;
    assert_eq!(metrics.sum("tidegate_problem", &["check=\"listeners\""]), 1.0);
    assert_eq!(metrics.sum("tidegate_healthy", &[]), 0.0);
    let log = world.edges[HOME.edge].log();
    assert!(log.contains("not ready: listener bare:"), "{log}");

    // When the fleet is as before, then all is well again, and the event says so.
    world.apply(&fleet).await?;
    until("the status shows no problem", LIMIT, async || Ok((code(&world).await? == Some(0)).then_some(())))
        .await?;
    until("the event of its end", LIMIT, async || {
        let events = events(&world, HOME.name).await?;
        Ok(events.iter().any(|e| e["event"] == "problem_ended" && e["process"] == *edge).then_some(()))
    })
    .await?;
    world.succeeded();
    Ok(())
}
