//! The owner on the bus: publishes deltas and heartbeats, serves snapshots and stores them in a bucket.

use std::{
    marker::PhantomData,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tidegate_model::{Epoch, Revision};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    content::{Position, SnapshotRequest, TableChange, TableMessage},
    owner_core::OwnerCore,
    replica_core::Epochs,
};
use crate::{
    Bus, BusError, Subscription, TraceContext,
    background::Background,
    bucket::{Bucket, Precondition},
    clock,
    codec::{self, Wire, encode_part},
    lock::lock,
    seal::{Purpose, Signer},
    subjects,
};

/// Where an owner stores snapshots for replicas that start while there is no owner.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    /// The bucket.
    pub bucket: Bucket,
    /// The blob's key.
    pub key: String,
}

/// The options of an owner.
#[derive(Debug, Clone)]
pub struct OwnerOptions {
    /// The time between two heartbeats.
    pub heartbeat: Duration,
    /// The largest delta that is sent, in bytes. In place of a larger one a heartbeat is sent at once, and replicas fetch the
    /// snapshot, spread by their jitter, instead of all receiving the change at the same time.
    pub max_delta: usize,
    /// Where to store snapshots; absent: nowhere.
    pub store: Option<SnapshotStore>,
    /// The shortest time between two stored snapshots.
    pub store_interval: Duration,
    /// The standstill of the process after which the table is stale: the owner publishes nothing more until
    /// [`Owner::restart`]. Absent: the table never becomes stale.
    pub stalled_after: Option<Duration>,
    /// The signer of the messages; absent: they are not signed.
    pub signer: Option<Arc<Signer>>,
    /// How the table's epochs are chosen, which bounds the later owners that are believed to exist. Requests for snapshots
    /// are not signed, so only an owner whose epoch is a time learns of a later one by them: otherwise anybody who may send
    /// requests could drive counted epochs up.
    pub epochs: Epochs,
}

impl Default for OwnerOptions {
    fn default() -> Self {
        OwnerOptions {
            heartbeat: Duration::from_secs(1),
            max_delta: 256 * 1024,
            store: None,
            store_interval: Duration::from_secs(1),
            stalled_after: None,
            signer: None,
            epochs: Epochs::Counted,
        }
    }
}

/// The result of a publication.
#[derive(Debug)]
pub struct Published {
    /// The position of the table after it.
    pub position: Position,
    /// Whether the delta was sent. Where it was not, replicas converge at the next heartbeat.
    pub sent: Result<(), BusError>,
}

/// The owner of a replicated table: one for each epoch. Dropping it ends the term without a last snapshot.
#[derive(Debug)]
pub struct Owner<K, V> {
    shared: Arc<Shared>,
    tasks: Background,
    entries: PhantomData<fn(K, V)>,
}

#[derive(Debug)]
struct Shared {
    bus: Bus,
    subject: String,
    options: OwnerOptions,
    core: Mutex<OwnerCore>,
    /// The last encoded snapshot: a thousand replicas may request the same one at once.
    encoded: Mutex<Option<(Position, Bytes)>>,
    /// A later epoch that was observed; 0: none.
    superseded_by: AtomicU64,
    /// When the process last made progress; nothing once it has stalled.
    progress_at: Mutex<Option<Instant>>,
}

impl<K: Wire, V: Wire> Owner<K, V> {
    /// Starts a term with `entries` at `revision` (see [`OwnerCore::new`]), and publishes a heartbeat at once.
    ///
    /// # Errors
    /// When the bus is closed or `subject` is malformed. A bus that is away is no error.
    pub async fn start(
        bus: Bus,
        subject: &str,
        epoch: Epoch,
        revision: Revision,
        entries: impl IntoIterator<Item = (K, V)>,
        options: OwnerOptions,
    ) -> Result<Owner<K, V>, BusError> {
        let requests = bus.subscribe(&subjects::snapshot(subject)).await?;
        let encoded = entries.into_iter().map(|(key, value)| (encode_part(&key), encode_part(&value)));
        let shared = Arc::new(Shared {
            core: Mutex::new(OwnerCore::new(epoch, revision, encoded)),
            bus,
            subject: subject.to_owned(),
            options,
            encoded: Mutex::default(),
            superseded_by: AtomicU64::new(0),
            progress_at: Mutex::new(Some(Instant::now())),
        });
        let mut tasks = Background::default().with(|stop| serve(shared.clone(), requests, stop));
        if let Some(store) = shared.options.store.clone() {
            tasks = tasks.with(|stop| store_snapshots(shared.clone(), store, stop));
        }
        Ok(Owner { shared, tasks, entries: PhantomData })
    }

