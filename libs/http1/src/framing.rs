//! The framing of a message's body.

use crate::{Fields, ParseError};

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

/// The framing that the fields of a message declare, before the rules of requests and responses.
pub(crate) enum Declared {
    Nothing,
    Length(u64),
    Chunked,
}

/// Why the declared framing is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FramingError {
    Both,
    BadLength,
    RepeatedLength,
    UnknownCoding,
}

/// Reads `content-length` and `transfer-encoding`. Fields that two readers could interpret differently are an error
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

/// The longest body that can be declared: a signed 64-bit number, which most readers use.
pub const MAX_LENGTH: u64 = i64::MAX as u64;

/// Reads the value of a `content-length`: digits alone, up to [`MAX_LENGTH`].
fn parse_length(value: &[u8]) -> Option<u64> {
    // `parse` alone would take a leading '+'.
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().filter(|length| *length <= MAX_LENGTH)
}

/// The `content-length` of a message that is not framed by it, as over HTTP/2; nothing where it has none.
///
/// # Errors
/// It is repeated, is no number, or exceeds [`MAX_LENGTH`].
pub fn content_length(fields: &Fields) -> Result<Option<u64>, ParseError> {
    let mut values = fields.get_all(b"content-length");
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ParseError::RepeatedLength);
    }
    parse_length(value).map(Some).ok_or(ParseError::BadLength)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_up_to_the_largest_signed_number() {
        let length = |text: &str| parse_length(text.as_bytes());
        assert_eq!(length("9223372036854775807"), Some(MAX_LENGTH));
        for text in
            ["9223372036854775808", "18446744073709551615", "", "+1", "-1", " 1", "1 ", "1,1", "0x1", "1.0"]
        {
            assert_eq!(length(text), None, "{text:?}");
        }
        assert_eq!((length("0"), length("007")), (Some(0), Some(7)));
    }

    #[test]
    fn one_length_is_read_and_two_are_refused() {
        let mut fields = Fields::new();
        assert_eq!(content_length(&fields), Ok(None));
        fields.push(b"content-length", b"5");
        assert_eq!(content_length(&fields), Ok(Some(5)));
        fields.push(b"content-length", b"5");
        assert_eq!(content_length(&fields), Err(ParseError::RepeatedLength));
    }
}
