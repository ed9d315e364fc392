//! HTTP/2 origins that break the protocol frame by frame: the request in question fails or is served, and nobody else notices.

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
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY,
        PUSH_PROMISE, RST_STREAM, SETTINGS, UNKNOWN, WINDOW_UPDATE, frame, next_frame,
    },
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

fn openings() -> Vec<Case> {
    let window = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let ends = |case: Case| Case { closes: true, response: Box::new(|_| Vec::new()), ..case };
    vec![
        ends(begins("nothing at all", Vec::new(), BAD)),
        ends(begins("half a frame", settings(&[])[..5].to_vec(), BAD)),
        ends(begins("half of SETTINGS", settings(&[(4, 1000)])[..12].to_vec(), BAD)),
        begins("HTTP/1.1", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec(), BAD),
        begins("noise", vec![0xff; 1000], BAD),
        begins("silence until there is a request", Vec::new(), GOOD_OR_LATE),
        begins("SETTINGS of a wrong length", frame(SETTINGS, 0, 0, &[0; 7]), BAD),
        begins("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), BAD),
        begins(
            "an acknowledgement with a payload",
            [settings(&[]), frame(SETTINGS, ACK, 0, &[0; 6])].concat(),
            BAD,
        ),
        begins("a frame size that is too small", settings(&[(5, 16_383)]), BAD),
        begins("a frame size that is too large", settings(&[(5, 1 << 24)]), BAD),
        begins("the largest frame size", settings(&[(5, (1 << 24) - 1)]), GOOD),
        begins("a window of 2^31", settings(&[(4, 1 << 31)]), BAD),
        begins("a window of 2^32-1", settings(&[(4, u32::MAX)]), BAD),
        begins("the largest window", settings(&[(4, (1 << 31) - 1)]), GOOD),
        begins("push is 2", settings(&[(2, 2)]), BAD),
        begins("the largest header table", settings(&[(1, u32::MAX)]), GOOD),
        begins("no header table", settings(&[(1, 0)]), GOOD),
        begins("unknown settings", settings(&[(99, 1), (0, 7), (0xffff, u32::MAX)]), GOOD),
        begins("the same setting twice", settings(&[(4, 1), (4, 65_535)]), GOOD),
        begins("no streams", settings(&[(3, 0)]), GOOD_OR_LATE),
        begins("GOAWAY at once", [settings(&[]), frame(GOAWAY, 0, 0, &[0; 8])].concat(), BAD),
        begins("GOAWAY of a wrong length", [settings(&[]), frame(GOAWAY, 0, 0, &[0; 7])].concat(), BAD),
        begins("GOAWAY on a stream", [settings(&[]), frame(GOAWAY, 0, 1, &[0; 8])].concat(), BAD),
        begins(
            "a frame that is too long",
            [settings(&[]), frame(UNKNOWN, 0, 0, &vec![0; MOST + 1])].concat(),
            BAD,
        ),
        begins(
            "a frame of 2^24-1 bytes",
            [settings(&[]), vec![0xff, 0xff, 0xff, UNKNOWN, 0, 0, 0, 0, 0]].concat(),
            BAD,
        ),
        begins("a window update of 0", [settings(&[]), window(0, 0)].concat(), BAD),
        begins("a window above 2^31-1", [settings(&[]), window(0, (1 << 31) - 1)].concat(), BAD),
        begins(
            "a window update of a wrong length",
            [settings(&[]), frame(WINDOW_UPDATE, 0, 0, &[1; 3])].concat(),
            BAD,
        ),
        begins("PING of a wrong length", [settings(&[]), frame(PING, 0, 0, &[0; 7])].concat(), BAD),
        begins("PING on a stream", [settings(&[]), frame(PING, 0, 1, &[0; 8])].concat(), BAD),
        begins("an answer to no PING", [settings(&[]), frame(PING, ACK, 0, &[7; 8])].concat(), GOOD),
        begins(
            "an acknowledgement of no SETTINGS",
            [settings(&[]), frame(SETTINGS, ACK, 0, &[]).repeat(5)].concat(),
            BAD,
        ),
        begins(
            "HEADERS on a stream of ours",
            [settings(&[]), headers(1, END_STREAM, OK)].concat(),
            GOOD_OR_BAD,
        ),
        begins("HEADERS on a stream of its own", [settings(&[]), headers(2, END_STREAM, OK)].concat(), BAD),
        begins("DATA on stream 0", [settings(&[]), frame(DATA, 0, 0, b"x")].concat(), BAD),
        begins("HEADERS on stream 0", [settings(&[]), headers(0, END_STREAM, OK)].concat(), BAD),
        begins(
            "RST_STREAM of an idle stream",
            [settings(&[]), frame(RST_STREAM, 0, 99, &[0; 4])].concat(),
            BAD,
        ),
        begins("CONTINUATION alone", [settings(&[]), frame(CONTINUATION, END_HEADERS, 1, OK)].concat(), BAD),
    ]
}

fn streams() -> Vec<Case> {
    let reset = |stream: u32, code: u32| frame(RST_STREAM, 0, stream, &code.to_be_bytes());
    let goaway =
        |last: u32, code: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat());
    let ends = |case: Case| Case { closes: true, ..case };
    vec![
        answers("a right response", GOOD, right),
        answers("unknown frames between", GOOD, |stream| {
            [
                frame(UNKNOWN, 0xff, stream, b"x"),
                begun(stream),
                frame(UNKNOWN, 1, stream, b"x"),
                frame(DATA, 1, stream, b"good"),
            ]
            .concat()
        }),
        answers("the reserved bit of a stream", GOOD, |stream| right(stream | 1 << 31)),
        answers("a response on another stream", GOOD_OR_BAD, |stream| right(stream + 2)),
        answers("a response on a stream of its own", BAD, |_| right(2)),
        answers("DATA before HEADERS", BAD, |stream| [frame(DATA, 0, stream, b"x"), right(stream)].concat()),
        answers("DATA after the end", GOOD, |stream| {
            [right(stream), frame(DATA, END_STREAM, stream, b"more")].concat()
        }),
        answers("HEADERS after the end", GOOD, |stream| {
            [right(stream), headers(stream, END_STREAM, OK)].concat()
        }),
        answers("two responses", GOOD, |stream| [right(stream), right(stream)].concat()),
        answers("a second head without an end", CUT, |stream| {
            [begun(stream), begun(stream), right(stream)].concat()
        }),
        answers("PUSH_PROMISE", BAD, |stream| {
            frame(PUSH_PROMISE, END_HEADERS, stream, &[&[0, 0, 0, 2][..], &[0x82, 0x84, 0x86]].concat())
        }),
        answers("PUSH_PROMISE in a response", CUT, |stream| {
            let promise =
                frame(PUSH_PROMISE, END_HEADERS, stream, &[&[0, 0, 0, 2][..], &[0x82, 0x84, 0x86]].concat());
            [begun(stream), promise, frame(DATA, END_STREAM, stream, b"good")].concat()
        }),
        answers("padding longer than DATA", CUT, |stream| {
            [begun(stream), frame(DATA, PADDED | END_STREAM, stream, &[5, b'x', 0, 0])].concat()
        }),
        answers("padding longer than HEADERS", BAD, |stream| {
            headers(stream, PADDED | END_STREAM, &[9, 0x88, 0])
        }),
        answers("padded as it should be", GOOD, |stream| {
            let data = frame(DATA, PADDED | END_STREAM, stream, b"\x03good\0\0\0");
            [headers(stream, PADDED, &[2, 0x88, 0, 0]), data].concat()
        }),
        answers("a padded frame without a length", CUT, |stream| {
            [begun(stream), frame(DATA, PADDED, stream, &[])].concat()
        }),
        answers("a stream that depends on itself", BAD, |stream| {
            [frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[1]].concat()), right(stream)].concat()
        }),
        answers("PRIORITY of a wrong length", BAD, |stream| {
            [frame(PRIORITY, 0, stream, &[0; 4]), right(stream)].concat()
        }),
        answers("a frame that is too long", BAD, |stream| headers(stream, END_STREAM, &vec![0; MOST + 1])),
        answers("DATA that is too long", CUT, |stream| {
            [begun(stream), frame(DATA, 1, stream, &vec![b'x'; MOST + 1])].concat()
        }),
        answers("the longest DATA", GOOD, |stream| {
            [begun(stream), frame(DATA, 0, stream, b"good"), frame(DATA, 1, stream, &vec![b'x'; MOST])]
                .concat()
        }),
        answers("reset before the response", BAD, move |stream| reset(stream, 2)),
        answers("reset by NO_ERROR before the response", BAD, move |stream| reset(stream, 0)),
        answers("reset after the head", CUT, move |stream| [begun(stream), reset(stream, 2)].concat()),
        answers("reset by NO_ERROR after the head", CUT, move |stream| {
            [begun(stream), reset(stream, 0)].concat()
        }),
        answers("reset after the end", GOOD, move |stream| [right(stream), reset(stream, 0)].concat()),
        answers("reset twice", BAD, move |stream| [reset(stream, 8), reset(stream, 8)].concat()),
        answers("reset, then a response", BAD, move |stream| [reset(stream, 8), right(stream)].concat()),
        answers("reset of a wrong length", BAD, |stream| frame(RST_STREAM, 0, stream, &[0; 3])),
        answers("reset of stream 0", BAD, move |_| reset(0, 0)),
        answers("reset of a stream that never was", BAD, move |stream| reset(stream + 100, 0)),
        answers("an unknown error code", BAD, move |stream| reset(stream, u32::MAX)),
        answers("GOAWAY with a lower stream", BAD, move |stream| [goaway(0, 0), right(stream)].concat()),
        answers("GOAWAY with this stream", GOOD, move |stream| [goaway(stream, 0), right(stream)].concat()),
        answers("GOAWAY with a higher stream", GOOD_OR_BAD, move |stream| {
            [goaway(stream + 1000, 0), right(stream)].concat()
        }),
        answers("GOAWAY that rises", BAD, move |stream| {
            [goaway(stream, 0), goaway(stream + 2, 0), right(stream)].concat()
        }),
        ends(answers("GOAWAY with an error", BAD, move |stream| goaway(stream, 2))),
        ends(answers("GOAWAY within a response", CUT, move |stream| {
            [begun(stream), goaway(stream, 2)].concat()
        })),
        ends(answers("the end before a response", BAD, |_| Vec::new())),
        ends(answers("the end within a head", BAD, |stream| right(stream)[..9].to_vec())),
        ends(answers("the end within a response", CUT, |stream| {
            [begun(stream), frame(DATA, 0, stream, b"go")].concat()
        })),
        ends(answers("the end within a frame", CUT, |stream| {
            [begun(stream), frame(DATA, 1, stream, b"good")[..11].to_vec()].concat()
        })),
        answers("never a response", LATE, |_| Vec::new()),
        answers("never an end", CUT, begun),
        answers("a window update of 0", BAD, |stream| {
            [frame(WINDOW_UPDATE, 0, stream, &[0; 4]), right(stream)].concat()
        }),
        answers("a window above 2^31-1", GOOD_OR_BAD, |stream| {
            [frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff]), right(stream)].concat()
        }),
        answers("a window update of an idle stream", BAD, |stream| {
            [frame(WINDOW_UPDATE, 0, stream + 100, &[0, 0, 0, 1]), right(stream)].concat()
        }),
        answers("more DATA than the stream's window", CUT, |stream| {
            [begun(stream), frame(DATA, 0, stream, &vec![b'x'; MOST]).repeat(200)].concat()
        }),
        answers("CONTINUATION of another stream", BAD, |stream| {
            [frame(HEADERS, 0, stream, OK), frame(CONTINUATION, END_HEADERS, stream + 2, &[])].concat()
        }),
        answers("DATA within a head", BAD, |stream| {
            [frame(HEADERS, 0, stream, OK), frame(DATA, 1, stream, b"x")].concat()
        }),
        answers("a head in many parts", GOOD, |stream| {
            let parts = frame(CONTINUATION, 0, stream, &literal("x", "y")).repeat(3);
            [frame(HEADERS, END_STREAM, stream, OK), parts, frame(CONTINUATION, END_HEADERS, stream, &[])]
                .concat()
        }),
        answers("SETTINGS that shrink the window to less than is used", GOOD, |stream| {
            [settings(&[(4, 0)]), right(stream)].concat()
        }),
    ]
}

