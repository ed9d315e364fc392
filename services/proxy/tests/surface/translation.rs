//! What came over HTTP/2 and is forwarded is one request, and the same one, to whoever reads it.
//!
//! The fuzz target `http2_request` in `fuzz/` runs the same check on inputs of its own.

use http::{HeaderName, HeaderValue, Method, Uri, uri::PathAndQuery};
use tidegate_http1::{Framing, PathRules, Request, RequestRules, Underscores, parse_request};
use tidegate_proxy::fuzzing::translate;

const RULES: RequestRules = RequestRules {
    head_bytes: 65536,
    fields: 100,
    underscores: Underscores::Drop,
    paths: PathRules::DEFAULT,
    is_tls: false,
};

/// Checks the request that `input` describes: a byte (whether a body follows), then lines: method, authority, path, and
/// fields as `name:value`.
///
/// # Panics
/// When what is forwarded is read as something else.
pub fn check(input: &[u8]) {
    let Some((flags, text)) = input.split_first() else { return };
    let Some(head) = head_of(text) else { return };
    let has_body = flags & 1 == 1;
    let Ok(translated) = translate(&head, has_body, RULES) else { return };
    let (request, framing) = (&translated.request, translated.framing);
    let mut read = Request::default();
    let generous = RequestRules {
        head_bytes: 1 << 20,
        fields: 256,
        underscores: Underscores::Pass,
        paths: PathRules::DEFAULT,
        is_tls: false,
    };
    let parsed = parse_request(&translated.http1, generous, &mut read);
    assert_eq!(parsed, Ok(Some((translated.http1.len(), framing))), "{}", translated.http1.escape_ascii());
    assert_eq!((&read.method, &read.target, &read.host), (&request.method, &request.target, &request.host));
    let is_plain = |name: &[u8]| name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    assert!(read.fields.iter().all(|(name, _)| is_plain(name)));
    for (name, count) in
        [("x-forwarded-host", 1), ("x-forwarded-for", 1), ("via", 1), ("x-real-ip", 0), ("te", 0)]
    {
        let own = if name == "via" { request.fields.get_all(b"via").count() } else { 0 };
        assert_eq!(read.fields.get_all(name.as_bytes()).count(), count + own, "{name}");
    }
    assert_eq!(read.fields.get(b"x-forwarded-host"), Some(request.host.as_bytes()));
    let lengths = read.fields.get_all(b"content-length").count();
    let codings = read.fields.get_all(b"transfer-encoding").count();
    assert!(lengths + codings <= 1);
    assert_eq!(codings == 1, framing == Framing::Chunked);
    if let Some(again) = translated.http2 {
        assert_eq!(again.uri().authority().map(http::uri::Authority::as_str), Some(request.host.as_str()));
        assert!(again.headers().get("host").is_none() && again.headers().get("transfer-encoding").is_none());
        assert_eq!(again.method().as_str(), request.method.as_str());
    }
}

/// The head that the library would give for these lines; nothing when it gives none.
pub fn head_of(text: &[u8]) -> Option<http::request::Parts> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let method = Method::from_bytes(lines.next()?).ok()?;
    let authority = std::str::from_utf8(lines.next()?).ok()?;
    let path = PathAndQuery::try_from(lines.next()?).ok()?;
    let mut parts = http::uri::Parts::default();
    if !authority.is_empty() {
        parts.authority = Some(authority.parse().ok()?);
        parts.scheme = Some(http::uri::Scheme::HTTP);
    }
    parts.path_and_query = Some(path);
    let mut head = http::Request::new(()).into_parts().0;
    (head.method, head.uri) = (method, Uri::from_parts(parts).ok()?);
    for line in lines.take(50) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        // What the library refuses never comes here.
        if ["connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection"]
            .contains(&name.as_str())
            || (name == "te" && &line[colon + 1..] != b"trailers")
        {
            return None;
        }
        head.headers.append(name, HeaderValue::from_bytes(&line[colon + 1..]).ok()?);
    }
    Some(head)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    const LINES: [&str; 24] = [
        "host:a.test",
        "host:b.test:80",
        "host:x y",
        "content-length:5",
        "content-length:0",
        "content-length:+5",
        "content-length:9223372036854775808",
        "cookie:a=1",
        "cookie:b=2",
        "x_real_ip:1",
        "x-real-ip:1",
        "x-forwarded-host:evil",
        "x-forwarded-for:1.2.3.4",
        "forwarded:for=1",
        "via:1.0 x",
        "te:trailers",
        "expect:100-continue",
        "max-forwards:5",
        "max-forwards:x",
        "x-request-id:y",
        "traceparent:00",
        "a: padded",
        "trailer:x",
        "x:\u{e9}",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8192))]
        #[test]
        fn a_request_over_http2_is_forwarded_as_the_same_single_request(
            has_body in any::<bool>(),
            method in select(&["GET", "POST", "OPTIONS", "TRACE", "CONNECT", "M-X"][..]),
            authority in select(&["a.test", "", "a.test:80", "[::1]:8080", "a.test:80:90", "u@a.test", "a,b"][..]),
            path in select(&["/", "/a?b", "*", "?x", "/a#b", "/\u{e9}<>", "#"][..]),
            fields in vec(select(&LINES[..]), 0..6),
        ) {
            let lines = [&[method, authority, path], &fields[..]].concat().join("\n");
            super::check(&[&[u8::from(has_body)], lines.as_bytes()].concat());
        }
    }
}
