//! Tasks to wake when something rare happens.

use std::{cell::RefCell, task::Waker};

use slab::Slab;

/// A set of wakers with cheap entry and leave; for one thread.
#[derive(Default)]
pub struct WakeSet(RefCell<Slab<Waker>>);

impl WakeSet {
    /// Adds a waker and returns its key.
    pub fn insert(&self, waker: Waker) -> usize {
        self.0.borrow_mut().insert(waker)
    }

    /// Takes a waker out. `key` must come from [`WakeSet::insert`] and be used once.
    pub fn remove(&self, key: usize) {
        self.0.borrow_mut().remove(key);
    }

    /// Wakes all; they stay in the set.
    pub fn wake_all(&self) {
        self.0.borrow().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }
}
