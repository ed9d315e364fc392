//! The history: events, kept for a while on the bus's servers (over NATS in a JetStream stream) and read again by whoever
//! asks.
//!
//! Events are published like any message ([`crate::report`]): who tells one does not wait until it is kept, and one that
//! is told while the bus is away is lost. Each region's servers keep what they hear, of other regions too.

use std::{sync::atomic::Ordering, time::Duration, vec};

use tidegate_model::{RegionName, Timestamp, event::Event};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, BusError, Message, Subscription, TraceContext,
    background::Background,
    backoff,
    bus::Link,
    codec,
    failure_log::FailureLog,
    nats::history::{NatsReader, make},
    subjects::{self, ALL_EVENTS},
};

pub use crate::nats::history::{MAX_AGE, MAX_BYTES};

/// How often it is looked whether the stream is there: a server that lost its data comes back without one.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(10);

/// An event as it was kept.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// What happened.
    pub event: Event,
    /// The trace that shows it.
    pub trace: Option<TraceContext>,
}

impl Bus {
    /// Tells the history of an event. `source` is the name of who tells it.
    ///
    /// # Errors
    /// As for [`Bus::publish`].
    pub async fn tell(
        &self,
        source: &str,
        trace: Option<&TraceContext>,
        event: &Event,
    ) -> Result<(), BusError> {
        let told = self.publish_report(&subjects::event(&event.region, source), trace, event).await;
        if let (Err(_), Link::Nats(nats)) = (&told, self.link()) {
            nats.untold.fetch_add(1, Ordering::Relaxed);
        }
        told
    }

    /// Events of this process that the history lacks because the bus was away.
    pub fn untold_events(&self) -> u64 {
        match self.link() {
            Link::Nats(nats) => nats.untold.load(Ordering::Relaxed),
            Link::Memory(_) => 0,
        }
    }

    /// Reads the events that were kept since `since`, of one region or all, and those that follow.
    ///
    /// # Errors
    /// When the bus is away, does not answer in time, or nobody keeps events there.
    pub async fn read_history(
        &self,
        since: Timestamp,
        region: Option<&RegionName>,
    ) -> Result<HistoryReader, BusError> {
        let pattern = region.map_or_else(|| ALL_EVENTS.to_owned(), subjects::events_in);
        let source = match self.link() {
            Link::Nats(nats) => Source::Nats(Box::new(NatsReader::open(nats, since, &pattern).await?)),
            Link::Memory(memory) => {
                let (kept, following) = memory.events(&pattern);
                let kept: Vec<_> = kept.into_iter().filter(|event| event.received_at >= since).collect();
                Source::Memory { kept: kept.into_iter(), following }
            }
        };
        Ok(HistoryReader { source, unreadable: 0 })
    }
}

/// Reads events in the order in which they were kept.
#[derive(Debug)]
pub struct HistoryReader {
    source: Source,
    unreadable: u64,
}

#[derive(Debug)]
enum Source {
    Nats(Box<NatsReader>),
    Memory { kept: vec::IntoIter<Message>, following: Subscription },
}

impl HistoryReader {
    /// The next event, also one that is yet to come; nothing when the bus is closed. Safe to cancel.
    ///
    /// # Errors
    /// When the bus is away or the stream can't be read. Whoever calls again then goes on after the last event that was read,
    /// with all of a stream that was made anew after the servers lost their data.
    pub async fn next(&mut self) -> Result<Option<StoredEvent>, BusError> {
        while let Some(message) = self.message().await? {
            if let Some(kept) = self.read(message) {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    /// The next of the events that are kept already; nothing when all were read. Safe to cancel.
    ///
    /// # Errors
    /// As for [`HistoryReader::next`].
    pub async fn next_kept(&mut self) -> Result<Option<StoredEvent>, BusError> {
        while !self.is_caught_up() {
            let Some(message) = self.message().await? else { break };
            if let Some(kept) = self.read(message) {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    async fn message(&mut self) -> Result<Option<Message>, BusError> {
        match &mut self.source {
            Source::Nats(reader) => reader.next().await,
            Source::Memory { kept, following } => match kept.next() {
                Some(message) => Ok(Some(message)),
                None => Ok(following.next().await),
            },
        }
    }

    /// What can't be read is counted and left out.
    fn read(&mut self, message: Message) -> Option<StoredEvent> {
        match codec::decode(&message.body) {
            Ok(event) => Some(StoredEvent { event, trace: message.trace }),
            Err(error) => {
                self.unreadable += 1;
                tracing::debug!(subject = %message.subject, %error, "an event cannot be read");
                None
            }
        }
    }

    /// Whether all was read that was kept already when the last event was.
    fn is_caught_up(&self) -> bool {
        match &self.source {
            Source::Nats(reader) => reader.remaining() == 0,
            Source::Memory { kept, .. } => kept.len() == 0,
        }
    }

    /// Events that could not be read: a newer version's.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

/// Sees to it that the bus's servers keep events. Dropping it ends that, not the keeping.
#[derive(Debug)]
pub struct HistoryKeeper(Background);

impl HistoryKeeper {
    /// Begins to see to it: at once, after each reconnect, and now and then.
    pub fn start(bus: &Bus) -> HistoryKeeper {
        let bus = bus.clone();
        HistoryKeeper(Background::default().with(|stop| keep(bus, stop)))
    }

    /// Ends it and waits for the end.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

async fn keep(bus: Bus, stop: CancellationToken) {
    let mut state = bus.watch_state();
    let mut failure_log = FailureLog::default();
    let mut failures = 0;
    loop {
        let made = match bus.link() {
            Link::Nats(nats) if state.borrow_and_update().connected() => make(nats).await,
            // What comes next is the connection.
            Link::Nats(_) | Link::Memory(_) => Ok(()),
        };
        failures = if made.is_ok() { 0 } else { failures + 1 };
        failure_log.record(made, "events are not kept for now");
        let pause = if failures == 0 { LOOK_EVERY } else { backoff::delay(failures, FIRST_RETRY, MAX_RETRY) };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}
