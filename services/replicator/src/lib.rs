//! The replicator: keeps a region's buckets and history, and the fleet and overrides the same in all regions.
//!
//! It is a service of its own because it may write what operators write: route-computers, edges and probers can then have
//! no right to. This crate must not know what a fleet or an override is for.
#![forbid(unsafe_code)]

mod replicator;
mod settings;

pub use replicator::run;
pub use settings::{ReplicatorSection, ReplicatorSettings};
