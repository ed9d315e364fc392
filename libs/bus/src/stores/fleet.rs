//! The fleet file on the bus: the one that was applied last, with its author, time and reason, the ones before it, and a
//! follower of it.

mod revisions;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{Timestamp, fleet::ChangeSummary};
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
/// The most bytes of an author and of a reason; the rest is cut. With the changes, they must fit into the label of a blob.
const MOST_AUTHOR_BYTES: usize = 300;
const MOST_REASON_BYTES: usize = 1000;
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
    /// Why; may be empty.
    pub reason: String,
    /// What it changed in the file before.
    pub changes: ChangeSummary,
}

impl Wire for FleetHead {}

/// A head of a file that was applied before heads had reasons and changes.
#[derive(Debug, Serialize, Deserialize)]
struct HeadWithoutReason {
    revision: u64,
    author: String,
    at: Timestamp,
}

impl Wire for HeadWithoutReason {}

/// Decodes the head in the label of a blob.
fn decode_head(label: &[u8]) -> Result<FleetHead, BusError> {
    let error = match codec::decode(label) {
        Ok(head) => return Ok(head),
        Err(error) => error,
    };
    match codec::decode(label) {
        Ok(HeadWithoutReason { revision, author, at }) => {
            let (reason, changes) = (String::new(), ChangeSummary::default());
            Ok(FleetHead { revision, author, at, reason, changes })
        }
        Err(_) => Err(error.into()),
    }
}

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

/// A fleet file that is to be written, which the caller has validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetWrite {
    /// The text of the file.
    pub text: String,
    /// Who applies it.
    pub author: String,
    /// Why; may be empty.
    pub reason: String,
    /// The revision that it must replace: 0 where there must be none yet. Absent: whichever there is.
    pub expected: Option<u64>,
}

/// The outcome of a write of a fleet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetWritten {
    /// It is the fleet file now.
    Applied(FleetHead),
    /// It already was the fleet file: nothing was written.
    Unchanged(FleetHead),
    /// Another revision than the expected one is there: nothing was written.
    Superseded(Option<FleetHead>),
}

/// The bucket with the fleet file, and with the last ones that were applied ([`mod@revisions`]).
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

    /// Writes `text` as the fleet file, for `author`, unless it already is. Returns the head of the file that is there then.
    ///
    /// # Errors
    /// As [`FleetStore::apply`].
    pub async fn put(&self, text: &str, author: &str) -> Result<FleetHead, BusError> {
        let (text, author) = (text.to_owned(), author.to_owned());
        let write = FleetWrite { text, author, reason: String::new(), expected: None };
        match self.apply(&write).await? {
            FleetWritten::Applied(head) | FleetWritten::Unchanged(head) => Ok(head),
            FleetWritten::Superseded(_) => Err(BusError::Closed),
        }
    }

    /// Replaces the fleet file, and adds it to the revisions that are kept. A file that is already there is not written again.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time, or concurrent writes win every time.
    pub async fn apply(&self, write: &FleetWrite) -> Result<FleetWritten, BusError> {
        let mut lost = None;
        for _ in 0..WRITE_ATTEMPTS {
            let before = self.current().await?;
            let last = before.as_ref().map_or(0, |(_, fleet)| fleet.head.revision);
            if write.expected.is_some_and(|expected| expected != last) {
                return Ok(FleetWritten::Superseded(before.map(|(_, fleet)| fleet.head)));
            }
            let text = before.as_ref().map(|(_, fleet)| fleet.text.as_str());
            if let Some((_, fleet)) = before.as_ref().filter(|(_, fleet)| fleet.text == write.text) {
                return Ok(FleetWritten::Unchanged(fleet.head.clone()));
            }
            let head = FleetHead {
                revision: (last + 1).max(clock::unix_millis()),
                author: at_most(&write.author, MOST_AUTHOR_BYTES),
                at: clock::now(),
                reason: at_most(&write.reason, MOST_REASON_BYTES),
                changes: ChangeSummary::between(text, &write.text),
            };
            let precondition = before
                .as_ref()
                .map_or(Precondition::Absent, |(blob, _)| Precondition::Revision(blob.revision));
            match self.write(&head, &write.text, precondition).await {
                Ok(()) => {
                    let after = FleetText { head: head.clone(), text: write.text.clone() };
                    self.keep_revisions(before.map(|(_, fleet)| fleet), &after).await;
                    return Ok(FleetWritten::Applied(head));
                }
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
        Ok(self.current().await?.map(|(_, fleet)| fleet))
    }

    async fn current(&self) -> Result<Option<(BlobHead, FleetText)>, BusError> {
        self.read(KEY).await
    }

    async fn read(&self, key: &str) -> Result<Option<(BlobHead, FleetText)>, BusError> {
        let Some((blob, text)) = self.bucket.get_blob(key).await? else { return Ok(None) };
        let text = String::from_utf8(text.into()).map_err(|_| BusError::Blob {
            bucket: self.bucket.name().to_owned(),
            key: key.to_owned(),
            reason: "it is not UTF-8".to_owned(),
        })?;
        let head = decode_head(&blob.label)?;
        Ok(Some((blob, FleetText { head, text })))
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
            Ok(()) => {
                self.keep_revisions(None, fleet).await;
                Ok(true)
            }
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
            // What is about to be replaced may be from a time before revisions were kept.
            if let Some((blob, _)) = &before {
                self.keep_current(blob).await;
            }
            let precondition =
                before.map_or(Precondition::Absent, |(blob, _)| Precondition::Revision(blob.revision));
            match self.write(&fleet.head, &fleet.text, precondition).await {
                Ok(()) => {
                    self.keep_revisions(None, fleet).await;
                    return Ok(true);
                }
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
        let head = decode_head(&blob.label)?;
        Ok(Some((blob, head)))
    }

    async fn write(&self, head: &FleetHead, text: &str, precondition: Precondition) -> Result<(), BusError> {
        let text = Bytes::copy_from_slice(text.as_bytes());
        self.bucket.put_blob(KEY, codec::encode(head), text, precondition).await?;
        self.bus.notify_change(subjects::FLEET, codec::encode(&head.revision)).await;
        Ok(())
    }
}

fn at_most(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_whose_head_has_no_reason_is_read_and_replaced() {
        let bus = Bus::in_process();
        let old = HeadWithoutReason { revision: 7, author: "ann".to_owned(), at: Timestamp(1) };
        let label = codec::encode(&old);
        let bucket = bus.bucket(subjects::FLEET_BUCKET);
        bucket.put_blob(KEY, label, "old".into(), Precondition::Absent).await.unwrap();

        let store = FleetStore::new(&bus);
        let read = store.get().await.unwrap().unwrap();
        assert_eq!((read.head.revision, read.head.author.as_str(), read.text.as_str()), (7, "ann", "old"));
        let next = store.put("new", "bob").await.unwrap();
        assert_eq!(store.revisions().await.unwrap(), [next, read.head]);
        assert_eq!(store.revision(7).await.unwrap().unwrap().text, "old");
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(at_most("äää", 3), "ä");
        assert_eq!(at_most("abc", 3), "abc");
    }
}
