//! One request from its head to the end of its answer.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use rand::RngExt as _;
use tidegate_http1::{Framing, Method, Request, Version, list_contains, write_field, write_status_line};
use tidegate_model::observation::Failure;
use tokio::time::Instant;

use super::{
    attempt::UpstreamResponse,
    attempts::{NoResponse, first_response},
    downstream::Downstream,
    exchange::RequestContext,
    heads::{ClientInfo, is_end_to_end},
    health,
    local_reply::LocalReply,
    max_forwards,
    relay::{RelayEnd, Relayed, StallLimits, relay},
    tunnel::tunnel,
    upload::Upload,
};
use crate::{
    clients::Client,
    context::WorkerContext,
    metrics::RefusalReason,
    observe::Interruption,
    upstream::{UpstreamStream, failure_within_body},
    wire::{BodyError, Timer},
};

/// What the connection is good for after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The answer was given whole.
    Complete,
    /// The answer was broken off, or the connection became a tunnel that has ended.
    Broken,
}

/// Serves one request: finds its service, gets an answer and relays it.
pub async fn handle(
    worker: &Rc<WorkerContext>,
    client: Client,
    request: &Request,
    framing: Framing,
    down: &mut Downstream,
    timer: &mut Timer,
) -> Completion {
    let started = Instant::now();
    down.hold_buffers(0);
    let mut id = [0; 32];
    let request_id = request_id(request, &mut id, worker);
    if let Some(reply) = health::reply(worker, client.health_endpoints, &request.target) {
        return send_local_reply(down, &reply, request_id, client.stall, timer).await;
    }
    if !down.account().speaks_for(&request.host) {
        worker.counters.misdirected.add(1);
        let reply = LocalReply::new(421, "this connection's certificate is not for this host");
        let outcome = send_local_reply(down, &reply, request_id, client.stall, timer).await;
        worker.observer.replied_locally(client, request, request_id, reply.status, started.elapsed());
        return outcome;
    }
    let found = worker.table.borrow().find(request);
    let Some((service, place)) = found else {
        worker.counters.unrouted.add(1);
        let reply = LocalReply::new(404, format!("no service here for host {:?}", request.host));
        let outcome = send_local_reply(down, &reply, request_id, client.stall, timer).await;
        worker.observer.replied_locally(client, request, request_id, reply.status, started.elapsed());
        return outcome;
    };
    service.counters.requests.add(1);
    let action = &service.actions[place];
    action.demand.add(1);
    action.budget.deposit();
    let trace = worker.observer.begin(request, &mut *worker.random.borrow_mut());
    let x = RequestContext {
        worker,
        service: &service,
        action,
        policy: &action.policy,
        request,
        client,
        origin: ClientInfo {
            address: client.address,
            is_tls: client.is_tls,
            request_id,
            upgrade: upgrade_of(request, framing, down),
            traceparent: None,
            begins_trace: trace.is_some_and(|trace| trace.parent.is_none()),
        },
        framing,
        repeatable: request.method.is_idempotent(),
        has_elsewhere: action.endpoint_count > 1,
        started,
        trace,
        log: RefCell::default(),
        fallback_held: Cell::new(0),
    };
    let outcome = x.serve(down, timer).await;
    worker.counters.dropped_fields.add_if_any(down.dropped_trailers());
    x.finish(Instant::now());
    outcome
}

