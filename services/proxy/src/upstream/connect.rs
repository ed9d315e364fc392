//! Opens upstream connections.

use std::{cell::RefCell, io, sync::Arc, time::Duration};

use bytes::Bytes;
use socket2::SockRef;
use tidegate_bus::limit::LogLimit;
use tidegate_model::{
    fleet::{Address, UpstreamProtocol},
    observation::Failure,
};
use tidegate_service::files::is_resource_exhaustion;
use tokio::{net::TcpStream, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    endpoint::InFlightRequest,
    error::{ConnectError, Fault},
    http2_conn::{Http2Conn, UNKNOWN_STREAM_LIMIT},
    single_flight::Leader,
};
use crate::{
    metrics::WorkerCounters,
    wire::{Coalesced, Conn, CountGuard, Flusher, Io, Peer, USER_TIMEOUT, coalesce, set_keepalive},
};

/// The interval between log messages about a shortage of file descriptors or ports.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long a graceful close of upstream connections may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// The flow-control window of an upstream HTTP/2 stream; a connection's is four times as large.
const STREAM_WINDOW: u32 = 256 * 1024;

/// The most body data buffered per HTTP/2 stream for an endpoint that does not read.
pub const SEND_BUFFER: usize = 64 * 1024;

/// A new connection.
pub enum Connected {
    /// HTTP/1.1.
    Http1(Conn),
    /// HTTP/2, already in the endpoint's pool.
    Http2(Http2Conn),
}

/// An established connection.
enum Established {
    Http1(Conn),
    Http2(CountGuard, h2::client::SendRequest<Bytes>, Box<h2::client::Connection<Coalesced, Bytes>>, Flusher),
}

/// Opens upstream connections, and drives the HTTP/2 ones.
pub struct Connector {
    tasks: TaskTracker,
    counters: Arc<WorkerCounters>,
    /// Limits log messages about a shortage of file descriptors or ports.
    shortage_log: RefCell<LogLimit>,
}

impl Connector {
    /// A connector without connections.
    pub fn new(counters: Arc<WorkerCounters>) -> Connector {
        Connector {
            tasks: TaskTracker::new(),
            counters,
            shortage_log: RefCell::new(LogLimit::new(LOG_INTERVAL)),
        }
    }

    /// Connects to the endpoint of `in_flight`, including TLS and the HTTP/2 preface, within the cluster's connect
    /// timeout.
    ///
    /// `claimed` counts the connection against the limit; nothing if the limit is reached. With `http1_only`, HTTP/2 is
    /// not offered: for upgrades. The waiters of `leader` continue once the HTTP/2 connection can take them, or when
    /// connecting failed.
    pub async fn connect(
        &self,
        in_flight: &InFlightRequest,
        claimed: Option<CountGuard>,
        http1_only: bool,
        leader: Option<Leader>,
    ) -> Result<Connected, ConnectError> {
        let (cluster, endpoint) = (&in_flight.cluster, &in_flight.endpoint);
        let made = match claimed {
            Some(guard) => {
                let connecting = self.handshake(in_flight, http1_only, guard);
                tokio::time::timeout(cluster.upstream.connect_timeout, connecting)
                    .await
                    .unwrap_or_else(|_| Err(Failure::ConnectTimeout.into()))
            }
            None => {
                self.report_shortage(&io::Error::other(
                    "the limit on upstream connections, or one client's share of it, is reached",
                ));
                Err(ConnectError { failure: Failure::ConnectError, fault: Fault::LocalResources })
            }
        };
        match made {
            Ok(Established::Http1(conn)) => {
                if !http1_only {
                    endpoint.pool.single_flight.set_http1(true);
                }
                Ok(Connected::Http1(conn))
            }
            Ok(Established::Http2(guard, send, connection, flusher)) => {
                endpoint.pool.single_flight.set_http1(false);
                let conn = Http2Conn::new(send, cluster.upstream.idle_timeout);
                endpoint.pool.put_http2(conn.clone());
                self.tasks.spawn_local(conn.drive(*connection, flusher, leader, guard));
                Ok(Connected::Http2(conn))
            }
            Err(error) => {
                if let Some(leader) = leader {
                    leader.fail(error.clone());
                }
                Err(error)
            }
        }
    }

    /// Spawns a task that uses a connection.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(task);
    }

    /// Waits until the HTTP/2 connections have closed gracefully, for a limited time.
    pub async fn close(&self) {
        self.tasks.close();
        _ = tokio::time::timeout(GOODBYE, self.tasks.wait()).await;
    }

    /// Counts and logs that this machine lacks resources for an upstream connection.
    fn report_shortage(&self, error: &io::Error) {
        self.counters.cannot_connect.add(1);
        if self.shortage_log.borrow_mut().admit(Instant::now()) {
            tracing::error!(%error, "cannot connect to endpoints: this machine lacks file descriptors or ports");
        }
    }

    async fn handshake(
        &self,
        in_flight: &InFlightRequest,
        http1_only: bool,
        guard: CountGuard,
    ) -> Result<Established, ConnectError> {
        let (cluster, endpoint) = (&in_flight.cluster, &in_flight.endpoint);
        let stream = match &endpoint.address {
            Address::Ip(address) => TcpStream::connect(address).await,
            Address::Name { host, port } => TcpStream::connect((host.as_str(), *port)).await,
        }
        .map_err(|error| match error.kind() {
            _ if is_resource_exhaustion(&error, endpoint.address.ip()) => {
                self.report_shortage(&error);
                ConnectError { failure: Failure::ConnectError, fault: Fault::LocalResources }
            }
            io::ErrorKind::ConnectionRefused => Failure::ConnectRefused.into(),
            io::ErrorKind::TimedOut => Failure::ConnectTimeout.into(),
            _ => Failure::ConnectError.into(),
        })?;
        // Otherwise a request written in two parts would wait for the peer's delayed acknowledgement.
        stream.set_nodelay(true).map_err(|_| Failure::ConnectError)?;
        set_keepalive(&SockRef::from(&stream), USER_TIMEOUT).map_err(|_| Failure::ConnectError)?;
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
            return Ok(Established::Http1(Conn::new(io, Some(guard))));
        }
        let (stream, flusher) = coalesce(io, Bytes::new(), Peer::Server);
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW * 4)
            .max_header_list_size(64 * 1024)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            // Marks that the peer has not sent its limit yet.
            .initial_max_send_streams(UNKNOWN_STREAM_LIMIT)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(|_| Failure::Reset)?;
        Ok(Established::Http2(guard, send, Box::new(connection), flusher))
    }
}
