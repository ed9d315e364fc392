//! The whole prober on the in-process bus, against real origins.
#![allow(clippy::unwrap_used, reason = "a failed test is what a panic is for")]

use std::time::Duration;

use tidegate_bus::{
    Bus, clock, codec,
    fleet::FleetStore,
    subjects,
    table::{Replica, ReplicaOptions, Update},
};
use tidegate_health_prober::{ProberSettings, run};
use tidegate_model::{
    fleet::Address,
    observation::{Failure, Observation, ObservationCause, ProbeOutcome, Signal, Target},
    report::Suspicion,
};
use tidegate_service::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// Longer than any test here needs.
const LIMIT: Duration = Duration::from_secs(20);

/// An origin that responds with 200 to every request until it is aborted with its connections.
async fn origin() -> (Address, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Ip(listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    (address, task)
}

fn fleet(endpoints: &[&Address], interval: &str) -> String {
    let listed: Vec<String> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "regions: {{ eu: {{}} }}\n\
         clusters: {{ a: {{ region: eu, endpoints: [{}] }} }}\n\
         edges: {{ edge-1: {{ region: eu, listeners: [web] }} }}\n\
         listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http }} }}\n\
         services: {{ shop: {{ hosts: [shop], clusters: [a], health: {{ path: /, interval: {interval} }} }} }}\n",
        listed.join(", ")
    )
}

/// A running prober and a replica of its table.
struct Bench {
    bus: Bus,
    updates: mpsc::Receiver<Update<Target, Observation>>,
    replica: Replica,
    prober: JoinHandle<anyhow::Result<()>>,
    context: Context,
}

impl Bench {
    async fn start(fleet: &str) -> Bench {
        let bus = Bus::in_process();
        FleetStore::new(&bus).put(fleet, "test").await.unwrap();
        let (region, name) = ("eu".parse().unwrap(), "prober-1".parse().unwrap());
        let subject = subjects::probe(&region, &name);
        let (replica, updates) =
            Replica::start(bus.clone(), &subject, ReplicaOptions::default()).await.unwrap();
        let settings = ProberSettings { region: Some(region), name: Some(name), ..ProberSettings::default() };
        let context = Context::embedded("prober-1", CancellationToken::new());
        let prober = tokio::spawn(run(settings, bus.clone(), context.clone()));
        Bench { bus, updates, replica, prober, context }
    }

    /// Waits until a target and its observation are `wanted`. The cause is absent if they came with a snapshot.
    async fn change(
        &mut self,
        wanted: impl Fn(&Target, Option<&Observation>) -> bool,
    ) -> (Option<Observation>, Option<ObservationCause>) {
        let found = async {
            loop {
                let update = self.updates.recv().await.expect("the replica lives");
                let (changes, cause) = match update {
                    Update::Delta { changes, meta, .. } => (changes, Some(codec::decode(&meta).unwrap())),
                    Update::Snapshot { entries, .. } => {
                        (entries.into_iter().map(|(target, seen)| (target, Some(seen))).collect(), None)
                    }
                    Update::Heartbeat { .. } | Update::Refused { .. } => continue,
                };
                for (target, observation) in changes {
                    if wanted(&target, observation.as_ref()) {
                        return (observation, cause);
                    }
                }
            }
        };
        tokio::time::timeout(LIMIT, found).await.expect("the change comes")
    }

    async fn stop(self) {
        self.context.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.prober).await.unwrap().unwrap().unwrap();
        self.replica.stop().await;
    }
}

fn passes(_: &Target, observation: Option<&Observation>) -> bool {
    observation.is_some_and(|seen| seen.outcome == ProbeOutcome::Pass && seen.streak == 3)
}

fn down(_: &Target, observation: Option<&Observation>) -> bool {
    observation.is_some_and(|seen| matches!(seen.outcome, ProbeOutcome::Fail(_)) && seen.streak == 2)
}

