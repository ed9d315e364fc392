//! Follows the region's route table: applies it to workers and listeners, saves it to disk, reports it on the bus.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use tidegate_bus::{
    Bus, Message, Subscription, TraceContext, clock, codec,
    limit::LogLimit,
    seal::Trust,
    subjects,
    table::{Replica, Update},
};
use tidegate_model::{
    Epoch, Revision, Timestamp,
    event::{Event, EventKind},
    report::Applied,
    routes::{RouteCause, RouteEntry, RouteKey},
};
use tidegate_service::{Context, metrics::Histogram, telemetry};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tracing::Instrument as _;

use super::{
    disk::{SavedTable, TableFile},
    listeners::{ListenerError, Listeners},
    status::TableStatus,
    suspicion::Suspicions,
    table_lag::TableLag,
    workers::Workers,
};
use crate::{
    edge_identity::EdgeIdentity,
    lifecycle::{Phase, PhaseInput},
    table::RouteChange,
    worker::RouteUpdate,
};

/// The interval of reports, and of retries for listeners and the table file.
const EVERY: Duration = Duration::from_secs(1);

/// The interval between log messages about refused messages.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Upper bounds of the convergence histogram, in seconds.
const CONVERGENCE_BOUNDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Follows the region's route table.
pub struct TableFollower {
    edge: Arc<EdgeIdentity>,
    bus: Bus,
    workers: Workers,
    listeners: Listeners,
    saving: Option<JoinHandle<()>>,
    unsaved: bool,
    status: TableStatus,
    suspicions: Suspicions,
    context: Context,
    entries: BTreeMap<RouteKey, Arc<RouteEntry>>,
    applied: Applied,
    source: TableSource,
    lag: TableLag,
    /// Limits log messages about refused messages.
    refusal_log: LogLimit,
    /// The time from a verdict to serving by it.
    converged: Histogram,
    phase: Phase,
}

/// The sources of the table.
pub struct TableSource {
    /// The replica.
    pub replica: Replica,
    /// Operators' requests to reset the epoch fence.
    pub resets: Subscription,
    /// The keys that are trusted.
    pub trust: Trust,
    /// The file in which the last table is kept.
    pub disk: TableFile,
}

impl TableFollower {
    /// A follower without routes.
    pub fn new(
        edge: Arc<EdgeIdentity>,
        bus: Bus,
        (workers, listeners): (Workers, Listeners),
        status: TableStatus,
        suspicions: Suspicions,
        source: TableSource,
        context: Context,
    ) -> TableFollower {
        let applied = Applied {
            edge: edge.name.clone(),
            region: edge.region.clone(),
            epoch: Epoch::default(),
            fence: Epoch::default(),
            revision: Revision::default(),
            received_at: Timestamp::default(),
            applied_at: Timestamp::default(),
            reported_at: Timestamp::default(),
            refused_old_epochs: 0,
            refused_unsigned: 0,
            behind_since: None,
            draining: false,
        };
        let converged = context.registry.histogram(
            "tidegate_convergence_verdict_to_applied_seconds",
            "From a verdict, an override or a new fleet to serving by it, by the clocks of both machines.",
            &[],
            &CONVERGENCE_BOUNDS,
        );
        TableFollower {
            edge,
            bus,
            workers,
            listeners,
            saving: None,
            unsaved: false,
            status,
            suspicions,
            context,
            entries: BTreeMap::new(),
            applied,
            source,
            lag: TableLag::new(clock::now()),
            refusal_log: LogLimit::new(LOG_INTERVAL),
            converged,
            phase: Phase::Serving,
        }
    }

    /// Serves by a table from disk until the bus provides one.
    ///
    /// # Errors
    /// If another edge holds the port of a listener.
    pub async fn begin_with(&mut self, saved: SavedTable) -> Result<(), ListenerError> {
        tracing::warn!(
            epoch = %saved.epoch, revision = %saved.revision, age_s = saved.age.as_secs(),
            "serving by the last table on disk until the bus responds"
        );
        self.status.record_disk_age(saved.age);
        self.applied.epoch = saved.epoch;
        self.applied.revision = saved.revision;
        self.replace_table(saved.entries).await?;
        self.applied.applied_at = clock::now();
        self.unsaved = false;
        self.update_status();
        Ok(())
    }

