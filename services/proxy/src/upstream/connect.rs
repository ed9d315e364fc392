//! Makes connections to endpoints.

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
    endpoint::InFlight,
    error::{ConnectError, Fault},
    http2_conn::{Http2Conn, UNSETTLED},
    single_flight::Leader,
};
use crate::{
    metrics::WorkerCounters,
    wire::{Coalesced, Conn, Counted, Flusher, Io, Peer, UNACKNOWLEDGED, coalesce, end_when_gone},
};

/// How often at most it is logged that this machine lacks files.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long the last words to endpoints may take.
const GOODBYE: Duration = Duration::from_millis(500);

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

/// What came of a handshake.
enum Made {
    Http1(Conn),
    Http2(Counted, h2::client::SendRequest<Bytes>, Box<h2::client::Connection<Coalesced, Bytes>>, Flusher),
}

/// Makes the connections to endpoints, and keeps those that many requests share going.
pub struct Connector {
    tasks: TaskTracker,
    counters: Arc<WorkerCounters>,
    /// Logs that this machine lacks what a connection takes.
    lack_log: RefCell<LogLimit>,
}

impl Connector {
    /// Without connections.
    pub fn new(counters: Arc<WorkerCounters>) -> Connector {
        Connector { tasks: TaskTracker::new(), counters, lack_log: RefCell::new(LogLimit::new(LOG_INTERVAL)) }
    }

    /// Connects to the endpoint of `flight`, TLS and HTTP/2 preface included, within the cluster's connect timeout.
    ///
    /// `claimed` is the connection's place among those that this machine can have; nothing where there is none left. With
    /// `http1_only`, HTTP/2 is not offered: for upgrades. Those who wait for what `leader` makes go on when an HTTP/2
    /// connection can take them, or when it has failed.
    pub async fn connect(
        &self,
        flight: &InFlight,
        claimed: Option<Counted>,
        http1_only: bool,
        leader: Option<Leader>,
    ) -> Result<Connected, ConnectError> {
        let (cluster, endpoint) = (&flight.cluster, &flight.endpoint);
        let made = match claimed {
            Some(counted) => {
                let connecting = self.handshake(flight, http1_only, counted);
                tokio::time::timeout(cluster.upstream.connect_timeout, connecting)
                    .await
                    .unwrap_or_else(|_| Err(Failure::ConnectTimeout.into()))
            }
            None => {
                self.report_lack(&io::Error::other(
                    "as many connections to endpoints as the limit on files allows, or as many as one client may have of them",
                ));
                Err(ConnectError { failure: Failure::ConnectError, fault: Fault::LocalResources })
            }
        };
        match made {
            Ok(Made::Http1(conn)) => {
                if !http1_only {
                    endpoint.pool.single_flight.set_http1(true);
                }
                Ok(Connected::Http1(conn))
            }
            Ok(Made::Http2(counted, send, connection, flusher)) => {
                endpoint.pool.single_flight.set_http1(false);
                let conn = Http2Conn::new(send, cluster.upstream.idle_timeout);
                endpoint.pool.put_http2(conn.clone());
                self.tasks.spawn_local(conn.drive(*connection, flusher, leader, counted));
                Ok(Connected::Http2(conn))
            }
            Err(unconnected) => {
                if let Some(leader) = leader {
                    leader.failed(unconnected.clone());
                }
                Err(unconnected)
            }
        }
    }

    /// Runs a task that uses a connection.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.spawn_local(task);
    }

    /// Waits until the connections that are shared have ended, no longer than a goodbye takes.
    pub async fn close(&self) {
        self.tasks.close();
        _ = tokio::time::timeout(GOODBYE, self.tasks.wait()).await;
    }

    /// This machine lacks what a connection to an endpoint takes.
    fn report_lack(&self, error: &io::Error) {
        self.counters.cannot_connect.add(1);
        if self.lack_log.borrow_mut().admit(Instant::now()) {
            tracing::error!(%error, "cannot connect to endpoints: this machine lacks files or ports");
        }
    }

    async fn handshake(
        &self,
        flight: &InFlight,
        http1_only: bool,
        counted: Counted,
    ) -> Result<Made, ConnectError> {
        let (cluster, endpoint) = (&flight.cluster, &flight.endpoint);
        let stream = match &endpoint.address {
            Address::Ip(address) => TcpStream::connect(address).await,
            Address::Name { host, port } => TcpStream::connect((host.as_str(), *port)).await,
        }
        .map_err(|error| match error.kind() {
            _ if is_resource_exhaustion(&error, endpoint.address.ip()) => {
                self.report_lack(&error);
                ConnectError { failure: Failure::ConnectError, fault: Fault::LocalResources }
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
}
