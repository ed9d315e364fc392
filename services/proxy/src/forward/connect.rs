//! Makes connections to endpoints.

use std::{io, rc::Rc, sync::Arc};

use bytes::Bytes;
use socket2::SockRef;
use tidegate_model::{
    fleet::{Address, UpstreamProtocol},
    observation::Failure,
};
use tidegate_service::files::is_resource_exhaustion;
use tokio::net::TcpStream;

use super::{
    attempt::Fault,
    http2_conn::{Http2Conn, UNSETTLED},
    sharing::Maker,
};
use crate::{
    balance::InFlight,
    wire::{Coalesced, Conn, Counted, Flusher, Io, Peer, UNACKNOWLEDGED, coalesce, end_when_gone},
    worker::Worker,
};

/// The window that an upstream HTTP/2 stream may fill before it is read; a connection may fill four of them.
const STREAM_WINDOW: u32 = 256 * 1024;

/// What is kept of a request's body for an endpoint that does not read.
pub const SEND_BUFFER: usize = 64 * 1024;

/// A new connection.
pub enum Connected {
    /// HTTP/1.1.
    Http1(Conn),
    /// HTTP/2; it is in the endpoint's pool already.
    Http2(Http2Conn),
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub struct Unconnected {
    /// What happened.
    pub failure: Failure,
    /// What it says of the endpoint.
    pub fault: Fault,
}

impl From<Failure> for Unconnected {
    fn from(failure: Failure) -> Unconnected {
        Unconnected { failure, fault: Fault::Endpoint }
    }
}

/// Connects to the endpoint of `flight`, TLS and HTTP/2 preface included, within the cluster's connect timeout.
///
/// With `http1_only`, HTTP/2 is not offered: for upgrades. Those who wait for what `maker` makes go on when an HTTP/2
/// connection can take them, or when it has failed.
pub async fn connect(
    worker: &Rc<Worker>,
    flight: &InFlight,
    http1_only: bool,
    maker: Option<Maker>,
) -> Result<Connected, Unconnected> {
    let (cluster, endpoint) = (&flight.cluster, &flight.endpoint);
    // Outside of the timeout: that this machine has none left says nothing of the endpoint.
    let made = match worker.claim_upstream(flight).await {
        Some(counted) => {
            let connecting = handshake(worker, flight, http1_only, counted);
            tokio::time::timeout(cluster.upstream.connect_timeout, connecting)
                .await
                .unwrap_or_else(|_| Err(Failure::ConnectTimeout.into()))
        }
        None => {
            worker.cannot_connect(&io::Error::other(
                "as many connections to endpoints as the limit on files allows, or as many as one client may have of them",
            ));
            Err(Unconnected { failure: Failure::ConnectError, fault: Fault::Ours })
        }
    };
    match made {
        Ok(Made::Http1(conn)) => {
            if !http1_only {
                endpoint.pool.sharing.speaks_http1(true);
            }
            Ok(Connected::Http1(conn))
        }
        Ok(Made::Http2(counted, send, connection, flusher)) => {
            endpoint.pool.sharing.speaks_http1(false);
            let conn = Http2Conn::new(send, cluster.upstream.idle_timeout);
            endpoint.pool.put_http2(conn.clone());
            worker.upstreams.spawn_local(conn.drive(*connection, flusher, maker, counted));
            Ok(Connected::Http2(conn))
        }
        Err(unconnected) => {
            if let Some(maker) = maker {
                maker.failed(unconnected.clone());
            }
            Err(unconnected)
        }
    }
}

/// What came of a handshake.
enum Made {
    Http1(Conn),
    Http2(Counted, h2::client::SendRequest<Bytes>, Box<h2::client::Connection<Coalesced, Bytes>>, Flusher),
}

async fn handshake(
    worker: &Worker,
    flight: &InFlight,
    http1_only: bool,
    counted: Counted,
) -> Result<Made, Unconnected> {
    let (cluster, endpoint) = (&flight.cluster, &flight.endpoint);
    let stream = match &endpoint.address {
        Address::Ip(address) => TcpStream::connect(address).await,
        Address::Name { host, port } => TcpStream::connect((host.as_str(), *port)).await,
    }
    .map_err(|error| match error.kind() {
        _ if is_resource_exhaustion(&error, endpoint.address.ip()) => {
            worker.cannot_connect(&error);
            Unconnected { failure: Failure::ConnectError, fault: Fault::Ours }
        }
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused.into(),
        io::ErrorKind::TimedOut => Failure::ConnectTimeout.into(),
        _ => Failure::ConnectError.into(),
    })?;
    // Without this a request that is written in two parts waits for the peer's delayed acknowledgement.
    stream.set_nodelay(true).map_err(|_| Failure::ConnectError)?;
    end_when_gone(&SockRef::from(&stream), UNACKNOWLEDGED).map_err(|_| Failure::ConnectError)?;
    cluster.counters.connects.add(1);
    let mut http2 = cluster.upstream.protocol == UpstreamProtocol::Http2 && !http1_only;
    let io = match &cluster.upstream.tls {
        None => Io::Plain(stream),
        Some(_) => {
            let tls = cluster.tls.as_ref().and_then(|tls| tls.get()).ok_or(Failure::Tls)?;
            let name = tls.server_name(&endpoint.address).map_err(|_| Failure::Tls)?;
            let mut config = tls.config();
            if http1_only {
                let mut narrowed = (*config).clone();
                narrowed.alpn_protocols = vec![tidegate_tls::HTTP1.to_vec()];
                config = Arc::new(narrowed);
            }
            let stream = tokio_rustls::TlsConnector::from(config)
                .connect(name, stream)
                .await
                .map_err(|_| Failure::Tls)?;
            http2 |= stream.get_ref().1.alpn_protocol() == Some(tidegate_tls::HTTP2);
            Io::Connected(Box::new(stream))
        }
    };
    if !http2 {
        return Ok(Made::Http1(Conn::new(io, Some(counted))));
    }
    let (stream, flusher) = coalesce(io, Bytes::new(), Peer::Server);
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * 4)
        .max_header_list_size(64 * 1024)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        // Shows that the peer has not said yet how many it takes.
        .initial_max_send_streams(UNSETTLED)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|_| Failure::Reset)?;
    Ok(Made::Http2(counted, send, Box::new(connection), flusher))
}
