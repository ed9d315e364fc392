//! The proxy's behaviour towards real peers: what it takes, what it says, and what it does when others fail.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod harness;

mod debug;
mod drain;
mod failures;
mod floods;
mod forged;
mod hostile_origins;
mod http2;
mod listeners;
mod messages;
mod observe;
mod peers;
mod refusals;
mod reuse;
mod routing;
mod sequences;
mod silence;
mod streams;
mod take_over;
mod tls;
mod translation;
