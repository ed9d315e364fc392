//! The domain's types: names, the fleet, observations, verdicts, route tables, reports and events, parsed and validated.
//!
//! This crate must not know sockets, files, clocks, the bus or how a decision is reached.
#![forbid(unsafe_code)]

pub mod event;
pub mod fleet;
pub mod health;
pub mod key;
pub mod name;
pub mod observation;
pub mod overrides;
pub mod report;
pub mod routes;
pub mod time;
pub mod unit;
pub mod verdict;
pub mod version;

pub use key::{PUBLIC_KEY_LENGTH, SigningPublicKey};
pub use name::{
    ClusterName, EdgeName, HolderName, ListenerName, NetworkName, ProberName, RegionName, ReplicatorName,
    ServiceName,
};
pub use time::Timestamp;
pub use version::{Epoch, Revision};
