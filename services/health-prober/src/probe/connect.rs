//! Making a connection to an endpoint.

use std::io;

use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_model::{
    fleet::{Address, UpstreamProtocol},
    observation::Failure,
};
use tidegate_service::files::is_resource_exhaustion;
use tidegate_tls::HTTP2;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsConnector;

use super::{Refusal, http2::Http2, way::Way};

/// A connection that can carry one request after the other.
#[derive(Debug)]
pub enum Connection {
    /// HTTP/1.1.
    Http1(Stream),
    /// HTTP/2.
    Http2(Http2),
}

/// A byte stream to an endpoint.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// A stream of either kind.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Stream {
    pub(super) fn io(&mut self) -> &mut dyn Io {
        match self {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream,
        }
    }
}

/// A new connection, ready for a request, within the cluster's `connect_timeout` and before `deadline`. With
/// `http2_only` it is HTTP/2 whatever the cluster's protocol.
pub(super) async fn connect(
    way: &Way,
    endpoint: &Address,
    http2_only: bool,
    deadline: Instant,
) -> Result<Connection, Refusal> {
    let deadline = deadline.min(Instant::now() + way.upstream.connect_timeout);
    let tcp = tokio::time::timeout_at(deadline, dial(endpoint))
        .await
        .map_err(|_| Failure::ConnectTimeout)?
        .map_err(|error| match error.kind() {
        _ if is_resource_exhaustion(&error, endpoint.ip()) => Refusal::Here(error),
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused.into(),
        io::ErrorKind::TimedOut => Failure::ConnectTimeout.into(),
        io::ErrorKind::ConnectionReset => Failure::Reset.into(),
        _ => Failure::ConnectError.into(),
    })?;
    // The kernel accepts for a process that hangs, so silence from here on is the process's.
    tokio::time::timeout_at(deadline, speak(way, endpoint, http2_only, tcp))
        .await
        .unwrap_or(Err(Failure::NoAnswer))
        .map_err(Refusal::from)
}

async fn dial(endpoint: &Address) -> io::Result<TcpStream> {
    let stream = match endpoint {
        Address::Ip(address) => TcpStream::connect(address).await?,
        Address::Name { host, port } => TcpStream::connect((host.as_str(), *port)).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The handshakes above TCP.
async fn speak(
    way: &Way,
    endpoint: &Address,
    http2_only: bool,
    tcp: TcpStream,
) -> Result<Connection, Failure> {
    let prior_knowledge = http2_only || way.upstream.protocol == UpstreamProtocol::Http2;
    let (stream, http2) = match &way.tls {
        None => (Stream::Plain(tcp), prior_knowledge),
        Some((by_protocol, only_http2)) => {
            let tls = if http2_only { only_http2 } else { by_protocol };
            let name = tls.server_name(endpoint).map_err(|_| Failure::Tls)?;
            let stream = TlsConnector::from(tls.config()).connect(name, tcp).await.map_err(|error| {
                match error.kind() {
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => Failure::Reset,
                    _ => Failure::Tls,
                }
            })?;
            // Some servers speak HTTP/2 without saying so; where it is configured, it is spoken.
            let http2 = match stream.get_ref().1.alpn_protocol() {
                Some(protocol) => protocol == HTTP2,
                None => prior_knowledge,
            };
            (Stream::Tls(Box::new(stream)), http2)
        }
    };
    if !http2 {
        return Ok(Connection::Http1(stream));
    }
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let shaken = match stream {
        Stream::Plain(stream) => Http2::start(builder.handshake(TokioIo::new(stream)).await),
        Stream::Tls(stream) => Http2::start(builder.handshake(TokioIo::new(*stream)).await),
    };
    shaken.map(Connection::Http2).map_err(|_| Failure::Reset)
}
