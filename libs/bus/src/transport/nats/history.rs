//! The history in a JetStream stream.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
    stream::{Config, DiscardPolicy, StorageType},
};
use futures_util::StreamExt as _;
use tidegate_model::Timestamp;
use tokio::sync::watch;

use super::{
    BUCKET_LIMIT, NatsBus,
    store::{full, raise_replicas},
};
use crate::{
    BusError, BusState, Message,
    subjects::{ALL_EVENTS, EVENT_STREAM},
};

/// How long an event is kept. Operators may edit the stream to set another limit: an existing stream is left as it is.
pub const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How many bytes of events a region's servers keep; the oldest go first.
pub const MAX_BYTES: i64 = 128 << 20;

/// A reader of the stream through an ordered consumer. The consumer itself recovers lost messages; after a lost connection
/// or stream, this reader opens it again after the last event that was read, or at the start of a stream that was created
/// again.
pub(crate) struct NatsReader {
    bus: Arc<NatsBus>,
    state: watch::Receiver<BusState>,
    since: Timestamp,
    pattern: String,
    /// The open stream; absent: it is to be opened again.
    open: Option<Open>,
    /// The position of the last event that was read.
    read: Option<StreamPosition>,
    remaining: u64,
}

struct Open {
    events: pull::Ordered,
    /// When its stream was created: one that was created again after a loss of data counts from 1.
    created_at: i128,
    /// The number of reconnects when it was opened.
    reconnects: u64,
}

struct StreamPosition {
    created_at: i128,
    sequence: u64,
}

impl std::fmt::Debug for NatsReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsReader").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

/// Creates the stream where it is missing, and raises its replicas to what this process is configured for. The limits of an
/// existing stream stay as they are.
pub(crate) async fn ensure_stream(bus: &NatsBus) -> Result<(), BusError> {
    bus.check_connected()?;
    let wanted = Config {
        name: EVENT_STREAM.to_owned(),
        subjects: vec![ALL_EVENTS.to_owned()],
        max_age: MAX_AGE,
        max_bytes: MAX_BYTES,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        num_replicas: bus.bucket_replicas,
        // Publishers of events wait for no acknowledgement.
        no_ack: true,
        ..Config::default()
    };
    let ensured = async {
        let stream =
            bus.jetstream.get_or_create_stream(wanted).await.map_err(|error| failed("creation", &error))?;
        raise_replicas(bus, &stream.cached_info().config).await;
        Ok(())
    };
    bus.within(BUCKET_LIMIT, || "creating the history".to_owned(), ensured).await
}

impl NatsReader {
    pub(crate) async fn open(
        bus: &Arc<NatsBus>,
        since: Timestamp,
        pattern: &str,
    ) -> Result<NatsReader, BusError> {
        let (bus, state) = (bus.clone(), bus.watch_state());
        let pattern = pattern.to_owned();
        let mut reader = NatsReader { bus, state, since, pattern, open: None, read: None, remaining: 0 };
        reader.reopen().await?;
        Ok(reader)
    }

    async fn reopen(&mut self) -> Result<(), BusError> {
        self.bus.check_connected()?;
        let reconnects = self.state.borrow_and_update().reconnects;
        let opened = async {
            let stream = self
                .bus
                .jetstream
                .get_stream(EVENT_STREAM)
                .await
                .map_err(|error| failed("lookup", &error))?;
            let created_at = stream.cached_info().created.unix_timestamp_nanos();
            let config = pull::OrderedConfig {
                filter_subject: self.pattern.clone(),
                deliver_policy: self.deliver_policy(created_at)?,
                ..pull::OrderedConfig::default()
            };
            let consumer: jetstream::consumer::Consumer<pull::OrderedConfig> =
                stream.create_consumer(config).await.map_err(|error| failed("reading", &error))?;
            let remaining = consumer.cached_info().num_pending;
            let events = consumer.messages().await.map_err(|error| failed("reading", &error))?;
            Ok((Open { events, created_at, reconnects }, remaining))
        };
        let (open, remaining) =
            self.bus.within(BUCKET_LIMIT, || "opening the history".to_owned(), opened).await?;
        (self.open, self.remaining) = (Some(open), remaining);
        Ok(())
    }

    /// Where to start in the stream that was created at this time.
    fn deliver_policy(&self, created_at: i128) -> Result<DeliverPolicy, BusError> {
        if let Some(position) = self.read.as_ref().filter(|position| position.created_at == created_at) {
            return Ok(DeliverPolicy::ByStartSequence { start_sequence: position.sequence + 1 });
        }
        let start_time = async_nats::datetime::from_nanos(i128::from(self.since.0) * 1000)
            .map_err(|error| failed("reading", error.as_ref()))?;
        Ok(DeliverPolicy::ByStartTime { start_time })
    }

    /// The next event; nothing when the bus is closed. After an error the next call opens the stream again. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, BusError> {
        loop {
            let Some(open) = &mut self.open else {
                self.reopen().await?;
                continue;
            };
            let next = tokio::select! {
                next = open.events.next() => next,
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return Ok(None);
                    }
                    let state = *self.state.borrow_and_update();
                    if !state.connected() || state.reconnects != open.reconnects {
                        self.open = None;
                    }
                    continue;
                }
            };
            let created_at = open.created_at;
            let message = match next {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    self.open = None;
                    return Err(failed("reading", &error));
                }
                None => return Ok(None),
            };
            if let Ok(info) = message.info() {
                self.remaining = info.pending;
                self.read = Some(StreamPosition { created_at, sequence: info.stream_sequence });
            } else {
                self.remaining = 0;
            }
            return Ok(Some(Message::from(message.message)));
        }
    }

    /// The number of stored events that were unread when the last one was read.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }
}

fn failed(operation: &'static str, error: &dyn std::error::Error) -> BusError {
    BusError::History { operation, reason: full(error) }
}
