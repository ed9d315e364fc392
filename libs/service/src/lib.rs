//! The parts that all services share: settings, logs and traces, metrics, the admin listener, shutdown, and `main`.
//!
//! This crate must not know what any service does, nor any type of the domain.
#![forbid(unsafe_code)]

pub mod admin;
pub mod bus;
mod context;
mod description;
pub mod entry;
pub mod files;
mod healthcheck;
pub mod metrics;
pub mod ports;
pub mod problems;
pub mod settings;
pub mod shutdown;
pub mod telemetry;

pub use admin::Admin;
pub use context::Context;
pub use description::Description;
pub use entry::main;
pub use metrics::Registry;
pub use ports::Ports;
pub use settings::{CommonSettings, Settings, SettingsError};
