//! The replicated table: one owner and many replicas that converge to it.
//!
//! The owner publishes each change at once as a [delta](Delta) and once a second a [heartbeat](Heartbeat), and serves full
//! [snapshots](Snapshot) on request. Deltas make it fast; heartbeats and snapshots make it converge: whatever was lost,
//! duplicated or reordered, a replica equals its owner one heartbeat (and, where it differs, one snapshot) later.
//!
//! The rules are in [`OwnerCore`] and [`ReplicaCore`], which do no I/O and hold entries as bytes: a digest covers the bytes
//! that the owner wrote, whatever its version. [`Owner`] and [`Replica`] connect them to the bus, with types.

mod content;
mod feed;
mod fetch;
mod owner;
mod owner_core;
mod replica;
mod replica_core;
mod update;

pub use content::{Delta, Heartbeat, Position, Provenance, Snapshot, Summary, TableChange};
pub(crate) use content::{SnapshotRequest, TableMessage};
pub use owner::{Owner, OwnerOptions, Published, SnapshotStore};
pub use owner_core::OwnerCore;
pub use replica::{Replica, ReplicaOptions, ReplicaStats, Replicas, Seed};
pub use replica_core::{Epochs, ReplicaCore, Step};
pub use update::{TableUpdate, Update};
