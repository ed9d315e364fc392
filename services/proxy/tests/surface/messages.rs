//! What is forwarded, and in which form: heads, bodies, trailers, interim answers.

use std::{
    io::{ErrorKind, Read as _},
    sync::mpsc,
};

use crate::harness::{
    DEADLINE, edge::Edge, eventually, fleet::FleetFile, kernel, origin::Origin, peer::Peer,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";

fn edge(origin: &Origin) -> Edge {
    Edge::start(&FleetFile::of(&[origin.address()]))
}

#[test]
fn one_connection_serves_many_requests_also_pipelined() {
    let origin = Origin::answering(|request| {
        let target = request.target();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len()).into()
    });
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    let requests: String = (0..50).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: site.test\r\n\r\n")).collect();
    client.send(requests);
    for n in 0..50 {
        assert_eq!(client.answer().text(), format!("/{n}"));
    }
    // A body between pipelined requests is not taken for a request.
    client.send(
        "POST /body HTTP/1.1\r\nHost: site.test\r\nContent-Length: 23\r\n\r\nGET /inner HTTP/1.1\r\n\r\n",
    );
    client.send("GET /after HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(client.answer().text(), "/body");
    assert_eq!(client.answer().text(), "/after");
    assert_eq!(origin.seen().connections(), 1, "the connection to the origin is kept as well");
}

#[test]
fn http_1_0_is_answered_in_its_own_terms() {
    let origin = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into()
    });
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    let answer = client.ask("GET / HTTP/1.0\r\nHost: site.test\r\n\r\n");
    assert_eq!((answer.text(), answer.field("transfer-encoding")), ("abc", None));
    assert_eq!(answer.field("connection"), Some("close"));
    assert!(client.ends());

    let origin = Origin::named("kept");
    let edge = self::edge(&origin);
    let mut client = Peer::connect(edge.address());
    for _ in 0..2 {
        let answer = client.ask("GET / HTTP/1.0\r\nHost: site.test\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!((answer.text(), answer.field("connection")), ("kept", Some("keep-alive")));
    }
    assert_eq!(client.ask("GET / HTTP/1.0\r\nHost: site.test\r\n\r\n").text(), "kept");
    assert!(client.ends());
}

#[test]
fn connection_fields_stay_on_their_connection_and_ours_are_added() {
    let origin = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nConnection: X-Inner\r\nX-Inner: 1\r\nKeep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\n\
          X-Kept: 2\r\nContent-Length: 0\r\n\r\n"
            .into()
    });
    let edge = edge(&origin);
    let answer = Peer::connect(edge.address()).ask(
        "GET /p?q=1 HTTP/1.1\r\nHost: site.test\r\nConnection: X-Secret, Keep-Alive, Content-Length\r\nX-Secret: 1\r\nTE: trailers\r\n\
         Upgrade: h2c\r\nProxy-Connection: keep-alive\r\nX-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: evil.test\r\nX-Forwarded-Port: 1\r\nX-Real-Ip: 198.51.100.7\r\nForwarded: for=198.51.100.7\r\nVia: 1.0 before\r\nX-Forwarded-Prefix: /evil\r\nProxy: evil.test:1\r\nTrailer: X-Sum, Grpc-Status\r\nX-Request-Id: abc-1\r\nCookie: a=1\r\n\r\n",
    );
    for gone in ["x-inner", "keep-alive", "proxy-connection", "connection"] {
        assert_eq!(answer.field(gone), None);
    }
    assert_eq!(answer.field("x-kept"), Some("2"));
    assert_eq!(answer.field("via"), Some("1.1 tidegate"));
    assert_eq!(answer.field("x-request-id"), Some("abc-1"));
    assert!(answer.field("date").is_some());

    let request = &origin.seen().requests()[0];
    assert_eq!(request.line, "GET /p?q=1 HTTP/1.1");
    assert_eq!(request.field("host"), Some("site.test"));
    for gone in [
        "x-secret",
        "te",
        "upgrade",
        "proxy-connection",
        "keep-alive",
        "connection",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "proxy",
        "x-real-ip",
        "forwarded",
    ] {
        assert_eq!(request.field(gone), None, "{gone}");
    }
    assert_eq!(request.field("x-forwarded-for"), Some("198.51.100.7, 127.0.0.1"));
    assert_eq!(request.field("x-forwarded-proto"), Some("http"));
    assert_eq!(request.field("x-forwarded-host"), Some("site.test"));
    assert_eq!(request.field("x-request-id"), Some("abc-1"));
    assert_eq!(request.field("cookie"), Some("a=1"));
    assert_eq!(request.field("trailer"), Some("Grpc-Status"));
    let via: Vec<_> =
        request.fields.iter().filter(|(name, _)| name == "via").map(|(_, v)| v.as_str()).collect();
    assert_eq!(via, ["1.0 before", "1.1 tidegate"]);
}

