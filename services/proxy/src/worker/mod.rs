//! A worker: one thread with its own runtime, sockets, table and upstream connections.

mod accept;
mod command;
mod date;
mod http1;
mod http2;
mod http2_request;
mod limits;

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

pub use command::{Command, Listen, Routes};
pub use date::http_date;
pub use http2_request::request_of;
pub use limits::{WorkerLimits, memory_limit};

use crate::{
    balance::{Endpoint, InFlight, is_of_endpoint},
    clients::{ClientConnection, ClientShare, Clients, Eviction, Network, Schedule},
    metrics::{Metrics, WorkerCounters},
    observe::{Observer, Observing},
    table::{Table, WorkerPlace},
    tls::UpstreamTlsConfigs,
    wire::{ConnectionCount, Counted, Timer},
};

/// How long the last words to endpoints may take.
const GOODBYE: Duration = Duration::from_millis(500);
/// How often at most it is logged that this machine lacks files.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long a connection that was accepted waits for room, and where its network has its share; how many may wait; and how
/// often idle and slow clients are looked for meanwhile.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(1);
const WAIT_OVER_SHARE: Duration = Duration::from_millis(200);
const MOST_WAITING: usize = 16;
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

/// How long nothing may pass in either direction once an answer has begun.
#[derive(Debug, Clone, Copy)]
pub struct IdleLimits {
    /// Of a request.
    pub stream: Duration,
    /// Of an upgraded connection.
    pub tunnel: Duration,
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
pub struct Worker {
    /// Whose worker it is.
    pub edge: Arc<EdgeIdentity>,
    /// The routes.
    pub table: RefCell<Table>,
    /// Randomness for picks and ids; not for secrets.
    pub random: RefCell<SmallRng>,
    /// What it counts.
    pub counters: Arc<WorkerCounters>,
    /// What it tells of requests.
    pub observer: Observer,
    /// How long streams and tunnels may be silent.
    pub idle_limits: IdleLimits,
    draining_since: Cell<Option<Instant>>,
    /// Timers of streams that have ended, for those that begin.
    timers: RefCell<Vec<Timer>>,
    /// Connections of clients.
    pub clients: Rc<Clients>,
    /// Connections that were accepted and wait for room.
    waiting: Cell<usize>,
    tasks: TaskTracker,
    schedule: Rc<Schedule>,
    /// Connections to endpoints; those of clients end first.
    pub upstreams: TaskTracker,
    /// How many connections to endpoints there are, and may be.
    upstream_count: ConnectionCount,
    suspects: mpsc::Sender<Suspect>,
    /// How many of those no request used, and when they were counted.
    unused_upstreams: Cell<Option<(Instant, usize)>>,
    /// When a slow client was last given up for another's connection to an endpoint.
    gave_up_at: Cell<Option<Instant>>,
    /// Logs that connections of clients are too many.
    crowding_log: RefCell<LogLimit>,
    /// Logs that no connection to an endpoint can be made.
    cannot_connect_log: RefCell<LogLimit>,
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
    /// What is told of requests.
    pub observing: Observing,
    /// How long streams and tunnels may be silent.
    pub idle_limits: IdleLimits,
    /// Its part of the process's files and memory.
    pub limits: WorkerLimits,
}

/// Runs a worker until it is told to stop and its connections are done, at most `drain_limit` later.
///
/// # Errors
/// When the thread's runtime cannot be made.
pub fn run(
    parts: WorkerParts,
    commands: mpsc::Receiver<Command>,
    drain_limit: Duration,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Accepting and timers come around often enough at this pace, and the poll of the kernel costs less per request.
        .event_interval(31)
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(serve(parts, commands, drain_limit));
    Ok(())
}

async fn serve(parts: WorkerParts, mut commands: mpsc::Receiver<Command>, drain_limit: Duration) {
    let counters = parts.metrics.worker();
    let worker = Rc::new(Worker {
        table: RefCell::new(Table::new(
            parts.place,
            parts.edge.name.clone(),
            parts.metrics.clone(),
            parts.tls,
        )),
        edge: parts.edge,
        random: RefCell::new(SmallRng::seed_from_u64(rand::random())),
        observer: parts.observing.observer(counters.clone()),
        counters,
        idle_limits: parts.idle_limits,
        draining_since: Cell::new(None),
        timers: RefCell::default(),
        clients: Clients::new(parts.limits.client_connections, parts.limits.client_memory),
        waiting: Cell::new(0),
        tasks: TaskTracker::new(),
        schedule: Schedule::new(),
        upstreams: TaskTracker::new(),
        upstream_count: ConnectionCount::new(parts.limits.upstream_connections),
        suspects: parts.suspects,
        unused_upstreams: Cell::new(None),
        gave_up_at: Cell::new(None),
        crowding_log: RefCell::new(LogLimit::new(LOG_INTERVAL)),
        cannot_connect_log: RefCell::new(LogLimit::new(LOG_INTERVAL)),
    });
    tokio::task::spawn_local(worker.schedule.clone().run());
    let mut accepting = accept::Accepting::new(worker.clone());
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // When connections that are left are cut, once it is told to stop.
    let mut cut_at: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            command = commands.recv(), if !commands.is_closed() || cut_at.is_none() => match command {
                Some(Command::Routes { routes, done }) => {
                    worker.apply(&routes);
                    // Whoever sent it may not wait for it any more.
                    _ = done.send(());
                }
                Some(Command::Drain) => worker.drain(),
                Some(Command::Listen(listen)) if cut_at.is_none() => accepting.open(listen),
                Some(Command::Unlisten(name)) => accepting.close(&name),
                Some(Command::Undrain) if cut_at.is_none() => worker.draining_since.set(None),
                Some(Command::Stop) | None if cut_at.is_none() => {
                    worker.drain();
                    accepting.close_all().await;
                    worker.tasks.close();
                    cut_at = Some(Instant::now() + drain_limit);
                }
                // It has been told to stop.
                Some(Command::Listen(_) | Command::Undrain | Command::Stop) | None => {}
            },
            _ = ticks.tick() => worker.tick(),
            are_done = connections_end(&worker.tasks, cut_at) => {
                if !are_done {
                    tracing::warn!(open = worker.counters.open.get(), "drain limit reached, connections are cut");
                }
                break;
            }
        }
    }
    // Nobody asks endpoints any more: they are told so, and not waited for longer than that takes.
    worker.table.borrow().endpoints().for_each(|endpoint| endpoint.pool.clear());
    worker.upstreams.close();
    _ = tokio::time::timeout(GOODBYE, worker.upstreams.wait()).await;
}

