//! What the bus keeps of the domain: the fleet file, overrides, the history of events, and their replication between regions.

pub mod fleet;
pub mod history;
pub mod overrides;
pub mod replicate;
mod wire;
