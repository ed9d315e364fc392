//! What a table's messages hold, and the digest that tells whether two tables are equal.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{Epoch, Revision, Timestamp};
use xxhash_rust::xxh3::Xxh3;

use crate::{TraceContext, codec::Wire};

/// Where a table stands: by its owner's reign, then by the changes in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The owner's reign.
    pub epoch: Epoch,
    /// The table's state in it.
    pub revision: Revision,
}

/// What a table's content comes down to: equal for equal entries, whatever the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// The wrapping sum of the entries' hashes: an entry's coming or going is one addition or subtraction. A guard
    /// against accidents, not against forgers.
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

/// One entry's change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// The entry's key.
    pub key: Bytes,
    /// The entry's new value; absent: it goes.
    pub value: Option<Bytes>,
}

/// A change of a table, from the content `before` to the content `after`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Where the table stands after it.
    pub position: Position,
    /// The content that it is a change of. A replica with that content may apply it, whatever its position: so a new
    /// owner that begins with what the last one had needs no snapshot to take over.
    pub before: Summary,
    /// The content after it.
    pub after: Summary,
    /// The entries that changed, each once.
    pub changes: Vec<TableChange>,
    /// What the owner says beside the change.
    pub meta: Bytes,
    /// How it came here.
    #[serde(skip)]
    pub provenance: Provenance,
}

/// How a change or a table came to a replica; does not travel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provenance {
    /// The schema version of its entries' bytes.
    pub schema: u16,
    /// The trace that the message belongs to.
    pub trace: Option<TraceContext>,
    /// When the message was received.
    pub received_at: Timestamp,
}

/// An owner's word of where its table stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Where it stands.
    pub position: Position,
    /// Its content.
    pub content: Summary,
}

/// A whole table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Where it stands.
    pub position: Position,
    /// Its entries: keys and values, each key once.
    pub entries: Vec<(Bytes, Bytes)>,
    /// How it came here.
    #[serde(skip)]
    pub provenance: Provenance,
}

/// What is published on a table's subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TableMessage {
    Delta(Delta),
    Heartbeat(Heartbeat),
}

/// The request for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRequest {
    /// Who asks knows that this epoch began: an owner of an older one keeps silent.
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
