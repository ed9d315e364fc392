//! Limits on what an HTTP/2 peer may send beside its requests and responses.
//!
//! The HTTP/2 library answers or drops any number of SETTINGS, PING, WINDOW_UPDATE, PRIORITY and unknown frames, so a
//! peer that sends nothing else keeps a core busy for next to nothing (CVE-2019-9512, CVE-2019-9515 and their kin). It
//! also decodes as many header blocks as one read brings before anybody sees the first of them, and a few bytes of HPACK
//! decode to kilobytes. The meter reads along the frame headers of what comes, without changing a byte.

use std::time::Duration;

use tokio::time::Instant;

/// What a connection may spend at once, and what is given back a second. A frame that carries no part of a message costs
/// one. (Envoy's limits on control frames, too, grow with the streams and the data of a connection.)
const BURST: i64 = 1000;
const REFILL: i64 = 200;
/// What each header block gives: window updates and a PING may belong to its message.
const PER_MESSAGE: i64 = 4;
/// What a reset costs: its stream may have cost a connection to an endpoint (CVE-2023-44487). About a hundred at once are
/// what a browser gives up when its user leaves a page.
const RESET: i64 = PER_MESSAGE + 10;
/// Bytes sent that give one: some peers answer each small part of a body with two window updates (Go's after 4 KiB).
const BYTES_EACH: u64 = 1024;
/// Header blocks that an endpoint may send for each request: interim responses, of which an attempt takes 32, the response
/// and its trailers. Others cost as much as a control frame.
const BLOCKS_EACH: u32 = 34;
/// The most header blocks that may be due at once, however many requests have had less.
const MOST_DUE: u32 = 1 << 16;
/// Bytes of DATA that belong to no request, for each of which an endpoint pays one: what a window lets it send for requests
/// that were given up is a quarter of what it may send at once.
const EXCESS_EACH: usize = 4096;
/// Header blocks that pass before whoever drives the connection has taken what they brought.
const MOST_BLOCKS: u32 = 16;
/// The length of a frame's header (RFC 9113, section 4.1).
const FRAME_HEADER: usize = 9;

/// The frame types of RFC 9113, section 6, that are told apart.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

/// Counts the frames of one connection's incoming side.
#[derive(Debug)]
pub struct FrameMeter {
    /// Bytes before the next frame's header: of the connection preface or of a payload.
    skip: usize,
    header: [u8; FRAME_HEADER],
    header_filled: usize,
    allowance: i64,
    refilled_at: Option<Instant>,
    written: u64,
    blocks: u32,
    resets: u32,
    /// What is expected of an endpoint; nothing of a client, whose messages are its own.
    expected: Option<Expected>,
    is_flooded: bool,
}

/// What the requests on a connection to an endpoint may bring.
#[derive(Debug, Default)]
struct Expected {
    /// Header blocks.
    due: u32,
    /// Whether no request is under way, so that no data belongs to any.
    is_idle: bool,
    /// Bytes of such data that were not paid for yet.
    excess: usize,
}

impl FrameMeter {
    /// A meter of a connection to an endpoint.
    pub fn of_endpoint() -> FrameMeter {
        FrameMeter { expected: Some(Expected::default()), ..FrameMeter::of_client(0) }
    }

    /// A meter of a client's connection, which begins with `preface` bytes that are no frame.
    pub fn of_client(preface: usize) -> FrameMeter {
        FrameMeter {
            skip: preface,
            header: [0; FRAME_HEADER],
            header_filled: 0,
            allowance: BURST,
            refilled_at: None,
            written: 0,
            blocks: 0,
            resets: 0,
            expected: None,
            is_flooded: false,
        }
    }

    /// Whether the peer has sent more than it may: nothing more passes.
    pub fn is_flooded(&self) -> bool {
        self.is_flooded
    }

    /// How many streams the peer has reset.
    pub fn resets(&self) -> u32 {
        self.resets
    }

