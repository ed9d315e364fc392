//! Whatever the edge forwards over HTTP/2 is what it would forward over HTTP/1.1, to HAProxy and to nginx.

use super::{
    hostile,
    readers::{Reader, Recorder},
    requests::{REFUSALS, requests, same, send},
};
use crate::harness::{edge::Edge, fleet::FleetFile, peer::Message};

/// An edge in front of a reader over HTTP/2, in front of a recorder.
struct Chain {
    edge: Edge,
    reader: Reader,
    origin: Recorder,
}

impl Chain {
    fn new(reader: impl Fn(std::net::SocketAddr, bool) -> Reader) -> Chain {
        let origin = Recorder::start();
        let reader = reader(origin.address(), true);
        let fleet = FleetFile::new().cluster("a", &[reader.address()], "protocol: http2");
        Chain { edge: Edge::start(&as_it_comes(fleet)), reader, origin }
    }
}

/// Any host, all fields, and each request once.
fn as_it_comes(fleet: FleetFile) -> FleetFile {
    let listener = "protocol: http, underscores_in_headers: pass";
    fleet.listener(listener).hosts("\"*\"").service("retry: { attempts: 1, hedge_after: off }")
}

/// A request in the one form in which all say the same: HAProxy leaves the scheme's port out, and a target is encoded whole
/// where a part of it has to be.
fn normalized(mut request: Message) -> Message {
    let encode = |character: char| match character {
        '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}' => format!("%{:02X}", u32::from(character)),
        other => other.to_string(),
    };
    request.line = request.line.chars().map(encode).collect();
    for (_, host) in request.fields.iter_mut().filter(|(name, _)| name == "host") {
        *host = host.strip_suffix(":80").unwrap_or(host).to_owned();
    }
    request
}

/// Whether the edge forwards a request over HTTP/2: one without a host has no URI there (RFC 9110, section 4.2.1), and is
/// answered with 400.
fn is_forwarded(request: &Message) -> bool {
    request.fields.iter().any(|(name, value)| name == "host" && !value.is_empty())
}

/// Whether a reader does not take a request, which is as good as to refuse it.
fn may_be_refused(reader: &str, request: &Message) -> bool {
    let listed = REFUSALS.iter().any(|one| one.reader == reader && (one.is_met)(request));
    // nginx 1.22 takes trailers of requests for a fault of the connection.
    listed || reader == "nginx" && !request.trailers.is_empty()
}

#[test]
#[ignore = "needs HAProxy and nginx: make test-peers"]
fn haproxy_and_nginx_read_a_request_that_is_forwarded_over_http2_as_the_edge_did() {
    let direct = Recorder::start();
    let edge = Edge::start(&as_it_comes(FleetFile::of(&[direct.address()])));
    let chains = [Chain::new(Reader::haproxy), Chain::new(Reader::nginx)];
    let (mut forwarded, mut refused, mut wrong) = (0, 0, Vec::new());
    let messages = hostile::requests();
    for message in &messages {
        send(&edge, message);
        let expected = requests(&direct.take()).into_iter().map(normalized).filter(is_forwarded);
        let expected: Vec<Message> = expected.collect();
        // What other bytes there were is lost in what was recorded as text.
        if !expected.iter().all(|request| request.target().is_ascii()) {
            continue;
        }
        forwarded += expected.len();
        for chain in &chains {
            send(&chain.edge, message);
            let seen: Vec<Message> = requests(&chain.origin.take()).into_iter().map(normalized).collect();
            let taken = expected.iter().filter(|request| !may_be_refused(chain.reader.name, request));
            let taken: Vec<&Message> = taken.collect();
            refused += expected.len() - taken.len();
            if !same(&seen, &taken) && !same(&seen, &expected.iter().collect::<Vec<_>>()) {
                wrong.push(format!(
                    "{}: {}\n  expected {expected:?}\n  seen     {seen:?}",
                    chain.reader.name,
                    message.escape_ascii()
                ));
            }
        }
    }
    println!("{} messages, {forwarded} requests forwarded, {refused} that may be refused", messages.len());
    for wrong in wrong.iter().take(40) {
        println!("{wrong}");
    }
    assert!(wrong.is_empty(), "{} differences", wrong.len());
    assert!(forwarded > 200, "too few requests were forwarded to say anything");
}
