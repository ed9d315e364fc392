//! Clients in trusted networks learn how a request was served, and nobody else does.

use http::Response;

use crate::harness::{
    edge::Edge,
    fleet::FleetFile,
    http2::{Http2Origin, Serving, client, read, request},
    origin::Origin,
    peer::{Message, Peer},
};

const TRUSTED: &str = "protocol: http, debug_from: [127.0.0.0/24]";
/// The third byte of an address that is not trusted.
const ELSEWHERE: u8 = 7;

const ASKS: &str = "GET / HTTP/1.1\r\nHost: site.test\r\nX-Tidegate-Debug: 1\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// An origin whose own answer looks as if it came from an edge.
fn forging() -> Origin {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Tidegate-Debug: edge=\"forged\"\r\nServer-Timing: db;dur=5\r\n\r\na";
    Origin::answering(move |_| answer.into())
}

fn timings(answer: &Message) -> Vec<&str> {
    let all = answer.fields.iter().filter(|(name, _)| name == "server-timing");
    all.map(|(_, value)| value.as_str()).collect()
}

/// The milliseconds of `name` in a `server-timing` value.
fn duration(timing: &str, name: &str) -> f64 {
    let metric = timing.split(", ").find_map(|metric| metric.strip_prefix(&format!("{name};dur=")));
    metric.unwrap_or_else(|| panic!("no {name} in {timing}")).parse().unwrap()
}

#[test]
fn a_trusted_client_learns_what_served_it_and_how_long_that_took() {
    let origin = forging();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]).listener(TRUSTED));
    let mut client = Peer::connect(edge.address());
    for _ in 0..2 {
        let answer = client.ask(ASKS);
        let expected = format!(
            "edge=\"edge-1\", region=\"here\", service=\"site\", cluster=\"a\", endpoint=\"{}\", attempts=1",
            origin.address()
        );
        assert_eq!(answer.field("x-tidegate-debug"), Some(expected.as_str()));
        let [own, added] = timings(&answer)[..] else { panic!("{answer:?}") };
        assert_eq!(own, "db;dur=5", "the origin's own is kept");
        assert!(duration(added, "edge") >= 0.0 && duration(added, "origin") > 0.0, "{added}");
        assert_eq!((answer.status(), answer.text()), (200, "a"));
    }
    let head = client.ask(ASKS.replace("GET", "HEAD"));
    assert!(head.field("x-tidegate-debug").is_some(), "{head:?}");
    for request in origin.seen().requests() {
        assert_eq!(request.field("x-tidegate-debug"), None, "it asks this edge only");
    }
}

#[test]
fn a_request_changes_nothing_from_elsewhere_or_with_another_value() {
    let origin = Origin::named("a");
    let trusting = Edge::start(&FleetFile::of(&[origin.address()]).listener(TRUSTED));
    let usual = Edge::start(&FleetFile::of(&[origin.address()]));
    let plain = |answer: Message| {
        assert_eq!((answer.status(), answer.text()), (200, "a"));
        assert_eq!(answer.field("x-tidegate-debug"), None);
        assert_eq!(timings(&answer), [""; 0]);
    };
    plain(Peer::connect_from(ELSEWHERE, trusting.address()).ask(ASKS));
    let claims = ASKS.replace("Host:", "X-Forwarded-For: 127.0.0.1\r\nHost:");
    plain(Peer::connect_from(ELSEWHERE, trusting.address()).ask(claims));
    plain(Peer::connect(usual.address()).ask(ASKS));
    plain(Peer::connect(trusting.address()).ask(ASKS.replace("Debug: 1", "Debug: 0")));
    plain(Peer::connect(trusting.address()).ask(ASKS.replace("X-Tidegate-Debug: 1\r\n", "")));
    for request in origin.seen().requests() {
        assert_eq!(request.field("x-tidegate-debug"), None, "not forwarded from anybody");
    }
}

