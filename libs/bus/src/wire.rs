//! The types of the domain that travel on the bus.

use tidegate_model::{
    event::Event,
    observation::{Observation, ObservationCause, Target},
    overrides::Override,
    report::{Applied, Load, Suspicion},
    routes::{RouteCause, RouteEntry, RouteKey},
};

use crate::codec::Wire;

impl Wire for Target {}
impl Wire for Observation {}
impl Wire for ObservationCause {}
impl Wire for RouteKey {}
impl Wire for RouteEntry {}
impl Wire for RouteCause {}
impl Wire for Applied {}
impl Wire for Load {}
impl Wire for Suspicion {}
impl Wire for Override {}
impl Wire for Event {}
// For tests, and for tables of plain values.
impl Wire for String {}
impl Wire for u32 {}
impl Wire for u64 {}

/// Several values in one body; an older version's are read one by one like any other.
impl<T: Wire> Wire for Vec<T> {}
