//! Connections to the endpoints of a cluster.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::SpiffeId;

/// How to connect to the endpoints of a cluster. Part of the route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The HTTP version.
    pub protocol: UpstreamProtocol,
    /// TLS; absent: plain text.
    pub tls: Option<UpstreamTls>,
    /// How long an idle connection is kept, unless the origin sends a shorter `Keep-Alive: timeout`.
    pub idle_timeout: Duration,
    /// How long a connection may take to be made, TLS included.
    pub connect_timeout: Duration,
    /// The most concurrent requests to the cluster from one edge; further ones go elsewhere or get 503. Each worker of the edge
    /// has an equal part, at least one.
    pub max_requests: u32,
}

/// The HTTP version towards a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// With TLS the one that ALPN selects, else HTTP/1.1. A fleet file's `auto` becomes `Http2` in clear text where gRPC
    /// health checks need it.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, with prior knowledge where there is no TLS.
    Http2,
}

/// TLS towards a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UpstreamTls {
    /// The server name for SNI and verification; absent: the endpoint's own host.
    pub server_name: Option<String>,
    /// PEM file with the authorities that are trusted; absent: the system's.
    pub ca: Option<PathBuf>,
    /// The SPIFFE ID that the peer's certificate must carry; then no DNS name is checked.
    pub identity: Option<SpiffeId>,
    /// The client certificate of the edge.
    pub client_certificate: Option<CertificateFiles>,
}

/// A certificate and its key, as PEM files on the machine of the service that uses them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CertificateFiles {
    /// The certificate chain, leaf first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}
