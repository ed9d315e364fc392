//! Sends local replies, and aborts responses.

use std::{future::poll_fn, task::Poll, time::Duration};

use tokio::time::Instant;

use super::{client_stream::ClientStream, local_reply::LocalReply, request_context::RequestContext};
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

    /// Sends a local reply and records its status.
    pub async fn send_reply(
        &self,
        reply: &LocalReply,
        down: &mut ClientStream,
        timer: &mut Timer,
    ) -> Completion {
        self.record_status(reply.status);
        send_local_reply(down, reply, self.info.request_id, self.client.stall, timer).await
    }

    /// Aborts the response, and records why.
    pub fn interrupt(&self, interruption: Interruption, down: &mut ClientStream) -> Completion {
        self.log.borrow_mut().interruption = Some(interruption);
        down.abort();
        Completion::Broken
    }
}
