//! The engine from outside: single behaviours, properties, and a simulation of many regions.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test binary: nothing is public, and a panic is a failure"
)]

mod behaviour;
mod checks;
mod properties;
mod random;
mod simulation;
mod what_if;
mod world;
