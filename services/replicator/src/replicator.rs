//! Runs the tasks that maintain a region's data: buckets, history, restoring lost data, replication between regions.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tidegate_bus::{
    Bus, BusError, FailureLog,
    bucket::Bucket,
    fleet::FleetFollower,
    history::HistoryKeeper,
    overrides::OverrideFollower,
    replicate::Replicator,
    subjects::{self, BUCKETS},
};
use tidegate_model::{ReplicatorName, fleet::Fleet};
use tidegate_service::{Context, bus::claim_name};
use tokio::time::MissedTickBehavior;

use crate::settings::ReplicatorSettings;

/// The time between two checks of the buckets, the fleet and the overrides without a change notification.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Runs a replicator until shutdown.
///
/// # Errors
/// When the region is missing or the bus is closed. A bus that is away is no error.
pub async fn run(settings: ReplicatorSettings, bus: Bus, context: Context) -> anyhow::Result<()> {
    let region = settings.region.context("the region is missing (region)")?;
    context.admin.check("bus", tidegate_service::bus::check(&bus));
    let made = Arc::new(AtomicBool::new(false));
    let shown = made.clone();
    context.admin.check("buckets", move || match shown.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err("the buckets were not created yet".to_owned()),
    });
    let name = settings.name.or_else(name_of_host).context("the name is missing (name)")?;
    let claim = subjects::claim("replicator", &region, name.as_str());
    claim_name(&context, &bus, claim, format!("replicator {name} of {region}")).await?;
    let history = HistoryKeeper::start(&bus);
    let fleet = FleetFollower::start(&bus, POLL_INTERVAL, true).await?;
    let overrides = OverrideFollower::start(&bus, POLL_INTERVAL, true).await?;
    let replicator = Replicator::start(&bus, &region, is_fleet).await?;
    tracing::info!(%region, "maintaining the region's buckets and replicating");
    context.admin.started();
    tokio::select! {
        () = context.shutdown.cancelled() => {}
        never = keep_buckets(&bus, &made) => match never {},
    }
    replicator.stop().await;
    overrides.stop().await;
    fleet.stop().await;
    history.stop().await;
    Ok(())
}

/// The host's name, with hyphens in place of what the name of a process cannot hold.
fn name_of_host() -> Option<ReplicatorName> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = host.trim().chars().map(plain).collect();
    name.trim_matches('-').parse().ok()
}

/// Creates the buckets where they are missing, also after the bus lost its data: no other service may.
async fn keep_buckets(bus: &Bus, made: &AtomicBool) -> Infallible {
    let buckets = BUCKETS.map(|name| bus.bucket(name));
    let mut state = bus.watch_state();
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = FailureLog::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = state.changed() => if changed.is_err() { std::future::pending().await },
        }
        if !state.borrow_and_update().connected() {
            continue;
        }
        let ensured = ensure(&buckets).await;
        made.fetch_or(ensured.is_ok(), Ordering::Relaxed);
        failures.record(ensured, "a bucket cannot be created");
    }
}

async fn ensure(buckets: &[Bucket]) -> Result<(), BusError> {
    for bucket in buckets {
        bucket.ensure().await?;
    }
    Ok(())
}

/// Whether this version can parse a fleet file.
fn is_fleet(text: &str) -> bool {
    Fleet::parse(text, "fleet").is_ok()
}
