//! What an origin begins with.

use super::{BAD, Case, GOOD, GOOD_OR_BAD, GOOD_OR_LATE, MOST, OK, begins, headers, settings};
use crate::harness::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, PING, RST_STREAM, SETTINGS, UNKNOWN,
    WINDOW_UPDATE, frame,
};

/// All ways.
pub fn openings() -> Vec<Case> {
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
