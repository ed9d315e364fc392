//! What one prober's stream of observations says of one endpoint: rise and fall, then damping.
//!
//! A word depends on its own prober's stream and the times in it alone, never on how the streams of several probers are
//! interleaved. That is why damping is here, and not at the cluster.

use tidegate_model::{
    Timestamp,
    health::HealthCheck,
    observation::{Failure, Observation, ProbeOutcome},
};

use crate::settings::Damping;

/// How often in a row an outcome must be seen before it counts.
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

/// What the prober concludes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It has seen too little, or the fleet does not know the check yet.
    Undecided,
    /// The endpoint passes since then.
    Passing { since: Timestamp, before: Before },
    /// It passes again, but flapped before: not believed until then.
    HeldOut { failure: Failure, failed_at: Timestamp, until: Timestamp },
    /// It fails: how it did when it began to. Later failures of other kinds don't change this, so that an endpoint that
    /// is refused now and times out then does not change the table each time.
    Failing { failure: Failure },
}

/// What a prober saw of an endpoint before it passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing: it passed when the prober looked first.
    Unseen,
    /// It failed, from this time on.
    Failed(Timestamp),
}

/// One prober's word on one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    last: Observation,
    judgement: Judgement,
    /// Failures that are not forgiven.
    flaps: u32,
    /// Since when it passes; of meaning only while it does.
    passing_since: Timestamp,
    /// When it began to fail last; of meaning only once it has.
    failed_at: Timestamp,
    /// That it had passed again when the prober began anew: waits for the prober's next look.
    asleep: Option<Judgement>,
}

impl Word {
    pub(crate) fn new(
        observation: Observation,
        thresholds: Option<Thresholds>,
        damping: &Damping,
        now: Timestamp,
    ) -> Word {
        let mut word = Word {
            last: observation,
            judgement: Judgement::Undecided,
            flaps: 0,
            passing_since: now,
            failed_at: now,
            asleep: None,
        };
        word.judge(thresholds, damping, now);
        word
    }

    pub(crate) fn judgement(&self) -> &Judgement {
        &self.judgement
    }

    /// Takes the next observation of the stream.
    pub(crate) fn hear(
        &mut self,
        observation: Observation,
        thresholds: Option<Thresholds>,
        damping: &Damping,
        now: Timestamp,
    ) {
        self.last = observation;
        let wakes = match self.last.outcome {
            ProbeOutcome::Pass => true,
            // Too few to say that it fails, and what is remembered does not say that it passes.
            ProbeOutcome::Fail(_) => thresholds.is_some_and(|known| self.last.streak >= known.fall),
        };
        if wakes && let Some(judgement) = self.asleep.take() {
            self.judgement = judgement;
        }
        self.judge(thresholds, damping, now);
    }

    /// What is left of the word of a prober that begins anew. That it fails, or is held out, stands until the prober has looked
    /// often enough. That it passes counts for nothing until then, and goes on as a return where it was one; nothing is left
    /// where the prober had only seen it pass.
    pub(crate) fn sleep(mut self) -> Option<Word> {
        match self.judgement {
            Judgement::Failing { .. } | Judgement::HeldOut { .. } => Some(self),
            Judgement::Undecided => self.asleep.is_some().then_some(self),
            Judgement::Passing { before: Before::Unseen, .. } => None,
            Judgement::Passing { before: Before::Failed(_), .. } => {
                self.asleep = Some(std::mem::replace(&mut self.judgement, Judgement::Undecided));
                Some(self)
            }
        }
    }

    /// Judges the last observation; nothing happens while the check is not known.
    pub(crate) fn judge(&mut self, thresholds: Option<Thresholds>, damping: &Damping, now: Timestamp) {
        let Some(Thresholds { fall, rise }) = thresholds else { return };
        if self.asleep.is_some() {
            // The last observation may be of the life before.
            return;
        }
        match (&self.last.outcome, &self.judgement) {
            (ProbeOutcome::Pass, Judgement::Undecided) => {
                self.judgement = Judgement::Passing { since: now, before: Before::Unseen };
                self.passing_since = now;
            }
            (ProbeOutcome::Pass, Judgement::Failing { failure }) if self.last.streak >= rise => {
                let hold = damping.hold(self.flaps);
                self.passing_since = now.plus(hold);
                let failed_at = self.failed_at;
                self.judgement = if hold.is_zero() {
                    Judgement::Passing { since: now, before: Before::Failed(failed_at) }
                } else {
                    Judgement::HeldOut { failure: failure.clone(), failed_at, until: now.plus(hold) }
                };
            }
            (
                ProbeOutcome::Fail(failure),
                Judgement::Undecided | Judgement::Passing { .. } | Judgement::HeldOut { .. },
            ) if self.last.streak >= fall => {
                let forgiven =
                    now.since(self.passing_since).as_micros() / damping.forgiven_after.as_micros().max(1);
                let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
                self.flaps = self.flaps.saturating_sub(forgiven).saturating_add(1);
                self.failed_at = now;
                self.judgement = Judgement::Failing { failure: failure.clone() };
            }
            // In between it stays what it was.
            (
                ProbeOutcome::Pass,
                Judgement::Passing { .. } | Judgement::HeldOut { .. } | Judgement::Failing { .. },
            )
            | (
                ProbeOutcome::Fail(_),
                Judgement::Undecided
                | Judgement::Passing { .. }
                | Judgement::HeldOut { .. }
                | Judgement::Failing { .. },
            ) => {}
        }
    }

