//! The health-prober: probes every endpoint of the fleet and publishes what it sees.
//!
//! This crate must not know verdicts, routes or edges: what an observation means is for others.
#![forbid(unsafe_code)]

pub mod core;
pub mod probe;

mod metrics;
mod prober;
mod publish;
mod settings;
mod ways;

pub use prober::{run, run_with};
pub use settings::{ProberSettings, ProbesSection};
