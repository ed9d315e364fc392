//! Counters of the data path: one set per worker, written only by that worker, read by the admin listener.

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

/// A number that one thread writes and others read, without locked instructions or cache lines shared by writers.
#[derive(Debug, Default)]
pub struct LocalCounter(AtomicU64);

impl LocalCounter {
    /// Adds `count`. Only for its own worker.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed) + count, Relaxed);
    }

    /// Adds `count` unless it is 0. Only for its own worker.
    pub fn add_if_any(&self, count: u32) {
        if count > 0 {
            self.add(u64::from(count));
        }
    }

    /// Sets the value. Only for its own worker.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A worker's counters of one service.
#[derive(Debug, Default)]
pub struct ServiceCounters {
    /// Requests routed to it.
    pub requests: LocalCounter,
    /// Responses by the first digit of their status, 1xx at 0.
    pub statuses: [LocalCounter; 5],
    /// Further attempts after a failed one.
    pub retries: LocalCounter,
    /// Second attempts in parallel to one without a response.
    pub hedges: LocalCounter,
    /// Hedges that responded first.
    pub hedges_won: LocalCounter,
    /// Retries that the budget did not allow.
    pub budget_exhausted: LocalCounter,
    /// Requests shed because all clusters are over capacity.
    pub shed: LocalCounter,
    /// Requests for which no endpoint could be picked.
    pub no_endpoint: LocalCounter,
    /// Requests served by a lower tier than the first.
    pub failed_over: LocalCounter,
    /// Responses that an endpoint broke off, or that reached the idle timeout.
    pub broken_off: LocalCounter,
    /// Requests whose client disconnected.
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

/// A worker's counters of one cluster.
#[derive(Debug, Default)]
pub struct ClusterCounters {
    /// Attempts.
    pub attempts: LocalCounter,
    /// Attempts that failed.
    pub failures: LocalCounter,
    /// Connections opened.
    pub connects: LocalCounter,
    /// Endpoints ejected.
    pub ejections: LocalCounter,
    /// Connections closed because of bytes that belong to no request.
    pub excess: LocalCounter,
    /// Picks that skipped it because of its `max_requests`.
    pub at_limit: LocalCounter,
    /// Gauges, updated once a second.
    pub gauges: ClusterGauges,
    /// From the beginning of an attempt to the head of its response.
    pub first_byte: Durations,
}

/// A worker's gauges of one cluster, updated once a second so that they cost nothing per request.
#[derive(Debug, Default)]
pub struct ClusterGauges {
    /// Requests in flight, without those that wait for their clients.
    pub active: LocalCounter,
    /// Requests that wait for their clients.
    pub waiting: LocalCounter,
    /// Idle HTTP/1.1 connections.
    pub idle: LocalCounter,
    /// HTTP/2 connections.
    pub http2: LocalCounter,
}

/// A worker's durations of one service served by one cluster in one tier.
#[derive(Debug, Default)]
pub struct ServingCounters {
    /// From a request's head to the end of its response, by the first digit of the status, 1xx at 0.
    pub duration: [Durations; 5],
}

impl ServingCounters {
    /// Records a request that was served there.
    pub fn count(&self, status: u16, timing: Timing) {
        if let Some(durations) = self.duration.get(usize::from(status / 100).wrapping_sub(1)) {
            durations.record(timing);
        }
    }
}

/// A service, the cluster that serves it, and the index of the cluster's tier in the route table, from 0.
pub type ServingKey = (ServiceName, ClusterName, usize);

/// A service, and the path pattern of the route, if it has one.
pub type ServiceRoute = (ServiceName, Option<String>);

/// A service, and the index of an action: the default (0) or one of the routes, from 1.
pub type ActionKey = (ServiceName, usize);

/// A worker's own counters.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Connections accepted.
    pub accepted: LocalCounter,
    /// Connections open now.
    pub open: LocalCounter,
    /// Connections refused because a listener is full.
    pub over_limit: LocalCounter,
    /// Idle connections evicted near the limit on file descriptors.
    pub evicted_idle: LocalCounter,
    /// Connections of slow clients evicted near the limit on file descriptors, when none was idle.
    pub evicted_slow: LocalCounter,
    /// Connections with the largest buffers, evicted when memory ran short.
    pub evicted_memory: LocalCounter,
    /// How often a client task was queued behind those of networks that had used less of a busy worker's time.
    pub queued: LocalCounter,
    /// HTTP/2 connections closed because of too many control frames.
    pub flooded: LocalCounter,
    /// HTTP/2 streams refused because the heads of the connection's requests took too much memory.
    pub heads_over_budget: LocalCounter,
    /// Requests refused because they are malformed or ambiguous, by reason.
    pub refused: RefusalCounters,
    /// Header fields dropped because of an underscore in their names.
    pub dropped_fields: LocalCounter,
    /// Requests for a host that the connection's certificate is not valid for.
    pub misdirected: LocalCounter,
    /// Requests whose host belongs to no service.
    pub unrouted: LocalCounter,
    /// Clients that were too slow.
    pub too_slow: LocalCounter,
    /// Upstream connections that failed because this machine lacks file descriptors or ports.
    pub cannot_connect: LocalCounter,
    /// TLS handshakes that failed.
    pub tls_failures: LocalCounter,
    /// Upgraded connections.
    pub tunnels: LocalCounter,
    /// Durations of requests that belong to no service.
    pub requests: RequestDurations,
}

