//! Sizes of the types and futures of client connections.

use super::{accept::serve_connection, http2::serve_stream};
use crate::{
    request::{Http1ClientStream, Http2ClientStream},
    sizes::{assert_size, future_size},
};

#[test]
fn connections_and_streams_take_the_memory_that_is_expected() {
    assert_size("the future of an idle connection", future_size!(serve_connection; A, B, C, D, E), 872);
    assert_size("the HTTP/1.1 side of a connection", size_of::<Http1ClientStream>(), 208);
    assert_size("the future of an HTTP/2 stream", future_size!(serve_stream; A, B, C, D, E, G, H), 3248);
    assert_size("the HTTP/2 side of a stream", size_of::<Http2ClientStream>(), 184);
}
