//! Random sequences of clients, methods and misbehaving origins in segments and delays: nobody ever sees a response that was
//! meant for another's request.
//!
//! `TIDEGATE_SEQUENCES` says how many there are, `TIDEGATE_SEQUENCE_SEED` repeats a run.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use crate::harness::{edge::Edge, fleet::FleetFile, origin::Origin, peer::Peer, random::Random};

/// Sequences in a usual run, of up to six requests each, by so many threads.
const SEQUENCES: u64 = 10_000;
const THREADS: u64 = 8;

/// What the origins have seen that no origin must.
#[derive(Default)]
struct Witness {
    /// Requests that nobody has made, and bodies that are another request.
    smuggled: Mutex<Vec<String>>,
    /// Edges by number, to whom an origin by number has sent excess bytes together with a response.
    warned: Mutex<HashSet<(u64, usize)>>,
}

/// Bodies that clients send.
const BODIES: [&str; 2] = ["hello", "HEAD / HTTP/1.1\r\nHost: site.test\r\n\r\n"];

/// What an origin does with a request, by the number in its target.
const EARLY: u64 = 9;
const EARLY_AND_READS_ON: u64 = 13;
const EARLY_AND_READS_THE_BODY: u64 = 14;
const BEHAVIOURS: u64 = 15;

/// An origin that answers each request as its target says, `/<id>/<behaviour>/<edge>`: rightly, or wrong in one of many ways.
/// Each response carries the request's id; what belongs to no request carries it too, so that whoever gets it is found out.
fn misbehaving(number: usize, witness: &Arc<Witness>) -> Origin {
    let witness = witness.clone();
    Origin::scripted(move |mut peer, _, _| {
        while let Some(request) = peer.head_or_end() {
            let mut parts = request.target().split('/').skip(1);
            let id = parts.next().unwrap_or_default();
            let [Some(behaviour), Some(edge)] =
                [(); 2].map(|()| parts.next().and_then(|part| part.parse().ok()))
            else {
                return witness.smuggled.lock().unwrap().push(format!("the request {request:?}"));
            };
            // An early response leaves the body unread, or reads it as the next request.
            let is_early = [EARLY, EARLY_AND_READS_ON, EARLY_AND_READS_THE_BODY].contains(&behaviour);
            if !is_early {
                if request.field("expect").is_some()
                    && peer.try_send("HTTP/1.1 100 Continue\r\n\r\n").is_err()
                {
                    return;
                }
                if !peer.body_of_request_or_end(&mut request.clone()) {
                    return;
                }
            }
            let is_head = request.line.starts_with("HEAD ");
            let is_get = request.line.starts_with("GET ");
            let body = format!("body of {id}");
            let with = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nx-id: {id}\r\n{more}\r\n");
            let length = format!("Content-Length: {}\r\n", body.len());
            let right = if is_head { with("200 OK", &length) } else { with("200 OK", &length) + &body };
            let excess = format!("HTTP/1.1 200 OK\r\nx-id: {id}-excess\r\nContent-Length: 6\r\n\r\nexcess");
            // Whoever was sent excess bytes already must not use another connection of this origin again.
            let is_warned = witness.warned.lock().unwrap().contains(&(edge, number));
            // What is sent at once, and after a pause; and whether the connection is closed then.
            let (first, pause, then, closes) = match behaviour {
                0 if is_get && is_warned => (right, 1, excess, false),
                0 => (right, 0, String::new(), false),
                // The body comes later.
                1 if !is_head => (with("200 OK", &length), 1, body, false),
                // A response without a body is followed by one: at once, or within the time that such a connection rests.
                2 => (with("204 No Content", "") + &excess, 0, String::new(), false),
                3 => (with("204 No Content", ""), 2, excess, false),
                4 => (with("304 Not Modified", ""), 5, excess, false),
                5 if is_head => (right, 3, body, false),
                // More than was announced.
                6 => {
                    if is_get {
                        witness.warned.lock().unwrap().insert((edge, number));
                    }
                    (right + &excess, 0, String::new(), false)
                }
                // Chunks, and what follows the last one.
                7 if !is_head => {
                    let chunked = with("200 OK", "Transfer-Encoding: chunked\r\n");
                    (
                        format!("{chunked}{:x}\r\n{body}\r\n0\r\n\r\n{excess}", body.len()),
                        0,
                        String::new(),
                        false,
                    )
                }
                // Interim responses before, and a second final one after.
                8 => (format!("HTTP/1.1 103 Early Hints\r\n\r\n{right}{right}"), 0, String::new(), false),
                EARLY | EARLY_AND_READS_ON | EARLY_AND_READS_THE_BODY => (
                    with("413 Content Too Large", "Content-Length: 0\r\n"),
                    0,
                    String::new(),
                    behaviour == EARLY,
                ),
                // Broken off, or closed just as the next request may come.
                10 => (with("200 OK", "Content-Length: 100\r\n"), 0, String::new(), true),
                11 => (right, 0, String::new(), true),
                // A little more than was announced, and then more.
                12 => (right + "\r\n", 1, excess, false),
                _ => (right, 0, String::new(), false),
            };
            if peer.try_send(first).is_err() {
                return;
            }
            if pause > 0 {
                sleep(Duration::from_millis(pause));
            }
            if (!then.is_empty() && peer.try_send(then).is_err()) || closes {
                return;
            }
            if behaviour == EARLY_AND_READS_THE_BODY {
                let mut request = request;
                if !peer.body_of_request_or_end(&mut request) {
                    return;
                }
                if !request.body.is_empty() && !BODIES.contains(&request.text()) {
                    return witness.smuggled.lock().unwrap().push(format!("the body {:?}", request.text()));
                }
            }
        }
    })
}

