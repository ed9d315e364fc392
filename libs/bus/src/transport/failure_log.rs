//! Logs a failure once, not at each retry.

use crate::BusError;

/// The kind of failure that was logged since the last success.
#[derive(Debug, Default)]
pub struct FailureLog(Option<&'static str>);

impl FailureLog {
    /// Records the result of an attempt. Logs `what` at the first failure since a success, and at a failure of another kind.
    /// A bus that is away is not logged here: the connection logs that itself.
    pub fn record(&mut self, attempt: Result<(), BusError>, what: &str) {
        let reason = attempt.as_ref().err().map(BusError::reason);
        if let Err(error) = attempt
            && self.0 != reason
            && !matches!(error, BusError::Away { .. })
        {
            tracing::warn!(%error, "{what}");
        }
        self.0 = reason;
    }
}
