//! Key-value buckets: small entries with compare-and-swap, and blobs larger than a message.
//!
//! A bucket has no watchers. A follower polls its [`Stamp`] once a second, and at once after a change notification.

mod blob;
mod entry;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    BusError,
    memory::store::MemoryStore,
    nats::{NatsBus, store::NatsStore},
};

pub use blob::{BlobHead, Precondition};
pub(crate) use entry::Expected;
pub use entry::{Entry, Stamp};

/// A key-value bucket. The first write creates it (history 1, file storage), also after a server lost its data; until then
/// it reads as empty.
///
/// A key is made of letters, digits and `-_=/`, in tokens between dots. Every call ends within [`Bucket::LIMIT`]. Clones
/// share the connection to the bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    name: Arc<str>,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    Nats(Arc<NatsStore>),
    Memory(Arc<MemoryStore>),
}

impl Bucket {
    /// The time limit of a call.
    pub const LIMIT: Duration = crate::nats::BUCKET_LIMIT;

    pub(crate) fn nats(bus: Arc<NatsBus>, name: &str) -> Bucket {
        Bucket { name: name.into(), store: Store::Nats(Arc::new(NatsStore::new(bus, name))) }
    }

    pub(crate) fn memory(store: Arc<MemoryStore>, name: &str) -> Bucket {
        Bucket { name: name.into(), store: Store::Memory(store) }
    }

    /// The bucket's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates the bucket where it is missing, for users who may write to it but not create it, and raises its replicas to
    /// what this process is configured for.
    ///
    /// # Errors
    /// When the bus is away, does not respond in time, or this user has no permission.
    pub async fn ensure(&self) -> Result<(), BusError> {
        match &self.store {
            Store::Nats(nats) => nats.ensure().await,
            Store::Memory(_) => Ok(()),
        }
    }

    /// Reads an entry; nothing when there is none.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, BusError> {
        self.check(key)?;
        match &self.store {
            Store::Nats(nats) => nats.get(key).await,
            Store::Memory(memory) => Ok(memory.get(key)),
        }
    }

    /// Writes an entry unconditionally. Returns its revision.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time, or the value is larger than a message.
    pub async fn put(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        self.write(key, value, Expected::Any).await
    }

    /// Creates an entry. Returns its revision.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when it exists; else as for [`Bucket::put`].
    pub async fn create(&self, key: &str, value: Bytes) -> Result<u64, BusError> {
        self.write(key, value, Expected::Nothing).await
    }

    /// Replaces the entry of revision `expected`. Returns its new revision.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when the entry has another revision; else as for [`Bucket::put`]. After
    /// [`BusError::TimedOut`] it may have been replaced or not.
    pub async fn update(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, BusError> {
        self.write(key, value, Expected::Revision(expected)).await
    }

    /// Deletes an entry, if it exists.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn delete(&self, key: &str) -> Result<(), BusError> {
        self.delete_where(key, None).await
    }

    /// Deletes the entry of revision `expected`.
    ///
    /// # Errors
    /// When it has another revision, or the bus is away or does not respond in time.
    pub(crate) async fn delete_at(&self, key: &str, expected: u64) -> Result<(), BusError> {
        self.delete_where(key, Some(expected)).await
    }

    async fn delete_where(&self, key: &str, expected: Option<u64>) -> Result<(), BusError> {
        self.check(key)?;
        match &self.store {
            Store::Nats(nats) => nats.delete(key, expected).await,
            Store::Memory(memory) if memory.delete(key, expected) => Ok(()),
            Store::Memory(_) => Err(self.conflict(key)),
        }
    }

    /// All entries by key, read one after the other: an entry written meanwhile may be old or new. The parts of blobs are
    /// among them.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn list(&self) -> Result<Vec<(String, Entry)>, BusError> {
        let mut entries = Vec::new();
        for key in self.keys(None).await? {
            if let Some(entry) = self.get(&key).await? {
                entries.push((key, entry));
            }
        }
        Ok(entries)
    }

    /// The bucket's stamp, which shows cheaply whether anything has changed.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn stamp(&self) -> Result<Stamp, BusError> {
        match &self.store {
            Store::Nats(nats) => nats.stamp().await,
            Store::Memory(memory) => Ok(memory.stamp()),
        }
    }

    async fn write(&self, key: &str, value: Bytes, expected: Expected) -> Result<u64, BusError> {
        self.check(key)?;
        match &self.store {
            Store::Nats(nats) => nats.write(key, value, expected).await,
            Store::Memory(memory) => memory.write(key, value, expected).ok_or_else(|| self.conflict(key)),
        }
    }

    fn conflict(&self, key: &str) -> BusError {
        BusError::Conflict { bucket: self.name.to_string(), key: key.to_owned() }
    }

    /// The keys `<prefix>.…`, or all; deleted ones may be among them.
    pub(crate) async fn keys(&self, prefix: Option<&str>) -> Result<Vec<String>, BusError> {
        match &self.store {
            Store::Nats(nats) => nats.keys(prefix).await,
            Store::Memory(memory) => {
                Ok(memory.keys(&prefix.map(|prefix| format!("{prefix}.")).unwrap_or_default()))
            }
        }
    }

    /// Removes every key `<prefix>.…`.
    pub(crate) async fn delete_below(&self, prefix: &str) -> Result<(), BusError> {
        match &self.store {
            Store::Nats(nats) => nats.delete_below(prefix).await,
            Store::Memory(memory) => {
                memory.delete_below(&format!("{prefix}."));
                Ok(())
            }
        }
    }

    fn check(&self, key: &str) -> Result<(), BusError> {
        let token = |token: &str| {
            !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=/".contains(&b))
        };
        if key.split('.').all(token) {
            return Ok(());
        }
        Err(BusError::Bucket {
            bucket: self.name.to_string(),
            operation: "use of a key",
            reason: format!("{key:?} is not a key"),
        })
    }
}
