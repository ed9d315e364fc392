//! Sizes of the types and futures of a request.

use super::{
    attempt::run_attempt, request::handle, request_context::RequestContext,
    upstream_response::UpstreamResponse,
};
use crate::{
    observe::AttemptLog,
    sizes::{assert_size, future_size},
};

#[test]
fn a_request_takes_the_memory_that_is_expected() {
    assert_size("the future of a request", future_size!(handle; A, B, C, D, E, G), 2608);
    assert_size("the future of an attempt", future_size!(run_attempt; A, B, C), 1328);
    assert_size("a request's context", size_of::<RequestContext<'_>>(), 448);
    assert_size("an attempt log", size_of::<AttemptLog>(), 152);
    assert_size("an upstream response", size_of::<UpstreamResponse>(), 408);
}
