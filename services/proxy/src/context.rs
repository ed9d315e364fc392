//! What the requests of a worker share.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rand::{SeedableRng as _, rngs::SmallRng};
use tidegate_bus::limit::LogLimit;
use tidegate_model::{ClusterName, EdgeName, RegionName, Timestamp, fleet::Address, observation::Failure};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    clients::{ClientShare, Clients, Eviction, FairSchedule, Network},
    lifecycle::Phase,
    limits::WorkerLimits,
    metrics::{Metrics, WorkerCounters},
    observe::{Observer, Observing},
    table::{Table, WorkerPlace},
    tls::UpstreamTlsConfigs,
    upstream::{Connector, EndpointState, InFlight, is_of_endpoint},
    wire::{ConnectionCount, Counted, IdleLimits, Timer},
};

/// How often at most it is logged that this machine lacks files.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long a connection that was accepted waits for room, and where its network has its share; and how often idle and slow
/// clients are looked for meanwhile.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(1);
const WAIT_OVER_SHARE: Duration = Duration::from_millis(200);
const LOOK_FOR_SLOW: Duration = Duration::from_millis(5);
/// How long a request waits for a connection to an endpoint to become free, where this machine lacks them.
pub const WAIT_FOR_UPSTREAM: Duration = Duration::from_millis(500);
/// Timers kept for streams to come.
const MOST_TIMERS: usize = 1024;

/// Who an edge is.
#[derive(Debug)]
pub struct EdgeIdentity {
    /// Its name.
    pub name: EdgeName,
    /// Its region.
    pub region: RegionName,
}

/// A real request that failed at an endpoint.
#[derive(Debug, Clone)]
pub struct Suspect {
    /// The endpoint's cluster.
    pub cluster: ClusterName,
    /// The endpoint.
    pub endpoint: Address,
    /// What happened.
    pub failure: Failure,
    /// When.
    pub at: Timestamp,
}

/// What all tasks of a worker share.
pub struct WorkerContext {
    /// Whose worker it is.
    pub edge: Arc<EdgeIdentity>,
    /// The routes.
    pub table: RefCell<Table>,
    /// Randomness for picks and ids; not for secrets.
    pub random: RefCell<SmallRng>,
    /// What it counts.
    pub counters: Arc<WorkerCounters>,
    /// What it reports of requests.
    pub observer: Observer,
    /// How long streams and tunnels may be silent.
    pub idle_limits: IdleLimits,
    phase: Cell<Phase>,
    /// Timers of streams that have ended, for those that begin.
    timers: RefCell<Vec<Timer>>,
    /// Connections of clients.
    pub clients: Rc<Clients>,
    /// Connections that were accepted and wait for room.
    pub waiting: Cell<usize>,
    /// Connections of clients and their streams.
    pub tasks: TaskTracker,
    schedule: Rc<FairSchedule>,
    /// Makes connections to endpoints.
    pub connector: Connector,
    /// How many connections to endpoints there are, and may be.
    upstream_count: ConnectionCount,
    suspects: mpsc::Sender<Suspect>,
    /// How many of those no request used, and when they were counted.
    unused_upstreams: Cell<Option<(Instant, usize)>>,
    /// When a slow client was last given up for another's connection to an endpoint.
    gave_up_at: Cell<Option<Instant>>,
    /// Logs that connections of clients are too many.
    crowding_log: RefCell<LogLimit>,
}

/// What a worker is made of.
pub struct WorkerParts {
    /// Its place among the workers.
    pub place: WorkerPlace,
    /// Whose worker it is.
    pub edge: Arc<EdgeIdentity>,
    /// Where its counters are found by others.
    pub metrics: Arc<Metrics>,
    /// TLS towards clusters.
    pub tls: Arc<UpstreamTlsConfigs>,
    /// Where failures of endpoints are told. Told without waiting; what does not fit is repeated by the next failure.
    pub suspects: mpsc::Sender<Suspect>,
    /// What is reported of requests.
    pub observing: Observing,
    /// How long streams and tunnels may be silent.
    pub idle_limits: IdleLimits,
    /// Its part of the process's files and memory.
    pub limits: WorkerLimits,
}

impl WorkerContext {
    /// Without routes or connections. Must be called on the worker's own runtime.
    pub fn new(parts: WorkerParts) -> Rc<WorkerContext> {
        let counters = parts.metrics.worker();
        let worker = Rc::new(WorkerContext {
            table: RefCell::new(Table::new(
                parts.place,
                parts.edge.name.clone(),
                parts.metrics.clone(),
                parts.tls,
            )),
            edge: parts.edge,
            random: RefCell::new(SmallRng::seed_from_u64(rand::random())),
            observer: parts.observing.observer(counters.clone()),
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
            suspects: parts.suspects,
            unused_upstreams: Cell::new(None),
            gave_up_at: Cell::new(None),
            crowding_log: RefCell::new(LogLimit::new(LOG_INTERVAL)),
        });
        tokio::task::spawn_local(worker.schedule.clone().run());
        worker
    }

    /// The edge's phase.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Changes the phase; connections are told of a drain.
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

    /// Since when the edge is draining, if it is.
    pub fn draining_since(&self) -> Option<Instant> {
        self.phase.get().draining_since()
    }

