//! Gathers the state of regions, edges and probers from the bus.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tidegate_bus::{
    Bus,
    claims::IdentityClaim,
    clock,
    fleet::FleetStore,
    overrides::OverrideStore,
    report::Reports,
    seal::Trust,
    subjects,
    table::{Replicas, TableUpdate, Update},
};
use tidegate_model::{
    ClusterName, EdgeName, Epoch, RegionName, Revision, Timestamp,
    fleet::{Fleet, Region},
    overrides::{Override, OverrideKind},
    report::{Applied, Load},
    routes::{RouteEntry, RouteKey},
};
use tokio::{sync::mpsc, time::Instant};

use crate::words;

/// The time without a heartbeat after which a region's table counts as gone.
const TABLE_LIFETIME: Duration = Duration::from_secs(10);
/// The age after which load reports and claims, which come each second, are no longer shown.
const REPORT_LIFETIME: Duration = Duration::from_secs(3);

/// The status of the system.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The fleet's revision, author and time; absent when none was applied.
    pub fleet: Option<FleetStatus>,
    /// What could not be read or heard, and why: the fleet, the overrides, what this user has no permission for.
    pub problems: Vec<String>,
    /// Each region of the fleet, and others that publish a table or have an edge.
    pub regions: BTreeMap<RegionName, RegionStatus>,
    /// Overrides in force.
    pub overrides: Vec<String>,
}

/// The applied fleet.
#[derive(Debug, Serialize)]
pub struct FleetStatus {
    /// Its revision.
    pub revision: u64,
    /// Who applied it.
    pub author: String,
    /// Its age in seconds.
    pub age_s: u64,
}

/// One region.
#[derive(Debug, Default, Serialize)]
pub struct RegionStatus {
    /// The table's epoch; absent when no leader publishes it.
    pub epoch: Option<Epoch>,
    /// The table's revision.
    pub revision: Option<Revision>,
    /// The time since the last message of its owner, in milliseconds.
    pub owner_heard_ms_ago: Option<u64>,
    /// The number of messages about its table without the signature of one of the region's keys; edges refuse them.
    pub unsigned: u64,
    /// Whether the fleet lacks it.
    pub is_unknown: bool,
    /// The running services, such as `health-prober prober-1`, and their processes: one each, unless several have the same name
    /// by mistake.
    pub running: BTreeMap<String, Vec<String>>,
    /// What is wrong with them, by service.
    pub problems: BTreeMap<String, Vec<ProblemStatus>>,
    /// Whether this user may hear the region's edges: otherwise nothing is known of them.
    pub is_heard: bool,
    /// Its edges.
    pub edges: BTreeMap<EdgeName, EdgeStatus>,
    /// Edges of the fleet that do not report.
    pub missing_edges: Vec<EdgeName>,
    /// Edges that report and that the fleet lacks in this region.
    pub unknown_edges: Vec<EdgeName>,
    /// Clusters as this region sees them; by check where services' checks differ.
    pub clusters: BTreeMap<ClusterName, Vec<ClusterStatus>>,
    /// The load that this region's edges send to clusters.
    pub sent: BTreeMap<ClusterName, SentStatus>,
    /// For each service, for each action, the tiers in order: clusters and shares.
    pub services: BTreeMap<String, Vec<ActionStatus>>,
}

/// What is wrong with a service.
#[derive(Debug, Serialize)]
pub struct ProblemStatus {
    /// The name of the check that found it.
    pub check: String,
    /// What is wrong.
    pub reason: String,
    /// For how many seconds it has lasted.
    pub for_s: u64,
    /// Whether the service is not ready because of it.
    pub is_blocking: bool,
}

/// One edge.
#[derive(Debug, Serialize)]
pub struct EdgeStatus {
    /// The epoch it serves by; zero with revision zero: it has no table yet.
    pub epoch: Epoch,
    /// The revision it serves by.
    pub revision: Revision,
    /// Whether that is the owner's latest.
    pub is_current: bool,
    /// The time since it was applied, in milliseconds.
    pub age_ms: u64,
    /// The time from receiving to applying it, in microseconds.
    pub apply_us: u64,
    /// Whether it drains.
    pub draining: bool,
    /// For how many seconds it has lacked its region's latest table although a later one is published.
    pub behind_s: Option<u64>,
    /// The number of messages since it started that it refused: of older or implausible epochs, or not signed by a trusted key.
    pub refused: u64,
    /// The time since its last report, in milliseconds.
    pub reported_ms_ago: u64,
}

