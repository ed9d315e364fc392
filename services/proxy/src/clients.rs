//! The client connections of a worker, and which of them are evicted when file descriptors or memory run short.
//!
//! A client that opens many connections, or that makes the edge buffer much, must lose its own connections and not
//! those of others. So a worker limits open connections (below the process's limit on file descriptors) and the memory
//! buffered for clients. Above the first limit, connections without a request are evicted, the longest idle first, then
//! those that only wait for slow clients. Above the second, the connection with the largest buffers is evicted. No
//! network of clients may use up any resource.

mod client;
mod counts;
mod network;
mod schedule;
mod stall_budget;

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tidegate_http1::without_port;
use tidegate_tls::ServerTls;
use tokio::{sync::Notify, time::Instant};

pub use client::Client;
pub use counts::NetworkCounts;
pub use network::Network;
pub use schedule::FairSchedule;
pub use stall_budget::{Direction, StallBudget};

/// How many connections are evicted at once: one in so many, up to a maximum. A search visits every connection.
const PART_ENDED: usize = 32;
const MOST_ENDED: usize = 64;
/// The pause after a search that found nothing, per connection visited: ten times what the visit takes.
const LOOK_COST: Duration = Duration::from_nanos(500);
/// How long a connection must have no request to count as idle, and how long a new one before its first request.
const LEAST_IDLE: Duration = Duration::from_millis(10);
const LEAST_NEW: Duration = Duration::from_millis(500);
/// One in so many connections is kept free for those that arrive while idle ones end.
const PART_FREE: usize = 16;

/// How many streams clients of one network may reset before its next connections get tighter limits. The count is
/// halved each second. A connection cut for flooding sets it to `FLOOD`, which takes five halvings to fall to the
/// limit.
const MOST_RESETS: u32 = 500;
const FLOOD: u32 = MOST_RESETS << 5;
/// The number of buckets into which networks are hashed.
const NETWORK_BUCKETS: usize = 1024;

/// Why a client connection is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// It had been idle the longest when connections ran short.
    Idle,
    /// It only waited for a slow client when connections ran short.
    Slow,
    /// It had the largest buffers when memory ran short.
    Memory,
}

/// All client connections of a worker.
pub struct Clients {
    states: RefCell<Slab<Rc<State>>>,
    /// How many open connections are evicted because connections ran short.
    evicted: Cell<usize>,
    limit: usize,
    /// Notified whenever a connection ends.
    ended: Notify,
    /// When the next search for connections to evict may run, after one that found none.
    look_at: Cell<Option<Instant>>,
    /// Open connections by network.
    connections: NetworkCounts,
    /// Upstream connections in use by network.
    upstream: NetworkCounts,
    /// Streams reset by network.
    resets: NetworkCounts,
    held: Cell<usize>,
    /// The part of `held` that evicted connections are about to release.
    ending: Cell<usize>,
    budget: usize,
}

struct State {
    network: Network,
    held: Cell<usize>,
    /// Since when it has had no request; nothing while it has one.
    idle_since: Cell<Option<Instant>>,
    eviction: Cell<Option<Eviction>>,
    /// Whether a request was received on it.
    had_request: Cell<bool>,
    /// Upstream connections used by its requests.
    upstream: Cell<usize>,
    /// How many request accounts are open.
    requests: Cell<usize>,
    /// The stall budgets of requests that have waited for the client.
    stall_budgets: RefCell<Vec<Rc<StallBudget>>>,
    /// The outcome of the TLS handshake.
    tls: OnceCell<AgreedTls>,
    waker: RefCell<Option<Waker>>,
}

/// The certificates of a connection's listener, and the server name that its client requested.
struct AgreedTls {
    certificates: Arc<ServerTls>,
    sni: Option<String>,
}

/// Counts an open connection until dropped.
pub struct ClientConnection {
    clients: Rc<Clients>,
    state: Rc<State>,
    key: usize,
    /// Received bytes that no request has read yet.
    unread: Cell<usize>,
}

/// The resources of one request of a client: buffered memory, released when dropped, and the time spent waiting for the
/// client. (Envoy's `BufferMemoryAccount` is similar.)
pub struct RequestAccount {
    clients: Rc<Clients>,
    state: Rc<State>,
    parts: [usize; 4],
    stall_budget: Option<Rc<StallBudget>>,
}

/// The share of upstream connections that a client may use.
#[derive(Clone)]
pub struct UpstreamQuota {
    clients: Rc<Clients>,
    state: Rc<State>,
}

