//! Replicated tables over both buses.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use crate::both::{LONG, on_both};
use bytes::Bytes;
use tidegate_bus::{
    Bus, TraceContext, codec, subjects,
    table::{
        Owner, OwnerOptions, Replica, ReplicaOptions, Replicas, Seed, SnapshotStore, TableUpdate, Update,
    },
};
use tidegate_model::{Epoch, Revision};
use tokio::sync::mpsc::Receiver;

on_both! {
    a_change_reaches_a_replica_with_its_trace_and_what_the_owner_said
    a_replica_that_starts_late_begins_with_a_snapshot
    the_first_that_is_heard_of_an_empty_table_is_that_it_is_empty
    a_table_of_5_mb_reaches_a_replica
    a_delta_above_the_limit_arrives_as_a_snapshot
    the_older_of_two_owners_is_refused
    a_successor_with_the_same_content_takes_over_without_a_snapshot
    a_replica_without_an_owner_begins_with_the_stored_snapshot
    an_older_owner_does_not_replace_a_later_ones_stored_snapshot
    a_seed_that_is_still_right_is_kept
    a_replica_whose_updates_are_not_taken_catches_up
    many_tables_are_found_and_let_go
    an_owner_whose_clock_was_set_back_is_heard_when_its_life_before_is_forgotten
}

type TestOwner = Owner<String, String>;
type TestUpdate = Update<String, String>;

const SUBJECT: &str = "tidegate.v1.test.table";

fn quick() -> OwnerOptions {
    let short = Duration::from_millis(50);
    OwnerOptions { heartbeat: short, store_interval: short, ..OwnerOptions::default() }
}

fn entries(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

async fn own(bus: &Bus, epoch: u64, pairs: &[(&str, &str)], options: OwnerOptions) -> TestOwner {
    let owner = Owner::start(bus.clone(), SUBJECT, Epoch(epoch), Revision(0), entries(pairs), options);
    owner.await.unwrap()
}

async fn set(owner: &mut TestOwner, key: &str, value: &str) {
    let change = [(key.to_owned(), Some(value.to_owned()))];
    owner.publish(change, Bytes::new(), None).await.unwrap().sent.unwrap();
}

async fn follow(bus: &Bus) -> (Replica, Receiver<TestUpdate>) {
    Replica::start(bus.clone(), SUBJECT, ReplicaOptions::default()).await.unwrap()
}

/// The content that updates lead to.
#[derive(Debug, Default)]
struct Content {
    entries: BTreeMap<String, String>,
    at: Option<(Epoch, Revision)>,
    snapshots: u32,
    refused: u32,
}

impl Content {
    fn take(&mut self, update: TestUpdate) {
        match update {
            Update::Snapshot { epoch, revision, entries, .. } => {
                self.entries = entries.into_iter().collect();
                self.at = Some((epoch, revision));
                self.snapshots += 1;
            }
            Update::Delta { epoch, revision, changes, .. } => {
                for (key, value) in changes {
                    match value {
                        Some(value) => _ = self.entries.insert(key, value),
                        None => _ = self.entries.remove(&key),
                    }
                }
                self.at = Some((epoch, revision));
            }
            Update::Heartbeat { epoch, revision, .. } => self.at = Some((epoch, revision)),
            Update::Refused { .. } => self.refused += 1,
        }
    }

    /// Takes updates until `done`.
    async fn until(&mut self, updates: &mut Receiver<TestUpdate>, done: impl Fn(&Content) -> bool) {
        let reached = async {
            while !done(self) {
                self.take(updates.recv().await.unwrap());
            }
        };
        if tokio::time::timeout(LONG, reached).await.is_err() {
            panic!("not reached: {} entries at {:?}", self.entries.len(), self.at);
        }
    }

    async fn until_equal(&mut self, updates: &mut Receiver<TestUpdate>, pairs: &[(&str, &str)]) {
        let wanted: BTreeMap<_, _> = entries(pairs).into_iter().collect();
        self.until(updates, |content| content.at.is_some() && content.entries == wanted).await;
    }
}

async fn next(updates: &mut Receiver<TestUpdate>, wanted: impl Fn(&TestUpdate) -> bool) -> TestUpdate {
    let found = async {
        loop {
            let update = updates.recv().await.unwrap();
            if wanted(&update) {
                return update;
            }
        }
    };
    tokio::time::timeout(LONG, found).await.unwrap()
}

async fn a_change_reaches_a_replica_with_its_trace_and_what_the_owner_said(bus: Bus) {
    let mut owner = own(&bus, 1, &[("a", "1")], quick()).await;
    let (_replica, mut updates) = follow(&bus).await;
    Content::default().until_equal(&mut updates, &[("a", "1")]).await;
    let trace = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None);

    let changes = [("a".to_owned(), None), ("b".to_owned(), Some("2".to_owned()))];
    let meta = codec::encode(&"because".to_owned());
    owner.publish(changes, meta.clone(), trace.as_ref()).await.unwrap().sent.unwrap();

    let update = next(&mut updates, |update| matches!(update, Update::Delta { .. })).await;
    let Update::Delta { revision, mut changes, meta: said, trace: carried, .. } = update else {
        unreachable!()
    };
    changes.sort();
    assert_eq!(revision, Revision(1));
    assert_eq!(changes, [("a".to_owned(), None), ("b".to_owned(), Some("2".to_owned()))]);
    assert_eq!(said, meta);
    assert_eq!(carried, trace);
}

