//! A byte stream: plain or TLS, of either side.

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
    /// TLS towards a client.
    Accepted(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// TLS towards an endpoint.
    Connected(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Io {
    /// The TCP stream below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Io::Plain(stream) => stream,
            Io::Accepted(stream) => stream.get_ref().0,
            Io::Connected(stream) => stream.get_ref().0,
        }
    }

    /// Lets the connection end with a reset: a peer that waits for the end of the stream must not take this one for it.
    pub fn reset_on_close(&self) {
        // Where it fails, the connection has failed already.
        _ = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Whether the peer has closed or sent something, without waiting and without taking anything.
    ///
    /// By the runtime's readiness, which is as fresh as its last look at the kernel, no system call is made where nothing
    /// came; with `ask_kernel` one is made always.
    pub fn has_unread(&self, ask_kernel: bool) -> bool {
        let tcp = self.tcp();
        let look = || SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]);
        let looked = if ask_kernel { look() } else { tcp.try_io(Interest::READABLE, look) };
        let came = match looked {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        // What was decrypted already is no news to the kernel.
        came || match self {
            Io::Plain(_) => false,
            Io::Accepted(stream) => !stream.get_ref().1.wants_read(),
            Io::Connected(stream) => !stream.get_ref().1.wants_read(),
        }
    }

    /// Takes what came, decrypted, without waiting. Nothing where it is not for the reader of a stream: TLS says more than data.
    ///
    /// # Errors
    /// What the connection failed with.
    pub fn take_unread(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if let Io::Plain(stream) = self {
            // Asked of the kernel itself, since the runtime may not know of it yet.
            return match (&*SockRef::from(&*stream)).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                taken => taken.map(Some),
            };
        }
        let mut buffer = ReadBuf::new(buffer);
        let reading = poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, &mut buffer));
        // A task that has used up its turn would be told that there is nothing.
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
