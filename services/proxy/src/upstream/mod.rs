//! Clusters and endpoints, as one worker sees them: what is under way, what is idle, what failed; and connections to them.

mod connect;
mod endpoint;
mod error;
mod http2_conn;
mod outlier;
mod pool;
mod single_flight;
mod stream;
mod waiting;

pub use connect::{Connected, Connector};
pub use endpoint::{ClusterState, EndpointState, InFlight};
pub use error::{ConnectError, Fault, Sent, failure_of, failure_within_body};
pub use http2_conn::Http2Conn;
pub use outlier::{Fare, Tally, is_of_endpoint};
pub use single_flight::{Leader, Role};
pub use stream::UpstreamStream;
