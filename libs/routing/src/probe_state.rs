//! The probe state of one endpoint as one prober sees it: rise and fall, then flap damping.
//!
//! A probe state is a function of the prober's own stream of observations and their times. How the streams of several
//! probers are interleaved does not matter, which is why flap damping is here and not at the cluster.

use tidegate_model::{
    Timestamp,
    health::HealthCheck,
    observation::{Failure, Observation, ProbeOutcome},
};

use crate::settings::Damping;

/// How many equal outcomes in a row change a probe state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    fall: u16,
    rise: u16,
}

impl Thresholds {
    pub(crate) fn of(check: &HealthCheck) -> Thresholds {
        Thresholds { fall: check.unhealthy_after, rise: check.healthy_after }
    }
}

/// The probe state of one endpoint as one prober sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeState {
    /// The prober has seen too little, or the fleet does not have the check yet.
    Undecided { last: Observation },
    /// The endpoint passes. `flaps` is absent if it passed when the prober first probed it.
    Passing { since: Timestamp, flaps: Option<Flaps> },
    /// The endpoint passes again, but flapped, and counts as failing until then.
    Suppressed { failure: Failure, flaps: Flaps, until: Timestamp },
    /// The endpoint fails. `failure` is the first one: an endpoint that refuses connections now and times out a moment
    /// later would otherwise change the route table each time.
    Failing { failure: Failure, flaps: Flaps },
    /// The endpoint had recovered when its prober restarted. It counts as undecided until the prober reports it again.
    Suspended { since: Timestamp, flaps: Flaps },
}

/// The recent failures of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flaps {
    /// Failures that are not forgiven yet.
    count: u32,
    /// When the latest of them began.
    pub(crate) failed_at: Timestamp,
}

impl ProbeState {
    /// The state after a prober's first observation.
    pub(crate) fn new(
        observation: Observation,
        thresholds: Option<Thresholds>,
        damping: &Damping,
        now: Timestamp,
    ) -> ProbeState {
        ProbeState::Undecided { last: observation.clone() }.observe(observation, thresholds, damping, now)
    }

    /// The state after the next observation. While the check is unknown, nothing is decided.
    pub(crate) fn observe(
        self,
        observation: Observation,
        thresholds: Option<Thresholds>,
        damping: &Damping,
        now: Timestamp,
    ) -> ProbeState {
        let has_risen = thresholds.is_some_and(|known| observation.streak >= known.rise);
        let has_fallen = thresholds.is_some_and(|known| observation.streak >= known.fall);
        match (self, &observation.outcome) {
            (ProbeState::Undecided { .. }, ProbeOutcome::Pass) if thresholds.is_some() => {
                ProbeState::Passing { since: now, flaps: None }
            }
            (ProbeState::Suspended { since, flaps }, ProbeOutcome::Pass) => {
                ProbeState::Passing { since, flaps: Some(flaps) }
            }
            (ProbeState::Failing { failure, flaps }, ProbeOutcome::Pass) if has_risen => {
                let suppression = damping.suppression(flaps.count);
                if suppression.is_zero() {
                    ProbeState::Passing { since: now, flaps: Some(flaps) }
                } else {
                    ProbeState::Suppressed { failure, flaps, until: now.plus(suppression) }
                }
            }
            (state, ProbeOutcome::Fail(failure)) if has_fallen => state.fail(failure, damping, now),
            (ProbeState::Undecided { .. }, _) => ProbeState::Undecided { last: observation },
            (state, _) => state,
        }
    }

    /// The state once the fleet has the check.
    pub(crate) fn decide(
        self,
        thresholds: Option<Thresholds>,
        damping: &Damping,
        now: Timestamp,
    ) -> ProbeState {
        match self {
            ProbeState::Undecided { last } => ProbeState::new(last, thresholds, damping, now),
            ProbeState::Passing { .. }
            | ProbeState::Suppressed { .. }
            | ProbeState::Failing { .. }
            | ProbeState::Suspended { .. } => self,
        }
    }

