//! What must always hold, over fleets and inputs of any kind.

use std::{collections::BTreeMap, sync::Arc};

use proptest::{collection::vec, prelude::*};
use tidegate_model::{
    ClusterName, ServiceName, fleet::Preference, observation::Observation, observation::Target,
    overrides::OverrideKind,
};
use tidegate_routing::{Changes, Engine, RouteEvent, Settings};

use crate::{
    checks::{check_capacity, check_table},
    random::Random,
    world::{Builder, SURE, World, load_by_action, ms, name, outcome, overrides, targets},
};

const REGIONS: [(&str, f64, f64); 3] = [("asia", 1.3, 103.8), ("eu", 53.3, -6.3), ("us", 38.9, -77.4)];
/// Of a service, at most.
const ACTIONS: usize = 3;
const PROBERS: [(&str, &str); 4] = [("asia", "p1"), ("eu", "p1"), ("us", "p1"), ("us", "p2")];

/// One change of the inputs. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Change {
    Word { prober: usize, cluster: usize, endpoint: usize, pass: bool, streak: u16 },
    Heard { prober: usize },
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
            |(prober, cluster, endpoint, pass, streak)| Change::Word { prober, cluster, endpoint, pass, streak }
        ),
        1 => (0..4usize).prop_map(|prober| Change::Heard { prober }),
        3 => (0..3usize, 0..4usize, 0..ACTIONS, 0..3000u32)
            .prop_map(|(region, service, action, rate)| Change::Demand { region, service, action, rate }),
        1 => (0..8usize).prop_map(Change::Drain),
        1 => (0..3usize).prop_map(Change::Evacuate),
        1 => (0..4usize, 0..8usize).prop_map(|(service, cluster)| Change::Force { service, cluster }),
        1 => Just(Change::NoOverrides),
        2 => (0..4000u64).prop_map(|ms| Change::Time { ms }),
    ]
}

/// Which clusters are liked: a kind, and clusters with weights.
type Liking = (u8, Vec<(usize, u16)>);

fn liking() -> impl Strategy<Value = Liking> {
    (0..3u8, vec((0..8usize, 0..100u16), 1..5))
}

