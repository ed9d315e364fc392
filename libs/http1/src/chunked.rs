//! The chunked transfer coding (RFC 9112, section 7.1), decoded strictly.

use std::ops::Range;

use crate::{FieldVerdict, Fields, TrailerPolicy, lines::ends_lines_with_crlf};

/// The most bytes of a chunk's head (size and extensions) and of all trailers together.
const LINE_LIMIT: usize = 4096;
const TRAILER_LIMIT: usize = 16 * 1024;

/// An incremental decoder of a chunked body. It holds no data: the caller's buffer does.
#[derive(Debug, Clone, Default)]
pub struct ChunkDecoder {
    state: State,
    policy: TrailerPolicy,
    /// The trailer fields that the policy passes.
    trailers: Fields,
    /// The number of trailer fields that the policy drops.
    dropped_trailers: u32,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Head,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

/// One step of decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// More input is needed; `consumed` bytes of this one were used.
    NeedMore {
        /// The bytes at the start of the input that were used.
        consumed: usize,
    },
    /// Body data.
    Data {
        /// Its range in the input. Everything before its end was used.
        range: Range<usize>,
    },
    /// The body has ended.
    End {
        /// The bytes at the start of the input that belong to the body; the rest is the next message's.
        consumed: usize,
    },
}

/// Why a chunked body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// A size that is not a plain hexadecimal number below 2^60, or a line not ended by CR LF.
    #[error("malformed chunk size")]
    Size,
    /// Something else than CR LF after a chunk's data.
    #[error("chunk data not followed by CR LF")]
    DataEnd,
    /// Trailer fields that are malformed or too large.
    #[error("malformed trailers")]
    Trailers,
    /// A trailer field whose name has an underscore, where those are refused.
    #[error("trailer field name with an underscore")]
    Underscore,
}

impl ChunkDecoder {
    /// A decoder at the start of a body whose trailers are subject to `policy`.
    pub fn new(policy: TrailerPolicy) -> ChunkDecoder {
        ChunkDecoder { policy, ..ChunkDecoder::default() }
    }

    /// The trailer fields that the policy passes, once the body has ended.
    pub fn take_trailers(&mut self) -> Fields {
        std::mem::take(&mut self.trailers)
    }

    /// The number of trailer fields that the policy dropped, once the body has ended.
    pub fn dropped_trailers(&self) -> u32 {
        self.dropped_trailers
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Decodes the next piece of `input`, which begins where the last step's consumption ended.
    ///
    /// # Errors
    /// When the coding is malformed; the connection cannot be used any more then.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, ChunkError> {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match self.state {
                State::Head => {
                    let Some(line_end) = rest.iter().position(|byte| *byte == b'\n') else {
                        return if rest.len() > LINE_LIMIT || !plausible_head(rest) {
                            Err(ChunkError::Size)
                        } else {
                            Ok(Decoded::NeedMore { consumed: at })
                        };
                    };
                    if line_end > LINE_LIMIT {
                        return Err(ChunkError::Size);
                    }
                    let size = parse_head(&rest[..line_end])?;
                    at += line_end + 1;
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(_) if rest.is_empty() => return Ok(Decoded::NeedMore { consumed: at }),
                State::Data(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let left = left - take as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Decoded::Data { range: at..at + take });
                }
                State::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::Head;
                    }
                    [] | [b'\r'] => return Ok(Decoded::NeedMore { consumed: at }),
                    _ => return Err(ChunkError::DataEnd),
                },
                State::Trailers => return self.trailers(at, rest),
                State::Done => return Ok(Decoded::End { consumed: at }),
            }
        }
    }

    fn trailers(&mut self, at: usize, rest: &[u8]) -> Result<Decoded, ChunkError> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        match httparse::parse_headers(rest, &mut headers) {
            Ok(httparse::Status::Complete((length, fields))) => {
                if length > TRAILER_LIMIT || !ends_lines_with_crlf(rest, 0, fields, length) {
                    return Err(ChunkError::Trailers);
                }
                for field in fields {
                    match self.policy.judge(field.name.to_ascii_lowercase().as_bytes()) {
                        FieldVerdict::Keep => self.trailers.push(field.name.as_bytes(), field.value),
                        FieldVerdict::Drop => self.dropped_trailers += 1,
                        FieldVerdict::Refuse => return Err(ChunkError::Underscore),
                    }
                }
                self.state = State::Done;
                Ok(Decoded::End { consumed: at + length })
            }
            Ok(httparse::Status::Partial) if rest.len() <= TRAILER_LIMIT => {
                Ok(Decoded::NeedMore { consumed: at })
            }
            _ => Err(ChunkError::Trailers),
        }
    }
}

