//! The rules of a replica: messages in, steps out.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tidegate_model::{Epoch, Revision, Timestamp};

use super::content::{Delta, Heartbeat, Position, Snapshot, Summary, entry_hash};

/// The most deltas that wait for earlier ones. Beyond them the replica needs a snapshot.
const MAX_EARLY: usize = 64;

/// The state of a replica: its position, the digest of its content, and the latest position that it knows of. The entries
/// themselves are with the consumer of the [steps](Step).
#[derive(Debug, Clone, Default)]
pub struct ReplicaCore {
    /// Its position; absent: it has nothing yet.
    at: Option<Position>,
    hashes: HashMap<Bytes, u128>,
    content: Summary,
    /// The latest report of an owner.
    latest: Option<Heartbeat>,
    /// The deltas whose `before` has not been reached.
    early: BTreeMap<Position, Delta>,
    /// How the table's epochs are chosen, which bounds the plausible ones.
    epochs: Epochs,
    /// The time of the last message.
    now: Timestamp,
}

/// How the epochs of a table are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Epochs {
    /// Each is slightly larger than the one before.
    Counted,
    /// Each is the start time of its owner.
    #[default]
    Timed,
    /// Each is signed by its owner, so it is believed however far it is from the last one.
    Signed,
}

impl Epochs {
    /// Whether an owner of `epoch`, observed at `now`, can exist in a table whose last known epoch is `known`.
    pub fn can_follow(self, epoch: Epoch, known: Epoch, now: Timestamp) -> bool {
        match self {
            Epochs::Counted => epoch.is_plausible_after(known),
            Epochs::Timed => epoch.is_plausible_at(now),
            Epochs::Signed => epoch.is_plausible(),
        }
    }
}

/// The effect of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Apply the changes.
    Delta(Delta),
    /// Replace the content.
    Snapshot(Snapshot),
    /// Keep the content, which is now known to be that of this position.
    Moved(Position),
    /// The message was refused: its epoch is older than a known one, or implausible.
    Refused(Epoch),
}

impl ReplicaCore {
    /// An empty replica.
    pub fn new(epochs: Epochs) -> ReplicaCore {
        ReplicaCore { epochs, ..ReplicaCore::default() }
    }

    /// A replica that starts with `snapshot`.
    pub fn seeded(epochs: Epochs, snapshot: &Snapshot) -> ReplicaCore {
        let mut core = ReplicaCore::new(epochs);
        core.replace(snapshot);
        core
    }

    /// Clears the epoch fence and keeps the content: the next owner is believed, whatever its epoch.
    pub fn reset(&mut self) {
        self.at = self.at.map(|_| Position { epoch: Epoch(0), revision: Revision(0) });
        self.latest = None;
        self.early.clear();
    }

    /// Sets how epochs are chosen, and the time, for the next message.
    pub fn bound_epochs(&mut self, epochs: Epochs, now: Timestamp) {
        (self.epochs, self.now) = (epochs, now);
    }

    /// The position of the replica; nothing while it is empty.
    pub fn position(&self) -> Option<Position> {
        self.at
    }

    /// The digest of its content.
    pub fn content(&self) -> Summary {
        self.content
    }

    /// The latest epoch that it knows of; 0 when of none.
    pub fn fence(&self) -> Epoch {
        let latest = self.latest.map(|latest| latest.position.epoch);
        latest.max(self.at.map(|at| at.epoch)).unwrap_or_default()
    }

    /// Whether its content is the latest that it knows of.
    pub fn is_current(&self) -> bool {
        match (self.at, self.latest) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(at), Some(latest)) => {
                at > latest.position || (at == latest.position && self.content == latest.content)
            }
        }
    }

    /// Receives a delta.
    pub fn receive_delta(&mut self, delta: Delta) -> Vec<Step> {
        if self.refuses(delta.position.epoch) {
            return vec![Step::Refused(delta.position.epoch)];
        }
        self.observe(Heartbeat { position: delta.position, content: delta.after });
        if self.at.is_none_or(|at| delta.position > at) {
            self.early.insert(delta.position, delta);
            if self.early.len() > MAX_EARLY {
                self.early.pop_first();
            }
        }
        self.advance(Vec::new())
    }

    /// Receives a heartbeat.
    pub fn receive_heartbeat(&mut self, heartbeat: Heartbeat) -> Vec<Step> {
        if self.refuses(heartbeat.position.epoch) {
            return vec![Step::Refused(heartbeat.position.epoch)];
        }
        self.observe(heartbeat);
        self.advance(Vec::new())
    }

    /// Receives a snapshot. One older than the latest known position is better than nothing, but not than what is here.
    pub fn receive_snapshot(&mut self, snapshot: Snapshot) -> Vec<Step> {
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
        self.advance(vec![Step::Snapshot(snapshot)])
    }

    /// Clears the content, for a consumer that could not apply a step. The latest known position stays.
    pub fn clear_content(&mut self) {
        *self =
            ReplicaCore { latest: self.latest, epochs: self.epochs, now: self.now, ..ReplicaCore::default() };
    }

    fn refuses(&self, epoch: Epoch) -> bool {
        epoch < self.fence() || !self.is_plausible(epoch)
    }

    fn is_plausible(&self, epoch: Epoch) -> bool {
        self.epochs.can_follow(epoch, self.fence(), self.now)
    }

    fn observe(&mut self, heartbeat: Heartbeat) {
        // One of an equal position replaces it, too: the owner's own report of its content outranks what a delta led to.
        if self.latest.is_none_or(|latest| heartbeat.position >= latest.position) {
            self.latest = Some(heartbeat);
        }
    }

    /// Applies the deltas that can be applied now.
    fn advance(&mut self, mut steps: Vec<Step>) -> Vec<Step> {
        loop {
            let (at, fence) = (self.at, self.fence());
            self.early.retain(|position, _| at.is_none_or(|at| *position > at) && position.epoch >= fence);
            let next = self.early.iter().find(|(_, delta)| delta.before == self.content);
            let Some(position) = next.map(|(position, _)| *position) else { break };
            if let Some(delta) = self.early.remove(&position) {
                // Any deltas in between led away from this content and back to it.
                self.apply(&delta);
                steps.push(Step::Delta(delta));
            }
        }
        if let Some(latest) = self.latest
            && self.at.is_none_or(|at| latest.position > at)
            && latest.content == self.content
        {
            self.at = Some(latest.position);
            self.early.clear();
            steps.push(Step::Moved(latest.position));
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
        self.observe(Heartbeat { position: snapshot.position, content: self.content });
    }
}