    /// Applies changes (a value, or nothing to remove the key; of several to one key the last counts) and publishes them
    /// before it returns. Nothing when nothing changed.
    ///
    /// `meta` is sent with the change and not stored; [`codec::encode`] makes one.
    pub async fn publish(
        &mut self,
        changes: impl IntoIterator<Item = (K, Option<V>)>,
        meta: Bytes,
        trace: Option<&TraceContext>,
    ) -> Option<Published> {
        let changes: Vec<TableChange> = changes
            .into_iter()
            .map(|(key, value)| TableChange {
                key: encode_part(&key),
                value: value.as_ref().map(encode_part),
            })
            .collect();
        let delta = lock(&self.shared.core).apply(changes, meta)?;
        let position = delta.position;
        self.record_progress();
        if self.is_stalled() {
            return Some(Published { position, sent: Ok(()) });
        }
        let body = codec::encode(&TableMessage::Delta(delta));
        let sent = if body.len() > self.shared.options.max_delta {
            self.shared.publish_heartbeat().await
        } else {
            self.shared
                .bus
                .publish(&self.shared.subject, trace, self.shared.sealed(Purpose::Message, body))
                .await
        };
        Some(Published { position, sent })
    }

    /// The position of the table.
    pub fn position(&self) -> Position {
        lock(&self.shared.core).position()
    }

    /// A later epoch that this owner observed in its bucket, or in a request where epochs are times: its term is over.
    pub fn superseded_by(&self) -> Option<Epoch> {
        match self.shared.superseded_by.load(Ordering::Relaxed) {
            0 => None,
            epoch => Some(Epoch(epoch)),
        }
    }

    /// Records that the process makes progress, as each heartbeat and publication does. Without effect once it has stalled.
    pub fn record_progress(&self) {
        self.shared.record_progress();
    }

    /// Whether the process stood still for [`OwnerOptions::stalled_after`], so that nothing is published until
    /// [`Owner::restart`].
    pub fn is_stalled(&self) -> bool {
        self.shared.is_stalled()
    }

    /// Starts another term, of a later epoch, with an empty table, and publishes a heartbeat.
    ///
    /// # Errors
    /// When the heartbeat was not sent. The next one makes up for it.
    pub async fn restart(&mut self, epoch: Epoch) -> Result<(), BusError> {
        *lock(&self.shared.core) = OwnerCore::new(epoch, Revision(0), []);
        self.shared.superseded_by.store(0, Ordering::Relaxed);
        *lock(&self.shared.progress_at) = Some(Instant::now());
        self.shared.publish_heartbeat().await
    }

    /// Ends the term: stores a last snapshot when one is due, then stops.
    pub async fn stop(self) {
        self.tasks.stop().await;
    }
}

impl Shared {
    fn record_progress(&self) {
        let Some(limit) = self.options.stalled_after else { return };
        let mut progress_at = lock(&self.progress_at);
        *progress_at = progress_at.filter(|at| at.elapsed() < limit).map(|_| Instant::now());
    }

    fn is_stalled(&self) -> bool {
        let Some(limit) = self.options.stalled_after else { return false };
        lock(&self.progress_at).is_none_or(|at| at.elapsed() >= limit)
    }

    async fn publish_heartbeat(&self) -> Result<(), BusError> {
        let heartbeat = lock(&self.core).heartbeat();
        let body = self.sealed(Purpose::Message, codec::encode(&TableMessage::Heartbeat(heartbeat)));
        self.bus.publish(&self.subject, None, body).await
    }

    fn sealed(&self, purpose: Purpose, body: Bytes) -> Bytes {
        match &self.options.signer {
            Some(signer) => signer.seal(purpose, &self.subject, &body),
            None => body,
        }
    }

    fn encoded_snapshot(&self) -> (Position, Bytes) {
        let position = lock(&self.core).position();
        if let Some(encoded) = lock(&self.encoded).as_ref().filter(|(at, _)| *at == position) {
            return encoded.clone();
        }
        let snapshot = lock(&self.core).snapshot();
        let encoded = (snapshot.position, self.sealed(Purpose::Snapshot, codec::encode(&snapshot)));
        *lock(&self.encoded) = Some(encoded.clone());
        encoded
    }

