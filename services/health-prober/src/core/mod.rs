//! What is probed when, and what follows from an outcome: values in, values out, with time as an argument.

mod observation;
mod schedule;
mod suspicion;
mod wanted;

pub use self::{
    observation::ObservationChange,
    schedule::{Job, JobId, Limits, ProbeSchedule},
    suspicion::Suspected,
    wanted::{Wanted, wanted},
};

#[cfg(test)]
mod tests;
