//! What operators write in one region reaches the other, whose bus keeps its own data, also after the two were cut apart.

use std::time::Duration;

use crate::both::LONG;
use tidegate_bus::{
    Bus, NatsSettings,
    fleet::FleetStore,
    lease::{Lease, LeaseSeal, LeaseState},
    overrides::OverrideStore,
    replicate::Replicator,
    subjects,
    testing::Regions,
};
use tidegate_model::{
    Timestamp,
    overrides::{Override, OverrideKind},
};

const NAMES: [&str; 2] = ["us", "eu"];

struct Fixture {
    regions: Regions,
    buses: [Bus; 2],
    replicators: Vec<Replicator>,
}

impl Fixture {
    async fn start() -> Fixture {
        let regions = Regions::start();
        let bus = async |own: usize| {
            let bus = Bus::connect(NatsSettings::new([regions.servers[own].url()], "test")).await.unwrap();
            assert!(bus.ready(LONG).await);
            bus
        };
        let buses = [bus(0).await, bus(1).await];
        let mut replicators = Vec::new();
        for (bus, name) in buses.iter().zip(NAMES) {
            replicators.push(
                Replicator::start(bus, &name.parse().unwrap(), |text| text != "unreadable").await.unwrap(),
            );
        }
        Fixture { regions, buses, replicators }
    }

    fn fleets(&self) -> [FleetStore; 2] {
        self.buses.each_ref().map(FleetStore::new)
    }

    fn overrides(&self) -> [OverrideStore; 2] {
        self.buses.each_ref().map(OverrideStore::new)
    }

    /// Waits until the regions hear each other.
    async fn until_joined(&self) {
        let mut heard = self.buses[0].subscribe("tidegate.v1.test").await.unwrap();
        until("the regions hear each other", async || {
            self.buses[1].publish("tidegate.v1.test", None, "x".into()).await.unwrap();
            tokio::time::timeout(Duration::from_millis(50), heard.next()).await.is_ok()
        })
        .await;
    }

    async fn until_apart(&self) {
        let mut heard = self.buses[0].subscribe("tidegate.v1.test").await.unwrap();
        until("the regions don't hear each other", async || {
            self.buses[1].publish("tidegate.v1.test", None, "x".into()).await.unwrap();
            tokio::time::timeout(Duration::from_millis(500), heard.next()).await.is_err()
        })
        .await;
    }

    async fn stop(self) {
        for replicator in self.replicators {
            replicator.stop().await;
        }
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, waited).await.unwrap_or_else(|_| panic!("not after {LONG:?}: {what}"));
}

async fn until_fleet(fleets: &[FleetStore; 2], text: &str) {
    for fleet in fleets {
        let what = format!("a region has the fleet {text}");
        until(&what, async || fleet.get().await.unwrap().is_some_and(|fleet| fleet.text == text)).await;
    }
}

async fn until_drained(overrides: &[OverrideStore; 2], clusters: &[&str]) {
    for store in overrides {
        let keys: Vec<String> = clusters.iter().map(|name| format!("drain.cluster.{name}")).collect();
        let what = format!("a region has the overrides {keys:?}");
        until(&what, async || store.list().await.unwrap().into_keys().eq(keys.iter().cloned())).await;
    }
}

fn drain(cluster: &str, at: u64) -> Override {
    Override {
        kind: OverrideKind::DrainCluster(cluster.parse().unwrap()),
        author: "ann".to_owned(),
        reason: "upgrade".to_owned(),
        created_at: Timestamp(at),
        expires_at: None,
    }
}

#[tokio::test]
async fn what_is_written_in_one_region_reaches_the_other() {
    // Given two regions that hear each other.
    let fixture = Fixture::start().await;
    let (fleets, overrides) = (fixture.fleets(), fixture.overrides());
    fixture.until_joined().await;

    // When a fleet, large enough for several messages, and a drain are written in different regions.
    let text = format!("# {}", "x".repeat(3 << 20));
    let head = fleets[0].put(&text, "ann").await.unwrap();
    overrides[1].put(&drain("us-1", 1)).await.unwrap();

    // Then both have both, the fleet with its author and revision; and what is withdrawn in one is withdrawn in both.
    until_fleet(&fleets, &text).await;
    assert_eq!(fleets[1].get().await.unwrap().unwrap().head, head);
    // It is kept as a revision there, too.
    until("the other region keeps the revision", async || {
        fleets[1].revisions().await.unwrap() == [head.clone()]
    })
    .await;
    let next = fleets[1].put("next", "bob").await.unwrap();
    until_fleet(&fleets, "next").await;
    until("both are kept in both", async || {
        fleets[0].revisions().await.unwrap() == [next.clone(), head.clone()]
    })
    .await;
    assert_eq!(fleets[0].revision(head.revision).await.unwrap().unwrap().text, text);
    until_drained(&overrides, &["us-1"]).await;
    assert!(overrides[0].withdraw(&drain("us-1", 1).kind, "bob", "").await.unwrap());
    until_drained(&overrides, &[]).await;
    fixture.stop().await;
}

