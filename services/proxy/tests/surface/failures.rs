//! Endpoints that fail: what is tried again, what never is, and what the client is told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_model::verdict::Verdict;

use crate::harness::{
    DEADLINE,
    edge::{Edge, Start},
    eventually,
    fleet::FleetFile,
    origin::Origin,
    peer::Peer,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 5\r\n\r\nhello";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CHUNKED_POST: &str =
    "POST / HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// An origin that reads requests, notes them, and resets the connection.
fn resetting() -> Origin {
    Origin::scripted(|mut peer, seen, _| {
        if let Some(request) = peer.request() {
            seen.note(&request);
            peer.reset();
        }
    })
}

/// An origin that reads requests, notes them, and never answers.
fn frozen() -> Origin {
    Origin::scripted(|mut peer, seen, _| {
        while let Some(request) = peer.head() {
            seen.note(&request);
        }
    })
}

fn two(first: &Origin, second: &Origin) -> FleetFile {
    FleetFile::new().cluster("a", &[first.address()], "").cluster("b", &[second.address()], "")
}

#[test]
fn a_refused_connection_sends_any_request_elsewhere_and_ejects_the_endpoint() {
    let good = Origin::named("b");
    let fleet = FleetFile::new().cluster("a", &[Origin::refusing()], "").cluster("b", &[good.address()], "");
    let edge = Edge::start(&fleet);
    let mut client = Peer::connect(edge.address());
    for request in [POST, GET, POST] {
        assert_eq!(client.ask(request).text(), "b");
    }
    assert_eq!(good.seen().count(), 3);
    assert_eq!(edge.metric("tidegate_cluster_ejections_total"), 1.0);
    // The first request was tried there; the others were spared that.
    assert_eq!(edge.metric("tidegate_service_retries_total"), 1.0);
    assert_eq!(edge.metric("tidegate_service_failed_over_total"), 3.0);
}

#[test]
fn having_no_more_files_is_not_held_against_endpoints() {
    let (first, second) = (Origin::named("a"), Origin::named("b"));
    let edge = Edge::start(&two(&first, &second));
    let mut client = Peer::connect(edge.address());
    let health = client.ask("GET /.well-known/tidegate/health HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(health.status(), 200, "the connection was accepted, and none made to an endpoint");

    // Each test is a process of its own. A limit below what is open already lets nothing more be opened.
    let (soft, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
    rlimit::setrlimit(rlimit::Resource::NOFILE, 3, hard).unwrap();
    let refused = client.ask(GET);
    rlimit::setrlimit(rlimit::Resource::NOFILE, soft, hard).unwrap();

    assert_eq!(refused.status(), 503);
    assert_eq!(client.ask(GET).text(), "a", "it is not ejected");
    assert_eq!(edge.metric("tidegate_cluster_ejections_total"), 0.0);
    assert!(edge.metric("tidegate_proxy_connects_impossible_total") >= 1.0);
}

#[test]
fn having_no_more_files_a_request_is_served_over_a_connection_that_waits_elsewhere() {
    let closing =
        Origin::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\na".to_vec());
    let keeping = Origin::named("b");
    let edge = Edge::start(&FleetFile::of(&[closing.address(), keeping.address()]));
    let mut client = Peer::connect(edge.address());
    eventually("both have served", || {
        client.ask(GET);
        closing.seen().count() > 0 && keeping.seen().count() > 0
    });

    let (soft, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
    rlimit::setrlimit(rlimit::Resource::NOFILE, 3, hard).unwrap();
    let served: Vec<String> = (0..6).map(|_| client.ask(GET).text().to_owned()).collect();
    rlimit::setrlimit(rlimit::Resource::NOFILE, soft, hard).unwrap();

    assert_eq!(served, ["b"; 6]);
}

#[test]
fn nobody_to_ask_is_502_and_says_what_failed() {
    let edge = Edge::start(&FleetFile::of(&[Origin::refusing()]));
    let answer = Peer::connect(edge.address()).ask(GET);
    assert_eq!(answer.status(), 502);
    assert!(answer.text().contains("refused"), "{}", answer.text());
}

#[test]
fn a_get_is_sent_again_after_a_reset_and_a_post_never() {
    let (bad, good) = (resetting(), Origin::named("b"));
    let edge = Edge::start(&two(&bad, &good));
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "b");
    let answer = Peer::connect(edge.address()).ask(POST);
    assert_eq!(answer.status(), 502);
    assert_eq!((bad.seen().count(), good.seen().count()), (2, 1));
}

#[test]
fn a_get_is_sent_again_after_503_and_a_post_gets_the_503_itself() {
    let (bad, good) = (Origin::answering(|_| BUSY.into()), Origin::named("b"));
    let edge = Edge::start(&two(&bad, &good));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(GET).text(), "b");
    let answer = client.ask(POST);
    assert_eq!((answer.status(), answer.text()), (503, "busy"));
    assert_eq!((bad.seen().count(), good.seen().count()), (2, 1));
}

#[test]
fn when_all_answer_503_the_client_gets_one_of_them() {
    let origins = [Origin::answering(|_| BUSY.into()), Origin::answering(|_| BUSY.into())];
    let edge = Edge::start(&two(&origins[0], &origins[1]));
    let answer = Peer::connect(edge.address()).ask(GET);
    assert_eq!((answer.status(), answer.text()), (503, "busy"));
    assert_eq!(origins[0].seen().count() + origins[1].seen().count(), 2, "each endpoint is asked once");
}

#[test]
fn a_503_that_was_held_back_is_given_when_the_time_is_up() {
    let (bad, slow) = (Origin::answering(|_| BUSY.into()), frozen());
    let edge = Edge::start(&two(&bad, &slow).service("retry: { hedge_after: off }, timeout: 200ms"));
    let answer = Peer::connect(edge.address()).ask(GET);
    assert_eq!((answer.status(), answer.text()), (503, "busy"));
    assert_eq!((bad.seen().count(), slow.seen().count()), (1, 1));
}

#[test]
fn a_retry_for_which_nobody_has_room_costs_no_budget() {
    let (bad, slow) = (Origin::answering(|_| BUSY.into()), frozen());
    let fleet = FleetFile::new()
        .cluster("a", &[bad.address()], "")
        .cluster("b", &[slow.address()], "max_requests: 1")
        .service("retry: { attempts: 1, hedge_after: off, budget: 0% }")
        .routes("{ path: /b, clusters: [b] }");
    let edge = Edge::start(&fleet);
    let mut waiting = Peer::connect(edge.address());
    waiting.send(GET.replace("/ ", "/b "));
    eventually("it has the only room", || slow.seen().count() == 1);
    assert_eq!(Peer::connect(edge.address()).ask(GET).status(), 503);
    assert_eq!(edge.metric("tidegate_service_budget_exhausted_total"), 0.0);
}

#[test]
fn a_put_is_sent_again_with_its_whole_body() {
    let (bad, good) = (resetting(), Origin::named("b"));
    let edge = Edge::start(&two(&bad, &good));
    let body = "0123456789".repeat(6_000);
    let request =
        format!("PUT / HTTP/1.1\r\nHost: site.test\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(Peer::connect(edge.address()).ask(request).text(), "b");
    assert_eq!(good.seen().requests()[0].text(), body);
}

#[test]
fn a_put_too_large_to_keep_is_not_sent_again() {
    let bad = Origin::scripted(|mut peer, seen, _| {
        let Some(mut request) = peer.head() else { return };
        peer.body(&mut request, false);
        seen.note(&request);
        peer.reset();
    });
    let good = Origin::named("b");
    let edge = Edge::start(&two(&bad, &good));
    let body = "x".repeat(500_000);
    let request =
        format!("PUT / HTTP/1.1\r\nHost: site.test\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(Peer::connect(edge.address()).ask(request).status(), 502);
    assert_eq!((bad.seen().count(), good.seen().count()), (1, 0));
}

#[test]
fn a_put_in_tiny_chunks_is_sent_again_only_while_they_are_few() {
    for (chunks, again) in [(100, true), (3_000, false)] {
        let bad = Origin::scripted(|mut peer, seen, _| {
            let Some(request) = peer.request() else { return };
            seen.note(&request);
            peer.reset();
        });
        let good = Origin::named("b");
        let edge = Edge::start(&two(&bad, &good));
        let body = "1\r\nx\r\n".repeat(chunks);
        let head = "PUT / HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = Peer::connect(edge.address()).ask(format!("{head}{body}0\r\n\r\n"));
        assert_eq!((answer.status(), good.seen().count()), if again { (200, 1) } else { (502, 0) });
    }
}

#[test]
fn a_connection_that_its_origin_closed_while_idle_costs_no_post() {
    // Each connection serves one request and is closed without a word.
    let closed = Arc::new(AtomicUsize::new(0));
    let closing = Origin::scripted({
        let closed = closed.clone();
        move |mut peer, seen, _| {
            let Some(request) = peer.request() else { return };
            seen.note(&request);
            peer.send(OK);
            drop(peer);
            closed.fetch_add(1, Ordering::SeqCst);
        }
    });
    let edge = Edge::start(&FleetFile::of(&[closing.address()]));
    let mut client = Peer::connect(edge.address());
    for count in 1..=30 {
        assert_eq!(client.ask(POST).text(), "ok", "request {count}");
        // A close that comes as the next request is being sent may cost it: then it is not known what became of it.
        eventually("the origin has closed", || closed.load(Ordering::SeqCst) >= count);
    }
    assert_eq!(closing.seen().count(), 30, "each was sent once");
}

#[test]
fn a_kept_connection_is_not_used_longer_than_its_origin_said() {
    let origin = Origin::scripted(|mut peer, seen, _| {
        while let Some(request) = peer.request() {
            seen.note(&request);
            peer.send("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=0\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    for _ in 0..3 {
        assert_eq!(client.ask(GET).text(), "ok");
    }
    assert_eq!(origin.seen().connections(), 3);
}

#[test]
fn a_hedge_answers_when_an_endpoint_freezes() {
    let (slow, good) = (frozen(), Origin::named("b"));
    let edge = Edge::start(&two(&slow, &good).service("retry: { hedge_after: 50ms }, timeout: 10s"));
    let began = Instant::now();
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "b");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(edge.metric("tidegate_service_hedges_won_total"), 1.0);
    assert_eq!(slow.seen().count(), 1);
}

#[test]
fn what_changes_something_or_upgrades_is_never_hedged() {
    let (slow, good) = (frozen(), Origin::named("b"));
    let mut edge = Edge::start(&two(&slow, &good).service("retry: { hedge_after: 20ms }, timeout: 300ms"));
    let upgrade = format!("{}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", &GET[..GET.len() - 2]);
    for (count, request) in
        [POST, &POST.replace("POST", "PUT"), &GET.replace("GET", "DELETE"), &upgrade].iter().enumerate()
    {
        assert_eq!(Peer::connect(edge.address()).ask(request).status(), 504, "{request}");
        assert_eq!((slow.seen().count(), good.seen().count()), (count + 1, 0), "{request}");
        // What is held against it for this must not send the next one elsewhere.
        edge.health("a", &[(slow.address(), Verdict::Down, false)]);
        edge.health("a", &[(slow.address(), Verdict::Up, false)]);
    }
}

#[test]
fn the_time_for_one_try_moves_a_get_and_ends_a_post() {
    let (slow, good) = (frozen(), Origin::named("b"));
    let service = "retry: { per_try_timeout: 100ms, hedge_after: off }, timeout: 10s";
    let edge = Edge::start(&two(&slow, &good).service(service));
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "b");
    assert_eq!(Peer::connect(edge.address()).ask(POST).status(), 504);
    assert_eq!((slow.seen().count(), good.seen().count()), (2, 1));
}

#[test]
fn the_whole_time_ends_in_504() {
    let slow = frozen();
    let edge = Edge::start(&FleetFile::of(&[slow.address()]).service("timeout: 100ms"));
    let mut client = Peer::connect(edge.address());
    assert_eq!(client.ask(GET).status(), 504);
    assert_eq!(client.ask(GET).status(), 504, "the client's connection goes on");
}

#[test]
fn retries_end_with_the_attempts_and_with_the_budget() {
    let bad: Vec<Origin> = (0..5).map(|_| Origin::answering(|_| BUSY.into())).collect();
    let addresses: Vec<_> = bad.iter().map(Origin::address).collect();
    let count = || bad.iter().map(|origin| origin.seen().count()).sum::<usize>();
    let fleet = FleetFile::of(&addresses);
    let edge = Edge::start(&fleet.service("retry: { attempts: 3, hedge_after: off }"));
    assert_eq!(Peer::connect(edge.address()).ask(GET).status(), 503);
    assert_eq!(count(), 4);

    let before = count();
    let edge = Edge::start(
        &FleetFile::of(&addresses).service("retry: { attempts: 1, hedge_after: off, budget: 0% }"),
    );
    assert_eq!(Peer::connect(edge.address()).ask(GET).status(), 503);
    assert_eq!(count() - before, 1);
    assert_eq!(edge.metric("tidegate_service_budget_exhausted_total"), 1.0);
}

#[test]
fn a_routes_own_budget_limits_the_routes_retries_and_no_others() {
    let frugal = GET.replace("GET /", "GET /frugal");
    for (service, route, on_the_route, elsewhere) in [("20%", "0%", 503, 200), ("0%", "20%", 200, 503)] {
        let (bad, good) = (Origin::answering(|_| BUSY.into()), Origin::named("b"));
        let fleet = two(&bad, &good)
            .service(&format!("retry: {{ hedge_after: off, budget: {service} }}"))
            .routes(&format!("{{ path_prefix: /frugal, retry: {{ budget: {route} }} }}"));
        let edge = Edge::start(&fleet);
        let mut client = Peer::connect(edge.address());
        assert_eq!(client.ask(&frugal).status(), on_the_route, "{service} {route}");
        assert_eq!(client.ask(GET).status(), elsewhere, "{service} {route}");
        assert_eq!(edge.metric("tidegate_service_budget_exhausted_total"), 1.0);
    }
}

#[test]
fn who_was_asked_later_was_not_overtaken() {
    let slow = Origin::answering(|_| {
        std::thread::sleep(Duration::from_millis(300));
        OK.into()
    });
    let (busy, silent) = (Origin::answering(|_| BUSY.into()), frozen());
    let fleet = two(&slow, &busy)
        .cluster("c", &[silent.address()], "")
        .service("retry: { hedge_after: 50ms }, timeout: 10s");
    let edge = Edge::start(&fleet);
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "ok");
    assert_eq!(silent.seen().count(), 1, "the hedge failed, and was tried again there");
    assert_eq!(edge.metric("tidegate_cluster_failures_total"), 1.0, "of the busy one only");
}

#[test]
fn an_endpoint_that_keeps_failing_is_left_alone_and_asked_again_later() {
    let broken = Arc::new(AtomicBool::new(true));
    let origin = {
        let broken = broken.clone();
        Origin::answering(move |_| if broken.load(Ordering::SeqCst) { BUSY } else { OK }.into())
    };
    let good = Origin::named("b");
    let edge = Edge::start(&two(&origin, &good));
    let mut client = Peer::connect(edge.address());
    for _ in 0..20 {
        assert_eq!(client.ask(GET).text(), "b");
    }
    assert_eq!(origin.seen().count(), 10, "ten requests that others served eject");
    broken.store(false, Ordering::SeqCst);
    eventually("it is asked again", || client.ask(GET).text() == "ok");
}

#[test]
fn one_client_whose_requests_fail_takes_no_endpoint_away_from_others() {
    for is_served_elsewhere in [false, true] {
        let origin = |name: &'static str, fails: bool| {
            Origin::answering(move |request| {
                if fails && request.target() == "/fails" {
                    return BUSY.into();
                }
                format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}").into()
            })
        };
        let (near, far) = (origin("a", true), origin("b", !is_served_elsewhere));
        let edge = Edge::start(&two(&near, &far));
        let (mut hostile, mut bystander) = (Peer::connect(edge.address()), Peer::connect(edge.address()));
        // However much the hostile client asks for.
        for times in [4, 60].repeat(10) {
            assert_eq!(bystander.ask(GET).text(), "a");
            for _ in 0..times {
                hostile.ask("GET /fails HTTP/1.1\r\nHost: site.test\r\n\r\n");
            }
        }
        assert_eq!(bystander.ask(GET).text(), "a");
        assert_eq!(edge.metric("tidegate_cluster_ejections_total"), 0.0);
    }
}

#[test]
fn requests_that_a_route_does_not_wait_for_take_no_endpoint_away_from_other_routes() {
    let near = Origin::answering(|request| {
        if request.target() == "/quick" {
            std::thread::sleep(Duration::from_millis(200));
        }
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na".to_vec()
    });
    let far = Origin::named("b");
    let fleet = two(&near, &far).routes("{ path: /quick, retry: { per_try_timeout: 20ms } }");
    let edge = Edge::start(&fleet);
    let (mut hostile, mut bystander) = (Peer::connect(edge.address()), Peer::connect(edge.address()));
    for _ in 0..15 {
        hostile.ask("GET /quick HTTP/1.1\r\nHost: site.test\r\n\r\n");
        assert_eq!(bystander.ask(GET).text(), "a");
    }
    assert_eq!(edge.metric("tidegate_cluster_ejections_total"), 1.0, "for the route alone");
}

#[test]
fn a_cluster_at_its_limit_sends_requests_to_the_next_one() {
    let (slow, good) = (frozen(), Origin::named("b"));
    let fleet = FleetFile::new().cluster("a", &[slow.address()], "max_requests: 2").cluster(
        "b",
        &[good.address()],
        "max_requests: 1",
    );
    let edge = Edge::start(&fleet);
    let mut waiting: Vec<Peer> = (0..2).map(|_| Peer::connect(edge.address())).collect();
    waiting.iter_mut().for_each(|client| client.send(GET));
    eventually("both wait", || slow.seen().count() == 2);
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "b");
}

#[test]
fn the_limit_of_a_cluster_is_that_of_the_whole_edge() {
    let slow = frozen();
    let fleet = FleetFile::new().cluster("a", &[slow.address()], "max_requests: 5");
    let edge = Edge::start_with(&fleet, Start { workers: 2, ..Start::default() });
    let mut clients: Vec<Peer> = (0..60).map(|_| Peer::connect(edge.address())).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    // The kernel gives one of two workers all of 60 connections once in 2^59 times.
    eventually("the others are refused", || edge.metric("tidegate_service_no_endpoint_total") == 55.0);
    eventually("those within it are asked", || slow.seen().count() == 5);
}

#[test]
fn everybody_at_the_limit_is_503_with_retry_after() {
    let slow = frozen();
    let edge = Edge::start(&FleetFile::new().cluster("a", &[slow.address()], "max_requests: 1"));
    let mut waiting = Peer::connect(edge.address());
    waiting.send(GET);
    eventually("one waits", || slow.seen().count() == 1);
    let answer = Peer::connect(edge.address()).ask(GET);
    assert_eq!((answer.status(), answer.field("retry-after")), (503, Some("1")));
}

#[test]
fn a_verdict_that_an_endpoint_is_silent_frees_all_that_wait_for_it() {
    let (slow, good) = (frozen(), Origin::named("b"));
    let mut edge = Edge::start(&two(&slow, &good).service("retry: { hedge_after: off }, timeout: 60s"));
    let mut get = Peer::connect(edge.address());
    let mut post = Peer::connect(edge.address());
    get.send(GET);
    post.send(POST);
    eventually("both wait", || slow.seen().count() == 2);
    edge.health("a", &[(slow.address(), Verdict::Down, true)]);
    let began = Instant::now();
    assert_eq!(get.answer().text(), "b");
    assert_eq!(post.answer().status(), 504);
    assert!(began.elapsed() < DEADLINE, "long before the timeout");
    // What comes now does not go there.
    assert_eq!(post.ask(POST).text(), "b");
    assert_eq!(slow.seen().count(), 2);
}

#[test]
fn a_long_upload_is_not_given_up_because_probes_of_a_busy_endpoint_time_out() {
    let go = Arc::new(AtomicBool::new(false));
    let busy = Origin::scripted({
        let go = go.clone();
        move |mut peer, seen, _| {
            let Some(mut request) = peer.head() else { return };
            peer.body(&mut request, false);
            seen.note(&request);
            eventually("told to go on", || go.load(Ordering::SeqCst));
            peer.send(OK);
        }
    });
    let mut edge = Edge::start(&FleetFile::of(&[busy.address()]).service("timeout: 20s"));
    let mut client = Peer::connect(edge.address());
    client.send("PUT / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 300000\r\n\r\n");
    client.send(vec![b'x'; 300_000]);
    eventually("all of it was taken", || busy.seen().count() == 1);
    edge.health("a", &[(busy.address(), Verdict::Down, true)]);
    go.store(true, Ordering::SeqCst);
    assert_eq!(client.answer().text(), "ok");
}

#[test]
fn a_client_that_goes_away_does_not_count_against_the_endpoint() {
    let go = Arc::new(AtomicBool::new(false));
    let origin = {
        let go = go.clone();
        Origin::scripted(move |mut peer, seen, _| {
            let Some(request) = peer.head() else { return };
            seen.note(&request);
            eventually("told to go on", || go.load(Ordering::SeqCst));
            // The edge may have closed by now.
            _ = peer.try_send(OK);
        })
    };
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    client.send("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 100\r\n\r\nhalf");
    eventually("it is under way", || origin.seen().count() == 1);
    client.reset();
    eventually("it is noticed", || edge.metric("tidegate_service_client_gone_total") == 1.0);
    go.store(true, Ordering::SeqCst);
    assert_eq!(edge.metric("tidegate_cluster_failures_total"), 0.0);
}

/// An origin that begins its answer with the request's head and ends it with the request's body; it notes each request
/// whose connection ends.
fn answering_early() -> Origin {
    Origin::scripted(|mut peer, seen, _| {
        let Some(request) = peer.head() else { return };
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n");
        peer.rest();
        seen.note(&request);
    })
}

#[test]
fn a_request_that_turns_out_malformed_after_its_answer_began_ends_on_both_sides() {
    let origin = answering_early();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    client.send(CHUNKED_POST);
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.exactly(10), b"5\r\nearly\r\n");
    client.send("no chunk\r\n");
    assert!(client.ends(), "and not as if the answer were whole");
    eventually("the origin is let go", || origin.seen().count() == 1);
    eventually("it is counted", || edge.metric("tidegate_proxy_requests_refused_total") == 1.0);
    assert_eq!(edge.metric("tidegate_cluster_failures_total"), 0.0);
}

#[test]
fn a_client_that_goes_away_within_its_body_after_the_answer_began_lets_the_origin_go() {
    let origin = answering_early();
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    client.send(CHUNKED_POST);
    assert_eq!(client.head().unwrap().status(), 200);
    client.end_sending();
    eventually("the origin is let go", || origin.seen().count() == 1);
    assert_eq!(client.rest(), b"5\r\nearly\r\n", "and not as if the answer were whole");
    eventually("it is counted", || edge.metric("tidegate_service_client_gone_total") == 1.0);
}
