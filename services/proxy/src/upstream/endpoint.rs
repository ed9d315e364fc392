//! A worker's state of clusters and endpoints: requests in flight, connections, failures.

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
    awaiting_clients::AwaitingClients,
    outlier::{Ejection, OutlierDetector},
    pool::Pool,
};
use crate::{
    clients::{Network, NetworkCounts, StallBudget, UpstreamQuota},
    metrics::ClusterCounters,
    tls::UpstreamTlsConfig,
    wire::WakeSet,
};

/// A cluster's state in one worker.
pub struct ClusterState {
    /// The cluster's name.
    pub name: ClusterName,
    /// The cluster's region.
    pub region: RegionName,
    /// The settings of its upstream connections.
    pub upstream: Upstream,
    /// The TLS configuration, if `upstream.tls` is set.
    pub tls: Option<Arc<UpstreamTlsConfig>>,
    /// Requests that wait for their clients, counted apart from its load.
    pub awaiting_clients: AwaitingClients,
    /// The other requests in flight, by client network; each network adds at most its share to the total.
    working_by_network: NetworkCounts,
    /// All requests in flight, by client network.
    active_by_network: NetworkCounts,
    /// This worker's share of the cluster's `max_requests`.
    max_requests: u32,
    /// The counters of this worker.
    pub counters: Arc<ClusterCounters>,
}

impl ClusterState {
    /// A cluster without requests; `max_requests` is this worker's share.
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
            awaiting_clients: AwaitingClients::default(),
            working_by_network: NetworkCounts::with_cap(CLIENT_NETWORKS, share),
            active_by_network: NetworkCounts::new(CLIENT_NETWORKS),
            max_requests,
            counters,
        }
    }

    /// Whether another request of a client in `network` may be sent.
    ///
    /// Requests that wait for their clients do not count as load, up to as many as the limit. Both of the load and of
    /// all requests in flight, a network may only take its share of what is free. Clients of one network that all begin
    /// to send at once still count for no more than the network's share, so that others find room; an eighth more may
    /// be in flight for them.
    pub fn has_room(&self, network: Network) -> bool {
        let free = self.free();
        self.working_by_network.may_add(network, self.work_left().min(free))
            && self.active_by_network.may_add(network, free)
    }

    /// Makes room for another request of a client in `network`, if necessary by evicting a slow client. Returns whether
    /// there is room.
    pub fn make_headroom_for(&self, network: Network, now: Instant) -> bool {
        self.has_room(network)
            || self.working_by_network.may_add(network, self.work_left())
                && self.awaiting_clients.evict_slowest(network, now)
    }

    /// The number of requests in flight, including those that wait for their clients.
    pub fn active(&self) -> u32 {
        self.active_by_network.total()
    }

    /// How much more load the cluster may get.
    fn work_left(&self) -> usize {
        self.max_requests.saturating_sub(self.working_by_network.total()) as usize
    }

    /// How many more requests may be in flight.
    fn free(&self) -> usize {
        let most = self.max_requests.saturating_mul(2).saturating_add(reserve(self.max_requests));
        most.saturating_sub(self.active()) as usize
    }
}

/// The number of buckets for client networks at each cluster.
const CLIENT_NETWORKS: usize = 512;

/// The part of a limit that one network leaves for others: nothing of a small limit.
fn reserve(limit: u32) -> u32 {
    limit / 8
}

/// An endpoint's state in one worker. It survives table updates while the endpoint keeps its address and cluster.
pub struct EndpointState {
    /// The endpoint's address.
    pub address: Address,
    /// The name of its cluster.
    pub cluster: ClusterName,
    /// The number of requests in flight.
    pub outstanding: Cell<u32>,
    /// Its connections.
    pub pool: Pool,
    /// Its ejection for failed connection attempts.
    ejection: Ejection,
    /// The outlier detectors by service and action: the default action (0) or one of the routes, from 1.
    detectors: RefCell<HashMap<(ServiceName, usize), Rc<OutlierDetector>>>,
    /// The checks by which it is down.
    down_for: RefCell<Vec<CheckId>>,
    /// The checks by which it is down and unreachable: requests that wait for it will get no response.
    unreachable_for: RefCell<Vec<CheckId>>,
    /// Requests that wait for a response, woken when the endpoint becomes unreachable.
    waiting: WakeSet,
}

impl EndpointState {
    /// A new endpoint without requests or failures.
    pub fn new(address: Address, cluster: ClusterName) -> Rc<EndpointState> {
        Rc::new(EndpointState {
            address,
            cluster,
            outstanding: Cell::new(0),
            pool: Pool::default(),
            ejection: Ejection::default(),
            detectors: RefCell::default(),
            down_for: RefCell::default(),
            unreachable_for: RefCell::default(),
            waiting: WakeSet::default(),
        })
    }

