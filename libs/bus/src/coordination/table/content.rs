//! The messages of a table, and the digest that shows whether two tables are equal.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{Epoch, Revision, Timestamp};
use xxhash_rust::xxh3::Xxh3;

use crate::{TraceContext, codec::Wire};

/// The position of a table: its owner's term, then the changes within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch of the owner's term.
    pub epoch: Epoch,
    /// The table's revision within the term.
    pub revision: Revision,
}

/// The digest of a table's content, which does not depend on the order of the changes that led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// The wrapping sum of the entries' hashes, so that adding or removing an entry is one addition or subtraction. It guards
    /// against accidents, not against forgery.
    pub digest: u128,
    /// The number of entries.
    pub entries: u64,
}

impl Summary {
    pub(crate) fn add(&mut self, hash: u128) {
        self.digest = self.digest.wrapping_add(hash);
        self.entries += 1;
    }

    pub(crate) fn remove(&mut self, hash: u128) {
        self.digest = self.digest.wrapping_sub(hash);
        self.entries -= 1;
    }
}

/// The hash of one entry. The key's length comes first, so that a byte can't move between key and value.
pub(crate) fn entry_hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest128()
}

/// The change of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// The entry's key.
    pub key: Bytes,
    /// The entry's new value; absent: it is removed.
    pub value: Option<Bytes>,
}

/// A change of a table, from the content `before` to the content `after`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The position after it.
    pub position: Position,
    /// The content before it. A replica with that content may apply it at any position: so a new owner that starts with its
    /// predecessor's content takes over without a snapshot.
    pub before: Summary,
    /// The content after it.
    pub after: Summary,
    /// The entries that changed, each once.
    pub changes: Vec<TableChange>,
    /// Metadata that the owner attached to the change.
    pub meta: Bytes,
    /// How it was received.
    #[serde(skip)]
    pub provenance: Provenance,
}

/// How a change or a table was received; does not travel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provenance {
    /// The schema version of its entries' bytes.
    pub schema: u16,
    /// The trace that the message belongs to.
    pub trace: Option<TraceContext>,
    /// When the message was received.
    pub received_at: Timestamp,
}

/// An owner's report of its table's position and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The position.
    pub position: Position,
    /// The digest of the content.
    pub content: Summary,
}

/// A full table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The position.
    pub position: Position,
    /// The entries: keys and values, each key once.
    pub entries: Vec<(Bytes, Bytes)>,
    /// How it was received.
    #[serde(skip)]
    pub provenance: Provenance,
}

/// A message on a table's subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TableMessage {
    Delta(Delta),
    Heartbeat(Heartbeat),
}

/// A request for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRequest {
    /// The latest epoch that the requester knows: an owner of an older one does not respond.
    pub at_least: Epoch,
}

impl Wire for Delta {}
impl Wire for Heartbeat {}
impl Wire for TableMessage {}
impl Wire for Snapshot {}
impl Wire for SnapshotRequest {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_does_not_depend_on_the_order() {
        let (a, b) = (entry_hash(b"a", b"1"), entry_hash(b"b", b"2"));
        let (mut one, mut other) = (Summary::default(), Summary::default());
        one.add(a);
        one.add(b);
        other.add(b);
        other.add(a);
        assert_eq!(one, other);
        one.remove(a);
        one.remove(b);
        assert_eq!(one, Summary::default());
    }

    #[test]
    fn a_byte_that_moves_from_key_to_value_changes_the_hash() {
        assert_ne!(entry_hash(b"ab", b"c"), entry_hash(b"a", b"bc"));
    }
}
