//! Pure parts of the data path, for fuzz targets and the tests that share their checks. Not a public interface.

use tidegate_http1::{Framing, ParseError, Request, RequestRules};

use crate::{
    downstream::request_of,
    request::{ClientInfo, http2_request, write_http1_request},
};

/// A request received over HTTP/2, and its forwarded forms.
#[derive(Debug)]
pub struct Translated {
    /// The request as the edge understands it.
    pub request: Request,
    /// The framing of its body.
    pub framing: Framing,
    /// The head for an HTTP/1.1 endpoint.
    pub http1: Vec<u8>,
    /// The head for an HTTP/2 endpoint; nothing if it is unrepresentable.
    pub http2: Option<http::Request<()>>,
}

/// Translates the head of a request.
///
/// # Errors
/// If it is refused.
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