    /// The state that outlives a restart of the prober, if any. A failure or a suppression stays in force until the prober
    /// has probed often enough. A recovery is suspended. Nothing remains of an endpoint that never failed.
    pub(crate) fn suspend(self) -> Option<ProbeState> {
        match self {
            ProbeState::Passing { since, flaps: Some(flaps) } => Some(ProbeState::Suspended { since, flaps }),
            ProbeState::Suppressed { .. } | ProbeState::Failing { .. } | ProbeState::Suspended { .. } => {
                Some(self)
            }
            ProbeState::Undecided { .. } | ProbeState::Passing { flaps: None, .. } => None,
        }
    }

    /// When the suppression ends, if the endpoint is suppressed.
    pub(crate) fn suppressed_until(&self) -> Option<Timestamp> {
        match self {
            ProbeState::Suppressed { until, .. } => Some(*until),
            ProbeState::Undecided { .. }
            | ProbeState::Passing { .. }
            | ProbeState::Failing { .. }
            | ProbeState::Suspended { .. } => None,
        }
    }

    /// The state after the suppression, which ended when it was due.
    pub(crate) fn release(self) -> ProbeState {
        match self {
            ProbeState::Suppressed { flaps, until, .. } => {
                ProbeState::Passing { since: until, flaps: Some(flaps) }
            }
            ProbeState::Undecided { .. }
            | ProbeState::Passing { .. }
            | ProbeState::Failing { .. }
            | ProbeState::Suspended { .. } => self,
        }
    }

    /// Whether the state says that the endpoint passes or fails.
    pub(crate) fn is_decided(&self) -> bool {
        match self {
            ProbeState::Passing { .. } | ProbeState::Suppressed { .. } | ProbeState::Failing { .. } => true,
            ProbeState::Undecided { .. } | ProbeState::Suspended { .. } => false,
        }
    }

    fn fail(self, failure: &Failure, damping: &Damping, now: Timestamp) -> ProbeState {
        let (passing_since, before) = match self {
            ProbeState::Failing { .. } => return self,
            ProbeState::Undecided { .. } => (now, 0),
            ProbeState::Passing { since, flaps } => (since, flaps.map_or(0, |flaps| flaps.count)),
            ProbeState::Suppressed { until, flaps, .. } => (until, flaps.count),
            ProbeState::Suspended { since, flaps } => (since, flaps.count),
        };
        let forgiven = now.since(passing_since).as_micros() / damping.forgiven_after.as_micros().max(1);
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        let count = before.saturating_sub(forgiven).saturating_add(1);
        ProbeState::Failing { failure: failure.clone(), flaps: Flaps { count, failed_at: now } }
    }
}

