//! Health checks of endpoints.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A health check. Services whose checks are equal share one probe per endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The probe, and what passes.
    pub probe: Probe,
    /// The time between two probes of one endpoint.
    pub interval: Duration,
    /// How long a probe may take before it counts as failed.
    pub timeout: Duration,
    /// Failures in a row after which an endpoint is down (`fall`), at least 1.
    pub unhealthy_after: u16,
    /// Passes in a row after which an endpoint that was down is up again (`rise`), at least 1.
    pub healthy_after: u16,
}

/// The kind of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Probe {
    /// The endpoint accepts a TCP connection (and, where the cluster has TLS, completes a handshake).
    Tcp,
    /// A GET over the cluster's protocol.
    Http {
        /// The path and query, beginning with `/`.
        path: String,
        /// The `host` header; absent: the endpoint's address.
        host: Option<String>,
        /// Statuses that pass, as inclusive ranges; never empty.
        expected_status: Vec<(u16, u16)>,
        /// Text that the first 64 KiB of the body must hold.
        expected_body: Option<String>,
    },
    /// The gRPC health protocol (`grpc.health.v1.Health/Check`) over HTTP/2.
    Grpc {
        /// The service asked for; empty: the whole server.
        service: String,
    },
}

impl HealthCheck {
    /// The check of a service that names none: a TCP connection.
    pub fn tcp() -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp,
            interval: Duration::from_millis(250),
            timeout: Duration::from_millis(200),
            unhealthy_after: 2,
            healthy_after: 3,
        }
    }

    /// The ID of this check, equal for equal checks.
    pub fn id(&self) -> CheckId {
        // JSON, because its bytes depend on nothing but the value and this crate's field names.
        let text = serde_json::to_vec(self).unwrap_or_default();
        CheckId(xxhash_rust::xxh3::xxh3_64(&text))
    }
}

/// The ID of a [`HealthCheck`] on the bus: a hash of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CheckId(pub u64);
