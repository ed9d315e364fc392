//! The owner on the bus: publishes, says heartbeats, answers for snapshots and leaves them in a bucket.

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
    bucket::{Bucket, Place},
    clock,
    codec::{self, Wire, encode_part},
    lock::lock,
    seal::{Purpose, Signer},
    subjects,
};

/// Where an owner leaves snapshots for replicas that start while there is no owner.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    /// The bucket.
    pub bucket: Bucket,
    /// The blob's key.
    pub key: String,
}

/// How an owner behaves.
#[derive(Debug, Clone)]
pub struct OwnerOptions {
    /// The time between two heartbeats.
    pub heartbeat: Duration,
    /// The largest delta that is sent, in bytes. For a larger one a heartbeat is sent at once, and replicas fetch the
    /// snapshot, spread by their jitter, instead of all receiving it at the same time.
    pub max_delta: usize,
    /// Where to leave snapshots.
    pub store: Option<SnapshotStore>,
    /// The shortest time between two of them.
    pub store_every: Duration,
    /// When it was frozen for this long, what it knows is old: it says nothing more until [`Owner::begin_anew`]. Absent: for
    /// tables that do not age.
    pub stalled_after: Option<Duration>,
    /// Who signs what is said; absent: nobody.
    pub signer: Option<Arc<Signer>>,
    /// How the table's epochs come about. It bounds which later owners are believed to exist. Nobody signs a request for a
    /// snapshot, so only an owner whose epoch is a time learns of a later one by it: whoever may ask could drive counted epochs
    /// up.
    pub epochs: Epochs,
}

impl Default for OwnerOptions {
    fn default() -> Self {
        OwnerOptions {
            heartbeat: Duration::from_secs(1),
            max_delta: 256 * 1024,
            store: None,
            store_every: Duration::from_secs(1),
            stalled_after: None,
            signer: None,
            epochs: Epochs::Counted,
        }
    }
}

/// What became of a publication.
#[derive(Debug)]
pub struct Published {
    /// Where the table stands now.
    pub position: Position,
    /// Whether the delta was sent. Where it was not, the next heartbeat brings replicas to the same content.
    pub sent: Result<(), BusError>,
}

/// The owner of a replicated table. There is one for each epoch. Dropping it ends the reign without a last word.
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
    /// The last snapshot that was encoded: a thousand replicas may ask for the same at once.
    encoded: Mutex<Option<(Position, Bytes)>>,
    /// A later epoch that was met; 0: none.
    superseded_by: AtomicU64,
    /// When it ran last; nothing once it has stood still for too long.
    awake_at: Mutex<Option<Instant>>,
}

impl<K: Wire, V: Wire> Owner<K, V> {
    /// Begins a reign with `entries` at `revision` (see [`OwnerCore::new`]), and says so on the bus at once.
    ///
    /// # Errors
    /// When the bus is closed or `subject` is not one. That the bus is away is no error.
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
            awake_at: Mutex::new(Some(Instant::now())),
        });
        let mut tasks = Background::default().with(|stop| speak(shared.clone(), requests, stop));
        if let Some(store) = shared.options.store.clone() {
            tasks = tasks.with(|stop| keep(shared.clone(), store, stop));
        }
        Ok(Owner { shared, tasks, entries: PhantomData })
    }

    /// Makes changes (a value, or nothing to remove the key; of one key the last counts) and publishes them before it
    /// returns. Nothing when nothing changed.
    ///
    /// `meta` goes with the change and is not kept; [`codec::encode`] makes one.
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
        if self.is_stalled() {
            return Some(Published { position, sent: Ok(()) });
        }
        let body = codec::encode(&TableMessage::Delta(delta));
        let sent = if body.len() > self.shared.options.max_delta {
            self.shared.say_heartbeat().await
        } else {
            self.shared
                .bus
                .publish(&self.shared.subject, trace, self.shared.sealed(Purpose::Message, body))
                .await
        };
        Some(Published { position, sent })
    }

    /// Where the table stands.
    pub fn position(&self) -> Position {
        lock(&self.shared.core).position()
    }

    /// A later epoch that this owner met in its bucket, or by a replica's request where epochs are times: its reign is over.
    pub fn superseded_by(&self) -> Option<Epoch> {
        match self.shared.superseded_by.load(Ordering::Relaxed) {
            0 => None,
            epoch => Some(Epoch(epoch)),
        }
    }

    /// Whether it stood still for too long, and says nothing until [`Owner::begin_anew`].
    pub fn is_stalled(&self) -> bool {
        self.shared.has_stalled()
    }

    /// Begins another reign, of a later epoch, with an empty table, and says so on the bus.
    ///
    /// # Errors
    /// When that was not sent. The next heartbeat makes up for it.
    pub async fn begin_anew(&mut self, epoch: Epoch) -> Result<(), BusError> {
        *lock(&self.shared.core) = OwnerCore::new(epoch, Revision(0), []);
        self.shared.superseded_by.store(0, Ordering::Relaxed);
        *lock(&self.shared.awake_at) = Some(Instant::now());
        self.shared.say_heartbeat().await
    }

    /// Ends the reign: leaves a last snapshot when one is due, then falls silent.
    pub async fn stop(self) {
        self.tasks.stop().await;
    }
}

