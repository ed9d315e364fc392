//! Counters by name, retained as long as they are in use, and a while longer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long unused counters are retained: long enough for a scrape each minute to see the last values, and for a name
/// that returns soon to continue where it was. A name that returns later begins at 0, which readers of counters take
/// for a restart.
const RETENTION: Duration = Duration::from_secs(300);

/// The workers' own sets for each name. A set is in use while anybody else holds a clone of it.
#[derive(Debug)]
pub struct RetainedCounters<N, C>(Mutex<BTreeMap<N, Sets<C>>>);

#[derive(Debug)]
struct Sets<C> {
    workers: Vec<usize>,
    sets: Vec<Arc<C>>,
    unused_since: Option<Instant>,
}

impl<N, C> Default for RetainedCounters<N, C> {
    fn default() -> Self {
        RetainedCounters(Mutex::default())
    }
}

impl<N: Ord + Clone, C: Default> RetainedCounters<N, C> {
    /// The set of `worker` for a name, created if necessary.
    pub fn of_worker(&self, worker: usize, name: N) -> Arc<C> {
        let mut all = self.lock();
        let none = || Sets { workers: Vec::new(), sets: Vec::new(), unused_since: None };
        let Sets { workers, sets, .. } = all.entry(name).or_insert_with(none);
        if let Some(index) = workers.iter().position(|owner| *owner == worker) {
            return sets[index].clone();
        }
        workers.push(worker);
        sets.push(Arc::default());
        sets[sets.len() - 1].clone()
    }

    /// Calls `read` with the sets of each name.
    pub fn read<T>(&self, read: impl Fn(&[Arc<C>]) -> T) -> Vec<(N, T)> {
        self.lock().iter().map(|(name, Sets { sets, .. })| (name.clone(), read(sets))).collect()
    }

    /// Drops names that have been unused for long. Of adjacent names for which `one` holds, all stay while one is used.
    pub fn forget_unused(&self, now: Instant, one: impl Fn(&N, &N) -> bool) {
        let mut all = self.lock();
        let mut entries: Vec<(&N, &mut Sets<C>)> = all.iter_mut().collect();
        for entries in entries.chunk_by_mut(|(name, _), (next, _)| one(name, next)) {
            let is_used = entries.iter().any(|(_, sets)| sets.are_used());
            for (_, sets) in entries {
                sets.unused_since = if is_used { None } else { sets.unused_since.or(Some(now)) };
            }
        }
        all.retain(|_, sets| sets.unused_since.is_none_or(|since| now < since + RETENTION));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<N, Sets<C>>> {
        // Nothing panics while it holds the lock, and counters have no invariant to break.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Sets<C> {
    /// Whether a table or a running request holds a set. New clones are only made under the lock, or from another
    /// clone.
    fn are_used(&self) -> bool {
        self.sets.iter().any(|set| Arc::strong_count(set) > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::LocalCounter;

    type Counters = RetainedCounters<(&'static str, u8), LocalCounter>;

    fn names(kept: &Counters) -> Vec<(&'static str, u8)> {
        kept.read(|_| ()).into_iter().map(|(name, ())| name).collect()
    }

    #[test]
    fn counters_stay_while_somebody_counts_and_a_while_after() {
        let kept = Counters::default();
        let held = kept.of_worker(0, ("a", 0));
        kept.of_worker(1, ("a", 0)).add(1);
        kept.of_worker(0, ("b", 0)).add(1);
        let start = Instant::now();
        kept.forget_unused(start, |_, _| false);
        kept.forget_unused(start + RETENTION - Duration::from_secs(1), |_, _| false);
        assert_eq!(names(&kept), [("a", 0), ("b", 0)]);
        kept.forget_unused(start + RETENTION, |_, _| false);
        assert_eq!(names(&kept), [("a", 0)]);

        drop(held);
        kept.forget_unused(start + RETENTION, |_, _| false);
        // A name that returns in time continues where it was, and its retention restarts.
        assert_eq!(kept.of_worker(1, ("a", 0)).get(), 1);
        let back = kept.of_worker(0, ("a", 0));
        kept.forget_unused(start + RETENTION * 2, |_, _| false);
        assert_eq!(names(&kept), [("a", 0)]);
        drop(back);
        kept.forget_unused(start + RETENTION * 3, |_, _| false);
        kept.forget_unused(start + RETENTION * 4, |_, _| false);
        assert_eq!(names(&kept), []);
    }

    #[test]
    fn what_belongs_together_stays_together() {
        let kept = Counters::default();
        let _held = kept.of_worker(0, ("a", 1));
        for name in [("a", 0), ("a", 2), ("b", 0)] {
            kept.of_worker(0, name);
        }
        let start = Instant::now();
        for now in [start, start + RETENTION] {
            kept.forget_unused(now, |one, other| one.0 == other.0);
        }
        assert_eq!(names(&kept), [("a", 0), ("a", 1), ("a", 2)]);
    }
}
