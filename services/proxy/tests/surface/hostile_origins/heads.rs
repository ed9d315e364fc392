//! Heads, trailers, lengths, and their compression (HPACK, RFC 7541).

use super::{
    BAD, CUT, Case, GOOD, NO_CONTENT, NOT_MODIFIED, OK, answers, answers_with_block, answers_with_field,
    begun, headers, literal, right,
};
use crate::harness::frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, frame};

/// All heads.
pub fn heads() -> Vec<Case> {
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

/// All header blocks that are wrong in themselves.
pub fn compression() -> Vec<Case> {
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
