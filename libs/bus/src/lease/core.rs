//! The lease's rules, without I/O. Time is passed in; it is this process's monotonic clock and never leaves it.

use std::time::Duration;

use tidegate_model::{Epoch, HolderName};
use tokio::time::Instant;

use super::record::LeaseRecord;

/// The most by which a term is made larger because somebody is heard to use a larger one. What is heard is not signed, so
/// this bounds what a forger can do; and it is half of what replicas believe, so that they follow also when they missed
/// the term between.
const HEARD_STEP: u64 = Epoch::MAX_STEP / 2;

/// How far above the epochs that it knows an entry that no trusted key signed is believed: so two leaders never have one epoch
/// where a key was withdrawn, and who forges entries, which are replaced twice a second, uses up epochs in decades.
const CLAIMED_STEP: u64 = 1 << 10;

/// Whether a candidate holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It does, and nobody else can (but in the moment after the bus lost its data, or somebody overwrote the entry).
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

/// What a lease's entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseContent {
    /// A record.
    Record(LeaseRecord),
    /// Something else, perhaps a newer version's record.
    Unreadable,
    /// Something that no trusted key signed although there are keys: whoever may write the bucket put it there, so it holds
    /// nobody up. With the epoch that it claims, which may be that of a leader whose key was withdrawn.
    Untrusted(Option<Epoch>),
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
    /// The newest entry that it has seen or made: of its own lease or another's.
    newest: Option<Newest>,
    /// The largest epoch that others were heard to use since it took its own last.
    heard: Epoch,
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
    entry: Option<(u64, LeaseContent)>,
    /// Since when it has been so.
    since: Instant,
}

/// The newest entry of a lease. An epoch is one instance's alone, and the beat grows with each of its renewals. So an entry that
/// does not come after this one is an earlier one that somebody wrote again, which takes no key, and no sign of a holder's
/// life.
#[derive(Debug, Clone, Copy)]
struct Newest {
    epoch: Epoch,
    instance: u64,
    beat: u64,
    /// When it was first seen, or when it was sent.
    at: Instant,
}

impl Newest {
    fn new(record: &LeaseRecord, at: Instant) -> Newest {
        Newest { epoch: record.epoch, instance: record.instance, beat: record.beat, at }
    }

    /// Whether `record` was made later.
    fn is_before(&self, record: &LeaseRecord) -> bool {
        record.epoch > self.epoch || (self.has_term_of(record) && record.beat > self.beat)
    }

    /// Whether `record` is of the same holder and epoch.
    fn has_term_of(&self, record: &LeaseRecord) -> bool {
        (record.epoch, record.instance) == (self.epoch, self.instance)
    }
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
            newest: None,
            heard: Epoch(0),
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
        if !epoch.is_plausible() {
            return false;
        }
        self.heard = self.heard.max(epoch);
        matches!(self.role, Role::Holder { epoch: own, .. } if epoch > own)
    }

    /// Notes what the bucket holds now: a revision and what the entry holds; or no entry.
    pub fn seen(&mut self, entry: Option<(u64, LeaseContent)>, now: Instant) {
        match &entry {
            Some((_, LeaseContent::Record(record))) => self.record_entry(record, now),
            Some((_, LeaseContent::Untrusted(Some(claimed))))
                if claimed.0 <= self.leased().max(self.heard).0 + CLAIMED_STEP =>
            {
                self.heard = self.heard.max(*claimed);
            }
            Some((_, LeaseContent::Untrusted(_) | LeaseContent::Unreadable)) | None => {}
        }
        self.knows_of_entry |= entry.is_some();
        // Only while it is sure that nobody had taken over before the loss.
        let certain = matches!(self.state(now), LeaseState::Leader { .. });
        self.reclaims = entry.is_none() && (self.reclaims || certain);
        match &mut self.role {
            Role::Holder { epoch, revision, doubtful, .. } => match &entry {
                // The renewal that got no answer was written after all, or somebody has written an earlier one again.
                Some((there, LeaseContent::Record(record)))
                    if record.instance == self.instance
                        && record.holder.is_some()
                        && record.epoch >= *epoch =>
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
                let epoch = if self.leased().max(self.heard) > *epoch { self.next_epoch() } else { *epoch };
                LeaseAction::Replace(self.record(epoch), *revision)
            }
            Role::Standby(None) => LeaseAction::Wait,
            Role::Standby(Some(Seen { entry: None, since })) => {
                let free = !self.knows_of_entry || self.reclaims;
                if free || now.duration_since(*since) >= self.duration {
                    LeaseAction::Create(self.record(self.next_epoch()))
                } else {
                    LeaseAction::Wait
                }
            }
            Role::Standby(Some(Seen { entry: Some((revision, content)), since })) => {
                let free = match content {
                    LeaseContent::Record(record) => self.is_free(record, now),
                    LeaseContent::Unreadable => now.duration_since(*since) >= self.duration,
                    // How often is bounded by how often it is looked.
                    LeaseContent::Untrusted(_) => true,
                };
                if free {
                    LeaseAction::Replace(self.record(self.next_epoch()), *revision)
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
            self.newest = Some(Newest::new(&record, sent_at));
            self.heard = Epoch(0);
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

    /// Whether the lease may be taken at once from the entry `record`.
    fn is_free(&self, record: &LeaseRecord, now: Instant) -> bool {
        let given_back = record.holder.is_none();
        // From a write that got no answer.
        let own = record.instance == self.instance;
        given_back
            || own
            // An earlier term's entry, written again, is nobody's. An earlier one of the newest term leaves the holder its time,
            // but adds none.
            || self
                .newest
                .is_none_or(|newest| !newest.has_term_of(record) || now.duration_since(newest.at) >= self.duration)
    }

    fn record_entry(&mut self, record: &LeaseRecord, now: Instant) {
        if self.newest.is_none_or(|newest| newest.is_before(record)) {
            self.newest = Some(Newest::new(record, now));
        }
    }

    /// The largest epoch of a lease, its own or another's.
    fn leased(&self) -> Epoch {
        self.newest.map_or(Epoch(0), |newest| newest.epoch)
    }

    /// One more than the last lease's, or than what was heard of, as far as that is believed at once.
    fn next_epoch(&self) -> Epoch {
        let leased = self.leased();
        let heard = self.heard.0.min(leased.0 + HEARD_STEP - 1);
        Epoch(leased.0.max(heard) + 1)
    }

    fn record(&self, epoch: Epoch) -> LeaseRecord {
        LeaseRecord { holder: Some(self.holder.clone()), instance: self.instance, epoch, beat: self.beat }
    }
}
