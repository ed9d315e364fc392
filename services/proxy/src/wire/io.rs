//! A byte stream: plain TCP or TLS.

use std::{
    future::{Future as _, poll_fn},
    io::{self, Read as _},
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    task::coop::unconstrained,
};

/// A connected byte stream.
pub enum Io {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS, as the server of a client.
    Accepted(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// TLS, as the client of an endpoint.
    Connected(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Io {
    /// The underlying TCP stream.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Io::Plain(stream) => stream,
            Io::Accepted(stream) => stream.get_ref().0,
            Io::Connected(stream) => stream.get_ref().0,
        }
    }

    /// Makes the connection close with a reset, so that the peer cannot take it for a regular end of the stream.
    pub fn reset_on_close(&self) {
        // If it fails, the connection has failed already.
        _ = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Whether the peer has closed the connection or sent something. Reads nothing and never waits.
    ///
    /// Without `ask_kernel` a system call is only made if the runtime's readiness, as of its last poll, reports data.
    pub fn has_unread(&self, ask_kernel: bool) -> bool {
        let tcp = self.tcp();
        let look = || SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]);
        let looked = if ask_kernel { look() } else { tcp.try_io(Interest::READABLE, look) };
        let came = match looked {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        // The kernel does not know of decrypted data.
        came || match self {
            Io::Plain(_) => false,
            Io::Accepted(stream) => !stream.get_ref().1.wants_read(),
            Io::Connected(stream) => !stream.get_ref().1.wants_read(),
        }
    }

    /// Reads available decrypted bytes without waiting. Nothing if there are none: TLS records may carry no data.
    ///
    /// # Errors
    /// The error of the connection.
    pub fn take_unread(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if let Io::Plain(stream) = self {
            // Reads from the kernel directly, since the runtime may not know of the data yet.
            return match (&*SockRef::from(&*stream)).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                taken => taken.map(Some),
            };
        }
        let mut buffer = ReadBuf::new(buffer);
        let reading = poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, &mut buffer));
        // A task that has used up its cooperative budget would get nothing.
        match pin!(unconstrained(reading)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Ok(None),
            Poll::Ready(taken) => taken.map(|()| Some(buffer.filled().len())),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Accepted(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Connected(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Accepted(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Connected(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Accepted(stream) => Pin::new(stream).poll_flush(cx),
            Io::Connected(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Accepted(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Connected(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
