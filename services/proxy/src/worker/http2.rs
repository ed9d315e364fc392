//! A client's HTTP/2 connection: each stream is a task.

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll};

use bytes::Bytes;
use tidegate_http1::RequestRules;
use tidegate_model::fleet::ListenerLimits;
use tokio::time::Instant;

use super::{Open, Worker, http1::request_rules, http2_request::begin};
use crate::{
    forward::{Client, answer_ourselves, handle},
    metrics::RefusalReason,
    wire::{Io, Timer, coalesce},
};

/// Streams that a client may have open at once, and what is kept of each answer for a client that does not read. With one
/// piece more that waits behind it (64 KiB at most), this bounds what a connection can hold to 12 MiB.
const STREAMS: u32 = 128;
const SEND_BUFFER: usize = 32 * 1024;
const _: () = assert!(STREAMS as usize * (SEND_BUFFER + 64 * 1024) <= 12 * 1024 * 1024);
/// What a client may send on a stream before it is read, and on a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What happened on a connection.
enum Event {
    Stream(Box<http::Request<h2::RecvStream>>, h2::server::SendResponse<Bytes>),
    Ended,
}

/// Serves a connection until it ends.
pub async fn serve(
    worker: Rc<Worker>,
    io: Io,
    prefix: Bytes,
    client: Client,
    limits: &ListenerLimits,
    open: &Open,
) {
    let client = Client { is_http2: true, ..client };
    let rules = request_rules(limits, client.is_tls);
    let (gathered, flusher) = coalesce(io, prefix);
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(limits.head_bytes)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(gathered);
    let mut connection = match tokio::time::timeout(limits.head_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(_)) => return worker.counters.refused.count(RefusalReason::Http2),
        Err(_) => return worker.counters.too_slow.add(1),
    };
    let mut timer = Timer::new();
    let streams = Rc::new(Cell::new(0_u32));
    let mut is_ending = false;
    let mut idle_from = Instant::now();
    loop {
        let event = poll_fn(|cx| {
            if !is_ending && worker.is_draining() {
                is_ending = true;
                connection.graceful_shutdown();
            }
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    return Poll::Ready(Event::Stream(Box::new(request), respond));
                }
                Poll::Ready(Some(Err(_)) | None) => {
                    // The last word (GOAWAY) is for a peer that may not listen any more.
                    _ = flusher.poll_flush(cx);
                    return Poll::Ready(Event::Ended);
                }
                Poll::Pending => {}
            }
            if let Poll::Ready(Err(_)) = flusher.poll_flush(cx) {
                return Poll::Ready(Event::Ended);
            }
            open.wake_on_drain(cx);
            if streams.get() > 0 {
                idle_from = Instant::now();
            }
            while timer.poll_until(idle_from + limits.idle_timeout, cx).is_ready() {
                if streams.get() > 0 {
                    idle_from = Instant::now();
                } else if is_ending {
                    return Poll::Ready(Event::Ended);
                } else {
                    is_ending = true;
                    idle_from = Instant::now();
                    connection.graceful_shutdown();
                }
            }
            Poll::Pending
        })
        .await;
        match event {
            Event::Ended => return,
            Event::Stream(request, respond) => {
                let count = StreamCount::new(&streams);
                // Boxed here, since it is moved several times on its way into a task, and it is large.
                worker.tasks.spawn_local(Box::pin(stream(
                    worker.clone(),
                    client,
                    request,
                    respond,
                    rules,
                    count,
                )));
            }
        }
    }
}

/// Counts a stream until dropped.
struct StreamCount(Rc<Cell<u32>>);

impl StreamCount {
    fn new(streams: &Rc<Cell<u32>>) -> StreamCount {
        streams.set(streams.get() + 1);
        StreamCount(streams.clone())
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn stream(
    worker: Rc<Worker>,
    client: Client,
    request: Box<http::Request<h2::RecvStream>>,
    respond: h2::server::SendResponse<Bytes>,
    rules: RequestRules,
    _count: StreamCount,
) {
    let since = Instant::now();
    let (mut down, parsed) = begin(*request, respond, rules);
    let mut timer = worker.take_timer();
    let (request, framing) = match parsed {
        Ok(parsed) => parsed,
        Err(refusal) => {
            let (unread, reply, reason) = &*refusal;
            worker.counters.refused.count(*reason);
            answer_ourselves(&mut down, reply, b"-", client.stall, &mut timer).await;
            worker.observer.refused(client, unread, reply, since.elapsed());
            worker.put_timer(timer);
            return;
        }
    };
    worker.counters.dropped_fields.add_if_any(request.dropped_fields);
    handle(&worker, client, &request, framing, &mut down, &mut timer).await;
    worker.put_timer(timer);
}
