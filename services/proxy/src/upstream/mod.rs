//! Clusters and endpoints in one worker: requests in flight, connections, failures.

mod awaiting_clients;
mod connect;
mod endpoint;
mod error;
mod http2_conn;
mod outlier;
mod pool;
mod single_flight;
mod stream;

pub use connect::{Connected, Connector};
pub use endpoint::{ClusterState, EndpointState, InFlightRequest};
pub use error::{ConnectError, Fault, Sent, failure_of, failure_within_body};
pub use http2_conn::Http2Conn;
pub use outlier::{FailureStats, OutlierDetector, is_connect_failure};
pub use single_flight::{Leader, Role};
pub use stream::UpstreamStream;