impl RequestContext<'_> {
    async fn serve(&self, down: &mut Downstream, timer: &mut Timer) -> Completion {
        if let Some(reply) = self.refusal_before_any_try() {
            self.answered_with(reply.status);
            return send_local_reply(down, &reply, self.origin.request_id, self.client.stall, timer).await;
        }
        // A client of HTTP/1.0 cannot mean it (RFC 9110, section 10.1.1).
        let expects_continue = self.request.version == Version::Http11
            && self
                .request
                .fields
                .get(b"expect")
                .is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let most = self.service.max_request_body;
        let upload = RefCell::new(Upload::new(down, expects_continue, most, self.started));
        match first_response(self, &upload, timer).await {
            Ok(answer) => self.relay(answer, upload, timer).await,
            Err(refusal) => {
                let upload = upload.into_inner();
                self.log.borrow_mut().received = upload.received();
                let down = upload.down;
                let Some(reply) = self.reply_to(refusal) else {
                    self.log.borrow_mut().interruption = Some(Interruption::ClientGone);
                    down.abort();
                    return Completion::Broken;
                };
                self.answered_with(reply.status);
                send_local_reply(down, &reply, self.origin.request_id, self.client.stall, timer).await
            }
        }
    }

    fn answered_with(&self, status: u16) {
        self.service.counters.count_status(status);
        self.log.borrow_mut().status = Some(status);
    }

    fn refusal_before_any_try(&self) -> Option<LocalReply> {
        if matches!(self.request.method, Method::Connect) {
            return Some(LocalReply::new(405, "CONNECT is not served").with("allow", max_forwards::ALLOWED));
        }
        match max_forwards::local_reply(self.request) {
            Ok(None) => {}
            Ok(Some(reply)) => return Some(reply),
            Err(error) => {
                self.worker.counters.refused.count(error);
                return Some(LocalReply::new(error.status(), error.to_string()));
            }
        }
        if let (Framing::Length(length), Some(most)) = (self.framing, self.service.max_request_body)
            && length > most
        {
            return Some(too_large(most));
        }
        let shed = self.action.shed_permille;
        if shed > 0 && self.worker.random.borrow_mut().random_range(0..1000) < shed {
            self.service.counters.shed.add(1);
            return Some(LocalReply::new(503, "over capacity, try again").with("retry-after", "1"));
        }
        None
    }

    async fn relay(
        &self,
        answer: Box<UpstreamResponse>,
        upload: RefCell<Upload<'_>>,
        timer: &mut Timer,
    ) -> Completion {
        let head = &answer.head;
        self.answered_with(head.status);
        self.log.borrow_mut().relayed = Some(answer.attempt);
        if self.log.borrow().attempt(answer.attempt).tier > 0 {
            self.service.counters.failed_over.add(1);
        }
        if head.status == 101 {
            return self.tunnel(answer, upload.into_inner().down, timer).await;
        }
        let framing = answer.up.framing();
        {
            let mut upload = upload.borrow_mut();
            let body_read = upload.is_complete();
            if self.worker.is_draining() {
                upload.down.end_after_this();
            }
            let sent = upload.down.send_head(head, framing, body_read, self.origin.request_id);
            if sent.is_err() {
                return Completion::Broken;
            }
        }
        let number = answer.attempt;
        let patience = StallLimits { stall: self.client.stall, silence: self.worker.idle_limits.stream };
        let Relayed { ended, sent } = relay(answer, &upload, patience, timer).await;
        let upload = upload.into_inner();
        let mut log = self.log.borrow_mut();
        (log.sent, log.received) = (sent, upload.received());
        match ended {
            RelayEnd::Whole => Completion::Complete,
            RelayEnd::EndpointFailed(error) => {
                let attempt = log.attempt(number);
                tracing::debug!(
                    cluster = %attempt.cluster.name,
                    endpoint = %attempt.endpoint.address,
                    %error,
                    "response broken off"
                );
                self.record_failure(attempt, &failure_within_body(&error));
                self.service.counters.broken_off.add(1);
                log.interruption = Some(Interruption::BrokenOff);
                upload.down.abort();
                Completion::Broken
            }
            RelayEnd::ClientFailed => {
                self.service.counters.client_gone.add(1);
                log.interruption = Some(Interruption::ClientGone);
                upload.down.abort();
                Completion::Broken
            }
            RelayEnd::GivenUp => {
                self.worker.counters.too_slow.add(1);
                log.interruption = Some(Interruption::ClientTooSlow);
                upload.down.abort();
                Completion::Broken
            }
            RelayEnd::Idle => {
                self.service.counters.broken_off.add(1);
                log.interruption = Some(Interruption::Idle);
                upload.down.abort();
                Completion::Broken
            }
            RelayEnd::RequestRefused(error) => {
                tracing::debug!(%error, "request refused within its body, after its answer had begun");
                self.worker.counters.refused.count(RefusalReason::Body);
                log.interruption = Some(Interruption::RequestRefused);
                upload.down.abort();
                Completion::Broken
            }
        }
    }

    async fn tunnel(
        &self,
        answer: Box<UpstreamResponse>,
        down: &mut Downstream,
        timer: &mut Timer,
    ) -> Completion {
        let UpstreamResponse { up: UpstreamStream::Http1(mut up), head, .. } = *answer else {
            return Completion::Broken;
        };
        let Downstream::Http1(down) = down else { return Completion::Broken };
        let out = down.conn.out();
        write_status_line(out, 101);
        for (name, value) in head.fields.iter().filter(|(name, _)| is_end_to_end(name)) {
            write_field(out, name, value);
        }
        write_field(out, b"connection", b"upgrade");
        if let Some(protocol) = head.fields.get(b"upgrade") {
            write_field(out, b"upgrade", protocol);
        }
        out.extend_from_slice(b"\r\n");
        self.worker.counters.tunnels.add(1);
        let idle = self.worker.idle_limits;
        if let Err(error) = tunnel(&mut down.conn, &mut up.conn, &mut down.account, idle, timer).await {
            tracing::debug!(%error, "tunnel broken off");
        }
        Completion::Broken
    }

    /// What the client is told of a refusal; nothing when it cannot be told anything.
    fn reply_to(&self, refusal: NoResponse) -> Option<LocalReply> {
        Some(match refusal {
            NoResponse::NoEndpoint => {
                self.service.counters.no_endpoint.add(1);
                LocalReply::new(503, "no cluster can take this request now").with("retry-after", "1")
            }
            NoResponse::NoConnection => {
                LocalReply::new(503, "this edge has no connection left for it").with("retry-after", "1")
            }
            NoResponse::Failed(Failure::NoAnswer | Failure::ConnectTimeout) => {
                LocalReply::new(504, "no answer from the cluster")
            }
            NoResponse::Failed(failure) => LocalReply::new(502, format!("the cluster failed: {failure}")),
            NoResponse::SlowClient => LocalReply::new(408, "the request's body took too long"),
            NoResponse::Deadline => LocalReply::new(504, "no answer within the service's timeout"),
            NoResponse::Unrepresentable => {
                self.worker.counters.refused.count(RefusalReason::Target);
                LocalReply::new(400, "malformed request target or host")
            }
            NoResponse::Client(BodyError::TooLarge) => too_large(self.service.max_request_body.unwrap_or(0)),
            NoResponse::Client(BodyError::Malformed(error)) => {
                self.worker.counters.refused.count(RefusalReason::Body);
                LocalReply::new(400, error.to_string())
            }
            NoResponse::Client(BodyError::Io(_) | BodyError::Http2(_)) => {
                self.service.counters.client_gone.add(1);
                return None;
            }
        })
    }
}

