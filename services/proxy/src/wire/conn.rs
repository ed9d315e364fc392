//! A buffered connection. An idle one holds no buffer: reads go through one scratch buffer of the thread.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Counted, Io, spare};

/// Bytes read at once at most.
const SCRATCH: usize = 64 * 1024;
/// Bytes waiting to be written above which no more are taken, and bytes that were written above which their room is given
/// back although more waits behind them. With one more piece of [`SCRATCH`] bytes pushed while there was room, three times
/// this is the bound on memory per direction.
const WRITE_ROOM: usize = 64 * 1024;
/// What TLS keeps of what was written to it, while the peer does not take it.
const TLS_BUFFER: usize = 64 * 1024;

/// How a response begins that says that an idle connection has timed out.
const TIMED_OUT: &[u8; 13] = b"HTTP/1.1 408 ";
const TIMED_OUT_HTTP10: &[u8; 13] = b"HTTP/1.0 408 ";

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// What is known of a connection on which nothing should be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleState {
    /// Nothing came.
    Clean,
    /// The peer has closed it, or it has failed.
    Closed,
    /// The peer sent bytes that belong to no request.
    Excess,
}

/// A connection with what was read and not used, and what is to be written.
pub struct Conn {
    io: Io,
    /// Read and not yet used.
    pub read: BytesMut,
    write: Vec<u8>,
    written: usize,
    total_written: u64,
    /// Whether TLS records may wait below although `write` is empty.
    unflushed: bool,
    ended: bool,
    /// Counts it among connections of its kind until it is dropped.
    _counted: Option<Counted>,
}

impl Conn {
    /// A connection of which nothing was read yet; `counted` while it is there.
    pub fn new(io: Io, counted: Option<Counted>) -> Conn {
        Conn {
            io,
            read: BytesMut::new(),
            write: Vec::new(),
            written: 0,
            total_written: 0,
            unflushed: false,
            ended: false,
            _counted: counted,
        }
    }

    /// The stream below.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Takes the connection apart: the stream and what was read of it.
    pub fn into_parts(self) -> (Io, BytesMut) {
        (self.io, self.read)
    }

    /// Whether the peer has ended its direction.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Reads what is there into `read`. Returns how much came, 0 at the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            let filled = buf.filled();
            self.read.extend_from_slice(filled);
            self.ended = filled.is_empty();
            Poll::Ready(Ok(filled.len()))
        })
    }

    /// The state of a connection that waits for work. The kernel is asked if `ask_kernel` says so, or if the runtime knows
    /// that something came; otherwise the check costs no system call.
    pub fn check_idle(&mut self, ask_kernel: bool) -> IdleState {
        if !self.read.is_empty() {
            return IdleState::Excess;
        }
        if self.ended {
            return IdleState::Closed;
        }
        if !self.io.has_unread(ask_kernel) {
            return IdleState::Clean;
        }
        let mut head = [0; TIMED_OUT.len()];
        match self.io.take_unread(&mut head) {
            // What is still there after that, the runtime does not know of yet: no connection to rely on.
            Ok(None) if self.io.has_unread(ask_kernel) => IdleState::Closed,
            Ok(None) => IdleState::Clean,
            Ok(Some(0)) | Err(_) => IdleState::Closed,
            // A server may say that an idle connection has timed out as it closes it (RFC 9110, section 15.5.9).
            Ok(Some(_)) if head == *TIMED_OUT || head == *TIMED_OUT_HTTP10 => IdleState::Closed,
            Ok(Some(_)) => IdleState::Excess,
        }
    }

    /// The bytes that wait to be written, to add to.
    pub fn out(&mut self) -> &mut Vec<u8> {
        if self.write.capacity() == 0 {
            self.write = spare::take();
        }
        &mut self.write
    }

    /// What its buffers take.
    pub fn held(&self) -> usize {
        let is_waiting = !self.write.is_empty() || self.unflushed;
        let tls = if is_waiting && !matches!(self.io, Io::Plain(_)) { TLS_BUFFER } else { 0 };
        self.read.capacity() + self.write.capacity() + tls
    }

    /// Whether everything is written.
    pub fn is_flushed(&self) -> bool {
        self.write.is_empty() && !self.unflushed
    }

    /// Ready when more may be added to [`Conn::out`].
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write.len() - self.written < WRITE_ROOM {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    /// Writes what waits.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.write.len() {
            let Poll::Ready(count) = Pin::new(&mut self.io).poll_write(cx, &self.write[self.written..])?
            else {
                self.forget_written();
                return Poll::Pending;
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.total_written += count as u64;
        }
        spare::give(&mut self.write);
        self.written = 0;
        if matches!(self.io, Io::Plain(_)) {
            return Poll::Ready(Ok(()));
        }
        self.unflushed = true;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Gives back the room of what was written, once it is much: a steady slow reader may never let the rest be empty.
    fn forget_written(&mut self) {
        if self.written >= WRITE_ROOM {
            self.write.drain(..self.written);
            self.written = 0;
        }
    }

    /// How many bytes the kernel has taken so far; unchanged since a request began: the peer has seen nothing of it.
    pub fn total_written(&self) -> u64 {
        self.total_written
    }

    /// Ends our direction.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Gives back the buffers, before a time without work.
    pub fn release_buffers(&mut self) {
        if self.read.is_empty() && self.read.capacity() > 0 {
            self.read = BytesMut::new();
        }
        if self.write.is_empty() && self.write.capacity() > 0 {
            self.write = Vec::new();
        }
    }

    /// Marks `count` bytes of `read` as used.
    pub fn advance(&mut self, count: usize) {
        self.read.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpListener, TcpSocket},
    };

    use super::*;

    #[tokio::test]
    async fn a_steady_slow_reader_does_not_let_the_buffer_grow() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        let stream = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut reader, _) = listener.accept().await.unwrap();
        let mut conn = Conn::new(Io::Plain(stream), None);

        let (mut pushed, mut largest) = (0, 0);
        let mut piece = vec![0; 48 * 1024];
        while pushed < 4 * 1024 * 1024 {
            // Whatever is taken makes room for more at once, so there is never nothing to write.
            tokio::select! {
                biased;
                room = poll_fn(|cx| conn.poll_room(cx)) => {
                    room.unwrap();
                    conn.out().extend_from_slice(&[b'x'; SCRATCH]);
                    pushed += SCRATCH;
                    largest = largest.max(conn.out().len());
                }
                count = reader.read(&mut piece) => assert!(count.unwrap() > 0),
            }
        }
        assert!(largest <= 3 * WRITE_ROOM, "{largest} bytes were held");
    }
}