/// A cluster for one check.
#[derive(Debug, Serialize)]
pub struct ClusterStatus {
    /// Its verdict.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// Whether an operator has drained it, or evacuates its region.
    pub drained: bool,
}

/// The load that edges send to a cluster.
#[derive(Debug, Default, Serialize)]
pub struct SentStatus {
    /// Attempts per second.
    pub per_s: f64,
    /// Failed attempts per second.
    pub failed_per_s: f64,
    /// The 95th percentile of the time to the first response byte, in milliseconds: the largest of all edges; absent when
    /// unknown.
    pub p95_ms: Option<f64>,
}

/// Where the requests of one action go.
#[derive(Debug, Serialize)]
pub struct ActionStatus {
    /// The requests that it is for, such as `/api and below`; absent for the service's default, and where the fleet is unknown.
    pub requests: Option<String>,
    /// Clusters and shares, tier by tier.
    pub tiers: Vec<Vec<(String, u16)>>,
    /// Why.
    pub reason: String,
    /// Whether everything seems down.
    pub fail_open: bool,
    /// The share of requests that is shed, in thousandths.
    pub shed_permille: u16,
}

#[derive(Default)]
struct Table {
    epoch: Epoch,
    revision: Revision,
    heard_at: Timestamp,
    entries: BTreeMap<RouteKey, RouteEntry>,
}

/// A gatherer that listens on the bus.
pub struct Gatherer {
    _tables: Replicas,
    /// The trusted keys by region.
    trusts: BTreeMap<RegionName, Trust>,
    updates: mpsc::Receiver<TableUpdate<RouteKey, RouteEntry>>,
    applied: Reports<Applied>,
    loads: Reports<Load>,
    claims: Reports<IdentityClaim>,
    tables: BTreeMap<RegionName, Table>,
    edges: BTreeMap<(RegionName, EdgeName), (Applied, Timestamp)>,
    sent: BTreeMap<(RegionName, EdgeName), (Load, Timestamp)>,
    /// The last claim by subject and instance.
    claimed: BTreeMap<(String, u64), (IdentityClaim, Timestamp)>,
}

impl Gatherer {
    /// Starts to listen.
    pub async fn start(bus: &Bus) -> anyhow::Result<Gatherer> {
        let applied = bus.subscribe_reports(subjects::ALL_APPLIED).await?;
        let loads = bus.subscribe_reports(subjects::ALL_LOAD).await?;
        let claims = bus.subscribe_reports(subjects::ALL_CLAIMS).await?;
        // A fleet that cannot be read is reported with the status; then tables are shown whoever signed them.
        let text = FleetStore::new(bus).get().await.ok().flatten();
        let fleet = text.and_then(|text| Fleet::parse(&text.text, "fleet").ok());
        let regions = fleet.map(|fleet| fleet.regions).unwrap_or_default();
        let trusts: BTreeMap<RegionName, Trust> = regions.into_iter().map(trust).collect();
        let by_subject =
            trusts.iter().map(|(region, trust)| (subjects::routes(region), trust.clone())).collect();
        let (tables, updates) =
            Replicas::start_with_trust(bus.clone(), subjects::ALL_ROUTES, TABLE_LIFETIME, by_subject).await?;
        Ok(Gatherer {
            _tables: tables,
            trusts,
            updates,
            applied,
            loads,
            claims,
            tables: BTreeMap::new(),
            edges: BTreeMap::new(),
            sent: BTreeMap::new(),
            claimed: BTreeMap::new(),
        })
    }

