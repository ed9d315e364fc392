//! Messages and subscriptions.

use bytes::Bytes;
use futures_util::StreamExt;
use tidegate_model::Timestamp;
use tokio::sync::mpsc;

use crate::{
    clock,
    transport::trace::{TRACEPARENT, TRACESTATE, TraceContext},
};

/// The name of the header that says which part of a reply a message is.
pub(crate) const PART: &str = "Tidegate-Part";

/// A received message.
#[derive(Debug, Clone)]
pub struct Message {
    /// The subject that it was published on.
    pub subject: String,
    /// The body.
    pub body: Bytes,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
    /// When it was received.
    pub received_at: Timestamp,
    /// The subject for the reply, where it is a request.
    pub(crate) reply: Option<String>,
    /// The part of a reply that it is.
    pub(crate) part: Option<Part>,
    /// Whether the server sent it because the request's subject has no subscriber.
    pub(crate) no_responder: bool,
}

/// One part of a reply larger than a message, written as `<reply>/<index>/<count>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Distinguishes the replies of several responders.
    pub reply: u64,
    /// The index of the part, from 0.
    pub index: u32,
    /// The number of parts, at least 1.
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

/// A subscription: the messages of a pattern, in order.
///
/// It buffers a bounded number of messages. When it is not read in time it loses the newest ones, which are counted
/// ([`crate::Bus::lost_messages`]), and holds up nobody else. It survives a reconnect, but what was published meanwhile is
/// lost. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription(pub(crate) Inner);

#[derive(Debug)]
pub(crate) enum Inner {
    Nats(async_nats::Subscriber),
    Memory(mpsc::Receiver<Message>),
}

impl Subscription {
    /// The next message; nothing when the bus is closed. Cancel-safe.
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
