//! The bus: one interface over NATS and the in-process bus.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use crate::{
    BusError, BusState, Message, NatsSettings, Subscription, TraceContext,
    bucket::Bucket,
    deadline::within,
    memory::MemoryBus,
    message::Part,
    nats::{INBOX, NatsBus},
    pattern::{is_pattern, is_subject},
};

/// The bytes of a message that are reserved for headers.
const HEADER_ROOM: usize = 4096;
/// The largest part of a reply, even where the server takes larger messages: small messages are sent between parts.
const MAX_PART: usize = 512 * 1024;
/// The most parts of a reply.
const MAX_PARTS: u32 = 4096;

/// A connection to the bus. Clones share it; dropping the last one closes it.
#[derive(Debug, Clone)]
pub struct Bus(Link);

/// The transport of a bus.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    Nats(Arc<NatsBus>),
    Memory(Arc<MemoryBus>),
}

impl Bus {
    /// Connects over NATS. Does not wait for a server: while none can be reached, the bus is away ([`Bus::state`]) and
    /// retries without end.
    ///
    /// # Errors
    /// When the settings are wrong: no server, a malformed address, unreadable credentials.
    pub async fn connect(settings: NatsSettings) -> Result<Bus, BusError> {
        Ok(Bus(Link::Nats(Arc::new(NatsBus::connect(settings).await?))))
    }

    /// A bus within this process, which loses no message.
    pub fn in_process() -> Bus {
        Bus(Link::Memory(Arc::new(MemoryBus::new())))
    }

    /// The state of the connection.
    pub fn state(&self) -> BusState {
        *self.watch_state().borrow()
    }

    /// The state of the connection, as it changes.
    pub fn watch_state(&self) -> watch::Receiver<BusState> {
        match &self.0 {
            Link::Nats(nats) => nats.watch_state(),
            Link::Memory(memory) => memory.watch_state(),
        }
    }

    /// What the server has refused in the last seconds, such as a publication that its user has no permission for.
    pub fn refusal(&self) -> Option<String> {
        match &self.0 {
            Link::Nats(nats) => nats.refusal(),
            Link::Memory(_) => None,
        }
    }

    /// All that the server has refused this user.
    pub fn refusals(&self) -> Vec<String> {
        match &self.0 {
            Link::Nats(nats) => nats.refusals(),
            Link::Memory(_) => Vec::new(),
        }
    }

    /// Why the last attempt to connect failed; nothing while connected, or when the reason is unknown.
    pub fn connect_error(&self) -> Option<String> {
        match &self.0 {
            Link::Nats(nats) => nats.connect_error(),
            Link::Memory(_) => None,
        }
    }

    /// Waits until the bus is connected, at most for `limit`. Returns whether it is.
    pub async fn ready(&self, limit: Duration) -> bool {
        let mut state = self.watch_state();
        let connected = state.wait_for(BusState::connected);
        matches!(tokio::time::timeout(limit, connected).await, Ok(Ok(_)))
    }

    /// The number of messages that this process lost because a subscription was not read in time.
    pub fn lost_messages(&self) -> u64 {
        match &self.0 {
            Link::Nats(nats) => nats.lost_messages(),
            Link::Memory(memory) => memory.lost_messages(),
        }
    }

    /// The largest body of a message, in bytes.
    pub fn max_body(&self) -> usize {
        let limit = match &self.0 {
            Link::Nats(nats) => nats.max_payload(),
            Link::Memory(memory) => memory.max_payload(),
        };
        limit.saturating_sub(HEADER_ROOM).max(1)
    }

    /// Publishes a message to the present subscribers.
    ///
    /// # Errors
    /// When the bus is away or the message is too large. It is not queued for later: what matters is repeated or repaired,
    /// and better fresh than late.
    pub async fn publish(
        &self,
        subject: &str,
        trace: Option<&TraceContext>,
        body: Bytes,
    ) -> Result<(), BusError> {
        if !is_subject(subject) {
            return Err(BusError::Subject(subject.to_owned()));
        }
        self.send(subject, None, trace, None, body).await
    }

    /// Sends a change notification to the followers of a bucket, even if this process ends right after. A follower that
    /// misses it polls the bucket within a second.
    pub(crate) async fn notify_change(&self, subject: &str, body: Bytes) {
        _ = self.publish(subject, None, body).await;
        if let Link::Nats(nats) = &self.0 {
            _ = nats.flush().await;
        }
    }

    /// Subscribes to a subject, or to many by the wildcards `*` (one token) and `>` (all further tokens).
    ///
    /// # Errors
    /// When the pattern is malformed or the bus is closed.
    pub async fn subscribe(&self, pattern: &str) -> Result<Subscription, BusError> {
        if !is_pattern(pattern) {
            return Err(BusError::Subject(pattern.to_owned()));
        }
        match &self.0 {
            Link::Nats(nats) => nats.subscribe(pattern).await,
            Link::Memory(memory) => Ok(memory.subscribe(pattern)),
        }
    }

