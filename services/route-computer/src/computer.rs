//! The loop of a route-computer: applies events to the engine, and publishes the changes while it leads.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{
    Bus, TraceContext, clock, codec,
    fleet::{FleetFollower, FleetText},
    lease::LeaseSeal,
    overrides::OverrideFollower,
    seal::{Signer, Trust},
    subjects,
    table::{Replicas, TableUpdate, Update},
};
use tidegate_model::{
    Epoch, ProberName, RegionName, Timestamp,
    fleet::Fleet,
    observation::{Observation, ObservationCause, Target},
    overrides::OverrideSet,
    report::{Applied, Load},
    routes::{Cause, RouteCause},
};
use tidegate_routing::{Engine, RouteEvent, Settings};
use tidegate_service::{Context, bus::claim_name, problems, telemetry};
use tokio::{sync::watch, time::Instant};
use tracing::Span;

use crate::{
    event_recorder::EventRecorder, explain, expose::Exposed, leadership::Leadership, reports::EdgeReports,
    serving_consensus::ServingConsensus, settings::RouteComputerSettings, what_if::HypothesisResponder,
};

/// How often the fleet and the overrides are polled if no change is notified.
const POLL: Duration = Duration::from_secs(1);
/// The time without a heartbeat after which a prober's table is removed. The prober is stale long before.
const PROBER_GONE: Duration = Duration::from_secs(60);

/// Runs a route-computer until shutdown.
///
/// # Errors
/// Settings are missing, or the bus is closed.
pub async fn run(settings: RouteComputerSettings, bus: Bus, context: Context) -> anyhow::Result<()> {
    let region = settings.region.clone().context("the region is missing (region)")?;
    let holder = settings.name.clone().context("the name is missing (name)")?;
    let claim = subjects::claim("route-computer", &region, holder.as_str());
    let what = format!("route-computer {holder} of {region}");
    claim_name(&context, &bus, claim, what).await?;
    let problem_events = tokio::spawn(problems::follow(context.admin.clone(), context.shutdown.clone(), {
        let (bus, region, holder) = (bus.clone(), region.clone(), holder.to_string());
        move |problem, began| {
            let (bus, region, holder) = (bus.clone(), region.clone(), holder.clone());
            let process = format!("route-computer {holder}");
            async move { bus.publish_problem(&holder, &region, &process, problem, began).await }
        }
    }));
    let fleets = FleetFollower::start(&bus, POLL, false).await?;
    let overrides = OverrideFollower::start(&bus, POLL, false).await?;
    let (probers, mut observations) =
        Replicas::start::<Target, Observation>(bus.clone(), subjects::ALL_PROBES, PROBER_GONE).await?;
    let exposed = Exposed::new(&context, &bus);
    let subscription = bus.subscribe(subjects::ALL_LOAD).await?;
    let mut loads = EdgeReports::<Load>::new(subscription, &exposed.refused_reports);
    let subscription = bus.subscribe(&subjects::applied_in(&region)).await?;
    let mut applied = EdgeReports::<Applied>::new(subscription, &exposed.refused_reports);
    let mut requests = bus.subscribe(&subjects::explain(&region)).await?;
    let mut hypotheses = HypothesisResponder::start(&bus, &region).await?;
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
        recorder: EventRecorder::new(&bus, &region, &holder),
        region: region.clone(),
        fleet: None,
        knows_overrides: false,
        epochs: BTreeMap::new(),
        leadership: None,
        serving: ServingConsensus::default(),
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
            // Changes by operators take precedence over the steady stream of reports.
            changed = changed(&mut fleet) => {
                changed?;
                computer.load_fleet(&fleet).await;
                if let Some(fleet) = &computer.parsed {
                    loads.remove_unknown_edges(fleet);
                    applied.remove_unknown_edges(fleet);
                }
            }
            changed = changed(&mut override_set) => {
                changed?;
                computer.apply_overrides(&override_set).await;
            }
            update = observations.recv() => match update {
                Some(update) => computer.apply_observations(update).await,
                None => anyhow::bail!("the bus has closed"),
            },
            Some(report) = applied.next(computer.parsed.as_deref()) => computer.record_applied(&report),
            Some(report) = loads.next(computer.parsed.as_deref()) => computer.apply(RouteEvent::Load(report), None).await,
            Some(request) = requests.next() => explain::respond(&bus, &computer.engine, &request).await,
            Some(request) = hypotheses.next() => hypotheses.respond(&computer.engine, request),
            () = due => computer.apply(RouteEvent::Tick, None).await,
            _ = ticks.tick() => computer.tick(),
        }
    }
    if let Some(leadership) = computer.leadership {
        leadership.stop().await;
    }
    // It only fails if it panicked, which the runtime has reported.
    _ = problem_events.await;
    probers.stop().await;
    fleets.stop().await;
    overrides.stop().await;
    Ok(())
}

