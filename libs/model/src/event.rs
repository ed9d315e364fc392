//! The events of the history.

use serde::{Deserialize, Serialize};

use crate::{
    ClusterName, EdgeName, Epoch, HolderName, RegionName, Revision, ServiceName, Timestamp,
    fleet::ChangeSummary, routes::RouteCause,
};

/// One entry of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The region in which it happened.
    pub region: RegionName,
    /// When it happened, by the clock of the process that reports it.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// A route-computer became the region's leader.
    Leads {
        /// The route-computer.
        holder: HolderName,
        /// The epoch of its term.
        epoch: Epoch,
    },
    /// The region's leader began to use a new fleet file.
    Fleet {
        /// Its revision.
        revision: u64,
        /// Who applied it.
        author: String,
        /// Why; may be empty.
        reason: String,
        /// What it changed in the file before.
        changes: ChangeSummary,
    },
    /// The region's table changed in a way that operators want to know.
    Decided(Decided),
    /// An edge applied such a change.
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
    /// The region's leader refused the fleet file on the bus; the one before stays in force.
    FleetRefused {
        /// Its revision.
        revision: u64,
        /// The first error in it.
        error: String,
    },
    /// A process has a problem: it is not ready, or something is not in force.
    ProblemBegan {
        /// The process, such as `edge edge-1`.
        process: String,
        /// The name of the check that found it.
        check: String,
        /// What is wrong.
        reason: String,
    },
    /// A problem of a process is over.
    ProblemEnded {
        /// The process.
        process: String,
        /// The name of the check that had found it.
        check: String,
        /// When it had begun.
        since: Timestamp,
    },
}

/// A change of a region's table, with its cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The table's epoch.
    pub epoch: Epoch,
    /// The table's revision.
    pub revision: Revision,
    /// What caused it, and when.
    pub cause: RouteCause,
    /// The moves of traffic, at most [`Decided::MOST_MOVES`].
    pub moves: Vec<Move>,
    /// The number of further moves.
    pub more_moves: u32,
}

impl Decided {
    /// The most moves in one event.
    pub const MOST_MOVES: usize = 50;
}

/// The move of the traffic of one service or route to other clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The service.
    pub service: ServiceName,
    /// The index of the route in the fleet file, from 1; 0 for the service's default.
    pub route: u32,
    /// Where its requests went.
    pub before: Destination,
    /// Where its requests go.
    pub after: Destination,
    /// The reason, from the table.
    pub reason: String,
}

/// The first tier that requests go to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Destination {
    /// The clusters of the tier with their relative shares; empty where there is none.
    pub shares: Vec<(ClusterName, u16)>,
    /// The share of requests that is shed for lack of capacity, in thousandths.
    pub shed_permille: u16,
    /// Whether all clusters seem down, so that all are tried.
    pub fail_open: bool,
}
