//! Whole systems of real processes on a real nats-server: what must hold when parts of them are lost.
//!
//! It must not know how a service works inside: it starts binaries, breaks them, and looks from outside.

mod alerts;
mod collector;
mod demo;
mod dev;
mod failover;
mod fleet_revisions;
mod forged;
mod leadership;
mod operator;
mod outage;
mod pages;
mod permissions;
mod probers;
mod prometheus;
mod received;
mod requests;
mod rotel;
mod steering;
mod trace;
mod what_if;
