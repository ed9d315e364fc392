//! A key-value bucket in memory.

use std::{collections::BTreeMap, sync::Mutex};

use bytes::Bytes;

use crate::{
    bucket::{Entry, Expected, Stamp},
    lock::lock,
};

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

    /// Writes an entry. Returns its revision, or nothing when the precondition does not hold.
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

    /// Deletes an entry. Returns `false` when its revision is not `expected`, if one is given.
    pub(crate) fn delete(&self, key: &str, expected: Option<u64>) -> bool {
        let mut content = lock(&self.0);
        let present = content.entries.get(key).map(|entry| entry.revision);
        if expected.is_some() && present != expected {
            return false;
        }
        content.revision += 1;
        content.entries.remove(key);
        true
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
