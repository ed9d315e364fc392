//! One attempt of a request at an endpoint, up to the head of the response.

use std::{cell::RefCell, future::poll_fn, task::Poll, time::Duration};

use tidegate_http1::{Framing, Response};
use tidegate_model::{fleet::UpstreamProtocol, observation::Failure};
use tokio::time::Instant;

use super::{
    discard::DiscardGuard,
    heads::{self, ClientInfo},
    request_context::RequestContext,
    upload::{Cursor, Upload},
    upstream_response::UpstreamResponse,
};
use crate::{
    observe::TraceParentText,
    upstream::{
        ConnectError, Connected, Fault, Http2Conn, InFlightRequest, Leader, Role, Sent, UpstreamStream,
        failure_of, failure_within_body,
    },
    wire::{BodyError, Conn, CoopBudget, Http2Writer},
    worker_context::WAIT_FOR_UPSTREAM,
};

/// The maximum number of interim responses to one request, so that an endpoint cannot fill memory with them.
const MAX_INTERIM: u8 = 32;

/// Why an attempt has no response.
pub enum AttemptError {
    /// The endpoint failed.
    Endpoint {
        /// How it failed.
        failure: Failure,
        /// Whether it may have acted on the request.
        sent: Sent,
        /// The cause.
        fault: Fault,
    },
    /// The client's body could not be read.
    Client(BodyError),
    /// The request has a target or host that HTTP/2 cannot represent.
    Unrepresentable,
}

/// How long after its last body data a request that cannot be retried stays at an unreachable endpoint.
const UPLOAD_ACTIVE: Duration = Duration::from_secs(1);

/// The plan of an attempt.
pub struct AttemptPlan {
    /// Counts the request in flight at the chosen endpoint.
    pub in_flight: InFlightRequest,
    /// Whether it must use a new connection.
    pub fresh: bool,
    /// Its number in the request's log.
    pub number: usize,
    /// The trace context of its span, if the request is traced.
    pub traceparent: Option<TraceParentText>,
}

