//! The loop: starts what is due, takes what has ended, publishes what changed.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{
    Bus,
    claims::NameConflictMonitor,
    clock,
    fleet::{FleetFollower, FleetText},
    limit::{LogLimit, SenderLimit},
    subjects,
    table::{Epochs, Owner, OwnerOptions},
};
use tidegate_model::{
    ClusterName, EdgeName, Epoch, NetworkName, RegionName, Revision,
    fleet::Fleet,
    observation::{Observation, ProbeOutcome, Target},
    report::Suspicion,
};
use tidegate_service::{Registry, bus::claim_name};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    core::{Job, JobId, Schedule, Suspected, Wanted, wanted},
    metrics::Metrics,
    probe::{Connection, Way, probe},
    publish::Batch,
    settings::ProberSettings,
    ways::Ways,
};

/// How often the fleet is looked at when nothing says that it changed.
const FLEET_POLL: Duration = Duration::from_secs(1);
/// How often certificates are looked at, and what could not be set up is tried again.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How often it is said that probes can't be made: it may concern thousands a second.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Frozen for this long, a prober looks at everything anew: before route-computers take it for silent, 3 s after a heartbeat that
/// may have been a second before.
const STALLED_AFTER: Duration = Duration::from_millis(1900);
/// Suspicions of one edge that are taken: at once, and each second from then on. An edge that loses a large cluster at once
/// suspects each of its endpoints.
const SUSPICION_BURST: u32 = 2000;
const SUSPICIONS_PER_SECOND: u32 = 500;
/// Ended probes that are taken in one turn, so that a turn stays short.
const ENDED_PER_TURN: usize = 512;

/// Runs a prober on `bus` until `shutdown`, with metrics of its own.
///
/// # Errors
/// The settings lack the region or the name, or the bus is closed. That the bus is away is no error.
pub async fn run(settings: ProberSettings, bus: Bus, shutdown: CancellationToken) -> anyhow::Result<()> {
    run_with(settings, bus, &Registry::default(), shutdown).await
}

/// As [`run`], with the metrics in `registry`.
///
/// # Errors
/// As for [`run`].
pub async fn run_with(
    settings: ProberSettings,
    bus: Bus,
    registry: &Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let region = settings.region.clone().context("a prober needs a region")?;
    let name = settings.name.clone().context("a prober needs a name")?;
    let subject = subjects::probe(&region, &name);
    let claim = subjects::claim("health-prober", &region, name.as_str());
    let what = format!("health-prober {name} of {region}");
    let name_conflicts = claim_name(registry, &bus, claim, what, &shutdown).await?;
    let options =
        OwnerOptions { stalled_after: Some(STALLED_AFTER), epochs: Epochs::Timed, ..OwnerOptions::default() };
    // A later start is a later epoch, so replicas never mistake an old life's table for this one's.
    let epoch = Epoch(clock::unix_millis());
    let owner = Owner::start(bus.clone(), &subject, epoch, Revision(0), [], options).await?;
    let follower = FleetFollower::start(&bus, FLEET_POLL, false).await?;
    let mut fleet = follower.fleet();
    let mut suspicions = bus.subscribe_reports::<Suspicion>(subjects::ALL_SUSPICIONS).await?;
    let mut prober = Prober {
        region: region.clone(),
        schedule: Schedule::new(settings.limits(), seed(&subject)),
        start: Instant::now(),
        networks: settings.probes.networks.clone(),
        fleet: None,
        ways: Ways::default(),
        connections: HashMap::new(),
        running: JoinSet::new(),
        owner,
        name_conflicts,
        shares_name: false,
        metrics: Metrics::new(registry),
        suspecting: SenderLimit::new(SUSPICIONS_PER_SECOND, SUSPICION_BURST),
        impossible_log: LogLimit::new(LOG_EVERY),
    };
    let mut renew = tokio::time::interval(RENEW_EVERY);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewing: Option<JoinHandle<()>> = None;
    tracing::info!(%region, prober = %name, %epoch, "probing");

    let mut batch = Batch::default();
    loop {
        prober.restart_if_due(&mut batch).await;
        prober.start_due();
        if !batch.is_empty() {
            std::mem::take(&mut batch)
                .publish(&mut prober.owner, prober.start.elapsed(), &prober.metrics)
                .await;
        }
        let wake = prober.schedule.wake_at().map(|at| prober.start + at);
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = prober.running.join_next() => {
                prober.take(ended, &mut batch);
                for _ in 1..ENDED_PER_TURN {
                    let Some(ended) = prober.running.try_join_next() else { break };
                    prober.take(ended, &mut batch);
                }
            }
            report = suspicions.next() => {
                let report = report.context("the bus was closed")?;
                let suspected = Suspected { first_failure_at: report.body.first_failure_at, trace: report.trace };
                prober.suspect(&report.subject, &report.body, suspected);
            }
            changed = fleet.changed() => {
                changed.context("the bus was closed")?;
                let newest = fleet.borrow_and_update().clone();
                prober.read_fleet(newest.as_deref());
                prober.set_targets(&mut batch);
            }
            _ = renew.tick() => {
                prober.metrics.failing.set(prober.schedule.failing() as f64);
                if !prober.ways.unusable().is_empty() {
                    prober.set_targets(&mut batch);
                }
                if renewing.as_ref().is_none_or(JoinHandle::is_finished) {
                    let ways = prober.ways.with_tls();
                    renewing = (!ways.is_empty()).then(|| tokio::task::spawn_blocking(move || Ways::renew(&ways)));
                }
            }
            () = sleep_until(wake) => {}
        }
    }
    prober.running.shutdown().await;
    if let Some(renewing) = renewing {
        // Reading files can't be interrupted; it ends by itself, soon.
        _ = renewing.await;
    }
    follower.stop().await;
    prober.owner.stop().await;
    Ok(())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What spreads this prober's probes apart from others'.
