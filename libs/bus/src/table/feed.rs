//! One table's way from messages to typed updates, and when it wants a snapshot.

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

/// Replicas that miss the same message ask for the snapshot spread over this time.
const JITTER: Duration = Duration::from_millis(100);
/// After a snapshot that could not be had, or did not help.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(5);

pub(crate) struct Feed<K, V> {
    pub core: ReplicaCore,
    pub heard_at: Instant,
    pub fetching: bool,
    /// When to ask for a snapshot; absent: none is wanted, or one is on its way.
    pub fetch_at: Option<Instant>,
    /// Whether there were keys to check by when it was last looked.
    pub has_keys: bool,
    failures: u32,
    entries: PhantomData<fn() -> (K, V)>,
}

impl<K: Wire, V: Wire> Feed<K, V> {
    /// A table of which nothing is known but, perhaps, `seed`. It wants a snapshot: at once when it has nothing.
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

    /// Takes a message of the table's subject, whose `body` was found worth believing.
    pub fn message(&mut self, message: Message, body: &[u8]) -> Result<Vec<Update<K, V>>, DecodeError> {
        let (schema, _) = codec::open(body)?;
        let taken: TableMessage = codec::decode(body)?;
        let received_at = message.received_at;
        let had_nothing = self.core.position().is_none();
        let (steps, beat) = match taken {
            TableMessage::Delta(mut delta) => {
                delta.provenance = Provenance { schema, trace: message.trace, received_at };
                (self.core.delta(delta), false)
            }
            TableMessage::Heartbeat(heartbeat) => (self.core.heartbeat(heartbeat), true),
        };
        let refused = matches!(steps[..], [Step::Refused(_)]);
        if !refused {
            // An owner whose clock was set back is refused until the table of its life before counts as gone.
            self.heard_at = Instant::now();
        }
        let mut moved = beat && !refused;
        let mut updates = Vec::with_capacity(steps.len() + 1);
        for step in steps {
            match step {
                // The first that is heard of a table may be that it is empty.
                Step::Moved(at) if had_nothing => updates.push(Update::Snapshot {
                    epoch: at.epoch,
                    revision: at.revision,
                    entries: Vec::new(),
                    received_at,
                }),
                Step::Moved(_) => moved = true,
                step => updates.push(self.read(step)?),
            }
        }
        if let (true, Some(at)) = (moved, self.core.position()) {
            let current = self.core.is_current();
            updates.push(Update::Heartbeat { epoch: at.epoch, revision: at.revision, current, received_at });
        }
        self.plan();
        Ok(updates)
    }

    /// Takes what a fetch brought; nothing: it failed.
    pub fn fetched(&mut self, snapshot: Option<Snapshot>) -> Result<Vec<Update<K, V>>, DecodeError> {
        self.fetching = false;
        let steps = snapshot.map(|snapshot| self.core.snapshot(snapshot)).unwrap_or_default();
        let mut updates = Vec::with_capacity(steps.len());
        let mut read = Ok(());
        for step in steps {
            if let Step::Moved(_) = step {
                continue;
            }
            match self.read(step) {
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

    /// Clears the epoch fence, and fetches the table.
    pub fn reset(&mut self) {
        self.core.reset();
        self.failures = 0;
        self.fetch_at = Some(Instant::now());
    }

    /// Asks for the table at once, where it is missing something.
    pub fn ask_now(&mut self) {
        if !self.fetching && !self.core.is_current() {
            self.failures = 0;
            self.fetch_at = Some(Instant::now());
        }
    }

    /// The bus has come back: what was put off is due.
    pub fn reconnected(&mut self) {
        if self.fetch_at.is_some() {
            self.failures = 0;
            self.fetch_at = Some(Instant::now() + backoff::jitter(JITTER));
        }
    }

    /// Wants a snapshot when one is needed, and no longer when the missing came by itself.
    fn plan(&mut self) {
        if self.core.is_current() {
            self.fetch_at = None;
            self.failures = 0;
        } else if !self.fetching && self.fetch_at.is_none() {
            self.fetch_at = Some(Instant::now() + backoff::jitter(JITTER));
        }
    }

    /// Gives a step its types. What can't be read is forgotten, so that the table is fetched again, later and later.
    fn read(&mut self, step: Step) -> Result<Update<K, V>, DecodeError> {
        let update = typed(step);
        if update.is_err() {
            self.core.forget();
            self.plan();
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
