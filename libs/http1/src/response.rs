//! Response heads.

use std::mem::MaybeUninit;

use crate::{
    Fields, Framing, MAX_FIELDS, Method, Version,
    framing::{Declared, declared},
    lines::ends_lines_with_crlf,
};

/// A response head. Its memory is reused by the next parse.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// The status, 100 to 599.
    pub status: u16,
    /// The version.
    pub version: Version,
    /// All fields.
    pub fields: Fields,
}

/// Why a response head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// It is not an HTTP/1.x response.
    #[error("malformed response head")]
    Malformed,
    /// The head is longer than the limit or has too many fields.
    #[error("response head too large")]
    TooLarge,
    /// The body's length is ambiguous or its coding unknown.
    #[error("ambiguous response length")]
    Framing,
}

/// Parses the head of the response to a request with `method` at the start of `input` into `response`.
///
/// Returns the head's length in bytes and the body's framing, or nothing while the head is incomplete.
///
/// # Errors
/// When the head is malformed, ambiguous or longer than `head_bytes`.
pub fn parse_response(
    input: &[u8],
    head_bytes: usize,
    method: &Method,
    response: &mut Response,
) -> Result<Option<(usize, Framing)>, ResponseError> {
    let mut headers = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length <= head_bytes => length,
        Ok(httparse::Status::Partial) if input.len() < head_bytes => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(ResponseError::TooLarge),
        Err(_) => return Err(ResponseError::Malformed),
    };
    let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
        return Err(ResponseError::Malformed);
    };
    // Bytes before the status line are no part of a response. Above 599 there is no class that a client could fall back to (RFC 9110, section 15).
    if input.first() != Some(&b'H')
        || !(100..=599).contains(&status)
        || !ends_lines_with_crlf(input, 0, parsed.headers, length)
    {
        return Err(ResponseError::Malformed);
    }
    response.status = status;
    response.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    response.fields.clear();
    response.fields.reserve(parsed.headers.len(), length);
    for header in parsed.headers.iter() {
        response.fields.push(header.name.as_bytes(), header.value);
    }
    // HTTP/1.0 has no transfer codings: a sender of one is mistaken about the framing (RFC 9112, section 6.1).
    if response.version == Version::Http10 && response.fields.get(b"transfer-encoding").is_some() {
        return Err(ResponseError::Framing);
    }
    // Also where there is no body: other readers would read another length in the response to a HEAD.
    let framing = match declared(&response.fields).map_err(|_| ResponseError::Framing)? {
        _ if *method == Method::Head || status < 200 || status == 204 || status == 304 => Framing::Empty,
        Declared::Length(0) => Framing::Empty,
        Declared::Length(length) => Framing::Length(length),
        Declared::Chunked => Framing::Chunked,
        Declared::Nothing => Framing::UntilClose,
    };
    Ok(Some((length, framing)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(method: &Method, text: &str) -> Result<Option<Framing>, ResponseError> {
        parse_response(text.as_bytes(), 1024, method, &mut Response::default()).map(|p| p.map(|(_, f)| f))
    }

    #[test]
    fn a_head_is_as_long_as_its_limit_and_no_longer() {
        let text = "HTTP/1.1 200 OK\r\nX: a\r\n\r\n";
        let parse = |input: &str, limit| {
            parse_response(input.as_bytes(), limit, &Method::Get, &mut Response::default())
                .map(|p| p.is_some())
        };
        assert_eq!(parse(text, text.len()), Ok(true));
        assert_eq!(parse(text, text.len() - 1), Err(ResponseError::TooLarge));
        let part = &text[..text.len() - 1];
        assert_eq!(parse(part, part.len() + 1), Ok(false));
        assert_eq!(parse(part, part.len()), Err(ResponseError::TooLarge));
    }

    #[test]
    fn the_body_ends_where_the_method_status_and_fields_say() {
        let get = |text| framing(&Method::Get, text);
        assert_eq!(get("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), Ok(Some(Framing::Length(5))));
        assert_eq!(get("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Ok(Some(Framing::Chunked)));
        assert_eq!(get("HTTP/1.1 200 OK\r\n\r\n"), Ok(Some(Framing::UntilClose)));
        assert_eq!(get("HTTP/1.1 404 X\r\nContent-Length: 5\r\n\r\n"), Ok(Some(Framing::Length(5))));
        assert_eq!(get("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Ok(Some(Framing::Empty)));
        assert_eq!(get("HTTP/1.1 103 X\r\n\r\n"), Ok(Some(Framing::Empty)));
        assert_eq!(get("HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n"), Ok(Some(Framing::Empty)));
        assert_eq!(get("HTTP/1.1 204 X\r\n\r\n"), Ok(Some(Framing::Empty)));
        assert_eq!(
            framing(&Method::Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
            Ok(Some(Framing::Empty))
        );
        assert_eq!(get("HTTP/1.1 200 OK\r\nContent-Le"), Ok(None));
        assert_eq!(
            get("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(ResponseError::Framing)
        );
    }

    #[test]
    fn ambiguous_lengths_are_refused_also_where_there_is_no_body() {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 40\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 18446744073709551621\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
        ] {
            for (method, status) in
                [(Method::Head, 200), (Method::Get, 204), (Method::Get, 304), (Method::Get, 103)]
            {
                let text = format!("HTTP/1.1 {status} X\r\n{fields}\r\n");
                assert_eq!(framing(&method, &text), Err(ResponseError::Framing), "{text:?}");
            }
        }
    }
}
