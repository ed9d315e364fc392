//! The lease, the fleet file and the overrides over both buses.

use std::time::Duration;

use crate::both::{LONG, on_both, over_nats};
use bytes::Bytes;
use tidegate_bus::{
    Bus,
    fleet::{FleetFollower, FleetStore, FleetWrite, FleetWritten},
    lease::{Lease, LeaseSeal, LeaseState},
    overrides::{OverrideFollower, OverrideStore},
    subjects,
    testing::NatsServer,
};
use tidegate_model::{
    Epoch, Timestamp,
    overrides::{Override, OverrideKind},
};
use tokio::sync::watch;

on_both! {
    one_of_two_candidates_leads_and_the_other_follows_it
    a_leader_that_falls_silent_is_replaced
    a_heard_epoch_raises_the_leaders
    a_fleet_file_is_followed_at_once
    a_fleet_file_of_3_mb_is_followed
    a_later_fleet_file_has_a_larger_revision_whoever_writes_it
    the_same_file_is_no_new_revision_and_an_unexpected_one_is_not_replaced
    the_last_revisions_are_kept_with_their_texts
    revisions_are_bounded_in_bytes_too
    the_file_of_a_bucket_without_revisions_becomes_one
    what_is_not_a_fleet_file_does_not_replace_one
    overrides_are_followed_as_they_come_and_go
    an_override_that_cannot_be_read_is_left_out
}

const SHORT: Duration = Duration::from_millis(400);
/// So long that only a change notification can be in time.
const NEVER: Duration = Duration::from_secs(3600);

fn seek(bus: &Bus, name: &str, duration: Duration) -> Lease {
    Lease::start(
        bus.bucket(subjects::LEASE_BUCKET),
        "eu",
        name.parse().unwrap(),
        duration,
        LeaseSeal::default(),
    )
}

async fn until<T: Clone>(what: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) -> T {
    tokio::time::timeout(LONG, what.wait_for(wanted)).await.unwrap().unwrap().clone()
}

fn leads(state: &LeaseState) -> bool {
    matches!(state, LeaseState::Leader { .. })
}

async fn one_of_two_candidates_leads_and_the_other_follows_it(bus: Bus) {
    let first = seek(&bus, "a", Duration::from_secs(60));
    until(&mut first.state(), leads).await;
    let second = seek(&bus, "b", SHORT);
    let mut state = second.state();
    assert_eq!(*state.borrow(), LeaseState::Standby);

    // Given back, so the second need not wait for a minute.
    first.stop().await;

    assert_eq!(until(&mut state, leads).await, LeaseState::Leader { epoch: Epoch(2) });
}

async fn a_leader_that_falls_silent_is_replaced(bus: Bus) {
    let first = seek(&bus, "a", SHORT);
    until(&mut first.state(), leads).await;
    let second = seek(&bus, "b", SHORT);

    drop(first);

    assert_eq!(until(&mut second.state(), leads).await, LeaseState::Leader { epoch: Epoch(2) });
}

async fn a_heard_epoch_raises_the_leaders(bus: Bus) {
    let lease = seek(&bus, "a", SHORT);
    until(&mut lease.state(), leads).await;
    lease.observe_epoch(Epoch(41));
    until(&mut lease.state(), |state| *state == LeaseState::Leader { epoch: Epoch(42) }).await;
}

async fn a_fleet_file_is_followed_at_once(bus: Bus) {
    let store = FleetStore::new(&bus);
    assert_eq!(store.get().await.unwrap(), None);
    let follower = FleetFollower::start(&bus, NEVER, false).await.unwrap();
    let mut fleet = follower.fleet();

    let head = store.put("regions: {}", "ann").await.unwrap();

    let followed = until(&mut fleet, Option::is_some).await.unwrap();
    assert_eq!((&followed.head, followed.text.as_str()), (&head, "regions: {}"));
    assert_eq!(head.author, "ann");
    follower.stop().await;
}

async fn a_fleet_file_of_3_mb_is_followed(bus: Bus) {
    let follower = FleetFollower::start(&bus, NEVER, false).await.unwrap();
    let text = "# a comment\n".repeat(250_000);
    FleetStore::new(&bus).put(&text, "ann").await.unwrap();
    assert!(until(&mut follower.fleet(), Option::is_some).await.unwrap().text == text);
}

