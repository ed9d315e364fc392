//! Replicas on the bus: of one table, or of all tables of a pattern.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tidegate_model::{Epoch, Revision};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    content::{Position, Provenance, Snapshot},
    feed::Feed,
    fetch::fetch,
    owner::SnapshotStore,
    replica_core::Epochs,
    update::{TableUpdate, Update},
};
use crate::{
    Bus, BusError, BusState, Message, Subscription,
    background::Background,
    clock,
    codec::{self, Wire, encode_part},
    seal::{Purpose, SealError, Trust},
};

/// The most tables of one pattern, and of those the most whose subjects differ only in the last token, such as those of one
/// region's probers. No fleet has so many, but anybody who may publish on the pattern's subjects could invent them.
const MOST_TABLES: usize = 4096;
const MOST_SIBLINGS: usize = 512;

/// The capacity of the channel of updates. When it is full the replica waits, its subscription loses messages, and the next
/// heartbeat repairs the loss.
const CAPACITY: usize = 256;

/// The last known content, to start with.
#[derive(Debug, Clone)]
pub struct Seed<K, V> {
    /// The epoch.
    pub epoch: Epoch,
    /// The revision.
    pub revision: Revision,
    /// The entries.
    pub entries: Vec<(K, V)>,
}

/// The options of a replica.
#[derive(Debug, Clone)]
pub struct ReplicaOptions<K, V> {
    /// Where to fetch a snapshot when no owner responds.
    pub store: Option<SnapshotStore>,
    /// The content to start with.
    pub seed: Option<Seed<K, V>>,
    /// The trusted keys.
    pub trust: Trust,
    /// How the table's epochs are chosen.
    pub epochs: Epochs,
}

impl<K, V> Default for ReplicaOptions<K, V> {
    fn default() -> Self {
        ReplicaOptions { store: None, seed: None, trust: Trust::new(), epochs: Epochs::Timed }
    }
}

/// Counters of a replica since its start.
#[derive(Debug, Default)]
pub struct ReplicaStats {
    /// Applied deltas.
    pub deltas: AtomicU64,
    /// Applied snapshots.
    pub snapshots: AtomicU64,
    /// Refused messages of older epochs.
    pub refused: AtomicU64,
    /// Failed fetches.
    pub failed_fetches: AtomicU64,
    /// Messages and snapshots that could not be decoded.
    pub unreadable: AtomicU64,
    /// Messages without the signature of a trusted key.
    pub untrusted: AtomicU64,
    /// The latest epoch that a replica of a single table knows of. Older ones are refused.
    pub fence: AtomicU64,
}

/// The replica of one table. Dropping it stops it.
#[derive(Debug)]
pub struct Replica(Handle);

/// The replicas of all tables of a pattern. Dropping it stops them.
#[derive(Debug)]
pub struct Replicas(Handle);

#[derive(Debug)]
struct Handle {
    stats: Arc<ReplicaStats>,
    resets: mpsc::Sender<()>,
    task: Background,
}

impl Replica {
    /// Starts to follow the table `subject`. The first update is a snapshot, unless there is a seed that is still current.
    ///
    /// # Errors
    /// When the bus is closed or `subject` is malformed. A bus that is away is no error.
    pub async fn start<K: Wire, V: Wire>(
        bus: Bus,
        subject: &str,
        options: ReplicaOptions<K, V>,
    ) -> Result<(Replica, mpsc::Receiver<Update<K, V>>), BusError> {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let trusts = Trusts { default: options.trust, by_subject: HashMap::new(), epochs: options.epochs };
        let mut follower = Follower::new(bus, subject, Sink::One(sender), trusts, None).await?;
        follower.store = options.store;
        let seed = options.seed.map(|seed| Snapshot {
            position: Position { epoch: seed.epoch, revision: seed.revision },
            entries: seed.entries.iter().map(|(k, v)| (encode_part(k), encode_part(v))).collect(),
            provenance: Provenance { schema: codec::SCHEMA_VERSION, ..Provenance::default() },
        });
        let has_keys = follower.trusts.has_keys(subject);
        follower.feeds.insert(subject.to_owned(), Feed::new(options.epochs, seed.as_ref(), has_keys));
        Ok((Replica(follower.spawn()), receiver))
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<ReplicaStats> {
        &self.0.stats
    }

    /// Clears the epoch fence and fetches the table again. Its content stays until then.
    pub fn reset(&self) {
        // One pending reset is as good as two.
        _ = self.0.resets.try_send(());
    }

    /// Stops it and waits for the end.
    pub async fn stop(self) {
        self.0.task.stop().await;
    }
}

impl Replicas {
    /// Starts to follow every table whose subject matches `pattern`, from its first message until it was stale for
    /// `gone_after`.
    ///
    /// # Errors
    /// When the bus is closed or `pattern` is malformed. A bus that is away is no error.
    pub async fn start<K: Wire, V: Wire>(
        bus: Bus,
        pattern: &str,
        gone_after: Duration,
    ) -> Result<(Replicas, mpsc::Receiver<TableUpdate<K, V>>), BusError> {
        Replicas::start_with_trust(bus, pattern, gone_after, HashMap::new()).await
    }

