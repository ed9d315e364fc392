//! Requests at a cluster that wait for their clients, which do not count as the cluster's load.
//!
//! A client that sends its request's body byte by byte, or reads its response that slowly, must not use up a cluster's
//! `max_requests`. So requests that wait for their clients are counted apart, up to as many again; beyond that, a slow
//! client of the network with most of them is evicted.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use slab::Slab;
use tokio::time::Instant;

use crate::clients::{Network, StallBudget};

/// The requests of one cluster in one worker that wait for their clients.
#[derive(Default)]
pub struct AwaitingClients(RefCell<Slab<WaitingRequest>>);

/// A request that waits for its client.
struct WaitingRequest {
    stall_budget: Rc<StallBudget>,
    /// Whether it has a connection to its endpoint that no other request uses.
    has_connection: bool,
}

impl AwaitingClients {
    /// Adds a request that waits for its client. Returns its key.
    pub fn insert(&self, stall_budget: &Rc<StallBudget>, has_connection: bool) -> usize {
        self.0.borrow_mut().insert(WaitingRequest { stall_budget: stall_budget.clone(), has_connection })
    }

    /// Removes the request with this key.
    pub fn remove(&self, key: usize) {
        self.0.borrow_mut().remove(key);
    }

    /// The number of requests.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// Evicts the slowest client of the network with most requests to make room for one of `newcomer`. A client that is
    /// not slow is only evicted if its network has more than half of all requests, and only for another network.
    /// Returns whether one was evicted.
    pub fn evict_slowest(&self, newcomer: Network, now: Instant) -> bool {
        self.evict(newcomer, now, |_| true)
    }

    /// Like [`AwaitingClients::evict_slowest`], among requests whose eviction frees an upstream connection.
    pub fn evict_slowest_with_connection(&self, newcomer: Network, now: Instant) -> bool {
        self.evict(newcomer, now, |request| request.has_connection)
    }

    fn evict(&self, newcomer: Network, now: Instant, is_candidate: fn(&WaitingRequest) -> bool) -> bool {
        let requests = self.0.borrow();
        let waiting = || {
            let requests =
                requests.iter().map(|(_, request)| request).filter(|request| is_candidate(request));
            requests.map(|request| &request.stall_budget).filter(|stall_budget| !stall_budget.is_evicted())
        };
        let mut counts: HashMap<Network, usize> = HashMap::new();
        waiting().for_each(|stall_budget| *counts.entry(stall_budget.network()).or_default() += 1);
        let all: usize = counts.values().sum();
        let slowest = |stall_budgets: &mut dyn Iterator<Item = &Rc<StallBudget>>| {
            stall_budgets
                .min_by_key(|stall_budget| {
                    (usize::MAX - counts[&stall_budget.network()], stall_budget.credit_at(now))
                })
                .cloned()
        };
        let victim = slowest(&mut waiting().filter(|stall_budget| stall_budget.is_slow(now))).or_else(|| {
            let is_greedy = |stall_budget: &&Rc<StallBudget>| {
                stall_budget.network() != newcomer && counts[&stall_budget.network()] * 2 > all
            };
            slowest(&mut waiting().filter(is_greedy))
        });
        if let Some(victim) = &victim {
            victim.evict();
        }
        victim.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        task::{Context, Waker},
        time::Duration,
    };

    use super::*;
    use crate::clients::Direction::Upload;

    fn network(number: u8) -> Network {
        Network::of([192, 0, number, 1].into())
    }

    /// Requests that have waited ten seconds for clients in these networks, which moved so many bytes meanwhile.
    fn waiting(clients: [(u8, u64); 4]) -> (AwaitingClients, [Rc<StallBudget>; 4], Instant) {
        let (waiting, start) = (AwaitingClients::default(), Instant::now());
        let stall_budgets = clients.map(|(number, bytes)| {
            let stall_budget = Rc::new(StallBudget::new(network(number)));
            let cx = Context::from_waker(Waker::noop());
            stall_budget.record_wait(Upload, start, &cx);
            stall_budget.record_progress(Upload, bytes, start + Duration::from_secs(9));
            stall_budget.record_wait(Upload, start + Duration::from_secs(9), &cx);
            waiting.insert(&stall_budget, number == 2);
            stall_budget
        });
        (waiting, stall_budgets, start + Duration::from_secs(10))
    }

    fn evicted(stall_budgets: &[Rc<StallBudget>; 4]) -> [bool; 4] {
        stall_budgets.each_ref().map(|stall_budget| stall_budget.is_evicted())
    }

    #[test]
    fn the_slowest_client_of_the_network_with_most_is_given_up_for_another() {
        let (waiting, stall_budgets, now) = waiting([(1, 0), (2, 40), (2, 20), (3, 10)]);
        assert!(waiting.evict_slowest(network(4), now));
        assert_eq!(evicted(&stall_budgets), [false, false, true, false]);
    }

    #[test]
    fn quick_clients_are_only_given_up_where_one_network_has_most_places() {
        let (waiting, stall_budgets, now) = waiting([(1, 900), (2, 800), (2, 700), (2, 600)]);
        assert!(!waiting.evict_slowest(network(2), now), "its own network has most");
        assert!(waiting.evict_slowest(network(4), now));
        assert_eq!(evicted(&stall_budgets), [false, false, false, true]);
    }

    #[test]
    fn where_connections_lack_only_requests_that_have_one_are_given_up() {
        let (waiting, stall_budgets, now) = waiting([(1, 0), (1, 40), (2, 20), (1, 10)]);
        assert!(waiting.evict_slowest_with_connection(network(4), now));
        assert_eq!(evicted(&stall_budgets), [false, false, true, false]);
        assert!(!waiting.evict_slowest_with_connection(network(4), now));
    }

    #[test]
    fn what_has_left_is_neither_counted_nor_given_up() {
        let (waiting, stall_budgets, now) = waiting([(1, 0), (1, 0), (1, 0), (1, 0)]);
        [0, 1, 2].into_iter().for_each(|key| waiting.remove(key));
        assert_eq!(waiting.count(), 1);
        assert!(waiting.evict_slowest(network(1), now));
        assert!(!waiting.evict_slowest(network(1), now));
        assert_eq!(evicted(&stall_budgets), [false, false, false, true]);
    }
}