    /// Lets header blocks pass again after [`MOST_BLOCKS`]. Returns whether any were held up.
    pub fn take_blocks(&mut self) -> bool {
        std::mem::take(&mut self.blocks) >= MOST_BLOCKS
    }

    /// Whether nothing passes for now.
    pub fn is_closed(&self) -> bool {
        self.is_flooded || self.blocks >= MOST_BLOCKS
    }

    /// Takes `begun` more requests to an endpoint into account; `is_idle` says that none is under way now.
    pub fn expect(&mut self, begun: u32, is_idle: bool) {
        if let Some(expected) = &mut self.expected {
            expected.due = expected.due.saturating_add(begun.saturating_mul(BLOCKS_EACH)).min(MOST_DUE);
            expected.is_idle = is_idle;
        }
    }

    /// Takes what was written to the peer into account.
    pub fn record_written(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// Reads along `bytes`. Returns how many of them pass; the others are given again later.
    pub fn read(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> usize {
        let mut at = 0;
        while !self.is_closed() && at < bytes.len() {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            at += skipped;
            let part = (FRAME_HEADER - self.header_filled).min(bytes.len() - at);
            if self.skip > 0 || part == 0 {
                continue;
            }
            self.header[self.header_filled..self.header_filled + part].copy_from_slice(&bytes[at..at + part]);
            self.header_filled += part;
            at += part;
            if self.header_filled == FRAME_HEADER {
                self.header_filled = 0;
                let [a, b, c, kind, ..] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.frame(kind, &now);
            }
        }
        at
    }

    fn frame(&mut self, kind: u8, now: &impl Fn() -> Instant) {
        match kind {
            // The library has a limit of its own on DATA frames that are small for what they cost. But it drops what comes
            // for streams that have ended, and lets the peer send more.
            DATA => {
                let Some(expected) = self.expected.as_mut().filter(|expected| expected.is_idle) else {
                    return;
                };
                expected.excess += FRAME_HEADER + self.skip;
                let cost = expected.excess / EXCESS_EACH;
                expected.excess %= EXCESS_EACH;
                if cost > 0 {
                    self.charge(i64::try_from(cost).unwrap_or(BURST), now());
                }
            }
            HEADERS | PUSH_PROMISE => {
                self.blocks += 1;
                match &mut self.expected {
                    Some(Expected { due: 0, .. }) => return self.charge(1, now()),
                    Some(expected) => expected.due -= 1,
                    None => {}
                }
                self.allowance = (self.allowance + PER_MESSAGE).min(BURST);
            }
            // The library allows only as many as the largest header block can have.
            CONTINUATION => {}
            RST_STREAM => {
                self.resets += 1;
                self.charge(RESET, now());
            }
            _ => self.charge(1, now()),
        }
    }

    /// Takes what something costs from what the peer may spend; without enough left, the connection counts as flooded.
    pub fn charge(&mut self, cost: i64, now: Instant) {
        self.refilled_at.get_or_insert(now);
        self.allowance -= cost;
        if self.allowance >= 0 {
            return;
        }
        let earned = i64::try_from(std::mem::take(&mut self.written) / BYTES_EACH).unwrap_or(BURST);
        let since = self.refilled_at.replace(now).map_or(Duration::ZERO, |at| now - at);
        let refill = i64::try_from(since.as_millis()).unwrap_or(BURST).saturating_mul(REFILL) / 1000;
        self.allowance = self.allowance.saturating_add(earned).saturating_add(refill).min(BURST);
        self.is_flooded |= self.allowance < 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, 0, 0, 0, 0, 1]);
        bytes.resize(FRAME_HEADER + length, 0);
        bytes
    }

    fn read(meter: &mut FrameMeter, bytes: &[u8], now: Instant) -> usize {
        meter.read(bytes, || now)
    }

