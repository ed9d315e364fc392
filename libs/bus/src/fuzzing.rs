//! A check of every type that travels, for the fuzz target and a test. Not part of this crate's interface.

use tidegate_model::{
    event::Event,
    observation::{Observation, ObservationCause, Target},
    overrides::Override,
    report::{Applied, Load, Suspicion},
    routes::{RouteCause, RouteEntry, RouteKey},
};

use crate::{
    claims::IdentityClaim,
    codec::{Wire, decode, encode},
    fleet::FleetHead,
    replicate::{PullRequest, PullResponse, RegionDigest},
    table::{Delta, Heartbeat, Position, Snapshot, SnapshotRequest, TableMessage},
};

/// Checks that a body that decodes as a `T` encodes and decodes again to the same bytes.
fn check_as<T: Wire>(body: &[u8]) {
    let Ok(value) = decode::<T>(body) else { return };
    let written = encode(&value);
    match decode::<T>(&written) {
        Ok(again) => assert_eq!(encode(&again), written),
        Err(error) => panic!("what was written cannot be read: {error}"),
    }
}

const CHECKS: [fn(&[u8]); 24] = [
    check_as::<Applied>,
    check_as::<IdentityClaim>,
    check_as::<PullResponse>,
    check_as::<Delta>,
    check_as::<Event>,
    check_as::<FleetHead>,
    check_as::<Heartbeat>,
    check_as::<RegionDigest>,
    check_as::<Load>,
    check_as::<Observation>,
    check_as::<ObservationCause>,
    check_as::<Override>,
    check_as::<Position>,
    check_as::<RouteCause>,
    check_as::<RouteEntry>,
    check_as::<RouteKey>,
    check_as::<Snapshot>,
    check_as::<SnapshotRequest>,
    check_as::<String>,
    check_as::<Suspicion>,
    check_as::<TableMessage>,
    check_as::<Target>,
    check_as::<PullRequest>,
    check_as::<u64>,
];

/// Checks a body: the first byte of `input` selects the type, the rest is the body with its version.
///
/// # Panics
/// When the body decodes to a value that encodes differently.
pub fn check_body(input: &[u8]) {
    if let Some((kind, body)) = input.split_first() {
        CHECKS[usize::from(*kind) % CHECKS.len()](body);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn any_body_is_refused_or_read_whole(kind in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            check_body(&[&[kind, 0, 1], &body[..]].concat());
        }
    }
}
