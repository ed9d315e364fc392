//! A request that has ended.

use tidegate_http1::Request;
use tidegate_model::ServiceName;
use tokio::time::Instant;

use super::{attempt_log::AttemptLog, decide::RequestTrace};
use crate::clients::Client;

/// A request that has ended, with what is reported of it.
pub struct FinishedRequest<'a> {
    /// Its service.
    pub service: &'a ServiceName,
    /// The route that it matched; nothing for the default action.
    pub route: Option<&'a str>,
    /// Its head.
    pub head: &'a Request,
    /// Its client.
    pub client: Client,
    /// Its id.
    pub request_id: &'a [u8],
    /// When its head was read.
    pub started: Instant,
    /// When it ended.
    pub ended: Instant,
    /// Its trace, if it was sampled from the beginning.
    pub trace: Option<RequestTrace>,
    /// Its attempts, and what became of it.
    pub log: &'a AttemptLog,
}
