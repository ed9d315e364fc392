//! Time limits around calls.

use std::time::Duration;

use tokio::time::Instant;

use crate::BusError;

/// Ends `call` after `limit` with an error that names it.
pub(crate) async fn within<T>(
    limit: Duration,
    what: impl Fn() -> String,
    call: impl Future<Output = Result<T, BusError>>,
) -> Result<T, BusError> {
    let deadline = Instant::now() + limit;
    tokio::time::timeout_at(deadline, call)
        .await
        .unwrap_or_else(|_| Err(BusError::TimedOut { what: what(), limit }))
}
