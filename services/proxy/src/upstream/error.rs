//! Failures of requests at endpoints, and what they tell about the endpoint.

use tidegate_model::observation::Failure;

use crate::wire::BodyError;

/// The cause of a failure, which decides whether it counts against the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The endpoint.
    Endpoint,
    /// A reused connection was closed without a response: weak evidence against the endpoint.
    StaleConnection,
    /// The endpoint closed the connection gracefully (GOAWAY) before it processed this request: no evidence.
    GoAway,
    /// This machine lacks file descriptors or ports: no evidence. An idle connection to another endpoint may still
    /// serve.
    LocalResources,
}

/// Whether the endpoint may have acted on a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing was sent, or the peer reported that it processed nothing.
    Nothing,
    /// The endpoint may have acted on it.
    Maybe,
}

/// Why a connection could not be opened.
#[derive(Debug, Clone)]
pub struct ConnectError {
    /// How connecting failed.
    pub failure: Failure,
    /// The cause.
    pub fault: Fault,
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> ConnectError {
        ConnectError { failure, fault: Fault::Endpoint }
    }
}

/// Classifies an HTTP/2 error. A peer that refuses a stream, or sends GOAWAY before it processed it, did not act on it
/// (RFC 9113, sections 6.8 and 8.7).
pub fn failure_of(error: &h2::Error) -> (Failure, Sent) {
    let refused = error.is_remote()
        && (error.is_go_away() || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)));
    let sent = if refused { Sent::Nothing } else { Sent::Maybe };
    (Failure::Reset, sent)
}

/// Classifies an error within a response body.
pub fn failure_within_body(error: &BodyError) -> Failure {
    match error {
        BodyError::Malformed(_) => Failure::BadResponse,
        BodyError::Io(_) | BodyError::Http2(_) | BodyError::TooLarge => Failure::Reset,
    }
}
