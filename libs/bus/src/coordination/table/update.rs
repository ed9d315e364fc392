//! The updates that a replica delivers.

use bytes::Bytes;
use tidegate_model::{Epoch, Revision, Timestamp};

use crate::TraceContext;

/// An update of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update<K, V> {
    /// The full content, which replaces the previous one.
    Snapshot {
        /// The owner's epoch.
        epoch: Epoch,
        /// The table's revision.
        revision: Revision,
        /// All entries.
        entries: Vec<(K, V)>,
        /// When it was received.
        received_at: Timestamp,
    },
    /// Changes to the content.
    Delta {
        /// The owner's epoch.
        epoch: Epoch,
        /// The table's revision after the changes.
        revision: Revision,
        /// The new values; nothing: the key is removed.
        changes: Vec<(K, Option<V>)>,
        /// Metadata that the owner attached to them.
        meta: Bytes,
        /// The trace that the publication belongs to.
        trace: Option<TraceContext>,
        /// When it was received.
        received_at: Timestamp,
    },
    /// The owner is alive. The content is unchanged, but its epoch or revision may not be: a new owner may have taken over
    /// with the same content.
    Heartbeat {
        /// The epoch of the content here.
        epoch: Epoch,
        /// The revision of the content here.
        revision: Revision,
        /// Whether that is the owner's latest; otherwise a snapshot is being fetched.
        current: bool,
        /// When it was received.
        received_at: Timestamp,
    },
    /// A message of an owner of an older epoch was refused.
    Refused {
        /// Its epoch.
        epoch: Epoch,
    },
}

/// An update of one of many tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableUpdate<K, V> {
    /// An update of the table of this subject.
    Update(String, Update<K, V>),
    /// The table of this subject is stale and counts as gone.
    Gone(String),
}
