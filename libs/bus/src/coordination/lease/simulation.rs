//! A simulation of candidates in virtual time, whose messages are late and lost.

use std::{collections::BTreeSet, time::Duration};

use tidegate_model::Epoch;
use tokio::time::Instant;

use proptest::{collection::vec, prelude::*};

use super::core::*;
use super::record::LeaseRecord;

const DURATION: Duration = Duration::from_secs(2);

/// The entry, and candidates who each may have a write on its way.
struct World {
    now: Instant,
    entry: Option<(u64, LeaseRecord)>,
    revision: u64,
    cores: Vec<LeaseCore>,
    sent: Vec<Option<(LeaseAction, Instant)>>,
    epochs: Vec<Epoch>,
    /// All that was ever written, for who writes it again.
    written: Vec<LeaseRecord>,
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u16),
    /// A candidate reads the entry, where it must, and decides.
    Decide(usize),
    /// Its write arrives and is answered for, or the answer is lost.
    Arrive(usize, bool),
    /// Its write is lost.
    Lose(usize),
    LoseData,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u16..700).prop_map(Event::Pass),
        8 => (0usize..3).prop_map(Event::Decide),
        8 => ((0usize..3), prop::bool::weighted(0.8)).prop_map(|(who, answered)| Event::Arrive(who, answered)),
        1 => (0usize..3).prop_map(Event::Lose),
        1 => Just(Event::LoseData),
    ]
}

impl World {
    fn new() -> World {
        let core = |name: &str| LeaseCore::new(name.parse().unwrap(), DURATION);
        let cores = ["a", "b", "c"].map(core).into();
        World {
            now: Instant::now(),
            entry: None,
            revision: 0,
            cores,
            sent: vec![None, None, None],
            epochs: Vec::new(),
            written: Vec::new(),
        }
    }

    fn decide(&mut self, who: usize) {
        if self.sent[who].is_some() {
            return;
        }
        if !self.cores[who].can_renew() {
            let seen = self.entry.clone().map(|(revision, record)| (revision, LeaseContent::Record(record)));
            self.cores[who].observe_entry(seen, self.now);
        }
        let action = self.cores[who].next_action(self.now);
        self.sent[who] = (action != LeaseAction::Wait).then_some((action, self.now));
    }

    fn arrive(&mut self, who: usize, answered: bool) {
        let Some((action, sent_at)) = self.sent[who].take() else { return };
        let present = self.entry.as_ref().map(|(revision, _)| *revision);
        let (record, fits) = match action {
            LeaseAction::Wait => return,
            LeaseAction::Create(record) => (record, present.is_none()),
            LeaseAction::Replace(record, expected) => (record, present == Some(expected)),
        };
        if fits {
            self.revision += 1;
            self.epochs.push(record.epoch);
            self.written.push(record.clone());
            self.entry = Some((self.revision, record));
        }
        match (answered, fits) {
            (false, _) => self.cores[who].record_no_response(),
            (true, true) => self.cores[who].record_written(self.revision, sent_at),
            (true, false) => self.cores[who].record_conflict(),
        }
    }

    fn round(&mut self, who: usize) -> LeaseState {
        self.decide(who);
        self.arrive(who, true);
        self.cores[who].state(self.now)
    }

    /// Somebody without a key overwrites the entry with one that was signed.
    fn replay(&mut self, record: LeaseRecord) {
        self.revision += 1;
        self.entry = Some((self.revision, record));
    }

