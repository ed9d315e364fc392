//! What `deploy/compose.yaml` runs, by the commands that a person would type.

use std::{net::SocketAddr, process::Output, time::Duration};

use anyhow::Context as _;
use tidegate_integration_tests::{client, plan::HOST, world::until};
use tokio::process::Command;

/// How long one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(30);

/// A region as the file names it.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    pub name: &'static str,
    /// What its services' names end with.
    pub short: &'static str,
    pub cluster: &'static str,
}

pub const US: Region = Region { name: "us-east", short: "us", cluster: "us-east-1" };
pub const EU: Region = Region { name: "eu-west", short: "eu", cluster: "eu-west-1" };

impl Region {
    pub fn origins(self) -> [String; 2] {
        ["a", "b"].map(|letter| format!("{}{letter}", self.cluster))
    }

    pub fn nats(self) -> [String; 3] {
        [1, 2, 3].map(|number| format!("nats-{}-{number}", self.short))
    }

    pub fn edge(self) -> String {
        format!("edge-{}", self.short)
    }
}

/// Runs a program to its end.
pub async fn run(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let running = Command::new(program).args(arguments).kill_on_drop(true).output();
    let what = || format!("{program} {}", arguments.join(" "));
    let output = tokio::time::timeout(COMMAND_LIMIT, running)
        .await
        .with_context(|| format!("{} does not end", what()))??;
    // A status that shows a problem, such as what the test itself has taken away, exits with 3.
    let shows_problem = arguments.contains(&"status") && output.status.code() == Some(3);
    anyhow::ensure!(
        output.status.success() || shows_problem,
        "{}: {}{}",
        what(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// Runs a command of Compose.
pub async fn compose(arguments: &[&str]) -> anyhow::Result<String> {
    let all: Vec<&str> = ["--ansi", "never"].into_iter().chain(arguments.iter().copied()).collect();
    let output = run("docker-compose", &all).await?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a command of Compose on these services.
pub async fn each(command: &str, services: &[String]) -> anyhow::Result<()> {
    let arguments: Vec<&str> = [command].into_iter().chain(services.iter().map(String::as_str)).collect();
    compose(&arguments).await.map(drop)
}

/// Cuts a region off or heals it, by the script for people.
pub async fn region(command: &str, region: Region) -> anyhow::Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/region");
    run(script, &[command, region.name]).await.map(drop)
}

/// Takes a service's containers off a network of the project.
pub async fn disconnect(network: &str, service: &str) -> anyhow::Result<()> {
    let (network, id) = (network_name(network)?, container(service).await?);
    run("docker", &["network", "disconnect", &network, &id]).await.map(drop)
}

/// Puts them back.
pub async fn connect(network: &str, service: &str) -> anyhow::Result<()> {
    let (network, id) = (network_name(network)?, container(service).await?);
    run("docker", &["network", "connect", "--alias", service, &network, &id]).await.map(drop)
}

async fn container(service: &str) -> anyhow::Result<String> {
    Ok(compose(&["ps", "-q", service]).await?.trim().to_owned())
}

fn network_name(network: &str) -> anyhow::Result<String> {
    Ok(format!("{}_{network}", std::env::var("COMPOSE_PROJECT_NAME")?))
}

/// Where a region's edge is published.
pub async fn edge_address(region: Region) -> anyhow::Result<SocketAddr> {
    let published = compose(&["port", &region.edge(), "8080"]).await?;
    published.trim().parse().with_context(|| format!("{published:?} is no address"))
}

/// Waits until a region's edge answers from the cluster of `from`.
pub async fn until_served(edge: SocketAddr, from: Region) -> anyhow::Result<()> {
    let what = format!("{edge} answers from {}", from.cluster);
    until(&what, LIMIT, async || {
        let Ok(answer) = client::get(edge, HOST, "/").await else { return Ok(None) };
        let origin = answer.headers().get("x-origin").and_then(|name| name.to_str().ok()).unwrap_or_default();
        Ok((answer.status() == 200 && origin.starts_with(from.cluster)).then_some(()))
    })
    .await
}

/// Runs the `tidegate` command in a container of its own, on a region's bus.
pub async fn tidegate(region: Region, arguments: &[&str]) -> anyhow::Result<String> {
    let servers = region.nats().map(|name| format!("nats://{name}:4222")).join(",");
    let (network, variable) = (network_name(region.name)?, format!("TIDEGATE_NATS__SERVERS={servers}"));
    let own =
        ["run", "--rm", "--network", &network, "-e", &variable, "-e", "TIDEGATE_NATS__BUCKET_REPLICAS=3"];
    let user = ["-e", "TIDEGATE_NATS__USER=operator", "-e", "TIDEGATE_NATS__PASSWORD=operator"];
    let all: Vec<&str> = own
        .into_iter()
        .chain(user)
        .chain(["tidegate/tidegate:0.1.0"])
        .chain(arguments.iter().copied())
        .collect();
    Ok(String::from_utf8(run("docker", &all).await?.stdout)?)
}

/// What `tidegate status` says on a region's bus.
pub async fn status(region: Region) -> anyhow::Result<serde_json::Value> {
    Ok(serde_json::from_str(&tidegate(region, &["status", "--json"]).await?)?)
}

/// The epoch by which a region's edge serves, as its own region hears it.
pub async fn served_epoch(region: Region) -> anyhow::Result<u64> {
    let mut last = serde_json::Value::Null;
    until("the edge reports its epoch", LIMIT, async || {
        let Ok(status) = status(region).await else { return Ok(None) };
        last = status["regions"][region.name].clone();
        let edge = &last["edges"][region.edge()];
        Ok(edge["is_current"].as_bool().filter(|is| *is).and(edge["epoch"].as_u64()))
    })
    .await
    .with_context(|| format!("{last}"))
}
