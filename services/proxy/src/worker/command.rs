//! What the control side tells a worker.

use std::{net::TcpListener, sync::Arc};

use tidegate_model::{
    ListenerName,
    fleet::ListenerLimits,
    routes::{RouteEntry, RouteKey},
};
use tidegate_tls::ServerTls;
use tokio::sync::oneshot;

use crate::table::RouteChange;

/// A command to a worker. They are carried out in order, each before anything else runs.
pub enum Command {
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
    /// Begin to drain: answer health questions with 503, end connections after their current request.
    Drain,
    /// Take the draining back.
    Undrain,
    /// Accept no more connections, and end when all there are have ended. Routes are still followed.
    Stop,
}

/// Routes, shared by all workers.
#[derive(Clone)]
pub enum Routes {
    /// All of them.
    All(Arc<[(RouteKey, Arc<RouteEntry>)]>),
    /// What changed.
    Changes(Arc<[RouteChange]>),
}

/// A socket to accept connections on.
pub struct Listen {
    /// The listener's name.
    pub name: ListenerName,
    /// The socket: this worker's own, in non-blocking mode.
    pub socket: TcpListener,
    /// TLS, where the listener has it.
    pub tls: Option<Arc<ServerTls>>,
    /// What clients may ask of it; `max_connections` is this worker's part.
    pub limits: ListenerLimits,
}
