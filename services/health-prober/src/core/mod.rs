//! What is probed when, and what follows from an outcome: values in, values out, with time as an argument.

mod observing;
mod schedule;
mod suspicion;
mod wanted;

pub use self::{
    observing::Change,
    schedule::{Job, JobId, Limits, Schedule, Suspected},
    wanted::{Wanted, wanted},
};

#[cfg(test)]
mod tests;
