//! A byte stream: plain or TLS, of either side.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
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
        _ = socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Whether the peer has closed or sent something, asked of the kernel without waiting and without taking anything.
    pub fn has_news(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        match socket2::SockRef::from(self.tcp()).peek(&mut byte) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
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
