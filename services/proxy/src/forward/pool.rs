//! Connections to one endpoint that wait for work; of one worker.

use std::{cell::RefCell, time::Duration};

use tokio::time::Instant;

use super::{http2_conn::Http2Conn, sharing::Sharing};
use crate::wire::Conn;

/// Idle time after which the kernel is asked whether the peer has closed, even for requests that may be repeated.
/// The runtime's own readiness is that fresh in any case.
const TRUSTED_FOR: Duration = Duration::from_millis(20);
/// Idle HTTP/1.1 connections kept per endpoint and worker.
const MOST_IDLE: usize = 256;

/// Idle HTTP/1.1 connections, and HTTP/2 connections with their streams.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<Http2Conn>>,
    /// The connection that is being made for all that wait for one.
    pub sharing: Sharing,
}

struct Idle {
    conn: Conn,
    since: Instant,
    until: Instant,
}

impl Pool {
    /// Takes an idle connection that the peer has not closed, the last used first.
    ///
    /// With `careful`, the kernel is always asked: for requests that cannot be sent again when the peer closes.
    pub fn take(&self, now: Instant, careful: bool) -> Option<Conn> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { conn, since, until }) = idle.pop() {
            let stale = now >= until || ((careful || now - since > TRUSTED_FOR) && conn.io().has_news());
            if !stale {
                return Some(conn);
            }
        }
        None
    }

    /// Keeps a connection for at most `keep`.
    pub fn put(&self, mut conn: Conn, now: Instant, keep: Duration) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MOST_IDLE && conn.read.is_empty() && conn.is_flushed() && !conn.is_ended() {
            conn.release_buffers();
            idle.push(Idle { conn, since: now, until: now + keep });
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

    /// Closes what has been idle too long or was closed by the peer.
    pub fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|idle| now < idle.until && !idle.conn.io().has_news());
        self.http2.borrow_mut().retain(|conn| conn.is_wanted(now));
    }

    /// How many connections wait for work over HTTP/1.1, and how many are there over HTTP/2.
    pub fn sizes(&self) -> (usize, usize) {
        (self.idle.borrow().len(), self.http2.borrow().len())
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
        self.http2.borrow_mut().clear();
    }
}
