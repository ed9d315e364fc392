//! The lease's rules, without I/O. Time is passed in; it is this process's monotonic clock and never leaves it.

use std::time::Duration;

use tidegate_model::{Epoch, HolderName};
use tokio::time::Instant;

use super::record::LeaseRecord;

/// Whether a candidate holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It does, and nobody else can (but in the moment after the bus lost its data).
    Leader {
        /// Its epoch.
        epoch: Epoch,
    },
    /// It did, could not renew it in time, and has not heard that another does. It may go on publishing: when another
    /// has taken over, replicas refuse this epoch.
    Uncertain {
        /// Its epoch.
        epoch: Epoch,
    },
    /// It does not.
    Standby,
}

impl LeaseState {
    /// The epoch to publish with; nothing on standby.
    pub fn epoch(self) -> Option<Epoch> {
        match self {
            LeaseState::Leader { epoch } | LeaseState::Uncertain { epoch } => Some(epoch),
            LeaseState::Standby => None,
        }
    }
}

/// What to do with the lease's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAction {
    /// Nothing for now.
    Wait,
    /// Create it.
    Create(LeaseRecord),
    /// Replace the entry of this revision.
    Replace(LeaseRecord, u64),
}

/// A candidate.
#[derive(Debug)]
pub struct LeaseCore {
    holder: HolderName,
    instance: u64,
    duration: Duration,
    role: Role,
    /// The largest epoch known from any source.
    highest: Epoch,
    beat: u64,
    /// The write that was decided and not answered for yet.
    pending: Option<LeaseRecord>,
    /// It has seen or made an entry: a bucket without one has lost its data, and a holder may be at work.
    knows_of_entry: bool,
    /// It surely held the lease when the entry was lost: it need not wait for a holder to fall silent.
    reclaims: bool,
}

#[derive(Debug)]
enum Role {
    /// What it last saw; absent: it has not looked since it gave up hope of its own entry.
    Standby(Option<Seen>),
    Holder {
        epoch: Epoch,
        revision: u64,
        /// When the renewal that succeeded last was sent.
        renewed_at: Instant,
        /// A renewal got no answer: its entry may be one revision on.
        doubtful: bool,
    },
}

#[derive(Debug)]
struct Seen {
    /// Absent: there is no entry.
    entry: Option<(u64, Option<LeaseRecord>)>,
    /// Since when it has been so.
    since: Instant,
}

impl LeaseCore {
    /// A candidate of this name that holds nothing.
    pub fn new(holder: HolderName, duration: Duration) -> LeaseCore {
        let (instance, role) = (rand::random(), Role::Standby(None));
        LeaseCore {
            holder,
            instance,
            duration,
            role,
            highest: Epoch(0),
            beat: 0,
            pending: None,
            knows_of_entry: false,
            reclaims: false,
        }
    }

    /// The candidate's name.
    pub fn holder(&self) -> &HolderName {
        &self.holder
    }

    /// Whether it can renew without looking first.
    pub fn holds(&self) -> bool {
        matches!(self.role, Role::Holder { doubtful: false, .. })
    }

    /// Whether it holds the lease.
    pub fn state(&self, now: Instant) -> LeaseState {
        match self.role {
            Role::Standby(_) => LeaseState::Standby,
            Role::Holder { epoch, renewed_at, .. } if now < renewed_at + self.certain_for() => {
                LeaseState::Leader { epoch }
            }
            Role::Holder { epoch, .. } => LeaseState::Uncertain { epoch },
        }
    }

    /// When the state changes next by time alone; nothing when it does not.
    pub fn uncertain_at(&self, now: Instant) -> Option<Instant> {
        match self.role {
            Role::Holder { renewed_at, .. } => Some(renewed_at + self.certain_for()).filter(|at| *at > now),
            Role::Standby(_) => None,
        }
    }

    /// Others count the duration from when they saw the last renewal, which is after it was sent; a quarter is left for
    /// clocks that run differently.
    fn certain_for(&self) -> Duration {
        self.duration * 3 / 4
    }

    /// Notes an epoch in use. Says whether that calls for a new epoch of its own.
    pub fn hear(&mut self, epoch: Epoch) -> bool {
        self.highest = self.highest.max(epoch);
        matches!(self.role, Role::Holder { epoch: own, .. } if epoch > own)
    }

    /// Notes what the bucket holds now: a revision and, where it can be read, a record; or no entry.
    pub fn seen(&mut self, entry: Option<(u64, Option<LeaseRecord>)>, now: Instant) {
        if let Some((_, Some(record))) = &entry {
            self.highest = self.highest.max(record.epoch);
        }
        self.knows_of_entry |= entry.is_some();
        // Only while it is sure that nobody had taken over before the loss.
        let certain = matches!(self.state(now), LeaseState::Leader { .. });
        self.reclaims = entry.is_none() && (self.reclaims || certain);
        match &mut self.role {
            Role::Holder { epoch, revision, doubtful, .. } => match &entry {
                // The renewal that got no answer was written after all.
                Some((there, Some(record)))
                    if record.instance == self.instance && record.holder.is_some() =>
                {
                    *epoch = record.epoch;
                    *revision = *there;
                    *doubtful = false;
                }
                _ => self.role = Role::Standby(Some(Seen { entry, since: now })),
            },
            Role::Standby(Some(before)) if before.entry == entry => {}
            Role::Standby(before) => *before = Some(Seen { entry, since: now }),
        }
    }

