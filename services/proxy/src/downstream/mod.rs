//! Client connections: accepting, TLS, reading requests.

mod accept;
mod http1;
mod http2;
mod http2_request;
mod open_connection;
mod rules;
#[cfg(test)]
mod sizes;

pub use accept::{Acceptors, ListenSocket};
pub use http2_request::request_of;
