//! The keys that an edge trusts, as they change in the fleet.

use std::{convert::Infallible, time::Duration};

use rand::RngExt as _;
use tidegate_bus::{Bus, limit::ProblemLog, seal::Trust};
use tidegate_model::RegionName;
use tokio::time::Instant;

use super::region::signing_keys;

/// The interval between reads of the fleet while verification fails; each read without a change doubles it.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// The interval between reads while verification succeeds: it also succeeds with a stolen key that was removed from the
/// fleet.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// The jitter of reads: all edges of a region fail to verify the same message at the same time.
const SPREAD: Duration = Duration::from_millis(500);

/// How long the fleet may be unreadable on a connected bus before the edge accepts unsigned tables.
const DECIDE_WITHIN: Duration = Duration::from_secs(5);
/// The interval between reads until then.
const UNDECIDED_INTERVAL: Duration = Duration::from_millis(200);

/// Reads the region's keys from the fleet whenever a message is refused, or is signed although no keys are known, and
/// every few minutes. So added and removed keys take effect without a restart.
///
/// Until an edge has read whether there are keys, it accepts no table: there is none before a fleet was applied. If the
/// bus is connected but the fleet cannot be read, it accepts unsigned tables after [`DECIDE_WITHIN`].
///
/// With `is_pinned` the keys of the settings are used and never change.
pub async fn follow_keys(bus: Bus, region: RegionName, trust: Trust, is_pinned: bool) -> Infallible {
    if is_pinned {
        return std::future::pending().await;
    }
    let mut pause = MIN_INTERVAL;
    let mut log = ProblemLog::default();
    // An edge with a configured region has not read the fleet yet, so it retries without backoff.
    let mut has_read = false;
    let mut undecided_since = None;
    // A bus connection that is still being opened is awaited without an interval.
    bus.ready(DECIDE_WITHIN).await;
    loop {
        let known = trust.keys();
        let is_first_read = !has_read && known.is_empty();
        if !is_first_read {
            let recheck =
                tokio::time::timeout(spread(REFRESH_INTERVAL), trust.recheck_needed()).await.is_ok();
            if recheck {
                tokio::time::sleep(SPREAD.mul_f64(rand::rng().random())).await;
            } else {
                pause = MIN_INTERVAL;
            }
        }
        match signing_keys(&bus, &region).await {
            Ok(Some(keys)) if keys != known => {
                (has_read, pause) = (true, MIN_INTERVAL);
                log = ProblemLog::default();
                tracing::info!(?keys, "the fleet names other signing keys for the region");
                trust.set(&keys);
            }
            Ok(Some(_)) => {
                (has_read, pause) = (true, (pause * 2).min(MAX_INTERVAL));
                log = ProblemLog::default();
                trust.decide();
            }
            Ok(None) => {
                if log.record(Some("no fleet was applied yet"), Instant::now()).is_some() {
                    tracing::warn!("no fleet was applied yet, so the region's signing keys are not known");
                }
                undecided_since = None;
            }
            Err(why) => {
                if log.record(Some(&why), Instant::now()).is_some() {
                    tracing::warn!("the region's signing keys cannot be read: {why}");
                }
                if !is_first_read {
                    pause = (pause * 2).min(MAX_INTERVAL);
                }
                let since = bus.state().connected().then(|| undecided_since.unwrap_or_else(Instant::now));
                undecided_since = since;
                if trust.is_undecided() && since.is_some_and(|since| since.elapsed() >= DECIDE_WITHIN) {
                    tracing::warn!("unsigned tables are accepted until the fleet can be read");
                    trust.decide();
                }
            }
        }
        let interval = if trust.is_undecided() { UNDECIDED_INTERVAL } else { pause };
        tokio::time::sleep(spread(interval)).await;
    }
}

/// Adds jitter to a pause, since all edges of a region see the same.
fn spread(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use tidegate_bus::{fleet::FleetStore, seal::Signer};
    use tidegate_model::SigningPublicKey;

    use super::*;

    const REGION: &str = "here";

    /// Follows the keys of a fleet while `then` happens to it.
    async fn following(bus: &Bus, trust: &Trust, then: impl Future<Output = ()>) {
        tokio::select! {
            never = follow_keys(bus.clone(), REGION.parse().unwrap(), trust.clone(), false) => match never {},
            () = then => {}
        }
    }

    async fn apply(bus: &Bus, keys: &[SigningPublicKey]) {
        let named: Vec<String> = keys.iter().map(|key| format!("\"{key}\"")).collect();
        let keys =
            if keys.is_empty() { String::new() } else { format!("signing_keys: [{}]", named.join(", ")) };
        let fleet = format!(
            "regions: {{ {REGION}: {{ {keys} }} }}\n\
             clusters: {{ a: {{ region: here, endpoints: [\"127.0.0.1:1\"] }} }}\n\
             edges: {{ edge-1: {{ region: here, listeners: [web] }} }}\n\
             listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http }} }}\n\
             services: {{ s: {{ hosts: [\"s.test\"], clusters: [a] }} }}\n"
        );
        FleetStore::new(bus).put(&fleet, "a test").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_known_soon_after_the_first_fleet_however_late_it_comes() {
        let (bus, trust, key) = (Bus::in_process(), Trust::new(), Signer::ephemeral().public_key());
        following(&bus, &trust, async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            apply(&bus, &[key]).await;
            tokio::time::sleep(2 * MIN_INTERVAL).await;
        })
        .await;
        assert_eq!(trust.keys(), [key]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_was_taken_out_is_not_believed_for_long_although_nobody_doubts_it() {
        let (old, new) = (Signer::ephemeral().public_key(), Signer::ephemeral().public_key());
        let (bus, trust) = (Bus::in_process(), Trust::new());
        trust.set(&[old, new]);
        apply(&bus, &[old, new]).await;
        following(&bus, &trust, async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            apply(&bus, &[new]).await;
            tokio::time::sleep(2 * REFRESH_INTERVAL + MAX_INTERVAL).await;
        })
        .await;
        assert_eq!(trust.keys(), [new]);
    }

    #[tokio::test(start_paused = true)]
    async fn until_it_has_read_the_fleet_an_edge_believes_nothing() {
        let (bus, trust) = (Bus::in_process(), Trust::undecided());
        following(&bus, &trust, async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            assert!(trust.is_undecided(), "no fleet, no table");
            apply(&bus, &[]).await;
            tokio::time::sleep(2 * MIN_INTERVAL).await;
        })
        .await;
        assert!(!trust.is_undecided() && trust.keys().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_fleet_cannot_be_read_an_edge_waits_for_seconds_only() {
        let (bus, trust) = (Bus::in_process(), Trust::undecided());
        FleetStore::new(&bus).put("unreadable", "a test").await.unwrap();
        following(&bus, &trust, async {
            tokio::time::sleep(DECIDE_WITHIN / 2).await;
            assert!(trust.is_undecided());
            tokio::time::sleep(DECIDE_WITHIN).await;
        })
        .await;
        assert!(!trust.is_undecided());
    }
}
