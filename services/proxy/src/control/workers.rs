//! The worker threads, as the control side sees them.

use std::{collections::HashSet, sync::Arc, thread::JoinHandle};

use anyhow::Context as _;
use tidegate_model::routes::RouteEntry;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    context::{EdgeIdentity, Suspect, WorkerParts},
    lifecycle::{DrainLimits, Phase},
    limits::WorkerLimits,
    metrics::Metrics,
    observe::Observing,
    settings::ProxySection,
    table::WorkerPlace,
    tls::{TlsKey, UpstreamTlsConfigs},
    worker::{self, Routes, WorkerCommand},
};

/// Commands that wait for a worker; whoever sends more waits.
const COMMANDS: usize = 64;

/// A worker's thread.
type Thread = JoinHandle<std::io::Result<()>>;

/// All workers.
pub struct Workers {
    commands: Vec<mpsc::Sender<WorkerCommand>>,
    /// None once they are waited for.
    threads: Vec<Thread>,
    tls: Arc<UpstreamTlsConfigs>,
    lost: CancellationToken,
    client_connections: usize,
    drain_limits: DrainLimits,
}

impl Workers {
    /// Starts as many workers as the settings say.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(
        edge: &Arc<EdgeIdentity>,
        metrics: &Arc<Metrics>,
        tls: &Arc<UpstreamTlsConfigs>,
        suspects: &mpsc::Sender<Suspect>,
        observing: &Observing,
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
                place: WorkerPlace { id, count },
                edge: edge.clone(),
                metrics: metrics.clone(),
                tls: tls.clone(),
                suspects: suspects.clone(),
                observing: observing.clone(),
                idle_limits: section.idle_limits(),
                limits,
            };
            let (sender, commands) = mpsc::channel(COMMANDS);
            let thread = spawn(id, &lost, move || worker::run(parts, commands, drain_limits.finish))
                .context("a worker's thread cannot be made")?;
            Ok((sender, thread))
        };
        let started = (0..count).map(start).collect::<anyhow::Result<Vec<_>>>()?;
        let (commands, threads) = started.into_iter().unzip();
        let client_connections = limits.client_connections.saturating_mul(count);
        Ok(Workers { drain_limits, commands, threads, tls: tls.clone(), lost, client_connections })
    }

    /// Cancelled when a worker has ended; before they are stopped, because it panicked or its runtime failed.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// How many connections of clients all of them may have.
    pub fn client_connections(&self) -> usize {
        self.client_connections
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.commands.len()
    }

    /// Gives all workers new routes and waits until all serve by them.
    pub async fn route(&self, routes: &Routes) {
        self.prepare_tls(routes).await;
        let mut waiting = Vec::with_capacity(self.commands.len());
        for sender in &self.commands {
            let (done, told) = oneshot::channel();
            let command = WorkerCommand::Routes { routes: routes.clone(), done };
            if sender.send(command).await.is_ok() {
                waiting.push(told);
            }
        }
        for told in waiting {
            // A worker that has ended serves by no routes at all.
            _ = told.await;
        }
    }

    /// Reads the files of TLS towards clusters, so that workers find them read.
    async fn prepare_tls(&self, routes: &Routes) {
        let keys: HashSet<TlsKey> = match routes {
            Routes::All(entries) => entries.iter().filter_map(|(_, entry)| tls_of(entry)).collect(),
            Routes::Changes(changes) => {
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

    /// Gives each worker its own command.
    pub async fn tell(&self, mut command: impl FnMut(usize) -> Option<WorkerCommand>) {
        for (place, sender) in self.commands.iter().enumerate() {
            if let Some(command) = command(place) {
                // A worker that has ended needs no command.
                _ = sender.send(command).await;
            }
        }
    }

    /// How long a shutdown takes.
    pub fn drain_limits(&self) -> DrainLimits {
        self.drain_limits
    }

    /// Tells all workers the edge's phase.
    pub async fn set_phase(&self, phase: Phase) {
        self.tell(|_| Some(WorkerCommand::Phase(phase))).await;
    }

    /// Waits until all workers have ended, which they do once they are stopping. They still take routes meanwhile; it fails
    /// when one of them failed.
    pub fn ended(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send + use<> {
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

/// Runs a worker in a thread. `lost` is cancelled when it ends, also by a panic.
fn spawn(
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

/// The TLS that an entry asks for.
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
        let thread = spawn(0, &lost, || panic!("a test")).unwrap();
        tokio::time::timeout(Duration::from_secs(15), lost.cancelled()).await.expect("told");
        assert!(thread.join().is_err());
    }
}
