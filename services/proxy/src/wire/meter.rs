//! Flood protection: limits on what an HTTP/2 peer may send beside its messages.
//!
//! The HTTP/2 library responds to or drops any number of SETTINGS, PING, WINDOW_UPDATE, PRIORITY and unknown frames, so
//! a peer can keep a core busy at almost no cost (CVE-2019-9512, CVE-2019-9515 and similar ones). It also decodes all
//! header blocks of a read before the first one can be processed, and a few bytes of HPACK can decode to kilobytes. The
//! meter parses the frame headers of received data without changing it.

use std::time::Duration;

use tokio::time::Instant;

/// The initial and maximum allowance of a connection, and its refill per second. A frame that is not part of a message
/// costs one. (Envoy's limits on control frames also grow with the streams and data of a connection.)
const BURST: i64 = 1000;
const REFILL: i64 = 200;
/// The allowance earned by a header block: window updates and a PING may belong to its message.
const PER_MESSAGE: i64 = 4;
/// The cost of a reset, whose stream may have cost an upstream connection (CVE-2023-44487). A browser may reset about a
/// hundred streams at once when its user leaves a page.
const RESET: i64 = PER_MESSAGE + 10;
/// Bytes sent to the peer that earn one: some peers send two window updates for each small part of a body (Go's every 4
/// KiB).
const BYTES_EACH: u64 = 1024;
/// Header blocks that an endpoint may send for each request: up to 32 interim responses, the response and its trailers.
/// Others cost as much as a control frame.
const BLOCKS_EACH: u32 = 34;
/// The most header blocks that may be due at once.
const MOST_DUE: u32 = 1 << 16;
/// Bytes of DATA without a request that cost an endpoint one: a full window for cancelled requests costs a quarter of
/// the initial allowance.
const EXCESS_EACH: usize = 4096;
/// Header blocks that pass before the driver has processed them.
const MOST_BLOCKS: u32 = 16;
/// The length of a frame's header (RFC 9113, section 4.1).
const FRAME_HEADER: usize = 9;

/// The frame types of RFC 9113, section 6, that are distinguished.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

/// Meters the received frames of a connection.
#[derive(Debug)]
pub struct FrameMeter {
    /// Bytes before the next frame's header: the rest of the preface or of a payload.
    skip: usize,
    header: [u8; FRAME_HEADER],
    header_filled: usize,
    allowance: i64,
    refilled_at: Option<Instant>,
    written: u64,
    blocks: u32,
    resets: u32,
    /// The messages expected from an endpoint; nothing for a client.
    expected: Option<Expected>,
    is_flooded: bool,
}

/// The messages that an endpoint may send for its requests.
#[derive(Debug, Default)]
struct Expected {
    /// The number of header blocks.
    due: u32,
    /// Whether no request is in flight, so that data is excess.
    is_idle: bool,
    /// Excess bytes that were not charged yet.
    excess: usize,
}

impl FrameMeter {
    /// A meter of an upstream connection.
    pub fn of_endpoint() -> FrameMeter {
        FrameMeter { expected: Some(Expected::default()), ..FrameMeter::of_client(0) }
    }

    /// A meter of a client connection, which begins with a preface of `preface` bytes.
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

    /// Whether the peer has exceeded its allowance: nothing more passes.
    pub fn is_flooded(&self) -> bool {
        self.is_flooded
    }

    /// How many streams the peer has reset.
    pub fn resets(&self) -> u32 {
        self.resets
    }

    /// Lets header blocks pass again after [`MOST_BLOCKS`]. Returns whether any were held back.
    pub fn release_blocks(&mut self) -> bool {
        std::mem::take(&mut self.blocks) >= MOST_BLOCKS
    }

    /// Whether nothing passes for the moment.
    pub fn is_paused(&self) -> bool {
        self.is_flooded || self.blocks >= MOST_BLOCKS
    }

    /// Records `begun` new requests; `is_idle` is whether none is in flight.
    pub fn expect_responses(&mut self, begun: u32, is_idle: bool) {
        if let Some(expected) = &mut self.expected {
            expected.due = expected.due.saturating_add(begun.saturating_mul(BLOCKS_EACH)).min(MOST_DUE);
            expected.is_idle = is_idle;
        }
    }

    /// Records bytes written to the peer.
    pub fn record_written(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// Parses `bytes`. Returns how many of them pass; the others must be passed in again later.
    pub fn read(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> usize {
        let mut at = 0;
        while !self.is_paused() && at < bytes.len() {
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
            // The library limits small DATA frames itself. But it drops data for ended streams and opens the window
            // again.
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
            // The library limits them by the size of a header block.
            CONTINUATION => {}
            RST_STREAM => {
                self.resets += 1;
                self.charge(RESET, now());
            }
            _ => self.charge(1, now()),
        }
    }

    /// Charges `cost` against the allowance; without enough left, the connection counts as flooded.
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
            meter.release_blocks();
        }
    }

    #[test]
    fn streams_that_are_opened_and_reset_on_and_on_are_a_flood() {
        let now = Instant::now();
        let mut meter = FrameMeter::of_client(0);
        let pair = [frame(HEADERS, 20), frame(RST_STREAM, 4)].concat();
        let passed = (0..100_000)
            .take_while(|_| {
                meter.release_blocks();
                read(&mut meter, &pair, now) == pair.len() && !meter.is_flooded()
            })
            .count();
        assert!((90..=110).contains(&passed), "{passed}");
    }

    #[test]
    fn an_endpoint_may_send_header_blocks_and_data_only_for_requests() {
        let now = Instant::now();
        let passes = |meter: &mut FrameMeter, frame: &[u8]| {
            meter.release_blocks();
            read(meter, frame, now) == frame.len() && !meter.is_flooded()
        };
        let mut meter = FrameMeter::of_endpoint();
        for _ in 0..10_000 {
            meter.expect_responses(1, false);
            assert!((0..34).all(|_| passes(&mut meter, &frame(HEADERS, 20))));
        }
        let passed = (0..100_000).take_while(|_| passes(&mut meter, &frame(HEADERS, 20))).count();
        assert!((1000..=1001).contains(&passed), "{passed}");

        let mut meter = FrameMeter::of_endpoint();
        meter.expect_responses(1, false);
        assert!((0..100_000).all(|_| passes(&mut meter, &frame(DATA, 100))));
        meter.expect_responses(0, true);
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
                if meter.is_paused() {
                    // Not one header block more than the limit, and that one's payload not yet.
                    let before: usize = lengths.iter().take((rounds + 1) * 16).map(|length| length + 9).sum();
                    prop_assert!(passed <= preface + before, "{passed} {rounds}");
                    prop_assert!(meter.release_blocks());
                    rounds += 1;
                }
            }
            prop_assert_eq!(rounds, lengths.len() / 16);
        }
    }
}
