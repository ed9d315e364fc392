//! Request heads.

use std::mem::MaybeUninit;

use crate::{
    FieldVerdict, Fields, Framing, MAX_FIELDS, ParseError, Underscores,
    framing::{Declared, FramingError, declared},
    host::is_host,
    lines::ends_lines_with_crlf,
    path::{PathRules, normalize_path},
};

/// The version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// A request method.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Method {
    /// GET.
    #[default]
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// OPTIONS.
    Options,
    /// PATCH.
    Patch,
    /// TRACE.
    Trace,
    /// CONNECT.
    Connect,
    /// Any other token.
    Other(Box<str>),
}

impl Method {
    /// The method as on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Method::Other(token) => token,
            known => known.name().unwrap_or_default(),
        }
    }

    /// The name of a known method; nothing for other tokens.
    pub fn name(&self) -> Option<&'static str> {
        Some(match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Patch => "PATCH",
            Method::Trace => "TRACE",
            Method::Connect => "CONNECT",
            Method::Other(_) => return None,
        })
    }

    /// Whether the method is safe (RFC 9110, section 9.2.1).
    pub fn is_safe(&self) -> bool {
        match self {
            Method::Get | Method::Head | Method::Options | Method::Trace => true,
            Method::Post
            | Method::Put
            | Method::Delete
            | Method::Patch
            | Method::Connect
            | Method::Other(_) => false,
        }
    }

    /// Whether the method is idempotent (RFC 9110, section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        match self {
            Method::Get | Method::Head | Method::Put | Method::Delete | Method::Options | Method::Trace => {
                true
            }
            Method::Post | Method::Patch | Method::Connect | Method::Other(_) => false,
        }
    }
}

impl From<&str> for Method {
    fn from(token: &str) -> Method {
        match token {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            "PATCH" => Method::Patch,
            "TRACE" => Method::Trace,
            "CONNECT" => Method::Connect,
            other => Method::Other(other.into()),
        }
    }
}

/// A request head. Its memory is reused by the next parse.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query, beginning with `/`, or `*`. The scheme and authority of an absolute target are removed, and the path is
    /// normalized if the rules say so.
    pub target: String,
    /// The requested host, with its port if it has one, as sent: from an absolute target, else from `host`.
    pub host: String,
    /// The version.
    pub version: Version,
    /// All fields but `host`.
    pub fields: Fields,
    /// The number of fields that were dropped because of their names.
    pub dropped_fields: u16,
}

/// The rules of a listener for request heads.
#[derive(Debug, Clone, Copy)]
pub struct RequestRules {
    /// The most bytes of the whole head, request line included.
    pub head_bytes: usize,
    /// The most header fields; [`MAX_FIELDS`] at most.
    pub fields: usize,
    /// The policy for fields whose names have underscores.
    pub underscores: Underscores,
    /// How paths are normalized.
    pub paths: PathRules,
    /// Whether requests arrive over TLS: the scheme of a target that names one must say the same.
    pub is_tls: bool,
}

