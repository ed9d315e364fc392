//! What goes wrong with a request at an endpoint, and what it says of the endpoint.

use tidegate_model::observation::Failure;

use crate::wire::BodyError;

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The endpoint's.
    Endpoint,
    /// A connection that had served before died without a word: little evidence against the endpoint.
    StaleConnection,
    /// The connection was ended in good order before it took this request: none.
    GoAway,
    /// This machine's, which lacks files or ports: none. A connection that waits elsewhere may still serve.
    LocalResources,
}

/// Whether the endpoint may have acted on a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing of it was sent, or the peer said that it did nothing with it.
    Nothing,
    /// It may have.
    Maybe,
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub struct ConnectError {
    /// What happened.
    pub failure: Failure,
    /// What it says of the endpoint.
    pub fault: Fault,
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> ConnectError {
        ConnectError { failure, fault: Fault::Endpoint }
    }
}

/// What an HTTP/2 error says of a request. A peer that refuses a stream, or goes away without having processed it, did
/// nothing with it (RFC 9113, sections 6.8 and 8.7).
pub fn failure_of(error: &h2::Error) -> (Failure, Sent) {
    let refused = error.is_remote()
        && (error.is_go_away() || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)));
    let sent = if refused { Sent::Nothing } else { Sent::Maybe };
    (Failure::Reset, sent)
}

/// What it says of an endpoint that the body of its response cannot be read.
pub fn failure_within_body(error: &BodyError) -> Failure {
    match error {
        BodyError::Malformed(_) => Failure::BadAnswer,
        BodyError::Io(_) | BodyError::Http2(_) | BodyError::TooLarge => Failure::Reset,
    }
}
