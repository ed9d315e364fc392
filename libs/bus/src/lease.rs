//! The lease of a region: which route-computer publishes, and its epoch.
//!
//! An entry in the bucket `tidegate-lease`, renewed by compare-and-swap while its holder lives. Whoever sees no new
//! renewal for its duration, by its own clock, takes it over. So there may be a short time in which an old holder
//! still believes in its lease; the epoch makes that harmless: what comes from the older one is refused.
//!
//! A renewal is new when its beat is larger, not when the entry's revision is: a signed entry can be written again by
//! whoever may write the bucket. One of an earlier term is replaced at once.
//!
//! # Why the entry's revision is not the epoch
//! A server that lost its data counts revisions from 1 again, and every replica would refuse the new holder's tables as
//! those of an older epoch. So the epoch is one more than the largest of: that of the lease before, and any that was
//! [heard](Lease::hear) of in use. Edges report the epoch that they serve; the route-computer believes what two of them
//! report, or the only one that is left. So it grows past a loss of data as long as one edge lives.

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
    BusError,
    bucket::Bucket,
    failure_log::FailureLog,
    seal::{self, Purpose, Signer, Trust},
};

pub use self::core::{LeaseAction, LeaseContent, LeaseCore, LeaseState};
pub use record::LeaseRecord;

/// How long a lease holds without being renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(2);

/// How often at most a holder takes a larger epoch because somebody says that they serve one.
const RAISE_EVERY: Duration = Duration::from_secs(10);

/// A candidate for a lease, at work until it is stopped. Dropping it gives nothing back: others wait for the duration.
#[derive(Debug)]
pub struct Lease {
    state: watch::Receiver<LeaseState>,
    heard: mpsc::Sender<Epoch>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Lease {
    /// Begins to seek the lease `key` for `holder`, whose name must be nobody else's.
    ///
    /// With a `signer` the entry is signed; entries that `trust` does not believe are nobody's.
    pub fn start(
        bucket: Bucket,
        key: &str,
        holder: HolderName,
        duration: Duration,
        seal: LeaseSeal,
    ) -> Lease {
        let core = LeaseCore::new(holder, duration);
        let (sender, state) = watch::channel(LeaseState::Standby);
        // Epochs are heard once a second from each edge; one that is lost is heard again.
        let (heard, epochs) = mpsc::channel(64);
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
        Lease { state, heard, stop, task: Some(task) }
    }

    /// Whether this candidate holds the lease, as it changes.
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Notes an epoch that somebody serves. When it is larger than the own one, the lease is taken anew with a larger.
    pub fn hear(&self, epoch: Epoch) {
        _ = self.heard.try_send(epoch);
    }

    /// Stops, and gives the lease back where it is held, so that another can take it at once.
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

/// Who signs a lease, and whose signature counts.
#[derive(Debug, Clone, Default)]
pub struct LeaseSeal {
    /// Who signs; absent: nobody.
    pub signer: Option<Arc<Signer>>,
    /// Whose entries are believed.
    pub trust: Trust,
}

impl LeaseSeal {
    fn close(&self, key: &str, record: &LeaseRecord) -> Bytes {
        let bytes = record.to_bytes();
        self.signer.as_ref().map_or(bytes.clone(), |signer| signer.seal(Purpose::Lease, key, &bytes))
    }

    /// What an entry holds.
    fn open(&self, key: &str, bytes: &Bytes) -> LeaseContent {
        match self.trust.open(Purpose::Lease, key, bytes) {
            Ok(record) => {
                LeaseRecord::from_bytes(&record).map_or(LeaseContent::Unreadable, LeaseContent::Record)
            }
            Err(why) => {
                tracing::debug!(lease = %key, %why, "the lease's entry is not believed: nobody holds it");
                let claimed = LeaseRecord::from_bytes(seal::body(bytes)).map(|record| record.epoch);
                LeaseContent::Untrusted(claimed)
            }
        }
    }
}

/// What is said when the bucket fails.
const NO_LEASE: &str = "the lease cannot be read or written for now: who does not hold it decides nothing";

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
                _ = tick.tick() => self.round(duration).await,
                () = uncertain => {}
                Some(epoch) = epochs.recv() => {
                    // Whoever may say which epoch it serves could drive it up step by step: what is true is said again.
                    let rests = raised_at.is_some_and(|at: Instant| at.elapsed() < RAISE_EVERY);
                    if !rests && self.core.hear(epoch) {
                        raised_at = Some(Instant::now());
                        self.round(duration).await;
                    }
                }
            }
            self.tell();
        }
        if let Some((record, expected)) = self.core.release() {
            self.tell();
            let written = self.bucket.update(&self.key, self.seal.close(&self.key, &record), expected);
            if let Ok(Err(error)) | Err(error) = timed(duration, written).await.map_err(|()| BusError::Closed)
            {
                tracing::debug!(lease = %self.key, %error, "the lease was not given back");
            }
        }
    }

    /// Looks at the lease, where it is not held, and does what is to be done. Whoever is overruled looks again at once.
    async fn round(&mut self, duration: Duration) {
        if self.attempt(duration).await == Attempt::Overruled {
            self.attempt(duration).await;
        }
    }

    async fn attempt(&mut self, duration: Duration) -> Attempt {
        if !self.core.holds() {
            match timed(duration / 2, self.bucket.get(&self.key)).await {
                Ok(Ok(entry)) => {
                    let seen = entry.map(|entry| (entry.revision, self.seal.open(&self.key, &entry.value)));
                    self.core.seen(seen, Instant::now());
                }
                Ok(Err(error)) => {
                    self.failures.record(Err(error), NO_LEASE);
                    return Attempt::Ended;
                }
                Err(()) => return Attempt::Ended,
            }
        }
        let sent_at = Instant::now();
        let written = match self.core.next(sent_at) {
            LeaseAction::Wait => return Attempt::Ended,
            LeaseAction::Create(record) => {
                timed(duration / 2, self.bucket.create(&self.key, self.seal.close(&self.key, &record))).await
            }
            LeaseAction::Replace(record, expected) => {
                timed(
                    duration / 2,
                    self.bucket.update(&self.key, self.seal.close(&self.key, &record), expected),
                )
                .await
            }
        };
        match written {
            Ok(Ok(revision)) => {
                self.failures.record(Ok(()), NO_LEASE);
                self.core.written(revision, sent_at);
            }
            Ok(Err(error)) if error.is_conflict() => {
                self.core.contradicted();
                return Attempt::Overruled;
            }
            // It may have been written or not: the next round finds out.
            Ok(Err(error)) => {
                self.core.unanswered();
                self.failures.record(Err(error), NO_LEASE);
            }
            Err(()) => self.core.unanswered(),
        }
        Attempt::Ended
    }

    fn tell(&self) {
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

/// How an attempt to take or renew the lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Ended,
    /// The entry was another than expected.
    Overruled,
}

async fn timed<T>(limit: Duration, call: impl Future<Output = T>) -> Result<T, ()> {
    tokio::time::timeout(limit, call).await.map_err(|_| ())
}
