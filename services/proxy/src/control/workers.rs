//! The worker threads, as the control side sees them.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};

use crate::{
    metrics::Metrics,
    observe::Observing,
    settings::ProxySection,
    table::WorkerPlace,
    tls::UpstreamTlsConfigs,
    worker::{self, Command, EdgeIdentity, Routes, Suspect, WorkerParts},
};

/// Commands that wait for a worker; whoever sends more waits.
const COMMANDS: usize = 64;

/// All workers.
pub struct Workers {
    workers: Vec<(mpsc::Sender<Command>, JoinHandle<std::io::Result<()>>)>,
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
        let (count, drain_limit) = (section.worker_count(), section.drain_limit);
        let start = |id| {
            let parts = WorkerParts {
                place: WorkerPlace { id, count },
                edge: edge.clone(),
                metrics: metrics.clone(),
                tls: tls.clone(),
                suspects: suspects.clone(),
                observing: observing.clone(),
                idle_limits: section.idle_limits(),
            };
            let (sender, commands) = mpsc::channel(COMMANDS);
            let thread = std::thread::Builder::new()
                .name(format!("worker-{id}"))
                .spawn(move || worker::run(parts, commands, drain_limit))
                .context("a worker's thread cannot be made")?;
            Ok((sender, thread))
        };
        Ok(Workers { workers: (0..count).map(start).collect::<anyhow::Result<_>>()? })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// Gives all workers new routes and waits until all serve by them.
    pub async fn route(&self, routes: &Routes) {
        let mut waiting = Vec::with_capacity(self.workers.len());
        for (sender, _) in &self.workers {
            let (done, told) = oneshot::channel();
            let command = Command::Routes { routes: routes.clone(), done };
            if sender.send(command).await.is_ok() {
                waiting.push(told);
            }
        }
        for told in waiting {
            // A worker that has ended serves by no routes at all.
            _ = told.await;
        }
    }

    /// Gives each worker its own command.
    pub async fn tell(&self, mut command: impl FnMut(usize) -> Option<Command>) {
        for (place, (sender, _)) in self.workers.iter().enumerate() {
            if let Some(command) = command(place) {
                // A worker that has ended needs no command.
                _ = sender.send(command).await;
            }
        }
    }

    /// Drains all workers and waits until they have ended. For `delay` they go on accepting while outside balancers are
    /// told to look elsewhere.
    ///
    /// # Errors
    /// When a worker failed.
    pub async fn drain(self, delay: Duration) -> anyhow::Result<()> {
        self.tell(|_| Some(Command::Drain)).await;
        tokio::time::sleep(delay).await;
        let threads: Vec<_> = self.workers.into_iter().map(|(_, thread)| thread).collect();
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
