//! Converts HTTP/2 request heads to the internal form, with the semantics of HTTP/1.1.
//!
//! The library rejects: connection-specific fields, upper-case names, malformed, repeated or late pseudo-fields,
//! `:status`, an authority or path that is not valid in a URI, lengths that do not match the body. It silently drops: a
//! fragment of `:path`, pseudo-fields in trailers, and `:scheme` without `:authority`. Everything else that HTTP/1.1
//! cannot represent, or that two parsers could understand differently, is refused here.

use http::{HeaderValue, header, uri::PathAndQuery};
use tidegate_http1::{
    FieldVerdict, Framing, Method, ParseError, Request, RequestRules, TrailerPolicy, Version, content_length,
    is_host, normalize_path, valid_target,
};

use crate::{
    clients::RequestAccount,
    metrics::RefusalReason,
    observe::MalformedRequest,
    request::{ClientStream, Http2ClientStream, LocalReply},
    wire::{Http2Reader, is_padded, size_of},
};

/// A refused request, with its local reply and the reason. Boxed, since it is rare and larger than a request.
pub type RefusedHead = Box<(MalformedRequest, LocalReply, RefusalReason)>;

/// Converts a stream to its downstream side and request. A separate function, so that the library's form of the head
/// takes no memory in each stream's task.
pub fn receive_request(
    request: http::Request<h2::RecvStream>,
    respond: h2::server::SendResponse<bytes::Bytes>,
    rules: RequestRules,
    account: RequestAccount,
) -> (ClientStream, Result<(Request, Framing), RefusedHead>) {
    let (head, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    let is_head = head.method == http::Method::HEAD;
    let reader = has_body.then(|| Http2Reader::new(body, TrailerPolicy::Request(rules.underscores)));
    let down = ClientStream::Http2(Box::new(Http2ClientStream::new(reader, respond, is_head, account)));
    let parsed = request_of(&head, has_body, rules).map_err(|error| {
        let reply = LocalReply::new(error.status(), error.to_string());
        Box::new((MalformedRequest::of_http2(&head), reply, error.into()))
    });
    (down, parsed)
}

/// Converts a head to a request as [`tidegate_http1::parse_request`] returns it, with the framing of its body.
///
/// # Errors
/// If HTTP/1.1 cannot represent it, it is ambiguous, or it breaks one of the `rules`.
pub fn request_of(
    head: &http::request::Parts,
    has_body: bool,
    rules: RequestRules,
) -> Result<(Request, Framing), ParseError> {
    if head.headers.len() > rules.fields {
        return Err(ParseError::TooManyFields);
    }
    let mut request = Request {
        method: Method::from(head.method.as_str()),
        version: Version::Http11,
        ..Request::default()
    };
    target_of(head, &request.method, rules)?.clone_into(&mut request.target);
    normalize_path(&mut request.target, rules.paths)?;
    host_of(head, rules)?.clone_into(&mut request.host);
    request.fields.reserve(head.headers.len(), size_of(&head.headers));
    let (mut has_length, mut has_cookies) = (false, false);
    for (name, value) in &head.headers {
        if is_padded(value.as_bytes()) {
            return Err(ParseError::Field);
        }
        match *name {
            header::HOST => continue,
            // Cookies may be split into several fields, unlike in HTTP/1.1 (RFC 9113, section 8.2.3).
            header::COOKIE => {
                has_cookies = true;
                continue;
            }
            header::CONTENT_LENGTH => has_length = true,
            _ => {}
        }
        match rules.underscores.judge(name.as_str().as_bytes()) {
            FieldVerdict::Keep => request.fields.push(name.as_str().as_bytes(), value.as_bytes()),
            FieldVerdict::Drop => request.dropped_fields += 1,
            FieldVerdict::Refuse => return Err(ParseError::Underscore),
        }
    }
    if has_cookies {
        let pieces: Vec<&[u8]> =
            head.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        request.fields.push(b"cookie", &pieces.join(&b"; "[..]));
    }
    let length = if has_length { content_length(&request.fields)? } else { None };
    let framing = match length {
        _ if !has_body => Framing::Empty,
        Some(length) if length > 0 => Framing::Length(length),
        Some(_) | None => Framing::Chunked,
    };
    if request.method == Method::Trace && framing != Framing::Empty {
        return Err(ParseError::TraceBody);
    }
    Ok((request, framing))
}

/// The request target: a path with its query, `*` for OPTIONS, or the authority for CONNECT.
fn target_of<'a>(
    head: &'a http::request::Parts,
    method: &Method,
    rules: RequestRules,
) -> Result<&'a str, ParseError> {
    if *method == Method::Connect {
        return head.uri.authority().map(http::uri::Authority::as_str).ok_or(ParseError::Target);
    }
    let scheme = if rules.is_tls { "https" } else { "http" };
    if head.uri.scheme_str().is_some_and(|said| said != scheme) {
        return Err(ParseError::Scheme);
    }
    // Without a path, as for a lone fragment, the library displays "/" but does not compare equal to it.
    let path = head.uri.path_and_query().ok_or(ParseError::Target)?;
    let target = path.as_str();
    if target == "/" && *path != PathAndQuery::from_static("/") {
        return Err(ParseError::Target);
    }
    let is_target = target.starts_with('/') || (target == "*" && *method == Method::Options);
    if is_target && valid_target(target) { Ok(target) } else { Err(ParseError::Target) }
}

