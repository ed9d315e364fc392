//! Blobs: values larger than a message, stored as parts below a head.
//!
//! The head (the entry `<key>`) names a generation; the parts are the entries `<key>.part-<generation>.<index>`. A writer
//! writes the parts of a new generation, then replaces the head by compare-and-swap, which commits the write, and deletes
//! the parts of the generation before. A reader whose generation vanishes meanwhile starts again from the new head.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::{Bucket, Expected};
use crate::{
    BusError, clock,
    codec::{self, Wire},
};

/// The size of a part: within any server's message limit, and small enough to let other messages through.
const PART_SIZE: usize = 256 * 1024;
/// The largest blob.
const MAX_SIZE: usize = codec::MAX_BODY;
/// The largest label.
const MAX_LABEL: usize = 4096;
/// How often a reader starts again when its generation vanishes.
const READ_ATTEMPTS: u32 = 5;
/// The age after which parts that no head names are orphans of a writer that died. Younger ones may belong to a writer
/// that is still at work.
const ORPHAN_AGE_MS: u64 = 60_000;

/// The head of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobHead {
    /// The revision of the head, which changes with each write of the blob.
    pub revision: u64,
    /// The label that the writer attached.
    pub label: Bytes,
    /// The blob's size in bytes.
    pub size: u64,
    /// The blob's XXH3 digest.
    pub digest: u128,
    record: Head,
}

/// The precondition of a write of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// There is no blob.
    Absent,
    /// The head has this revision.
    Revision(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    generation: u64,
    parts: u32,
    size: u64,
    digest: u128,
    label: Bytes,
}

impl Wire for Head {}

impl Bucket {
    /// Writes a blob with a label of at most 4 KiB, which can be read without the blob. Returns the revision of the head.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when the precondition does not hold; nothing is left of the blob then. Else as for
    /// [`Bucket::put`], and when the blob is larger than 64 MiB.
    pub async fn put_blob(
        &self,
        key: &str,
        label: Bytes,
        blob: Bytes,
        precondition: Precondition,
    ) -> Result<u64, BusError> {
        for (size, limit) in [(blob.len(), MAX_SIZE), (label.len(), MAX_LABEL)] {
            if size > limit {
                return Err(BusError::TooLarge { subject: key.to_owned(), size, limit });
            }
        }
        let present = self.blob_head(key).await?;
        if let (Precondition::Absent, Some(_)) = (precondition, &present) {
            return Err(self.conflict(key));
        }
        if let (Precondition::Revision(expected), Some(head)) = (precondition, &present)
            && head.revision != expected
        {
            return Err(self.conflict(key));
        }
        // It begins with the time, which shows the age of parts that no head names.
        let generation = (clock::unix_millis() << 20) | u64::from(rand::random::<u32>() >> 12);
        let prefix = parts_prefix(key, generation);
        let parts = blob.len().div_ceil(PART_SIZE);
        for index in 0..parts {
            let part = blob.slice(index * PART_SIZE..blob.len().min((index + 1) * PART_SIZE));
            self.put(&format!("{prefix}.{index}"), part).await?;
        }
        let head = Head {
            generation,
            parts: u32::try_from(parts).unwrap_or(u32::MAX),
            size: blob.len() as u64,
            digest: xxh3_128(&blob),
            label,
        };
        let expected = match precondition {
            Precondition::Absent => Expected::Nothing,
            Precondition::Revision(revision) => Expected::Revision(revision),
        };
        match self.write(key, codec::encode(&head), expected).await {
            Ok(revision) => {
                self.sweep(key, present.map(|head| head.record.generation)).await;
                Ok(revision)
            }
            Err(conflict @ BusError::Conflict { .. }) => {
                if let Err(error) = self.delete_below(&prefix).await {
                    tracing::debug!(key, %error, "the parts of a blob that lost a race are deleted later");
                }
                Err(conflict)
            }
            // It may have been written: the parts stay.
            Err(error) => Err(error),
        }
    }

    /// Reads the head of a blob; nothing when there is none.
    ///
    /// # Errors
    /// As for [`Bucket::get`], and when the entry is no head.
    pub async fn blob_head(&self, key: &str) -> Result<Option<BlobHead>, BusError> {
        let Some(entry) = self.get(key).await? else { return Ok(None) };
        let record: Head = codec::decode(&entry.value).map_err(|error| BusError::Blob {
            bucket: self.name.to_string(),
            key: key.to_owned(),
            reason: format!("{error}; a newer version of tidegate may have written it"),
        })?;
        Ok(Some(BlobHead {
            revision: entry.revision,
            label: record.label.clone(),
            size: record.size,
            digest: record.digest,
            record,
        }))
    }

    /// Reads a blob; nothing when there is none.
    ///
    /// # Errors
    /// As for [`Bucket::get`], and when the blob's parts are missing or damaged.
    pub async fn get_blob(&self, key: &str) -> Result<Option<(BlobHead, Bytes)>, BusError> {
        let mut reason = String::new();
        for _ in 0..READ_ATTEMPTS {
            let Some(head) = self.blob_head(key).await? else { return Ok(None) };
            match self.read_parts(key, &head.record).await? {
                Ok(blob) => return Ok(Some((head, blob))),
                Err(why) => reason = why,
            }
        }
        Err(BusError::Blob { bucket: self.name.to_string(), key: key.to_owned(), reason })
    }

    async fn read_parts(&self, key: &str, head: &Head) -> Result<Result<Bytes, String>, BusError> {
        let prefix = parts_prefix(key, head.generation);
        let mut blob = BytesMut::new();
        for index in 0..head.parts {
            match self.get(&format!("{prefix}.{index}")).await? {
                Some(part) => blob.extend_from_slice(&part.value),
                None => return Ok(Err(format!("part {index} of {} is missing", head.parts))),
            }
            if blob.len() > MAX_SIZE {
                return Ok(Err(format!("it is larger than {MAX_SIZE} bytes")));
            }
        }
        if blob.len() as u64 != head.size || xxh3_128(&blob) != head.digest {
            return Ok(Err("its parts do not have the digest that its head names".to_owned()));
        }
        Ok(Ok(blob.freeze()))
    }

    /// Deletes the parts of the generation `before` that was just replaced, and orphans.
    async fn sweep(&self, key: &str, before: Option<u64>) {
        let swept = async {
            if let Some(generation) = before {
                self.delete_below(&parts_prefix(key, generation)).await?;
            }
            let mut generations: Vec<u64> =
                self.keys(Some(key)).await?.iter().filter_map(|k| generation_of(key, k)).collect();
            generations.dedup();
            let oldest = clock::unix_millis().saturating_sub(ORPHAN_AGE_MS);
            generations.retain(|generation| generation >> 20 < oldest);
            if generations.is_empty() {
                return Ok(());
            }
            // Read after the listing: no later head will name what this one does not.
            let named = self.blob_head(key).await?.map(|head| head.record.generation);
            for generation in generations.into_iter().filter(|generation| named != Some(*generation)) {
                self.delete_below(&parts_prefix(key, generation)).await?;
            }
            Ok::<_, BusError>(())
        };
        if let Err(error) = swept.await {
            tracing::debug!(key, %error, "old parts of a blob are deleted later");
        }
    }
}

fn parts_prefix(key: &str, generation: u64) -> String {
    format!("{key}.part-{generation:016x}")
}

fn generation_of(key: &str, part: &str) -> Option<u64> {
    let rest = part.strip_prefix(key)?.strip_prefix(".part-")?;
    u64::from_str_radix(rest.split('.').next()?, 16).ok()
}
