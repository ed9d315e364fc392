//! The route-computer: turns what probers see, edges carry and operators override into its region's route table.
//!
//! This crate must not know how a verdict or a route is decided (`tidegate-routing` does), nor how a message is carried.
#![forbid(unsafe_code)]

mod chronicle;
mod computer;
mod explain;
mod expose;
mod leadership;
mod reports;
mod serving_consensus;
mod settings;

pub use computer::run;
pub use settings::{ComputerSection, DampingSection, RouteComputerSettings};
