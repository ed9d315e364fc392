//! A client's HTTP/1.1 connection.

use std::{future::poll_fn, rc::Rc, task::Poll, time::Duration};

use tidegate_http1::{
    Framing, Method, ParseError, Request, RequestRules, TrailerPolicy, Version, list_contains, parse_request,
};
use tidegate_model::fleet::ListenerLimits;
use tokio::time::Instant;

use super::{http2, open_connection::OpenConnection, rules::request_rules};
use crate::{
    clients::{Client, Eviction, MemoryUse},
    observe::MalformedRequest,
    request::{ClientStream, Completion, Http1ClientStream, LocalReply, handle, send_local_reply},
    wire::{BodyReader, BodyWriter, Conn, Io, Timer},
    worker_context::WorkerContext,
};

/// The connection preface of an HTTP/2 client with prior knowledge (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long, and for how many bytes, a closing connection is still read, so that the client gets the response instead
/// of a reset (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;

/// How long an idle connection is kept when draining begins: a request that is on its way still gets a response, with
/// `connection: close`.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// The outcome of waiting for a request head.
enum HeadWait {
    /// A request.
    Request(Framing),
    /// The client speaks HTTP/2.
    Http2,
    /// The connection is closed, idle for too long, or evicted.
    Closed,
    /// The head took too long; it began then.
    TooSlow(Instant),
    /// The head, which began then, is malformed.
    Refused(ParseError, Instant),
}

/// Serves a connection until it ends.
pub async fn serve(
    worker: Rc<WorkerContext>,
    io: Io,
    client: Client,
    limits: &ListenerLimits,
    open: &OpenConnection,
) {
    let mut timer = Timer::new();
    let mut request = Request::default();
    let mut down = ClientStream::Http1(Box::new(Http1ClientStream {
        conn: Conn::new(io, None),
        reader: BodyReader::new(Framing::Empty, TrailerPolicy::default()),
        writer: BodyWriter::Nothing,
        is_http10: false,
        keep_alive: true,
        is_head: false,
        account: open.open_account(),
    }));
    let rules = request_rules(limits, client.is_tls);
    // Registered now, even if the first request is already there.
    poll_fn(|cx| {
        open.wake_on_change(cx);
        Poll::Ready(())
    })
    .await;
    let mut is_first = true;
    loop {
        let ClientStream::Http1(http1) = &mut down else { return };
        let waited =
            wait_for_head(&worker, http1, &mut request, (limits, rules), &mut timer, open, is_first).await;
        is_first = false;
        let framing = match waited {
            HeadWait::Request(framing) => framing,
            HeadWait::Closed => return count_eviction(&worker, open),
            HeadWait::Http2 => {
                let (io, read) = {
                    let ClientStream::Http1(http1) = down else { return };
                    http1.conn.into_parts()
                };
                // Boxed like a request, below.
                return Box::pin(http2::serve(worker, io, read.freeze(), client, limits, open)).await;
            }
            HeadWait::TooSlow(since) => {
                worker.counters.too_slow.add(1);
                let reply = LocalReply::new(408, "the request head took too long");
                return Box::pin(refuse_request(&worker, client, down, &reply, since, &mut timer, open))
                    .await;
            }
            HeadWait::Refused(error, since) => {
                worker.counters.refused.count(error);
                let reply = LocalReply::new(error.status(), error.to_string());
                return Box::pin(refuse_request(&worker, client, down, &reply, since, &mut timer, open))
                    .await;
            }
        };
        worker.counters.dropped_fields.add_if_any(request.dropped_fields.into());
        http1.reader = BodyReader::new(framing, TrailerPolicy::Request(rules.underscores));
        http1.is_http10 = request.version == Version::Http10;
        http1.is_head = request.method == Method::Head;
        open.end_idle();
        http1.keep_alive = keeps_alive(&request) && !worker.is_draining() && open.eviction().is_none();
        // Boxed, so that an idle connection does not hold the memory of a request.
        let handled = Box::pin(handle(&worker, client, &request, framing, &mut down, &mut timer));
        let outcome = handled.await;
        let ClientStream::Http1(http1) = &mut down else { return };
        http1.account.clear();
        if outcome == Completion::Broken {
            return count_eviction(&worker, open);
        }
        if open.eviction() == Some(Eviction::Slow) {
            // Its file descriptor is needed now.
            return;
        }
        if !http1.keep_alive || !http1.reader.is_done() {
            return close_gracefully(down, &mut timer, open).await;
        }
    }
}

/// Counts a connection that was evicted to free memory.
fn count_eviction(worker: &WorkerContext, open: &OpenConnection) {
    if open.eviction() == Some(Eviction::Memory) {
        worker.counters.evicted_memory.add(1);
    }
}