/// Whether an incomplete line can still become a chunk head, so that garbage is refused before a whole line of it arrived.
fn plausible_head(part: &[u8]) -> bool {
    part.first().is_none_or(u8::is_ascii_hexdigit)
}

/// Parses `size[;extensions]CR`. Extensions are dropped.
fn parse_head(line: &[u8]) -> Result<u64, ChunkError> {
    let line = line.strip_suffix(b"\r").ok_or(ChunkError::Size)?;
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, extension) = line.split_at(digits);
    // Some readers accept white space before an extension and others do not; a lone CR likewise.
    let extension_ok = match extension {
        [] => true,
        [b';', rest @ ..] => rest.iter().all(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f)),
        _ => false,
    };
    if size.is_empty() || size.len() > 15 || !extension_ok {
        return Err(ChunkError::Size);
    }
    let text = std::str::from_utf8(size).map_err(|_| ChunkError::Size)?;
    u64::from_str_radix(text, 16).map_err(|_| ChunkError::Size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in pieces of `step` bytes and returns the data and how much of the wire the body took.
    fn decode_all(wire: &[u8], step: usize) -> Result<(Vec<u8>, Option<usize>), ChunkError> {
        let mut decoder = ChunkDecoder::default();
        let (mut data, mut buffer, mut taken, mut fed) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            match decoder.decode(&buffer)? {
                Decoded::Data { range } => {
                    data.extend_from_slice(&buffer[range.clone()]);
                    buffer.drain(..range.end);
                    taken += range.end;
                }
                Decoded::End { consumed } => return Ok((data, Some(taken + consumed))),
                Decoded::NeedMore { consumed } => {
                    buffer.drain(..consumed);
                    taken += consumed;
                    if fed == wire.len() {
                        return Ok((data, None));
                    }
                    let next = (fed + step).min(wire.len());
                    buffer.extend_from_slice(&wire[fed..next]);
                    fed = next;
                }
            }
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let bad: [&[u8]; 14] = [
            b"g\r\n",
            b"\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b"1 \r\n",
            b" 1\r\n",
            b"1\n",
            b"1;a\rb\r\n",
            b"1\r\nab",
            b"1\r\na\n",
            b"1000000000000000\r\n",
            b"0\r\nX : a\r\n\r\n",
            b"0\r\nX: a\n\r\n",
        ];
        for wire in bad {
            assert!(decode_all(wire, 1).is_err(), "{:?}", String::from_utf8_lossy(wire));
            assert!(decode_all(wire, 100).is_err(), "{:?}", String::from_utf8_lossy(wire));
        }
        let endless = [b"1;".to_vec(), vec![b'a'; 10_000]].concat();
        assert!(decode_all(&endless, 100).is_err());
    }

    #[test]
    fn a_chunk_head_is_as_long_as_its_limit_and_no_longer() {
        let head = |length: usize| [b"0;".to_vec(), vec![b'a'; length - 3], b"\r".to_vec()].concat();
        let whole = |length| [head(length), b"\n\r\n".to_vec()].concat();
        for step in [1, 10_000] {
            assert!(decode_all(&whole(LINE_LIMIT), step).is_ok());
            assert_eq!(decode_all(&whole(LINE_LIMIT + 1), step), Err(ChunkError::Size));
            // Before its end, too.
            assert_eq!(decode_all(&head(LINE_LIMIT), step), Ok((Vec::new(), None)));
            assert_eq!(decode_all(&head(LINE_LIMIT + 1), step), Err(ChunkError::Size));
        }
    }

    #[test]
    fn trailers_are_as_long_as_their_limit_and_no_longer() {
        // The blank line belongs to them.
        let trailers = |length: usize| [b"0\r\nx: ".to_vec(), vec![b'a'; length - 7]].concat();
        let whole = |length| [trailers(length), b"\r\n\r\n".to_vec()].concat();
        for step in [1, 100_000] {
            assert!(decode_all(&whole(TRAILER_LIMIT), step).is_ok());
            assert_eq!(decode_all(&whole(TRAILER_LIMIT + 1), step), Err(ChunkError::Trailers));
            assert_eq!(decode_all(&trailers(TRAILER_LIMIT + 4), step), Ok((Vec::new(), None)));
            assert_eq!(decode_all(&trailers(TRAILER_LIMIT + 5), step), Err(ChunkError::Trailers));
        }
        let fields = |count: usize| format!("0\r\n{}\r\n", "x: a\r\n".repeat(count));
        assert!(decode_all(fields(32).as_bytes(), 1000).is_ok());
        assert_eq!(decode_all(fields(33).as_bytes(), 1000), Err(ChunkError::Trailers));
    }

    #[test]
    fn trailers_may_be_as_large_as_the_metadata_of_grpc() {
        // The limit that gRPC libraries have by default.
        let wire = [b"0\r\ngrpc-status-details-bin: ".to_vec(), vec![b'a'; 8 << 10]].concat();
        assert!(decode_all(&[wire, b"\r\n\r\n".to_vec()].concat(), 10_000).is_ok());
    }

    #[test]
    fn a_size_has_up_to_fifteen_digits() {
        for (size, expected) in [
            ("fffffffffffffff", Ok((1 << 60) - 1)),
            ("000000000000001", Ok(1)),
            ("0000000000000001", Err(ChunkError::Size)),
        ] {
            assert_eq!(parse_head(format!("{size}\r").as_bytes()), expected, "{size}");
        }
        let mut decoder = ChunkDecoder::default();
        assert_eq!(decoder.decode(b"fffffffffffffff\r\nab"), Ok(Decoded::Data { range: 17..19 }));
        assert!(!decoder.is_done());
    }

    #[test]
    fn trailers_are_kept() {
        let mut decoder = ChunkDecoder::default();
        let wire = b"0\r\nGrpc-Status: 0\r\n\r\nGET";
        assert_eq!(decoder.decode(wire), Ok(Decoded::End { consumed: wire.len() - 3 }));
        assert!(decoder.is_done());
        assert_eq!(decoder.take_trailers().get(b"grpc-status"), Some(&b"0"[..]));
    }

    #[test]
    fn each_trailer_field_that_is_dropped_is_counted() {
        let mut decoder = ChunkDecoder::default();
        decoder.decode(b"0\r\nGrpc-Status: 0\r\n\r\n").unwrap();
        assert_eq!(decoder.dropped_trailers(), 0);
        let mut decoder = ChunkDecoder::default();
        decoder.decode(b"0\r\nVia: a\r\nGrpc-Status: 0\r\nVia: b\r\n\r\n").unwrap();
        assert_eq!((decoder.dropped_trailers(), decoder.take_trailers().len()), (2, 1));
    }

    #[test]
    fn what_cannot_become_a_size_is_refused_before_its_line_ends() {
        for (start, expected) in [
            (&b""[..], Ok(Decoded::NeedMore { consumed: 0 })),
            (b"a", Ok(Decoded::NeedMore { consumed: 0 })),
            (b"g", Err(ChunkError::Size)),
            (b"\r", Err(ChunkError::Size)),
        ] {
            assert_eq!(ChunkDecoder::default().decode(start), expected, "{start:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8),
            step in 1usize..50,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                crate::write_chunk_head(&mut wire, chunk.len());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(crate::LAST_CHUNK);
            let length = wire.len();
            wire.extend_from_slice(b"GET / HTTP/1.1");
            prop_assert_eq!(decode_all(&wire, step), Ok((chunks.concat(), Some(length))));
        }

        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
            let _ = decode_all(&bytes, step);
        }
    }
}
