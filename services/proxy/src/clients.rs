//! The connections of a worker's clients: which of them end first when files or memory run short.
//!
//! One client that opens many connections, or makes the edge hold much for it, must cost itself its connections, not
//! others theirs. So a worker has a limit on open connections below the process's limit on files, and a budget for what is
//! held for clients; over the first, connections without a request end, the longest idle first, then those that do nothing
//! but wait for slow clients; over the second, the connection for which most is held. No network of clients may take all of
//! anything.

mod client;
mod counts;
mod pace;
mod schedule;

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
pub use pace::{Direction, Network, Pace};
pub use schedule::FairSchedule;

/// How many connections end at once, as a part of all and at most: to look for them costs as much as there are connections.
const PART_ENDED: usize = 32;
const MOST_ENDED: usize = 64;
/// For how long it rests for each of the connections that were looked through in vain: ten times what that takes.
const LOOK_COST: Duration = Duration::from_nanos(500);
/// For how long a connection has no request before it counts as idle, and a new one before its first.
const LEAST_IDLE: Duration = Duration::from_millis(10);
const LEAST_NEW: Duration = Duration::from_millis(500);
/// The part of the limit that is kept free for connections that come while idle ones end.
const PART_FREE: usize = 16;

/// The streams that clients of one network may reset before less is allowed to its next connections. The count is halved
/// each second. A connection that was cut for flooding adds `FLOOD`, which takes five halvings to fall to the limit.
const MOST_RESETS: u32 = 500;
const FLOOD: u32 = MOST_RESETS << 5;
/// How many networks can be told apart.
const NETWORK_PLACES: usize = 1024;

/// Why a client's connection ends although the client did nothing wrong on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// It was idle the longest when connections ran short.
    Idle,
    /// It only waited for its slow client when connections ran short.
    Slow,
    /// Most was held for it when memory ran short.
    Memory,
}

/// All connections of a worker's clients.
pub struct Clients {
    states: RefCell<Slab<Rc<State>>>,
    /// Of those that are open, how many were told to end for want of files.
    evicted: Cell<usize>,
    limit: usize,
    /// Told each time that a connection ends.
    ended: Notify,
    /// When it is worth the time to look for connections to end again, after none was found.
    look_at: Cell<Option<Instant>>,
    /// Connections that are open.
    connections: NetworkCounts,
    /// Connections to endpoints that have requests of clients.
    upstream: NetworkCounts,
    /// Streams that clients have reset.
    resets: NetworkCounts,
    held: Cell<usize>,
    /// Of what is held, what is about to be given back by connections that were told to end.
    ending: Cell<usize>,
    budget: usize,
}

struct State {
    network: Network,
    held: Cell<usize>,
    /// Since when it has no request; nothing while it has one.
    idle_since: Cell<Option<Instant>>,
    eviction: Cell<Option<Eviction>>,
    /// Whether any request came on it.
    had_request: Cell<bool>,
    /// Connections to endpoints that its requests have.
    upstream: Cell<usize>,
    /// How many requests it can have under way now.
    requests: Cell<usize>,
    /// The paces of those that have waited for the client.
    paces: RefCell<Vec<Rc<Pace>>>,
    /// What TLS agreed on.
    tls: OnceCell<AgreedTls>,
    waker: RefCell<Option<Waker>>,
}

/// The certificates of a connection's listener, and the name that its client asked for.
struct AgreedTls {
    certificates: Arc<ServerTls>,
    sni: Option<String>,
}

/// An open connection; counted until dropped.
pub struct ClientConnection {
    clients: Rc<Clients>,
    state: Rc<State>,
    key: usize,
    /// What came on it that no request has taken yet.
    unread: Cell<usize>,
}

/// What one request of a client costs: memory, given back when dropped, and time that is spent waiting for the client.
pub struct Account {
    clients: Rc<Clients>,
    state: Rc<State>,
    parts: [usize; 4],
    pace: Option<Rc<Pace>>,
}

/// A client's part of the connections to endpoints.
#[derive(Clone)]
pub struct ClientShare {
    clients: Rc<Clients>,
    state: Rc<State>,
}

/// What memory is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The request's head.
    Head,
    /// What is kept of the request's body, to send it again.
    Body,
    /// What is kept for its client: of the response that it does not take, and of what it has sent ahead. Of a tunnel, for
    /// both of its ends.
    Downstream,
    /// What is kept for its endpoint: of the body that it does not take, and of the response.
    Upstream,
}

impl Clients {
    /// No connections; at most `limit` of them, and `budget` bytes held for all together.
    pub fn new(limit: usize, budget: usize) -> Rc<Clients> {
        Rc::new(Clients {
            states: RefCell::default(),
            evicted: Cell::new(0),
            limit,
            ended: Notify::new(),
            look_at: Cell::new(None),
            connections: NetworkCounts::new(NETWORK_PLACES),
            upstream: NetworkCounts::new(NETWORK_PLACES),
            resets: NetworkCounts::new(NETWORK_PLACES),
            held: Cell::new(0),
            ending: Cell::new(0),
            budget,
        })
    }

