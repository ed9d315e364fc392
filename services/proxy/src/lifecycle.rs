//! The lifecycle of an edge: one value that the control side computes and the workers follow.

use std::time::Duration;

use tokio::time::Instant;

/// The phase of an edge between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The edge serves.
    Serving,
    /// The edge still accepts connections, responds to health requests with 503, and closes connections after their
    /// current request.
    Draining {
        /// When draining began.
        since: Instant,
        /// What started the drain.
        by: DrainCause,
    },
    /// The edge accepts no more connections and waits until the open ones have ended.
    Stopping {
        /// When draining began.
        since: Instant,
        /// When the remaining connections are cut.
        cut_at: Instant,
    },
}

/// Why an edge drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainCause {
    /// An operator's override, which may be withdrawn.
    Operator,
    /// The process is shutting down.
    Shutdown {
        /// When accepting stops: until then external load balancers can see the drain before the port closes.
        accepts_until: Instant,
    },
}

/// An input that may change the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseInput {
    /// Whether an operator wants the edge to drain.
    OperatorDrains(bool),
    /// The process was asked to end.
    Shutdown,
    /// Time has passed.
    Time,
}

/// The time limits of a shutdown.
#[derive(Debug, Clone, Copy)]
pub struct DrainLimits {
    /// How long connections are still accepted.
    pub accept: Duration,
    /// How long open connections may continue after that.
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
            // A shutdown cannot be withdrawn, and overrules operators.
            (
                Phase::Serving | Phase::Draining { .. } | Phase::Stopping { .. },
                PhaseInput::OperatorDrains(_) | PhaseInput::Shutdown | PhaseInput::Time,
            ) => self,
        }
    }

    /// When draining began, if the edge is draining or stopping.
    pub fn draining_since(self) -> Option<Instant> {
        match self {
            Phase::Serving => None,
            Phase::Draining { since, .. } | Phase::Stopping { since, .. } => Some(since),
        }
    }

    /// When the next phase begins without any other input.
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Phase::Draining { by: DrainCause::Shutdown { accepts_until }, .. } => Some(accepts_until),
            Phase::Serving | Phase::Draining { by: DrainCause::Operator, .. } | Phase::Stopping { .. } => {
                None
            }
        }
    }

    /// When the remaining connections are cut, if the edge is stopping.
    pub fn cut_at(self) -> Option<Instant> {
        match self {
            Phase::Stopping { cut_at, .. } => Some(cut_at),
            Phase::Serving | Phase::Draining { .. } => None,
        }
    }

    /// Whether the edge accepts no more connections.
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
