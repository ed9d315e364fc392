//! The spans of a request: one for the request, one per attempt. Names follow OpenTelemetry's semantic conventions for
//! HTTP (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>).

use std::time::SystemTime;

use rand::{Rng, RngExt as _};
use tidegate_http1::{Request, Version};
use tidegate_model::fleet::Address;
use tidegate_service::telemetry::{FinishedSpan, SpanKind, SpanSink, Value};
use tokio::time::Instant;

use super::{
    attempt_log::{Attempt, AttemptLog, AttemptOutcome, AttemptReason},
    finished::FinishedRequest,
    sampling::RequestTrace,
};
use crate::{
    clients::Client,
    metrics::{OTHER_METHOD, method_name},
};

/// The longest client-supplied text in a span, in bytes.
const LONGEST: usize = 256;

/// The error description where the status is sufficient.
const SEE_STATUS: String = String::new();

/// Sends the spans of a finished request.
pub fn send_spans(
    sink: &SpanSink,
    request: &FinishedRequest<'_>,
    trace: RequestTrace,
    random: &mut impl Rng,
) {
    let FinishedRequest { head, log, started, ended, .. } = *request;
    let clock = Clock { now: (ended, SystemTime::now()) };
    sink.send(FinishedSpan {
        trace_id: trace.trace_id,
        span_id: trace.span_id,
        parent: trace.parent,
        parent_is_remote: true,
        kind: SpanKind::Server,
        name: match request.route {
            Some(route) => format!("{} {route}", name_of(head)).into(),
            None => name_of(head).into(),
        },
        start: clock.at(started),
        end: clock.at(ended),
        attributes: server_attributes(request),
        error: error_of(log),
    });
    for (number, attempt) in log.attempts().enumerate() {
        let span_id = match attempt.span_id {
            0 => random.random::<u64>().max(1),
            id => id,
        };
        let end = match &attempt.outcome {
            // The relayed attempt ends with the request, later than the head of its response.
            _ if log.relayed == Some(number) => ended,
            AttemptOutcome::Pending => ended,
            AttemptOutcome::Response(at, _) | AttemptOutcome::Failed(at, _) => *at,
        };
        sink.send(FinishedSpan {
            trace_id: trace.trace_id,
            span_id,
            parent: Some(trace.span_id),
            parent_is_remote: false,
            kind: SpanKind::Client,
            name: name_of(head).into(),
            start: clock.at(attempt.began),
            end: clock.at(end),
            attributes: client_attributes(head, attempt, number),
            error: match &attempt.outcome {
                AttemptOutcome::Failed(_, failure) => Some(failure.to_string()),
                // By the conventions a client error (4xx) is an error of the outgoing call, too.
                AttemptOutcome::Response(_, status) if *status >= 400 => Some(SEE_STATUS),
                AttemptOutcome::Response(..) | AttemptOutcome::Pending => None,
            },
        });
    }
}

/// Converts instants to wall-clock time.
struct Clock {
    now: (Instant, SystemTime),
}

impl Clock {
    fn at(&self, instant: Instant) -> SystemTime {
        self.now.1 - self.now.0.saturating_duration_since(instant)
    }
}

fn error_of(log: &AttemptLog) -> Option<String> {
    match (log.interruption, log.status) {
        (Some(interruption), _) => Some(interruption.as_str().to_owned()),
        (None, Some(status)) if status >= 500 => Some(SEE_STATUS),
        (None, Some(_)) => None,
        (None, None) => Some("no response".to_owned()),
    }
}

fn server_attributes(request: &FinishedRequest<'_>) -> Vec<(&'static str, Value)> {
    let FinishedRequest { head, client, log, .. } = *request;
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (head.target.as_str(), None),
    };
    let (host, port) = host_and_port(&head.host, client.is_tls);
    let mut attributes: Vec<(&'static str, Value)> = vec![
        ("http.request.method", method_name(&head.method).into()),
        ("url.path", truncated(path).into()),
        ("url.scheme", scheme(client.is_tls).into()),
        ("server.address", truncated(host).into()),
        ("server.port", i64::from(port).into()),
        ("client.address", client.address.to_canonical().to_string().into()),
        ("network.protocol.name", "http".into()),
        ("network.protocol.version", version_text(client, head).into()),
        ("tidegate.edge", request.edge.name.to_string().into()),
        ("tidegate.region", request.edge.region.to_string().into()),
        ("tidegate.service", request.service.to_string().into()),
        ("tidegate.request_id", String::from_utf8_lossy(request.request_id).into_owned().into()),
        ("tidegate.attempts", (log.count() as i64).into()),
    ];
    attributes.extend(method_original(head));
    // A query may be secret: only its presence is reported.
    if query.is_some() {
        attributes.push(("tidegate.has_query", true.into()));
    }
    if let Some(route) = request.route {
        attributes.push(("http.route", route.to_owned().into()));
    }
    if let Some(agent) = head.fields.get(b"user-agent") {
        attributes.push(("user_agent.original", truncated(&String::from_utf8_lossy(agent)).into()));
    }
    if let Some(served) = log.served_by() {
        attributes.push(("tidegate.cluster", served.cluster.name.to_string().into()));
        attributes.push(("tidegate.tier", (served.tier as i64).into()));
    }
    if let Some(status) = log.status {
        attributes.push(("http.response.status_code", i64::from(status).into()));
    }
    match (log.interruption, log.status) {
        (Some(interruption), _) => attributes.push(("error.type", interruption.as_str().into())),
        (None, Some(status)) if status >= 500 => attributes.push(("error.type", status.to_string().into())),
        (None, _) => {}
    }
    attributes
}