/// The host of `:authority`, or else of `host` (RFC 9113, section 8.3.1).
fn host_of(head: &http::request::Parts, rules: RequestRules) -> Result<&str, ParseError> {
    let mut fields = head.headers.get_all(header::HOST).iter();
    let field = fields.next().map(HeaderValue::as_bytes);
    if fields.next().is_some() || field.is_some_and(|host| !is_host(host)) {
        return Err(ParseError::Host);
    }
    let field = field.map(std::str::from_utf8).transpose().map_err(|_| ParseError::Host)?;
    let Some(authority) = head.uri.authority() else { return field.ok_or(ParseError::Host) };
    let authority = authority.as_str();
    if !is_host(authority.as_bytes()) {
        return Err(ParseError::Host);
    }
    let port = if rules.is_tls { ":443" } else { ":80" };
    let plain = |host: &'_ str| host.strip_suffix(port).unwrap_or(host).len();
    if field.is_some_and(|field| !field[..plain(field)].eq_ignore_ascii_case(&authority[..plain(authority)]))
    {
        return Err(ParseError::HostsDiffer);
    }
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use tidegate_http1::{PathRules, Underscores};

    use super::*;

    const RULES: RequestRules = RequestRules {
        head_bytes: 65536,
        fields: 20,
        underscores: Underscores::Drop,
        paths: PathRules::DEFAULT,
        is_tls: false,
    };

    fn parse(uri: &str, method: &str, fields: &[(&str, &str)]) -> Result<(Request, Framing), ParseError> {
        parse_with(RULES, uri, method, fields)
    }

    fn parse_with(
        rules: RequestRules,
        uri: &str,
        method: &str,
        fields: &[(&str, &str)],
    ) -> Result<(Request, Framing), ParseError> {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request_of(&request.body(()).unwrap().into_parts().0, true, rules)
    }

    fn refusal(uri: &str, fields: &[(&str, &str)]) -> Option<ParseError> {
        parse(uri, "GET", fields).err()
    }

    #[test]
    fn a_host_is_valid_whichever_field_it_is_in() {
        for host in [
            "shop.test:abc",
            "[shop.test]evil",
            "shop.test:80:90",
            "x y.wild.test",
            "shop.test:80/x",
            "<script>.wild.test",
            "user@shop.test",
            "shop.test:65536",
            "shop.test:",
            "",
            "a,b",
        ] {
            assert_eq!(refusal("/", &[("host", host)]), Some(ParseError::Host), "{host}");
            // The library rejects what is invalid in a URI before.
            if let Ok(uri) = http::Uri::builder().scheme("http").authority(host).path_and_query("/").build() {
                assert_eq!(refusal(&uri.to_string(), &[]), Some(ParseError::Host), "{host}");
            }
        }
        assert_eq!(refusal("/", &[]), Some(ParseError::Host));
        assert_eq!(refusal("/", &[("host", "a.test"), ("host", "a.test")]), Some(ParseError::Host));
        let (request, _) = parse("/", "GET", &[("host", "a.test:8080")]).unwrap();
        assert_eq!(request.host, "a.test:8080");
    }

    #[test]
    fn authority_and_host_say_the_same() {
        let differ = |host| refusal("http://shop.test/", &[("host", host)]);
        assert_eq!(differ("shop.test"), None);
        assert_eq!(differ("SHOP.test:80"), None);
        assert_eq!(differ("shop.test:443"), Some(ParseError::HostsDiffer));
        assert_eq!(differ("other.test"), Some(ParseError::HostsDiffer));
    }

    #[test]
    fn the_scheme_is_the_listeners() {
        assert_eq!(refusal("https://shop.test/", &[]), Some(ParseError::Scheme));
        assert_eq!(refusal("ftp://shop.test/", &[]), Some(ParseError::Scheme));
        let tls = RequestRules { is_tls: true, ..RULES };
        assert!(parse_with(tls, "https://shop.test/", "GET", &[]).is_ok());
        assert_eq!(parse_with(tls, "http://shop.test/", "GET", &[]).unwrap_err(), ParseError::Scheme);
    }

    #[test]
    fn a_target_is_a_path_or_a_star_for_options() {
        let target = |path: &'static str, method: &str| {
            let mut parts = http::uri::Parts::default();
            parts.path_and_query = Some(PathAndQuery::try_from(path).unwrap());
            let uri = http::Uri::from_parts(parts).unwrap();
            let mut request =
                http::Request::builder().method(method).header("host", "a.test").body(()).unwrap();
            *request.uri_mut() = uri;
            request_of(&request.into_parts().0, false, RULES).map(|(request, _)| request.target)
        };
        assert_eq!(target("/a?b", "GET").as_deref(), Ok("/a?b"));
        assert_eq!(target("/", "GET").as_deref(), Ok("/"));
        assert_eq!(target("*", "OPTIONS").as_deref(), Ok("*"));
        for (path, method) in [("*", "GET"), ("?a", "GET"), ("#a", "GET"), ("?a", "OPTIONS")] {
            assert_eq!(target(path, method), Err(ParseError::Target), "{method} {path}");
        }
        let mut missing = http::Request::builder().header("host", "a.test").body(()).unwrap();
        *missing.uri_mut() = http::Uri::from_parts(http::uri::Parts::default()).unwrap();
        assert_eq!(request_of(&missing.into_parts().0, false, RULES).unwrap_err(), ParseError::Target);
    }

    #[test]
    fn padded_values_and_bad_lengths_are_refused() {
        for value in [" a", "a ", "\ta", "a\t", " "] {
            assert_eq!(refusal("http://a.test/", &[("x", value)]), Some(ParseError::Field), "{value:?}");
        }
        for (length, expected) in [
            ("9223372036854775808", ParseError::BadLength),
            ("+5", ParseError::BadLength),
            ("5,5", ParseError::BadLength),
        ] {
            assert_eq!(refusal("http://a.test/", &[("content-length", length)]), Some(expected), "{length}");
        }
        let twice = [("content-length", "5"), ("content-length", "5")];
        assert_eq!(refusal("http://a.test/", &twice), Some(ParseError::RepeatedLength));
        assert_eq!(parse("http://a.test/", "TRACE", &[]).unwrap_err(), ParseError::TraceBody);
    }

    #[test]
    fn a_name_with_an_underscore_is_dropped_refused_or_passed() {
        let with = |underscores| {
            let fields = [("x_real_ip", "1.2.3.4"), ("x-ok", "1")];
            parse_with(RequestRules { underscores, ..RULES }, "http://a.test/", "GET", &fields)
        };
        let (request, _) = with(Underscores::Drop).unwrap();
        assert_eq!((request.fields.len(), request.dropped_fields), (1, 1));
        assert_eq!(with(Underscores::Refuse).unwrap_err(), ParseError::Underscore);
        assert_eq!(with(Underscores::Pass).unwrap().0.fields.get(b"x_real_ip"), Some(&b"1.2.3.4"[..]));
    }
}
