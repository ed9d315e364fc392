//! A worker's view of clusters and endpoints: what is under way, what is idle, what failed.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use tidegate_model::{
    ClusterName, RegionName, ServiceName,
    fleet::{Address, Upstream},
    health::CheckId,
};
use tokio::time::Instant;

use super::{
    outlier::{Ejection, Tally},
    pool::Pool,
    waiting::Waiting,
};
use crate::{
    clients::{ClientShare, Network, NetworkCounts, Pace},
    metrics::ClusterCounters,
    tls::UpstreamTlsConfig,
    wire::WakeSet,
};

/// A cluster, as one worker serves it.
pub struct ClusterState {
    /// Its name.
    pub name: ClusterName,
    /// Its region.
    pub region: RegionName,
    /// How it is spoken to.
    pub upstream: Upstream,
    /// The TLS configuration towards it, where `upstream.tls` asks for one.
    pub tls: Option<Arc<UpstreamTlsConfig>>,
    /// Requests that wait for their clients.
    pub waiting: Waiting,
    /// The other ones under way, of which a network's count for no more than its share.
    at_work: NetworkCounts,
    /// All requests under way.
    under_way: NetworkCounts,
    /// This worker's part of the most requests that may be under way from the whole edge.
    max_requests: u32,
    /// Counters of this worker.
    pub counters: Arc<ClusterCounters>,
}

impl ClusterState {
    /// A cluster with nothing under way, to which `max_requests` may be from this worker.
    pub fn new(
        (name, region): (ClusterName, RegionName),
        upstream: Upstream,
        tls: Option<Arc<UpstreamTlsConfig>>,
        max_requests: u32,
        counters: Arc<ClusterCounters>,
    ) -> ClusterState {
        let share = max_requests - reserve(max_requests);
        ClusterState {
            name,
            region,
            upstream,
            tls,
            waiting: Waiting::default(),
            at_work: NetworkCounts::with_cap(CLIENT_NETWORKS, share),
            under_way: NetworkCounts::new(CLIENT_NETWORKS),
            max_requests,
            counters,
        }
    }

    /// Whether another request of a client in `network` may be sent.
    ///
    /// Requests that wait for their clients are not the cluster's work, up to as many as the limit; of its work, and of all that
    /// is under way, the network has less than its part of what is left. Clients of one network that begin to send all at
    /// once still count for no more than the network's share, so others find room; for them an eighth more may be under way.
    pub fn has_room(&self, network: Network) -> bool {
        let free = self.free();
        self.at_work.may_add(network, self.work_left().min(free)) && self.under_way.may_add(network, free)
    }

    /// Whether another request of a client in `network` may be sent, if need be instead of one that waits for a slow client,
    /// which is given up.
    pub fn make_headroom_for(&self, network: Network, now: Instant) -> bool {
        self.has_room(network)
            || self.at_work.may_add(network, self.work_left()) && self.waiting.give_one_up(network, now)
    }

    /// How many requests are under way, those that wait for their clients included.
    pub fn active(&self) -> u32 {
        self.under_way.total()
    }

    /// How much more the cluster may be given to do.
    fn work_left(&self) -> usize {
        self.max_requests.saturating_sub(self.at_work.total()) as usize
    }

    /// How many more requests may be under way.
    fn free(&self) -> usize {
        let most = self.max_requests.saturating_mul(2).saturating_add(reserve(self.max_requests));
        most.saturating_sub(self.active()) as usize
    }
}

/// How many networks of clients are told apart at each cluster.
const CLIENT_NETWORKS: usize = 512;

/// What one network leaves of a limit for others: nothing of a small one.
fn reserve(limit: u32) -> u32 {
    limit / 8
}

/// An endpoint, as one worker serves it. It outlives changes of the table while its address and cluster stay.
pub struct EndpointState {
    /// Where it is.
    pub address: Address,
    /// Its cluster's name.
    pub cluster: ClusterName,
    /// Requests under way.
    pub outstanding: Cell<u32>,
    /// Connections.
    pub pool: Pool,
    /// Whether connections to it fail.
    ejection: Ejection,
    /// How actions fare here: of a service, its default (0) or one of its routes, from 1.
    tallies: RefCell<HashMap<(ServiceName, usize), Rc<Tally>>>,
    /// Checks by which it is down.
    down_for: RefCell<Vec<CheckId>>,
    /// Checks by which it is down and silent: nothing that waits for it will be answered.
    unreachable_for: RefCell<Vec<CheckId>>,
    /// Requests that wait for it, woken when it falls silent.
    waiting: WakeSet,
}

impl EndpointState {
    /// An endpoint of which nothing is known.
    pub fn new(address: Address, cluster: ClusterName) -> Rc<EndpointState> {
        Rc::new(EndpointState {
            address,
            cluster,
            outstanding: Cell::new(0),
            pool: Pool::default(),
            ejection: Ejection::default(),
            tallies: RefCell::default(),
            down_for: RefCell::default(),
            unreachable_for: RefCell::default(),
            waiting: WakeSet::default(),
        })
    }

