//! A worker: one thread with its own runtime, sockets, table and upstream connections.

mod command;

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

pub use command::{Routes, WorkerCommand};

use crate::{
    context::{WorkerContext, WorkerParts},
    downstream::Accepting,
    lifecycle::Phase,
};

/// Runs a worker until it is told to stop and its connections are done, at most `drain_limit` later.
///
/// # Errors
/// When the thread's runtime cannot be made.
pub fn run(
    parts: WorkerParts,
    commands: mpsc::Receiver<WorkerCommand>,
    drain_limit: Duration,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Accepting and timers come around often enough at this pace, and the poll of the kernel costs less per request.
        .event_interval(31)
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(serve(parts, commands, drain_limit));
    Ok(())
}

async fn serve(parts: WorkerParts, mut commands: mpsc::Receiver<WorkerCommand>, drain_limit: Duration) {
    let worker = WorkerContext::new(parts);
    let mut accepting = Accepting::new(worker.clone());
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let cut_at = worker.phase().cut_at();
        tokio::select! {
            biased;
            command = commands.recv(), if !commands.is_closed() || cut_at.is_none() => match command {
                Some(WorkerCommand::Routes { routes, done }) => {
                    apply(&worker, &routes);
                    // Whoever sent it may not wait for it any more.
                    _ = done.send(());
                }
                Some(WorkerCommand::Phase(phase)) => enter(&worker, phase, &mut accepting).await,
                Some(WorkerCommand::Listen(listen)) if cut_at.is_none() => accepting.open(listen),
                Some(WorkerCommand::Listen(_)) => {}
                Some(WorkerCommand::Unlisten(name)) => accepting.close(&name),
                None => enter(&worker, lost_control(&worker, drain_limit), &mut accepting).await,
            },
            _ = ticks.tick() => worker.tick(),
            are_done = connections_end(&worker.tasks, cut_at) => {
                if !are_done {
                    tracing::warn!(open = worker.counters.open.get(), "drain limit reached, connections are cut");
                }
                break;
            }
        }
    }
    // Nobody asks endpoints any more: they are told so, and not waited for longer than that takes.
    worker.table.borrow().endpoints().for_each(|endpoint| endpoint.pool.clear());
    worker.connector.close().await;
}

async fn enter(worker: &WorkerContext, phase: Phase, accepting: &mut Accepting) {
    worker.set_phase(phase);
    if phase.is_stopping() {
        accepting.close_all().await;
        worker.tasks.close();
    }
}

/// The phase of a worker that nobody commands any more.
fn lost_control(worker: &WorkerContext, drain_limit: Duration) -> Phase {
    let now = Instant::now();
    Phase::Stopping { since: worker.draining_since().unwrap_or(now), cut_at: now + drain_limit }
}

fn apply(worker: &WorkerContext, routes: &Routes) {
    let mut table = worker.table.borrow_mut();
    match routes {
        Routes::All(entries) => table.replace(entries),
        Routes::Changes(changes) => table.apply(changes),
    }
}

/// Waits until all connections have ended, or are to be cut; says whether they have ended.
async fn connections_end(tasks: &TaskTracker, cut_at: Option<Instant>) -> bool {
    match cut_at {
        Some(cut_at) => tokio::time::timeout_at(cut_at, tasks.wait()).await.is_ok(),
        None => std::future::pending().await,
    }
}