    /// All candidates read and decide, four times in the lease's duration.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += DURATION / 4;
            for who in 0..self.cores.len() {
                // After a conflict the candidate tries again at once.
                self.round(who);
                if !self.cores[who].can_renew() {
                    self.round(who);
                }
            }
        }
    }

    fn leaders(&self) -> usize {
        self.certain().count()
    }

    /// The epochs of those who are sure that they lead.
    fn certain(&self) -> impl Iterator<Item = Epoch> {
        self.cores.iter().filter_map(|core| match core.state(self.now) {
            LeaseState::Leader { epoch } => Some(epoch),
            LeaseState::Uncertain { .. } | LeaseState::Standby => None,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn there_is_at_most_one_leader_and_epochs_never_fall(events in vec(event(), 0..200)) {
        let mut world = World::new();
        // Each has seen an entry: a newcomer can't know that a bucket without one has lost it.
        (0..3).for_each(|who| { world.round(who); });
        let mut lost = false;
        for event in events {
            match event {
                Event::Pass(millis) => world.now += Duration::from_millis(u64::from(millis)),
                Event::Decide(who) => world.decide(who),
                Event::Arrive(who, answered) => world.arrive(who, answered),
                Event::Lose(who) => {
                    if world.sent[who].take().is_some() {
                        world.cores[who].record_no_response();
                    }
                }
                // Once: a candidate that slept between two losses can't tell them from a single one long ago.
                Event::LoseData if !lost => {
                    lost = true;
                    world.entry = None;
                    world.epochs.clear();
                }
                Event::LoseData => {}
            }
            // Who finds the entry of somebody who took over after the loss with a smaller epoch replaces it at once.
            prop_assert!(world.leaders() <= 1 || (lost && world.certain().collect::<BTreeSet<_>>().len() == world.leaders()));
            prop_assert!(world.epochs.is_sorted());
        }
    }
}

#[test]
fn a_lease_that_is_not_renewed_is_taken_over_with_a_larger_epoch() {
    let mut world = World::new();
    assert_eq!(world.round(0), LeaseState::Leader { epoch: Epoch(1) });
    assert_eq!(world.round(1), LeaseState::Standby);

    world.now += DURATION - Duration::from_millis(1);
    assert_eq!(world.cores[0].state(world.now), LeaseState::Uncertain { epoch: Epoch(1) });
    assert_eq!(world.round(1), LeaseState::Standby);
    world.now += Duration::from_millis(1);
    assert_eq!(world.round(1), LeaseState::Leader { epoch: Epoch(2) });

    world.round(0);
    assert_eq!(world.round(0), LeaseState::Standby);
}

#[test]
fn a_renewal_without_an_answer_is_found_to_have_been_made() {
    let mut world = World::new();
    world.round(0);
    world.decide(0);
    world.arrive(0, false);
    assert_eq!(world.round(0), LeaseState::Leader { epoch: Epoch(1) });
    assert_eq!(world.entry.as_ref().unwrap().0, 3);
}

#[test]
fn a_larger_epoch_in_use_makes_the_leader_take_a_larger_one() {
    let mut world = World::new();
    world.round(0);
    assert!(!world.cores[0].observe_epoch(Epoch(1)), "its own is no reason");
    assert!(world.cores[0].observe_epoch(Epoch(41)));
    assert_eq!(world.round(0), LeaseState::Leader { epoch: Epoch(42) });
}

proptest! {
    #[test]
    fn whatever_is_heard_each_term_is_believed_by_who_follows_the_last_one(
        heard in vec((0u64..=u64::MAX, 0u32..64, prop::bool::ANY), 1..40)
    ) {
        let mut world = World::new();
        world.round(0);
        let mut followed = Epoch(1);
        for (number, shift, dies) in heard {
            // All candidates observe it, however often.
            for core in &mut world.cores {
                core.observe_epoch(Epoch(number >> shift));
                core.observe_epoch(Epoch((followed.0 + Epoch::MAX_STEP).max(number >> shift)));
            }
            if dies {
                // The leader takes a larger epoch, and dies before any replica knows of it.
                world.round(0);
                (0..3).for_each(|who| { world.round(who); });
                world.now += DURATION;
                world.cores.swap(0, 1);
            }
            let state = world.round(0);
            let Some(epoch) = state.epoch() else { continue };
            prop_assert!(epoch.is_plausible_after(followed), "{epoch} after {followed}");
            followed = epoch;
        }
    }
}

#[test]
fn a_leader_climbs_to_an_epoch_that_is_far_above_its_own() {
    // Replicas that have it refuse the leader's until then.
    let mut world = World::new();
    world.round(0);
    let far = Epoch(3 * Epoch::MAX_STEP);
    let mut raises = 0;
    while world.cores[0].observe_epoch(far) {
        world.round(0);
        raises += 1;
    }
    assert_eq!(
        (world.cores[0].state(world.now), raises),
        (LeaseState::Leader { epoch: Epoch(far.0 + 1) }, 6)
    );
}

#[test]
fn after_a_loss_of_data_the_leader_goes_on_at_once_with_a_larger_epoch() {
    let mut world = World::new();
    world.round(0);
    world.round(1);
    world.entry = None;
    assert_eq!(world.round(1), LeaseState::Standby, "the holder may be at work");
    world.round(0);
    assert_eq!(world.round(0), LeaseState::Leader { epoch: Epoch(2) });
}

#[test]
fn a_lease_that_is_given_back_is_taken_at_once() {
    let mut world = World::new();
    world.round(0);
    world.round(1);
    let (record, expected) = world.cores[0].release().unwrap();
    assert_eq!(world.entry.as_ref().unwrap().0, expected);
    world.entry = Some((2, record));
    world.revision = 2;
    assert_eq!(world.round(1), LeaseState::Leader { epoch: Epoch(2) });
}

#[test]
fn an_entry_that_no_trusted_key_signed_holds_nobody_up() {
    let mut world = World::new();
    world.round(0);
    world.round(1);
    // Somebody without a key replaces the entry, and the leader finds out by its next renewal.
    world.entry.as_mut().unwrap().0 = 2;
    world.revision = 2;
    assert_eq!(world.round(0), LeaseState::Leader { epoch: Epoch(1) });
    let mut core = LeaseCore::new("d".parse().unwrap(), DURATION);
    core.observe_entry(Some((2, LeaseContent::Unreadable)), world.now);
    assert_eq!(core.next_action(world.now), LeaseAction::Wait, "it may be a newer version's");

    let leader = &mut world.cores[0];
    leader.observe_entry(Some((2, LeaseContent::Untrusted(Some(Epoch(1 << 30))))), world.now);
    let action = leader.next_action(world.now);
    assert!(matches!(&action, LeaseAction::Replace(record, 2) if record.epoch == Epoch(2)), "{action:?}");
    leader.record_written(3, world.now);
    assert_eq!(leader.state(world.now), LeaseState::Leader { epoch: Epoch(2) });
}

#[test]
fn whoever_follows_a_leader_whose_key_was_withdrawn_takes_a_larger_epoch() {
    let now = Instant::now();
    for (claimed, taken) in [(Some(Epoch(1)), 2), (Some(Epoch(1 << 20)), 1), (None, 1)] {
        // It has seen no lease before.
        let mut core = LeaseCore::new("a".parse().unwrap(), DURATION);
        core.observe_entry(Some((7, LeaseContent::Untrusted(claimed))), now);
        let action = core.next_action(now);
        assert!(
            matches!(&action, LeaseAction::Replace(record, 7) if record.epoch == Epoch(taken)),
            "{action:?}"
        );
    }
}

#[test]
fn an_earlier_term_that_is_written_again_holds_nobody_up() {
    // Given a holder whose lease was taken over, and somebody who kept its entry.
    let mut world = World::new();
    world.round(0);
    let earlier = world.written[0].clone();
    world.round(1);
    world.now += DURATION;
    assert_eq!(world.round(1), LeaseState::Leader { epoch: Epoch(2) });
    world.pass(DURATION);

    for _ in 0..20 {
        // When that is written once a second, with nothing of it new but its revision.
        world.replay(earlier.clone());
        world.pass(Duration::from_secs(1));

        // Then somebody leads all the same.
        assert_eq!(world.leaders(), 1);
    }
}

#[test]
fn entries_of_a_dead_holder_that_are_written_again_are_no_sign_of_life() {
    // Given a holder that has renewed its lease for a while, and dies.
    let mut world = World::new();
    world.pass(3 * DURATION);
    let kept = world.written.clone();
    let dead = world.cores.remove(0);
    assert!(dead.can_renew() && kept.iter().all(|record| record.instance == kept[0].instance));

    // When its entries are written again, one after the other, more often than a lease ends.
    for record in kept.iter().cycle().take(8) {
        world.replay(record.clone());
        world.pass(DURATION / 4);
    }

    // Then another has taken over.
    assert_eq!(world.leaders(), 1);
}

#[test]
fn a_leader_that_finds_its_own_earlier_entry_goes_on() {
    let mut world = World::new();
    world.pass(DURATION);
    let earlier = world.written[1].clone();
    world.replay(earlier.clone());
    world.pass(DURATION);
    assert_eq!(world.cores[0].state(world.now), LeaseState::Leader { epoch: Epoch(1) });

    // Never back to an earlier epoch of its own.
    world.cores[0].observe_epoch(Epoch(7));
    world.pass(DURATION);
    assert_eq!(world.cores[0].state(world.now), LeaseState::Leader { epoch: Epoch(8) });
    world.replay(earlier);
    world.pass(DURATION);
    assert_eq!(world.certain().collect::<Vec<_>>(), [Epoch(9)]);
}

#[test]
fn a_newcomer_that_sees_an_earlier_entry_first_shares_no_epoch_for_long() {
    // Given a leader whose entry was replaced by its predecessor's last, which gave the lease back.
    let mut world = World::new();
    world.round(0);
    let (given_back, _) = world.cores[0].release().unwrap();
    world.replay(given_back.clone());
    assert_eq!(world.round(1), LeaseState::Leader { epoch: Epoch(2) });
    world.replay(given_back);

    // When one that knows of nothing takes it for the truth.
    assert_eq!(world.round(2), LeaseState::Leader { epoch: Epoch(2) });

    // Then the leader takes a larger epoch at its next renewal, and the other steps down.
    world.pass(DURATION);
    assert_eq!(world.certain().collect::<Vec<_>>(), [Epoch(3)]);
}

proptest! {
    #[test]
    fn whatever_is_written_again_once_a_second_somebody_leads(
        replays in vec((0usize..1000, prop::option::weighted(0.2, 0usize..3)), 1..40)
    ) {
        let mut world = World::new();
        world.pass(DURATION);
        for (which, restarts) in replays {
            if let Some(who) = restarts {
                world.cores[who] = LeaseCore::new(format!("n{which}").parse().unwrap(), DURATION);
                world.pass(DURATION);
            }
            let record = world.written[which % world.written.len()].clone();
            world.replay(record);
            world.pass(Duration::from_secs(1));
            prop_assert_eq!(world.leaders(), 1);
        }
    }
}