#[test]
fn an_answer_after_a_retry_names_the_cluster_that_gave_it_and_counts_the_attempts() {
    let busy = Origin::answering(|_| BUSY.into());
    let good = Origin::named("b");
    let fleet = FleetFile::new().cluster("a", &[busy.address()], "").cluster("b", &[good.address()], "");
    let edge = Edge::start(&fleet.listener(TRUSTED));
    let answer = Peer::connect(edge.address()).ask(ASKS);
    let told = answer.field("x-tidegate-debug").unwrap();
    assert!(told.contains("cluster=\"b\"") && told.ends_with(", attempts=2"), "{told}");
}

#[test]
fn local_replies_name_the_edge_and_what_was_tried_last() {
    let nowhere = Origin::refusing();
    let edge = Edge::start(&FleetFile::of(&[nowhere]).listener(TRUSTED));

    let failed = Peer::connect(edge.address()).ask(ASKS);
    assert_eq!(failed.status(), 502);
    let told = failed.field("x-tidegate-debug").unwrap();
    let tried = format!("service=\"site\", cluster=\"a\", endpoint=\"{nowhere}\", attempts=1, local");
    assert!(told.starts_with("edge=\"edge-1\"") && told.ends_with(&tried), "{told}");
    assert!(duration(timings(&failed)[0], "origin") > 0.0);

    let unrouted = Peer::connect(edge.address()).ask(ASKS.replace("site.test", "other.test"));
    assert_eq!(unrouted.status(), 404);
    let told = "edge=\"edge-1\", region=\"here\", attempts=0, local";
    assert_eq!(unrouted.field("x-tidegate-debug"), Some(told));
    assert!(duration(timings(&unrouted)[0], "edge") >= 0.0);

    let untrusted = Peer::connect_from(ELSEWHERE, edge.address()).ask(ASKS);
    assert_eq!((untrusted.status(), untrusted.field("x-tidegate-debug")), (502, None));
}

#[test]
fn an_upgraded_connection_is_named_as_well() {
    let origin = Origin::scripted(|mut peer, _, _| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
            peer.rest();
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]).listener(TRUSTED));
    let mut client = Peer::connect(edge.address());
    client.send(ASKS.replace("\r\n\r\n", "\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"));
    let head = client.head().unwrap();
    assert_eq!(head.status(), 101);
    assert!(head.field("x-tidegate-debug").is_some_and(|told| told.contains("cluster=\"a\"")), "{head:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn http2_has_the_same_on_both_sides() {
    let origin = Http2Origin::start(Serving::default(), |mut exchange| async move {
        exchange.note().await;
        let head = Response::builder()
            .header("server-timing", "db;dur=5")
            .header("x-tidegate-debug", "edge=\"forged\"")
            .body(())
            .unwrap();
        _ = exchange.respond.send_response(head, true);
    });
    let fleet = FleetFile::new().cluster("a", &[origin.address()], "protocol: http2").listener(TRUSTED);
    let edge = Edge::start(&fleet);
    let mut client = client(edge.address()).await;
    for (asks, host) in [(true, "site.test"), (false, "site.test"), (true, "other.test")] {
        let mut get = request("GET");
        *get.uri_mut() = format!("http://{host}/").parse().unwrap();
        if asks {
            get.headers_mut().insert("x-tidegate-debug", "1".parse().unwrap());
        }
        let (answer, _) = client.send_request(get, true).unwrap();
        let mut answer = answer.await.unwrap();
        read(answer.body_mut()).await.unwrap();
        let told: Vec<_> = answer.headers().get_all("x-tidegate-debug").iter().collect();
        let timings = answer.headers().get_all("server-timing").iter().count();
        match (asks, host) {
            (true, "site.test") => {
                let [told] = told[..] else { panic!("{told:?}") };
                assert!(told.to_str().unwrap().contains("cluster=\"a\""), "{told:?}");
                assert_eq!(timings, 2, "{:?}", answer.headers());
            }
            (true, _) => {
                assert_eq!(told, ["edge=\"edge-1\", region=\"here\", attempts=0, local"]);
                assert_eq!((answer.status().as_u16(), timings), (404, 1));
            }
            // What an origin says is its own, where nobody asked the edge.
            (false, _) => assert_eq!((told.len(), timings), (1, 1)),
        }
    }
    assert!(origin.seen().requests().iter().all(|request| request.field("x-tidegate-debug").is_none()));
}
