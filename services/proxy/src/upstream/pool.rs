//! Connections to one endpoint that wait for work; of one worker.
//!
//! Bytes that arrive on a connection without a request belong to no request: taken for the next one's response, they
//! would give one client what was meant for another (RFC 9112, section 6.3). So each connection is checked before its
//! reuse, and an endpoint that sent such bytes is not trusted with reuse for a while.
//!
//! What no check can see is what arrives after the request was sent. An endpoint that sends a body where there is none is
//! the usual cause, so connections rest for [`REST`] after such a response. What remains is an endpoint that sends excess
//! bytes for the first time in [`DISTRUST`], more than [`REST`] after such a response or just as any other has ended.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Duration,
};

use tokio::time::Instant;

use super::{http2_conn::Http2Conn, single_flight::SingleFlight};
use crate::wire::{Conn, IdleState};

/// Idle time after which the kernel is asked whether anything came, even for requests that may be repeated. The runtime's
/// own readiness is that fresh in any case.
const TRUSTED_FOR: Duration = Duration::from_millis(20);
/// How long a connection rests after a response without a body where others have one, and how many rest at once: beyond
/// that the one that has rested longest is used again earlier, so that many such responses do not cost a connection each.
const REST: Duration = Duration::from_millis(50);
const MOST_RESTING: usize = 64;
/// How long no connection to an endpoint is used again after it sent bytes that belong to no request.
const DISTRUST: Duration = Duration::from_secs(60);
/// Idle HTTP/1.1 connections kept per endpoint and worker.
const MOST_IDLE: usize = 256;

/// Idle HTTP/1.1 connections, and HTTP/2 connections with their streams.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    /// Connections that rest, the first to be used again in front.
    resting: RefCell<VecDeque<Idle>>,
    distrusted_until: Cell<Option<Instant>>,
    /// Connections closed because of excess bytes since that was last asked.
    excess: Cell<u32>,
    http2: RefCell<Vec<Http2Conn>>,
    /// The connection that is being made for all that wait for one.
    pub single_flight: SingleFlight,
}

struct Idle {
    conn: Conn,
    since: Instant,
    until: Instant,
}

impl Pool {
    /// Takes an idle connection on which nothing came, the last used first.
    ///
    /// With `careful`, the kernel is always asked: for requests that cannot be sent again when the peer closes.
    pub fn take(&self, now: Instant, careful: bool) -> Option<Conn> {
        if self.is_distrusted(now) {
            return None;
        }
        self.wake_rested(now);
        while let Some(mut idle) = self.pop_idle() {
            let ask_kernel = careful || now - idle.since > TRUSTED_FOR;
            if now < idle.until && self.is_clean(&mut idle.conn, ask_kernel, now) {
                return Some(idle.conn);
            }
        }
        None
    }

    /// Keeps a connection for at most `keep`. One that `rests` is not used again at once.
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

    /// An HTTP/2 connection that has room for a stream; always the same while that is so, and the others grow idle.
    pub fn http2(&self) -> Option<Http2Conn> {
        self.http2.borrow().iter().find(|conn| conn.has_room()).cloned()
    }

    /// Keeps an HTTP/2 connection until it is removed, has ended, or was idle for its time.
    pub fn put_http2(&self, conn: Http2Conn) {
        self.http2.borrow_mut().push(conn);
    }

    /// Forgets an HTTP/2 connection: it has failed, or takes no more streams.
    pub fn remove_http2(&self, conn: &Http2Conn) {
        self.http2.borrow_mut().retain(|known| !known.is(conn));
    }

    /// Closes what has been idle too long, was closed by the peer, or has bytes on it that belong to no request.
    pub fn sweep(&self, now: Instant) {
        self.wake_rested(now);
        // Taken out, since an endpoint that is distrusted meanwhile has its other connections closed.
        let mut kept = self.idle.take();
        kept.retain_mut(|idle| now < idle.until && self.is_clean(&mut idle.conn, false, now));
        if !self.is_distrusted(now) {
            self.idle.replace(kept);
        }
        self.http2.borrow_mut().retain(|conn| conn.is_wanted(now));
    }

    /// How many connections were closed because of bytes that belong to no request, since this was last asked.
    pub fn take_excess(&self) -> u32 {
        self.excess.take()
    }

    /// How many connections wait for work over HTTP/1.1, and how many are there over HTTP/2.
    pub fn sizes(&self) -> (usize, usize) {
        (self.idle.borrow().len() + self.resting.borrow().len(), self.http2.borrow().len())
    }

    /// How many connections no request uses.
    pub fn unused(&self) -> usize {
        let http2 = self.http2.borrow().iter().filter(|conn| conn.is_unused()).count();
        self.idle.borrow().len() + self.resting.borrow().len() + http2
    }

    /// Closes the HTTP/1.1 connection that was used least recently, or else an HTTP/2 connection that no request uses.
    /// Returns whether there was one. One of HTTP/2 takes a moment to end.
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

    /// Makes connections that have rested long enough, or for which there is no room, available again if they are clean.
    fn wake_rested(&self, now: Instant) {
        loop {
            let mut resting = self.resting.borrow_mut();
            let is_full = resting.len() > MOST_RESTING;
            let Some(mut idle) = resting.pop_front_if(|idle| is_full || now >= idle.since + REST) else {
                return;
            };
            drop(resting);
            if self.is_clean(&mut idle.conn, true, now) {
                self.push_idle(idle);
            }
        }
    }

    fn is_clean(&self, conn: &mut Conn, ask_kernel: bool, now: Instant) -> bool {
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

    /// Closes all idle connections and keeps none for a while: what was sent on one may be on its way on others.
    fn distrust(&self, now: Instant) {
        self.excess.set(self.excess.get() + 1);
        self.distrusted_until.set(Some(now + DISTRUST));
        self.idle.borrow_mut().clear();
        self.resting.borrow_mut().clear();
    }
}
