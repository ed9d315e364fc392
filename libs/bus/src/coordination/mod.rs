//! What processes agree on by the bus: replicated tables, the lease of a region, claims of names. It must not know what the
//! tables are for.

pub mod claims;
pub mod lease;
pub mod table;