fn seed(subject: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    subject.hash(&mut hasher);
    hasher.finish()
}

struct Prober {
    region: RegionName,
    schedule: Schedule,
    /// Zero of the schedule's time.
    start: Instant,
    networks: Vec<NetworkName>,
    fleet: Option<Fleet>,
    ways: Ways,
    /// Connections to reuse, with their clusters' ways: they are of no use when those change.
    connections: HashMap<JobId, (Arc<Way>, Connection)>,
    running: JoinSet<Ended>,
    owner: Owner<Target, Observation>,
    name_conflicts: NameConflictMonitor,
    /// Whether another process claims its name.
    shares_name: bool,
    metrics: Metrics,
    /// How many suspicions of each edge are taken.
    suspecting: SenderLimit<EdgeName>,
    /// How often it is logged that probes can't be made.
    impossible_log: LogLimit,
}

/// A probe that has ended.
struct Ended {
    job: Job,
    /// An error: it could not be made.
    outcome: io::Result<(ProbeOutcome, Option<Connection>)>,
    took: Duration,
    way: Arc<Way>,
}

impl Prober {
    /// Looks at everything anew, as a later life, when what it has said is old or is believed no more: after it stood still, and
    /// when another of its name has gone, whose later table everybody has.
    async fn restart_if_due(&mut self, batch: &mut Batch) {
        let shares_name = self.name_conflicts.conflicting_claim().is_some();
        let is_alone_again = std::mem::replace(&mut self.shares_name, shares_name) && !shares_name;
        self.owner.record_progress();
        let later = self.owner.superseded_by();
        let is_overruled = later.is_some() && !shares_name;
        if !self.owner.is_stalled() && !is_alone_again && !is_overruled {
            return;
        }
        let own = self.owner.position().epoch;
        let epoch = Epoch(clock::unix_millis().max(later.unwrap_or(own).max(own).0.saturating_add(1)));
        tracing::warn!(%epoch, "looking at everything anew: it stood still, or its table was replaced by another's");
        *batch = Batch::default();
        self.schedule.set_targets(&Wanted::default(), self.start.elapsed());
        self.connections.clear();
        if let Err(error) = self.owner.restart(epoch).await {
            tracing::debug!(%error, "the new table was not told of; the next heartbeat does");
        }
        self.set_targets(batch);
    }

