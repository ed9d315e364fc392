//! Properties that hold for all fleets and inputs.

use std::{collections::BTreeMap, sync::Arc};

use proptest::{collection::vec, prelude::*};
use tidegate_model::{
    ClusterName, ServiceName, fleet::Preference, observation::Observation, observation::Target,
    overrides::OverrideKind,
};
use tidegate_routing::{Changes, Engine, Hypothesis, RouteEvent, Settings};

use crate::{
    checks::{check_capacity, check_table},
    random::Random,
    world::{Builder, SURE, World, load_by_action, ms, name, outcome, overrides, targets},
};

const REGIONS: [(&str, f64, f64); 3] = [("asia", 1.3, 103.8), ("eu", 53.3, -6.3), ("us", 38.9, -77.4)];
/// The most actions of a service.
const ACTIONS: usize = 3;
const PROBERS: [(&str, &str); 4] = [("asia", "p1"), ("eu", "p1"), ("us", "p1"), ("us", "p2")];

/// One change of the inputs. Numbers select among the items that exist.
#[derive(Debug, Clone)]
enum Change {
    Observation { prober: usize, cluster: usize, endpoint: usize, pass: bool, streak: u16 },
    Heartbeat { prober: usize },
    Demand { region: usize, service: usize, action: usize, rate: u32 },
    Drain(usize),
    Evacuate(usize),
    Force { service: usize, cluster: usize },
    NoOverrides,
    Time { ms: u64 },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (0..4usize, 0..8usize, 0..2usize, any::<bool>(), 1..=SURE).prop_map(
            |(prober, cluster, endpoint, pass, streak)| Change::Observation { prober, cluster, endpoint, pass, streak }
        ),
        1 => (0..4usize).prop_map(|prober| Change::Heartbeat { prober }),
        3 => (0..3usize, 0..4usize, 0..ACTIONS, 0..3000u32)
            .prop_map(|(region, service, action, rate)| Change::Demand { region, service, action, rate }),
        1 => (0..8usize).prop_map(Change::Drain),
        1 => (0..3usize).prop_map(Change::Evacuate),
        1 => (0..4usize, 0..8usize).prop_map(|(service, cluster)| Change::Force { service, cluster }),
        1 => Just(Change::NoOverrides),
        2 => (0..4000u64).prop_map(|ms| Change::Time { ms }),
    ]
}

/// A random preference: its kind, and clusters with weights.
type Preferred = (u8, Vec<(usize, u16)>);

fn preferred() -> impl Strategy<Value = Preferred> {
    (0..3u8, vec((0..8usize, 0..100u16), 1..5))
}

fn preference(clusters: usize, (kind, preferred): Preferred) -> Preference {
    let mut names: Vec<ClusterName> = Vec::new();
    let mut weights = BTreeMap::new();
    for (cluster, weight) in preferred {
        let cluster: ClusterName = name(&format!("c{}", cluster % clusters));
        if !names.contains(&cluster) {
            names.push(cluster.clone());
            weights.insert(cluster, tidegate_model::unit::Weight::new(weight + 1).unwrap());
        }
    }
    match kind {
        0 => Preference::Ordered(names),
        1 => Preference::Nearest(names),
        _ => Preference::Weighted(weights),
    }
}

/// Two to eight clusters, some with a capacity, and four services that prefer some of them, with up to two routes that
/// prefer others or the same.
fn fleet() -> impl Strategy<Value = Builder> {
    let cluster = (0..3usize, 1..3usize, proptest::option::weighted(0.7, 1..2000u32));
    let routes = vec(proptest::option::weighted(0.8, preferred()), 0..ACTIONS);
    let service = (0..3u8, preferred(), routes);
    (vec(cluster, 2..8), vec(service, 4)).prop_map(|(clusters, services)| {
        let mut builder = Builder::default();
        for (region, latitude, longitude) in REGIONS {
            builder = builder.region(region, latitude, longitude);
        }
        for (at, (region, endpoints, capacity)) in clusters.iter().enumerate() {
            builder = builder.cluster(&format!("c{at}"), REGIONS[*region].0, *endpoints, *capacity);
        }
        for (at, (priority, preferred, routes)) in services.into_iter().enumerate() {
            let (service, default) = (format!("s{at}"), preference(clusters.len(), preferred));
            builder = builder.service(&service, priority, default.clone());
            for route in routes {
                let clusters = route.map_or(default.clone(), |route| preference(clusters.len(), route));
                builder = builder.route(&service, clusters);
            }
        }
        builder
    })
}

/// The current inputs, from which an engine can be built from scratch.
struct Inputs {
    builder: Builder,
    tables: BTreeMap<usize, BTreeMap<Target, Observation>>,
    /// By region, then service, then action.
    demand: BTreeMap<usize, BTreeMap<usize, Vec<u32>>>,
    overrides: Vec<OverrideKind>,
}

