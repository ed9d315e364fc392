//! Relays an endpoint's response to the client.

use std::cell::RefCell;

use super::{
    client_stream::ClientStream,
    debug,
    discard::discard,
    heads::write_interim_response,
    relay::{RelayEnd, RelayOutcome, StallLimits, relay},
    reply::Completion,
    request_context::RequestContext,
    tunnel::tunnel,
    upload::Upload,
    upstream_response::UpstreamResponse,
};
use crate::{
    metrics::RefusalReason,
    observe::Interruption,
    upstream::{UpstreamStream, failure_within_body},
    wire::Timer,
};

impl RequestContext<'_> {
    /// Relays a response to the client.
    pub async fn relay(
        &self,
        mut response: Box<UpstreamResponse>,
        upload: RefCell<Upload<'_>>,
        timer: &mut Timer,
    ) -> Completion {
        self.record_status(response.head.status);
        self.log.borrow_mut().relayed = Some(response.attempt);
        if self.log.borrow().attempt(response.attempt).tier > 0 {
            self.service.counters.failed_over.add(1);
        }
        if debug::is_asked(self.client, self.request) {
            self.add_debug_fields(&mut response.head.fields);
        }
        let head = &response.head;
        if head.status == 101 {
            return self.tunnel(response, upload.into_inner().down, timer).await;
        }
        let framing = response.up.framing();
        {
            let mut upload = upload.borrow_mut();
            let body_read = upload.is_complete();
            if self.worker.is_draining() {
                upload.down.disable_keep_alive();
            }
            let sent = upload.down.send_head(head, framing, body_read, self.info.request_id);
            if sent.is_err() {
                return Completion::Broken;
            }
        }
        let number = response.attempt;
        let limits = StallLimits { stall: self.client.stall, idle: self.worker.idle_limits.stream };
        let RelayOutcome { ended, sent, unfinished } = relay(response, &upload, limits, timer).await;
        let upload = upload.into_inner();
        {
            let mut log = self.log.borrow_mut();
            (log.sent, log.received) = (sent, upload.received());
        }
        let interruption = match ended {
            RelayEnd::Whole => return Completion::Complete,
            RelayEnd::EndpointFailed(error) => {
                let log = self.log.borrow();
                let attempt = log.attempt(number);
                tracing::debug!(
                    cluster = %attempt.cluster.name,
                    endpoint = %attempt.endpoint.address,
                    %error,
                    "response broken off"
                );
                self.record_failure(attempt, &failure_within_body(&error));
                self.service.counters.broken_off.add(1);
                Interruption::BrokenOff
            }
            RelayEnd::ClientFailed => {
                if let Some(rest) = unfinished.filter(|rest| rest.sent_whole) {
                    discard(self.worker, rest.up, rest.in_flight, &self.request.method, true);
                }
                self.service.counters.client_gone.add(1);
                Interruption::ClientGone
            }
            RelayEnd::ClientEvicted => {
                self.worker.counters.too_slow.add(1);
                Interruption::ClientTooSlow
            }
            RelayEnd::Idle => {
                self.service.counters.broken_off.add(1);
                Interruption::Idle
            }
            RelayEnd::RequestRefused(error) => {
                tracing::debug!(%error, "request refused within its body, after its response had begun");
                self.worker.counters.refused.count(RefusalReason::Body);
                Interruption::RequestRefused
            }
        };
        self.interrupt(interruption, upload.down)
    }

    async fn tunnel(
        &self,
        response: Box<UpstreamResponse>,
        down: &mut ClientStream,
        timer: &mut Timer,
    ) -> Completion {
        let UpstreamResponse { up: UpstreamStream::Http1(mut up), head, .. } = *response else {
            return Completion::Broken;
        };
        let ClientStream::Http1(down) = down else { return Completion::Broken };
        let protocol = head.fields.get(b"upgrade").map(|protocol| (b"upgrade".as_slice(), protocol));
        let connection = (b"connection".as_slice(), b"upgrade".as_slice());
        let added: Vec<_> = [connection].into_iter().chain(protocol).collect();
        write_interim_response(down.conn.out(), 101, &head.fields, &added);
        self.worker.counters.tunnels.add(1);
        let idle = self.worker.idle_limits;
        if let Err(error) = tunnel(&mut down.conn, &mut up.conn, &mut down.account, idle, timer).await {
            tracing::debug!(%error, "tunnel broken off");
        }
        Completion::Broken
    }
}