struct Computer {
    engine: Engine,
    exposed: Exposed,
    recorder: EventRecorder,
    region: RegionName,
    /// The revision of the fleet that the engine has.
    fleet: Option<u64>,
    knows_overrides: bool,
    /// The epoch of the table of each known prober.
    epochs: BTreeMap<(RegionName, ProberName), Epoch>,
    leadership: Option<Leadership>,
    /// The epochs that the edges of the region serve.
    serving: ServingConsensus,
    /// The fleet that the engine has.
    parsed: Option<Arc<Fleet>>,
    seal: LeaseSeal,
}

/// The trace of a received event, and the time of its reception.
struct Received {
    trace: Option<TraceContext>,
    at: Timestamp,
}

impl Computer {
    /// Whether it has the inputs to lead: the fleet, the overrides and, unless the time is up, the table of a prober of its
    /// region.
    fn is_warm(&self, time_is_up: bool) -> bool {
        self.fleet.is_some()
            && self.knows_overrides
            && self.key_problem().is_none()
            && (time_is_up || self.epochs.keys().any(|(region, _)| *region == self.region))
    }

    /// The reason why edges would refuse its signature, if any.
    fn key_problem(&self) -> Option<String> {
        let keys = &self.parsed.as_ref()?.regions.get(&self.region)?.signing_keys;
        match &self.seal.signer {
            _ if keys.is_empty() => None,
            None => Some(format!(
                "the fleet names signing keys for {}, and this route-computer has none (computer.signing_key): edges would refuse its tables, so it does not lead",
                self.region
            )),
            Some(signer) if !keys.contains(&signer.public_key()) => Some(format!(
                "the fleet's signing keys for {} lack the key of this route-computer, {}: edges would refuse its tables, so it does not lead",
                self.region,
                signer.public_key()
            )),
            Some(_) => None,
        }
    }

    async fn apply(&mut self, event: RouteEvent, received: Option<Received>) {
        let now = clock::now();
        let input_at = received.as_ref().map_or(now, |received| received.at);
        // Only observations belong to a trace; load reports and ticks are too frequent.
        let span = received.map_or_else(Span::none, |received| self.span(received.trace.as_ref()));
        let entered = span.enter();
        let changes = self.engine.apply(event, now);
        let decided_at = clock::now();
        self.exposed.compute_seconds.observe(decided_at.since(now).as_secs_f64());
        span.record("tidegate.changes", changes.entries.len());
        for cause in &changes.causes {
            log_cause(cause);
        }
        self.exposed.record_verdicts(&changes.causes, decided_at);
        drop(entered);
        if changes.is_empty() {
            return;
        }
        let moves = self.recorder.record_moves(&changes.entries);
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
                tracing::warn!(%error, "a change was not published; the next heartbeat repairs it");
            }
            self.recorder.publish_decision(published.position, cause, moves, trace.as_ref()).await;
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

