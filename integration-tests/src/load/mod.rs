//! Load: requests at a steady rate over keep-alive connections, each with what became of it.
//!
//! The schedule is open: request *n* is due at a fixed time, and its latency counts from then on, also when all
//! connections still wait for earlier answers. So a stall shows in every request that it held up, not only in those
//! that it caught.

mod connection;
mod record;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use tidegate_bus::clock;
use tidegate_model::Timestamp;
use tokio::time::Instant;

pub use record::{Method, Outcome, Record, Summary};

/// What load to make.
#[derive(Debug, Clone, Copy)]
pub struct LoadPlan {
    /// Where to.
    pub target: SocketAddr,
    /// Requests per second; every fourth is a POST with a small body.
    pub rate: u32,
    /// Connections, each with one request at a time.
    pub connections: u32,
}

/// Load under way, on a thread of its own so that nothing else delays it. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    plan: LoadPlan,
    began: Instant,
    began_at: Timestamp,
    next: AtomicU64,
    stopped: AtomicBool,
    records: Mutex<Vec<Record>>,
}

impl Load {
    /// Begins.
    ///
    /// # Errors
    /// When its thread cannot be made.
    pub fn start(plan: LoadPlan) -> anyhow::Result<Load> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared {
            plan,
            began: Instant::now(),
            began_at: clock::now(),
            next: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            records: Mutex::default(),
        });
        let connections = shared.clone();
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn(move || {
            runtime.block_on(async {
                let mut running = tokio::task::JoinSet::new();
                for _ in 0..plan.connections {
                    running.spawn(connection::run(connections.clone()));
                }
                while running.join_next().await.is_some() {}
            });
        })?;
        Ok(Load { shared, thread: Some(thread) })
    }

    /// What became of requests that were due in this time and have ended.
    pub fn between(&self, from: Timestamp, to: Timestamp) -> Vec<Record> {
        let records = self.shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().filter(|record| (from..to).contains(&record.due_at)).cloned().collect()
    }

    /// Waits until requests that are due at `until` or later have been answered with 2xx `count` times.
    ///
    /// # Errors
    /// When they have not after `limit`.
    pub async fn answered_since(
        &self,
        since: Timestamp,
        count: usize,
        limit: Duration,
    ) -> anyhow::Result<()> {
        crate::world::until(&format!("{count} requests answered"), limit, async || {
            let now = clock::now();
            let answered = self.between(since, now).iter().filter(|record| record.is_answered()).count();
            Ok((answered >= count).then_some(()))
        })
        .await
    }

    /// Stops, waits for the answers that are still to come, and returns what became of every request.
    ///
    /// # Errors
    /// When the load failed.
    pub async fn stop(mut self) -> anyhow::Result<Vec<Record>> {
        self.shared.stopped.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = tokio::task::spawn_blocking(move || thread.join()).await?;
            ended.map_err(|_| anyhow::anyhow!("the load has panicked"))?;
        }
        let mut records = self.shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut records))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
    }
}

impl Shared {
    /// Takes the next request: its number and when it is due. Nothing when the load was stopped.
    fn take(&self) -> Option<(u64, Duration)> {
        if self.stopped.load(Relaxed) {
            return None;
        }
        let number = self.next.fetch_add(1, Relaxed);
        Some((number, Duration::from_secs(1).mul_f64(number as f64 / f64::from(self.plan.rate))))
    }

    fn at(&self, since_begin: Duration) -> Timestamp {
        self.began_at.plus(since_begin)
    }

    fn record(&self, record: Record) {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}
