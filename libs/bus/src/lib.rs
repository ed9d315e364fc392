//! The bus between services: messages, reports, buckets, replicated tables, leases and name claims, over NATS or in process.
//!
//! This crate must not know how a verdict or a route is decided, nor settings files, nor a telemetry library.
#![forbid(unsafe_code)]

pub mod bucket;
pub mod claims;
pub mod clock;
pub mod codec;
pub mod error;
pub mod fleet;
#[doc(hidden)]
pub mod fuzzing;
pub mod history;
pub mod lease;
pub mod limit;
pub mod overrides;
pub mod replicate;
pub mod report;
pub mod seal;
pub mod subjects;
pub mod table;
#[cfg(feature = "testing")]
pub mod testing;

mod background;
mod backoff;
mod bus;
mod deadline;
mod failure_log;
#[cfg(test)]
mod golden;
mod lock;
mod memory;
mod message;
mod nats;
mod pattern;
mod state;
mod trace;
mod wire;

pub use bus::Bus;
pub use error::BusError;
pub use failure_log::FailureLog;
pub use message::{Message, Subscription};
pub use nats::{Credentials, NatsSettings, NatsTls};
pub use state::BusState;
pub use trace::TraceContext;
