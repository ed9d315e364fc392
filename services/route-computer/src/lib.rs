//! The route-computer: computes its region's route table from observations, load reports, the fleet and overrides.
//!
//! This crate must not know how verdicts and routes are decided (`tidegate-routing` does), nor how messages are transported.
#![forbid(unsafe_code)]

mod computer;
mod event_recorder;
mod explain;
mod expose;
mod leadership;
mod reports;
mod serving_consensus;
mod settings;
mod what_if;

pub use computer::run;
pub use settings::{ComputerSection, DampingSection, RouteComputerSettings};
