//! The bus between services: messages, reports, buckets, replicated tables, leases and name claims, over NATS or in process.
//!
//! This crate must not know how a verdict or a route is decided, nor settings files, nor a telemetry library. Of its three
//! parts each imports only from those before it: `transport`, `coordination`, `stores`.
#![forbid(unsafe_code)]

mod coordination;
mod stores;
mod transport;

#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod golden;
#[cfg(feature = "testing")]
pub mod testing;

pub use coordination::{claims, lease, table};
pub use stores::{fleet, history, overrides, replicate};
pub(crate) use transport::{
    background, backoff, bucket_follower, deadline, lock, memory, message, nats, pattern,
};
pub use transport::{
    bucket,
    bus::Bus,
    clock, codec, error,
    error::BusError,
    failure_log::FailureLog,
    limit,
    message::{Message, Subscription},
    nats::{Credentials, NatsSettings, NatsTls},
    report, seal,
    state::BusState,
    subjects,
    trace::TraceContext,
};
