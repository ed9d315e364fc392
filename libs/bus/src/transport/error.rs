//! The errors of the bus.

use std::time::Duration;

use crate::{codec::DecodeError, seal::SealError};

/// An error of a call to the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A server's address is malformed.
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
    /// The credentials can't be read or parsed.
    #[error("the NATS credentials cannot be used: {0}")]
    Credentials(String),
    /// There is no connection to a server. Nothing was sent.
    #[error("the bus has been away for {away_for:.1?}{}", why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Away {
        /// How long.
        away_for: Duration,
        /// Why the last attempt to connect failed, where that is known.
        why: Option<String>,
    },
    /// A call took longer than its limit. A write may have happened or not.
    #[error("{what} took longer than {limit:?}")]
    TimedOut {
        /// The call.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// The user has no permission for a call.
    #[error("this user has no permission for {what}: {reason}")]
    Refused {
        /// The call.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// The message is larger than the server's limit.
    #[error("a message of {size} bytes to {subject} is larger than the server's limit of {limit} bytes")]
    TooLarge {
        /// Its subject.
        subject: String,
        /// Its size with headers.
        size: usize,
        /// The server's limit.
        limit: usize,
    },
    /// The subject or pattern is malformed.
    #[error("{0:?} is not a subject")]
    Subject(String),
    /// The subject of a request has no subscriber.
    #[error("nobody responds to requests on {0}")]
    NoResponder(String),
    /// The entry is not at the revision that the write expected.
    #[error("{key} in bucket {bucket} has been changed by somebody else")]
    Conflict {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// An operation on the history failed.
    #[error("{reason} ({operation} of the history)")]
    History {
        /// The operation.
        operation: &'static str,
        /// What the server said.
        reason: String,
    },
    /// An operation on a bucket failed.
    #[error("{reason} ({operation} in bucket {bucket})")]
    Bucket {
        /// The bucket.
        bucket: String,
        /// The operation.
        operation: &'static str,
        /// What the server or client said.
        reason: String,
    },
    /// The parts of a blob are inconsistent, even after reading it again.
    #[error("the blob {key} in bucket {bucket} is damaged: {reason}")]
    Blob {
        /// The bucket.
        bucket: String,
        /// The blob's key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A message carries no signature by a trusted key.
    #[error("{subject} is not believed: {why}")]
    Untrusted {
        /// What the message is about.
        subject: String,
        /// What is wrong with its signature.
        why: SealError,
    },
    /// A body could not be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The connection was closed for good.
    #[error("the bus is closed")]
    Closed,
}

impl BusError {
    /// Whether a write lost against a concurrent one.
    pub fn is_conflict(&self) -> bool {
        matches!(self, BusError::Conflict { .. })
    }

    /// A label for metrics.
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