/// What memory is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryUse {
    /// The request's head.
    Head,
    /// The part of the request's body that is kept for retries.
    Body,
    /// Buffers of the client's connection: response data that it does not read, and requests sent ahead. For a tunnel,
    /// the buffers of both sides.
    ClientStream,
    /// Buffers of the upstream connection: body data that the endpoint does not read, and response data.
    Upstream,
}

impl Clients {
    /// An empty set of at most `limit` connections with at most `budget` buffered bytes.
    pub fn new(limit: usize, budget: usize) -> Rc<Clients> {
        Rc::new(Clients {
            states: RefCell::default(),
            evicted: Cell::new(0),
            limit,
            ended: Notify::new(),
            look_at: Cell::new(None),
            connections: NetworkCounts::new(NETWORK_BUCKETS),
            upstream: NetworkCounts::new(NETWORK_BUCKETS),
            resets: NetworkCounts::new(NETWORK_BUCKETS),
            held: Cell::new(0),
            ending: Cell::new(0),
            budget,
        })
    }

    /// Registers a new connection of a client in `network`.
    pub fn open(self: &Rc<Clients>, network: Network, now: Instant) -> ClientConnection {
        let state = Rc::new(State {
            network,
            held: Cell::new(0),
            idle_since: Cell::new(Some(now)),
            eviction: Cell::new(None),
            had_request: Cell::new(false),
            requests: Cell::new(0),
            upstream: Cell::new(0),
            stall_budgets: RefCell::default(),
            tls: OnceCell::new(),
            waker: RefCell::default(),
        });
        self.connections.add(network);
        let key = self.states.borrow_mut().insert(state.clone());
        ClientConnection { clients: self.clone(), state, key, unread: Cell::new(0) }
    }

    /// Whether the limit on connections is reached.
    pub fn is_full(&self) -> bool {
        self.states.borrow().len() >= self.limit
    }

    /// Halves the counts of reset streams. Called once a second.
    pub fn tick(&self) {
        self.resets.halve();
    }

    /// Waits until any connection has ended.
    pub async fn wait_for_end(&self) {
        self.ended.notified().await;
    }

    /// Whether there is room for another connection of a client in `network`.
    pub fn has_room(&self, network: Network) -> bool {
        let free = self.limit.saturating_sub(self.states.borrow().len());
        free > 0 && self.connections.may_add(network, free)
    }

    /// Whether clients in `network` have used up their share of connections, even if others may open more.
    pub fn is_over_share(&self, network: Network) -> bool {
        let staying = self.states.borrow().len() - self.evicted.get();
        !self.connections.may_add(network, self.limit.saturating_sub(staying).max(1))
    }

    /// Evicts connections when little headroom is left for a client of the network `newcomer`: the longest idle ones
    /// or, if none is idle, those with the slowest clients; only from its own network if that has used up its share.
    /// Returns how many were evicted, and why.
    pub fn make_room(&self, newcomer: Network, now: Instant) -> Option<(usize, Eviction)> {
        let states = self.states.borrow();
        let staying = states.len() - self.evicted.get();
        let is_over_share = self.is_over_share(newcomer);
        let has_headroom = staying < self.limit - self.limit / PART_FREE && !is_over_share;
        if has_headroom || self.look_at.get().is_some_and(|at| now < at) {
            return None;
        }
        let count = if is_over_share { 1 } else { (staying / PART_ENDED).clamp(1, MOST_ENDED) };
        let candidates = || {
            let states = states.iter().map(|(_, state)| state).filter(|state| state.eviction.get().is_none());
            // All networks in the same bucket.
            let counted_as = newcomer.bucket(NETWORK_BUCKETS);
            states.filter(move |state| !is_over_share || state.network.bucket(NETWORK_BUCKETS) == counted_as)
        };
        let idle = candidates().filter_map(|state| {
            let (since, is_new) = (state.idle_since.get()?, !state.had_request.get());
            // The first request of a new connection may be on its way.
            let least = if is_new && !is_over_share { LEAST_NEW } else { LEAST_IDLE };
            (now >= since + least).then_some(((is_new, since), state))
        });
        let is_urgent = is_over_share || self.is_full();
        let slow = candidates().filter_map(|state| Some((state.credit_if_slow(now, is_urgent)?, state)));
        let ended =
            evict_first(idle, count, Eviction::Idle).or_else(|| evict_first(slow, count, Eviction::Slow));
        match ended {
            Some((count, _)) => self.evicted.set(self.evicted.get() + count),
            None => {
                let rest = LOOK_COST * u32::try_from(states.len()).unwrap_or(u32::MAX);
                self.look_at.set(Some(now + rest));
            }
        }
        ended
    }