    /// Their counters.
    pub fn stats(&self) -> &Arc<ReplicaStats> {
        &self.0.stats
    }

    /// As [`Replicas::start`], with the trusted keys of the tables whose subjects are in `trusts`.
    ///
    /// # Errors
    /// As for [`Replicas::start`].
    pub async fn start_with_trust<K: Wire, V: Wire>(
        bus: Bus,
        pattern: &str,
        gone_after: Duration,
        trusts: HashMap<String, Trust>,
    ) -> Result<(Replicas, mpsc::Receiver<TableUpdate<K, V>>), BusError> {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let trusts = Trusts { default: Trust::new(), by_subject: trusts, epochs: Epochs::Timed };
        let follower = Follower::new(bus, pattern, Sink::Many(sender), trusts, Some(gone_after)).await?;
        Ok((Replicas(follower.spawn()), receiver))
    }

    /// Stops them and waits for the end.
    pub async fn stop(self) {
        self.0.task.stop().await;
    }
}

enum Sink<K, V> {
    One(mpsc::Sender<Update<K, V>>),
    Many(mpsc::Sender<TableUpdate<K, V>>),
}

/// The result of a fetch: the table's subject, whether keys were known when it started, and the snapshot.
type Fetched = (String, bool, Result<Snapshot, BusError>);

struct Follower<K, V> {
    bus: Bus,
    state: watch::Receiver<BusState>,
    messages: Subscription,
    feeds: HashMap<String, Feed<K, V>>,
    fetches: FuturesUnordered<BoxFuture<'static, Fetched>>,
    sink: Sink<K, V>,
    store: Option<SnapshotStore>,
    trusts: Trusts,
    /// The time without a message after which a table counts as gone; absent: never.
    gone_after: Option<Duration>,
    stats: Arc<ReplicaStats>,
}

/// The trusted keys of the tables, and how their epochs are chosen.
struct Trusts {
    default: Trust,
    by_subject: HashMap<String, Trust>,
    /// How epochs are chosen where there are no keys.
    epochs: Epochs,
}

impl Trusts {
    fn trust(&self, subject: &str) -> &Trust {
        self.by_subject.get(subject).unwrap_or(&self.default)
    }

    fn has_keys(&self, subject: &str) -> bool {
        self.trust(subject).has_keys()
    }

    fn epochs(&self, subject: &str) -> Epochs {
        if self.has_keys(subject) { Epochs::Signed } else { self.epochs }
    }
}

/// The receiver of the updates was dropped.
struct ReceiverDropped;

impl<K: Wire, V: Wire> Follower<K, V> {
    async fn new(
        bus: Bus,
        pattern: &str,
        sink: Sink<K, V>,
        trusts: Trusts,
        gone_after: Option<Duration>,
    ) -> Result<Self, BusError> {
        Ok(Follower {
            messages: bus.subscribe(pattern).await?,
            state: bus.watch_state(),
            bus,
            feeds: HashMap::new(),
            fetches: FuturesUnordered::new(),
            sink,
            store: None,
            trusts,
            gone_after,
            stats: Arc::default(),
        })
    }

