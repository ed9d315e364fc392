//! Counters of the data path: one set per worker, written by that worker alone, read by the admin listener.

mod durations;
mod refusals;
mod requests;
mod retained;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tidegate_model::{ClusterName, ServiceName};
use tokio::time::Instant;

pub use durations::{DURATION_BOUNDS, DurationSums, Durations, Timing};
pub use refusals::{RefusalCounters, RefusalReason};
pub use requests::{OTHER_METHOD, RequestDurations, RequestKind, method_name};

use retained::RetainedCounters;

/// A number that one thread changes and others read: no locked instruction, no shared cache line between writers.
#[derive(Debug, Default)]
pub struct LocalCounter(AtomicU64);

impl LocalCounter {
    /// Adds to it. Only its own worker may.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed) + count, Relaxed);
    }

    /// Adds to it, if there is something to add. Only its own worker may.
    pub fn add_if_any(&self, count: u32) {
        if count > 0 {
            self.add(u64::from(count));
        }
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

/// What a worker counts for one service.
#[derive(Debug, Default)]
pub struct ServiceCounters {
    /// Requests that were routed to it.
    pub requests: LocalCounter,
    /// Answers by the first digit of their status, 1xx at 0.
    pub statuses: [LocalCounter; 5],
    /// Further attempts after a failed one.
    pub retries: LocalCounter,
    /// Second attempts beside one without a response.
    pub hedges: LocalCounter,
    /// Hedges that answered first.
    pub hedges_won: LocalCounter,
    /// Retries that the budget did not allow.
    pub budget_exhausted: LocalCounter,
    /// Requests refused because nobody has room.
    pub shed: LocalCounter,
    /// Requests for which no endpoint could be picked.
    pub no_endpoint: LocalCounter,
    /// Requests answered by a lower tier than the first.
    pub failed_over: LocalCounter,
    /// Answers that an endpoint broke off, or of which nothing came for too long.
    pub broken_off: LocalCounter,
    /// Requests whose client went away.
    pub client_gone: LocalCounter,
    /// From the request's head to the end of its response.
    pub duration: Durations,
}

impl ServiceCounters {
    /// Counts a response.
    pub fn count_status(&self, status: u16) {
        if let Some(counter) = self.statuses.get(usize::from(status / 100).wrapping_sub(1)) {
            counter.add(1);
        }
    }
}

/// What a worker counts for one cluster.
#[derive(Debug, Default)]
pub struct ClusterCounters {
    /// Attempts.
    pub attempts: LocalCounter,
    /// Attempts that failed.
    pub failures: LocalCounter,
    /// Connections made.
    pub connects: LocalCounter,
    /// Endpoints ejected.
    pub ejections: LocalCounter,
    /// Connections closed because of bytes that belong to no request.
    pub excess: LocalCounter,
    /// Picks that passed it over because it had as many requests as it may.
    pub at_limit: LocalCounter,
    /// What is under way, looked at once a second.
    pub gauges: ClusterGauges,
    /// From the beginning of an attempt to the head of its response.
    pub first_byte: Durations,
}

/// How a worker's connections to one cluster stand, looked at once a second so that no request pays for it.
#[derive(Debug, Default)]
pub struct ClusterGauges {
    /// Requests under way, but for those that wait for their clients.
    pub active: LocalCounter,
    /// Requests that wait for their clients.
    pub waiting: LocalCounter,
    /// HTTP/1.1 connections that wait for work.
    pub idle: LocalCounter,
    /// HTTP/2 connections.
    pub http2: LocalCounter,
}

/// What a worker counts for one service where one cluster in one tier serves it.
#[derive(Debug, Default)]
pub struct ServingCounters {
    /// From a request's head to the end of its response, by the first digit of the status, 1xx at 0.
    pub duration: [Durations; 5],
}

impl ServingCounters {
    /// Counts a request that was answered from there.
    pub fn count(&self, status: u16, timing: Timing) {
        if let Some(durations) = self.duration.get(usize::from(status / 100).wrapping_sub(1)) {
            durations.record(timing);
        }
    }
}

/// Where a service is served: the cluster and its tier, from 0.
pub type Serving = (ServiceName, ClusterName, usize);

/// A service, and what the route asks of a path, where it asks for one.
pub type Routed = (ServiceName, Option<String>);

/// A service's default action (0) or one of its routes, from 1.
pub type Asked = (ServiceName, usize);

/// What a worker counts for itself.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Connections accepted.
    pub accepted: LocalCounter,
    /// Connections open now.
    pub open: LocalCounter,
    /// Connections refused because a listener is full.
    pub over_limit: LocalCounter,
    /// Idle connections told to end near the limit on files.
    pub evicted_idle: LocalCounter,
    /// Connections of slow clients ended near the limit on files, where none was idle.
    pub evicted_slow: LocalCounter,
    /// Connections ended because most was held for them when memory ran short.
    pub evicted_memory: LocalCounter,
    /// How often a task of a client has waited for those of networks that used less of a busy worker's time.
    pub queued: LocalCounter,
    /// HTTP/2 connections ended because of too many control frames.
    pub flooded: LocalCounter,
    /// HTTP/2 streams refused because the heads of the connection's requests took too much memory.
    pub heads_over_budget: LocalCounter,
    /// Requests refused because they are malformed or ambiguous, by reason.
    pub refused: RefusalCounters,
    /// Header fields left out because of an underscore in their names.
    pub dropped_fields: LocalCounter,
    /// Requests for a host that has another certificate than the one of their connection.
    pub misdirected: LocalCounter,
    /// Requests whose host no service answers for.
    pub unrouted: LocalCounter,
    /// Clients that were too slow.
    pub too_slow: LocalCounter,
    /// Connections to endpoints that could not be made because this machine lacks files or ports.
    pub cannot_connect: LocalCounter,
    /// TLS handshakes that failed.
    pub tls_failures: LocalCounter,
    /// Upgraded connections.
    pub tunnels: LocalCounter,
    /// From the head to the end of the response of requests that are no service's.
    pub requests: RequestDurations,
}

