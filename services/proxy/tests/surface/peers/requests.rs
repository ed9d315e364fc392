//! Whatever the edge forwards of a request is the same single request to HAProxy and to nginx.

use std::{
    io::Write as _,
    net::{Shutdown, TcpStream},
};

use bytes::Bytes;

use super::{
    hostile,
    readers::{Part, Reader, Recorder, read, rest},
};
use crate::{
    harness::{DEADLINE, edge::Edge, fleet::FleetFile, http2, peer::Message},
    translation,
};

/// A request that follows each on its connection: whoever has read too much or too little of that does not see this one.
const END: &[u8] = b"GET /end HTTP/1.1\r\nHost: end.test\r\nConnection: close\r\n\r\n";

/// What a reader refuses although the edge forwards it: nobody is deceived by that, but each has a reason.
pub struct Refusal {
    /// Which.
    pub reader: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Whether a request is of this kind.
    pub is_met: fn(&Message) -> bool,
}

pub const REFUSALS: [Refusal; 8] = [
    Refusal {
        reader: "nginx",
        reason: "Methods of other characters than A-Z, - and _; there are none in use.",
        is_met: |request| !request.line.split(' ').next().is_some_and(is_nginx_method),
    },
    Refusal {
        reader: "nginx",
        reason: "TRACE: it answers 405.",
        is_met: |request| request.line.starts_with("TRACE "),
    },
    Refusal {
        reader: "nginx",
        reason: "The target * of OPTIONS (before nginx 1.29).",
        is_met: |request| request.target() == "*",
    },
    Refusal {
        reader: "nginx",
        reason: "Paths that leave the root by .., which it resolves to find a location; the edge leaves that to origins.",
        is_met: |request| path(request).replace("%2e", ".").contains("/.."),
    },
    Refusal {
        reader: "nginx",
        reason: "Paths with NUL or with % without two digits behind it, for the same reason.",
        is_met: |request| has_bad_escape(path(request)),
    },
    Refusal {
        reader: "nginx",
        reason: "An empty host, which RFC 9112 (section 3.2) allows, one of a dot alone, and one with two dots in a row.",
        is_met: |request| {
            let host = request.field("host").unwrap_or_default();
            host.is_empty() || host.contains("..") || host.split(':').next() == Some(".")
        },
    },
    Refusal {
        reader: "haproxy",
        reason: "The method PRI, of which only the preface of HTTP/2 makes use.",
        is_met: |request| request.line.starts_with("PRI "),
    },
    Refusal {
        reader: "haproxy",
        reason: "Bytes above 0x7f in a target (others take them), and an upgrade to websocket without its key.",
        is_met: |request| !request.target().is_ascii() || request.field("upgrade") == Some("websocket"),
    },
];

fn is_nginx_method(method: &str) -> bool {
    method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_')
}

fn path(request: &Message) -> &str {
    request.target().split('?').next().unwrap_or_default()
}

fn has_bad_escape(path: &str) -> bool {
    let is_bad = |rest: &str| {
        !rest.get(..2).is_some_and(|two| u8::from_str_radix(two, 16).is_ok_and(|byte| byte != 0))
    };
    path.split('%').skip(1).any(is_bad)
}

struct Setup {
    edge: Edge,
    at_edge: Recorder,
    behind: [(Reader, Recorder); 2],
    forwarded: usize,
    /// How often each of [`REFUSALS`] was met.
    refused: [usize; REFUSALS.len()],
    wrong: Vec<String>,
}

impl Setup {
    fn new() -> Setup {
        let at_edge = Recorder::start();
        let listener = "protocol: http, underscores_in_headers: pass";
        let fleet = FleetFile::of(&[at_edge.address()]).listener(listener).hosts("\"*\"");
        let (behind_haproxy, behind_nginx) = (Recorder::start(), Recorder::start());
        Setup {
            edge: Edge::start(&fleet),
            at_edge,
            behind: [
                (Reader::haproxy(behind_haproxy.address(), false), behind_haproxy),
                (Reader::nginx(behind_nginx.address(), false), behind_nginx),
            ],
            forwarded: 0,
            refused: [0; REFUSALS.len()],
            wrong: Vec::new(),
        }
    }

    /// Has the readers read what the edge has forwarded since this was last called; `sent` is what it came of.
    fn check(&mut self, sent: &[u8]) {
        for forwarded in self.at_edge.take() {
            match read(&forwarded, false, true) {
                Part::Whole(message, length) if length == forwarded.len() => {
                    self.forwarded += 1;
                    self.check_whole(&message, &forwarded, sent);
                }
                Part::Whole(_, length) => {
                    let excess = forwarded[length..].escape_ascii();
                    self.wrong.push(format!("the edge has sent \"{excess}\" after a request"));
                }
                Part::Unended(_) | Part::None => self.check_unended(&forwarded, sent),
            }
        }
    }

