//! What is said to endpoints and clients: every head is written anew.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version as HttpVersion, header, uri::PathAndQuery,
};
use tidegate_http1::{
    FieldVerdict, Fields, Framing, Method, Request, Response, TrailerPolicy, Underscores, list_contains,
    write_decimal, write_field, write_request_line, write_status_line,
};

use super::max_forwards;
use crate::{
    observe::TraceParentText,
    wire::{BodyError, BodyWriter, append, http_date},
};

/// How we call ourselves in `via`.
const VIA: &str = "1.1 tidegate";
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Fields that a response has of us at most.
const OWN_FIELDS: usize = 3;

/// What a client's connection says beside its request.
#[derive(Clone, Copy)]
pub struct ClientInfo<'a> {
    /// The client's address.
    pub address: IpAddr,
    /// Whether it came over TLS.
    pub is_tls: bool,
    /// The request's id.
    pub request_id: &'a [u8],
    /// What the request wants to upgrade to.
    pub upgrade: Option<&'a [u8]>,
    /// The trace that the endpoint is told instead of the client's word.
    pub traceparent: Option<TraceParentText>,
    /// Whether that trace began here: the state that the client told is then of another one.
    pub begins_trace: bool,
}

/// How the response's connection goes on.
#[derive(Clone, Copy)]
pub struct ResponseContext<'a> {
    /// Whether the client speaks HTTP/1.0.
    pub is_http10: bool,
    /// Whether the request was a HEAD.
    pub is_head: bool,
    /// Whether another request may follow.
    pub keep_alive: bool,
    /// The request's id.
    pub request_id: &'a [u8],
}

/// How a response's body is written.
pub struct Told {
    /// Its framing.
    pub writer: BodyWriter,
    /// Whether another request may follow.
    pub keep_alive: bool,
}

/// Whether a field is for the final recipient and not for this connection (RFC 9110, section 7.6.1), and is not one
/// that is written anew.
pub fn is_end_to_end(name: &[u8]) -> bool {
    !matches!(
        name,
        b"connection"
            | b"keep-alive"
            | b"proxy-connection"
            | b"transfer-encoding"
            | b"content-length"
            | b"te"
            | b"upgrade"
            | b"http2-settings"
    )
}

/// Fields that `connection` names: they are for this connection only.
struct Nominated<'a>(Option<&'a Fields>);

impl<'a> Nominated<'a> {
    fn of(fields: &'a Fields) -> Nominated<'a> {
        let names_more = fields.get_all(b"connection").any(|value| {
            value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|token| {
                !(token.eq_ignore_ascii_case(b"close")
                    || token.eq_ignore_ascii_case(b"keep-alive")
                    || token.eq_ignore_ascii_case(b"upgrade")
                    || token.eq_ignore_ascii_case(b"te"))
            })
        });
        Nominated(names_more.then_some(fields))
    }

    fn holds(&self, name: &[u8]) -> bool {
        self.0.is_some_and(|fields| fields.get_all(b"connection").any(|value| list_contains(value, name)))
    }
}