async fn a_later_fleet_file_has_a_larger_revision_whoever_writes_it(bus: Bus) {
    let (one, other) = (FleetStore::new(&bus), FleetStore::new(&bus));
    let (a, b) = tokio::join!(one.put("1", "ann"), other.put("2", "bob"));
    let (a, b) = (a.unwrap().revision, b.unwrap().revision);
    assert_ne!(a, b);
    assert_eq!(one.get().await.unwrap().unwrap().head.revision, a.max(b));
    assert!(one.put("3", "ann").await.unwrap().revision > a.max(b));
}

fn write(text: &str, expected: Option<u64>) -> FleetWrite {
    FleetWrite { text: text.to_owned(), author: "ann".to_owned(), reason: "a test".to_owned(), expected }
}

async fn the_same_file_is_no_new_revision_and_an_unexpected_one_is_not_replaced(bus: Bus) {
    let store = FleetStore::new(&bus);
    let FleetWritten::Applied(first) = store.apply(&write("regions: { a: {} }", Some(0))).await.unwrap()
    else {
        panic!("there was one")
    };
    assert_eq!(
        store.apply(&write("2", Some(0))).await.unwrap(),
        FleetWritten::Superseded(Some(first.clone()))
    );

    let same = store.apply(&write("regions: { a: {} }", None)).await.unwrap();
    assert_eq!(same, FleetWritten::Unchanged(first.clone()));

    let next = write("regions: { a: {}, b: {} }", Some(first.revision));
    let FleetWritten::Applied(second) = store.apply(&next).await.unwrap() else {
        panic!("it was not applied")
    };
    assert_eq!(second.reason, "a test");
    let superseded = store.apply(&write("3", Some(first.revision))).await.unwrap();
    assert_eq!(superseded, FleetWritten::Superseded(Some(second)));
}

async fn the_last_revisions_are_kept_with_their_texts(bus: Bus) {
    let store = FleetStore::new(&bus);
    let mut written = Vec::new();
    for number in 0..53 {
        written.push(store.put(&format!("file {number}"), &format!("author-{number}")).await.unwrap());
    }

    let kept = store.revisions().await.unwrap();

    written.reverse();
    assert_eq!(kept, written[..50]);
    let oldest = store.revision(kept[49].revision).await.unwrap().unwrap();
    assert_eq!((oldest.text.as_str(), oldest.head.author.as_str()), ("file 3", "author-3"));
    assert_eq!(store.revision(written[50].revision).await.unwrap(), None);
    assert_eq!(store.get().await.unwrap().unwrap().text, "file 52");
}

async fn revisions_are_bounded_in_bytes_too(bus: Bus) {
    let store = FleetStore::new(&bus);
    for fill in ["a", "b", "c", "d", "e"] {
        store.put(&fill.repeat(8 << 20), "ann").await.unwrap();
    }
    assert_eq!(store.revisions().await.unwrap().len(), 4);
}

async fn the_file_of_a_bucket_without_revisions_becomes_one(bus: Bus) {
    // Given a bucket as it was before revisions were kept.
    let store = FleetStore::new(&bus);
    let first = store.put("first", "ann").await.unwrap();
    let bucket = bus.bucket(subjects::FLEET_BUCKET);
    for (key, _) in bucket.list().await.unwrap() {
        if key.starts_with("revision.") {
            bucket.delete(&key).await.unwrap();
        }
    }
    assert_eq!(store.revisions().await.unwrap(), std::slice::from_ref(&first));
    assert_eq!(store.revision(first.revision).await.unwrap().unwrap().text, "first");

    // When the next one is written, then both are kept.
    let second = store.put("second", "bob").await.unwrap();
    assert_eq!(store.revisions().await.unwrap(), [second, first.clone()]);
    assert_eq!(store.revision(first.revision).await.unwrap().unwrap().text, "first");
}

