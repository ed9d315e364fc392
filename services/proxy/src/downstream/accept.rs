//! Accepts connections, ends TLS and detects the protocol.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{self, IpAddr, Ipv4Addr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tidegate_bus::limit::LogLimit;
use tidegate_model::{ListenerName, fleet::ListenerLimits};
use tidegate_tls::ServerTls;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{http1, http2, open_connection::OpenConnection};
use crate::{
    clients::{Client, Network},
    wire::Io,
    worker_context::WorkerContext,
};

/// How long accepting pauses when the process has no file descriptors left.
const REST: Duration = Duration::from_millis(50);
/// The interval between log messages about failures to accept.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum number of connections that wait for room.
const MOST_WAITING: usize = 16;

/// A listener to accept connections on.
pub struct ListenSocket {
    /// The listener's name.
    pub name: ListenerName,
    /// The socket: this worker's own, in non-blocking mode. Absent: that of the listener of this name stays, so that no
    /// connection in its backlog is lost.
    pub socket: Option<net::TcpListener>,
    /// TLS, if the listener uses it.
    pub tls: Option<Arc<ServerTls>>,
    /// The listener's limits; `max_connections` is this worker's share.
    pub limits: ListenerLimits,
}

/// The acceptors of a worker, by listener.
pub struct Acceptors {
    worker: Rc<WorkerContext>,
    listeners: HashMap<ListenerName, Acceptor>,
}

/// The accepting task of a listener.
struct Acceptor {
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// The number of its connections, including those from before its last change.
    open: Rc<Cell<u32>>,
    /// The state that new connections get.
    state: Rc<RefCell<Rc<ListenerState>>>,
}

/// The state that the connections of a listener share.
pub struct ListenerState {
    tls: Option<(tokio_rustls::TlsAcceptor, Arc<ServerTls>)>,
    limits: Arc<ListenerLimits>,
    open: Rc<Cell<u32>>,
}

impl ListenerState {
    /// Whether another connection is allowed.
    fn has_room(&self) -> bool {
        self.open.get() < self.limits.max_connections
    }
}

impl Acceptors {
    /// No acceptors.
    pub fn new(worker: Rc<WorkerContext>) -> Acceptors {
        Acceptors { worker, listeners: HashMap::new() }
    }

    /// Starts accepting on a socket, replacing the listener's earlier one; without a socket, changes what new connections of
    /// the listener get.
    pub fn open(&mut self, listen: ListenSocket) {
        let earlier = self.listeners.get(&listen.name);
        let open = earlier.map_or_else(Rc::default, |earlier| earlier.open.clone());
        let state = Rc::new(ListenerState {
            tls: listen.tls.map(|tls| (tls.config().into(), tls)),
            limits: Arc::new(listen.limits),
            open: open.clone(),
        });
        let Some(socket) = listen.socket else {
            if let Some(earlier) = earlier {
                earlier.state.replace(state);
            }
            return;
        };
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(listener = %listen.name, %error, "cannot accept on a socket");
                return;
            }
        };
        let earlier = self.listeners.remove(&listen.name);
        let state = Rc::new(RefCell::new(state));
        let stop = CancellationToken::new();
        let task = self.worker.tasks.spawn_local(accept_connections(
            self.worker.clone(),
            socket,
            state.clone(),
            stop.clone(),
        ));
        self.listeners.insert(listen.name, Acceptor { stop, task, open, state });
        if let Some(earlier) = earlier {
            earlier.stop.cancel();
        }
    }

    /// Stops accepting on a listener. Its connections continue.
    pub fn close(&mut self, name: &ListenerName) {
        if let Some(accepted) = self.listeners.remove(name) {
            accepted.stop.cancel();
        }
    }

    /// Stops accepting on all listeners, and waits until the backlogs have been accepted.
    pub async fn close_all(&mut self) {
        for (_, Acceptor { stop, task, .. }) in self.listeners.drain() {
            stop.cancel();
            // It only fails if it panicked, which the runtime has reported.
            _ = task.await;
        }
    }
}

