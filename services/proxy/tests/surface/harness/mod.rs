//! An edge that serves by a table made from a fleet file, scripted origins, and clients that say exactly what a test
//! wants said.

pub mod certificates;
pub mod edge;
pub mod fleet;
pub mod frames;
pub mod http2;
pub mod kernel;
pub mod origin;
pub mod peer;
pub mod random;

use std::time::{Duration, Instant};

/// How long anything that must happen may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