/// Sends the request to the attempt's endpoint and waits for the head of the response.
pub async fn run_attempt(
    x: &RequestContext<'_>,
    plan: AttemptPlan,
    upload: &RefCell<Upload<'_>>,
) -> Result<Box<UpstreamResponse>, AttemptError> {
    let AttemptPlan { in_flight, number, fresh, traceparent } = plan;
    // HTTP/2 has no upgrade, so the request is sent without, which is always allowed (RFC 9110, section 7.8).
    let upgrade = x.info.upgrade.filter(|_| in_flight.cluster.upstream.protocol != UpstreamProtocol::Http2);
    let mut info = ClientInfo { traceparent, upgrade, ..x.info };
    // An endpoint that was unreachable from the start is a last resort, and may prove the verdict wrong.
    let was_unreachable = in_flight.endpoint.is_unreachable(x.service.check);
    in_flight.cluster.counters.attempts.add(1);
    let began = x.log.borrow().attempt(number).began;
    let up = start_stream(x, &mut info, &in_flight, (began, fresh), upload).await?;
    let response = Box::new(UpstreamResponse {
        up,
        head: Response::default(),
        first: None,
        in_flight,
        cursor: Cursor::default(),
        sent_whole: false,
        attempt: number,
    });
    let mut discarding = DiscardGuard::new(x.worker, &x.request.method, response);
    let mut upload_abandoned = false;
    let mut interim = 0_u8;
    let ended = poll_fn(|cx| {
        let UpstreamResponse { up, head, first, in_flight, cursor, sent_whole, .. } = discarding.response();
        loop {
            if let Poll::Ready(Err(error)) =
                poll_upload(up, in_flight, upload, cursor, &mut upload_abandoned, cx)
            {
                return Poll::Ready(Err(AttemptError::Client(error)));
            }
            match up.poll_head(&x.request.method, head, cx) {
                Poll::Ready(Ok(())) => match head.status {
                    100..200 if head.status != 101 && interim == MAX_INTERIM => {
                        return Poll::Ready(Err(endpoint_error(up, Failure::BadResponse, Sent::Maybe)));
                    }
                    100 => {
                        interim += 1;
                        upload.borrow_mut().send_continue();
                    }
                    101 if info.upgrade.is_some() => return Poll::Ready(Ok(())),
                    101 => return Poll::Ready(Err(endpoint_error(up, Failure::BadResponse, Sent::Maybe))),
                    102..200 => {
                        interim += 1;
                        let mut upload = upload.borrow_mut();
                        upload.down.send_interim(head.status, &head.fields);
                        // What is not written now goes out with the response; a closed connection is noticed there.
                        _ = upload.down.poll_flush(cx);
                    }
                    // A body that fails at once is detected before the client received anything, so that the request
                    // can be retried.
                    _ => match up.poll_body(cx) {
                        Poll::Ready(Ok(chunk)) => {
                            *first = Some(chunk);
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Err(endpoint_error(
                                up,
                                failure_within_body(&error),
                                Sent::Maybe,
                            )));
                        }
                        Poll::Pending => return Poll::Ready(Ok(())),
                    },
                },
                Poll::Ready(Err((failure, sent))) => {
                    return Poll::Ready(Err(endpoint_error(up, failure, sent)));
                }
                Poll::Pending => break,
            }
        }
        if !was_unreachable
            && in_flight.endpoint.is_unreachable(x.service.check)
            && !is_upload_active(&upload.borrow())
        {
            return Poll::Ready(Err(endpoint_error(up, Failure::NoResponse, up.sent())));
        }
        in_flight.wake_when_unreachable(cx);
        upload.borrow_mut().down.account_buffers(up.buffered() + x.fallback_buffered.get());
        *sent_whole = cursor.ended && !upload_abandoned && up.is_flushed();
        Poll::Pending
    })
    .await;
    let mut response = discarding.disarm();
    response.in_flight.stop_waiting();
    match ended {
        Ok(()) => {
            response.sent_whole = response.cursor.ended && !upload_abandoned && response.up.is_flushed();
            Ok(response)
        }
        Err(error) => {
            // A failed connection must not get the next request.
            if let UpstreamStream::Http2(up) = &response.up
                && up.conn_failed()
            {
                response.in_flight.endpoint.pool.remove_http2(&up.conn);
            }
            Err(error)
        }
    }
}

/// Whether the endpoint has just read part of a body that is too large for a retry. Then it is alive, whatever the
/// probes report. The service's timeout still applies.
fn is_upload_active(upload: &Upload<'_>) -> bool {
    !upload.can_replay() && upload.progress_at.elapsed() < UPLOAD_ACTIVE
}

fn endpoint_error(up: &UpstreamStream, failure: Failure, sent: Sent) -> AttemptError {
    let fault = match up {
        UpstreamStream::Http1(up) if up.is_stale() && failure == Failure::Reset => Fault::StaleConnection,
        UpstreamStream::Http2(up) if up.went_away() => Fault::GoAway,
        UpstreamStream::Http1(_) | UpstreamStream::Http2(_) => Fault::Endpoint,
    };
    AttemptError::Endpoint { failure, sent, fault }
}

/// Sends more of the request's body. `upload_abandoned` is set when the endpoint accepts no more of it: it may still respond.
pub fn poll_upload(
    up: &mut UpstreamStream,
    in_flight: &InFlightRequest,
    upload: &RefCell<Upload<'_>>,
    cursor: &mut Cursor,
    upload_abandoned: &mut bool,
    cx: &mut std::task::Context<'_>,
) -> Poll<Result<(), BodyError>> {
    let mut budget = CoopBudget::new();
    while !cursor.ended && !*upload_abandoned && budget.spend_or_wake(cx) {
        match up.poll_room(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => *upload_abandoned = true,
            Poll::Pending => break,
        }
        match upload.borrow_mut().poll_next(cursor, cx) {
            Poll::Ready(Ok(chunk)) => *upload_abandoned |= up.push(chunk).is_err(),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => break,
        }
    }
    let flushed = if *upload_abandoned { Poll::Ready(Ok(())) } else { up.poll_flush(cx) };
    *upload_abandoned |= matches!(flushed, Poll::Ready(Err(_)));
    let upload = upload.borrow();
    if *upload_abandoned {
        // The rest of the body is not needed.
        upload.end_client_wait();
    }
    in_flight.update_client_wait(upload.down.account().stall_budget());
    if *upload_abandoned {
        return Poll::Ready(Ok(()));
    }
    if flushed.is_pending() || !cursor.ended {
        return Poll::Pending;
    }
    up.release_buffers();
    Poll::Ready(Ok(()))
}

