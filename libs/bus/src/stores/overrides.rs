//! Overrides on the bus: one entry each, as JSON that people can read with the `nats` tool, and a follower of them.

mod record;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tidegate_model::{
    Timestamp,
    overrides::{Override, OverrideKind, OverrideSet, Withdrawal},
};
use tokio::sync::watch;

use crate::{
    Bus, BusError,
    bucket::{Bucket, Stamp},
    bucket_follower::{BucketContent, BucketFollower},
    clock, subjects,
};

pub(crate) use record::Record;

/// The attempts of a write that loses against concurrent ones.
const WRITE_ATTEMPTS: u32 = 5;

/// Overrides by their key ([`OverrideKind::key`]). Expired ones may be among them.
pub type Overrides = BTreeMap<String, Override>;

/// The bucket with the overrides.
#[derive(Debug, Clone)]
pub struct OverrideStore {
    bus: Bus,
    bucket: Bucket,
}

impl OverrideStore {
    /// The store on this bus.
    pub fn new(bus: &Bus) -> OverrideStore {
        OverrideStore { bucket: bus.bucket(subjects::OVERRIDES_BUCKET), bus: bus.clone() }
    }

    /// Writes an override, in place of another one of the same kind and object. Where a clock that is ahead has written or
    /// withdrawn that one, this one's time is moved after it, so that it wins in every region.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn put(&self, entry: &Override) -> Result<(), BusError> {
        self.replace(&entry.kind, |before| {
            let created_at = entry.created_at.max(after(before));
            Some(Record::Active(Override { created_at, ..entry.clone() }))
        })
        .await?;
        Ok(())
    }

    /// Withdraws an override, for `author` and with a reason. Returns whether there was one.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn withdraw(&self, kind: &OverrideKind, author: &str, reason: &str) -> Result<bool, BusError> {
        let now = clock::now();
        self.replace(kind, |before| {
            let active = before.filter(|record| matches!(record, Record::Active(_)))?;
            let (author, reason) = (author.to_owned(), reason.to_owned());
            let withdrawn_at = now.max(after(Some(active)));
            // Of a forced route the caller may not know the cluster.
            let kind = active.kind().clone();
            Some(Record::Withdrawn(Withdrawal { kind, author, reason, withdrawn_at }))
        })
        .await
    }

    /// Writes a record of another region's bus, unless there is one as new. Returns whether it was written.
    ///
    /// # Errors
    /// As [`OverrideStore::put`].
    pub(crate) async fn accept(&self, record: &Record) -> Result<bool, BusError> {
        let newer = |before: Option<&Record>| {
            before.is_none_or(|there| there.rank() < record.rank()).then(|| record.clone())
        };
        match self.replace(record.kind(), newer).await {
            // Concurrent writes won every time; the next digest shows what is left to do.
            Err(error) if error.is_conflict() => Ok(false),
            done => done,
        }
    }

    /// Replaces the record of `kind` by what `next` makes of it, if anything. Returns whether it wrote.
    async fn replace(
        &self,
        kind: &OverrideKind,
        next: impl Fn(Option<&Record>) -> Option<Record>,
    ) -> Result<bool, BusError> {
        let key = kind.key();
        let mut lost = None;
        for _ in 0..WRITE_ATTEMPTS {
            let before = self.bucket.get(&key).await?;
            // A record that can't be read is replaced.
            let record = before.as_ref().and_then(|entry| Record::parse(&key, &entry.value).ok());
            let Some(record) = next(record.as_ref()) else { return Ok(false) };
            let written = match before {
                Some(entry) => self.bucket.update(&key, record.to_json(), entry.revision).await,
                None => self.bucket.create(&key, record.to_json()).await,
            };
            match written {
                Ok(_) => {
                    self.bus.notify_change(subjects::OVERRIDES, Bytes::new()).await;
                    return Ok(true);
                }
                Err(error) if error.is_conflict() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(lost.unwrap_or(BusError::Closed))
    }

    /// Deletes a tombstone, unless it was replaced since it was read at this revision.
    pub(crate) async fn purge(&self, tombstone: &Withdrawal, revision: u64) -> Result<(), BusError> {
        self.bucket.delete_at(&tombstone.kind.key(), revision).await
    }

    /// Reads the stamp of the bucket, which changes with each write.
    pub(crate) async fn stamp(&self) -> Result<Stamp, BusError> {
        self.bucket.stamp().await
    }

    /// Reads all records, overrides and tombstones, each with its entry's revision.
    pub(crate) async fn records(&self) -> Result<Vec<(u64, Record)>, BusError> {
        let mut records = Vec::new();
        for (key, entry) in self.bucket.list().await? {
            match Record::parse(&key, &entry.value) {
                Ok(record) => records.push((entry.revision, record)),
                Err(reason) => tracing::warn!(key, reason, "an override cannot be read"),
            }
        }
        Ok(records)
    }

    /// Reads all overrides. One that can't be read, or is not at its own key, is skipped with a warning.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn list(&self) -> Result<Overrides, BusError> {
        Ok(self.read().await?.active)
    }

    /// Reads all overrides and withdrawals, as [`OverrideStore::list`] does.
    async fn read(&self) -> Result<OverrideSet, BusError> {
        let mut all = OverrideSet::default();
        for (_, record) in self.records().await? {
            match record {
                Record::Active(entry) => _ = all.active.insert(entry.kind.key(), entry),
                Record::Withdrawn(entry) => _ = all.withdrawn.insert(entry.kind.key(), entry),
            }
        }
        Ok(all)
    }
}

