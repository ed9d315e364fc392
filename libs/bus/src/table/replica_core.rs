//! The replica's rules: messages in, steps out.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tidegate_model::{Epoch, Revision, Timestamp};

use super::content::{Delta, Heartbeat, Position, Snapshot, Summary, entry_hash};

/// Deltas that came before those that they build on, at most. What is beyond comes by a snapshot.
const MAX_EARLY: usize = 64;

/// A table as a replica has it: where it stands, what it comes down to, and what it has heard of. The entries
/// themselves are with whoever takes the [steps](Step).
#[derive(Debug, Clone, Default)]
pub struct ReplicaCore {
    /// Where it stands; absent: it has nothing yet.
    at: Option<Position>,
    hashes: HashMap<Bytes, u128>,
    content: Summary,
    /// The latest that it has heard an owner say of its table.
    heard: Option<Heartbeat>,
    /// Deltas of a later position whose `before` has not been reached.
    early: BTreeMap<Position, Delta>,
    /// How far an epoch may be from the last one.
    epochs: Epochs,
    /// The time at which that was last asked.
    now: Timestamp,
}

/// How the epochs of a table come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Epochs {
    /// Each is a little larger than the one before.
    Counted,
    /// Each is the time at which its owner began.
    #[default]
    Timed,
    /// Each was signed by its owner, so it is believed however far it is from the last one.
    Signed,
}

impl Epochs {
    /// Whether an owner of `epoch`, which is heard at `now`, can exist in a table whose last owner had `known`.
    pub fn can_follow(self, epoch: Epoch, known: Epoch, now: Timestamp) -> bool {
        match self {
            Epochs::Counted => epoch.is_plausible_after(known),
            Epochs::Timed => epoch.is_plausible_at(now),
            Epochs::Signed => epoch.is_plausible(),
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The changes are to be made.
    Delta(Delta),
    /// The content is to be replaced.
    Snapshot(Snapshot),
    /// The content stays; it is now known to be that of this position.
    Moved(Position),
    /// An owner of an older epoch spoke, or one of an epoch that cannot be; it was not listened to.
    Refused(Epoch),
}

impl ReplicaCore {
    /// A replica that has nothing.
    pub fn new(epochs: Epochs) -> ReplicaCore {
        ReplicaCore { epochs, ..ReplicaCore::default() }
    }

    /// A replica that has `snapshot` already.
    pub fn seeded(epochs: Epochs, snapshot: &Snapshot) -> ReplicaCore {
        let mut core = ReplicaCore::new(epochs);
        core.replace(snapshot);
        core
    }

    /// Clears the epoch fence and keeps the content: the next owner that is heard is believed.
    pub fn reset(&mut self) {
        self.at = self.at.map(|_| Position { epoch: Epoch(0), revision: Revision(0) });
        self.heard = None;
        self.early.clear();
    }

    /// Judges epochs that arrive at `now` by how they come about.
    pub fn bound_epochs(&mut self, epochs: Epochs, now: Timestamp) {
        (self.epochs, self.now) = (epochs, now);
    }

    /// Where the replica stands; nothing before it has anything.
    pub fn position(&self) -> Option<Position> {
        self.at
    }

    /// What its content comes down to.
    pub fn content(&self) -> Summary {
        self.content
    }

    /// The latest epoch that it has heard of, 0 when of none.
    pub fn fence(&self) -> Epoch {
        let heard = self.heard.map(|heard| heard.position.epoch);
        heard.max(self.at.map(|at| at.epoch)).unwrap_or_default()
    }

    /// Whether it has the latest that it has heard of.
    pub fn is_current(&self) -> bool {
        match (self.at, self.heard) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(at), Some(heard)) => {
                at > heard.position || (at == heard.position && self.content == heard.content)
            }
        }
    }

