//! The lifecycle of an edge: one value that the control side decides and workers obey.

use std::time::Duration;

use tokio::time::Instant;

/// How far an edge's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It accepts connections, answers health questions with 503, and ends connections after their current request.
    Draining {
        /// Since when.
        since: Instant,
        /// Who wants it.
        by: DrainCause,
    },
    /// It accepts no more connections, and waits until those that are open have ended.
    Stopping {
        /// Since when it has been draining.
        since: Instant,
        /// When those that are left are cut.
        cut_at: Instant,
    },
}

/// Why an edge drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainCause {
    /// An operator's override, which may be withdrawn.
    Operator,
    /// The process shuts down.
    Shutdown {
        /// Until when connections are accepted, so that outside balancers see that it drains before it is gone.
        accepts_until: Instant,
    },
}

/// What may change the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseInput {
    /// Whether an operator wants the edge to drain.
    OperatorDrains(bool),
    /// The process was asked to end.
    Shutdown,
    /// Time has passed.
    Time,
}

/// How long a shutdown takes.
#[derive(Debug, Clone, Copy)]
pub struct DrainLimits {
    /// For how long connections are still accepted.
    pub accept: Duration,
    /// For how long those that are open may go on after that.
    pub finish: Duration,
}

impl Phase {
    /// The phase after an input at `now`.
    #[must_use]
    pub fn next(self, input: PhaseInput, now: Instant, limits: DrainLimits) -> Phase {
        match (self, input) {
            (Phase::Serving, PhaseInput::OperatorDrains(true)) => {
                Phase::Draining { since: now, by: DrainCause::Operator }
            }
            (Phase::Draining { by: DrainCause::Operator, .. }, PhaseInput::OperatorDrains(false)) => {
                Phase::Serving
            }
            (Phase::Serving | Phase::Draining { by: DrainCause::Operator, .. }, PhaseInput::Shutdown) => {
                let by = DrainCause::Shutdown { accepts_until: now + limits.accept };
                Phase::Draining { since: self.draining_since().unwrap_or(now), by }
            }
            (Phase::Draining { since, by: DrainCause::Shutdown { accepts_until } }, PhaseInput::Time)
                if now >= accepts_until =>
            {
                Phase::Stopping { since, cut_at: now + limits.finish }
            }
            // What shuts down does so whatever operators want.
            (
                Phase::Serving | Phase::Draining { .. } | Phase::Stopping { .. },
                PhaseInput::OperatorDrains(_) | PhaseInput::Shutdown | PhaseInput::Time,
            ) => self,
        }
    }

    /// Since when it has been draining, if it is.
    pub fn draining_since(self) -> Option<Instant> {
        match self {
            Phase::Serving => None,
            Phase::Draining { since, .. } | Phase::Stopping { since, .. } => Some(since),
        }
    }

    /// When time alone brings the next phase.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Phase::Draining { by: DrainCause::Shutdown { accepts_until }, .. } => Some(accepts_until),
            Phase::Serving | Phase::Draining { by: DrainCause::Operator, .. } | Phase::Stopping { .. } => {
                None
            }
        }
    }

    /// When connections that are left are cut.
    pub fn cut_at(self) -> Option<Instant> {
        match self {
            Phase::Stopping { cut_at, .. } => Some(cut_at),
            Phase::Serving | Phase::Draining { .. } => None,
        }
    }

    /// Whether it accepts no more connections.
    pub fn is_stopping(self) -> bool {
        self.cut_at().is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: DrainLimits =
        DrainLimits { accept: Duration::from_secs(5), finish: Duration::from_secs(60) };

    fn after(inputs: &[(u64, PhaseInput)], start: Instant) -> Phase {
        let at = |second: &u64| start + Duration::from_secs(*second);
        inputs.iter().fold(Phase::Serving, |phase, (second, input)| phase.next(*input, at(second), LIMITS))
    }

    #[test]
    fn an_operator_may_change_their_mind() {
        let start = Instant::now();
        let drained =
            after(&[(1, PhaseInput::OperatorDrains(true)), (2, PhaseInput::OperatorDrains(true))], start);
        assert_eq!(drained.draining_since(), Some(start + Duration::from_secs(1)));
        assert_eq!(drained.deadline(), None);
        assert_eq!(drained.next(PhaseInput::OperatorDrains(false), start, LIMITS), Phase::Serving);
    }

    #[test]
    fn a_shutdown_accepts_for_a_while_and_then_waits() {
        let start = Instant::now();
        let inputs = [
            (1, PhaseInput::OperatorDrains(true)),
            (10, PhaseInput::Shutdown),
            (12, PhaseInput::OperatorDrains(false)),
            (14, PhaseInput::Time),
            (15, PhaseInput::Time),
            (16, PhaseInput::Shutdown),
        ];
        let second = |second| start + Duration::from_secs(second);
        assert_eq!(after(&inputs[..4], start).deadline(), Some(second(15)));
        assert_eq!(after(&inputs, start), Phase::Stopping { since: second(1), cut_at: second(75) });
    }

    proptest! {
        #[test]
        fn no_input_takes_a_shutdown_back(inputs in prop::collection::vec((0_u64..9, 0_u8..4), 0..40)) {
            let mut now = Instant::now();
            let mut phase = Phase::Serving.next(PhaseInput::Shutdown, now, LIMITS);
            for (seconds, input) in inputs {
                now += Duration::from_secs(seconds);
                let before = phase;
                phase = phase.next(
                    match input {
                        0 => PhaseInput::OperatorDrains(true),
                        1 => PhaseInput::OperatorDrains(false),
                        2 => PhaseInput::Shutdown,
                        _ => PhaseInput::Time,
                    },
                    now,
                    LIMITS,
                );
                prop_assert!(phase.draining_since() == before.draining_since());
                prop_assert!(phase.is_stopping() || !before.is_stopping());
                prop_assert!(before.cut_at().is_none() || before == phase);
            }
        }
    }
}
