//! Which endpoint takes a request: health, ejection, outstanding requests, budgets. Per worker, without locks.

mod budget;
mod latency;
mod pick;

pub use budget::Budget;
pub use latency::Latency;
pub use pick::{Candidate, Candidates, TierView, WeightedCluster, pick};
