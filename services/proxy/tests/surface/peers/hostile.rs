//! Messages that readers may understand differently: the fuzz targets' corpora, a table, and random changes of both.
//!
//! `TIDEGATE_PEER_MESSAGES` says how many random ones there are, `TIDEGATE_PEER_SEED` which.

use std::{fs, path::Path};

use crate::harness::random::Random;

/// Random messages in a usual run, from this seed: the same ones each time, so that a run says something of a change.
const RANDOM: u64 = 1500;
const SEED: u64 = 12;

/// Fields that frame, rightly and wrongly.
const FRAMING: [&str; 42] = [
    "",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 40\r\n",
    "Content-Length: 5\r\nContent-Length: 5\r\n",
    "Content-Length: 5\r\nContent-Length: 40\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: -5\r\n",
    "Content-Length: 05\r\n",
    "Content-Length: 0x5\r\n",
    "Content-Length: 5 \r\n",
    "Content-Length:\t5\r\n",
    "Content-Length: \r\n",
    "Content-Length : 5\r\n",
    "Content-Length: 5\n",
    "Content_Length: 5\r\n",
    "Content-Length: 18446744073709551621\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:chunked\r\n",
    "Transfer-Encoding: Chunked\r\n",
    "Transfer-Encoding: chunked \t\r\n",
    "Transfer-Encoding: \u{b}chunked\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunked, chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding: chunked;x=y\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "X: y\nTransfer-Encoding: chunked\r\n",
    "X: y\rTransfer-Encoding: chunked\r\n",
    " Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n",
    "Content-Length: 5\r\nConnection: Content-Length\r\n",
    "Trailer: Content-Length\r\nTransfer-Encoding: chunked\r\n",
];

/// Bodies for them: what is left of each is a message of its own to some readers.
const BODIES: [&str; 20] = [
    "",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "5;x=y\r\nhello\r\n0\r\n\r\n",
    "5;x=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "05\r\nhello\r\n000\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhelloxx0\r\n\r\n",
    "5\r\nhello\r\n0\n\r\n",
    "5\r\nhello\r\n0\r\n\n",
    "5;\rx\r\nhello\r\n0\r\n\r\n",
    "100000000000000005\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nX: y\r\nGrpc-Status: 0\r\nContent-Length: 7\r\n\r\n",
    "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    "0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
];

const METHODS: [&str; 14] = [
    "GET", "HEAD", "OPTIONS", "TRACE", "DELETE", "PURGE", "PRI", "M-SEARCH", "get", "Get", "A_B", "!#$%&",
    "X.Y", "CONNECT",
];

const TARGETS: [&str; 34] = [
    "/",
    "/a?b=c",
    "/a#b",
    "//a",
    "///",
    "/a//b",
    "/a/../b",
    "/..",
    "/../a",
    "/./a",
    "/%2e%2e/a",
    "/%2f",
    "/%00",
    "/%",
    "/%zz",
    "/a;b=c",
    "/?",
    "/??a",
    "/?/../a",
    "/a\\b",
    "/a?b={<\"^`|>}",
    "/\u{e9}",
    "/a\u{7f}",
    "/a\tb",
    "/a b",
    "*",
    "a",
    "",
    "http://b.test/x",
    "http://b.test",
    "http://b.test?x",
    "HTTP://B.test/",
    "https://b.test/",
    "http://u@b.test/",
];

const HOSTS: [&str; 21] = [
    "a.test",
    "A.Test",
    "a.test:80",
    "a.test:080",
    "a.test:0",
    "a.test:65535",
    "a.test.",
    "a..b",
    "-a",
    "~a",
    "a_b",
    "[::1]",
    "[::1]:80",
    "127.0.0.1",
    "1",
    "0x7f.1",
    "",
    "a,b",
    "a/b",
    "a b",
    "a\tb",
];

