//! Messages and subscriptions.

use bytes::Bytes;
use futures_util::StreamExt;
use tidegate_model::Timestamp;
use tokio::sync::mpsc;

use crate::{
    clock,
    trace::{TRACEPARENT, TRACESTATE, TraceContext},
};

/// Which part of a reply a message is.
pub(crate) const PART: &str = "Tidegate-Part";

/// A message as it was received.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it was published.
    pub subject: String,
    /// Its body.
    pub body: Bytes,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
    /// When it was taken from the bus.
    pub received_at: Timestamp,
    /// Where an answer goes, when it is a request.
    pub(crate) reply: Option<String>,
    /// Which part of a reply it is.
    pub(crate) part: Option<Part>,
    /// The server's word that nobody listens.
    pub(crate) no_responder: bool,
}

/// One part of a reply that may be larger than a message. Written as `<reply>/<index>/<count>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Tells apart the replies of several who answer.
    pub reply: u64,
    /// From 0.
    pub index: u32,
    /// At least 1.
    pub count: u32,
}

impl Part {
    pub(crate) fn to_header(self) -> String {
        format!("{:016x}/{}/{}", self.reply, self.index, self.count)
    }

    pub(crate) fn parse(text: &str) -> Option<Part> {
        let mut parts = text.split('/');
        let reply = u64::from_str_radix(parts.next()?, 16).ok()?;
        let index = parts.next()?.parse().ok()?;
        let count = parts.next()?.parse().ok()?;
        (index < count && parts.next().is_none()).then_some(Part { reply, index, count })
    }
}

/// Messages of a pattern, in order, from the subscription on.
///
/// It holds a bounded number of messages. Who does not take them in time loses the newest ones, which are counted
/// ([`crate::Bus::lost_messages`]); nobody else waits for them. It goes on by itself after a reconnect; what was
/// published in between is lost. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription(pub(crate) Inner);

#[derive(Debug)]
pub(crate) enum Inner {
    Nats(async_nats::Subscriber),
    Memory(mpsc::Receiver<Message>),
}

impl Subscription {
    /// The next message; nothing when the bus is closed. Safe to cancel.
    pub async fn next(&mut self) -> Option<Message> {
        match &mut self.0 {
            Inner::Nats(subscriber) => subscriber.next().await.map(Message::from),
            Inner::Memory(receiver) => {
                let mut message = receiver.recv().await?;
                message.received_at = clock::now();
                Some(message)
            }
        }
    }
}

impl From<async_nats::Message> for Message {
    fn from(message: async_nats::Message) -> Message {
        let header = |name: &str| {
            message.headers.as_ref().and_then(|h| h.get(name)).map(async_nats::HeaderValue::as_str)
        };
        Message {
            trace: header(TRACEPARENT).and_then(|parent| TraceContext::new(parent, header(TRACESTATE))),
            part: header(PART).and_then(Part::parse),
            no_responder: message.status == Some(async_nats::StatusCode::NO_RESPONDERS),
            subject: message.subject.to_string(),
            reply: message.reply.map(|reply| reply.to_string()),
            body: message.payload,
            received_at: clock::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_read_as_it_was_written() {
        let part = Part { reply: 0xfeed, index: 3, count: 10 };
        assert_eq!(Part::parse(&part.to_header()), Some(part));
        assert_eq!(Part::parse("feed/10/10"), None);
        assert_eq!(Part::parse("feed/1"), None);
    }
}