async fn what_is_not_a_fleet_file_does_not_replace_one(bus: Bus) {
    let store = FleetStore::new(&bus);
    let first = store.put("1", "ann").await.unwrap();
    let follower = FleetFollower::start(&bus, Duration::from_millis(20), true).await.unwrap();
    let mut fleet = follower.fleet();
    until(&mut fleet, Option::is_some).await;

    bus.bucket(subjects::FLEET_BUCKET).put("fleet", Bytes::from("nonsense")).await.unwrap();
    assert!(store.get().await.is_err());
    bus.bucket(subjects::FLEET_BUCKET).delete("fleet").await.unwrap();

    // It is put back as it was.
    let back = async {
        loop {
            if let Ok(Some(fleet)) = store.get().await {
                return fleet;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(tokio::time::timeout(LONG, back).await.unwrap().head, first);
    assert!(!fleet.has_changed().unwrap());
}

fn drain(cluster: &str) -> Override {
    Override {
        kind: OverrideKind::DrainCluster(cluster.parse().unwrap()),
        author: "ann".to_owned(),
        reason: "upgrade".to_owned(),
        created_at: Timestamp(1),
        expires_at: None,
    }
}

async fn overrides_are_followed_as_they_come_and_go(bus: Bus) {
    let store = OverrideStore::new(&bus);
    let follower = OverrideFollower::start(&bus, NEVER, false).await.unwrap();
    let mut overrides = follower.overrides();
    assert!(until(&mut overrides, Option::is_some).await.unwrap().active.is_empty());

    store.put(&drain("eu-1")).await.unwrap();
    let seen = until(&mut overrides, |o| o.as_ref().is_some_and(|o| o.active.len() == 1)).await.unwrap();
    assert_eq!(seen.active["drain.cluster.eu-1"], drain("eu-1"));

    assert!(store.withdraw(&drain("eu-1").kind, "bob", "done").await.unwrap());
    let seen = until(&mut overrides, |o| o.as_ref().is_some_and(|o| o.active.is_empty())).await.unwrap();
    let withdrawal = &seen.withdrawn["drain.cluster.eu-1"];
    assert_eq!((withdrawal.author.as_str(), withdrawal.reason.as_str()), ("bob", "done"));
    assert!(!store.withdraw(&drain("eu-1").kind, "bob", "").await.unwrap());
    follower.stop().await;
}

async fn an_override_that_cannot_be_read_is_left_out(bus: Bus) {
    let (store, bucket) = (OverrideStore::new(&bus), bus.bucket(subjects::OVERRIDES_BUCKET));
    store.put(&drain("eu-1")).await.unwrap();
    bucket.put("drain.cluster.eu-2", Bytes::from("{")).await.unwrap();
    let elsewhere = serde_json::to_vec(&drain("eu-4")).unwrap();
    bucket.put("drain.cluster.eu-3", elsewhere.into()).await.unwrap();

    let keys: Vec<String> = store.list().await.unwrap().into_keys().collect();
    assert_eq!(keys, ["drain.cluster.eu-1"]);
}

#[tokio::test]
async fn a_change_is_followed_at_once_though_who_made_it_ends() {
    let server = NatsServer::start();
    let bus = over_nats(&server).await;
    let follower = OverrideFollower::start(&bus, NEVER, false).await.unwrap();
    let mut overrides = follower.overrides();
    until(&mut overrides, Option::is_some).await;

    // As a process does that ends: nothing of it runs once this returns.
    let ends = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            OverrideStore::new(&over_nats(&server).await).put(&drain("eu-1")).await.unwrap();
        });
        server
    };
    let _server = tokio::task::spawn_blocking(ends).await.unwrap();

    until(&mut overrides, |o| o.as_ref().is_some_and(|o| o.active.len() == 1)).await;
}

#[tokio::test]
async fn what_a_server_lost_is_put_back_and_the_lease_goes_on_with_a_larger_epoch() {
    let mut server = NatsServer::start();
    let bus = over_nats(&server).await;
    let (fleet_store, override_store) = (FleetStore::new(&bus), OverrideStore::new(&bus));
    let head = fleet_store.put("regions: {}", "ann").await.unwrap();
    override_store.put(&drain("eu-1")).await.unwrap();
    let poll = Duration::from_millis(50);
    let fleet = FleetFollower::start(&bus, poll, true).await.unwrap();
    let overrides = OverrideFollower::start(&bus, poll, true).await.unwrap();
    let lease = seek(&bus, "a", Duration::from_secs(2));
    until(&mut fleet.fleet(), Option::is_some).await;
    until(&mut overrides.overrides(), |o| o.as_ref().is_some_and(|o| o.active.len() == 1)).await;
    until(&mut lease.state(), leads).await;

    server.kill();
    let mut state = lease.state();
    until(&mut state, |state| *state == LeaseState::Uncertain { epoch: Epoch(1) }).await;
    server.restart_without_data();

    until(&mut state, |state| *state == LeaseState::Leader { epoch: Epoch(2) }).await;
    let back = async {
        loop {
            let fleet = fleet_store.get().await.ok().flatten().map(|fleet| fleet.head);
            let overrides = override_store.list().await.unwrap_or_default();
            if fleet == Some(head.clone()) && overrides.len() == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, back).await.unwrap();
}
