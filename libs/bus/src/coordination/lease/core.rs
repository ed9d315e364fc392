//! The rules of the lease, without I/O. Time is passed in: this process's monotonic clock, which never leaves it.

use std::time::Duration;

use tidegate_model::{Epoch, HolderName};
use tokio::time::Instant;

use super::record::LeaseRecord;

/// The largest step of the epoch towards one that is observed in use. Reports are not signed, so this bounds what a forger
/// can do; it is half the step that replicas accept, so that they also follow when they missed the term between.
const OBSERVED_STEP: u64 = Epoch::MAX_STEP / 2;

/// The largest step above the known epochs to one that an untrusted entry claims: so two leaders never share an epoch after
/// a key was removed, and a forger of entries, which are replaced twice a second, takes decades to use up the epochs.
const CLAIMED_STEP: u64 = 1 << 10;

/// The state of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It holds the lease, and nobody else can (except just after the bus lost its data or somebody overwrote the entry).
    Leader {
        /// Its epoch.
        epoch: Epoch,
    },
    /// It held the lease, could not renew it in time, and has not seen another holder. It may continue to publish: when
    /// another has taken over, replicas refuse this epoch.
    Uncertain {
        /// Its epoch.
        epoch: Epoch,
    },
    /// It does not hold the lease.
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

/// The content of a lease's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseContent {
    /// A trusted record.
    Record(LeaseRecord),
    /// Something else, perhaps a newer version's record.
    Unreadable,
    /// An entry without the signature of a trusted key although there are keys: anybody who may write the bucket can have
    /// put it there, so it is replaced at once. With the epoch that it claims, which may be that of a leader whose key was
    /// removed.
    Untrusted(Option<Epoch>),
}

/// A write of a lease's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAction {
    /// No write for now.
    Wait,
    /// Create it.
    Create(LeaseRecord),
    /// Replace the entry of this revision.
    Replace(LeaseRecord, u64),
}

/// A candidate for a lease.
#[derive(Debug)]
pub struct LeaseCore {
    holder: HolderName,
    instance: u64,
    duration: Duration,
    role: Role,
    /// The newest entry that it has seen or written, its own or another's.
    newest: Option<Newest>,
    /// The largest epoch observed in use since it took its own last.
    observed: Epoch,
    beat: u64,
    /// The write that was decided and has no result yet.
    pending: Option<LeaseRecord>,
    /// Whether it has seen or written an entry: then a bucket without one has lost its data, and a holder may be active.
    knows_of_entry: bool,
    /// Whether it certainly held the lease when the entry was lost: then it need not wait for another holder.
    reclaims: bool,
}

#[derive(Debug)]
enum Role {
    /// The entry that it last saw; absent: it has not read it since it lost its own.
    Standby(Option<Seen>),
    Holder {
        epoch: Epoch,
        revision: u64,
        /// When the renewal that succeeded last was sent.
        renewed_at: Instant,
        /// Whether a renewal got no response: its entry may be one revision on.
        is_uncertain_revision: bool,
    },
}

#[derive(Debug)]
struct Seen {
    /// The revision and content; absent: there is no entry.
    entry: Option<(u64, LeaseContent)>,
    /// Since when it has been so.
    since: Instant,
}

/// The newest entry of a lease. An epoch belongs to one instance, and the beat grows with each of its renewals. So an entry
/// that does not come after this one is an earlier one that was replayed, which takes no key, and is no sign of life.
#[derive(Debug, Clone, Copy)]
struct Newest {
    epoch: Epoch,
    instance: u64,
    beat: u64,
    /// When it was first seen or sent.
    at: Instant,
}

impl Newest {
    fn new(record: &LeaseRecord, at: Instant) -> Newest {
        Newest { epoch: record.epoch, instance: record.instance, beat: record.beat, at }
    }

    /// Whether `record` is later.
    fn is_before(&self, record: &LeaseRecord) -> bool {
        record.epoch > self.epoch || (self.has_term_of(record) && record.beat > self.beat)
    }

    /// Whether `record` is of the same holder and epoch.
    fn has_term_of(&self, record: &LeaseRecord) -> bool {
        (record.epoch, record.instance) == (self.epoch, self.instance)
    }
}

