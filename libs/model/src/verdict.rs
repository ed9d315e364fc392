//! The verdict on a cluster.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The verdict of a region on a cluster, for one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// At least one endpoint serves.
    Up,
    /// Other regions reach it, this one does not.
    PathDown,
    /// No region with probers that report reaches it.
    Down,
    /// No prober has reported on it yet, or all that did are stale. It may serve where nothing better is known.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Up => "up",
            Verdict::PathDown => "path down",
            Verdict::Down => "down",
            Verdict::Unknown => "unknown",
        })
    }
}
