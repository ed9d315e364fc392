//! A stream that coalesces writes, so that many frames become one TLS record and one system call.
//!
//! The HTTP/2 library writes and flushes each DATA frame separately. Here flushes are ignored; the connection's driver
//! writes everything out once the library has nothing more to write.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{Io, meter::FrameMeter, spare};

/// The buffered bytes from which a write is forced; the bound on a connection's write buffer.
const GATHER: usize = 64 * 1024;

/// The library's end of the stream.
pub struct Coalesced(Rc<RefCell<Inner>>);

/// The driver's end of the stream.
pub struct Flusher(Rc<RefCell<Inner>>);

struct Inner {
    io: Io,
    /// Bytes that were read before, or are held back by the meter.
    prefix: Bytes,
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    received: u64,
    meter: FrameMeter,
}

/// Which side of an HTTP/2 connection the peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A client, which begins with the connection preface.
    Client,
    /// A server, which begins with a frame.
    Server,
}

/// The connection preface's length (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// Splits `io`, of which `prefix` was already read, into a coalescing stream and its flusher.
pub fn coalesce(io: Io, prefix: Bytes, peer: Peer) -> (Coalesced, Flusher) {
    let meter = match peer {
        Peer::Client => FrameMeter::of_client(PREFACE),
        Peer::Server => FrameMeter::of_endpoint(),
    };
    let inner = Inner { io, prefix, out: Vec::new(), written: 0, unflushed: false, received: 0, meter };
    let inner = Rc::new(RefCell::new(inner));
    (Coalesced(inner.clone()), Flusher(inner))
}

impl Flusher {
    /// Writes out buffered data. Call it whenever the library was polled.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_write_out(cx)
    }

    /// Whether the peer has sent too many control frames. Nothing more is read from it.
    pub fn is_flooded(&self) -> bool {
        self.0.borrow().meter.is_flooded()
    }

    /// How many bytes the peer has sent.
    pub fn received(&self) -> u64 {
        self.0.borrow().received
    }

    /// How many streams the peer has reset.
    pub fn resets(&self) -> u32 {
        self.0.borrow().meter.resets()
    }

    /// Lets more header blocks pass. Call it when the library has handed out everything it has read. Returns whether
    /// any blocks were held back, so that the library must be polled again.
    pub fn release_blocks(&self) -> bool {
        self.0.borrow_mut().meter.release_blocks()
    }

    /// Records how many requests were `begun` since the last call, and whether none is in flight. Call it before the
    /// library is polled.
    pub fn expect_responses(&self, begun: u32, is_idle: bool) {
        self.0.borrow_mut().meter.expect_responses(begun, is_idle);
    }

    /// Charges the peer as if it had sent this many control frames.
    pub fn charge(&self, frames: i64) {
        self.0.borrow_mut().meter.charge(frames, Instant::now());
    }
}

impl Inner {
    fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = spare::take();
        }
        &mut self.out
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.meter.record_written(count);
            self.unflushed = true;
        }
        if self.written > 0 {
            self.written = 0;
            // An idle connection holds no buffer.
            spare::put(&mut self.out);
            self.out = Vec::new();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Coalesced {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        if inner.meter.is_paused() {
            // The driver polls again once it has processed what was received, or closes the connection.
            return Poll::Pending;
        }
        if inner.prefix.has_remaining() {
            let take = inner.prefix.remaining().min(buf.remaining());
            let passed = inner.meter.read(&inner.prefix[..take], Instant::now);
            buf.put_slice(&inner.prefix.split_to(passed));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut inner.io).poll_read(cx, buf))?;
        let came = &buf.filled()[before..];
        inner.received += came.len() as u64;
        let passed = inner.meter.read(came, Instant::now);
        if passed < came.len() {
            inner.prefix = Bytes::copy_from_slice(&came[passed..]);
            buf.set_filled(before + passed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Coalesced {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if inner.out.len() >= GATHER {
            ready!(inner.poll_write_out(cx))?;
        }
        inner.out().extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if inner.out.len() >= GATHER {
            ready!(inner.poll_write_out(cx))?;
        }
        let out = inner.out();
        bufs.iter().for_each(|buf| out.extend_from_slice(buf));
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_write_out(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}
