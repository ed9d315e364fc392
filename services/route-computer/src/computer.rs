//! The loop: an event comes in, the engine says what changes, whoever leads publishes it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{
    Bus, TraceContext, clock, codec,
    fleet::{FleetFollower, FleetText},
    lease::LeaseSeal,
    overrides::{OverrideFollower, Overrides},
    seal::{Signer, Trust},
    subjects,
    table::{Replicas, TableUpdate, Update},
};
use tidegate_model::{
    Epoch, ProberName, RegionName, Timestamp,
    fleet::Fleet,
    observation::{Observation, ObservationCause, Target},
    report::{Applied, Load},
    routes::{Cause, RouteCause},
};
use tidegate_routing::{Engine, Event, Settings};
use tidegate_service::{Context, bus::claim_name, telemetry};
use tokio::{sync::watch, time::Instant};
use tracing::Span;

use crate::{
    chronicle::Chronicle, explain, expose::Exposed, leadership::Leadership, reports::EdgeReports,
    serving::Serving, settings::RouteComputerSettings,
};

/// How often the fleet and the overrides are looked at when nothing was heard of them.
const POLL: Duration = Duration::from_secs(1);
/// After this time without a heartbeat a prober's table is forgotten; silent it is long before.
const PROBER_GONE: Duration = Duration::from_secs(60);

/// Runs a route-computer until it is asked to stop.
///
/// # Errors
/// When settings are missing or the bus is closed.
pub async fn run(settings: RouteComputerSettings, bus: Bus, context: Context) -> anyhow::Result<()> {
    let region = settings.computer.region.clone().context("the region is missing (computer.region)")?;
    let holder = settings.computer.name.clone().context("the name is missing (computer.name)")?;
    let claim = subjects::claim("route-computer", &region, holder.as_str());
    let what = format!("route-computer {holder} of {region}");
    claim_name(&context.registry, &bus, claim, what, &context.shutdown).await?;
    let fleets = FleetFollower::start(&bus, POLL, false).await?;
    let overrides = OverrideFollower::start(&bus, POLL, false).await?;
    let (probers, mut observations) =
        Replicas::start::<Target, Observation>(bus.clone(), subjects::ALL_PROBES, PROBER_GONE).await?;
    let exposed = Exposed::new(&context, &bus);
    let subscription = bus.subscribe(subjects::ALL_LOAD).await?;
    let mut loads = EdgeReports::<Load>::new(subscription, &exposed.refused_reports);
    let subscription = bus.subscribe(&subjects::applied_in(&region)).await?;
    let mut applied = EdgeReports::<Applied>::new(subscription, &exposed.refused_reports);
    let mut questions = bus.subscribe(&subjects::explain(&region)).await?;
    let (mut fleet, mut override_set) = (fleets.fleet(), overrides.overrides());

    let mut rules = Settings::new(region.clone());
    rules.slow_start = settings.computer.slow_start;
    rules.damping = settings.computer.damping.damping();
    rules.edge_capacity = settings.computer.edge_capacity;
    let signer = settings.computer.signing_key.as_deref().map(Signer::load).transpose();
    let signer = signer.context("the signing key cannot be used (computer.signing_key)")?.map(Arc::new);
    let seal = LeaseSeal { signer, trust: Trust::new() };
    let mut computer = Computer {
        engine: Engine::new(rules),
        exposed,
        chronicle: Chronicle::new(&bus, &region, &holder),
        region: region.clone(),
        fleet: None,
        knows_overrides: false,
        epochs: BTreeMap::new(),
        leadership: None,
        serving: Serving::default(),
        parsed: None,
        seal,
    };
    context.admin.started();
    let warm_at = Instant::now() + settings.computer.warm_up;
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if computer.leadership.is_none() && computer.is_warm(Instant::now() >= warm_at) {
            computer.leadership =
                Some(Leadership::seek(&bus, &region, holder.clone(), computer.seal.clone()));
        }
        let due = sleep_until(computer.engine.next_deadline());
        tokio::select! {
            biased;
            () = context.shutdown.cancelled() => break,
            changed = leadership_changed(&mut computer.leadership) => {
                changed?;
                computer.follow_lease().await?;
            }
            // What operators say comes before what comes all the time.
            changed = changed(&mut fleet) => {
                changed?;
                computer.take_fleet(&fleet).await;
                if let Some(fleet) = &computer.parsed {
                    loads.forget_unknown(fleet);
                    applied.forget_unknown(fleet);
                }
            }
            changed = changed(&mut override_set) => {
                changed?;
                computer.take_overrides(&override_set).await;
            }
            update = observations.recv() => match update {
                Some(update) => computer.observe(update).await,
                None => anyhow::bail!("the bus has closed"),
            },
            Some(report) = applied.next(computer.parsed.as_deref()) => computer.record_applied(&report),
            Some(report) = loads.next(computer.parsed.as_deref()) => computer.step(Event::Load(report), None).await,
            Some(question) = questions.next() => explain::answer(&bus, &computer.engine, &question).await,
            () = due => computer.step(Event::Tick, None).await,
            _ = ticks.tick() => computer.tick(),
        }
    }
    if let Some(leadership) = computer.leadership {
        leadership.stop().await;
    }
    probers.stop().await;
    fleets.stop().await;
    overrides.stop().await;
    Ok(())
}

