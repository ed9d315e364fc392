//! Requests at a cluster that wait for their clients: they are not the cluster's work.
//!
//! A client that sends its request's body byte by byte, or takes its response so, must not take a place that another's
//! request needs. So as many such requests as may be under way do not count as that; when there are more and no place is
//! left, a slow client of the network that has most of them is given up.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use slab::Slab;
use tokio::time::Instant;

use crate::clients::{Network, Pace};

/// The requests of one cluster that wait for their clients; of one worker.
#[derive(Default)]
pub struct Waiting(RefCell<Slab<WaitingRequest>>);

/// A request that waits for its client.
struct WaitingRequest {
    pace: Rc<Pace>,
    /// Whether it has a connection to its endpoint that no other request uses.
    has_connection: bool,
}

impl Waiting {
    /// Counts a request that waits for its client, until it [leaves](Waiting::leave) by the key that is returned.
    pub fn enter(&self, pace: &Rc<Pace>, has_connection: bool) -> usize {
        self.0.borrow_mut().insert(WaitingRequest { pace: pace.clone(), has_connection })
    }

    /// Counts it no more.
    pub fn leave(&self, key: usize) {
        self.0.borrow_mut().remove(key);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// Gives the slowest client of the network with most requests up, so that one of `newcomer` has room. One that is not
    /// slow is only given up if its network has more than half of all, and for another network's. Returns whether one was.
    pub fn give_one_up(&self, newcomer: Network, now: Instant) -> bool {
        self.give_up(newcomer, now, |_| true)
    }

    /// The same among those whose connections to endpoints become free by it.
    pub fn give_one_with_connection_up(&self, newcomer: Network, now: Instant) -> bool {
        self.give_up(newcomer, now, |request| request.has_connection)
    }

    fn give_up(&self, newcomer: Network, now: Instant, is_candidate: fn(&WaitingRequest) -> bool) -> bool {
        let requests = self.0.borrow();
        let waiting = || {
            let requests =
                requests.iter().map(|(_, request)| request).filter(|request| is_candidate(request));
            requests.map(|request| &request.pace).filter(|pace| !pace.is_given_up())
        };
        let mut counts: HashMap<Network, usize> = HashMap::new();
        waiting().for_each(|pace| *counts.entry(pace.network()).or_default() += 1);
        let all: usize = counts.values().sum();
        let slowest = |paces: &mut dyn Iterator<Item = &Rc<Pace>>| {
            paces.min_by_key(|pace| (usize::MAX - counts[&pace.network()], pace.credit_at(now))).cloned()
        };
        let victim = slowest(&mut waiting().filter(|pace| pace.is_slow(now))).or_else(|| {
            let is_greedy =
                |pace: &&Rc<Pace>| pace.network() != newcomer && counts[&pace.network()] * 2 > all;
            slowest(&mut waiting().filter(is_greedy))
        });
        if let Some(victim) = &victim {
            victim.give_up();
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

    /// Requests of clients in these networks that have waited for them for ten seconds less what they moved before that.
    fn waiting(clients: [(u8, u64); 4]) -> (Waiting, [Rc<Pace>; 4], Instant) {
        let (waiting, start) = (Waiting::default(), Instant::now());
        let paces = clients.map(|(number, bytes)| {
            let pace = Rc::new(Pace::new(network(number)));
            let cx = Context::from_waker(Waker::noop());
            pace.wait(Upload, start, &cx);
            pace.moved(Upload, bytes, start + Duration::from_secs(9));
            pace.wait(Upload, start + Duration::from_secs(9), &cx);
            waiting.enter(&pace, number == 2);
            pace
        });
        (waiting, paces, start + Duration::from_secs(10))
    }

    fn given_up(paces: &[Rc<Pace>; 4]) -> [bool; 4] {
        paces.each_ref().map(|pace| pace.is_given_up())
    }

    #[test]
    fn the_slowest_client_of_the_network_with_most_is_given_up_for_another() {
        let (waiting, paces, now) = waiting([(1, 0), (2, 40), (2, 20), (3, 10)]);
        assert!(waiting.give_one_up(network(4), now));
        assert_eq!(given_up(&paces), [false, false, true, false]);
    }

    #[test]
    fn quick_clients_are_only_given_up_where_one_network_has_most_places() {
        let (waiting, paces, now) = waiting([(1, 900), (2, 800), (2, 700), (2, 600)]);
        assert!(!waiting.give_one_up(network(2), now), "its own network has most");
        assert!(waiting.give_one_up(network(4), now));
        assert_eq!(given_up(&paces), [false, false, false, true]);
    }

    #[test]
    fn where_connections_lack_only_requests_that_have_one_are_given_up() {
        let (waiting, paces, now) = waiting([(1, 0), (1, 40), (2, 20), (1, 10)]);
        assert!(waiting.give_one_with_connection_up(network(4), now));
        assert_eq!(given_up(&paces), [false, false, true, false]);
        assert!(!waiting.give_one_with_connection_up(network(4), now));
    }

    #[test]
    fn what_has_left_is_neither_counted_nor_given_up() {
        let (waiting, paces, now) = waiting([(1, 0), (1, 0), (1, 0), (1, 0)]);
        [0, 1, 2].into_iter().for_each(|key| waiting.leave(key));
        assert_eq!(waiting.count(), 1);
        assert!(waiting.give_one_up(network(1), now));
        assert!(!waiting.give_one_up(network(1), now));
        assert_eq!(given_up(&paces), [false, false, false, true]);
    }
}
