//! A finished request.

use tidegate_http1::Request;
use tidegate_model::ServiceName;
use tokio::time::Instant;

use super::{attempt_log::AttemptLog, sampling::RequestTrace};
use crate::{clients::Client, edge_identity::EdgeIdentity};

/// A finished request, as reported.
pub struct FinishedRequest<'a> {
    /// The edge that served it.
    pub edge: &'a EdgeIdentity,
    /// Its service.
    pub service: &'a ServiceName,
    /// The path pattern of its route; nothing for the default action.
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
    /// Its trace, if it was sampled from the start.
    pub trace: Option<RequestTrace>,
    /// Its attempts and outcome.
    pub log: &'a AttemptLog,
}