    async fn apply_observations(&mut self, update: TableUpdate<Target, Observation>) {
        let (subject, update) = match update {
            TableUpdate::Update(subject, update) => (subject, Some(update)),
            TableUpdate::Gone(subject) => (subject, None),
        };
        let Some((region, prober)) = subjects::parse_probe(&subject) else { return };
        let who = (region.clone(), prober.clone());
        let (event, received) = match update {
            None => {
                self.epochs.remove(&who);
                if self.epochs.is_empty() {
                    tracing::warn!("no prober is left: verdicts stay as they are");
                }
                (RouteEvent::ProberGone { region, prober }, None)
            }
            Some(Update::Snapshot { epoch, entries, received_at, .. }) => {
                // The observations of an earlier incarnation are not those of this one.
                let restarted = self.epochs.insert(who, epoch).is_some_and(|before| before != epoch);
                let event =
                    RouteEvent::ObservationsReset { region, prober, all: entries, restarted, cause: None };
                (event, Some(Received { trace: None, at: received_at }))
            }
            Some(Update::Delta { epoch, changes, meta, trace, received_at, .. }) => {
                self.epochs.insert(who, epoch);
                // A cause that can't be decoded is from a newer prober, whose observations still count.
                let cause: Option<ObservationCause> = codec::decode(&meta).ok();
                let event = RouteEvent::Observations { region, prober, changes, cause };
                (event, Some(Received { trace, at: received_at }))
            }
            // The prober is not live until its current table is here.
            Some(Update::Heartbeat { current: false, .. }) => return,
            Some(Update::Heartbeat { .. }) => (RouteEvent::ProberHeartbeat { region, prober }, None),
            Some(Update::Refused { .. }) => {
                self.exposed.refused.increment();
                return;
            }
        };
        self.apply(event, received).await;
    }

    async fn load_fleet(&mut self, fleet: &watch::Receiver<Option<Arc<FleetText>>>) {
        let Some(text) = fleet.borrow().clone() else { return };
        match Fleet::parse(&text.text, "fleet") {
            Ok(parsed) => {
                self.fleet = Some(text.head.revision);
                tracing::info!(
                    revision = text.head.revision,
                    author = text.head.author,
                    "a new fleet is in force"
                );
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
                    // So that another one, whose key the fleet names, can lead at once.
                    leadership.stop().await;
                }
                self.exposed.set_fleet_problem(unknown.or(problem));
                if self.leads() {
                    self.recorder.publish_fleet(clock::now(), &text.head).await;
                }
                self.apply(RouteEvent::Fleet(parsed), None).await;
            }
            // `tidegate apply` checks before it writes, so this fleet is for a newer version.
            Err(errors) => {
                let revision = text.head.revision;
                let first = errors.iter().next().map(ToString::to_string).unwrap_or_default();
                tracing::error!(
                    revision,
                    error = first,
                    "the fleet on the bus cannot be parsed; the last one stays in force"
                );
                self.exposed.set_refused_fleet(revision, &first);
                if self.leads() {
                    self.recorder.publish_refused_fleet(clock::now(), revision, first).await;
                }
            }
        }
    }

    async fn apply_overrides(&mut self, overrides: &watch::Receiver<Option<Arc<OverrideSet>>>) {
        let Some(overrides) = overrides.borrow().clone() else { return };
        self.knows_overrides = true;
        self.apply(RouteEvent::Overrides(overrides.as_ref().clone()), None).await;
    }

    async fn follow_lease(&mut self) -> anyhow::Result<()> {
        if let Some(leadership) = &mut self.leadership
            && let Some(epoch) = leadership.follow_lease(&self.engine).await?
        {
            self.recorder.publish_leadership(clock::now(), epoch).await;
        }
        self.tick();
        Ok(())
    }

    fn leads(&self) -> bool {
        self.leadership.as_ref().is_some_and(|leadership| leadership.position().is_some())
    }

    /// Records the epoch that an edge serves, or the later one that it is fenced to. If the edges agree on an epoch above the
    /// lease's, the lease must exceed it ([`ServingConsensus`]). So a single edge's credential cannot force a change of
    /// leaders while others of the region report.
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
            leadership.report_superseding_epoch();
        }
        self.exposed.update(&self.engine, self.leadership.as_ref(), self.fleet.is_some(), self.epochs.len());
    }
}

/// Logs and traces a cause.
fn log_cause(cause: &Cause) {
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
    receiver.changed().await.context("the fleet and the overrides are no longer followed")?;
    receiver.mark_unchanged();
    Ok(())
}

async fn sleep_until(deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::now())).await,
        None => std::future::pending().await,
    }
}
