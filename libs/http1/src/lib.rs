//! The HTTP/1.1 wire format: strict parsing and canonical writing, as functions over byte slices.
//!
//! This crate must not know sockets, time, tasks, routes or any policy.
//!
//! It exists because a proxy must write what it forwards in one canonical form and refuse ambiguous framing: general HTTP
//! libraries resolve some ambiguities silently (hyper drops a `Content-Length` beside a `Transfer-Encoding`), which a proxy on top
//! of them cannot detect.
#![forbid(unsafe_code)]

mod chunked;
mod error;
mod fields;
mod framing;
mod host;
mod lines;
mod path;
mod request;
mod response;
mod trailers;
mod underscores;
mod write;

pub use chunked::{ChunkDecoder, ChunkError, Decoded};
pub use error::ParseError;
pub use fields::{Fields, list_contains};
pub use framing::{Framing, MAX_LENGTH, content_length};
pub use host::{MAX_HOST_NAME, is_host, without_port};
pub use path::{EscapedSlashes, PathRules, normalize_path};
pub use request::{Method, Request, RequestRules, Version, parse_request, valid_target};
pub use response::{Response, ResponseError, parse_response};
pub use trailers::TrailerPolicy;
pub use underscores::{FieldVerdict, Underscores};
pub use write::{
    LAST_CHUNK, write_chunk_head, write_decimal, write_field, write_request_line, write_status_line,
    write_trailers,
};

/// The most header fields that any parser here accepts, whatever the configured limits.
pub const MAX_FIELDS: usize = 256;