#[tokio::test]
async fn an_origin_is_observed_up_and_when_it_dies_down() {
    let (address, task) = origin().await;
    let mut bench = Bench::start(&fleet(&[&address], "20ms")).await;

    bench.change(passes).await;
    task.abort();
    let (observation, cause) = bench.change(down).await;
    let cause = cause.expect("a replica that is up to date gets deltas");

    assert_eq!(observation.unwrap().outcome, ProbeOutcome::Fail(Failure::ConnectRefused));
    assert_eq!(cause.signal, Signal::Schedule);
    assert!(cause.probed_at < cause.observed_at);
    bench.stop().await;
}

#[tokio::test]
async fn a_suspicion_triggers_probes_long_before_they_are_due() {
    let (address, task) = origin().await;
    let mut bench = Bench::start(&fleet(&[&address], "1h")).await;
    bench.change(|_, observation| observation.is_some()).await;
    task.abort();
    drop(task.await);

    let suspicion = Suspicion {
        edge: "edge-1".parse().unwrap(),
        region: "eu".parse().unwrap(),
        cluster: "a".parse().unwrap(),
        endpoint: address,
        failure: Failure::ConnectRefused,
        first_failure_at: clock::now(),
    };
    let subject = subjects::suspect(&suspicion.region, &suspicion.edge, &suspicion.cluster);
    bench.bus.publish_report(&subject, None, &suspicion).await.unwrap();
    let (_, cause) = bench.change(down).await;
    let cause = cause.expect("a replica that is up to date gets deltas");

    assert_eq!(cause.signal, Signal::Suspicion { first_failure_at: suspicion.first_failure_at });
    assert!(suspicion.first_failure_at <= cause.probed_at);
    assert!(cause.observed_at.since(suspicion.first_failure_at) < LIMIT, "not a whole interval");
    bench.stop().await;
}

#[tokio::test]
async fn the_table_follows_the_fleet() {
    let ((kept, one), (gone, _other)) = (origin().await, origin().await);
    let mut bench = Bench::start(&fleet(&[&kept, &gone], "20ms")).await;
    bench.change(|target, observation| target.endpoint == gone && passes(target, observation)).await;

    let store = FleetStore::new(&bench.bus);
    store.put(&fleet(&[&kept], "20ms"), "test").await.unwrap();
    let (observation, _) =
        bench.change(|target, observation| target.endpoint == gone && observation.is_none()).await;
    assert_eq!(observation, None);

    store.put("regions: [this is no fleet", "test").await.unwrap();
    one.abort();
    bench.change(|target, observation| target.endpoint == kept && down(target, observation)).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_prober_without_a_region_does_not_start() {
    let settings = ProberSettings { name: Some("prober-1".parse().unwrap()), ..ProberSettings::default() };
    let error =
        run(settings, Bus::in_process(), Context::embedded("", CancellationToken::new())).await.unwrap_err();
    assert!(error.to_string().contains("region"), "{error}");
}

#[tokio::test]
async fn a_cluster_that_cannot_be_probed_from_here_is_a_warning() {
    // Given a cluster whose certificate authority is missing on this machine, and one that is well.
    let (address, origin) = origin().await;
    let fleet = fleet(&[&address], "1s").replace(
        "clusters: {",
        "clusters: { b: { region: eu, endpoints: [\"127.0.0.1:1\"], tls: { ca: /none/ca.pem } },",
    );
    let fleet = fleet.replace("clusters: [a]", "clusters: [a, b]");
    let mut bench = Bench::start(&fleet).await;

    // When the other one is probed, then the prober is ready, and warns of the first.
    bench.change(|_, observation| observation.is_some()).await;
    let (is_ready, body) = bench.context.admin.readiness();
    let warning = body["warnings"]["clusters"].as_str().unwrap_or_default();
    assert!(is_ready, "{body}");
    assert!(
        warning.starts_with("cluster b cannot be probed from here: ") && warning.contains("/none/ca.pem"),
        "{body}"
    );
    bench.stop().await;
    origin.abort();
}
