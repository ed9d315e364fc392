//! `deploy/compose.yaml` in Docker: what users see while containers, servers and networks are lost.
//!
//! Run by `make test-compose`, which brings an engine; without one there is nothing to test.

mod stack;

use std::time::Duration;

use stack::{
    EU, Region, US, compose, connect, disconnect, each, edge_address, region, served_epoch, status, tidegate,
    until_served,
};
use tidegate_bus::clock;
use tidegate_integration_tests::{
    client,
    load::{Load, LoadPlan, Summary},
    world::until,
};
use tidegate_model::Timestamp;

const LIMIT: Duration = Duration::from_secs(30);
const RATE: u32 = 100;

struct Users {
    us: Load,
    eu: Load,
}

impl Users {
    /// Waits until both regions' users have had `seconds` of answers from now on.
    async fn served(&self, seconds: u32) -> anyhow::Result<()> {
        let now = clock::now();
        for load in [&self.us, &self.eu] {
            load.answered_since(now, (RATE * seconds) as usize, LIMIT).await?;
        }
        Ok(())
    }

    /// No GET failed so far. Said after each step, so that a failure names the step.
    fn lost_nothing(&self, step: &str) -> anyhow::Result<()> {
        for (name, load) in [("us-east", &self.us), ("eu-west", &self.eu)] {
            let summary = Summary::of(&load.between(Timestamp(0), clock::now()));
            println!("{step}: users of {name}: {summary:?}");
            anyhow::ensure!(summary.failed_get == 0, "{step}: users of {name} lost GETs: {summary:?}");
        }
        Ok(())
    }

