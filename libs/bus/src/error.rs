//! What can go wrong on the bus.

use std::time::Duration;

use crate::{codec::DecodeError, seal::SealError};

/// Why a call to the bus failed.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A server's address can't be understood.
    #[error("{address:?} is not a NATS server's address such as nats://127.0.0.1:4222: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No server was given.
    #[error("no NATS server is given")]
    NoServer,
    /// The credentials can't be read or understood.
    #[error("the NATS credentials cannot be used: {0}")]
    Credentials(String),
    /// There is no connection to a server. Nothing was sent.
    #[error("the bus has been away for {away_for:.1?}{}", why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Away {
        /// How long.
        away_for: Duration,
        /// Why none could be made, where that is known.
        why: Option<String>,
    },
    /// A call took longer than it may. A write may have happened or not.
    #[error("{what} took longer than {limit:?}")]
    TimedOut {
        /// The call.
        what: String,
        /// How long it might have taken.
        limit: Duration,
    },
    /// The server does not permit a call.
    #[error("{what} is not permitted: {reason}")]
    Refused {
        /// The call.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// The message is larger than the server takes.
    #[error("a message of {size} bytes to {subject} is larger than the server's limit of {limit} bytes")]
    TooLarge {
        /// Where it was to go.
        subject: String,
        /// Its size with headers.
        size: usize,
        /// The server's limit.
        limit: usize,
    },
    /// The subject or pattern is not one.
    #[error("{0:?} is not a subject")]
    Subject(String),
    /// Nobody listens on the subject of a request.
    #[error("nobody answers requests on {0}")]
    NoResponder(String),
    /// The entry is not at the revision that the write expected.
    #[error("{key} in bucket {bucket} has been changed by somebody else")]
    Conflict {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// The server could not do what the history was asked.
    #[error("{operation} of the history failed: {reason}")]
    History {
        /// What was asked.
        operation: &'static str,
        /// What the server said.
        reason: String,
    },
    /// The server could not do what a bucket was asked.
    #[error("{operation} in bucket {bucket} failed: {reason}")]
    Bucket {
        /// The bucket.
        bucket: String,
        /// What was asked.
        operation: &'static str,
        /// What the server or client said.
        reason: String,
    },
    /// The parts of a blob don't belong together, even after reading it again.
    #[error("the blob {key} in bucket {bucket} is damaged: {reason}")]
    Blob {
        /// The bucket.
        bucket: String,
        /// The blob's key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// What was received is not signed by a key that is trusted.
    #[error("{subject} is not believed: {why}")]
    Untrusted {
        /// What it is for.
        subject: String,
        /// What is wrong with it.
        why: SealError,
    },
    /// The bytes are not what they should be.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The connection was closed for good.
    #[error("the bus is closed")]
    Closed,
}

impl BusError {
    /// Whether a write lost against somebody else's.
    pub fn is_conflict(&self) -> bool {
        matches!(self, BusError::Conflict { .. })
    }

    /// A word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            BusError::Address { .. } | BusError::NoServer => "address",
            BusError::Credentials(_) => "credentials",
            BusError::Away { .. } => "away",
            BusError::TimedOut { .. } => "timed_out",
            BusError::Refused { .. } => "refused",
            BusError::Untrusted { .. } => "untrusted",
            BusError::TooLarge { .. } => "too_large",
            BusError::Subject(_) => "subject",
            BusError::NoResponder(_) => "no_responder",
            BusError::Conflict { .. } => "conflict",
            BusError::History { .. } => "history",
            BusError::Bucket { .. } => "bucket",
            BusError::Blob { .. } => "blob",
            BusError::Decode(_) => "decode",
            BusError::Closed => "closed",
        }
    }
}