fn preference(clusters: usize, (kind, liked): Liking) -> Preference {
    let mut names: Vec<ClusterName> = Vec::new();
    let mut weights = BTreeMap::new();
    for (cluster, weight) in liked {
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

/// Two to eight clusters, some with a capacity, and four services that like some of them, with up to two routes that like
/// others or the same.
fn fleet() -> impl Strategy<Value = Builder> {
    let cluster = (0..3usize, 1..3usize, proptest::option::weighted(0.7, 1..2000u32));
    let routes = vec(proptest::option::weighted(0.8, liking()), 0..ACTIONS);
    let service = (0..3u8, liking(), routes);
    (vec(cluster, 2..8), vec(service, 4)).prop_map(|(clusters, services)| {
        let mut builder = Builder::default();
        for (region, latitude, longitude) in REGIONS {
            builder = builder.region(region, latitude, longitude);
        }
        for (at, (region, endpoints, capacity)) in clusters.iter().enumerate() {
            builder = builder.cluster(&format!("c{at}"), REGIONS[*region].0, *endpoints, *capacity);
        }
        for (at, (priority, liked, routes)) in services.into_iter().enumerate() {
            let (service, default) = (format!("s{at}"), preference(clusters.len(), liked));
            builder = builder.service(&service, priority, default.clone());
            for liked in routes {
                let clusters = liked.map_or(default.clone(), |liked| preference(clusters.len(), liked));
                builder = builder.route(&service, clusters);
            }
        }
        builder
    })
}

/// The inputs as they stand, from which an engine can be made anew.
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

    /// Takes a change, and returns the event that tells of it; none where only time passes.
    fn take(&mut self, change: &Change) -> Option<RouteEvent> {
        match change {
            Change::Word { prober, cluster, endpoint, pass, streak } => {
                let cluster = self.cluster(*cluster);
                let targets = targets(&self.builder.0, &cluster);
                let target = targets[endpoint % targets.len()].clone();
                let observation = Observation { outcome: outcome(*pass), streak: *streak };
                self.tables.entry(*prober).or_default().insert(target.clone(), observation.clone());
                Some(self.observations(*prober, vec![(target, Some(observation))]))
            }
            Change::Heard { prober } => Some(heard(*prober)),
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

    /// Every source's whole state.
    fn all(&self) -> Vec<RouteEvent> {
        let mut events: Vec<RouteEvent> = self
            .tables
            .iter()
            .map(|(prober, table)| RouteEvent::ObservationsReset {
                begins_anew: false,
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

fn heard(prober: usize) -> RouteEvent {
    RouteEvent::ProberHeard { region: name(PROBERS[prober].0), prober: name(PROBERS[prober].1) }
}

fn step(world: &mut World, inputs: &mut Inputs, change: &Change) {
    match (inputs.take(change), change) {
        (Some(event), _) => {
            world.apply(event);
        }
        (None, Change::Time { ms }) => world.tick_until(world.now + ms),
        (None, other) => panic!("{other:?} must have an event"),
    }
}

/// Settings under which no share may be wrong at all, so that none depends on history.
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

    /// Events of one source keep their order; those of different sources come in any.
    #[test]
    fn the_order_in_which_sources_are_heard_does_not_matter(
        builder in fleet(), changes in vec(change(), 1..60), mix in any::<u64>()
    ) {
        let mut inputs = Inputs::new(builder.clone());
        let mut streams: BTreeMap<usize, Vec<RouteEvent>> = BTreeMap::new();
        let mut told = Vec::new();
        for change in changes.iter().filter(|change| !matches!(change, Change::Time { .. })) {
            let source = match change {
                Change::Word { prober, .. } | Change::Heard { prober } => *prober,
                Change::Demand { region, .. } => 10 + region,
                Change::Drain(_) | Change::Evacuate(_) | Change::Force { .. } | Change::NoOverrides
                | Change::Time { .. } => 20,
            };
            let event = inputs.take(change).unwrap();
            streams.entry(source).or_default().push(event.clone());
            told.push(event);
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
        prop_assert_eq!(table(told), table(mixed));
    }

    /// Left out, because they are memory on purpose: rise and fall (the streaks are made sure), holds and slow start
    /// (they end), and shares that are a little wrong (none may be).
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

    #[test]
    fn no_cluster_is_sent_more_than_it_can_take_while_another_has_room(
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
                    inputs.take(&Change::Word { prober, cluster, endpoint, pass: !down, streak: SURE });
                }
            }
        }
        for step in &steps {
            for (region, service, action, rate) in step.iter().copied() {
                inputs.take(&Change::Demand { region, service, action, rate });
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
    fn a_change_of_one_service_touches_no_other(
        one in fleet(), other in fleet(), changes in vec(change(), 1..60)
    ) {
        // The other fleet under other names, beside the first.
        let mut both = one.clone();
        let renamed = |cluster: &ClusterName| -> ClusterName { name(&format!("x{cluster}")) };
        for (cluster, facts) in &other.0.clusters {
            both.0.clusters.insert(renamed(cluster), facts.clone());
        }
        for (service, facts) in &other.0.services {
            let mut facts = facts.clone();
            let actions = std::iter::once(&mut facts.default).chain(facts.routes.iter_mut().map(|r| &mut r.action));
            for clusters in actions.map(|action| &mut action.clusters) {
                *clusters = match &*clusters {
                    Preference::Ordered(list) => Preference::Ordered(list.iter().map(renamed).collect()),
                    Preference::Nearest(list) => Preference::Nearest(list.iter().map(renamed).collect()),
                    Preference::Weighted(weights) => {
                        Preference::Weighted(weights.iter().map(|(c, weight)| (renamed(c), *weight)).collect())
                    }
                };
            }
            both.0.services.insert(name(&format!("x{service}")), facts);
        }
        let mut world = World::new("us", &both);
        // So that no prober sees everything down, and is doubted.
        for (region, prober) in PROBERS {
            let all: Vec<&str> =
                both.0.clusters.keys().map(ClusterName::as_str).filter(|c| c.starts_with('x')).collect();
            world.say(region, prober, &all, true);
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
