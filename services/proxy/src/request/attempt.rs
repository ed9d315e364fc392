//! One attempt of a request at one endpoint, until the head of its response.

use std::{cell::RefCell, future::poll_fn, task::Poll, time::Duration};

use tidegate_http1::{Framing, Response};
use tidegate_model::{fleet::UpstreamProtocol, observation::Failure};
use tokio::time::Instant;

use super::{
    context::RequestContext,
    discard::Discarding,
    heads::{self, ClientInfo},
    upload::{Cursor, Upload},
};
use crate::{
    context::WAIT_FOR_UPSTREAM,
    observe::TraceParentText,
    upstream::{
        ConnectError, Connected, Fault, Http2Conn, InFlight, Leader, Role, Sent, UpstreamStream, failure_of,
        failure_within_body,
    },
    wire::{BodyError, Chunk, Conn, Http2Writer, Turn as BodyTurn},
};

/// The most interim responses to one request, so that an endpoint cannot fill memory with them.
const MOST_INTERIM: u8 = 32;

/// An endpoint's answer, of which the head is here. It is large: whoever moves it on boxes it.
pub struct UpstreamResponse {
    /// The request at the endpoint.
    pub up: UpstreamStream,
    /// The head.
    pub head: Response,
    /// The first piece of the body, where it came with the head.
    pub first: Option<Chunk>,
    /// Counts the request as under way.
    pub flight: InFlight,
    /// How far the request's body was sent.
    pub cursor: Cursor,
    /// Whether the request had been sent whole when the head came.
    pub sent_whole: bool,
    /// The attempt's number in the request's log.
    pub attempt: usize,
}

impl UpstreamResponse {
    /// What it holds of the body.
    pub fn held(&mut self) -> usize {
        let first = match &self.first {
            Some(Chunk::Data(data)) => data.len(),
            Some(Chunk::End(_)) | None => 0,
        };
        self.up.held() + first
    }
}

/// Why an attempt has no response.
pub enum AttemptError {
    /// The endpoint failed.
    Endpoint {
        /// How.
        failure: Failure,
        /// Whether it may have acted on the request.
        sent: Sent,
        /// What it says of the endpoint.
        fault: Fault,
    },
    /// The client's body could not be read.
    Client(BodyError),
    /// The request has a target or host that HTTP/2 cannot say.
    Unrepresentable,
}

/// For how long after a piece of its body a request that cannot be sent again is left with a silent endpoint.
const TAKING: Duration = Duration::from_secs(1);

/// Where and how an attempt is made.
pub struct AttemptPlan {
    /// Counts it at its endpoint.
    pub flight: InFlight,
    /// Whether only a new connection will do.
    pub fresh: bool,
    /// Its number in the request's log.
    pub number: usize,
    /// Its span, where the request is traced.
    pub traceparent: Option<TraceParentText>,
}