fn heads() -> Vec<Case> {
    let length = |text: &str| literal("content-length", text);
    let with_body = |block: Vec<u8>, body: &'static [u8]| {
        move |stream: u32| [headers(stream, 0, &block), frame(DATA, END_STREAM, stream, body)].concat()
    };
    vec![
        answers("a length that is too small", CUT, with_body([OK, &length("3")].concat(), b"good")),
        answers("a length that is too large", CUT, with_body([OK, &length("5")].concat(), b"good")),
        answers("a length of 0 with a body", CUT, with_body([OK, &length("0")].concat(), b"good")),
        answers("a length that is none", BAD, with_body([OK, &length("4x")].concat(), b"good")),
        answers("a length with a sign", BAD, with_body([OK, &length("+4")].concat(), b"good")),
        answers("two lengths", BAD, with_body([OK, &length("4"), &length("4")].concat(), b"good")),
        answers(
            "a length above 2^63",
            BAD,
            with_body([OK, &length("9223372036854775808")].concat(), b"good"),
        ),
        answers("the right length", GOOD, with_body([OK, &length("4")].concat(), b"good")),
        answers_with_field("a length without a body", BAD, &length("4")),
        answers("204 with a body", &["204", "502"], with_body(NO_CONTENT.to_vec(), b"good")),
        answers("304 with a body", &["304", "502"], with_body(NOT_MODIFIED.to_vec(), b"good")),
        answers("304 with a length", &["304"], move |stream| {
            headers(stream, END_STREAM, &[NOT_MODIFIED, &length("4")].concat())
        }),
        answers_with_field("a name in upper case", BAD, &literal("X-Upper", "1")),
        answers_with_field("an empty name", BAD, &literal("", "1")),
        answers_with_field("a name with a space", BAD, &literal("x y", "1")),
        answers_with_field("a name with a colon", BAD, &literal("x:y", "1")),
        answers_with_field("a name with a line's end", BAD, &literal("x\r\ny", "1")),
        answers_with_field("a value with a line's end", BAD, &literal("x", "a\r\nset-cookie: b=c")),
        answers_with_field("a value with a line feed", BAD, &literal("x", "a\nb")),
        answers_with_field("a value with NUL", BAD, &literal("x", "a\0b")),
        answers_with_field("a value with space around", BAD, &literal("x", " a ")),
        answers_with_field("connection", BAD, &literal("connection", "close")),
        answers_with_field("keep-alive", BAD, &literal("keep-alive", "timeout=1")),
        answers_with_field("proxy-connection", BAD, &literal("proxy-connection", "close")),
        answers_with_field("transfer-encoding", BAD, &literal("transfer-encoding", "chunked")),
        answers_with_field("upgrade", BAD, &literal("upgrade", "h2c")),
        answers_with_field("a second status", BAD, OK),
        answers_with_field("another status", BAD, NO_CONTENT),
        answers_with_field("a path", GOOD, &[0x84]),
        answers_with_field("a pseudo-field that nobody knows", BAD, &literal(":x", "1")),
        answers_with_block("no status", BAD, &[0x00, 1, b'x', 1, b'y']),
        answers_with_block("an empty block", BAD, &[]),
        answers_with_block("a status after a field", BAD, &[0x00, 1, b'x', 1, b'y', 0x88]),
        answers("a status that is no number", BAD, |stream| headers(stream, 1, &literal(":status", "abc"))),
        answers("a status of two digits", BAD, |stream| headers(stream, 1, &literal(":status", "20"))),
        answers("a status of four digits", BAD, |stream| headers(stream, 1, &literal(":status", "2000"))),
        answers("an empty status", BAD, |stream| headers(stream, 1, &literal(":status", ""))),
        answers("099", BAD, |stream| headers(stream, 1, &literal(":status", "099"))),
        answers("600", BAD, |stream| headers(stream, 1, &literal(":status", "600"))),
        answers("999", BAD, |stream| headers(stream, 1, &literal(":status", "999"))),
        answers("101", BAD, |stream| {
            [headers(stream, 0, &literal(":status", "101")), right(stream)].concat()
        }),
        answers("103 and the end", BAD, |stream| headers(stream, END_STREAM, &literal(":status", "103"))),
        answers("103 with DATA", BAD, |stream| {
            [headers(stream, 0, &literal(":status", "103")), frame(DATA, 0, stream, b"x"), right(stream)]
                .concat()
        }),
        answers("103, then a response", GOOD, |stream| {
            [headers(stream, 0, &literal(":status", "103")), right(stream)].concat()
        }),
        answers("103 with a length", CUT, move |stream| {
            let early =
                headers(stream, 0, &[literal(":status", "103"), literal("content-length", "7")].concat());
            [early, right(stream)].concat()
        }),
        answers("a status in trailers", GOOD, |stream| {
            [begun(stream), frame(DATA, 0, stream, b"good"), headers(stream, END_STREAM, OK)].concat()
        }),
        answers("a name in upper case in trailers", CUT, |stream| {
            [begun(stream), headers(stream, END_STREAM, &literal("X-Upper", "1"))].concat()
        }),
        answers("connection in trailers", CUT, |stream| {
            [begun(stream), headers(stream, END_STREAM, &literal("connection", "close"))].concat()
        }),
        answers("trailers without an end", CUT, |stream| {
            [begun(stream), headers(stream, 0, &literal("x", "1")), frame(DATA, END_STREAM, stream, b"good")]
                .concat()
        }),
        answers("DATA after trailers", CUT, |stream| {
            [begun(stream), headers(stream, 0, &literal("x", "1")), frame(DATA, 0, stream, b"good")].concat()
        }),
    ]
}

