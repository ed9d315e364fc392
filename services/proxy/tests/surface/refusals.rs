//! What is refused: ambiguous and malformed requests, and those over a limit.

use crate::harness::{edge::Edge, eventually, fleet::FleetFile, origin::Origin, peer::Peer};

const LIMITS: &str = "protocol: http, limits: { head_bytes: 8KiB, header_count: 20, head_timeout: 200ms }";

fn edge(origin: &Origin) -> Edge {
    Edge::start(&FleetFile::of(&[origin.address()]).listener(LIMITS).service("max_request_body: 1000B"))
}

/// Sends `request`, expects `status` and the connection's end, and that the origin has seen nothing.
#[track_caller]
fn refused(edge: &Edge, request: &str, status: u16) {
    let mut client = Peer::connect(edge.address());
    client.send(request);
    let answer = client.answer();
    assert_eq!(answer.status(), status, "{request:?}");
    assert_eq!(answer.field("connection"), Some("close"), "{request:?}");
    client.end_sending();
    assert!(client.ends(), "{request:?}");
}

#[test]
fn ambiguous_requests_are_refused_and_never_forwarded() {
    let origin = Origin::named("a");
    let edge = edge(&origin);
    let cases = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "Content-Length: 5, 6\r\n\r\nabcdef",
        "Content-Length: +5\r\n\r\nabcde",
        "Content-Length: -5\r\n\r\nabcde",
        "Content-Length: 0x5\r\n\r\nabcde",
        "Content-Length : 5\r\n\r\nabcde",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "X: a\r\n folded\r\n\r\n",
        "X: a\r\n\tfolded\r\n\r\n",
        " X: a\r\n\r\n",
        "X: a\nY: b\r\n\r\n",
        "X: a\rY: b\r\n\r\n",
        "X: a\0b\r\n\r\n",
        "Host: other.test\r\n\r\n",
        ": no name\r\n\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: identity\r\n\r\nabcde",
        "Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n\r\nabcde",
    ];
    for fields in cases {
        refused(&edge, &format!("POST / HTTP/1.1\r\nHost: site.test\r\n{fields}"), 400);
    }
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: site.test\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: site.test\r\n\r\n",
        "GET /#a HTTP/1.1\r\nHost: site.test\r\n\r\n",
        "GET site.test HTTP/1.1\r\nHost: site.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: site.test/x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@site.test\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        refused(&edge, request, 400);
    }
    refused(
        &edge,
        "POST / HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    );
    refused(&edge, "GET /a b HTTP/1.1\r\nHost: site.test\r\n\r\n", 505);
    refused(&edge, "GET / HTTP/2.0\r\nHost: site.test\r\n\r\n", 505);
    assert_eq!(origin.seen().count(), 0);
    assert_eq!(origin.seen().connections(), 0);
}

#[test]
fn bad_chunks_are_refused_and_the_origin_gets_no_whole_request() {
    let origin = Origin::scripted(|mut peer, seen, _| {
        // Only a whole request counts.
        let Some(mut request) = peer.head() else { return };
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| peer.body(&mut request, false)));
        if read.is_ok() {
            seen.note(&request);
        }
    });
    let edge = edge(&origin);
    for body in
        ["g\r\n", "-1\r\n", "0x1\r\na\r\n", "1 \r\na\r\n", "1\na\r\n", "1\r\nab\r\n", "fffffffffffffffff\r\n"]
    {
        let head = "POST / HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        refused(&edge, &format!("{head}{body}"), 400);
    }
    assert_eq!(origin.seen().count(), 0);
}

#[test]
fn a_head_over_a_limit_is_refused_with_431() {
    let origin = Origin::named("a");
    let edge = edge(&origin);
    let long = "a".repeat(9000);
    refused(&edge, &format!("GET / HTTP/1.1\r\nHost: site.test\r\nX: {long}\r\n\r\n"), 431);
    // It need not end to be too large.
    refused(&edge, &format!("GET /{long}"), 431);
    let many = "X: a\r\n".repeat(21);
    refused(&edge, &format!("GET / HTTP/1.1\r\nHost: site.test\r\n{many}\r\n"), 431);
    let fits = "X: a\r\n".repeat(19);
    let answer =
        Peer::connect(edge.address()).ask(format!("GET / HTTP/1.1\r\nHost: site.test\r\n{fits}\r\n"));
    assert_eq!(answer.status(), 200);
}