    /// Counts a new connection of a client in `network`.
    pub fn open(self: &Rc<Clients>, network: Network, now: Instant) -> ClientConnection {
        let state = Rc::new(State {
            network,
            held: Cell::new(0),
            idle_since: Cell::new(Some(now)),
            eviction: Cell::new(None),
            had_request: Cell::new(false),
            requests: Cell::new(0),
            upstream: Cell::new(0),
            paces: RefCell::default(),
            tls: OnceCell::new(),
            waker: RefCell::default(),
        });
        self.connections.add(network);
        let key = self.states.borrow_mut().insert(state.clone());
        ClientConnection { clients: self.clone(), state, key, unread: Cell::new(0) }
    }

    /// Whether there are as many connections as there may be.
    pub fn is_full(&self) -> bool {
        self.states.borrow().len() >= self.limit
    }

    /// To be called each second: forgets half of what was counted of networks.
    pub fn tick(&self) {
        self.resets.halve();
    }

    /// Waits until a connection has ended.
    pub async fn one_ended(&self) {
        self.ended.notified().await;
    }

    /// Whether there is room for another connection of a client in `network`.
    pub fn has_room(&self, network: Network) -> bool {
        let free = self.limit.saturating_sub(self.states.borrow().len());
        free > 0 && self.connections.may_add(network, free)
    }

    /// Whether clients in `network` have as many connections as they may, though others may have more.
    pub fn is_over_share(&self, network: Network) -> bool {
        let staying = self.states.borrow().len() - self.evicted.get();
        !self.connections.may_add(network, self.limit.saturating_sub(staying).max(1))
    }