struct Computer {
    engine: Engine,
    exposed: Exposed,
    chronicle: Chronicle,
    region: RegionName,
    /// The revision of the fleet that the engine has.
    fleet: Option<u64>,
    knows_overrides: bool,
    /// Probers that are heard, and the epochs of their tables.
    epochs: BTreeMap<(RegionName, ProberName), Epoch>,
    leadership: Option<Leadership>,
    /// The epochs that the region's edges say they serve.
    serving: Serving,
    /// The fleet that the engine has.
    parsed: Option<Arc<Fleet>>,
    seal: LeaseSeal,
}

/// What an event came with.
struct Came {
    trace: Option<TraceContext>,
    at: Timestamp,
}

impl Computer {
    /// Whether it knows enough to lead: the fleet, the overrides, and what a prober of its region sees, if one spoke in
    /// time.
    fn is_warm(&self, time_is_up: bool) -> bool {
        self.fleet.is_some()
            && self.knows_overrides
            && self.key_problem().is_none()
            && (time_is_up || self.epochs.keys().any(|(region, _)| *region == self.region))
    }

    /// Why what it signs would be refused, if it would be.
    fn key_problem(&self) -> Option<String> {
        let keys = &self.parsed.as_ref()?.regions.get(&self.region)?.signing_keys;
        match &self.seal.signer {
            _ if keys.is_empty() => None,
            None => Some(format!(
                "the fleet names signing keys for {}, and this route-computer has none (computer.signing_key): edges refuse its tables, so it does not lead",
                self.region
            )),
            Some(signer) if !keys.contains(&signer.public_key()) => Some(format!(
                "the fleet's signing keys of {} do not have this route-computer's, {}: edges refuse its tables, so it does not lead",
                self.region,
                signer.public_key()
            )),
            Some(_) => None,
        }
    }

