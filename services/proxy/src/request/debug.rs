//! Answers clients in trusted networks that ask how a request was served.
//!
//! Nothing here is called for other requests: they cost the check of one flag of their connection.

use std::{fmt::Write as _, time::Duration};

use tidegate_http1::{Fields, Request};
use tidegate_model::ServiceName;
use tokio::time::Instant;

use crate::{
    clients::Client,
    edge_identity::EdgeIdentity,
    observe::{Attempt, AttemptLog, AttemptOutcome},
};

/// The field by which a client asks, and in which the edge answers. It is never forwarded.
pub const FIELD: &[u8] = b"x-tidegate-debug";

/// Whether a request asks how it was served, and its client may know.
pub fn is_asked(client: Client, request: &Request) -> bool {
    client.may_debug && request.fields.get(FIELD) == Some(b"1")
}

/// How a request of a service was served.
pub struct Serving<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// Its attempts so far.
    pub log: &'a AttemptLog,
}

/// Adds the edge's answer to a response: [`FIELD`], as a dictionary of structured fields (RFC 9651), and `server-timing`
/// (<https://www.w3.org/TR/server-timing/>). An endpoint's field of the first name is removed, since it would look like the
/// edge's; its `server-timing` stays beside the edge's.
pub fn add_fields(fields: &mut Fields, edge: &EdgeIdentity, serving: Option<&Serving<'_>>, started: Instant) {
    let now = Instant::now();
    if fields.get(FIELD).is_some() {
        let mut kept = Fields::new();
        fields.iter().filter(|(name, _)| *name != FIELD).for_each(|(name, value)| kept.push(name, value));
        *fields = kept;
    }
    fields.push(FIELD, dictionary(edge, serving).as_bytes());
    let origin = serving.map(|serving| time_at_endpoints(serving.log, now));
    fields.push(b"server-timing", server_timing(now - started, origin).as_bytes());
}

/// What served a request. Names and addresses need no escapes in strings of structured fields.
fn dictionary(edge: &EdgeIdentity, serving: Option<&Serving<'_>>) -> String {
    let mut text = format!("edge=\"{}\", region=\"{}\"", edge.name, edge.region);
    let log = serving.map(|serving| serving.log);
    // Writing to a string cannot fail.
    if let Some(serving) = serving {
        _ = write!(text, ", service=\"{}\"", serving.service);
    }
    // Of a local reply the endpoint that was tried last.
    if let Some(attempt) = log.and_then(|log| log.served_by().or_else(|| log.attempts().last())) {
        let Attempt { cluster, endpoint, .. } = attempt;
        _ = write!(text, ", cluster=\"{}\", endpoint=\"{}\"", cluster.name, endpoint.address);
    }
    _ = write!(text, ", attempts={}", log.map_or(0, AttemptLog::count));
    if log.is_none_or(|log| log.relayed.is_none()) {
        text.push_str(", local");
    }
    text
}

/// The value of `server-timing`, in milliseconds: the edge's share, and the endpoints' if there were attempts.
fn server_timing(whole: Duration, origin: Option<Duration>) -> String {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    match origin {
        None => format!("edge;dur={:.3}", millis(whole)),
        Some(origin) => {
            format!("edge;dur={:.3}, origin;dur={:.3}", millis(whole.saturating_sub(origin)), millis(origin))
        }
    }
}

/// How long at least one attempt was under way: from its beginning to the head of its response, its failure, or `now`.
fn time_at_endpoints(log: &AttemptLog, now: Instant) -> Duration {
    let span = |attempt: &Attempt| match attempt.outcome {
        AttemptOutcome::Pending => (attempt.began, now),
        AttemptOutcome::Response(at, _) | AttemptOutcome::Failed(at, _) => (attempt.began, at),
    };
    covered(log.attempts().map(span))
}

/// The length of the union of spans, which are in the order of their beginnings.
fn covered(spans: impl Iterator<Item = (Instant, Instant)>) -> Duration {
    let mut until: Option<Instant> = None;
    let mut whole = Duration::ZERO;
    for (from, to) in spans {
        let from = until.map_or(from, |until| from.max(until));
        whole += to.saturating_duration_since(from);
        until = Some(until.map_or(to, |until| until.max(to)));
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge() -> EdgeIdentity {
        EdgeIdentity { name: "edge-1".parse().unwrap(), region: "here".parse().unwrap() }
    }

    #[test]
    fn a_response_without_a_service_names_the_edge_and_replaces_a_forged_field() {
        let mut fields = Fields::new();
        fields.push(FIELD, b"edge=\"forged\"");
        fields.push(b"server-timing", b"db;dur=1");
        add_fields(&mut fields, &edge(), None, Instant::now());
        let answers: Vec<_> = fields.get_all(FIELD).collect();
        assert_eq!(answers, [b"edge=\"edge-1\", region=\"here\", attempts=0, local"]);
        let timings: Vec<_> = fields.get_all(b"server-timing").collect();
        assert_eq!((timings.len(), timings[0]), (2, &b"db;dur=1"[..]));
        assert!(timings[1].starts_with(b"edge;dur="));
    }

    #[test]
    fn the_shares_add_up_to_the_whole() {
        let millis = Duration::from_millis;
        assert_eq!(server_timing(millis(12), None), "edge;dur=12.000");
        assert_eq!(server_timing(millis(12), Some(millis(10))), "edge;dur=2.000, origin;dur=10.000");
        assert_eq!(
            server_timing(Duration::from_micros(1500), Some(Duration::ZERO)),
            "edge;dur=1.500, origin;dur=0.000"
        );
    }

    #[test]
    fn parallel_attempts_count_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let covered =
            |spans: &[(u64, u64)]| covered(spans.iter().map(|(from, to)| (at(*from), at(*to)))).as_millis();
        assert_eq!(covered(&[]), 0);
        assert_eq!(covered(&[(0, 10)]), 10);
        assert_eq!(covered(&[(0, 10), (15, 20)]), 15, "a pause between them is the edge's");
        assert_eq!(covered(&[(0, 10), (5, 20)]), 20);
        assert_eq!(covered(&[(0, 30), (5, 20), (40, 50)]), 40);
    }
}