/// HPACK (RFC 7541).
fn compression() -> Vec<Case> {
    // A field of 3,900 bytes is put into the table, and then named again and again: a byte each.
    let big = [&[0x40, 1, b'x', 0x7f, 0xbd, 0x1d][..], &[b'a'; 3900]].concat();
    vec![
        answers_with_field("index 0", BAD, &[0x80]),
        answers_with_field("an index beyond the tables", BAD, &[0xff, 0x80, 0x01]),
        answers_with_field(
            "an index that overflows",
            BAD,
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        ),
        answers_with_field("an index without its end", BAD, &[0xff, 0xff]),
        answers_with_field("a literal with an unknown name", BAD, &[0x7f, 0x80, 0x01, 1, b'x']),
        answers_with_field("a name longer than the block", BAD, &[0, 20, b'x']),
        answers_with_field(
            "a value of 2^31 bytes",
            BAD,
            &[0, 1, b'x', 0x7f, 0x80, 0xff, 0xff, 0xff, 0x07, b'y'],
        ),
        answers_with_field("Huffman with a wrong end", BAD, &[0, 1, b'x', 0x81, 0x00]),
        answers_with_field(
            "Huffman with the end of string",
            BAD,
            &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff],
        ),
        answers_with_field("a table size after a field", BAD, &[0x20]),
        answers_with_block("a table size that is too large", BAD, &[0x3f, 0xe2, 0xff, 0x03, 0x88]),
        answers_with_block("a table size that is right", GOOD, &[0x3f, 0xe1, 0x1f, 0x88]),
        answers("a bomb", BAD, move |stream| {
            headers(stream, END_STREAM, &[OK, &big, &[0xbe; 12_000]].concat())
        }),
        answers("a head of many fields", BAD, |stream| {
            headers(stream, END_STREAM, &[OK, &literal("x", "y").repeat(3000)].concat())
        }),
        answers("a head that is too large", BAD, |stream| {
            let part = [&[0, 1, b'x', 0x7f, 0xa1, 0x7e][..], &[b'a'; 16_288]].concat();
            let parts = frame(CONTINUATION, 0, stream, &part).repeat(5);
            [frame(HEADERS, END_STREAM, stream, OK), parts, frame(CONTINUATION, END_HEADERS, stream, &[])]
                .concat()
        }),
    ]
}