const FIELDS: [&str; 36] = [
    "X:\r\n",
    "X: \r\n",
    "X:\ty\t\r\n",
    "X: a\tb\r\n",
    "X: \u{e9}\r\n",
    "X: \u{1}\r\n",
    "X: a\u{0}b\r\n",
    "X: \u{7f}\r\n",
    "!#$%&'*+-.^`|~: 1\r\n",
    "X_Y: 1\r\n",
    "X Y: 1\r\n",
    "X\r\n",
    ": x\r\n",
    "\u{e9}: x\r\n",
    "X: y\r\n z\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\nKeep-Alive: timeout=1\r\n",
    "Connection: Host\r\n",
    "Connection: X\r\nX: y\r\n",
    "Connection: ,,\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    "Upgrade: h2c\r\n",
    "Expect: 100-continue\r\n",
    "Expect: 100-Continue, x\r\n",
    "Expect: x\r\n",
    "TE: trailers\r\n",
    "TE: chunked\r\n",
    "Host: b.test\r\n",
    "Proxy-Connection: keep-alive\r\n",
    "Max-Forwards: 3\r\n",
    "Via: 1.0 x\r\n",
    "Cookie: a=1\r\nCookie: b=2\r\n",
    "X-Forwarded-Host: b.test\r\n",
    "Range: bytes=0-1\r\n",
    "Content-Type: multipart/form-data; boundary=x\r\nContent-Encoding: gzip\r\n",
];

const VERSIONS: [&str; 9] = [
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/1.2",
    "HTTP/2.0",
    "HTTP/0.9",
    "http/1.1",
    "HTTP/1.1 ",
    "HTTP/01.1",
    "HTTP/1.10",
];

/// What may begin a response.
const STATUS_LINES: [&str; 24] = [
    "HTTP/1.1 200 OK",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 200",
    "HTTP/1.1 200 ",
    "HTTP/1.1 200 \u{e9}",
    "HTTP/1.1 200 a\tb",
    "HTTP/1.1 200  two  spaces",
    "HTTP/1.1 201 Created",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 205 Reset Content",
    "HTTP/1.1 206 Partial Content",
    "HTTP/1.1 299 X",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 404 Not Found",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 199 X",
    "HTTP/1.1 0200 OK",
    "HTTP/1.1  200 OK",
    "HTTP/1.1\t200 OK",
    "HTTP/1.2 200 OK",
    "HTTP/2 200",
    "ICY 200 OK",
];

