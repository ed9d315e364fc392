//! Observations of endpoints by probers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ClusterName, Timestamp, fleet::Address, health::CheckId};

/// The key of an observation in a prober's table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The cluster that the endpoint belongs to.
    pub cluster: ClusterName,
    /// The endpoint.
    pub endpoint: Address,
    /// The check that it was probed with.
    pub check: CheckId,
}

/// A prober's observation of a [`Target`]: the last outcome and the number of probes in a row with it.
///
/// A prober publishes an observation only when it changes. `streak` stops at the larger of the check's `rise` and
/// `fall`, so a steady endpoint publishes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The outcome of the last probe.
    pub outcome: ProbeOutcome,
    /// The number of probes in a row with this kind of outcome (pass or fail), at least 1.
    pub streak: u16,
}

/// The outcome of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeOutcome {
    /// The endpoint responded as expected.
    Pass,
    /// It did not.
    Fail(Failure),
}

/// Why a probe, or a real request, failed at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Failure {
    /// The connection was refused.
    ConnectRefused,
    /// No connection within the timeout.
    ConnectTimeout,
    /// The connection could not be made for another reason (no route, name not found).
    ConnectError,
    /// The TLS handshake failed, or the peer was not who it should be.
    Tls,
    /// The connection was closed or reset before a response.
    Reset,
    /// No response within the timeout.
    NoResponse,
    /// A response with a status that does not pass.
    Status(u16),
    /// A response with the wrong body, or one that violates the protocol.
    BadResponse,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::ConnectRefused => f.write_str("connection refused"),
            Failure::ConnectTimeout => f.write_str("connection timed out"),
            Failure::ConnectError => f.write_str("no connection"),
            Failure::Tls => f.write_str("TLS failed"),
            Failure::Reset => f.write_str("connection reset"),
            Failure::NoResponse => f.write_str("no response in time"),
            Failure::Status(status) => write!(f, "status {status}"),
            Failure::BadResponse => f.write_str("unexpected response"),
        }
    }
}

/// Why a prober probed an endpoint. Sent with a change of observations, never as part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// The probe was due.
    Schedule,
    /// An edge suspected the endpoint.
    Suspicion {
        /// When the first real request failed there.
        first_failure_at: Timestamp,
    },
}

/// The cause of a published change of observations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservationCause {
    /// Why the prober probed.
    pub signal: Signal,
    /// When the first probe of the run that changed the observation began.
    pub probed_at: Timestamp,
    /// When the change was published.
    pub observed_at: Timestamp,
}
