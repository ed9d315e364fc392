//! The rules of the owner: changes in, deltas out.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidegate_model::{Epoch, Revision};

use super::content::{Delta, Heartbeat, Position, Provenance, Snapshot, Summary, TableChange, entry_hash};

/// The owner's table.
#[derive(Debug, Clone)]
pub struct OwnerCore {
    position: Position,
    entries: BTreeMap<Bytes, Bytes>,
    content: Summary,
}

impl OwnerCore {
    /// A table of `entries` at the start of a term. `revision` is the first revision: at least that of the content that the
    /// term continues from, so that observers see revisions grow.
    pub fn new(
        epoch: Epoch,
        revision: Revision,
        entries: impl IntoIterator<Item = (Bytes, Bytes)>,
    ) -> OwnerCore {
        let entries: BTreeMap<Bytes, Bytes> = entries.into_iter().collect();
        let mut content = Summary::default();
        entries.iter().for_each(|(key, value)| content.add(entry_hash(key, value)));
        OwnerCore { position: Position { epoch, revision }, entries, content }
    }

    /// The position of the table.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The digest of the content.
    pub fn content(&self) -> Summary {
        self.content
    }

    /// Applies changes; of several to one key the last counts. Returns the delta to publish; nothing when nothing changed.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = TableChange>, meta: Bytes) -> Option<Delta> {
        let last: BTreeMap<Bytes, Option<Bytes>> =
            changes.into_iter().map(|change| (change.key, change.value)).collect();
        let before = self.content;
        let mut changed = Vec::new();
        for (key, value) in last {
            if self.entries.get(&key) == value.as_ref() {
                continue;
            }
            let old = match &value {
                Some(value) => {
                    self.content.add(entry_hash(&key, value));
                    self.entries.insert(key.clone(), value.clone())
                }
                None => self.entries.remove(&key),
            };
            if let Some(old) = old {
                self.content.remove(entry_hash(&key, &old));
            }
            changed.push(TableChange { key, value });
        }
        if changed.is_empty() {
            return None;
        }
        self.position.revision.0 += 1;
        let (position, after) = (self.position, self.content);
        Some(Delta { position, before, after, changes: changed, meta, provenance: Provenance::default() })
    }

    /// The heartbeat to publish.
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat { position: self.position, content: self.content }
    }

    /// The snapshot to serve.
    pub fn snapshot(&self) -> Snapshot {
        let entries = self.entries.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        Snapshot { position: self.position, entries, provenance: Provenance::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &'static str, value: &'static str) -> TableChange {
        TableChange { key: Bytes::from(key), value: Some(Bytes::from(value)) }
    }

    #[test]
    fn a_change_to_what_is_there_already_publishes_nothing() {
        let mut owner = OwnerCore::new(Epoch(1), Revision(0), [(Bytes::from("a"), Bytes::from("1"))]);
        let delta =
            owner.apply([set("a", "1"), TableChange { key: Bytes::from("b"), value: None }], Bytes::new());
        assert_eq!(delta, None);
        assert_eq!(owner.position().revision, Revision(0));
    }

    #[test]
    fn of_several_changes_of_one_key_the_last_one_counts() {
        let mut owner = OwnerCore::new(Epoch(1), Revision(7), []);
        let delta = owner.apply([set("a", "1"), set("a", "2")], Bytes::new()).unwrap();
        assert_eq!(delta.changes, [set("a", "2")]);
        assert_eq!(delta.position.revision, Revision(8));
        assert_eq!(
            delta.after,
            OwnerCore::new(Epoch(9), Revision(9), [(Bytes::from("a"), Bytes::from("2"))]).content()
        );
    }
}