impl LeaseCore {
    /// A candidate of this name, on standby.
    pub fn new(holder: HolderName, duration: Duration) -> LeaseCore {
        let (instance, role) = (rand::random(), Role::Standby(None));
        LeaseCore {
            holder,
            instance,
            duration,
            role,
            newest: None,
            observed: Epoch(0),
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

    /// Whether it holds the lease and can renew it without reading the entry first.
    pub fn can_renew(&self) -> bool {
        matches!(self.role, Role::Holder { is_uncertain_revision: false, .. })
    }

    /// The state at `now`.
    pub fn state(&self, now: Instant) -> LeaseState {
        match self.role {
            Role::Standby(_) => LeaseState::Standby,
            Role::Holder { epoch, renewed_at, .. } if now < renewed_at + self.certain_for() => {
                LeaseState::Leader { epoch }
            }
            Role::Holder { epoch, .. } => LeaseState::Uncertain { epoch },
        }
    }

    /// When the state becomes uncertain by time alone; nothing when it does not.
    pub fn uncertain_at(&self, now: Instant) -> Option<Instant> {
        match self.role {
            Role::Holder { renewed_at, .. } => Some(renewed_at + self.certain_for()).filter(|at| *at > now),
            Role::Standby(_) => None,
        }
    }

    /// How long it is certain after a renewal was sent. Others count the duration from when they saw the renewal, which is
    /// later; a quarter is reserved for clocks that run at different speeds.
    fn certain_for(&self) -> Duration {
        self.duration * 3 / 4
    }

    /// Records an epoch in use. Returns whether it needs a new epoch of its own.
    pub fn observe_epoch(&mut self, epoch: Epoch) -> bool {
        if !epoch.is_plausible() {
            return false;
        }
        self.observed = self.observed.max(epoch);
        matches!(self.role, Role::Holder { epoch: own, .. } if epoch > own)
    }

    /// Records the present entry, revision and content, or that there is none.
    pub fn observe_entry(&mut self, entry: Option<(u64, LeaseContent)>, now: Instant) {
        match &entry {
            Some((_, LeaseContent::Record(record))) => self.record_entry(record, now),
            Some((_, LeaseContent::Untrusted(Some(claimed))))
                if claimed.0 <= self.leased().max(self.observed).0 + CLAIMED_STEP =>
            {
                self.observed = self.observed.max(*claimed);
            }
            Some((_, LeaseContent::Untrusted(_) | LeaseContent::Unreadable)) | None => {}
        }
        self.knows_of_entry |= entry.is_some();
        // Only while it is certain that nobody had taken over before the loss.
        let certain = matches!(self.state(now), LeaseState::Leader { .. });
        self.reclaims = entry.is_none() && (self.reclaims || certain);
        match &mut self.role {
            Role::Holder { epoch, revision, is_uncertain_revision, .. } => match &entry {
                // The renewal without a response was written after all, or an earlier one was replayed.
                Some((there, LeaseContent::Record(record)))
                    if record.instance == self.instance
                        && record.holder.is_some()
                        && record.epoch >= *epoch =>
                {
                    *epoch = record.epoch;
                    *revision = *there;
                    *is_uncertain_revision = false;
                }
                _ => self.role = Role::Standby(Some(Seen { entry, since: now })),
            },
            Role::Standby(Some(before)) if before.entry == entry => {}
            Role::Standby(before) => *before = Some(Seen { entry, since: now }),
        }
    }

    /// Decides what to write now.
    pub fn next_action(&mut self, now: Instant) -> LeaseAction {
        let action = match &self.role {
            Role::Holder { epoch, revision, .. } => {
                let epoch =
                    if self.leased().max(self.observed) > *epoch { self.next_epoch() } else { *epoch };
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
                    // The interval of reads bounds how often.
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

    /// Records that the write of [`LeaseCore::next_action`], sent at `sent_at`, made this revision.
    pub fn record_written(&mut self, revision: u64, sent_at: Instant) {
        if let Some(record) = self.pending.take() {
            self.knows_of_entry = true;
            self.newest = Some(Newest::new(&record, sent_at));
            self.observed = Epoch(0);
            self.role = Role::Holder {
                epoch: record.epoch,
                revision,
                renewed_at: sent_at,
                is_uncertain_revision: false,
            };
        }
    }

    /// Records that the write failed because the entry was not as expected.
    pub fn record_conflict(&mut self) {
        self.pending = None;
        match &mut self.role {
            // After a write without a response the entry may be its own, of a later revision: it is read.
            Role::Holder { is_uncertain_revision, .. } if !*is_uncertain_revision => {
                *is_uncertain_revision = true;
            }
            Role::Holder { .. } | Role::Standby(_) => self.role = Role::Standby(None),
        }
    }

    /// Records that the write got no response: it may have been made or not.
    pub fn record_no_response(&mut self) {
        self.pending = None;
        if let Role::Holder { is_uncertain_revision, .. } = &mut self.role {
            *is_uncertain_revision = true;
        }
    }

    /// Goes on standby. Returns the entry that releases the lease, and the revision to replace, where it is held.
    pub fn release(&mut self) -> Option<(LeaseRecord, u64)> {
        let Role::Holder { epoch, revision, .. } = self.role else { return None };
        self.role = Role::Standby(None);
        Some((LeaseRecord { holder: None, ..self.record(epoch) }, revision))
    }

    /// Whether the lease may be taken at once from the entry `record`.
    fn is_free(&self, record: &LeaseRecord, now: Instant) -> bool {
        let is_released = record.holder.is_none();
        // Of a write that got no response.
        let own = record.instance == self.instance;
        is_released
            || own
            // A replayed entry of an earlier term holds the lease for nobody. One of the newest term leaves the holder its
            // time but does not prolong it.
            || self
                .newest
                .is_none_or(|newest| !newest.has_term_of(record) || now.duration_since(newest.at) >= self.duration)
    }

    fn record_entry(&mut self, record: &LeaseRecord, now: Instant) {
        if self.newest.is_none_or(|newest| newest.is_before(record)) {
            self.newest = Some(Newest::new(record, now));
        }
    }

    /// The epoch of the newest lease, its own or another's.
    fn leased(&self) -> Epoch {
        self.newest.map_or(Epoch(0), |newest| newest.epoch)
    }

    /// One more than the epoch of the newest lease, or than the observed epoch as far as it is believed at once.
    fn next_epoch(&self) -> Epoch {
        let leased = self.leased();
        let observed = self.observed.0.min(leased.0 + OBSERVED_STEP - 1);
        Epoch(leased.0.max(observed) + 1)
    }

    fn record(&self, epoch: Epoch) -> LeaseRecord {
        LeaseRecord { holder: Some(self.holder.clone()), instance: self.instance, epoch, beat: self.beat }
    }
}