    fn spawn(self) -> Handle {
        let stats = self.stats.clone();
        let (resets, asked) = mpsc::channel(1);
        let task = Background::default().with(|stop| async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = self.run(asked) => {}
            }
        });
        Handle { stats, resets, task }
    }

    async fn run(mut self, mut resets: mpsc::Receiver<()>) -> Result<(), ReceiverDropped> {
        let mut undecided = self.trusts.default.watch_undecided();
        loop {
            if let (Sink::One(_), Some(feed)) = (&self.sink, self.feeds.values().next()) {
                self.stats.fence.store(feed.core.fence().0, Ordering::Relaxed);
            }
            let due = self.next_due();
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                message = self.messages.next() => match message {
                    Some(message) => self.receive_message(message).await?,
                    None => return Ok(()),
                },
                Some(fetched) = self.fetches.next() => self.finish_fetch(fetched).await?,
                () = timer => self.handle_timers().await?,
                Some(()) = resets.recv() => self.feeds.values_mut().for_each(Feed::reset),
                // Refused messages are made up for at once.
                Ok(()) = undecided.changed() => {
                    self.feeds.values_mut().for_each(Feed::fetch_now);
                }
                Ok(()) = self.state.changed() => {
                    if self.state.borrow_and_update().connected() {
                        self.feeds.values_mut().for_each(Feed::retry_fetch);
                    }
                }
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let fetches = self.feeds.values().filter_map(|feed| feed.fetch_at);
        let expiries = self.gone_after.and_then(|time| self.feeds.values().map(|f| f.heard_at + time).min());
        fetches.chain(expiries).min()
    }

    /// Returns how the epochs of a table are bound by the keys that are known now. With the first keys, clears its epoch fence,
    /// which messages that no key verified have set.
    async fn update_trust(&mut self, subject: &str) -> Result<Epochs, ReceiverDropped> {
        let has_keys = self.trusts.has_keys(subject);
        if let Some(feed) = self.feeds.get_mut(subject)
            && !std::mem::replace(&mut feed.has_keys, has_keys)
            && has_keys
        {
            feed.reset();
            if feed.core.position().is_some() {
                let (epoch, revision) = (Epoch(0), Revision(0));
                let update = Update::Heartbeat { epoch, revision, current: false, received_at: clock::now() };
                self.deliver(subject, vec![update]).await?;
            }
        }
        Ok(self.trusts.epochs(subject))
    }

    async fn receive_message(&mut self, message: Message) -> Result<(), ReceiverDropped> {
        let subject = message.subject.clone();
        // Before it is verified: keys that arrive in between make the check stricter than the bound assumes, never laxer.
        let epochs = self.update_trust(&subject).await?;
        let body = match self.trusts.trust(&subject).open(Purpose::Message, &subject, &message.body) {
            Ok(body) => body,
            Err(why) => {
                self.stats.untrusted.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(table = %subject, %why, "a table's message is not trusted");
                return Ok(());
            }
        };
        let has_keys = self.trusts.has_keys(&subject);
        if !self.feeds.contains_key(&subject) && !self.make_room_for(&subject).await? {
            self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(table = %subject, "too many tables: another one is not followed");
            return Ok(());
        }
        let feed = self.feeds.entry(subject.clone()).or_insert_with(|| Feed::new(epochs, None, has_keys));
        feed.core.bound_epochs(epochs, clock::now());
        match feed.receive_message(message, &body) {
            Ok(updates) => self.deliver(&subject, updates).await,
            Err(error) => {
                self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(table = %subject, %error, "a table's message cannot be read");
                Ok(())
            }
        }
    }

    /// Makes room for one more table beside `subject`'s siblings where it has to: evicts the stalest table that never had an
    /// entry, which may be an invention. Returns whether there is room.
    async fn make_room_for(&mut self, subject: &str) -> Result<bool, ReceiverDropped> {
        let parent = |subject: &str| subject.rsplit_once('.').map_or(0, |(parent, _)| parent.len());
        let prefix = &subject[..parent(subject)];
        let is_sibling = |other: &str| &other[..parent(other)] == prefix;
        let siblings = self.feeds.keys().filter(|other| is_sibling(other)).count();
        let is_all_full = self.feeds.len() >= MOST_TABLES;
        if siblings < MOST_SIBLINGS && !is_all_full {
            return Ok(true);
        }
        let unproven = self.feeds.iter().filter(|(other, feed)| {
            feed.core.content().entries == 0 && (siblings < MOST_SIBLINGS || is_sibling(other))
        });
        let oldest = unproven.min_by_key(|(_, feed)| feed.heard_at);
        let Some(evicted) = oldest.map(|(other, _)| other.clone()) else { return Ok(false) };
        let was_delivered = self.feeds.remove(&evicted).is_some_and(|feed| feed.core.position().is_some());
        if let (true, Sink::Many(sender)) = (was_delivered, &self.sink) {
            sender.send(TableUpdate::Gone(evicted)).await.map_err(|_| ReceiverDropped)?;
        }
        Ok(true)
    }

    async fn finish_fetch(&mut self, (subject, had_keys, fetched): Fetched) -> Result<(), ReceiverDropped> {
        let epochs = self.update_trust(&subject).await?;
        let Some(feed) = self.feeds.get_mut(&subject) else { return Ok(()) };
        feed.core.bound_epochs(epochs, clock::now());
        let fetched = if self.trusts.has_keys(&subject) && !had_keys {
            // No key verified it; the next fetch is verified.
            fetched.and(Err(BusError::Untrusted { subject: subject.clone(), why: SealError::Unsigned }))
        } else {
            fetched
        };
        if let Err(error) = &fetched {
            self.stats.failed_fetches.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(table = %subject, %error, "a snapshot could not be fetched");
        }
        match feed.receive_snapshot(fetched.ok()) {
            Ok(updates) => self.deliver(&subject, updates).await,
            Err(error) => {
                self.stats.unreadable.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(table = %subject, %error, "a snapshot cannot be read");
                Ok(())
            }
        }
    }

    /// Starts the fetches that are due, and removes stale tables.
    async fn handle_timers(&mut self) -> Result<(), ReceiverDropped> {
        let now = Instant::now();
        for (subject, feed) in &mut self.feeds {
            if feed.fetch_at.is_some_and(|at| at <= now) {
                feed.fetch_at = None;
                feed.fetching = true;
                let (bus, subject, store) = (self.bus.clone(), subject.clone(), self.store.clone());
                let trust = self.trusts.trust(&subject).clone();
                let has_keys = trust.has_keys();
                let at_least = feed.core.fence();
                self.fetches.push(Box::pin(async move {
                    let fetched = fetch(&bus, &subject, at_least, store.as_ref(), &trust).await;
                    (subject, has_keys, fetched)
                }));
            }
        }
        let Some(gone_after) = self.gone_after else { return Ok(()) };
        let stale = self.feeds.iter().filter(|(_, feed)| feed.heard_at + gone_after <= now);
        for subject in stale.map(|(subject, _)| subject.clone()).collect::<Vec<_>>() {
            self.feeds.remove(&subject);
            if let Sink::Many(sender) = &self.sink {
                sender.send(TableUpdate::Gone(subject)).await.map_err(|_| ReceiverDropped)?;
            }
        }
        Ok(())
    }

    async fn deliver(&mut self, subject: &str, updates: Vec<Update<K, V>>) -> Result<(), ReceiverDropped> {
        for update in updates {
            match &update {
                Update::Delta { .. } => self.stats.deltas.fetch_add(1, Ordering::Relaxed),
                Update::Snapshot { .. } => self.stats.snapshots.fetch_add(1, Ordering::Relaxed),
                Update::Refused { .. } => self.stats.refused.fetch_add(1, Ordering::Relaxed),
                Update::Heartbeat { .. } => 0,
            };
            let delivered = match &self.sink {
                Sink::One(sender) => sender.send(update).await.is_ok(),
                Sink::Many(sender) => {
                    sender.send(TableUpdate::Update(subject.to_owned(), update)).await.is_ok()
                }
            };
            if !delivered {
                return Err(ReceiverDropped);
            }
        }
        Ok(())
    }
}