async fn a_replica_that_starts_late_begins_with_a_snapshot(bus: Bus) {
    let mut owner = own(&bus, 1, &[], quick()).await;
    for number in 0..100 {
        set(&mut owner, &number.to_string(), "x").await;
    }
    let (_replica, mut updates) = follow(&bus).await;

    let first = updates.recv().await.unwrap();

    let Update::Snapshot { epoch, revision, entries, .. } = first else { panic!("{first:?}") };
    assert_eq!((epoch, revision, entries.len()), (Epoch(1), Revision(100), 100));
}

async fn the_first_that_is_heard_of_an_empty_table_is_that_it_is_empty(bus: Bus) {
    let (_replica, mut updates) = follow(&bus).await;
    let _owner = own(&bus, 1, &[], quick()).await;
    let first = updates.recv().await.unwrap();
    assert!(matches!(first, Update::Snapshot { entries, .. } if entries.is_empty()));
}

async fn a_table_of_5_mb_reaches_a_replica(bus: Bus) {
    let value = "v".repeat(50_000);
    let many = (0..100).map(|number| (format!("key-{number}"), value.clone()));
    let store = SnapshotStore { bucket: bus.bucket("test"), key: "table".to_owned() };
    let options = OwnerOptions { store: Some(store.clone()), ..quick() };
    let owner: TestOwner =
        Owner::start(bus.clone(), SUBJECT, Epoch(1), Revision(0), many, options).await.unwrap();

    let (_replica, mut updates) = follow(&bus).await;
    let mut content = Content::default();
    content.until(&mut updates, |content| content.entries.len() == 100).await;
    assert!(content.entries.values().all(|there| *there == value));

    // And from the bucket, when the owner is gone.
    owner.stop().await;
    let options = ReplicaOptions { store: Some(store), ..ReplicaOptions::default() };
    let (_replica, mut updates) = Replica::start(bus.clone(), SUBJECT, options).await.unwrap();
    let mut content = Content::default();
    content.until(&mut updates, |content| content.entries.len() == 100).await;
}

async fn a_delta_above_the_limit_arrives_as_a_snapshot(bus: Bus) {
    let mut owner = own(&bus, 1, &[], quick()).await;
    let (replica, mut updates) = follow(&bus).await;
    let mut content = Content::default();
    content.until_equal(&mut updates, &[]).await;

    set(&mut owner, "a", &"v".repeat(300_000)).await;

    content.until(&mut updates, |content| content.entries.len() == 1).await;
    assert_eq!(replica.stats().deltas.load(Ordering::Relaxed), 0);
}

