//! Metrics and pages of a route-computer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;
use tidegate_bus::Bus;
use tidegate_model::{
    ClusterName, Epoch, Revision, Timestamp,
    observation::Signal,
    routes::{Cause, RouteEntry, RouteKey},
    verdict::Verdict,
};
use tidegate_routing::Engine;
use tidegate_service::{
    Context,
    admin::Reply,
    metrics::{Counter, Histogram, Samples},
};

use crate::{leadership::Leadership, reports::ReportRefusals};

/// Upper bounds for the time of one computation, in seconds.
const COMPUTE_BOUNDS: [f64; 10] = [1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 0.1, 1.0];

/// Upper bounds for the time from a fault to its verdict, in seconds.
const CONVERGENCE_BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// What a route-computer shows of itself.
pub struct Exposed {
    /// The time of each event's computation, in seconds.
    pub compute_seconds: Histogram,
    /// Deltas published.
    pub published: Counter,
    /// Messages of probers' tables that were refused.
    pub refused: Counter,
    /// Reports of edges that were refused.
    pub refused_reports: ReportRefusals,
    by_probe: Histogram,
    by_suspicion: Histogram,
    standing: Arc<Mutex<Standing>>,
}

#[derive(Default, Clone)]
struct Standing {
    position: Option<(Epoch, Revision)>,
    is_certain: bool,
    entries: usize,
    has_fleet: bool,
    /// What is wrong about the region, where the fleet does not have it.
    unknown_region: Option<String>,
    fail_open: usize,
    probers: usize,
    probers_heard: usize,
    /// Whether every check has the cluster up; without those of which nothing is known.
    up: BTreeMap<ClusterName, bool>,
    /// Capacity and load, in requests per second.
    capacities: Vec<(ClusterName, u32, f64)>,
}

impl Standing {
    fn down(&self) -> usize {
        self.up.values().filter(|is_up| !**is_up).count()
    }
}

impl Exposed {
    /// Notes how long verdicts took that were just reached: since the first request failed, or since the probe that showed
    /// it began.
    pub fn note_verdicts(&self, causes: &[Cause], decided_at: Timestamp) {
        for cause in causes {
            let Cause::Health { signal: Some(signal), probed_at, .. } = cause else { continue };
            let (histogram, since) = match signal {
                Signal::Suspicion { first_failure_at } => (&self.by_suspicion, Some(*first_failure_at)),
                Signal::Schedule => (&self.by_probe, *probed_at),
            };
            if let Some(since) = since {
                histogram.observe(decided_at.since(since).as_secs_f64());
            }
        }
    }

    /// Notes whether the fleet lacks the region, in words.
    pub fn note_region(&self, unknown: Option<String>) {
        lock(&self.standing).unknown_region = unknown;
    }