/// Gets a connection and sends the request's head. If the requested upgrade is impossible, it is removed from `info`.
async fn start_stream(
    x: &RequestContext<'_>,
    info: &mut ClientInfo<'_>,
    in_flight: &InFlightRequest,
    (began, fresh): (Instant, bool),
    upload: &RefCell<Upload<'_>>,
) -> Result<UpstreamStream, AttemptError> {
    let (cluster, endpoint) = (&in_flight.cluster, &in_flight.endpoint);
    let unsent =
        |ConnectError { failure, fault }| AttemptError::Endpoint { failure, sent: Sent::Nothing, fault };
    if !fresh {
        if x.worker.may_take_upstream(in_flight.client())
            && let Some(conn) = endpoint.pool.take(began, !x.repeatable)
        {
            return Ok(start_http1(x, *info, (conn, true), in_flight, upload));
        }
        if cluster.upstream.protocol != UpstreamProtocol::Http1
            && info.upgrade.is_none()
            && let Some(conn) = endpoint.pool.http2()
        {
            match start_http2(x, *info, conn, in_flight, upload).await {
                Err(AttemptError::Endpoint { sent: Sent::Nothing, .. }) => {}
                started => return started,
            }
        }
    }
    // A new connection cannot have been closed as idle.
    let leader = loop {
        match join_single_flight(x, fresh || info.upgrade.is_some(), in_flight).await.map_err(unsent)? {
            ConnectPlan::Connect(leader) => break leader,
            // A connection that takes no more streams is out of the pool by now, and another one is opened.
            ConnectPlan::Shared(conn) => match start_http2(x, *info, conn, in_flight, upload).await {
                Err(AttemptError::Endpoint { sent: Sent::Nothing, .. }) => {}
                started => return started,
            },
        }
    };
    let connected = match connect_unless_unreachable(x, info.upgrade.is_some(), in_flight, leader).await {
        // The endpoint may only support HTTP/2, which was not offered: not a failure.
        Err(ConnectError { failure: Failure::Tls, .. })
            if info.upgrade.is_some() && cluster.upstream.protocol == UpstreamProtocol::Auto =>
        {
            info.upgrade = None;
            connect_unless_unreachable(x, false, in_flight, None).await
        }
        connected => connected,
    };
    match connected.map_err(unsent)? {
        Connected::Http1(conn) => Ok(start_http1(x, *info, (conn, false), in_flight, upload)),
        Connected::Http2(conn) => start_http2(x, *info, conn, in_flight, upload).await,
    }
}

/// How a request gets its connection.
enum ConnectPlan {
    /// Use a shared connection.
    Shared(Http2Conn),
    /// Open a connection, for all waiters if connections are shared.
    Connect(Option<Leader>),
}

