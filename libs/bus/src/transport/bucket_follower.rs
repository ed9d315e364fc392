//! A follower of what is in a bucket.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    background::Background, backoff, bus::Bus, error::BusError, failure_log::FailureLog,
    message::Subscription,
};

/// What a follower reads.
pub(crate) trait BucketContent: Send + 'static {
    /// Its value.
    type Value: Send + Sync + 'static;

    /// The log message when it cannot be read.
    const READ_FAILURE: &'static str;

    /// Reads it where it has changed since the value in `current`, which is replaced then.
    ///
    /// # Errors
    /// When the bus is away.
    fn refresh(
        &mut self,
        current: &watch::Sender<Option<Arc<Self::Value>>>,
    ) -> impl Future<Output = Result<(), BusError>> + Send;
}

/// A follower. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct BucketFollower<V> {
    value: watch::Receiver<Option<Arc<V>>>,
    task: Background,
}

impl<V: Send + Sync + 'static> BucketFollower<V> {
    /// Starts to follow: reads every `poll`, and after each change notification on `subject`.
    ///
    /// # Errors
    /// When the bus is closed. A bus that is away is no error.
    pub async fn start(
        bus: &Bus,
        subject: &str,
        poll: Duration,
        content: impl BucketContent<Value = V>,
    ) -> Result<BucketFollower<V>, BusError> {
        let changes = bus.subscribe(subject).await?;
        let (sender, value) = watch::channel(None);
        let task = Background::default().with(|stop| follow(content, sender, changes, poll, stop));
        Ok(BucketFollower { value, task })
    }

    /// The value as it changes; nothing until one was read.
    pub fn value(&self) -> watch::Receiver<Option<Arc<V>>> {
        self.value.clone()
    }

    /// Stops and waits for the end.
    pub async fn stop(self) {
        self.task.stop().await;
    }
}

async fn follow<C: BucketContent>(
    mut content: C,
    current: watch::Sender<Option<Arc<C::Value>>>,
    mut changes: Subscription,
    poll: Duration,
    stop: CancellationToken,
) {
    // With jitter, so that followers that started together don't poll together.
    let mut tick = tokio::time::interval_at(Instant::now() + backoff::jitter(poll), poll);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = FailureLog::default();
    loop {
        failures.record(content.refresh(&current).await, C::READ_FAILURE);
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
            change = changes.next() => if change.is_none() { return },
        }
    }
}
