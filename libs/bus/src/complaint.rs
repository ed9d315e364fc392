//! Says once that something fails, not each time it is tried again.

use crate::BusError;

/// What was said since the last success: the kind of failure.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Option<&'static str>);

impl Complaint {
    /// Takes note of how a try went; logs `what` at the first failure since a success, and at one of another kind. That the
    /// bus is away is said by the connection itself.
    pub fn note(&mut self, tried: Result<(), BusError>, what: &str) {
        let reason = tried.as_ref().err().map(BusError::reason);
        if let Err(error) = tried
            && self.0 != reason
            && !matches!(error, BusError::Away { .. })
        {
            tracing::warn!(%error, "{what}");
        }
        self.0 = reason;
    }
}
