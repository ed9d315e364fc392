//! What a route-computer concludes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a cluster, for one check, as one region sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// At least one endpoint serves.
    Up,
    /// Other regions reach it, this one does not.
    PathDown,
    /// No region that can be asked reaches it.
    Down,
    /// Nobody has said anything of it yet, or all who did are silent. Counts as serving where nothing better is known.
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
