//! The edge judged by what others wrote: h2spec's cases, and HAProxy and nginx as readers of what it forwards.
//!
//! `make test-peers` fetches them and runs these tests, which `make test` leaves out.

mod h2spec;
mod hostile;
mod over_http2;
mod readers;
mod requests;
mod responses;
