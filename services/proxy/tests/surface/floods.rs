//! Clients that send much that costs them little: each loses its own connection, and nobody else notices.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::harness::{
    edge::{Edge, Start},
    eventually,
    fleet::FleetFile,
    frames::{
        DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS,
        UNKNOWN, WINDOW_UPDATE, frame, next_frame,
    },
    http2::{Http2Origin, Serving},
    origin::Origin,
    peer::Peer,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: site.test\r\n\r\n";
/// Error codes of RFC 9113.
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
const END_STREAM_AND_HEADERS: u8 = END_STREAM | END_HEADERS;

/// A connection on which the preface and the settings were exchanged.
fn connect(edge: &Edge) -> Peer {
    let mut peer = Peer::connect(edge.address());
    peer.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    peer
}

fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[payload.len() - 4..].try_into().unwrap())
}

/// The code with which the peer says goodbye.
fn goodbye(peer: &mut Peer) -> Option<u32> {
    let mut code = None;
    while let Some(frame) = next_frame(peer) {
        if frame.kind == GOAWAY {
            code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
        }
    }
    code
}

#[test]
fn a_client_that_sends_nothing_but_control_frames_is_sent_away() {
    let origin = Origin::named("a");
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let floods = [
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("window", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("priority", frame(PRIORITY, 0, 1, &[0; 5])),
        ("unknown", frame(UNKNOWN, 0, 0, &[])),
    ];
    for (number, (name, flood)) in floods.iter().enumerate() {
        let mut client = connect(&edge);
        // What is left unread may cut it short.
        _ = client.try_send(flood.repeat(20_000));
        assert_eq!(goodbye(&mut client), Some(ENHANCE_YOUR_CALM), "{name}");
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
        assert_eq!(edge.metric("tidegate_proxy_http2_floods_total"), (number + 1) as f64);
    }
}

#[test]
fn a_client_that_opens_streams_and_resets_them_on_and_on_is_sent_away() {
    let origin = Origin::named("a");
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = connect(&edge);
    // Indexed fields of the static table: GET, /, http; then `:authority: site.test` as a literal.
    let head = [&[0x82, 0x84, 0x86, 0x01, 9][..], b"site.test"].concat();
    let pairs = (0..20_000_u32).flat_map(|number| {
        let stream = number * 2 + 1;
        [
            frame(HEADERS, END_STREAM_AND_HEADERS, stream, &head),
            frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
        ]
        .concat()
    });
    _ = client.try_send(pairs.collect::<Vec<u8>>());
    assert_eq!(goodbye(&mut client), Some(ENHANCE_YOUR_CALM));
    assert!(origin.seen().count() <= 110, "{}", origin.seen().count());
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
}

#[test]
fn resets_of_one_network_on_many_connections_add_up() {
    let origin = Origin::named("a");
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let head = [&[0x82, 0x84, 0x86, 0x01, 9][..], b"site.test"].concat();
    let opens = (0..60_u32).flat_map(|number| frame(HEADERS, END_STREAM_AND_HEADERS, number * 2 + 1, &head));
    let opens: Vec<u8> = opens.collect();
    let resets = (0..60_u32).flat_map(|number| frame(RST_STREAM, 0, number * 2 + 1, &8_u32.to_be_bytes()));
    let resets: Vec<u8> = resets.collect();
    let refuses = |edge: &Edge| {
        let mut client = connect(edge);
        client.send(opens.clone());
        // The last word is the answer to the last stream, or its refusal.
        let mut refused = 0;
        let mut done = 0;
        while done < 60 {
            let frame = next_frame(&mut client).expect("an answer for each stream");
            match frame.kind {
                RST_STREAM => {
                    assert_eq!(code(&frame.payload), REFUSED_STREAM);
                    refused += 1;
                    done += 1;
                }
                DATA => done += 1,
                _ => {}
            }
        }
        if refused == 0 {
            client.send(resets.clone());
        }
        refused
    };
    assert_eq!(refuses(&edge), 0);
    eventually("the next connection may open fewer streams", || refuses(&edge) > 0);
    // At most the connection whose resets were the last too many was ended by them.
    assert!(edge.metric("tidegate_proxy_http2_floods_total") <= 1.0);
    // Others of the network are served.
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
}

#[test]
fn heads_that_decode_to_much_are_bounded_for_a_connection() {
    // Never answers, so that requests stay.
    let origin = Origin::scripted(|mut peer, seen, _| {
        while let Some(request) = peer.head() {
            seen.note(&request);
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = connect(&edge);
    // A field of 3,900 bytes is put into the dynamic table, and named 15 times in each request: one byte each.
    let big = [&[0x40, 1, b'x', 0x7f, 0xbd, 0x1d][..], &[b'a'; 3900]].concat();
    let common = [&[0x82, 0x84, 0x86, 0x01, 9][..], b"site.test"].concat();
    let mut wire = frame(HEADERS, END_STREAM_AND_HEADERS, 1, &[&common[..], &big[..]].concat());
    for number in 1..120_u32 {
        let payload = [&common[..], &[0xbe; 15]].concat();
        wire.extend(frame(HEADERS, END_STREAM_AND_HEADERS, number * 2 + 1, &payload));
    }
    assert!(wire.len() < 10_000, "{}", wire.len());
    client.send(wire.clone());
    let mut refused = 0;
    while refused < 10 {
        let frame = next_frame(&mut client).expect("streams that are refused");
        if frame.kind == RST_STREAM {
            assert_eq!(code(&frame.payload), REFUSED_STREAM);
            refused += 1;
        }
    }
    assert!(edge.metric("tidegate_proxy_http2_heads_over_budget_total") >= 10.0);
    // One MiB of heads holds 17 such requests.
    assert!(origin.seen().count() <= 18, "{}", origin.seen().count());

    // What they cost adds up, and the network's next connections may send less.
    assert_eq!(goodbye(&mut client), Some(ENHANCE_YOUR_CALM));
    let before = origin.seen().count();
    let mut client = connect(&edge);
    client.send(wire);
    assert_eq!(goodbye(&mut client), Some(ENHANCE_YOUR_CALM));
    let more = origin.seen().count() - before;
    assert!(more <= 6, "{more}");
}

/// An edge that plans for 256 files.
fn with_few_files(origin: &Origin) -> Edge {
    with_files(256, &FleetFile::of(&[origin.address()]))
}

/// An edge that plans for `count` files. The test itself has more, for both ends of its connections.
fn with_files(count: u64, fleet: &FleetFile) -> Edge {
    let (soft, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap();
    rlimit::setrlimit(rlimit::Resource::NOFILE, count, hard).unwrap();
    let edge = Edge::start(fleet);
    rlimit::setrlimit(rlimit::Resource::NOFILE, soft.max(2048).min(hard), hard).unwrap();
    edge
}

#[test]
fn slow_clients_of_any_version_make_room_for_others_when_files_run_short() {
    let origin = Origin::named("a");
    let edge = with_few_files(&origin);
    let post = [&[0x83, 0x84, 0x86, 0x01, 9][..], b"site.test"].concat();
    let slow: Vec<Peer> = (0..400)
        .map(|number| match number % 2 {
            0 => {
                let mut client = Peer::connect(edge.address());
                _ = client.try_send("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 100\r\n\r\nx");
                client
            }
            _ => {
                let mut client = connect(&edge);
                _ = client.try_send(frame(HEADERS, END_HEADERS, 1, &post));
                client
            }
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(Peer::connect_from(1, edge.address()).ask(GET).text(), "a");
    }
    eventually("room is made in their own network, too", || {
        // Others of it may be first.
        let mut client = Peer::connect(edge.address());
        let is_served = client.try_send(GET).is_ok() && client.exactly_or_end(1).is_some();
        is_served && edge.metric("tidegate_proxy_connections_evicted_slow_total") >= 1.0
    });
    drop(slow);
}

#[test]
fn silent_tunnels_of_one_network_make_room_for_others() {
    let origin = Origin::scripted(|mut peer, _, _| {
        while let Some(request) = peer.head() {
            if request.target() == "/tunnel" {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
                peer.rest();
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
        }
    });
    let edge = with_few_files(&origin);
    let upgrade = "GET /tunnel HTTP/1.1\r\nHost: site.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let _tunnels: Vec<Peer> = (0..200)
        .map_while(|_| {
            let mut client = Peer::connect(edge.address());
            client.try_send(upgrade).ok()?;
            (client.exactly_or_end(1)?.len() == 1).then_some(client)
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(Peer::connect_from(1, edge.address()).ask(GET).text(), "a");
    }
}

/// An origin that never answers a POST.
fn silent_on_post() -> Origin {
    Origin::scripted(|mut peer, _, _| {
        while let Some(request) = peer.request() {
            if request.line.starts_with("POST ") {
                peer.rest();
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
        }
    })
}

#[test]
fn streams_of_one_client_leave_connections_to_endpoints_for_others() {
    let origin = silent_on_post();
    // Less than what it takes to find that there is no connection left.
    let fleet = FleetFile::new().cluster("a", &[origin.address()], "connect_timeout: 50ms");
    let edge = with_files(256, &fleet);
    let post = [&[0x83, 0x84, 0x86, 0x01, 9][..], b"site.test"].concat();
    let hostile: Vec<Peer> = (0..3)
        .map(|_| {
            let mut client = connect(&edge);
            for number in 0..100 {
                client.send(frame(HEADERS, END_STREAM_AND_HEADERS, number * 2 + 1, &post));
            }
            client
        })
        .collect();
    eventually("they take what they may", || origin.seen().connections() >= 45);
    for _ in 0..20 {
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
    }
    // What is more than one may have waits, and is refused.
    for mut client in hostile {
        let frame = std::iter::from_fn(|| next_frame(&mut client)).find(|frame| frame.kind == HEADERS);
        assert!(frame.is_some());
    }
    // That this machine has no connection left says nothing of the endpoint.
    assert_eq!(edge.metric("tidegate_cluster_ejections_total"), 0.0);
}

#[test]
fn who_may_have_no_connection_to_an_http2_endpoint_makes_none_for_others() {
    // Takes one stream on each connection, and never answers a POST.
    let serving = Serving { streams: 1, ..Serving::default() };
    let origin = Http2Origin::start(serving, |mut exchange| async move {
        exchange.note().await;
        if exchange.request.method() == http::Method::POST {
            std::future::pending::<()>().await;
        }
        exchange.answer(200, "a");
    });
    let fleet = FleetFile::new().cluster("a", &[origin.address()], "protocol: http2");
    let edge = with_files(160, &fleet.service("retry: { attempts: 0, hedge_after: off }"));
    let post = [&[0x83, 0x84, 0x86, 0x01, 9][..], b"site.test"].concat();
    let _hostile: Vec<Peer> = (0..3)
        .map(|_| {
            let mut client = Peer::connect_from(7, edge.address());
            client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
            for number in 0..100 {
                client.send(frame(HEADERS, END_STREAM_AND_HEADERS, number * 2 + 1, &post));
            }
            client
        })
        .collect();
    eventually("they take what they may", || origin.seen().count() >= 20);
    for _ in 0..50 {
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
    }
}

#[test]
fn unused_http2_connections_to_endpoints_make_room_for_others() {
    let origins: [_; 6] = std::array::from_fn(|_| Http2Origin::named("a", Serving::default()));
    let addresses = origins.each_ref().map(Http2Origin::address);
    let fleet = FleetFile::new().cluster("a", &addresses, "protocol: http2");
    // For four connections to endpoints.
    let edge = with_files(112, &fleet);
    let mut client = Peer::connect(edge.address());
    eventually("all are asked", || {
        assert_eq!(client.ask(GET).text(), "a");
        origins.iter().all(|origin| origin.seen().count() > 0)
    });
}

#[test]
fn connections_that_only_linger_make_room() {
    let origin = Origin::named("a");
    let edge = with_few_files(&origin);
    let mut lingering = Vec::new();
    for _ in 0..300 {
        let mut client = Peer::connect(edge.address());
        client.send("X\r\n\r\n");
        assert_eq!(client.answer().status(), 400);
        lingering.push(client);
    }
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
    assert_eq!(edge.metric("tidegate_proxy_connections_over_limit_total"), 0.0);
}

#[test]
fn more_clients_than_files_cost_the_longest_idle_their_connections() {
    let origin = Origin::named("a");
    let edge = with_few_files(&origin);
    let mut first = Peer::connect(edge.address());
    first.ask(GET);

    let mut clients = Vec::new();
    for _ in 0..300 {
        let mut client = Peer::connect(edge.address());
        assert_eq!(client.ask(GET).text(), "a");
        clients.push(client);
    }

    assert!(first.ends(), "the longest idle one");
    let open = edge.metric("tidegate_proxy_connections_open");
    assert!((50.0..=80.0).contains(&open), "{open}");
    assert_eq!(edge.metric("tidegate_proxy_connections_evicted_idle_total") + open, 301.0);
    assert_eq!(edge.metric("tidegate_proxy_connections_over_limit_total"), 0.0);
    assert_eq!(clients.last_mut().unwrap().ask(GET).text(), "a");
}

#[test]
fn clients_that_make_the_edge_hold_much_are_ended_when_memory_runs_short() {
    // Never answers a POST, so that what came of its body is kept.
    let origin = Origin::scripted(|mut peer, _, _| {
        while let Some(request) = peer.head() {
            if request.line.starts_with("POST ") {
                peer.rest();
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
        }
    });
    let edge = Edge::start_with(
        &FleetFile::of(&[origin.address()]),
        Start { client_memory_mib: 1, ..Start::default() },
    );
    let post = |bytes: usize| {
        let mut request = b"POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 1000000\r\n\r\n".to_vec();
        request.resize(request.len() + bytes, b'x');
        request
    };
    let mut clients: Vec<Peer> = Vec::new();
    for number in 0..40 {
        let mut client = Peer::connect(edge.address());
        client.send(post(if number == 7 { 60_000 } else { 30_000 }));
        clients.push(client);
    }
    eventually("connections are ended", || {
        edge.metric("tidegate_proxy_connections_evicted_memory_total") >= 1.0
    });
    clients[7].stream().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert!(clients[7].ends(), "the one for which most was held");
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
}

#[test]
fn streams_that_only_wait_count_as_memory() {
    let (_origin, edge) = with_little_memory("");
    let post = [&[0x83, 0x84, 0x86, 0x01, 9][..], b"site.test"].concat();
    // Ten times 100 requests that never have a body: three MB, of which the budget holds one.
    let _clients: Vec<Peer> = (0..10)
        .map(|_| {
            let mut client = connect(&edge);
            let opens = (0..100_u32).flat_map(|number| frame(HEADERS, END_HEADERS, number * 2 + 1, &post));
            _ = client.try_send(opens.collect::<Vec<u8>>());
            client
        })
        .collect();
    eventually("connections are ended", || {
        edge.metric("tidegate_proxy_connections_evicted_memory_total") >= 5.0
    });
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
}

#[test]
fn uploads_that_no_endpoint_takes_count_as_memory() {
    // Never says that it takes a body.
    let origin = Origin::scripted(|mut peer, _, _| {
        if let Some(request) = peer.head() {
            if request.line.starts_with("GET ") {
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
            }
            std::thread::sleep(Duration::from_secs(60));
        }
    });
    let edge = Edge::start_with(
        &FleetFile::of(&[origin.address()]),
        Start { client_memory_mib: 1, ..Start::default() },
    );
    let post =
        [&[0x83, 0x84, 0x86, 0x01, 9][..], b"site.test", &[0, 6], b"expect", &[12], b"100-continue"].concat();
    let _clients: Vec<Peer> = (0..30)
        .map(|_| {
            let mut client = connect(&edge);
            while next_frame(&mut client).is_some_and(|frame| frame.kind != WINDOW_UPDATE) {}
            for number in 0..20 {
                let stream = number * 2 + 1;
                let piece = frame(DATA, 0, stream, &[b'x'; 16_000]);
                _ = client.try_send([frame(HEADERS, END_HEADERS, stream, &post), piece.repeat(3)].concat());
            }
            client
        })
        .collect();
    eventually("connections are ended", || {
        edge.metric("tidegate_proxy_connections_evicted_memory_total") >= 2.0
    });
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
}

const POST: &str = "POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 5\r\n\r\nhello";

/// An edge before one origin that takes five requests at once, and `count` clients that send a part of a body.
fn slow_clients(origin: &Origin, count: usize) -> (Edge, Vec<Peer>) {
    let fleet = FleetFile::new().cluster("a", &[origin.address()], "max_requests: 5");
    let edge = Edge::start(&fleet);
    let clients: Vec<Peer> = (0..count)
        .map(|number| {
            let mut client = Peer::connect(edge.address());
            client.send("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 100\r\n\r\nx");
            // Until its body is waited for, a request is under way like any other.
            eventually("it has its place", || {
                let waiting = edge.metric("tidegate_cluster_requests_waiting");
                origin.seen().connections() == number + 1 && (number % 4 > 0 || waiting >= number as f64)
            });
            client
        })
        .collect();
    (edge, clients)
}

#[test]
fn clients_that_send_their_bodies_slowly_take_no_place_of_others() {
    let origin = Origin::named("a");
    let (edge, mut clients) = slow_clients(&origin, 6);
    eventually("they wait", || edge.metric("tidegate_cluster_requests_waiting") >= 6.0);
    for _ in 0..20 {
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
        assert_eq!(Peer::connect(edge.address()).ask(POST).text(), "a");
    }
    // Nobody needs their places, so they may go on.
    for client in &mut clients {
        client.send([b'x'; 99]);
        assert_eq!(client.answer().text(), "a");
    }
}

#[test]
fn slow_clients_are_given_up_for_others_when_they_take_all_places() {
    let origin = Origin::named("a");
    // All that one network may have of twice the limit.
    let (edge, mut clients) = slow_clients(&origin, 9);
    eventually("a place is given back for another client", || {
        Peer::connect(edge.address()).ask(POST).status() == 200
    });
    eventually("a slow client is told", || clients.iter_mut().any(|client| client.has_arrived()));
    let given_up = clients.iter_mut().filter_map(Peer::arrived).collect::<Vec<_>>();
    assert!(given_up.iter().all(|answer| answer.status() == 408), "{given_up:?}");
}

#[test]
fn slow_uploads_of_one_network_leave_others_their_part_of_the_limit() {
    let (end, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let origin = Origin::scripted(move |mut peer, _, _| {
        let Some(request) = peer.head_or_end() else { return };
        if request.line.starts_with("GET ") {
            _ = wait.lock().unwrap().recv();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
        }
        peer.rest();
    });
    let edge = Edge::start(&FleetFile::new().cluster("a", &[origin.address()], "max_requests: 40"));
    let _slow: Vec<Peer> = (0..30)
        .map(|_| {
            let mut client = Peer::connect_from(1, edge.address());
            client.send("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 100\r\n\r\nx");
            client
        })
        .collect();
    eventually("they wait", || edge.metric("tidegate_cluster_requests_waiting") >= 30.0);
    let mut clients: Vec<Peer> = (0..30)
        .map(|_| {
            let mut client = Peer::connect(edge.address());
            client.send(GET);
            client
        })
        .collect();
    eventually("all are under way", || origin.seen().connections() == 60);
    drop(end);
    for client in &mut clients {
        assert_eq!(client.answer().text(), "a");
    }
}

#[test]
fn uploads_that_one_network_ends_all_at_once_leave_others_their_part_of_the_limit() {
    let origin = silent_on_post();
    let edge = Edge::start(&FleetFile::new().cluster("a", &[origin.address()], "max_requests: 40"));
    let mut clients: Vec<Peer> = (0..200)
        .map(|_| {
            let mut client = Peer::connect_from(1, edge.address());
            client.send("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 5\r\n\r\nhell");
            client
        })
        .collect();
    eventually("most wait", || edge.metric("tidegate_cluster_requests_waiting") >= 30.0);
    for client in &mut clients {
        // Some were refused.
        _ = client.try_send("o");
    }
    eventually("none waits", || edge.metric("tidegate_cluster_requests_waiting") == 0.0);
    for _ in 0..50 {
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
    }
    drop(clients);
}

#[test]
fn clients_that_take_their_responses_slowly_take_no_place_of_others() {
    let body = vec![b'x'; 8 * 1024 * 1024];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let large = [head.as_bytes(), &body].concat();
    let origin = Origin::answering(move |request| {
        if request.target() == "/large" {
            large.clone()
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na".to_vec()
        }
    });
    let edge = Edge::start(&FleetFile::new().cluster("a", &[origin.address()], "max_requests: 5"));
    let _slow: Vec<Peer> = (0..5)
        .map(|_| {
            let mut client = Peer::connect(edge.address());
            client.send("GET /large HTTP/1.1\r\nHost: site.test\r\n\r\n");
            client
        })
        .collect();
    eventually("they wait", || edge.metric("tidegate_cluster_requests_waiting") >= 5.0);
    for _ in 0..20 {
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
    }
}

#[test]
fn bodies_in_tiny_chunks_leave_others_their_turn() {
    let body = "1\r\ny\r\n".repeat(10_000);
    let origin = Origin::scripted({
        let body = body.clone();
        move |mut peer, _, _| {
            while let Some(request) = peer.head_or_end() {
                if request.line.starts_with("POST ") {
                    peer.rest();
                    return;
                }
                if request.target() == "/tiny" {
                    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    while peer.try_send(&body).is_ok() {}
                    return;
                }
                peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
            }
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let usual = median_time(&edge);
    for is_upload in [true, false] {
        let stop = Arc::new(AtomicBool::new(false));
        let busy: Vec<_> = (0..20)
            .map(|_| {
                let (stop, body, mut client) = (stop.clone(), body.clone(), Peer::connect(edge.address()));
                std::thread::spawn(move || {
                    if is_upload {
                        client
                            .send("POST / HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n");
                        while !stop.load(Ordering::Relaxed) && client.try_send(&body).is_ok() {}
                    } else {
                        client.send("GET /tiny HTTP/1.1\r\nHost: site.test\r\n\r\n");
                        while !stop.load(Ordering::Relaxed)
                            && client.exactly_or_end(50_000).is_some_and(|part| !part.is_empty())
                        {
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(1));
        let busily = median_time(&edge);
        stop.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(|client| client.join().unwrap());
        eprintln!("XX {is_upload} {busily:?} {usual:?}");
        assert!(busily < Duration::from_millis(40), "{busily:?} instead of {usual:?}, upload: {is_upload}");
    }
}

/// How long requests take on a connection of its own.
fn median_time(edge: &Edge) -> Duration {
    let mut client = Peer::connect(edge.address());
    let mut times: Vec<Duration> = (0..31)
        .map(|_| {
            let from = Instant::now();
            assert_eq!(client.ask(GET).text(), "a");
            from.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// An edge that holds 1 MiB for clients, before an origin that takes nothing of bodies and tunnels, and answers with `/large`.
fn with_little_memory(more: &str) -> (Origin, Edge) {
    let origin = Origin::scripted(|mut peer, _, _| {
        while let Some(request) = peer.head_or_end() {
            match request.target() {
                "/" => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"),
                "/tunnel" => {
                    peer.send(
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
                    );
                    std::thread::sleep(Duration::from_secs(60));
                }
                _ => std::thread::sleep(Duration::from_secs(60)),
            }
        }
    });
    let edge = Edge::start_with(
        &FleetFile::new().cluster("a", &[origin.address()], more).service("timeout: 60s"),
        Start { client_memory_mib: 1, ..Start::default() },
    );
    (origin, edge)
}

#[test]
fn what_waits_for_an_endpoint_that_takes_nothing_counts_as_memory() {
    let large = vec![b'x'; 12 * 1024 * 1024];
    let post = "POST /silent HTTP/1.1\r\nHost: site.test\r\nContent-Length: 100000000\r\n\r\n";
    let tunnel = "GET /tunnel HTTP/1.1\r\nHost: site.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    // The next request's head, of which the end does not come.
    let ahead =
        format!("GET /silent HTTP/1.1\r\nHost: site.test\r\n\r\nGET / HTTP/1.1\r\nX: {}", "a".repeat(60_000));
    for (name, head, body) in
        [("upload", post, &large[..]), ("tunnel", tunnel, &large[..]), ("ahead", &ahead, b"")]
    {
        let (_origin, edge) = with_little_memory("");
        let clients: Vec<Peer> = (0..20)
            .map(|_| {
                let mut client = Peer::connect(edge.address());
                client.send(head);
                if name == "tunnel" {
                    client.head();
                }
                client.stream().set_write_timeout(Some(Duration::from_millis(100))).unwrap();
                // As much as is taken.
                _ = client.try_send(body);
                client
            })
            .collect();
        eventually(name, || edge.metric("tidegate_proxy_connections_evicted_memory_total") >= 2.0);
        assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
        drop(clients);
    }
}

#[test]
fn a_body_in_small_chunks_with_long_heads_counts_as_memory() {
    let (_origin, edge) = with_little_memory("");
    // What is kept to be sent again must not keep all that came with it.
    let chunk = format!("1;{}\r\ny\r\n", "a".repeat(4000));
    let head = "POST /silent HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let _clients: Vec<Peer> = (0..4)
        .map(|_| {
            let mut client = Peer::connect(edge.address());
            client.send(head);
            client.send(chunk.repeat(900));
            client
        })
        .collect();
    assert_eq!(Peer::connect(edge.address()).ask(GET).text(), "a");
}

const EXPECTING: &str =
    "POST / HTTP/1.1\r\nHost: site.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[test]
fn clients_that_await_100_continue_take_no_place_of_others() {
    // Leaves it to the edge to ask for the body.
    let origin = Origin::named("a");
    let edge = Edge::start(&FleetFile::new().cluster("a", &[origin.address()], "max_requests: 5"));
    let begin = Instant::now();
    let mut clients: Vec<Peer> = (0..5)
        .map(|_| {
            let mut client = Peer::connect(edge.address());
            client.send(EXPECTING);
            client
        })
        .collect();
    eventually("others are served", || Peer::connect(edge.address()).ask(GET).status() == 200);
    assert!(begin.elapsed() < Duration::from_millis(900), "before the edge asks for the bodies");
    for client in &mut clients {
        assert_eq!(client.head().unwrap().status(), 100);
        client.send("hello");
        assert_eq!(client.answer().text(), "a");
    }
    eventually("none waits", || edge.metric("tidegate_cluster_requests_waiting") == 0.0);
}

#[test]
fn a_response_without_the_expected_body_waits_for_the_client_no_more() {
    let (end, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let origin = Origin::scripted(move |mut peer, _, _| {
        if peer.head_or_end().is_some() {
            peer.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 3\r\n\r\n");
            _ = wait.lock().unwrap().recv();
            peer.send("end");
        }
    });
    let edge = Edge::start(&FleetFile::of(&[origin.address()]));
    let mut client = Peer::connect(edge.address());
    client.send(EXPECTING);
    let mut head = client.head().unwrap();
    assert_eq!(head.status(), 417);
    eventually("it is the endpoint that is waited for", || {
        edge.metric("tidegate_cluster_requests_waiting") == 0.0
    });
    end.send(()).unwrap();
    client.body(&mut head, false);
    assert_eq!(head.text(), "end");
}
