//! Whether an answer passes.

use tidegate_model::{health::Probe, observation::Failure};

/// Bytes of a body that are looked at.
pub(super) const BODY_LIMIT: usize = 64 * 1024;

/// What an endpoint answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// To a GET: the status, and the beginning of the body where it matters.
    Http { status: u16, body: Vec<u8> },
    /// To a gRPC check: whether it serves.
    Grpc { serving: bool },
}

impl Answer {
    pub fn judge(&self, probe: &Probe) -> Result<(), Failure> {
        match (self, probe) {
            (Answer::Http { status, body }, Probe::Http { expected_status, expected_body, .. }) => {
                if !expected_status.iter().any(|(first, last)| (*first..=*last).contains(status)) {
                    return Err(Failure::Status(*status));
                }
                match expected_body {
                    Some(text) if !contains(body, text.as_bytes()) => Err(Failure::BadAnswer),
                    _ => Ok(()),
                }
            }
            (Answer::Grpc { serving: true }, Probe::Grpc { .. }) => Ok(()),
            (Answer::Http { .. } | Answer::Grpc { .. }, _) => Err(Failure::BadAnswer),
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

    fn answer(status: u16, body: &str) -> Answer {
        Answer::Http { status, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn a_status_in_a_range_and_the_text_in_the_body_pass() {
        assert_eq!(answer(200, "all is ok").judge(&probe(Some("ok"))), Ok(()));
        assert_eq!(answer(304, "").judge(&probe(None)), Ok(()));
    }

    #[test]
    fn another_status_or_body_fails_with_its_reason() {
        assert_eq!(answer(204, "").judge(&probe(None)), Err(Failure::Status(204)));
        assert_eq!(answer(200, "o-k").judge(&probe(Some("ok"))), Err(Failure::BadAnswer));
        assert_eq!(Answer::Grpc { serving: false }.judge(&Probe::Tcp), Err(Failure::BadAnswer));
    }
}
