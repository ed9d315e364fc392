//! Logs once that something fails, not each time it is tried again.

use crate::BusError;

/// The kind of failure that was logged since the last success.
#[derive(Debug, Default)]
pub struct FailureLog(Option<&'static str>);

impl FailureLog {
    /// Records how an attempt went. Logs `what` at the first failure since a success, and at one of another kind. That the bus is
    /// away is logged by the connection itself.
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