/// The counters of all workers. Locks are only taken for table updates and reads, never for a request.
#[derive(Debug, Default)]
pub struct Metrics {
    workers: Mutex<Vec<Arc<WorkerCounters>>>,
    services: RetainedCounters<ServiceName, ServiceCounters>,
    clusters: RetainedCounters<ClusterName, ClusterCounters>,
    serving: RetainedCounters<ServingKey, ServingCounters>,
    requests: RetainedCounters<ServiceRoute, RequestDurations>,
    demand: RetainedCounters<ActionKey, LocalCounter>,
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
    pub fn serving(&self, worker: usize, index: ServingKey) -> Arc<ServingCounters> {
        self.serving.of_worker(worker, index)
    }

    /// The durations of `worker` for a service's route.
    pub fn requests(&self, worker: usize, routed: ServiceRoute) -> Arc<RequestDurations> {
        self.requests.of_worker(worker, routed)
    }

    /// The request counter of `worker` for an action.
    pub fn demand(&self, worker: usize, action: ActionKey) -> Arc<LocalCounter> {
        self.demand.of_worker(worker, action)
    }

    /// Drops counters that no table has used for a while, so that removed services leave no series behind. Called every
    /// few seconds.
    pub fn forget_unused(&self, now: Instant) {
        self.services.forget_unused(now, |_, _| false);
        self.clusters.forget_unused(now, |_, _| false);
        // A failover moves a cluster to another tier for a while; afterwards its counts continue.
        self.serving.forget_unused(now, |one, other| (&one.0, &one.1) == (&other.0, &other.1));
        self.requests.forget_unused(now, |_, _| false);
        self.demand.forget_unused(now, |_, _| false);
    }

    /// Requests over all workers, by service and action.
    pub fn sum_demand(&self) -> Vec<(ActionKey, u64)> {
        self.demand.read(|sets| sets.iter().map(|count| count.get()).sum())
    }

    /// Durations over all workers by service, cluster and tier, and by status class.
    pub fn sum_serving(&self) -> Vec<(ServingKey, [DurationSums; 5])> {
        self.serving.read(|sets| {
            std::array::from_fn(|class| DurationSums::of(sets.iter().map(|set| &set.duration[class])))
        })
    }

    /// Durations of services over all workers.
    pub fn sum_service_durations(&self) -> Vec<(ServiceName, DurationSums)> {
        self.services.read(|sets| DurationSums::of(sets.iter().map(|set| &set.duration)))
    }

    /// Durations of requests over all workers, by service and route, and by kind.
    pub fn sum_requests(&self) -> Vec<(ServiceRoute, BTreeMap<RequestKind, DurationSums>)> {
        self.requests.read(|sets| RequestDurations::sum(sets.iter().map(AsRef::as_ref)))
    }

    /// Durations over all workers of requests that belong to no service, by kind.
    pub fn sum_unrouted(&self) -> BTreeMap<RequestKind, DurationSums> {
        RequestDurations::sum(self.workers().iter().map(|worker| &worker.requests))
    }

    /// Times to the first byte of clusters over all workers.
    pub fn sum_cluster_durations(&self) -> Vec<(ClusterName, DurationSums)> {
        self.clusters.read(|sets| DurationSums::of(sets.iter().map(|set| &set.first_byte)))
    }

    /// The sum of a value over all workers.
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
