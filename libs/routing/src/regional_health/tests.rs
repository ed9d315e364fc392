use tidegate_model::observation::Failure;

use super::*;
use crate::probe_state::Flaps;

fn key(region: &str, name: &str) -> ProberKey {
    ProberKey { region: region.parse().unwrap(), name: name.parse().unwrap() }
}

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

const UP: ProbeState = ProbeState::Passing { since: Timestamp(0), flaps: None };

fn down() -> ProbeState {
    ProbeState::Failing { failure: Failure::NoResponse, flaps: Flaps::one(Timestamp(1)) }
}

fn recovered(at: u64) -> ProbeState {
    ProbeState::Passing { since: Timestamp(at), flaps: Some(Flaps::one(Timestamp(1))) }
}

fn verdict(states: &[(&ProberKey, &ProbeState)], from: &str) -> Verdict {
    EndpointHealth::of(states).verdict_in(&region(from)).verdict
}

#[test]
fn what_only_this_region_cannot_reach_is_path_down() {
    let (eu, us) = (key("eu", "p"), key("us", "p"));
    let states = [(&eu, &UP), (&us, &down())];
    assert_eq!(verdict(&states, "us"), Verdict::PathDown);
    assert_eq!(verdict(&states, "eu"), Verdict::Up);
    assert_eq!(verdict(&states, "asia"), Verdict::Up, "other regions stand in");
    assert_eq!(verdict(&[(&eu, &down()), (&us, &down())], "us"), Verdict::Down);
    assert_eq!(verdict(&[], "us"), Verdict::Unknown);
}

#[test]
fn an_endpoint_passes_in_a_region_if_at_least_half_of_its_probers_say_so() {
    let (a, b, c) = (key("us", "a"), key("us", "b"), key("us", "c"));
    assert_eq!(verdict(&[(&a, &down()), (&b, &UP)], "us"), Verdict::Up);
    assert_eq!(verdict(&[(&a, &down()), (&b, &UP), (&c, &down())], "us"), Verdict::Down);
}

#[test]
fn an_endpoint_has_recovered_when_most_probers_saw_it_pass() {
    let (a, b, c) = (key("us", "a"), key("us", "b"), key("us", "c"));
    let recovered_at = |states: &[(&ProberKey, &ProbeState)]| {
        EndpointHealth::of(states).verdict_in(&region("us")).recovered_at
    };
    let seen = [(&a, &recovered(7)), (&b, &recovered(3)), (&c, &recovered(5))];
    assert_eq!(recovered_at(&seen), Some(Timestamp(5)));
    assert_eq!(recovered_at(&[(&a, &UP), (&b, &recovered(3)), (&c, &UP)]), None);
}

#[test]
fn a_prober_that_missed_the_failure_does_not_count_for_the_recovery() {
    let (a, b, c) = (key("us", "a"), key("us", "b"), key("us", "c"));
    let new = ProbeState::Passing { since: Timestamp(9), flaps: None };
    let suppressed = ProbeState::Suppressed {
        failure: Failure::NoResponse,
        flaps: Flaps::one(Timestamp(1)),
        until: Timestamp(12),
    };
    let from_us = |states: &[(&ProberKey, &ProbeState)]| EndpointHealth::of(states).verdict_in(&region("us"));
    let verdict = from_us(&[(&a, &new), (&b, &recovered(7))]);
    assert_eq!((verdict.verdict, verdict.recovered_at), (Verdict::Up, Some(Timestamp(7))));
    let verdict = from_us(&[(&a, &new), (&b, &suppressed)]);
    assert_eq!((verdict.verdict, verdict.suppressed), (Verdict::Down, true));
    let verdict = from_us(&[(&a, &new), (&b, &suppressed), (&c, &recovered(7))]);
    assert_eq!((verdict.verdict, verdict.recovered_at), (Verdict::Up, Some(Timestamp(7))));
    let verdict = from_us(&[(&a, &new), (&b, &UP), (&c, &suppressed)]);
    assert_eq!((verdict.verdict, verdict.recovered_at), (Verdict::Up, None), "as without the new prober");
    // A prober that probed it before the failure and never saw it fail counts.
    let verdict = from_us(&[(&a, &UP), (&b, &suppressed)]);
    assert_eq!((verdict.verdict, verdict.recovered_at), (Verdict::Up, None));
    // No prober has seen a failure that ended.
    assert_eq!(from_us(&[(&a, &new), (&b, &UP)]).recovered_at, None);
    assert_eq!(from_us(&[(&a, &new), (&b, &down())]).verdict, Verdict::Up);
}

#[test]
fn a_cluster_is_up_since_its_first_endpoint_was() {
    let up = |recovered_at| RegionalVerdict { verdict: Verdict::Up, suppressed: false, recovered_at };
    let down = RegionalVerdict { verdict: Verdict::Down, suppressed: true, recovered_at: None };
    assert_eq!(best_of([down, up(Some(Timestamp(9)))].into_iter()), up(Some(Timestamp(9))));
    assert_eq!(best_of([up(None), up(Some(Timestamp(9)))].into_iter()), up(None));
    assert_eq!(best_of([up(Some(Timestamp(9))), up(None)].into_iter()), up(None));
    let both = [up(Some(Timestamp(9))), up(Some(Timestamp(7)))];
    assert_eq!(best_of(both.into_iter()), up(Some(Timestamp(7))));
    assert_eq!(best_of([down, down].into_iter()), down);
}

#[test]
fn a_cluster_that_is_down_is_suppressed_if_one_of_its_endpoints_is() {
    let down = |suppressed| RegionalVerdict { verdict: Verdict::Down, suppressed, recovered_at: None };
    for (first, second) in [(false, true), (true, false)] {
        assert_eq!(best_of([down(first), down(second)].into_iter()), down(true));
    }
    assert_eq!(best_of([down(false), down(false)].into_iter()), down(false));
}
