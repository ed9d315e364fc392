//! Whose tables an edge believes: the keys that the fleet names, as they change.

use std::{convert::Infallible, time::Duration};

use rand::RngExt as _;
use tidegate_bus::{Bus, seal::Trust};
use tidegate_model::RegionName;

use super::region::signing_keys;

/// The time between two reads of the fleet while verification fails; each read that changes nothing doubles it.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// The time between two reads while verification succeeds, as it does with a stolen key that was taken out of the fleet.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// All edges of a region fail to verify the same message at the same time; their reads are spread over this.
const SPREAD: Duration = Duration::from_millis(500);

/// Reads the region's keys from the fleet whenever something that was received is not believed, or is signed although no
/// keys are known, and every few minutes: so neither new keys nor those that were taken out need a restart.
/// With `is_pinned` the keys are those of the settings, and stay.
pub async fn follow_keys(bus: Bus, region: RegionName, trust: Trust, is_pinned: bool) -> Infallible {
    if is_pinned {
        return std::future::pending().await;
    }
    let mut pause = MIN_INTERVAL;
    let mut said = String::new();
    // An edge that was told its region has not read the fleet yet. Until it has, it believes what nobody signed, so it
    // asks on without ever longer pauses.
    let mut has_read = false;
    loop {
        let known = trust.keys();
        let is_first_read = !has_read && known.is_empty();
        if !is_first_read {
            let doubted = tokio::time::timeout(spread(REFRESH_INTERVAL), trust.doubted()).await.is_ok();
            if doubted {
                tokio::time::sleep(SPREAD.mul_f64(rand::rng().random())).await;
            } else {
                pause = MIN_INTERVAL;
            }
        }
        match signing_keys(&bus, &region).await {
            Ok(keys) if keys != known => {
                has_read = true;
                tracing::info!(?keys, "the fleet names other signing keys for the region");
                trust.set(&keys);
                pause = MIN_INTERVAL;
            }
            Ok(_) => {
                has_read = true;
                pause = (pause * 2).min(MAX_INTERVAL);
            }
            Err(why) => {
                if why != said {
                    tracing::warn!("the region's signing keys cannot be read: {why}");
                    said = why;
                }
                if !is_first_read {
                    pause = (pause * 2).min(MAX_INTERVAL);
                }
            }
        }
        tokio::time::sleep(spread(pause)).await;
    }
}

/// About this long: all edges of a region see the same.
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
        let keys: Vec<String> = keys.iter().map(|key| format!("\"{key}\"")).collect();
        let fleet = format!(
            "regions: {{ {REGION}: {{ signing_keys: [{}] }} }}\n\
             clusters: {{ a: {{ region: here, endpoints: [\"127.0.0.1:1\"] }} }}\n\
             edges: {{ edge-1: {{ region: here, listeners: [web] }} }}\n\
             listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http }} }}\n\
             services: {{ s: {{ hosts: [\"s.test\"], clusters: [a] }} }}\n",
            keys.join(", ")
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
}
