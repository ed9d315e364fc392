//! Why a probe, or an exchange on its connection, did not succeed.

use std::io;

use tidegate_model::observation::Failure;

/// Why no connection to the endpoint was made.
pub(super) enum ConnectError {
    /// The endpoint failed the probe.
    Failed(Failure),
    /// This machine lacks what a connection needs.
    LocalResources(io::Error),
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> Self {
        ConnectError::Failed(failure)
    }
}

/// Why an exchange on a connection ended without a response.
pub(super) enum ExchangeError {
    /// The connection ended before the first byte of a response. A reused connection may be stale: the endpoint closed it
    /// because it was idle, which is no failure.
    NoResponse,
    /// The exchange failed.
    Failed(Failure),
}