    /// Whether failures to connect keep requests away at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejection.is_in_force(now)
    }

    /// It responded to a request.
    pub fn record_response(&self) {
        self.ejection.record_response();
    }

    /// A connection to it could not be made. Returns whether it is ejected by this.
    pub fn record_connect_failure(&self, now: Instant) -> bool {
        self.ejection.record_connect_failure(now)
    }

    /// How an action fares here.
    pub fn tally(&self, service: &ServiceName, action: usize) -> Rc<Tally> {
        self.tallies.borrow_mut().entry((service.clone(), action)).or_default().clone()
    }

    /// Forgets how actions fare that no table has any more.
    pub fn forget_tallies(&self) {
        self.tallies.borrow_mut().retain(|_, tally| Rc::strong_count(tally) > 1);
    }

    /// Whether the verdict by `check` is that it is down and silent.
    pub fn is_unreachable(&self, check: CheckId) -> bool {
        let unreachable_for = self.unreachable_for.borrow();
        !unreachable_for.is_empty() && unreachable_for.contains(&check)
    }

    /// Takes note of the verdict by `check`: whether it is down, and whether it is silent with that.
    pub fn set_health(&self, check: CheckId, down: bool, silent: bool) {
        if note(&self.down_for, check, down) && !down && self.down_for.borrow().is_empty() {
            // Probers have seen it serve since it failed here: what was held against it is answered. Where they never
            // had it down, they can't see what fails, and its own failures go on to count.
            self.ejection.clear();
            self.tallies.borrow().values().for_each(|tally| tally.clear());
        }
        if note(&self.unreachable_for, check, silent) && silent {
            // A path that swallows packets would swallow the next request on these as well.
            self.pool.clear();
            self.waiting.wake_all();
        }
    }
}

/// Makes `checks` contain `check` or not. Returns whether that is new.
fn note(checks: &RefCell<Vec<CheckId>>, check: CheckId, contained: bool) -> bool {
    let mut checks = checks.borrow_mut();
    match (contained, checks.iter().position(|known| *known == check)) {
        (true, None) => checks.push(check),
        (false, Some(at)) => _ = checks.swap_remove(at),
        (true, Some(_)) | (false, None) => return false,
    }
    true
}

/// A request under way at an endpoint; ends when dropped.
pub struct InFlight {
    /// The endpoint.
    pub endpoint: Rc<EndpointState>,
    /// Its cluster.
    pub cluster: Rc<ClusterState>,
    client: ClientShare,
    /// Whether it has a connection of its own.
    has_connection: Cell<bool>,
    waker: Cell<Option<usize>>,
    /// Its key among those that wait for their clients, while it does.
    waiting_key: Cell<Option<usize>>,
}

impl InFlight {
    /// Counts a request of a client to `endpoint`.
    pub fn new(endpoint: Rc<EndpointState>, cluster: Rc<ClusterState>, client: ClientShare) -> InFlight {
        endpoint.outstanding.set(endpoint.outstanding.get() + 1);
        cluster.at_work.add(client.network());
        cluster.under_way.add(client.network());
        InFlight {
            endpoint,
            cluster,
            client,
            has_connection: Cell::new(false),
            waker: Cell::new(None),
            waiting_key: Cell::new(None),
        }
    }

    /// The client's part of the connections to endpoints.
    pub fn client(&self) -> &ClientShare {
        &self.client
    }

    /// Counts a connection to the endpoint as the request's own.
    pub fn take_connection(&self) {
        if !self.has_connection.replace(true) {
            self.client.take();
        }
    }

    /// Has the task woken when the endpoint falls silent. A task's waker is registered once.
    pub fn wake_when_unreachable(&self, cx: &std::task::Context<'_>) {
        if self.waker.get().is_none() {
            self.waker.set(Some(self.endpoint.waiting.insert(cx.waker().clone())));
        }
    }

    /// Counts the request apart while it waits for its client.
    pub fn update_client_wait(&self, pace: Option<&Rc<Pace>>) {
        let pace = pace.filter(|pace| pace.is_waiting());
        match (pace, self.waiting_key.get()) {
            (Some(pace), None) => {
                self.waiting_key.set(Some(self.cluster.waiting.enter(pace, self.has_connection.get())));
                self.cluster.at_work.remove(self.client.network());
            }
            (None, Some(key)) => {
                self.cluster.waiting.leave(key);
                self.cluster.at_work.add(self.client.network());
                self.waiting_key.set(None);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// The response has begun: it is not waited for any more.
    pub fn stop_waiting(&self) {
        if let Some(key) = self.waker.take() {
            self.endpoint.waiting.remove(key);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.stop_waiting();
        self.update_client_wait(None);
        if self.has_connection.get() {
            self.client.give_back();
        }
        self.endpoint.outstanding.set(self.endpoint.outstanding.get() - 1);
        self.cluster.at_work.remove(self.client.network());
        self.cluster.under_way.remove(self.client.network());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: CheckId = CheckId(1);
    const OTHER: CheckId = CheckId(2);

    fn ejected() -> (Rc<EndpointState>, Instant) {
        let endpoint = EndpointState::new("127.0.0.1:1".parse().unwrap(), "a".parse().unwrap());
        let now = Instant::now();
        assert!(endpoint.record_connect_failure(now));
        (endpoint, now)
    }

    #[test]
    fn an_endpoint_that_was_down_and_is_up_again_is_no_longer_ejected() {
        let (endpoint, now) = ejected();
        endpoint.set_health(CHECK, true, true);
        assert!(endpoint.is_ejected(now));
        endpoint.set_health(CHECK, false, false);
        assert!(!endpoint.is_ejected(now));
    }

    #[test]
    fn an_endpoint_that_probers_never_had_down_stays_ejected() {
        let (endpoint, now) = ejected();
        endpoint.set_health(CHECK, false, false);
        assert!(endpoint.is_ejected(now));
    }

    #[test]
    fn an_endpoint_that_another_check_has_down_stays_ejected() {
        let (endpoint, now) = ejected();
        endpoint.set_health(CHECK, true, false);
        endpoint.set_health(OTHER, true, false);
        endpoint.set_health(CHECK, false, false);
        assert!(endpoint.is_ejected(now));
        endpoint.set_health(OTHER, false, false);
        assert!(!endpoint.is_ejected(now));
    }
}
