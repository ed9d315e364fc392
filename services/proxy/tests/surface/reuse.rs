//! Connections to endpoints that are used again: no client ever gets what was meant for another.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use crate::harness::{
    edge::Edge,
    eventually,
    fleet::FleetFile,
    origin::{Origin, Seen},
    peer::Peer,
};

const GET: &str = "GET /second HTTP/1.1\r\nHost: site.test\r\n\r\n";
const STALE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale";

/// An origin that answers the target `/first` with `response` and then, `after` a moment, sends what nobody asked for, and
/// says in `sent` that it has.
fn late(response: &'static str, after: Duration, sent: Arc<AtomicBool>) -> Origin {
    Origin::scripted(move |mut peer, seen, _| {
        while let Some(request) = peer.request() {
            seen.note(&request);
            if request.target() == "/first" {
                peer.send(response);
                sleep(after);
                let stale = peer.try_send(STALE);
                sent.store(true, Ordering::SeqCst);
                if stale.is_err() {
                    return;
                }
            } else if peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfresh").is_err() {
                return;
            }
        }
    })
}

/// How often, in `trials`, the next client gets what was sent `after` the response to a first one's `method`. It asks `between`
/// the response and its request, or with `waits` that long after it was sent.
fn stale_responses(
    (method, response): (&str, &'static str),
    after: Duration,
    between: Duration,
    waits: bool,
    trials: usize,
) -> usize {
    let first = format!("{method} /first HTTP/1.1\r\nHost: site.test\r\nContent-Length: 0\r\n\r\n");
    let sent = Arc::new(AtomicBool::new(false));
    let origin = late(response, after, sent.clone());
    let stale = (0..trials).filter(|_| {
        sent.store(false, Ordering::SeqCst);
        let edge = Edge::start(&FleetFile::of(&[origin.address()]));
        let (mut client, mut next) = (Peer::connect(edge.address()), Peer::connect(edge.address()));
        client.send(&first);
        client.head().expect("a response");
        while waits && !sent.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // A pause is the recipe: what arrives meanwhile belongs to no request.
        sleep(between);
        next.ask(GET).text() != "fresh"
    });
    stale.count()
}

const CASES: [(&str, &str); 4] = [
    ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
    ("GET", "HTTP/1.1 304 Not Modified\r\n\r\n"),
    ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
];

#[test]
fn bytes_that_arrive_on_an_idle_connection_are_nobodys_response() {
    for case in CASES {
        for between in [2, 4, 8, 15].map(Duration::from_millis) {
            let stale = stale_responses(case, Duration::from_millis(1), between, true, 10);
            assert_eq!(stale, 0, "{case:?}, {between:?}");
        }
    }
}

#[test]
fn a_late_body_of_a_response_without_one_is_nobodys_response_even_after_the_next_request() {
    // All but the last, which no edge can tell from a response.
    for case in &CASES[..3] {
        let stale = stale_responses(*case, Duration::from_millis(10), Duration::from_millis(1), false, 10);
        assert_eq!(stale, 0, "{case:?}");
    }
}

#[test]
fn an_endpoint_that_sends_excess_bytes_is_not_trusted_with_reuse() {
    let excess =
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfreshHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale";
    let origin = Origin::answering(|_| excess.into());
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    for _ in 0..5 {
        assert_eq!(client.ask(GET).text(), "fresh");
    }
    assert_eq!(origin.seen().connections(), 5);
    eventually("it is counted", || edge.metric("tidegate_cluster_excess_bytes_total") > 0.0);
}

#[test]
fn an_endpoint_that_says_that_an_idle_connection_timed_out_is_trusted_still() {
    let (answered, timed_out) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let origin = Origin::scripted({
        let (answered, timed_out) = (answered.clone(), timed_out.clone());
        move |mut peer, seen, _| {
            if let Some(request) = peer.request() {
                seen.note(&request);
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfresh");
                answered.wait();
                peer.send("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
                timed_out.wait();
            }
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    for _ in 0..3 {
        let before = origin.seen().connections();
        assert_eq!(client.ask(GET).text(), "fresh");
        assert_eq!(origin.seen().connections(), before + 1);
        answered.wait();
        timed_out.wait();
    }
    assert_eq!(edge.metric("tidegate_cluster_excess_bytes_total"), 0.0);
}

/// What an origin sees on its connections after an early final response to a request whose body was not sent whole.
fn after_an_early_response(expects: bool) -> Seen {
    let origin = Origin::scripted(|mut peer, seen, _| {
        while let Some(head) = peer.head() {
            seen.note(&head);
            let status = if head.target() == "/second" { "200 OK" } else { "403 Forbidden" };
            if peer.try_send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).is_err() {
                return;
            }
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    let expect = if expects { "Expect: 100-continue\r\n" } else { "" };
    client.send(format!("POST /first HTTP/1.1\r\nHost: site.test\r\n{expect}Content-Length: 46\r\n\r\n"));
    assert_eq!(client.head().expect("an early response").status(), 403);
    // A client may send the body all the same: it must not become a request of its own at the origin.
    _ = client.try_send("GET /smuggled HTTP/1.1\r\nHost: site.test.x\r\n\r\n");
    for _ in 0..3 {
        assert_eq!(Peer::connect(edge.address()).ask(GET).status(), 200);
    }
    origin.seen().clone()
}

#[test]
fn a_body_that_follows_an_early_final_response_is_not_taken_for_a_request() {
    let seen = after_an_early_response(true);
    let targets: Vec<String> = seen.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(targets, ["/first", "/second", "/second", "/second"]);
    assert_eq!(seen.connections(), 2, "the connection of the early response is not used again");
}

#[test]
fn the_connection_of_an_early_response_is_not_used_again() {
    let seen = after_an_early_response(false);
    let second = seen.requests().iter().filter(|request| request.target() == "/second").count();
    assert_eq!((second, seen.connections()), (3, 2));
}

#[test]
fn a_client_that_goes_away_costs_no_connection_where_the_response_is_short() {
    let (responds, may_respond) = std::sync::mpsc::channel();
    let may_respond = std::sync::Mutex::new(may_respond);
    let origin = Origin::scripted(move |mut peer, seen, _| {
        while let Some(request) = peer.head_or_end() {
            seen.note(&request);
            if request.target() == "/slow" {
                _ = may_respond.lock().unwrap().recv_timeout(Duration::from_secs(5));
            }
            let body = if request.target() == "/slow" { "slow!" } else { "fresh" };
            _ = peer.try_send(format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}"));
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]).service("retry: { hedge_after: off }"));
    let slow = || origin.seen().requests().iter().filter(|request| request.target() == "/slow").count();
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "fresh");
    for number in 1..=20 {
        let mut client = Peer::connect(edge.address());
        client.send("GET /slow HTTP/1.1\r\nHost: site.test\r\n\r\n");
        eventually("the request arrives", || slow() == number);
        client.reset();
        eventually("the edge knows that the client is gone", || {
            edge.metric("tidegate_proxy_connections_open") == 0.0
        });
        responds.send(()).unwrap();
        // Whoever asks next gets its own response, be the other one there already or not.
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "fresh");
    }
    // Where the next one was faster, it took another connection.
    let connects = edge.metric("tidegate_cluster_connects_total");
    assert!(connects <= 3.0, "{connects}");
}
