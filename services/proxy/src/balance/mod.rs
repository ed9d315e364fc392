//! Load balancing: picks endpoints by health, ejection and outstanding requests; retry budgets. Per worker, without
//! locks.

mod budget;
mod latency;
mod pick;

pub use budget::RetryBudget;
pub use latency::LatencyHistogram;
pub use pick::{Candidate, PickContext, TierView, WeightedCluster, pick};
