//! Counters of the data path: one set per worker, written by that worker alone, read by the admin listener.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tidegate_model::{ClusterName, ServiceName};

/// A number that one thread changes and others read: no locked instruction, no shared cache line between writers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. Only its own worker may.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed) + count, Relaxed);
    }

    /// Sets it. Only its own worker may.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of duration histograms, in seconds: those that OpenTelemetry's HTTP conventions advise, and some below,
/// since many an answer from nearby takes less than the least of them.
pub const DURATION_BOUNDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Durations {
    /// One count per bound, not cumulative, and one for what is above all.
    pub buckets: [Counter; DURATION_BOUNDS.len() + 1],
    /// The sum, in microseconds.
    pub sum_us: Counter,
}

impl Durations {
    /// Adds a duration.
    pub fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket =
            DURATION_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(DURATION_BOUNDS.len());
        self.buckets[bucket].add(1);
        self.sum_us.add(duration.as_micros() as u64);
    }
}

/// Durations added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DurationSums {
    /// By bucket, not cumulative; the last is above all bounds.
    pub counts: [u64; DURATION_BOUNDS.len() + 1],
    /// In seconds.
    pub sum: f64,
}

impl DurationSums {
    fn of<'a>(all: impl Iterator<Item = &'a Durations>) -> DurationSums {
        let mut sums = DurationSums::default();
        for durations in all {
            for (sum, bucket) in sums.counts.iter_mut().zip(&durations.buckets) {
                *sum += bucket.get();
            }
            sums.sum += durations.sum_us.get() as f64 / 1e6;
        }
        sums
    }

    /// Those since `before`.
    pub fn since(&self, before: &DurationSums) -> DurationSums {
        let counts = std::array::from_fn(|at| self.counts[at].saturating_sub(before.counts[at]));
        DurationSums { counts, sum: (self.sum - before.sum).max(0.0) }
    }

    /// The time that 95 of 100 do not exceed, linear within its bucket; nothing when there are none.
    pub fn p95(&self) -> Option<Duration> {
        let total: u64 = self.counts.iter().sum();
        let rank = total as f64 * 0.95;
        let mut below = 0;
        for (at, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            if (below + count) as f64 >= rank {
                let low = if at == 0 { 0.0 } else { DURATION_BOUNDS[at - 1] };
                // What is above all bounds is at least the last.
                let high = DURATION_BOUNDS.get(at).copied().unwrap_or(low);
                let part = (rank - below as f64) / *count as f64;
                return Some(Duration::from_secs_f64(low + (high - low) * part));
            }
            below += count;
        }
        None
    }
}

/// What a worker counts for one service.
#[derive(Debug, Default)]
pub struct ServiceCounters {
    /// Requests that were routed to it.
    pub requests: Counter,
    /// Answers by the first digit of their status, 1xx at 0.
    pub statuses: [Counter; 5],
    /// Further tries after a failed one.
    pub retries: Counter,
    /// Second tries beside one without an answer.
    pub hedges: Counter,
    /// Hedges that answered first.
    pub hedges_won: Counter,
    /// Retries that the budget did not allow.
    pub budget_exhausted: Counter,
    /// Requests refused because nobody has room.
    pub shed: Counter,
    /// Requests for which no endpoint could be picked.
    pub no_endpoint: Counter,
    /// Requests answered by a lower tier than the first.
    pub failed_over: Counter,
    /// Answers that an endpoint broke off, or of which nothing came for too long.
    pub broken_off: Counter,
    /// Requests whose client went away.
    pub client_gone: Counter,
    /// From the request's head to the end of its answer.
    pub duration: Durations,
}

impl ServiceCounters {
    /// Counts an answer.
    pub fn count_status(&self, status: u16) {
        if let Some(counter) = self.statuses.get(usize::from(status / 100).wrapping_sub(1)) {
            counter.add(1);
        }
    }
}

/// What a worker counts for one cluster.
#[derive(Debug, Default)]
pub struct ClusterCounters {
    /// Tries.
    pub attempts: Counter,
    /// Tries that failed.
    pub failures: Counter,
    /// Connections made.
    pub connects: Counter,
    /// Endpoints ejected.
    pub ejections: Counter,
    /// Picks that passed it over because it had as many requests as it may.
    pub at_limit: Counter,
    /// What is under way, looked at once a second.
    pub gauges: ClusterGauges,
    /// From the beginning of a try to the head of its answer.
    pub first_byte: Durations,
}

/// How a worker's connections to one cluster stand, looked at once a second so that no request pays for it.
#[derive(Debug, Default)]
pub struct ClusterGauges {
    /// Requests under way.
    pub active: Counter,
    /// HTTP/1.1 connections that wait for work.
    pub idle: Counter,
    /// HTTP/2 connections.
    pub http2: Counter,
}

/// What a worker counts for one service where one cluster in one tier serves it.
#[derive(Debug, Default)]
pub struct ServingCounters {
    /// From a request's head to the end of its answer, by the first digit of the status, 1xx at 0.
    pub duration: [Durations; 5],
}

impl ServingCounters {
    /// Counts a request that was answered from there.
    pub fn count(&self, status: u16, duration: Duration) {
        if let Some(durations) = self.duration.get(usize::from(status / 100).wrapping_sub(1)) {
            durations.record(duration);
        }
    }
}

/// Where a service is served: the cluster and its tier, from 0.
pub type Serving = (ServiceName, ClusterName, usize);

