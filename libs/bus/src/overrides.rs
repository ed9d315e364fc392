//! Overrides on the bus: one entry each, as JSON so that people can read them with the `nats` tool, and a follower.

mod record;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tidegate_model::{
    Timestamp,
    overrides::{Override, OverrideKind},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, BusError, Subscription,
    background::Background,
    backoff,
    bucket::{Bucket, Stamp},
    clock,
    failure_log::FailureLog,
    subjects,
};

pub(crate) use record::{Record, TakenBack};

/// How often a write that lost against another is tried again.
const TRIES: u32 = 5;

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

    /// Writes an override in place of another of the same thing. Where that was written, or taken back, by a clock that is
    /// ahead, this one's time is moved behind it: the later word counts in every region.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time.
    pub async fn put(&self, entry: &Override) -> Result<(), BusError> {
        self.replace(&entry.kind, |before| {
            let created_at = entry.created_at.max(after(before));
            Some(Record::Standing(Override { created_at, ..entry.clone() }))
        })
        .await?;
        Ok(())
    }

    /// Removes an override. Says whether there was one.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time.
    pub async fn delete(&self, kind: &OverrideKind) -> Result<bool, BusError> {
        let now = clock::now();
        self.replace(kind, |before| {
            let standing = before.filter(|record| matches!(record, Record::Standing(_)))?;
            let taken_back_at = now.max(after(Some(standing)));
            Some(Record::TakenBack(TakenBack { kind: kind.clone(), taken_back_at }))
        })
        .await
    }

    /// Takes over a record from another region's bus, unless there is one of the same thing that is as new. Says whether
    /// it was written.
    ///
    /// # Errors
    /// As [`OverrideStore::put`].
    pub(crate) async fn accept(&self, record: &Record) -> Result<bool, BusError> {
        let newer = |before: Option<&Record>| {
            before.is_none_or(|there| there.rank() < record.rank()).then(|| record.clone())
        };
        match self.replace(record.kind(), newer).await {
            // Somebody writes without end; the next comparison finds out what is left to do.
            Err(error) if error.is_conflict() => Ok(false),
            done => done,
        }
    }

    /// Replaces what is there of `kind` by what `next` makes of it, if anything. Says whether it wrote.
    async fn replace(
        &self,
        kind: &OverrideKind,
        next: impl Fn(Option<&Record>) -> Option<Record>,
    ) -> Result<bool, BusError> {
        let key = kind.key();
        let mut lost = None;
        for _ in 0..TRIES {
            let before = self.bucket.get(&key).await?;
            // What can't be read is replaced.
            let record = before.as_ref().and_then(|entry| Record::parse(&key, &entry.value).ok());
            let Some(record) = next(record.as_ref()) else { return Ok(false) };
            let written = match before {
                Some(entry) => self.bucket.update(&key, record.to_json(), entry.revision).await,
                None => self.bucket.create(&key, record.to_json()).await,
            };
            match written {
                Ok(_) => {
                    self.bus.nudge(subjects::OVERRIDES, Bytes::new()).await;
                    return Ok(true);
                }
                Err(error) if error.is_conflict() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(lost.unwrap_or(BusError::Closed))
    }

    /// Removes the mark of one that was taken back, unless it was replaced since it was read at this revision.
    pub(crate) async fn forget(&self, mark: &TakenBack, revision: u64) -> Result<(), BusError> {
        self.bucket.delete_at(&mark.kind.key(), revision).await
    }

    /// Differs from an earlier one when anything was written since.
    pub(crate) async fn stamp(&self) -> Result<Stamp, BusError> {
        self.bucket.stamp().await
    }

    /// All records, each with its entry's revision: the overrides, and the marks of those that were taken back.
    pub(crate) async fn records(&self) -> Result<Vec<(u64, Record)>, BusError> {
        let mut records = Vec::new();
        for (key, entry) in self.bucket.list().await? {
            match Record::parse(&key, &entry.value) {
                Ok(record) => records.push((entry.revision, record)),
                Err(reason) => tracing::warn!(key, reason, "an override is left out"),
            }
        }
        Ok(records)
    }

    /// All overrides. What can't be read, or is not at its own key, is left out with a warning.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time.
    pub async fn list(&self) -> Result<Overrides, BusError> {
        let standing = |(_, record)| match record {
            Record::Standing(entry) => Some((entry.kind.key(), entry)),
            Record::TakenBack(_) => None,
        };
        Ok(self.records().await?.into_iter().filter_map(standing).collect())
    }
}

/// The earliest time that is later than what is there.
fn after(before: Option<&Record>) -> Timestamp {
    before.map_or(Timestamp(0), |record| Timestamp(record.at().0 + 1))
}

/// Follows the overrides. Dropping it ends that.
#[derive(Debug)]
pub struct OverrideFollower {
    overrides: watch::Receiver<Option<Arc<Overrides>>>,
    task: Background,
}

impl OverrideFollower {
    /// Follows the overrides: looks every `poll` whether anything was written, and at once when nudged. With `restore`
    /// it puts them back when the bus has lost its data.
    ///
    /// # Errors
    /// When the bus is closed. That it is away is no error.
    pub async fn start(bus: &Bus, poll: Duration, restore: bool) -> Result<OverrideFollower, BusError> {
        let nudges = bus.subscribe(subjects::OVERRIDES).await?;
        let (sender, overrides) = watch::channel(None);
        let follower = Follower { store: OverrideStore::new(bus), sender, restore, stamp: None };
        let task = Background::default().with(|stop| follower.run(nudges, poll, stop));
        Ok(OverrideFollower { overrides, task })
    }

    /// All overrides, as they change; nothing until they were read. They stay when the bus goes away.
    pub fn overrides(&self) -> watch::Receiver<Option<Arc<Overrides>>> {
        self.overrides.clone()
    }

    /// Ends it and waits for the end.
    pub async fn stop(self) {
        self.task.stop().await;
    }
}

struct Follower {
    store: OverrideStore,
    sender: watch::Sender<Option<Arc<Overrides>>>,
    restore: bool,
    stamp: Option<Stamp>,
}

impl Follower {
    async fn run(mut self, mut nudges: Subscription, poll: Duration, stop: CancellationToken) {
        let mut tick = tokio::time::interval_at(Instant::now() + backoff::jitter(poll), poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = FailureLog::default();
        loop {
            failures.record(self.look().await, "the overrides could not be looked at");
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                nudge = nudges.next() => if nudge.is_none() { return },
            }
        }
    }

    async fn look(&mut self) -> Result<(), BusError> {
        let stamp = self.store.bucket.stamp().await?;
        if self.stamp == Some(stamp) {
            return Ok(());
        }
        let mut overrides = self.store.list().await?;
        let have = self.sender.borrow().clone();
        // Another bucket than before, where nobody has deleted anything: its data was lost.
        let lost = self.stamp.is_some_and(|before| before.created != stamp.created);
        if let (true, true, Some(have)) = (lost, self.restore, &have) {
            for (key, entry) in have.iter().filter(|(key, _)| !overrides.contains_key(*key)) {
                match self.store.bucket.create(key, Record::Standing(entry.clone()).to_json()).await {
                    Ok(_) => tracing::warn!(key, "the bus had lost an override: put back"),
                    Err(error) if error.is_conflict() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if lost && self.restore {
            // With what was put back, by this follower or another.
            overrides = self.store.list().await?;
        }
        if have.as_deref() != Some(&overrides) {
            self.sender.send_replace(Some(Arc::new(overrides)));
        }
        // Read before the list: what was written meanwhile is seen next time.
        self.stamp = Some(stamp);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NatsSettings, testing::NatsServer};

    #[tokio::test]
    async fn a_mark_that_was_replaced_meanwhile_is_not_forgotten() {
        let server = NatsServer::start();
        let over_nats = Bus::connect(NatsSettings::new([server.url()], "test")).await.unwrap();
        assert!(over_nats.ready(Duration::from_secs(20)).await);
        for bus in [over_nats, Bus::in_process()] {
            let store = OverrideStore::new(&bus);
            let kind = OverrideKind::DrainCluster("eu-1".parse().unwrap());
            let (author, reason, created_at) = ("ann".to_owned(), String::new(), clock::now());
            let drain = Override { kind, author, reason, created_at, expires_at: None };
            store.put(&drain).await.unwrap();
            assert!(store.delete(&drain.kind).await.unwrap());
            let records = store.records().await.unwrap();
            let [(revision, Record::TakenBack(mark))] = records.as_slice() else { panic!("{records:?}") };

            store.put(&drain).await.unwrap();
            assert!(store.forget(mark, *revision).await.is_err());
            assert_eq!(store.list().await.unwrap().len(), 1);

            assert!(store.delete(&drain.kind).await.unwrap());
            let records = store.records().await.unwrap();
            let [(revision, Record::TakenBack(mark))] = records.as_slice() else { panic!("{records:?}") };
            store.forget(mark, *revision).await.unwrap();
            assert!(store.records().await.unwrap().is_empty());
        }
    }
}
