//! The handling of one request: routing, attempts, relaying.

mod attempt;
mod attempts;
mod client_stream;
mod debug;
mod discard;
mod heads;
mod health;
mod local_reply;
mod max_forwards;
mod refusals;
mod relay;
mod reply;
#[expect(clippy::module_inception, reason = "it is the overview; the other files are its parts")]
mod request;
mod request_context;
mod response;
#[cfg(test)]
mod sizes;
mod slots;
mod tunnel;
mod upload;
mod upstream_response;

pub use client_stream::{ClientStream, Http1ClientStream, Http2ClientStream};
pub use heads::{ClientInfo, http2_request, write_http1_request};
pub use local_reply::LocalReply;
pub use reply::{Completion, send_local_reply};
pub use request::handle;
