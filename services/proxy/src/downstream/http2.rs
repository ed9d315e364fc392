//! A client's HTTP/2 connection; each stream is a task.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use slab::Slab;
use tidegate_http1::RequestRules;
use tidegate_model::fleet::ListenerLimits;
use tokio::time::Instant;

use super::{http2_request::receive_request, open_connection::OpenConnection, rules::request_rules};
use crate::{
    clients::{Client, Eviction, MemoryUse, RequestAccount},
    metrics::RefusalReason,
    request::{handle, send_local_reply},
    wire::{Flusher, Io, LIBRARY_BUFFER, Peer, Timer, coalesce, size_of},
    worker_context::WorkerContext,
};

/// The maximum number of concurrent streams. With each stream's send buffer and one more chunk of at most 64 KiB
/// waiting for it, this bounds the buffers of a connection to 12 MiB.
const STREAMS: u32 = 128;
const _: () = assert!(STREAMS as usize * (LIBRARY_BUFFER + 64 * 1024) <= 12 * 1024 * 1024);
/// The memory for decoded heads of a connection's requests, however few bytes they were on the wire; more if a single
/// head may be larger than a quarter of it. Further streams are refused, which lets the client retry (RFC 9113, section
/// 8.7), and are charged as control frames.
const HEADS: usize = 1024 * 1024;
const REFUSAL_COST: i64 = 20;
/// The decoded size of a head that is free, and the further size that is charged as one control frame: a few bytes of
/// HPACK can decode to heads that are expensive to process.
const HEAD_FREE: usize = 8 * 1024;
const HEAD_EACH: usize = 2 * 1024;
/// Limits of a connection whose client's network has recently flooded others: its initial charge (of an allowance of
/// 1000), the extra charge per reset, and its maximum number of streams.
const FLOODED_BEFORE: i64 = 900;
const RESET_AFTER_FLOOD: i64 = 50;
const STREAMS_AFTER_FLOOD: u32 = 16;
/// The overhead of a field beside its name and value (RFC 9113, section 6.5.2).
const FIELD_OVERHEAD: usize = 32;
/// The memory of a stream's task and state beside its head, and that of a connection, as measured.
const STREAM: usize = 3 * 1024;
const CONNECTION: usize = 8 * 1024;
/// Bytes received between two updates of the unread size.
const LOOK_EACH: u64 = 64 * 1024;
/// The flow-control windows of a stream and of a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The next event of a connection.
enum ConnectionEvent {
    Stream(Box<http::Request<h2::RecvStream>>, h2::server::SendResponse<Bytes>),
    Ended,
}

/// Serves a connection until it ends.
pub async fn serve(
    worker: Rc<WorkerContext>,
    io: Io,
    prefix: Bytes,
    client: Client,
    limits: &ListenerLimits,
    open: &OpenConnection,
) {
    let client = Client { is_http2: true, ..client };
    let rules = request_rules(limits, client.is_tls);
    let (gathered, flusher) = coalesce(io, prefix, Peer::Client);
    let has_flooded = open.is_of_flooding_network();
    if has_flooded {
        flusher.charge(FLOODED_BEFORE);
    }
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(if has_flooded { STREAMS_AFTER_FLOOD } else { STREAMS })
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(limits.head_bytes)
        .max_send_buffer_size(LIBRARY_BUFFER)
        .handshake::<_, Bytes>(gathered);
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(limits.head_timeout, handshake) => handshake,
        () = open.wait_for_eviction() => return,
    };
    let mut connection = match handshake {
        Ok(Ok(connection)) => connection,
        Ok(Err(_)) => return worker.counters.refused.count(RefusalReason::Http2),
        Err(_) => return worker.counters.too_slow.add(1),
    };
    open.hold_unread(CONNECTION);
    let mut timer = Timer::new();
    let streams = Rc::<Streams>::default();
    let most_heads = HEADS.max(limits.head_bytes as usize * 4);
    let mut is_ending = false;
    let mut is_cut = false;
    // How much had been received at the last update of the unread size, and that size.
    let (mut looked_at, mut unread) = (0, 0);
    let mut resets = 0;
    let mut idle_from = Instant::now();
    loop {
        let event = poll_fn(|cx| {
            if !is_ending && worker.is_draining() {
                is_ending = true;
                connection.graceful_shutdown();
            }
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        return Poll::Ready(ConnectionEvent::Stream(Box::new(request), respond));
                    }
                    Poll::Ready(Some(Err(_)) | None) => {
                        // The GOAWAY may not reach the peer any more.
                        _ = flusher.poll_flush(cx);
                        return Poll::Ready(ConnectionEvent::Ended);
                    }
                    Poll::Pending if is_cut => {
                        _ = flusher.poll_flush(cx);
                        return Poll::Ready(ConnectionEvent::Ended);
                    }
                    Poll::Pending if flusher.release_blocks() => {}
                    Poll::Pending => match cut_reason(&worker, &flusher, open, streams.count.get()) {
                        Some(reason) => {
                            is_cut = true;
                            connection.abrupt_shutdown(reason);
                        }
                        None => break,
                    },
                }
            }
            if let Poll::Ready(Err(_)) = flusher.poll_flush(cx) {
                return Poll::Ready(ConnectionEvent::Ended);
            }
            if flusher.resets() > resets {
                let new = flusher.resets() - resets;
                resets += new;
                open.record_resets(new, false);
                if open.is_of_flooding_network() {
                    flusher.charge(RESET_AFTER_FLOOD * i64::from(new));
                }
            }
            if unread > 0 || flusher.received() >= looked_at + LOOK_EACH {
                looked_at = flusher.received();
                unread = streams.unread();
                open.hold_unread(CONNECTION + unread);
            }
            open.wake_on_change(cx);
            if streams.count.get() > 0 {
                idle_from = Instant::now();
            } else {
                open.begin_idle(idle_from);
            }
            while timer.poll_until(idle_from + limits.idle_timeout, cx).is_ready() {
                if streams.count.get() > 0 {
                    idle_from = Instant::now();
                } else if is_ending {
                    return Poll::Ready(ConnectionEvent::Ended);
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
            ConnectionEvent::Ended => {
                open.record_resets(flusher.resets() - resets, flusher.is_flooded());
                return;
            }
            ConnectionEvent::Stream(mut request, mut respond) => {
                let head = size_of(request.headers()) + request.headers().len() * FIELD_OVERHEAD;
                flusher.charge((head.saturating_sub(HEAD_FREE) / HEAD_EACH) as i64);
                let has_room = streams.heads.get() + head <= most_heads;
                if !has_room {
                    worker.counters.heads_over_budget.add(1);
                }
                if !has_room || worker.is_backed_up(open.network()) {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    flusher.charge(REFUSAL_COST);
                    continue;
                }
                open.end_idle();
                let count = StreamCount::new(&streams, head, request.body_mut());
                let mut account = open.open_account();
                account.set_memory(MemoryUse::Head, STREAM + head);
                // Boxed here, since it is large and is moved several times on its way into a task.
                let stream = serve_stream(worker.clone(), client, request, respond, rules, account, count);
                worker.spawn(open.network(), Box::pin(stream));
            }
        }
    }
}

