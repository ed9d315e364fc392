//! One request's way: where it goes, how often it is tried, what is relayed.

mod attempt;
mod connect;
mod downstream;
mod exchange;
mod heads;
mod http2_conn;
mod max_forwards;
mod pool;
mod relay;
mod sharing;
mod slots;
mod tries;
mod tunnel;
mod upload;
mod upstream;

pub use downstream::{Downstream, Http1Down, Http2Down, LocalReply};
pub use exchange::{Client, Exchange, Outcome, answer_ourselves, handle};
pub use heads::{Origin, http2_request, write_http1_request};
pub use pool::Pool;