    /// Wakes the tasks of all connections.
    pub fn wake_all(&self) {
        self.states.borrow().iter().for_each(|(_, state)| state.wake());
    }

    /// The limit on connections.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn update_held(&self, state: &State, from: usize, to: usize) {
        state.held.set(state.held.get() - from + to);
        self.held.set(self.held.get() - from + to);
        if state.eviction.get() == Some(Eviction::Memory) {
            self.ending.set((self.ending.get() + to).saturating_sub(from));
        }
        while self.held.get() - self.ending.get().min(self.held.get()) > self.budget && self.evict_largest() {
        }
    }

    fn evict_largest(&self) -> bool {
        let states = self.states.borrow();
        let candidates = states.iter().map(|(_, state)| state).filter(|state| state.eviction.get().is_none());
        let Some(largest) = candidates.max_by_key(|state| state.held.get()).filter(|s| s.held.get() > 0)
        else {
            return false;
        };
        self.ending.set(self.ending.get() + largest.held.get());
        largest.evict(Eviction::Memory);
        true
    }
}

/// Evicts the `count` first of `states` by their keys, or all that there are. Returns how many, if any, with the reason.
fn evict_first<'a, K: Ord>(
    states: impl Iterator<Item = (K, &'a Rc<State>)>,
    count: usize,
    reason: Eviction,
) -> Option<(usize, Eviction)> {
    let mut states: Vec<(K, &Rc<State>)> = states.collect();
    let count = count.min(states.len());
    if count > 0 {
        states.select_nth_unstable_by(count - 1, |(a, _), (b, _)| a.cmp(b));
        states[..count].iter().for_each(|(_, state)| state.evict(reason));
    }
    (count > 0).then_some((count, reason))
}

impl State {
    fn evict(&self, reason: Eviction) {
        self.eviction.set(Some(reason));
        self.wake();
        if reason == Eviction::Slow {
            self.stall_budgets.borrow().iter().for_each(|stall_budget| stall_budget.evict());
        }
    }