/// Parses the request head at the start of `input` into `request`.
///
/// Returns the head's length in bytes and the body's framing, or nothing while the head is incomplete.
///
/// # Errors
/// When the head is malformed, ambiguous or over a limit; an incomplete one is refused as soon as that is certain.
pub fn parse_request(
    input: &[u8],
    rules: RequestRules,
    request: &mut Request,
) -> Result<Option<(usize, Framing)>, ParseError> {
    let mut headers = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let allowed = rules.fields.min(MAX_FIELDS);
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(input, &mut headers[..allowed]) {
        Ok(httparse::Status::Complete(length)) if length <= rules.head_bytes => length,
        Ok(httparse::Status::Partial) if input.len() < rules.head_bytes => return Ok(None),
        Ok(_) => return Err(ParseError::TooLarge),
        Err(error) => return Err(from_httparse(error)),
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(ParseError::RequestLine);
    };
    if !ends_lines_with_crlf(input, offset_in(input, method.as_bytes()), parsed.headers, length) {
        return Err(ParseError::BareLineFeed);
    }
    request.method = Method::from(method);
    request.version = if version == 0 { Version::Http10 } else { Version::Http11 };
    request.fields.clear();
    request.fields.reserve(parsed.headers.len(), length);
    request.dropped_fields = 0;
    request.host.clear();
    let mut hosts = 0;
    for header in parsed.headers.iter() {
        if header.name.eq_ignore_ascii_case("host") {
            hosts += 1;
            request.host.push_str(std::str::from_utf8(header.value).map_err(|_| ParseError::Host)?);
            continue;
        }
        match rules.underscores.judge(header.name.as_bytes()) {
            FieldVerdict::Keep => request.fields.push(header.name.as_bytes(), header.value),
            FieldVerdict::Drop => request.dropped_fields += 1,
            FieldVerdict::Refuse => return Err(ParseError::Underscore),
        }
    }
    // An empty `host` is valid (RFC 9112, section 3.2): only a service for any host serves it.
    let is_valid = request.host.is_empty() || is_host(request.host.as_bytes());
    if hosts > 1 || (hosts == 0 && request.version == Version::Http11) || !is_valid {
        return Err(ParseError::Host);
    }
    take_target(target, rules, request)?;
    normalize_path(&mut request.target, rules.paths)?;
    let framing = request_framing(request)?;
    if request.method == Method::Trace && framing != Framing::Empty {
        return Err(ParseError::TraceBody);
    }
    Ok(Some((length, framing)))
}

fn request_framing(request: &Request) -> Result<Framing, ParseError> {
    match declared(&request.fields) {
        Ok(Declared::Nothing | Declared::Length(0)) => Ok(Framing::Empty),
        Ok(Declared::Length(length)) => Ok(Framing::Length(length)),
        Ok(Declared::Chunked) if request.version == Version::Http10 => Err(ParseError::CodingInHttp10),
        Ok(Declared::Chunked) => Ok(Framing::Chunked),
        Err(FramingError::Both) => Err(ParseError::AmbiguousLength),
        Err(FramingError::BadLength) => Err(ParseError::BadLength),
        Err(FramingError::RepeatedLength) => Err(ParseError::RepeatedLength),
        // With a length beside it, an odd coding is the older smuggling trick, not a missing feature.
        Err(FramingError::UnknownCoding) if request.fields.get(b"content-length").is_some() => {
            Err(ParseError::AmbiguousLength)
        }
        Err(FramingError::UnknownCoding) => Err(ParseError::UnknownCoding),
    }
}

fn take_target(target: &str, rules: RequestRules, request: &mut Request) -> Result<(), ParseError> {
    request.target.clear();
    if target.starts_with('/') || (target == "*" && request.method == Method::Options) {
        if !valid_target(target) {
            return Err(ParseError::Target);
        }
        request.target.push_str(target);
        return Ok(());
    }
    if request.method == Method::Connect {
        if !is_host(target.as_bytes()) {
            return Err(ParseError::Target);
        }
        request.target.push_str(target);
        return Ok(());
    }
    // Absolute form: its authority overrides the host field (RFC 9112, section 3.2.2).
    let (is_tls, rest) = [("http://", false), ("https://", true)]
        .into_iter()
        .find_map(|(scheme, is_tls)| {
            let found = target.get(..scheme.len()).filter(|s| s.eq_ignore_ascii_case(scheme));
            found.map(|found| (is_tls, &target[found.len()..]))
        })
        .ok_or(ParseError::Target)?;
    if is_tls != rules.is_tls {
        return Err(ParseError::Scheme);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !is_host(authority.as_bytes()) {
        return Err(ParseError::Host);
    }
    if !valid_target(path) {
        return Err(ParseError::Target);
    }
    authority.clone_into(&mut request.host);
    if path.is_empty() && request.method == Method::Options {
        // RFC 9112, section 3.2.4: this is the form of `*` towards a proxy.
        request.target.push('*');
        return Ok(());
    }
    if !path.starts_with('/') {
        request.target.push('/');
    }
    request.target.push_str(path);
    Ok(())
}

/// Whether a path and query can be forwarded: visible ASCII or UTF-8 as clients send it, no fragment.
pub fn valid_target(target: &str) -> bool {
    target.bytes().all(|byte| byte > 0x20 && byte != 0x7f && byte != b'#')
}

/// The offset of `part` within `whole`, of which it is a part.
fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}

