//! The health-prober: probes every endpoint of the fleet and publishes its observations.
//!
//! This crate must not know verdicts, routes or edges: it does not interpret observations.
#![forbid(unsafe_code)]

pub mod core;
pub mod probe;

mod metrics;
mod prober;
mod publish;
mod settings;
mod transports;

pub use prober::run;
pub use settings::{ProberSettings, ProbesSection};