    fn start_due(&mut self) {
        let now = self.start.elapsed();
        while let Some(job) = self.schedule.next(now) {
            let Some(way) = self.ways.get(&job.target.cluster).cloned() else {
                self.schedule.abandoned();
                continue;
            };
            let kept = self.connections.remove(&job.id);
            let reused =
                kept.filter(|(of, _)| !job.fresh && Arc::ptr_eq(of, &way)).map(|(_, connection)| connection);
            self.running.spawn(async move {
                let began = Instant::now();
                let outcome = probe(&way, &job.target.endpoint, &job.check, reused).await;
                Ended { outcome, took: began.elapsed(), way, job }
            });
        }
        self.metrics.running.set(self.running.len() as f64);
    }

    fn take(&mut self, ended: Result<Ended, tokio::task::JoinError>, batch: &mut Batch) {
        let Ended { job, outcome, took, way } = match ended {
            Ok(ended) => ended,
            // A probe that panics is a defect of this program, which must not go on as if it had seen something.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let (outcome, connection) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                self.metrics.impossible.increment();
                if self.impossible_log.admit(Instant::now()) {
                    tracing::error!(%error, "probes can't be made from here, for now");
                }
                self.schedule.abandoned();
                return;
            }
        };
        self.metrics.count(&outcome, took);
        if let Some(connection) = connection
            && self.schedule.has(job.id)
        {
            self.connections.insert(job.id, (way, connection));
        }
        batch.changes.extend(self.schedule.finished(job, outcome));
    }

    fn suspect(&mut self, subject: &str, suspicion: &Suspicion, suspected: Suspected) {
        // Only edges of the fleet suspect, each for itself: whoever else has a credential makes nobody look.
        // Before there is a fleet nobody can be told from an inventor.
        let Some(fleet) = &self.fleet else { return };
        if !fleet.has_edge(&suspicion.edge, &suspicion.region)
            || subject != subjects::suspect(&suspicion.region, &suspicion.edge, &suspicion.cluster)
        {
            return self.metrics.suspicions_refused.increment();
        }
        if !self.suspecting.admit(&suspicion.edge, Instant::now()) {
            return self.metrics.suspicions_limited.increment();
        }
        let now = self.start.elapsed();
        if self.schedule.suspect(&suspicion.cluster, &suspicion.endpoint, suspected, now) {
            self.metrics.suspicions_looked_at.increment();
        } else {
            self.metrics.suspicions_passed_over.increment();
        }
    }

    /// Takes a fleet file. One that can't be read (it was written for a newer version) leaves the last in force.
    fn read_fleet(&mut self, newest: Option<&FleetText>) {
        let Some(newest) = newest else { return };
        match Fleet::parse(&newest.text, "fleet.yaml") {
            Ok(fleet) => {
                tracing::info!(revision = newest.head.revision, "a new fleet");
                if let Some(problem) = fleet.lacks_region(&self.region) {
                    tracing::warn!("{problem}");
                }
                self.suspecting.retain(|edge| fleet.edges.contains_key(edge));
                self.fleet = Some(fleet);
            }
            Err(errors) => {
                self.metrics.fleets_refused.increment();
                tracing::error!(revision = newest.head.revision, %errors, "the fleet on the bus can't be read");
            }
        }
    }

    fn set_targets(&mut self, batch: &mut Batch) {
        let Some(fleet) = &self.fleet else { return };
        self.ways.set(fleet);
        let ways = &self.ways;
        let wanted = wanted(fleet, &self.networks, |cluster: &ClusterName| ways.get(cluster).is_some());
        for (id, target) in self.schedule.set_targets(&wanted, self.start.elapsed()) {
            self.connections.remove(&id);
            // What changed of it in this very turn must not come after its removal.
            batch.changes.retain(|change| change.target != target);
            batch.removed.push(target);
        }
        self.metrics.targets.set(self.schedule.len() as f64);
        self.metrics.unreachable.set(self.ways.unusable().len() as f64);
    }
}