fn too_large(most: u64) -> LocalReply {
    LocalReply::new(413, format!("the request's body is larger than {most} bytes"))
}

/// Gives an answer of our own, within the time that a client may take nothing.
pub async fn send_local_reply(
    down: &mut Downstream,
    reply: &LocalReply,
    request_id: &[u8],
    stall: Duration,
    timer: &mut Timer,
) -> Completion {
    if down.reply(reply, request_id).is_err() {
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

/// What a request wants its connection to become.
fn upgrade_of<'a>(request: &'a Request, framing: Framing, down: &Downstream) -> Option<&'a [u8]> {
    let asks = matches!(down, Downstream::Http1(down) if !down.is_http10)
        && framing == Framing::Empty
        && request.method == Method::Get
        && request.fields.get_all(b"connection").any(|value| list_contains(value, b"upgrade"));
    let protocol = request.fields.get(b"upgrade").filter(|_| asks)?;
    // An upgrade to HTTP/2 is between us and the client, and obsolete (RFC 9113, section 3.1).
    (!list_contains(protocol, b"h2c")).then_some(protocol)
}

/// The longest id of a client that is passed on.
const ID_LIMIT: usize = 128;

/// The request's own id, or a new one when it has none that is short and plain.
fn request_id<'a>(request: &'a Request, buffer: &'a mut [u8; 32], worker: &WorkerContext) -> &'a [u8] {
    if let Some(id) = request.fields.get(b"x-request-id")
        && (1..=ID_LIMIT).contains(&id.len())
        && id.iter().all(u8::is_ascii_graphic)
    {
        return id;
    }
    let bytes: [u8; 16] = worker.random.borrow_mut().random();
    for (digits, byte) in buffer.chunks_exact_mut(2).zip(bytes) {
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
        digits.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    buffer
}
