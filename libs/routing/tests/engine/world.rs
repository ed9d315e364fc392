//! Fleets, inputs and an engine with its mirror, with good defaults.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tidegate_model::{
    ClusterName, RegionName, ServiceName, Timestamp,
    fleet::{
        Action, Cluster, Edge, Endpoint, Fleet, HostPattern, Policy, Preference, Region, Route, RouteMatch,
        Service, Upstream, UpstreamProtocol,
    },
    health::HealthCheck,
    observation::{Failure, Observation, ProbeOutcome, Target},
    overrides::{Override, OverrideKind, OverrideSet},
    report::Load,
    routes::{ActionTiers, HealthEntry, RouteEntry, RouteKey},
    unit::{Location, Weight},
};
use tidegate_routing::{Changes, Engine, RouteEvent, Settings};

/// The streak at which an outcome counts, whatever it is.
pub const SURE: u16 = 3;

pub fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

#[derive(Debug, Clone, Default)]
pub struct Builder(pub Fleet);

impl Builder {
    pub fn region(mut self, region: &str, latitude: f64, longitude: f64) -> Builder {
        let location = Location::from_degrees(latitude, longitude);
        self.0.regions.insert(name(region), Region { location, ..Region::default() });
        for edge in ["e", "e1", "e2"] {
            let networks = [name("internet")].into();
            let edge_of = Edge { region: name(region), address: None, listeners: Vec::new(), networks };
            self.0.edges.insert(name(&format!("{edge}-{region}")), edge_of);
        }
        self
    }

    /// A cluster with `endpoints` endpoints.
    pub fn cluster(
        mut self,
        cluster: &str,
        region: &str,
        endpoints: usize,
        capacity: Option<u32>,
    ) -> Builder {
        let number = self.0.clusters.len();
        let endpoint = |at: usize| Endpoint {
            address: name(&format!("10.{}.{}.{}:80", number / 250, number % 250, at + 1)),
            network: name("internet"),
        };
        let upstream = Upstream {
            protocol: UpstreamProtocol::Auto,
            tls: None,
            idle_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
            max_requests: 1000,
        };
        let endpoints = (0..endpoints).map(endpoint).collect();
        self.0
            .clusters
            .insert(name(cluster), Cluster { region: name(region), endpoints, upstream, capacity });
        self
    }

    /// A route of a service that is there.
    pub fn route(mut self, service: &str, clusters: Preference) -> Builder {
        let service = self.0.services.get_mut(&name::<ServiceName>(service)).unwrap();
        let path = format!("/{}", service.routes.len());
        let matches = RouteMatch { path: Some(path), ..RouteMatch::default() };
        service.routes.push(Route { matches, action: Action { clusters, policy: Policy::default() } });
        self
    }

    pub fn service(self, service: &str, priority: u8, clusters: Preference) -> Builder {
        let mut builder = self;
        let service_entry = Service {
            hosts: vec![HostPattern::Any],
            health: HealthCheck::tcp(),
            priority,
            max_request_body: None,
            default: Action { clusters, policy: Policy::default() },
            routes: Vec::new(),
        };
        builder.0.services.insert(name(service), service_entry);
        builder
    }
}

pub fn ordered(clusters: &[&str]) -> Preference {
    Preference::Ordered(clusters.iter().map(|cluster| name(cluster)).collect())
}

pub fn nearest(clusters: &[&str]) -> Preference {
    Preference::Nearest(clusters.iter().map(|cluster| name(cluster)).collect())
}

pub fn weighted(clusters: &[(&str, u16)]) -> Preference {
    Preference::Weighted(
        clusters.iter().map(|(c, weight)| (name(c), Weight::new(*weight).unwrap())).collect(),
    )
}

/// Every endpoint of a cluster, for the check that all services here share.
pub fn targets(fleet: &Fleet, cluster: &ClusterName) -> Vec<Target> {
    let endpoints = &fleet.clusters[cluster].endpoints;
    endpoints
        .iter()
        .map(|endpoint| Target {
            cluster: cluster.clone(),
            endpoint: endpoint.address.clone(),
            check: HealthCheck::tcp().id(),
        })
        .collect()
}

pub fn outcome(pass: bool) -> ProbeOutcome {
    if pass { ProbeOutcome::Pass } else { ProbeOutcome::Fail(Failure::ConnectRefused) }
}

pub fn ms(ms: u64) -> Timestamp {
    // Not at zero, so that there is a before.
    Timestamp(1_000_000_000_000 + ms * 1000)
}

/// Demand of default actions.
pub fn load(region: &str, edge: &str, demand: &[(&str, u32)]) -> RouteEvent {
    let by_action: Vec<_> = demand.iter().map(|(service, rate)| (*service, vec![*rate])).collect();
    load_by_action(region, edge, &by_action)
}