/// Waits until all connections have ended, or are to be cut; says whether they have ended.
async fn connections_end(tasks: &TaskTracker, cut_at: Option<Instant>) -> bool {
    match cut_at {
        Some(cut_at) => tokio::time::timeout_at(cut_at, tasks.wait()).await.is_ok(),
        None => std::future::pending().await,
    }
}

impl Worker {
    /// Whether the edge is draining.
    pub fn is_draining(&self) -> bool {
        self.draining_since.get().is_some()
    }

    /// Since when the edge is draining, if it is.
    pub fn draining_since(&self) -> Option<Instant> {
        self.draining_since.get()
    }

    /// An endpoint failed a request: counted against it, and told to the probers. Where the failure may be the request's own,
    /// `judged` counts it and says whether the endpoint is ejected by it.
    pub fn endpoint_failed(
        &self,
        endpoint: &Endpoint,
        failure: &Failure,
        judged: impl FnOnce(Instant) -> bool,
    ) {
        let now = Instant::now();
        let ejected =
            if is_of_endpoint(failure) { endpoint.record_connect_failure(now) } else { judged(now) };
        self.table.borrow().count_failure(&endpoint.cluster);
        if ejected {
            self.ejected(endpoint, &failure.to_string());
        }
        self.suspect(endpoint, failure);
    }

    /// An endpoint was ejected.
    pub fn ejected(&self, endpoint: &Endpoint, why: &str) {
        self.table.borrow().count_ejection(&endpoint.cluster);
        tracing::warn!(cluster = %endpoint.cluster, endpoint = %endpoint.address, why, "endpoint ejected");
    }

    /// Ends connections of clients where little headroom is left for one of the network `newcomer`.
    fn make_room(&self, newcomer: Network) {
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
    async fn has_room_in_time(&self, newcomer: Network) -> bool {
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

    /// This machine lacks what a connection to an endpoint takes.
    pub fn cannot_connect(&self, error: &std::io::Error) {
        self.counters.cannot_connect.add(1);
        if self.cannot_connect_log.borrow_mut().admit(Instant::now()) {
            tracing::error!(%error, "cannot connect to endpoints: this machine lacks files or ports");
        }
    }

    /// Tells the probers to look at an endpoint.
    pub fn suspect(&self, endpoint: &Endpoint, failure: &Failure) {
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

    fn apply(&self, routes: &Routes) {
        let mut table = self.table.borrow_mut();
        match routes {
            Routes::All(entries) => table.replace(entries),
            Routes::Changes(changes) => table.apply(changes),
        }
    }

    fn drain(&self) {
        if !self.is_draining() {
            self.draining_since.set(Some(Instant::now()));
        }
        self.clients.wake_all();
    }

    /// Runs a task for a client in `network` until it is done.
    fn spawn(&self, network: Network, task: Pin<Box<impl Future<Output = ()> + 'static>>) {
        self.tasks.spawn_local(self.schedule.task(network, task));
    }

    /// A timer for a stream.
    fn take_timer(&self) -> Timer {
        self.timers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a timer for another stream.
    fn put_timer(&self, timer: Timer) {
        let mut timers = self.timers.borrow_mut();
        if timers.len() < MOST_TIMERS {
            timers.push(timer);
        }
    }

    fn tick(&self) {
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

/// A connection counted on its listener and among all that are open, until dropped.
struct Open {
    worker: Rc<Worker>,
    connection: ClientConnection,
    on_listener: Rc<Cell<u32>>,
}

impl Open {
    fn new(worker: Rc<Worker>, network: Network, on_listener: Rc<Cell<u32>>) -> Open {
        worker.counters.open.add(1);
        on_listener.set(on_listener.get() + 1);
        Open { connection: worker.clients.open(network, Instant::now()), worker, on_listener }
    }
}

impl std::ops::Deref for Open {
    type Target = ClientConnection;

    fn deref(&self) -> &ClientConnection {
        &self.connection
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.on_listener.set(self.on_listener.get() - 1);
        self.worker.counters.open.set(self.worker.counters.open.get() - 1);
    }
}