/// What a worker counts for itself.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open now.
    pub open: Counter,
    /// Connections refused because a listener is full.
    pub over_limit: Counter,
    /// Requests refused because they are malformed or ambiguous.
    pub refused: Counter,
    /// Requests whose host no service answers for.
    pub unrouted: Counter,
    /// Clients that were too slow.
    pub too_slow: Counter,
    /// Connections to endpoints that could not be made because this machine lacks files or ports.
    pub cannot_connect: Counter,
    /// TLS handshakes that failed.
    pub tls_failures: Counter,
    /// Upgraded connections.
    pub tunnels: Counter,
}

/// Counters by name, for each the workers' own sets.
type PerWorker<N, C> = BTreeMap<N, Vec<(usize, Arc<C>)>>;

/// The counters of all workers. The lock is taken when a table changes and when they are read, never for a request.
#[derive(Debug, Default)]
pub struct Metrics {
    workers: Mutex<Vec<Arc<WorkerCounters>>>,
    services: Mutex<PerWorker<ServiceName, ServiceCounters>>,
    clusters: Mutex<PerWorker<ClusterName, ClusterCounters>>,
    serving: Mutex<PerWorker<Serving, ServingCounters>>,
}

impl Metrics {
    /// The counters of a new worker.
    pub fn worker(&self) -> Arc<WorkerCounters> {
        let counters = Arc::new(WorkerCounters::default());
        lock(&self.workers).push(counters.clone());
        counters
    }

    /// The counters of `worker` for a service: the same ones for the same name, so that nothing is lost when the table
    /// changes.
    pub fn service(&self, worker: usize, name: &ServiceName) -> Arc<ServiceCounters> {
        of_worker(lock(&self.services).entry(name.clone()).or_default(), worker)
    }

    /// The counters of `worker` for a cluster.
    pub fn cluster(&self, worker: usize, name: &ClusterName) -> Arc<ClusterCounters> {
        of_worker(lock(&self.clusters).entry(name.clone()).or_default(), worker)
    }

    /// The counters of `worker` for a service in a cluster.
    pub fn serving(&self, worker: usize, place: Serving) -> Arc<ServingCounters> {
        of_worker(lock(&self.serving).entry(place).or_default(), worker)
    }

    /// Durations over all workers: each place with its counts by bucket and the sum in seconds, by status class.
    pub fn sum_serving(&self) -> Vec<(Serving, [DurationSums; 5])> {
        let serving = lock(&self.serving);
        let sum = |sets: &[(usize, Arc<ServingCounters>)], class: usize| {
            DurationSums::of(sets.iter().map(|(_, set)| &set.duration[class]))
        };
        serving
            .iter()
            .map(|(place, sets)| (place.clone(), std::array::from_fn(|class| sum(sets, class))))
            .collect()
    }

    /// Durations of services over all workers.
    pub fn sum_service_durations(&self) -> Vec<(ServiceName, DurationSums)> {
        durations(&lock(&self.services), |set| &set.duration)
    }

    /// Times to the first byte of clusters over all workers.
    pub fn sum_cluster_durations(&self) -> Vec<(ClusterName, DurationSums)> {
        durations(&lock(&self.clusters), |set| &set.first_byte)
    }

    /// A sum over all workers.
    pub fn sum_workers(&self, read: impl Fn(&WorkerCounters) -> u64) -> u64 {
        lock(&self.workers).iter().map(|counters| read(counters)).sum()
    }

    /// Sums over all workers, for each service.
    pub fn sum_services(&self, read: impl Fn(&ServiceCounters) -> u64) -> Vec<(ServiceName, u64)> {
        sums(&lock(&self.services), read)
    }

    /// Sums over all workers, for each cluster.
    pub fn sum_clusters(&self, read: impl Fn(&ClusterCounters) -> u64) -> Vec<(ClusterName, u64)> {
        sums(&lock(&self.clusters), read)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while it holds the lock, and counters have no invariant to break.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn of_worker<T: Default>(known: &mut Vec<(usize, Arc<T>)>, worker: usize) -> Arc<T> {
    if let Some((_, counters)) = known.iter().find(|(owner, _)| *owner == worker) {
        return counters.clone();
    }
    let counters = Arc::new(T::default());
    known.push((worker, counters.clone()));
    counters
}

fn sums<N: Clone, T>(all: &PerWorker<N, T>, read: impl Fn(&T) -> u64) -> Vec<(N, u64)> {
    all.iter().map(|(name, sets)| (name.clone(), sets.iter().map(|(_, set)| read(set)).sum())).collect()
}

fn durations<N: Clone, T>(all: &PerWorker<N, T>, of: impl Fn(&T) -> &Durations) -> Vec<(N, DurationSums)> {
    let sum = |sets: &[(usize, Arc<T>)]| DurationSums::of(sets.iter().map(|(_, set)| of(set)));
    all.iter().map(|(name, sets)| (name.clone(), sum(sets))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_lies_within_its_bucket() {
        let durations = Durations::default();
        assert_eq!(DurationSums::of([&durations].into_iter()).p95(), None);
        for _ in 0..90 {
            durations.record(Duration::from_millis(2));
        }
        for _ in 0..10 {
            durations.record(Duration::from_millis(60));
        }
        let before = DurationSums::of([&durations].into_iter());
        assert_eq!(before.p95(), Some(Duration::from_micros(62_500)));
        for _ in 0..20 {
            durations.record(Duration::from_micros(100));
        }
        let since = DurationSums::of([&durations].into_iter()).since(&before);
        assert_eq!(since.p95(), Some(Duration::from_micros(475)));
    }
}
