//! Ends and beginnings: draining on shutdown and by override, and starting without a bus.

use std::{
    net::TcpStream,
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use tidegate_model::verdict::Verdict;

use crate::harness::{
    edge::{Edge, Start},
    eventually,
    fleet::FleetFile,
    origin::Origin,
    peer::Peer,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";

/// An origin that answers `ok` to each request once it is told to.
fn waiting() -> (Origin, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let origin = Origin::scripted(move |mut peer, seen, _| {
        while let Some(request) = peer.request() {
            seen.note(&request);
            if wait.lock().unwrap().recv().is_err() {
                return;
            }
            if peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    });
    (origin, go)
}

#[test]
fn a_shutdown_finishes_what_is_under_way_and_says_close() {
    let (origin, go) = waiting();
    let mut edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    client.send(GET);
    eventually("it is under way", || origin.seen().count() == 1);
    assert!(edge.is_ready());
    edge.begin_shutdown();
    eventually("it no longer accepts", || TcpStream::connect(edge.address()).is_err());
    assert!(!edge.is_ready(), "`/readyz` tells balancers that ask there");
    go.send(()).unwrap();
    let answer = client.answer();
    assert_eq!((answer.text(), answer.field("connection")), ("ok", Some("close")));
    assert!(client.ends());
    edge.stop();
}

#[test]
fn an_edge_that_shuts_down_follows_the_table_to_its_end() {
    // Given an edge that accepts on for a while, with a request under way.
    let (waits, go) = waiting();
    let b = Origin::named("b");
    let start = Start { drain_delay: Duration::from_secs(2), ..Start::default() };
    let mut edge = Edge::start_with(&FleetFile::of(&[waits.address(), b.address()]), start);
    edge.health("a", &[(waits.address(), Verdict::Up, false), (b.address(), Verdict::Down, false)]);
    let mut client = Peer::connect(edge.address());
    client.send(GET);
    eventually("it is under way", || waits.seen().count() == 1);

    // When endpoints change while it accepts, then new requests go where the table says.
    edge.begin_shutdown();
    eventually("it says that it drains", || !edge.is_ready());
    edge.health("a", &[(waits.address(), Verdict::Down, false), (b.address(), Verdict::Up, false)]);
    for _ in 0..4 {
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "b");
    }

    // When they change while it only waits for its connections, then that is applied as well (which this waits for).
    eventually("it no longer accepts", || TcpStream::connect(edge.address()).is_err());
    edge.health("a", &[(waits.address(), Verdict::Up, false), (b.address(), Verdict::Up, false)]);
    go.send(()).unwrap();
    assert_eq!(client.answer().text(), "ok");
    edge.stop();
}

#[test]
fn a_request_that_comes_on_a_kept_connection_as_a_drain_begins_is_served() {
    let origin = Origin::named("a");
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(GET).status(), 200);
    edge.begin_shutdown();
    eventually("it no longer accepts", || TcpStream::connect(edge.address()).is_err());
    let answer = client.ask(GET);
    assert_eq!((answer.text(), answer.field("connection")), ("a", Some("close")));
    assert!(client.ends());
}

#[test]
fn a_shutdown_ends_idle_connections_and_then_itself() {
    let origin = Origin::named("a");
    let mut edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut idle = Peer::connect(edge.address());
    assert_eq!(idle.ask(GET).status(), 200);
    let mut fresh = Peer::connect(edge.address());
    let began = Instant::now();
    edge.begin_shutdown();
    assert!(idle.ends() && fresh.ends());
    edge.stop();
    assert!(began.elapsed() < Duration::from_secs(6), "before the drain's limit: {:?}", began.elapsed());
}

#[test]
fn the_drain_limit_cuts_what_does_not_end() {
    let (origin, _go) = waiting();
    let start = Start { drain_limit: Duration::from_millis(200), ..Start::default() };
    let mut edge = Edge::start_with(&FleetFile::of(&[origin.address()]), start);
    let mut client = Peer::connect(edge.address());
    client.send(GET);
    eventually("it is under way", || origin.seen().count() == 1);
    edge.stop();
    assert!(client.ends());
}

#[test]
fn an_edge_that_is_told_to_drain_answers_balancers_with_503_and_comes_back() {
    let origin = Origin::named("a");
    let mut edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let health = "GET /.well-known/tidegate/health HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut kept = Peer::connect(edge.address());
    assert_eq!(kept.ask(health).status(), 200);

    edge.entry(|entry| entry.drain = Some("maintenance".to_owned()));
    let answer = kept.ask(health);
    assert_eq!((answer.status(), answer.field("connection")), (503, Some("close")));
    // Users that still come are served.
    let answer = Peer::connect(edge.address()).ask(GET);
    assert_eq!((answer.text(), answer.field("connection")), ("a", Some("close")));

    edge.entry(|entry| entry.drain = None);
    let mut again = Peer::connect(edge.address());
    assert_eq!(again.ask(health).status(), 200);
    assert_eq!(again.ask(GET).field("connection"), None);
    assert_eq!(again.ask(GET).status(), 200);
}

#[test]
fn an_edge_starts_by_its_last_table_when_nobody_publishes_one() {
    let directory: PathBuf = std::env::temp_dir().join(format!("tidegate-proxy-disk-{}", std::process::id()));
    let origin = Origin::named("a");
    let fleet = FleetFile::of(&[origin.address()]);
    let start = || Start { state_dir: Some(directory.clone()), ..Start::default() };

    let mut edge = Edge::start_with(&fleet, start());
    eventually("the table is kept", || {
        std::fs::read_dir(edge.state_dir()).is_ok_and(|files| {
            files.flatten().any(|file| file.path().extension().is_some_and(|name| name == "json"))
        })
    });
    edge.stop();

    let mut edge = Edge::start_with(&fleet, Start { has_owner: false, ..start() });
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
    edge.stop();
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn several_workers_share_a_listener_and_drain_together() {
    let origin = Origin::named("a");
    let mut edge =
        Edge::start_with(&FleetFile::of(&[origin.address()]), Start { workers: 3, ..Start::default() });
    let address = edge.address();
    let served = Arc::new(Mutex::new(0));
    std::thread::scope(|threads| {
        for _ in 0..20 {
            threads.spawn(|| {
                let mut client = Peer::connect(address);
                for _ in 0..20 {
                    assert_eq!(client.ask(GET).text(), "a");
                }
                *served.lock().unwrap() += 20;
            });
        }
    });
    assert_eq!(*served.lock().unwrap(), 400);
    assert_eq!(edge.metric("tidegate_service_requests_total"), 400.0);
    edge.stop();
}
