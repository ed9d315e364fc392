//! Where a message's body ends.

use crate::Fields;

/// How a body is delimited on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// Exactly this many bytes, more than zero.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Everything until the connection ends; responses only.
    UntilClose,
}

/// What the framing fields of a message say, before the rules of requests and responses.
pub(crate) enum Declared {
    Nothing,
    Length(u64),
    Chunked,
}

/// Why framing fields cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FramingError {
    Both,
    BadLength,
    RepeatedLength,
    UnknownCoding,
}

/// Reads `content-length` and `transfer-encoding`. Whatever two readers could understand differently is an error
/// (RFC 9112, sections 6.1 and 6.3).
pub(crate) fn declared(fields: &Fields) -> Result<Declared, FramingError> {
    let mut length = None;
    let mut chunked = false;
    for (name, value) in fields.iter() {
        match name {
            b"content-length" => {
                if length.is_some() {
                    return Err(FramingError::RepeatedLength);
                }
                length = Some(parse_length(value).ok_or(FramingError::BadLength)?);
            }
            b"transfer-encoding" => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(FramingError::UnknownCoding);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(FramingError::Both),
        (None, true) => Ok(Declared::Chunked),
        (Some(length), false) => Ok(Declared::Length(length)),
        (None, false) => Ok(Declared::Nothing),
    }
}

fn parse_length(value: &[u8]) -> Option<u64> {
    // Digits only: `parse` alone would take a leading '+'.
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}
