//! Locks that are held for a moment only.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nothing that holds these locks can panic half-way through a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