impl Shared {
    /// Notes that it runs, unless it has not for too long.
    fn has_stalled(&self) -> bool {
        let Some(limit) = self.options.stalled_after else { return false };
        let mut awake_at = lock(&self.awake_at);
        *awake_at = awake_at.filter(|at| at.elapsed() < limit).map(|_| Instant::now());
        awake_at.is_none()
    }

    async fn say_heartbeat(&self) -> Result<(), BusError> {
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
        // What cannot be is somebody's invention: to outdo it would only help them.
        epoch > own && self.options.epochs.can_follow(epoch, own, clock::now())
    }

    /// Whether a request is for another owner to answer: who asks knows of a later epoch.
    fn is_for_later(&self, request: SnapshotRequest) -> bool {
        match self.options.epochs {
            Epochs::Timed => self.meet(request.at_least),
            Epochs::Counted | Epochs::Signed => self.can_be_later(request.at_least),
        }
    }

    /// Notes that `epoch` was met. Says whether it is later than this owner's.
    fn meet(&self, epoch: Epoch) -> bool {
        let later = self.can_be_later(epoch);
        if later && self.superseded_by.fetch_max(epoch.0, Ordering::Relaxed) == 0 {
            tracing::warn!(table = %self.subject, %epoch, "a later owner was met");
        }
        later
    }
}

/// Says heartbeats and answers for snapshots.
async fn speak(shared: Arc<Shared>, mut requests: Subscription, stop: CancellationToken) {
    let mut beat = tokio::time::interval(shared.options.heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {
                if shared.has_stalled() {
                    continue;
                }
                if let Err(error) = shared.say_heartbeat().await {
                    tracing::debug!(table = %shared.subject, %error, "a heartbeat was not sent");
                }
            }
            request = requests.next() => {
                let Some(message) = request else { return };
                match codec::decode::<SnapshotRequest>(&message.body) {
                    Ok(request) if shared.is_for_later(request) || shared.has_stalled() => {}
                    Ok(_) => {
                        let (_, body) = shared.encoded_snapshot();
                        if let Err(error) = shared.bus.reply(&message, body).await {
                            tracing::debug!(table = %shared.subject, %error, "a snapshot was not sent");
                        }
                    }
                    Err(error) => {
                        tracing::warn!(table = %shared.subject, %error, "a request for a snapshot is not one");
                    }
                }
            }
        }
    }
}

/// Leaves snapshots in the bucket, and puts them back when the bucket lost them.
async fn keep(shared: Arc<Shared>, store: SnapshotStore, stop: CancellationToken) {
    /// Rounds without a change after which it looks whether the last snapshot is still there.
    const LOOK_EVERY: u32 = 10;
    let mut tick = tokio::time::interval(shared.options.store_every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stored = None;
    let mut unchanged = 0;
    loop {
        let last = tokio::select! {
            () = stop.cancelled() => true,
            _ = tick.tick() => false,
        };
        let position = lock(&shared.core).position();
        let due = stored != Some(position) || unchanged >= LOOK_EVERY;
        if due {
            unchanged = 0;
            match leave(&shared, &store).await {
                Ok(Left::Stored(position)) => stored = Some(position),
                Ok(Left::Superseded) => return,
                Err(error) => tracing::debug!(table = %shared.subject, %error, "a snapshot was not stored"),
            }
        }
        unchanged += 1;
        if last {
            return;
        }
    }
}

enum Left {
    Stored(Position),
    Superseded,
}

async fn leave(shared: &Shared, store: &SnapshotStore) -> Result<Left, BusError> {
    let head = match store.bucket.blob_head(&store.key).await {
        Ok(head) => head,
        // Not to be read, so of no use to replicas either: begin anew.
        Err(BusError::Blob { .. }) => {
            store.bucket.delete(&store.key).await?;
            None
        }
        Err(error) => return Err(error),
    };
    let there = head.as_ref().and_then(|head| codec::decode::<Position>(&head.label).ok());
    if there.is_some_and(|there| shared.meet(there.epoch)) {
        return Ok(Left::Superseded);
    }
    let (position, body) = shared.encoded_snapshot();
    if there == Some(position) {
        return Ok(Left::Stored(position));
    }
    // The compare-and-swap is the fence: an owner that slept since it read the head can't replace a later one's.
    let place = head.map_or(Place::Empty, |head| Place::Over(head.revision));
    store.bucket.put_blob(&store.key, codec::encode(&position), body, place).await?;
    Ok(Left::Stored(position))
}

impl Wire for Position {}
