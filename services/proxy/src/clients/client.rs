//! The client of a request.

use std::{net::IpAddr, time::Duration};

use tidegate_model::fleet::HealthEndpoints;

/// The client of a request.
#[derive(Clone, Copy)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Whether it came over TLS.
    pub is_tls: bool,
    /// Whether it speaks HTTP/2.
    pub is_http2: bool,
    /// How long it may take nothing of what waits for it.
    pub stall: Duration,
    /// Which health questions its listener answers.
    pub health_endpoints: HealthEndpoints,
}