impl Inputs {
    fn new(builder: Builder) -> Inputs {
        Inputs { builder, tables: BTreeMap::new(), demand: BTreeMap::new(), overrides: Vec::new() }
    }

    fn cluster(&self, at: usize) -> ClusterName {
        self.builder.0.clusters.keys().nth(at % self.builder.0.clusters.len()).unwrap().clone()
    }

    fn load(&self, region: usize) -> RouteEvent {
        let of_region = self.demand[&region].iter();
        let named: Vec<(String, Vec<u32>)> =
            of_region.map(|(service, rates)| (format!("s{service}"), rates.clone())).collect();
        let demand: Vec<(&str, Vec<u32>)> =
            named.iter().map(|(service, rates)| (service.as_str(), rates.clone())).collect();
        load_by_action(REGIONS[region].0, "e", &demand)
    }

    /// Applies a change, and returns its event; none if only time passes.
    fn apply(&mut self, change: &Change) -> Option<RouteEvent> {
        match change {
            Change::Observation { prober, cluster, endpoint, pass, streak } => {
                let cluster = self.cluster(*cluster);
                let targets = targets(&self.builder.0, &cluster);
                let target = targets[endpoint % targets.len()].clone();
                let observation = Observation { outcome: outcome(*pass), streak: *streak };
                self.tables.entry(*prober).or_default().insert(target.clone(), observation.clone());
                Some(self.observations(*prober, vec![(target, Some(observation))]))
            }
            Change::Heartbeat { prober } => Some(heartbeat(*prober)),
            Change::Demand { region, service, action, rate } => {
                let service_name: ServiceName = name(&format!("s{service}"));
                let actions = self.builder.0.services[&service_name].actions().count();
                let by_service = self.demand.entry(*region).or_default();
                by_service.entry(*service).or_insert_with(|| vec![0; actions])[action % actions] = *rate;
                Some(self.load(*region))
            }
            Change::Drain(cluster) => Some(self.also(OverrideKind::DrainCluster(self.cluster(*cluster)))),
            Change::Evacuate(region) => {
                Some(self.also(OverrideKind::EvacuateRegion(name(REGIONS[*region].0))))
            }
            Change::Force { service, cluster } => {
                let service: ServiceName = name(&format!("s{service}"));
                Some(self.also(OverrideKind::ForceRoute { service, cluster: self.cluster(*cluster) }))
            }
            Change::NoOverrides => {
                self.overrides.clear();
                Some(overrides(&[]))
            }
            Change::Time { .. } => None,
        }
    }

    fn also(&mut self, kind: OverrideKind) -> RouteEvent {
        self.overrides.retain(|other| other.key() != kind.key());
        self.overrides.push(kind);
        overrides(&self.overrides)
    }

    fn observations(&self, prober: usize, changes: Vec<(Target, Option<Observation>)>) -> RouteEvent {
        let (region, prober) = PROBERS[prober];
        RouteEvent::Observations { region: name(region), prober: name(prober), changes, cause: None }
    }

    /// The whole state of each source.
    fn all(&self) -> Vec<RouteEvent> {
        let mut events: Vec<RouteEvent> = self
            .tables
            .iter()
            .map(|(prober, table)| RouteEvent::ObservationsReset {
                restarted: false,
                region: name(PROBERS[*prober].0),
                prober: name(PROBERS[*prober].1),
                all: table.clone().into_iter().collect(),
                cause: None,
            })
            .collect();
        events.extend(self.demand.keys().map(|region| self.load(*region)));
        events.push(overrides(&self.overrides));
        events
    }
}

fn heartbeat(prober: usize) -> RouteEvent {
    RouteEvent::ProberHeartbeat { region: name(PROBERS[prober].0), prober: name(PROBERS[prober].1) }
}

fn step(world: &mut World, inputs: &mut Inputs, change: &Change) {
    match (inputs.apply(change), change) {
        (Some(event), _) => {
            world.apply(event);
        }
        (None, Change::Time { ms }) => world.tick_until(world.now + ms),
        (None, other) => panic!("{other:?} must have an event"),
    }
}

