//! The fleet file on the bus: the one that was applied last, with its author and time, and a follower of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::Timestamp;
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    Bus, BusError,
    bucket::{BlobHead, Bucket, Precondition},
    bucket_follower::{BucketContent, BucketFollower},
    clock,
    codec::{self, Wire},
    subjects,
};

const KEY: &str = "fleet";
/// The attempts of a write that loses against concurrent ones.
const WRITE_ATTEMPTS: u32 = 5;

/// The head of a fleet file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetHead {
    /// The revision: one more than the last, at least the time in milliseconds since the Unix epoch; so it grows even when
    /// the bus has lost the last.
    pub revision: u64,
    /// Who applied it.
    pub author: String,
    /// When it was applied.
    pub at: Timestamp,
}

impl Wire for FleetHead {}

/// A fleet file with its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetText {
    /// The head.
    pub head: FleetHead,
    /// The text of the file.
    pub text: String,
}

/// The version of a fleet file: the larger is the newer. Two that were applied in different regions within one millisecond
/// differ in the digest, so all regions choose the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FleetVersion {
    /// The file's revision.
    pub revision: u64,
    /// The file's XXH3 digest.
    pub digest: u128,
}

impl FleetText {
    /// The version of the file.
    pub fn version(&self) -> FleetVersion {
        FleetVersion { revision: self.head.revision, digest: xxh3_128(self.text.as_bytes()) }
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

    /// Replaces the fleet file by `text`, which the caller has validated. Returns its head.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time, or concurrent writes win every time.
    pub async fn put(&self, text: &str, author: &str) -> Result<FleetHead, BusError> {
        let mut lost = None;
        for _ in 0..WRITE_ATTEMPTS {
            let before = self.head().await?;
            let last = before.as_ref().map_or(0, |(_, head)| head.revision);
            let revision = (last + 1).max(clock::unix_millis());
            let head = FleetHead { revision, author: author.to_owned(), at: clock::now() };
            let precondition =
                before.map_or(Precondition::Absent, |(blob, _)| Precondition::Revision(blob.revision));
            match self.write(&head, text, precondition).await {
                Ok(()) => return Ok(head),
                Err(error) if error.is_conflict() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(lost.unwrap_or(BusError::Closed))
    }

    /// Reads the fleet file; nothing when none was applied.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time, or the file is damaged.
    pub async fn get(&self) -> Result<Option<FleetText>, BusError> {
        let Some((blob, text)) = self.bucket.get_blob(KEY).await? else { return Ok(None) };
        let text = String::from_utf8(text.into()).map_err(|_| BusError::Blob {
            bucket: self.bucket.name().to_owned(),
            key: KEY.to_owned(),
            reason: "it is not UTF-8".to_owned(),
        })?;
        Ok(Some(FleetText { head: codec::decode(&blob.label)?, text }))
    }

    /// Restores a file that the bus has lost, unless there is one. Returns whether it was written.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn restore(&self, fleet: &FleetText) -> Result<bool, BusError> {
        if self.bucket.blob_head(KEY).await?.is_some() {
            return Ok(false);
        }
        match self.write(&fleet.head, &fleet.text, Precondition::Absent).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a file of another region's bus, unless there is one as new. Returns whether it was written.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time, or concurrent writes win every time.
    pub async fn accept(&self, fleet: &FleetText) -> Result<bool, BusError> {
        let mut lost = None;
        for _ in 0..WRITE_ATTEMPTS {
            let before = self.head().await?;
            if before.as_ref().is_some_and(|(blob, head)| version(blob, head) >= fleet.version()) {
                return Ok(false);
            }
            let precondition =
                before.map_or(Precondition::Absent, |(blob, _)| Precondition::Revision(blob.revision));
            match self.write(&fleet.head, &fleet.text, precondition).await {
                Ok(()) => return Ok(true),
                Err(error) if error.is_conflict() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(lost.unwrap_or(BusError::Closed))
    }

    /// Reads the version of the fleet file; nothing when none was applied.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn version(&self) -> Result<Option<FleetVersion>, BusError> {
        Ok(self.head().await?.map(|(blob, head)| version(&blob, &head)))
    }

    async fn head(&self) -> Result<Option<(BlobHead, FleetHead)>, BusError> {
        let Some(blob) = self.bucket.blob_head(KEY).await? else { return Ok(None) };
        let head = codec::decode(&blob.label)?;
        Ok(Some((blob, head)))
    }

    async fn write(&self, head: &FleetHead, text: &str, precondition: Precondition) -> Result<(), BusError> {
        let text = Bytes::copy_from_slice(text.as_bytes());
        self.bucket.put_blob(KEY, codec::encode(head), text, precondition).await?;
        self.bus.notify_change(subjects::FLEET, codec::encode(&head.revision)).await;
        Ok(())
    }
}

fn version(blob: &BlobHead, head: &FleetHead) -> FleetVersion {
    FleetVersion { revision: head.revision, digest: blob.digest }
}

/// A follower of the fleet file. Dropping it stops it.
#[derive(Debug)]
pub struct FleetFollower(BucketFollower<FleetText>);

impl FleetFollower {
    /// Starts to follow the fleet file: reads its head every `poll`, and after each change notification. With `restore` it
    /// restores a file that the bus has lost; at least one process has to, several may.
    ///
    /// # Errors
    /// When the bus is closed. A bus that is away is no error.
    pub async fn start(bus: &Bus, poll: Duration, restore: bool) -> Result<FleetFollower, BusError> {
        let content = FleetContent { store: FleetStore::new(bus), restore };
        BucketFollower::start(bus, subjects::FLEET, poll, content).await.map(FleetFollower)
    }

    /// The newest file, as it changes; nothing until one was read. It stays when the bus goes away or loses its data, and is
    /// never replaced by an older one.
    pub fn fleet(&self) -> watch::Receiver<Option<Arc<FleetText>>> {
        self.0.value()
    }

    /// Stops and waits for the end.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

struct FleetContent {
    store: FleetStore,
    restore: bool,
}

impl BucketContent for FleetContent {
    type Value = FleetText;

    const READ_FAILURE: &'static str = "the fleet file cannot be read";

    /// Reads the file where it has changed, and restores it where the bus has lost it.
    async fn refresh(&mut self, current: &watch::Sender<Option<Arc<FleetText>>>) -> Result<(), BusError> {
        let have = current.borrow().clone();
        let Some(there) = self.store.version().await? else {
            if let (true, Some(fleet)) = (self.restore, &have)
                && self.store.restore(fleet).await?
            {
                tracing::warn!(revision = fleet.head.revision, "the bus had lost the fleet file: restored");
            }
            return Ok(());
        };
        if have.as_ref().is_some_and(|have| have.version() >= there) {
            return Ok(());
        }
        if let Some(fleet) = self.store.get().await?
            && have.is_none_or(|have| fleet.version() > have.version())
        {
            current.send_replace(Some(Arc::new(fleet)));
        }
        Ok(())
    }
}
