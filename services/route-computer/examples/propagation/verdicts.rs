//! A fleet, and verdicts on its clusters as a route-computer publishes them.

use std::{fmt::Write, sync::Arc, time::Duration};

use anyhow::Context as _;
use tidegate_bus::clock;
use tidegate_model::{
    ClusterName, Timestamp,
    fleet::{Endpoint, Fleet},
    health::CheckId,
    observation::{Failure, Observation, ObservationCause, ProbeOutcome, Signal, Target},
    routes::{RouteCause, RouteEntry, RouteKey},
};
use tidegate_routing::{Changes, Damping, Engine, RouteEvent, Settings};

/// The region whose routes are computed.
pub const REGION: &str = "eu-west";

const PROBER: &str = "prober-1";
/// Each is the first choice of one service; one in ten is the second choice of nine services.
const CLUSTERS: usize = 100;

/// An endless series of verdicts: one cluster goes down and recovers, then the next.
pub struct Verdicts {
    engine: Engine,
    fleet: Arc<Fleet>,
    check: CheckId,
    now: Timestamp,
    made: usize,
}

impl Verdicts {
    /// A fleet of 100 clusters and services with `edges` in the region, all of it healthy.
    pub fn new(edges: usize) -> anyhow::Result<Verdicts> {
        let fleet = Fleet::parse(&fleet(edges), "fleet").map_err(|errors| anyhow::anyhow!("{errors}"))?;
        let check = fleet.services.values().next().context("a fleet without services")?.health.id();
        let mut settings = Settings::new(REGION.parse()?);
        // So that each change is one verdict, without the slow start of earlier ones.
        settings.slow_start = Duration::ZERO;
        settings.damping = Damping { first_suppression: Duration::ZERO, ..Damping::default() };
        let mut verdicts = Verdicts {
            engine: Engine::new(settings),
            fleet: Arc::new(fleet),
            check,
            now: clock::now(),
            made: 0,
        };
        verdicts.engine.apply(RouteEvent::Fleet(verdicts.fleet.clone()), verdicts.now);
        for cluster in verdicts.fleet.clone().clusters.keys() {
            verdicts.observe(cluster, ProbeOutcome::Pass);
        }
        Ok(verdicts)
    }

    /// The region's routes.
    pub fn table(&self) -> Vec<(RouteKey, RouteEntry)> {
        self.engine.table().iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// The next change of the route table, and its cause.
    pub fn decide(&mut self) -> (Changes, RouteCause) {
        let nth = self.made / 2;
        let cluster = cluster(nth / 9 * 10 % CLUSTERS + nth % 9 + 1);
        let outcome = if self.made.is_multiple_of(2) {
            ProbeOutcome::Fail(Failure::ConnectRefused)
        } else {
            ProbeOutcome::Pass
        };
        self.made += 1;
        let changes = self.observe(&cluster.parse().expect("a well-formed name"), outcome);
        let now = clock::now();
        let cause = RouteCause { causes: changes.causes.clone(), input_at: now, decided_at: now };
        (changes, cause)
    }

    fn observe(&mut self, cluster: &ClusterName, outcome: ProbeOutcome) -> Changes {
        // The engine has a time of its own, so that its prober is not stale after the edges have connected.
        self.now = self.now.plus(Duration::from_millis(100));
        let target = |endpoint: &Endpoint| Target {
            cluster: cluster.clone(),
            endpoint: endpoint.address.clone(),
            check: self.check,
        };
        let seen = Observation { outcome, streak: 3 };
        let endpoints = &self.fleet.clusters[cluster].endpoints;
        let event = RouteEvent::Observations {
            region: REGION.parse().expect("a well-formed name"),
            prober: PROBER.parse().expect("a well-formed name"),
            changes: endpoints.iter().map(|endpoint| (target(endpoint), Some(seen.clone()))).collect(),
            cause: Some(ObservationCause {
                signal: Signal::Schedule,
                probed_at: self.now,
                observed_at: self.now,
            }),
        };
        self.engine.apply(event, self.now)
    }
}

fn cluster(at: usize) -> String {
    format!("{REGION}-{at:02}")
}

fn fleet(edges: usize) -> String {
    let mut text = format!("regions:\n  {REGION}: {{}}\nclusters:\n");
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        text.write_fmt(arguments).expect("writing to a string does not fail");
    };
    for at in 0..CLUSTERS {
        let name = cluster(at);
        line(format_args!(
            "  {name}: {{ region: {REGION}, endpoints: [\"10.2.{at}.10:8443\", \"10.2.{at}.11:8443\"] }}\n"
        ));
    }
    line(format_args!("listeners:\n  public-http: {{ bind: \"0.0.0.0:80\", protocol: http }}\nedges:\n"));
    for at in 0..edges {
        line(format_args!("  edge-{at:04}: {{ region: {REGION}, listeners: [public-http] }}\n"));
    }
    line(format_args!("services:\n"));
    for at in 0..CLUSTERS {
        let stands_in = if at % 10 == 0 { (at + 10) % CLUSTERS } else { at / 10 * 10 };
        let (first, second) = (cluster(at), cluster(stands_in));
        line(format_args!(
            "  service-{at:02}:\n    hosts: [service-{at:02}.example.com]\n    clusters: [{first}, {second}]\n    \
             health: {{ path: /healthz, interval: 250ms, timeout: 200ms, unhealthy_after: 2, healthy_after: 3 }}\n"
        ));
    }
    text
}
