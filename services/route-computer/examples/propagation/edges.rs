//! The edges: replicas of the routes, and bare subscriptions to measure them by.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt;
use tidegate_bus::{
    Bus, NatsSettings,
    seal::Trust,
    subjects,
    table::{Replica, ReplicaOptions, Update},
};
use tidegate_model::{
    SigningPublicKey,
    routes::{RouteEntry, RouteKey},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{rounds::ALONE, verdicts::REGION};

/// The arrivals that are still awaited. The last one reports its time.
#[derive(Clone)]
pub struct Arrivals(Arc<Counts>);

struct Counts {
    missing: AtomicUsize,
    repairs: AtomicUsize,
    last: mpsc::Sender<Instant>,
}

impl Arrivals {
    pub fn new(last: mpsc::Sender<Instant>) -> Arrivals {
        Arrivals(Arc::new(Counts { missing: AtomicUsize::new(0), repairs: AtomicUsize::new(0), last }))
    }

    /// Awaits `count` arrivals. None may be pending.
    pub fn expect(&self, count: usize) {
        self.0.missing.store(count, Ordering::SeqCst);
    }

    /// How many arrivals were by a snapshot instead of a change.
    pub fn repairs(&self) -> usize {
        self.0.repairs.load(Ordering::Relaxed)
    }

    fn arrived(&self) {
        if self.0.missing.fetch_sub(1, Ordering::SeqCst) == 1 {
            // The channel has room: the arrival before was received before this one was awaited.
            _ = self.0.last.try_send(Instant::now());
        }
    }
}

/// Threads, each with a runtime like that of an edge, and with a part of all edges.
pub struct Edges(Vec<JoinHandle<anyhow::Result<()>>>);

impl Edges {
    /// Each edge arrives when it has the table, each bare subscription when the server has it. They end when `stop`
    /// is cancelled, and cancel it when one of them fails.
    pub fn start(
        url: &str,
        edges: usize,
        threads: usize,
        arrivals: &Arrivals,
        keys: &[SigningPublicKey],
        stop: &CancellationToken,
    ) -> anyhow::Result<Edges> {
        let start = |thread: usize| {
            let share = edges * thread / threads..edges * (thread + 1) / threads;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (url, arrivals, keys, stop) = (url.to_owned(), arrivals.clone(), keys.to_vec(), stop.clone());
            let run = move || {
                let _ends_all = stop.clone().drop_guard();
                runtime.block_on(async {
                    tokio::select! {
                        ended = serve(share, &url, &arrivals, &keys) => ended,
                        () = stop.cancelled() => Ok(()),
                    }
                })
            };
            Ok(std::thread::Builder::new().name(format!("edges-{thread}")).spawn(run)?)
        };
        Ok(Edges((0..threads).map(start).collect::<anyhow::Result<_>>()?))
    }

    /// Waits for all threads to end.
    pub fn join(self) -> anyhow::Result<()> {
        for thread in self.0 {
            thread.join().map_err(|_| anyhow::anyhow!("a thread of edges has panicked"))??;
        }
        Ok(())
    }
}

async fn serve(
    share: Range<usize>,
    url: &str,
    arrivals: &Arrivals,
    keys: &[SigningPublicKey],
) -> anyhow::Result<()> {
    let routes = subjects::routes(&REGION.parse()?);
    let mut tasks = JoinSet::new();
    // One after the other: a thousand connections at once are more than the server's backlog.
    for edge in share {
        let bus = Bus::connect(NatsSettings::new([url], &format!("edge-{edge:04}"))).await?;
        let trust = Trust::new();
        trust.set(keys);
        let options = ReplicaOptions { trust, ..ReplicaOptions::default() };
        let (replica, updates) = Replica::start(bus, &routes, options).await?;
        tasks.spawn(follow(replica, updates, arrivals.clone()));
        let client = async_nats::ConnectOptions::new().name(format!("bare-{edge:04}")).connect(url);
        tasks.spawn(listen(client.await?, arrivals.clone()));
    }
    match tasks.join_next().await {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

async fn follow(
    _replica: Replica,
    mut updates: mpsc::Receiver<Update<RouteKey, RouteEntry>>,
    arrivals: Arrivals,
) -> anyhow::Result<()> {
    let mut at = None;
    while let Some(update) = updates.recv().await {
        let now = match &update {
            Update::Snapshot { epoch, revision, .. }
            | Update::Delta { epoch, revision, .. }
            | Update::Heartbeat { epoch, revision, .. } => Some((*epoch, *revision)),
            Update::Refused { .. } => continue,
        };
        if now <= at {
            continue;
        }
        arrivals.arrived();
        if at.is_some() && matches!(update, Update::Snapshot { .. }) {
            arrivals.0.repairs.fetch_add(1, Ordering::Relaxed);
        }
        at = now;
    }
    anyhow::bail!("a replica has ended")
}

async fn listen(client: async_nats::Client, arrivals: Arrivals) -> anyhow::Result<()> {
    let mut messages = client.subscribe(ALONE).await?;
    // The server processes the commands of a connection in order: when this message returns, it has the subscription.
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await?;
    client.publish(inbox, Bytes::new()).await?;
    echo.next().await.context("the connection is closed")?;
    drop(echo);
    arrivals.arrived();
    while messages.next().await.is_some() {
        arrivals.arrived();
    }
    anyhow::bail!("a bare subscription has ended")
}
