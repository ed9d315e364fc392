//! The feed of one table: turns its messages into typed updates, and decides when to fetch a snapshot.

use std::{marker::PhantomData, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    content::{Provenance, Snapshot, TableMessage},
    replica_core::{Epochs, ReplicaCore, Step},
    update::Update,
};
use crate::{
    Message, backoff,
    codec::{self, DecodeError, Wire, decode_part},
};

/// The time over which replicas that miss the same message spread their requests for the snapshot.
const JITTER: Duration = Duration::from_millis(100);
/// The pause after a fetch that failed or did not help.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(5);

pub(crate) struct Feed<K, V> {
    pub core: ReplicaCore,
    pub heard_at: Instant,
    pub fetching: bool,
    /// When to fetch a snapshot; absent: none is needed, or one is being fetched.
    pub fetch_at: Option<Instant>,
    /// Whether there were trusted keys at the last message.
    pub has_keys: bool,
    failures: u32,
    entries: PhantomData<fn() -> (K, V)>,
}

impl<K: Wire, V: Wire> Feed<K, V> {
    /// A feed that starts with `seed`, if there is one. It fetches a snapshot: at once where there is none.
    pub fn new(epochs: Epochs, seed: Option<&Snapshot>, has_keys: bool) -> Feed<K, V> {
        let now = Instant::now();
        let wait = if seed.is_some() { backoff::jitter(JITTER) } else { Duration::ZERO };
        Feed {
            core: seed.map_or_else(|| ReplicaCore::new(epochs), |seed| ReplicaCore::seeded(epochs, seed)),
            heard_at: now,
            fetching: false,
            fetch_at: Some(now + wait),
            has_keys,
            failures: 0,
            entries: PhantomData,
        }
    }

    /// Receives a message of the table's subject with its verified `body`.
    pub fn receive_message(
        &mut self,
        message: Message,
        body: &[u8],
    ) -> Result<Vec<Update<K, V>>, DecodeError> {
        let (schema, _) = codec::open(body)?;
        let received: TableMessage = codec::decode(body)?;
        let received_at = message.received_at;
        let had_nothing = self.core.position().is_none();
        let (steps, beat) = match received {
            TableMessage::Delta(mut delta) => {
                delta.provenance = Provenance { schema, trace: message.trace, received_at };
                (self.core.receive_delta(delta), false)
            }
            TableMessage::Heartbeat(heartbeat) => (self.core.receive_heartbeat(heartbeat), true),
        };
        let refused = matches!(steps[..], [Step::Refused(_)]);
        if !refused {
            // An owner whose clock was set back is refused until the table of its previous incarnation counts as gone.
            self.heard_at = Instant::now();
        }
        let mut moved = beat && !refused;
        let mut updates = Vec::with_capacity(steps.len() + 1);
        for step in steps {
            match step {
                // The first message of a table may be that it is empty.
                Step::Moved(at) if had_nothing => updates.push(Update::Snapshot {
                    epoch: at.epoch,
                    revision: at.revision,
                    entries: Vec::new(),
                    received_at,
                }),
                Step::Moved(_) => moved = true,
                step => updates.push(self.decode_step(step)?),
            }
        }
        if let (true, Some(at)) = (moved, self.core.position()) {
            let current = self.core.is_current();
            updates.push(Update::Heartbeat { epoch: at.epoch, revision: at.revision, current, received_at });
        }
        self.schedule_fetch();
        Ok(updates)
    }

    /// Receives the result of a fetch; nothing: it failed.
    pub fn receive_snapshot(&mut self, snapshot: Option<Snapshot>) -> Result<Vec<Update<K, V>>, DecodeError> {
        self.fetching = false;
        let steps = snapshot.map(|snapshot| self.core.receive_snapshot(snapshot)).unwrap_or_default();
        let mut updates = Vec::with_capacity(steps.len());
        let mut read = Ok(());
        for step in steps {
            if let Step::Moved(_) = step {
                continue;
            }
            match self.decode_step(step) {
                Ok(update) => updates.push(update),
                Err(error) => {
                    read = Err(error);
                    break;
                }
            }
        }
        if self.core.is_current() {
            self.failures = 0;
        } else {
            self.fetch_at = Some(Instant::now() + backoff::delay(self.failures, FIRST_RETRY, MAX_RETRY));
            self.failures = self.failures.saturating_add(1);
        }
        read.map(|()| updates)
    }

    /// Clears the epoch fence and fetches the table.
    pub fn reset(&mut self) {
        self.core.reset();
        self.failures = 0;
        self.fetch_at = Some(Instant::now());
    }

    /// Fetches the table at once, where it is not current.
    pub fn fetch_now(&mut self) {
        if !self.fetching && !self.core.is_current() {
            self.failures = 0;
            self.fetch_at = Some(Instant::now());
        }
    }

    /// Makes a postponed fetch due: the bus has reconnected.
    pub fn retry_fetch(&mut self) {
        if self.fetch_at.is_some() {
            self.failures = 0;
            self.fetch_at = Some(Instant::now() + backoff::jitter(JITTER));
        }
    }

    /// Schedules a fetch when one is needed, and cancels it when the missing messages arrived.
    fn schedule_fetch(&mut self) {
        if self.core.is_current() {
            self.fetch_at = None;
            self.failures = 0;
        } else if !self.fetching && self.fetch_at.is_none() {
            self.fetch_at = Some(Instant::now() + backoff::jitter(JITTER));
        }
    }

    /// Decodes a step. Where that fails, clears the content, so that the table is fetched again, with growing pauses.
    fn decode_step(&mut self, step: Step) -> Result<Update<K, V>, DecodeError> {
        let update = typed(step);
        if update.is_err() {
            self.core.clear_content();
            self.schedule_fetch();
        }
        update
    }
}

fn typed<K: Wire, V: Wire>(step: Step) -> Result<Update<K, V>, DecodeError> {
    Ok(match step {
        Step::Delta(delta) => {
            let schema = delta.provenance.schema;
            let changes = delta.changes.iter().map(|change| {
                let value = change.value.as_ref().map(|value| decode_part(schema, value)).transpose()?;
                Ok((decode_part(schema, &change.key)?, value))
            });
            Update::Delta {
                changes: changes.collect::<Result<_, DecodeError>>()?,
                epoch: delta.position.epoch,
                revision: delta.position.revision,
                meta: delta.meta,
                trace: delta.provenance.trace,
                received_at: delta.provenance.received_at,
            }
        }
        Step::Snapshot(snapshot) => {
            let schema = snapshot.provenance.schema;
            let entry =
                |(key, value): &(Bytes, Bytes)| Ok((decode_part(schema, key)?, decode_part(schema, value)?));
            Update::Snapshot {
                entries: snapshot.entries.iter().map(entry).collect::<Result<_, DecodeError>>()?,
                epoch: snapshot.position.epoch,
                revision: snapshot.position.revision,
                received_at: snapshot.provenance.received_at,
            }
        }
        Step::Refused(epoch) => Update::Refused { epoch },
        Step::Moved(at) => Update::Heartbeat {
            epoch: at.epoch,
            revision: at.revision,
            current: true,
            received_at: crate::clock::now(),
        },
    })
}