    #[test]
    fn a_flood_of_control_frames_is_noticed_and_a_steady_few_are_not() {
        let start = Instant::now();
        let mut meter = FrameMeter::of_client(0);
        let passed = (0..100_000).take_while(|_| read(&mut meter, &frame(PING, 8), start) > 0).count();
        assert!((1000..=1001).contains(&passed), "{passed}");
        assert!(meter.is_flooded());

        let mut meter = FrameMeter::of_client(0);
        for ping in 0..100_000 {
            let now = start + Duration::from_millis(ping * 10);
            assert_eq!(read(&mut meter, &frame(PING, 8), now), 17, "{ping}");
        }
    }

    #[test]
    fn window_updates_are_paid_for_by_what_was_sent_and_by_messages() {
        let now = Instant::now();
        let mut meter = FrameMeter::of_client(0);
        for _ in 0..100_000 {
            meter.record_written(4096);
            assert_eq!(read(&mut meter, &[frame(8, 4), frame(8, 4)].concat(), now), 26);
        }
        let mut meter = FrameMeter::of_client(0);
        for _ in 0..100_000 {
            let message = [frame(HEADERS, 20), frame(8, 4), frame(8, 4)].concat();
            assert_eq!(read(&mut meter, &message, now), message.len());
            meter.take_blocks();
        }
    }

    #[test]
    fn streams_that_are_opened_and_reset_on_and_on_are_a_flood() {
        let now = Instant::now();
        let mut meter = FrameMeter::of_client(0);
        let pair = [frame(HEADERS, 20), frame(RST_STREAM, 4)].concat();
        let passed = (0..100_000)
            .take_while(|_| {
                meter.take_blocks();
                read(&mut meter, &pair, now) == pair.len() && !meter.is_flooded()
            })
            .count();
        assert!((90..=110).contains(&passed), "{passed}");
    }

    #[test]
    fn an_endpoint_may_send_header_blocks_and_data_only_for_requests() {
        let now = Instant::now();
        let passes = |meter: &mut FrameMeter, frame: &[u8]| {
            meter.take_blocks();
            read(meter, frame, now) == frame.len() && !meter.is_flooded()
        };
        let mut meter = FrameMeter::of_endpoint();
        for _ in 0..10_000 {
            meter.expect(1, false);
            assert!((0..34).all(|_| passes(&mut meter, &frame(HEADERS, 20))));
        }
        let passed = (0..100_000).take_while(|_| passes(&mut meter, &frame(HEADERS, 20))).count();
        assert!((1000..=1001).contains(&passed), "{passed}");

        let mut meter = FrameMeter::of_endpoint();
        meter.expect(1, false);
        assert!((0..100_000).all(|_| passes(&mut meter, &frame(DATA, 100))));
        meter.expect(0, true);
        let passed = (0..100_000).take_while(|_| passes(&mut meter, &frame(DATA, 100))).count();
        assert!((37_000..=38_000).contains(&passed), "{passed}");
    }

    proptest! {
        #[test]
        fn header_blocks_are_held_up_at_the_limit_however_bytes_are_cut(
            lengths in proptest::collection::vec(0usize..40, 40..60),
            step in 1usize..100,
        ) {
            let now = Instant::now();
            let preface = 24;
            let mut wire = vec![0; preface];
            lengths.iter().for_each(|length| wire.extend(frame(HEADERS, *length)));
            let mut meter = FrameMeter::of_client(preface);
            let (mut passed, mut rounds) = (0, 0);
            while passed < wire.len() {
                let end = (passed + step).min(wire.len());
                let count = read(&mut meter, &wire[passed..end], now);
                passed += count;
                if meter.is_closed() {
                    // Not one header block more than the limit, and that one's payload not yet.
                    let before: usize = lengths.iter().take((rounds + 1) * 16).map(|length| length + 9).sum();
                    prop_assert!(passed <= preface + before, "{passed} {rounds}");
                    prop_assert!(meter.take_blocks());
                    rounds += 1;
                }
            }
            prop_assert_eq!(rounds, lengths.len() / 16);
        }
    }
}