#[tokio::test]
async fn revisions_that_a_region_missed_come_with_the_one_in_force() {
    // Given two regions that have agreed, and are then cut apart.
    let mut fixture = Fixture::start().await;
    let fleets = fixture.fleets();
    fixture.until_joined().await;
    let first = fleets[0].put("first", "ann").await.unwrap();
    until_fleet(&fleets, "first").await;
    fixture.regions.cut();
    fixture.until_apart().await;

    // When several files are applied in one of them, then the other one has all of them afterwards.
    let second = fleets[0].put("second", "ann").await.unwrap();
    fleets[0].put("unreadable", "ann").await.unwrap();
    let last = fleets[0].put("third", "bob").await.unwrap();
    fixture.regions.heal();
    until_fleet(&fleets, "third").await;
    let expected = [last, second.clone(), first];
    until("the other region has all revisions", async || fleets[1].revisions().await.unwrap() == expected)
        .await;
    assert_eq!(fleets[1].revision(second.revision).await.unwrap().unwrap().text, "second");
    fixture.stop().await;
}

#[tokio::test]
async fn regions_that_were_cut_apart_work_on_and_agree_afterwards() {
    // Given two regions that have agreed, and are then cut apart.
    let mut fixture = Fixture::start().await;
    let (fleets, overrides) = (fixture.fleets(), fixture.overrides());
    fixture.until_joined().await;
    fleets[0].put("first", "ann").await.unwrap();
    overrides[0].put(&drain("us-1", 1)).await.unwrap();
    until_fleet(&fleets, "first").await;
    until_drained(&overrides, &["us-1"]).await;
    fixture.regions.cut();
    fixture.until_apart().await;

    // When operators write in each, and each elects its leader.
    fleets[0].put("second", "ann").await.unwrap();
    let newest = fleets[1].put("third", "bob").await.unwrap();
    assert!(overrides[0].withdraw(&drain("us-1", 1).kind, "bob", "").await.unwrap());
    overrides[1].put(&drain("eu-1", 2)).await.unwrap();
    for (bus, name) in fixture.buses.iter().zip(NAMES) {
        let bucket = bus.bucket(subjects::LEASE_BUCKET);
        let lease =
            Lease::start(bucket, name, "a".parse().unwrap(), Duration::from_secs(2), LeaseSeal::default());
        let mut state = lease.state();
        let leads = state.wait_for(|state| matches!(state, LeaseState::Leader { .. }));
        tokio::time::timeout(LONG, leads).await.unwrap().unwrap();
        lease.stop().await;
    }
    assert_eq!(fleets[0].get().await.unwrap().unwrap().text, "second");
    assert_eq!(overrides[1].list().await.unwrap().len(), 2, "the other region's write cannot have come here");
    fixture.regions.heal();

    // Then both have the newest fleet, what was written, and not what was withdrawn.
    until_fleet(&fleets, "third").await;
    assert_eq!(fleets[0].get().await.unwrap().unwrap().head, newest);
    until_drained(&overrides, &["eu-1"]).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_fleet_that_a_region_cannot_read_is_not_replicated_to_it() {
    let fixture = Fixture::start().await;
    let (fleets, overrides) = (fixture.fleets(), fixture.overrides());
    fixture.until_joined().await;
    fleets[1].put("good", "ann").await.unwrap();
    until_fleet(&fleets, "good").await;

    fleets[0].put("unreadable", "bob").await.unwrap();
    // Replicated after the fleet, so that the fleet would have arrived by now.
    overrides[0].put(&drain("us-1", 1)).await.unwrap();

    until_drained(&overrides, &["us-1"]).await;
    assert_eq!(fleets[1].get().await.unwrap().unwrap().text, "good");
    fixture.stop().await;
}

#[tokio::test]
async fn what_a_region_cannot_read_is_pulled_once() {
    // Given a region whose content other regions pull, and that publishes a digest each second.
    let fixture = Fixture::start().await;
    let (fleets, overrides) = (fixture.fleets(), fixture.overrides());
    fixture.until_joined().await;
    let region = NAMES[0].parse().unwrap();
    let mut pulls = fixture.buses[0].subscribe(&subjects::pull(&region)).await.unwrap();
    let mut digests = fixture.buses[0].subscribe(&subjects::digest(&region)).await.unwrap();

    // When its content is unreadable to the other.
    fleets[0].put("unreadable", "bob").await.unwrap();
    tokio::time::timeout(LONG, pulls.next()).await.unwrap().unwrap();
    for _ in 0..3 {
        tokio::time::timeout(LONG, digests.next()).await.unwrap().unwrap();
    }

    // Then that is not pulled again, but what is new is.
    let mut more = 0;
    while tokio::time::timeout(Duration::from_millis(100), pulls.next()).await.is_ok() {
        more += 1;
    }
    assert!(more <= 1, "pulled {more} times more");
    overrides[0].put(&drain("us-1", 1)).await.unwrap();
    until_drained(&overrides, &["us-1"]).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_later_write_wins_whatever_the_clock_of_the_earlier() {
    let fixture = Fixture::start().await;
    let overrides = fixture.overrides();
    fixture.until_joined().await;
    let ahead = tidegate_bus::clock::now().0 + 3_600_000_000;

    overrides[0].put(&drain("us-1", ahead)).await.unwrap();
    until_drained(&overrides, &["us-1"]).await;
    assert!(overrides[1].withdraw(&drain("us-1", 1).kind, "bob", "").await.unwrap());

    until_drained(&overrides, &[]).await;
    overrides[0].put(&drain("us-1", 1)).await.unwrap();
    until_drained(&overrides, &["us-1"]).await;
    fixture.stop().await;
}
