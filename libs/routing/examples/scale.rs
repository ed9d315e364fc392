//! The time that a single change takes with 10,000 clusters, 1,000 services and 50 regions.
//!
//! `cargo run --release -p tidegate-routing --example scale` prints medians and maxima for services that share no cluster
//! and for services that are all coupled through clusters of limited capacity, with demand from every region.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_model::{
    ClusterName, Timestamp,
    fleet::{
        Action, Cluster, Edge, Endpoint, Fleet, HostPattern, Policy, Preference, Region, Service, Upstream,
        UpstreamProtocol,
    },
    health::HealthCheck,
    observation::{Failure, Observation, ProbeOutcome, Target},
    report::Load,
    unit::Location,
};
use tidegate_routing::{Engine, Hypothesis, Loss, RouteEvent, Settings};

const REGIONS: usize = 50;
const CLUSTERS: usize = 10_000;
const SERVICES: usize = 1_000;
const CHANGES: usize = 200;

fn main() {
    for (title, per_service, rate) in [
        ("services apart", 10, 150),
        ("all coupled by capacity, few clusters full", 20, 10),
        ("all coupled by capacity, most clusters full", 20, 150),
    ] {
        println!("{title}: {CLUSTERS} clusters, {SERVICES} services of {per_service}, {REGIONS} regions");
        run(per_service, rate);
    }
}

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("the names here are well-formed")
}

fn region(at: usize) -> String {
    format!("region-{at:02}")
}

fn cluster(at: usize) -> String {
    format!("cluster-{:05}", at % CLUSTERS)
}

fn fleet(per_service: usize) -> Fleet {
    let mut fleet = Fleet::default();
    for at in 0..REGIONS {
        let (latitude, longitude) = (-60.0 + 2.4 * at as f64, -170.0 + 6.8 * at as f64);
        let location = Location::from_degrees(latitude, longitude);
        fleet.regions.insert(name(&region(at)), Region { location, ..Region::default() });
        let networks = [name("internet")].into();
        let edge = Edge { region: name(&region(at)), address: None, listeners: Vec::new(), networks };
        fleet.edges.insert(name(&format!("edge-{at}")), edge);
    }
    for at in 0..CLUSTERS {
        let endpoint = |host: usize| Endpoint {
            address: name(&format!("10.{}.{}.{host}:8443", at / 250, at % 250)),
            network: name("internet"),
        };
        let upstream = Upstream {
            protocol: UpstreamProtocol::Auto,
            tls: None,
            idle_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
            max_requests: 1000,
        };
        let endpoints = vec![endpoint(1), endpoint(2)];
        let entry =
            Cluster { region: name(&region(at % REGIONS)), endpoints, upstream, capacity: Some(1000) };
        fleet.clusters.insert(name(&cluster(at)), entry);
    }
    for at in 0..SERVICES {
        let clusters = (at * 10..at * 10 + per_service).map(|at| name(&cluster(at))).collect();
        let service = Service {
            hosts: vec![HostPattern::Any],
            health: HealthCheck::tcp(),
            priority: 0,
            max_request_body: None,
            default: Action { clusters: Preference::Nearest(clusters), policy: Policy::default() },
            routes: Vec::new(),
        };
        fleet.services.insert(name(&format!("service-{at:04}")), service);
    }
    fleet
}

fn observe(region_at: usize, fleet: &Fleet, cluster: &ClusterName, pass: bool) -> RouteEvent {
    let observation = Observation {
        outcome: if pass { ProbeOutcome::Pass } else { ProbeOutcome::Fail(Failure::ConnectRefused) },
        streak: 3,
    };
    let endpoints = &fleet.clusters[cluster].endpoints;
    let target = |endpoint: &Endpoint| Target {
        cluster: cluster.clone(),
        endpoint: endpoint.address.clone(),
        check: HealthCheck::tcp().id(),
    };
    RouteEvent::Observations {
        region: name(&region(region_at)),
        prober: name("prober-1"),
        changes: endpoints.iter().map(|e| (target(e), Some(observation.clone()))).collect(),
        cause: None,
    }
}

/// `rate` is the demand of each region for each service, in requests per second.
fn run(per_service: usize, rate: u32) {
    let fleet = Arc::new(fleet(per_service));
    let mut now = Timestamp(1_000_000_000);
    let mut engine = Engine::new(Settings::new(name(&region(0))));
    let timed = |engine: &mut Engine, event: RouteEvent, now: Timestamp| {
        let begin = Instant::now();
        let changes = engine.apply(event, now);
        (begin.elapsed(), changes.entries.len())
    };
    let (took, entries) = timed(&mut engine, RouteEvent::Fleet(fleet.clone()), now);
    println!("  the fleet: {took:.1?} for {entries} entries");

    let begin = Instant::now();
    for region_at in 0..REGIONS {
        let mut all = Vec::new();
        for cluster in fleet.clusters.keys() {
            if let RouteEvent::Observations { changes, .. } = observe(region_at, &fleet, cluster, true) {
                all.extend(changes.into_iter().filter_map(|(target, seen)| Some((target, seen?))));
            }
        }
        let (region, prober) = (name(&region(region_at)), name("prober-1"));
        engine
            .apply(RouteEvent::ObservationsReset { region, prober, all, restarted: false, cause: None }, now);
    }
    println!("  snapshots of {REGIONS} probers: {:.1?}", begin.elapsed());

    for region_at in 0..REGIONS {
        let demand: BTreeMap<_, _> =
            fleet.services.keys().map(|service| (service.clone(), vec![rate])).collect();
        let load = Load {
            edge: name(&format!("edge-{region_at}")),
            region: name(&region(region_at)),
            interval_ms: 1000,
            demand,
            clusters: BTreeMap::new(),
        };
        engine.apply(RouteEvent::Load(load), now);
    }
    now = now.plus(Duration::from_secs(1));
    let (took, entries) = timed(&mut engine, RouteEvent::Tick, now);
    println!("  a measurement of the demand of every service and region: {took:.1?} for {entries} entries");

    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for at in 0..CHANGES {
        let cluster: ClusterName = name(&cluster(at * 37));
        for (what, from, pass) in [
            ("a cluster fails, as another region sees it", 1, false),
            ("a cluster fails, as this region sees it", 0, false),
            ("it is back here", 0, true),
            ("it is back there", 1, true),
        ] {
            let (took, _) = timed(&mut engine, observe(from, &fleet, &cluster, pass), now);
            times.entry(what).or_default().push(took);
        }
    }
    for (what, mut times) in times {
        times.sort_unstable();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        println!("  {what}: median {median:.1?}, at most {most:.1?} of {}", times.len());
    }

    let begin = Instant::now();
    let clone = engine.clone();
    let cloned = begin.elapsed();
    let lost = vec![Loss::Region(name(&region(1)))];
    let effect = clone.what_if(&Hypothesis { lost, demand_permille: 1500, ..Hypothesis::default() });
    let actions = effect.expect("the fleet has the region").actions.len();
    println!("  a hypothesis: {cloned:.1?} for the copy, {:.1?} in all, {actions} actions", begin.elapsed());
}
