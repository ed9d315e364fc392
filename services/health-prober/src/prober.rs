//! The loop of a prober: starts due probes, records their outcomes, publishes changes.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
use tidegate_service::{
    Context,
    bus::{check, claim_name},
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};

use crate::{
    core::{Job, JobId, ProbeSchedule, ProbeTargets, Suspected, probe_targets},
    metrics::Metrics,
    probe::{Connection, ProbeTransport, probe},
    publish::Batch,
    settings::ProberSettings,
    transports::ProbeTransports,
};

/// How often the fleet is polled if no change is notified.
const FLEET_POLL: Duration = Duration::from_secs(1);
/// How often certificates are renewed, and failed TLS setups are retried.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// The least time between log lines about probes that fail for lack of local resources: there may be thousands a second.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// A prober that stood still for this long restarts. Route-computers consider it stale 3 s after its last heartbeat, which
/// may have been a second before it stood still.
const STALLED_AFTER: Duration = Duration::from_millis(1900);
/// The suspicions of one edge that are accepted, as a burst and per second. An edge that loses a large cluster suspects all
/// of its endpoints at once.
const SUSPICION_BURST: u32 = 2000;
const SUSPICIONS_PER_SECOND: u32 = 500;
/// The most clusters in one warning.
const MOST_PROBLEMS: usize = 10;
/// Ended probes that are recorded in one turn, so that turns stay short.
const ENDED_PER_TURN: usize = 512;