/// Calls `write` with each field of the request that goes to the endpoint, and those that we add.
fn request_fields(request: &Request, info: ClientInfo<'_>, mut write: impl FnMut(&[u8], &[u8])) {
    let nominated = Nominated::of(&request.fields);
    let mut spoken_for = Vec::new();
    for (name, value) in request.fields.iter() {
        match name {
            b"x-forwarded-for" if value.is_empty() => {}
            b"x-forwarded-for" => {
                spoken_for.extend_from_slice(value);
                spoken_for.extend_from_slice(b", ");
            }
            // The edge is where the outside begins: a client's own word for these is not passed on. What it says of whom
            // it speaks for (x-forwarded-for) is: the edge's word is the last of the list.
            b"forwarded" | b"x-forwarded" | b"x-real-ip" => {}
            _ if name.starts_with(b"x-forwarded-") => {}
            // CGI turns it into HTTP_PROXY, by which programs find the proxy that they send through (CVE-2016-5385).
            b"proxy" => {}
            // Written below, if it is a usable one.
            b"x-request-id" => {}
            b"max-forwards" if max_forwards::applies_to(&request.method) => {
                // Zero and what is no number were answered before.
                if let Some(left) = max_forwards::parse_value(value) {
                    let mut text = Vec::new();
                    write_decimal(&mut text, left.saturating_sub(1));
                    write(name, &text);
                }
            }
            b"trailer" => {
                let policy = TrailerPolicy::Request(Underscores::Drop);
                write_announced_trailers(value, policy, |value| write(name, value));
            }
            b"traceparent" if info.traceparent.is_some() => {}
            b"tracestate" if info.begins_trace => {}
            _ if !is_end_to_end(name) || nominated.holds(name) => {}
            _ => write(name, value),
        }
    }
    let mut text = [0_u8; 48];
    let address = ip_text(info.address, &mut text);
    if spoken_for.is_empty() {
        write(b"x-forwarded-for", address);
    } else {
        spoken_for.extend_from_slice(address);
        write(b"x-forwarded-for", &spoken_for);
    }
    write(b"x-forwarded-proto", if info.is_tls { b"https" } else { b"http" });
    write(b"x-forwarded-host", request.host.as_bytes());
    write(b"x-request-id", info.request_id);
    write(b"via", VIA.as_bytes());
    if let Some(traceparent) = &info.traceparent {
        write(b"traceparent", traceparent.as_bytes());
    }
}

/// Calls `write` with those names in the value of a `trailer` field that the policy lets pass, where there are any.
fn write_announced_trailers(value: &[u8], policy: TrailerPolicy, write: impl FnOnce(&[u8])) {
    let is_passed =
        |name: &&[u8]| !name.is_empty() && policy.judge(&name.to_ascii_lowercase()) == FieldVerdict::Keep;
    let passed: Vec<_> =
        value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(is_passed).collect();
    if !passed.is_empty() {
        write(&passed.join(&b", "[..]));
    }
}

/// Writes an address without allocating.
fn ip_text(address: IpAddr, text: &mut [u8; 48]) -> &[u8] {
    use std::io::Write as _;
    // Written for every request, for which the formatting of the standard library is slow.
    if let IpAddr::V4(address) = address.to_canonical() {
        let mut length = 0;
        for octet in address.octets() {
            if length > 0 {
                text[length] = b'.';
                length += 1;
            }
            for unit in [100, 10, 1] {
                if octet >= unit || unit == 1 {
                    text[length] = b'0' + octet / unit % 10;
                    length += 1;
                }
            }
        }
        return &text[..length];
    }
    let mut rest = &mut text[..];
    // 48 bytes hold any address, so this cannot fail; if it did, the field would be shorter.
    let _fits = write!(rest, "{}", address.to_canonical());
    let left = rest.len();
    &text[..48 - left]
}

