//! Request durations by OpenTelemetry's semantic conventions (`http.server.request.duration`,
//! <https://opentelemetry.io/docs/specs/semconv/http/http-metrics/>): by method, scheme, status and error.

use std::{collections::BTreeMap, iter, sync::OnceLock};

use tidegate_http1::Method;

use super::{DurationSums, Durations, Timing};

/// The attributes by which requests are normalised. Their number is bounded: clients and endpoints cannot invent values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestKind {
    /// The status, as normalised by [`normalised`]; 0 if there was no response.
    status: u16,
    is_tls: bool,
    method: &'static str,
    broken: Option<&'static str>,
}

impl RequestKind {
    /// The kind of a request with this response `status`, `broken` off for a reason, if any.
    pub fn new(
        method: &Method,
        is_tls: bool,
        status: Option<u16>,
        broken: Option<&'static str>,
    ) -> RequestKind {
        RequestKind { status: status.map_or(0, normalised), is_tls, method: method_name(method), broken }
    }

    /// Calls `read` with the attributes.
    pub fn with_attributes<T>(&self, read: impl FnOnce(&[(&'static str, &str)]) -> T) -> T {
        let status = self.status.to_string();
        let mut attributes = vec![
            ("http.request.method", self.method),
            ("url.scheme", if self.is_tls { "https" } else { "http" }),
        ];
        if self.status > 0 {
            attributes.push(("http.response.status_code", &status));
        }
        // A 4xx response is not an error of the server.
        let by_status = (self.status >= 500).then_some(status.as_str());
        attributes.extend(self.broken.or(by_status).map(|error| ("error.type", error)));
        read(&attributes)
    }
}

/// Stands for every method that is not well-known.
pub const OTHER_METHOD: &str = "_OTHER";

/// The method's name, or [`OTHER_METHOD`]. QUERY (RFC 10008) is among those in the conventions.
pub fn method_name(method: &Method) -> &'static str {
    match method {
        Method::Other(token) if **token == *"QUERY" => "QUERY",
        method => method.name().unwrap_or(OTHER_METHOD),
    }
}

/// A registered status (<https://www.iana.org/assignments/http-status-codes>), or for others the first of the class, to
/// which they are equivalent (RFC 9110, section 15).
fn normalised(status: u16) -> u16 {
    match status {
        100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 => status,
        400..=417 | 421..=426 | 428 | 429 | 431 | 451 => status,
        500..=508 | 510 | 511 => status,
        100..600 => status / 100 * 100,
        _ => 500,
    }
}

/// Durations by kind: a linked list that one thread appends to when a kind first occurs, while others read. Frequent
/// kinds usually occur early, so they are found fast.
#[derive(Debug, Default)]
pub struct RequestDurations(OnceLock<Box<KindDurations>>);

#[derive(Debug)]
struct KindDurations {
    kind: RequestKind,
    durations: Durations,
    next: RequestDurations,
}

impl RequestDurations {
    /// Adds a duration. Only for its own worker, so it never waits.
    pub fn record(&self, kind: RequestKind, timing: Timing) {
        let mut list = self;
        loop {
            let known = list.0.get_or_init(|| {
                let next = RequestDurations::default();
                Box::new(KindDurations { kind, durations: Durations::default(), next })
            });
            if known.kind == kind {
                return known.durations.record(timing);
            }
            list = &known.next;
        }
    }

    /// Adds durations up by kind.
    pub fn sum<'a>(all: impl Iterator<Item = &'a RequestDurations>) -> BTreeMap<RequestKind, DurationSums> {
        let mut sums = BTreeMap::<RequestKind, DurationSums>::new();
        for list in all {
            for known in iter::successors(list.0.get(), |known| known.next.0.get()) {
                sums.entry(known.kind).or_default().add(&known.durations);
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn requests_are_counted_by_kind_over_all_workers() {
        let workers = [RequestDurations::default(), RequestDurations::default()];
        let get = |status| RequestKind::new(&Method::Get, true, Some(status), None);
        for (worker, status) in [(0, 200), (0, 404), (0, 200), (1, 404), (1, 200)] {
            workers[worker].record(get(status), Duration::from_millis(1).into());
        }
        let sums = RequestDurations::sum(workers.iter());
        let counts: Vec<(RequestKind, u64)> =
            sums.into_iter().map(|(kind, sums)| (kind, sums.counts.iter().sum())).collect();
        assert_eq!(counts, [(get(200), 3), (get(404), 2)]);
    }

    #[test]
    fn neither_clients_nor_endpoints_make_up_kinds() {
        let all = RequestDurations::default();
        for status in 0..=u16::MAX {
            let method = Method::from(format!("M{status}").as_str());
            all.record(RequestKind::new(&method, false, Some(status), None), Duration::ZERO.into());
        }
        let count = RequestDurations::sum(iter::once(&all)).len();
        assert!(count < 70, "{count}");
    }

    #[test]
    fn what_went_wrong_is_told_beside_the_status() {
        let error = |status, broken| {
            RequestKind::new(&Method::Get, false, status, broken).with_attributes(|attributes| {
                let said = attributes.iter().find(|(name, _)| *name == "error.type");
                said.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(error(Some(404), None), None);
        assert_eq!(error(Some(503), None).as_deref(), Some("503"));
        assert_eq!(error(Some(200), Some("broken_off")).as_deref(), Some("broken_off"));
        assert_eq!(error(None, Some("client_gone")).as_deref(), Some("client_gone"));
    }
}