async fn accept_connections(
    worker: Rc<WorkerContext>,
    socket: TcpListener,
    state: Rc<RefCell<Rc<ListenerState>>>,
    stop: CancellationToken,
) {
    let mut failure_log = LogLimit::new(LOG_INTERVAL);
    loop {
        let stream = tokio::select! {
            biased;
            accepted = socket.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match stream {
            Ok((stream, address)) => {
                worker.counters.accepted.add(1);
                let listener = state.borrow().clone();
                let network = Network::of(address.ip());
                worker.make_room(network);
                if !listener.has_room() || worker.is_backed_up(network) {
                    worker.counters.over_limit.add(1);
                    continue;
                }
                if worker.clients.has_room(network) {
                    let open = OpenConnection::new(worker.clone(), network, listener.open.clone());
                    let connection =
                        serve_connection(worker.clone(), listener.clone(), stream, address.ip(), open);
                    worker.spawn(network, Box::pin(connection));
                } else if worker.waiting.get() < MOST_WAITING {
                    let waiting = wait_for_room(worker.clone(), listener.clone(), stream, address.ip());
                    worker.spawn(network, Box::pin(waiting));
                } else {
                    worker.counters.over_limit.add(1);
                }
            }
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                if failure_log.admit(Instant::now()) {
                    tracing::error!(%error, "cannot accept connections");
                }
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Serves a connection if there is room for it in time.
async fn wait_for_room(
    worker: Rc<WorkerContext>,
    listener: Rc<ListenerState>,
    stream: TcpStream,
    address: IpAddr,
) {
    let network = Network::of(address);
    worker.waiting.set(worker.waiting.get() + 1);
    let has_room = worker.wait_for_room(network).await;
    worker.waiting.set(worker.waiting.get() - 1);
    if has_room && listener.has_room() {
        let open = OpenConnection::new(worker.clone(), network, listener.open.clone());
        serve_connection(worker, listener, stream, address, open).await;
    } else {
        worker.counters.over_limit.add(1);
    }
}

/// Whether only the connection being accepted has failed.
fn is_of_the_peer(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Serves an accepted connection until it ends.
pub async fn serve_connection(
    worker: Rc<WorkerContext>,
    listener: Rc<ListenerState>,
    stream: TcpStream,
    address: IpAddr,
    open: OpenConnection,
) {
    // A closed connection is noticed at the first read.
    _ = stream.set_nodelay(true);
    let limits = listener.limits.clone();
    let address = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, |v4: Ipv4Addr| v4.into()),
        IpAddr::V4(_) => address,
    };
    let client = Client {
        address,
        is_tls: listener.tls.is_some(),
        is_http2: false,
        stall: limits.idle_timeout,
        health_endpoints: limits.health_endpoints,
        may_debug: limits.debug_from.iter().any(|network| network.contains(address)),
    };
    let Some((acceptor, certificates)) = &listener.tls else {
        return http1::serve(worker, Io::Plain(stream), client, &limits, &open).await;
    };
    // Boxed, like HTTP/2, so that an idle connection does not hold their memory.
    let Some((io, is_http2)) =
        Box::pin(tls_handshake(&worker, (acceptor, certificates), stream, limits.head_timeout, &open)).await
    else {
        return;
    };
    if is_http2 {
        Box::pin(http2::serve(worker, io, bytes::Bytes::new(), client, &limits, &open)).await;
    } else {
        http1::serve(worker, io, client, &limits, &open).await;
    }
}

/// Performs a TLS handshake. Returns the stream and whether HTTP/2 was negotiated; nothing if it failed.
async fn tls_handshake(
    worker: &WorkerContext,
    (acceptor, certificates): (&tokio_rustls::TlsAcceptor, &Arc<ServerTls>),
    stream: TcpStream,
    limit: Duration,
    open: &OpenConnection,
) -> Option<(Io, bool)> {
    let accepted = tokio::select! {
        accepted = timeout(limit, acceptor.accept(stream)) => accepted,
        () = open.wait_for_eviction() => return None,
    };
    match accepted {
        Ok(Ok(stream)) => {
            open.record_tls(certificates.clone(), stream.get_ref().1.server_name());
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tidegate_tls::HTTP2);
            Some((Io::Accepted(Box::new(stream)), is_http2))
        }
        Ok(Err(error)) => {
            worker.counters.tls_failures.add(1);
            tracing::debug!(%error, "TLS handshake failed");
            None
        }
        Err(_) => {
            worker.counters.too_slow.add(1);
            None
        }
    }
}