/// Joins the single flight of the endpoint: waits for the connection that another request opens, or opens one. A
/// request that needs one `alone` opens it at once.
async fn join_single_flight(
    x: &RequestContext<'_>,
    alone: bool,
    in_flight: &InFlightRequest,
) -> Result<ConnectPlan, ConnectError> {
    let (upstream, pool) = (&in_flight.cluster.upstream, &in_flight.endpoint.pool);
    let may_share = match upstream.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Auto => upstream.tls.is_some(),
        UpstreamProtocol::Http2 => true,
    };
    if !may_share || alone {
        return Ok(ConnectPlan::Connect(None));
    }
    loop {
        // A request without quota must not lead: the requests of its waiters would fail with it.
        if !x.worker.may_take_upstream(in_flight.client()) {
            return Ok(ConnectPlan::Connect(None));
        }
        let waiter = match pool.single_flight.join() {
            None => return Ok(ConnectPlan::Connect(None)),
            Some(Role::Leader(leader)) => return Ok(ConnectPlan::Connect(Some(leader))),
            Some(Role::Waiter(waiter)) => waiter,
        };
        // As long as the leader may take.
        let waiting = tokio::time::timeout(upstream.connect_timeout + WAIT_FOR_UPSTREAM, waiter.wait());
        let waited = unless_unreachable(x, in_flight, Box::pin(waiting)).await?;
        match waited.unwrap_or_else(|_| Err(Failure::ConnectTimeout.into())) {
            // Another client's exhausted quota does not concern this one.
            Ok(()) | Err(ConnectError { fault: Fault::LocalResources, .. }) => {}
            Err(failed) => return Err(failed),
        }
        if let Some(conn) = pool.http2() {
            return Ok(ConnectPlan::Shared(conn));
        }
    }
}

/// Connects, unless the endpoint becomes unreachable meanwhile.
async fn connect_unless_unreachable(
    x: &RequestContext<'_>,
    http1_only: bool,
    in_flight: &InFlightRequest,
    leader: Option<Leader>,
) -> Result<Connected, ConnectError> {
    // Boxed, because it is large and rare: it would enlarge the future of every request.
    let connecting = Box::pin(async {
        // Outside of the timeout: a local shortage is not the endpoint's failure.
        let claimed = x.worker.claim_upstream(in_flight).await;
        x.worker.connector.connect(in_flight, claimed, http1_only, leader).await
    });
    unless_unreachable(x, in_flight, connecting).await?
}

/// The output of `future`, or an error if the endpoint becomes unreachable meanwhile and there is another one.
async fn unless_unreachable<T>(
    x: &RequestContext<'_>,
    in_flight: &InFlightRequest,
    future: impl Future<Output = T> + Unpin,
) -> Result<T, ConnectError> {
    let endpoint = &in_flight.endpoint;
    let silent = poll_fn(|cx| {
        in_flight.wake_when_unreachable(cx);
        if endpoint.is_unreachable(x.service.check) { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = silent, if x.has_elsewhere && !endpoint.is_unreachable(x.service.check) => Err(Failure::ConnectTimeout.into()),
    }
}

fn start_http1(
    x: &RequestContext<'_>,
    info: ClientInfo<'_>,
    (mut conn, reused): (Conn, bool),
    in_flight: &InFlightRequest,
    upload: &RefCell<Upload<'_>>,
) -> UpstreamStream {
    in_flight.take_connection();
    let expects_continue = upload.borrow().expects_continue();
    let before = conn.total_written();
    let writer = heads::write_http1_request(conn.out(), x.request, info, x.framing, expects_continue);
    debug_assert_eq!(before, conn.total_written(), "a head is only queued here");
    UpstreamStream::http1(conn, reused, writer)
}

async fn start_http2(
    x: &RequestContext<'_>,
    info: ClientInfo<'_>,
    conn: Http2Conn,
    in_flight: &InFlightRequest,
    upload: &RefCell<Upload<'_>>,
) -> Result<UpstreamStream, AttemptError> {
    let failed = |error: &h2::Error| {
        in_flight.endpoint.pool.remove_http2(&conn);
        let (failure, _) = failure_of(error);
        AttemptError::Endpoint { failure, sent: Sent::Nothing, fault: Fault::Endpoint }
    };
    let is_tls = in_flight.cluster.upstream.tls.is_some();
    let expects_continue = upload.borrow().expects_continue();
    let head = heads::http2_request(x.request, info, x.framing, is_tls, expects_continue)
        .ok_or(AttemptError::Unrepresentable)?;
    let counted = conn.open_stream();
    let mut send = conn.send.clone().ready().await.map_err(|error| failed(&error))?;
    let bodiless = x.framing == Framing::Empty;
    let (response, stream) = send.send_request(head, bodiless).map_err(|error| failed(&error))?;
    let writer = (!bodiless).then(|| Http2Writer::new(stream));
    Ok(UpstreamStream::http2(conn, counted, response, writer))
}
