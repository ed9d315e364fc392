//! Metrics and pages of a route-computer.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tidegate_bus::Bus;
use tidegate_model::{
    Epoch, Revision, Timestamp,
    observation::Signal,
    routes::{Cause, RouteEntry},
    verdict::Verdict,
};
use tidegate_routing::Engine;
use tidegate_service::{
    Context,
    admin::Reply,
    metrics::{Counter, Histogram},
};

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
    by_probe: Histogram,
    by_suspicion: Histogram,
    standing: Arc<Mutex<Standing>>,
}

#[derive(Default, Clone)]
struct Standing {
    position: Option<(Epoch, Revision)>,
    entries: usize,
    has_fleet: bool,
    down_clusters: usize,
    fail_open: usize,
    probers: usize,
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

    /// Adds metrics, readiness checks and pages.
    pub fn new(context: &Context, bus: &Bus) -> Exposed {
        let standing = Arc::new(Mutex::new(Standing::default()));
        tidegate_service::bus::observe(&context.registry, bus);
        context.admin.check("bus", tidegate_service::bus::check(bus));
        let shown = standing.clone();
        context.admin.check("fleet", move || {
            if lock(&shown).has_fleet {
                Ok(())
            } else {
                Err("no fleet was applied yet (tidegate apply)".into())
            }
        });
        let shown = standing.clone();
        context.admin.route("/standing", move |_| {
            let s = lock(&shown).clone();
            Reply::json(&json!({
                "leads": s.position.is_some(),
                "epoch": s.position.map(|(epoch, _)| epoch),
                "revision": s.position.map(|(_, revision)| revision),
                "entries": s.entries,
                "down_clusters": s.down_clusters,
                "fail_open_services": s.fail_open,
                "probers": s.probers,
            }))
        });
        let shown = standing.clone();
        context.registry.collect(move |samples| {
            let s = lock(&shown).clone();
            let leads = f64::from(u8::from(s.position.is_some()));
            samples.gauge("tidegate_computer_leads", "Whether it publishes the region's table.", &[], leads);
            if let Some((epoch, revision)) = s.position {
                samples.gauge("tidegate_computer_epoch", "The epoch it publishes.", &[], epoch.0 as f64);
                samples.gauge("tidegate_computer_revision", "The table's revision.", &[], revision.0 as f64);
            }
            let (name, help) =
                ("tidegate_clusters_down", "Clusters that are down or cannot be reached, per check.");
            samples.gauge(name, help, &[], s.down_clusters as f64);
            let (name, help) = ("tidegate_services_fail_open", "Services of which everything seems down.");
            samples.gauge(name, help, &[], s.fail_open as f64);
            samples.gauge("tidegate_probers_known", "Probers whose tables are known.", &[], s.probers as f64);
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
            published: context.registry.counter("tidegate_deltas_published_total", "Changes published.", &[]),
            standing,
        }
    }

    /// Shows where the table stands now.
    pub fn show(
        &self,
        engine: &Engine,
        position: Option<(Epoch, Revision)>,
        has_fleet: bool,
        probers: usize,
    ) {
        let (mut down_clusters, mut fail_open) = (0, 0);
        for entry in engine.table().values() {
            match entry {
                RouteEntry::Health(health) => {
                    down_clusters += usize::from(matches!(health.verdict, Verdict::Down | Verdict::PathDown));
                }
                RouteEntry::Tiers(tiers) => {
                    fail_open += usize::from(tiers.actions.iter().any(|action| action.fail_open));
                }
                RouteEntry::Edge(_) | RouteEntry::Cluster(_) | RouteEntry::Service(_) => {}
            }
        }
        let entries = engine.table().len();
        *lock(&self.standing) = Standing { position, entries, has_fleet, down_clusters, fail_open, probers };
    }
}

fn lock(standing: &Mutex<Standing>) -> std::sync::MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}
