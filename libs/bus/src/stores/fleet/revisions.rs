//! The last fleet files that were applied: each revision is a blob of its own, `revision.<number>.file`, beside the current
//! file.
//!
//! A revision is added after it became the current file, so one whose writer died in between is missing; the next write adds
//! it, as it adds the first one of a bucket that had no revisions. A failure to add one is only logged: the current file is
//! what counts.

use bytes::Bytes;

use super::{FleetHead, FleetStore, FleetText, KEY, decode_head};
use crate::{
    BusError,
    bucket::{BlobHead, Precondition},
    codec,
};

const PREFIX: &str = "revision";
/// The most revisions that are kept.
pub(super) const MOST_REVISIONS: usize = 50;
/// The most bytes of all revisions that are kept. The latest is kept whatever its size.
pub(super) const MOST_BYTES: u64 = 32 << 20;
/// The most bytes of revisions that accompany the current file to another region: they must not keep it from arriving in time.
const MOST_BYTES_TO_REPLICATE: u64 = 1 << 20;

impl FleetStore {
    /// The heads of the revisions that are kept, the latest first.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time.
    pub async fn revisions(&self) -> Result<Vec<FleetHead>, BusError> {
        let mut heads = Vec::new();
        for number in self.revision_numbers().await? {
            match self.bucket.blob_head(&key(number)).await {
                Ok(Some(blob)) => match decode_head(&blob.label) {
                    Ok(head) => heads.push(head),
                    Err(error) => {
                        tracing::warn!(revision = number, %error, "a revision of the fleet cannot be read");
                    }
                },
                // It was removed meanwhile.
                Ok(None) => {}
                Err(error @ BusError::Blob { .. }) => {
                    tracing::warn!(%error, "a revision of the fleet cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        if let Some((_, head)) = self.head().await?
            && heads.iter().all(|other: &FleetHead| other.revision != head.revision)
        {
            heads.push(head);
        }
        heads.sort_by_key(|head| std::cmp::Reverse(head.revision));
        Ok(heads)
    }

    /// Reads one revision; nothing when it is not kept.
    ///
    /// # Errors
    /// When the bus is away or does not respond in time, or the file is damaged.
    pub async fn revision(&self, number: u64) -> Result<Option<FleetText>, BusError> {
        if let Some((_, fleet)) = self.current().await?
            && fleet.head.revision == number
        {
            return Ok(Some(fleet));
        }
        Ok(self.read(&key(number)).await?.map(|(_, fleet)| fleet))
    }

    /// Reads the latest revisions between two, the latest first, up to [`MOST_BYTES_TO_REPLICATE`].
    pub(crate) async fn revisions_between(
        &self,
        after: u64,
        before: u64,
    ) -> Result<Vec<FleetText>, BusError> {
        let mut between = Vec::new();
        let mut bytes = 0;
        for number in self.revision_numbers().await? {
            if number <= after || number >= before {
                continue;
            }
            // One that cannot be read is missing in the other region, too.
            let Ok(Some((blob, fleet))) = self.read(&key(number)).await else { continue };
            bytes += blob.size;
            if bytes > MOST_BYTES_TO_REPLICATE {
                break;
            }
            between.push(fleet);
        }
        Ok(between)
    }

    /// Adds a revision that another region has kept, unless there is one of that number.
    pub(crate) async fn keep_revision(&self, fleet: &FleetText) -> Result<(), BusError> {
        match self.bucket.blob_head(&key(fleet.head.revision)).await? {
            Some(_) => Ok(()),
            None => self.keep(fleet).await,
        }
    }

    /// Adds the file that was replaced, if it is missing, and the one that replaced it. Removes those beyond the limits.
    pub(super) async fn keep_revisions(&self, before: Option<FleetText>, after: &FleetText) {
        let kept = async {
            if let Some(before) = before {
                self.keep(&before).await?;
            }
            self.keep(after).await?;
            self.prune().await
        };
        if let Err(error) = kept.await {
            tracing::warn!(revision = after.head.revision, %error, "a revision of the fleet was not kept for the history");
        }
    }

    /// Adds the current file, whose head is `blob`, if it is missing.
    pub(super) async fn keep_current(&self, blob: &BlobHead) {
        let kept = async {
            let head: FleetHead = decode_head(&blob.label)?;
            if self.bucket.blob_head(&key(head.revision)).await?.is_none()
                && let Some((_, fleet)) = self.read(KEY).await?
            {
                self.keep(&fleet).await?;
            }
            Ok::<_, BusError>(())
        };
        if let Err(error) = kept.await {
            tracing::warn!(%error, "a revision of the fleet was not kept for the history");
        }
    }

    /// Adds a revision. Another file of the same revision, which lost against this one, is replaced.
    async fn keep(&self, fleet: &FleetText) -> Result<(), BusError> {
        let key = key(fleet.head.revision);
        let precondition = match self.bucket.blob_head(&key).await? {
            Some(blob) if blob.digest == fleet.version().digest => return Ok(()),
            Some(blob) => Precondition::Revision(blob.revision),
            None => Precondition::Absent,
        };
        let text = Bytes::copy_from_slice(fleet.text.as_bytes());
        match self.bucket.put_blob(&key, codec::encode(&fleet.head), text, precondition).await {
            // Another process keeps the same one.
            Err(error) if error.is_conflict() => Ok(()),
            written => written.map(|_| ()),
        }
    }

    /// Removes the oldest revisions beyond the limits.
    async fn prune(&self) -> Result<(), BusError> {
        let mut bytes = 0_u64;
        for (at, number) in self.revision_numbers().await?.into_iter().enumerate() {
            let size = match at < MOST_REVISIONS {
                true => self.bucket.blob_head(&key(number)).await?.map_or(0, |blob| blob.size),
                false => u64::MAX,
            };
            bytes = bytes.saturating_add(size);
            if at > 0 && bytes > MOST_BYTES {
                self.bucket.delete_below(&format!("{PREFIX}.{number}")).await?;
            }
        }
        Ok(())
    }

    /// The numbers of the revisions that are kept, the latest first.
    async fn revision_numbers(&self) -> Result<Vec<u64>, BusError> {
        let keys = self.bucket.keys(Some(PREFIX)).await?;
        let mut numbers: Vec<u64> = keys.iter().filter_map(|key| number_of(key)).collect();
        numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
        Ok(numbers)
    }
}

fn key(number: u64) -> String {
    format!("{PREFIX}.{number}.file")
}

fn number_of(key: &str) -> Option<u64> {
    key.strip_prefix(PREFIX)?.strip_prefix('.')?.strip_suffix(".file")?.parse().ok()
}