    /// When it stops being held out.
    pub(crate) fn held_until(&self) -> Option<Timestamp> {
        match self.judgement {
            Judgement::HeldOut { until, .. } => Some(until),
            Judgement::Undecided | Judgement::Passing { .. } | Judgement::Failing { .. } => None,
        }
    }

    /// Ends the hold, as of the moment it was to end.
    pub(crate) fn release(&mut self) {
        if let Judgement::HeldOut { failed_at, until, .. } = self.judgement {
            self.judgement = Judgement::Passing { since: until, before: Before::Failed(failed_at) };
        }
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

    fn heard(stream: &[Observation]) -> Word {
        let damping = Damping::default();
        let mut word = Word::new(stream[0].clone(), CHECK, &damping, at(0));
        for observation in &stream[1..] {
            word.hear(observation.clone(), CHECK, &damping, at(0));
        }
        word
    }

    fn unseen(since: u64) -> Judgement {
        Judgement::Passing { since: at(since), before: Before::Unseen }
    }

    fn back(since: u64, failed_at: u64) -> Judgement {
        Judgement::Passing { since: at(since), before: Before::Failed(at(failed_at)) }
    }

    fn flap(word: &mut Word, seconds: u64) {
        let damping = Damping::default();
        word.hear(fail(2), CHECK, &damping, at(seconds));
        word.hear(pass(3), CHECK, &damping, at(seconds));
    }

    #[test]
    fn a_first_pass_is_believed_at_once() {
        assert_eq!(heard(&[pass(1)]).judgement, unseen(0));
    }

    #[test]
    fn a_single_failure_changes_nothing() {
        assert_eq!(heard(&[pass(3), fail(1)]).judgement, unseen(0));
        assert_eq!(heard(&[fail(1)]).judgement, Judgement::Undecided);
    }

    #[test]
    fn an_endpoint_that_failed_must_pass_three_times() {
        let failing = Judgement::Failing { failure: Failure::ConnectRefused };
        assert_eq!(heard(&[pass(3), fail(1), fail(2)]).judgement, failing);
        assert_eq!(heard(&[fail(2), pass(1), pass(2)]).judgement, failing);
        assert_eq!(heard(&[fail(2), pass(3)]).judgement, back(0, 0));
    }

    #[test]
    fn returns_after_the_first_are_held_twice_as_long_each_time() {
        let mut word = heard(&[pass(1)]);
        flap(&mut word, 0);
        assert_eq!(word.held_until(), None);
        flap(&mut word, 10);
        assert_eq!(word.held_until(), Some(at(15)));
        flap(&mut word, 12);
        assert_eq!(word.held_until(), Some(at(22)));
        word.release();
        assert_eq!(word.judgement, back(22, 12));
    }

    #[test]
    fn flaps_are_forgiven_while_it_passes() {
        let mut word = heard(&[pass(1)]);
        flap(&mut word, 0);
        flap(&mut word, 10);
        word.release();
        flap(&mut word, 15 + 2 * 60);
        assert_eq!(word.held_until(), None);
    }

    #[test]
    fn a_check_that_becomes_known_later_is_judged_by_the_last_observation() {
        let damping = Damping::default();
        let mut word = Word::new(fail(2), None, &damping, at(0));
        assert_eq!(word.judgement, Judgement::Undecided);
        word.judge(CHECK, &damping, at(1));
        assert_eq!(word.judgement, Judgement::Failing { failure: Failure::ConnectRefused });
    }

    #[test]
    fn no_hold_where_damping_is_off() {
        let damping = Damping { first_hold: Duration::ZERO, ..Damping::default() };
        let mut word = Word::new(pass(1), CHECK, &damping, at(0));
        for second in 1..5 {
            word.hear(fail(2), CHECK, &damping, at(second));
            word.hear(pass(3), CHECK, &damping, at(second));
        }
        assert_eq!(word.judgement, back(4, 4));
    }

    #[test]
    fn a_prober_that_begins_anew_goes_on_from_where_it_was() {
        let damping = Damping::default();
        let anew = |word: &Word, first: Observation| {
            let mut word = word.clone().sleep()?;
            // A fleet that is applied meanwhile makes nothing of what was seen before.
            word.judge(CHECK, &damping, at(19));
            assert!(!matches!(word.judgement, Judgement::Passing { .. }), "an old pass counts: {word:?}");
            word.hear(first, CHECK, &damping, at(20));
            Some(word.judgement)
        };
        let mut word = heard(&[pass(1)]);
        assert_eq!(anew(&word, pass(1)), None, "there is nothing to remember");
        word.hear(fail(2), CHECK, &damping, at(5));
        let failing = Judgement::Failing { failure: Failure::ConnectRefused };
        assert_eq!(anew(&word, pass(1)), Some(failing), "it has to pass as often as ever");
        word.hear(pass(3), CHECK, &damping, at(8));
        assert_eq!(anew(&word, pass(1)), Some(back(8, 5)), "it is back since then");
        assert_eq!(anew(&word, fail(1)), Some(Judgement::Undecided), "it does not pass because it did");
        flap(&mut word, 18);
        assert!(matches!(anew(&word, pass(1)), Some(Judgement::HeldOut { .. })), "it is held out on");
    }
}
