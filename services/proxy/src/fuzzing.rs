//! Pure parts of the data path, for fuzz targets and for the tests that share their checks. No interface of this crate.

use tidegate_http1::{Framing, ParseError, Request, RequestRules};

use crate::{
    downstream::request_of,
    request::{ClientInfo, http2_request, write_http1_request},
};

/// A request as it came over HTTP/2 and as it is forwarded.
#[derive(Debug)]
pub struct Translated {
    /// As the edge understands it.
    pub request: Request,
    /// Its body's framing.
    pub framing: Framing,
    /// Its head for an endpoint that speaks HTTP/1.1.
    pub http1: Vec<u8>,
    /// Its head for one that speaks HTTP/2; nothing when that has no form for it.
    pub http2: Option<http::Request<()>>,
}

/// Translates the head of a request.
///
/// # Errors
/// When it is refused.
pub fn translate(
    head: &http::request::Parts,
    has_body: bool,
    rules: RequestRules,
) -> Result<Translated, ParseError> {
    let (request, framing) = request_of(head, has_body, rules)?;
    let info = ClientInfo {
        address: [192, 0, 2, 1].into(),
        is_tls: rules.is_tls,
        request_id: b"id",
        upgrade: None,
        traceparent: None,
        begins_trace: false,
    };
    let mut http1 = Vec::new();
    write_http1_request(&mut http1, &request, info, framing, false);
    let http2 = http2_request(&request, info, framing, rules.is_tls, false);
    Ok(Translated { request, framing, http1, http2 })
}
