//! Listeners come and go as the edge's entry says; what could not be opened is a problem for as long as it is wanted.

use std::net::{SocketAddr, TcpListener};

use crate::harness::{edge::Edge, eventually, fleet::FleetFile, origin::Origin, peer::Peer};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";

/// An address that somebody else listens on.
fn taken() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn an_edge_is_ready_again_once_a_listener_is_wanted_as_it_is_open() {
    let origin = Origin::named("a");
    let mut edge = Edge::start(&FleetFile::of(&[origin.address()]));
    eventually("it is ready", || edge.is_ready());
    let ((_held, address), mut before) = (taken(), None);
    edge.entry(|entry| before = Some(std::mem::replace(&mut entry.listeners[0].1.bind, address)));
    eventually("it says that it cannot listen there", || !edge.is_ready());
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a", "what is open goes on");

    edge.entry(|entry| entry.listeners[0].1.bind = before.unwrap());

    eventually("it is ready again", || edge.is_ready());
}

#[test]
fn a_listener_that_never_opened_and_is_not_wanted_any_more_is_no_problem() {
    let origin = Origin::named("a");
    let mut edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let (_held, address) = taken();
    edge.entry(|entry| {
        let mut other = entry.listeners[0].1.clone();
        other.bind = address;
        entry.listeners.push(("other".parse().unwrap(), other));
    });
    eventually("it says that it cannot listen there", || !edge.is_ready());

    edge.entry(|entry| entry.listeners.truncate(1));

    eventually("it is ready again", || edge.is_ready());
}