fn from_httparse(error: httparse::Error) -> ParseError {
    match error {
        httparse::Error::TooManyHeaders => ParseError::TooManyFields,
        httparse::Error::Version => ParseError::Version,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => ParseError::Field,
        httparse::Error::NewLine => ParseError::BareLineFeed,
        httparse::Error::Token | httparse::Error::Status => ParseError::RequestLine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: RequestRules = RequestRules {
        head_bytes: 1024,
        fields: 20,
        underscores: Underscores::Drop,
        paths: PathRules::DEFAULT,
        is_tls: false,
    };

    fn parse(text: &str) -> Result<Option<(usize, Framing)>, ParseError> {
        parse_request(text.as_bytes(), RULES, &mut Request::default())
    }

    #[test]
    fn an_ordinary_request_is_taken_apart() {
        let mut request = Request::default();
        let text = "POST /a?b=1 HTTP/1.1\r\nHost: shop.example.com:8080\r\nContent-Length: 3\r\n\r\nabc";
        let parsed = parse_request(text.as_bytes(), RULES, &mut request);
        assert_eq!(parsed, Ok(Some((text.len() - 3, Framing::Length(3)))));
        assert_eq!((request.target.as_str(), request.host.as_str()), ("/a?b=1", "shop.example.com:8080"));
        assert_eq!(request.fields.get(b"host"), None);
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let cases = [
            ("Content-Length: 3\r\nTransfer-Encoding: chunked", ParseError::AmbiguousLength),
            ("Transfer-Encoding: chunked\r\nContent-Length: 3", ParseError::AmbiguousLength),
            ("Transfer-Encoding: xchunked\r\nContent-Length: 3", ParseError::AmbiguousLength),
            ("Content-Length: 3\r\nContent-Length: 4", ParseError::RepeatedLength),
            ("Content-Length: 3, 4", ParseError::BadLength),
            ("Content-Length: +3", ParseError::BadLength),
            ("Content-Length: -1", ParseError::BadLength),
            ("Content-Length:", ParseError::BadLength),
            ("Content-Length: 99999999999999999999", ParseError::BadLength),
            ("Content-Length : 3", ParseError::Field),
            ("X: a\r\n folded", ParseError::Field),
            (" X: a", ParseError::Field),
            ("X: a\nY: b", ParseError::BareLineFeed),
            ("X: a\rb", ParseError::Field),
            ("X: a\0b", ParseError::Field),
            ("Transfer-Encoding: gzip, chunked", ParseError::UnknownCoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", ParseError::UnknownCoding),
            ("Host: b", ParseError::Host),
        ];
        for (field, expected) in cases {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            assert_eq!(parse(&text), Err(expected), "{field:?}");
        }
        assert_eq!(parse("GET / HTTP/1.1\r\n\r\n"), Err(ParseError::Host));
        assert_eq!(parse("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), Err(ParseError::Host));
        assert_eq!(
            parse("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(ParseError::CodingInHttp10)
        );
    }

    #[test]
    fn an_absolute_target_stands_above_the_host_field() {
        let mut request = Request::default();
        let text = "GET HTTP://b.example?x HTTP/1.1\r\nHost: a.example\r\n\r\n";
        parse_request(text.as_bytes(), RULES, &mut request).unwrap();
        assert_eq!((request.target.as_str(), request.host.as_str()), ("/?x", "b.example"));
        assert_eq!(parse("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"), Err(ParseError::Target));
        assert_eq!(parse("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"), Err(ParseError::Target));
    }

    #[test]
    fn each_method_takes_the_forms_of_target_that_it_may_have() {
        let target = |line: &str| {
            let mut request = Request::default();
            let text = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
            parse_request(text.as_bytes(), RULES, &mut request).map(|_| request.target)
        };
        assert_eq!(target("OPTIONS *"), Ok("*".to_owned()));
        assert_eq!(target("OPTIONS http://a"), Ok("*".to_owned()));
        assert_eq!(target("OPTIONS http://a/"), Ok("/".to_owned()));
        assert_eq!(target("OPTIONS b"), Err(ParseError::Target));
        assert_eq!(target("GET *"), Err(ParseError::Target));
        assert_eq!(target("GET http://a"), Ok("/".to_owned()));
        assert_eq!(target("GET https://a"), Err(ParseError::Scheme));
        assert_eq!(target("CONNECT a:443"), Ok("a:443".to_owned()));
        assert_eq!(target("CONNECT a@b:443"), Err(ParseError::Target));
    }

    #[test]
    fn a_target_has_no_spaces_controls_or_fragment() {
        for target in ["/a b", "/a\tb", "/a\x7fb", "/a#b"] {
            assert!(!valid_target(target), "{target:?}");
        }
        assert!(valid_target("/a!~?b=\u{e9}"));
    }

    #[test]
    fn trace_has_no_body() {
        let trace = |field| parse(&format!("TRACE / HTTP/1.1\r\nHost: a\r\n{field}\r\n"));
        assert!(trace("").is_ok());
        assert_eq!(trace("Content-Length: 3\r\n"), Err(ParseError::TraceBody));
        assert_eq!(trace("Transfer-Encoding: chunked\r\n"), Err(ParseError::TraceBody));
    }

    #[test]
    fn nothing_precedes_the_request_line() {
        assert_eq!(parse("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(ParseError::BareLineFeed));
    }

    #[test]
    fn each_field_that_is_dropped_for_its_name_is_counted() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nX_A: 1\r\nX-B: 2\r\nX.C: 3\r\n\r\n";
        let mut request = Request::default();
        parse_request(text.as_bytes(), RULES, &mut request).unwrap();
        assert_eq!((request.dropped_fields, request.fields.len()), (2, 1));
        let rules = RequestRules { underscores: Underscores::Refuse, ..RULES };
        assert_eq!(parse_request(text.as_bytes(), rules, &mut request), Err(ParseError::Underscore));
    }

    #[test]
    fn a_method_is_safe_or_idempotent_as_its_definition_says() {
        for (token, safe, idempotent) in [
            ("GET", true, true),
            ("HEAD", true, true),
            ("OPTIONS", true, true),
            ("TRACE", true, true),
            ("PUT", false, true),
            ("DELETE", false, true),
            ("POST", false, false),
            ("PATCH", false, false),
            ("CONNECT", false, false),
            ("PURGE", false, false),
        ] {
            let method = Method::from(token);
            assert_eq!((method.is_safe(), method.is_idempotent()), (safe, idempotent), "{token}");
            assert_eq!(method.as_str(), token);
        }
    }

    #[test]
    fn a_head_is_as_long_as_its_limit_and_no_longer() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let parse = |input: &str, head_bytes| {
            let rules = RequestRules { head_bytes, ..RULES };
            parse_request(input.as_bytes(), rules, &mut Request::default()).map(|p| p.is_some())
        };
        assert_eq!(parse(text, text.len()), Ok(true));
        assert_eq!(parse(text, text.len() - 1), Err(ParseError::TooLarge));
        let part = &text[..text.len() - 1];
        assert_eq!(parse(part, part.len() + 1), Ok(false));
        assert_eq!(parse(part, part.len()), Err(ParseError::TooLarge));
    }

    #[test]
    fn limits_hold_before_the_head_is_complete() {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(2000));
        assert_eq!(parse(&text), Err(ParseError::TooLarge));
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(20));
        assert_eq!(parse(&text), Err(ParseError::TooManyFields));
        assert_eq!(parse("GET / HTTP/1.1\r\nHost: a\r\n"), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse_or_fail_without_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = parse_request(&bytes, RULES, &mut Request::default());
        }
    }
}