/// A client's requests, one after the other, each checked.
fn run_sequence((number, edge): (u64, SocketAddr), random: &mut Random, ids: &AtomicU64) {
    let mut client = Peer::connect(edge);
    for _ in 0..=random.below(6) {
        let id = ids.fetch_add(1, Ordering::Relaxed);
        // Well-behaved most of the time, so that connections are used again.
        let behaviour = if random.one_in(3) { random.below(BEHAVIOURS) } else { 0 };
        let (method, body) = match random.below(6) {
            0 => ("HEAD", ""),
            1 => ("POST", BODIES[0]),
            2 => ("PUT", BODIES[1]),
            _ => ("GET", ""),
        };
        // An origin that takes the body for its next request must not have been sent it.
        let expects = !body.is_empty() && (random.one_in(4) || behaviour == EARLY_AND_READS_ON);
        // And one that reads it later has to be still waiting for it.
        let sends_late = behaviour == EARLY_AND_READS_THE_BODY && !body.is_empty();
        let expect = if expects { "Expect: 100-continue\r\n" } else { "" };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!(
            "{method} /{id}/{behaviour}/{number} HTTP/1.1\r\nHost: site.test\r\n{expect}{length}\r\n"
        );
        // In one piece, or in two.
        let sent = if sends_late {
            client.try_send(head)
        } else if random.one_in(3) {
            client.try_send(head).and_then(|()| client.try_send(body))
        } else {
            client.try_send(head + body)
        };
        let body_sent = body;
        let answer = sent.ok().and_then(|()| response(&mut client, method));
        let Some((status, told, body)) = answer else {
            client = Peer::connect(edge);
            continue;
        };
        // Responses of the edge itself have no id of the origin.
        if let Some(told) = told {
            assert_eq!(told, id.to_string(), "{method} of behaviour {behaviour} got another's response");
        }
        if status == 200 && !body.is_empty() {
            assert_eq!(body, format!("body of {id}"), "{method} of behaviour {behaviour} got another's body");
        }
        if sends_late {
            _ = client.try_send(body_sent);
        }
        // The edge does not read on after an early response.
        if random.one_in(4) || status == 413 {
            client = Peer::connect(edge);
        }
        if random.one_in(8) {
            sleep(Duration::from_millis(random.below(4)));
        }
    }
}

/// The final response: its status, the id that the origin has given it, its body; nothing when the connection has ended.
fn response(client: &mut Peer, method: &str) -> Option<(u16, Option<String>, String)> {
    loop {
        let mut message = client.head_or_end()?;
        let status = message.status();
        if status < 200 {
            continue;
        }
        if method != "HEAD" && status != 204 && status != 304 && !client.body_or_end(&mut message) {
            return None;
        }
        let id = message.field("x-id").map(str::to_owned);
        return Some((status, id, String::from_utf8_lossy(&message.body).into_owned()));
    }
}

#[test]
fn nobody_sees_anothers_response_whatever_origins_do() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let sequences = setting("TIDEGATE_SEQUENCES").unwrap_or(SEQUENCES);
    let seed = setting("TIDEGATE_SEQUENCE_SEED").unwrap_or_else(rand::random);
    println!("TIDEGATE_SEQUENCE_SEED={seed}");
    let ids = Arc::new(AtomicU64::new(0));
    // An endpoint that was caught is not used again for a minute: many, each met by few, keep reuse in play.
    let witness = Arc::<Witness>::default();
    let origins: Vec<Origin> = (0..100).map(|number| misbehaving(number, &witness)).collect();
    let edges = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (origins, ids, edges) = (&origins, &ids, &edges);
            scope.spawn(move || {
                let mut random = Random(seed ^ thread);
                let mut done = 0;
                while done < sequences / THREADS {
                    let count = if random.one_in(2) { 1 } else { 3 };
                    let some: Vec<SocketAddr> = (0..count)
                        .map(|_| origins[random.below(origins.len() as u64) as usize].address())
                        .collect();
                    let mut some = some;
                    some.sort_unstable();
                    some.dedup();
                    let edge = Edge::start(&FleetFile::of(&some));
                    let number = edges.fetch_add(1, Ordering::Relaxed);
                    // A few clients at once at each edge.
                    let rounds = 25.min(sequences / THREADS - done);
                    for _ in 0..rounds {
                        run_sequence((number, edge.address()), &mut random, ids);
                    }
                    done += rounds;
                }
            });
        }
    });
    let smuggled = witness.smuggled.lock().unwrap();
    assert!(smuggled.is_empty(), "{} were smuggled: {:?}", smuggled.len(), smuggled.first());
    println!("{sequences} sequences, {} requests in {:.1?}", ids.load(Ordering::Relaxed), began.elapsed());
}
