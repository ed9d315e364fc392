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
