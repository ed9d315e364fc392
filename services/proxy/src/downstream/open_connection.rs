//! An open client connection.

use std::{cell::Cell, rc::Rc};

use tokio::time::Instant;

use crate::{
    clients::{ClientConnection, Network},
    worker_context::WorkerContext,
};

/// A client connection, counted by its listener and its worker until dropped.
pub struct OpenConnection {
    worker: Rc<WorkerContext>,
    connection: ClientConnection,
    on_listener: Rc<Cell<u32>>,
}

impl OpenConnection {
    /// Counts a connection of a client in `network`.
    pub fn new(worker: Rc<WorkerContext>, network: Network, on_listener: Rc<Cell<u32>>) -> OpenConnection {
        worker.counters.open.add(1);
        on_listener.set(on_listener.get() + 1);
        OpenConnection { connection: worker.clients.open(network, Instant::now()), worker, on_listener }
    }
}

impl std::ops::Deref for OpenConnection {
    type Target = ClientConnection;

    fn deref(&self) -> &ClientConnection {
        &self.connection
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.on_listener.set(self.on_listener.get() - 1);
        self.worker.counters.open.set(self.worker.counters.open.get() - 1);
    }
}
