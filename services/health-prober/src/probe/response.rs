//! The response to a probe, and whether it passes.

use tidegate_model::{health::Probe, observation::Failure};

/// The bytes of a body that are read.
pub(super) const BODY_LIMIT: usize = 64 * 1024;

/// The response of an endpoint.
#[derive(Debug)]
pub(super) enum ProbeResponse {
    /// To a GET: the status, and the start of the body if the check needs it.
    Http { status: u16, body: Vec<u8> },
    /// To a gRPC health check: whether the service serves.
    Grpc { serving: bool },
}

impl ProbeResponse {
    /// Whether the response passes the check.
    ///
    /// # Errors
    /// The failure, if it does not.
    pub fn evaluate(&self, probe: &Probe) -> Result<(), Failure> {
        match (self, probe) {
            (ProbeResponse::Http { status, body }, Probe::Http { expected_status, expected_body, .. }) => {
                if !expected_status.iter().any(|(first, last)| (*first..=*last).contains(status)) {
                    return Err(Failure::Status(*status));
                }
                match expected_body {
                    Some(text) if !contains(body, text.as_bytes()) => Err(Failure::BadResponse),
                    _ => Ok(()),
                }
            }
            (ProbeResponse::Grpc { serving: true }, Probe::Grpc { .. }) => Ok(()),
            (ProbeResponse::Http { .. } | ProbeResponse::Grpc { .. }, _) => Err(Failure::BadResponse),
        }
    }
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(expected_body: Option<&str>) -> Probe {
        Probe::Http {
            path: "/".to_owned(),
            host: None,
            expected_status: vec![(200, 200), (300, 399)],
            expected_body: expected_body.map(str::to_owned),
        }
    }

    fn response(status: u16, body: &str) -> ProbeResponse {
        ProbeResponse::Http { status, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn a_status_in_a_range_and_the_text_in_the_body_pass() {
        assert_eq!(response(200, "all is ok").evaluate(&probe(Some("ok"))), Ok(()));
        assert_eq!(response(304, "").evaluate(&probe(None)), Ok(()));
    }

    #[test]
    fn another_status_or_body_fails_with_its_reason() {
        assert_eq!(response(204, "").evaluate(&probe(None)), Err(Failure::Status(204)));
        assert_eq!(response(200, "o-k").evaluate(&probe(Some("ok"))), Err(Failure::BadResponse));
        assert_eq!(ProbeResponse::Grpc { serving: false }.evaluate(&Probe::Tcp), Err(Failure::BadResponse));
    }
}