    /// An endpoint failed a request: counted against it, and told to the probers. Where the failure may be the request's own,
    /// `judged` counts it and says whether the endpoint is ejected by it.
    pub fn record_endpoint_failure(
        &self,
        endpoint: &EndpointState,
        failure: &Failure,
        judged: impl FnOnce(Instant) -> bool,
    ) {
        let now = Instant::now();
        let ejected =
            if is_of_endpoint(failure) { endpoint.record_connect_failure(now) } else { judged(now) };
        self.table.borrow().count_failure(&endpoint.cluster);
        if ejected {
            self.record_ejection(endpoint, &failure.to_string());
        }
        self.suspect(endpoint, failure);
    }

    /// An endpoint was ejected.
    pub fn record_ejection(&self, endpoint: &EndpointState, why: &str) {
        self.table.borrow().count_ejection(&endpoint.cluster);
        tracing::warn!(cluster = %endpoint.cluster, endpoint = %endpoint.address, why, "endpoint ejected");
    }

    /// Ends connections of clients where little headroom is left for one of the network `newcomer`.
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
                "connections of clients are near the limit on files, or those of one network near their share: the longest idle ones, or slow ones, are closed"
            );
        }
    }

    /// Whether there is room for another connection of a client, now or soon: those that were told to end take a moment.
    pub async fn has_room_in_time(&self, newcomer: Network) -> bool {
        let wait = if self.clients.is_over_share(newcomer) { WAIT_OVER_SHARE } else { WAIT_FOR_ROOM };
        let deadline = Instant::now() + wait;
        while !self.clients.has_room(newcomer) {
            if Instant::now() >= deadline {
                return false;
            }
            _ = tokio::time::timeout(LOOK_FOR_SLOW, self.clients.one_ended()).await;
            self.make_room(newcomer);
        }
        true
    }

    /// Tells the probers to look at an endpoint.
    pub fn suspect(&self, endpoint: &EndpointState, failure: &Failure) {
        let suspect = Suspect {
            cluster: endpoint.cluster.clone(),
            endpoint: endpoint.address.clone(),
            failure: failure.clone(),
            at: tidegate_bus::clock::now(),
        };
        // When it is full, the endpoint is being told of already.
        _ = self.suspects.try_send(suspect);
    }

    /// Another connection to an endpoint for a request, where its client may have one. When few are left, idle ones
    /// make way, slow clients are given up, and the request waits for a moment. Nothing when that does not help.
    pub async fn claim_upstream(&self, flight: &InFlight) -> Option<Counted> {
        let client = flight.client();
        let deadline = Instant::now() + WAIT_FOR_UPSTREAM;
        loop {
            let now = Instant::now();
            if let Some(counted) = self.count_upstream(client) {
                flight.take_connection();
                return Some(counted);
            }
            if now >= deadline {
                return None;
            }
            if self.upstream_count.free() == 0 && has_passed(&self.gave_up_at, LOOK_FOR_SLOW, now) {
                let table = self.table.borrow();
                table
                    .clusters()
                    .any(|cluster| cluster.waiting.give_one_with_connection_up(client.network(), now));
            }
            tokio::time::sleep(LOOK_FOR_SLOW).await;
        }
    }

    /// Whether a client's request may have one of the connections to endpoints that no request has.
    pub fn may_take_upstream(&self, client: &ClientShare) -> bool {
        let free = self.upstream_count.free();
        client.may_take(free) || client.may_take(free + self.unused_upstreams())
    }

    /// How many connections to endpoints no request uses, as of a moment ago: many may ask at once.
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

    /// Whether a connection to an endpoint may be kept busy for a moment only to be kept: not while few are left.
    pub fn may_discard(&self) -> bool {
        self.upstream_count.is_half_free() && !self.phase.get().is_stopping()
    }

    fn count_upstream(&self, client: &ClientShare) -> Option<Counted> {
        if !self.may_take_upstream(client) {
            return None;
        }
        let counted = self.upstream_count.count().or_else(|| {
            self.table.borrow().endpoints().any(|endpoint| endpoint.pool.close_oldest());
            self.upstream_count.count()
        });
        if counted.is_some() {
            // What was counted a moment ago must not be given to many.
            self.unused_upstreams.set(None);
        }
        counted
    }

    /// Whether so much work for clients in `network` waits that no more of it is accepted.
    pub fn is_backed_up(&self, network: Network) -> bool {
        self.schedule.is_backed_up(network)
    }

    /// Runs a task for a client in `network` until it is done.
    pub fn spawn(&self, network: Network, task: Pin<Box<impl Future<Output = ()> + 'static>>) {
        self.tasks.spawn_local(self.schedule.task(network, task));
    }

    /// A timer for a stream.
    pub fn take_timer(&self) -> Timer {
        self.timers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a timer for another stream.
    pub fn put_timer(&self, timer: Timer) {
        let mut timers = self.timers.borrow_mut();
        if timers.len() < MOST_TIMERS {
            timers.push(timer);
        }
    }

    /// To be called each second: closes what is not wanted any more, and publishes counts.
    pub fn tick(&self) {
        let now = Instant::now();
        let table = self.table.borrow();
        table.endpoints().for_each(|endpoint| {
            endpoint.pool.sweep(now);
            endpoint.forget_tallies();
        });
        table.set_gauges();
        table.services().flat_map(|service| service.budgets()).for_each(|budget| budget.tick());
        self.clients.tick();
        self.counters.queued.set(self.schedule.waited());
        self.observer.flush();
    }
}

/// Whether `interval` has passed since the time in `last`, which becomes `now` then.
fn has_passed(last: &Cell<Option<Instant>>, interval: Duration, now: Instant) -> bool {
    let has_passed = last.get().is_none_or(|at| now >= at + interval);
    if has_passed {
        last.set(Some(now));
    }
    has_passed
}
