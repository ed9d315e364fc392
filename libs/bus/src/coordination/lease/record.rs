//! The entry of a lease in the bucket: JSON, so that people can read it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{Epoch, HolderName};

/// The holder of a lease and its term.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The holder; absent: the lease was released.
    pub holder: Option<HolderName>,
    /// Distinguishes the holder from others of its name, and from itself before a restart.
    pub instance: u64,
    /// The epoch of the holder's term.
    pub epoch: Epoch,
    /// Grows with each renewal.
    pub beat: u64,
}

impl LeaseRecord {
    pub(super) fn to_bytes(&self) -> Bytes {
        // A record is plain data with string keys only: JSON can always hold it.
        serde_json::to_vec(self).expect("a lease is JSON").into()
    }

    /// The record; nothing when the entry holds something else, or an epoch too large to count on from.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<LeaseRecord> {
        serde_json::from_slice(bytes).ok().filter(|record: &LeaseRecord| record.epoch.0 <= Epoch::MAX.0 / 2)
    }
}
