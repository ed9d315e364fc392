//! The history as a JetStream stream.

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

/// Reads the stream through an ordered consumer. That one goes on by itself where only its messages are lost; where the
/// connection or the stream is, this one opens it again after the last event that was read, or from the start of a stream
/// that is another one.
pub(crate) struct NatsReader {
    bus: Arc<NatsBus>,
    state: watch::Receiver<BusState>,
    since: Timestamp,
    pattern: String,
    /// Absent: to be opened again.
    open: Option<Open>,
    /// The stream that was last read, and the last event's place in it.
    read: Option<Place>,
    remaining: u64,
}

struct Open {
    events: pull::Ordered,
    /// When its stream was made: another one, made after data were lost, counts from 1 again.
    made_at: i128,
    /// How often there had been a reconnect.
    reconnects: u64,
}

struct Place {
    made_at: i128,
    sequence: u64,
}

impl std::fmt::Debug for NatsReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsReader").field("remaining", &self.remaining).finish_non_exhaustive()
    }
}

/// Makes the stream where it is missing, and gives it as many copies as this process wants. Its limits stay what they are.
pub(crate) async fn make(bus: &NatsBus) -> Result<(), BusError> {
    bus.check_connected()?;
    let wanted = Config {
        name: EVENT_STREAM.to_owned(),
        subjects: vec![ALL_EVENTS.to_owned()],
        max_age: MAX_AGE,
        max_bytes: MAX_BYTES,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        num_replicas: bus.bucket_replicas,
        // Who tells an event asks for no answer.
        no_ack: true,
        ..Config::default()
    };
    let made = async {
        let stream =
            bus.jetstream.get_or_create_stream(wanted).await.map_err(|error| failed("making", &error))?;
        raise_replicas(bus, &stream.cached_info().config).await;
        Ok(())
    };
    bus.within(BUCKET_LIMIT, || "making the history".to_owned(), made).await
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
                .map_err(|error| failed("finding", &error))?;
            let made_at = stream.cached_info().created.unix_timestamp_nanos();
            let config = pull::OrderedConfig {
                filter_subject: self.pattern.clone(),
                deliver_policy: self.from(made_at)?,
                ..pull::OrderedConfig::default()
            };
            let consumer: jetstream::consumer::Consumer<pull::OrderedConfig> =
                stream.create_consumer(config).await.map_err(|error| failed("reading", &error))?;
            let remaining = consumer.cached_info().num_pending;
            let events = consumer.messages().await.map_err(|error| failed("reading", &error))?;
            Ok((Open { events, made_at, reconnects }, remaining))
        };
        let (open, remaining) =
            self.bus.within(BUCKET_LIMIT, || "opening the history".to_owned(), opened).await?;
        (self.open, self.remaining) = (Some(open), remaining);
        Ok(())
    }

    /// Where to begin in the stream that was made at this time.
    fn from(&self, made_at: i128) -> Result<DeliverPolicy, BusError> {
        if let Some(place) = self.read.as_ref().filter(|place| place.made_at == made_at) {
            return Ok(DeliverPolicy::ByStartSequence { start_sequence: place.sequence + 1 });
        }
        let start_time = async_nats::datetime::from_nanos(i128::from(self.since.0) * 1000)
            .map_err(|error| failed("reading", error.as_ref()))?;
        Ok(DeliverPolicy::ByStartTime { start_time })
    }

    /// The next event; nothing when the bus is closed. After an error the next call opens the stream again. Safe to cancel.
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
            let made_at = open.made_at;
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
                self.read = Some(Place { made_at, sequence: info.stream_sequence });
            } else {
                self.remaining = 0;
            }
            return Ok(Some(Message::from(message.message)));
        }
    }

    /// How many events were kept already and not yet read, when the last one was.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }
}

fn failed(operation: &'static str, error: &dyn std::error::Error) -> BusError {
    BusError::History { operation, reason: full(error) }
}
