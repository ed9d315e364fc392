//! Listeners of edges.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{CertificateFiles, Cidr};

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

/// Whether request paths are normalized (RFC 3986, section 6.2.2) before they are matched and forwarded, so that an origin reads
/// the path that a route was chosen by (Envoy: `normalize_path`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PathNormalization {
    /// They are normalized.
    #[default]
    Normalize,
    /// They are matched and forwarded as received.
    AsReceived,
}

/// The policy for escaped slashes and backslashes in request paths (`%2F`, `%5C`), which some origins decode before they match
/// (Envoy: `path_with_escaped_slashes_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum EscapedSlashPolicy {
    /// They stay as they are.
    #[default]
    Keep,
    /// The request is refused with 400.
    Refuse,
    /// They are decoded, and separate segments.
    Decode,
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
    /// Whether paths are normalized.
    pub path_normalization: PathNormalization,
    /// The policy for escaped slashes in paths that are normalized.
    pub escaped_slashes: EscapedSlashPolicy,
    /// Whether adjacent slashes in paths that are normalized become one (Envoy: `merge_slashes`).
    pub merge_slashes: bool,
    /// The health endpoints that it serves.
    pub health_endpoints: HealthEndpoints,
    /// The networks whose clients may ask how a request was served (`x-tidegate-debug`); none: nobody may.
    pub debug_from: Vec<Cidr>,
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
            path_normalization: PathNormalization::default(),
            escaped_slashes: EscapedSlashPolicy::default(),
            merge_slashes: true,
            health_endpoints: HealthEndpoints::default(),
            debug_from: Vec::new(),
        }
    }
}
