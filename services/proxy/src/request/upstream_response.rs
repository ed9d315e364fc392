//! A request at an endpoint and its response.

use tidegate_http1::Response;

use super::upload::Cursor;
use crate::{
    upstream::{InFlightRequest, UpstreamStream},
    wire::Chunk,
};

/// A request at an endpoint and what has arrived of its response. It is large, so it is boxed, and filled in its place.
pub struct UpstreamResponse {
    /// The request at the endpoint.
    pub up: UpstreamStream,
    /// The head of the response.
    pub head: Response,
    /// The first chunk of the body, if it arrived with the head.
    pub first: Option<Chunk>,
    /// Counts the request in flight.
    pub in_flight: InFlightRequest,
    /// How much of the request's body was sent.
    pub cursor: Cursor,
    /// Whether the request had been sent completely before the head arrived.
    pub sent_whole: bool,
    /// The attempt's number in the request's log.
    pub attempt: usize,
}

impl UpstreamResponse {
    /// The size of its buffers.
    pub fn buffered(&mut self) -> usize {
        let first = match &self.first {
            Some(Chunk::Data(data)) => data.len(),
            Some(Chunk::End(_)) | None => 0,
        };
        self.up.buffered() + first
    }
}
