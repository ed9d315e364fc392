//! Sends local replies, and aborts responses.

use std::{future::poll_fn, task::Poll, time::Duration};

use tidegate_http1::Fields;
use tokio::time::Instant;

use super::{client_stream::ClientStream, debug, local_reply::LocalReply, request_context::RequestContext};
use crate::{observe::Interruption, wire::Timer};

/// The state of the client's connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The response was sent completely.
    Complete,
    /// The response was aborted, or the connection was a tunnel that has ended.
    Broken,
}

/// Sends a local reply. The client may stall for at most `stall`.
pub async fn send_local_reply(
    down: &mut ClientStream,
    reply: &LocalReply,
    request_id: &[u8],
    stall: Duration,
    timer: &mut Timer,
) -> Completion {
    if down.push_local_reply(reply, request_id).is_err() {
        return Completion::Broken;
    }
    let mut ended = false;
    let mut deadline = None;
    let given = poll_fn(|cx| {
        if let Poll::Ready(given) = down.poll_end(&mut ended, cx) {
            return Poll::Ready(given.is_ok());
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + stall);
        timer.poll_until(deadline, cx).map(|()| false)
    });
    if given.await {
        return Completion::Complete;
    }
    down.abort();
    Completion::Broken
}

impl RequestContext<'_> {
    /// Records the status of the response to the client.
    pub fn record_status(&self, status: u16) {
        self.service.counters.count_status(status);
        self.log.borrow_mut().status = Some(status);
    }

    /// Adds to the response of this request how it was served.
    pub fn add_debug_fields(&self, fields: &mut Fields) {
        let log = self.log.borrow();
        let serving = debug::Serving { service: &self.service.name, log: &log };
        debug::add_fields(fields, &self.worker.edge, Some(&serving), self.started);
    }

    /// Sends a local reply and records its status.
    pub async fn send_reply(
        &self,
        reply: &LocalReply,
        down: &mut ClientStream,
        timer: &mut Timer,
    ) -> Completion {
        self.record_status(reply.status);
        if debug::is_asked(self.client, self.request) {
            let mut reply = reply.clone();
            self.add_debug_fields(&mut reply.fields);
            // Boxed, because it is rare: it would enlarge the future of every request.
            let sending = send_local_reply(down, &reply, self.info.request_id, self.client.stall, timer);
            return Box::pin(sending).await;
        }
        send_local_reply(down, reply, self.info.request_id, self.client.stall, timer).await
    }

    /// Aborts the response, and records why.
    pub fn interrupt(&self, interruption: Interruption, down: &mut ClientStream) -> Completion {
        self.log.borrow_mut().interruption = Some(interruption);
        down.abort();
        Completion::Broken
    }
}