/// Sends a local reply to a malformed request, and closes the connection.
async fn refuse_request(
    worker: &WorkerContext,
    client: Client,
    mut down: ClientStream,
    reply: &LocalReply,
    since: Instant,
    timer: &mut Timer,
    open: &OpenConnection,
) {
    let ClientStream::Http1(http1) = &mut down else { return };
    http1.keep_alive = false;
    let unread = MalformedRequest::of_http1(&http1.conn.read);
    send_local_reply(&mut down, reply, b"-", client.stall, timer).await;
    worker.observer.report_refusal(client, &unread, (reply.status, &reply.body), since.elapsed());
    close_gracefully(down, timer, open).await;
}

fn keeps_alive(request: &Request) -> bool {
    let says = |token| request.fields.get_all(b"connection").any(|value| list_contains(value, token));
    match request.version {
        Version::Http11 => !says(b"close"),
        Version::Http10 => says(b"keep-alive") && !says(b"close"),
    }
}

async fn wait_for_head(
    worker: &WorkerContext,
    http1: &mut Http1ClientStream,
    request: &mut Request,
    (limits, rules): (&ListenerLimits, RequestRules),
    timer: &mut Timer,
    open: &OpenConnection,
    is_first: bool,
) -> HeadWait {
    let Http1ClientStream { conn, account, .. } = http1;
    if conn.read.is_empty() {
        conn.release_buffers();
    }
    let idle_from = Instant::now();
    open.begin_idle(idle_from);
    // The timeout of a head counts from its first byte, not from when the connection became idle.
    let mut head_from = (!conn.read.is_empty() || is_first).then_some(idle_from);
    let mut unread = !conn.read.is_empty();
    poll_fn(|cx| {
        loop {
            if unread {
                let since = *head_from.get_or_insert_with(Instant::now);
                skip_blank_lines(conn);
                if is_first
                    && conn.read.starts_with(b"PRI")
                    && PREFACE.starts_with(&conn.read[..conn.read.len().min(PREFACE.len())])
                {
                    if conn.read.len() >= PREFACE.len() {
                        return Poll::Ready(HeadWait::Http2);
                    }
                } else {
                    match parse_request(&conn.read, rules, request) {
                        Ok(Some((length, framing))) => {
                            conn.advance(length);
                            account.set_memory(MemoryUse::Head, length);
                            return Poll::Ready(HeadWait::Request(framing));
                        }
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(HeadWait::Refused(error, since)),
                    }
                }
            }
            match conn.poll_fill(cx) {
                Poll::Ready(Ok(count)) if count > 0 => unread = true,
                Poll::Ready(_) => return Poll::Ready(HeadWait::Closed),
                Poll::Pending => break,
            }
        }
        open.wake_on_change(cx);
        account.set_memory(MemoryUse::Head, conn.read.len());
        if open.eviction().is_some() {
            return Poll::Ready(HeadWait::Closed);
        }
        let mut deadline =
            head_from.map_or(idle_from + limits.idle_timeout, |from| from + limits.head_timeout);
        if let Some(since) = worker.draining_since()
            && conn.read.is_empty()
        {
            deadline = deadline.min(since.max(idle_from) + LAST_CHANCE);
        }
        if timer.poll_until(deadline, cx).is_ready() {
            let is_idle = conn.read.is_empty();
            return Poll::Ready(match head_from {
                Some(since) if !is_idle => HeadWait::TooSlow(since),
                Some(_) | None => HeadWait::Closed,
            });
        }
        Poll::Pending
    })
    .await
}

/// Empty lines before a request are ignored (RFC 9112, section 2.2).
fn skip_blank_lines(conn: &mut Conn) {
    while conn.read.starts_with(b"\r\n") {
        conn.advance(2);
    }
}

/// Closes a connection so that the client receives all data, unless the file descriptor is needed now.
async fn close_gracefully(down: ClientStream, timer: &mut Timer, open: &OpenConnection) {
    let ClientStream::Http1(mut http1) = down else { return };
    let conn = &mut http1.conn;
    let deadline = Instant::now() + LINGER;
    let mut left = LINGER_BYTES;
    let mut is_shut = false;
    open.begin_idle(Instant::now());
    poll_fn(|cx| {
        if !is_shut {
            match conn.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => is_shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        loop {
            match conn.poll_fill(cx) {
                Poll::Ready(Ok(count)) if count > 0 && count <= left => {
                    left -= count;
                    conn.read.clear();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        if open.eviction().is_some() {
            return Poll::Ready(());
        }
        timer.poll_until(deadline, cx)
    })
    .await;
}
