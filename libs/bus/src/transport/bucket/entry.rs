//! The entries of a bucket, and what a write expects of one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// An entry of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The revision: grows with each write to the bucket; starts again when the server lost its data.
    pub revision: u64,
    /// The value.
    pub value: Bytes,
}

/// The precondition of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Anything.
    Any,
    /// No entry.
    Nothing,
    /// The entry of this revision.
    Revision(u64),
}

/// The version of a bucket's content: changes when anything in it is written or deleted, or the bucket is created again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// When the bucket was created; changes after a loss of data. Zero: there is none.
    pub created: u64,
    /// The revision of the last write.
    pub last_revision: u64,
}
