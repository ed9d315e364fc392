//! One line of the access log.

use std::{io::Write as _, net::IpAddr, time::Duration};

use serde::Serialize;
use tidegate_http1::Request;

use super::{
    attempt_log::{AttemptReason, Interruption},
    finished::FinishedRequest,
    malformed::{MalformedRequest, UNKNOWN},
    sampling::RequestTrace,
    spans::version_text,
    text::{OneLine, Text, escaped},
};
use crate::{clients::Client, edge_identity::EdgeIdentity, settings::AccessFormat, wire::http_date};

/// The fields of a line. Never a query, a cookie or a credential; client-supplied text is bounded.
#[derive(Serialize)]
pub struct AccessLogLine<'a> {
    /// Milliseconds since 1970.
    time_ms: u64,
    edge: &'a str,
    client: IpAddr,
    method: Text<'a>,
    scheme: &'static str,
    host: Text<'a>,
    path: Text<'a>,
    protocol: &'static str,
    status: u16,
    /// From the request's head to the end of its response.
    duration_ms: f64,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<usize>,
    attempts: usize,
    hedged: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Text<'a>>,
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<Text<'a>>,
    #[serde(skip)]
    referer: Option<Text<'a>>,
}

impl<'a> AccessLogLine<'a> {
    /// The line of a request that belongs to a service.
    pub fn of_finished(
        request: &FinishedRequest<'a>,
        trace: Option<RequestTrace>,
        duration: Duration,
    ) -> AccessLogLine<'a> {
        let log = request.log;
        let status = log.status.unwrap_or(0);
        let served = log.served_by();
        AccessLogLine {
            bytes_in: log.received,
            bytes_out: log.sent,
            service: Some(request.service.as_str()),
            cluster: served.map(|attempt| attempt.cluster.name.to_string()),
            endpoint: served.map(|attempt| attempt.endpoint.address.to_string()),
            tier: served.map(|attempt| attempt.tier),
            attempts: log.count(),
            hedged: log.attempts().any(|attempt| attempt.reason == AttemptReason::Hedge),
            error: log.interruption.map(Interruption::as_str).map(Text::from),
            trace_id: trace.map(|trace| format!("{:032x}", trace.trace_id)),
            ..AccessLogLine::of_request(
                request.edge,
                request.head,
                request.client,
                request.request_id,
                status,
                duration,
            )
        }
    }

    /// The line of a request that belongs to no service.
    pub fn of_request(
        edge: &'a EdgeIdentity,
        request: &'a Request,
        client: Client,
        request_id: &[u8],
        status: u16,
        duration: Duration,
    ) -> AccessLogLine<'a> {
        AccessLogLine {
            method: request.method.as_str().into(),
            host: request.host.as_str().into(),
            path: Text(without_query(request.target.as_bytes())),
            protocol: version_text(client, request),
            request_id: String::from_utf8_lossy(request_id).into_owned(),
            user_agent: request.fields.get(b"user-agent").map(Text),
            referer: request.fields.get(b"referer").map(|url| Text(without_query(url))),
            ..AccessLogLine::new(edge, client, status, duration)
        }
    }

    /// The line of a request that was refused because of `why`.
    pub fn of_refusal(
        edge: &'a EdgeIdentity,
        malformed: &'a MalformedRequest,
        why: &'a str,
        client: Client,
        status: u16,
        duration: Duration,
    ) -> AccessLogLine<'a> {
        AccessLogLine {
            method: malformed.method.as_str().into(),
            path: malformed.path.as_str().into(),
            protocol: malformed.protocol,
            error: Some(why.into()),
            ..AccessLogLine::new(edge, client, status, duration)
        }
    }

    /// A line with only the edge, client, status and duration.
    fn new(edge: &'a EdgeIdentity, client: Client, status: u16, duration: Duration) -> AccessLogLine<'a> {
        AccessLogLine {
            edge: edge.name.as_str(),
            time_ms: tidegate_bus::clock::now().0 / 1000,
            client: client.address.to_canonical(),
            method: UNKNOWN.into(),
            scheme: if client.is_tls { "https" } else { "http" },
            host: UNKNOWN.into(),
            path: UNKNOWN.into(),
            protocol: UNKNOWN,
            status,
            duration_ms: duration.as_micros() as f64 / 1000.0,
            bytes_in: 0,
            bytes_out: 0,
            service: None,
            cluster: None,
            endpoint: None,
            tier: None,
            attempts: 0,
            hedged: false,
            error: None,
            request_id: UNKNOWN.to_owned(),
            trace_id: None,
            user_agent: None,
            referer: None,
        }
    }

    /// Adds the line to `out`.
    pub fn write(&self, format: AccessFormat, out: &mut Vec<u8>) {
        // Writing to memory cannot fail, and every field can be represented in JSON.
        let written = match format {
            AccessFormat::Json => {
                let mut json = serde_json::Serializer::with_formatter(&mut *out, OneLine);
                self.serialize(&mut json).map_err(std::io::Error::from)
            }
            AccessFormat::Common => self.write_common(out),
        };
        debug_assert!(written.is_ok(), "{written:?}");
        out.push(b'\n');
    }

    /// The combined format of Apache's httpd, and behind it the edge: what reads the format ignores further fields.
    fn write_common(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        let quoted = |text: Option<Text<'_>>| text.map_or_else(|| "-".to_owned(), escaped);
        write!(
            out,
            "{} - - [{}] \"{} {} HTTP/{}\" {} {} \"{}\" \"{}\" \"{}\"",
            self.client,
            common_date(http_date().as_bytes()),
            escaped(self.method),
            escaped(self.path),
            self.protocol,
            self.status,
            self.bytes_out,
            quoted(self.referer),
            quoted(self.user_agent),
            self.edge,
        )
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as `06/Nov/1994:08:49:37 +0000`.
fn common_date(http: &[u8]) -> String {
    let part = |range| String::from_utf8_lossy(http.get(range).unwrap_or_default());
    format!("{}/{}/{}:{} +0000", part(5..7), part(8..11), part(12..16), part(17..25))
}

/// A path or address without its query.
fn without_query(target: &[u8]) -> &[u8] {
    target.split(|byte| *byte == b'?').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_has_the_form_of_the_common_log() {
        assert_eq!(common_date(b"Sun, 06 Nov 1994 08:49:37 GMT"), "06/Nov/1994:08:49:37 +0000");
    }
}