    /// Nor did a POST that was due since then: nothing that serves it was lost.
    fn lost_not_even_posts(&self, step: &str, since: Timestamp) -> anyhow::Result<()> {
        for (name, load) in [("us-east", &self.us), ("eu-west", &self.eu)] {
            let summary = Summary::of(&load.between(since, clock::now()));
            println!("{step}: users of {name} meanwhile: {summary:?}");
            anyhow::ensure!(
                (summary.failed_get, summary.failed_post) == (0, 0),
                "{step}: users of {name} lost requests: {summary:?}"
            );
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Docker's engine: make test-compose"]
async fn users_are_served_whatever_of_the_two_regions_is_lost() -> anyhow::Result<()> {
    // Given two regions that are up, as the README starts them, and their users.
    compose(&["up", "-d"]).await?;
    let (us, eu) = (edge_address(US).await?, edge_address(EU).await?);
    until_served(us, US).await?;
    until_served(eu, EU).await?;
    every_bucket_has_three_copies().await?;
    any_command_can_be_run().await?;
    compose(&["up", "-d", "prometheus"]).await?;
    every_service_is_scraped().await?;
    let load = |target| Load::start(LoadPlan { target, rate: RATE, connections: 10 });
    let users = Users { us: load(us)?, eu: load(eu)? };
    users.served(1).await?;
    let mut epochs = vec![served_epoch(US).await?];
    users.lost_nothing("all is well")?;

    // When a region's cluster is killed, frozen, stopped, or cut off inside its region, then the other's serves.
    for (lose, mend) in [("kill", "start"), ("pause", "unpause"), ("stop", "start")] {
        each(lose, &US.origins()).await?;
        until_served(us, EU).await?;
        users.served(1).await?;
        if lose == "kill" {
            a_lost_cluster_is_told(true).await?;
        }
        each(mend, &US.origins()).await?;
        until_served(us, US).await?;
        if lose == "kill" {
            a_lost_cluster_is_told(false).await?;
        }
        users.lost_nothing(lose)?;
    }
    for origin in US.origins() {
        disconnect(US.name, &origin).await?;
    }
    until_served(us, EU).await?;
    users.served(1).await?;
    for origin in US.origins() {
        connect(US.name, &origin).await?;
    }
    until_served(us, US).await?;
    users.lost_nothing("a cluster off its region's network")?;

    // When one NATS server of three is killed, then the region goes on deciding.
    let nats = US.nats();
    let killed_at = clock::now();
    each("kill", &nats[1..2]).await?;
    users.served(1).await?;
    users.lost_not_even_posts("one NATS server of three killed", killed_at)?;
    fails_over(us, &users).await?;
    users.lost_nothing("one NATS server of three killed")?;

    // When all of the region's are killed, then its edge serves on, and saves requests by itself.
    let killed_at = clock::now();
    each("kill", &[nats[0].clone(), nats[2].clone()]).await?;
    users.served(3).await?;
    users.lost_not_even_posts("all of a region's NATS servers killed", killed_at)?;
    each("kill", &US.origins()).await?;
    until_served(us, EU).await?;
    users.served(1).await?;
    each("start", &US.origins()).await?;
    users.lost_nothing("all of a region's NATS servers killed")?;
    each("start", &nats).await?;
    epochs.push(served_epoch(US).await?);
    until_served(us, US).await?;
    fails_over(us, &users).await?;
    users.lost_nothing("they are back")?;

    // When a region is cut off, then both serve on from what they reach, and each takes its operators' word.
    region("cut", US).await?;
    users.served(3).await?;
    until_served(us, US).await?;
    until_served(eu, EU).await?;
    // Nothing else may serve there meanwhile, so it needs confirmation.
    tidegate(EU, &["drain", "cluster", EU.cluster, "--reason", "while us-east is cut off", "--yes"]).await?;
    // A route-computer that starts anew begins a new epoch, which must be the one that both regions know afterwards.
    each("kill", &["route-computer-us".to_owned()]).await?;
    each("start", &["route-computer-us".to_owned()]).await?;
    epochs.push(later_epoch(US, epochs[epochs.len() - 1]).await?);
    one_endpoint_is_lost(US, us, &users).await?;
    users.lost_nothing("a region cut off")?;
    assert_eq!(status(US).await?["overrides"], serde_json::json!([]), "us-east cannot have heard of it");

    // When it is joined again, then both agree.
    region("heal", US).await?;
    until("us-east has heard of the drain", LIMIT, async || {
        Ok((status(US).await?["overrides"].as_array().is_some_and(|all| all.len() == 1)).then_some(()))
    })
    .await?;
    until_served(eu, US).await?;
    tidegate(US, &["undrain", "cluster", EU.cluster]).await?;
    until_served(eu, EU).await?;
    until_served(us, US).await?;
    users.served(1).await?;
    users.lost_nothing("healed")?;

    // Then the region's edge serves by the epoch that began while it was cut off, as the other region hears it, too.
    epochs.push(served_epoch(US).await?);
    assert!(epochs.is_sorted(), "an edge went back: {epochs:?}");
    let heard = status(EU).await?["regions"][US.name]["epoch"].as_u64();
    assert_eq!(heard, epochs.last().copied());
    for load in [users.us, users.eu] {
        let summary = Summary::of(&load.stop().await?);
        assert_eq!(summary.failed_get, 0, "{summary:?}");
    }
    Ok(())
}

/// Waits until a region's edge serves by a later epoch than this one.
async fn later_epoch(region: Region, than: u64) -> anyhow::Result<u64> {
    until("the edge serves by a later epoch", LIMIT, async || {
        Ok(Some(served_epoch(region).await?).filter(|epoch| *epoch > than))
    })
    .await
}

/// The home cluster is killed and started again.
async fn fails_over(us: std::net::SocketAddr, users: &Users) -> anyhow::Result<()> {
    each("kill", &US.origins()).await?;
    until_served(us, EU).await?;
    users.served(1).await?;
    each("start", &US.origins()).await?;
    until_served(us, US).await
}

/// One endpoint of a region's cluster is killed and started again: the region's other one serves.
async fn one_endpoint_is_lost(
    region: Region,
    edge: std::net::SocketAddr,
    users: &Users,
) -> anyhow::Result<()> {
    let lost = &region.origins()[..1];
    each("kill", lost).await?;
    users.served(1).await?;
    until_served(edge, region).await?;
    each("start", lost).await
}

/// A command of `tidegate` in the container that applies the fleet, as the README has it.
async fn any_command_can_be_run() -> anyhow::Result<()> {
    let said = compose(&["run", "--rm", "apply", "status"]).await?;
    for word in [US.name, EU.name, "edge-us", "applied by compose"] {
        anyhow::ensure!(said.contains(word), "no {word} in {said}");
    }
    Ok(())
}

/// Prometheus reads all services of both regions, and knows the rules.
async fn every_service_is_scraped() -> anyhow::Result<()> {
    until("Prometheus reads two of each service", LIMIT, async || {
        let Ok(answer) = prometheus("/api/v1/query?query=count(up==1)by(job)").await else { return Ok(None) };
        let jobs = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok((jobs.len() == 4 && jobs.iter().all(|job| job["value"][1] == "2")).then_some(()))
    })
    .await
}

/// Prometheus has taken note of a lost cluster by the rules, or of its return. That alerts fire after their time is tested elsewhere.
async fn a_lost_cluster_is_told(is_lost: bool) -> anyhow::Result<()> {
    until(&format!("Prometheus tells of a lost cluster: {is_lost}"), LIMIT, async || {
        let alerts = prometheus("/api/v1/alerts").await?["data"]["alerts"].to_string();
        Ok((alerts.contains("TidegateClusterDown") == is_lost).then_some(()))
    })
    .await
}

async fn prometheus(path: &str) -> anyhow::Result<serde_json::Value> {
    let answer = client::get(([127, 0, 0, 1], 9090).into(), "prometheus", path).await?;
    Ok(serde_json::from_slice(answer.body())?)
}

/// Every bucket of every region has a copy on each of its servers.
async fn every_bucket_has_three_copies() -> anyhow::Result<()> {
    for region in [US, EU] {
        let server = &region.nats()[0];
        let what = format!("buckets of {} have three copies", region.name);
        until(&what, LIMIT, async || {
            let page = "http://127.0.0.1:8222/jsz?streams=true&config=true";
            let text = compose(&["exec", "-T", server, "wget", "-q", "-O", "-", page]).await?;
            let page: serde_json::Value = serde_json::from_str(&text)?;
            let streams = page["account_details"][0]["stream_detail"].as_array().cloned().unwrap_or_default();
            let copies: Vec<_> = streams.iter().map(|s| s["config"]["num_replicas"].as_u64()).collect();
            Ok((copies.len() >= 4 && copies.iter().all(|copies| *copies == Some(3))).then_some(()))
        })
        .await?;
    }
    Ok(())
}
