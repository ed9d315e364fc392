//! Counts connections of one kind, with a limit.

use std::{cell::Cell, rc::Rc};

/// How many there are and may be; of one worker.
#[derive(Debug)]
pub struct ConnectionCount {
    open: Rc<Cell<usize>>,
    limit: usize,
}

/// One that is counted until dropped.
#[derive(Debug)]
pub struct Counted(Rc<Cell<usize>>);

impl ConnectionCount {
    /// None, and at most `limit`.
    pub fn new(limit: usize) -> ConnectionCount {
        ConnectionCount { open: Rc::default(), limit }
    }

    /// How many more there may be.
    pub fn free(&self) -> usize {
        self.limit - self.open.get()
    }

    /// Whether half of them are free.
    pub fn is_half_free(&self) -> bool {
        self.free() * 2 > self.limit
    }

    /// Counts another one; nothing where there are as many as there may be.
    pub fn count(&self) -> Option<Counted> {
        (self.open.get() < self.limit).then(|| {
            self.open.set(self.open.get() + 1);
            Counted(self.open.clone())
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
