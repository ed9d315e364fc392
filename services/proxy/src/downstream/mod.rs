//! Connections of clients: accepted, TLS ended, requests read from them.

mod accept;
mod http1;
mod http2;
mod http2_request;
mod open;
mod rules;

pub use accept::{Accepting, Listen};
pub use http2_request::request_of;
