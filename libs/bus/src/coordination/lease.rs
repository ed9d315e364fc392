//! The lease of a region's leading route-computer, and the leader's epoch.
//!
//! The lease is an entry in the bucket `tidegate-lease`, which its holder renews by compare-and-swap. A candidate that sees
//! no new renewal for the lease's duration, by its own clock, takes it over. So an old holder may believe in its lease for
//! a short time more; the epoch makes that harmless: replicas refuse what an older epoch publishes.
//!
//! A renewal is new when its beat is larger, not when the entry's revision is: anybody who may write the bucket can replay a
//! signed entry. A replayed entry of an earlier term is replaced at once.
//!
//! # Why the entry's revision is not the epoch
//! A server that lost its data counts revisions from 1 again, and every replica would refuse the new holder's tables as those
//! of an older epoch. So the epoch is one more than the largest of these: the epoch of the last lease, and the epochs
//! [observed](Lease::observe_epoch) in use. Edges report the epoch that they serve by; the route-computer believes what two
//! of them report, or the last one that is left. So the epoch grows across a loss of data as long as one edge lives.

mod core;
mod record;
#[cfg(test)]
mod simulation;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tidegate_model::{Epoch, HolderName};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    BusError, FailureLog,
    bucket::Bucket,
    seal::{self, Purpose, Signer, Trust},
};

pub use self::core::{LeaseAction, LeaseContent, LeaseCore, LeaseState};
pub use record::LeaseRecord;

/// How long a lease holds without being renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(2);

/// The shortest time between two raises of a holder's epoch because a larger one is reported to be in use.
const RAISE_INTERVAL: Duration = Duration::from_secs(10);

