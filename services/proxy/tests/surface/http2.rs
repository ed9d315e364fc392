//! HTTP/2 on either side, and on both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tidegate_proxy::AccessLogSection;
use tidegate_tls::HTTP2;

use crate::harness::{
    DEADLINE,
    certificates::Authority,
    edge::{Edge, Start},
    eventually,
    fleet::FleetFile,
    http2::{Http2Origin, Serving, Then, client, read, request},
    origin::Origin,
    peer::Peer,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 5\r\n\r\nhello";

fn to_http2(origins: &[&Http2Origin]) -> FleetFile {
    let fleet = FleetFile::new();
    origins
        .iter()
        .zip(["a", "b", "c"])
        .fold(fleet, |fleet, (origin, name)| fleet.cluster(name, &[origin.address()], "protocol: http2"))
}

/// Waits for `future`, no longer than a test may take.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_http2_client_reaches_an_http1_origin() {
    let origin = Origin::answering(|request| {
        let sent = format!("{} {}", request.line, request.text());
        format!(
            "HTTP/1.1 200 OK\r\nConnection: X-Inner\r\nX-Inner: 1\r\nContent-Length: {}\r\n\r\n{sent}",
            sent.len()
        )
        .into()
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = client(edge.address()).await;
    let (answer, _) = client.send_request(request("GET"), true).unwrap();
    let mut answer = soon(answer).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().get("x-inner")), (200, None));
    assert_eq!(soon(read(answer.body_mut())).await.unwrap().0, "GET / HTTP/1.1 ");

    let mut post = request("POST");
    post.headers_mut().append("cookie", "a=1".parse().unwrap());
    post.headers_mut().append("cookie", "b=2".parse().unwrap());
    let (answer, mut body) = client.send_request(post, false).unwrap();
    body.send_data(Bytes::from_static(b"hel"), false).unwrap();
    body.send_data(Bytes::from_static(b"lo"), true).unwrap();
    let mut answer = soon(answer).await.unwrap();
    assert_eq!(soon(read(answer.body_mut())).await.unwrap().0, "POST / HTTP/1.1 hello");
    let seen = &origin.seen().requests()[1];
    assert_eq!((seen.field("host"), seen.field("cookie")), (Some("site.test"), Some("a=1; b=2")));
    assert_eq!(seen.field("transfer-encoding"), Some("chunked"));
}

#[test]
fn an_http1_client_reaches_an_http2_origin_on_one_connection() {
    let origin = Http2Origin::named("two", Serving::default());
    let edge = Edge::start(&to_http2(&[&origin]));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(GET).text(), "two");
    assert_eq!(client.ask(POST).text(), "two");
    let head = client.ask("HEAD / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!((head.status(), head.field("content-length")), (200, Some("3")));
    assert_eq!(client.ask(GET).text(), "two");
    let seen = origin.seen().requests();
    assert_eq!((seen[0].line.as_str(), seen[0].field("host")), ("GET / HTTP/2", Some("site.test")));
    assert_eq!((seen[1].text(), seen[1].field("content-length")), ("hello", Some("5")));
    assert_eq!(origin.seen().connections(), 1);
}

#[test]
fn a_request_without_a_host_cannot_be_said_over_http2() {
    let origin = Http2Origin::named("two", Serving::default());
    let edge = Edge::start(&to_http2(&[&origin]).hosts("\"*\""));
    let response = Peer::connect(edge.address()).ask("GET / HTTP/1.1\r\nHost:\r\n\r\n");
    assert_eq!((response.status(), origin.seen().count()), (400, 0));
}

#[test]
fn a_target_that_http2_cannot_say_is_encoded() {
    let origin = Http2Origin::named("two", Serving::default());
    let edge = Edge::start(&to_http2(&[&origin]).prefer("[a]"));
    let mut client = Peer::connect(edge.address());
    for (target, told) in [
        ("/a<b>`c", "/a%3Cb%3E%60c"),
        ("/x?q=\"<é>\"", "/x?q=%22%3C%C3%A9%3E%22"),
        ("/100%25?{a|b}", "/100%25?{a|b}"),
    ] {
        let answer = client.ask(format!("GET {target} HTTP/1.1\r\nHost: site.test\r\n\r\n"));
        assert_eq!(answer.text(), "two", "{target}");
        assert_eq!(origin.seen().requests().last().unwrap().line, format!("GET {told} HTTP/2"));
    }
}

