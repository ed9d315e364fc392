//! Frames of a response and beside it.

use super::{
    BAD, CUT, Case, GOOD, GOOD_OR_BAD, LATE, MOST, OK, answers, begun, headers, literal, right, settings,
};
use crate::harness::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PRIORITY, PUSH_PROMISE, RST_STREAM,
    UNKNOWN, WINDOW_UPDATE, frame,
};

/// All ways.
pub fn streams() -> Vec<Case> {
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
