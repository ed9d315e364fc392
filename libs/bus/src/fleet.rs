//! The fleet file on the bus: the last one that was applied, with who and when, and a follower of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    Bus, BusError, Subscription,
    background::Background,
    backoff,
    bucket::{BlobHead, Bucket, Place},
    clock,
    codec::{self, Wire},
    failure_log::FailureLog,
    subjects,
};

const KEY: &str = "fleet";
/// How often a write that lost against another is tried again.
const TRIES: u32 = 5;

/// What is known of a fleet file without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetHead {
    /// Grows with each file: one more than the last, at least the time in milliseconds since the Unix epoch; so it
    /// grows even when the bus lost the last.
    pub revision: u64,
    /// Who applied it.
    pub author: String,
    /// When.
    pub at: Timestamp,
}

impl Wire for FleetHead {}

/// A fleet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetText {
    /// Where it comes from.
    pub head: FleetHead,
    /// The file.
    pub text: String,
}

/// The order of fleet files: the larger is the newer. Two that were applied in different regions within one millisecond
/// differ in the digest, so that all regions choose the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FleetMark {
    /// The file's revision.
    pub revision: u64,
    /// The file's XXH3 digest.
    pub digest: u128,
}

impl FleetText {
    /// Its place in the order of fleet files.
    pub fn mark(&self) -> FleetMark {
        FleetMark { revision: self.head.revision, digest: xxh3_128(self.text.as_bytes()) }
    }
}

/// The bucket with the fleet file.
#[derive(Debug, Clone)]
pub struct FleetStore {
    bus: Bus,
    bucket: Bucket,
}

impl FleetStore {
    /// The store on this bus.
    pub fn new(bus: &Bus) -> FleetStore {
        FleetStore { bucket: bus.bucket(subjects::FLEET_BUCKET), bus: bus.clone() }
    }

