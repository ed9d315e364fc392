//! The edge proxy: receives clients' requests and forwards them to the endpoints in the region's route table.
//!
//! This crate must not know how a route is decided or how an endpoint is probed.

mod balance;
mod clients;
mod control;
mod downstream;
mod edge_identity;
#[doc(hidden)]
pub mod fuzzing;
mod lifecycle;
mod limits;
mod metrics;
mod observe;
mod request;
mod settings;
#[cfg(test)]
mod sizes;
mod table;
mod tls;
mod upstream;
mod wire;
mod worker;
mod worker_context;

pub use control::{PortHolder, run};
pub use settings::{AccessFormat, AccessLogSection, MOST_WORKERS, ProxySection, ProxySettings};
