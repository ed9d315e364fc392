//! A real server that dies, forgets and freezes.

use std::{collections::BTreeMap, time::Duration};

use crate::both::{LONG, over_nats};
use bytes::Bytes;
use tidegate_bus::{
    Bus, BusError, NatsSettings,
    bucket::Precondition,
    table::{Owner, OwnerOptions, Replica, ReplicaOptions, SnapshotStore, Update},
    testing::NatsServer,
};
use tidegate_model::{Epoch, Revision};
use tokio::sync::mpsc::Receiver;

type TestUpdate = Update<String, u64>;

const SUBJECT: &str = "tidegate.v1.test.table";

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, found).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// The content after updates until `count` has this value.
async fn until_count(updates: &mut Receiver<TestUpdate>, wanted: u64) {
    let mut content = BTreeMap::new();
    let reached = async {
        while content.get("count") != Some(&wanted) {
            match updates.recv().await.unwrap() {
                Update::Snapshot { entries, .. } => content = entries.into_iter().collect(),
                Update::Delta { changes, .. } => {
                    content.extend(changes.into_iter().filter_map(|(key, value)| Some((key, value?))));
                }
                Update::Heartbeat { .. } | Update::Refused { .. } => {}
            }
        }
    };
    tokio::time::timeout(LONG, reached).await.unwrap_or_else(|_| panic!("count is not {wanted}"));
}

#[tokio::test]
async fn a_bus_begins_before_its_server_and_says_how_long_it_has_been_away() {
    let mut server = NatsServer::start();
    server.kill();
    let bus = Bus::connect(NatsSettings::new([server.url()], "test")).await.unwrap();

    let mut messages = bus.subscribe("t").await.unwrap();
    assert!(!bus.state().connected());
    let away = eventually("time", async || bus.state().away_for().filter(|away| !away.is_zero())).await;
    assert!(
        matches!(bus.publish("t", None, Bytes::new()).await, Err(BusError::Away { away_for, .. }) if away_for >= away)
    );
    assert!(matches!(bus.bucket("b").get("k").await, Err(BusError::Away { .. })));

    server.restart();
    assert!(bus.ready(LONG).await);
    bus.publish("t", None, Bytes::from("x")).await.unwrap();
    assert_eq!(messages.next().await.unwrap().body, "x");
    assert_eq!(bus.state().reconnects, 0);
}

#[tokio::test]
async fn why_there_is_no_connection_is_said_until_there_is_one() {
    let mut server = NatsServer::start_guarded("authorization { users: [{ user: ann, password: right }] }");
    let connect = async |password: &str| {
        let mut settings = NatsSettings::new([server.url()], "test");
        settings.credentials =
            tidegate_bus::Credentials::Password { user: "ann".into(), password: password.into() };
        Bus::connect(settings).await.unwrap()
    };
    let (wrong, right) = (connect("wrong").await, connect("right").await);

    let why = eventually("a connect error", async || wrong.connect_error()).await;
    assert!(why.to_lowercase().contains("authorization"), "{why}");
    let error = wrong.publish("t", None, Bytes::new()).await.unwrap_err().to_string();
    assert!(error.contains(&why), "{error}");

    assert!(right.ready(LONG).await);
    assert_eq!(right.connect_error(), None);
    server.kill();
    let why = eventually("a connect error", async || right.connect_error()).await;
    assert_eq!(why, "no server accepts the connection");
    server.restart();
    eventually("no connect error", async || right.connect_error().is_none().then_some(())).await;
}

#[tokio::test]
async fn subscriptions_and_buckets_go_on_after_a_restart() {
    let mut server = NatsServer::start();
    let bus = over_nats(&server).await;
    let mut messages = bus.subscribe("t").await.unwrap();
    let bucket = bus.bucket("b");
    let revision = bucket.put("k", Bytes::from("1")).await.unwrap();

    server.restart();

    eventually("a reconnect", async || (bus.state().reconnects == 1).then_some(())).await;
    assert!(bus.ready(LONG).await);
    bus.publish("t", None, Bytes::from("x")).await.unwrap();
    assert_eq!(messages.next().await.unwrap().body, "x");
    let entry = eventually("an answer", async || bucket.get("k").await.ok()).await.unwrap();
    assert_eq!((entry.revision, &entry.value[..]), (revision, &b"1"[..]));
}

#[tokio::test]
async fn a_bucket_is_made_again_when_the_server_lost_its_data() {
    let mut server = NatsServer::start();
    let bus = over_nats(&server).await;
    let bucket = bus.bucket("b");
    let revision = bucket.put("k", Bytes::from("1")).await.unwrap();
    let before = bucket.stamp().await.unwrap();

    server.restart_without_data();
    assert!(bus.ready(LONG).await);

    let stamp = eventually("a stamp", async || bucket.stamp().await.ok()).await;
    assert_ne!(stamp.created, before.created);
    assert_eq!(bucket.get("k").await.unwrap(), None);
    assert!(bucket.update("k", Bytes::from("2"), revision).await.unwrap_err().is_conflict());
    bucket.create("k", Bytes::from("3")).await.unwrap();
    bucket.put_blob("blob", Bytes::new(), Bytes::from("x"), Precondition::Absent).await.unwrap();
}

