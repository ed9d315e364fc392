//! Wakers of tasks that wait for a rare event.

use std::{cell::RefCell, task::Waker};

use slab::Slab;

/// A set of wakers of one thread, with cheap insertion and removal.
#[derive(Default)]
pub struct WakeSet(RefCell<Slab<Waker>>);

impl WakeSet {
    /// Adds a waker and returns its key.
    pub fn insert(&self, waker: Waker) -> usize {
        self.0.borrow_mut().insert(waker)
    }

    /// Removes a waker. `key` must come from [`WakeSet::insert`] and be used once.
    pub fn remove(&self, key: usize) {
        self.0.borrow_mut().remove(key);
    }

    /// Wakes all tasks; their wakers stay in the set.
    pub fn wake_all(&self) {
        self.0.borrow().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }
}