    /// Replaces the fleet file, whatever is in `text`: that it is a good one is for the caller to know. Returns its
    /// head.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time, or others write without end.
    pub async fn put(&self, text: &str, author: &str) -> Result<FleetHead, BusError> {
        let mut lost = None;
        for _ in 0..TRIES {
            let before = self.head().await?;
            let last = before.as_ref().map_or(0, |(_, head)| head.revision);
            let revision = (last + 1).max(clock::unix_millis());
            let head = FleetHead { revision, author: author.to_owned(), at: clock::now() };
            let place = before.map_or(Place::Empty, |(blob, _)| Place::Over(blob.revision));
            match self.write(&head, text, place).await {
                Ok(()) => return Ok(head),
                Err(error) if error.is_conflict() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(lost.unwrap_or(BusError::Closed))
    }

    /// The fleet file; nothing when none was applied.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time, or the file is damaged.
    pub async fn get(&self) -> Result<Option<FleetText>, BusError> {
        let Some((blob, text)) = self.bucket.get_blob(KEY).await? else { return Ok(None) };
        let text = String::from_utf8(text.into()).map_err(|_| BusError::Blob {
            bucket: self.bucket.name().to_owned(),
            key: KEY.to_owned(),
            reason: "it is not UTF-8".to_owned(),
        })?;
        Ok(Some(FleetText { head: codec::decode(&blob.label)?, text }))
    }

    /// Puts back a file that the bus has lost, as it was. Where there is one nothing is done. Says whether it was put.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time.
    pub async fn restore(&self, fleet: &FleetText) -> Result<bool, BusError> {
        if self.bucket.blob_head(KEY).await?.is_some() {
            return Ok(false);
        }
        match self.write(&fleet.head, &fleet.text, Place::Empty).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes over a file from another region's bus, as it is, unless there is one as new. Says whether it was written.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time, or others write without end.
    pub async fn accept(&self, fleet: &FleetText) -> Result<bool, BusError> {
        let mut lost = None;
        for _ in 0..TRIES {
            let before = self.head().await?;
            if before.as_ref().is_some_and(|(blob, head)| mark(blob, head) >= fleet.mark()) {
                return Ok(false);
            }
            let place = before.map_or(Place::Empty, |(blob, _)| Place::Over(blob.revision));
            match self.write(&fleet.head, &fleet.text, place).await {
                Ok(()) => return Ok(true),
                Err(error) if error.is_conflict() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(lost.unwrap_or(BusError::Closed))
    }

    /// The place of the file that is there in the order of fleet files; nothing when none was applied.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time.
    pub async fn mark(&self) -> Result<Option<FleetMark>, BusError> {
        Ok(self.head().await?.map(|(blob, head)| mark(&blob, &head)))
    }

    async fn head(&self) -> Result<Option<(BlobHead, FleetHead)>, BusError> {
        let Some(blob) = self.bucket.blob_head(KEY).await? else { return Ok(None) };
        let head = codec::decode(&blob.label)?;
        Ok(Some((blob, head)))
    }

    async fn write(&self, head: &FleetHead, text: &str, place: Place) -> Result<(), BusError> {
        let text = Bytes::copy_from_slice(text.as_bytes());
        self.bucket.put_blob(KEY, codec::encode(head), text, place).await?;
        self.bus.nudge(subjects::FLEET, codec::encode(&head.revision)).await;
        Ok(())
    }
}

fn mark(blob: &BlobHead, head: &FleetHead) -> FleetMark {
    FleetMark { revision: head.revision, digest: blob.digest }
}

/// Follows the fleet file. Dropping it ends that.
#[derive(Debug)]
pub struct FleetFollower {
    fleet: watch::Receiver<Option<Arc<FleetText>>>,
    task: Background,
}

impl FleetFollower {
    /// Follows the fleet file: looks at its head every `poll`, and at once when nudged. With `restore` it puts the file
    /// back when the bus has lost it; somebody must, and more than one may.
    ///
    /// # Errors
    /// When the bus is closed. That it is away is no error.
    pub async fn start(bus: &Bus, poll: Duration, restore: bool) -> Result<FleetFollower, BusError> {
        let nudges = bus.subscribe(subjects::FLEET).await?;
        let (sender, fleet) = watch::channel(None);
        let follower = Follower { store: FleetStore::new(bus), sender, restore };
        let task = Background::default().with(|stop| follower.run(nudges, poll, stop));
        Ok(FleetFollower { fleet, task })
    }

    /// The newest file, as it changes; nothing until one was read. It stays when the bus goes away or loses its data,
    /// and never goes back to an older one.
    pub fn fleet(&self) -> watch::Receiver<Option<Arc<FleetText>>> {
        self.fleet.clone()
    }

    /// Ends it and waits for the end.
    pub async fn stop(self) {
        self.task.stop().await;
    }
}

struct Follower {
    store: FleetStore,
    sender: watch::Sender<Option<Arc<FleetText>>>,
    restore: bool,
}

impl Follower {
    async fn run(self, mut nudges: Subscription, poll: Duration, stop: CancellationToken) {
        // Followers that started together don't look together.
        let mut tick = tokio::time::interval_at(Instant::now() + backoff::jitter(poll), poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = FailureLog::default();
        loop {
            failures.record(self.look().await, "the fleet file could not be looked at");
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                nudge = nudges.next() => if nudge.is_none() { return },
            }
        }
    }

    async fn look(&self) -> Result<(), BusError> {
        let have = self.sender.borrow().clone();
        let Some(there) = self.store.mark().await? else {
            if let (true, Some(fleet)) = (self.restore, &have)
                && self.store.restore(fleet).await?
            {
                tracing::warn!(revision = fleet.head.revision, "the bus had lost the fleet file: put back");
            }
            return Ok(());
        };
        if have.as_ref().is_some_and(|have| have.mark() >= there) {
            return Ok(());
        }
        if let Some(fleet) = self.store.get().await?
            && have.is_none_or(|have| fleet.mark() > have.mark())
        {
            self.sender.send_replace(Some(Arc::new(fleet)));
        }
        Ok(())
    }
}
