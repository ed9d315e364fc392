//! HTTP/2 origins that break the protocol frame by frame: the request in question fails or is served, and nobody else notices.

mod flooding;
mod heads;
mod openings;
mod streams;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::harness::{
    DEADLINE,
    edge::{Edge, Start},
    eventually,
    fleet::FleetFile,
    frames::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, frame, next_frame},
    http2, kernel,
    origin::Origin,
    peer::{Message, Peer},
};

/// `:status: 200`, `204` and `304` in HPACK's static table.
const OK: &[u8] = &[0x88];
const NO_CONTENT: &[u8] = &[0x89];
const NOT_MODIFIED: &[u8] = &[0x8b];
/// The length of the largest payload unless another was agreed on.
const MOST: usize = 16_384;
/// What a flood may bring before its connection ends. What is in the kernel's buffers by then counts, too.
const FLOOD: u64 = 24 * 1024 * 1024;
/// How much larger the process may be after one, with what its other end has sent.
const GROWTH: usize = 64 * 1024 * 1024;

/// What an origin does.
struct Case {
    name: &'static str,
    /// What it begins with.
    opening: Vec<u8>,
    /// What it answers on the stream of a request.
    response: Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>,
    /// What it sends on and on after that.
    flood: Option<Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>>,
    /// Whether the flood costs it its connection although a request is under way.
    is_bounded: bool,
    /// Whether it closes the connection after its response, or where there is none its opening.
    closes: bool,
    /// What a client may get: a status, or `cut` for a response that breaks off.
    allowed: &'static [&'static str],
}

fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = pairs
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// A field as a literal that is not put into the table.
fn literal(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127, "longer ones need more bytes for their length");
    [&[0, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block)
}

/// A right response.
fn right(stream: u32) -> Vec<u8> {
    [headers(stream, 0, OK), frame(DATA, END_STREAM, stream, b"good")].concat()
}

/// An origin that begins wrongly; a request that arrives all the same has a right response.
fn begins(name: &'static str, opening: Vec<u8>, allowed: &'static [&'static str]) -> Case {
    Case { name, opening, response: Box::new(right), flood: None, is_bounded: true, closes: false, allowed }
}

/// An origin that begins well and answers with some frames.
fn answers(
    name: &'static str,
    allowed: &'static [&'static str],
    response: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) -> Case {
    Case {
        name,
        opening: settings(&[]),
        response: Box::new(response),
        flood: None,
        is_bounded: true,
        closes: false,
        allowed,
    }
}

