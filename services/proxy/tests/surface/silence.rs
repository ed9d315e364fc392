//! Peers that fall silent or vanish once an answer has begun: nothing is kept for them for ever.

use std::{
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use crate::harness::{
    DEADLINE,
    edge::{Edge, Start},
    eventually,
    fleet::FleetFile,
    kernel::{self, KEEPALIVE},
    origin::Origin,
    peer::Peer,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
const UPGRADE: &str =
    "GET / HTTP/1.1\r\nHost: site.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const EVENT: &str = "7\r\ndata: x\r\n";
/// How long silence may last where a test sees that it is ended.
const SHORT: Duration = Duration::from_millis(300);

/// An origin of an event stream that begins with one event and goes on with one for each message; it notes each request
/// whose connection the edge has ended.
fn events() -> (Origin, mpsc::Sender<()>) {
    let (next, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let origin = Origin::scripted(move |mut peer, seen, _| {
        let Some(request) = peer.request() else { return };
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        peer.send(EVENT);
        while wait.lock().unwrap().recv().is_ok() {
            if peer.try_send(EVENT).is_err() {
                break;
            }
        }
        peer.rest();
        seen.note(&request);
    });
    (origin, next)
}

/// A client that has the first event of an answer.
fn listening(edge: &Edge) -> Peer {
    let mut client = Peer::connect(edge.address());
    client.send(GET);
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.exactly(EVENT.len()), EVENT.as_bytes());
    client
}

#[test]
fn a_client_that_is_reset_while_an_answer_streams_lets_the_origin_go() {
    let (origin, next) = events();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let client = listening(&edge);
    drop(next);
    client.reset();
    eventually("the origin is let go", || origin.seen().count() == 1);
    eventually("it is counted", || edge.metric("tidegate_service_client_gone_total") == 1.0);
}

#[test]
fn a_client_that_closed_is_noticed_by_what_it_no_longer_takes() {
    let (origin, next) = events();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    drop(listening(&edge));
    eventually("it is noticed", || {
        // The first event is answered with a reset, which a later one meets.
        next.send(()).unwrap();
        edge.metric("tidegate_service_client_gone_total") == 1.0
    });
    drop(next);
    eventually("the origin is let go", || origin.seen().count() == 1);
}

#[test]
fn a_client_that_closed_is_given_up_after_silence() {
    let (origin, next) = events();
    drop(next);
    let fleet =
        FleetFile::of(&[origin.address()]).listener("protocol: http, limits: { idle_timeout: 300ms }");
    let edge = Edge::start(&fleet);
    let clients: Vec<Peer> = (0..5).map(|_| listening(&edge)).collect();
    drop(clients);
    eventually("the origin is let go", || origin.seen().count() == 5);
    eventually("it is counted", || edge.metric("tidegate_service_client_gone_total") == 5.0);
}

#[test]
fn a_client_that_only_ended_its_sending_goes_on_receiving() {
    let (origin, next) = events();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = listening(&edge);
    client.end_sending();
    let here = client.stream().local_addr().unwrap();
    eventually("its end arrives", || {
        kernel::socket(edge.address(), here).is_some_and(|socket| socket.state == kernel::CLOSE_WAIT)
    });
    for _ in 0..10 {
        next.send(()).unwrap();
        assert_eq!(client.exactly(EVENT.len()), EVENT.as_bytes());
    }
}

#[test]
fn an_origin_that_falls_silent_within_its_answer_is_waited_for_so_long_and_not_blamed() {
    let (origin, next) = events();
    let start = Start { stream_idle_timeout: SHORT, ..Start::default() };
    let edge = Edge::start_with(&FleetFile::of(&[origin.address()]), start);
    let mut client = listening(&edge);
    let began = Instant::now();
    while began.elapsed() < 3 * SHORT {
        next.send(()).unwrap();
        assert_eq!(client.exactly(EVENT.len()), EVENT.as_bytes(), "as long as something comes");
    }
    drop(next);
    assert!(client.ends(), "and not as if the answer were whole");
    eventually("the origin is let go", || origin.seen().count() == 1);
    eventually("it is counted", || edge.metric("tidegate_service_broken_off_total") == 1.0);
    assert_eq!(edge.metric("tidegate_cluster_failures_total"), 0.0);
}

/// An origin that accepts upgrades and echoes until the connection ends, which it notes.
fn echo() -> Origin {
    Origin::scripted(|mut peer, seen, _| {
        let Some(request) = peer.request() else { return };
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        loop {
            match peer.some() {
                bytes if bytes.is_empty() => break,
                bytes => peer.send(bytes),
            }
        }
        seen.note(&request);
    })
}

#[test]
fn a_tunnel_ends_when_nothing_passes_for_too_long() {
    let origin = echo();
    let start = Start { tunnel_idle_timeout: SHORT, ..Start::default() };
    let edge = Edge::start_with(&FleetFile::of(&[origin.address()]), start);
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(UPGRADE).status(), 101);
    let began = Instant::now();
    while began.elapsed() < 3 * SHORT {
        client.send("word");
        assert_eq!(client.exactly(4), b"word", "as long as something passes");
    }
    assert!(client.ends());
    eventually("the origin is let go", || origin.seen().count() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_does_not_take_an_answer_of_ours_is_given_up() {
    let fleet =
        FleetFile::of(&[Origin::refusing()]).listener("protocol: http, limits: { idle_timeout: 300ms }");
    let edge = Edge::start(&fleet);
    let stream = tokio::net::TcpStream::connect(edge.address()).await.unwrap();
    // No window: not a byte of a body may be sent to it.
    let (mut send, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let (answer, _) = send.send_request(crate::harness::http2::request("GET"), true).unwrap();
    let mut answer = tokio::time::timeout(DEADLINE, answer).await.expect("in time").unwrap();
    assert_eq!(answer.status(), 502);
    let end = tokio::time::timeout(DEADLINE, answer.body_mut().data()).await.expect("in time");
    assert!(end.unwrap().unwrap_err().is_reset());
}

#[test]
fn the_kernel_watches_over_connections_on_both_sides() {
    let (origin, _next) = events();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let client = listening(&edge);
    let here = client.stream().local_addr().unwrap();
    eventually("the client's is watched", || {
        kernel::socket(edge.address(), here).is_some_and(|socket| socket.timer == KEEPALIVE)
    });
    eventually("the endpoint's is watched", || {
        kernel::sockets_to(origin.address()).iter().any(|socket| socket.timer == KEEPALIVE)
    });
}
