//! An edge in a thread, and the owner of its table.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use tidegate_bus::{
    Bus, clock,
    fleet::FleetStore,
    subjects,
    table::{Owner, OwnerOptions},
};
use tidegate_model::{
    Epoch, Revision,
    fleet::Fleet,
    report::Applied,
    routes::{EdgeEntry, EndpointHealth, HealthEntry, RouteCause, RouteEntry, RouteKey, TiersEntry},
    verdict::Verdict,
};
use tidegate_proxy::{AccessLogSection, ProxySettings};
use tidegate_routing::{Engine, RouteEvent, Settings};
use tidegate_service::{Context, telemetry::SpanSink};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::{DEADLINE, eventually, fleet::FleetFile};

/// A running edge. Stopped when dropped, without waiting for its connections.
pub struct Edge {
    bus: Bus,
    owner: Option<Owner<RouteKey, RouteEntry>>,
    table: BTreeMap<RouteKey, RouteEntry>,
    runtime: Option<Runtime>,
    context: Context,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    state_dir: PathBuf,
    keep_state: bool,
}

/// How an edge is started.
pub struct Start {
    /// Its last table is read from here and kept here; nothing: a new directory.
    pub state_dir: Option<PathBuf>,
    /// Whether anybody publishes a table.
    pub has_owner: bool,
    /// Worker threads.
    pub workers: usize,
    /// How long it goes on accepting once it is told to end.
    pub drain_delay: Duration,
    /// How long connections may take to end.
    pub drain_limit: Duration,
    /// The access log.
    pub access_log: AccessLogSection,
    /// Where spans go.
    pub spans: Option<SpanSink>,
    /// The share of requests that are traced.
    pub trace_ratio: f64,
    /// How long a request whose answer has begun may be silent.
    pub stream_idle_timeout: Duration,
    /// How long an upgraded connection may be silent.
    pub tunnel_idle_timeout: Duration,
    /// What may be held for clients; 0: as much as usual.
    pub client_memory_mib: u64,
}

impl Default for Start {
    fn default() -> Start {
        Start {
            state_dir: None,
            has_owner: true,
            workers: 1,
            drain_delay: Duration::ZERO,
            drain_limit: Duration::from_secs(10),
            access_log: AccessLogSection::default(),
            spans: None,
            trace_ratio: 0.0,
            stream_idle_timeout: Duration::from_secs(300),
            tunnel_idle_timeout: Duration::from_secs(3600),
            client_memory_mib: 0,
        }
    }
}

impl Edge {
    /// An edge that serves `fleet`.
    pub fn start(fleet: &FleetFile) -> Edge {
        Edge::start_with(fleet, Start::default())
    }

    /// The same, started otherwise.
    pub fn start_with(fleet: &FleetFile, start: Start) -> Edge {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let text = fleet.text();
        let fleet = Fleet::parse(&text, "fleet.yaml").unwrap_or_else(|error| panic!("{error:?}\n{text}"));
        let mut engine = Engine::new(Settings::new("here".parse().unwrap()));
        engine.apply(RouteEvent::Fleet(Arc::new(fleet)), clock::now());
        let table = engine.table().clone();

        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let bus = Bus::in_process();
        // An edge believes no table before it has read which keys the fleet names.
        run_on(&runtime, {
            let (bus, text) = (bus.clone(), text.clone());
            async move { FleetStore::new(&bus).put(&text, "a test").await.unwrap() }
        });
        let owner = start.has_owner.then(|| {
            let (bus, table) = (bus.clone(), table.clone());
            run_on(&runtime, async move {
                let subject = subjects::routes(&"here".parse().unwrap());
                Owner::start(bus, &subject, Epoch(1), Revision(1), table, OwnerOptions::default())
                    .await
                    .unwrap()
            })
        });

        let keep_state = start.state_dir.is_some();
        let state_dir = start.state_dir.unwrap_or_else(|| {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let own = std::env::temp_dir().join(format!("tidegate-proxy-{}-{count}", std::process::id()));
            // Process ids come again: the table that another run has left must not be this edge's last one.
            _ = std::fs::remove_dir_all(&own);
            own
        });
        let context = Context { spans: start.spans, ..Context::embedded("edge-1", CancellationToken::new()) };
        let mut settings = ProxySettings {
            name: Some("edge-1".parse().unwrap()),
            region: Some("here".parse().unwrap()),
            ..ProxySettings::default()
        };
        settings.proxy.workers = start.workers;
        settings.proxy.state_dir.clone_from(&state_dir);
        settings.proxy.drain_delay = start.drain_delay;
        settings.proxy.drain_limit = start.drain_limit;
        settings.proxy.trace_ratio = start.trace_ratio;
        settings.proxy.stream_idle_timeout = start.stream_idle_timeout;
        settings.proxy.tunnel_idle_timeout = start.tunnel_idle_timeout;
        settings.proxy.client_memory_mib = start.client_memory_mib;
        settings.access_log = start.access_log;
        let thread = std::thread::spawn({
            let (bus, context) = (bus.clone(), context.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(tidegate_proxy::run(settings, bus, context))
            }
        });
        let edge = Edge {
            bus,
            owner,
            table,
            runtime: Some(runtime),
            context,
            thread: Some(thread),
            state_dir,
            keep_state,
        };
        // Listeners open once all workers have the routes.
        eventually("the listener opens", || edge.context.ports.get("web").is_some());
        edge
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.context.ports.get("web").unwrap()
    }

