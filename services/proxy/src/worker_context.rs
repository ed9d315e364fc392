//! The state that the requests of a worker share.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rand::{SeedableRng as _, rngs::SmallRng};
use tidegate_bus::limit::LogLimit;
use tidegate_model::{ClusterName, Timestamp, fleet::Address, observation::Failure};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    clients::{Clients, Eviction, FairSchedule, Network, UpstreamQuota},
    edge_identity::EdgeIdentity,
    lifecycle::Phase,
    limits::WorkerLimits,
    metrics::{Metrics, WorkerCounters},
    observe::{Observer, ObserverConfig},
    table::{Table, WorkerIndex},
    tls::UpstreamTlsConfigs,
    upstream::{Connector, EndpointState, InFlightRequest, is_connect_failure},
    wire::{ConnectionCount, CountGuard, IdleLimits, Timer},
};

/// The interval between log messages about a shortage of file descriptors.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long an accepted connection waits for room; how long if its network already has its share; and how often idle
/// and slow clients are searched for meanwhile.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(1);
const WAIT_OVER_SHARE: Duration = Duration::from_millis(200);
const LOOK_FOR_SLOW: Duration = Duration::from_millis(5);
/// How long a request waits for an upstream connection when all of them are in use.
pub const WAIT_FOR_UPSTREAM: Duration = Duration::from_millis(500);
/// The maximum number of timers kept for future streams.
const MOST_TIMERS: usize = 1024;

/// A failed request, to be reported to the probers.
#[derive(Debug, Clone)]
pub struct EndpointFailure {
    /// The endpoint's cluster.
    pub cluster: ClusterName,
    /// The endpoint.
    pub endpoint: Address,
    /// How the request failed.
    pub failure: Failure,
    /// When the request failed.
    pub at: Timestamp,
}

/// The state that all tasks of a worker share.
pub struct WorkerContext {
    /// The edge that the worker belongs to.
    pub edge: Arc<EdgeIdentity>,
    /// The routes.
    pub table: RefCell<Table>,
    /// Randomness for picks and ids; not for secrets.
    pub random: RefCell<SmallRng>,
    /// The worker's counters.
    pub counters: Arc<WorkerCounters>,
    /// Reports finished requests to traces and the access log.
    pub observer: Observer,
    /// The idle timeouts of streams and tunnels.
    pub idle_limits: IdleLimits,
    phase: Cell<Phase>,
    /// Timers of ended streams, reused by new ones.
    timers: RefCell<Vec<Timer>>,
    /// The client connections.
    pub clients: Rc<Clients>,
    /// How many accepted connections wait for room.
    pub waiting: Cell<usize>,
    /// The tasks of acceptors, client connections and their streams.
    pub tasks: TaskTracker,
    schedule: Rc<FairSchedule>,
    /// Opens upstream connections.
    pub connector: Connector,
    /// Counts upstream connections against their limit.
    upstream_count: ConnectionCount,
    failures: mpsc::Sender<EndpointFailure>,
    /// How many upstream connections are unused, and when they were counted.
    unused_upstreams: Cell<Option<(Instant, usize)>>,
    /// When a slow client was last evicted to free an upstream connection.
    evicted_at: Cell<Option<Instant>>,
    /// Limits log messages about too many client connections.
    crowding_log: RefCell<LogLimit>,
}

/// The parts from which a worker's context is built.
pub struct WorkerParts {
    /// The worker's index.
    pub index: WorkerIndex,
    /// The edge that the worker belongs to.
    pub edge: Arc<EdgeIdentity>,
    /// The registry of counters.
    pub metrics: Arc<Metrics>,
    /// The TLS configurations for upstream connections.
    pub tls: Arc<UpstreamTlsConfigs>,
    /// Reports failures of endpoints. Never waits: when the channel is full, a report is dropped, and the next failure
    /// repeats it.
    pub failures: mpsc::Sender<EndpointFailure>,
    /// How finished requests are reported.
    pub observer_config: ObserverConfig,
    /// The idle timeouts of streams and tunnels.
    pub idle_limits: IdleLimits,
    /// The worker's share of the process's file descriptors and memory.
    pub limits: WorkerLimits,
}