    fn check_whole(&mut self, message: &Message, forwarded: &[u8], sent: &[u8]) {
        let Part::Whole(end, _) = read(END, false, true) else { panic!("a whole request") };
        for (reader, origin) in &self.behind {
            let response = reader.ask(&[forwarded, END].concat(), false);
            let seen = requests(&origin.take());
            if same(&seen, &[message, &end]) {
                continue;
            }
            let text = format!(
                "{}:\n  sent      {}\n  forwarded {}\n  seen      {seen:?}\n  response  {}",
                reader.name,
                sent.escape_ascii(),
                forwarded.escape_ascii(),
                response.escape_ascii(),
            );
            let is_refused = status(&response) >= 400 && (seen.is_empty() || same(&seen, &[&end]));
            let listed = REFUSALS.iter().position(|one| one.reader == reader.name && (one.is_met)(message));
            match listed {
                Some(number) if is_refused => self.refused[number] += 1,
                None if is_refused => self.wrong.push(format!("refused by {text}")),
                Some(_) | None => self.wrong.push(format!("understood differently by {text}")),
            }
        }
    }

    /// What has not ended at the edge has not ended to anybody.
    fn check_unended(&mut self, forwarded: &[u8], sent: &[u8]) {
        for (reader, origin) in &self.behind {
            reader.ask(forwarded, true);
            let seen = requests(&origin.take());
            if !seen.is_empty() {
                let (sent, forwarded) = (sent.escape_ascii(), forwarded.escape_ascii());
                self.wrong.push(format!("{} sees {seen:?} in {forwarded} of {sent}", reader.name));
            }
        }
    }

    /// # Panics
    /// When anything was understood differently.
    fn finish(&self, messages: usize) {
        let (forwarded, refused) = (self.forwarded, self.refused.iter().sum::<usize>());
        println!("{messages} messages, {forwarded} requests forwarded, {refused} refusals that are listed");
        for wrong in self.wrong.iter().take(40) {
            println!("{wrong}");
        }
        assert!(self.wrong.is_empty(), "{} differences", self.wrong.len());
        assert!(forwarded > 200, "too few requests were forwarded to say anything");
    }
}

/// All whole requests on some connections.
pub fn requests(connections: &[Vec<u8>]) -> Vec<Message> {
    let mut all = Vec::new();
    for mut bytes in connections.iter().map(Vec::as_slice) {
        while let Part::Whole(message, length) = read(bytes, false, true) {
            all.push(message);
            bytes = &bytes[length..];
        }
    }
    all
}

pub fn same(seen: &[Message], expected: &[&Message]) -> bool {
    let essence = |message: &Message| {
        let (line, _) = message.line.rsplit_once(' ').unwrap_or_default();
        (line.to_owned(), message.field("host").map(str::to_owned), message.body.clone())
    };
    seen.len() == expected.len() && seen.iter().zip(expected).all(|(a, b)| essence(a) == essence(b))
}

/// The first final status in what a reader has answered; 400 when it has only closed the connection.
fn status(mut response: &[u8]) -> u16 {
    while let Part::Whole(message, length) = read(response, true, true) {
        match message.status() {
            100..200 => response = &response[length..],
            status => return status,
        }
    }
    400
}

/// Sends a message to the edge on a connection of its own, as all that will come, and reads until its end.
pub fn send(edge: &Edge, message: &[u8]) {
    let mut client = TcpStream::connect(edge.address()).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    // The edge may refuse what comes and not read the rest.
    _ = client.write_all(message);
    _ = client.shutdown(Shutdown::Write);
    rest(&mut client, "the edge", message);
}

#[test]
#[ignore = "needs HAProxy and nginx: make test-peers"]
fn haproxy_and_nginx_read_a_forwarded_request_as_the_edge_did() {
    let mut setup = Setup::new();
    let messages = hostile::requests();
    for message in &messages {
        send(&setup.edge, message);
        setup.check(message);
    }
    setup.finish(messages.len());
    for (refusal, count) in REFUSALS.iter().zip(setup.refused) {
        assert!(count > 0, "{} refuses none of these any more: {}", refusal.reader, refusal.reason);
    }
}

#[test]
#[ignore = "needs HAProxy and nginx: make test-peers"]
fn haproxy_and_nginx_read_a_request_that_came_over_http2_as_the_edge_did() {
    let mut setup = Setup::new();
    let messages = hostile::http2_requests();
    for message in &messages {
        let Some((flags, text)) = message.split_first() else { continue };
        let Some(head) = translation::head_of(text) else { continue };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = http2::client(setup.edge.address()).await;
            let has_body = flags & 1 == 1;
            // What this library cannot say is not sent.
            let Ok((response, mut body)) =
                client.send_request(http::Request::from_parts(head, ()), !has_body)
            else {
                return;
            };
            if has_body {
                _ = body.send_data(Bytes::from_static(b"hello"), true);
            }
            if let Ok(mut response) = tokio::time::timeout(DEADLINE, response).await.expect("in time") {
                _ = http2::read(response.body_mut()).await;
            }
        });
        drop(runtime);
        setup.check(message);
    }
    setup.finish(messages.len());
}