#[test]
fn a_request_without_a_usable_id_gets_one() {
    let origin = Origin::named("a");
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    let long = "a".repeat(5000);
    for given in [
        "",
        "X-Request-Id: \r\n",
        "X-Request-Id: two words\r\n",
        &format!("X-Request-Id: {long}\r\n"),
        "X-Request-Id: a\r\nX-Request-Id: b\r\n",
    ] {
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: site.test\r\n{given}\r\n"));
        let id = answer.field("x-request-id").expect("an id").to_owned();
        assert_eq!(origin.seen().requests().last().unwrap().field("x-request-id"), Some(id.as_str()));
        assert!(id == "a" || (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{given} {id}");
    }
}

#[test]
fn absolute_targets_are_forwarded_in_origin_form() {
    let origin = Origin::named("a");
    let edge = edge(&origin);
    Peer::connect(edge.address()).ask("GET http://site.test/x?y HTTP/1.1\r\nHost: other.test\r\n\r\n");
    let request = &origin.seen().requests()[0];
    assert_eq!((request.line.as_str(), request.field("host")), ("GET /x?y HTTP/1.1", Some("site.test")));
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    let origin = Origin::answering(|request| {
        match request.target() {
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 500\r\n\r\n",
            "/odd" => "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
        }
        .into()
    });
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    let head = client.ask("HEAD / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!((head.status(), head.field("content-length")), (200, Some("500")));
    let odd = client.ask("HEAD /odd HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(odd.status(), 502, "what a HEAD is told must be a length, too");
    let none = client.ask("GET /204 HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(
        (none.status(), none.field("content-length"), none.field("transfer-encoding")),
        (204, None, None)
    );
    let same = client.ask("GET /304 HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(
        (same.status(), same.field("content-length"), same.field("etag")),
        (304, Some("500"), Some("\"a\""))
    );
    assert_eq!(
        client.ask("HEAD / HTTP/1.1\r\nHost: site.test\r\n\r\n").status(),
        200,
        "the client's connection goes on"
    );
}

#[test]
fn chunked_bodies_and_trailers_pass_in_both_directions() {
    let origin = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\nContent-Length: 7\r\n\r\n".into()
    });
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    let answer = client.ask(
        "POST / HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwxyz\r\n0\r\nContent-Digest: 1\r\nHost: evil.test\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!(answer.text(), "abcde");
    // Fields that frame or route are never trailers (RFC 9110, section 6.5.1).
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "5".to_owned())]);
    let request = &origin.seen().requests()[0];
    assert_eq!(request.text(), "wxyz");
    assert_eq!(request.trailers, [("content-digest".to_owned(), "1".to_owned())]);
    assert_eq!(client.ask(GET).status(), 200);
}

#[test]
fn an_answer_until_the_connections_end_is_chunked_for_the_client() {
    let origin = Origin::scripted(|mut peer, _, _| {
        peer.request();
        peer.send("HTTP/1.0 200 OK\r\n\r\nall of it");
    });
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    for _ in 0..2 {
        assert_eq!(client.ask(GET).text(), "all of it");
    }
}

#[test]
fn an_answer_that_is_broken_off_is_never_whole_for_the_client() {
    for head in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let origin = Origin::scripted(move |mut peer, _, _| {
            peer.request();
            peer.send(format!("HTTP/1.1 200 OK\r\n{head}"));
            peer.reset();
        });
        let edge = edge(&origin);
        let mut client = Peer::connect(edge.address());
        client.send(GET);
        let rest = String::from_utf8(client.rest()).unwrap();
        // Depending on what the kernel still gave of it, the answer was never begun or was broken off.
        assert!(rest.starts_with("HTTP/1.1 502 ") || !rest.ends_with("0\r\n\r\n"), "{rest}");
        assert!(!rest.contains("content-length: 3"), "{rest}");
    }
}