    /// Where little headroom is left for a client of the network `newcomer`, ends the connections that have been idle the
    /// longest, and when none is idle, those whose clients are the slowest; of its own network where that has its share.
    /// Returns how many were told to end, and why.
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
            // Of all networks that are counted as one with it.
            let counted_as = newcomer.place(NETWORK_PLACES);
            states.filter(move |state| !is_over_share || state.network.place(NETWORK_PLACES) == counted_as)
        };
        let idle = candidates().filter_map(|state| {
            let (since, is_new) = (state.idle_since.get()?, !state.had_request.get());
            // The first request of a new one may be on its way, or about to be read.
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

    /// How many connections there may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn change(&self, state: &State, from: usize, to: usize) {
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
            self.paces.borrow().iter().for_each(|pace| pace.give_up());
        }
    }

    /// For how long the client of all its requests may be waited for, where all of them wait for one that is slow, or if it
    /// `is_urgent`, for one that has stalled.
    fn credit_if_slow(&self, now: Instant, is_urgent: bool) -> Option<i64> {
        let paces = self.paces.borrow();
        let waits = |pace: &Rc<Pace>| pace.is_slow(now) || is_urgent && pace.has_stalled(now);
        if paces.len() < self.requests.get() || !paces.iter().all(waits) {
            return None;
        }
        paces.iter().map(|pace| pace.credit_at(now)).max()
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl ClientConnection {
    /// Has the connection's task woken when it is to end, or when draining begins.
    pub fn wake_on_change(&self, cx: &Context<'_>) {
        let mut waker = self.state.waker.borrow_mut();
        if waker.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Why the connection is to end, if it is.
    pub fn eviction(&self) -> Option<Eviction> {
        self.state.eviction.get()
    }

    /// Notes which name the client asked for, of the listener with these certificates.
    pub fn agreed_on(&self, certificates: Arc<ServerTls>, sni: Option<&str>) {
        // A connection has one handshake.
        _ = self.state.tls.set(AgreedTls { certificates, sni: sni.map(str::to_owned) });
    }

    /// The client has reset so many streams on the connection, or `is_flooding` it with whatever it may be.
    pub fn note_resets(&self, count: u32, is_flooding: bool) {
        let count = self.clients.resets.of(self.state.network).saturating_add(count);
        self.clients.resets.set(self.state.network, if is_flooding { count.max(FLOOD) } else { count });
    }

    /// The client's network.
    pub fn network(&self) -> Network {
        self.state.network
    }

    /// Whether clients of this network have flooded other connections a moment ago.
    pub fn is_of_flooding_network(&self) -> bool {
        self.clients.resets.of(self.state.network) > MOST_RESETS
    }

    /// Sets what is held of the connection that no request has taken yet.
    pub fn hold_unread(&self, bytes: usize) {
        self.clients.change(&self.state, self.unread.replace(bytes), bytes);
    }

    /// Waits until the connection is to end.
    pub async fn evicted(&self) {
        poll_fn(|cx| {
            self.wake_on_change(cx);
            if self.eviction().is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The connection has no request from `now` on.
    pub fn begin_idle(&self, now: Instant) {
        self.state.idle_since.set(Some(now));
    }

    /// A request has come. A connection that was told to end for being idle is not idle any more, and stays.
    pub fn end_idle(&self) {
        self.state.idle_since.set(None);
        self.state.had_request.set(true);
        if self.state.eviction.get() == Some(Eviction::Idle) {
            self.state.eviction.set(None);
            self.clients.evicted.set(self.clients.evicted.get() - 1);
        }
    }

    /// The account of a request, or of one after another, with nothing held yet.
    pub fn account(&self) -> Account {
        self.state.requests.set(self.state.requests.get() + 1);
        Account { clients: self.clients.clone(), state: self.state.clone(), parts: [0; 4], pace: None }
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

impl Account {
    /// Sets what is held for one purpose.
    pub fn hold(&mut self, what: Held, bytes: usize) {
        let from = std::mem::replace(&mut self.parts[what as usize], bytes);
        if from != bytes {
            self.clients.change(&self.state, from, bytes);
        }
    }

    /// Gives everything back, at the end of a request.
    pub fn clear(&mut self) {
        [Held::Head, Held::Body, Held::Downstream, Held::Upstream]
            .into_iter()
            .for_each(|what| self.hold(what, 0));
        if let Some(pace) = self.pace.take() {
            self.state.paces.borrow_mut().retain(|other| !Rc::ptr_eq(other, &pace));
        }
    }

    /// Whether the certificate that the client has verified speaks for this host, which may have a port (RFC 9110, section
    /// 15.5.20).
    pub fn speaks_for(&self, host: &str) -> bool {
        let Some(AgreedTls { certificates, sni }) = self.state.tls.get() else { return true };
        certificates.serves_alike(sni.as_deref(), without_port(host))
    }

    /// The client's part of the connections to endpoints.
    pub fn share(&self) -> ClientShare {
        ClientShare { clients: self.clients.clone(), state: self.state.clone() }
    }

    /// The client's pace, once it was waited for.
    pub fn pace(&self) -> Option<&Rc<Pace>> {
        self.pace.as_ref()
    }

    /// Records that the request waits for its client in this direction.
    pub fn record_wait(&mut self, direction: Direction, cx: &Context<'_>) -> &Rc<Pace> {
        let pace = self.pace.get_or_insert_with(|| {
            let pace = Rc::new(Pace::new(self.state.network));
            self.state.paces.borrow_mut().push(pace.clone());
            pace
        });
        pace.wait(direction, Instant::now(), cx);
        pace
    }

    /// Records that the client moved `bytes` in this direction.
    pub fn record_progress(&self, direction: Direction, bytes: u64) {
        if let Some(pace) = &self.pace {
            pace.moved(direction, bytes, Instant::now());
        }
    }

    /// Whether the connection is to end although its request is under way at an endpoint.
    pub fn is_evicted(&self) -> bool {
        self.state.eviction.get() == Some(Eviction::Memory)
    }
}

impl ClientShare {
    /// The client's network.
    pub fn network(&self) -> Network {
        self.state.network
    }

    /// Whether a request on this connection may have one of the `free` connections to endpoints. A client's connection may
    /// hold at most as many as it leaves free, and its network its share; its first needs only one further free one.
    pub fn may_take(&self, free: usize) -> bool {
        let held = self.state.upstream.get();
        held < free && (self.clients.upstream.may_add(self.state.network, free) || held == 0 && free > 1)
    }

    /// A request has a connection.
    pub fn take(&self) {
        self.state.upstream.set(self.state.upstream.get() + 1);
        self.clients.upstream.add(self.state.network);
    }

    /// It has it no more.
    pub fn give_back(&self) {
        self.state.upstream.set(self.state.upstream.get() - 1);
        self.clients.upstream.remove(self.state.network);
    }
}

impl Drop for Account {
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
        // One that gets a request at the last moment stays.
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
            connection.account()
        });
        let cx = Context::from_waker(Waker::noop());
        accounts[0].record_wait(Direction::Upload, &cx);
        accounts[1].record_wait(Direction::Upload, &cx);
        // Another request of this connection is under way at an endpoint.
        let _other = connections[1].account();
        accounts[2].record_wait(Direction::Download, &cx);
        accounts[2].record_progress(Direction::Download, 1_000_000);
        let ended = |at: Duration| {
            clients.make_room(HERE, Instant::now() + at);
            connections.each_ref().map(|connection| connection.state.eviction.get())
        };

        assert_eq!(ended(Duration::from_millis(50)), [None; 4]);
        assert_eq!(ended(Duration::from_secs(3)), [Some(Eviction::Slow), None, None, None]);
        assert!(accounts[0].pace().unwrap().is_given_up());
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
        assert!(clients.has_room(there) || there.place(NETWORK_PLACES) == HERE.place(NETWORK_PLACES));
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
        let mut accounts = [0, 1, 2].map(|place| connections[place].account());
        accounts[0].hold(Held::Body, 300);
        accounts[1].hold(Held::Body, 500);
        accounts[2].hold(Held::Body, 200);
        assert!(connections.iter().all(|connection| connection.eviction().is_none()));

        accounts[0].hold(Held::Body, 301);

        assert_eq!(connections.each_ref().map(|c| c.eviction().is_some()), [false, true, false]);
        // What it gives back is room for others, who are left alone while it ends.
        accounts[2].hold(Held::Body, 600);
        assert!(connections[0].eviction().is_none() && connections[2].eviction().is_none());
        drop(accounts);
        assert_eq!((clients.held.get(), clients.ending.get()), (0, 0));
    }
}
