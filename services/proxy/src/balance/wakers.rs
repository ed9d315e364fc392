//! Tasks to wake when something rare happens.

use std::{cell::RefCell, task::Waker};

/// A set of wakers with cheap entry and leave; for one thread.
#[derive(Default)]
pub struct WakeSet {
    slots: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl WakeSet {
    /// Adds a waker and returns its key.
    pub fn insert(&self, waker: Waker) -> usize {
        let mut slots = self.slots.borrow_mut();
        if let Some(key) = slots.free.pop() {
            slots.wakers[key] = Some(waker);
            return key;
        }
        slots.wakers.push(Some(waker));
        slots.wakers.len() - 1
    }

    /// Takes a waker out. `key` must come from [`WakeSet::insert`] and be used once.
    pub fn remove(&self, key: usize) {
        let mut slots = self.slots.borrow_mut();
        slots.wakers[key] = None;
        slots.free.push(key);
    }

    /// Wakes all; they stay in the set.
    pub fn wake_all(&self) {
        for waker in self.slots.borrow().wakers.iter().flatten() {
            waker.wake_by_ref();
        }
    }
}
