//! What the control side tells a worker.

use std::sync::Arc;

use tidegate_model::{
    ListenerName,
    routes::{RouteEntry, RouteKey},
};
use tokio::sync::oneshot;

use crate::{downstream::Listen, lifecycle::Phase, table::RouteChange};

/// A command to a worker. They are carried out in order, each before anything else runs.
pub enum WorkerCommand {
    /// New routes.
    Routes {
        /// The routes.
        routes: Routes,
        /// Told when they are in use.
        done: oneshot::Sender<()>,
    },
    /// Accept connections.
    Listen(Listen),
    /// Accept no more connections on this listener; those that wait are accepted first.
    Unlisten(ListenerName),
    /// The edge's phase. A worker that is stopping ends when its connections have ended; until then it follows routes.
    Phase(Phase),
}

/// Routes, shared by all workers.
#[derive(Clone)]
pub enum Routes {
    /// All of them.
    All(Arc<[(RouteKey, Arc<RouteEntry>)]>),
    /// What changed.
    Changes(Arc<[RouteChange]>),
}
