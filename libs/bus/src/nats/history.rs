//! The history as a JetStream stream.

use std::sync::Arc;

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
    stream::{Config, DiscardPolicy, StorageType},
};
use futures_util::StreamExt as _;
use tidegate_model::Timestamp;

use super::{
    NatsBus,
    store::{LIMIT, full, raise_replicas},
};
use crate::{
    BusError, Message,
    history::{MAX_AGE, MAX_BYTES},
    subjects::{ALL_EVENTS, EVENT_STREAM},
};

/// Reads the stream through an ordered consumer, which makes itself anew after a reconnect and goes on where it was.
pub(crate) struct NatsReader {
    events: pull::Ordered,
    remaining: u64,
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
    bus.within(LIMIT, || "making the history".to_owned(), made).await
}

impl NatsReader {
    pub(crate) async fn open(
        bus: &Arc<NatsBus>,
        since: Timestamp,
        pattern: &str,
    ) -> Result<NatsReader, BusError> {
        bus.check_connected()?;
        let nanos = i128::from(since.0) * 1000;
        let start_time =
            async_nats::datetime::from_nanos(nanos).map_err(|error| failed("reading", error.as_ref()))?;
        let opened = async {
            let stream =
                bus.jetstream.get_stream(EVENT_STREAM).await.map_err(|error| failed("finding", &error))?;
            let config = pull::OrderedConfig {
                filter_subject: pattern.to_owned(),
                deliver_policy: DeliverPolicy::ByStartTime { start_time },
                ..pull::OrderedConfig::default()
            };
            let consumer: jetstream::consumer::Consumer<pull::OrderedConfig> =
                stream.create_consumer(config).await.map_err(|error| failed("reading", &error))?;
            let remaining = consumer.cached_info().num_pending;
            let events = consumer.messages().await.map_err(|error| failed("reading", &error))?;
            Ok(NatsReader { events, remaining })
        };
        bus.within(LIMIT, || "opening the history".to_owned(), opened).await
    }

    /// The next event; nothing when the bus is closed. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, BusError> {
        let Some(next) = self.events.next().await else { return Ok(None) };
        let message = next.map_err(|error| failed("reading", &error))?;
        self.remaining = message.info().map_or(0, |info| info.pending);
        Ok(Some(Message::from(message.message)))
    }

    /// How many events were kept already and not yet read, when the last one was.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }
}

fn failed(operation: &'static str, error: &dyn std::error::Error) -> BusError {
    BusError::History { operation, reason: full(error) }
}
