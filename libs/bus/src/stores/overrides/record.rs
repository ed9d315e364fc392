//! The record of one override in the bucket: the active override, or the tombstone of a withdrawn one.
//!
//! The tombstone lets regions that were cut off from each other agree: an override that one of them still has is older
//! than the tombstone, so it does not come back.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{
    Timestamp,
    overrides::{Override, OverrideKind, Withdrawal},
};

/// The record of one override.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Record {
    /// It was withdrawn. The first variant, because no override has its field.
    Withdrawn(Withdrawal),
    /// It is active.
    Active(Override),
}

impl Record {
    /// The record in the entry `key`.
    pub fn parse(key: &str, json: &[u8]) -> Result<Record, String> {
        let record: Record = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        match record.kind().key() {
            own if own == key => Ok(record),
            own => Err(format!("its own key is {own}")),
        }
    }

    pub fn to_json(&self) -> Bytes {
        // Plain data with string keys only: JSON can always hold it.
        serde_json::to_vec(self).expect("an override is JSON").into()
    }

    pub fn kind(&self) -> &OverrideKind {
        match self {
            Record::Withdrawn(record) => &record.kind,
            Record::Active(record) => &record.kind,
        }
    }

    /// When it was written.
    pub fn at(&self) -> Timestamp {
        match self {
            Record::Withdrawn(record) => record.withdrawn_at,
            Record::Active(record) => record.created_at,
        }
    }

    /// The position in the order of records of one kind: the larger is the newer. At equal times the tombstone is newer,
    /// then the text decides, so that all regions choose the same.
    pub fn rank(&self) -> (Timestamp, bool, Bytes) {
        (self.at(), matches!(self, Record::Withdrawn(_)), self.to_json())
    }
}
