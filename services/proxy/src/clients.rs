//! The connections of a worker's clients: which of them end first when files or memory run short.
//!
//! One client that opens many connections, or makes the edge hold much for it, must cost itself its connections, not
//! others theirs. So a worker has a limit on open connections below the process's limit on files, and a budget for what is
//! held for clients; over the first, connections without a request end, the longest idle first, then those that do nothing
//! but wait for slow clients, then those of a network that has most of them; over the second, the connection for which most is
//! held.

mod pace;

use std::{
    cell::{Cell, OnceCell, RefCell},
    cmp::Reverse,
    collections::HashMap,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tidegate_tls::ServerTls;
use tokio::{sync::Notify, time::Instant};

pub use pace::{Direction, Network, Pace};

/// How many connections end at once, as a part of all and at most: to look for them costs as much as there are connections.
const PART_ENDED: usize = 32;
const MOST_ENDED: usize = 64;
/// For how long it rests for each of the connections that were looked through in vain: ten times what that takes.
const LOOK_COST: Duration = Duration::from_nanos(500);
/// For how long a connection has no request before it counts as idle: the first of a new one may be about to be read.
const LEAST_IDLE: Duration = Duration::from_millis(10);
/// The part of the limit that is kept free for connections that come while idle ones end.
const PART_FREE: usize = 16;

/// The streams that clients of one network may reset before less is allowed to its next connections. Each second half of
/// them are forgotten; a connection that was cut for flooding counts for so many that it takes ten.
const MOST_RESETS: u32 = 500;
const FLOOD: u32 = MOST_RESETS << 10;
/// How many networks can be told apart in that.
const FLOOD_PLACES: usize = 64;

/// Why a client's connection ends although the client did nothing wrong on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// It was idle the longest when connections ran short.
    Idle,
    /// It only waited for its slow client when connections ran short.
    Slow,
    /// Its client's network had more than half of all connections when they ran short for another's.
    Share,
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
    /// Streams that clients of a network have reset.
    resets: [Cell<u32>; FLOOD_PLACES],
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
            resets: [const { Cell::new(0) }; FLOOD_PLACES],
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
            requests: Cell::new(0),
            paces: RefCell::default(),
            tls: OnceCell::new(),
            waker: RefCell::default(),
        });
        let key = self.states.borrow_mut().insert(state.clone());
        ClientConnection { clients: self.clone(), state, key, unread: Cell::new(0) }
    }

    /// Whether there are as many connections as there may be.
    pub fn is_full(&self) -> bool {
        self.states.borrow().len() >= self.limit
    }

    /// To be called each second: forgets half of what was counted of networks.
    pub fn tick(&self) {
        self.resets.iter().for_each(|count| count.set(count.get() / 2));
    }

    /// Waits until a connection has ended.
    pub async fn one_ended(&self) {
        self.ended.notified().await;
    }

    /// Where little headroom is left for a client of the network `newcomer`, ends the connections that have been idle the
    /// longest, when none is idle, those whose clients are the slowest, and when none is slow, those of another network that
    /// has more than half of all. Returns how many were told to end, and why.
    pub fn make_room(&self, newcomer: Network, now: Instant) -> Option<(usize, Eviction)> {
        let states = self.states.borrow();
        let staying = states.len() - self.evicted.get();
        if staying < self.limit - self.limit / PART_FREE || self.look_at.get().is_some_and(|at| now < at) {
            return None;
        }
        let count = (staying / PART_ENDED).clamp(1, MOST_ENDED);
        let staying_states = || states.iter().map(|(_, state)| state).filter(|s| s.eviction.get().is_none());
        let idle = staying_states()
            .filter_map(|state| Some((state.idle_since.get()?, state)))
            .filter(|(since, _)| now >= *since + LEAST_IDLE);
        let is_full = self.is_full();
        let slow = staying_states().filter_map(|state| Some((state.credit_if_slow(now, is_full)?, state)));
        let ended = evict_first(idle, count, Eviction::Idle)
            .or_else(|| evict_first(slow, count, Eviction::Slow))
            .or_else(|| {
                let greedy =
                    greedy_network(staying_states()).filter(|greedy| is_full && *greedy != newcomer)?;
                let of_greedy = staying_states().filter(|state| state.network == greedy);
                evict_first(of_greedy.map(|state| (Reverse(state.held.get()), state)), count, Eviction::Share)
            });
        let Some(ended) = ended else {
            self.look_at.set(Some(now + LOOK_COST * u32::try_from(states.len()).unwrap_or(u32::MAX)));
            return None;
        };
        self.evicted.set(self.evicted.get() + ended.0);
        Some(ended)
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

/// The network that has more than half of all connections.
fn greedy_network<'a>(states: impl Iterator<Item = &'a Rc<State>>) -> Option<Network> {
    let mut counts: HashMap<Network, usize> = HashMap::new();
    states.for_each(|state| *counts.entry(state.network).or_default() += 1);
    let all: usize = counts.values().sum();
    counts.into_iter().find(|(_, count)| count * 2 > all).map(|(network, _)| network)
}

/// Evicts the `count` first of `states` by their keys, or all that there are. Returns how many, if any, and why.
fn evict_first<'a, K: Ord>(
    states: impl Iterator<Item = (K, &'a Rc<State>)>,
    count: usize,
    why: Eviction,
) -> Option<(usize, Eviction)> {
    let mut states: Vec<(K, &Rc<State>)> = states.collect();
    let count = count.min(states.len());
    if count > 0 {
        states.select_nth_unstable_by(count - 1, |(a, _), (b, _)| a.cmp(b));
        states[..count].iter().for_each(|(_, state)| state.evict(why));
    }
    (count > 0).then_some((count, why))
}

impl State {
    fn evict(&self, why: Eviction) {
        self.eviction.set(Some(why));
        self.wake();
        if why == Eviction::Slow {
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
        let resets = &self.clients.resets[self.state.network.place(FLOOD_PLACES)];
        let count = resets.get().saturating_add(count);
        resets.set(if is_flooding { count.max(FLOOD) } else { count });
    }

    /// Whether clients of this network have flooded other connections a moment ago.
    pub fn is_of_flooding_network(&self) -> bool {
        self.clients.resets[self.state.network.place(FLOOD_PLACES)].get() > MOST_RESETS
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
        if matches!(self.state.eviction.get(), Some(Eviction::Idle | Eviction::Slow | Eviction::Share)) {
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

    /// Whether the certificate that the client has verified speaks for this host (RFC 9110, section 15.5.20).
    pub fn speaks_for(&self, host: &str) -> bool {
        let Some(AgreedTls { certificates, sni }) = self.state.tls.get() else { return true };
        certificates.serves_alike(sni.as_deref(), host)
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
        matches!(self.state.eviction.get(), Some(Eviction::Memory | Eviction::Share))
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
    fn a_network_with_most_connections_makes_room_for_others_alone() {
        let clients = Clients::new(4, usize::MAX);
        let there = Network::of([192, 0, 2, 1].into());
        let now = Instant::now();
        let connections = [HERE, there, HERE, HERE].map(|network| clients.open(network, now));
        connections.iter().for_each(|connection| connection.end_idle());
        let mut account = connections[2].account();
        account.hold(Held::Downstream, 1000);

        assert_eq!(clients.make_room(HERE, now), None);
        assert_eq!(clients.make_room(there, now + Duration::from_secs(1)), Some((1, Eviction::Share)));
        assert!(account.is_evicted());
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
