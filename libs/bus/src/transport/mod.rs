//! Messages, their codec and signatures, and buckets, over NATS or in process. It must not know what tables and stores make
//! of them.

pub(crate) mod background;
pub(crate) mod backoff;
pub mod bucket;
pub(crate) mod bucket_follower;
pub(crate) mod bus;
pub mod clock;
pub mod codec;
pub(crate) mod deadline;
pub mod error;
pub(crate) mod failure_log;
pub mod limit;
pub(crate) mod lock;
pub(crate) mod memory;
pub(crate) mod message;
pub(crate) mod nats;
pub(crate) mod pattern;
pub mod report;
pub mod seal;
pub(crate) mod state;
pub mod subjects;
pub(crate) mod trace;
