//! Which endpoint takes a request: health, ejection, outstanding requests, budgets. Per worker, without locks.

mod budget;
mod endpoint;
mod latency;
mod outlier;
mod pick;
mod waiting;
mod wakers;

pub use budget::Budget;
pub use endpoint::{Cluster, Endpoint, InFlight};
pub use latency::Latency;
pub use outlier::{Ejection, Fare, Tally, is_of_endpoint};
pub use pick::{Candidate, Candidates, Choice, TierView, pick};
pub use waiting::Waiting;
pub use wakers::WakeSet;