async fn the_older_of_two_owners_is_refused(bus: Bus) {
    let mut old = own(&bus, 1, &[("a", "old")], quick()).await;
    let (_replica, mut updates) = follow(&bus).await;
    let mut content = Content::default();
    content.until_equal(&mut updates, &[("a", "old")]).await;

    let mut new = own(&bus, 2, &[("a", "new")], quick()).await;
    content.until_equal(&mut updates, &[("a", "new")]).await;
    set(&mut old, "a", "older").await;
    content.until(&mut updates, |content| content.refused > 2).await;
    set(&mut new, "b", "newer").await;
    content.until_equal(&mut updates, &[("a", "new"), ("b", "newer")]).await;

    // A replica that starts now may hear of either first.
    let (_replica, mut updates) = follow(&bus).await;
    Content::default().until_equal(&mut updates, &[("a", "new"), ("b", "newer")]).await;
}

async fn a_successor_with_the_same_content_takes_over_without_a_snapshot(bus: Bus) {
    let old = own(&bus, 1, &[("a", "1")], quick()).await;
    let (_replica, mut updates) = follow(&bus).await;
    let mut content = Content::default();
    content.until_equal(&mut updates, &[("a", "1")]).await;
    old.stop().await;

    let mut new = own(&bus, 2, &[("a", "1")], quick()).await;
    content.until(&mut updates, |content| content.at.unwrap().0 == Epoch(2)).await;
    set(&mut new, "b", "2").await;
    content.until_equal(&mut updates, &[("a", "1"), ("b", "2")]).await;

    assert_eq!(content.snapshots, 1);
}

async fn a_replica_without_an_owner_begins_with_the_stored_snapshot(bus: Bus) {
    let store = SnapshotStore { bucket: bus.bucket(subjects::ROUTES_BUCKET), key: "eu".to_owned() };
    let mut owner = own(&bus, 1, &[], OwnerOptions { store: Some(store.clone()), ..quick() }).await;
    set(&mut owner, "a", "1").await;
    owner.stop().await;

    let options = ReplicaOptions::<String, String> { store: Some(store), ..ReplicaOptions::default() };
    let (_replica, mut updates) = Replica::start(bus.clone(), SUBJECT, options).await.unwrap();

    let first = tokio::time::timeout(LONG, updates.recv()).await.unwrap().unwrap();
    assert!(matches!(first, Update::Snapshot { epoch: Epoch(1), revision: Revision(1), .. }), "{first:?}");
}

