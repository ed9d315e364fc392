//! The HTTP/1.1 wire format: strict parsing and canonical writing, as functions over byte slices.
//!
//! This crate must not know sockets, time, tasks, routes or any policy.
//!
//! It exists because what a proxy forwards must be written anew in one canonical form and because ambiguous framing must
//! be refused: a general HTTP library resolves some ambiguities silently (hyper drops a `Content-Length` that stands
//! beside a `Transfer-Encoding`), after which a proxy can no longer tell.
#![forbid(unsafe_code)]

mod chunked;
mod fields;
mod framing;
mod request;
mod response;
mod write;

pub use chunked::{ChunkDecoder, ChunkError, Decoded};
pub use fields::{Fields, list_contains, may_be_trailer};
pub use framing::Framing;
pub use request::{Limits, Method, ParseError, Request, Version, parse_request, valid_target};
pub use response::{Response, ResponseError, parse_response};
pub use write::{
    LAST_CHUNK, write_chunk_head, write_decimal, write_field, write_request_line, write_status_line,
    write_trailers,
};

/// The most header fields that any parse here accepts, whatever the limits say.
pub const MAX_FIELDS: usize = 256;
