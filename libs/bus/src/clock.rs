//! The time of day as a [`Timestamp`] that never runs backwards within a process.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use tidegate_model::Timestamp;

/// The present time. When the machine's clock is set back, it stands still until the clock has caught up.
pub fn now() -> Timestamp {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let micros = u64::try_from(micros).unwrap_or(u64::MAX);
    Timestamp(LAST.fetch_max(micros, Ordering::Relaxed).max(micros))
}

/// The present time in milliseconds since the Unix epoch: a start for numbers that must grow even when the bus has
/// lost what was counted before.
pub fn unix_millis() -> u64 {
    now().0 / 1000
}