/// The counters of all workers. A lock is taken when a table changes and when they are read, never for a request.
#[derive(Debug, Default)]
pub struct Metrics {
    workers: Mutex<Vec<Arc<WorkerCounters>>>,
    services: RetainedCounters<ServiceName, ServiceCounters>,
    clusters: RetainedCounters<ClusterName, ClusterCounters>,
    serving: RetainedCounters<Serving, ServingCounters>,
    requests: RetainedCounters<Routed, RequestDurations>,
    demand: RetainedCounters<Asked, LocalCounter>,
}

impl Metrics {
    /// The counters of a new worker.
    pub fn worker(&self) -> Arc<WorkerCounters> {
        let counters = Arc::new(WorkerCounters::default());
        self.workers().push(counters.clone());
        counters
    }

    /// The counters of `worker` for a service: the same ones for the same name, so that nothing is lost when the table
    /// changes.
    pub fn service(&self, worker: usize, name: &ServiceName) -> Arc<ServiceCounters> {
        self.services.of_worker(worker, name.clone())
    }

    /// The counters of `worker` for a cluster.
    pub fn cluster(&self, worker: usize, name: &ClusterName) -> Arc<ClusterCounters> {
        self.clusters.of_worker(worker, name.clone())
    }

    /// The counters of `worker` for a service in a cluster.
    pub fn serving(&self, worker: usize, place: Serving) -> Arc<ServingCounters> {
        self.serving.of_worker(worker, place)
    }

    /// The durations of `worker` for a service's route.
    pub fn requests(&self, worker: usize, routed: Routed) -> Arc<RequestDurations> {
        self.requests.of_worker(worker, routed)
    }

    /// The requests that `worker` is asked for by one action.
    pub fn demand(&self, worker: usize, asked: Asked) -> Arc<LocalCounter> {
        self.demand.of_worker(worker, asked)
    }

    /// Lets go of what no table has named for a while, so that a fleet that changes leaves no series behind. To be called
    /// every few seconds.
    pub fn forget_unused(&self, now: Instant) {
        self.services.forget_unused(now, |_, _| false);
        self.clusters.forget_unused(now, |_, _| false);
        // A failover moves a cluster to another tier for a while: its counts go on afterwards.
        self.serving.forget_unused(now, |one, other| (&one.0, &one.1) == (&other.0, &other.1));
        self.requests.forget_unused(now, |_, _| false);
        self.demand.forget_unused(now, |_, _| false);
    }

    /// Requests over all workers, by service and action.
    pub fn sum_demand(&self) -> Vec<(Asked, u64)> {
        self.demand.read(|sets| sets.iter().map(|count| count.get()).sum())
    }

    /// Durations over all workers by where requests were served, by status class.
    pub fn sum_serving(&self) -> Vec<(Serving, [DurationSums; 5])> {
        self.serving.read(|sets| {
            std::array::from_fn(|class| DurationSums::of(sets.iter().map(|set| &set.duration[class])))
        })
    }

    /// Durations of services over all workers.
    pub fn sum_service_durations(&self) -> Vec<(ServiceName, DurationSums)> {
        self.services.read(|sets| DurationSums::of(sets.iter().map(|set| &set.duration)))
    }

    /// Durations of requests over all workers, by service and route, and by kind.
    pub fn sum_requests(&self) -> Vec<(Routed, BTreeMap<RequestKind, DurationSums>)> {
        self.requests.read(|sets| RequestDurations::sum(sets.iter().map(AsRef::as_ref)))
    }

    /// The same of requests that are no service's.
    pub fn sum_unrouted(&self) -> BTreeMap<RequestKind, DurationSums> {
        RequestDurations::sum(self.workers().iter().map(|worker| &worker.requests))
    }

    /// Times to the first byte of clusters over all workers.
    pub fn sum_cluster_durations(&self) -> Vec<(ClusterName, DurationSums)> {
        self.clusters.read(|sets| DurationSums::of(sets.iter().map(|set| &set.first_byte)))
    }

    /// A sum over all workers.
    pub fn sum_workers(&self, read: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.workers().iter().map(|counters| read(counters)).sum()
    }

    /// Sums over all workers, for each service.
    pub fn sum_services(&self, read: impl Fn(&ServiceCounters) -> u64) -> Vec<(ServiceName, u64)> {
        self.services.read(|sets| sets.iter().map(|set| read(set)).sum())
    }

    /// Sums over all workers, for each cluster.
    pub fn sum_clusters(&self, read: impl Fn(&ClusterCounters) -> u64) -> Vec<(ClusterName, u64)> {
        self.clusters.read(|sets| sets.iter().map(|set| read(set)).sum())
    }

    fn workers(&self) -> MutexGuard<'_, Vec<Arc<WorkerCounters>>> {
        // Nothing panics while it holds the lock, and counters have no invariant to break.
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
