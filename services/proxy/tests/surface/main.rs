//! The proxy's behaviour towards real peers: what it takes, what it says, and what it does when others fail.

mod harness;

mod messages;
mod refusals;
