//! The bus within one process: the same guarantees as over NATS, without losses.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::{
    BusError, BusState, Message, Subscription, TraceContext, clock,
    lock::lock,
    memory::store::MemoryStore,
    message::{Inner, Part},
    pattern::covers,
    subjects::ALL_EVENTS,
};

pub(crate) mod store;

/// The default limit of a NATS server, so that what works here works there.
const MAX_PAYLOAD: usize = 1 << 20;
/// The messages that a subscription buffers; more are lost and counted.
const CAPACITY: usize = 8192;
/// The events that are stored; the oldest are dropped first.
const MAX_EVENTS: usize = 4096;

#[derive(Debug)]
pub(crate) struct MemoryBus {
    subscriptions: Mutex<Vec<(String, mpsc::Sender<Message>)>>,
    buckets: Mutex<BTreeMap<String, Arc<MemoryStore>>>,
    events: Mutex<VecDeque<Message>>,
    lost: AtomicU64,
    state: watch::Sender<BusState>,
}

impl MemoryBus {
    pub(crate) fn new() -> MemoryBus {
        MemoryBus {
            subscriptions: Mutex::default(),
            buckets: Mutex::default(),
            events: Mutex::default(),
            lost: AtomicU64::new(0),
            state: watch::Sender::new(BusState { away_since: None, reconnects: 0 }),
        }
    }

    pub(crate) fn watch_state(&self) -> watch::Receiver<BusState> {
        self.state.subscribe()
    }

    pub(crate) fn lost_messages(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn max_payload(&self) -> usize {
        MAX_PAYLOAD
    }

    pub(crate) fn subscribe(&self, pattern: &str) -> Subscription {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        lock(&self.subscriptions).push((pattern.to_owned(), sender));
        Subscription(Inner::Memory(receiver))
    }

    pub(crate) fn bucket(&self, name: &str) -> Arc<MemoryStore> {
        lock(&self.buckets).entry(name.to_owned()).or_default().clone()
    }

    /// The stored events and a subscription to later ones, without a gap between.
    pub(crate) fn events(&self, pattern: &str) -> (Vec<Message>, Subscription) {
        let events = lock(&self.events);
        let stored = events.iter().filter(|event| covers(pattern, &event.subject)).cloned().collect();
        (stored, self.subscribe(pattern))
    }

    pub(crate) fn send(
        &self,
        subject: &str,
        reply: Option<&str>,
        trace: Option<&TraceContext>,
        part: Option<Part>,
        body: Bytes,
    ) -> Result<(), BusError> {
        let message = Message {
            subject: subject.to_owned(),
            body,
            trace: trace.cloned(),
            received_at: clock::now(),
            reply: reply.map(str::to_owned),
            part,
            no_responder: false,
        };
        // The lock is held until the subscriptions have the event, so that a reader gets each event once.
        let _events = covers(ALL_EVENTS, subject).then(|| {
            let mut events = lock(&self.events);
            if events.len() == MAX_EVENTS {
                events.pop_front();
            }
            events.push_back(message.clone());
            events
        });
        let mut delivered = false;
        lock(&self.subscriptions).retain(|(pattern, sender)| {
            if !covers(pattern, subject) {
                return !sender.is_closed();
            }
            match sender.try_send(message.clone()) {
                Ok(()) => delivered = true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    delivered = true;
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
            }
            true
        });
        match reply {
            Some(_) if !delivered => Err(BusError::NoResponder(subject.to_owned())),
            _ => Ok(()),
        }
    }
}
