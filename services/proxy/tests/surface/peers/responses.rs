//! Whatever the edge forwards of an origin's response is the same response to HAProxy and to nginx.

use std::{io::Write as _, net::TcpStream};

use super::{
    hostile,
    readers::{Part, Reader, Recorder, read, rest},
};
use crate::harness::{DEADLINE, edge::Edge, fleet::FleetFile};

/// What a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    status: u16,
    body: Vec<u8>,
    /// Whether it ended as its framing says.
    is_whole: bool,
}

/// What a reader refuses or reads otherwise although the edge forwards it, and why.
struct Exception {
    reader: &'static str,
    reason: &'static str,
    is_met: fn(origin: &[u8], of_reader: &Got) -> bool,
    /// Whether it is met in every run, whatever comes first.
    is_sure: bool,
}

const EXCEPTIONS: [Exception; 3] = [
    Exception {
        reader: "nginx",
        reason: "It takes an interim response for the final one, and then gives all of the rest or nothing (before 1.29).",
        is_met: |origin, _| origin.starts_with(b"HTTP/1.1 1") || origin.starts_with(b"HTTP/1.0 1"),
        is_sure: true,
    },
    Exception {
        reader: "nginx",
        reason: "It takes a tab around a value for a part of it, and so knows no length. RFC 9112 (section 5) allows the tab.",
        is_met: |origin, _| {
            lines(origin).any(|line| line.starts_with(b"content-length:") && line.contains(&b'\t'))
        },
        is_sure: true,
    },
    Exception {
        reader: "haproxy",
        reason: "It refuses trailers that frame, which the edge drops.",
        is_met: |origin, of_reader| {
            let frames = |line: &Vec<u8>| {
                line.starts_with(b"transfer-encoding:") || line.starts_with(b"content-length:")
            };
            lines(origin).filter(frames).count() > 1 && of_reader.status == 502
        },
        is_sure: false,
    },
];

/// The lines of a message in lower case.
fn lines(message: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    message.split(|byte| *byte == b'\n').map(<[u8]>::to_ascii_lowercase)
}

/// The final response to a `method` in what came until the connection's end; nothing when there is none.
fn got(mut bytes: &[u8], method: &str) -> Option<Got> {
    loop {
        let is_head = method == "HEAD";
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let (head, _) = bytes.split_at(end);
        let (Part::Whole(message, _) | Part::Unended(message)) = read(head, false, true) else { return None };
        // HAProxy says HTTP/1.0 where the origin has.
        let status: u16 = message.line.get(9..12)?.parse().ok()?;
        if status < 200 {
            bytes = &bytes[end..];
            continue;
        }
        if is_head || status == 204 || status == 304 {
            // A body that is there all the same would be taken for the next response.
            return Some(Got { status, body: bytes[end..].to_vec(), is_whole: true });
        }
        let (message, is_whole) = match read(bytes, true, true) {
            Part::Whole(message, length) if length == bytes.len() => (message, true),
            // What follows is a message of its own to whoever used the connection again.
            Part::Whole(..) => return Some(Got { status, body: bytes[end..].to_vec(), is_whole: false }),
            Part::Unended(message) => (message, false),
            Part::None => return None,
        };
        return Some(Got { status, body: message.body, is_whole });
    }
}

#[test]
#[ignore = "needs HAProxy and nginx: make test-peers"]
fn haproxy_and_nginx_read_a_response_as_the_edge_does() {
    let at_edge = Recorder::start();
    let edge = Edge::start(&FleetFile::of(&[at_edge.address()]).hosts("\"*\""));
    let origins = [Recorder::start(), Recorder::start()];
    let readers = [Reader::haproxy(origins[0].address(), false), Reader::nginx(origins[1].address(), false)];
    let (mut forwarded, mut met, mut wrong) = (0, [0; EXCEPTIONS.len()], Vec::new());
    let messages = hostile::responses();
    for message in &messages {
        for origin in origins.iter().chain([&at_edge]) {
            origin.answer_with(message);
        }
        for method in ["GET", "HEAD"] {
            let request = format!("{method} /a HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
            let mut client = TcpStream::connect(edge.address()).unwrap();
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            let by_edge = got(&rest(&mut client, "the edge", message), method);
            // What the edge makes itself says nothing of the origin's.
            let Some(by_edge) = by_edge.filter(|got| got.status != 502) else { continue };
            forwarded += 1;
            for reader in &readers {
                let bytes = reader.ask(request.as_bytes(), false);
                let by_reader = got(&bytes, method);
                if by_reader.as_ref() == Some(&by_edge) {
                    continue;
                }
                let nothing = Got { status: 502, body: Vec::new(), is_whole: false };
                let by_reader = by_reader.unwrap_or(nothing);
                // What the edge cuts off tells its client so. A reader that has seen the fault before it forwards the head
                // makes a response of its own; one that takes the fault, as a bare LF in a chunk's line, says more.
                let is_more = by_reader.status == by_edge.status && by_reader.body.starts_with(&by_edge.body);
                if !by_edge.is_whole && (by_reader.status == 502 || is_more) {
                    continue;
                }
                let is_listed =
                    |one: &Exception| one.reader == reader.name && (one.is_met)(message, &by_reader);
                if let Some(number) = EXCEPTIONS.iter().position(is_listed) {
                    met[number] += 1;
                    continue;
                }
                wrong.push(format!(
                    "{method}, {}: {}\n  edge   {} {} {}\n  reader {} {} {}",
                    reader.name,
                    message.escape_ascii(),
                    by_edge.status,
                    by_edge.is_whole,
                    by_edge.body.escape_ascii(),
                    by_reader.status,
                    by_reader.is_whole,
                    by_reader.body[..by_reader.body.len().min(60)].escape_ascii(),
                ));
            }
        }
    }
    println!("{} messages, {forwarded} responses forwarded, exceptions {met:?}", messages.len());
    for wrong in wrong.iter().take(40) {
        println!("{wrong}");
    }
    assert!(wrong.is_empty(), "{} differences", wrong.len());
    assert!(forwarded > 1000, "too few responses were forwarded to say anything");
    for (exception, count) in EXCEPTIONS.iter().zip(met) {
        assert!(
            count > 0 || !exception.is_sure,
            "{} is no exception any more: {}",
            exception.reader,
            exception.reason
        );
    }
}
