//! Opens, changes and closes an edge's listeners according to its entry in the table.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tidegate_model::{
    ListenerName,
    fleet::{Listener, ListenerProtocol},
};
use tidegate_service::Ports;
use tidegate_tls::{HTTP1, HTTP2, Renewable as _, ServerTls, TlsError};

use super::{port_holder::PortHolder, workers::Workers};
use crate::{
    downstream::ListenSocket,
    wire::{USER_TIMEOUT, set_keepalive},
    worker::WorkerCommand,
};

/// The accept backlog per worker (Linux limits it to `net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// An edge's listeners: those that are open, and those that are wanted.
pub struct Listeners {
    /// Whether ports are shared with another process.
    take_over: bool,
    /// Whether nothing was opened yet: then a port that another edge holds ends the process.
    is_starting: bool,
    open: BTreeMap<ListenerName, OpenListener>,
    wanted: BTreeMap<ListenerName, Listener>,
    /// Why a wanted listener is not open as configured.
    problems: BTreeMap<ListenerName, String>,
}

/// Why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// Its certificates cannot be used.
    #[error("TLS cannot be used: {0}")]
    Tls(#[from] TlsError),
    /// Another edge listens on its address.
    #[error(
        "{address} is held by another edge, {holder}; stop it first, or hand over to this one (take_over)"
    )]
    HeldByEdge {
        /// The address.
        address: SocketAddr,
        /// The other edge's process.
        holder: PortHolder,
    },
    /// The address cannot be bound.
    #[error("{address} cannot be bound: {error}{}", holder.as_ref().map(|by| format!(", by {by}")).unwrap_or_default())]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The process that listens on it, if one was found.
        holder: Option<PortHolder>,
        /// The error.
        error: io::Error,
    },
}

struct OpenListener {
    listener: Listener,
    address: SocketAddr,
    tls: Option<Arc<ServerTls>>,
    /// Why new certificates were rejected.
    refused: Option<String>,
}

