//! The history: the events of the last weeks, which the bus's servers store (over NATS in a JetStream stream).
//!
//! Events are published like any message ([`crate::report`]): a publisher does not wait until an event is stored, and an
//! event that is published while the bus is away is dropped. Each region's servers store the events that they receive, of
//! other regions too.

use std::{sync::atomic::Ordering, time::Duration, vec};

use tidegate_model::{
    RegionName, Timestamp,
    event::{Event, EventKind},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, BusError, FailureLog, Message, Subscription, TraceContext,
    background::Background,
    backoff,
    claims::Problem,
    clock, codec,
    nats::history::{NatsReader, ensure_stream},
    subjects::{self, ALL_EVENTS},
    transport::bus::Link,
};

pub use crate::nats::history::{MAX_AGE, MAX_BYTES};

/// The time between two checks of the stream: a server that lost its data comes back without one.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(10);

/// A stored event.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// The event.
    pub event: Event,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

impl Bus {
    /// Publishes an event for the history. `source` is the name of the edge or route-computer that publishes it.
    ///
    /// # Errors
    /// As for [`Bus::publish`].
    pub async fn publish_event(
        &self,
        source: &str,
        trace: Option<&TraceContext>,
        event: &Event,
    ) -> Result<(), BusError> {
        let published = self.publish_report(&subjects::event(&event.region, source), trace, event).await;
        if let (Err(_), Link::Nats(nats)) = (&published, self.link()) {
            nats.dropped_events.fetch_add(1, Ordering::Relaxed);
        }
        published
    }

    /// Publishes that a problem of `process`, such as `edge edge-1`, has begun or is over. A lost event is acceptable: the problem
    /// is repeated in the process's claims.
    pub async fn publish_problem(
        &self,
        source: &str,
        region: &RegionName,
        process: &str,
        problem: Problem,
        began: bool,
    ) {
        let (process, check) = (process.to_owned(), problem.check);
        let kind = match began {
            true => EventKind::ProblemBegan { process, check, reason: problem.reason },
            false => EventKind::ProblemEnded { process, check, since: problem.since },
        };
        let event = Event { region: region.clone(), at: clock::now(), kind };
        _ = self.publish_event(source, None, &event).await;
    }

    /// The number of events that this process dropped because the bus was away.
    pub fn dropped_events(&self) -> u64 {
        match self.link() {
            Link::Nats(nats) => nats.dropped_events.load(Ordering::Relaxed),
            Link::Memory(_) => 0,
        }
    }

    /// Reads the events since `since`, of one region or of all, and those that follow.
    ///
    /// # Errors
    /// When the bus is away, does not respond in time, or stores no events.
    pub async fn read_history(
        &self,
        since: Timestamp,
        region: Option<&RegionName>,
    ) -> Result<HistoryReader, BusError> {
        let pattern = region.map_or_else(|| ALL_EVENTS.to_owned(), subjects::events_in);
        let source = match self.link() {
            Link::Nats(nats) => Source::Nats(Box::new(NatsReader::open(nats, since, &pattern).await?)),
            Link::Memory(memory) => {
                let (stored, following) = memory.events(&pattern);
                let stored: Vec<_> = stored.into_iter().filter(|event| event.received_at >= since).collect();
                Source::Memory { stored: stored.into_iter(), following }
            }
        };
        Ok(HistoryReader { source, unreadable: 0 })
    }
}

/// A reader of the history: the events in the order in which they were stored.
#[derive(Debug)]
pub struct HistoryReader {
    source: Source,
    unreadable: u64,
}

#[derive(Debug)]
enum Source {
    Nats(Box<NatsReader>),
    Memory { stored: vec::IntoIter<Message>, following: Subscription },
}

impl HistoryReader {
    /// The next event, waiting for it where all stored ones were read; nothing when the bus is closed. Cancel-safe.
    ///
    /// # Errors
    /// When the bus is away or the stream can't be read. The next call continues after the last event that was read; where
    /// the stream was created again after the servers lost their data, it continues at its start.
    pub async fn next(&mut self) -> Result<Option<StoredEvent>, BusError> {
        while let Some(message) = self.next_message().await? {
            if let Some(event) = self.decode(message) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The next stored event; nothing when all were read. Cancel-safe.
    ///
    /// # Errors
    /// As for [`HistoryReader::next`].
    pub async fn next_stored(&mut self) -> Result<Option<StoredEvent>, BusError> {
        while !self.is_caught_up() {
            let Some(message) = self.next_message().await? else { break };
            if let Some(event) = self.decode(message) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    async fn next_message(&mut self) -> Result<Option<Message>, BusError> {
        match &mut self.source {
            Source::Nats(reader) => reader.next().await,
            Source::Memory { stored, following } => match stored.next() {
                Some(message) => Ok(Some(message)),
                None => Ok(following.next().await),
            },
        }
    }

    /// Decodes an event. One that can't be decoded is counted and skipped.
    fn decode(&mut self, message: Message) -> Option<StoredEvent> {
        match codec::decode(&message.body) {
            Ok(event) => Some(StoredEvent { event, trace: message.trace }),
            Err(error) => {
                self.unreadable += 1;
                tracing::debug!(subject = %message.subject, %error, "an event cannot be read");
                None
            }
        }
    }

    /// Whether all events were read that were stored when the last one was read.
    fn is_caught_up(&self) -> bool {
        match &self.source {
            Source::Nats(reader) => reader.remaining() == 0,
            Source::Memory { stored, .. } => stored.len() == 0,
        }
    }

    /// The number of events that could not be decoded: a newer version's.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

/// Maintains the stream in which the bus's servers store events. Dropping it stops the maintenance; the stream stays.
#[derive(Debug)]
pub struct HistoryKeeper(Background);

impl HistoryKeeper {
    /// Starts to maintain the stream: now, after each reconnect, and at intervals.
    pub fn start(bus: &Bus) -> HistoryKeeper {
        let bus = bus.clone();
        HistoryKeeper(Background::default().with(|stop| maintain(bus, stop)))
    }

    /// Stops and waits for the end.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

async fn maintain(bus: Bus, stop: CancellationToken) {
    let mut state = bus.watch_state();
    let mut failure_log = FailureLog::default();
    let mut failures = 0;
    loop {
        let ensured = match bus.link() {
            Link::Nats(nats) if state.borrow_and_update().connected() => ensure_stream(nats).await,
            // A change of the connection ends the wait below.
            Link::Nats(_) | Link::Memory(_) => Ok(()),
        };
        failures = if ensured.is_ok() { 0 } else { failures + 1 };
        failure_log.record(ensured, "events are not stored for now");
        let pause =
            if failures == 0 { CHECK_INTERVAL } else { backoff::delay(failures, FIRST_RETRY, MAX_RETRY) };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}
