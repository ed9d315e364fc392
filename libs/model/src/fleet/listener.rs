//! Where edges accept users' connections.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::CertificateFiles;

/// A socket that edges accept users' connections on. Travels in the route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The address and port to bind; port 0 takes a free one.
    pub bind: SocketAddr,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// What a client may ask of it.
    pub limits: ListenerLimits,
}

/// What is spoken on a listener.
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

/// What is done with a request's header field whose name has an underscore, or anything else than letters, digits and `-`. CGI and what is like it turn `-` into `_`, so
/// that `x_real_ip` there is `x-real-ip` (Envoy: `headers_with_underscores_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum UnderscorePolicy {
    /// The field is left out.
    #[default]
    Drop,
    /// The request is refused with 400.
    Refuse,
    /// The field is forwarded.
    Pass,
}

/// Which health questions (`/.well-known/tidegate/health`) a listener answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HealthEndpoints {
    /// Those about the edge and about each service.
    #[default]
    On,
    /// Those about the edge alone.
    Edge,
    /// None: they are answered with 404.
    Off,
}

/// Limits of a listener, and what else it decides about a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerLimits {
    /// The largest request head (request line and headers), in bytes.
    pub head_bytes: u32,
    /// The most header fields in a request, 256 at most.
    pub header_count: u16,
    /// How long a client may take to send a whole request head, or a TLS handshake.
    pub head_timeout: Duration,
    /// How long a client may be idle between requests, or take nothing of what waits for it.
    pub idle_timeout: Duration,
    /// The most connections at once for the whole edge on this listener.
    pub max_connections: u32,
    /// What is done with header fields whose names have underscores and the like.
    pub underscores_in_headers: UnderscorePolicy,
    /// Which health questions it answers.
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