#[test]
fn a_slow_head_gets_408_and_a_silent_connection_is_closed() {
    let origin = Origin::named("a");
    let edge = edge(&origin);
    refused(&edge, "GET / HTTP/1.1\r\nHos", 408);
    assert!(Peer::connect(edge.address()).ends(), "nothing was asked, so nothing is said");
}

#[test]
fn a_body_over_the_limit_is_refused_declared_or_streamed() {
    let origin = Origin::named("a");
    let edge = edge(&origin);
    let head = "POST / HTTP/1.1\r\nHost: site.test\r\n";
    refused(&edge, &format!("{head}Content-Length: 1001\r\n\r\n"), 413);
    let chunk = format!("400\r\n{}\r\n", "a".repeat(1024));
    refused(&edge, &format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}"), 413);
    let body = "a".repeat(1000);
    let answer = Peer::connect(edge.address()).ask(format!("{head}Content-Length: 1000\r\n\r\n{body}"));
    assert_eq!(answer.status(), 200);
    assert_eq!(origin.seen().count(), 1);
}

#[test]
fn a_slow_body_is_the_clients_fault_and_not_held_against_the_endpoint() {
    let origin = Origin::named("a");
    let fleet = FleetFile::of(&[origin.address()])
        .service("timeout: 300ms, retry: { per_try_timeout: 100ms, hedge_after: off }");
    let edge = Edge::start(&fleet);
    for _ in 0..4 {
        refused(&edge, "POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 10\r\n\r\nabc", 408);
    }
    assert_eq!(edge.metric("tidegate_cluster_ejections_total"), 0.0);
    assert_eq!(edge.metric("tidegate_cluster_failures_total"), 0.0);
}

#[test]
fn connections_over_the_limit_are_not_served() {
    let origin = Origin::named("a");
    let fleet = FleetFile::of(&[origin.address()]).listener("protocol: http, limits: { max_connections: 2 }");
    let edge = Edge::start(&fleet);
    let get = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
    let mut kept = [Peer::connect(edge.address()), Peer::connect(edge.address())];
    kept.iter_mut().for_each(|client| assert_eq!(client.ask(get).status(), 200));
    assert!(Peer::connect(edge.address()).ends());
    drop(kept);
    eventually("there is room again", || {
        let mut client = Peer::connect(edge.address());
        client.try_send(get).is_ok() && !client.some().is_empty()
    });
}

#[test]
fn an_unknown_host_gets_404_and_connect_405() {
    let origin = Origin::named("a");
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").status(), 404);
    // The same connection goes on.
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: SITE.test:80\r\n\r\n").status(), 200);
    assert_eq!(client.ask("CONNECT site.test:443 HTTP/1.1\r\nHost: site.test:443\r\n\r\n").status(), 405);
}

#[test]
fn a_change_of_limits_loses_no_connection() {
    let origin = Origin::named("a");
    let mut edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let get = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
    for header_count in 50..70 {
        edge.entry(|entry| entry.listeners[0].1.limits.header_count = header_count);
        for _ in 0..10 {
            assert_eq!(Peer::connect(edge.address()).ask(get).status(), 200);
        }
    }
}

#[test]
fn a_change_of_a_listener_does_not_forget_its_connections() {
    let origin = Origin::named("a");
    let fleet = FleetFile::of(&[origin.address()]).listener("protocol: http, limits: { max_connections: 2 }");
    let mut edge = Edge::start(&fleet);
    let get = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
    let mut clients = [Peer::connect(edge.address()), Peer::connect(edge.address())];
    clients.iter_mut().for_each(|client| assert_eq!(client.ask(get).status(), 200));
    edge.entry(|entry| entry.listeners[0].1.limits.header_count = 50);
    assert!(Peer::connect(edge.address()).ends(), "the two still count");
    assert_eq!(edge.metric("tidegate_proxy_connections_over_limit_total"), 1.0);
    let [first, mut second] = clients;
    drop(first);
    eventually("there is room again", || {
        let mut client = Peer::connect(edge.address());
        client.try_send(get).is_ok() && client.head().is_some()
    });
    assert_eq!(second.ask(get).status(), 200, "and they go on");
}
