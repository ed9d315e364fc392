//! The schedule of probes and the observations that follow from outcomes: values in, values out, with time as an argument.

mod observation;
mod schedule;
mod suspicion;
mod targets;

pub use self::{
    observation::ObservationChange,
    schedule::{Job, JobId, Limits, ProbeSchedule},
    suspicion::Suspected,
    targets::{ProbeTargets, probe_targets},
};

#[cfg(test)]
mod tests;
