//! The commands of the control side to a worker.

use std::sync::Arc;

use tidegate_model::{
    ListenerName,
    routes::{RouteEntry, RouteKey},
};
use tokio::sync::oneshot;

use crate::{downstream::ListenSocket, lifecycle::Phase, table::RouteChange};

/// A command to a worker. Commands are executed in order, each before anything else runs.
pub enum WorkerCommand {
    /// New routes.
    Routes {
        /// The routes.
        routes: RouteUpdate,
        /// Notified when the routes are in use.
        done: oneshot::Sender<()>,
    },
    /// Accept connections.
    Listen(ListenSocket),
    /// Stop accepting on this listener; connections in the backlog are accepted first.
    Unlisten(ListenerName),
    /// The edge's phase. A stopping worker ends when its connections have ended; until then it follows route updates.
    Phase(Phase),
}

/// An update of routes, shared by all workers.
#[derive(Clone)]
pub enum RouteUpdate {
    /// The whole table.
    All(Arc<[(RouteKey, Arc<RouteEntry>)]>),
    /// The changed entries.
    Changes(Arc<[RouteChange]>),
}
