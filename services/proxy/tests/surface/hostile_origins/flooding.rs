//! Frames that come on and on.

use super::{BAD, BAD_OR_LATE, CUT, Case, GOOD_OR_BAD, OK, begun, floods, headers, literal, right, settings};
use crate::harness::frames::{
    CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PRIORITY, RST_STREAM, UNKNOWN,
    WINDOW_UPDATE, frame,
};

/// To be told from the response of a request that is under way, data would have to be followed stream by stream.
fn unbounded(case: Case) -> Case {
    Case { is_bounded: false, ..case }
}

/// Data for a request that has its response.
pub fn excess_data() -> Case {
    let anything = &["200", "502", "504"];
    unbounded(floods("DATA after the end", anything, right, |stream| frame(DATA, 0, stream, &[b'x'; 1000])))
}

/// All floods.
pub fn all_floods() -> Vec<Case> {
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
