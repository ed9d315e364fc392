//! The replicator: maintains a region's buckets and history, and replicates the fleet and overrides between regions.
//!
//! It is a service of its own because it may write what operators write, so that route-computers, edges and probers need no
//! permission to. This crate must not know what a fleet or an override is for.
#![forbid(unsafe_code)]

mod replicator;
mod settings;

pub use replicator::run;
pub use settings::ReplicatorSettings;