impl WorkerContext {
    /// A context without routes or connections.
    pub fn new(parts: WorkerParts) -> Rc<WorkerContext> {
        let counters = parts.metrics.worker();
        Rc::new(WorkerContext {
            table: RefCell::new(Table::new(
                parts.index,
                parts.edge.name.clone(),
                parts.metrics.clone(),
                parts.tls,
            )),
            random: RefCell::new(SmallRng::seed_from_u64(rand::random())),
            observer: parts.observer_config.build(parts.edge.clone(), counters.clone()),
            edge: parts.edge,
            connector: Connector::new(counters.clone()),
            counters,
            idle_limits: parts.idle_limits,
            phase: Cell::new(Phase::Serving),
            timers: RefCell::default(),
            clients: Clients::new(parts.limits.client_connections, parts.limits.client_memory),
            waiting: Cell::new(0),
            tasks: TaskTracker::new(),
            schedule: FairSchedule::new(),
            upstream_count: ConnectionCount::new(parts.limits.upstream_connections),
            failures: parts.failures,
            unused_upstreams: Cell::new(None),
            evicted_at: Cell::new(None),
            crowding_log: RefCell::new(LogLimit::new(LOG_INTERVAL)),
        })
    }

    /// Runs queued client tasks, for ever.
    pub async fn run_schedule(self: Rc<Self>) {
        self.schedule.clone().run().await;
    }