pub fn load_by_action(region: &str, edge: &str, demand: &[(&str, Vec<u32>)]) -> RouteEvent {
    RouteEvent::Load(Load {
        edge: name(&format!("{edge}-{region}")),
        region: name(region),
        interval_ms: 1000,
        demand: demand.iter().map(|(service, rates)| (name(service), rates.clone())).collect(),
        clusters: BTreeMap::new(),
    })
}

pub fn overrides(kinds: &[OverrideKind]) -> RouteEvent {
    let each = kinds.iter().map(|kind| (kind.key(), over(kind.clone(), None)));
    RouteEvent::Overrides(OverrideSet { active: each.collect(), ..OverrideSet::default() })
}

pub fn over(kind: OverrideKind, expires_at: Option<Timestamp>) -> Override {
    Override { kind, author: "ann".to_owned(), reason: "deploy".to_owned(), created_at: ms(0), expires_at }
}

/// An engine, and a mirror of its table that is built from its changes alone.
pub struct World {
    pub fleet: Arc<Fleet>,
    pub engine: Engine,
    pub mirror: BTreeMap<RouteKey, RouteEntry>,
    pub now: u64,
}

impl World {
    pub fn new(region: &str, builder: &Builder) -> World {
        World::with(Settings::new(name(region)), builder)
    }

    pub fn with(settings: Settings, builder: &Builder) -> World {
        let fleet = Arc::new(builder.0.clone());
        let mut world =
            World { fleet: fleet.clone(), engine: Engine::new(settings), mirror: BTreeMap::new(), now: 0 };
        world.apply(RouteEvent::Fleet(fleet));
        world
    }

    pub fn apply(&mut self, event: RouteEvent) -> Changes {
        let changes = self.engine.apply(event, ms(self.now));
        for (key, entry) in &changes.entries {
            let before = match entry {
                Some(entry) => self.mirror.insert(key.clone(), entry.clone()),
                None => self.mirror.remove(key),
            };
            assert_ne!(before.as_ref(), entry.as_ref(), "{key:?} is no change");
        }
        assert_eq!(changes.entries.is_empty(), changes.causes.is_empty(), "{changes:?}");
        changes
    }

    /// Applies the observation of one prober on all endpoints of some clusters.
    pub fn report(&mut self, region: &str, prober: &str, clusters: &[&str], pass: bool) -> Changes {
        let targets = clusters.iter().flat_map(|cluster| targets(&self.fleet, &name(cluster)));
        let observation = Observation { outcome: outcome(pass), streak: SURE };
        self.apply(RouteEvent::Observations {
            region: name(region),
            prober: name(prober),
            changes: targets.map(|target| (target, Some(observation.clone()))).collect(),
            cause: None,
        })
    }

    /// Lets time pass, deadline by deadline, while these probers send heartbeats.
    pub fn pass(&mut self, duration_ms: u64, probers: &[(&str, &str)]) {
        let end = self.now + duration_ms;
        while self.now < end {
            for (region, prober) in probers {
                self.apply(RouteEvent::ProberHeartbeat { region: name(region), prober: name(prober) });
            }
            let next = (self.now + 1000).min(end);
            self.tick_until(next);
        }
    }

    /// Lets time pass, deadline by deadline.
    pub fn tick_until(&mut self, end: u64) {
        while let Some(deadline) = self.engine.next_deadline().filter(|deadline| *deadline <= ms(end)) {
            assert!(deadline > ms(self.now), "a deadline must lie ahead");
            self.now = (deadline.0 - ms(0).0).div_ceil(1000);
            self.apply(RouteEvent::Tick);
        }
        self.now = end;
        self.apply(RouteEvent::Tick);
    }

    pub fn tiers(&self, service: &str) -> &ActionTiers {
        tiers(&self.engine, &name(service))
    }

    /// The clusters of each tier with their shares.
    pub fn shares(&self, service: &str) -> Vec<Vec<(&str, u16)>> {
        let tiers = &self.tiers(service).tiers;
        tiers.iter().map(|tier| tier.shares.iter().map(|(c, share)| (c.as_str(), *share)).collect()).collect()
    }

    pub fn health(&self, cluster: &str) -> &HealthEntry {
        health(&self.engine, &name(cluster)).unwrap()
    }
}

pub fn tiers<'a>(engine: &'a Engine, service: &ServiceName) -> &'a ActionTiers {
    &actions(engine, service)[0]
}

pub fn actions<'a>(engine: &'a Engine, service: &ServiceName) -> &'a [ActionTiers] {
    match &engine.table()[&RouteKey::Tiers(service.clone())] {
        RouteEntry::Tiers(entry) => &entry.actions,
        other => panic!("{other:?}"),
    }
}

pub fn health<'a>(engine: &'a Engine, cluster: &ClusterName) -> Option<&'a HealthEntry> {
    match engine.table().get(&RouteKey::Health(cluster.clone(), HealthCheck::tcp().id()))? {
        RouteEntry::Health(entry) => Some(entry),
        other => panic!("{other:?}"),
    }
}

pub fn region_of(fleet: &Fleet, cluster: &ClusterName) -> RegionName {
    fleet.clusters[cluster].region.clone()
}