    /// Whether `epoch` can be a later owner's.
    fn can_be_later(&self, epoch: Epoch) -> bool {
        let own = lock(&self.core).position().epoch;
        // An implausible epoch is an invention: to exceed it would only help its inventor.
        epoch > own && self.options.epochs.can_follow(epoch, own, clock::now())
    }

    /// Whether a request names a later epoch, so that a later owner has to respond. Records that epoch where epochs are times.
    fn check_for_later(&self, request: SnapshotRequest) -> bool {
        match self.options.epochs {
            Epochs::Timed => self.observe_epoch(request.at_least),
            Epochs::Counted | Epochs::Signed => self.can_be_later(request.at_least),
        }
    }

    /// Records an epoch in use. Returns whether it is later than this owner's.
    fn observe_epoch(&self, epoch: Epoch) -> bool {
        let later = self.can_be_later(epoch);
        if later && self.superseded_by.fetch_max(epoch.0, Ordering::Relaxed) == 0 {
            tracing::warn!(table = %self.subject, %epoch, "there is a later owner");
        }
        later
    }
}

/// Publishes heartbeats and serves snapshots.
async fn serve(shared: Arc<Shared>, mut requests: Subscription, stop: CancellationToken) {
    let mut beat = tokio::time::interval(shared.options.heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {
                shared.record_progress();
                if shared.is_stalled() {
                    continue;
                }
                if let Err(error) = shared.publish_heartbeat().await {
                    tracing::debug!(table = %shared.subject, %error, "a heartbeat was not sent");
                }
            }
            request = requests.next() => {
                let Some(message) = request else { return };
                shared.record_progress();
                match codec::decode::<SnapshotRequest>(&message.body) {
                    Ok(request) if shared.check_for_later(request) || shared.is_stalled() => {}
                    Ok(_) => {
                        let (_, body) = shared.encoded_snapshot();
                        if let Err(error) = shared.bus.reply(&message, body).await {
                            tracing::debug!(table = %shared.subject, %error, "a snapshot was not sent");
                        }
                    }
                    Err(error) => {
                        tracing::warn!(table = %shared.subject, %error, "a snapshot request cannot be read");
                    }
                }
            }
        }
    }
}

/// Stores snapshots in the bucket, also after the bucket lost them.
async fn store_snapshots(shared: Arc<Shared>, store: SnapshotStore, stop: CancellationToken) {
    /// The number of ticks without a change after which it checks that the last snapshot is still there.
    const CHECK_EVERY: u32 = 10;
    let mut tick = tokio::time::interval(shared.options.store_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stored = None;
    let mut unchanged = 0;
    loop {
        let last = tokio::select! {
            () = stop.cancelled() => true,
            _ = tick.tick() => false,
        };
        let position = lock(&shared.core).position();
        let due = stored != Some(position) || unchanged >= CHECK_EVERY;
        if due {
            unchanged = 0;
            match store_snapshot(&shared, &store).await {
                Ok(Storing::Stored(position)) => stored = Some(position),
                Ok(Storing::Superseded) => return,
                Err(error) => tracing::debug!(table = %shared.subject, %error, "a snapshot was not stored"),
            }
        }
        unchanged += 1;
        if last {
            return;
        }
    }
}

/// The result of storing a snapshot.
enum Storing {
    Stored(Position),
    /// A later owner has stored one.
    Superseded,
}

async fn store_snapshot(shared: &Shared, store: &SnapshotStore) -> Result<Storing, BusError> {
    let head = match store.bucket.blob_head(&store.key).await {
        Ok(head) => head,
        // Unreadable, so of no use to replicas either: it is replaced.
        Err(BusError::Blob { .. }) => {
            store.bucket.delete(&store.key).await?;
            None
        }
        Err(error) => return Err(error),
    };
    let there = head.as_ref().and_then(|head| codec::decode::<Position>(&head.label).ok());
    if there.is_some_and(|there| shared.observe_epoch(there.epoch)) {
        return Ok(Storing::Superseded);
    }
    let (position, body) = shared.encoded_snapshot();
    if there == Some(position) {
        return Ok(Storing::Stored(position));
    }
    // The compare-and-swap is the fence: an owner that stalled since it read the head can't replace a later owner's.
    let precondition = head.map_or(Precondition::Absent, |head| Precondition::Revision(head.revision));
    store.bucket.put_blob(&store.key, codec::encode(&position), body, precondition).await?;
    Ok(Storing::Stored(position))
}

impl Wire for Position {}
