//! The identity of an edge.

use tidegate_model::{EdgeName, RegionName};

/// The identity of an edge.
#[derive(Debug)]
pub struct EdgeIdentity {
    /// The edge's name.
    pub name: EdgeName,
    /// The edge's region.
    pub region: RegionName,
}
