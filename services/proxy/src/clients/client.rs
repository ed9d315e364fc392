//! The client of a request.

use std::{net::IpAddr, time::Duration};

use tidegate_model::fleet::HealthEndpoints;

/// The client of a request.
#[derive(Clone, Copy)]
pub struct Client {
    /// The client's address.
    pub address: IpAddr,
    /// Whether the connection uses TLS.
    pub is_tls: bool,
    /// Whether the connection uses HTTP/2.
    pub is_http2: bool,
    /// How long the client may read nothing while data waits for it.
    pub stall: Duration,
    /// Which health requests its listener responds to.
    pub health_endpoints: HealthEndpoints,
    /// Whether its network is trusted to ask how a request was served.
    pub may_debug: bool,
}
