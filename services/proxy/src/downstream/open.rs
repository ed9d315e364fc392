//! An open connection of a client.

use std::{cell::Cell, rc::Rc};

use tokio::time::Instant;

use crate::{
    clients::{ClientConnection, Network},
    context::WorkerContext,
};

/// A connection counted on its listener and among all that are open, until dropped.
pub struct Open {
    worker: Rc<WorkerContext>,
    connection: ClientConnection,
    on_listener: Rc<Cell<u32>>,
}

impl Open {
    /// Counts a connection of a client in `network`.
    pub fn new(worker: Rc<WorkerContext>, network: Network, on_listener: Rc<Cell<u32>>) -> Open {
        worker.counters.open.add(1);
        on_listener.set(on_listener.get() + 1);
        Open { connection: worker.clients.open(network, Instant::now()), worker, on_listener }
    }
}

impl std::ops::Deref for Open {
    type Target = ClientConnection;

    fn deref(&self) -> &ClientConnection {
        &self.connection
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.on_listener.set(self.on_listener.get() - 1);
        self.worker.counters.open.set(self.worker.counters.open.get() - 1);
    }
}