/// Sends the request to the attempt's endpoint and waits for the head of the response.
pub async fn attempt(
    x: &RequestContext<'_>,
    this: AttemptPlan,
    upload: &RefCell<Upload<'_>>,
) -> Result<Box<UpstreamResponse>, AttemptError> {
    let AttemptPlan { flight, number, fresh, traceparent } = this;
    // HTTP/2 has no upgrade: such a cluster is asked without, which any upgrade allows (RFC 9110, section 7.8).
    let upgrade = x.info.upgrade.filter(|_| flight.cluster.upstream.protocol != UpstreamProtocol::Http2);
    let mut info = ClientInfo { traceparent, upgrade, ..x.info };
    // An endpoint that was silent already is asked as a last resort, and may prove the verdict wrong.
    let was_unreachable = flight.endpoint.is_unreachable(x.service.check);
    flight.cluster.counters.attempts.add(1);
    let up = open(x, &mut info, &flight, fresh, upload).await?;
    let mut discarding = Discarding::new(x.worker, &x.request.method, up, flight);
    let mut head = Response::default();
    let mut first = None;
    let mut cursor = Cursor::default();
    let mut broken = false;
    let mut interim = 0_u8;
    let ended = poll_fn(|cx| {
        let (up, flight) = discarding.parts();
        loop {
            if let Poll::Ready(Err(error)) = poll_upload(up, flight, upload, &mut cursor, &mut broken, cx) {
                return Poll::Ready(Err(AttemptError::Client(error)));
            }
            match up.poll_head(&x.request.method, &mut head, cx) {
                Poll::Ready(Ok(())) => match head.status {
                    100..200 if head.status != 101 && interim == MOST_INTERIM => {
                        return Poll::Ready(Err(endpoint_error(up, Failure::BadAnswer, Sent::Maybe)));
                    }
                    100 => {
                        interim += 1;
                        upload.borrow_mut().let_continue();
                    }
                    101 if info.upgrade.is_some() => return Poll::Ready(Ok(())),
                    101 => return Poll::Ready(Err(endpoint_error(up, Failure::BadAnswer, Sent::Maybe))),
                    102..200 => {
                        interim += 1;
                        let mut upload = upload.borrow_mut();
                        upload.down.send_interim(head.status, &head.fields);
                        // What is not taken at once goes out with what follows; a client that is gone is noticed there.
                        _ = upload.down.poll_flush(cx);
                    }
                    // A body that fails at once is found while the client knows nothing yet, so that it can be asked elsewhere.
                    _ => match up.poll_body(cx) {
                        Poll::Ready(Ok(chunk)) => {
                            first = Some(chunk);
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
        if !was_unreachable && flight.endpoint.is_unreachable(x.service.check) && !is_taking(&upload.borrow())
        {
            return Poll::Ready(Err(endpoint_error(up, Failure::NoAnswer, up.sent())));
        }
        flight.wake_when_unreachable(cx);
        upload.borrow_mut().down.hold_buffers(up.held() + x.fallback_held.get());
        let is_sent = cursor.ended && !broken && up.is_flushed();
        discarding.is_sent = is_sent;
        Poll::Pending
    })
    .await;
    let (up, flight) = discarding.take();
    flight.stop_waiting();
    match ended {
        Ok(()) => {
            let sent_whole = cursor.ended && !broken && up.is_flushed();
            Ok(Box::new(UpstreamResponse { up, head, first, flight, cursor, sent_whole, attempt: number }))
        }
        Err(error) => {
            // What failed this request and all others will not serve the next one.
            if let UpstreamStream::Http2(up) = &up
                && up.conn_failed()
            {
                flight.endpoint.pool.remove_http2(&up.conn);
            }
            Err(error)
        }
    }
}

/// Whether the endpoint took much of a body, and that a moment ago: then it is busy, whatever its probes say, and the
/// request could not be sent to another one. The service's timeout still ends it.
fn is_taking(upload: &Upload<'_>) -> bool {
    !upload.can_replay() && upload.progress_at.elapsed() < TAKING
}

fn endpoint_error(up: &UpstreamStream, failure: Failure, sent: Sent) -> AttemptError {
    let fault = match up {
        UpstreamStream::Http1(up) if up.is_stale() && failure == Failure::Reset => Fault::StaleConnection,
        UpstreamStream::Http2(up) if up.went_away() => Fault::GoAway,
        UpstreamStream::Http1(_) | UpstreamStream::Http2(_) => Fault::Endpoint,
    };
    AttemptError::Endpoint { failure, sent, fault }
}

/// Moves the request's body on. When the endpoint takes no more of it, `broken` is set: it may still answer.
pub fn poll_upload(
    up: &mut UpstreamStream,
    flight: &InFlight,
    upload: &RefCell<Upload<'_>>,
    cursor: &mut Cursor,
    broken: &mut bool,
    cx: &mut std::task::Context<'_>,
) -> Poll<Result<(), BodyError>> {
    let mut turn = BodyTurn::new();
    while !cursor.ended && !*broken && turn.goes_on(cx) {
        match up.poll_room(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => *broken = true,
            Poll::Pending => break,
        }
        match upload.borrow_mut().poll_next(cursor, cx) {
            Poll::Ready(Ok(chunk)) => *broken |= up.push(chunk).is_err(),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => break,
        }
    }
    let flushed = if *broken { Poll::Ready(Ok(())) } else { up.poll_flush(cx) };
    *broken |= matches!(flushed, Poll::Ready(Err(_)));
    let upload = upload.borrow();
    if *broken {
        // Whatever the client still sends is not waited for.
        upload.end_client_wait();
    }
    flight.update_client_wait(upload.down.account().pace());
    if *broken {
        return Poll::Ready(Ok(()));
    }
    if flushed.is_pending() || !cursor.ended {
        return Poll::Pending;
    }
    up.release_buffers();
    Poll::Ready(Ok(()))
}

/// A connection with the request's head on its way. Where the upgrade that it asks for cannot be had, `info` is
/// without it afterwards.
async fn open(
    x: &RequestContext<'_>,
    info: &mut ClientInfo<'_>,
    flight: &InFlight,
    fresh: bool,
    upload: &RefCell<Upload<'_>>,
) -> Result<UpstreamStream, AttemptError> {
    let (cluster, endpoint) = (&flight.cluster, &flight.endpoint);
    let unsent =
        |ConnectError { failure, fault }| AttemptError::Endpoint { failure, sent: Sent::Nothing, fault };
    if !fresh {
        if x.worker.may_take_upstream(flight.client())
            && let Some(conn) = endpoint.pool.take(Instant::now(), !x.repeatable)
        {
            return Ok(start_http1(x, *info, (conn, true), flight, upload));
        }
        if cluster.upstream.protocol != UpstreamProtocol::Http1
            && info.upgrade.is_none()
            && let Some(conn) = endpoint.pool.http2()
        {
            match start_http2(x, *info, conn, flight, upload).await {
                Err(AttemptError::Endpoint { sent: Sent::Nothing, .. }) => {}
                started => return started,
            }
        }
    }
    // A connection of its own cannot have been ended before it took this request.
    let leader = loop {
        match turn(x, fresh || info.upgrade.is_some(), flight).await.map_err(unsent)? {
            Taken::Turn(leader) => break leader,
            // One that takes no streams any more is out of the pool by now, and somebody makes another.
            Taken::Conn(conn) => match start_http2(x, *info, conn, flight, upload).await {
                Err(AttemptError::Endpoint { sent: Sent::Nothing, .. }) => {}
                started => return started,
            },
        }
    };
    let connected = match connect_unless_unreachable(x, info.upgrade.is_some(), flight, leader).await {
        // It may speak HTTP/2 alone, which was not offered: no reason to hold anything against it.
        Err(ConnectError { failure: Failure::Tls, .. })
            if info.upgrade.is_some() && cluster.upstream.protocol == UpstreamProtocol::Auto =>
        {
            info.upgrade = None;
            connect_unless_unreachable(x, false, flight, None).await
        }
        connected => connected,
    };
    match connected.map_err(unsent)? {
        Connected::Http1(conn) => Ok(start_http1(x, *info, (conn, false), flight, upload)),
        Connected::Http2(conn) => start_http2(x, *info, conn, flight, upload).await,
    }
}

/// What comes of a turn to connect.
enum Taken {
    /// Another's connection has room.
    Conn(Http2Conn),
    /// To connect, for all that wait where connections are shared.
    Turn(Option<Leader>),
}

/// Waits for a connection that another request makes, where it can take this one, or for the turn to make one: at once
/// where it must be for this request `alone`.
async fn turn(x: &RequestContext<'_>, alone: bool, flight: &InFlight) -> Result<Taken, ConnectError> {
    let (upstream, pool) = (&flight.cluster.upstream, &flight.endpoint.pool);
    let may_share = match upstream.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Auto => upstream.tls.is_some(),
        UpstreamProtocol::Http2 => true,
    };
    if !may_share || alone {
        return Ok(Taken::Turn(None));
    }
    loop {
        // Who may have no connection must not make one for all: their requests would fail with it.
        if !x.worker.may_take_upstream(flight.client()) {
            return Ok(Taken::Turn(None));
        }
        let waiter = match pool.single_flight.join() {
            None => return Ok(Taken::Turn(None)),
            Some(Role::Leader(leader)) => return Ok(Taken::Turn(Some(leader))),
            Some(Role::Waiter(waiter)) => waiter,
        };
        // As long as it may take whoever makes it.
        let waiting = tokio::time::timeout(upstream.connect_timeout + WAIT_FOR_UPSTREAM, waiter.wait());
        let waited = unless_unreachable(x, flight, Box::pin(waiting)).await?;
        match waited.unwrap_or_else(|_| Err(Failure::ConnectTimeout.into())) {
            // That another client may have none says nothing of this one.
            Ok(()) | Err(ConnectError { fault: Fault::LocalResources, .. }) => {}
            Err(failed) => return Err(failed),
        }
        if let Some(conn) = pool.http2() {
            return Ok(Taken::Conn(conn));
        }
    }
}

/// Connects, unless the verdict comes meanwhile that the endpoint is silent.
async fn connect_unless_unreachable(
    x: &RequestContext<'_>,
    http1_only: bool,
    flight: &InFlight,
    leader: Option<Leader>,
) -> Result<Connected, ConnectError> {
    // Boxed, because it is large and seldom needed: every request's future would be that much larger.
    let connecting = Box::pin(async {
        // Outside of the timeout: that this machine has none left says nothing of the endpoint.
        let claimed = x.worker.claim_upstream(flight).await;
        x.worker.connector.connect(flight, claimed, http1_only, leader).await
    });
    unless_unreachable(x, flight, connecting).await?
}

/// What comes of `future`, unless the verdict comes meanwhile that the endpoint is silent and there is another.
async fn unless_unreachable<T>(
    x: &RequestContext<'_>,
    flight: &InFlight,
    future: impl Future<Output = T> + Unpin,
) -> Result<T, ConnectError> {
    let endpoint = &flight.endpoint;
    let silent = poll_fn(|cx| {
        flight.wake_when_unreachable(cx);
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
    flight: &InFlight,
    upload: &RefCell<Upload<'_>>,
) -> UpstreamStream {
    flight.take_connection();
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
    flight: &InFlight,
    upload: &RefCell<Upload<'_>>,
) -> Result<UpstreamStream, AttemptError> {
    let failed = |error: &h2::Error| {
        flight.endpoint.pool.remove_http2(&conn);
        let (failure, _) = failure_of(error);
        AttemptError::Endpoint { failure, sent: Sent::Nothing, fault: Fault::Endpoint }
    };
    let is_tls = flight.cluster.upstream.tls.is_some();
    let expects_continue = upload.borrow().expects_continue();
    let head = heads::http2_request(x.request, info, x.framing, is_tls, expects_continue)
        .ok_or(AttemptError::Unrepresentable)?;
    let counted = conn.begin();
    let mut send = conn.send.clone().ready().await.map_err(|error| failed(&error))?;
    let bodiless = x.framing == Framing::Empty;
    let (response, stream) = send.send_request(head, bodiless).map_err(|error| failed(&error))?;
    let writer = (!bodiless).then(|| Http2Writer::new(stream));
    Ok(UpstreamStream::http2(conn, counted, response, writer))
}