/// To be told from the response of a request that is under way, data would have to be followed stream by stream.
fn unbounded(case: Case) -> Case {
    Case { is_bounded: false, ..case }
}

fn excess_data() -> Case {
    let anything = &["200", "502", "504"];
    unbounded(floods("DATA after the end", anything, right, |stream| frame(DATA, 0, stream, &[b'x'; 1000])))
}

fn all_floods() -> Vec<Case> {
    let nothing = |_: u32| Vec::new();
    vec![
        floods("PING", BAD, nothing, |_| frame(PING, 0, 0, &[0; 8])),
        floods("SETTINGS", BAD, nothing, |_| settings(&[])),
        floods("SETTINGS of many", BAD, nothing, |_| settings(&[(4, 70_000); 2000])),
        floods("window updates", BAD, nothing, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        floods("window updates of the stream", BAD, nothing, |stream| {
            frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1])
        }),
        floods("PRIORITY", BAD, nothing, |stream| frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1])),
        floods("unknown frames", BAD, nothing, |_| frame(UNKNOWN, 0, 0, &[])),
        floods("GOAWAY", BAD, nothing, |stream| {
            frame(GOAWAY, 0, 0, &[stream.to_be_bytes(), [0; 4]].concat())
        }),
        floods("interim responses", BAD, nothing, |stream| headers(stream, 0, &literal(":status", "103"))),
        floods(
            "parts of a head",
            BAD,
            |stream| frame(HEADERS, 0, stream, OK),
            |stream| frame(CONTINUATION, 0, stream, &literal("x", "y").repeat(100)),
        ),
        floods(
            "empty parts of a head",
            BAD,
            |stream| frame(HEADERS, 0, stream, OK),
            |stream| frame(CONTINUATION, 0, stream, &[]),
        ),
        floods("empty DATA", CUT, begun, |stream| frame(DATA, 0, stream, &[])),
        floods("DATA of nothing but padding", CUT, begun, |stream| {
            frame(DATA, PADDED, stream, &[&[255][..], &[0; 255]].concat())
        }),
        excess_data(),
        unbounded(floods(
            "DATA after a reset",
            BAD_OR_LATE,
            |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
            |stream| frame(DATA, 0, stream, &[b'x'; 1000]),
        )),
        floods("HEADERS after the end", GOOD_OR_BAD, right, |stream| headers(stream, END_STREAM, OK)),
        floods("resets", BAD, nothing, |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])),
    ]
}

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
    run(openings());
}

#[test]
fn an_http2_origin_whose_streams_are_wrong_harms_only_their_requests() {
    run(streams());
}

#[test]
fn an_http2_origin_whose_heads_are_malformed_harms_only_its_own_requests() {
    run(heads());
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
    run(compression());
}

#[test]
fn an_http2_origin_that_floods_harms_only_its_own_requests() {
    run(all_floods());
}

#[test]
fn data_that_belongs_to_no_request_ends_a_connection_without_requests() {
    let (case, flooded) = (Arc::new(excess_data()), Arc::<Flood>::default());
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
