//! A real Prometheus that reads the metrics of a whole world, with the alert rules that are shipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::Value;
use tidegate_bus::testing::lasting_port;
use tidegate_integration_tests::{
    World, client,
    plan::REGIONS,
    process::Process,
    world::{START_LIMIT, until},
};

/// How often it reads, and how often it looks at its rules.
const EVERY: &str = "500ms";
/// For how long a condition must hold before it is told. Only this differs from the rules that are shipped: people want to
/// hear of what lasts, a test does not want to wait for it.
const FOR: &str = "1s";

/// A running Prometheus; killed when dropped.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
    targets: usize,
}

impl Prometheus {
    /// Starts one that reads every prober, route-computer and edge of `world`, and waits until it has read all of them.
    pub async fn start(world: &mut World) -> anyhow::Result<Prometheus> {
        let jobs = jobs(world).await?;
        let rules = std::fs::read_to_string(shipped("rules/tidegate.yaml"))?;
        let rules = world.write("rules.yaml", &impatient(&rules))?;
        let config = world.write("prometheus.yaml", &config(&jobs, &rules))?;
        let log = Path::new(&config).with_file_name("prometheus.log");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, lasting_port()));
        let output = std::fs::File::create(&log)?;
        let child = Command::new("prometheus")
            .arg(format!("--config.file={config}"))
            .arg(format!("--storage.tsdb.path={}", Path::new(&config).with_file_name("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("prometheus cannot be started (Debian: apt-get install prometheus)")?;
        let targets = jobs.values().map(Vec::len).sum();
        let mut prometheus = Prometheus { child, address, log, targets };
        until("prometheus has read all of the world", START_LIMIT, async || prometheus.has_read_all().await)
            .await?;
        Ok(prometheus)
    }

    async fn has_read_all(&mut self) -> anyhow::Result<Option<()>> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            anyhow::bail!("prometheus has ended ({status}):\n{log}");
        }
        // Until it listens, and has read its rules, it has no answer.
        let Ok(up) = self.ask("count(up == 1)").await else { return Ok(None) };
        let count = up.first().map_or(0.0, |sample| sample.value);
        Ok((count == self.targets as f64).then_some(()))
    }

    /// What it answers to `query` now.
    pub async fn ask(&self, query: &str) -> anyhow::Result<Vec<Sample>> {
        let data = self.api(&format!("query?query={}", encoded(query))).await?;
        let results = data["result"].as_array().with_context(|| format!("{query}: {data}"))?;
        Ok(results.iter().filter_map(Sample::of).collect())
    }

    /// The alerts that fire now, each by its name and, where it has one, its region: `TidegateClusterDown in us-east`.
    pub async fn firing(&self) -> anyhow::Result<BTreeSet<String>> {
        let data = self.api("alerts").await?;
        let alerts = data["alerts"].as_array().context("a list of alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing").map(|alert| &alert["labels"]);
        let told = |labels: &Value| {
            let region = labels["region"].as_str().map_or_else(String::new, |region| format!(" in {region}"));
            labels["alertname"].as_str().unwrap_or_default().to_owned() + &region
        };
        Ok(firing.map(told).collect())
    }

    /// The names of all alerts that fired at any time since then.
    pub async fn fired_since(&self, then: Instant) -> anyhow::Result<BTreeSet<String>> {
        let span = then.elapsed().as_millis();
        let query =
            format!("count by (alertname) (last_over_time(ALERTS{{alertstate=\"firing\"}}[{span}ms]))");
        Ok(self
            .ask(&query)
            .await?
            .into_iter()
            .filter_map(|mut sample| sample.labels.remove("alertname"))
            .collect())
    }

    /// Waits until exactly `alerts` fire.
    pub async fn until_only(&self, alerts: &[&str], limit: Duration) -> anyhow::Result<()> {
        self.until_firing(alerts, limit, |firing, wanted| firing == wanted).await
    }

    /// Waits until all of `alerts` fire, beside whatever else does.
    pub async fn until_all(&self, alerts: &[&str], limit: Duration) -> anyhow::Result<()> {
        self.until_firing(alerts, limit, BTreeSet::is_superset).await
    }

    async fn until_firing(
        &self,
        alerts: &[&str],
        limit: Duration,
        are_they: impl Fn(&BTreeSet<String>, &BTreeSet<String>) -> bool,
    ) -> anyhow::Result<()> {
        let wanted = alerts.iter().map(|alert| (*alert).to_owned()).collect();
        let mut firing = BTreeSet::new();
        let found = until(&format!("{wanted:?} fire"), limit, async || {
            firing = self.firing().await?;
            Ok(are_they(&firing, &wanted).then_some(()))
        })
        .await;
        found.with_context(|| format!("{firing:?} fire"))
    }

    /// All rules: their names and their queries.
    pub async fn rules(&self) -> anyhow::Result<Vec<(String, String)>> {
        let data = self.api("rules").await?;
        let groups = data["groups"].as_array().context("groups of rules")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
        let text = |rule: &Value, key: &str| rule[key].as_str().unwrap_or_default().to_owned();
        Ok(rules.map(|rule| (text(rule, "name"), text(rule, "query"))).collect())
    }

    async fn api(&self, path: &str) -> anyhow::Result<Value> {
        let answer = client::get(self.address, "prometheus", &format!("/api/v1/{path}")).await?;
        let mut answer: Value = serde_json::from_slice(answer.body())?;
        anyhow::ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// One series of an answer.
#[derive(Debug)]
pub struct Sample {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    fn of(result: &Value) -> Option<Sample> {
        Some(Sample { labels: labels(&result["metric"]), value: result["value"][1].as_str()?.parse().ok()? })
    }
}

/// A file of the folder `deploy`.
pub fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn labels(of: &Value) -> BTreeMap<String, String> {
    let all = of.as_object().into_iter().flatten();
    all.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// The rules with nothing changed but how long a condition must hold.
fn impatient(rules: &str) -> String {
    let line = |line: &str| match line.trim_start().strip_prefix("for: ") {
        Some(_) => line[..line.len() - line.trim_start().len()].to_owned() + "for: " + FOR + "\n",
        None => line.to_owned() + "\n",
    };
    rules.lines().map(line).collect()
}

/// Where each kind of service shows its metrics, with the region that it is in.
type Jobs = BTreeMap<&'static str, Vec<(&'static str, SocketAddr)>>;

async fn jobs(world: &mut World) -> anyhow::Result<Jobs> {
    let mut jobs = Jobs::new();
    for (job, processes) in [
        ("tidegate-health-prober", &mut world.probers),
        ("tidegate-route-computer", &mut world.computers),
        ("tidegate-replicator", &mut world.replicators),
        ("tidegate-proxy", &mut world.edges),
    ] {
        for process in processes.values_mut() {
            let admin = process.addresses(&["admin"], START_LIMIT).await?[0];
            jobs.entry(job).or_default().push((region(process)?, admin));
        }
    }
    Ok(jobs)
}

fn region(process: &Process) -> anyhow::Result<&'static str> {
    let name = process.name();
    let found = REGIONS.iter().find(|region| name == region.edge || name.contains(region.name));
    Ok(found.with_context(|| format!("{name} is in no region"))?.name)
}

fn config(jobs: &Jobs, rules: &str) -> String {
    let mut text = format!(
        "global: {{ scrape_interval: {EVERY}, scrape_timeout: {EVERY}, evaluation_interval: {EVERY} }}\n\
         rule_files: [\"{rules}\"]\nscrape_configs:\n"
    );
    // Writing to a String does not fail.
    for (job, targets) in jobs {
        _ = writeln!(text, "  - job_name: {job}\n    static_configs:");
        for (region, admin) in targets {
            _ = writeln!(text, "      - {{ targets: [\"{admin}\"], labels: {{ region: {region} }} }}");
        }
    }
    text
}

/// `text` as part of a query.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
