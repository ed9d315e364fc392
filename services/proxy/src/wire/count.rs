//! A counter of connections with a limit.

use std::{cell::Cell, rc::Rc};

/// The number of connections of a kind in one worker, and its limit.
#[derive(Debug)]
pub struct ConnectionCount {
    open: Rc<Cell<usize>>,
    limit: usize,
}

/// Counts a connection until dropped.
#[derive(Debug)]
pub struct CountGuard(Rc<Cell<usize>>);

impl ConnectionCount {
    /// A counter of at most `limit` connections.
    pub fn new(limit: usize) -> ConnectionCount {
        ConnectionCount { open: Rc::default(), limit }
    }

    /// How many more connections are allowed.
    pub fn free(&self) -> usize {
        self.limit - self.open.get()
    }

    /// Whether at least half of the limit is free.
    pub fn is_half_free(&self) -> bool {
        self.free() * 2 > self.limit
    }

    /// Counts another connection; nothing if the limit is reached.
    pub fn try_acquire(&self) -> Option<CountGuard> {
        (self.open.get() < self.limit).then(|| {
            self.open.set(self.open.get() + 1);
            CountGuard(self.open.clone())
        })
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
