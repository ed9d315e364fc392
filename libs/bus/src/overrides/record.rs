//! What the bucket holds of one thing: the override that stands, or the mark that it was taken back.
//!
//! The mark is what lets regions that were cut off from each other agree: an override that one of them still has is no
//! newer than the mark, so it does not come back.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_model::{
    Timestamp,
    overrides::{Override, OverrideKind},
};

/// What the bucket holds of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Record {
    /// It was taken back. First, because its field is in no override.
    TakenBack(TakenBack),
    /// It stands.
    Standing(Override),
}

/// The mark of an override that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TakenBack {
    /// What was overridden.
    pub kind: OverrideKind,
    /// When it was taken back.
    pub taken_back_at: Timestamp,
}

impl Record {
    /// The record in the entry `key`.
    pub fn parse(key: &str, json: &[u8]) -> Result<Record, String> {
        let record: Record = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        match record.kind().key() {
            own if own == key => Ok(record),
            own => Err(format!("it is not at its own key {own}")),
        }
    }

    pub fn to_json(&self) -> Bytes {
        // Plain data with string keys only: JSON can always hold it.
        serde_json::to_vec(self).expect("an override is JSON").into()
    }

    pub fn kind(&self) -> &OverrideKind {
        match self {
            Record::TakenBack(record) => &record.kind,
            Record::Standing(record) => &record.kind,
        }
    }

    /// When it was written.
    pub fn at(&self) -> Timestamp {
        match self {
            Record::TakenBack(record) => record.taken_back_at,
            Record::Standing(record) => record.created_at,
        }
    }

    /// Its place in the order of records of one thing: the larger is the newer. At the same time the mark is, then the
    /// text decides, so that all regions choose the same.
    pub fn rank(&self) -> (Timestamp, bool, Bytes) {
        (self.at(), matches!(self, Record::TakenBack(_)), self.to_json())
    }
}
