//! What a replica tells of its table.

use bytes::Bytes;
use tidegate_model::{Epoch, Revision, Timestamp};

use crate::TraceContext;

/// What happened to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update<K, V> {
    /// The whole content, in place of what was there.
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
        /// New values; nothing: the key goes.
        changes: Vec<(K, Option<V>)>,
        /// What the owner said beside them.
        meta: Bytes,
        /// The trace that the publication belongs to.
        trace: Option<TraceContext>,
        /// When it was received.
        received_at: Timestamp,
    },
    /// The owner is alive. The content is what it was, but may now be known as that of another epoch or revision: a new
    /// owner took over with the same content.
    Heartbeat {
        /// The epoch of the content here.
        epoch: Epoch,
        /// The revision of the content here.
        revision: Revision,
        /// Whether that is the owner's latest; otherwise a snapshot is on its way.
        current: bool,
        /// When it was received.
        received_at: Timestamp,
    },
    /// An owner of an older epoch spoke, and was not listened to.
    Refused {
        /// Its epoch.
        epoch: Epoch,
    },
}

/// What happened to one of many tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableUpdate<K, V> {
    /// Something happened to the table of this subject.
    Update(String, Update<K, V>),
    /// Nothing was heard of this table for long: it counts as gone.
    Gone(String),
}
