//! Logs a failure when it begins and at growing intervals, not at each retry.

use tokio::time::Instant;

use crate::{
    BusError,
    limit::{ProblemLog, ProblemNotice},
};

/// Logs the failures of something that is retried.
#[derive(Debug, Default)]
pub struct FailureLog(ProblemLog);

impl FailureLog {
    /// Records the result of an attempt, and logs `what` as [`ProblemLog`] says. A bus that is away is not logged here: the
    /// connection logs that itself.
    pub fn record(&mut self, attempt: Result<(), BusError>, what: &str) {
        let error = attempt.err().filter(|error| !matches!(error, BusError::Away { .. }));
        match self.0.record(error.as_ref().map(BusError::reason), Instant::now()) {
            Some(ProblemNotice::Began) => {
                tracing::warn!(error = error.map(tracing::field::display), "{what}");
            }
            Some(ProblemNotice::Lasts(lasts)) => {
                tracing::warn!(error = error.map(tracing::field::display), ?lasts, "{what}");
            }
            Some(ProblemNotice::Over(_)) | None => {}
        }
    }
}
