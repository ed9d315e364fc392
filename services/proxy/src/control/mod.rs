//! The control side of a proxy: follows the bus, tells the workers, reports. On a thread of its own, never on the data
//! path.

mod behind;
mod disk;
mod expose;
mod listeners;
mod load;
mod page;
mod region;
mod routes;
mod suspicion;
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
use tidegate_service::{Context, bus::claim_name};
use tokio::sync::mpsc;

use crate::{
    context::EdgeIdentity,
    metrics::Metrics,
    observe::{Observing, access},
    settings::ProxySettings,
    tls::UpstreamTlsConfigs,
};
use disk::Disk;
use page::Shown;
use routes::{Follower, Source};
use suspicion::Suspicions;
use trust::follow_keys;
use workers::Workers;

/// How often certificates towards clusters are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(1);
/// How often counters are looked through for those that nobody counts in any more.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Suspicions that wait to be told; more are of endpoints that are being told of already.
const SUSPECTS: usize = 1024;

/// Runs a proxy until it is asked to stop: serves by the routes of its region's table, drains, stops.
///
/// # Errors
/// When the edge has no name, or the bus, a thread or the state directory cannot be used.
pub async fn run(settings: ProxySettings, bus: Bus, context: Context) -> anyhow::Result<()> {
    let name = settings.edge.name.clone().context("the edge has no name (edge.name)")?;
    let disk = Disk::new(&settings.proxy.state_dir, &name)?;
    let saved = disk.load();
    let last = saved.as_ref().map(|saved| &saved.region);
    let learned = match settings.edge.region.clone() {
        Some(region) => region::Learned { region, signing_keys: None },
        None => match region::learn(&bus, &name, last, &context.shutdown).await {
            Some(learned) => learned,
            None => return Ok(()),
        },
    };
    let edge = Arc::new(EdgeIdentity { name, region: learned.region });
    let mut saved = saved.filter(|saved| saved.region == edge.region);
    // Without keys from disk it may be that the fleet names some by now: nothing is believed until it was read.
    let trust = Trust::undecided();
    let kept = saved.as_ref().map(|saved| &saved.signing_keys).filter(|keys| !keys.is_empty());
    let known = learned.signing_keys.as_ref().or(kept);
    let pinned = &settings.edge.signing_keys;
    if let Some(keys) = Some(pinned).filter(|keys| !keys.is_empty()).or(known) {
        if !keys.is_empty() {
            let is_pinned = !pinned.is_empty();
            tracing::info!(?keys, is_pinned, "only tables that one of these keys signed are believed");
        }
        trust.set(keys);
    }
    if let Some(saved) = &mut saved {
        saved.doubt_epoch(&trust);
    }
    let metrics = Arc::new(Metrics::default());
    let tls = Arc::new(UpstreamTlsConfigs::default());
    let (suspects, suspected) = mpsc::channel(SUSPECTS);
    let access = access::start(&settings.access_log).with_context(|| {
        let path = settings.access_log.path.as_deref().unwrap_or(Path::new("standard output"));
        format!("the access log cannot be opened: {} (access_log.path)", path.display())
    })?;
    let (access, writer) = access.unzip();
    let sampling = settings.proxy.sampling();
    let observing = Observing { tracing: context.spans.clone().map(|spans| (spans, sampling)), access };
    let workers = Workers::start(&edge, &metrics, &tls, &suspects, &observing, &settings.proxy)?;

    let shown = Shown::new(edge.clone());
    expose::expose(&context, &bus, &metrics, &shown, observing.access.as_ref());
    let store = SnapshotStore { bucket: bus.bucket(ROUTES_BUCKET), key: subjects::routes_key(&edge.region) };
    let seed = saved.as_ref().map(disk::Saved::seed);
    let options = ReplicaOptions { store: Some(store), seed, trust: trust.clone(), epochs: Epochs::Counted };
    let (replica, updates) = Replica::start(bus.clone(), &subjects::routes(&edge.region), options).await?;
    let limiter = Suspicions::default();
    let subject = subjects::claim("edge", &edge.region, edge.name.as_str());
    let what = format!("edge {} of {}", edge.name, edge.region);
    claim_name(&context.registry, &bus, subject, what, &context.shutdown).await?;
    let resets = bus.subscribe(&subjects::reset(&edge.region, &edge.name)).await?;
    let mut follower = Follower::new(
        edge.clone(),
        bus.clone(),
        workers,
        shown,
        limiter.clone(),
        Source { replica, resets, trust: trust.clone(), disk },
        context.clone(),
    );
    if let Some(saved) = saved {
        follower.begin_with(saved).await;
    }
    context.admin.started();

    let suspicions = suspicion::tell(bus.clone(), edge.clone(), limiter, suspected);
    let forgetting = forget_unused(metrics.clone());
    let keys = follow_keys(bus.clone(), edge.region.clone(), trust, !pinned.is_empty());
    let loads = load::report(bus, edge, metrics);
    let certificates = renew_certificates(tls);
    tokio::select! {
        ended = follower.follow(updates) => ended?,
        never = async { tokio::join!(suspicions, loads, certificates, forgetting, keys) } => match never.1 {},
    };
    drop(observing);
    if let Some(writer) = writer {
        tokio::task::spawn_blocking(|| writer.join()).await?;
    }
    Ok(())
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
