//! Chunked bodies.

use tidegate_http1::{ChunkDecoder, ChunkError, Decoded, TrailerPolicy};

use super::model;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// What comes of a body.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// It is whole: data, trailers, and how many bytes it took.
    Whole(Vec<u8>, Fields, usize),
    /// It has not ended, as far as can be said.
    Unended,
    Refused,
}

/// Checks that `input` is decoded as the model decodes it, in whichever pieces it comes.
///
/// # Panics
/// When it is not.
pub fn check(input: &[u8]) {
    let expected = read(input);
    for step in [1, 7, input.len().max(1)] {
        let decoded = decode(input, step);
        match (&decoded, &expected) {
            // What cannot become right may be refused before the model, which waits for whole lines, can tell.
            (Read::Refused, Read::Unended) => {}
            (decoded, expected) => assert_eq!(decoded, expected, "in pieces of {step}"),
        }
    }
}

fn decode(input: &[u8], step: usize) -> Read {
    let mut decoder = ChunkDecoder::new(TrailerPolicy::Response);
    let (mut data, mut buffer, mut taken, mut fed) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        let decoded: Result<Decoded, ChunkError> = decoder.decode(&buffer);
        match decoded {
            Err(_) => return Read::Refused,
            Ok(Decoded::Data { range }) => {
                assert!(!range.is_empty());
                data.extend_from_slice(&buffer[range.clone()]);
                taken += range.end;
                buffer.drain(..range.end);
            }
            Ok(Decoded::End { consumed }) => {
                let trailers = decoder.take_trailers();
                let trailers = trailers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
                return Read::Whole(data, trailers, taken + consumed);
            }
            Ok(Decoded::NeedMore { consumed }) => {
                taken += consumed;
                buffer.drain(..consumed);
                if fed == input.len() {
                    return Read::Unended;
                }
                let next = (fed + step).min(input.len());
                buffer.extend_from_slice(&input[fed..next]);
                fed = next;
            }
        }
    }
}

fn read(input: &[u8]) -> Read {
    let (mut data, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = input[at..].iter().position(|byte| *byte == b'\n') else { return Read::Unended };
        let line = &input[at..at + end];
        at += end + 1;
        let Some(line) = line.strip_suffix(b"\r") else { return Read::Refused };
        let (size, extension) = match line.iter().position(|byte| *byte == b';') {
            Some(semicolon) => (&line[..semicolon], &line[semicolon..]),
            None => (line, &b""[..]),
        };
        let is_text = |byte: &u8| *byte == b'\t' || *byte >= 0x20 && *byte != 0x7f;
        let is_size = !size.is_empty() && size.len() <= 15 && size.iter().all(u8::is_ascii_hexdigit);
        if !is_size || !extension.iter().all(is_text) {
            return Read::Refused;
        }
        let size = usize::from_str_radix(std::str::from_utf8(size).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        if input.len() - at < size {
            return Read::Unended;
        }
        data.extend_from_slice(&input[at..at + size]);
        at += size;
        match &input[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Read::Unended,
            _ => return Read::Refused,
        }
    }
    // Trailers are a head without a first line: with one in front of them, the model reads them as such.
    let with_line = [b"x\r\n", &input[at..]].concat();
    let Some((lines, length)) = model::head(&with_line) else { return Read::Unended };
    let fields = lines[1..].iter().map(|line| model::field(line)).collect::<Option<Fields>>();
    match fields {
        Some(fields) if fields.len() <= 32 => {
            let kept = fields
                .into_iter()
                .filter(|(name, _)| TrailerPolicy::Response.judge(name) == tidegate_http1::FieldVerdict::Keep)
                .collect();
            Read::Whole(data, kept, at + length - 3)
        }
        Some(_) | None => Read::Refused,
    }
}