    /// What to do now.
    pub fn next(&mut self, now: Instant) -> LeaseAction {
        let action = match &self.role {
            Role::Holder { epoch, revision, .. } => {
                let epoch = if self.highest > *epoch { self.after_highest() } else { *epoch };
                LeaseAction::Replace(self.record(epoch), *revision)
            }
            Role::Standby(None) => LeaseAction::Wait,
            Role::Standby(Some(Seen { entry: None, since })) => {
                let free = !self.knows_of_entry || self.reclaims;
                if free || now.duration_since(*since) >= self.duration {
                    LeaseAction::Create(self.record(self.after_highest()))
                } else {
                    LeaseAction::Wait
                }
            }
            Role::Standby(Some(Seen { entry: Some((revision, record)), since })) => {
                let given_back = record.as_ref().is_some_and(|record| record.holder.is_none());
                // One's own, from a write that got no answer.
                let own = record.as_ref().is_some_and(|record| record.instance == self.instance);
                if given_back || own || now.duration_since(*since) >= self.duration {
                    LeaseAction::Replace(self.record(self.after_highest()), *revision)
                } else {
                    LeaseAction::Wait
                }
            }
        };
        self.pending = match &action {
            LeaseAction::Wait => None,
            LeaseAction::Create(record) | LeaseAction::Replace(record, _) => Some(record.clone()),
        };
        self.beat += 1;
        action
    }

    /// The write that [`LeaseCore::next`] decided, sent at `sent_at`, made this revision.
    pub fn written(&mut self, revision: u64, sent_at: Instant) {
        if let Some(record) = self.pending.take() {
            self.knows_of_entry = true;
            self.highest = self.highest.max(record.epoch);
            self.role = Role::Holder { epoch: record.epoch, revision, renewed_at: sent_at, doubtful: false };
        }
    }

    /// The write was refused: the entry is another.
    pub fn contradicted(&mut self) {
        self.pending = None;
        match &mut self.role {
            // After a write without an answer the entry may be its own, of a later revision: look.
            Role::Holder { doubtful, .. } if !*doubtful => *doubtful = true,
            Role::Holder { .. } | Role::Standby(_) => self.role = Role::Standby(None),
        }
    }

    /// Nobody knows whether the write was made.
    pub fn unanswered(&mut self) {
        self.pending = None;
        if let Role::Holder { doubtful, .. } = &mut self.role {
            *doubtful = true;
        }
    }

    /// Gives up. Returns the entry that gives the lease back, and the revision to replace, where it is held.
    pub fn release(&mut self) -> Option<(LeaseRecord, u64)> {
        let Role::Holder { epoch, revision, .. } = self.role else { return None };
        self.role = Role::Standby(None);
        Some((LeaseRecord { holder: None, ..self.record(epoch) }, revision))
    }

    fn after_highest(&self) -> Epoch {
        Epoch(self.highest.0 + 1)
    }

    fn record(&self, epoch: Epoch) -> LeaseRecord {
        LeaseRecord { holder: Some(self.holder.clone()), instance: self.instance, epoch, beat: self.beat }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const DURATION: Duration = Duration::from_secs(2);

    /// The entry, and candidates who each may have a write on its way.
    struct World {
        now: Instant,
        entry: Option<(u64, LeaseRecord)>,
        revision: u64,
        cores: Vec<LeaseCore>,
        sent: Vec<Option<(LeaseAction, Instant)>>,
        epochs: Vec<Epoch>,
    }

    #[derive(Debug, Clone)]
    enum Event {
        Pass(u16),
        /// A candidate looks, where it must, and decides.
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
            }
        }

        fn decide(&mut self, who: usize) {
            if self.sent[who].is_some() {
                return;
            }
            if !self.cores[who].holds() {
                let seen = self.entry.clone().map(|(revision, record)| (revision, Some(record)));
                self.cores[who].seen(seen, self.now);
            }
            let action = self.cores[who].next(self.now);
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
                self.entry = Some((self.revision, record));
            }
            match (answered, fits) {
                (false, _) => self.cores[who].unanswered(),
                (true, true) => self.cores[who].written(self.revision, sent_at),
                (true, false) => self.cores[who].contradicted(),
            }
        }

        fn round(&mut self, who: usize) -> LeaseState {
            self.decide(who);
            self.arrive(who, true);
            self.cores[who].state(self.now)
        }

        fn leaders(&self) -> usize {
            let leads = |core: &&LeaseCore| matches!(core.state(self.now), LeaseState::Leader { .. });
            self.cores.iter().filter(leads).count()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

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
                            world.cores[who].unanswered();
                        }
                    }
                    // Once: who slept through all between two losses can't tell them from one that was long ago.
                    Event::LoseData if !lost => {
                        lost = true;
                        world.entry = None;
                        world.epochs.clear();
                    }
                    Event::LoseData => {}
                }
                prop_assert!(world.leaders() <= 1);
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
        assert!(!world.cores[0].hear(Epoch(1)), "its own is no reason");
        assert!(world.cores[0].hear(Epoch(41)));
        assert_eq!(world.round(0), LeaseState::Leader { epoch: Epoch(42) });
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
}