    /// Sends a request and returns the first complete reply, which may be larger than a message.
    ///
    /// # Errors
    /// When the bus is away, nobody is subscribed to `subject`, or no complete reply came within `limit`.
    pub async fn request(&self, subject: &str, body: Bytes, limit: Duration) -> Result<Bytes, BusError> {
        if !is_subject(subject) {
            return Err(BusError::Subject(subject.to_owned()));
        }
        let prefix = match &self.0 {
            Link::Nats(nats) => nats.inbox(),
            Link::Memory(_) => INBOX,
        };
        let inbox = format!("{prefix}.{:032x}", rand::random::<u128>());
        let mut replies = self.subscribe(&inbox).await?;
        let replied = async {
            self.send(subject, Some(&inbox), None, None, body).await?;
            let mut replies_by_id: Vec<(u64, Vec<Option<Bytes>>)> = Vec::new();
            loop {
                let message = replies.next().await.ok_or(BusError::Closed)?;
                if message.no_responder {
                    return Err(BusError::NoResponder(subject.to_owned()));
                }
                let part = message.part.unwrap_or(Part { reply: 0, index: 0, count: 1 });
                if let Some(whole) = add_part(&mut replies_by_id, part, message.body) {
                    return Ok(whole);
                }
            }
        };
        let what = || format!("a request on {subject}");
        match &self.0 {
            Link::Nats(nats) => nats.within(limit, what, replied).await,
            Link::Memory(_) => within(limit, what, replied).await,
        }
    }

    /// Replies to a request, in as many messages as it takes. Does nothing for a message that is no request.
    ///
    /// # Errors
    /// When the bus is away.
    pub async fn reply(&self, request: &Message, body: Bytes) -> Result<(), BusError> {
        let Some(to) = &request.reply else { return Ok(()) };
        let size = self.max_body().min(MAX_PART);
        let count = u32::try_from(body.len().div_ceil(size).max(1)).unwrap_or(u32::MAX);
        if count > MAX_PARTS {
            let limit = size * MAX_PARTS as usize;
            return Err(BusError::TooLarge { subject: to.clone(), size: body.len(), limit });
        }
        let reply = rand::random();
        for index in 0..count {
            let start = index as usize * size;
            let part = body.slice(start..body.len().min(start + size));
            self.send(to, None, None, Some(Part { reply, index, count }), part).await?;
        }
        Ok(())
    }

    /// A key-value bucket.
    pub fn bucket(&self, name: &str) -> Bucket {
        match &self.0 {
            Link::Nats(nats) => Bucket::nats(nats.clone(), name),
            Link::Memory(memory) => Bucket::memory(memory.bucket(name), name),
        }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.0
    }

    async fn send(
        &self,
        subject: &str,
        reply: Option<&str>,
        trace: Option<&TraceContext>,
        part: Option<Part>,
        body: Bytes,
    ) -> Result<(), BusError> {
        let limit = self.max_body();
        if body.len() > limit {
            return Err(BusError::TooLarge { subject: subject.to_owned(), size: body.len(), limit });
        }
        match &self.0 {
            Link::Nats(nats) => nats.send(subject, reply, trace, part, body).await,
            Link::Memory(memory) => memory.send(subject, reply, trace, part, body),
        }
    }
}

/// Adds a part of one of several replies. Returns that reply when it is complete.
fn add_part(replies: &mut Vec<(u64, Vec<Option<Bytes>>)>, part: Part, body: Bytes) -> Option<Bytes> {
    if part.count > MAX_PARTS {
        return None;
    }
    let at = replies.iter().position(|(id, _)| *id == part.reply).unwrap_or_else(|| {
        replies.push((part.reply, vec![None; part.count as usize]));
        replies.len() - 1
    });
    let parts = &mut replies[at].1;
    *parts.get_mut(part.index as usize)? = Some(body);
    if parts.len() == 1 {
        return parts[0].take();
    }
    if parts.iter().any(Option::is_none) {
        return None;
    }
    let mut whole = BytesMut::with_capacity(parts.iter().flatten().map(Bytes::len).sum());
    parts.iter().flatten().for_each(|part| whole.extend_from_slice(part));
    Some(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_two_replies_are_not_mixed() {
        let mut replies = Vec::new();
        let mut add = |reply, index, count, body: &'static str| {
            add_part(&mut replies, Part { reply, index, count }, Bytes::from_static(body.as_bytes()))
        };
        assert_eq!(add(1, 1, 2, "b"), None);
        assert_eq!(add(2, 0, 2, "x"), None);
        assert_eq!(add(1, 1, 2, "b"), None, "a doubled part does not make a whole");
        assert_eq!(add(1, 0, 2, "a"), Some(Bytes::from_static(b"ab")));
    }
}