    /// The remaining credit, if all requests of the connection wait for their client and it is slow or, if `is_urgent`,
    /// stalled.
    fn credit_if_slow(&self, now: Instant, is_urgent: bool) -> Option<i64> {
        let stall_budgets = self.stall_budgets.borrow();
        let waits = |stall_budget: &Rc<StallBudget>| {
            stall_budget.is_slow(now) || is_urgent && stall_budget.has_stalled(now)
        };
        if stall_budgets.len() < self.requests.get() || !stall_budgets.iter().all(waits) {
            return None;
        }
        stall_budgets.iter().map(|stall_budget| stall_budget.credit_at(now)).max()
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl ClientConnection {
    /// Registers the connection's task to be woken on eviction and when draining begins.
    pub fn wake_on_change(&self, cx: &Context<'_>) {
        let mut waker = self.state.waker.borrow_mut();
        if waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Why the connection is evicted, if it is.
    pub fn eviction(&self) -> Option<Eviction> {
        self.state.eviction.get()
    }

    /// Records the listener's certificates and the server name that the client requested.
    pub fn record_tls(&self, certificates: Arc<ServerTls>, sni: Option<&str>) {
        // A connection has one handshake.
        _ = self.state.tls.set(AgreedTls { certificates, sni: sni.map(str::to_owned) });
    }

    /// Records that the client has reset `count` streams, or that it `is_flooding` the connection.
    pub fn record_resets(&self, count: u32, is_flooding: bool) {
        let count = self.clients.resets.of(self.state.network).saturating_add(count);
        self.clients.resets.set(self.state.network, if is_flooding { count.max(FLOOD) } else { count });
    }

    /// The client's network.
    pub fn network(&self) -> Network {
        self.state.network
    }

    /// Whether clients of this network have recently flooded other connections.
    pub fn is_of_flooding_network(&self) -> bool {
        self.clients.resets.of(self.state.network) > MOST_RESETS
    }

    /// Sets the size of received data that no request has read yet.
    pub fn hold_unread(&self, bytes: usize) {
        self.clients.update_held(&self.state, self.unread.replace(bytes), bytes);
    }

    /// Waits until the connection is evicted.
    pub async fn wait_for_eviction(&self) {
        poll_fn(|cx| {
            self.wake_on_change(cx);
            if self.eviction().is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Marks the connection as idle from `now` on.
    pub fn begin_idle(&self, now: Instant) {
        self.state.idle_since.set(Some(now));
    }

    /// Marks the connection as busy with a request. If it was evicted as idle, the eviction is withdrawn.
    pub fn end_idle(&self) {
        self.state.idle_since.set(None);
        self.state.had_request.set(true);
        if self.state.eviction.get() == Some(Eviction::Idle) {
            self.state.eviction.set(None);
            self.clients.evicted.set(self.clients.evicted.get() - 1);
        }
    }

    /// Opens an account for a request, or for requests that follow one another.
    pub fn open_account(&self) -> RequestAccount {
        self.state.requests.set(self.state.requests.get() + 1);
        RequestAccount {
            clients: self.clients.clone(),
            state: self.state.clone(),
            parts: [0; 4],
            stall_budget: None,
        }
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        self.hold_unread(0);
        self.clients.states.borrow_mut().remove(self.key);
        self.clients.connections.remove(self.state.network);
        if matches!(self.state.eviction.get(), Some(Eviction::Idle | Eviction::Slow)) {
            self.clients.evicted.set(self.clients.evicted.get() - 1);
        }
        self.clients.ended.notify_one();
    }
}

impl RequestAccount {
    /// Sets the memory used for one purpose.
    pub fn set_memory(&mut self, what: MemoryUse, bytes: usize) {
        let from = std::mem::replace(&mut self.parts[what as usize], bytes);
        if from != bytes {
            self.clients.update_held(&self.state, from, bytes);
        }
    }

    /// Releases everything at the end of a request.
    pub fn clear(&mut self) {
        [MemoryUse::Head, MemoryUse::Body, MemoryUse::ClientStream, MemoryUse::Upstream]
            .into_iter()
            .for_each(|what| self.set_memory(what, 0));
        if let Some(stall_budget) = self.stall_budget.take() {
            self.state.stall_budgets.borrow_mut().retain(|other| !Rc::ptr_eq(other, &stall_budget));
        }
    }

    /// Whether the certificate of the connection is valid for this host, which may include a port (RFC 9110, section
    /// 15.5.20).
    pub fn serves_host(&self, host: &str) -> bool {
        let Some(AgreedTls { certificates, sni }) = self.state.tls.get() else { return true };
        certificates.serves_alike(sni.as_deref(), without_port(host))
    }

    /// The client's quota of upstream connections.
    pub fn upstream_quota(&self) -> UpstreamQuota {
        UpstreamQuota { clients: self.clients.clone(), state: self.state.clone() }
    }

    /// The stall budget, if the request has ever waited for the client.
    pub fn stall_budget(&self) -> Option<&Rc<StallBudget>> {
        self.stall_budget.as_ref()
    }

    /// Records that the request waits for its client in this direction.
    pub fn record_wait(&mut self, direction: Direction, cx: &Context<'_>) -> &Rc<StallBudget> {
        let stall_budget = self.stall_budget.get_or_insert_with(|| {
            let stall_budget = Rc::new(StallBudget::new(self.state.network));
            self.state.stall_budgets.borrow_mut().push(stall_budget.clone());
            stall_budget
        });
        stall_budget.record_wait(direction, Instant::now(), cx);
        stall_budget
    }

    /// Records that the client moved `bytes` in this direction.
    pub fn record_progress(&self, direction: Direction, bytes: u64) {
        if let Some(stall_budget) = &self.stall_budget {
            stall_budget.record_progress(direction, bytes, Instant::now());
        }
    }

    /// Whether the connection is evicted to free memory, even during a request.
    pub fn is_evicted(&self) -> bool {
        self.state.eviction.get() == Some(Eviction::Memory)
    }
}

impl UpstreamQuota {
    /// The client's network.
    pub fn network(&self) -> Network {
        self.state.network
    }

    /// Whether a request on this connection may use one of the `free` upstream connections. A client connection may use
    /// at most as many as it leaves free, and its network its share; the first one only needs another free one.
    pub fn may_take(&self, free: usize) -> bool {
        let held = self.state.upstream.get();
        held < free && (self.clients.upstream.may_add(self.state.network, free) || held == 0 && free > 1)
    }

    /// Counts an upstream connection.
    pub fn acquire(&self) {
        self.state.upstream.set(self.state.upstream.get() + 1);
        self.clients.upstream.add(self.state.network);
    }

    /// Stops counting an upstream connection.
    pub fn release(&self) {
        self.state.upstream.set(self.state.upstream.get() - 1);
        self.clients.upstream.remove(self.state.network);
    }
}

impl Drop for RequestAccount {
    fn drop(&mut self) {
        self.clear();
        self.state.requests.set(self.state.requests.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Network = Network::LOCAL;

    #[test]
    fn the_longest_idle_connections_end_first_and_busy_ones_never() {
        let clients = Clients::new(4, usize::MAX);
        let start = Instant::now();
        let connections: Vec<ClientConnection> =
            [3, 1, 2, 0].map(|second| clients.open(HERE, start + Duration::from_secs(second))).into();
        connections[3].end_idle();
        assert!(clients.is_full());

        let ended = |clients: &Clients| {
            clients.make_room(HERE, start + Duration::from_secs(10));
            connections.iter().map(|connection| connection.eviction().is_some()).collect::<Vec<_>>()
        };

        assert_eq!(ended(&clients), [false, true, false, false]);
        assert_eq!(ended(&clients), [false, true, false, false], "that one makes room");
        let more = clients.open(HERE, start + Duration::from_secs(9));
        assert_eq!(ended(&clients), [false, true, true, false]);
        drop(more);
        // A connection that receives a request at the last moment stays.
        connections[2].end_idle();
        assert_eq!((connections[2].eviction(), clients.evicted.get()), (None, 1));
    }

    #[test]
    fn connections_that_only_wait_for_slow_clients_end_where_none_is_idle() {
        let clients = Clients::new(4, usize::MAX);
        let start = Instant::now();
        let connections = [(); 4].map(|()| clients.open(HERE, start));
        let mut accounts = connections.each_ref().map(|connection| {
            connection.end_idle();
            connection.open_account()
        });
        let cx = Context::from_waker(Waker::noop());
        accounts[0].record_wait(Direction::Upload, &cx);
        accounts[1].record_wait(Direction::Upload, &cx);
        // Another request of this connection is in flight at an endpoint.
        let _other = connections[1].open_account();
        accounts[2].record_wait(Direction::Download, &cx);
        accounts[2].record_progress(Direction::Download, 1_000_000);
        let ended = |at: Duration| {
            clients.make_room(HERE, Instant::now() + at);
            connections.each_ref().map(|connection| connection.state.eviction.get())
        };

        assert_eq!(ended(Duration::from_millis(50)), [None; 4]);
        assert_eq!(ended(Duration::from_secs(3)), [Some(Eviction::Slow), None, None, None]);
        assert!(accounts[0].stall_budget().unwrap().is_evicted());
    }

    #[test]
    fn a_network_that_has_its_share_makes_room_for_itself_and_others_find_some() {
        let clients = Clients::new(16, usize::MAX);
        let there = Network::of([192, 0, 2, 1].into());
        let now = Instant::now();
        let mut connections = Vec::new();
        while clients.has_room(HERE) {
            connections.push(clients.open(HERE, now));
        }
        assert_eq!(connections.len(), 14);
        for connection in &connections[1..] {
            connection.end_idle();
        }
        assert_eq!(clients.make_room(HERE, now + LEAST_IDLE), Some((1, Eviction::Idle)));
        assert!(connections[0].eviction().is_some());
        drop(connections.remove(0));
        assert!(clients.has_room(HERE));
        assert!(clients.has_room(there) || there.bucket(NETWORK_BUCKETS) == HERE.bucket(NETWORK_BUCKETS));
    }

    #[test]
    fn a_connection_without_a_request_yet_ends_after_those_that_had_one() {
        let clients = Clients::new(4, usize::MAX);
        let start = Instant::now();
        let connections = [(); 4].map(|()| clients.open(HERE, start));
        connections[3].end_idle();
        connections[3].begin_idle(start + Duration::from_secs(1));

        clients.make_room(HERE, start + Duration::from_secs(2));

        assert_eq!(connections.each_ref().map(|c| c.eviction().is_some()), [false, false, false, true]);
    }

    #[test]
    fn the_connection_for_which_most_is_held_ends_when_memory_runs_short() {
        let clients = Clients::new(10, 1000);
        let connections = [(); 3].map(|()| clients.open(HERE, Instant::now()));
        let mut accounts = [0, 1, 2].map(|index| connections[index].open_account());
        accounts[0].set_memory(MemoryUse::Body, 300);
        accounts[1].set_memory(MemoryUse::Body, 500);
        accounts[2].set_memory(MemoryUse::Body, 200);
        assert!(connections.iter().all(|connection| connection.eviction().is_none()));

        accounts[0].set_memory(MemoryUse::Body, 301);

        assert_eq!(connections.each_ref().map(|c| c.eviction().is_some()), [false, true, false]);
        // The memory that it is about to release counts as free, so no other is evicted.
        accounts[2].set_memory(MemoryUse::Body, 600);
        assert!(connections[0].eviction().is_none() && connections[2].eviction().is_none());
        drop(accounts);
        assert_eq!((clients.held.get(), clients.ending.get()), (0, 0));
    }
}