/// Why a connection must be closed at once, if it must.
fn cut_reason(
    worker: &WorkerContext,
    flusher: &Flusher,
    open: &OpenConnection,
    streams: u32,
) -> Option<h2::Reason> {
    if flusher.is_flooded() {
        worker.counters.flooded.add(1);
        return Some(h2::Reason::ENHANCE_YOUR_CALM);
    }
    match open.eviction()? {
        Eviction::Memory => {
            worker.counters.evicted_memory.add(1);
            Some(h2::Reason::ENHANCE_YOUR_CALM)
        }
        Eviction::Slow => Some(h2::Reason::ENHANCE_YOUR_CALM),
        Eviction::Idle => (streams == 0).then_some(h2::Reason::NO_ERROR),
    }
}

/// The open streams of a connection.
#[derive(Default)]
struct Streams {
    count: Cell<u32>,
    /// The memory of their requests' heads.
    heads: Cell<usize>,
    /// The flow control of streams with request bodies.
    windows: RefCell<Slab<h2::FlowControl>>,
}

impl Streams {
    /// The size of body data that was received but not read.
    fn unread(&self) -> usize {
        self.windows.borrow().iter().map(|(_, window)| window.used_capacity()).sum()
    }
}

/// Counts a stream until dropped.
pub struct StreamCount {
    streams: Rc<Streams>,
    head: usize,
    window: Option<usize>,
}

impl StreamCount {
    fn new(streams: &Rc<Streams>, head: usize, body: &mut h2::RecvStream) -> StreamCount {
        streams.count.set(streams.count.get() + 1);
        streams.heads.set(streams.heads.get() + head);
        let window =
            (!body.is_end_stream()).then(|| streams.windows.borrow_mut().insert(body.flow_control().clone()));
        StreamCount { streams: streams.clone(), head, window }
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.streams.count.set(self.streams.count.get() - 1);
        self.streams.heads.set(self.streams.heads.get() - self.head);
        if let Some(key) = self.window {
            self.streams.windows.borrow_mut().remove(key);
        }
    }
}

/// Serves one stream.
pub async fn serve_stream(
    worker: Rc<WorkerContext>,
    client: Client,
    request: Box<http::Request<h2::RecvStream>>,
    respond: h2::server::SendResponse<Bytes>,
    rules: RequestRules,
    account: RequestAccount,
    _count: StreamCount,
) {
    let since = Instant::now();
    let (mut down, parsed) = receive_request(*request, respond, rules, account);
    let mut timer = worker.take_timer();
    let (request, framing) = match parsed {
        Ok(parsed) => parsed,
        Err(refusal) => {
            let (unread, reply, reason) = &*refusal;
            worker.counters.refused.count(*reason);
            send_local_reply(&mut down, reply, b"-", client.stall, &mut timer).await;
            worker.observer.report_refusal(client, unread, (reply.status, &reply.body), since.elapsed());
            worker.put_timer(timer);
            return;
        }
    };
    worker.counters.dropped_fields.add_if_any(request.dropped_fields.into());
    // A stream that was already reset costs endpoints nothing (CVE-2023-44487).
    if poll_fn(|cx| Poll::Ready(down.poll_reset(cx).is_pending())).await {
        handle(&worker, client, &request, framing, &mut down, &mut timer).await;
    }
    worker.put_timer(timer);
}