/// Writes a request's head for HTTP/1.1. `framing` is the body's.
pub fn write_http1_request(
    out: &mut Vec<u8>,
    request: &Request,
    info: ClientInfo<'_>,
    framing: Framing,
    expects_continue: bool,
) -> BodyWriter {
    write_request_line(out, request.method.as_str(), &request.target);
    write_field(out, b"host", request.host.as_bytes());
    request_fields(request, info, |name, value| {
        if name != b"expect" {
            write_field(out, name, value);
        }
    });
    if expects_continue {
        write_field(out, b"expect", b"100-continue");
    }
    if let Some(protocol) = info.upgrade {
        write_field(out, b"connection", b"upgrade");
        write_field(out, b"upgrade", protocol);
    }
    let writer = match framing {
        // Some origins want to be told of an empty body (RFC 9110, section 8.6).
        Framing::Empty => {
            if matches!(request.method, Method::Post | Method::Put | Method::Patch) {
                write_field(out, b"content-length", b"0");
            }
            BodyWriter::Plain
        }
        Framing::Length(length) => {
            write_length(out, length);
            BodyWriter::Plain
        }
        Framing::Chunked | Framing::UntilClose => {
            write_field(out, b"transfer-encoding", b"chunked");
            BodyWriter::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    writer
}

/// The `content-length` of a response, where it is one: said on for a HEAD or 304, not made up.
fn told_length(fields: &Fields) -> Option<&[u8]> {
    fields.get(b"content-length").filter(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit))
}

fn write_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    write_decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

/// A request's head for HTTP/2; nothing when its target or host cannot be one.
pub fn http2_request(
    request: &Request,
    info: ClientInfo<'_>,
    framing: Framing,
    upstream_is_tls: bool,
    expects_continue: bool,
) -> Option<http::Request<()>> {
    let uri = Uri::builder()
        .scheme(if upstream_is_tls { "https" } else { "http" })
        .authority(request.host.as_str())
        .path_and_query(path_and_query(&request.target)?)
        .build()
        .ok()?;
    let mut head = http::Request::new(());
    *head.method_mut() = http::Method::from_bytes(request.method.as_str().as_bytes()).ok()?;
    *head.uri_mut() = uri;
    *head.version_mut() = HttpVersion::HTTP_2;
    let map = head.headers_mut();
    request_fields(request, info, |name, value| {
        if name != b"expect" {
            append(map, name, value);
        }
    });
    if expects_continue {
        map.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }
    if request.fields.get_all(b"te").any(|value| list_contains(value, b"trailers")) {
        map.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Framing::Length(length) = framing {
        map.insert(header::CONTENT_LENGTH, length.into());
    }
    Some(head)
}

/// The target as HTTP/2 can say it. Characters that no URI holds (RFC 3986, section 2) but many a client sends are
/// percent-encoded, which means the same.
fn path_and_query(target: &str) -> Option<PathAndQuery> {
    PathAndQuery::try_from(target).or_else(|_| PathAndQuery::try_from(percent_encoded(target))).ok()
}

fn percent_encoded(target: &str) -> String {
    let mut encoded = String::with_capacity(target.len() + 16);
    for byte in target.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80.. => {
                encoded.push('%');
                let digit = |value: u8| char::from(b"0123456789ABCDEF"[usize::from(value)]);
                encoded.extend([digit(byte >> 4), digit(byte & 15)]);
            }
            plain => encoded.push(char::from(plain)),
        }
    }
    encoded
}

/// Writes the head of a response for HTTP/1.x.
pub fn write_http1_response(
    out: &mut Vec<u8>,
    answer: &Response,
    framing: Framing,
    told: ResponseContext<'_>,
) -> Told {
    write_status_line(out, answer.status);
    let nominated = Nominated::of(&answer.fields);
    let (mut has_date, mut has_id) = (false, false);
    for (name, value) in answer.fields.iter() {
        if is_end_to_end(name) && !nominated.holds(name) {
            has_date |= name == b"date";
            has_id |= name == b"x-request-id";
            write_response_field(name, value, |value| write_field(out, name, value));
        }
    }
    if !has_id {
        write_field(out, b"x-request-id", told.request_id);
    }
    if !has_date {
        write_field(out, b"date", http_date().as_bytes());
    }
    write_field(out, b"via", VIA.as_bytes());
    let mut keep_alive = told.keep_alive;
    let bodiless = answer.status == 204 || answer.status == 304;
    let writer = match framing {
        _ if told.is_head || bodiless => {
            if let Some(length) = told_length(&answer.fields).filter(|_| answer.status != 204) {
                write_field(out, b"content-length", length);
            }
            BodyWriter::Nothing
        }
        Framing::Empty => {
            write_length(out, 0);
            BodyWriter::Nothing
        }
        Framing::Length(length) => {
            write_length(out, length);
            BodyWriter::Plain
        }
        Framing::Chunked | Framing::UntilClose if told.is_http10 => {
            keep_alive = false;
            BodyWriter::UntilClose
        }
        Framing::Chunked | Framing::UntilClose => {
            write_field(out, b"transfer-encoding", b"chunked");
            BodyWriter::Chunked
        }
    };
    if !keep_alive {
        write_field(out, b"connection", b"close");
    } else if told.is_http10 {
        write_field(out, b"connection", b"keep-alive");
    }
    out.extend_from_slice(b"\r\n");
    Told { writer, keep_alive }
}