#[test]
fn a_response_whose_body_fails_at_once_is_asked_elsewhere_or_502() {
    for rest in ["nonsense\r\n", "0\r\nno field\r\n\r\n"] {
        let broken = Origin::scripted(move |mut peer, _, _| {
            peer.request();
            peer.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}"));
        });
        let whole = Origin::named("whole");
        let fleet = FleetFile::new().cluster("a", &[broken.address()], "");
        let fleet = fleet.cluster("b", &[whole.address()], "").prefer("[a, b]");
        let edge = Edge::start(&fleet);
        let mut client = Peer::connect(edge.address());
        eventually("it came with its head", || {
            assert_eq!(client.ask(GET).text(), "whole", "{rest:?}");
            broken.seen().connections() > 0
        });
        let edge = self::edge(&broken);
        let response = Peer::connect(edge.address())
            .ask("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(response.status(), 502, "{rest:?}");
    }
}

#[test]
fn an_answer_to_http_1_0_that_is_broken_off_ends_in_a_reset() {
    let origin = Origin::scripted(|mut peer, _, _| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        // Ended without the last chunk.
    });
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    client.send("GET / HTTP/1.0\r\nHost: site.test\r\n\r\n");
    let end =
        std::iter::repeat_with(|| client.stream().read(&mut [0; 1024])).find(|read| !matches!(read, Ok(1..)));
    let error = end.unwrap().expect_err("an end in good order would make the answer whole");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_malformed_answer_is_502() {
    for answer in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ] {
        let origin = Origin::answering(move |_| answer.into());
        let edge = edge(&origin);
        assert_eq!(Peer::connect(edge.address()).ask(GET).status(), 502, "{answer:?}");
    }
}

#[test]
fn the_origins_word_decides_whether_an_expected_body_is_sent() {
    let origin = Origin::scripted(|mut peer, seen, _| {
        let Some(mut request) = peer.head() else { return };
        assert_eq!(request.field("expect"), Some("100-continue"));
        if request.target() == "/no" {
            peer.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
        } else {
            peer.send("HTTP/1.1 100 Continue\r\n\r\n");
            peer.body(&mut request, false);
            seen.note(&request);
            // The next request comes on a connection of its own.
            peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let edge = edge(&origin);
    let post = |target| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: site.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(post("/yes")).status(), 100);
    assert_eq!(client.ask("hello").status(), 200);
    assert_eq!(origin.seen().requests()[0].text(), "hello");

    let refused = client.ask(post("/no"));
    assert_eq!((refused.status(), refused.field("connection")), (417, Some("close")));
    client.end_sending();
    assert!(client.ends());
}

#[test]
fn a_client_that_waits_for_100_is_let_on_when_the_origin_says_nothing() {
    let origin = Origin::named("silent on 100");
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    let head = "POST / HTTP/1.1\r\nHost: site.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(client.ask(head).status(), 100);
    assert_eq!(client.ask("hello").text(), "silent on 100");
}

#[test]
fn interim_answers_are_passed_on_at_once() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::scripted(move |mut peer, _, _| {
        peer.request();
        peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: X-Hop\r\nX-Hop: mine\r\n\r\n");
        wait.lock().unwrap().recv_timeout(DEADLINE).expect("the client has the hints");
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    let hints = client.ask(GET);
    assert_eq!((hints.status(), hints.field("link")), (103, Some("</a.css>")));
    // What `connection` names is for that connection only.
    assert_eq!((hints.field("x-hop"), hints.field("connection")), (None, None));
    go.send(()).unwrap();
    assert_eq!(client.answer().status(), 200);
}

#[test]
fn an_answer_before_the_bodys_end_reaches_the_client() {
    let origin = Origin::scripted(|mut peer, _, _| {
        peer.head();
        peer.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        // Closed with data unread: the kernel sends a reset.
    });
    let edge = edge(&origin);
    let mut client = Peer::connect(edge.address());
    client.send("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 10000000\r\n\r\n");
    client.send(vec![b'x'; 10_000]);
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text()), (403, "no"));
    assert_eq!(answer.field("connection"), Some("close"));
    // What the client still sends is taken for a while, so that it does not lose the answer to a reset.
    client.send(vec![b'x'; 100_000]);
    client.end_sending();
    assert!(client.ends());
}

#[test]
fn a_client_that_ends_its_sending_still_gets_its_answer() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::answering(move |_| {
        wait.lock().unwrap().recv_timeout(DEADLINE).expect("told to answer");
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into()
    });
    let edge = edge(&origin);
    for request in [GET, "POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 3\r\n\r\nabc"] {
        let mut client = Peer::connect(edge.address());
        client.send(request);
        client.end_sending();
        let here = client.stream().local_addr().unwrap();
        eventually("its end arrives", || {
            kernel::socket(edge.address(), here).is_some_and(|socket| socket.state == kernel::CLOSE_WAIT)
        });
        go.send(()).unwrap();
        assert_eq!(client.answer().text(), "ok");
        assert!(client.ends());
    }
}
