//! The routing engine of one region: turns what probers see and what edges are asked for into verdicts and a route table.
//!
//! This crate must not know I/O, clocks, randomness or the bus. Time is a value that comes with each event.
//!
//! # How a decision is made
//! Read in this order:
//! 1. `probe_state`: the state of one endpoint as one prober sees it (rise and fall, flap damping).
//! 2. `probers`: the probe states of all probers; which probers are stale and which are distrusted.
//! 3. `regional_health`: from the probe states on an endpoint to each region's health, the verdict and its reason.
//! 4. `proximity`, `plan`: the candidates of an action in the order in which they are tried.
//! 5. `demand`, `capacity`: how much demand each cluster gets, over all regions.
//! 6. `tiers`: the plan and the shares become an entry of the route table, with its reason.
//! 7. `engine`: recomputes what a single event affects.
//!
//! # What depends on history
//! Everything is a function of the current inputs, with four deliberate exceptions:
//! - a probe state is a function of its own prober's stream and times, across restarts of the prober (rise, fall and flap
//!   damping need memory);
//! - a verdict whose probers are all stale stays as it was;
//! - the demand that shares follow changes only when the drift matters (see `demand`);
//! - the time at which a drain ended is kept for slow start.
//!
//! So events of different sources may be interleaved in any way: the table is the same.
#![forbid(unsafe_code)]

#[cfg(test)]
mod build;
mod capacity;
mod demand;
mod engine;
mod event;
mod explanation;
mod fleet_index;
mod overrides;
mod plan;
mod probe_state;
mod probers;
mod proximity;
mod ramp;
mod regional_health;
mod settings;
mod tiers;
mod what_if;

pub use engine::Engine;
pub use event::{Changes, RouteEvent};
pub use explanation::{ActionExplanation, CandidateExplanation, Explanation, OverrideExplanation};
pub use proximity::{Proximity, ProximityBasis};
pub use settings::{Damping, Settings};
pub use what_if::{ActionEffect, ClusterEffect, Effect, EffectTotals, Hypothesis, HypothesisError, Loss};
