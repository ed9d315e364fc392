//! Whole systems of real processes on a real nats-server, with load and faults, for the integration tests and the demo.
//!
//! This crate must not know how anything is decided or forwarded: it starts binaries, and sees what any operator could.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod cli;
pub mod client;
pub mod directory;
pub mod drill;
pub mod ledger;
pub mod load;
pub mod metrics;
pub mod origin;
pub mod plan;
pub mod process;
pub mod watch;
pub mod world;

pub use drill::Fault;
pub use plan::Plan;
pub use world::World;