/// A candidate for a lease. Dropping it does not release the lease: others wait for its duration.
#[derive(Debug)]
pub struct Lease {
    state: watch::Receiver<LeaseState>,
    observed: mpsc::Sender<Epoch>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Lease {
    /// Starts to seek the lease `key` for `holder`, whose name must be unique.
    ///
    /// With a signer in `seal` the entries are signed; an untrusted entry holds the lease for nobody.
    pub fn start(
        bucket: Bucket,
        key: &str,
        holder: HolderName,
        duration: Duration,
        seal: LeaseSeal,
    ) -> Lease {
        let core = LeaseCore::new(holder, duration);
        let (sender, state) = watch::channel(LeaseState::Standby);
        // Each edge reports its epoch once a second, so one that does not fit is reported again.
        let (observed, epochs) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let keeper = Keeper {
            bucket,
            key: key.to_owned(),
            core,
            state: sender,
            seal,
            failures: FailureLog::default(),
        };
        let task = tokio::spawn(keeper.run(duration, epochs, stop.clone()));
        Lease { state, observed, stop, task: Some(task) }
    }

    /// The state of this candidate, as it changes.
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Records an epoch in use. When it is larger than the own one, the holder takes a larger one.
    pub fn observe_epoch(&self, epoch: Epoch) {
        _ = self.observed.try_send(epoch);
    }

    /// Stops, and releases the lease where it is held, so that another candidate can take it at once.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            _ = task.await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// The signer of a lease's entries, and the keys that are trusted to.
#[derive(Debug, Clone, Default)]
pub struct LeaseSeal {
    /// The signer; absent: entries are not signed.
    pub signer: Option<Arc<Signer>>,
    /// The trusted keys.
    pub trust: Trust,
}

impl LeaseSeal {
    fn sign(&self, key: &str, record: &LeaseRecord) -> Bytes {
        let bytes = record.to_bytes();
        self.signer.as_ref().map_or(bytes.clone(), |signer| signer.seal(Purpose::Lease, key, &bytes))
    }

    /// Verifies and reads an entry.
    fn open(&self, key: &str, bytes: &Bytes) -> LeaseContent {
        match self.trust.open(Purpose::Lease, key, bytes) {
            Ok(record) => {
                LeaseRecord::from_bytes(&record).map_or(LeaseContent::Unreadable, LeaseContent::Record)
            }
            Err(why) => {
                tracing::debug!(lease = %key, %why, "the lease's entry is not trusted: nobody holds it");
                let claimed = LeaseRecord::from_bytes(seal::body(bytes)).map(|record| record.epoch);
                LeaseContent::Untrusted(claimed)
            }
        }
    }
}

/// The log line when the bucket fails.
const NO_LEASE: &str =
    "the lease cannot be read or written for now: a candidate that does not hold it decides nothing";

struct Keeper {
    bucket: Bucket,
    key: String,
    core: LeaseCore,
    state: watch::Sender<LeaseState>,
    seal: LeaseSeal,
    failures: FailureLog,
}

impl Keeper {
    async fn run(mut self, duration: Duration, mut epochs: mpsc::Receiver<Epoch>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(duration / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut raised_at = None;
        loop {
            let uncertain_at = self.core.uncertain_at(Instant::now());
            let uncertain = async {
                match uncertain_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => self.renew_or_take(duration).await,
                () = uncertain => {}
                Some(epoch) = epochs.recv() => {
                    // Anybody who may report epochs could drive it up step by step; a true one is reported again.
                    let is_too_soon = raised_at.is_some_and(|at: Instant| at.elapsed() < RAISE_INTERVAL);
                    if !is_too_soon && self.core.observe_epoch(epoch) {
                        raised_at = Some(Instant::now());
                        self.renew_or_take(duration).await;
                    }
                }
            }
            self.publish_state();
        }
        if let Some((record, expected)) = self.core.release() {
            self.publish_state();
            let written = self.bucket.update(&self.key, self.seal.sign(&self.key, &record), expected);
            if let Ok(Err(error)) | Err(error) = timed(duration, written).await.map_err(|()| BusError::Closed)
            {
                tracing::debug!(lease = %self.key, %error, "the lease was not released");
            }
        }
    }

    /// Renews the lease, or reads it and takes it where it is free. After a conflict it tries again at once.
    async fn renew_or_take(&mut self, duration: Duration) {
        if self.attempt(duration).await == Attempt::Conflict {
            self.attempt(duration).await;
        }
    }

    async fn attempt(&mut self, duration: Duration) -> Attempt {
        if !self.core.can_renew() {
            match timed(duration / 2, self.bucket.get(&self.key)).await {
                Ok(Ok(entry)) => {
                    let seen = entry.map(|entry| (entry.revision, self.seal.open(&self.key, &entry.value)));
                    self.core.observe_entry(seen, Instant::now());
                }
                Ok(Err(error)) => {
                    self.failures.record(Err(error), NO_LEASE);
                    return Attempt::Ended;
                }
                Err(()) => return Attempt::Ended,
            }
        }
        let sent_at = Instant::now();
        let written = match self.core.next_action(sent_at) {
            LeaseAction::Wait => return Attempt::Ended,
            LeaseAction::Create(record) => {
                timed(duration / 2, self.bucket.create(&self.key, self.seal.sign(&self.key, &record))).await
            }
            LeaseAction::Replace(record, expected) => {
                timed(
                    duration / 2,
                    self.bucket.update(&self.key, self.seal.sign(&self.key, &record), expected),
                )
                .await
            }
        };
        match written {
            Ok(Ok(revision)) => {
                self.failures.record(Ok(()), NO_LEASE);
                self.core.record_written(revision, sent_at);
            }
            Ok(Err(error)) if error.is_conflict() => {
                self.core.record_conflict();
                return Attempt::Conflict;
            }
            // It may have been written or not: the next attempt finds out.
            Ok(Err(error)) => {
                self.core.record_no_response();
                self.failures.record(Err(error), NO_LEASE);
            }
            Err(()) => self.core.record_no_response(),
        }
        Attempt::Ended
    }

    fn publish_state(&self) {
        let state = self.core.state(Instant::now());
        self.state.send_if_modified(|before| {
            let changed = *before != state;
            if changed {
                tracing::info!(lease = %self.key, holder = %self.core.holder(), ?state, "the lease changed");
            }
            *before = state;
            changed
        });
    }
}

/// The result of an attempt to renew or take the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Ended,
    /// The entry was not as expected.
    Conflict,
}

async fn timed<T>(limit: Duration, call: impl Future<Output = T>) -> Result<T, ()> {
    tokio::time::timeout(limit, call).await.map_err(|_| ())
}
