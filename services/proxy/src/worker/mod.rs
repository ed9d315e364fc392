//! A worker: one thread with its own runtime, sockets, table and upstream connections.

mod command;

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

pub use command::{RouteUpdate, WorkerCommand};

use crate::{
    downstream::Acceptors,
    lifecycle::Phase,
    worker_context::{WorkerContext, WorkerParts},
};

/// Runs a worker until it is stopped and its connections have ended. `drain_limit` bounds this if the control side is
/// lost.
///
/// # Errors
/// If the thread's runtime cannot be created.
pub fn run(
    parts: WorkerParts,
    commands: mpsc::Receiver<WorkerCommand>,
    drain_limit: Duration,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Often enough for accepting and timers, and cheaper per request than polling the kernel more often.
        .event_interval(31)
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(serve(parts, commands, drain_limit));
    Ok(())
}

async fn serve(parts: WorkerParts, mut commands: mpsc::Receiver<WorkerCommand>, drain_limit: Duration) {
    let worker = WorkerContext::new(parts);
    let scheduler = tokio::task::spawn_local(worker.clone().run_schedule());
    let mut acceptors = Acceptors::new(worker.clone());
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let cut_at = worker.phase().cut_at();
        tokio::select! {
            biased;
            command = commands.recv(), if !commands.is_closed() || cut_at.is_none() => match command {
                Some(WorkerCommand::Routes { routes, done }) => {
                    apply_routes(&worker, &routes);
                    // The sender may not wait any more.
                    _ = done.send(());
                }
                Some(WorkerCommand::Phase(phase)) => enter_phase(&worker, phase, &mut acceptors).await,
                Some(WorkerCommand::Listen(listen)) if cut_at.is_none() => acceptors.open(listen),
                Some(WorkerCommand::Listen(_)) => {}
                Some(WorkerCommand::Unlisten(name)) => acceptors.close(&name),
                None => enter_phase(&worker, phase_without_control(&worker, drain_limit), &mut acceptors).await,
            },
            _ = ticks.tick() => worker.tick(),
            are_done = wait_for_connections(&worker.tasks, cut_at) => {
                if !are_done {
                    tracing::warn!(open = worker.counters.open.get(), "drain limit reached, cutting open connections");
                }
                break;
            }
        }
    }
    // No requests are left: upstream connections are closed gracefully, within a limited time.
    worker.table.borrow().endpoints().for_each(|endpoint| endpoint.pool.clear());
    worker.connector.close().await;
    scheduler.abort();
    // It never ends by itself.
    _ = scheduler.await;
}

async fn enter_phase(worker: &WorkerContext, phase: Phase, acceptors: &mut Acceptors) {
    worker.set_phase(phase);
    if phase.is_stopping() {
        acceptors.close_all().await;
        worker.tasks.close();
    }
}

/// The phase of a worker whose control side is gone.
fn phase_without_control(worker: &WorkerContext, drain_limit: Duration) -> Phase {
    let now = Instant::now();
    Phase::Stopping { since: worker.draining_since().unwrap_or(now), cut_at: now + drain_limit }
}

fn apply_routes(worker: &WorkerContext, routes: &RouteUpdate) {
    let mut table = worker.table.borrow_mut();
    match routes {
        RouteUpdate::All(entries) => table.replace(entries),
        RouteUpdate::Changes(changes) => table.apply(changes),
    }
}

/// Waits until all connections have ended or `cut_at` has passed. Returns whether they have ended.
async fn wait_for_connections(tasks: &TaskTracker, cut_at: Option<Instant>) -> bool {
    match cut_at {
        Some(cut_at) => tokio::time::timeout_at(cut_at, tasks.wait()).await.is_ok(),
        None => std::future::pending().await,
    }
}
