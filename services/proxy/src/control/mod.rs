//! The control side of a proxy: follows the bus, commands the workers, reports. On a thread of its own, never on the
//! data path.

mod disk;
mod expose;
mod listeners;
mod load;
mod port_holder;
mod region;
mod routes;
mod state_lock;
mod status;
mod suspicion;
mod table_lag;
mod trust;
mod workers;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{
    Bus,
    seal::Trust,
    subjects::{self, ROUTES_BUCKET},
    table::{Epochs, Replica, ReplicaOptions, SnapshotStore},
};
use tidegate_model::EdgeName;
use tidegate_service::{Context, bus::claim_name, problems};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    edge_identity::EdgeIdentity,
    metrics::Metrics,
    observe::{ObserverConfig, Sampling, access},
    settings::ProxySettings,
    tls::UpstreamTlsConfigs,
};
use disk::TableFile;
use listeners::Listeners;
pub use port_holder::PortHolder;
use routes::{TableFollower, TableSource};
use state_lock::{LockError, StateLock};
use status::TableStatus;
use suspicion::Suspicions;
use trust::follow_keys;
use workers::Workers;

/// How often upstream certificates are checked for changes.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(1);
/// How often unused counters are dropped.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Failures that wait to be reported; further ones are usually of the same endpoints.
const PENDING_FAILURES: usize = 1024;

/// Runs a proxy until shutdown: serves by its region's route table, drains, stops.
///
/// # Errors
/// If the edge has no name, or the bus, a thread or the state directory cannot be used.
pub async fn run(settings: ProxySettings, bus: Bus, context: Context) -> anyhow::Result<()> {
    let name = settings.name.clone().context("the edge has no name (name)")?;
    let disk = TableFile::new(&settings.proxy.state_dir, &name)?;
    let lock = match StateLock::acquire(&settings.proxy.state_dir, &name) {
        Ok(lock) => Some(lock),
        Err(held @ LockError::Held { .. }) if settings.take_over => {
            tracing::warn!("taking over: {held}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let saved = disk.load();
    let last = saved.as_ref().map(|saved| &saved.region);
    let learned = match settings.region.clone() {
        Some(region) => region::EdgeAssignment { region, signing_keys: None },
        None => match region::learn_region(&bus, &name, last, &context.shutdown).await {
            Some(learned) => learned,
            None => return Ok(()),
        },
    };
    let edge_name = name.clone();
    let edge = Arc::new(EdgeIdentity { name, region: learned.region });
    let mut saved = saved.filter(|saved| saved.region == edge.region);
    // Without saved keys the fleet may name some by now: no table is accepted before the fleet was read.
    let trust = Trust::undecided();
    let kept = saved.as_ref().map(|saved| &saved.signing_keys).filter(|keys| !keys.is_empty());
    let known = learned.signing_keys.as_ref().or(kept);
    let pinned = &settings.proxy.signing_keys;
    if let Some(keys) = Some(pinned).filter(|keys| !keys.is_empty()).or(known) {
        if !keys.is_empty() {
            let is_pinned = !pinned.is_empty();
            tracing::info!(?keys, is_pinned, "only tables signed by one of these keys are accepted");
        }
        trust.set(keys);
    }
    if let Some(saved) = &mut saved {
        saved.distrust_epoch(&trust);
    }
    let metrics = Arc::new(Metrics::default());
    let tls = Arc::new(UpstreamTlsConfigs::default());
    let (failures, reported) = mpsc::channel(PENDING_FAILURES);
    let access = access::start(&settings.access_log).with_context(|| {
        let path = settings.access_log.path.as_deref().unwrap_or(Path::new("standard output"));
        format!("the access log cannot be opened: {} (access_log.path)", path.display())
    })?;
    let (access, writer) = access.unzip();
    let sampling = Sampling::of(&settings.proxy);
    let observer_config =
        ObserverConfig { tracing: context.spans.clone().map(|spans| (spans, sampling)), access };
    let workers = Workers::start(&edge, &metrics, &tls, &failures, &observer_config, &settings.proxy)?;

    let status = TableStatus::new(edge.clone());
    let access = observer_config.access.as_ref();
    expose::register(&context, &bus, &metrics, &status, &tls, &edge, access);
    let store = SnapshotStore { bucket: bus.bucket(ROUTES_BUCKET), key: subjects::routes_key(&edge.region) };
    let seed = saved.as_ref().map(disk::SavedTable::seed);
    let options = ReplicaOptions { store: Some(store), seed, trust: trust.clone(), epochs: Epochs::Counted };
    let (replica, updates) = Replica::start(bus.clone(), &subjects::routes(&edge.region), options).await?;
    let limiter = Suspicions::default();
    let subject = subjects::claim("edge", &edge.region, edge.name.as_str());
    let what = format!("edge {} of {}", edge.name, edge.region);
    claim_name(&context, &bus, subject, what).await?;
    let resets = bus.subscribe(&subjects::reset(&edge.region, &edge.name)).await?;
    let mut follower = TableFollower::new(
        edge.clone(),
        bus.clone(),
        (workers, Listeners::new(settings.take_over)),
        status,
        limiter.clone(),
        TableSource { replica, resets, trust: trust.clone(), disk },
        context.clone(),
    );
    if let Some(saved) = saved {
        follower.begin_with(saved).await?;
    }
    context.admin.started();

    let problem_events = problems::follow(context.admin.clone(), CancellationToken::new(), {
        let (bus, edge) = (bus.clone(), edge.clone());
        move |problem, began| {
            let (bus, edge) = (bus.clone(), edge.clone());
            async move {
                let process = format!("edge {}", edge.name);
                bus.publish_problem(edge.name.as_str(), &edge.region, &process, problem, began).await;
            }
        }
    });
    let suspicions = suspicion::publish_suspicions(bus.clone(), edge.clone(), limiter, reported);
    let forgetting = forget_unused(metrics.clone());
    let keys = follow_keys(bus.clone(), edge.region.clone(), trust, !pinned.is_empty());
    let loads = load::report(bus, edge, metrics);
    let certificates = renew_certificates(tls);
    let locking = hold_lock(lock, &settings.proxy.state_dir, &edge_name);
    tokio::select! {
        ended = follower.follow(updates) => ended?,
        never = async { tokio::join!(suspicions, loads, certificates, forgetting, keys, locking, problem_events) } => match never.1 {},
    };
    drop(observer_config);
    if let Some(writer) = writer {
        tokio::task::spawn_blocking(|| writer.join()).await?;
    }
    Ok(())
}

/// Holds the lock of the state directory, once the process that is taken over has released it.
async fn hold_lock(lock: Option<StateLock>, directory: &Path, edge: &EdgeName) -> std::convert::Infallible {
    let _lock = match lock {
        Some(lock) => lock,
        None => StateLock::acquire_later(directory, edge).await,
    };
    std::future::pending().await
}

async fn forget_unused(metrics: Arc<Metrics>) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(FORGET_EVERY);
    loop {
        metrics.forget_unused(ticks.tick().await);
    }
}

async fn renew_certificates(tls: Arc<UpstreamTlsConfigs>) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(CERTIFICATES_EVERY);
    loop {
        ticks.tick().await;
        let tls = tls.clone();
        if tokio::task::spawn_blocking(move || tls.renew()).await.is_err() {
            tracing::error!("reading certificates failed");
        }
    }
}
