//! The route table of one worker: resolved to its own endpoints, updated entry by entry.

mod hosts;
mod matching;
mod view;

pub use view::{ActionView, RouteChange, ServiceView, Table, WorkerIndex};