#[tokio::test]
async fn a_table_goes_on_after_a_restart_with_and_without_data() {
    let mut server = NatsServer::start();
    let (owners_bus, bus) = (over_nats(&server).await, over_nats(&server).await);
    let store = SnapshotStore { bucket: owners_bus.bucket("b"), key: "table".to_owned() };
    let short = Duration::from_millis(50);
    let options = OwnerOptions {
        heartbeat: short,
        store_interval: short,
        store: Some(store),
        ..OwnerOptions::default()
    };
    let mut owner: Owner<String, u64> =
        Owner::start(owners_bus.clone(), SUBJECT, Epoch(1), Revision(0), [], options).await.unwrap();
    let (_replica, mut updates) =
        Replica::start(bus.clone(), SUBJECT, ReplicaOptions::default()).await.unwrap();
    let mut publish = async |count: u64| {
        // Not sent when the bus is away: then heartbeat and snapshot bring it.
        _ = owner.publish([("count".to_owned(), Some(count))], Bytes::new(), None).await.unwrap().sent;
    };
    publish(1).await;
    until_count(&mut updates, 1).await;

    server.kill();
    publish(2).await;
    server.restart();
    until_count(&mut updates, 2).await;

    server.kill();
    publish(3).await;
    server.restart_without_data();
    until_count(&mut updates, 3).await;

    // The owner puts its snapshot back into the bucket that was lost.
    let store = SnapshotStore { bucket: bus.bucket("b"), key: "table".to_owned() };
    eventually("a snapshot", async || store.bucket.blob_head(&store.key).await.ok().flatten()).await;
    drop(owner);
    let options = ReplicaOptions { store: Some(store), ..ReplicaOptions::default() };
    let (_replica, mut updates) = Replica::start(bus, SUBJECT, options).await.unwrap();
    until_count(&mut updates, 3).await;
}

#[tokio::test]
async fn a_frozen_server_counts_as_away_and_calls_to_it_end() {
    let server = NatsServer::start();
    let bus = over_nats(&server).await;
    let bucket = bus.bucket("b");
    bucket.put("k", Bytes::from("1")).await.unwrap();

    server.pause();
    let called = tokio::time::timeout(LONG, bucket.get("k")).await.unwrap();
    assert!(called.is_err());
    eventually("noticing", async || (!bus.state().connected()).then_some(())).await;

    server.resume();
    assert!(bus.ready(LONG).await);
    let entry = eventually("an answer", async || bucket.get("k").await.ok()).await;
    assert_eq!(entry.unwrap().value, "1");
}

#[tokio::test]
async fn wrong_settings_are_errors_and_not_waited_for() {
    let none: [&str; 0] = [];
    assert!(matches!(Bus::connect(NatsSettings::new(none, "t")).await, Err(BusError::NoServer)));
    let wrong = Bus::connect(NatsSettings::new(["http://[x"], "t")).await;
    assert!(matches!(wrong, Err(BusError::Address { .. })), "{wrong:?}");
    let mut settings = NatsSettings::new(["nats://127.0.0.1:4222"], "t");
    settings.credentials = tidegate_bus::Credentials::File("/does/not/exist".into());
    assert!(matches!(Bus::connect(settings).await, Err(BusError::Credentials(_))));
}

#[tokio::test]
async fn who_may_not_make_a_bucket_is_told_so() {
    // It may ask whether there is one.
    let permissions = "authorization { users: [{ user: ann, password: ann, permissions: {
        publish: [\"$JS.API.STREAM.INFO.>\"], subscribe: \">\" } }] }";
    let server = NatsServer::start_guarded(permissions);
    let mut settings = NatsSettings::new([server.url()], "test");
    settings.credentials = tidegate_bus::Credentials::Password { user: "ann".into(), password: "ann".into() };
    let bus = Bus::connect(settings).await.unwrap();
    assert!(bus.ready(LONG).await);

    let error = bus.bucket("b").put("k", Bytes::from("x")).await.unwrap_err();
    assert!(matches!(error, BusError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_told_by_what_helps() {
    let server = NatsServer::start_without_jetstream();
    let bus = over_nats(&server).await;
    let written = bus.bucket("b").put("k", Bytes::from("x")).await.unwrap_err().to_string();
    let read = bus.bucket("b").get("k").await.unwrap_err().to_string();
    for error in [written, read] {
        assert!(error.contains("nats-server --jetstream"), "{error}");
    }
}
