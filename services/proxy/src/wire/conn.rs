//! A buffered connection. An idle one holds no buffers: reads go through a scratch buffer of the thread.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{CountGuard, Io, spare};

/// The most bytes per read.
const SCRATCH: usize = 64 * 1024;
/// The queued bytes above which no more are accepted, and the written bytes above which their memory is released
/// although more are queued. With one more chunk of [`SCRATCH`] bytes queued while there was room, three times this
/// bounds the memory per direction.
const WRITE_ROOM: usize = 64 * 1024;
/// The data that TLS buffers while the peer does not read.
const TLS_BUFFER: usize = 64 * 1024;

/// The beginning of a response by which a server reports that an idle connection timed out.
const TIMED_OUT: &[u8; 13] = b"HTTP/1.1 408 ";
const TIMED_OUT_HTTP10: &[u8; 13] = b"HTTP/1.0 408 ";

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// The state of an idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleState {
    /// Nothing was received.
    Clean,
    /// The peer has closed it, or it has failed.
    Closed,
    /// The peer sent bytes that belong to no request.
    Excess,
}

/// A connection with its read and write buffers.
pub struct Conn {
    io: Io,
    /// Bytes that were read and not used yet.
    pub read: BytesMut,
    write: Vec<u8>,
    written: usize,
    total_written: u64,
    /// Whether TLS may have unwritten records although `write` is empty.
    unflushed: bool,
    ended: bool,
    /// Counts the connection until dropped.
    _guard: Option<CountGuard>,
}

impl Conn {
    /// A connection of which nothing was read yet. `guard` counts it.
    pub fn new(io: Io, guard: Option<CountGuard>) -> Conn {
        Conn {
            io,
            read: BytesMut::new(),
            write: Vec::new(),
            written: 0,
            total_written: 0,
            unflushed: false,
            ended: false,
            _guard: guard,
        }
    }

    /// The underlying stream.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Splits the connection into the stream and the bytes read.
    pub fn into_parts(self) -> (Io, BytesMut) {
        (self.io, self.read)
    }

    /// Whether the peer has closed its sending direction.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Reads available bytes into `read`. Returns their number, 0 at the end of the stream.
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

    /// The state of an idle connection. The check costs a system call only if `ask_kernel` is set or the runtime knows
    /// that something arrived.
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
            // Bytes remain that the runtime does not know of: the connection is not reliable.
            Ok(None) if self.io.has_unread(ask_kernel) => IdleState::Closed,
            Ok(None) => IdleState::Clean,
            Ok(Some(0)) | Err(_) => IdleState::Closed,
            // A server may send 408 when it closes an idle connection (RFC 9110, section 15.5.9).
            Ok(Some(_)) if head == *TIMED_OUT || head == *TIMED_OUT_HTTP10 => IdleState::Closed,
            Ok(Some(_)) => IdleState::Excess,
        }
    }

    /// The write buffer, to append to.
    pub fn out(&mut self) -> &mut Vec<u8> {
        if self.write.capacity() == 0 {
            self.write = spare::take();
        }
        &mut self.write
    }

    /// The size of its buffers.
    pub fn buffered(&self) -> usize {
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

    /// Writes queued data.
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
        spare::put(&mut self.write);
        self.written = 0;
        if matches!(self.io, Io::Plain(_)) {
            return Poll::Ready(Ok(()));
        }
        self.unflushed = true;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Releases written bytes, once they are many: with a slow reader the buffer may never become empty.
    fn forget_written(&mut self) {
        if self.written >= WRITE_ROOM {
            self.write.drain(..self.written);
            self.written = 0;
        }
    }

    /// The total of bytes passed to the kernel. If unchanged since a request began, the peer has seen nothing of it.
    pub fn total_written(&self) -> u64 {
        self.total_written
    }

    /// Flushes, and closes the sending direction.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Releases empty buffers, before an idle period.
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
            // Whatever is written makes room for more, so the buffer never becomes empty.
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
