//! Overrides on the bus: one entry each, as JSON so that people can read them with the `nats` tool, and a follower.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tidegate_model::overrides::{Override, OverrideKind};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, BusError, Subscription, backoff,
    bucket::{Bucket, Stamp},
    subjects,
};

/// Overrides by their key ([`OverrideKind::key`]). Expired ones may be among them.
pub type Overrides = BTreeMap<String, Override>;

/// The bucket with the overrides.
#[derive(Debug, Clone)]
pub struct OverrideStore {
    bus: Bus,
    bucket: Bucket,
}

impl OverrideStore {
    /// The store on this bus.
    pub fn new(bus: &Bus) -> OverrideStore {
        OverrideStore { bucket: bus.bucket(subjects::OVERRIDES_BUCKET), bus: bus.clone() }
    }

    /// Writes an override in place of another of the same thing.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time.
    pub async fn put(&self, entry: &Override) -> Result<(), BusError> {
        self.bucket.put(&entry.kind.key(), to_json(entry)).await?;
        self.nudge().await;
        Ok(())
    }

    /// Takes back the override of the same thing as `kind`. Says whether there was one.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time.
    pub async fn delete(&self, kind: &OverrideKind) -> Result<bool, BusError> {
        let key = kind.key();
        if self.bucket.get(&key).await?.is_none() {
            return Ok(false);
        }
        self.bucket.delete(&key).await?;
        self.nudge().await;
        Ok(true)
    }

    /// All overrides. What can't be read, or is not at its own key, is left out with a warning.
    ///
    /// # Errors
    /// When the bus is away or does not answer in time.
    pub async fn list(&self) -> Result<Overrides, BusError> {
        let mut overrides = Overrides::new();
        for (key, entry) in self.bucket.list().await? {
            match serde_json::from_slice::<Override>(&entry.value) {
                Ok(entry) if entry.kind.key() == key => _ = overrides.insert(key, entry),
                Ok(entry) => tracing::warn!(key, kind = %entry.kind, "an override is not at its own key"),
                Err(error) => tracing::warn!(key, %error, "an override cannot be read"),
            }
        }
        Ok(overrides)
    }

    async fn nudge(&self) {
        // Who misses it looks by itself a second later.
        _ = self.bus.publish(subjects::OVERRIDES, None, Bytes::new()).await;
    }
}

fn to_json(entry: &Override) -> Bytes {
    // Plain data with string keys only: JSON can always hold it.
    serde_json::to_vec(entry).expect("an override is JSON").into()
}

/// Follows the overrides. Dropping it ends that.
#[derive(Debug)]
pub struct OverrideFollower {
    overrides: watch::Receiver<Option<Arc<Overrides>>>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl OverrideFollower {
    /// Follows the overrides: looks every `poll` whether anything was written, and at once when nudged. With `restore`
    /// it puts them back when the bus has lost its data.
    ///
    /// # Errors
    /// When the bus is closed. That it is away is no error.
    pub async fn start(bus: &Bus, poll: Duration, restore: bool) -> Result<OverrideFollower, BusError> {
        let nudges = bus.subscribe(subjects::OVERRIDES).await?;
        let (sender, overrides) = watch::channel(None);
        let stop = CancellationToken::new();
        let follower = Follower { store: OverrideStore::new(bus), sender, restore, stamp: None };
        let task = tokio::spawn(follower.run(nudges, poll, stop.clone()));
        Ok(OverrideFollower { overrides, stop, task: Some(task) })
    }

    /// All overrides, as they change; nothing until they were read. They stay when the bus goes away.
    pub fn overrides(&self) -> watch::Receiver<Option<Arc<Overrides>>> {
        self.overrides.clone()
    }

    /// Ends it and waits for the end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            _ = task.await;
        }
    }
}

impl Drop for OverrideFollower {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Follower {
    store: OverrideStore,
    sender: watch::Sender<Option<Arc<Overrides>>>,
    restore: bool,
    stamp: Option<Stamp>,
}

impl Follower {
    async fn run(mut self, mut nudges: Subscription, poll: Duration, stop: CancellationToken) {
        let mut tick = tokio::time::interval_at(Instant::now() + backoff::jitter(poll), poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "the overrides could not be looked at");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
                nudge = nudges.next() => if nudge.is_none() { return },
            }
        }
    }

    async fn look(&mut self) -> Result<(), BusError> {
        let stamp = self.store.bucket.stamp().await?;
        if self.stamp == Some(stamp) {
            return Ok(());
        }
        let mut overrides = self.store.list().await?;
        let have = self.sender.borrow().clone();
        // Another bucket than before, where nobody has deleted anything: its data was lost.
        let lost = self.stamp.is_some_and(|before| before.created != stamp.created);
        if let (true, true, Some(have)) = (lost, self.restore, &have) {
            for (key, entry) in
                have.iter().filter(|(key, _)| !overrides.contains_key(*key)).collect::<Vec<_>>()
            {
                match self.store.bucket.create(key, to_json(entry)).await {
                    Ok(_) => tracing::warn!(key, "the bus had lost an override: put back"),
                    Err(error) if error.is_conflict() => {}
                    Err(error) => return Err(error),
                }
                overrides.insert(key.clone(), entry.clone());
            }
        }
        if have.as_deref() != Some(&overrides) {
            self.sender.send_replace(Some(Arc::new(overrides)));
        }
        // Read before the list: what was written meanwhile is seen next time.
        self.stamp = Some(stamp);
        Ok(())
    }
}