    /// Where its state is kept.
    pub fn state_dir(&self) -> &PathBuf {
        &self.state_dir
    }

    /// What `/readyz` says.
    pub fn is_ready(&self) -> bool {
        self.context.admin.readiness().0
    }

    /// A warning of `/readyz`; empty when there is none.
    pub fn warning(&self, name: &str) -> String {
        self.context.admin.readiness().1["warnings"][name].as_str().unwrap_or_default().to_owned()
    }

    /// What `/metrics` says.
    pub fn metrics(&self) -> String {
        self.context.registry.to_text()
    }

    /// The value of a metric (all series of the name together), as `/metrics` would say it.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.context.registry.to_text();
        text.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Publishes a change and waits until all workers serve by it.
    pub fn publish(&mut self, key: RouteKey, entry: Option<RouteEntry>) {
        match entry.clone() {
            Some(entry) => self.table.insert(key.clone(), entry),
            None => self.table.remove(&key),
        };
        let bus = self.bus.clone();
        let mut owner = self.owner.take().expect("this edge has no owner of its table");
        let runtime = self.runtime.as_ref().expect("it runs until it is dropped");
        let owner = run_on(runtime, async move {
            let subject = subjects::applied(&"here".parse().unwrap(), &"edge-1".parse().unwrap());
            let mut reports = bus.subscribe_reports::<Applied>(&subject).await.unwrap();
            let meta = tidegate_bus::codec::encode(&RouteCause {
                causes: Vec::new(),
                input_at: clock::now(),
                decided_at: clock::now(),
            });
            let Some(published) = owner.publish([(key, entry)], meta, None).await else { return owner };
            let applied = async {
                while let Some(report) = reports.next().await {
                    if report.body.revision >= published.position.revision {
                        return;
                    }
                }
            };
            tokio::time::timeout(DEADLINE, applied).await.expect("the edge applies what is published");
            owner
        });
        self.owner = Some(owner);
    }

    /// Publishes the verdict on the endpoints of a cluster by the service's check: `(address, verdict, silent)`.
    pub fn health(&mut self, cluster: &str, endpoints: &[(SocketAddr, Verdict, bool)]) {
        let site = RouteKey::Service("site".parse().unwrap());
        let Some(RouteEntry::Service(service)) = self.table.get(&site) else { panic!("no service") };
        let key = RouteKey::Health(cluster.parse().unwrap(), service.check);
        let endpoints: Vec<EndpointHealth> = endpoints
            .iter()
            .map(|(address, verdict, silent)| EndpointHealth {
                address: address.to_string().parse().unwrap(),
                verdict: *verdict,
                unreachable: *silent,
            })
            .collect();
        let verdict = endpoints[0].verdict;
        self.publish(
            key,
            Some(RouteEntry::Health(HealthEntry { verdict, reason: "a test".to_owned(), endpoints })),
        );
    }

    /// Changes the service's tiers.
    pub fn tiers(&mut self, change: impl FnOnce(&mut TiersEntry)) {
        let key = RouteKey::Tiers("site".parse().unwrap());
        let Some(RouteEntry::Tiers(mut tiers)) = self.table.get(&key).cloned() else { panic!("no tiers") };
        change(&mut tiers);
        self.publish(key, Some(RouteEntry::Tiers(tiers)));
    }

    /// Changes the edge's own entry.
    pub fn entry(&mut self, change: impl FnOnce(&mut EdgeEntry)) {
        let key = RouteKey::Edge("edge-1".parse().unwrap());
        let Some(RouteEntry::Edge(mut entry)) = self.table.get(&key).cloned() else { panic!("no entry") };
        change(&mut entry);
        self.publish(key, Some(RouteEntry::Edge(entry)));
    }

    /// Asks it to end, as SIGTERM does.
    pub fn begin_shutdown(&self) {
        self.context.shutdown.cancel();
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) {
        self.begin_shutdown();
        let thread = self.thread.take().expect("stopped once");
        eventually("the edge ends", || thread.is_finished());
        thread.join().unwrap().unwrap();
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// Runs `future` on `runtime` and waits for it; also within another runtime.
fn run_on<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    runtime.spawn(async move {
        // Nobody waits any more when the test has failed.
        _ = done.send(future.await);
    });
    wait.recv().expect("what ran has panicked")
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.begin_shutdown();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if !self.keep_state {
            // A thread that still drains may write it again; it is in the system's temporary directory.
            _ = std::fs::remove_dir_all(&self.state_dir);
        }
    }
}