#[test]
fn an_upgrade_does_not_concern_a_cluster_that_speaks_only_http2() {
    let authority = Authority::new("upgrade");
    let tls = Serving { tls: Some(authority.origin(&[HTTP2])), ..Serving::default() };
    let ca = format!("tls: {{ ca: {} }}", authority.file());
    let strict = format!("{ca}, protocol: http2");
    for (serving, more) in
        [(Serving::default(), "protocol: http2"), (tls.clone(), strict.as_str()), (tls, ca.as_str())]
    {
        let origin = Http2Origin::named("two", serving);
        let edge = Edge::start(&FleetFile::new().cluster("a", &[origin.address()], more));
        let mut client = Peer::connect(edge.address());
        for _ in 0..2 {
            let answer = client.ask(
                "GET / HTTP/1.1\r\nHost: site.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            );
            assert_eq!((answer.status(), answer.text()), (200, "two"), "{more}");
        }
        assert_eq!(origin.seen().requests()[0].field("upgrade"), None);
        assert_eq!(edge.metric("tidegate_cluster_failures_total"), 0.0, "{more}");
        assert_eq!(edge.metric("tidegate_cluster_ejections_total"), 0.0, "{more}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_pass_over_http2_on_both_sides() {
    let origin = Http2Origin::start(Serving::default(), |mut exchange| async move {
        exchange.note().await;
        let mut stream = exchange.respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(Bytes::from_static(b"message"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    });
    let edge = Edge::start(&to_http2(&[&origin]));
    let mut client = client(edge.address()).await;
    let mut post = request("POST");
    post.headers_mut().insert("te", "trailers".parse().unwrap());
    let (answer, mut body) = client.send_request(post, false).unwrap();
    body.send_data(Bytes::from_static(b"question"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "1".parse().unwrap());
    body.send_trailers(trailers).unwrap();
    let mut answer = soon(answer).await.unwrap();
    let (text, trailers) = soon(read(answer.body_mut())).await.unwrap();
    assert_eq!(
        (&text[..], &trailers[..]),
        (&b"message"[..], &[("grpc-status".to_owned(), "0".to_owned())][..])
    );
    let seen = &origin.seen().requests()[0];
    assert_eq!((seen.text(), seen.field("te")), ("question", Some("trailers")));
    assert_eq!(seen.trailers, [("grpc-status".to_owned(), "1".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_before_the_bodys_end_reaches_an_http2_client() {
    for http2_origin in [false, true] {
        let raw = Origin::scripted(|mut peer, _, _| {
            let head = peer.head();
            // Some of the body was sent, so that the client is in the middle of it.
            if head.is_some_and(|head| head.line.starts_with("POST")) {
                peer.some();
            }
            peer.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        });
        let two = Http2Origin::start(Serving::default(), |mut exchange| async move {
            _ = exchange.request.body_mut().data().await;
            exchange.answer(403, "no");
        });
        let fleet = if http2_origin { to_http2(&[&two]) } else { FleetFile::of(&[raw.address()]) };
        let edge = Edge::start(&fleet);
        let mut client = client(edge.address()).await;
        let (answer, mut body) = client.send_request(request("POST"), false).unwrap();
        body.send_data(Bytes::from(vec![b'x'; 10_000]), false).unwrap();
        let mut answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 403);
        assert_eq!(soon(read(answer.body_mut())).await.unwrap().0, "no");
        // The client is told to stop, without an error.
        let reset = soon(std::future::poll_fn(|cx| body.poll_reset(cx))).await;
        assert_eq!(reset.unwrap(), h2::Reason::NO_ERROR);
        // And its connection goes on.
        let (answer, _) = client.send_request(request("GET"), true).unwrap();
        assert_eq!(soon(answer).await.unwrap().status(), 403);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn interim_answers_pass_to_http2_clients() {
    let origin = Origin::answering(|_| {
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n".into()
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = client(edge.address()).await;
    let (mut answer, _) = client.send_request(request("GET"), true).unwrap();
    let hints = soon(std::future::poll_fn(|cx| answer.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!((hints.status().as_u16(), hints.headers()["link"].to_str().unwrap()), (103, "</a.css>"));
    let answer = soon(answer).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().get("content-length")), (204, None));
    assert!(answer.body().is_end_stream());
}

#[test]
fn an_http2_origins_word_decides_whether_an_expected_body_is_sent() {
    let origin = Http2Origin::start(Serving::default(), |mut exchange| async move {
        assert_eq!(exchange.request.headers()["expect"], "100-continue");
        if exchange.request.uri().path() == "/no" {
            return exchange.answer(417, "no");
        }
        let go_on = Response::builder().status(100).body(()).unwrap();
        exchange.respond.send_informational(go_on).unwrap();
        exchange.note().await;
        exchange.answer(200, "yes");
    });
    let edge = Edge::start(&to_http2(&[&origin]));
    let post = |target| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: site.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(post("/yes")).status(), 100);
    assert_eq!(client.ask("hello").text(), "yes");
    assert_eq!(client.ask(post("/no")).status(), 417);
    assert_eq!(origin.seen().count(), 1);
}

#[test]
fn a_refused_stream_is_sent_elsewhere_also_when_it_is_a_post() {
    let refusing = Http2Origin::start(Serving::default(), |mut exchange| async move {
        exchange.note().await;
        exchange.respond.send_reset(h2::Reason::REFUSED_STREAM);
    });
    let good = Http2Origin::named("good", Serving::default());
    let edge = Edge::start(&to_http2(&[&refusing, &good]));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(POST).text(), "good");
    assert_eq!((refusing.seen().count(), good.seen().requests()[0].text()), (1, "hello"));
}

#[test]
fn a_stream_reset_otherwise_is_only_repeated_when_it_may_be() {
    let bad = Http2Origin::start(Serving::default(), |mut exchange| async move {
        exchange.note().await;
        exchange.respond.send_reset(h2::Reason::INTERNAL_ERROR);
    });
    let good = Http2Origin::named("good", Serving::default());
    let edge = Edge::start(&to_http2(&[&bad, &good]));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(GET).text(), "good");
    assert_eq!(client.ask(POST).status(), 502);
    assert_eq!((bad.seen().count(), good.seen().count()), (2, 1));
    assert_eq!(bad.seen().connections(), 1, "the connection is none the worse for it");
}

#[test]
fn no_request_is_lost_to_connections_that_go_away() {
    let origin = Http2Origin::named("good", Serving { then: Then::GoAway, ..Serving::default() });
    let edge = Edge::start(&to_http2(&[&origin]));
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                let mut client = Peer::connect(edge.address());
                for _ in 0..25 {
                    assert_eq!(client.ask(POST).text(), "good");
                }
            });
        }
    });
    assert_eq!(origin.seen().count(), 100, "each was processed once");
    assert!(origin.seen().connections() > 1);
}

#[test]
fn more_requests_than_a_connection_takes_open_another() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let origin = {
        let (now, most) = (now.clone(), most.clone());
        Http2Origin::start(Serving { streams: 2, ..Serving::default() }, move |mut exchange| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                exchange.note().await;
                // All six must be under way at once before any is answered.
                while most.load(Ordering::SeqCst) < 6 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                exchange.answer(200, "done");
                now.fetch_sub(1, Ordering::SeqCst);
            }
        })
    };
    let edge = Edge::start(&to_http2(&[&origin]));
    let mut clients: Vec<Peer> = (0..6).map(|_| Peer::connect(edge.address())).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    clients.iter_mut().for_each(|client| assert_eq!(client.answer().text(), "done"));
    assert!((3..=6).contains(&origin.seen().connections()), "{}", origin.seen().connections());
}

#[test]
fn requests_that_come_at_once_share_one_connection_that_is_being_made() {
    let authority = Authority::new("shared");
    let tls = Serving { tls: Some(authority.origin(&[HTTP2])), ..Serving::default() };
    let ca = format!("tls: {{ ca: {} }}", authority.file());
    for (serving, more) in [(Serving::default(), "protocol: http2"), (tls, ca.as_str())] {
        let origin = Http2Origin::named("two", serving);
        let edge = Edge::start(&FleetFile::new().cluster("a", &[origin.address()], more));
        let mut clients: Vec<Peer> = (0..40).map(|_| Peer::connect(edge.address())).collect();
        clients.iter_mut().for_each(|client| client.send(GET));
        clients.iter_mut().for_each(|client| assert_eq!(client.answer().text(), "two"));
        assert_eq!(origin.seen().connections(), 1, "{more}");
    }
}

#[test]
fn requests_that_wait_for_a_connection_share_its_failure() {
    let edge = Edge::start(&FleetFile::new().cluster("a", &[Origin::refusing()], "protocol: http2"));
    let mut clients: Vec<Peer> = (0..20).map(|_| Peer::connect(edge.address())).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    clients.iter_mut().for_each(|client| assert_eq!(client.answer().status(), 502));
}

#[test]
fn a_connection_that_no_longer_answers_is_found_out_and_replaced() {
    // The first connection speaks HTTP/2 well enough to begin, and then never says a word.
    let origin = Origin::scripted(|peer, _, number| {
        if number > 0 {
            return;
        }
        let mut peer = peer;
        peer.send(b"\0\0\0\x04\0\0\0\0\0");
        std::thread::park_timeout(Duration::from_secs(60));
    });
    let service = "timeout: 200ms, retry: { hedge_after: off }";
    let fleet = FleetFile::new().cluster("a", &[origin.address()], "protocol: http2").service(service);
    let edge = Edge::start(&fleet);
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(GET).status(), 504);
    assert_eq!(origin.seen().connections(), 1);
    eventually("another connection is made", || {
        client.ask(GET);
        origin.seen().connections() > 1
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_that_its_client_gives_up_ends_at_the_origin() {
    let origin = Http2Origin::start(Serving::default(), |mut exchange| async move {
        let reason = std::future::poll_fn(|cx| exchange.respond.poll_reset(cx)).await;
        assert_eq!(reason.unwrap(), h2::Reason::CANCEL);
        exchange.note().await;
    });
    let edge = Edge::start(&to_http2(&[&origin]));
    let mut client = client(edge.address()).await;
    let (answer, mut stream) = client.send_request(request("GET"), true).unwrap();
    eventually("it is under way", || origin.seen().connections() == 1);
    stream.send_reset(h2::Reason::CANCEL);
    drop(answer);
    eventually("the origin is told", || origin.seen().count() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_does_not_read_a_stream_does_not_hold_up_another() {
    let origin = Origin::answering(|request| {
        let body = if request.target() == "/long" { "x".repeat(8_000_000) } else { "short".to_owned() };
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = client(edge.address()).await;
    let mut long = request("GET");
    *long.uri_mut() = "http://site.test/long".parse().unwrap();
    // Its window (64 KiB) is the default one, and nothing of it is given back.
    let (unread, _) = client.send_request(long, true).unwrap();
    let mut unread = soon(unread).await.unwrap();
    assert_eq!(soon(unread.body_mut().data()).await.unwrap().unwrap().first(), Some(&b'x'));
    unread.body_mut().flow_control().release_capacity(0).unwrap();
    let (answer, _) = client.send_request(request("HEAD"), true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn malformed_requests_over_http2_are_refused() {
    let origin = Origin::named("a");
    let fleet = FleetFile::of(&[origin.address()]).listener("protocol: http, limits: { header_count: 20 }");
    let path = std::env::temp_dir().join(format!("tidegate-refused-{}.log", std::process::id()));
    let access_log = AccessLogSection { path: Some(path.clone()), ..AccessLogSection::default() };
    let mut edge = Edge::start_with(&fleet, Start { access_log, ..Start::default() });
    let mut client = client(edge.address()).await;
    let mut many = request("GET");
    *many.uri_mut() = "http://site.test/many?secret".parse().unwrap();
    for n in 0..21 {
        many.headers_mut()
            .append(http::HeaderName::try_from(format!("x-{n}")).unwrap(), "1".parse().unwrap());
    }
    let (answer, _) = client.send_request(many, true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 431);
    let mut other = request("GET");
    *other.uri_mut() = "http://other.test/".parse().unwrap();
    let (answer, _) = client.send_request(other, true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 404);
    let mut user = request("GET");
    *user.uri_mut() = "http://a@site.test/".parse().unwrap();
    let (answer, _) = client.send_request(user, true).unwrap();
    let refused = soon(answer).await;
    assert!(refused.as_ref().map_or(true, |answer| answer.status() == 400), "{refused:?}");
    assert_eq!(origin.seen().count(), 0);
    drop(client);
    tokio::task::spawn_blocking(move || edge.stop()).await.unwrap();
    let lines = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    for (key, value) in [("method", "GET"), ("path", "/many"), ("protocol", "2")] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!((line["status"].as_u64(), lines.contains("secret")), (Some(431), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drain_says_goaway_and_finishes_streams() {
    let may_answer = Arc::new(tokio::sync::Semaphore::new(0));
    let origin = Http2Origin::start(Serving::default(), {
        let may_answer = may_answer.clone();
        move |mut exchange| {
            let may_answer = may_answer.clone();
            async move {
                exchange.note().await;
                may_answer.acquire().await.unwrap().forget();
                exchange.answer(200, "finished");
            }
        }
    });
    let start = Start { drain_limit: Duration::from_secs(30), ..Start::default() };
    let mut edge = Edge::start_with(&to_http2(&[&origin]), start);
    let mut client = client(edge.address()).await;
    let (first, _) = client.send_request(request("GET"), true).unwrap();
    eventually("it is under way", || origin.seen().count() == 1);
    edge.begin_shutdown();
    // A stream that crosses the GOAWAY is served; later ones are refused before they are sent.
    let second = client.send_request(request("GET"), true);
    may_answer.add_permits(2);
    let mut first = soon(first).await.unwrap();
    assert_eq!(soon(read(first.body_mut())).await.unwrap().0, "finished");
    let second = match second {
        Ok((second, _)) => soon(second).await,
        Err(error) => Err(error),
    };
    match second {
        Ok(mut second) => assert_eq!(soon(read(second.body_mut())).await.unwrap().0, "finished"),
        Err(error) => assert!(error.is_go_away(), "{error}"),
    }
    let refused = soon(async {
        loop {
            match client.clone().ready().await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => return error,
            }
        }
    });
    assert!(refused.await.is_go_away());
    tokio::task::spawn_blocking(move || edge.stop()).await.unwrap();
}

/// An origin that speaks only HTTP/2 with prior knowledge and answers each call as a gRPC server does: a message, and its
/// status in a trailer.
fn grpc_origin() -> Http2Origin {
    Http2Origin::start(Serving::default(), |mut exchange| async move {
        exchange.note().await;
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = exchange.respond.send_response(head, false).unwrap();
        stream.send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_with_a_grpc_check_reaches_its_clusters_in_clear_text_by_http2() {
    let origin = grpc_origin();
    let fleet = FleetFile::of(&[origin.address()])
        .service("health: { grpc: true }, retry: { hedge_after: off }, timeout: 10s");
    let edge = Edge::start(&fleet);
    let mut client = client(edge.address()).await;
    for count in 1..3 {
        let mut call = request("POST");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        call.headers_mut().insert("te", "trailers".parse().unwrap());
        let (answer, mut sending) = client.send_request(call, false).unwrap();
        sending.send_data(Bytes::from_static(b"\0\0\0\0\x02me"), true).unwrap();
        let mut answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        let (body, trailers) = soon(read(answer.body_mut())).await.unwrap();
        assert_eq!(&body[..], b"\0\0\0\0\x02hi");
        assert!(trailers.contains(&("grpc-status".to_owned(), "0".to_owned())), "{trailers:?}");
        assert_eq!(origin.seen().count(), count);
    }
    assert_eq!(origin.seen().requests()[0].field("te"), Some("trailers"));
    assert_eq!(origin.seen().connections(), 1);
}
