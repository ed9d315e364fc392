//! The edge proxy: takes users' requests and forwards them to the endpoints that the region's route table names.
//!
//! This crate must not know how a route is decided or how an endpoint is probed.

mod balance;
mod clients;
mod control;
mod forward;
#[doc(hidden)]
pub mod fuzzing;
mod metrics;
mod observe;
mod settings;
mod table;
mod tls;
mod wellknown;
mod wire;
mod worker;

pub use control::run;
pub use settings::{AccessFormat, AccessLogSection, EdgeSection, MOST_WORKERS, ProxySection, ProxySettings};
