//! The route table as one worker serves it: resolved to its own endpoints, changed entry by entry.

mod hosts;
mod matching;
mod view;

pub use view::{ActionView, RouteChange, ServiceView, Table, WorkerPlace};
