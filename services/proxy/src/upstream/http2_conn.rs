//! An HTTP/2 connection to an endpoint: who may open streams on it, and who keeps it going.

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
use crate::wire::{Coalesced, Counted, Flusher, Timer};

/// How long the response to a PING may take.
const PONG_WITHIN: Duration = Duration::from_secs(1);
/// The least time between two PINGs: gRPC servers end connections on which they are more frequent than answers.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The streams that a peer takes before it has said how many: no peer can say this many.
pub const UNSETTLED: usize = usize::MAX - 1;

/// An HTTP/2 connection, to open streams on. Clones are the same connection.
#[derive(Clone)]
pub struct Http2Conn {
    /// Opens streams.
    pub send: h2::client::SendRequest<Bytes>,
    state: Rc<State>,
}

/// What is known of a connection.
struct State {
    streams: Cell<usize>,
    /// Streams that were opened since the connection was last driven.
    begun: Cell<u32>,
    /// Whether a stream was opened since the last look at it.
    used: Cell<bool>,
    idle_from: Cell<Instant>,
    keep: Duration,
    ended: Cell<bool>,
    /// Whether a request got no response on it: the peer, or only this connection, may be dead.
    must_check: Cell<bool>,
    driver: RefCell<Option<Waker>>,
}

/// A stream on a connection; counted until dropped.
pub struct StreamGuard(Rc<State>);

impl Http2Conn {
    /// A new connection, closed after `keep` without a stream.
    pub fn new(send: h2::client::SendRequest<Bytes>, keep: Duration) -> Http2Conn {
        let state = State {
            streams: Cell::new(0),
            begun: Cell::new(0),
            used: Cell::new(true),
            idle_from: Cell::new(Instant::now()),
            keep,
            ended: Cell::new(false),
            must_check: Cell::new(false),
            driver: RefCell::default(),
        };
        Http2Conn { send, state: Rc::new(state) }
    }

    /// Whether this is the same connection as `other`.
    pub fn is(&self, other: &Http2Conn) -> bool {
        Rc::ptr_eq(&self.state, &other.state)
    }

    /// Whether another stream may be opened without waiting for one to end.
    pub fn has_room(&self) -> bool {
        // More than the peer takes would wait in the library, so that until it has said how many, it is given one.
        let most = match self.send.current_max_send_streams() {
            UNSETTLED => 1,
            most => most,
        };
        !self.state.ended.get() && self.state.streams.get() < most
    }

    /// Whether no request is on it.
    pub fn is_unused(&self) -> bool {
        self.state.streams.get() == 0
    }

    /// Counts a stream.
    pub fn begin(&self) -> StreamGuard {
        self.state.streams.set(self.state.streams.get() + 1);
        self.state.begun.set(self.state.begun.get() + 1);
        self.state.used.set(true);
        StreamGuard(self.state.clone())
    }

    /// Whether it is still worth keeping at `now`. To be asked about once a second.
    pub fn is_wanted(&self, now: Instant) -> bool {
        if self.state.used.take() || self.state.streams.get() > 0 {
            self.state.idle_from.set(now);
        } else if self.send.current_max_send_streams() == 0 {
            // Each request would make a connection more.
            return false;
        }
        !self.state.ended.get() && now < self.state.idle_from.get() + self.state.keep
    }

    /// Keeps the connection going until it ends. `leader` is let go when the peer has said how many streams it takes.
    pub fn drive(
        &self,
        connection: h2::client::Connection<Coalesced, Bytes>,
        flusher: Flusher,
        leader: Option<Leader>,
        counted: Counted,
    ) -> impl Future<Output = ()> + 'static {
        drive(self.state.clone(), connection, flusher, leader, counted)
    }
}

impl StreamGuard {
    /// No response came on it in time.
    pub fn check(&self) {
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
    _counted: Counted,
) {
    let mut checking = connection.ping_pong().map(Checking::new);
    let mut connection = pin!(connection);
    poll_fn(|cx| {
        flusher.expect(state.begun.take(), state.streams.get() == 0);
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
            tracing::warn!("HTTP/2 connection to an endpoint ended: it sends too many control frames");
            return Poll::Ready(());
        }
        if flusher.take_blocks() {
            // Streams take what came before more is read.
            cx.waker().wake_by_ref();
        }
        if leader.is_some() && connection.max_concurrent_send_streams() != UNSETTLED {
            leader = None;
        }
        if let Some(checking) = &mut checking {
            let must_check = state.must_check.take();
            if checking.poll_dead(must_check, cx).is_ready() {
                tracing::warn!("HTTP/2 connection to an endpoint is dead: no answer to a PING");
                return Poll::Ready(());
            }
            if checking.just_sent() {
                cx.waker().wake_by_ref();
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
    // Those who still wait for it must see that it has ended.
    drop(leader);
}

/// Finds out whether the peer still answers, when that is in doubt.
struct Checking {
    ping_pong: h2::PingPong,
    sent_at: Option<Instant>,
    is_waiting: bool,
    just_sent: bool,
    timer: Timer,
}

impl Checking {
    fn new(ping_pong: h2::PingPong) -> Checking {
        Checking { ping_pong, sent_at: None, is_waiting: false, just_sent: false, timer: Timer::new() }
    }

    /// Ready when the peer did not answer.
    fn poll_dead(&mut self, must_check: bool, cx: &mut Context<'_>) -> Poll<()> {
        if must_check && !self.is_waiting {
            let now = Instant::now();
            let is_rested = self.sent_at.is_none_or(|at| now >= at + PING_EVERY);
            if is_rested && self.ping_pong.send_ping(h2::Ping::opaque()).is_ok() {
                (self.sent_at, self.is_waiting, self.just_sent) = (Some(now), true, true);
            }
        }
        let Some(sent_at) = self.sent_at.filter(|_| self.is_waiting) else { return Poll::Pending };
        if self.ping_pong.poll_pong(cx).is_ready() {
            // An error is the connection's, which tells of it itself.
            self.is_waiting = false;
            return Poll::Pending;
        }
        self.timer.poll_until(sent_at + PONG_WITHIN, cx)
    }

    /// Whether a PING waits for the connection to be polled again.
    fn just_sent(&mut self) -> bool {
        std::mem::take(&mut self.just_sent)
    }
}
