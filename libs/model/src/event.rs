//! What happens to the fleet, as its history keeps it.

use serde::{Deserialize, Serialize};

use crate::{
    ClusterName, EdgeName, Epoch, HolderName, RegionName, Revision, ServiceName, Timestamp,
    routes::RouteCause,
};

/// One entry of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The region in which it happened.
    pub region: RegionName,
    /// When, by the clock of who tells it.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// A route-computer began to publish the region's table.
    Leads {
        /// The route-computer.
        holder: HolderName,
        /// From which epoch on.
        epoch: Epoch,
    },
    /// The region decides by a new fleet file.
    Fleet {
        /// Its revision.
        revision: u64,
        /// Who applied it.
        author: String,
    },
    /// The region's table changed in a way that people want to know of.
    Decided(Decided),
    /// An edge serves by such a change.
    Applied {
        /// The edge.
        edge: EdgeName,
        /// The table's epoch.
        epoch: Epoch,
        /// The table's revision.
        revision: Revision,
        /// When the change was decided.
        decided_at: Timestamp,
        /// When the edge received it.
        received_at: Timestamp,
    },
}

/// A change of a region's table, with why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The table's epoch.
    pub epoch: Epoch,
    /// The table's revision.
    pub revision: Revision,
    /// What brought it about, and when.
    pub cause: RouteCause,
    /// Where requests go otherwise than before, at most [`Decided::MOST_MOVES`].
    pub moves: Vec<Move>,
    /// How many more there are.
    pub more_moves: u32,
}

impl Decided {
    /// The most moves that one event tells.
    pub const MOST_MOVES: usize = 50;
}

/// Where the requests of one service, or one of its routes, go now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The service.
    pub service: ServiceName,
    /// The place of the route in the fleet file, from 1; 0 for the service's default.
    pub route: u32,
    /// Where they went.
    pub before: Standing,
    /// Where they go.
    pub after: Standing,
    /// Why, as the table says it.
    pub reason: String,
}

/// Where requests go first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// The clusters of the first tier with their relative shares; empty where there is none.
    pub shares: Vec<(ClusterName, u16)>,
    /// Requests that are refused for lack of room, in thousandths.
    pub shed_permille: u16,
    /// Whether everything seems down, so that all is tried.
    pub fail_open: bool,
}
