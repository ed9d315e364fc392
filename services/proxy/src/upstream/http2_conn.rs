//! An upstream HTTP/2 connection: its streams, its driver and its liveness check.

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::single_flight::Leader;
use crate::wire::{Coalesced, CountGuard, Flusher, Timer};

/// How long the response to a PING may take.
const PONG_WITHIN: Duration = Duration::from_secs(1);
/// The shortest interval between two PINGs: gRPC servers close connections with more PINGs than responses.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The stream limit that stands for "not received yet": no peer can send this value.
pub const UNKNOWN_STREAM_LIMIT: usize = usize::MAX - 1;

/// A handle to an HTTP/2 connection. Clones share the connection.
#[derive(Clone)]
pub struct Http2Conn {
    /// Opens streams.
    pub send: h2::client::SendRequest<Bytes>,
    state: Rc<State>,
}

/// The shared state of a connection.
struct State {
    streams: Cell<usize>,
    /// Streams that were opened since the connection was last driven.
    opened: Cell<u32>,
    /// Whether a stream was opened since the last [`Http2Conn::update_idle`].
    used: Cell<bool>,
    is_idle: Cell<bool>,
    /// When it was last found in use.
    idle_from: Cell<Instant>,
    keep: Duration,
    ended: Cell<bool>,
    /// Whether a request got no response, so that a PING should check whether the connection is alive.
    must_check: Cell<bool>,
    driver: RefCell<Option<Waker>>,
}

/// Counts a stream on a connection until dropped.
pub struct StreamGuard(Rc<State>);

impl Http2Conn {
    /// A new connection, closed after `keep` without a stream.
    pub fn new(send: h2::client::SendRequest<Bytes>, keep: Duration) -> Http2Conn {
        let state = State {
            streams: Cell::new(0),
            opened: Cell::new(0),
            used: Cell::new(true),
            is_idle: Cell::new(false),
            idle_from: Cell::new(Instant::now()),
            keep,
            ended: Cell::new(false),
            must_check: Cell::new(false),
            driver: RefCell::default(),
        };
        Http2Conn { send, state: Rc::new(state) }
    }

    /// Whether this is the same connection as `other`.
    pub fn is_same(&self, other: &Http2Conn) -> bool {
        Rc::ptr_eq(&self.state, &other.state)
    }

    /// Whether another stream may be opened at once.
    pub fn has_room(&self) -> bool {
        // Streams above the peer's limit would wait in the library, so until the limit is known there is only one.
        let most = match self.send.current_max_send_streams() {
            UNKNOWN_STREAM_LIMIT => 1,
            most => most,
        };
        !self.state.ended.get() && self.state.streams.get() < most
    }

    /// Whether it has no streams.
    pub fn is_unused(&self) -> bool {
        self.state.streams.get() == 0
    }

    /// Counts a new stream.
    pub fn open_stream(&self) -> StreamGuard {
        self.state.streams.set(self.state.streams.get() + 1);
        self.state.opened.set(self.state.opened.get() + 1);
        self.state.used.set(true);
        StreamGuard(self.state.clone())
    }

    /// Updates whether it is idle, and since when. Called once a second.
    pub fn update_idle(&self, now: Instant) {
        let is_used = self.state.used.take() || self.state.streams.get() > 0;
        if is_used {
            self.state.idle_from.set(now);
        }
        self.state.is_idle.set(!is_used);
    }

    /// Whether it is worth keeping at `now`, as of the last [`Http2Conn::update_idle`].
    pub fn is_worth_keeping(&self, now: Instant) -> bool {
        // With an idle connection that allows no streams, each request would open another one.
        let is_useless = self.state.is_idle.get() && self.send.current_max_send_streams() == 0;
        !self.state.ended.get() && !is_useless && now < self.state.idle_from.get() + self.state.keep
    }

    /// Drives the connection until it ends. `leader` is dropped once the peer's stream limit is known.
    pub fn drive(
        &self,
        connection: h2::client::Connection<Coalesced, Bytes>,
        flusher: Flusher,
        leader: Option<Leader>,
        guard: CountGuard,
    ) -> impl Future<Output = ()> + 'static {
        drive(self.state.clone(), connection, flusher, leader, guard)
    }
}

impl StreamGuard {
    /// Requests a liveness check, because no response arrived in time.
    pub fn request_check(&self) {
        self.0.must_check.set(true);
        if let Some(driver) = &*self.0.driver.borrow() {
            driver.wake_by_ref();
        }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

async fn drive(
    state: Rc<State>,
    mut connection: h2::client::Connection<Coalesced, Bytes>,
    flusher: Flusher,
    mut leader: Option<Leader>,
    _guard: CountGuard,
) {
    let mut liveness = connection.ping_pong().map(LivenessCheck::new);
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        flusher.expect_responses(state.opened.take(), state.streams.get() == 0);
        let ended = connection.as_mut().poll(cx);
        // A connection that cannot be written to fails at its next read.
        _ = flusher.poll_flush(cx);
        if let Poll::Ready(ended) = ended {
            if let Err(error) = ended {
                tracing::debug!(%error, "HTTP/2 connection to an endpoint ended");
            }
            return Poll::Ready(());
        }
        if flusher.is_flooded() {
            tracing::warn!("upstream HTTP/2 connection closed: too many control frames");
            return Poll::Ready(());
        }
        if flusher.release_blocks() {
            // Streams take what was received before more is read.
            cx.waker().wake_by_ref();
        }
        if leader.is_some() && connection.max_concurrent_send_streams() != UNKNOWN_STREAM_LIMIT {
            leader = None;
        }
        if let Some(liveness) = &mut liveness {
            let must_check = state.must_check.take();
            if liveness.poll_dead(must_check, cx).is_ready() {
                tracing::warn!("upstream HTTP/2 connection is dead: no response to a PING");
                return Poll::Ready(());
            }
        }
        let mut driver = state.driver.borrow_mut();
        if driver.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
        Poll::Pending
    })
    .await;
    // Dropping the connection ends what is still open on it.
    state.ended.set(true);
    // Waiters must see that it has ended.
    drop(leader);
}

/// Checks by PING whether the peer still responds.
struct LivenessCheck {
    ping_pong: h2::PingPong,
    sent_at: Option<Instant>,
    is_waiting: bool,
    timer: Timer,
}

impl LivenessCheck {
    fn new(ping_pong: h2::PingPong) -> LivenessCheck {
        LivenessCheck { ping_pong, sent_at: None, is_waiting: false, timer: Timer::new() }
    }

    /// Ready when the peer did not respond to a PING.
    fn poll_dead(&mut self, must_check: bool, cx: &mut Context<'_>) -> Poll<()> {
        if must_check && !self.is_waiting {
            let now = Instant::now();
            let is_rested = self.sent_at.is_none_or(|at| now >= at + PING_EVERY);
            if is_rested && self.ping_pong.send_ping(h2::Ping::opaque()).is_ok() {
                (self.sent_at, self.is_waiting) = (Some(now), true);
                // The PING is only sent when the connection is polled again.
                cx.waker().wake_by_ref();
            }
        }
        let Some(sent_at) = self.sent_at.filter(|_| self.is_waiting) else { return Poll::Pending };
        if self.ping_pong.poll_pong(cx).is_ready() {
            // An error is one of the connection, which reports it itself.
            self.is_waiting = false;
            return Poll::Pending;
        }
        self.timer.poll_until(sent_at + PONG_WITHIN, cx)
    }
}
