//! Says once that something fails, not each time it is tried again.

use crate::BusError;

/// Whether it was said already.
#[derive(Debug, Default)]
pub(crate) struct Complaint(bool);

impl Complaint {
    /// Takes note of how a try went; logs `what` at the first failure since a success.
    pub fn note(&mut self, tried: Result<(), BusError>, what: &str) {
        let failed = tried.is_err();
        if let Err(error) = tried
            && !self.0
        {
            tracing::warn!(%error, "{what}");
        }
        self.0 = failed;
    }
}