/// An origin that answers with HEADERS which end the stream and have this block after `:status: 200`.
fn answers_with_field(name: &'static str, allowed: &'static [&'static str], field: &[u8]) -> Case {
    let block = [OK, field].concat();
    answers(name, allowed, move |stream| headers(stream, END_STREAM, &block))
}

/// The same, with the whole block.
fn answers_with_block(name: &'static str, allowed: &'static [&'static str], block: &'static [u8]) -> Case {
    answers(name, allowed, move |stream| headers(stream, END_STREAM, block))
}

/// An origin that begins its response and then sends a frame on and on.
fn floods(
    name: &'static str,
    allowed: &'static [&'static str],
    response: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
    flood: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
) -> Case {
    Case { flood: Some(Box::new(flood)), ..answers(name, allowed, response) }
}

fn begun(stream: u32) -> Vec<u8> {
    headers(stream, 0, OK)
}

const BAD: &[&str] = &["502"];
const LATE: &[&str] = &["504"];
const GOOD: &[&str] = &["200"];
/// Where the connection is to blame, it fails for whoever else has a request on it.
const CUT: &[&str] = &["cut", "502"];
const GOOD_OR_BAD: &[&str] = &["200", "502"];
const BAD_OR_LATE: &[&str] = &["502", "504"];
const GOOD_OR_LATE: &[&str] = &["200", "504"];

/// A flood so far.
#[derive(Default)]
struct Flood {
    /// Bytes of it that went out.
    bytes: AtomicU64,
    /// How many connections it has cost.
    ended: AtomicU64,
}

/// An origin that does as the case says until it is `good`.
fn hostile(case: &Arc<Case>, good: &Arc<AtomicBool>, flooded: &Arc<Flood>) -> Origin {
    let (case, good, flooded) = (case.clone(), good.clone(), flooded.clone());
    Origin::scripted(move |mut peer, seen, _| {
        let is_good = good.load(Ordering::SeqCst);
        if peer.try_send(if is_good { settings(&[]) } else { case.opening.clone() }).is_err()
            || peer.exactly_or_end(PREFACE.len()).is_none()
            || case.closes && !is_good && (case.response)(1).is_empty()
        {
            return;
        }
        while let Some(came) = next_frame(&mut peer) {
            let out = match came.kind {
                HEADERS => {
                    seen.note(&Message::default());
                    if good.load(Ordering::SeqCst) {
                        right(came.stream)
                    } else {
                        (case.response)(came.stream)
                    }
                }
                PING if came.flags & ACK == 0 => frame(PING, ACK, 0, &came.payload),
                SETTINGS if came.flags & ACK == 0 => frame(SETTINGS, ACK, 0, &[]),
                _ => continue,
            };
            if peer.try_send(out).is_err() {
                return;
            }
            if came.kind != HEADERS || good.load(Ordering::SeqCst) {
                continue;
            }
            if let Some(flood) = &case.flood {
                peer.stream().set_write_timeout(Some(Duration::from_secs(3))).unwrap();
                let piece = flood(came.stream);
                let piece = piece.repeat(1 + 16 * 1024 / piece.len());
                while flooded.bytes.load(Ordering::SeqCst) < 2 * FLOOD {
                    if peer.try_send(&piece).is_err() {
                        flooded.ended.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    flooded.bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
                }
            }
            if case.closes {
                return;
            }
        }
    })
}

/// What a client gets: a status, or `cut` where its response has broken off, be it before the first byte.
fn outcome(client: &mut Peer) -> String {
    loop {
        let Some(mut message) = client.head_or_end() else { return "cut".to_owned() };
        match message.status() {
            100..200 => {}
            status @ (204 | 304) => return status.to_string(),
            _ if !client.body_or_end(&mut message) => return "cut".to_owned(),
            status => return status.to_string(),
        }
    }
}

/// The memory of this process: the edge's with its origins'.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// # Panics
/// When a case harms anybody.
fn run(cases: Vec<Case>) {
    let bystander = Origin::named("b");
    let mut wrong = Vec::new();
    for case in cases.into_iter().map(Arc::new) {
        let (good, flooded) = (Arc::<AtomicBool>::default(), Arc::<Flood>::default());
        let origin = hostile(&case, &good, &flooded);
        let fleet = FleetFile::new()
            .cluster("a", &[origin.address()], "protocol: http2, connect_timeout: 500ms")
            .cluster("b", &[bystander.address()], "")
            .service("timeout: 700ms, retry: { attempts: 1, hedge_after: off }")
            .prefer("[a]")
            .routes("{ path: /b, clusters: [b] }");
        // A response that never ends is given up some time.
        let start = Start { stream_idle_timeout: Duration::from_millis(500), ..Start::default() };
        let edge = Edge::start_with(&fleet, start);
        let before = resident();
        let ask = |target: &str| {
            let mut client = Peer::connect(edge.address());
            client.send(format!("GET {target} HTTP/1.1\r\nHost: site.test\r\n\r\n"));
            client
        };
        let mut clients = [ask("/a"), ask("/a")];
        let mut others = ask("/b");
        let others = outcome(&mut others);
        let outcomes = clients.each_mut().map(outcome);
        // Whatever its first response was, the client's connection goes on or ends: nothing is left on it.
        for (client, outcome) in clients.iter_mut().zip(&outcomes) {
            if outcome != "cut" && client.try_send("GET /b HTTP/1.1\r\nHost: site.test\r\n\r\n").is_ok() {
                let next = client
                    .head_or_end()
                    .map(|mut head| (client.body_or_end(&mut head), head.text().to_owned()));
                if !matches!(&next, None | Some((true, _))) || next.is_some_and(|(_, text)| text != "b") {
                    wrong.push(format!("{}: the client's next request is not answered rightly", case.name));
                }
            }
        }
        let grown = resident().saturating_sub(before);
        println!(
            "{}: {outcomes:?}, {} connections, {} requests, {} bytes of flood, {} KiB more",
            case.name,
            origin.seen().connections(),
            origin.seen().count(),
            flooded.bytes.load(Ordering::SeqCst),
            grown / 1024
        );
        if outcomes.iter().any(|outcome| !case.allowed.contains(&outcome.as_str())) {
            wrong.push(format!("{}: {outcomes:?}, not {:?}", case.name, case.allowed));
        }
        if others != "200" {
            wrong.push(format!("{}: a bystander gets {others}", case.name));
        }
        if grown > GROWTH {
            wrong.push(format!("{}: {grown} bytes more", case.name));
        }
        let bytes = flooded.bytes.load(Ordering::SeqCst);
        if case.is_bounded && bytes > FLOOD {
            wrong.push(format!("{}: {bytes} bytes of the flood were taken", case.name));
        }
        good.store(true, Ordering::SeqCst);
        let mut failures = 0;
        eventually(case.name, || {
            let outcome = outcome(&mut ask("/a"));
            failures += u32::from(outcome != "200");
            outcome == "200"
        });
        // One may be met by a connection of which nobody knows yet that it is dead.
        if failures > 1 {
            wrong.push(format!("{}: {failures} requests failed once the origin was good", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_http2_origin_that_begins_wrongly_harms_only_its_own_requests() {
    run(openings::openings());
}

#[test]
fn an_http2_origin_whose_streams_are_wrong_harms_only_their_requests() {
    run(streams::streams());
}

#[test]
fn an_http2_origin_whose_heads_are_malformed_harms_only_its_own_requests() {
    run(heads::heads());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_body_where_there_is_none_is_not_forwarded_over_http2() {
    for (method, block, status) in [("GET", NO_CONTENT, 204), ("GET", NOT_MODIFIED, 304), ("HEAD", OK, 200)] {
        let case = Arc::new(answers("a body where there is none", GOOD, move |stream| {
            [
                headers(stream, 0, block),
                frame(DATA, 0, stream, b"excess"),
                frame(DATA, END_STREAM, stream, b"more"),
            ]
            .concat()
        }));
        let origin = hostile(&case, &Arc::default(), &Arc::default());
        let edge = Edge::start(&FleetFile::new().cluster("a", &[origin.address()], "protocol: http2"));
        let mut client = http2::client(edge.address()).await;
        for _ in 0..2 {
            let (response, _) = client.send_request(http2::request(method), true).unwrap();
            let mut response = tokio::time::timeout(DEADLINE, response).await.expect("in time").unwrap();
            assert_eq!(response.status(), status);
            let (body, _) =
                tokio::time::timeout(DEADLINE, http2::read(response.body_mut())).await.unwrap().unwrap();
            assert_eq!(body, "", "{method} {status}");
        }
        assert_eq!(origin.seen().connections(), 1);
    }
}

#[test]
fn an_http2_origin_whose_compression_is_wrong_harms_only_its_own_requests() {
    run(heads::compression());
}

#[test]
fn an_http2_origin_that_floods_harms_only_its_own_requests() {
    run(flooding::all_floods());
}

#[test]
fn data_that_belongs_to_no_request_ends_a_connection_without_requests() {
    let (case, flooded) = (Arc::new(flooding::excess_data()), Arc::<Flood>::default());
    let origin = hostile(&case, &Arc::default(), &flooded);
    let edge = Edge::start(&FleetFile::new().cluster("a", &[origin.address()], "protocol: http2"));
    let mut client = Peer::connect(edge.address());
    client.send("GET /a HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(outcome(&mut client), "200");
    eventually("the connection ends", || flooded.ended.load(Ordering::SeqCst) == 1);
    let bytes = flooded.bytes.load(Ordering::SeqCst);
    assert!(bytes < FLOOD, "{bytes}");
}

#[test]
fn an_upload_for_which_an_http2_origin_has_no_window_ends_in_time_and_leaves_its_connection_usable() {
    for window in [0, 2] {
        let opening = settings(&[(4, window)]);
        let case = Arc::new(Case { opening, ..answers("an upload that is not taken", LATE, |_| Vec::new()) });
        let good = Arc::<AtomicBool>::default();
        let origin = hostile(&case, &good, &Arc::default());
        let fleet = FleetFile::new().cluster("a", &[origin.address()], "protocol: http2");
        let edge = Edge::start(&fleet.service("timeout: 300ms, retry: { attempts: 1, hedge_after: off }"));
        let ask = |request: &str| Peer::connect(edge.address()).ask(request).status();
        let post = "POST /a HTTP/1.1\r\nHost: site.test\r\nContent-Length: 100000\r\n\r\n".to_owned();
        assert_eq!(ask(&(post + &"x".repeat(100_000))), 504);
        good.store(true, Ordering::SeqCst);
        assert_eq!(ask("GET /a HTTP/1.1\r\nHost: site.test\r\n\r\n"), 200);
        assert_eq!(origin.seen().connections(), 1);
    }
}

#[test]
fn connections_that_take_no_streams_are_not_kept() {
    let case = Arc::new(begins("no streams", settings(&[(3, 0)]), LATE));
    let origin = hostile(&case, &Arc::default(), &Arc::default());
    let fleet = FleetFile::new().cluster("a", &[origin.address()], "protocol: http2");
    let edge = Edge::start(&fleet.service("timeout: 100ms, retry: { attempts: 1, hedge_after: off }"));
    for _ in 0..5 {
        let mut client = Peer::connect(edge.address());
        client.send("GET /a HTTP/1.1\r\nHost: site.test\r\n\r\n");
        outcome(&mut client);
    }
    assert!(origin.seen().connections() > 1);
    let open = || {
        kernel::sockets_to(origin.address()).into_iter().filter(|socket| socket.state == kernel::ESTABLISHED)
    };
    eventually("they end", || open().count() == 0);
}