/// Settings that tolerate no drift, so that no share depends on history.
fn exact(region: &str) -> Settings {
    Settings { share_tolerance_permille: 0, ..Settings::new(name(region)) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_table_is_sound_and_equals_the_sum_of_its_changes(
        builder in fleet(), changes in vec(change(), 1..80), home in 0..3usize
    ) {
        let mut inputs = Inputs::new(builder.clone());
        let mut world = World::new(REGIONS[home].0, &builder);
        for change in &changes {
            step(&mut world, &mut inputs, change);
            check_table(&world.engine, &world.fleet, &inputs.overrides);
            prop_assert_eq!(&world.mirror, world.engine.table());
            for service in world.fleet.services.keys() {
                let explanation = world.engine.explain(service).unwrap();
                let explained: Vec<_> = explanation.actions.into_iter().map(|action| action.tiers).collect();
                prop_assert_eq!(&explained, crate::world::actions(&world.engine, service));
            }
        }
    }

    /// Events of one source keep their order; those of different sources are interleaved at random.
    #[test]
    fn the_order_of_events_from_different_sources_does_not_matter(
        builder in fleet(), changes in vec(change(), 1..60), mix in any::<u64>()
    ) {
        let mut inputs = Inputs::new(builder.clone());
        let mut streams: BTreeMap<usize, Vec<RouteEvent>> = BTreeMap::new();
        let mut ordered = Vec::new();
        for change in changes.iter().filter(|change| !matches!(change, Change::Time { .. })) {
            let source = match change {
                Change::Observation { prober, .. } | Change::Heartbeat { prober } => *prober,
                Change::Demand { region, .. } => 10 + region,
                Change::Drain(_) | Change::Evacuate(_) | Change::Force { .. } | Change::NoOverrides
                | Change::Time { .. } => 20,
            };
            let event = inputs.apply(change).unwrap();
            streams.entry(source).or_default().push(event.clone());
            ordered.push(event);
        }
        let mut mixed = Vec::new();
        let mut streams: Vec<_> = streams.into_values().map(Vec::into_iter).collect();
        let mut random = Random::new(mix);
        while !streams.is_empty() {
            let at = random.below(streams.len());
            match streams[at].next() {
                Some(event) => mixed.push(event),
                None => drop(streams.remove(at)),
            }
        }

        let table = |events: Vec<RouteEvent>| {
            let mut world = World::new("us", &builder);
            for event in events {
                world.apply(event);
            }
            let at_once = world.engine.table().clone();
            world.tick_until(2_000);
            (at_once, world.mirror)
        };
        prop_assert_eq!(table(ordered), table(mixed));
    }

    /// Excludes what depends on history by design: rise and fall (all streaks are long enough), suppressions and slow start
    /// (they end), and drift (none is tolerated).
    #[test]
    fn the_table_equals_one_computed_from_scratch(
        builder in fleet(), changes in vec(change(), 1..80), home in 0..3usize
    ) {
        let region = REGIONS[home].0;
        let mut inputs = Inputs::new(builder.clone());
        let mut world = World::with(exact(region), &builder);
        for change in &changes {
            step(&mut world, &mut inputs, change);
        }
        for observation in inputs.tables.values_mut().flat_map(BTreeMap::values_mut) {
            observation.streak = SURE;
        }
        for _ in 0..400 {
            for event in inputs.all() {
                world.apply(event);
            }
            world.tick_until(world.now + 2_000);
        }

        let mut fresh = World::with(exact(region), &builder);
        fresh.now = world.now;
        for event in inputs.all() {
            fresh.apply(event);
        }
        fresh.tick_until(world.now + 2_000);
        prop_assert_eq!(world.engine.table(), fresh.engine.table());
    }

    /// Without drift: both sides of an effect are computed from the same demand.
    #[test]
    fn an_effect_is_what_happens_and_no_hypothesis_has_none(
        builder in fleet(), changes in vec(change(), 1..60), home in 0..3usize, kind in 0..3usize, at in 0..8usize
    ) {
        let mut inputs = Inputs::new(builder.clone());
        let mut world = World::with(exact(REGIONS[home].0), &builder);
        for change in &changes {
            step(&mut world, &mut inputs, change);
        }
        // All demand is measured.
        world.tick_until(world.now + 2_000);

        let nothing = world.engine.clone().what_if(&Hypothesis::default()).unwrap();
        prop_assert!(nothing.actions.iter().all(|action| !action.is_changed()), "{:?}", nothing);
        prop_assert_eq!((nothing.totals.moved, nothing.assumed.len()), (0, 0));

        let change = match kind {
            0 => Change::Drain(at),
            1 => Change::Evacuate(at % 3),
            _ => Change::Force { service: at % 4, cluster: at },
        };
        let event = inputs.apply(&change).unwrap();
        let RouteEvent::Overrides(set) = &event else { panic!("{event:?}") };
        let overrides = set.active.values().cloned().collect();
        let assumed = world.engine.clone().what_if(&Hypothesis { overrides, ..Hypothesis::default() }).unwrap();
        world.apply(event);
        for action in &assumed.actions {
            let service = &builder.0.services[&action.service];
            let of_route = service.routes.iter().position(|route| Some(&route.matches) == action.route.as_ref());
            let tiers = &crate::world::actions(&world.engine, &action.service)[of_route.map_or(0, |at| at + 1)];
            let after = action.after.as_ref().unwrap();
            // A forced cluster that nobody probes yet is assumed to be up.
            if assumed.assumed.is_empty() {
                prop_assert_eq!(&after.shares, &tiers.tiers[0].shares, "{:?}", action);
                prop_assert_eq!((after.shed_permille, after.fail_open), (tiers.shed_permille, tiers.fail_open));
            }
        }
    }

    #[test]
    fn no_cluster_gets_more_than_its_capacity_while_another_has_headroom(
        builder in fleet(),
        down in vec(any::<bool>(), 8),
        steps in vec(vec((0..3usize, 0..4usize, 0..ACTIONS, 0..1500u32), 1..8), 1..5)
    ) {
        let mut inputs = Inputs::new(builder.clone());
        let mut worlds: Vec<World> =
            REGIONS.iter().map(|(region, _, _)| World::new(region, &builder)).collect();
        for (cluster, down) in down.iter().enumerate() {
            for prober in 0..4 {
                for endpoint in 0..2 {
                    inputs.apply(&Change::Observation { prober, cluster, endpoint, pass: !down, streak: SURE });
                }
            }
        }
        for step in &steps {
            for (region, service, action, rate) in step.iter().copied() {
                inputs.apply(&Change::Demand { region, service, action, rate });
            }
            for world in &mut worlds {
                for event in inputs.all() {
                    world.apply(event);
                }
                world.tick_until(world.now + 1_000);
            }
            let demand = inputs.demand.iter().flat_map(|(region, rates)| {
                rates.iter().flat_map(move |(service, rates)| {
                    rates.iter().enumerate().map(move |(action, rate)| {
                        ((name(REGIONS[*region].0), name(&format!("s{service}")), action), *rate)
                    })
                })
            });
            let engines: Vec<_> = REGIONS
                .iter()
                .zip(&worlds)
                .map(|((region, _, _), world)| (name(region), &world.engine))
                .collect();
            check_capacity(&engines, &builder.0, &[], &demand.collect());
        }
    }

    #[test]
    fn a_change_of_one_service_affects_no_other(
        one in fleet(), other in fleet(), changes in vec(change(), 1..60)
    ) {
        // The other fleet under other names, beside the first.
        let mut both = one.clone();
        let renamed = |cluster: &ClusterName| -> ClusterName { name(&format!("x{cluster}")) };
        for (name, cluster) in &other.0.clusters {
            both.0.clusters.insert(renamed(name), cluster.clone());
        }
        for (service_name, service) in &other.0.services {
            let mut service = service.clone();
            let actions = std::iter::once(&mut service.default).chain(service.routes.iter_mut().map(|r| &mut r.action));
            for clusters in actions.map(|action| &mut action.clusters) {
                *clusters = match &*clusters {
                    Preference::Ordered(list) => Preference::Ordered(list.iter().map(renamed).collect()),
                    Preference::Nearest(list) => Preference::Nearest(list.iter().map(renamed).collect()),
                    Preference::Weighted(weights) => {
                        Preference::Weighted(weights.iter().map(|(c, weight)| (renamed(c), *weight)).collect())
                    }
                };
            }
            both.0.services.insert(name(&format!("x{service_name}")), service);
        }
        let mut world = World::new("us", &both);
        // So that no prober sees everything down, and is distrusted.
        for (region, prober) in PROBERS {
            let all: Vec<&str> =
                both.0.clusters.keys().map(ClusterName::as_str).filter(|c| c.starts_with('x')).collect();
            world.report(region, prober, &all, true);
        }
        let untouched = |engine: &Engine| -> Vec<_> {
            engine.table().iter().filter(|(key, _)| format!("{key:?}").contains("(x")).map(|(k, e)| (k.clone(), e.clone())).collect()
        };
        let before = untouched(&world.engine);
        let mut inputs = Inputs::new(one);
        for change in &changes {
            // Evacuating a region is about everything in it.
            if !matches!(change, Change::Evacuate(_)) {
                step(&mut world, &mut inputs, change);
            }
        }
        prop_assert!(!before.is_empty());
        prop_assert_eq!(before, untouched(&world.engine));
    }

    #[test]
    fn the_same_event_twice_changes_nothing_the_second_time(
        builder in fleet(), changes in vec(change(), 1..40)
    ) {
        let mut inputs = Inputs::new(builder.clone());
        let mut world = World::new("us", &builder);
        for change in &changes {
            step(&mut world, &mut inputs, change);
        }
        let whole = inputs.all();
        for event in whole.iter().cloned() {
            world.apply(event);
        }
        for event in whole.into_iter().chain([RouteEvent::Fleet(Arc::new(builder.0))]) {
            let again = world.engine.apply(event, ms(world.now));
            prop_assert_eq!(again, Changes::default());
        }
    }
}