    /// Listens for a time.
    pub async fn listen(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        loop {
            tokio::select! {
                update = self.updates.recv() => match update {
                    Some(update) => self.take(update),
                    None => anyhow::bail!("the bus has closed"),
                },
                Some(report) = self.applied.next() => {
                    let Applied { region, edge, .. } = report.body.clone();
                    self.edges.insert((region, edge), (report.body, report.received_at));
                }
                Some(report) = self.loads.next() => {
                    let Load { region, edge, .. } = report.body.clone();
                    self.sent.insert((region, edge), (report.body, report.received_at));
                }
                Some(report) = self.claims.next() => {
                    self.claimed.insert((report.subject, report.body.instance), (report.body, report.received_at));
                }
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
    }

    fn take(&mut self, update: TableUpdate<RouteKey, RouteEntry>) {
        let (subject, update) = match update {
            TableUpdate::Update(subject, update) => (subject, update),
            TableUpdate::Gone(subject) => {
                if let Some(region) = subjects::parse_routes(&subject) {
                    self.tables.remove(&region);
                }
                return;
            }
        };
        let Some(region) = subjects::parse_routes(&subject) else { return };
        let table = self.tables.entry(region).or_default();
        let (now_epoch, now_revision, heard_at) = match update {
            Update::Snapshot { epoch, revision, entries, received_at } => {
                table.entries = entries.into_iter().collect();
                (epoch, revision, received_at)
            }
            Update::Delta { epoch, revision, changes, received_at, .. } => {
                for (key, entry) in changes {
                    match entry {
                        Some(entry) => table.entries.insert(key, entry),
                        None => table.entries.remove(&key),
                    };
                }
                (epoch, revision, received_at)
            }
            Update::Heartbeat { epoch, revision, received_at, .. } => (epoch, revision, received_at),
            Update::Refused { .. } => return,
        };
        (table.epoch, table.revision, table.heard_at) = (now_epoch, now_revision, heard_at);
    }

    /// The present status.
    pub async fn status(&self, bus: &Bus) -> Status {
        let now = clock::now();
        let ms_since = |at: Timestamp| now.since(at).as_millis() as u64;
        let mut regions: BTreeMap<RegionName, RegionStatus> = BTreeMap::new();
        for (name, table) in &self.tables {
            let mut status = RegionStatus {
                epoch: Some(table.epoch),
                revision: Some(table.revision),
                owner_heard_ms_ago: Some(ms_since(table.heard_at)),
                ..RegionStatus::default()
            };
            table.entries.iter().for_each(|(key, entry)| status.add(key, entry));
            regions.insert(name.clone(), status);
        }
        for ((region, edge), (applied, received_at)) in &self.edges {
            let region = regions.entry(region.clone()).or_default();
            let status = EdgeStatus {
                epoch: applied.epoch,
                revision: applied.revision,
                is_current: (region.epoch, region.revision) == (Some(applied.epoch), Some(applied.revision)),
                behind_s: applied.behind_since.map(|since| now.since(since).as_secs()),
                refused: applied.refused_old_epochs + applied.refused_unsigned,
                age_ms: ms_since(applied.applied_at),
                apply_us: match applied.received_at {
                    Timestamp(0) => 0,
                    received => applied.applied_at.since(received).as_micros() as u64,
                },
                draining: applied.draining,
                reported_ms_ago: ms_since(*received_at),
            };
            region.edges.insert(edge.clone(), status);
        }
        for ((region, _), (load, received_at)) in &self.sent {
            if now.since(*received_at) < REPORT_LIFETIME {
                regions.entry(region.clone()).or_default().add_load(load);
            }
        }
        for ((subject, _), (claim, received_at)) in &self.claimed {
            if now.since(*received_at) < REPORT_LIFETIME
                && let Some((kind, region, name)) = subjects::parse_claim(subject)
            {
                let (region, process) = (regions.entry(region).or_default(), format!("{kind} {name}"));
                if !claim.problems.is_empty() {
                    let problems = claim.problems.iter().map(|problem| ProblemStatus {
                        check: problem.check.clone(),
                        reason: problem.reason.clone(),
                        for_s: now.since(problem.since).as_secs(),
                        is_blocking: problem.is_blocking,
                    });
                    region.problems.entry(process.clone()).or_default().extend(problems);
                }
                region.running.entry(process).or_default().push(claim.to_string());
            }
        }
        for (name, trust) in self.trusts.iter().filter(|(_, trust)| trust.refused() > 0) {
            regions.entry(name.clone()).or_default().unsigned = trust.refused();
        }
        let mut problems: Vec<String> = Vec::new();
        let refusals = bus.refusals();
        let may_hear = |subject: &str| !refusals.iter().any(|refusal| refusal.contains(subject));
        for (subject, what) in [
            (subjects::ALL_APPLIED, "edges report"),
            (subjects::ALL_LOAD, "load edges report"),
            (subjects::ALL_CLAIMS, "services run"),
            (subjects::ALL_ROUTES, "tables are published"),
        ] {
            if !may_hear(subject) {
                problems.push(format!("this user has no permission to hear which {what} ({subject})"));
            }
        }
        let text = FleetStore::new(bus).get().await.unwrap_or_else(|error| {
            problems.push(format!("the fleet cannot be read: {error}"));
            None
        });
        let expected = text.as_ref().and_then(|text| Fleet::parse(&text.text, "fleet").ok());
        if let Some(expected) = &expected {
            for (name, trust) in &self.trusts {
                let keys = expected.regions.get(name).map(|region| region.signing_keys.as_slice());
                if keys.is_some_and(|keys| keys != trust.keys()) {
                    trust.set(keys.unwrap_or_default());
                }
            }
            compare_with_fleet(expected, &mut regions);
        }
        let fleet = text.map(|fleet| FleetStatus {
            revision: fleet.head.revision,
            author: fleet.head.author,
            age_s: now.since(fleet.head.at).as_secs(),
        });
        let mut overrides = OverrideStore::new(bus).list().await.unwrap_or_else(|error| {
            problems.push(format!("the overrides cannot be read: {error}"));
            BTreeMap::new()
        });
        regions.values_mut().for_each(|region| region.is_heard = may_hear(subjects::ALL_APPLIED));
        overrides.retain(|_, item| item.expires_at.is_none_or(|at| at > now));
        mark_drained(&overrides, expected.as_ref(), &mut regions);
        let overrides = overrides.values().map(|item| override_text(item, now)).collect();
        Status { fleet, problems, regions, overrides }
    }
}

/// Trusts the region's keys; without keys, everything.
fn trust((name, region): (RegionName, Region)) -> (RegionName, Trust) {
    let trust = Trust::new();
    trust.set(&region.signing_keys);
    (name, trust)
}

fn override_text(item: &Override, now: Timestamp) -> String {
    let reason = if item.reason.is_empty() { String::new() } else { format!(": {}", item.reason) };
    let left = item.expires_at.map(|at| format!(", {} left", words::format_duration(at.since(now))));
    format!("{} by {}{reason}{}", item.kind, item.author, left.unwrap_or_default())
}

/// Marks the clusters that are drained, by themselves or with their region.
fn mark_drained(
    overrides: &BTreeMap<String, Override>,
    fleet: Option<&Fleet>,
    regions: &mut BTreeMap<RegionName, RegionStatus>,
) {
    let is_drained = |cluster: &ClusterName| {
        let home = fleet.and_then(|fleet| fleet.clusters.get(cluster)).map(|cluster| &cluster.region);
        overrides.values().any(|item| match &item.kind {
            OverrideKind::DrainCluster(name) => name == cluster,
            OverrideKind::EvacuateRegion(name) => Some(name) == home,
            OverrideKind::DrainEdge(_) | OverrideKind::ForceRoute { .. } => false,
        })
    };
    for (cluster, checks) in regions.values_mut().flat_map(|region| &mut region.clusters) {
        let drained = is_drained(cluster);
        checks.iter_mut().for_each(|check| check.drained = drained);
    }
}

/// Compares the reports with the fleet: marks missing and unknown regions and edges, and adds the requests of routes.
fn compare_with_fleet(fleet: &Fleet, regions: &mut BTreeMap<RegionName, RegionStatus>) {
    for (name, region) in regions.iter_mut() {
        region.is_unknown = !fleet.regions.contains_key(name);
        region.unknown_edges = region
            .edges
            .keys()
            .filter(|edge| fleet.edges.get(*edge).is_none_or(|known| known.region != *name))
            .cloned()
            .collect();
    }
    for (name, actions) in regions.values_mut().flat_map(|region| &mut region.services) {
        let routes =
            fleet.services.get(name.as_str()).map(|service| service.routes.as_slice()).unwrap_or_default();
        for (action, route) in actions.iter_mut().skip(1).zip(routes) {
            action.requests = Some(route.matches.to_string());
        }
    }
    for name in fleet.regions.keys() {
        regions.entry(name.clone()).or_default();
    }
    for (name, edge) in &fleet.edges {
        let region = regions.entry(edge.region.clone()).or_default();
        if !region.edges.contains_key(name) {
            region.missing_edges.push(name.clone());
        }
    }
}

impl RegionStatus {
    fn add_load(&mut self, load: &Load) {
        let per_s = |count: u32| f64::from(count) * 1000.0 / f64::from(load.interval_ms.max(1));
        for (cluster, seen) in load.clusters.iter().filter(|(_, seen)| seen.attempts > 0) {
            let sent = self.sent.entry(cluster.clone()).or_default();
            sent.per_s += per_s(seen.attempts);
            sent.failed_per_s += per_s(seen.failures);
            if seen.p95_us > 0 {
                let p95_ms = f64::from(seen.p95_us) / 1000.0;
                sent.p95_ms = Some(sent.p95_ms.map_or(p95_ms, |longest| longest.max(p95_ms)));
            }
        }
    }

    fn add(&mut self, key: &RouteKey, entry: &RouteEntry) {
        match (key, entry) {
            (RouteKey::Health(name, _), RouteEntry::Health(health)) => {
                let (verdict, reason) = (health.verdict.to_string(), health.reason.clone());
                let status = ClusterStatus { verdict, reason, drained: false };
                self.clusters.entry(name.clone()).or_default().push(status);
            }
            (RouteKey::Tiers(name), RouteEntry::Tiers(tiers)) => {
                let actions = tiers.actions.iter().map(|action| ActionStatus {
                    requests: None,
                    tiers: action
                        .tiers
                        .iter()
                        .map(|tier| tier.shares.iter().map(|(c, share)| (c.to_string(), *share)).collect())
                        .collect(),
                    reason: action.reason.clone(),
                    fail_open: action.fail_open,
                    shed_permille: action.shed_permille,
                });
                self.services.insert(name.to_string(), actions.collect());
            }
            _ => {}
        }
    }
}

/// The time without a report after which an edge is stale; edges report each second.
const STALE_AFTER_MS: u64 = 3500;

impl EdgeStatus {
    /// Whether it has stopped reporting.
    pub fn is_stale(&self) -> bool {
        self.reported_ms_ago > STALE_AFTER_MS
    }

    /// Whether it has a table.
    pub fn has_table(&self) -> bool {
        (self.epoch, self.revision) != (Epoch(0), Revision(0))
    }
}

impl Status {
    /// Whether it shows no problem.
    pub fn is_well(&self) -> bool {
        self.problems.is_empty() && self.fleet.is_some() && self.regions.values().all(RegionStatus::is_well)
    }
}

impl RegionStatus {
    /// The kinds of services that a region with edges needs and that do not run; none where this user may not know.
    pub fn missing_services(&self) -> Vec<&'static str> {
        let has_edges = !self.edges.is_empty() || !self.missing_edges.is_empty();
        let runs = |kind: &str| self.running.keys().any(|name| name.split(' ').next() == Some(kind));
        let needed = ["health-prober", "route-computer", "replicator"];
        needed.into_iter().filter(|kind| self.is_heard && has_edges && !runs(kind)).collect()
    }

    fn is_well(&self) -> bool {
        let edges = || self.edges.values();
        let actions = || self.services.values().flatten();
        // A region without edges and services needs no table.
        let needs_leader = !self.edges.is_empty() || !self.missing_edges.is_empty();
        (self.epoch.is_some() || !needs_leader)
            && self.missing_services().is_empty()
            && self.unsigned == 0
            && self.problems.is_empty()
            && self.missing_edges.is_empty()
            && self.unknown_edges.is_empty()
            && self.running.values().all(|processes| processes.len() < 2)
            && edges().all(|edge| !edge.is_stale() && edge.has_table() && edge.behind_s.is_none())
            && actions()
                .all(|action| !action.fail_open && action.tiers.iter().flatten().any(|(_, share)| *share > 0))
    }
}
