//! The entries of a bucket, and what a write expects of one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Grows with each write to the bucket; starts again when a server lost its data.
    pub revision: u64,
    /// The value.
    pub value: Bytes,
}

/// What a write expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Anything.
    Any,
    /// No entry.
    Nothing,
    /// The entry of this revision.
    Revision(u64),
}

/// Differs from an earlier one when anything in a bucket was written or deleted since, or the bucket made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// When the bucket was made; differs when its data was lost. Zero: there is none.
    pub created: u64,
    /// The last write's revision.
    pub last_revision: u64,
}
