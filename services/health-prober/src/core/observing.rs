//! From outcomes to observations.

use std::time::Duration;

use tidegate_model::{
    health::HealthCheck,
    observation::{Observation, ProbeOutcome, Target},
};

use super::schedule::Suspected;

/// A change of an observation, to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What was observed.
    pub target: Target,
    /// What it is now.
    pub observation: Observation,
    /// The suspicion that made the prober look; absent: the probe was due.
    pub suspected: Option<Suspected>,
    /// When the first probe of the run (the passes or failures in a row) began that this one belongs to.
    pub run_began: Duration,
    /// When this probe began.
    pub began: Duration,
}

/// What a prober knows of one target.
#[derive(Debug, Default)]
pub(super) struct Observing {
    current: Option<Observation>,
    run_began: Duration,
    /// When the latest counted probe began.
    latest: Duration,
}

impl Observing {
    pub fn current(&self) -> Option<&Observation> {
        self.current.as_ref()
    }

    pub fn failed_last(&self) -> bool {
        matches!(self.current, Some(Observation { outcome: ProbeOutcome::Fail(_), .. }))
    }

    /// Counts the outcome of a probe that began at `began`. Returns the observation when it changed.
    ///
    /// Probes of one target overlap. One that began earlier and ends later than another with the other result says less
    /// of the present than that, and is not counted.
    pub fn count(
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

    const FAIL: ProbeOutcome = ProbeOutcome::Fail(Failure::NoAnswer);

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_streak_stops_at_the_larger_of_rise_and_fall() {
        let check = HealthCheck { unhealthy_after: 2, healthy_after: 3, ..HealthCheck::tcp() };
        let mut observing = Observing::default();

        let streaks: Vec<Option<u16>> = (0..5)
            .map(|n| observing.count(ProbeOutcome::Pass, at(n), &check).map(|observation| observation.streak))
            .collect();

        assert_eq!(streaks, [Some(1), Some(2), Some(3), None, None]);
    }

    #[test]
    fn another_reason_is_a_change_and_continues_the_run() {
        let mut observing = Observing::default();
        observing.count(FAIL, at(1), &HealthCheck::tcp());
        let refused = ProbeOutcome::Fail(Failure::ConnectRefused);

        let next = observing.count(refused.clone(), at(2), &HealthCheck::tcp());

        assert_eq!(next, Some(Observation { outcome: refused, streak: 2 }));
        assert_eq!(observing.run_began(), at(1));
    }

    #[test]
    fn an_older_probe_does_not_overrule_a_newer_one() {
        let mut observing = Observing::default();
        observing.count(FAIL, at(10), &HealthCheck::tcp());

        assert_eq!(observing.count(ProbeOutcome::Pass, at(5), &HealthCheck::tcp()), None);
        assert!(observing.failed_last());
        assert!(observing.count(ProbeOutcome::Pass, at(11), &HealthCheck::tcp()).is_some());
    }
}