    /// Follows the table until shutdown, when all connections have ended.
    ///
    /// # Errors
    /// If a worker failed, or the bus is closed.
    pub async fn follow(
        mut self,
        mut updates: mpsc::Receiver<Update<RouteKey, RouteEntry>>,
    ) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (shutdown, lost) = (self.context.shutdown.clone(), self.workers.lost());
        let mut is_shutting_down = false;
        let mut ending = None;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if !is_shutting_down => {
                    is_shutting_down = true;
                    self.change_phase(PhaseInput::Shutdown).await;
                }
                () = until(self.phase.deadline()) => {
                    self.change_phase(PhaseInput::Time).await;
                    if self.phase.is_stopping() {
                        ending = Some(Box::pin(self.workers.wait_for_end()));
                    }
                }
                // Without the worker some connections would hang, and metrics and readiness would be wrong.
                () = lost.cancelled(), if !self.phase.is_stopping() => {
                    anyhow::bail!("a worker has ended unexpectedly: it panicked, or its runtime failed")
                }
                ended = ended(&mut ending) => {
                    ended?;
                    break;
                }
                update = updates.recv() => self.apply_update(update.context("the bus is closed")?).await?,
                Some(request) = self.source.resets.next() => self.reset(&request).await,
                _ = ticks.tick() => self.tick().await?,
            }
        }
        self.report(None).await;
        self.save();
        if let Some(saving) = self.saving.take() {
            // It only fails if it panicked; the last file stays.
            _ = saving.await;
        }
        self.source.replica.stop().await;
        Ok(())
    }

    /// Computes the phase after an input and, if it changed, applies and reports it.
    async fn change_phase(&mut self, input: PhaseInput) {
        let phase = self.phase.next(input, Instant::now(), self.workers.drain_limits());
        if phase == self.phase {
            return;
        }
        self.phase = phase;
        self.applied.draining = phase.draining_since().is_some();
        self.workers.set_phase(phase).await;
        self.update_status();
        self.report(None).await;
    }

    async fn apply_update(&mut self, update: Update<RouteKey, RouteEntry>) -> Result<(), ListenerError> {
        match update {
            Update::Snapshot { epoch, revision, entries, received_at } => {
                self.replace_table(entries).await?;
                self.record_position(epoch, revision, received_at);
                self.record_current(received_at);
                tracing::info!(%epoch, %revision, "serving by a new table");
                self.report(None).await;
            }
            Update::Delta { epoch, revision, changes, meta, trace, received_at } => {
                let span = tracing::info_span!(
                    "apply",
                    otel.kind = "consumer",
                    tidegate.edge = %self.edge.name,
                    tidegate.region = %self.edge.region,
                    tidegate.epoch = epoch.0,
                    tidegate.revision = revision.0,
                    tidegate.changes = changes.len(),
                );
                if let Some(trace) = &trace {
                    telemetry::set_parent(&span, trace);
                }
                self.apply_changes(changes).instrument(span.clone()).await?;
                self.record_position(epoch, revision, received_at);
                self.record_current(received_at);
                let trace = telemetry::span_context(&span).or(trace);
                drop(span);
                self.report(trace.as_ref()).await;
                // An unreadable cause is a newer route-computer's; the change itself was applied.
                if let Ok(cause) = codec::decode::<RouteCause>(&meta)
                    && cause.is_decisive()
                {
                    self.publish_applied(&cause, trace.as_ref()).await;
                }
            }
            Update::Heartbeat { epoch, revision, current, received_at } => {
                if current {
                    self.record_current(received_at);
                } else {
                    self.status.record_heard(received_at, false);
                }
                if (epoch, revision) != (self.applied.epoch, self.applied.revision) {
                    self.record_position(epoch, revision, received_at);
                    self.report(None).await;
                }
            }
            Update::Refused { epoch } => {
                self.applied.refused_old_epochs += 1;
                if self.refusal_log.admit(Instant::now()) {
                    tracing::warn!(
                        %epoch, serving = %self.applied.epoch, refused = self.applied.refused_old_epochs,
                        "a table of an older or implausible epoch was refused"
                    );
                }
                self.update_status();
            }
        }
        Ok(())
    }

    async fn replace_table(&mut self, entries: Vec<(RouteKey, RouteEntry)>) -> Result<(), ListenerError> {
        let entries: Arc<[(RouteKey, Arc<RouteEntry>)]> =
            entries.into_iter().map(|(key, entry)| (key, Arc::new(entry))).collect();
        self.workers.apply_routes(&RouteUpdate::All(entries.clone())).await;
        // First everything that was in the table is removed, then everything in it is added.
        self.suspicions.update_health(self.entries.keys().map(|key| (key, None)));
        self.suspicions.update_health(entries.iter().map(|(key, entry)| (key, Some(entry.as_ref()))));
        self.entries = entries.iter().cloned().collect();
        self.update_edge().await
    }

    async fn apply_changes(
        &mut self,
        changes: Vec<(RouteKey, Option<RouteEntry>)>,
    ) -> Result<(), ListenerError> {
        let changes: Arc<[RouteChange]> =
            changes.into_iter().map(|(key, entry)| (key, entry.map(Arc::new))).collect();
        self.workers.apply_routes(&RouteUpdate::Changes(changes.clone())).await;
        self.suspicions.update_health(changes.iter().map(|(key, entry)| (key, entry.as_deref())));
        let own = RouteKey::Edge(self.edge.name.clone());
        let mut touches_edge = false;
        for (key, entry) in changes.iter() {
            touches_edge |= *key == own;
            match entry {
                Some(entry) => self.entries.insert(key.clone(), entry.clone()),
                None => self.entries.remove(key),
            };
        }
        if touches_edge {
            self.update_edge().await?;
        }
        Ok(())
    }

    /// Makes listeners and draining follow the edge's own entry.
    async fn update_edge(&mut self) -> Result<(), ListenerError> {
        let own = self.entries.get(&RouteKey::Edge(self.edge.name.clone())).cloned();
        let Some(RouteEntry::Edge(entry)) = own.as_deref() else {
            if !self.entries.is_empty() {
                tracing::warn!(edge = %self.edge.name, "the table has no entry for this edge: its listeners stay as they are");
            }
            return Ok(());
        };
        if !self.phase.is_stopping() {
            self.listeners.set_wanted(&entry.listeners, &self.workers, &self.context.ports).await?;
        }
        let wants_drain = entry.drain.is_some();
        if wants_drain != self.phase.draining_since().is_some() {
            tracing::info!(
                draining = wants_drain,
                reason = entry.drain.as_deref(),
                "an operator changed the edge's drain override"
            );
        }
        self.change_phase(PhaseInput::OperatorDrains(wants_drain)).await;
        Ok(())
    }

    fn record_position(&mut self, epoch: Epoch, revision: Revision, received_at: Timestamp) {
        self.applied.epoch = epoch;
        self.applied.revision = revision;
        self.applied.received_at = received_at;
        self.applied.applied_at = clock::now();
        self.unsaved = true;
        self.update_status();
    }

    /// Records that the edge has the owner's latest table.
    fn record_current(&mut self, received_at: Timestamp) {
        self.lag.record_current(received_at);
        self.status.record_heard(received_at, true);
    }

    fn update_status(&self) {
        self.status.set(&self.applied, &self.entries, self.listeners.problems());
        self.status.set_certificate_problems(self.listeners.certificate_problems());
    }

    /// The latest epoch that was received.
    fn fence(&self) -> Epoch {
        Epoch(self.source.replica.stats().fence.load(Ordering::Relaxed))
    }

    /// Resets the epoch fence, in memory and on disk. The edge serves by its last table until it hears the owner.
    async fn reset(&mut self, request: &Message) {
        tracing::warn!(epoch = %self.applied.epoch, "an operator resets the epoch fence");
        self.source.replica.reset();
        (self.applied.epoch, self.applied.revision) = (Epoch(0), Revision(0));
        self.unsaved = true;
        self.save();
        if let Err(error) = self.bus.reply(request, bytes::Bytes::new()).await {
            tracing::debug!(%error, "the response to a reset was not sent");
        }
    }

    /// Updates whether the edge is behind.
    fn update_lag(&mut self) {
        self.applied.refused_unsigned = self.source.trust.refused();
        let heard_at = self.source.trust.refused_at().max(self.status.heard_at());
        let knows_of_later = self.fence() > self.applied.epoch;
        let refused = self.applied.refused_old_epochs;
        self.applied.behind_since = self.lag.update(clock::now(), heard_at, refused, knows_of_later);
    }

    async fn tick(&mut self) -> Result<(), ListenerError> {
        self.update_lag();
        if !self.phase.is_stopping() {
            self.listeners.retry_and_renew(&self.workers, &self.context.ports).await?;
        }
        self.update_status();
        self.report(None).await;
        self.save();
        Ok(())
    }

    async fn report(&mut self, trace: Option<&TraceContext>) {
        self.applied.reported_at = clock::now();
        self.applied.fence = self.fence();
        let subject = subjects::applied(&self.edge.region, &self.edge.name);
        // The report is repeated once a second.
        _ = self.bus.publish_report(&subject, trace, &self.applied).await;
    }

    /// Records the convergence time of a decision, and publishes an event.
    async fn publish_applied(&self, cause: &RouteCause, trace: Option<&TraceContext>) {
        let Applied { epoch, revision, received_at, applied_at, .. } = self.applied;
        self.converged.observe(applied_at.since(cause.decided_at).as_secs_f64());
        let edge = self.edge.name.clone();
        let kind = EventKind::Applied { edge, epoch, revision, decided_at: cause.decided_at, received_at };
        let event = Event { region: self.edge.region.clone(), at: applied_at, kind };
        // A lost event is acceptable: it is only informative.
        _ = self.bus.publish_event(self.edge.name.as_str(), trace, &event).await;
    }

    /// Saves the table if it has changed, one write at a time.
    fn save(&mut self) {
        if !self.unsaved || self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        self.unsaved = false;
        let entries =
            self.entries.iter().map(|(key, entry)| (key.clone(), RouteEntry::clone(entry))).collect();
        let (region, keys) = (self.edge.region.clone(), self.source.trust.keys());
        let saved = SavedTable::new(region, self.applied.epoch, self.applied.revision, keys, entries);
        let disk = self.source.disk.clone();
        self.saving = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = disk.save(&saved) {
                tracing::error!(%error, "the table cannot be saved to disk");
            }
        }));
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn ended<T: Future + Unpin>(ending: &mut Option<T>) -> T::Output {
    match ending {
        Some(ending) => ending.await,
        None => std::future::pending().await,
    }
}
