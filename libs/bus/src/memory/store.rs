//! A key-value bucket in memory.

use std::{collections::BTreeMap, sync::Mutex};

use bytes::Bytes;

use super::lock;
use crate::bucket::{Entry, Stamp};

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

#[derive(Debug, Default)]
pub(crate) struct MemoryStore(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    revision: u64,
    entries: BTreeMap<String, Entry>,
}

impl MemoryStore {
    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        lock(&self.0).entries.get(key).cloned()
    }

    /// The new revision, or nothing when the entry is not as expected.
    pub(crate) fn write(&self, key: &str, value: Bytes, expected: Expected) -> Option<u64> {
        let mut content = lock(&self.0);
        let present = content.entries.get(key).map(|entry| entry.revision);
        let as_expected = match expected {
            Expected::Any => true,
            Expected::Nothing => present.is_none(),
            Expected::Revision(revision) => present == Some(revision),
        };
        if !as_expected {
            return None;
        }
        content.revision += 1;
        let revision = content.revision;
        content.entries.insert(key.to_owned(), Entry { revision, value });
        Some(revision)
    }

    pub(crate) fn delete(&self, key: &str) {
        let mut content = lock(&self.0);
        content.revision += 1;
        content.entries.remove(key);
    }

    pub(crate) fn delete_below(&self, prefix: &str) {
        lock(&self.0).entries.retain(|key, _| !key.starts_with(prefix));
    }

    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        lock(&self.0).entries.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { created: 0, last_revision: lock(&self.0).revision }
    }
}
