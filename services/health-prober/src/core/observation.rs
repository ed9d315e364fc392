//! The observation of a target, from the outcomes of its probes.

use std::time::Duration;

use tidegate_model::{
    health::HealthCheck,
    observation::{Observation, ProbeOutcome, Target},
};

use super::suspicion::Suspected;

/// A change of an observation, to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservationChange {
    /// The target.
    pub target: Target,
    /// The new observation.
    pub observation: Observation,
    /// The suspicion that triggered the probe; absent if the probe was due.
    pub suspected: Option<Suspected>,
    /// When the first probe of the run (of equal outcomes) began.
    pub run_began: Duration,
    /// When this probe began.
    pub began: Duration,
}

/// The observation of one target, with the times of its probes.
#[derive(Debug, Default)]
pub(super) struct ObservationTracker {
    current: Option<Observation>,
    run_began: Duration,
    /// When the latest counted probe began.
    latest: Duration,
}

impl ObservationTracker {
    pub fn current(&self) -> Option<&Observation> {
        self.current.as_ref()
    }

    pub fn failed_last(&self) -> bool {
        matches!(self.current, Some(Observation { outcome: ProbeOutcome::Fail(_), .. }))
    }

    /// Records the outcome of a probe that began at `began`. Returns the observation if it changed.
    ///
    /// Probes of one target overlap. A probe that began before another one with the opposite outcome, and ends after it, is
    /// outdated and not counted.
    pub fn record_outcome(
        &mut self,
        outcome: ProbeOutcome,
        began: Duration,
        check: &HealthCheck,
    ) -> Option<Observation> {
        let most = check.unhealthy_after.max(check.healthy_after).max(1);
        let next = match &self.current {
            Some(before) if same_kind(&before.outcome, &outcome) => {
                let streak = before.streak.saturating_add(1).min(most);
                Observation { outcome, streak }
            }
            Some(_) if began < self.latest => return None,
            Some(_) | None => {
                self.run_began = began;
                Observation { outcome, streak: 1 }
            }
        };
        self.latest = self.latest.max(began);
        self.run_began = self.run_began.min(began);
        if self.current.as_ref() == Some(&next) {
            return None;
        }
        self.current = Some(next.clone());
        Some(next)
    }

    pub fn run_began(&self) -> Duration {
        self.run_began
    }
}

fn same_kind(one: &ProbeOutcome, other: &ProbeOutcome) -> bool {
    match (one, other) {
        (ProbeOutcome::Pass, ProbeOutcome::Pass) | (ProbeOutcome::Fail(_), ProbeOutcome::Fail(_)) => true,
        (ProbeOutcome::Pass, ProbeOutcome::Fail(_)) | (ProbeOutcome::Fail(_), ProbeOutcome::Pass) => false,
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::observation::Failure;

    use super::*;

    const FAIL: ProbeOutcome = ProbeOutcome::Fail(Failure::NoResponse);

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_streak_stops_at_the_larger_of_rise_and_fall() {
        let check = HealthCheck { unhealthy_after: 2, healthy_after: 3, ..HealthCheck::tcp() };
        let mut tracker = ObservationTracker::default();

        let streaks: Vec<Option<u16>> = (0..5)
            .map(|n| {
                tracker
                    .record_outcome(ProbeOutcome::Pass, at(n), &check)
                    .map(|observation| observation.streak)
            })
            .collect();

        assert_eq!(streaks, [Some(1), Some(2), Some(3), None, None]);
    }

    #[test]
    fn another_reason_is_a_change_and_continues_the_run() {
        let mut tracker = ObservationTracker::default();
        tracker.record_outcome(FAIL, at(1), &HealthCheck::tcp());
        let refused = ProbeOutcome::Fail(Failure::ConnectRefused);

        let next = tracker.record_outcome(refused.clone(), at(2), &HealthCheck::tcp());

        assert_eq!(next, Some(Observation { outcome: refused, streak: 2 }));
        assert_eq!(tracker.run_began(), at(1));
    }

    #[test]
    fn an_older_probe_does_not_overrule_a_newer_one() {
        let mut tracker = ObservationTracker::default();
        tracker.record_outcome(FAIL, at(10), &HealthCheck::tcp());

        assert_eq!(tracker.record_outcome(ProbeOutcome::Pass, at(5), &HealthCheck::tcp()), None);
        assert!(tracker.failed_last());
        assert!(tracker.record_outcome(ProbeOutcome::Pass, at(11), &HealthCheck::tcp()).is_some());
    }
}