    /// Whether it is ejected at `now` because of failed connection attempts.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejection.is_active(now)
    }

    /// Records that it responded to a request.
    pub fn record_response(&self) {
        self.ejection.record_response();
    }

    /// Records a failed connection attempt. Returns whether this ejects the endpoint.
    pub fn record_connect_failure(&self, now: Instant) -> bool {
        self.ejection.record_connect_failure(now)
    }

    /// The outlier detector of an action at this endpoint.
    pub fn detector(&self, service: &ServiceName, action: usize) -> Rc<OutlierDetector> {
        self.detectors.borrow_mut().entry((service.clone(), action)).or_default().clone()
    }

    /// Drops the detectors of actions that are no longer in the table.
    pub fn forget_unused_detectors(&self) {
        self.detectors.borrow_mut().retain(|_, detector| Rc::strong_count(detector) > 1);
    }

    /// Whether it is down and unreachable by `check`.
    pub fn is_unreachable(&self, check: CheckId) -> bool {
        let unreachable_for = self.unreachable_for.borrow();
        !unreachable_for.is_empty() && unreachable_for.contains(&check)
    }

    /// Updates the verdict by `check`: whether it is down, and whether it is also unreachable.
    pub fn set_health(&self, check: CheckId, down: bool, silent: bool) {
        if set_membership(&self.down_for, check, down) && !down && self.down_for.borrow().is_empty() {
            // Probers have seen it recover since it failed here, so its failures are cleared. If probes never failed,
            // they cannot see the problem, and its failures continue to count.
            self.ejection.clear();
            self.detectors.borrow().values().for_each(|detector| detector.clear());
        }
        if set_membership(&self.unreachable_for, check, silent) && silent {
            // A path that drops packets would drop the next request on these connections as well.
            self.pool.clear();
            self.waiting.wake_all();
        }
    }
}

/// Adds `check` to `checks` or removes it. Returns whether that changed anything.
fn set_membership(checks: &RefCell<Vec<CheckId>>, check: CheckId, contained: bool) -> bool {
    let mut checks = checks.borrow_mut();
    match (contained, checks.iter().position(|known| *known == check)) {
        (true, None) => checks.push(check),
        (false, Some(at)) => _ = checks.swap_remove(at),
        (true, Some(_)) | (false, None) => return false,
    }
    true
}

/// Counts a request in flight at an endpoint until dropped.
pub struct InFlightRequest {
    /// The endpoint.
    pub endpoint: Rc<EndpointState>,
    /// Its cluster.
    pub cluster: Rc<ClusterState>,
    client: UpstreamQuota,
    /// Whether it has a connection that no other request uses.
    has_connection: Cell<bool>,
    waker: Cell<Option<usize>>,
    /// Its key in [`AwaitingClients`] while it waits for its client.
    waiting_key: Cell<Option<usize>>,
}

impl InFlightRequest {
    /// Counts a request of a client to `endpoint`.
    pub fn new(
        endpoint: Rc<EndpointState>,
        cluster: Rc<ClusterState>,
        client: UpstreamQuota,
    ) -> InFlightRequest {
        endpoint.outstanding.set(endpoint.outstanding.get() + 1);
        cluster.working_by_network.add(client.network());
        cluster.active_by_network.add(client.network());
        InFlightRequest {
            endpoint,
            cluster,
            client,
            has_connection: Cell::new(false),
            waker: Cell::new(None),
            waiting_key: Cell::new(None),
        }
    }

    /// The client's quota of upstream connections.
    pub fn client(&self) -> &UpstreamQuota {
        &self.client
    }

    /// Counts an upstream connection against the client's quota, once per request.
    pub fn take_connection(&self) {
        if !self.has_connection.replace(true) {
            self.client.acquire();
        }
    }

    /// Registers the task to be woken when the endpoint becomes unreachable, once per request.
    pub fn wake_when_unreachable(&self, cx: &std::task::Context<'_>) {
        if self.waker.get().is_none() {
            self.waker.set(Some(self.endpoint.waiting.insert(cx.waker().clone())));
        }
    }

    /// Moves the request between the cluster's load and those that wait for their clients.
    pub fn update_client_wait(&self, stall_budget: Option<&Rc<StallBudget>>) {
        let stall_budget = stall_budget.filter(|stall_budget| stall_budget.is_waiting());
        match (stall_budget, self.waiting_key.get()) {
            (Some(stall_budget), None) => {
                self.waiting_key
                    .set(Some(self.cluster.awaiting_clients.insert(stall_budget, self.has_connection.get())));
                self.cluster.working_by_network.remove(self.client.network());
            }
            (None, Some(key)) => {
                self.cluster.awaiting_clients.remove(key);
                self.cluster.working_by_network.add(self.client.network());
                self.waiting_key.set(None);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    /// Unregisters the task: the response has begun.
    pub fn stop_waiting(&self) {
        if let Some(key) = self.waker.take() {
            self.endpoint.waiting.remove(key);
        }
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.stop_waiting();
        self.update_client_wait(None);
        if self.has_connection.get() {
            self.client.release();
        }
        self.endpoint.outstanding.set(self.endpoint.outstanding.get() - 1);
        self.cluster.working_by_network.remove(self.client.network());
        self.cluster.active_by_network.remove(self.client.network());
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
