//! Verdicts and route tables of one region: from what probers saw and edges carried to where requests go.
//!
//! This crate must not know I/O, clocks, randomness or the bus: time is a value that comes in with each event.
//!
//! # How a decision comes about
//! Read in this order:
//! 1. `word`: what one prober's stream of observations says of one endpoint (rise and fall, damping).
//! 2. `evidence`: all probers' words; who is silent and who is doubted.
//! 3. `view`: the words on an endpoint become each region's view, and views become verdicts.
//! 4. `health`: a cluster's verdict with its reason.
//! 5. `proximity`, `plan`: the candidates of an action in the order in which they are tried.
//! 6. `demand`, `capacity`: how much goes to whom, over all regions.
//! 7. `tiers`: the plan and the shares become an entry of the route table, with its reason.
//! 8. `engine`: what a single event touches of all this.
//!
//! # What depends on history
//! Everything is a function of the current inputs, except, on purpose:
//! - a word: a function of its own prober's stream, over the prober's lives, and its times (rise and fall need memory, so does
//!   damping);
//! - a verdict whose probers are all silent: it stays as it was;
//! - the demand that shares follow: it moves only when that matters (see `demand`);
//! - the time at which a drain ended, for slow start.
//!
//! So events of different sources may be interleaved in any way: the table comes out the same.
#![forbid(unsafe_code)]

mod atlas;
#[cfg(test)]
mod build;
mod capacity;
mod demand;
mod engine;
mod event;
mod evidence;
mod explanation;
mod health;
mod overrides;
mod plan;
mod proximity;
mod ramp;
mod settings;
mod tiers;
mod view;
mod word;

pub use engine::Engine;
pub use event::{Changes, RouteEvent};
pub use explanation::{ActionExplanation, CandidateExplanation, Explanation};
pub use proximity::{Proximity, ProximityBasis};
pub use settings::{Damping, Settings};
