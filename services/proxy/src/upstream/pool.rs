//! The connection pool of one endpoint in one worker.
//!
//! Bytes that arrive on an idle connection belong to no request: taken for the next response, they would give one
//! client what was meant for another (RFC 9112, section 6.3). So each connection is checked before reuse, and after
//! such bytes no connection to the endpoint is reused for a while.
//!
//! No check can detect bytes that arrive after the next request was sent. The usual cause is an endpoint that sends a
//! body with a response that must not have one, so connections rest for [`REST`] after such a response. This leaves an
//! endpoint that sends excess bytes for the first time in [`DISTRUST`], later than [`REST`] after such a response, or
//! right after any other response.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Duration,
};

use tokio::time::Instant;

use super::{http2_conn::Http2Conn, single_flight::SingleFlight};
use crate::wire::{Conn, IdleState};

/// Idle time after which the kernel is asked for unread bytes even for idempotent requests. The runtime's own readiness
/// is never older than this.
const TRUSTED_FOR: Duration = Duration::from_millis(20);
/// How long a connection rests after a bodiless response (HEAD, 204, 304), and how many rest at once: beyond that the
/// longest resting one is reused earlier, so that many such responses do not cost a connection each.
const REST: Duration = Duration::from_millis(50);
const MOST_RESTING: usize = 64;
/// How long no connection to an endpoint is reused after it sent excess bytes.
const DISTRUST: Duration = Duration::from_secs(60);
/// Idle HTTP/1.1 connections kept per endpoint and worker.
const MOST_IDLE: usize = 256;

/// Idle HTTP/1.1 connections, and HTTP/2 connections with their streams.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    /// Resting connections, the longest resting first.
    resting: RefCell<VecDeque<Idle>>,
    distrusted_until: Cell<Option<Instant>>,
    /// Connections closed because of excess bytes since the last [`Pool::take_excess`].
    excess: Cell<u32>,
    http2: RefCell<Vec<Http2Conn>>,
    /// The shared connection attempt.
    pub single_flight: SingleFlight,
}

struct Idle {
    conn: Conn,
    since: Instant,
    until: Instant,
}

impl Pool {
    /// Takes a clean idle connection, the most recently used first.
    ///
    /// With `careful`, the kernel is always asked for unread bytes: for requests that cannot be retried.
    pub fn take(&self, now: Instant, careful: bool) -> Option<Conn> {
        if self.is_distrusted(now) {
            return None;
        }
        self.wake_rested(now);
        while let Some(mut idle) = self.pop_idle() {
            let ask_kernel = careful || now - idle.since > TRUSTED_FOR;
            if now < idle.until && self.check_clean(&mut idle.conn, ask_kernel, now) {
                return Some(idle.conn);
            }
        }
        None
    }

    /// Returns a connection to the pool for at most `keep`. One that `rests` is not reused at once.
    pub fn put(&self, mut conn: Conn, now: Instant, keep: Duration, rests: bool) {
        if !conn.read.is_empty() {
            return self.distrust(now);
        }
        if self.is_distrusted(now) || !conn.is_flushed() || conn.is_ended() {
            return;
        }
        conn.release_buffers();
        let idle = Idle { conn, since: now, until: now + keep };
        if rests {
            self.resting.borrow_mut().push_back(idle);
            self.wake_rested(now);
        } else {
            self.push_idle(idle);
        }
    }

    /// An HTTP/2 connection with room for a stream. The first one is preferred, so that the others become idle.
    pub fn http2(&self) -> Option<Http2Conn> {
        self.http2.borrow().iter().find(|conn| conn.has_room()).cloned()
    }

    /// Adds an HTTP/2 connection, until it is removed, ends or times out.
    pub fn put_http2(&self, conn: Http2Conn) {
        self.http2.borrow_mut().push(conn);
    }

    /// Removes an HTTP/2 connection that has failed or takes no more streams.
    pub fn remove_http2(&self, conn: &Http2Conn) {
        self.http2.borrow_mut().retain(|known| !known.is_same(conn));
    }

    /// Closes connections that have been idle too long, were closed by the peer, or received excess bytes.
    pub fn sweep(&self, now: Instant) {
        self.wake_rested(now);
        // Taken out meanwhile: an endpoint that becomes distrusted has its other connections closed.
        let mut kept = self.idle.take();
        kept.retain_mut(|idle| now < idle.until && self.check_clean(&mut idle.conn, false, now));
        if !self.is_distrusted(now) {
            self.idle.replace(kept);
        }
        self.http2.borrow_mut().retain(|conn| {
            conn.update_idle(now);
            conn.is_worth_keeping(now)
        });
    }

    /// Takes the number of connections closed because of excess bytes since the last call.
    pub fn take_excess(&self) -> u32 {
        self.excess.take()
    }

    /// The number of idle HTTP/1.1 connections, and of all HTTP/2 connections.
    pub fn sizes(&self) -> (usize, usize) {
        (self.idle.borrow().len() + self.resting.borrow().len(), self.http2.borrow().len())
    }

    /// The number of connections without a request.
    pub fn unused(&self) -> usize {
        let http2 = self.http2.borrow().iter().filter(|conn| conn.is_unused()).count();
        self.idle.borrow().len() + self.resting.borrow().len() + http2
    }

    /// Closes the least recently used idle HTTP/1.1 connection, or else an unused HTTP/2 connection, which takes a
    /// moment to end. Returns whether there was one.
    pub fn close_oldest(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            idle.remove(0);
            return true;
        }
        if self.resting.borrow_mut().pop_front().is_some() {
            return true;
        }
        let mut http2 = self.http2.borrow_mut();
        let unused = http2.iter().position(Http2Conn::is_unused);
        unused.map(|index| http2.swap_remove(index)).is_some()
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
        self.resting.borrow_mut().clear();
        self.http2.borrow_mut().clear();
    }

    fn pop_idle(&self) -> Option<Idle> {
        self.idle.borrow_mut().pop()
    }

    fn push_idle(&self, new: Idle) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MOST_IDLE {
            idle.push(new);
        }
    }

    /// Makes clean connections available again that have rested long enough, or that exceed the limit.
    fn wake_rested(&self, now: Instant) {
        loop {
            let mut resting = self.resting.borrow_mut();
            let is_full = resting.len() > MOST_RESTING;
            let Some(mut idle) = resting.pop_front_if(|idle| is_full || now >= idle.since + REST) else {
                return;
            };
            drop(resting);
            if self.check_clean(&mut idle.conn, true, now) {
                self.push_idle(idle);
            }
        }
    }

    /// Checks that nothing was received on an idle connection; excess bytes make the endpoint distrusted.
    fn check_clean(&self, conn: &mut Conn, ask_kernel: bool, now: Instant) -> bool {
        match conn.check_idle(ask_kernel) {
            IdleState::Clean => true,
            IdleState::Closed => false,
            IdleState::Excess => {
                self.distrust(now);
                false
            }
        }
    }

    fn is_distrusted(&self, now: Instant) -> bool {
        self.distrusted_until.get().is_some_and(|until| now < until)
    }

    /// Closes all idle connections and pools none for a while: excess bytes may be on their way on others.
    fn distrust(&self, now: Instant) {
        self.excess.set(self.excess.get() + 1);
        self.distrusted_until.set(Some(now + DISTRUST));
        self.idle.borrow_mut().clear();
        self.resting.borrow_mut().clear();
    }
}