    /// Adds metrics, readiness checks and pages.
    pub fn new(context: &Context, bus: &Bus) -> Exposed {
        let standing = Arc::new(Mutex::new(Standing::default()));
        tidegate_service::bus::observe(&context.registry, bus);
        context.admin.check("bus", tidegate_service::bus::check(bus));
        let shown = standing.clone();
        context.admin.check("fleet", move || {
            let standing = lock(&shown);
            match &standing.unknown_region {
                Some(problem) => Err(problem.clone()),
                None if standing.has_fleet => Ok(()),
                None => Err("no fleet was applied yet (tidegate apply)".into()),
            }
        });
        let shown = standing.clone();
        context.admin.route("/standing", move |_| {
            let s = lock(&shown).clone();
            Reply::json(&json!({
                "leads": s.is_certain,
                "epoch": s.position.map(|(epoch, _)| epoch),
                "revision": s.position.map(|(_, revision)| revision),
                "entries": s.entries,
                "down_clusters": s.down(),
                "fail_open_services": s.fail_open,
                "probers": s.probers,
            }))
        });
        let shown = standing.clone();
        context.registry.collect(move |samples| {
            let s = lock(&shown).clone();
            let (name, help) = (
                "tidegate_computer_leads",
                "Whether the region's lease is its own; not while the bus, and so the lease, is away.",
            );
            samples.gauge(name, help, &[], f64::from(u8::from(s.is_certain)));
            if let Some((epoch, revision)) = s.position {
                samples.gauge("tidegate_computer_epoch", "The epoch it publishes.", &[], epoch.0 as f64);
                samples.gauge("tidegate_computer_revision", "The table's revision.", &[], revision.0 as f64);
            }
            let (name, help) = (
                "tidegate_clusters_down",
                "Clusters that are down or cannot be reached, by one of their checks.",
            );
            samples.gauge(name, help, &[], s.down() as f64);
            let (name, help) = ("tidegate_services_fail_open", "Services of which everything seems down.");
            samples.gauge(name, help, &[], s.fail_open as f64);
            samples.gauge("tidegate_probers_known", "Probers whose tables are known.", &[], s.probers as f64);
            let (name, help) = ("tidegate_probers_heard", "Of those, the ones that were heard just now.");
            samples.gauge(name, help, &[], s.probers_heard as f64);
            collect_clusters(samples, &s);
        });
        let convergence = |signal| {
            context.registry.histogram(
                "tidegate_convergence_fault_to_verdict_seconds",
                "From the first failed request, or the beginning of the probe that showed it, to the verdict.",
                &[("signal", signal)],
                &CONVERGENCE_BOUNDS,
            )
        };
        Exposed {
            by_probe: convergence("probe"),
            by_suspicion: convergence("suspicion"),
            compute_seconds: context.registry.histogram(
                "tidegate_compute_seconds",
                "From an event to the changes that follow from it.",
                &[],
                &COMPUTE_BOUNDS,
            ),
            refused: context.registry.counter(
                "tidegate_observations_refused_total",
                "Messages of probers that were refused, since one of the same name began later by its clock.",
                &[],
            ),
            refused_reports: ReportRefusals::new(&context.registry),
            published: context.registry.counter("tidegate_deltas_published_total", "Changes published.", &[]),
            standing,
        }
    }

    /// Shows where the table stands now.
    pub fn show(&self, engine: &Engine, leadership: Option<&Leadership>, has_fleet: bool, probers: usize) {
        let mut standing = Standing {
            position: leadership.and_then(Leadership::position),
            is_certain: leadership.is_some_and(Leadership::is_certain),
            entries: engine.table().len(),
            has_fleet,
            probers,
            probers_heard: engine.live_probers(),
            capacities: engine.capacities().map(|(name, most, load)| (name.clone(), most, load)).collect(),
            ..Standing::default()
        };
        for (key, entry) in engine.table() {
            match entry {
                RouteEntry::Health(health) => {
                    let is_up = match health.verdict {
                        Verdict::Up => true,
                        Verdict::Down | Verdict::PathDown => false,
                        Verdict::Unknown => continue,
                    };
                    if let RouteKey::Health(name, _) = key {
                        *standing.up.entry(name.clone()).or_insert(true) &= is_up;
                    }
                }
                RouteEntry::Tiers(tiers) => {
                    standing.fail_open += usize::from(tiers.actions.iter().any(|action| action.fail_open));
                }
                RouteEntry::Edge(_) | RouteEntry::Cluster(_) | RouteEntry::Service(_) => {}
            }
        }
        let mut shown = lock(&self.standing);
        standing.unknown_region = shown.unknown_region.take();
        *shown = standing;
    }
}

fn collect_clusters(samples: &mut Samples, standing: &Standing) {
    for (cluster, is_up) in &standing.up {
        let (name, help) = (
            "tidegate_cluster_up",
            "Whether this region's verdict on the cluster is up by all of its checks. Absent while nothing is known.",
        );
        samples.gauge(name, help, &[("cluster", cluster.as_str())], f64::from(u8::from(*is_up)));
    }
    for (cluster, most, load) in &standing.capacities {
        let labels = [("cluster", cluster.as_str())];
        let (name, help) = (
            "tidegate_cluster_capacity",
            "What the fleet says that the cluster can take, in requests per second.",
        );
        samples.gauge(name, help, &labels, f64::from(*most));
        let (name, help) = (
            "tidegate_cluster_load",
            "What all regions' shares send to the cluster, in requests per second; of clusters with a capacity.",
        );
        samples.gauge(name, help, &labels, *load);
    }
}

fn lock(standing: &Mutex<Standing>) -> std::sync::MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}