    async fn step(&mut self, event: Event, came: Option<Came>) {
        let now = clock::now();
        let input_at = came.as_ref().map_or(now, |came| came.at);
        // Only what a prober saw belongs to a trace; load and time come too often to be traced.
        let span = came.map_or_else(Span::none, |came| self.span(came.trace.as_ref()));
        let entered = span.enter();
        let changes = self.engine.apply(event, now);
        let decided_at = clock::now();
        self.exposed.compute_seconds.observe(decided_at.since(now).as_secs_f64());
        span.record("tidegate.changes", changes.entries.len());
        for cause in &changes.causes {
            note(cause);
        }
        self.exposed.note_verdicts(&changes.causes, decided_at);
        drop(entered);
        if changes.is_empty() {
            return;
        }
        let moves = self.chronicle.note(&changes.entries);
        let cause = RouteCause { causes: changes.causes.clone(), input_at, decided_at };
        let Some(leadership) = &mut self.leadership else { return };
        let publication = span.in_scope(|| {
            tracing::info_span!(
                "publish",
                otel.kind = "producer",
                messaging.destination.name = %subjects::routes(&self.region),
                tidegate.epoch = tracing::field::Empty,
                tidegate.revision = tracing::field::Empty,
            )
        });
        let trace = telemetry::span_context(&publication);
        if let Some(published) = leadership.publish(changes, &cause, trace.as_ref()).await {
            self.exposed.published.increment();
            publication.record("tidegate.epoch", published.position.epoch.0);
            publication.record("tidegate.revision", published.position.revision.0);
            if let Err(error) = published.sent {
                tracing::warn!(%error, "a change was not published; the next heartbeat tells of it");
            }
            self.chronicle.decided(published.position, cause, moves, trace.as_ref()).await;
        }
    }

    fn span(&self, trace: Option<&TraceContext>) -> Span {
        let span = tracing::info_span!(
            "compute",
            otel.kind = "consumer",
            tidegate.region = %self.region,
            tidegate.changes = tracing::field::Empty,
        );
        if let Some(trace) = trace {
            telemetry::set_parent(&span, trace);
        }
        span
    }

    async fn observe(&mut self, update: TableUpdate<Target, Observation>) {
        let (subject, update) = match update {
            TableUpdate::Update(subject, update) => (subject, Some(update)),
            TableUpdate::Gone(subject) => (subject, None),
        };
        let Some((region, prober)) = subjects::parse_probe(&subject) else { return };
        let who = (region.clone(), prober.clone());
        let (event, came) = match update {
            None => {
                self.epochs.remove(&who);
                if self.epochs.is_empty() {
                    tracing::warn!("no prober is heard any more: verdicts stay what was known last");
                }
                (Event::ProberGone { region, prober }, None)
            }
            Some(Update::Snapshot { epoch, entries, received_at, .. }) => {
                // What an earlier life saw is no observation of this one's.
                let begins_anew = self.epochs.insert(who, epoch).is_some_and(|before| before != epoch);
                let event =
                    Event::ObservationsReset { region, prober, all: entries, begins_anew, cause: None };
                (event, Some(Came { trace: None, at: received_at }))
            }
            Some(Update::Delta { epoch, changes, meta, trace, received_at, .. }) => {
                self.epochs.insert(who, epoch);
                // What can't be read is a newer prober's; its observations count all the same.
                let cause: Option<ObservationCause> = codec::decode(&meta).ok();
                let event = Event::Observations { region, prober, changes, cause };
                (event, Some(Came { trace, at: received_at }))
            }
            // No sign of life until what it says is here.
            Some(Update::Heartbeat { current: false, .. }) => return,
            Some(Update::Heartbeat { .. }) => (Event::ProberHeard { region, prober }, None),
            Some(Update::Refused { .. }) => {
                self.exposed.refused.increment();
                return;
            }
        };
        self.step(event, came).await;
    }

