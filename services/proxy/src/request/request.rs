//! One request from its head to the end of its response.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use rand::RngExt as _;
use tidegate_http1::{Framing, Method, Request, Version, list_contains};
use tokio::time::Instant;

use super::{
    attempts::first_response,
    client_stream::ClientStream,
    debug,
    heads::ClientInfo,
    health,
    local_reply::LocalReply,
    reply::{Completion, send_local_reply},
    request_context::RequestContext,
    upload::Upload,
};
use crate::{
    clients::Client, observe::Interruption, table::ServiceView, wire::Timer, worker_context::WorkerContext,
};

/// Serves one request: matches its route, admits it, attempts it at endpoints until one responds, and relays the
/// response.
pub async fn handle(
    worker: &Rc<WorkerContext>,
    client: Client,
    request: &Request,
    framing: Framing,
    down: &mut ClientStream,
    timer: &mut Timer,
) -> Completion {
    let started = Instant::now();
    down.account_buffers(0);
    let mut id = [0; 32];
    let request_id = request_id(request, &mut id, worker);
    let (service, action) = match match_route(worker, client, request, down) {
        Ok(routed) => routed,
        Err(Unrouted { mut reply, is_observed }) => {
            if debug::is_asked(client, request) {
                debug::add_fields(&mut reply.fields, &worker.edge, None, started);
            }
            let completion = send_local_reply(down, &reply, request_id, client.stall, timer).await;
            if is_observed {
                worker.observer.report_local_reply(
                    client,
                    request,
                    request_id,
                    reply.status,
                    started.elapsed(),
                );
            }
            return completion;
        }
    };
    let x = RequestContext::new(
        worker,
        (&service, action),
        client,
        (request, framing),
        request_id,
        down,
        started,
    );
    let completion = match x.refuse_request() {
        Some(reply) => x.send_reply(&reply, down, timer).await,
        None => {
            let upload = Upload::new(down, expects_continue(request), service.max_request_body, started);
            let upload = RefCell::new(upload);
            match first_response(&x, &upload, timer).await {
                Ok(response) => x.relay(response, upload, timer).await,
                Err(failure) => {
                    let upload = upload.into_inner();
                    x.log.borrow_mut().received = upload.received();
                    match x.reply_to(failure) {
                        Some(reply) => x.send_reply(&reply, upload.down, timer).await,
                        None => x.interrupt(Interruption::ClientGone, upload.down),
                    }
                }
            }
        }
    };
    worker.counters.dropped_fields.add_if_any(down.dropped_trailers());
    x.finish(Instant::now());
    completion
}

/// The local reply to a request without a service.
struct Unrouted {
    reply: LocalReply,
    /// Whether it is counted and logged: health requests of load balancers are not.
    is_observed: bool,
}

/// Matches a request to its service and the index of its action.
fn match_route(
    worker: &WorkerContext,
    client: Client,
    request: &Request,
    down: &ClientStream,
) -> Result<(Rc<ServiceView>, usize), Unrouted> {
    if let Some(reply) = health::local_reply(worker, client.health_endpoints, &request.target) {
        return Err(Unrouted { reply, is_observed: false });
    }
    if !down.account().serves_host(&request.host) {
        worker.counters.misdirected.add(1);
        let reply = LocalReply::new(421, "this connection's certificate is not for this host");
        return Err(Unrouted { reply, is_observed: true });
    }
    worker.table.borrow().match_request(request).ok_or_else(|| {
        worker.counters.unrouted.add(1);
        let reply = LocalReply::new(404, format!("no service here for host {:?}", request.host));
        Unrouted { reply, is_observed: true }
    })
}

/// Whether the client waits for `100 Continue`, which HTTP/1.0 does not have (RFC 9110, section 10.1.1).
fn expects_continue(request: &Request) -> bool {
    let expects =
        || request.fields.get(b"expect").is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    request.version == Version::Http11 && expects()
}

impl<'a> RequestContext<'a> {
    fn new(
        worker: &'a Rc<WorkerContext>,
        (service, action): (&'a ServiceView, usize),
        client: Client,
        (request, framing): (&'a Request, Framing),
        request_id: &'a [u8],
        down: &ClientStream,
        started: Instant,
    ) -> RequestContext<'a> {
        let action = &service.actions[action];
        service.counters.requests.add(1);
        action.demand.add(1);
        action.budget.deposit();
        let trace = worker.observer.sample(request, &mut *worker.random.borrow_mut());
        RequestContext {
            worker,
            service,
            action,
            policy: &action.policy,
            request,
            client,
            info: ClientInfo {
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
            fallback_buffered: Cell::new(0),
        }
    }
}

/// The protocol that a request asks to upgrade to.
fn upgrade_of<'a>(request: &'a Request, framing: Framing, down: &ClientStream) -> Option<&'a [u8]> {
    let asks = matches!(down, ClientStream::Http1(down) if !down.is_http10)
        && framing == Framing::Empty
        && request.method == Method::Get
        && request.fields.get_all(b"connection").any(|value| list_contains(value, b"upgrade"));
    let protocol = request.fields.get(b"upgrade").filter(|_| asks)?;
    // An upgrade to HTTP/2 would only concern the client's connection, and is obsolete (RFC 9113, section 3.1).
    (!list_contains(protocol, b"h2c")).then_some(protocol)
}

/// The longest request id of a client that is forwarded.
const ID_LIMIT: usize = 128;

/// The client's request id, or a new one if it has none that is short and printable.
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
