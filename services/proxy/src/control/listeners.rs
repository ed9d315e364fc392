//! Opens, changes and closes an edge's listeners as its entry in the table says.

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
use tidegate_tls::{HTTP1, HTTP2, Renewable as _, ServerTls};

use super::workers::Workers;
use crate::{
    downstream::Listen,
    wire::{UNACKNOWLEDGED, end_when_gone},
    worker::WorkerCommand,
};

/// Connections that wait to be accepted, per worker (Linux takes `net.core.somaxconn` where that is less).
const BACKLOG: i32 = 4096;

/// The listeners that are open.
#[derive(Default)]
pub struct Listeners {
    open: BTreeMap<ListenerName, Open>,
    wanted: BTreeMap<ListenerName, Listener>,
    /// Why a listener that is wanted is not open as wanted.
    problems: BTreeMap<ListenerName, String>,
}

struct Open {
    listener: Listener,
    address: SocketAddr,
    tls: Option<Arc<ServerTls>>,
    /// Why new certificates are not in use.
    refused: Option<String>,
}

impl Listeners {
    /// What is wrong with listeners, by name.
    pub fn problems(&self) -> &BTreeMap<ListenerName, String> {
        &self.problems
    }

    /// Takes note of what should be open, and makes it so.
    pub async fn want(&mut self, wanted: &[(ListenerName, Listener)], workers: &Workers, ports: &Ports) {
        self.wanted = wanted.iter().cloned().collect();
        self.problems.retain(|name, _| self.wanted.contains_key(name));
        let gone: Vec<ListenerName> =
            self.open.keys().filter(|name| !self.wanted.contains_key(*name)).cloned().collect();
        for name in gone {
            self.open.remove(&name);
            tracing::info!(listener = %name, "no longer accepting");
            workers.tell(|_| Some(WorkerCommand::Unlisten(name.clone()))).await;
        }
        self.catch_up(workers, ports).await;
    }

    /// Attempts again what could not be opened, and renews certificates from changed files. Called once a second.
    pub async fn catch_up(&mut self, workers: &Workers, ports: &Ports) {
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
                            tracing::warn!(listener = %name, %error, "new certificates are refused, the old ones stay in use");
                        }
                        open.refused = Some(problem);
                        continue;
                    }
                }
                // Contents that were refused are not tried again until they change.
                open.refused = tls.problem();
            }
        }
        for (name, listener) in self.wanted.clone() {
            if self.open.get(&name).is_some_and(|open| open.listener == listener) {
                // It may have been wanted otherwise meanwhile.
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
                Err(problem) => {
                    if self.problems.get(&name) != Some(&problem) {
                        tracing::error!(listener = %name, "{problem}");
                    }
                    self.problems.insert(name, problem);
                }
            }
        }
    }

    async fn open_one(
        &self,
        name: &ListenerName,
        listener: &Listener,
        workers: &Workers,
    ) -> Result<Open, String> {
        let tls = match &listener.protocol {
            ListenerProtocol::Http => None,
            ListenerProtocol::Https { certificates } => {
                let tls = ServerTls::load(certificates, &[HTTP2, HTTP1]);
                Some(Arc::new(tls.map_err(|error| format!("TLS cannot be used: {error}"))?))
            }
        };
        // A listener that only changes its limits keeps its port, also one that the system chose.
        let earlier = self.open.get(name).filter(|open| open.listener.bind == listener.bind);
        let bind = earlier.map_or(listener.bind, |open| open.address);
        // A client that takes nothing is given up by its own limit, not by the kernel before that.
        let unacknowledged = listener.limits.idle_timeout.max(UNACKNOWLEDGED);
        let sockets = sockets(bind, workers.count(), unacknowledged)
            .map_err(|error| format!("{bind} cannot be bound: {error}"))?;
        let address = sockets
            .first()
            .and_then(|socket| socket.local_addr().ok())
            .ok_or_else(|| "no worker to listen for".to_owned())?;
        if listener.limits.max_connections as usize > workers.client_connections() {
            tracing::warn!(
                listener = %name,
                max_connections = listener.limits.max_connections,
                possible = workers.client_connections(),
                "the listener allows more connections than the limit on files does: the longest idle ones are closed before that"
            );
        }
        let count = workers.count();
        let mut sockets = sockets.into_iter();
        workers
            .tell(|worker| {
                let socket = sockets.next()?;
                let (name, tls, mut limits) = (name.clone(), tls.clone(), listener.limits.clone());
                limits.max_connections = part_of(limits.max_connections, count, worker);
                Some(WorkerCommand::Listen(Listen { name, socket, tls, limits }))
            })
            .await;
        Ok(Open { listener: listener.clone(), address, tls, refused: None })
    }
}

/// The part of `whole` that one of `count` workers has, at least 1.
fn part_of(whole: u32, count: usize, worker: usize) -> u32 {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let has_one_more = (worker as u64) < u64::from(whole % count);
    (whole / count + u32::from(has_one_more)).max(1)
}

/// One socket per worker on the same address: the kernel spreads connections over them (`SO_REUSEPORT`).
fn sockets(bind: SocketAddr, count: usize, unacknowledged: Duration) -> io::Result<Vec<TcpListener>> {
    let mut address = bind;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.set_nonblocking(true)?;
        end_when_gone(&SockRef::from(&socket), unacknowledged)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from(socket);
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}
