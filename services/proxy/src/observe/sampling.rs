//! Trace sampling.

use rand::{Rng, RngExt as _};
use tidegate_http1::Request;

use super::traceparent::TraceParent;
use crate::settings::ProxySection;

/// Head sampling: which requests are traced from the start. Errors, retries and hedges are always traced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The share of requests without a usable `traceparent` that are traced, 0 to 1.
    pub ratio: f64,
    /// Whether the sampled flag of a client's `traceparent` decides for its requests.
    pub follows_clients: bool,
}

/// The trace that a request is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTrace {
    /// The trace.
    pub trace_id: u128,
    /// The client's span, if it sent one.
    pub parent: Option<u64>,
    /// The request's own span.
    pub span_id: u64,
}

impl Sampling {
    /// The sampling that the settings ask for.
    pub fn of(settings: &ProxySection) -> Sampling {
        Sampling { ratio: settings.trace_ratio, follows_clients: settings.trace_follows_clients }
    }

    /// Starts the trace of a request, if it is sampled.
    pub fn sample(&self, request: &Request, random: &mut impl Rng) -> Option<RequestTrace> {
        let client = if self.follows_clients { parent_of(request) } else { None };
        let is_sampled = match client {
            Some(client) => client.is_sampled,
            None => self.ratio > 0.0 && random.random_bool(self.ratio),
        };
        is_sampled.then(|| trace(client, random))
    }

    /// Starts the trace of a request that turned out notable at its end.
    pub fn trace_late(&self, request: &Request, random: &mut impl Rng) -> RequestTrace {
        trace(if self.follows_clients { parent_of(request) } else { None }, random)
    }
}

fn parent_of(request: &Request) -> Option<TraceParent> {
    TraceParent::parse(request.fields.get(b"traceparent")?)
}

fn trace(client: Option<TraceParent>, random: &mut impl Rng) -> RequestTrace {
    RequestTrace {
        trace_id: client.map_or_else(|| random.random::<u128>().max(1), |client| client.trace_id),
        parent: client.map(|client| client.parent_id),
        span_id: random.random::<u64>().max(1),
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    fn request(traceparent: Option<&str>) -> Request {
        let mut request = Request::default();
        if let Some(value) = traceparent {
            request.fields.push(b"traceparent", value.as_bytes());
        }
        request
    }

    #[test]
    fn the_clients_word_stands_above_the_ratio() {
        let mut random = SmallRng::seed_from_u64(1);
        let all = Sampling { ratio: 1.0, follows_clients: true };
        let none = Sampling { ratio: 0.0, follows_clients: true };
        let recorded = request(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        let unrecorded = request(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"));
        assert_eq!(none.sample(&recorded, &mut random).unwrap().parent, Some(0xb7ad_6b71_6920_3331));
        assert_eq!(all.sample(&unrecorded, &mut random), None);
        assert!(all.sample(&request(None), &mut random).is_some());
        assert_eq!(none.sample(&request(None), &mut random), None);
        assert_eq!(none.trace_late(&unrecorded, &mut random).parent, Some(0xb7ad_6b71_6920_3331));
    }

    #[test]
    fn a_client_that_is_not_followed_decides_nothing() {
        let mut random = SmallRng::seed_from_u64(1);
        let sampling = Sampling { ratio: 0.0, follows_clients: false };
        let recorded = request(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        assert_eq!(sampling.sample(&recorded, &mut random), None);
        assert_eq!(sampling.trace_late(&recorded, &mut random).parent, None);
    }
}