    /// Takes a delta.
    pub fn delta(&mut self, delta: Delta) -> Vec<Step> {
        if self.refuses(delta.position.epoch) {
            return vec![Step::Refused(delta.position.epoch)];
        }
        self.hear(Heartbeat { position: delta.position, content: delta.after });
        if self.at.is_none_or(|at| delta.position > at) {
            self.early.insert(delta.position, delta);
            if self.early.len() > MAX_EARLY {
                self.early.pop_first();
            }
        }
        self.go_on(Vec::new())
    }

    /// Takes a heartbeat.
    pub fn heartbeat(&mut self, heartbeat: Heartbeat) -> Vec<Step> {
        if self.refuses(heartbeat.position.epoch) {
            return vec![Step::Refused(heartbeat.position.epoch)];
        }
        self.hear(heartbeat);
        self.go_on(Vec::new())
    }

    /// Takes a snapshot. One that is older than what was heard of is better than nothing, but not than what is here.
    pub fn snapshot(&mut self, snapshot: Snapshot) -> Vec<Step> {
        if !self.is_plausible(snapshot.position.epoch) {
            return vec![Step::Refused(snapshot.position.epoch)];
        }
        if let Some(at) = self.at {
            if snapshot.position.epoch < at.epoch {
                return vec![Step::Refused(snapshot.position.epoch)];
            }
            let same = snapshot.position == at && self.is_current();
            if snapshot.position < at || same {
                return Vec::new();
            }
        }
        self.replace(&snapshot);
        self.go_on(vec![Step::Snapshot(snapshot)])
    }

    /// Forgets the content, for one who could not make use of a step. What was heard of stays heard.
    pub fn forget(&mut self) {
        *self =
            ReplicaCore { heard: self.heard, epochs: self.epochs, now: self.now, ..ReplicaCore::default() };
    }

    fn refuses(&self, epoch: Epoch) -> bool {
        epoch < self.fence() || !self.is_plausible(epoch)
    }

    fn is_plausible(&self, epoch: Epoch) -> bool {
        self.epochs.can_follow(epoch, self.fence(), self.now)
    }

    fn hear(&mut self, heartbeat: Heartbeat) {
        // An equal position is taken, too: the owner's own word of its content stands above what a delta led to.
        if self.heard.is_none_or(|heard| heartbeat.position >= heard.position) {
            self.heard = Some(heartbeat);
        }
    }

    /// Applies what can be applied now.
    fn go_on(&mut self, mut steps: Vec<Step>) -> Vec<Step> {
        loop {
            let (at, fence) = (self.at, self.fence());
            self.early.retain(|position, _| at.is_none_or(|at| *position > at) && position.epoch >= fence);
            let next = self.early.iter().find(|(_, delta)| delta.before == self.content);
            let Some(position) = next.map(|(position, _)| *position) else { break };
            if let Some(delta) = self.early.remove(&position) {
                // Deltas between, if any, led away from this content and back to it.
                self.apply(&delta);
                steps.push(Step::Delta(delta));
            }
        }
        if let Some(heard) = self.heard
            && self.at.is_none_or(|at| heard.position > at)
            && heard.content == self.content
        {
            self.at = Some(heard.position);
            self.early.clear();
            steps.push(Step::Moved(heard.position));
        }
        steps
    }

    fn apply(&mut self, delta: &Delta) {
        for change in &delta.changes {
            let hash = change.value.as_ref().map(|value| entry_hash(&change.key, value));
            let old = match hash {
                Some(hash) => {
                    self.content.add(hash);
                    self.hashes.insert(change.key.clone(), hash)
                }
                None => self.hashes.remove(&change.key),
            };
            if let Some(old) = old {
                self.content.remove(old);
            }
        }
        self.at = Some(delta.position);
    }

    fn replace(&mut self, snapshot: &Snapshot) {
        self.hashes = snapshot.entries.iter().map(|(k, v)| (k.clone(), entry_hash(k, v))).collect();
        self.content = Summary::default();
        for hash in self.hashes.values() {
            self.content.add(*hash);
        }
        self.at = Some(snapshot.position);
        self.hear(Heartbeat { position: snapshot.position, content: self.content });
    }
}
