//! Listeners of edges.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::CertificateFiles;

/// A listener, on which edges accept users' connections. Part of the route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The address and port to bind; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The protocol.
    pub protocol: ListenerProtocol,
    /// The limits for clients.
    pub limits: ListenerLimits,
}

/// The protocol of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenerProtocol {
    /// HTTP/1.1, and HTTP/2 by prior knowledge.
    Http,
    /// TLS, then HTTP/2 or HTTP/1.1 by ALPN.
    Https {
        /// Chosen by SNI; the first one is the default. Never empty.
        certificates: Vec<CertificateFiles>,
    },
}

/// The policy for request header fields whose names have underscores, or anything else than letters, digits and `-`. CGI and
/// the like turn `-` into `_`, so `x_real_ip` equals `x-real-ip` there (Envoy: `headers_with_underscores_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum UnderscorePolicy {
    /// The field is dropped.
    #[default]
    Drop,
    /// The request is refused with 400.
    Refuse,
    /// The field is forwarded.
    Pass,
}

/// The health endpoints (`/.well-known/tidegate/health`) that a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HealthEndpoints {
    /// Those of the edge and of each service.
    #[default]
    On,
    /// That of the edge only.
    Edge,
    /// None: they respond with 404.
    Off,
}

/// The limits and other request policies of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerLimits {
    /// The largest request head (request line and headers), in bytes.
    pub head_bytes: u32,
    /// The most header fields in a request, 256 at most.
    pub header_count: u16,
    /// How long a client may take to send a whole request head, or a TLS handshake.
    pub head_timeout: Duration,
    /// How long a client may be idle between requests, or not read a pending response.
    pub idle_timeout: Duration,
    /// The most connections at once for the whole edge on this listener.
    pub max_connections: u32,
    /// The policy for header fields whose names have underscores and the like.
    pub underscores_in_headers: UnderscorePolicy,
    /// The health endpoints that it serves.
    pub health_endpoints: HealthEndpoints,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        ListenerLimits {
            head_bytes: 64 * 1024,
            header_count: 100,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            max_connections: 100_000,
            underscores_in_headers: UnderscorePolicy::default(),
            health_endpoints: HealthEndpoints::default(),
        }
    }
}
