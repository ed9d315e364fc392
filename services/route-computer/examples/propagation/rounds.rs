//! The rounds: a verdict to every replica, then the same message to every bare subscription.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tidegate_bus::{
    Bus, NatsSettings, Subscription, TraceContext, codec,
    seal::Signer,
    subjects::{self, ROUTES_BUCKET},
    table::{Owner, OwnerOptions, SnapshotStore},
};
use tidegate_model::{
    Epoch, RegionName, Revision,
    routes::{RouteEntry, RouteKey},
};
use tokio::sync::mpsc;

use crate::{
    edges::Arrivals,
    verdicts::{REGION, Verdicts},
};

/// The subject of bare subscriptions, as long as the subject of the region's routes.
pub const ALONE: &str = "tidegate.v1.nobody.eu-west";

/// Rounds before the measured ones.
const WARM_UP: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// The time limit for all edges to connect, or to receive what was published.
const PATIENCE: Duration = Duration::from_secs(60);

/// The owner of the region's table, and the arrivals that it awaits.
pub struct Rounds {
    bus: Bus,
    verdicts: Verdicts,
    owner: Owner<RouteKey, RouteEntry>,
    /// The messages that the owner publishes.
    published: Subscription,
    edges: usize,
    arrivals: Arrivals,
    arrived: mpsc::Receiver<Instant>,
}

/// The measured times.
pub struct Measured {
    /// From a verdict to the last replica's update.
    pub verdicts: Times,
    /// From a publication to the last bare subscription's message.
    pub alone: Times,
    /// The largest message.
    pub bytes: usize,
}

/// One time of each round.
pub struct Times {
    pub median: Duration,
    pub p99: Duration,
    pub most: Duration,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Times {
        times.sort_unstable();
        let rank = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
        Times { median: rank(50), p99: rank(99), most: rank(100) }
    }
}

impl Rounds {
    /// Starts to own the region's routes, and awaits both kinds of `edges`.
    pub async fn new(
        url: &str,
        edges: usize,
        arrivals: &Arrivals,
        arrived: mpsc::Receiver<Instant>,
        signer: Option<Arc<Signer>>,
    ) -> anyhow::Result<Rounds> {
        let region: RegionName = REGION.parse()?;
        let verdicts = Verdicts::new(edges)?;
        let bus = Bus::connect(NatsSettings::new([url], "computer-1")).await?;
        ensure!(bus.ready(PATIENCE).await, "the server cannot be reached");
        let store = SnapshotStore { bucket: bus.bucket(ROUTES_BUCKET), key: subjects::routes_key(&region) };
        let options = OwnerOptions { store: Some(store), signer, ..OwnerOptions::default() };
        let subject = subjects::routes(&region);
        let published = bus.subscribe(&subject).await?;
        let (epoch, revision) = (Epoch(1), Revision(1));
        let owner = Owner::start(bus.clone(), &subject, epoch, revision, verdicts.table(), options).await?;
        arrivals.expect(2 * edges);
        Ok(Rounds { bus, verdicts, owner, published, edges, arrivals: arrivals.clone(), arrived })
    }

    /// Measures `rounds` of each kind, in turn.
    pub async fn run(&mut self, rounds: usize) -> anyhow::Result<Measured> {
        self.last().await.context("not all edges are there")?;
        let (mut verdicts, mut alone, mut bytes) = (Vec::new(), Vec::new(), 0);
        for round in 0..WARM_UP + rounds {
            let trace = trace();
            let by_table = self.verdict(&trace).await?;
            let body = self.body().await?;
            bytes = bytes.max(body.len());
            tokio::time::sleep(PAUSE).await;
            let by_bus = self.bus_alone(body, &trace).await?;
            tokio::time::sleep(PAUSE).await;
            if round >= WARM_UP {
                verdicts.push(by_table);
                alone.push(by_bus);
            }
        }
        Ok(Measured { verdicts: Times::of(verdicts), alone: Times::of(alone), bytes })
    }

    /// Publishes the next verdict.
    async fn verdict(&mut self, trace: &TraceContext) -> anyhow::Result<Duration> {
        let (changes, cause) = self.verdicts.decide();
        self.arrivals.expect(self.edges);
        let begin = Instant::now();
        let published = self.owner.publish(changes.entries, codec::encode(&cause), Some(trace)).await;
        published.context("nothing changed")?.sent?;
        let last = self.last().await.context("not all edges have the change")?;
        Ok(last.duration_since(begin))
    }

    /// Publishes `body` to the bare subscriptions.
    async fn bus_alone(&mut self, body: Bytes, trace: &TraceContext) -> anyhow::Result<Duration> {
        self.arrivals.expect(self.edges);
        let begin = Instant::now();
        self.bus.publish(ALONE, Some(trace), body).await?;
        let last = self.last().await.context("not all subscriptions have the message")?;
        Ok(last.duration_since(begin))
    }

    /// The message of the change that was just published.
    async fn body(&mut self) -> anyhow::Result<Bytes> {
        loop {
            let message = self.published.next().await.context("the bus is closed")?;
            // Heartbeats belong to no trace.
            if message.trace.is_some() {
                return Ok(message.body);
            }
        }
    }

    async fn last(&mut self) -> anyhow::Result<Instant> {
        let last = tokio::time::timeout(PATIENCE, self.arrived.recv()).await;
        last.with_context(|| format!("waited for {PATIENCE:?}"))?.context("the edges have ended")
    }
}

/// The context of a sampled trace, like that of the route-computer's span.
fn trace() -> TraceContext {
    let (trace, span): (u128, u64) = (rand::random(), rand::random());
    TraceContext { traceparent: format!("00-{trace:032x}-{span:016x}-01"), tracestate: None }
}