/// Runs a prober until shutdown.
///
/// # Errors
/// The settings lack the region or the name, or the bus is closed. An unreachable bus is no error.
pub async fn run(settings: ProberSettings, bus: Bus, context: Context) -> anyhow::Result<()> {
    let region = settings.region.clone().context("a prober needs a region")?;
    let name = settings.name.clone().context("a prober needs a name")?;
    let subject = subjects::probe(&region, &name);
    let claim = subjects::claim("health-prober", &region, name.as_str());
    let what = format!("health-prober {name} of {region}");
    context.admin.check("bus", check(&bus));
    let unprobed = Arc::<Mutex<String>>::default();
    let shown = unprobed.clone();
    context.admin.warn("clusters", move || {
        let problems = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (!problems.is_empty()).then_some(problems)
    });
    let name_conflicts = claim_name(&context, &bus, claim, what).await?;
    let options =
        OwnerOptions { stalled_after: Some(STALLED_AFTER), epochs: Epochs::Timed, ..OwnerOptions::default() };
    // A later start has a later epoch, so replicas never mistake the table of an earlier incarnation for this one's.
    let epoch = Epoch(clock::unix_millis());
    let owner = Owner::start(bus.clone(), &subject, epoch, Revision(0), [], options).await?;
    let follower = FleetFollower::start(&bus, FLEET_POLL, false).await?;
    let mut fleet = follower.fleet();
    let mut suspicions = bus.subscribe_reports::<Suspicion>(subjects::ALL_SUSPICIONS).await?;
    let mut prober = Prober {
        region: region.clone(),
        schedule: ProbeSchedule::new(settings.limits(), seed(&subject)),
        start: Instant::now(),
        networks: settings.probes.networks.clone(),
        fleet: None,
        transports: ProbeTransports::default(),
        unprobed,
        connections: HashMap::new(),
        running: JoinSet::new(),
        owner,
        name_conflicts,
        shares_name: false,
        metrics: Metrics::new(&context.registry),
        suspicion_limit: SenderLimit::new(SUSPICIONS_PER_SECOND, SUSPICION_BURST),
        local_error_log: LogLimit::new(LOG_EVERY),
    };
    let mut renew = tokio::time::interval(RENEW_EVERY);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewing: Option<JoinHandle<()>> = None;
    tracing::info!(%region, prober = %name, %epoch, "probing");
    context.admin.started();

    let mut batch = Batch::default();
    loop {
        prober.restart_if_due(&mut batch).await;
        prober.start_due();
        if !batch.is_empty() {
            std::mem::take(&mut batch)
                .publish(&mut prober.owner, prober.start.elapsed(), &prober.metrics)
                .await;
        }
        let wake = prober.schedule.next_deadline().map(|at| prober.start + at);
        tokio::select! {
            () = context.shutdown.cancelled() => break,
            Some(ended) = prober.running.join_next() => {
                prober.record_ended(ended, &mut batch);
                for _ in 1..ENDED_PER_TURN {
                    let Some(ended) = prober.running.try_join_next() else { break };
                    prober.record_ended(ended, &mut batch);
                }
            }
            report = suspicions.next() => {
                let report = report.context("the bus was closed")?;
                let suspected = Suspected { first_failure_at: report.body.first_failure_at, trace: report.trace };
                prober.handle_suspicion(&report.subject, &report.body, suspected);
            }
            changed = fleet.changed() => {
                changed.context("the bus was closed")?;
                let newest = fleet.borrow_and_update().clone();
                prober.load_fleet(newest.as_deref());
                prober.update_targets(&mut batch);
            }
            _ = renew.tick() => {
                prober.metrics.failing.set(prober.schedule.failing_count() as f64);
                if !prober.transports.unusable().is_empty() {
                    prober.update_targets(&mut batch);
                }
                if renewing.as_ref().is_none_or(JoinHandle::is_finished) {
                    let transports = prober.transports.with_tls();
                    renewing = (!transports.is_empty()).then(|| tokio::task::spawn_blocking(move || ProbeTransports::renew(&transports)));
                }
            }
            () = sleep_until(wake) => {}
        }
    }
    prober.running.shutdown().await;
    if let Some(renewing) = renewing {
        // Reading files can't be interrupted, and ends soon.
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

/// The seed that spreads this prober's probes differently from those of others.
fn seed(subject: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    subject.hash(&mut hasher);
    hasher.finish()
}

struct Prober {
    region: RegionName,
    schedule: ProbeSchedule,
    /// The zero of the schedule's time.
    start: Instant,
    networks: Vec<NetworkName>,
    fleet: Option<Fleet>,
    transports: ProbeTransports,
    /// Why clusters are not probed from here, for the admin listener.
    unprobed: Arc<Mutex<String>>,
    /// Connections to reuse, each with the transport that it is valid for.
    connections: HashMap<JobId, (Arc<ProbeTransport>, Connection)>,
    running: JoinSet<Ended>,
    owner: Owner<Target, Observation>,
    name_conflicts: NameConflictMonitor,
    /// Whether another process claims its name.
    shares_name: bool,
    metrics: Metrics,
    /// The limit of suspicions by edge.
    suspicion_limit: SenderLimit<EdgeName>,
    /// The limit of log lines about local resources.
    local_error_log: LogLimit,
}

/// A probe that has ended.
struct Ended {
    job: Job,
    /// An error means that this machine lacks resources.
    outcome: io::Result<(ProbeOutcome, Option<Connection>)>,
    took: Duration,
    transport: Arc<ProbeTransport>,
}

impl Prober {
    /// Restarts as a new incarnation if the table is outdated or superseded: after the process stood still, and after another
    /// process with the same name, whose later table replaced this one's, has gone.
    async fn restart_if_due(&mut self, batch: &mut Batch) {
        let shares_name = self.name_conflicts.conflicting_claim().is_some();
        let is_alone_again = std::mem::replace(&mut self.shares_name, shares_name) && !shares_name;
        self.owner.record_progress();
        let later = self.owner.superseded_by();
        let is_superseded = later.is_some() && !shares_name;
        if !self.owner.is_stalled() && !is_alone_again && !is_superseded {
            return;
        }
        let own = self.owner.position().epoch;
        let epoch = Epoch(clock::unix_millis().max(later.unwrap_or(own).max(own).0.saturating_add(1)));
        tracing::warn!(%epoch, "restarting with an empty table: the process stood still, or another process replaced its table");
        *batch = Batch::default();
        self.schedule.set_targets(&ProbeTargets::default(), self.start.elapsed());
        self.connections.clear();
        if let Err(error) = self.owner.restart(epoch).await {
            tracing::debug!(%error, "the new table was not announced; the next heartbeat announces it");
        }
        self.update_targets(batch);
    }

    fn start_due(&mut self) {
        let now = self.start.elapsed();
        while let Some(job) = self.schedule.next_job(now) {
            let Some(transport) = self.transports.get(&job.target.cluster).cloned() else {
                self.schedule.abandon();
                continue;
            };
            let kept = self.connections.remove(&job.id);
            let reused = kept
                .filter(|(of, _)| !job.fresh && Arc::ptr_eq(of, &transport))
                .map(|(_, connection)| connection);
            self.running.spawn(async move {
                let began = Instant::now();
                let outcome = probe(&transport, &job.target.endpoint, &job.check, reused).await;
                Ended { outcome, took: began.elapsed(), transport, job }
            });
        }
        self.metrics.running.set(self.running.len() as f64);
    }

    fn record_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>, batch: &mut Batch) {
        let Ended { job, outcome, took, transport } = match ended {
            Ok(ended) => ended,
            // A probe that panics is a defect. The prober must not continue as if it had an outcome.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let (outcome, connection) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                self.metrics.local_errors.increment();
                if self.local_error_log.admit(Instant::now()) {
                    tracing::error!(%error, "this machine lacks resources for probes");
                }
                self.schedule.abandon();
                return;
            }
        };
        self.metrics.record_probe(&outcome, took);
        if let Some(connection) = connection
            && self.schedule.has_target(job.id)
        {
            self.connections.insert(job.id, (transport, connection));
        }
        batch.changes.extend(self.schedule.finish(job, outcome));
    }

    fn handle_suspicion(&mut self, subject: &str, suspicion: &Suspicion, suspected: Suspected) {
        // Only edges of the fleet may suspect, each under its own name; other holders of a credential trigger no probe.
        // Without a fleet, edges can't be verified.
        let Some(fleet) = &self.fleet else { return };
        if !fleet.has_edge(&suspicion.edge, &suspicion.region)
            || subject != subjects::suspect(&suspicion.region, &suspicion.edge, &suspicion.cluster)
        {
            return self.metrics.suspicions_refused.increment();
        }
        if !self.suspicion_limit.admit(&suspicion.edge, Instant::now()) {
            return self.metrics.suspicions_limited.increment();
        }
        let now = self.start.elapsed();
        if self.schedule.schedule_suspected(&suspicion.cluster, &suspicion.endpoint, suspected, now) {
            self.metrics.suspicions_looked_at.increment();
        } else {
            self.metrics.suspicions_passed_over.increment();
        }
    }

    /// Loads a fleet file. If it can't be parsed, since it is for a newer version, the last one stays in force.
    fn load_fleet(&mut self, newest: Option<&FleetText>) {
        let Some(newest) = newest else { return };
        match Fleet::parse(&newest.text, "fleet.yaml") {
            Ok(fleet) => {
                tracing::info!(revision = newest.head.revision, "a new fleet is in force");
                if let Some(problem) = fleet.lacks_region(&self.region) {
                    tracing::warn!("{problem}");
                }
                self.suspicion_limit.retain(|edge| fleet.edges.contains_key(edge));
                self.fleet = Some(fleet);
            }
            Err(errors) => {
                self.metrics.fleets_refused.increment();
                tracing::error!(revision = newest.head.revision, %errors, "the fleet on the bus can't be parsed; the last one stays in force");
            }
        }
    }

    fn update_targets(&mut self, batch: &mut Batch) {
        let Some(fleet) = &self.fleet else { return };
        self.transports.update(fleet);
        let transports = &self.transports;
        let targets =
            probe_targets(fleet, &self.networks, |cluster: &ClusterName| transports.get(cluster).is_some());
        for (id, target) in self.schedule.set_targets(&targets, self.start.elapsed()) {
            self.connections.remove(&id);
            // A change of the same turn must not follow the removal.
            batch.changes.retain(|change| change.target != target);
            batch.removed.push(target);
        }
        self.metrics.targets.set(self.schedule.len() as f64);
        self.metrics.unusable.set(self.transports.unusable().len() as f64);
        let problems = self.transports.unusable().iter().take(MOST_PROBLEMS);
        let problems: Vec<String> = problems
            .map(|(name, problem)| format!("cluster {name} cannot be probed from here: {problem}"))
            .collect();
        *self.unprobed.lock().unwrap_or_else(PoisonError::into_inner) = problems.join("; ");
    }
}