async fn an_older_owner_does_not_replace_a_later_ones_stored_snapshot(bus: Bus) {
    let store = SnapshotStore { bucket: bus.bucket("test"), key: "table".to_owned() };
    let options = || OwnerOptions { store: Some(store.clone()), ..quick() };
    let new = own(&bus, 2, &[("a", "new")], options()).await;
    new.stop().await;

    let mut old = own(&bus, 1, &[("a", "old")], options()).await;
    set(&mut old, "a", "older").await;
    let superseded = async {
        while old.superseded_by() != Some(Epoch(2)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, superseded).await.unwrap();
    old.stop().await;

    let options = ReplicaOptions { store: Some(store.clone()), ..ReplicaOptions::default() };
    let (_replica, mut updates) = Replica::start(bus.clone(), SUBJECT, options).await.unwrap();
    Content::default().until_equal(&mut updates, &[("a", "new")]).await;
}

async fn a_seed_that_is_still_right_is_kept(bus: Bus) {
    let mut owner = own(&bus, 7, &[("a", "1")], quick()).await;
    let seed = Seed { epoch: Epoch(3), revision: Revision(9), entries: entries(&[("a", "1")]) };
    let options = ReplicaOptions { seed: Some(seed), ..ReplicaOptions::default() };
    let (replica, mut updates) = Replica::start(bus.clone(), SUBJECT, options).await.unwrap();
    let mut content = Content { entries: entries(&[("a", "1")]).into_iter().collect(), ..Content::default() };

    content.until(&mut updates, |content| content.at.is_some_and(|(epoch, _)| epoch == Epoch(7))).await;
    set(&mut owner, "b", "2").await;
    content.until_equal(&mut updates, &[("a", "1"), ("b", "2")]).await;
    replica.stop().await;
}

async fn a_replica_whose_updates_are_not_taken_catches_up(bus: Bus) {
    let mut owner = own(&bus, 1, &[], quick()).await;
    let (_replica, mut updates) = follow(&bus).await;
    let mut content = Content::default();
    content.until_equal(&mut updates, &[]).await;

    // More than the replica's channel and its subscription hold together.
    for number in 0..20_000 {
        set(&mut owner, "count", &number.to_string()).await;
    }

    content.until_equal(&mut updates, &[("count", "19999")]).await;
}

async fn many_tables_are_found_and_let_go(bus: Bus) {
    let silence = Duration::from_millis(500);
    let (_replicas, mut updates) =
        Replicas::start::<String, String>(bus.clone(), subjects::ALL_PROBES, silence).await.unwrap();
    let region = "eu".parse().unwrap();
    let subject = |prober: &str| subjects::probe(&region, &prober.parse().unwrap());
    let mut owners = Vec::new();
    for prober in ["p-1", "snapshot"] {
        let owner: TestOwner = Owner::start(
            bus.clone(),
            &subject(prober),
            Epoch(1),
            Revision(0),
            entries(&[("name", prober)]),
            quick(),
        )
        .await
        .unwrap();
        owners.push(owner);
    }

    let mut tables: BTreeMap<String, Content> = BTreeMap::new();
    let mut take =
        async |tables: &mut BTreeMap<String, Content>| match tokio::time::timeout(LONG, updates.recv())
            .await
            .unwrap()
            .unwrap()
        {
            TableUpdate::Update(subject, update) => tables.entry(subject).or_default().take(update),
            TableUpdate::Gone(subject) => _ = tables.remove(&subject),
        };
    let named = |tables: &BTreeMap<String, Content>, prober: &str| {
        tables
            .get(&subject(prober))
            .is_some_and(|table| table.entries.get("name").is_some_and(|n| n == prober))
    };
    while !(named(&tables, "p-1") && named(&tables, "snapshot")) {
        take(&mut tables).await;
    }
    assert_eq!(tables.len(), 2);

    owners.remove(0).stop().await;
    while named(&tables, "p-1") {
        take(&mut tables).await;
    }
    assert!(named(&tables, "snapshot"), "one that speaks is kept");
}

async fn an_owner_whose_clock_was_set_back_is_heard_when_its_life_before_is_forgotten(bus: Bus) {
    let silence = Duration::from_millis(500);
    let (_replicas, mut updates) =
        Replicas::start::<String, String>(bus.clone(), SUBJECT, silence).await.unwrap();
    let mut content = Content::default();
    let mut until = async |content: &mut Content, value: &str| {
        let reached = async {
            while content.entries.get("a").is_none_or(|there| there != value) {
                match updates.recv().await.unwrap() {
                    TableUpdate::Update(_, update) => content.take(update),
                    TableUpdate::Gone(_) => content.entries.clear(),
                }
            }
        };
        tokio::time::timeout(LONG, reached).await.unwrap_or_else(|_| panic!("{value} is not heard"));
    };
    let before = own(&bus, 1000, &[("a", "before")], quick()).await;
    until(&mut content, "before").await;
    before.stop().await;

    let _after = own(&bus, 1, &[("a", "after")], quick()).await;

    until(&mut content, "after").await;
    assert!(content.refused > 0);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_stood_still_publishes_nothing_until_it_restarts() {
    let bus = Bus::in_process();
    let options = OwnerOptions { stalled_after: Some(Duration::from_secs(3)), ..OwnerOptions::default() };
    let mut owner = own(&bus, 1, &[("a", "1")], options).await;
    let (_replica, mut updates) = follow(&bus).await;
    let mut content = Content::default();
    content.until_equal(&mut updates, &[("a", "1")]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!owner.is_stalled(), "time alone is no standstill");

    tokio::time::advance(Duration::from_secs(4)).await;
    assert!(owner.is_stalled());
    while updates.try_recv().is_ok() {}
    set(&mut owner, "a", "2").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(updates.try_recv().is_err(), "it has published");

    owner.restart(Epoch(2)).await.unwrap();
    set(&mut owner, "b", "3").await;
    content.until_equal(&mut updates, &[("b", "3")]).await;
    assert_eq!(content.at.unwrap().0, Epoch(2));
}
