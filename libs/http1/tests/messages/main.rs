//! What is parsed is what two independent readers read: `httparse`, and a model that follows the RFCs line by line.
//!
//! The fuzz targets in `fuzz/` run the same checks on inputs of their own.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod chunks;
mod model;
mod request;
mod response;

use proptest::{collection::vec, prelude::*, sample::select};

const METHODS: [&str; 5] = ["GET ", "POST ", "OPTIONS ", "TRACE ", "CONNECT "];

const TARGETS: [&str; 8] = [
    "/ ",
    "* ",
    "/a?b=c ",
    "/a#b ",
    "http://a.test/ ",
    "https://a.test ",
    "http://a.test:80:90/ ",
    "a.test:80 ",
];

/// Pieces that heads and bodies are made of, beside methods and targets, whole and broken, so that random orders of all of them
/// come close to messages.
const PIECES: [&str; 51] = [
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/2.0",
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "Host: a.test\r\n",
    "Host: a.test:abc\r\n",
    "host:[::1]:80\r\n",
    "Host: <b>.test\r\n",
    "Host:\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 9223372036854775808\r\n",
    "content-length: +1\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "X_Real_Ip: 1\r\n",
    "X: a b \r\n",
    "X : a\r\n",
    " folded\r\n",
    ": x\r\n",
    "X:\t\u{e9}\r\n",
    "X: \0\r\n",
    "Connection: close\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204 \r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 600 X\r\n",
    "HTTP/1.1 099 X\r\n",
    "HTTP/1.1 304\r\n",
    "0\r\n",
    "1\r\na\r\n",
    "5\r\nhello\r\n",
    "a;x=y\r\n0123456789\r\n",
    "1 \r\n",
    "0x1\r\n",
    "fffffffffffffff\r\n",
    "1000000000000000\r\n",
    "Grpc-Status: 0\r\n",
    "Via: x\r\n",
    "0\r\n\r\n",
    ";",
    "\t",
    " ",
    "a",
    ":",
    "\u{7f}",
    "\u{2028}",
    "Upgrade: h2c\r\n",
    "Trailer: x\r\n",
];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [&METHODS[..], &TARGETS[..], &PIECES[..]].concat();
    prop_oneof![
        vec(select(pieces), 0..14).prop_map(|pieces| pieces.concat().into_bytes()),
        vec(any::<u8>(), 0..200),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8192))]

    #[test]
    fn a_request_is_read_as_others_read_it(bytes in bytes()) {
        request::check(&bytes);
    }

    #[test]
    fn a_request_that_begins_well_is_read_as_others_read_it(rest in bytes()) {
        request::check(&[b"POST /a HTTP/1.1\r\nHost: a.test\r\n", &rest[..], b"\r\n"].concat());
    }

    #[test]
    fn a_request_with_any_target_is_read_as_others_read_it(
        method in select(&METHODS[..]),
        target in select(&TARGETS[..]),
        rest in vec(select(&PIECES[..]), 0..3),
    ) {
        let line = [method, target, "HTTP/1.1\r\nHost: a.test\r\n"].concat();
        request::check(&[line, rest.concat(), "\r\n".to_owned()].concat().into_bytes());
    }

    #[test]
    fn a_response_is_read_as_others_read_it(bytes in bytes()) {
        response::check(&bytes);
    }

    #[test]
    fn a_response_that_begins_well_is_read_as_others_read_it(rest in bytes()) {
        response::check(&[b"HTTP/1.1 200 OK\r\n", &rest[..], b"\r\n"].concat());
    }

    #[test]
    fn a_chunked_body_is_read_as_the_model_reads_it(bytes in bytes()) {
        chunks::check(&bytes);
    }
}
