//! The engine from outside: single behaviours, properties, and a simulation of many regions.
#![allow(missing_docs, reason = "a test binary has no public items")]

mod behaviour;
mod checks;
mod properties;
mod random;
mod simulation;
mod world;