#[cfg(test)]
impl Flaps {
    /// One failure.
    pub(crate) fn one(failed_at: Timestamp) -> Flaps {
        Flaps { count: 1, failed_at }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CHECK: Option<Thresholds> = Some(Thresholds { fall: 2, rise: 3 });

    fn pass(streak: u16) -> Observation {
        Observation { outcome: ProbeOutcome::Pass, streak }
    }

    fn fail(streak: u16) -> Observation {
        Observation { outcome: ProbeOutcome::Fail(Failure::ConnectRefused), streak }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    fn observed(stream: &[Observation]) -> ProbeState {
        let damping = Damping::default();
        let first = ProbeState::new(stream[0].clone(), CHECK, &damping, at(0));
        stream[1..]
            .iter()
            .fold(first, |state, observation| state.observe(observation.clone(), CHECK, &damping, at(0)))
    }

    fn never_failed(since: u64) -> ProbeState {
        ProbeState::Passing { since: at(since), flaps: None }
    }

    fn recovered(since: u64, failed_at: u64) -> ProbeState {
        ProbeState::Passing { since: at(since), flaps: Some(Flaps::one(at(failed_at))) }
    }

    fn failing(failed_at: u64) -> ProbeState {
        ProbeState::Failing { failure: Failure::ConnectRefused, flaps: Flaps::one(at(failed_at)) }
    }

    fn flap(state: ProbeState, seconds: u64) -> ProbeState {
        let damping = Damping::default();
        state.observe(fail(2), CHECK, &damping, at(seconds)).observe(pass(3), CHECK, &damping, at(seconds))
    }

    #[test]
    fn a_first_pass_counts_at_once() {
        assert_eq!(observed(&[pass(1)]), never_failed(0));
    }

    #[test]
    fn a_single_failure_changes_nothing() {
        assert_eq!(observed(&[pass(3), fail(1)]), never_failed(0));
        assert_eq!(observed(&[fail(1)]), ProbeState::Undecided { last: fail(1) });
    }

    #[test]
    fn an_endpoint_that_failed_must_pass_three_times() {
        assert_eq!(observed(&[pass(3), fail(1), fail(2)]), failing(0));
        assert_eq!(observed(&[fail(2), pass(1), pass(2)]), failing(0));
        assert_eq!(observed(&[fail(2), pass(3)]), recovered(0, 0));
    }

    #[test]
    fn recoveries_after_the_first_are_suppressed_twice_as_long_each_time() {
        let state = flap(observed(&[pass(1)]), 0);
        assert_eq!(state.suppressed_until(), None);
        let state = flap(state, 10);
        assert_eq!(state.suppressed_until(), Some(at(15)));
        let state = flap(state, 12);
        assert_eq!(state.suppressed_until(), Some(at(22)));
        let flaps = Flaps { count: 3, failed_at: at(12) };
        assert_eq!(state.release(), ProbeState::Passing { since: at(22), flaps: Some(flaps) });
    }

    #[test]
    fn flaps_are_forgiven_while_it_passes() {
        let state = flap(flap(observed(&[pass(1)]), 0), 10).release();
        assert_eq!(flap(state, 15 + 2 * 60).suppressed_until(), None);
    }

    #[test]
    fn a_check_that_becomes_known_later_is_decided_by_the_last_observation() {
        let damping = Damping::default();
        let state = ProbeState::new(fail(2), None, &damping, at(0));
        assert_eq!(state, ProbeState::Undecided { last: fail(2) });
        assert_eq!(state.decide(CHECK, &damping, at(1)), failing(1));
        let state = ProbeState::new(pass(3), None, &damping, at(0));
        assert_eq!(state, ProbeState::Undecided { last: pass(3) });
        assert_eq!(state.decide(CHECK, &damping, at(1)), never_failed(1));
    }

    #[test]
    fn nothing_is_suppressed_where_damping_is_off() {
        let damping = Damping { first_suppression: Duration::ZERO, ..Damping::default() };
        let mut state = ProbeState::new(pass(1), CHECK, &damping, at(0));
        for second in 1..5 {
            state = state.observe(fail(2), CHECK, &damping, at(second));
            state = state.observe(pass(3), CHECK, &damping, at(second));
        }
        let flaps = Flaps { count: 4, failed_at: at(4) };
        assert_eq!(state, ProbeState::Passing { since: at(4), flaps: Some(flaps) });
    }

    #[test]
    fn a_prober_that_restarts_continues_from_where_it_was() {
        let damping = Damping::default();
        let restarted = |state: &ProbeState, first: Observation| {
            let state = state.clone().suspend()?;
            // A fleet that is applied meanwhile decides nothing by earlier observations.
            let state = state.decide(CHECK, &damping, at(19));
            assert!(!matches!(state, ProbeState::Passing { .. }), "an old pass counts: {state:?}");
            Some(state.observe(first, CHECK, &damping, at(20)))
        };
        let state = observed(&[pass(1)]);
        assert_eq!(restarted(&state, pass(1)), None, "there is nothing to remember");
        let state = state.observe(fail(2), CHECK, &damping, at(5));
        assert_eq!(restarted(&state, pass(1)), Some(failing(5)), "it must pass as often as before");
        let state = state.observe(pass(3), CHECK, &damping, at(8));
        assert_eq!(restarted(&state, pass(1)), Some(recovered(8, 5)), "it has passed since then");
        let failed_once = restarted(&state, fail(1)).unwrap();
        assert!(!failed_once.is_decided(), "it does not pass because it did: {failed_once:?}");
        let state = flap(state, 18);
        assert!(
            matches!(restarted(&state, pass(1)), Some(ProbeState::Suppressed { .. })),
            "it stays suppressed"
        );
    }
}
