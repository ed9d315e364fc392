//! Connections to endpoints.

use std::io;

use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_model::{
    fleet::{Address, UpstreamProtocol},
    observation::Failure,
};
use tidegate_service::files::is_resource_exhaustion;
use tidegate_tls::HTTP2;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsConnector;

use super::{error::ConnectError, http2::Http2, stream::Stream, transport::ProbeTransport};

/// A connection to an endpoint, for one request at a time.
#[derive(Debug)]
pub enum Connection {
    /// HTTP/1.1.
    Http1(Stream),
    /// HTTP/2.
    Http2(Http2),
}

/// Makes a connection within the cluster's `connect_timeout` and before `deadline`. `http2_only` overrides the cluster's
/// protocol.
pub(super) async fn connect(
    transport: &ProbeTransport,
    endpoint: &Address,
    http2_only: bool,
    deadline: Instant,
) -> Result<Connection, ConnectError> {
    let deadline = deadline.min(Instant::now() + transport.upstream.connect_timeout);
    let tcp = tokio::time::timeout_at(deadline, dial(endpoint))
        .await
        .map_err(|_| Failure::ConnectTimeout)?
        .map_err(|error| match error.kind() {
        _ if is_resource_exhaustion(&error, endpoint.ip()) => ConnectError::LocalResources(error),
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused.into(),
        io::ErrorKind::TimedOut => Failure::ConnectTimeout.into(),
        io::ErrorKind::ConnectionReset => Failure::Reset.into(),
        _ => Failure::ConnectError.into(),
    })?;
    // The kernel accepts connections for a process that hangs, so from here on a timeout means no response.
    tokio::time::timeout_at(deadline, handshake(transport, endpoint, http2_only, tcp))
        .await
        .unwrap_or(Err(Failure::NoResponse))
        .map_err(ConnectError::from)
}

async fn dial(endpoint: &Address) -> io::Result<TcpStream> {
    let stream = match endpoint {
        Address::Ip(address) => TcpStream::connect(address).await?,
        Address::Name { host, port } => TcpStream::connect((host.as_str(), *port)).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Performs the handshakes above TCP.
async fn handshake(
    transport: &ProbeTransport,
    endpoint: &Address,
    http2_only: bool,
    tcp: TcpStream,
) -> Result<Connection, Failure> {
    let prior_knowledge = http2_only || transport.upstream.protocol == UpstreamProtocol::Http2;
    let (stream, http2) = match &transport.tls {
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
            // Some servers speak HTTP/2 without ALPN; if it is configured, it is used.
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
    let http2 = match stream {
        Stream::Plain(stream) => Http2::start(builder.handshake(TokioIo::new(stream)).await),
        Stream::Tls(stream) => Http2::start(builder.handshake(TokioIo::new(*stream)).await),
    };
    http2.map(Connection::Http2).map_err(|_| Failure::Reset)
}