/// The earliest time after that of a record.
fn after(before: Option<&Record>) -> Timestamp {
    before.map_or(Timestamp(0), |record| Timestamp(record.at().0 + 1))
}

/// A follower of the overrides. Dropping it stops it.
#[derive(Debug)]
pub struct OverrideFollower(BucketFollower<OverrideSet>);

impl OverrideFollower {
    /// Starts to follow the overrides: reads the bucket's stamp every `poll`, and after each change notification. With
    /// `restore` it restores the overrides when the bus has lost its data.
    ///
    /// # Errors
    /// When the bus is closed. A bus that is away is no error.
    pub async fn start(bus: &Bus, poll: Duration, restore: bool) -> Result<OverrideFollower, BusError> {
        let content = OverrideContent { store: OverrideStore::new(bus), restore, stamp: None };
        BucketFollower::start(bus, subjects::OVERRIDES, poll, content).await.map(OverrideFollower)
    }

    /// All overrides and withdrawals, as they change; nothing until they were read. They stay when the bus goes away.
    pub fn overrides(&self) -> watch::Receiver<Option<Arc<OverrideSet>>> {
        self.0.value()
    }

    /// Stops and waits for the end.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

struct OverrideContent {
    store: OverrideStore,
    restore: bool,
    stamp: Option<Stamp>,
}

impl BucketContent for OverrideContent {
    type Value = OverrideSet;

    const READ_FAILURE: &'static str = "the overrides cannot be read";

    /// Reads the overrides where they have changed, and restores them where the bus has lost them.
    async fn refresh(&mut self, current: &watch::Sender<Option<Arc<OverrideSet>>>) -> Result<(), BusError> {
        let stamp = self.store.bucket.stamp().await?;
        if self.stamp == Some(stamp) {
            return Ok(());
        }
        let mut overrides = self.store.read().await?;
        let have = current.borrow().clone();
        // The bucket was created again, and nobody deletes it: its data was lost.
        let lost = self.stamp.is_some_and(|before| before.created != stamp.created);
        if let (true, true, Some(have)) = (lost, self.restore, &have) {
            for (key, entry) in have.active.iter().filter(|(key, _)| !overrides.active.contains_key(*key)) {
                match self.store.bucket.create(key, Record::Active(entry.clone()).to_json()).await {
                    Ok(_) => tracing::warn!(key, "the bus had lost an override: restored"),
                    Err(error) if error.is_conflict() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if lost && self.restore {
            // With those that this follower or another has restored.
            overrides = self.store.read().await?;
        }
        if have.as_deref() != Some(&overrides) {
            current.send_replace(Some(Arc::new(overrides)));
        }
        // The stamp was read before the list: what was written meanwhile is seen next time.
        self.stamp = Some(stamp);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NatsSettings, testing::NatsServer};

    #[tokio::test]
    async fn a_tombstone_that_was_replaced_meanwhile_is_not_purged() {
        let server = NatsServer::start();
        let over_nats = Bus::connect(NatsSettings::new([server.url()], "test")).await.unwrap();
        assert!(over_nats.ready(Duration::from_secs(20)).await);
        for bus in [over_nats, Bus::in_process()] {
            let store = OverrideStore::new(&bus);
            let kind = OverrideKind::DrainCluster("eu-1".parse().unwrap());
            let (author, reason, created_at) = ("ann".to_owned(), String::new(), clock::now());
            let drain = Override { kind, author, reason, created_at, expires_at: None };
            store.put(&drain).await.unwrap();
            assert!(store.withdraw(&drain.kind, "bob", "").await.unwrap());
            let records = store.records().await.unwrap();
            let [(revision, Record::Withdrawn(tombstone))] = records.as_slice() else {
                panic!("{records:?}")
            };

            store.put(&drain).await.unwrap();
            assert!(store.purge(tombstone, *revision).await.is_err());
            assert_eq!(store.list().await.unwrap().len(), 1);

            assert!(store.withdraw(&drain.kind, "bob", "").await.unwrap());
            let records = store.records().await.unwrap();
            let [(revision, Record::Withdrawn(tombstone))] = records.as_slice() else {
                panic!("{records:?}")
            };
            store.purge(tombstone, *revision).await.unwrap();
            assert!(store.records().await.unwrap().is_empty());
        }
    }
}
