//! The handles of the worker threads.

use std::{collections::HashSet, sync::Arc, thread::JoinHandle};

use anyhow::Context as _;
use tidegate_model::routes::RouteEntry;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    edge_identity::EdgeIdentity,
    lifecycle::{DrainLimits, Phase},
    limits::WorkerLimits,
    metrics::Metrics,
    observe::ObserverConfig,
    settings::ProxySection,
    table::WorkerIndex,
    tls::{TlsKey, UpstreamTlsConfigs},
    worker::{self, RouteUpdate, WorkerCommand},
    worker_context::{EndpointFailure, WorkerParts},
};

/// The number of commands that may be queued for a worker; senders of more wait.
const COMMANDS: usize = 64;

/// A worker's thread.
type Thread = JoinHandle<std::io::Result<()>>;

/// All workers.
pub struct Workers {
    commands: Vec<mpsc::Sender<WorkerCommand>>,
    /// Empty once they are awaited.
    threads: Vec<Thread>,
    tls: Arc<UpstreamTlsConfigs>,
    lost: CancellationToken,
    client_connections: usize,
    drain_limits: DrainLimits,
}

impl Workers {
    /// Starts the configured number of workers.
    ///
    /// # Errors
    /// If a thread cannot be created.
    pub fn start(
        edge: &Arc<EdgeIdentity>,
        metrics: &Arc<Metrics>,
        tls: &Arc<UpstreamTlsConfigs>,
        failures: &mpsc::Sender<EndpointFailure>,
        observer_config: &ObserverConfig,
        section: &ProxySection,
    ) -> anyhow::Result<Workers> {
        let count = section.worker_count();
        let drain_limits = DrainLimits { accept: section.drain_delay, finish: section.drain_limit };
        let files = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let limits = WorkerLimits::of_worker(count, files, section.client_memory());
        tracing::info!(
            files,
            client_connections = limits.client_connections.saturating_mul(count),
            upstream_connections = limits.upstream_connections.saturating_mul(count),
            client_memory_mib = section.client_memory() / (1024 * 1024),
            "the limits of this process"
        );
        let lost = CancellationToken::new();
        let start = |id| {
            let parts = WorkerParts {
                index: WorkerIndex { id, count },
                edge: edge.clone(),
                metrics: metrics.clone(),
                tls: tls.clone(),
                failures: failures.clone(),
                observer_config: observer_config.clone(),
                idle_limits: section.idle_limits(),
                limits,
            };
            let (sender, commands) = mpsc::channel(COMMANDS);
            let thread = spawn_thread(id, &lost, move || worker::run(parts, commands, drain_limits.finish))
                .context("a worker's thread cannot be created")?;
            Ok((sender, thread))
        };
        let started = (0..count).map(start).collect::<anyhow::Result<Vec<_>>>()?;
        let (commands, threads) = started.into_iter().unzip();
        let client_connections = limits.client_connections.saturating_mul(count);
        Ok(Workers { drain_limits, commands, threads, tls: tls.clone(), lost, client_connections })
    }

    /// A token that is cancelled when a worker has ended; before a shutdown that means that it panicked or its runtime
    /// failed.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// The maximum number of client connections of all workers.
    pub fn client_connections(&self) -> usize {
        self.client_connections
    }

    /// The number of workers.
    pub fn count(&self) -> usize {
        self.commands.len()
    }

    /// Sends new routes to all workers and waits until all of them use them.
    pub async fn apply_routes(&self, routes: &RouteUpdate) {
        self.prepare_tls(routes).await;
        let mut waiting = Vec::with_capacity(self.commands.len());
        for sender in &self.commands {
            let (done, applied) = oneshot::channel();
            let command = WorkerCommand::Routes { routes: routes.clone(), done };
            if sender.send(command).await.is_ok() {
                waiting.push(applied);
            }
        }
        for applied in waiting {
            // A worker that has ended needs no routes.
            _ = applied.await;
        }
    }

    /// Reads the files of upstream TLS configurations before workers need them.
    async fn prepare_tls(&self, routes: &RouteUpdate) {
        let keys: HashSet<TlsKey> = match routes {
            RouteUpdate::All(entries) => entries.iter().filter_map(|(_, entry)| tls_of(entry)).collect(),
            RouteUpdate::Changes(changes) => {
                changes.iter().filter_map(|(_, entry)| tls_of(entry.as_ref()?)).collect()
            }
        };
        if keys.is_empty() {
            return;
        }
        let tls = self.tls.clone();
        let reading = tokio::task::spawn_blocking(move || keys.iter().for_each(|key| tls.prepare(key)));
        if reading.await.is_err() {
            tracing::error!("reading certificates failed");
        }
    }

    /// Sends each worker its own command.
    pub async fn send_each(&self, mut command: impl FnMut(usize) -> Option<WorkerCommand>) {
        for (index, sender) in self.commands.iter().enumerate() {
            if let Some(command) = command(index) {
                // A worker that has ended needs no command.
                _ = sender.send(command).await;
            }
        }
    }

    /// How long a shutdown takes.
    pub fn drain_limits(&self) -> DrainLimits {
        self.drain_limits
    }

    /// Sends the edge's phase to all workers.
    pub async fn set_phase(&self, phase: Phase) {
        self.send_each(|_| Some(WorkerCommand::Phase(phase))).await;
    }

    /// Waits until all workers have ended, after they were stopped. Fails if a worker failed. Meanwhile they still take
    /// commands.
    pub fn wait_for_end(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send + use<> {
        let threads = std::mem::take(&mut self.threads);
        async move {
            let ended = tokio::task::spawn_blocking(move || {
                threads.into_iter().map(JoinHandle::join).collect::<Vec<_>>()
            });
            for ended in ended.await? {
                ended
                    .map_err(|_| anyhow::anyhow!("a worker has panicked"))?
                    .context("a worker's runtime failed")?;
            }
            Ok(())
        }
    }
}

/// Spawns a worker's thread. `lost` is cancelled when it ends, even by a panic.
fn spawn_thread(
    id: usize,
    lost: &CancellationToken,
    work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> std::io::Result<Thread> {
    let lost = lost.clone();
    std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
        let _ended = lost.drop_guard();
        work()
    })
}

/// The upstream TLS configuration of an entry, if any.
fn tls_of(entry: &RouteEntry) -> Option<TlsKey> {
    match entry {
        RouteEntry::Cluster(cluster) => Some((cluster.upstream.tls.clone()?, cluster.upstream.protocol)),
        RouteEntry::Edge(_) | RouteEntry::Health(_) | RouteEntry::Service(_) | RouteEntry::Tiers(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_worker_that_panics_is_told_of_at_once() {
        let lost = CancellationToken::new();
        let thread = spawn_thread(0, &lost, || panic!("a test")).unwrap();
        tokio::time::timeout(Duration::from_secs(15), lost.cancelled()).await.expect("told");
        assert!(thread.join().is_err());
    }
}
