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
    // An edge that was told its region has not read the fleet yet.
    let mut is_due = true;
    loop {
        if !std::mem::take(&mut is_due) {
            trust.doubted().await;
        }
        let known = trust.keys();
        match signing_keys(&bus, &region).await {
            Ok(keys) if keys != known => {
                tracing::info!(?keys, "the fleet names other signing keys for the region");
                trust.set(&keys);
                pause = LOOK_EVERY;
            }
            Ok(_) => pause = (pause * 2).min(LOOK_SELDOM),
            Err(why) => {
                tracing::warn!("the region's signing keys cannot be read: {why}");
                pause = (pause * 2).min(LOOK_SELDOM);
            }
        }
        // Spread, since all edges of a region see the same.
        let spread = rand::rng().random_range(0.5..1.5);
        tokio::time::sleep(pause.mul_f64(spread)).await;
    }
}
