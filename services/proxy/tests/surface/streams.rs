//! Long bodies, slow readers and upgraded connections: bytes in both directions with bounded memory.

use std::{
    io::{ErrorKind, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::harness::{DEADLINE, edge::Edge, eventually, fleet::FleetFile, origin::Origin, peer::Peer};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
/// More than all buffers on the way can hold, those of the kernel included.
const LONG: u64 = 256 * 1024 * 1024;

/// What the edge and the kernel may hold of a body that is not read: two socket buffers on each side (Linux lets each
/// grow to 6 MiB here) and what the edge itself keeps.
const HELD_AT_MOST: u64 = 32 * 1024 * 1024;

/// Writes until the other end takes no more for a while, and returns how much it took.
fn pour(peer: &mut Peer, taken: &AtomicU64) {
    let piece = [b'x'; 64 * 1024];
    peer.stream().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut stream = peer.stream();
    while taken.load(Ordering::SeqCst) < LONG {
        match stream.write(&piece) {
            Ok(count) => _ = taken.fetch_add(count as u64, Ordering::SeqCst),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_client_that_does_not_read_stops_the_origin() {
    let (poured, has_poured) = mpsc::channel();
    let taken = Arc::new(AtomicU64::new(0));
    let origin = {
        let taken = taken.clone();
        Origin::scripted(move |mut peer, _, _| {
            peer.request();
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n"));
            pour(&mut peer, &taken);
            poured.send(()).unwrap();
            // Kept open until the edge closes.
            peer.rest();
        })
    };
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    client.send(GET);
    has_poured.recv_timeout(Duration::from_secs(60)).expect("the origin is stopped");
    let held = taken.load(Ordering::SeqCst);
    assert!(held < HELD_AT_MOST, "{held} bytes are held for a client that reads nothing");
    assert!(held > 0);
}

#[test]
fn an_origin_that_does_not_read_stops_the_client() {
    let origin = Origin::scripted(|mut peer, seen, _| {
        let Some(request) = peer.head() else { return };
        seen.note(&request);
        std::thread::park_timeout(DEADLINE);
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    client.send(format!("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: {LONG}\r\n\r\n"));
    eventually("the request arrives", || origin.seen().count() == 1);
    let taken = AtomicU64::new(0);
    pour(&mut client, &taken);
    let held = taken.load(Ordering::SeqCst);
    assert!(held > 0 && held < HELD_AT_MOST, "{held} bytes are held for an origin that reads nothing");
}

#[test]
fn a_client_that_takes_nothing_is_given_up() {
    let origin = Origin::scripted(|mut peer, seen, _| {
        let Some(request) = peer.request() else { return };
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n"));
        while peer.try_send([b'x'; 64 * 1024]).is_ok() {}
        // The edge has closed.
        seen.note(&request);
    });
    let fleet =
        FleetFile::of(&[origin.address()]).listener("protocol: http, limits: { idle_timeout: 200ms }");
    let edge = Edge::start(&fleet);
    let mut client = Peer::connect(edge.address());
    client.send(GET);
    eventually("the origin is let go", || origin.seen().count() == 1);
    eventually("it is counted", || edge.metric("tidegate_service_client_gone_total") == 1.0);
    assert_eq!(edge.metric("tidegate_cluster_failures_total"), 0.0);
}

#[test]
fn long_bodies_pass_whole_in_both_directions_at_once() {
    // An echo that answers while it reads.
    let origin = Origin::scripted(|mut peer, _, _| {
        let Some(request) = peer.head() else { return };
        let mut left: usize = request.field("content-length").unwrap().parse().unwrap();
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n"));
        while left > 0 {
            let part = peer.some();
            left -= part.len();
            peer.send(part);
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let client = Peer::connect(edge.address());
    let body: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut sender = Peer::new(client.stream().try_clone().unwrap());
    let mut receiver = client;
    let answer = std::thread::scope(|threads| {
        threads.spawn(|| {
            sender.send(format!(
                "POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ));
            sender.send(&body);
        });
        receiver.answer()
    });
    assert!(answer.body == body, "what came back differs");
}

#[test]
fn an_event_stream_arrives_event_by_event() {
    let (next, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::scripted(move |mut peer, _, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        while wait.lock().unwrap().recv().is_ok() {
            peer.send("7\r\ndata: x\r\n");
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    client.send(GET);
    assert_eq!(client.head().unwrap().status(), 200);
    for _ in 0..10 {
        next.send(()).unwrap();
        assert_eq!(client.exactly(12), b"7\r\ndata: x\r\n");
    }
}

/// An origin that accepts every upgrade and then echoes, until the client ends; then it says goodbye.
fn echo() -> Origin {
    Origin::scripted(|mut peer, seen, _| {
        let Some(request) = peer.request() else { return };
        seen.note(&request);
        // The first words follow the head at once.
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhi ");
        loop {
            match peer.some() {
                bytes if bytes.is_empty() => break,
                bytes => peer.send(bytes),
            }
        }
        peer.send("bye");
    })
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: site.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: k\r\n\r\n";

#[test]
fn an_upgraded_connection_carries_bytes_both_ways_and_ends_one_way_at_a_time() {
    let origin = echo();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    // So do the client's.
    client.send(format!("{UPGRADE}early "));
    let answer = client.answer();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.field("upgrade"), Some("websocket"));
    assert_eq!(answer.field("connection"), Some("upgrade"));
    assert_eq!(answer.field("sec-websocket-accept"), Some("x"));
    assert_eq!(client.exactly(9), b"hi early ");
    for n in 0..100 {
        let words = format!("word {n} ");
        client.send(&words);
        assert_eq!(client.exactly(words.len()), words.as_bytes());
    }
    client.end_sending();
    assert_eq!(client.rest(), b"bye");
    let request = &origin.seen().requests()[0];
    assert_eq!((request.field("upgrade"), request.field("connection")), (Some("websocket"), Some("upgrade")));
    assert_eq!(edge.metric("tidegate_proxy_tunnels_total"), 1.0);
}

#[test]
fn a_tunnel_does_not_run_ahead_of_a_slow_end() {
    let origin = Origin::scripted(|mut peer, _, _| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        std::thread::park_timeout(DEADLINE);
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(UPGRADE).status(), 101);
    let taken = AtomicU64::new(0);
    pour(&mut client, &taken);
    assert!(taken.load(Ordering::SeqCst) < HELD_AT_MOST);
}

#[test]
fn an_upgrade_that_is_refused_is_an_answer_like_any_other() {
    let origin = Origin::named("no upgrade here");
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(UPGRADE).text(), "no upgrade here");
    assert_eq!(client.ask(GET).text(), "no upgrade here");
    assert_eq!(origin.seen().connections(), 1);
}

#[test]
fn a_tunnel_goes_on_through_a_drain_until_its_end() {
    let origin = echo();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(UPGRADE).status(), 101);
    assert_eq!(client.exactly(3), b"hi ");
    edge.begin_shutdown();
    let began = Instant::now();
    eventually("it no longer accepts", || std::net::TcpStream::connect(edge.address()).is_err());
    client.send("still here");
    assert_eq!(client.exactly(10), b"still here");
    client.end_sending();
    assert_eq!(client.rest(), b"bye");
    eventually("it ends", || edge.has_ended());
    assert!(began.elapsed() < Duration::from_secs(8), "not by the drain's limit");
}