    /// The edge's phase.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Changes the phase, and wakes connections when a drain begins.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        if self.is_draining() {
            self.clients.wake_all();
        }
    }

    /// Whether the edge is draining.
    pub fn is_draining(&self) -> bool {
        self.draining_since().is_some()
    }

    /// When draining began, if the edge is draining.
    pub fn draining_since(&self) -> Option<Instant> {
        self.phase.get().draining_since()
    }

    /// Records that a request failed at an endpoint, and reports it to the probers. Where the request itself may be the
    /// cause, `count_failure` counts the failure and returns whether it ejects the endpoint.
    pub fn record_endpoint_failure(
        &self,
        endpoint: &EndpointState,
        failure: &Failure,
        count_failure: impl FnOnce(Instant) -> bool,
    ) {
        let now = Instant::now();
        let ejected = if is_connect_failure(failure) {
            endpoint.record_connect_failure(now)
        } else {
            count_failure(now)
        };
        self.table.borrow().count_failure(&endpoint.cluster);
        if ejected {
            self.record_ejection(endpoint, &failure.to_string());
        }
        self.report_failure(endpoint, failure);
    }

    /// Records the ejection of an endpoint.
    pub fn record_ejection(&self, endpoint: &EndpointState, why: &str) {
        self.table.borrow().count_ejection(&endpoint.cluster);
        tracing::warn!(cluster = %endpoint.cluster, endpoint = %endpoint.address, why, "endpoint ejected");
    }

    /// Evicts client connections when little headroom is left for a new one from the network `newcomer`.
    pub fn make_room(&self, newcomer: Network) {
        let now = Instant::now();
        let Some((ended, why)) = self.clients.make_room(newcomer, now) else { return };
        let counter = match why {
            Eviction::Slow => &self.counters.evicted_slow,
            Eviction::Idle | Eviction::Memory => &self.counters.evicted_idle,
        };
        counter.add(ended as u64);
        if self.crowding_log.borrow_mut().admit(now) {
            tracing::warn!(
                open = self.counters.open.get(),
                limit = self.clients.limit(),
                "client connections are near the limit on file descriptors, or those of one network near their share: closing the longest idle or slow ones"
            );
        }
    }

    /// Waits for room for another client connection, since evicted connections take a moment to end. Returns whether
    /// there is room.
    pub async fn wait_for_room(&self, newcomer: Network) -> bool {
        let wait = if self.clients.is_over_share(newcomer) { WAIT_OVER_SHARE } else { WAIT_FOR_ROOM };
        let deadline = Instant::now() + wait;
        while !self.clients.has_room(newcomer) {
            if Instant::now() >= deadline {
                return false;
            }
            _ = tokio::time::timeout(LOOK_FOR_SLOW, self.clients.wait_for_end()).await;
            self.make_room(newcomer);
        }
        true
    }

    /// Reports a failure of an endpoint to the probers.
    pub fn report_failure(&self, endpoint: &EndpointState, failure: &Failure) {
        let report = EndpointFailure {
            cluster: endpoint.cluster.clone(),
            endpoint: endpoint.address.clone(),
            failure: failure.clone(),
            at: tidegate_bus::clock::now(),
        };
        // When the channel is full, the endpoint has been reported already.
        _ = self.failures.try_send(report);
    }

    /// Claims a new upstream connection for a request, if its client's quota allows one. When few are left, idle
    /// connections are closed, slow clients are evicted, and the request waits for a moment. Nothing if that does not
    /// help.
    pub async fn claim_upstream(&self, in_flight: &InFlightRequest) -> Option<CountGuard> {
        let client = in_flight.client();
        let deadline = Instant::now() + WAIT_FOR_UPSTREAM;
        loop {
            let now = Instant::now();
            if let Some(guard) = self.try_claim_upstream(client) {
                in_flight.take_connection();
                return Some(guard);
            }
            if now >= deadline {
                return None;
            }
            if self.upstream_count.free() == 0 && has_passed(self.evicted_at.get(), LOOK_FOR_SLOW, now) {
                self.evicted_at.set(Some(now));
                let table = self.table.borrow();
                table.clusters().any(|cluster| {
                    cluster.awaiting_clients.evict_slowest_with_connection(client.network(), now)
                });
            }
            tokio::time::sleep(LOOK_FOR_SLOW).await;
        }
    }

    /// Whether a client's request may use an idle or new upstream connection.
    pub fn may_take_upstream(&self, client: &UpstreamQuota) -> bool {
        let free = self.upstream_count.free();
        client.may_take(free) || client.may_take(free + self.unused_upstreams())
    }

    /// How many upstream connections are unused. The count is cached for a moment.
    fn unused_upstreams(&self) -> usize {
        let now = Instant::now();
        match self.unused_upstreams.get() {
            Some((at, unused)) if now < at + LOOK_FOR_SLOW => unused,
            Some(_) | None => {
                let table = self.table.borrow();
                let unused = table.endpoints().map(|endpoint| endpoint.pool.unused()).sum();
                self.unused_upstreams.set(Some((now, unused)));
                unused
            }
        }
    }

    /// Whether an upstream connection may be kept busy for a moment just to be reusable: not while few are left.
    pub fn may_discard(&self) -> bool {
        self.upstream_count.is_half_free() && !self.phase.get().is_stopping()
    }

    fn try_claim_upstream(&self, client: &UpstreamQuota) -> Option<CountGuard> {
        if !self.may_take_upstream(client) {
            return None;
        }
        let guard = self.upstream_count.try_acquire().or_else(|| {
            self.table.borrow().endpoints().any(|endpoint| endpoint.pool.close_oldest());
            self.upstream_count.try_acquire()
        });
        if guard.is_some() {
            // The cached count must not be handed to several requests.
            self.unused_upstreams.set(None);
        }
        guard
    }

    /// Whether so many tasks of clients in `network` are queued that no more are accepted.
    pub fn is_backed_up(&self, network: Network) -> bool {
        self.schedule.is_backed_up(network)
    }

    /// Spawns a task for a client in `network`.
    pub fn spawn(&self, network: Network, task: Pin<Box<impl Future<Output = ()> + 'static>>) {
        self.tasks.spawn_local(self.schedule.task(network, task));
    }

    /// Takes a timer for a stream.
    pub fn take_timer(&self) -> Timer {
        self.timers.borrow_mut().pop().unwrap_or_default()
    }

    /// Returns a timer for another stream.
    pub fn put_timer(&self, timer: Timer) {
        let mut timers = self.timers.borrow_mut();
        if timers.len() < MOST_TIMERS {
            timers.push(timer);
        }
    }

    /// Closes expired connections and publishes gauges. Called once a second.
    pub fn tick(&self) {
        let now = Instant::now();
        let table = self.table.borrow();
        table.endpoints().for_each(|endpoint| {
            endpoint.pool.sweep(now);
            endpoint.forget_unused_detectors();
        });
        table.set_gauges();
        table.services().flat_map(|service| service.budgets()).for_each(|budget| budget.tick());
        self.clients.tick();
        self.counters.queued.set(self.schedule.waited());
        self.observer.flush();
    }
}

/// Whether `interval` has passed since `last`.
fn has_passed(last: Option<Instant>, interval: Duration, now: Instant) -> bool {
    last.is_none_or(|at| now >= at + interval)
}