impl Listeners {
    /// No listeners. With `take_over` their ports may be shared with another process.
    pub fn new(take_over: bool) -> Listeners {
        Listeners {
            take_over,
            is_starting: true,
            open: BTreeMap::new(),
            wanted: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    /// The problems of listeners, by name.
    pub fn problems(&self) -> &BTreeMap<ListenerName, String> {
        &self.problems
    }

    /// Why new certificates of open listeners are not in use, by name; the old ones stay.
    pub fn certificate_problems(&self) -> BTreeMap<ListenerName, String> {
        let refused = self.open.iter().filter_map(|(name, open)| Some((name.clone(), open.refused.clone()?)));
        refused.collect()
    }

    /// Sets the wanted listeners, and opens and closes accordingly.
    ///
    /// # Errors
    /// If another edge holds the port of one of the first listeners.
    pub async fn set_wanted(
        &mut self,
        wanted: &[(ListenerName, Listener)],
        workers: &Workers,
        ports: &Ports,
    ) -> Result<(), ListenerError> {
        self.wanted = wanted.iter().cloned().collect();
        self.problems.retain(|name, _| self.wanted.contains_key(name));
        let gone: Vec<ListenerName> =
            self.open.keys().filter(|name| !self.wanted.contains_key(*name)).cloned().collect();
        for name in gone {
            self.open.remove(&name);
            tracing::info!(listener = %name, "no longer accepting");
            workers.send_each(|_| Some(WorkerCommand::Unlisten(name.clone()))).await;
        }
        self.retry_and_renew(workers, ports).await?;
        self.is_starting = false;
        Ok(())
    }

    /// Retries listeners that could not be opened, and reloads changed certificates. Called once a second.
    ///
    /// # Errors
    /// If another edge holds the port of one of the first listeners.
    pub async fn retry_and_renew(&mut self, workers: &Workers, ports: &Ports) -> Result<(), ListenerError> {
        for (name, open) in &mut self.open {
            if let Some(tls) = open.tls.clone() {
                let renewing = tls.clone();
                let renewed = tokio::task::spawn_blocking(move || renewing.renew()).await;
                match renewed {
                    Ok(Ok(true)) => tracing::info!(listener = %name, "new certificates are in use"),
                    Ok(Ok(false)) | Err(_) => {}
                    Ok(Err(error)) => {
                        let problem = error.to_string();
                        if open.refused.as_ref() != Some(&problem) {
                            tracing::warn!(listener = %name, %error, "new certificates were rejected, the old ones stay in use");
                        }
                        open.refused = Some(problem);
                        continue;
                    }
                }
                // Rejected files are not loaded again until they change.
                open.refused = tls.problem();
            }
        }
        for (name, listener) in self.wanted.clone() {
            if self.open.get(&name).is_some_and(|open| open.listener == listener) {
                // The configuration may have been changed and reverted.
                self.problems.remove(&name);
                continue;
            }
            match self.open_one(&name, &listener, workers).await {
                Ok(open) => {
                    if let Err(error) = ports.add(name.as_str(), open.address) {
                        tracing::error!(%error, "the ports file cannot be written");
                    }
                    self.problems.remove(&name);
                    self.open.insert(name, open);
                }
                Err(error @ ListenerError::HeldByEdge { .. }) if self.is_starting => return Err(error),
                Err(error) => {
                    let problem = error.to_string();
                    if self.problems.get(&name) != Some(&problem) {
                        tracing::error!(listener = %name, "{problem}");
                    }
                    self.problems.insert(name, problem);
                }
            }
        }
        Ok(())
    }

    async fn open_one(
        &self,
        name: &ListenerName,
        listener: &Listener,
        workers: &Workers,
    ) -> Result<OpenListener, ListenerError> {
        let tls = match &listener.protocol {
            ListenerProtocol::Http => None,
            ListenerProtocol::Https { certificates } => {
                let tls = ServerTls::load(certificates, &[HTTP2, HTTP1]);
                Some(Arc::new(tls?))
            }
        };
        // A listener that only changes its limits keeps its port, even one chosen by the system.
        let earlier = self.open.get(name).filter(|open| open.listener.bind == listener.bind);
        let bind = earlier.map_or(listener.bind, |open| open.address);
        let user_timeout = user_timeout_of(listener);
        let keeps_sockets = earlier.is_some_and(|open| user_timeout_of(&open.listener) == user_timeout);
        let (sockets, address) = if keeps_sockets {
            (Vec::new(), bind)
        } else {
            // Its own listeners on the port, such as one that moves to another address, are no conflict.
            let is_own = self.open.values().any(|open| open.address.port() == bind.port());
            bind_sockets(bind, workers.count(), user_timeout, !is_own && !self.take_over)
                .map_err(|error| bind_error(bind, error))?
        };
        if listener.limits.max_connections as usize > workers.client_connections() {
            tracing::info!(
                listener = %name,
                max_connections = listener.limits.max_connections,
                possible = workers.client_connections(),
                "the listener allows more connections than the limit on file descriptors: the longest idle ones are closed before max_connections is reached"
            );
        }
        let count = workers.count();
        let mut sockets = sockets.into_iter();
        workers
            .send_each(|worker| {
                let socket = sockets.next();
                if socket.is_none() && !keeps_sockets {
                    return None;
                }
                let (name, tls, mut limits) = (name.clone(), tls.clone(), listener.limits.clone());
                limits.max_connections = part_of(limits.max_connections, count, worker);
                Some(WorkerCommand::Listen(ListenSocket { name, socket, tls, limits }))
            })
            .await;
        Ok(OpenListener { listener: listener.clone(), address, tls, refused: None })
    }
}

/// The `TCP_USER_TIMEOUT` of a listener's connections: a client that reads nothing must reach the listener's timeout before
/// the kernel's.
fn user_timeout_of(listener: &Listener) -> Duration {
    listener.limits.idle_timeout.max(USER_TIMEOUT)
}

/// The share of `whole` of one of `count` workers, at least 1.
fn part_of(whole: u32, count: usize, worker: usize) -> u32 {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let has_one_more = (worker as u64) < u64::from(whole % count);
    (whole / count + u32::from(has_one_more)).max(1)
}

fn bind_error(address: SocketAddr, error: io::Error) -> ListenerError {
    let is_held = error.kind() == io::ErrorKind::AddrInUse;
    match is_held.then(|| PortHolder::find(address)).flatten() {
        Some(holder) if holder.is_edge() => ListenerError::HeldByEdge { address, holder },
        holder => ListenerError::Bind { address, holder, error },
    }
}

/// One socket per worker on the same address, which is returned as well: the kernel spreads connections over them
/// (`SO_REUSEPORT`).
///
/// If they are to be `exclusive`, the first one listens before it allows others on the port. So of two processes one fails
/// here, where both would silently share the port otherwise.
fn bind_sockets(
    bind: SocketAddr,
    count: usize,
    user_timeout: Duration,
    exclusive: bool,
) -> io::Result<(Vec<TcpListener>, SocketAddr)> {
    let mut address = bind;
    let mut sockets = Vec::with_capacity(count);
    for number in 0..count {
        let is_exclusive = exclusive && number == 0;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(!is_exclusive)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.set_nonblocking(true)?;
        set_keepalive(&SockRef::from(&socket), user_timeout)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_reuse_port(true)?;
        let socket = TcpListener::from(socket);
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok((sockets, address))
}
