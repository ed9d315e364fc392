//! The bus, both of them: one suite for NATS and in process, and what only real servers do.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod both;
mod convergence;
mod copies;
mod faults;
mod history;
mod replicate;
mod semantics;
mod stores;
mod tables;
mod trust;
