//! The metrics, readiness checks and pages of a route-computer.

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

/// The metrics and pages of a route-computer.
pub struct Exposed {
    /// The duration of each event's computation, in seconds.
    pub compute_seconds: Histogram,
    /// Published deltas.
    pub published: Counter,
    /// Refused messages of probers.
    pub refused: Counter,
    /// Refused reports of edges.
    pub refused_reports: ReportRefusals,
    by_probe: Histogram,
    by_suspicion: Histogram,
    status: Arc<Mutex<Status>>,
}

#[derive(Default, Clone)]
struct Status {
    position: Option<(Epoch, Revision)>,
    is_certain: bool,
    entries: usize,
    has_fleet: bool,
    /// The reason why this route-computer cannot work with the fleet, if any.
    fleet_problem: Option<String>,
    /// Whether the fleet on the bus was refused.
    refuses_fleet: bool,
    fail_open: usize,
    probers: usize,
    live_probers: usize,
    /// Whether the cluster is up by all checks. Clusters with an unknown verdict are absent.
    up: BTreeMap<ClusterName, bool>,
    /// Capacity and load, in requests per second.
    capacities: Vec<(ClusterName, u32, f64)>,
}

impl Status {
    fn down(&self) -> usize {
        self.up.values().filter(|is_up| !**is_up).count()
    }
}

impl Exposed {
    /// Records how long the verdicts took: from the first failed request, or from the start of the first probe that showed the
    /// fault.
    pub fn record_verdicts(&self, causes: &[Cause], decided_at: Timestamp) {
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

    /// Sets the reason why this route-computer cannot work with the fleet.
    pub fn set_fleet_problem(&self, problem: Option<String>) {
        let mut status = lock(&self.status);
        (status.fleet_problem, status.refuses_fleet) = (problem, false);
    }

    /// Sets the fleet on the bus as refused, with the first error in it.
    pub fn set_refused_fleet(&self, revision: u64, error: &str) {
        let mut status = lock(&self.status);
        let problem = format!("fleet revision {revision} is refused, the one before stays in force: {error}");
        (status.fleet_problem, status.refuses_fleet) = (Some(problem), true);
    }

    /// Adds metrics, readiness checks and pages.
    pub fn new(context: &Context, bus: &Bus) -> Exposed {
        let status = Arc::new(Mutex::new(Status::default()));
        context.admin.check("bus", tidegate_service::bus::check(bus));
        let shown = status.clone();
        context.admin.check("fleet", move || {
            let status = lock(&shown);
            match &status.fleet_problem {
                Some(problem) => Err(problem.clone()),
                None if status.has_fleet => Ok(()),
                None => Err("no fleet was applied yet (tidegate apply)".into()),
            }
        });
        let shown = status.clone();
        context.admin.route("/status", move |_| {
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
        let shown = status.clone();
        context.registry.collect(move |samples| {
            let s = lock(&shown).clone();
            let (name, help) = (
                "tidegate_computer_leads",
                "Whether it holds the region's lease; not while the bus is unreachable.",
            );
            samples.gauge(name, help, &[], f64::from(u8::from(s.is_certain)));
            if let Some((epoch, revision)) = s.position {
                samples.gauge("tidegate_computer_epoch", "The epoch of its table.", &[], epoch.0 as f64);
                samples.gauge(
                    "tidegate_computer_revision",
                    "The revision of its table.",
                    &[],
                    revision.0 as f64,
                );
            }
            let (name, help) =
                ("tidegate_clusters_down", "Clusters that are down or path down by at least one check.");
            samples.gauge(name, help, &[], s.down() as f64);
            let (name, help) = ("tidegate_services_fail_open", "Services whose clusters all seem down.");
            samples.gauge(name, help, &[], s.fail_open as f64);
            let (name, help) = (
                "tidegate_fleet_refused",
                "Whether the fleet on the bus is refused, and the one before in force.",
            );
            samples.gauge(name, help, &[], f64::from(u8::from(s.refuses_fleet)));
            samples.gauge("tidegate_probers_known", "Probers whose tables are known.", &[], s.probers as f64);
            let (name, help) = ("tidegate_probers_heard", "Known probers that are not stale.");
            samples.gauge(name, help, &[], s.live_probers as f64);
            collect_clusters(samples, &s);
        });
        let convergence = |signal| {
            context.registry.histogram(
                "tidegate_convergence_fault_to_verdict_seconds",
                "From the first failed request, or the start of the first probe that showed the fault, to the verdict.",
                &[("signal", signal)],
                &CONVERGENCE_BOUNDS,
            )
        };
        Exposed {
            by_probe: convergence("probe"),
            by_suspicion: convergence("suspicion"),
            compute_seconds: context.registry.histogram(
                "tidegate_compute_seconds",
                "Duration of one computation.",
                &[],
                &COMPUTE_BOUNDS,
            ),
            refused: context.registry.counter(
                "tidegate_observations_refused_total",
                "Messages of probers that were refused, since another process with the same name has a later epoch.",
                &[],
            ),
            refused_reports: ReportRefusals::new(&context.registry),
            published: context.registry.counter("tidegate_deltas_published_total", "Published changes of the route table.", &[]),
            status,
        }
    }

    /// Updates what is exposed.
    pub fn update(&self, engine: &Engine, leadership: Option<&Leadership>, has_fleet: bool, probers: usize) {
        let mut status = Status {
            position: leadership.and_then(Leadership::position),
            is_certain: leadership.is_some_and(Leadership::is_certain),
            entries: engine.table().len(),
            has_fleet,
            probers,
            live_probers: engine.live_probers(),
            capacities: engine.capacities().map(|(name, most, load)| (name.clone(), most, load)).collect(),
            ..Status::default()
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
                        *status.up.entry(name.clone()).or_insert(true) &= is_up;
                    }
                }
                RouteEntry::Tiers(tiers) => {
                    status.fail_open += usize::from(tiers.actions.iter().any(|action| action.fail_open));
                }
                RouteEntry::Edge(_) | RouteEntry::Cluster(_) | RouteEntry::Service(_) => {}
            }
        }
        let mut shown = lock(&self.status);
        (status.fleet_problem, status.refuses_fleet) = (shown.fleet_problem.take(), shown.refuses_fleet);
        *shown = status;
    }
}

fn collect_clusters(samples: &mut Samples, status: &Status) {
    for (cluster, is_up) in &status.up {
        let (name, help) = (
            "tidegate_cluster_up",
            "Whether the cluster is up by all of its checks in this region. Absent while the verdict is unknown.",
        );
        samples.gauge(name, help, &[("cluster", cluster.as_str())], f64::from(u8::from(*is_up)));
    }
    for (cluster, most, load) in &status.capacities {
        let labels = [("cluster", cluster.as_str())];
        let (name, help) = (
            "tidegate_cluster_capacity",
            "The capacity of the cluster in requests per second, by the fleet.",
        );
        samples.gauge(name, help, &labels, f64::from(*most));
        let (name, help) = (
            "tidegate_cluster_load",
            "The load of the cluster from all regions in requests per second; only clusters with a capacity.",
        );
        samples.gauge(name, help, &labels, *load);
    }
}

fn lock(status: &Mutex<Status>) -> std::sync::MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}
