//! Whose tables an edge believes: the keys that the fleet names, as they change.

use std::{convert::Infallible, time::Duration};

use rand::RngExt as _;
use tidegate_bus::{Bus, seal::Trust};
use tidegate_model::RegionName;

use super::region::signing_keys;

/// The time between two looks at the fleet while something is not believed; each look that helped nothing doubles it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SELDOM: Duration = Duration::from_secs(60);

/// Reads the region's keys from the fleet whenever something that was received is not believed, or is signed although no
/// keys are known: so new keys need no restart, and nobody is asked while nothing changes.
/// With `is_pinned` the keys are those of the settings, and stay.
pub async fn follow_keys(bus: Bus, region: RegionName, trust: Trust, is_pinned: bool) -> Infallible {
    if is_pinned {
        return std::future::pending().await;
    }
    let mut pause = LOOK_EVERY;
    let mut said = String::new();
    // An edge that was told its region has not read the fleet yet. Until it has, it believes what nobody signed, so it
    // asks on without ever longer pauses.
    let mut has_read = false;
    loop {
        let known = trust.keys();
        if has_read || !known.is_empty() {
            trust.doubted().await;
        }
        match signing_keys(&bus, &region).await {
            Ok(keys) if keys != known => {
                has_read = true;
                tracing::info!(?keys, "the fleet names other signing keys for the region");
                trust.set(&keys);
                pause = LOOK_EVERY;
            }
            Ok(_) => {
                has_read = true;
                pause = (pause * 2).min(LOOK_SELDOM);
            }
            Err(why) => {
                if why != said {
                    tracing::warn!("the region's signing keys cannot be read: {why}");
                    said = why;
                }
                if has_read || !known.is_empty() {
                    pause = (pause * 2).min(LOOK_SELDOM);
                }
            }
        }
        // Spread, since all edges of a region see the same.
        let spread = rand::rng().random_range(0.5..1.5);
        tokio::time::sleep(pause.mul_f64(spread)).await;
    }
}

#[cfg(test)]
mod tests {
    use tidegate_bus::{fleet::FleetStore, seal::Signer};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keys_are_known_soon_after_the_first_fleet_however_late_it_comes() {
        let (bus, trust, key) = (Bus::in_process(), Trust::new(), Signer::ephemeral().public_key());
        let fleet = format!(
            "regions: {{ here: {{ signing_keys: [\"{key}\"] }} }}\n\
             clusters: {{ a: {{ region: here, endpoints: [\"127.0.0.1:1\"] }} }}\n\
             edges: {{ edge-1: {{ region: here, listeners: [web] }} }}\n\
             listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http }} }}\n\
             services: {{ s: {{ hosts: [\"s.test\"], clusters: [a] }} }}\n"
        );
        let late = async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            FleetStore::new(&bus).put(&fleet, "a test").await.unwrap();
            tokio::time::sleep(2 * LOOK_EVERY).await;
        };
        tokio::select! {
            never = follow_keys(bus.clone(), "here".parse().unwrap(), trust.clone(), false) => match never {},
            () = late => {}
        }
        assert_eq!(trust.keys(), [key]);
    }
}