/// Calls `write` with what is passed on of a field of a response.
fn write_response_field(name: &[u8], value: &[u8], write: impl FnOnce(&[u8])) {
    if name == b"trailer" {
        write_announced_trailers(value, TrailerPolicy::Response, write);
    } else {
        write(value);
    }
}

/// The head of a response for HTTP/2.
pub fn http2_response(status: u16, fields: &Fields) -> Result<http::Response<()>, BodyError> {
    let mut head = http::Response::new(());
    *head.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    *head.version_mut() = HttpVersion::HTTP_2;
    let nominated = Nominated::of(fields);
    let map = head.headers_mut();
    map.reserve(fields.len() + OWN_FIELDS);
    for (name, value) in fields.iter() {
        if is_end_to_end(name) && !nominated.holds(name) {
            write_response_field(name, value, |value| append(map, name, value));
        }
    }
    // One that was checked as framing, or the length that a GET would have: said on, not made up.
    if let Some(length) = told_length(fields).filter(|_| status >= 200 && status != 204) {
        append(map, b"content-length", length);
    }
    Ok(head)
}

/// Adds what we say in every final answer over HTTP/2.
pub fn add_response_fields(map: &mut HeaderMap, request_id: &[u8]) {
    if !map.contains_key(&REQUEST_ID)
        && let Ok(mut request_id) = HeaderValue::from_bytes(request_id)
    {
        // No other has it: it would only push others out of the table by which HTTP/2 shortens fields.
        request_id.set_sensitive(true);
        map.append(&REQUEST_ID, request_id);
    }
    if !map.contains_key(header::DATE) {
        append(map, b"date", http_date().as_bytes());
    }
    map.append(header::VIA, HeaderValue::from_static(VIA));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info<'a>() -> ClientInfo<'a> {
        ClientInfo {
            address: [192, 0, 2, 1].into(),
            is_tls: false,
            request_id: b"id",
            upgrade: None,
            traceparent: None,
            begins_trace: false,
        }
    }

    fn written(fields: &[(&str, &str)]) -> String {
        let mut request = Request { target: "/".into(), host: "a.example".into(), ..Request::default() };
        for (name, value) in fields {
            request.fields.push(name.as_bytes(), value.as_bytes());
        }
        let mut out = Vec::new();
        write_http1_request(&mut out, &request, info(), Framing::Empty, false);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fields_of_one_connection_are_not_forwarded() {
        let text = written(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("proxy-connection", "keep-alive"),
            ("accept", "*/*"),
        ]);
        assert!(text.contains("accept: */*\r\n"), "{text}");
        for gone in ["x-secret", "connection", "keep-alive", "te:"] {
            assert!(!text.contains(gone), "{gone} in {text}");
        }
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_does() {
        let octets = [0, 1, 9, 10, 11, 99, 100, 101, 109, 110, 199, 200, 249, 255];
        for (place, octet) in octets.into_iter().enumerate() {
            let address = IpAddr::from([octet, octets[(place + 5) % octets.len()], 0, octet]);
            assert_eq!(ip_text(address, &mut [0; 48]), address.to_string().as_bytes());
        }
        for text in ["2001:db8::1", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert_eq!(ip_text(text.parse().unwrap(), &mut [0; 48]), text.as_bytes());
        }
        assert_eq!(ip_text("::ffff:192.0.2.1".parse().unwrap(), &mut [0; 48]), b"192.0.2.1");
    }

    #[test]
    fn the_client_is_added_to_who_it_says_to_speak_for() {
        let text = written(&[("x-forwarded-for", "198.51.100.7"), ("x-forwarded-proto", "https")]);
        assert!(text.contains("x-forwarded-for: 198.51.100.7, 192.0.2.1\r\n"), "{text}");
        assert!(text.contains("x-forwarded-proto: http\r\n"), "{text}");
        assert!(!text.contains("https"), "{text}");
    }
}