fn client_attributes(request: &Request, attempt: &Attempt, number: usize) -> Vec<(&'static str, Value)> {
    let (host, port) = match &attempt.endpoint.address {
        Address::Ip(address) => (address.ip().to_string(), address.port()),
        Address::Name { host, port } => (host.clone(), *port),
    };
    let url = {
        let scheme = scheme(attempt.cluster.upstream.tls.is_some());
        let path = request.target.split('?').next().filter(|path| path.starts_with('/')).unwrap_or_default();
        format!("{scheme}://{}{}", attempt.endpoint.address, truncated(path))
    };
    let mut attributes: Vec<(&'static str, Value)> = vec![
        ("http.request.method", method_name(&request.method).into()),
        ("url.full", url.into()),
        ("server.address", host.clone().into()),
        ("server.port", i64::from(port).into()),
        ("tidegate.cluster", attempt.cluster.name.to_string().into()),
        ("tidegate.endpoint", attempt.endpoint.address.to_string().into()),
        ("tidegate.tier", (attempt.tier as i64).into()),
        ("tidegate.attempt", (number as i64 + 1).into()),
        (
            "tidegate.reason",
            match attempt.reason {
                AttemptReason::First => "first",
                AttemptReason::Retry => "retry",
                AttemptReason::Hedge => "hedge",
            }
            .into(),
        ),
    ];
    if matches!(attempt.endpoint.address, Address::Ip(_)) {
        attributes.push(("network.peer.address", host.into()));
        attributes.push(("network.peer.port", i64::from(port).into()));
    }
    attributes.extend(method_original(request));
    if number > 0 {
        attributes.push(("http.request.resend_count", (number as i64).into()));
    }
    match &attempt.outcome {
        AttemptOutcome::Response(_, status) => {
            attributes.push(("http.response.status_code", i64::from(*status).into()));
            if *status >= 400 {
                attributes.push(("error.type", status.to_string().into()));
            }
        }
        AttemptOutcome::Failed(_, failure) => attributes.push(("error.type", failure.to_string().into())),
        AttemptOutcome::Pending => attributes.push(("tidegate.abandoned", true.into())),
    }
    attributes
}

/// Client-supplied text, truncated.
fn truncated(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST.min(text.len()))].to_owned()
}

/// The protocol version as in the conventions.
pub fn version_text(client: Client, request: &Request) -> &'static str {
    match request.version {
        _ if client.is_http2 => "2",
        Version::Http10 => "1.0",
        Version::Http11 => "1.1",
    }
}

/// The method in a span's name.
fn name_of(request: &Request) -> &'static str {
    match method_name(&request.method) {
        OTHER_METHOD => "HTTP",
        known => known,
    }
}

/// The original method, if it is reported as [`OTHER_METHOD`].
fn method_original(request: &Request) -> Option<(&'static str, Value)> {
    let is_other = method_name(&request.method) == OTHER_METHOD;
    is_other.then(|| ("http.request.method_original", truncated(request.method.as_str()).into()))
}

fn scheme(is_tls: bool) -> &'static str {
    if is_tls { "https" } else { "http" }
}

/// The host without its port, and the port or the scheme's default.
fn host_and_port(host: &str, is_tls: bool) -> (&str, u16) {
    let usual = if is_tls { 443 } else { 80 };
    let (name, port) = match host.rsplit_once(':') {
        // A colon within brackets belongs to an IPv6 address.
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().unwrap_or(usual)),
        Some(_) | None => (host, usual),
    };
    (name.trim_start_matches('[').trim_end_matches(']'), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_apart_from_its_port() {
        for (host, expected) in [
            ("site.test", ("site.test", 443)),
            ("site.test:8443", ("site.test", 8443)),
            ("site.test:", ("site.test", 443)),
            ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
            ("[2001:db8::1]", ("2001:db8::1", 443)),
            ("", ("", 443)),
        ] {
            assert_eq!(host_and_port(host, true), expected, "{host}");
        }
        assert_eq!(host_and_port("site.test", false).1, 80);
    }
}