/// Messages of the fuzz target `name`.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// All requests over HTTP/1.1.
pub fn requests() -> Vec<Vec<u8>> {
    let mut all = corpus("http1_request");
    let mut add = |text: String| all.push(latin1(&text));
    for framing in FRAMING {
        for body in BODIES {
            add(format!("POST /a HTTP/1.1\r\nHost: a.test\r\n{framing}\r\n{body}"));
        }
        add(format!("GET /a HTTP/1.0\r\nHost: a.test\r\n{framing}\r\nhello"));
    }
    for method in METHODS {
        add(format!("{method} /a HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        add(format!("{method} /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello"));
    }
    for target in TARGETS {
        add(format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        add(format!("OPTIONS {target} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    }
    for host in HOSTS {
        add(format!("GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        add(format!("GET http://{host}/a HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    }
    for field in FIELDS {
        add(format!("GET /a HTTP/1.1\r\nHost: a.test\r\n{field}\r\n"));
        add(format!("POST /a HTTP/1.1\r\n{field}Host: a.test\r\nContent-Length: 5\r\n\r\nhello"));
    }
    for version in VERSIONS {
        add(format!("GET /a {version}\r\nHost: a.test\r\n\r\n"));
    }
    for text in [
        "GET /a\r\n\r\n",
        "\r\nGET /a HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET  /a HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET\t/a HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a.test\r\n\r\nPOST /b HTTP/1.1\r\nHost: b.test\r\nContent-Length: 5\r\n\r\nhello",
        "POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: b.test\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: b.test\r\n\r\n",
    ] {
        add(text.to_owned());
    }
    add(format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "a".repeat(6000)));
    add(format!("GET /a HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n", "a".repeat(6000)));
    for body in corpus("http1_chunks") {
        let head = "POST /a HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        all.push([head.as_bytes(), &body].concat());
    }
    with_random(all)
}

/// All requests over HTTP/2, as `translation::head_of` reads them.
pub fn http2_requests() -> Vec<Vec<u8>> {
    let mut all = corpus("http2_request");
    let mut add = |has_body: bool, text: String| all.push([&[u8::from(has_body)], text.as_bytes()].concat());
    for has_body in [false, true] {
        for method in METHODS {
            add(has_body, format!("{method}\na.test\n/a"));
        }
        for target in TARGETS {
            add(has_body, format!("GET\na.test\n{target}"));
        }
        for host in HOSTS {
            add(has_body, format!("GET\n{host}\n/a"));
            add(has_body, format!("GET\n\n/a\nhost:{host}"));
        }
        for field in FRAMING.iter().chain(&FIELDS) {
            let lines = field.trim_end_matches("\r\n").replace("\r\n", "\n").replace(": ", ":");
            add(has_body, format!("POST\na.test\n/a\n{lines}"));
        }
    }
    with_random(all)
}

/// All responses, each by itself and with another one behind it.
pub fn responses() -> Vec<Vec<u8>> {
    let mut all = corpus("http1_response");
    let mut add = |text: String| all.push(latin1(&text));
    for line in STATUS_LINES {
        for framing in ["", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
            for body in ["hello", "5\r\nhello\r\n0\r\n\r\n"] {
                add(format!("{line}\r\n{framing}\r\n{body}"));
            }
        }
    }
    for framing in FRAMING {
        for body in BODIES {
            add(format!("HTTP/1.1 200 OK\r\n{framing}\r\n{body}"));
        }
        for body in ["hello", "5\r\nhello\r\n0\r\n\r\n"] {
            add(format!("HTTP/1.0 200 OK\r\n{framing}\r\n{body}"));
        }
    }
    for field in FIELDS {
        add(format!("HTTP/1.1 200 OK\r\n{field}Content-Length: 5\r\n\r\nhello"));
    }
    for body in corpus("http1_chunks") {
        all.push([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &body[..]].concat());
    }
    let behind = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbehind";
    let followed: Vec<Vec<u8>> = all.iter().map(|message| [message, &behind[..]].concat()).collect();
    all.extend(followed);
    with_random(all)
}

/// Characters up to U+00FF as one byte each.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(character).unwrap()).collect()
}

/// The messages, and random changes of them.
fn with_random(mut all: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut random = Random(setting("TIDEGATE_PEER_SEED").unwrap_or(SEED));
    let known = all.len() as u64;
    for _ in 0..setting("TIDEGATE_PEER_MESSAGES").unwrap_or(RANDOM) {
        let mut message = all[random.below(known) as usize].clone();
        for _ in 0..=random.below(3) {
            change(&mut message, &all[random.below(known) as usize], &mut random);
        }
        all.push(message);
    }
    all
}

fn change(message: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let mut place = |length: usize| random.below(length as u64 + 1) as usize;
    let (from, to) = (place(message.len()), place(message.len()));
    let (from, to) = (from.min(to), from.max(to));
    match place(5) {
        0 => drop(message.drain(from..to.min(from + 8))),
        1 => message.insert(from, b"\r\n\t :;,\x00\x7f\x80x0/#"[place(13)]),
        2 if from < message.len() => message[from] = b"\r\n\t :;,\x00\x7f\x80x0/#"[place(13)],
        // A line of another message.
        3 => {
            let lines: Vec<&[u8]> = other.split_inclusive(|byte| *byte == b'\n').collect();
            let line = lines.get(place(lines.len())).map_or(&b""[..], |line| line);
            let ends = message.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            let ends: Vec<usize> = ends.collect();
            let at = ends.get(place(ends.len())).copied().unwrap_or(0);
            message.splice(at..at, line.iter().copied());
        }
        4 => {
            let part = message[from..to.min(from + 40)].to_vec();
            message.splice(to..to, part);
        }
        _ => {
            message.truncate(to);
            message.extend_from_slice(&other[place(other.len())..]);
        }
    }
}
