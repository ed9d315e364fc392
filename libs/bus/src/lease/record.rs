//! The lease as it is in the bucket: JSON, so that people can read it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{Epoch, HolderName};

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The holder; absent: it was given back.
    pub holder: Option<HolderName>,
    /// Told apart from others of the same name, and from the same holder before a restart.
    pub instance: u64,
    /// The holder's epoch.
    pub epoch: Epoch,
    /// Grows with each renewal.
    pub beat: u64,
}

impl LeaseRecord {
    pub(super) fn to_bytes(&self) -> Bytes {
        // A record is plain data with string keys only: JSON can always hold it.
        serde_json::to_vec(self).expect("a lease is JSON").into()
    }

    /// The record, or nothing when the entry holds something else, or an epoch that leaves no room to count on.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<LeaseRecord> {
        serde_json::from_slice(bytes).ok().filter(|record: &LeaseRecord| record.epoch.0 <= Epoch::MAX.0 / 2)
    }
}