    async fn take_fleet(&mut self, fleet: &watch::Receiver<Option<Arc<FleetText>>>) {
        let Some(text) = fleet.borrow().clone() else { return };
        match Fleet::parse(&text.text, "fleet") {
            Ok(parsed) => {
                self.fleet = Some(text.head.revision);
                tracing::info!(revision = text.head.revision, author = text.head.author, "a new fleet");
                let unknown = parsed.lacks_region(&self.region);
                if let Some(problem) = &unknown {
                    tracing::warn!("{problem}");
                }
                let parsed = Arc::new(parsed);
                self.parsed = Some(parsed.clone());
                self.serving.retain(|edge| parsed.has_edge(edge, &self.region));
                let keys = parsed.regions.get(&self.region).map(|region| region.signing_keys.as_slice());
                self.seal.trust.set(keys.unwrap_or_default());
                let problem = self.key_problem();
                if let Some(problem) = &problem {
                    tracing::error!("{problem}");
                }
                if problem.is_some()
                    && let Some(leadership) = self.leadership.take()
                {
                    // Another, whose key the fleet names, leads at once.
                    leadership.stop().await;
                }
                self.exposed.note_region(unknown.or(problem));
                if self.leads() {
                    self.chronicle.fleet(clock::now(), text.head.revision, text.head.author.clone()).await;
                }
                self.step(Event::Fleet(parsed), None).await;
            }
            // `apply` checks before it writes, so this is a fleet for a newer version.
            Err(errors) => {
                let first = errors.iter().next().map(ToString::to_string);
                tracing::error!(
                    revision = text.head.revision,
                    error = first,
                    "a fleet that cannot be read; the one before stays"
                );
            }
        }
    }

    async fn take_overrides(&mut self, overrides: &watch::Receiver<Option<Arc<Overrides>>>) {
        let Some(overrides) = overrides.borrow().clone() else { return };
        self.knows_overrides = true;
        self.step(Event::Overrides(overrides.as_ref().clone()), None).await;
    }

    async fn follow_lease(&mut self) -> anyhow::Result<()> {
        if let Some(leadership) = &mut self.leadership
            && let Some(epoch) = leadership.follow(&self.engine).await?
        {
            self.chronicle.leads(clock::now(), epoch).await;
        }
        self.tick();
        Ok(())
    }

    fn leads(&self) -> bool {
        self.leadership.as_ref().is_some_and(|leadership| leadership.position().is_some())
    }

    /// Records which epoch an edge needs: it serves by it, or has heard of it and believes no older one. One that is larger than the lease's is outdone when [`Serving`] says that it counts:
    /// a single edge's credential cannot make leaders change while others of the region report.
    fn record_applied(&mut self, report: &Applied) {
        let Applied { edge, epoch, fence, .. } = report;
        let Some(fleet) = &self.parsed else { return };
        let edges = fleet.edges.values().filter(|edge| edge.region == self.region).count();
        let agreed = self.serving.record(edge, *epoch.max(fence), edges == 1, Instant::now());
        if let (Some(leadership), Some(agreed)) = (&self.leadership, agreed) {
            leadership.observe_epoch(agreed);
        }
    }

    fn tick(&self) {
        if let Some(leadership) = &self.leadership {
            leadership.hear_superseded();
        }
        self.exposed.show(&self.engine, self.leadership.as_ref(), self.fleet.is_some(), self.epochs.len());
    }
}

/// Logs and traces what was concluded.
fn note(cause: &Cause) {
    match cause {
        Cause::Health { cluster, verdict, reason, signal, .. } => {
            let span = tracing::info_span!(
                "verdict",
                tidegate.cluster = %cluster,
                tidegate.verdict = %verdict,
                tidegate.reason = reason,
                tidegate.signal = signal.as_ref().map(|signal| match signal {
                    tidegate_model::observation::Signal::Schedule => "probe",
                    tidegate_model::observation::Signal::Suspicion { .. } => "suspicion",
                }),
            );
            span.in_scope(|| tracing::info!(%cluster, %verdict, reason, "verdict"));
        }
        Cause::Override(what) => tracing::info!(what, "override"),
        Cause::Fleet | Cause::Load | Cause::Time => {}
    }
}

async fn leadership_changed(leadership: &mut Option<Leadership>) -> anyhow::Result<()> {
    match leadership {
        Some(leadership) => leadership.changed().await,
        None => std::future::pending().await,
    }
}

async fn changed<T>(receiver: &mut watch::Receiver<T>) -> anyhow::Result<()> {
    receiver.changed().await.context("what operators say is no longer followed")?;
    receiver.mark_unchanged();
    Ok(())
}

async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::now())).await,
        None => std::future::pending().await,
    }
}
